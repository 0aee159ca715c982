//! The daemon: one session after the other, each from what slot and checkpoint say, by production's own decisions.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::{mpsc, watch};

use super::log::captured;
use super::store::Sessions;
use super::{Shared, lock};
use crate::config::Config;
use crate::fault::{Fault, Result};
use crate::history::followed::Whole;
use crate::lsn::Lsn;
use crate::pipeline::Pipeline;
use crate::session::applier::Applier;
use crate::session::opening::{Place, Way};
use crate::session::pause::Pause;
use crate::session::reader::Watching;
use crate::session::{Ended, Format, Order, Phase, Session, Target};
use crate::snapshot::TableSyncs;
use crate::source::backlog::{self, Backlog};
use crate::source::slot::{Decision, Identity, Server, Situation, SlotState, decide};
use crate::source::stream::Stream;
use crate::telemetry::progress::Progress;
use crate::wire::Channel;

/// What one session is started with.
pub(super) struct Start {
    pub(super) config: Config,
    pub(super) rng: Rng,
    pub(super) orders: watch::Receiver<Order>,
    pub(super) phase: Phase,
    /// Transactions that end up to here are written one by one.
    pub(super) one_by_one: Lsn,
    pub(super) wal_sender_timeout: Duration,
    /// Bytes that the socket takes, and that one read takes.
    pub(super) socket: usize,
    pub(super) gulp: usize,
}

/// Runs one session.
pub(super) async fn run(world: Shared, mut start: Start) -> Result<Ended> {
    let sessions = Sessions::open(&world);
    resumes(&world, &sessions)?;
    pause(&mut start.rng).await;
    let (way, place) = open(&world, &sessions, &mut start).await?;
    let (syncs, _) = TableSyncs::new(false);
    let session = Session {
        config: &start.config,
        orders: start.orders,
        format: Format::Binary,
        phase: start.phase,
        one_by_one: start.one_by_one,
        skip: None,
        altered: &[],
        progress: Arc::new(Progress::default()),
        syncs: &syncs,
        on_streaming: &|| {},
    };
    let (applier, applied, batches) = session.applier::<Sessions>(sessions.clone(), place);
    let pulse = session.progress.watchdog.watch("barrier", || true);
    let (target, confirming) =
        Target::start(apply(applier), applied, sessions, place.reported, pulse);
    let pipeline = Pipeline::new(captured(), place.checkpoint, place.checkpoint, true);
    match way {
        Way::CatchUp(backlog) => {
            let catch_up = session.catching_up(pipeline, batches, place);
            session.catch_up(catch_up, backlog, target).await
        }
        Way::Stream(stream) => {
            let pause = Pause::simulated();
            let reader = session.reader(stream, pipeline, batches, place, pause);
            let (hints, _hinted) = mpsc::channel(1);
            let (_until, until) = watch::channel(None);
            let (_whole, whole) = watch::channel(Whole {
                lsn: Lsn::ZERO,
                time: None,
            });
            let watching = Watching {
                hints,
                whole,
                until,
            };
            session.stream(reader, confirming, watching, target).await
        }
    }
}

/// Without a snapshot there are no requests.
async fn apply(mut applier: Applier<Sessions>) -> Result<Infallible> {
    loop {
        let batch = applier.batches.full.recv().await;
        applier.apply(batch).await?;
    }
}

async fn pause(rng: &mut Rng) {
    match rng.u32(..3) {
        0 => tokio::task::yield_now().await,
        1 => tokio::time::sleep(Duration::from_millis(rng.u64(1..20))).await,
        _ => {}
    }
}

fn lost() -> Fault {
    Fault::retry("the target crashed")
}

/// Whether slot and checkpoint fit (I4).
fn resumes(world: &Shared, sessions: &Sessions) -> Result<()> {
    let slot = sessions.slot()?;
    let (known, flushed) = {
        let world = lock(world);
        let known = world.store.checkpoint(sessions.generation);
        (known.ok_or_else(lost)?, world.source.end)
    };
    let decision = decide(&Situation {
        name: "waltrail",
        database: "app",
        slot: Some(&slot),
        known: Some(known),
        identity: Identity {
            system_identifier: 7,
            timeline: 1,
            flushed,
        },
        server: Server {
            major: 17,
            in_recovery: false,
        },
        fork: None,
        history_is_empty: false,
        rows_of: None,
        histories: &[],
    })?;
    match decision {
        Decision::Resume(_) => Ok(()),
        other => Err(Fault::bug("a slot that was made is not resumed").caused_by(Odd(other))),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?}")]
struct Odd(Decision);

/// As `Opening::open`.
async fn open(world: &Shared, sessions: &Sessions, start: &mut Start) -> Result<(Way, Place)> {
    let known = lock(world).store.checkpoint(sessions.generation);
    let known = Some(known.ok_or_else(lost)?);
    pause(&mut start.rng).await;
    let slot = sessions.slot()?;
    let place = Place::of(known, slot.confirmed_flush, start.wal_sender_timeout);
    let place = place.ok_or_else(|| Fault::bug("the checkpoint has no position"))?;
    let end = backlog_end(world, &slot, place, start);
    pause(&mut start.rng).await;
    let (ours, theirs) = tokio::io::duplex(start.socket);
    let channel = Channel::in_memory(ours, start.gulp);
    let way = match end {
        Some(end) => {
            lock(world).peek(&mut start.rng, end, theirs);
            Way::CatchUp(Backlog::new(channel, "waltrail"))
        }
        None => {
            lock(world).start(&mut start.rng, place.begins, theirs);
            Way::Stream(Stream::new(channel))
        }
    };
    pause(&mut start.rng).await;
    // As `still_fits`.
    let at = sessions.slot()?.confirmed_flush;
    let at = at.filter(|at| *at <= place.slot_max());
    let at = at.ok_or_else(|| Fault::retry("the slot was changed while the stream was started"))?;
    lock(world).begins();
    Ok((way, place.begun(at)))
}

/// Up to where a backlog is read: as production does it, or any part of what is there, since its least length is a matter of
/// speed alone.
fn backlog_end(world: &Shared, slot: &SlotState, place: Place, start: &mut Start) -> Option<Lsn> {
    let (from, flushed) = (place.checkpoint, lock(world).source.end);
    match start.phase {
        Phase::Stream => None,
        Phase::CatchUp if start.rng.bool() && from < flushed => {
            let any = start.rng.u64(from.as_u64()..flushed.as_u64()) + 1;
            Some(Lsn::from_u64(any))
        }
        Phase::CatchUp => backlog::end(
            slot.restart_lsn?,
            from,
            flushed,
            start.config.source.catch_up_wal,
        ),
    }
}
