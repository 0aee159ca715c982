//! How batches get from the reader to the applier and back, and how the reader hears what is durable.
//!
//! All are futures of one task: whoever waits here needs no waking, since [`turns`] polls the applier after the reader,
//! and the reader again once a batch came back or a position was told. A channel would wake the task once more, and the runtime looks at
//! every socket before it polls a task again: on a machine whose cores are busy the target's process waits for that.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use crate::lsn::Lsn;
use crate::target::batch::Batch;

/// Room for a batch each way, and for what is told.
#[derive(Default)]
pub struct Handover {
    full: Place<Batch>,
    empty: Place<Batch>,
    durable: Place<Lsn>,
    reported: Place<Lsn>,
}

impl Handover {
    /// Where full batches are put, and taken by the applier.
    #[must_use]
    pub fn full(&self) -> &Place<Batch> {
        &self.full
    }

    /// Where empty ones come back.
    #[must_use]
    pub fn empty(&self) -> &Place<Batch> {
        &self.empty
    }

    /// The end of the last transaction that is durable in the target.
    #[must_use]
    pub fn durable(&self) -> &Place<Lsn> {
        &self.durable
    }

    /// The last position written as `reported_lsn`.
    #[must_use]
    pub fn reported(&self) -> &Place<Lsn> {
        &self.reported
    }

    fn reader_has_something(&self) -> bool {
        self.empty.is_given() || self.durable.is_given() || self.reported.is_given()
    }
}

/// Room for one batch, or for a position, of which only the last one counts.
pub struct Place<T>(Cell<Option<T>>);

impl<T> Place<T> {
    /// Puts it there. Of two batches, one is filled or spare in the reader's hands and one in the applier's, so
    /// that the one before it was taken.
    pub fn give(&self, given: T) {
        self.0.set(Some(given));
    }

    /// Waits for what is given. Cancel-safe. **Wakes nobody**: see [`turns`].
    pub async fn taken(&self) -> T {
        poll_fn(|_| self.0.take().map_or(Poll::Pending, Poll::Ready)).await
    }

    fn is_given(&self) -> bool {
        let given = self.0.take();
        let is_given = given.is_some();
        self.0.set(given);
        is_given
    }
}

impl<T> Default for Place<T> {
    fn default() -> Self {
        Self(Cell::new(None))
    }
}

/// Polls the reader and then the applier's side, and both once more where that has given back or told what the reader may
/// wait for, until one of them ends.
pub async fn turns<T>(
    handover: &Handover,
    mut reader: Pin<&mut impl Future<Output = T>>,
    mut applier: Pin<&mut impl Future<Output = T>>,
) -> T {
    poll_fn(|cx| {
        for _ in 0..2 {
            if let Poll::Ready(ended) = reader.as_mut().poll(cx) {
                return Poll::Ready(ended);
            }
            if let Poll::Ready(ended) = applier.as_mut().poll(cx) {
                return Poll::Ready(ended);
            }
            if !handover.reader_has_something() {
                return Poll::Pending;
            }
        }
        // The reader waits for something else first, or has used up what the runtime grants a turn: either wakes the task.
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn poll<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_batch_goes_there_and_back_in_one_turn() {
        let handover = Handover::default();
        let reader = pin!(async {
            handover.full().give(Batch::new(7));
            handover.empty().taken().await;
            "back"
        });
        let applier = pin!(async {
            let batch = handover.full().taken().await;
            handover.empty().give(batch);
            std::future::pending().await
        });
        assert_eq!(
            poll(pin!(turns(&handover, reader, applier))),
            Poll::Ready("back")
        );
    }

    #[test]
    fn what_is_told_is_heard_in_the_same_turn_and_once() {
        let handover = Handover::default();
        let reader = pin!(async { (handover.durable().taken().await, "heard") });
        let applier = pin!(async {
            handover.durable().give(Lsn::from_u64(6));
            handover.durable().give(Lsn::from_u64(7));
            std::future::pending().await
        });
        assert_eq!(
            poll(pin!(turns(&handover, reader, applier))),
            Poll::Ready((Lsn::from_u64(7), "heard"))
        );
        assert!(poll(pin!(handover.durable().taken())).is_pending());
        assert!(poll(pin!(handover.reported().taken())).is_pending());
    }

    #[test]
    fn a_reader_that_waits_for_something_else_ends_the_turn() {
        let handover = Handover::default();
        let reader = pin!(std::future::pending::<()>());
        let applier = pin!(async {
            handover.empty().give(Batch::new(7));
            std::future::pending().await
        });
        assert!(poll(pin!(turns(&handover, reader, applier))).is_pending());
        assert!(poll(pin!(handover.empty().taken())).is_ready());
    }
}
