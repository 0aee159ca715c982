//! Everything that speaks to the walsender. Knows no rows and no target.

pub mod backlog;
pub mod feedback;
pub mod frame;
pub mod pace;
pub mod replication;
pub mod slot;
