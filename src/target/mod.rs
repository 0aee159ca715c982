//! Everything that writes into the target. Knows no walsender.

pub mod batch;
pub mod checkpoint;
pub mod gate;
pub mod held;
mod outgoing;
pub mod row;
pub mod session;
mod statements;
