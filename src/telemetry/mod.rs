//! What the program shows: log lines, metrics, health, and its state to the service manager.
//!
//! Rooms speak through `tracing` and are given what else they need; none of them knows how or where
//! it ends up.

pub(crate) mod ask;
pub mod health;
pub(crate) mod http;
pub(crate) mod log;
pub mod metrics;
pub mod progress;
pub(crate) mod service;
