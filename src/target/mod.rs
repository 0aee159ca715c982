//! Everything that writes into the target. Knows no walsender.

pub mod batch;
pub mod row;
