//! Which applied transactions are durable (invariant I3).
//!
//! History is committed with `synchronous_commit = off`: visible at once, on disk a moment later. This task
//! watches, on a connection of its own that no history lock can block, until the target's WAL is flushed past
//! everything that was committed before it looked. Why that is enough: a position of the target's WAL that is
//! read *after* a COMMIT was answered lies past its commit record, and WAL is flushed in order.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_postgres::{Client, Error};

use crate::history::checkpoint;
use crate::lsn::Lsn;

/// How often the flush position is asked for while something waits for it. The WAL writer flushes every
/// `wal_writer_delay`, 200 ms by default.
const POLL: Duration = Duration::from_millis(100);
/// Where the target's WAL ends, and up to where it is on disk.
const POSITIONS: &str = "SELECT pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn()";

pub(super) struct Watch {
    /// A connection to the target.
    pub(super) client: Arc<Client>,
    pub(super) slot: String,
    /// The end of the last committed transaction.
    pub(super) applied: watch::Receiver<Lsn>,
    /// The end of the last transaction that is on disk.
    pub(super) durable: watch::Sender<Lsn>,
    /// Positions to be written as `reported_lsn`.
    pub(super) reports: mpsc::Receiver<Lsn>,
    /// The last of them that is written.
    pub(super) reported: watch::Sender<Lsn>,
}

impl Watch {
    /// Watches until a channel closes or the target fails.
    pub(super) async fn run(mut self) -> Result<(), Error> {
        let positions = self.client.prepare(POSITIONS).await?;
        let mut safe = *self.durable.borrow();
        // What was committed when the WAL ended there.
        let mut awaited: Option<(Lsn, Lsn)> = None;
        let mut look_at = Instant::now();
        loop {
            tokio::select! {
                changed = unconfirmed(&mut self.applied, safe, look_at) => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    look_at = Instant::now() + POLL;
                    let committed = *self.applied.borrow();
                    let row = self.client.query_one(&positions, &[]).await?;
                    let [end, flushed] = [0, 1].map(|n| row.get::<_, Lsn>(n));
                    let (upto, written) = *awaited.get_or_insert((committed, end));
                    if flushed >= written {
                        safe = upto;
                        self.durable.send_replace(upto);
                        awaited = None;
                    }
                }
                Some(lsn) = self.reports.recv() => {
                    checkpoint::report(&self.client, &self.slot, lsn).await?;
                    self.reported.send_replace(lsn);
                }
            }
        }
    }
}

/// Waits until more is committed than is known to be durable, and until `look_at`. Cancel-safe.
async fn unconfirmed(
    applied: &mut watch::Receiver<Lsn>,
    durable: Lsn,
    look_at: Instant,
) -> Result<(), watch::error::RecvError> {
    applied.wait_for(|&applied| applied > durable).await?;
    sleep_until(look_at).await;
    Ok(())
}

/// Makes everything that was committed before durable now: a synchronous commit of our own flushes all WAL
/// before it.
pub(super) async fn flush(client: &Client, slot: &str) -> Result<(), Error> {
    let touch = "UPDATE waltrail.checkpoint SET updated_at = clock_timestamp() WHERE slot = $1";
    client.execute(touch, &[&slot]).await.map(|_| ())
}
