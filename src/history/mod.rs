//! Everything that writes into the target. Knows no walsender.

pub mod batch;
pub(crate) mod checkpoint;
pub mod context;
pub mod disorder;
pub(crate) mod followed;
mod format;
pub(crate) mod gap;
pub(crate) mod gate;
pub(crate) mod held;
mod hold;
pub(crate) mod left_out;
pub(crate) mod lock;
mod outgoing;
pub(crate) mod row;
mod statements;
pub mod tally;
pub(crate) mod write;
pub(crate) mod writer;
