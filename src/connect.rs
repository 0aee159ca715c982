//! Connections to both servers, and what is told while something there has to be waited for.

use std::time::Duration;

use tokio_postgres::Client;

use crate::config::{Config, Connection};
use crate::report::{Exit, Fault, Result};
use crate::source::replication::{self, CreatedSlot, Replication, SlotKind};
use crate::source::slot;
use crate::sql;
use crate::target::session::{self, Session, SessionError};
use crate::wire;

/// How often a wait is told to the operator.
const TELL_AGAIN: Duration = Duration::from_secs(10);
/// How often somebody who holds a lock that we wait for is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Runs `work` on `client`, and tells whose locks it waits for when it waits: a session of its own asks, since a
/// session that waits cannot. That it cannot ask either is no reason to fail.
///
/// # Errors
/// What `work` fails with; the session failed before it.
pub async fn telling_whom_it_waits_for<T>(
    connection: &Connection,
    side: &'static str,
    client: &Client,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    // Before the work, whose first statement may be the one that waits.
    let pid = client.query_one("SELECT pg_catalog.pg_backend_pid()", &[]);
    let pid = pid
        .await
        .map_err(|error| sql::fault(side, "could not name its process", error))?
        .get(0);
    let telling = async {
        if let Err(fault) = tell_whom_it_waits_for(connection, side, pid).await {
            tracing::debug!(%fault, "whom this waits for cannot be told");
        }
        std::future::pending().await
    };
    tokio::select! {
        done = work => done,
        never = telling => never,
    }
}

async fn tell_whom_it_waits_for(
    connection: &Connection,
    side: &'static str,
    pid: i32,
) -> Result<()> {
    tokio::time::sleep(LOOK_AGAIN).await;
    let watcher = sql::connect(connection, side).await?;
    let mut told = None;
    loop {
        let blocking = "SELECT array_to_string(pg_catalog.pg_blocking_pids($1), ', ')";
        let row = watcher
            .query_one(blocking, &[&pid])
            .await
            .map_err(|error| sql::fault(side, "could not show its locks", error))?;
        let pids: &str = row.get(0);
        if !pids.is_empty() && due(&mut told) {
            tracing::warn!(
                side,
                pids,
                "these sessions keep a table locked that is to be looked at; waiting for them"
            );
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The session that writes history.
///
/// # Errors
/// The target cannot be reached or refuses, or is behind a pooler.
pub async fn write_session(config: &Config) -> Result<Session> {
    let connection = &config.target;
    let address = session::Address {
        endpoints: connection.endpoints(),
        user: connection.user(),
        database: connection.dbname(),
        password: connection.password(),
        application_name: connection.application_name(),
        timeout: timeout(connection),
    };
    Session::connect(&address, &config.source.slot).await.map_err(|error| match error {
        SessionError::Wire(error) => connect_fault("target", connection, error),
        SessionError::Pooled => Fault::halt(
            Exit::Config,
            format!("the target {connection} is reached through a connection pooler, which would break the lock of the one \
                     writer"),
        )
        .remedy("connect to the server itself with target.dsn"),
        SessionError::NotCommitted(_) => Fault::bug("a new session committed something"),
    })
}

/// A replication connection: a new one for each stream, since a stream cannot be left.
///
/// # Errors
/// The source cannot be reached or refuses.
pub async fn replication(config: &Config) -> Result<Replication> {
    let connection = &config.source.connection;
    let address = replication::Address {
        endpoints: connection.endpoints(),
        user: connection.user(),
        database: connection.dbname(),
        password: connection.password(),
        application_name: connection.application_name(),
        decoding_work_mem: &config.source.decoding_work_mem,
        timeout: timeout(connection),
    };
    Replication::connect(&address)
        .await
        .map_err(|error| connect_fault("source", connection, error))
}

/// How long one address may take.
#[must_use]
pub fn timeout(connection: &Connection) -> Duration {
    // libpq's "wait for ever", as far as a timer goes.
    connection
        .connect_timeout()
        .unwrap_or(Duration::from_secs(86_400))
}

/// A connection of ours that could not be made.
#[must_use]
pub fn connect_fault(side: &'static str, connection: &Connection, error: wire::Error) -> Fault {
    let what = format!("could not connect to the {side} {connection}");
    match error {
        wire::Error::Server(error) => sql::refused(side, &what, error),
        wire::Error::NoPassword | wire::Error::PasswordExchange => {
            Fault::new(error.disposition(), what)
                .remedy(format!(
                    "set the password in {side}.password_file, {side}.dsn, PGPASSWORD or ~/.pgpass"
                ))
                .caused_by(error)
        }
        error => Fault::new(error.disposition(), what)
            .remedy(format!(
                "check that the server runs and that {side}.dsn is right"
            ))
            .caused_by(error),
    }
}

/// A replication command that failed.
#[must_use]
pub fn source_fault(what: &str, error: wire::Error) -> Fault {
    let fault = Fault::new(error.disposition(), format!("the source {what}"));
    match error.server().map(|report| report.code.as_str()) {
        Some("53400") => fault.remedy(
            "raise max_replication_slots on the source and restart it, or drop a slot that nobody needs (SELECT \
             slot_name, active FROM pg_replication_slots)",
        ),
        Some("42704") => fault.remedy("see whether somebody dropped the slot or the publication"),
        Some("42501") => fault.remedy("ALTER ROLE ... REPLICATION on the source"),
        Some("58P01") => fault.remedy(
            "the WAL that the slot needs is gone: see the slot's wal_status in pg_replication_slots",
        ),
        _ => fault,
    }
    .caused_by(error)
}

/// Whether something that is told every now and then is to be told again.
pub fn due(told: &mut Option<tokio::time::Instant>) -> bool {
    let now = tokio::time::Instant::now();
    let due = told.is_none_or(|at| now.duration_since(at) >= TELL_AGAIN);
    if due {
        *told = Some(now);
    }
    due
}

/// Makes the slot, and tells whom that waits for.
///
/// # Errors
/// The source failed or has no slot left.
pub async fn create_slot(
    source: &Client,
    replication: &mut Replication,
    name: &str,
    kind: SlotKind,
) -> Result<CreatedSlot> {
    let creation = replication.create_slot(name, kind);
    tokio::pin!(creation);
    loop {
        tokio::select! {
            made = &mut creation => {
                return made.map_err(|error| source_fault("could not create the replication slot", error));
            }
            () = tokio::time::sleep(TELL_AGAIN / 2) => {
                let blockers = slot::writers(source).await.map_err(|error| {
                    sql::fault("source", "could not show its transactions", error)
                })?;
                tracing::warn!(
                    slot = name,
                    blockers = blockers.join("; "),
                    "creating the slot waits for these transactions to end"
                );
            }
        }
    }
}
