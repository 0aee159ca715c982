//! Everything that writes into the target. Knows no walsender.

pub mod batch;
pub mod checkpoint;
pub mod gate;
pub mod held;
mod outgoing;
pub mod row;
mod statements;
pub mod writer;
