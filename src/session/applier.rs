//! The applier: takes batches in order, writes each, gives the empty batch back.
//!
//! Between two batches, when no transaction is open, the snapshot may ask for something (`held.rs`). Between any two it shows
//! that this process runs (`history/lock.rs`).

use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use super::batches::ApplierEnd;
use crate::fault::{Fault, Result};
use crate::history::held;
use crate::history::held::Request;
use crate::history::lock::{BEAT, lost};
use crate::history::writer::Writer;
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
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
                _ = beat.tick() => {
                    self.session.beat().await.map_err(lost)?;
                    continue;
                }
            };
            if let Err(error) = self.session.write(&batch, self.checkpoint).await {
                return Err(Fault::from(error).after(self.checkpoint));
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
