//! The applier: takes batches in order, writes each, gives the empty batch back.
//!
//! Between two batches, when no transaction is open, the snapshot may ask for something (`held.rs`).

use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::batches::ApplierEnd;
use crate::fault::{Fault, Result};
use crate::history::batch::Batch;
use crate::history::held;
use crate::history::held::Request;
use crate::history::writer::{Writer, WriterError};
use crate::lsn::Lsn;
use crate::telemetry::progress::Progress;

pub(super) struct Applier {
    pub(super) session: Writer,
    pub(super) checkpoint: Lsn,
    pub(super) batches: ApplierEnd,
    pub(super) applied: watch::Sender<Lsn>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) progress: Arc<Progress>,
}

impl Applier {
    /// Applies until the session fails.
    ///
    /// # Errors
    /// The session failed; nothing after the last value of `applied` is known to be committed.
    pub(super) async fn run(mut self) -> Result<Infallible> {
        // Rows and transactions of the target transaction that is open.
        let mut written = (0, 0);
        loop {
            let mut batch = tokio::select! {
                biased;
                Some(request) = self.requests.recv(), if !self.session.is_open() => {
                    held::serve(&mut self.session, request).await?;
                    continue;
                }
                batch = self.batches.full.recv() => {
                    batch.ok_or_else(|| Fault::retry("the reader ended"))?
                }
            };
            if let Err(error) = self.session.write(&batch, self.checkpoint).await {
                return Err(refused(error, &batch).after(self.checkpoint));
            }
            written = (written.0 + batch.count(), written.1 + batch.transactions());
            if let Some(seal) = batch.seal() {
                self.checkpoint = seal.end_lsn;
                self.progress.committed(written.0, written.1, seal.end_lsn);
                written = (0, 0);
                self.applied.send_replace(seal.end_lsn);
            }
            batch.clear();
            // There is room: two batches go around. Without a reader the next turn ends this.
            let _ = self.batches.emptied.try_send(batch);
        }
    }
}

/// Why a batch was not written: with the transaction that was refused, where it is the only one.
fn refused(error: WriterError, batch: &Batch) -> Fault {
    let is_of_a_row = error.is_of_a_row();
    let fault = Fault::from(error);
    match (is_of_a_row, batch.only_transaction(), batch.seal()) {
        (true, Some(commit_lsn), _) => fault.or_leave_out(commit_lsn),
        (true, None, Some(seal)) => fault.among_others(seal.end_lsn),
        _ => fault,
    }
}
