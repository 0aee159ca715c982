//! The applier: takes batches in order, writes each, gives the empty batch back.
//!
//! Between two batches, when no transaction is open, the snapshot may ask for something (`held.rs`). Between any two it shows
//! that this process runs (`history/lock.rs`).

use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use super::batches::ApplierEnd;
use super::durability::Barrier;
use crate::clock;
use crate::fault::{Fault, Result};
use crate::history::batch::Batch;
use crate::history::held;
use crate::history::held::Request;
use crate::history::lock::{BEAT, lost};
use crate::history::write::Write;
use crate::history::writer::WriterError;
use crate::lsn::Lsn;
use crate::telemetry::progress::{Pieces, Progress};

pub(super) struct Applier<H: Write> {
    pub(super) session: H::Session,
    pub(super) checkpoint: Lsn,
    pub(super) batches: ApplierEnd,
    pub(super) applied: watch::Sender<Lsn>,
    pub(super) progress: Arc<Progress>,
    /// What was written into the target transaction that is open.
    pub(super) written: Pieces,
}

impl Applier<Barrier> {
    /// Applies, and serves the snapshot, until the session fails.
    ///
    /// # Errors
    /// The session failed; nothing after the last value of `applied` is known to be committed.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) -> Result<Infallible> {
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let asked = Arc::clone(self.session.channel().asked());
        let progress = Arc::clone(&self.progress);
        let watch = || {
            let asked = Arc::clone(&asked);
            let watchdog = &progress.watchdog;
            watchdog.watch("applier", move || asked.is_waited_for())
        };
        let mut pulse = watch();
        loop {
            pulse.beat().await;
            tokio::select! {
                biased;
                Some(request) = requests.recv(), if !self.session.is_open() => {
                    // It has waits of its own.
                    drop(pulse);
                    held::serve(&mut self.session, request).await?;
                    pulse = watch();
                }
                batch = self.batches.full.recv() => self.apply(batch).await?,
                _ = beat.tick() => self.session.beat().await.map_err(lost)?,
            }
        }
    }
}

impl<H: Write> Applier<H> {
    /// Writes a batch and gives it back empty; `None`: there will be no other.
    pub(super) async fn apply(&mut self, batch: Option<Batch>) -> Result<()> {
        let mut batch = batch.ok_or_else(|| Fault::retry("the reader ended"))?;
        let sent = clock::monotonic();
        if let Err(error) = H::write(&mut self.session, &batch, self.checkpoint).await {
            return Err(refused(error, &batch).after(self.checkpoint));
        }
        match batch.seal() {
            Some(seal) => {
                self.checkpoint = seal.end_lsn;
                let took = clock::monotonic() - sent;
                let (written, now) = (&mut self.written, clock::now());
                self.progress.committed(written, &batch, seal, took, now);
                self.applied.send_replace(seal.end_lsn);
            }
            None => self.written.add(&batch),
        }
        batch.clear();
        // There is room: two batches go around. Without a reader the next turn ends this.
        let _ = self.batches.emptied.try_send(batch);
        Ok(())
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
