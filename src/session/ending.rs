//! Servers that are shutting down are not held up.
//!
//! ```text
//!   fast    the source ends its sessions, and then waits for the walsender until everything is confirmed
//!   smart   a server waits until all sessions have ended by themselves; they hear nothing of it
//! ```
//!
//! In fast mode the end of the session that watches the source says so, and the stream gets [`LINGER`] to bring and confirm
//! the rest: it may take for ever while the target takes nothing. In smart mode only a new session hears it, so one is asked
//! for, up to the first answer, every [`ASK_EVERY`].

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_postgres::Client;

use crate::config::Config;
use crate::fault::{Fault, Result};
use crate::server::{self, Side};

/// How often it is asked whether a server begins sessions.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// How often a session is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// So long a stream may go on after its source has begun to shut down.
const LINGER: Duration = Duration::from_secs(3);

/// Waits until one of the servers is shutting down. Cancel-safe.
pub(super) async fn noticed(config: &Config) -> Fault {
    let (source, target) = (&config.source.connection, &config.target);
    loop {
        sleep(ASK_EVERY).await;
        if server::is_shutting_down(source).await {
            return shutting_down(Side::Source);
        }
        if source != target && server::is_shutting_down(target).await {
            return shutting_down(Side::Target);
        }
    }
}

/// Runs a task of a stream for as long as the session on `source` is there, and lets the stream go on for a moment when the
/// source has ended that session.
pub(super) async fn while_open<T>(
    source: Arc<Client>,
    task: impl Future<Output = Result<T>>,
) -> Result<T> {
    let closed = async {
        while !source.is_closed() {
            sleep(LOOK_EVERY).await;
        }
    };
    let ended = tokio::select! {
        ended = task => Some(ended),
        () = closed => None,
    };
    match ended {
        Some(ended) if !source.is_closed() => ended,
        _ => {
            tracing::info!(
                seconds = LINGER.as_secs(),
                "the source has ended a session; the stream goes on for a moment"
            );
            sleep(LINGER).await;
            Err(shutting_down(Side::Source))
        }
    }
}

fn shutting_down(side: Side) -> Fault {
    Fault::reconnect(format!("the {side} is shutting down")).of(side)
}
