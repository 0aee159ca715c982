//! Throw-away PostgreSQL servers ([`Cluster`]) for `waltrail demo`, the tests and the benchmark, and the
//! demonstration itself ([`demo::run`]).
//!
//! Nothing here is part of the daemon, and nothing here depends on it: the demonstration starts the daemon
//! as a process of its own.

mod cluster;
pub mod demo;
mod error;

pub use cluster::{Binaries, Builder, Cluster, StopMode};
pub use error::{Error, Kind, Result};
