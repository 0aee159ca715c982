//! The two batches that go around: one is filled here while the applier writes the other.
//!
//! A batch that comes back says that the target is free. Nothing here waits, except [`Batches::emptied`].
//!
//! **Group commit.** What a change costs is its share of a target transaction, so while changes keep coming there is one per
//! `batch.interval`. The first change after such a pause never waits.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::clock;
use crate::config::Batch as Limits;
use crate::history::batch::Batch;
use crate::lsn::Lsn;
use crate::pgoutput::Timestamp;

/// So many bytes are written before the interval is over: waiting for more gains nothing.
pub(super) const WORTH_A_COPY_BYTES: usize = 1024 * 1024;

pub(super) struct Batches {
    pub(super) filling: Batch,
    /// The other batch, while the target is free.
    spare: Option<Batch>,
    limits: Limits,
    /// Transactions that end up to here are written one by one.
    one_by_one: Lsn,
    handed_over: Option<Instant>,
    /// When the first of the transactions committed that the target has, while it has some.
    in_flight: Option<Timestamp>,
    to_applier: mpsc::Sender<Batch>,
    from_applier: mpsc::Receiver<Batch>,
}

pub(super) struct ApplierEnd {
    pub(super) full: mpsc::Receiver<Batch>,
    pub(super) emptied: mpsc::Sender<Batch>,
}

impl Batches {
    /// Two empty batches, both at the filling end.
    pub(super) fn new(limits: Limits, one_by_one: Lsn) -> (Self, ApplierEnd) {
        let (to_applier, full) = mpsc::channel(1);
        let (emptied, from_applier) = mpsc::channel(1);
        let batch = || Batch::new(2 * limits.max_bytes);
        let batches = Self {
            filling: batch(),
            spare: Some(batch()),
            limits,
            one_by_one,
            handed_over: None,
            in_flight: None,
            to_applier,
            from_applier,
        };
        (batches, ApplierEnd { full, emptied })
    }

    pub(super) fn is_full(&self) -> bool {
        self.filling.count() >= self.limits.max_rows
            || self.filling.bytes() >= self.limits.max_bytes
            || self
                .filling
                .seal()
                .is_some_and(|seal| seal.end_lsn <= self.one_by_one)
    }

    /// When the oldest transaction committed that has rows here or at the target.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.in_flight.or(self.filling.oldest())
    }

    pub(super) fn target_is_free(&self) -> bool {
        self.spare.is_some()
    }

    /// How much longer there shall be no other target transaction.
    pub(super) fn interval_left(&self, now: Instant) -> Duration {
        self.handed_over.map_or(Duration::ZERO, |last| {
            self.limits.interval.saturating_sub(now - last)
        })
    }

    /// Gives the target what is complete, or a piece of a transaction that is larger than a batch; false when the
    /// target is busy.
    pub(super) fn hand_over(&mut self) -> bool {
        let Some(mut next) = self.spare.take() else {
            return false;
        };
        match self.filling.seal() {
            Some(_) => self.filling.take_rest(&mut next),
            None => next.go_on_from(&self.filling),
        }
        let full = std::mem::replace(&mut self.filling, next);
        self.in_flight = full.oldest();
        self.handed_over = Some(clock::monotonic());
        // There is room: the applier gave back the batch before. When it has failed, the session ends.
        let _ = self.to_applier.try_send(full);
        true
    }

    /// Hands over what is complete and drops the rest, which comes again. Waits while the target is busy, as
    /// [`Batches::emptied`] does.
    pub(super) async fn hand_over_complete(&mut self) {
        self.filling.keep_complete();
        while self.filling.seal().is_some() && !self.hand_over() {
            self.emptied().await;
        }
    }

    /// Waits until the target is free again. Cancel-safe. Never returns once the applier has failed, which ends the
    /// session.
    pub(super) async fn emptied(&mut self) {
        match self.from_applier.recv().await {
            Some(batch) => {
                self.in_flight = None;
                self.spare = Some(batch);
            }
            None => std::future::pending().await,
        }
    }
}
