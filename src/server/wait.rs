//! Waits for locks: what is logged while they last.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;

use super::{Connection, Side, sql};
use crate::fault::Result;

/// How often a wait that goes on is logged.
pub const REMIND: Duration = Duration::from_secs(10);
/// How often the sessions that hold a lock are looked for.
const LOOK: Duration = Duration::from_secs(1);

/// Says when a wait is worth a log line: at once, then every [`REMIND`].
#[derive(Debug, Default)]
pub struct Reminder(Option<Instant>);

impl Reminder {
    /// Whether to log now; then the time counts from now.
    pub fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = self.0.is_none_or(|last| now - last >= REMIND);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

/// Runs `work` on `client`. While it waits for locks, the sessions that hold them are logged. A second session looks for
/// them, since a session that waits cannot; if that session fails, the work goes on without.
pub async fn log_blockers_while<T>(
    connection: &Connection,
    side: Side,
    client: &Client,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    // Before the work, whose first statement may be the one that waits.
    let pid = client.query_one("SELECT pg_catalog.pg_backend_pid()", &[]);
    let pid = pid
        .await
        .map_err(side.failed("could not name its process"))?
        .get(0);
    let logging = async {
        if let Err(fault) = log_blockers(connection, side, pid).await {
            tracing::debug!(%fault, "could not look for the sessions that hold a lock");
        }
        std::future::pending().await
    };
    tokio::select! {
        done = work => done,
        never = logging => never,
    }
}

async fn log_blockers(connection: &Connection, side: Side, pid: i32) -> Result<()> {
    tokio::time::sleep(LOOK).await;
    let watcher = sql(connection, side).await?;
    let mut reminder = Reminder::default();
    loop {
        let blocking = "SELECT array_to_string(pg_catalog.pg_blocking_pids($1), ', ')";
        let row = watcher
            .query_one(blocking, &[&pid])
            .await
            .map_err(side.failed("could not show its locks"))?;
        let pids: &str = row.get(0);
        if !pids.is_empty() && reminder.is_due() {
            tracing::warn!(%side, pids, "waiting for a table lock");
        }
        tokio::time::sleep(LOOK).await;
    }
}
