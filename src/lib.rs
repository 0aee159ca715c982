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

pub use commands::main;
#[doc(hidden)]
pub use wire::{Understood, walk as walk_answers};
