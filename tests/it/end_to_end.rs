//! Does the daemon do, against real servers, what the design promises?
//!
//! Each test asks one question of a server of its own. What a history must hold is decided by the oracle
//! (`support/oracle.rs`), which knows nothing of logical decoding. A daemon that was not meant to complain
//! must not have logged a warning or an error.

#![allow(
    unreachable_pub,
    reason = "a module's items are public for the other modules of this binary"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot do its own work must stop, and say where"
)]

mod support;

#[path = "end_to_end/authentication.rs"]
mod authentication;
#[path = "end_to_end/backlog.rs"]
mod backlog;
#[path = "end_to_end/commands.rs"]
mod commands;
#[path = "end_to_end/http.rs"]
mod http;
#[path = "end_to_end/identity.rs"]
mod identity;
#[path = "end_to_end/idle.rs"]
mod idle;
#[cfg(target_os = "linux")]
#[path = "end_to_end/pace.rs"]
mod pace;
#[path = "end_to_end/restart.rs"]
mod restart;
#[path = "end_to_end/scene.rs"]
mod scene;
#[path = "end_to_end/schema_changes.rs"]
mod schema_changes;
#[path = "end_to_end/sizes.rs"]
mod sizes;
#[path = "end_to_end/statements.rs"]
mod statements;
#[path = "end_to_end/tables.rs"]
mod tables;
#[path = "end_to_end/targets.rs"]
mod targets;
#[path = "end_to_end/types.rs"]
mod types;
