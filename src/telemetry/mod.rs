//! What the program tells the outside: log lines, and its state to the service manager.
//!
//! Rooms speak through `tracing` and are given what else they need; none of them knows how or where
//! it ends up. Metrics and health come into this folder with a later version.

pub mod log;
pub mod progress;
pub mod service;
