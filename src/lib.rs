//! waltrail writes every committed change of chosen PostgreSQL tables into history tables,
//! exactly once, in commit order.

pub mod cli;
pub mod config;
pub mod lsn;
pub mod report;
pub mod shutdown;
pub mod telemetry;
