//! From nothing to a stream or a backlog: connect, take the lock, prepare, compare, start.
//!
//! The order is the argument. The lock comes before the checkpoint is read, so that no predecessor can still
//! move it. The slot is made while no connection of ours holds a transaction, because making it waits for every
//! transaction that has written. The intention to make it is recorded before and its position after, so that
//! a slot found without a position is known to be ours and unread. The slot is compared with the checkpoint
//! before the stream starts and again once it is ours (invariant I4).

use std::collections::HashSet;
use std::sync::Arc;

use tokio_postgres::Client;

use super::compare::{Compared, compare, compared, keep, server_of, while_changed};
use super::durability::Barrier;
use super::one_writer::wait_for_lock;
use super::opening::{ASK_AGAIN, Opened, Opening};
use super::source_watch::Until;
use super::standbys;
use super::{Format, Phase};
use crate::config::{Config, Setup};
use crate::fault::{Exit, Fault, Result};
use crate::history::checkpoint;
use crate::history::disorder::Disorder;
use crate::history::followed::Record;
use crate::history::writer::Writer;
use crate::lsn::Lsn;
use crate::pipeline::{Altered, Captured, Pipeline};
use crate::server::{self, Reminder, Side};
use crate::setup::{self, Mode};
use crate::snapshot::point::{Point, SnapshotHolder};
use crate::snapshot::state::{self, State, Table};
use crate::snapshot::table_sync::TABLES_AT_A_POINT;
use crate::source::failover;
use crate::source::replication::{CreatedSlot, Replication, SlotKind, StreamOptions, create_slot};
use crate::source::slot::{self, Decision};
use crate::wire::Asked;

pub(super) struct Started {
    pub(super) opened: Opened,
    pub(super) target: Writer,
    pub(super) barrier: Barrier,
    pub(super) captured: Vec<Captured>,
    /// The source's WAL reached this far before they were read.
    pub(super) catalogs_at: Lsn,
    pub(super) binary: bool,
    /// How far the snapshot of each captured table is.
    pub(super) tables: Vec<Table>,
    /// The point that the slot was made at, when it was made just now.
    pub(super) point: Option<Point>,
    pub(super) seen: Seen,
    /// By how much commit times were out of order, where that is known.
    pub(super) disorder: Option<Disorder>,
}

/// What the watch of the source goes on with.
pub(super) struct Seen {
    pub(super) source: Client,
    /// The configuration, with the names that its tables have now.
    pub(super) config: Config,
    pub(super) record: Record,
    /// Where the stream has to end.
    pub(super) until: Option<Until>,
}

#[derive(Clone, Copy)]
pub(super) struct StartOptions<'a> {
    pub(super) format: Format,
    pub(super) phase: Phase,
    /// Shapes that the histories are to be prepared for.
    pub(super) altered: &'a [Altered],
    /// Called when the source takes its time to decode a backlog: everything else is ready by then.
    pub(super) on_decoding: &'a (dyn Fn() + Sync),
}

/// Starts a stream or a backlog. Dropping the future gives up; the next start ends what is still making a slot, or adopts a
/// slot that was made.
pub(super) async fn start(config: &Config, options: StartOptions<'_>) -> Result<Started> {
    let mut target = Writer::connect(&config.target, &config.source.slot).await?;
    wait_for_lock(&mut target, config).await?;
    // It can take long: set-up, the slot, the decoding of a backlog.
    let ready = target.beat_while(make_ready(config, options)).await?;
    let Ready {
        prepared,
        tables,
        binary,
        opened,
    } = ready;
    let Prepared {
        seen,
        monitor,
        asked,
        catalogs_at,
        mut captured,
        point,
    } = prepared;
    let config = &seen.config;
    let mut gated = HashSet::new();
    for table in &tables {
        if let Some(gate) = table.gate(opened.place.checkpoint) {
            target.set_gate(table.history.clone(), gate);
            gated.insert(&table.history);
        }
    }
    for captured in &mut captured {
        captured.gated = gated.contains(&captured.history.name);
    }
    let (slot, durable) = (&config.source.slot, config.durable);
    let disorder = checkpoint::disorder(&monitor, slot).await;
    let disorder = disorder.map_err(Side::Target.failed("could not show its checkpoint"))?;
    Ok(Started {
        opened,
        target,
        barrier: Barrier::new((monitor, asked), &seen.source, slot, durable).await?,
        seen,
        captured,
        catalogs_at,
        binary,
        tables,
        point,
        disorder,
    })
}

/// All but the writer's session.
struct Ready {
    prepared: Prepared,
    tables: Vec<Table>,
    binary: bool,
    opened: Opened,
}

async fn make_ready(config: &Config, options: StartOptions<'_>) -> Result<Ready> {
    let (prepared, connected) = prepare(config, options.altered).await?;
    let Prepared {
        seen,
        monitor,
        captured,
        ..
    } = &prepared;
    let config = &seen.config;
    let tables = state::read(monitor, &config.source.slot).await?;
    let binary = options.format == Format::Binary && Pipeline::can_be_binary(captured);
    // A slot that was made just now has no backlog.
    let wal_max = match (options.phase, &prepared.point) {
        (Phase::CatchUp, None) => config.source.catch_up_wal,
        _ => 0,
    };
    let opening = Opening {
        config,
        source: &seen.source,
        target: monitor,
        options: StreamOptions {
            binary,
            messages: Pipeline::records_context(captured),
        },
        on_decoding: options.on_decoding,
    };
    let opened = opening.open(connected, wal_max).await?;
    Ok(Ready {
        prepared,
        tables,
        binary,
        opened,
    })
}

/// Both servers, prepared and compared, with the slot.
struct Prepared {
    seen: Seen,
    monitor: Client,
    /// Whether the target owes it an answer.
    asked: Arc<Asked>,
    catalogs_at: Lsn,
    captured: Vec<Captured>,
    point: Option<Point>,
}

/// Prepares the servers; or, where changes can be missing, nothing, so that what came before can still be read. Also returns
/// a connection for the stream.
async fn prepare(config: &Config, altered: &[Altered]) -> Result<(Prepared, Replication)> {
    let source = server::sql(&config.source.connection, Side::Source).await?;
    let (mut monitor, asked) = server::sql_asked(&config.target, Side::Target).await?;
    setup::may_use_control_schema(config, &monitor).await?;
    standbys::refuse_standby(config, &monitor).await?;
    let catalogs_at = slot::position(&source)
        .await
        .map_err(Side::Source.failed("could not show the end of its WAL"))?;
    let (config, known, until) = compared(config, &source, &monitor).await?;
    let (captured, make) = match (&known, &until) {
        (Some(known), Some(_)) => {
            let captured =
                setup::recorded::tables(&config, &source, &monitor, known, altered).await?;
            (captured, None)
        }
        _ => {
            let mut mode = Mode::of(&config);
            let prepared = setup::prepare(&config, &source, &mut monitor, &mut mode, altered);
            let captured = match prepared.await {
                Ok(captured) => captured,
                Err(fault) if fault.may_pass() => return Err(fault),
                Err(fault) => return Err(while_changed(fault, &config, &source, &monitor).await),
            };
            (
                captured,
                standbys::slot_kind(&config, server_of(&source).await?),
            )
        }
    };
    let registers = until.is_none();
    let (point, connected) =
        ensure_slot(&config, &source, &monitor, &captured, make, registers).await?;
    let record = match (known, &until) {
        (Some(known), Some(_)) => known,
        _ => keep(&config, &source, &monitor, &captured).await?,
    };
    let prepared = Prepared {
        seen: Seen {
            source,
            config,
            record,
            until,
        },
        monitor,
        asked,
        catalogs_at,
        captured,
        point,
    };
    Ok((prepared, connected))
}

/// `waltrail setup`: everything that [`start`] creates, without starting.
pub(crate) async fn set_up(config: &Config) -> Result<()> {
    let source = server::sql(&config.source.connection, Side::Source).await?;
    let mut target = server::sql(&config.target, Side::Target).await?;
    let mut config = config.clone();
    config.setup = Setup::Auto;
    setup::may_use_control_schema(&config, &target).await?;
    standbys::refuse_standby(&config, &target).await?;
    let (config, _, until) = compared(&config, &source, &target).await?;
    let config = &config;
    if let Some(fault) = until.and_then(|until| until.fault()) {
        return Err(fault);
    }
    let captured = setup::prepare(config, &source, &mut target, &mut Mode::Create, &[]).await?;
    let failover = failover::is_wanted(config.source.failover, server_of(&source).await?);
    let make = Some(SlotKind::Plain { failover });
    ensure_slot(config, &source, &target, &captured, make, false).await?;
    let tables = state::read(&target, &config.source.slot).await?;
    let waiting = tables.iter().filter(|table| table.state == State::Waiting);
    let waiting: Vec<String> = waiting.map(|table| table.history.to_string()).collect();
    if !waiting.is_empty() {
        tracing::info!(
            histories = waiting.join(", "),
            "the first `waltrail run` records the existing rows as they are then; changes until then are part of them"
        );
    }
    Ok(())
}

/// Makes the slot (as `make` says), adopts it, or compares it with the checkpoint; notes which tables' existing rows
/// are still to be recorded. Returns the point of a slot that exported one, and the connection that did all this.
async fn ensure_slot(
    config: &Config,
    source: &Client,
    target: &Client,
    captured: &[Captured],
    make: Option<SlotKind>,
    has_lock: bool,
) -> Result<(Option<Point>, Replication)> {
    let name = config.source.slot.as_str();
    let mut replication = Replication::connect(&config.source).await?;
    let failed = Side::Target.failed("could not keep its checkpoint");
    let servers = (source, target);
    let Compared {
        decision,
        identity,
        fork,
    } = decide(config, servers, captured, &mut replication, has_lock).await?;
    // Before the checkpoint has a position: a history that begins with one knows which tables are to be copied.
    let resumes = matches!(decision, Decision::Resume(_));
    // A history that goes on may be another instance's.
    let free = has_lock || !resumes;
    if free && (make.is_some() || decision != Decision::Create) {
        state::register(target, config, captured, resumes, identity.flushed).await?;
    }
    match decision {
        // It is waited for above.
        Decision::BeingMade { .. } | Decision::NotYet(_) => {}
        Decision::Resume(_) => {
            checkpoint::set_timeline(target, name, identity.timeline, fork)
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
        }
        Decision::Create => {
            let Some(kind) = make else {
                let server = server_of(source).await?;
                let wanted = failover::is_wanted(config.source.failover, server);
                return Err(Fault::halt(
                    Exit::Config,
                    format!("replication slot {name} does not exist on the source, and setup = \"manual\""),
                )
                .remedy(failover::statement(name, wanted)));
            };
            let (system, timeline) = (identity.system_identifier, identity.timeline);
            checkpoint::intend(target, name, system, timeline)
                .await
                .map_err(failed)?;
            let made = create_slot(source, &mut replication, name, kind).await?;
            // Imported before anything else is said on that connection, which would end the export.
            let point = point_of(config, captured, &made).await?;
            let position = made.position;
            checkpoint::begin_at(target, name, position)
                .await
                .map_err(failed)?;
            tracing::info!(slot = name, position = %position, "created the slot; the history begins there");
            return Ok((point, replication));
        }
    }
    Ok((None, replication))
}

/// Waits a moment for the process that is making the slot. With `orphaned`, what wanted the slot is gone, and the process is
/// terminated where that is allowed.
async fn wait_for_maker(
    source: &Client,
    name: &str,
    pid: Option<i32>,
    orphaned: bool,
    reminder: &mut Reminder,
) -> Result<()> {
    let ended = match pid {
        Some(pid) if orphaned => slot::end_making(source, name, pid).await.unwrap_or(false),
        _ => false,
    };
    if ended {
        tracing::info!(slot = name, pid, "terminated an orphaned walsender");
    } else if reminder.is_due() {
        let blockers = slot::writers(source).await;
        let blockers = blockers.map_err(Side::Source.failed("could not show its transactions"))?;
        tracing::warn!(
            slot = name,
            pid,
            blockers = blockers.join("; "),
            "another process is creating the slot; waiting until it is there"
        );
    }
    tokio::time::sleep(ASK_AGAIN).await;
    Ok(())
}

/// What slot and checkpoint say, once no process is making the slot any more and a standby can be read from.
async fn decide(
    config: &Config,
    (source, target): (&Client, &Client),
    captured: &[Captured],
    replication: &mut Replication,
    has_lock: bool,
) -> Result<Compared> {
    let name = config.source.slot.as_str();
    let histories = captured.iter().map(|table| table.history.name.clone());
    let histories: Vec<_> = histories.collect();
    let mut reminder = Reminder::default();
    loop {
        let compared = compare(config, (source, target), &histories, replication).await?;
        match compared.decision {
            Decision::BeingMade { pid, intended } => {
                wait_for_maker(source, name, pid, has_lock && intended, &mut reminder).await?;
            }
            Decision::NotYet(what) => {
                if reminder.is_due() {
                    tracing::warn!(slot = name, remedy = what.remedy(), "{what}");
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
            Decision::Create | Decision::Adopt(_) | Decision::Resume(_) => return Ok(compared),
        }
    }
}

/// Keeps the snapshot that a new slot exported, if it did.
async fn point_of(
    config: &Config,
    captured: &[Captured],
    made: &CreatedSlot,
) -> Result<Option<Point>> {
    let Some(snapshot) = &made.snapshot else {
        return Ok(None);
    };
    let holder = SnapshotHolder::import(config, snapshot).await?;
    let first = captured.iter().take(TABLES_AT_A_POINT);
    let tables: Vec<_> = first.map(|table| &table.source).collect();
    let reader = holder.lock_now(config, &tables).await?;
    Ok(Some(Point {
        lsn: made.position,
        holder: Arc::new(holder),
        reader,
    }))
}
