//! The edge of the program where history leaves it.

use super::batch::Batch;
use super::writer::WriterError;
use crate::fault;
use crate::lsn::Lsn;

/// Where history is written. What is written is visible at once, and durable later.
///
/// PostgreSQL is one; the simulator's store is the other. There is no other trait of this kind.
pub(crate) trait Write: Clone + Send + Sync + 'static {
    /// The session of the one writer.
    type Session: Send;

    /// Writes a batch. With a seal, its rows and those of the pieces before are committed, and the checkpoint moves from
    /// `seen` to the seal's end; without one the target transaction stays open for the next piece.
    ///
    /// **Not cancel-safe**, and after an error the session must be dropped, which rolls back what is open.
    fn write(
        session: &mut Self::Session,
        batch: &Batch,
        seen: Lsn,
    ) -> impl Future<Output = Result<(), WriterError>> + Send;

    /// Notes `reported`, a position that is going to be confirmed although no row covers it, where there is one. Returns
    /// when that, and everything that was committed before, is durable.
    fn make_durable(&self, reported: Option<Lsn>)
    -> impl Future<Output = fault::Result<()>> + Send;
}
