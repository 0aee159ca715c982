//! Catching up: a backlog is read by SQL, written, and the slot is moved past it.
//!
//! ```text
//!   COPY (peek) --row--> Pipeline --batch--> applier --> COPY, advance, COMMIT
//!                                                            | flushed
//!   pg_replication_slot_advance <----------------------------+
//! ```
//!
//! Peeking moves nothing. The slot moves only when everything that was read is durable in the target (invariant I3); what
//! was read and not confirmed comes again and is skipped (I4). The source holds a snapshot and a temporary file until
//! the last row is taken, so a target that takes nothing for [`BLOCKED_MAX`] ends it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::batches::{Batches, WORTH_A_COPY_BYTES};
use super::{Ended, Order, Stop, drained};
use crate::fault::Result;
use crate::lsn::Lsn;
use crate::pipeline::{Outcome, Pipeline};
use crate::source::backlog::{Backlog, Next};
use crate::telemetry::progress::Progress;

/// The source need not hold a backlog any longer for a target that has taken nothing for so long.
const BLOCKED_MAX: Duration = Duration::from_secs(10);

pub(super) struct CatchUp<'a> {
    pub(super) pipeline: Pipeline,
    pub(super) batches: Batches,
    pub(super) progress: &'a Progress,
    /// The end of the last transaction in the history.
    pub(super) checkpoint: Lsn,
    /// The end of the last transaction that was read whole and has something of ours.
    pub(super) pending: Lsn,
    /// The end of the last transaction that was read whole.
    pub(super) received: Lsn,
    pub(super) orders: watch::Receiver<Order>,
}

impl CatchUp<'_> {
    /// Reads to the end of the backlog, or until ordered to end. What is complete is then to be handed over. On
    /// [`Ended::CaughtUp`] the slot can be moved to `pending` once that is durable.
    pub(super) async fn run(&mut self, backlog: &mut Backlog) -> Result<Ended, Stop> {
        let mut orders = self.orders.clone();
        let asked = Arc::clone(backlog.asked());
        let watchdog = &self.progress.watchdog;
        let pulse = watchdog.watch("reader", move || asked.is_waited_for());
        loop {
            pulse.beat().await;
            match self.take_buffered(backlog)? {
                Taken::Everything => {
                    let anything = self.pending > self.checkpoint;
                    return Ok(Ended::CaughtUp { anything });
                }
                Taken::AllThatIsHere => tokio::select! {
                    biased;
                    () = drained(&mut orders) => return Ok(Ended::Drained),
                    () = self.batches.emptied() => {}
                    filled = backlog.fill() => filled?,
                },
                Taken::UntilFull => tokio::select! {
                    biased;
                    () = drained(&mut orders) => return Ok(Ended::Drained),
                    () = self.batches.emptied() => {}
                    () = tokio::time::sleep(BLOCKED_MAX) => {
                        tracing::warn!(
                            seconds = BLOCKED_MAX.as_secs(),
                            "the target has taken nothing; catching up begins again when it does"
                        );
                        backlog.abandon();
                        return Ok(Ended::Abandoned);
                    }
                },
            }
        }
    }

    fn take_buffered(&mut self, backlog: &mut Backlog) -> Result<Taken, Stop> {
        let batches = &mut self.batches;
        let taken = loop {
            if batches.is_full() && !batches.hand_over() {
                break Taken::UntilFull;
            }
            let payload = match backlog.next_buffered()? {
                Next::Payload(payload) => payload,
                Next::NotHere => break Taken::AllThatIsHere,
                Next::End => break Taken::Everything,
            };
            let accepted = self.pipeline.accept(payload, &mut batches.filling);
            match accepted.map_err(|error| Stop::at(error, &self.pipeline))? {
                Outcome::Quiet => {}
                Outcome::Begun { left_out, .. } => {
                    if left_out {
                        super::warn_left_out(&self.pipeline);
                    }
                }
                Outcome::Committed { end_lsn, recorded } => {
                    self.received = end_lsn;
                    if recorded > 0 {
                        self.pending = end_lsn;
                        self.progress.pending(end_lsn);
                    }
                }
                Outcome::Unrecorded { table, columns } => super::warn_unrecorded(&table, &columns),
                Outcome::Lacking(lacking) => super::warn_lacking(&lacking),
                Outcome::ContextRefused(why) => super::warn_no_context(&self.pipeline, why),
            }
        };
        let whole = !self.pipeline.in_transaction();
        let oldest = batches.oldest().or(self.pipeline.recording_since());
        let oldest = oldest.map(|time| time.0);
        self.progress.received(self.received, whole, oldest);
        if batches.filling.bytes() >= WORTH_A_COPY_BYTES {
            batches.hand_over();
        }
        Ok(taken)
    }
}

/// Why taking rows came to an end.
enum Taken {
    AllThatIsHere,
    UntilFull,
    Everything,
}
