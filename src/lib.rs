//! waltrail writes every committed change of chosen PostgreSQL tables into history tables,
//! exactly once, in commit order.

pub mod lsn;
pub mod pgoutput;
pub mod report;
pub mod source;
pub mod wire;
