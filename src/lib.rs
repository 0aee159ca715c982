//! waltrail writes every committed change of chosen PostgreSQL tables into history tables,
//! exactly once, in commit order.
//!
//! The library is for the program, its tests, its benchmark and its fuzz target: nothing here is an interface for others.

mod accept_gap;
mod adopt;
mod check;
mod checkpoint;
mod clock;
mod commands;
mod daemon;
mod environment;
mod init;
mod life;
mod name;
mod printable;

mod session;
mod setup;
mod shutdown;
mod status;
mod teardown;
mod undo;
mod verify;
mod wire;

pub mod answers;
pub mod cli;
pub mod config;
pub mod fault;
pub mod finding;
pub mod history;
pub mod lsn;
pub mod pgoutput;
pub mod pipeline;
pub mod schema;
pub mod server;
pub mod snapshot;
pub mod source;
pub mod telemetry;
pub mod transaction;

/// The commit that the program was built from, seven digits; `unknown` where the build could not tell.
pub const COMMIT: &str = env!("BUILD_COMMIT");

/// Its date, or that of the build: `2026-11-29`, see `build.rs`.
pub const BUILD_DATE: &str = env!("BUILD_DATE");

/// What `waltrail --version` says: `0.1.0 (1a2b3c4 2026-11-29)`.
pub const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("BUILD_COMMIT"),
    " ",
    env!("BUILD_DATE"),
    ")"
);

pub use commands::main;
#[doc(hidden)]
pub use wire::{Understood, walk as walk_answers};
