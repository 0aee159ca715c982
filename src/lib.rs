//! waltrail writes every committed change of chosen PostgreSQL tables into history tables,
//! exactly once, in commit order.

pub mod clock;
pub mod lsn;
pub mod pgoutput;
pub mod pipeline;
pub mod report;
pub mod schema;
pub mod source;
pub mod target;
pub mod transaction;
pub mod wire;
