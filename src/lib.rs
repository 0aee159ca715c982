//! waltrail writes every committed change of chosen PostgreSQL tables into history tables,
//! exactly once, in commit order.

pub mod checkpoint;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod fault;
pub mod history;
pub mod lsn;
pub mod name;
pub mod pgoutput;
pub mod pipeline;
pub mod schema;
pub mod server;
pub mod session;
pub mod setup;
pub mod shutdown;
pub mod snapshot;
pub mod source;
pub mod status;
pub mod teardown;
pub mod telemetry;
pub mod transaction;
pub mod wire;
