//! Task 2: takes batches in order, writes each, gives the empty batch back.
//!
//! Two batches go around: while one is written here, the next is filled at the other end. A batch that comes
//! back says that the target is free. Between two batches, when no transaction is open, the snapshot may ask for
//! something (`held.rs`).

use std::convert::Infallible;

use tokio::sync::{mpsc, watch};
use tokio_postgres::Client;

use super::batch::Batch;
use super::durability::Pages;
use super::gate::Request;
use super::held;
use super::session::Session;
use crate::handover::Place;
use crate::lsn::Lsn;
use crate::report::Result;
use crate::telemetry::progress::Progress;

/// What an applier is given.
pub struct Given<'a> {
    /// The session that writes.
    pub session: Session,
    /// A connection that reads what is held.
    pub client: &'a Client,
    /// Where the target's checkpoint stands.
    pub checkpoint: Lsn,
    /// Full batches.
    pub batches: &'a Place<Batch>,
    /// Where empty ones go back to.
    pub emptied: &'a Place<Batch>,
    /// Follows the checkpoint.
    pub applied: watch::Sender<Lsn>,
    /// Follows the target's WAL while rows go one by one.
    pub pages: Pages,
    /// What the snapshot asks.
    pub requests: mpsc::Receiver<Request>,
    /// Shared counters.
    pub progress: &'a Progress,
}

/// Applies until the session fails.
///
/// # Errors
/// The session failed; nothing after the last value of `applied` is known to be committed.
pub async fn apply(given: Given<'_>) -> Result<Infallible> {
    let Given {
        mut session,
        client,
        mut checkpoint,
        batches,
        emptied,
        applied,
        pages,
        mut requests,
        progress,
    } = given;
    // Rows and transactions of the target transaction that is open.
    let mut written = (0, 0);
    loop {
        let mut batch = tokio::select! {
            biased;
            Some(request) = requests.recv(), if !session.is_open() => {
                held::serve(&mut session, client, request).await?;
                continue;
            }
            batch = batches.taken() => batch,
        };
        let position = session.write(&batch, checkpoint).await?;
        written = (written.0 + batch.count(), written.1 + batch.transactions());
        if let Some(seal) = batch.seal() {
            checkpoint = seal.end_lsn;
            progress.committed(written.0, written.1, checkpoint);
            written = (0, 0);
            applied.send_replace(checkpoint);
            if let Some(position) = position {
                pages.reached(position);
            }
        }
        batch.clear();
        emptied.give(batch);
    }
}
