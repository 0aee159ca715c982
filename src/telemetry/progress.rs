//! Counters that the tasks of a session share: what flows, and how far.
//!
//! What it costs, for each batch and never for each row: some atomic additions, two readings of the clock, and one lock
//! that only a scrape takes as well, under which tables and histograms are updated.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::health::Look;
use super::histogram::{COMMIT_US, Histogram, LATENCY_US, ROWS};
use super::lag::Source;
use super::watchdog::Watchdog;
use crate::history::batch::{Batch, Seal};
use crate::history::tally::Tally;
use crate::lsn::Lsn;
use crate::schema::TableName;

/// No time.
const NEVER: i64 = i64::MIN;

/// What has flowed since the process began, and the positions of the running session.
#[derive(Debug)]
pub struct Progress {
    pub rows: AtomicU64,
    pub transactions: AtomicU64,
    pub batches: AtomicU64,
    unavailable: AtomicU64,
    failures: AtomicU64,
    streaming: AtomicBool,
    received: AtomicU64,
    /// The most that any session has received: the source's WAL has gone so far.
    reached: AtomicU64,
    pending: AtomicU64,
    applied: AtomicU64,
    confirmed: AtomicU64,
    /// Everything of ours before here is in the history, although no transaction of it need end here.
    clear: AtomicU64,
    /// When the oldest transaction committed that is here and not recorded; or [`NEVER`].
    oldest: AtomicI64,
    /// When the last transaction in the history committed; or [`NEVER`].
    recorded: AtomicI64,
    reconnects: Mutex<BTreeMap<&'static str, u64>>,
    flow: Mutex<Flow>,
    source: Mutex<Source>,
    /// Whether the tasks of the session move.
    pub(crate) watchdog: Watchdog,
}

/// What is updated once a batch.
#[derive(Debug)]
pub struct Flow {
    /// Each table that is followed, by its name at the source.
    pub tables: BTreeMap<TableName, Counted>,
    /// From the commit on the source to when it was seen that the target had committed, in microseconds.
    pub latency: Histogram,
    /// Rows of a target transaction.
    pub batch_rows: Histogram,
    /// From when the last rows of a target transaction were sent to the answer to its COMMIT, in microseconds.
    pub commit: Histogram,
}

#[derive(Clone, Debug)]
pub struct Counted {
    /// The name, as it is served.
    pub table: Arc<str>,
    pub tally: Tally,
}

impl Flow {
    fn add(&mut self, table: &TableName, tally: Tally) {
        match self.tables.get_mut(table) {
            Some(counted) => counted.tally += tally,
            None => {
                let counted = Counted {
                    table: table.to_string().into(),
                    tally,
                };
                self.tables.insert(table.clone(), counted);
            }
        }
    }
}

/// What the pieces of a target transaction wrote that came before its last one.
#[derive(Debug, Default)]
pub struct Pieces {
    tables: BTreeMap<TableName, Tally>,
    rows: usize,
}

impl Pieces {
    pub fn add(&mut self, batch: &Batch) {
        for rows in batch.tables() {
            let table = &rows.plan().source;
            match self.tables.get_mut(table) {
                Some(sum) => *sum += rows.tally(),
                None => drop(self.tables.insert(table.clone(), rows.tally())),
            }
        }
        self.rows += batch.count();
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moment {
    pub rows: u64,
    pub transactions: u64,
    pub batches: u64,
    /// Values that the WAL did not carry.
    pub unavailable: u64,
    /// Sessions that failed for a passing reason.
    pub failures: u64,
    pub received: Lsn,
    /// The end of the last transaction in the history.
    pub applied: Lsn,
    /// The last position confirmed to the source.
    pub confirmed: Lsn,
}

/// `source >= received >= applied >= confirmed`, at every moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Positions {
    /// The end of the source's WAL, the newest that is known.
    pub source: Lsn,
    pub received: Lsn,
    /// Everything before it is in the history.
    pub applied: Lsn,
    pub confirmed: Lsn,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            rows: AtomicU64::default(),
            transactions: AtomicU64::default(),
            batches: AtomicU64::default(),
            unavailable: AtomicU64::default(),
            failures: AtomicU64::default(),
            streaming: AtomicBool::default(),
            received: AtomicU64::default(),
            reached: AtomicU64::default(),
            pending: AtomicU64::default(),
            applied: AtomicU64::default(),
            confirmed: AtomicU64::default(),
            clear: AtomicU64::default(),
            oldest: AtomicI64::new(NEVER),
            recorded: AtomicI64::new(NEVER),
            reconnects: Mutex::default(),
            flow: Mutex::new(Flow {
                tables: BTreeMap::new(),
                latency: Histogram::new(LATENCY_US),
                batch_rows: Histogram::new(ROWS),
                commit: Histogram::new(COMMIT_US),
            }),
            source: Mutex::default(),
            watchdog: Watchdog::default(),
        }
    }
}

fn of(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn time(of: &AtomicI64) -> Option<i64> {
    Some(of.load(Ordering::Relaxed)).filter(|time| *time != NEVER)
}

/// What a session says.
impl Progress {
    /// These tables are followed; what is counted of them is served from now on, zeros as well.
    pub fn follows<'a>(&self, tables: impl IntoIterator<Item = &'a TableName>) {
        self.flow(|flow| {
            for table in tables {
                flow.add(table, Tally::default());
            }
        });
    }

    /// A session starts where the history ends; the last transaction in it committed at `commit_time`, where that is known.
    pub fn starts_at(&self, end_lsn: Lsn, commit_time: Option<i64>) {
        // A target that has lost its last commits.
        if end_lsn.as_u64() < of(&self.applied) {
            self.clear.store(end_lsn.as_u64(), Ordering::Relaxed);
        }
        self.reached
            .fetch_max(of(&self.received), Ordering::Relaxed);
        for counter in [&self.received, &self.pending, &self.applied] {
            counter.store(end_lsn.as_u64(), Ordering::Relaxed);
        }
        self.oldest.store(NEVER, Ordering::Relaxed);
        if let Some(commit_time) = commit_time {
            self.recorded.store(commit_time, Ordering::Relaxed);
        }
    }

    /// Everything up to here has been received. `whole`: and no transaction is on its way. `oldest`: when the oldest
    /// transaction committed that is here and not recorded.
    pub fn received(&self, received: Lsn, whole: bool, oldest: Option<i64>) {
        self.received.store(received.as_u64(), Ordering::Relaxed);
        self.oldest
            .store(oldest.unwrap_or(NEVER), Ordering::Relaxed);
        if whole && !self.is_waiting() {
            self.clear.fetch_max(received.as_u64(), Ordering::Relaxed);
        }
    }

    /// A transaction with recorded rows has been received; it ends at `end_lsn`.
    pub fn pending(&self, end_lsn: Lsn) {
        self.pending.store(end_lsn.as_u64(), Ordering::Relaxed);
    }

    /// A target transaction was committed: `batch`, after `pieces`. `took`: how long the target had it; `now`: this
    /// machine's clock.
    ///
    /// Each transaction of the batch is one observation of the latency: its first and its last alone would count one
    /// transaction in a quiet second as much as a thousand in a busy one. A comparison or five each cost less than
    /// reading the transaction's COMMIT message did.
    pub fn committed(
        &self,
        pieces: &mut Pieces,
        batch: &Batch,
        seal: Seal,
        took: Duration,
        now: i64,
    ) {
        let pieces = std::mem::take(pieces);
        let rows = (pieces.rows + batch.count()) as u64;
        self.rows.fetch_add(rows, Ordering::Relaxed);
        let transactions = batch.transactions() as u64;
        self.transactions.fetch_add(transactions, Ordering::Relaxed);
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.applied.store(seal.end_lsn.as_u64(), Ordering::Relaxed);
        self.recorded.store(seal.commit_time.0, Ordering::Relaxed);
        if !self.is_waiting() {
            // The reader says so only when it has come to it.
            self.oldest.store(NEVER, Ordering::Relaxed);
        }
        let mut unavailable = 0;
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        self.flow(|flow| {
            for (table, tally) in &pieces.tables {
                unavailable += tally.unavailable;
                flow.add(table, *tally);
            }
            for rows in batch.tables() {
                unavailable += rows.tally().unavailable;
                flow.add(&rows.plan().source, rows.tally());
            }
            for commit_time in batch.commit_times() {
                flow.latency.observe(source.age(commit_time.0, now));
            }
            flow.batch_rows.observe(rows);
            flow.commit.observe(microseconds(took));
        });
        if unavailable > 0 {
            self.unavailable.fetch_add(unavailable, Ordering::Relaxed);
        }
    }

    /// Everything up to here was confirmed to the source.
    pub fn confirmed(&self, confirmed: Lsn) {
        self.confirmed
            .fetch_max(confirmed.as_u64(), Ordering::Relaxed);
    }

    pub fn streaming(&self, streaming: bool) {
        self.streaming.store(streaming, Ordering::Relaxed);
    }

    /// A session failed for a passing reason, because of the server on this side where that is known.
    pub fn failed(&self, side: Option<&'static str>) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        // What waited here comes again.
        self.oldest.store(NEVER, Ordering::Relaxed);
        if let Some(side) = side {
            let mut reconnects = self
                .reconnects
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *reconnects.entry(side).or_default() += 1;
        }
    }
}

/// What is known of the source beside the stream.
impl Progress {
    /// The source knows that everything up to here was confirmed, by this process or one before.
    pub fn source_confirmed(&self, confirmed: Lsn) {
        self.confirmed
            .fetch_max(confirmed.as_u64(), Ordering::Relaxed);
    }

    pub fn source<T>(&self, act: impl FnOnce(&mut Source) -> T) -> T {
        act(&mut self.source.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is asked.
impl Progress {
    pub fn is_streaming(&self) -> bool {
        self.streaming.load(Ordering::Relaxed)
    }

    /// Whether complete transactions wait to be committed to the history.
    pub fn is_waiting(&self) -> bool {
        of(&self.pending) > of(&self.applied)
    }

    /// What readiness is decided by.
    pub fn look(&self) -> Look {
        Look {
            streaming: self.is_streaming(),
            waiting: self.is_waiting(),
            applied: Lsn::from_u64(of(&self.applied)),
        }
    }

    /// The age of the oldest commit that is not recorded, at `now` by this machine's clock; see `lag.rs`.
    pub fn lag_seconds(&self, now: i64) -> f64 {
        let (oldest, positions) = (time(&self.oldest), self.positions());
        let is_here = self.is_streaming() && positions.applied >= positions.source;
        self.source(|source| source.lag_seconds(oldest, is_here, now))
    }

    /// Bytes of WAL between what is recorded and the source's end.
    pub fn lag_bytes(&self) -> u64 {
        let positions = self.positions();
        let nothing_waits = time(&self.oldest).is_none();
        match nothing_waits && self.source(|source| source.is_level()) {
            // WAL of others, of which nothing is to be recorded.
            true => 0,
            false => positions.source.bytes_since(positions.applied),
        }
    }

    /// When the last transaction in the history committed, by the source's clock.
    pub fn last_recorded(&self) -> Option<i64> {
        time(&self.recorded)
    }

    /// How often a session was started again because of a server.
    pub fn reconnects(&self, side: &str) -> u64 {
        let reconnects = self
            .reconnects
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        reconnects.get(side).copied().unwrap_or_default()
    }

    /// What is updated once a batch: the stream waits while this looks.
    pub fn flow<T>(&self, look: impl FnOnce(&mut Flow) -> T) -> T {
        look(&mut self.flow.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn positions(&self) -> Positions {
        let confirmed = of(&self.confirmed);
        // What was confirmed, or came while nothing waited, is recorded, also where no transaction of ours ends there.
        let applied = of(&self.applied).max(of(&self.clear)).max(confirmed);
        // A stream that begins before the checkpoint brings what was received before.
        let received = of(&self.received).max(applied);
        let end = self.source(|source| source.end()).as_u64();
        Positions {
            source: Lsn::from_u64(end.max(received).max(of(&self.reached))),
            received: Lsn::from_u64(received),
            applied: Lsn::from_u64(applied),
            confirmed: Lsn::from_u64(confirmed),
        }
    }

    pub fn moment(&self) -> Moment {
        Moment {
            rows: of(&self.rows),
            transactions: of(&self.transactions),
            batches: of(&self.batches),
            unavailable: of(&self.unavailable),
            failures: of(&self.failures),
            received: self.positions().received,
            applied: Lsn::from_u64(of(&self.applied)),
            confirmed: Lsn::from_u64(of(&self.confirmed)),
        }
    }
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsn(at: u64) -> Lsn {
        Lsn::from_u64(at)
    }

    #[track_caller]
    fn check(progress: &Progress, wanted: [u64; 4]) {
        let Positions {
            source,
            received,
            applied,
            confirmed,
        } = progress.positions();
        let found = [source, received, applied, confirmed].map(Lsn::as_u64);
        assert_eq!(found, wanted);
        assert!(found.is_sorted_by(|a, b| a >= b), "{found:?}");
    }

    #[test]
    fn positions_are_in_order_whatever_was_said_last() {
        let progress = Progress::default();
        progress.source(|source| source.answered(lsn(50), None, 0));
        check(&progress, [50, 0, 0, 0]);
        progress.starts_at(lsn(100), None);
        check(&progress, [100, 100, 100, 0]);
        // The stream begins before the checkpoint.
        progress.received(lsn(80), true, None);
        check(&progress, [100, 100, 100, 0]);
        // Nothing of ours has come: a keepalive moves all.
        progress.received(lsn(200), true, None);
        check(&progress, [200, 200, 200, 0]);
        progress.confirmed(lsn(200));
        check(&progress, [200, 200, 200, 200]);
        // A transaction waits, and its end is before what was received.
        progress.pending(lsn(300));
        progress.received(lsn(310), true, Some(1));
        check(&progress, [310, 310, 200, 200]);
        assert_eq!(progress.lag_bytes(), 110);
        // A session that begins again from the checkpoint.
        progress.failed(None);
        progress.starts_at(lsn(100), None);
        // What it had received, the source has.
        check(&progress, [310, 200, 200, 200]);
        // The source has written on; inside a transaction nothing is clear.
        progress.source(|source| source.answered(lsn(1_000), None, 0));
        progress.received(lsn(400), false, None);
        check(&progress, [1_000, 400, 200, 200]);
    }

    #[test]
    fn a_target_that_lost_its_last_commits_takes_the_position_back() {
        let progress = Progress::default();
        progress.starts_at(lsn(100), None);
        progress.received(lsn(200), true, None);
        progress.applied.store(200, Ordering::Relaxed);
        progress.starts_at(lsn(150), None);
        check(&progress, [200, 150, 150, 0]);
    }

    #[test]
    fn a_session_that_failed_is_counted_by_the_side_that_failed() {
        let progress = Progress::default();
        progress.failed(Some("source"));
        progress.failed(Some("target"));
        progress.failed(Some("target"));
        progress.failed(None);
        let by_side = ["source", "target"].map(|side| progress.reconnects(side));
        assert_eq!((progress.moment().failures, by_side), (4, [1, 2]));
    }
}
