//! Task 2: takes batches in order, writes each, gives the empty batch back.
//!
//! Two batches go around: while one is written here, the next is filled at the other end. A batch that comes
//! back says that the target is free.

use tokio::sync::{mpsc, watch};

use super::batch::Batch;
use super::session::{Session, SessionError};
use crate::lsn::Lsn;
use crate::telemetry::progress::Progress;

/// Applies until `batches` closes.
///
/// `checkpoint`: where the target's checkpoint stands. `applied` follows it.
///
/// # Errors
/// The session failed; nothing after the last value of `applied` is known to be committed.
pub async fn apply(
    mut session: Session,
    mut checkpoint: Lsn,
    mut batches: mpsc::Receiver<Batch>,
    emptied: mpsc::Sender<Batch>,
    applied: watch::Sender<Lsn>,
    progress: &Progress,
) -> Result<(), SessionError> {
    // Rows and transactions of the target transaction that is open.
    let mut written = (0, 0);
    while let Some(mut batch) = batches.recv().await {
        session.write(&batch, checkpoint).await?;
        written = (written.0 + batch.count(), written.1 + batch.transactions());
        if let Some(seal) = batch.seal() {
            checkpoint = seal.end_lsn;
            progress.committed(written.0, written.1, checkpoint);
            written = (0, 0);
            applied.send_replace(checkpoint);
        }
        batch.clear();
        // At the end nobody wants it back, while what was handed over is still awaited.
        let _ = emptied.send(batch).await;
    }
    Ok(())
}
