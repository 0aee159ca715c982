//! Measures waltrail beside others that read the same WAL. See `README.md` for how.

pub mod answers;
pub mod chart;
pub mod contender;
pub mod drain;
pub mod latency;
pub mod live;
pub mod message;
pub mod micro;
pub mod report;
pub mod scaling;
pub mod server;
pub mod snapshot;
pub mod table;
pub mod target;
pub mod usage;
pub mod verdict;
pub mod workload;
