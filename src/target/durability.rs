//! Which applied transactions are durable (invariant I3).
//!
//! History is committed with `synchronous_commit = off`: visible at once, on disk a moment later. This task
//! watches, on a connection of its own that no history lock can block, until the target's WAL is flushed past
//! everything that was committed before it looked. Why that is enough: a position of the target's WAL that is
//! read *after* a COMMIT was answered lies behind its commit record, and WAL is flushed in order.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_postgres::{Client, Error};

use super::checkpoint;
use crate::lsn::Lsn;

/// How often the flush position is asked for while something waits for it. The WAL writer flushes every
/// `wal_writer_delay`, 200 ms by default.
const POLL: Duration = Duration::from_millis(100);

/// Watches until a channel closes or the target fails.
///
/// `applied`: the end of the last committed transaction. `durable`: the same, once it is on disk. `reports`:
/// positions to be written as `reported_lsn`; each is answered on `reported`.
///
/// # Errors
/// The target failed.
pub async fn watch(
    client: &Client,
    slot: &str,
    mut applied: watch::Receiver<Lsn>,
    durable: watch::Sender<Lsn>,
    mut reports: mpsc::Receiver<Lsn>,
    reported: watch::Sender<Lsn>,
) -> Result<(), Error> {
    loop {
        tokio::select! {
            changed = applied.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let upto = *applied.borrow_and_update();
                let written = position(client, "pg_current_wal_insert_lsn").await?;
                while position(client, "pg_current_wal_flush_lsn").await? < written {
                    tokio::time::sleep(POLL).await;
                }
                durable.send_replace(upto);
            }
            Some(lsn) = reports.recv() => {
                checkpoint::report(client, slot, lsn).await?;
                reported.send_replace(lsn);
            }
        }
    }
}

/// Makes everything that was committed before durable now: a synchronous commit of our own flushes all WAL
/// before it.
///
/// # Errors
/// The target failed.
pub async fn flush(client: &Client, slot: &str) -> Result<(), Error> {
    let touch = "UPDATE waltrail.checkpoint SET updated_at = clock_timestamp() WHERE slot = $1";
    client.execute(touch, &[&slot]).await.map(|_| ())
}

async fn position(client: &Client, function: &str) -> Result<Lsn, Error> {
    let row = client
        .query_one(&format!("SELECT pg_catalog.{function}()::text"), &[])
        .await?;
    // pg_lsn's own text is always of its form.
    Ok(row.get::<_, &str>(0).parse().unwrap_or_default())
}
