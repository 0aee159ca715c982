//! From nothing to a running stream: connect, take the lock, prepare, compare, start.
//!
//! The order is the argument. The lock comes before the checkpoint is read, so that no predecessor can still
//! move it. The slot is made while no connection of ours holds a transaction, because making it waits for every
//! transaction that has written. The intention to make it is recorded before and its position after, so that
//! a slot found without a position is known to be ours and unread. The slot is compared with the checkpoint
//! before the stream starts and again once it is ours (invariant I4).

use std::time::Duration;

use tokio_postgres::Client;

use crate::checkpoint::Checkpoint;
use crate::config::{Config, Connection, SnapshotMode};
use crate::lsn::Lsn;
use crate::pipeline::{Captured, Pipeline};
use crate::report::{Exit, Fault, Result};
use crate::setup::{self, Mode};
use crate::source::replication::{self, Replication, Stream};
use crate::source::slot::{self, Decision, Situation};
use crate::sql;
use crate::target::checkpoint;
use crate::target::session::{self, Session, SessionError};
use crate::wire;

/// How often something that somebody else holds is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// How often a wait is told to the operator.
const TELL_AGAIN: Duration = Duration::from_secs(10);

/// Everything that a running stream needs.
pub struct Started {
    /// The stream.
    pub stream: Stream,
    /// The session that writes.
    pub target: Session,
    /// The connection that watches the target's flush position.
    pub monitor: Client,
    /// The captured tables.
    pub captured: Vec<Captured>,
    /// The source's WAL reached this far before they were read.
    pub catalogs_at: Lsn,
    /// Where the history ends.
    pub checkpoint: Lsn,
    /// What may have been confirmed already.
    pub reported: Lsn,
    /// Values come in binary.
    pub binary: bool,
    /// This walsender's `wal_sender_timeout`; zero when it has none.
    pub wal_sender_timeout: Duration,
}

/// Starts the stream. `text`: do not ask for binary although the catalogs would allow it. Dropping the
/// future gives up; a slot that is being made is then found and adopted by the next start.
///
/// # Errors
/// Transient faults and definite ones, see [`setup`] and [`slot::decide`].
pub async fn start(config: &Config, text: bool) -> Result<Started> {
    let source = sql::connect(&config.source.connection, "source").await?;
    let mut monitor = sql::connect(&config.target, "target").await?;
    let catalogs_at = slot::position(&source)
        .await
        .map_err(|error| sql::fault("source", "could not show the end of its WAL", error))?;
    let captured = setup::prepare(config, &source, &mut monitor, &mut Mode::of(config)).await?;
    let mut target = write_session(config).await?;
    wait_for_lock(&mut target, &config.source.slot).await?;
    let may_create = config.setup == crate::config::Setup::Auto;
    ensure_slot(config, &source, &monitor, &captured, may_create).await?;
    let binary = !text && Pipeline::can_be_binary(&captured);
    let started = start_stream(config, &source, &monitor, binary).await?;
    Ok(Started {
        stream: started.stream,
        target,
        monitor,
        captured,
        catalogs_at,
        checkpoint: started.checkpoint,
        reported: started.reported,
        binary,
        wal_sender_timeout: started.wal_sender_timeout,
    })
}

/// `waltrail setup`: everything that [`start`] creates, without starting.
///
/// # Errors
/// As [`start`].
pub async fn set_up(config: &Config) -> Result<()> {
    let source = sql::connect(&config.source.connection, "source").await?;
    let mut target = sql::connect(&config.target, "target").await?;
    let captured = setup::prepare(config, &source, &mut target, &mut Mode::Create).await?;
    ensure_slot(config, &source, &target, &captured, true).await
}

async fn write_session(config: &Config) -> Result<Session> {
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

/// A replication connection of its own: one is needed per attempt, since a stream cannot be left.
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

fn timeout(connection: &Connection) -> Duration {
    // libpq's "wait for ever", as far as a timer goes.
    connection
        .connect_timeout()
        .unwrap_or(Duration::from_secs(86_400))
}

fn connect_fault(side: &'static str, connection: &Connection, error: wire::Error) -> Fault {
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

fn source_fault(what: &str, error: wire::Error) -> Fault {
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

/// Waits until this is the one writer (invariant I6).
async fn wait_for_lock(target: &mut Session, slot: &str) -> Result<()> {
    let failed = |error: wire::Error| {
        Fault::new(
            error.disposition(),
            "the target could not give out the writer's lock",
        )
        .caused_by(error)
    };
    let mut told = None;
    while !target.try_lock().await.map_err(failed)? {
        if due(&mut told) {
            let pid = target
                .lock_holder()
                .await
                .map_err(failed)?
                .unwrap_or_default();
            tracing::warn!(
                slot,
                pid,
                "another waltrail writes for this slot; waiting until it is gone"
            );
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
    Ok(())
}

fn due(told: &mut Option<tokio::time::Instant>) -> bool {
    let now = tokio::time::Instant::now();
    let due = told.is_none_or(|at| now.duration_since(at) >= TELL_AGAIN);
    if due {
        *told = Some(now);
    }
    due
}

/// Makes the slot, adopts it, or compares it with the checkpoint.
async fn ensure_slot(
    config: &Config,
    source: &Client,
    target: &Client,
    captured: &[Captured],
    may_create: bool,
) -> Result<()> {
    let name = config.source.slot.as_str();
    let mut replication = replication(config).await?;
    let identity = identify(&mut replication).await?;
    let failed = |error| sql::fault("target", "could not keep its checkpoint", error);
    match compare(config, source, target, captured, &mut replication).await? {
        Decision::Resume(_) => {
            checkpoint::set_timeline(target, name, identity.timeline)
                .await
                .map_err(failed)?;
        }
        Decision::Adopt(position) => {
            let (system, timeline) = (identity.system_identifier, identity.timeline);
            checkpoint::intend(target, name, system, timeline)
                .await
                .map_err(failed)?;
            checkpoint::begin_at(target, name, position)
                .await
                .map_err(failed)?;
            tracing::info!(slot = name, position = %position, "adopted the slot; the history begins there");
            existing_rows_are_not_recorded(config);
        }
        Decision::Create => {
            if !may_create {
                return Err(Fault::halt(
                    Exit::Config,
                    format!("replication slot {name} does not exist on the source, and setup = \"manual\""),
                )
                .remedy(format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")));
            }
            let (system, timeline) = (identity.system_identifier, identity.timeline);
            checkpoint::intend(target, name, system, timeline)
                .await
                .map_err(failed)?;
            let position = create_slot(source, &mut replication, name).await?;
            checkpoint::begin_at(target, name, position)
                .await
                .map_err(failed)?;
            tracing::info!(slot = name, position = %position, "created the slot; the history begins there");
            existing_rows_are_not_recorded(config);
        }
    }
    Ok(())
}

/// A setting that this version does not follow is said, once, when it would have mattered.
fn existing_rows_are_not_recorded(config: &Config) {
    if config.snapshot.mode == SnapshotMode::Initial {
        tracing::warn!(
            "snapshot.mode = \"initial\" is not followed by this version: rows that exist already are not \
             recorded, the history begins with the next change; snapshot.mode = \"never\" says so"
        );
    }
}

async fn identify(replication: &mut Replication) -> Result<replication::Identity> {
    replication
        .identify_system()
        .await
        .map_err(|error| source_fault("could not name its cluster", error))
}

/// Compares slot, checkpoint and server as they are now.
async fn compare(
    config: &Config,
    source: &Client,
    target: &Client,
    captured: &[Captured],
    replication: &mut Replication,
) -> Result<Decision> {
    let name = config.source.slot.as_str();
    let identity = identify(replication).await?;
    let found = slot::inspect(source, name)
        .await
        .map_err(|error| sql::fault("source", "could not show its replication slots", error))?;
    let known = read_checkpoint(target, name).await?;
    let fork = match known {
        Some(known) if known.timeline != identity.timeline => replication
            .left_timeline_at(identity.timeline, known.timeline)
            .await
            .map_err(|error| source_fault("could not tell the history of its timeline", error))?,
        _ => None,
    };
    let history_is_empty = match (&found, known) {
        (Some(_), None) => setup::history_is_empty(target, captured).await?,
        _ => true,
    };
    slot::decide(&Situation {
        name,
        database: config.source.connection.dbname(),
        slot: found.as_ref(),
        known,
        identity,
        fork,
        history_is_empty,
    })
}

async fn read_checkpoint(target: &Client, slot: &str) -> Result<Option<Checkpoint>> {
    checkpoint::read(target, slot)
        .await
        .map_err(|error| sql::fault("target", "could not show its checkpoint", error))
}

/// Makes the slot, and tells whom that waits for.
async fn create_slot(source: &Client, replication: &mut Replication, name: &str) -> Result<Lsn> {
    let creation = replication.create_slot(name);
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

struct Running {
    stream: Stream,
    checkpoint: Lsn,
    reported: Lsn,
    wal_sender_timeout: Duration,
}

/// Starts the stream once the slot is free, and compares once more now that nobody else can move it.
async fn start_stream(
    config: &Config,
    source: &Client,
    target: &Client,
    binary: bool,
) -> Result<Running> {
    let name = config.source.slot.as_str();
    let mut told = None;
    loop {
        let mut replication = replication(config).await?;
        let known = read_checkpoint(target, name).await?;
        let Some((checkpoint, reported)) =
            known.and_then(|known| Some((known.end_lsn?, known.reported_lsn?)))
        else {
            return Err(Fault::retry(
                "the checkpoint vanished while the stream was started",
            ));
        };
        let wal_sender_timeout = replication
            .wal_sender_timeout()
            .await
            .map_err(|error| source_fault("could not show wal_sender_timeout", error))?;
        let pid = replication.backend_pid();
        match replication
            .start(name, checkpoint, &config.source.publication, binary)
            .await
        {
            Ok(stream) => {
                still_fits(source, name, pid, reported.max(checkpoint)).await?;
                return Ok(Running {
                    stream,
                    checkpoint,
                    reported,
                    wal_sender_timeout,
                });
            }
            Err(error) if error.server().is_some_and(|report| report.code == "55006") => {
                if due(&mut told) {
                    let holder = slot::inspect(source, name)
                        .await
                        .map_err(|error| {
                            sql::fault("source", "could not show its replication slots", error)
                        })?
                        .and_then(|slot| slot.active_pid)
                        .unwrap_or_default();
                    tracing::warn!(
                        slot = name,
                        pid = holder,
                        "the slot is in use by another process; waiting until it is free"
                    );
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
            Err(error) => return Err(source_fault("could not start the stream", error)),
        }
    }
}

/// The slot is ours now: it must not have moved since it was compared.
async fn still_fits(source: &Client, name: &str, pid: i32, reported: Lsn) -> Result<()> {
    let found = slot::inspect(source, name)
        .await
        .map_err(|error| sql::fault("source", "could not show its replication slots", error))?;
    match found {
        Some(slot)
            if slot.active_pid == Some(pid)
                && slot.confirmed_flush.is_some_and(|at| at <= reported) =>
        {
            Ok(())
        }
        _ => Err(Fault::retry(
            "the slot was changed while the stream was started",
        )),
    }
}
