//! Does the daemon do, against real servers, what the design promises?
//!
//! Each test asks one question of a server of its own. What a history must hold is decided by the oracle
//! (`support/oracle.rs`), which knows nothing of logical decoding. A daemon that was not meant to complain
//! must not have logged a warning or an error.

mod altered_history;
mod authentication;
mod backlog;
mod columns;
mod commands;
mod credentials;
mod following;
mod following_under_load;
mod gaps;
mod health;
mod http;
mod identity;
mod idle;
mod interval;
mod partitions;
mod patterns;
mod restart;
mod rewritten;
mod schema_changes;
mod sizes;
mod source_changes;
pub mod standby;
mod statements;
mod tables;
mod targets;
mod types;
