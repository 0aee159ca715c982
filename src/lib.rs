//! waltrail writes every committed change of chosen PostgreSQL tables into history tables,
//! exactly once, in commit order.

pub mod cluster;
pub mod lsn;
pub mod report;
