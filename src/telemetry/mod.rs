//! What the program shows: log lines, metrics, health, and its state to the service manager.
//!
//! Rooms speak through `tracing` and are given what else they need; none of them knows how or where
//! it ends up.

pub(crate) mod ask;
pub mod health;
pub mod histogram;
pub(crate) mod http;
pub mod lag;
pub(crate) mod log;
pub mod metrics;
pub(crate) mod observer;
pub mod progress;
pub(crate) mod service;
pub(crate) mod warnings;
pub(crate) mod watchdog;
