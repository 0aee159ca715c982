//! Task 2: takes batches in order, writes each, gives the empty batch back.
//!
//! Two batches go around: while one is written here, the next is filled at the other end. A batch that comes
//! back says that the target is free.

use tokio::sync::{mpsc, watch};

use super::batch::Batch;
use super::session::{Session, SessionError};
use crate::lsn::Lsn;

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
) -> Result<(), SessionError> {
    while let Some(mut batch) = batches.recv().await {
        session.write(&batch, checkpoint).await?;
        if let Some(seal) = batch.seal() {
            checkpoint = seal.end_lsn;
            applied.send_replace(checkpoint);
        }
        batch.clear();
        if emptied.send(batch).await.is_err() {
            break;
        }
    }
    Ok(())
}
