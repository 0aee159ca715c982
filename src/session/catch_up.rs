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
    pub(super) orders: watch::Receiver<Order>,
}

pub(super) struct Read {
    pub(super) ended: Ended,
    /// The end of the last transaction that was handed to the target.
    pub(super) pending: Lsn,
}

impl CatchUp<'_> {
    /// Reads to the end of the backlog, or until ordered to end; everything complete is handed to the applier. On
    /// [`Ended::CaughtUp`] the slot can be moved to `pending` once that is durable.
    pub(super) async fn run(&mut self, backlog: &mut Backlog) -> Result<Read> {
        let mut pending = self.checkpoint;
        let mut orders = self.orders.clone();
        let ended = loop {
            match self.take_buffered(backlog, &mut pending) {
                Ok(Taken::Everything) => {
                    let anything = pending > self.checkpoint;
                    break Ended::CaughtUp { anything };
                }
                Ok(Taken::AllThatIsHere) => tokio::select! {
                    biased;
                    () = drained(&mut orders) => break Ended::Drained,
                    () = self.batches.emptied() => {}
                    filled = backlog.fill() => filled.map_err(super::stream_fault)?,
                },
                Ok(Taken::UntilFull) => tokio::select! {
                    biased;
                    () = drained(&mut orders) => break Ended::Drained,
                    () = self.batches.emptied() => {}
                    () = tokio::time::sleep(BLOCKED_MAX) => {
                        tracing::warn!(
                            seconds = BLOCKED_MAX.as_secs(),
                            "the target has taken nothing; catching up begins again when it does"
                        );
                        backlog.abandon();
                        break Ended::Abandoned;
                    }
                },
                // The batch that is being filled may end in part of a row.
                Err(stop) => {
                    let ended = stop.ended()?;
                    return Ok(Read {
                        ended,
                        pending: self.checkpoint,
                    });
                }
            }
        };
        // What is left of a transaction that is not complete comes again.
        while self.batches.filling.seal().is_some() && !self.batches.hand_over() {
            self.batches.emptied().await;
        }
        Ok(Read { ended, pending })
    }

    fn take_buffered(
        &mut self,
        backlog: &mut Backlog,
        pending: &mut Lsn,
    ) -> std::result::Result<Taken, Stop> {
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
            match self.pipeline.accept(payload, &mut batches.filling)? {
                Outcome::Quiet => {}
                Outcome::Begun { commit_time } => self.progress.begun(commit_time),
                Outcome::Committed { end_lsn, recorded } => {
                    self.progress.received(end_lsn);
                    if recorded > 0 {
                        *pending = end_lsn;
                        self.progress.pending(end_lsn);
                    }
                }
                Outcome::Unrecorded { table, columns } => super::warn_unrecorded(&table, &columns),
                Outcome::Lacking(lacking) => super::warn_lacking(&lacking),
            }
        };
        self.progress.unavailable(self.pipeline.take_unavailable());
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
