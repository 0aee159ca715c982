//! Everything that writes into the target. Knows no walsender.

pub mod applier;
pub mod batch;
pub mod checkpoint;
pub mod durability;
pub mod gate;
pub mod held;
mod outgoing;
pub mod row;
pub mod session;
mod statements;
