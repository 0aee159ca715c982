//! Which applied transactions are durable (invariant I3).
//!
//! History is committed with `synchronous_commit = off`: visible at once, on disk a moment later. This task
//! watches, on a connection of its own that no history lock can block, until the target's WAL is flushed past
//! everything that was committed before it looked. Why that is enough: a position of the target's WAL that is
//! read *after* a COMMIT was answered lies behind its commit record, and WAL is flushed in order.
//!
//! While rows go one by one it also flushes. A server before 17 wakes its WAL writer at every such commit as long as a
//! page of WAL is complete and not on disk (`XLogSetAsyncXactLSN`), which is nearly always, since the WAL writer flushes
//! every `wal_writer_delay` only; and the commit is not visible before that. A page that is on disk as soon as it is
//! complete spares nearly all of them.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_postgres::{Client, Error, Statement};

use super::checkpoint;
use crate::handover::Place;
use crate::lsn::Lsn;

/// How often the flush position is asked for while something waits for it. The WAL writer flushes every
/// `wal_writer_delay`, 200 ms by default.
const POLL: Duration = Duration::from_millis(100);
/// Where the target's WAL ends, and up to where it is on disk.
const POSITIONS: &str = "SELECT pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn()";
/// Bytes in a page of WAL (`wal_block_size`), unless the server was built with another size; then pages are only flushed
/// at other moments.
const WAL_PAGE: u64 = 8192;
/// One part in so many of the time may go into flushing pages: a slow disk is left to others.
const SHARE: u32 = 10;

/// Tells of the target's WAL page by page.
#[derive(Debug)]
pub struct Pages(watch::Sender<Lsn>);

impl Pages {
    /// With the other end, which sees the start of the last page that was reached.
    #[must_use]
    pub fn new() -> (Self, watch::Receiver<Lsn>) {
        let (sender, receiver) = watch::channel(Lsn::ZERO);
        (Self(sender), receiver)
    }

    /// The WAL has reached `position`.
    pub fn reached(&self, position: Lsn) {
        let start = Lsn::from_u64(position.as_u64() / WAL_PAGE * WAL_PAGE);
        self.0.send_if_modified(|page| {
            let further = start > *page;
            *page = start.max(*page);
            further
        });
    }
}

/// What [`watch()`] is given.
pub struct Given<'a> {
    /// A connection to the target.
    pub client: &'a Client,
    /// Whose checkpoint it is.
    pub slot: &'a str,
    /// The end of the last committed transaction.
    pub applied: watch::Receiver<Lsn>,
    /// See [`Pages`].
    pub pages: watch::Receiver<Lsn>,
    /// The position that the writing begins at.
    pub start: Lsn,
    /// The end of the last transaction that is on disk.
    pub durable: &'a Place<Lsn>,
    /// Positions to be written as `reported_lsn`.
    pub reports: mpsc::Receiver<Lsn>,
    /// Each of them once it is written.
    pub reported: &'a Place<Lsn>,
}

/// Watches until a channel closes or the target fails.
///
/// # Errors
/// The target failed.
pub async fn watch(given: Given<'_>) -> Result<(), Error> {
    let Given {
        client,
        slot,
        mut applied,
        mut pages,
        start: mut safe,
        durable,
        mut reports,
        reported,
    } = given;
    let positions = client.prepare(POSITIONS).await?;
    let flush_page = flush_page(client).await?;
    // What was committed when the WAL ended there.
    let mut awaited: Option<(Lsn, Lsn)> = None;
    let (mut look_at, mut flush_at) = (Instant::now(), Instant::now());
    loop {
        tokio::select! {
            changed = behind(&mut applied, safe, look_at) => {
                if changed.is_err() {
                    return Ok(());
                }
                look_at = Instant::now() + POLL;
                let committed = *applied.borrow();
                let row = client.query_one(&positions, &[]).await?;
                let (end, flushed): (Lsn, Lsn) = (row.get(0), row.get(1));
                let (upto, written) = *awaited.get_or_insert((committed, end));
                if flushed >= written {
                    safe = upto;
                    durable.give(upto);
                    awaited = None;
                }
            }
            Some((statement, page)) = complete(flush_page.as_ref(), &mut pages, flush_at) => {
                let began = Instant::now();
                client.execute(statement, &[&page]).await?;
                flush_at = Instant::now() + began.elapsed() * (SHARE - 1);
            }
            Some(lsn) = reports.recv() => {
                checkpoint::report(client, slot, lsn).await?;
                reported.give(lsn);
            }
        }
    }
}

/// Waits until more is committed than is known to be durable, and until `look_at`. Cancel-safe.
async fn behind(
    applied: &mut watch::Receiver<Lsn>,
    durable: Lsn,
    look_at: Instant,
) -> Result<(), watch::error::RecvError> {
    applied.wait_for(|&applied| applied > durable).await?;
    sleep_until(look_at).await;
    Ok(())
}

/// Waits for a complete page, at `flush_at` at the earliest; the statement that flushes it, and where the next one starts.
/// Cancel-safe.
async fn complete<'a>(
    statement: Option<&'a Statement>,
    pages: &mut watch::Receiver<Lsn>,
    flush_at: Instant,
) -> Option<(&'a Statement, Lsn)> {
    let statement = statement?;
    sleep_until(flush_at).await;
    pages.changed().await.ok()?;
    Some((statement, *pages.borrow()))
}

/// The statement that puts all WAL on disk if it is not there up to `$1`; none where that would spare nothing, or is not
/// allowed. A message is the least that makes a commit wait for the disk, and no standby is waited for.
async fn flush_page(client: &Client) -> Result<Option<Statement>, Error> {
    let helps = "SELECT CASE WHEN current_setting('server_version_num')::integer < 170000 \
         THEN has_function_privilege('pg_logical_emit_message(boolean, text, text)', 'EXECUTE') ELSE false END";
    if !client.query_one(helps, &[]).await?.get::<_, bool>(0) {
        return Ok(None);
    }
    let statement = "SELECT set_config('synchronous_commit', 'local', true), \
         pg_logical_emit_message(true, 'waltrail', '') WHERE pg_current_wal_flush_lsn() < $1";
    client.prepare(statement).await.map(Some)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_told_once() {
        let (pages, mut reached) = Pages::new();
        let mut told = |position| {
            pages.reached(Lsn::from_u64(position));
            reached
                .has_changed()
                .unwrap()
                .then(|| reached.borrow_and_update().as_u64())
        };
        assert_eq!(told(3 * WAL_PAGE + 40), Some(3 * WAL_PAGE));
        assert_eq!(told(4 * WAL_PAGE - 1), None);
        assert_eq!(told(4 * WAL_PAGE), Some(4 * WAL_PAGE));
        assert_eq!(told(9 * WAL_PAGE + 8), Some(9 * WAL_PAGE));
        assert_eq!(told(2 * WAL_PAGE), None);
    }
}
