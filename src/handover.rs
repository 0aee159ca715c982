//! How a full batch gets from the reader to the applier.
//!
//! Both are futures of one task, and the applier is polled after the reader each time (`stream.rs`): whoever waits
//! here needs no waking, and a channel would wake the task once more for what it does in the same turn. On a machine
//! whose cores are busy the target's process would wait for that.

use std::future::poll_fn;
use std::sync::{Mutex, PoisonError};
use std::task::Poll;

use crate::target::batch::Batch;

/// Room for one batch.
#[derive(Debug, Default)]
pub struct Handover(Mutex<Option<Batch>>);

impl Handover {
    /// Puts a batch there. The one before it must have been taken: the reader has the next batch to fill only from
    /// the applier, which gives back what it took.
    pub fn give(&self, batch: Batch) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(batch);
    }

    /// Waits for a batch. Cancel-safe. **Wakes nobody**: only for a future that is polled after each `give` anyway.
    pub async fn taken(&self) -> Batch {
        let take = || self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        poll_fn(|_| take().map_or(Poll::Pending, Poll::Ready)).await
    }
}
