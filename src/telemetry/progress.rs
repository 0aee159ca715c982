//! Counters that the tasks of a session share: what flows, and how far.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::lsn::Lsn;

/// What has flowed since the process began, and the positions of the running session.
#[derive(Debug, Default)]
pub struct Progress {
    pub rows: AtomicU64,
    pub transactions: AtomicU64,
    pub batches: AtomicU64,
    unavailable: AtomicU64,
    failures: AtomicU64,
    streaming: AtomicBool,
    received: AtomicU64,
    pending: AtomicU64,
    applied: AtomicU64,
    confirmed: AtomicU64,
    /// The source's clock at the commit of the transaction received last, microseconds since 2000-01-01.
    commit_time: AtomicU64,
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

impl Progress {
    pub fn committed(&self, rows: usize, transactions: usize, end_lsn: Lsn) {
        self.rows.fetch_add(rows as u64, Ordering::Relaxed);
        self.transactions
            .fetch_add(transactions as u64, Ordering::Relaxed);
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.applied.store(end_lsn.as_u64(), Ordering::Relaxed);
    }

    /// `count` values were met that the WAL did not carry.
    pub fn unavailable(&self, count: u64) {
        self.unavailable.fetch_add(count, Ordering::Relaxed);
    }

    pub fn streaming(&self, streaming: bool) {
        self.streaming.store(streaming, Ordering::Relaxed);
    }

    pub fn is_streaming(&self) -> bool {
        self.streaming.load(Ordering::Relaxed)
    }

    /// A session failed for a passing reason.
    pub fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether complete transactions wait to be committed to the history.
    pub fn is_waiting(&self) -> bool {
        self.pending.load(Ordering::Relaxed) > self.applied.load(Ordering::Relaxed)
    }

    /// A session starts where the history ends.
    pub fn starts_at(&self, end_lsn: Lsn) {
        for counter in [&self.received, &self.pending, &self.applied] {
            counter.store(end_lsn.as_u64(), Ordering::Relaxed);
        }
    }

    /// Everything up to here has been received.
    pub fn received(&self, received: Lsn) {
        self.received.store(received.as_u64(), Ordering::Relaxed);
    }

    /// Everything up to here was confirmed to the source.
    pub fn confirmed(&self, confirmed: Lsn) {
        self.confirmed.store(confirmed.as_u64(), Ordering::Relaxed);
    }

    /// The commit time of the transaction that arrives, microseconds since 2000-01-01 UTC.
    pub fn begun(&self, commit_time: i64) {
        self.commit_time
            .store(commit_time.cast_unsigned(), Ordering::Relaxed);
    }

    /// A transaction with recorded rows has been received; it ends at `end_lsn`.
    pub fn pending(&self, end_lsn: Lsn) {
        self.pending.store(end_lsn.as_u64(), Ordering::Relaxed);
    }

    /// Seconds between the commit of the transaction received last and `now`, by the two machines' clocks,
    /// while rows wait to be committed; 0 when none do.
    pub fn lag_seconds(&self, now: i64) -> f64 {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let commit_time = of(&self.commit_time).cast_signed();
        match self.is_waiting() {
            true => now.saturating_sub(commit_time).max(0) as f64 / 1e6,
            false => 0.0,
        }
    }

    pub fn moment(&self) -> Moment {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Moment {
            rows: of(&self.rows),
            transactions: of(&self.transactions),
            batches: of(&self.batches),
            unavailable: of(&self.unavailable),
            failures: of(&self.failures),
            received: Lsn::from_u64(of(&self.received)),
            applied: Lsn::from_u64(of(&self.applied)),
            confirmed: Lsn::from_u64(of(&self.confirmed)),
        }
    }
}
