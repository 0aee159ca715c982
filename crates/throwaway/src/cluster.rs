//! Throw-away PostgreSQL servers. The one invariant: **a [`Cluster`] leaves
//! nothing behind**, no process, no folder and no shared memory, however its owner ends. Three things
//! see to that:
//!
//! ```text
//! owner ends how           who cleans up
//! returns, `?`, panics     Drop of Cluster: SIGQUIT, wait, remove the folder
//! killed (SIGKILL), abort  the watchdog: a shell at the other end of a pipe; the pipe closes with the owner
//! Ctrl-C on a terminal     the owner: servers have a process group of their own, the terminal's signal misses them
//! ```
//!
//! The calls here are synchronous, and those that start or stop a server take from tens of
//! milliseconds to seconds: async callers use `spawn_blocking`.

mod account;
mod find;
mod server;
mod system;
mod template;

pub use find::Binaries;
pub use server::{Builder, Cluster, StopMode};
