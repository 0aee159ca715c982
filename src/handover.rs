//! How batches get from the reader to the applier and back.
//!
//! Both are futures of one task: whoever waits here needs no waking, since [`turns`] polls the applier after the reader,
//! and the reader again once a batch came back. A channel would wake the task once more, and the runtime looks at
//! every socket before it polls a task again: on a machine whose cores are busy the target's process waits for that.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::Poll;

use crate::target::batch::Batch;

/// Room for a batch each way.
#[derive(Debug, Default)]
pub struct Handover {
    full: Place,
    empty: Place,
}

impl Handover {
    /// Where full batches are put, and taken by the applier.
    #[must_use]
    pub fn full(&self) -> &Place {
        &self.full
    }

    /// Where empty ones come back.
    #[must_use]
    pub fn empty(&self) -> &Place {
        &self.empty
    }
}

/// Room for one batch.
#[derive(Debug, Default)]
pub struct Place(Mutex<Option<Batch>>);

impl Place {
    /// Puts a batch there. Of two batches, one is filled or spare in the reader's hands and one in the applier's, so
    /// that the one before it was taken.
    pub fn give(&self, batch: Batch) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(batch);
    }

    /// Waits for a batch. Cancel-safe. **Wakes nobody**: see [`turns`].
    pub async fn taken(&self) -> Batch {
        let take = || self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        poll_fn(|_| take().map_or(Poll::Pending, Poll::Ready)).await
    }

    fn is_given(&self) -> bool {
        let place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        place.is_some()
    }
}

/// Polls the reader and then the applier, and both once more where the applier has given back what the reader may wait
/// for, until one of them ends.
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
            if !handover.empty.is_given() {
                return Poll::Pending;
            }
        }
        // The reader waits for something else first, or has used up what the runtime grants a turn: either wakes the task.
        Poll::Pending
    })
    .await
}
