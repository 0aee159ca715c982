//! One session: from the checkpoint until something ends it.
//!
//! ```text
//!   reader or catch_up                applier                durability
//!   messages -> Pipeline -> Batch --> COPY, advance, COMMIT -> flushed?
//!      ^          empty batch <------    |  applied              |
//!      |                                 +---------------------> |
//!      +--- status updates <---- Feedback <------- durable ------+
//! ```
//!
//! A start that is behind catches up first (`catch_up.rs`), which is a session of its own; the next one streams
//! (`reader.rs`). Whatever fails ends the whole session. The next one reads the checkpoint again, so there is no state to
//! repair.

mod applier;
mod batches;
mod catch_up;
mod compare;
mod durability;
mod ending;
mod one_writer;
mod opening;
mod pause;
mod reader;
#[cfg(test)]
mod simulator;
mod source_watch;
mod standbys;
mod start;
mod stop;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::clock;
use crate::config::Config;
use crate::fault::{Disposition, Fault, Result};
use crate::history::context::Refused;
use crate::history::followed::{self, Whole};
use crate::history::write::Write;
use crate::lsn::Lsn;
use crate::pipeline::{Altered, Pipeline};
use crate::schema::TableName;
use crate::schema::partitions::Lacking;
use crate::server::{Reminder, Side, answers};
use crate::snapshot::{TableSyncs, state};
use crate::source::backlog::Backlog;
use crate::source::feedback::Feedback;
use crate::source::stream::Stream;
use crate::telemetry::progress::{Pieces, Progress};
use crate::telemetry::watchdog::Pulse;

use applier::Applier;
use batches::Batches;
use catch_up::CatchUp;
use durability::{Barrier, Watch};
use opening::{Opened, Place, Way};
use pause::Pause;
use reader::{Confirming, Reader, Watching};
use source_watch::{SourceWatch, Until};
use start::{Seen, StartOptions, Started};
use stop::Stop;

pub(crate) use compare::{known_and_identity, look, misfit, remember};
pub(crate) use start::set_up;

/// So long the target may take for what was received before a fault of the stream.
const LAST_BATCH_MAX: Duration = Duration::from_secs(10);

/// What the daemon asks of a running session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Run,
    /// Finish what can be finished and end.
    Drain,
}

/// How a session ended without a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// As ordered: everything complete that was received is in the history, durable and confirmed.
    Drained,
    /// The schema changed so that the stream has to be asked for as text.
    NeedsText,
    /// A table has another shape: the catalogs have to be read again, and its history prepared.
    Altered(Box<Altered>),
    /// A backlog is in the history, and the slot was moved past it.
    CaughtUp {
        /// There was something of ours in it.
        anything: bool,
    },
    /// The target took nothing for long: what was read of a backlog is in the history.
    Abandoned,
    /// Changes after the position that was reached can be missing: everything before it is in the history, durable and
    /// confirmed.
    Refused,
}

/// What a session does about a backlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It catches up, where that is worth it.
    CatchUp,
    Stream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// In binary, where the catalogs allow it.
    Binary,
    Text,
}

pub(crate) struct Session<'a> {
    pub config: &'a Config,
    pub orders: watch::Receiver<Order>,
    pub format: Format,
    pub phase: Phase,
    /// Transactions that end up to here are written one by one.
    pub one_by_one: Lsn,
    /// The commit position of a transaction that is left out.
    pub skip: Option<Lsn>,
    /// Shapes that the histories are to be prepared for.
    pub altered: &'a [Altered],
    pub progress: Arc<Progress>,
    pub syncs: &'a TableSyncs,
    pub on_streaming: &'a (dyn Fn() + Sync),
}

impl Session<'_> {
    /// Runs until ordered to end or until something fails.
    pub(crate) async fn run(self) -> Result<Ended> {
        let ended = tokio::select! {
            ended = self.start_and_follow() => ended,
            fault = ending::noticed(self.config) => {
                // Their sessions, too, would hold it up.
                self.syncs.stop();
                Err(fault)
            }
        };
        self.syncs.send_requests_to(None);
        ended
    }

    async fn start_and_follow(&self) -> Result<Ended> {
        let mut orders = self.orders.clone();
        let called = AtomicBool::new(false);
        let on_streaming = || {
            if !called.swap(true, Ordering::Relaxed) {
                (self.on_streaming)();
            }
        };
        let options = StartOptions {
            format: self.format,
            phase: self.phase,
            altered: self.altered,
            on_decoding: &on_streaming,
        };
        let started = tokio::select! {
            started = start::start(self.config, options) => started?,
            () = drained(&mut orders) => return Ok(Ended::Drained),
        };
        on_streaming();
        self.follow(started).await
    }

    async fn follow(&self, started: Started) -> Result<Ended> {
        let Opened { way, place } = started.opened;
        if started.seen.until.is_none() {
            let config = &started.seen.config;
            self.syncs.begin(config, &started.tables, started.point);
        }
        let (sender, requests) = mpsc::channel(16);
        self.syncs.send_requests_to(Some(sender));
        let captured = started.captured.iter();
        self.progress
            .follows(captured.map(|table| &table.source.name));
        let (applier, applied, batches) = self.applier::<Barrier>(started.target, place);
        let barrier = started.barrier;
        let sight = Sight::new(&barrier, &started.seen);
        let applying = applier.run(requests);
        let pulse = barrier.pulse(&self.progress.watchdog);
        let (mut target, confirming) =
            Target::start(applying, applied, barrier, place.reported, pulse);
        let mut pipeline = Pipeline::new(
            started.captured,
            started.catalogs_at,
            place.checkpoint,
            started.binary,
        );
        pipeline.keep_for(&self.config.source.slot, started.disorder);
        if let Some(commit_lsn) = self.skip {
            pipeline.skip(commit_lsn);
        }
        match way {
            Way::CatchUp(backlog) => {
                let catch_up = self.catching_up(pipeline, batches, place);
                self.catch_up(catch_up, backlog, target).await
            }
            Way::Stream(stream) => {
                let pause = Pause::new()
                    .map_err(|error| Fault::retry("no timer for the stream").caused_by(error))?;
                let reader = self.reader(stream, pipeline, batches, place, pause);
                let watching = target.watch_source(started.seen, sight);
                self.stream(reader, confirming, watching, target).await
            }
        }
    }

    /// What applies to a target whose history ends at the checkpoint of `place`, and the batches that it is given.
    fn applier<H: Write>(
        &self,
        session: H::Session,
        place: Place,
    ) -> (Applier<H>, watch::Receiver<Lsn>, Batches) {
        let checkpoint = place.checkpoint;
        let recorded = place.recorded.map(|time| time.0);
        self.progress.starts_at(checkpoint, recorded);
        let (batches, applier_end) = Batches::new(self.config.batch, self.one_by_one);
        let (applied_tx, applied) = watch::channel(checkpoint);
        let applier = Applier {
            session,
            checkpoint,
            batches: applier_end,
            applied: applied_tx,
            progress: Arc::clone(&self.progress),
            written: Pieces::default(),
        };
        (applier, applied, batches)
    }

    fn catching_up(&self, mut pipeline: Pipeline, batches: Batches, place: Place) -> CatchUp<'_> {
        if let Some(time) = place.expected {
            pipeline.expect_checkpoint(time);
        }
        CatchUp {
            pipeline,
            batches,
            progress: &self.progress,
            checkpoint: place.checkpoint,
            pending: place.checkpoint,
            received: place.checkpoint,
            orders: self.orders.clone(),
        }
    }

    fn reader(
        &self,
        stream: Stream,
        mut pipeline: Pipeline,
        batches: Batches,
        place: Place,
        pause: Pause,
    ) -> Reader {
        if let Some(time) = place.expected {
            pipeline.expect_checkpoint(time);
        }
        let (timeout, now) = (place.wal_sender_timeout, clock::monotonic());
        let mut feedback = Feedback::new(place.checkpoint, timeout, now);
        feedback.begins_at(place.begins);
        let progress = Arc::clone(&self.progress);
        Reader::new(stream, pipeline, feedback, batches, progress, pause)
    }

    async fn catch_up<H: Write>(
        &self,
        mut catch_up: CatchUp<'_>,
        mut backlog: Backlog,
        mut target: Target<H>,
    ) -> Result<Ended> {
        let ended = tokio::select! {
            biased;
            ended = catch_up.run(&mut backlog) => ended,
            fault = target.failed() => return Err(fault),
        };
        let pending = catch_up.pending;
        let ended = match ended {
            Ok(ended) => ended,
            Err(stop) => {
                let taken = target.take_before_end(&mut catch_up.batches, pending).await;
                return after_last_batch(taken, stop.ended(&self.config.source, pending));
            }
        };
        target.take(&mut catch_up.batches, pending).await?;
        if let Ended::CaughtUp { anything: true } = ended {
            // What was before a description is wanted until the catalogs are read.
            let safe = catch_up.pipeline.safe(pending);
            // A courtesy: without it the next start skips what the history has.
            match backlog.advance(safe).await {
                Ok(()) => self.progress.confirmed(safe),
                Err(error) => tracing::debug!(%error, "the slot was not moved"),
            }
        }
        Ok(ended)
    }

    async fn stream<H: Write>(
        &self,
        mut reader: Reader,
        mut confirming: Confirming,
        mut watching: Watching,
        mut target: Target<H>,
    ) -> Result<Ended> {
        let ended = tokio::select! {
            biased;
            ended = reader.run(&mut confirming, &mut watching, self.orders.clone()) => ended,
            fault = target.failed() => return Err(fault),
        };
        let until: Option<Until> = watching.until.borrow().clone();
        let pending = reader.pending();
        match (ended, until) {
            (Ok(ended), until) => {
                target.take(reader.batches(), pending).await?;
                if let Some(sight) = &target.sight {
                    sight.note_whole().await?;
                }
                if until.is_none() {
                    reader.wait_for_look(&mut watching).await;
                }
                reader.finish(pending).await;
                let Some(until) = until.filter(|_| ended == Ended::Refused) else {
                    return Ok(ended);
                };
                if let Some(sight) = &target.sight {
                    sight.forget(until.dropped()).await?;
                }
                // Where nothing is missing, the next session sets up what is new.
                until.fault().map_or(Ok(Ended::Drained), Err)
            }
            (Err(stop), until) => {
                let taken = target.take_before_end(reader.batches(), pending).await;
                if taken.is_ok() {
                    reader.finish(pending).await;
                }
                match (
                    after_last_batch(taken, stop.ended(&self.config.source, pending)),
                    until,
                ) {
                    // What breaks the stream is what was found.
                    (Err(fault), Some(until)) if !fault.may_pass() => Err(match until.fault() {
                        Some(found) => found.caused_by(fault),
                        None => fault,
                    }),
                    (ended, _) => ended,
                }
            }
        }
    }
}

/// The tasks at the target's side, which end with this.
struct Target<H> {
    tasks: JoinSet<Result<Infallible>>,
    /// The end of the last committed transaction.
    applied: watch::Receiver<Lsn>,
    history: H,
    /// How the source is seen, once it is watched.
    sight: Option<Sight>,
}

impl<H: Write> Target<H> {
    /// Starts the tasks, `applying` among them, and returns what the reader hears from them.
    fn start(
        applying: impl Future<Output = Result<Infallible>> + Send + 'static,
        applied: watch::Receiver<Lsn>,
        history: H,
        reported: Lsn,
        pulse: Pulse,
    ) -> (Self, Confirming) {
        let (durable_tx, durable) = watch::channel(Lsn::ZERO);
        let (reported_tx, reported_rx) = watch::channel(Lsn::ZERO);
        let (reports, report_rx) = mpsc::channel(1);
        let watch = Watch {
            history: history.clone(),
            applied: applied.clone(),
            durable: durable_tx,
            known: reported,
            reports: report_rx,
            reported: reported_tx,
            pulse,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(applying);
        tasks.spawn(watch.run());
        let target = Self {
            tasks,
            applied,
            history,
            sight: None,
        };
        let confirming = Confirming {
            durable,
            reported: reported_rx,
            reports,
        };
        (target, confirming)
    }

    /// Starts the watch of the source, and returns what the reader hears from it.
    fn watch_source(&mut self, seen: Seen, mut sight: Sight) -> Watching {
        let (hints, hinted) = mpsc::channel(1);
        let found = seen.until.is_some();
        let (until_tx, until) = watch::channel(seen.until);
        let (whole_tx, whole) = watch::channel(seen.record.whole);
        if !found {
            sight.whole = Some(whole.clone());
            let source = Arc::new(seen.source);
            let watch = SourceWatch {
                config: seen.config,
                source: Arc::clone(&source),
                target: Arc::clone(&sight.client),
                record: seen.record,
                hints: hinted,
                until: until_tx,
                whole: whole_tx,
                expanded: tokio::time::Instant::now(),
                may_be_promoted: true,
            };
            self.tasks.spawn(ending::while_open(source, watch.run()));
        }
        self.sight = Some(sight);
        Watching {
            hints,
            whole,
            until,
        }
    }

    /// Waits until one of the tasks fails. Cancel-safe.
    async fn failed(&mut self) -> Fault {
        match self.tasks.join_next().await {
            Some(Ok(Err(fault))) => fault,
            Some(Ok(Ok(never))) => match never {},
            Some(Err(error)) => answers::of_task("the target's writer", error),
            None => Fault::bug("the target's writer was not started"),
        }
    }

    /// Has what is complete in `batches`, which ends at `pending`, committed and made durable.
    async fn take(&mut self, batches: &mut Batches, pending: Lsn) -> Result<()> {
        tokio::select! {
            biased;
            fault = self.failed() => return Err(fault),
            () = batches.hand_over_complete() => {}
        }
        self.flush(pending).await
    }

    /// As [`Target::take`], when something ends the session. A target that does not take it in time is a fault, too.
    async fn take_before_end(&mut self, batches: &mut Batches, pending: Lsn) -> Result<()> {
        let taken = tokio::time::timeout(LAST_BATCH_MAX, self.take(batches, pending)).await;
        let in_vain = "the target did not take the last changes before a fault of the source";
        taken.unwrap_or_else(|_| Err(Fault::retry(in_vain)))
    }

    /// Waits until everything up to `pending`, which was handed over, is committed, and makes it durable.
    async fn flush(&mut self, pending: Lsn) -> Result<()> {
        let mut applied = self.applied.clone();
        tokio::select! {
            // First: a writer that fails also closes `applied`, which knows no reason.
            biased;
            fault = self.failed() => return Err(fault),
            reached = applied.wait_for(|applied| *applied >= pending) => {
                reached.map_err(|_| Fault::retry("the target's writer ended"))?;
            }
        }
        self.history.make_durable(None).await
    }
}

/// What the target keeps of how the source was seen.
struct Sight {
    client: Arc<Client>,
    slot: String,
    /// The position at which the source was last seen whole, while it is watched.
    whole: Option<watch::Receiver<Whole>>,
}

impl Sight {
    fn new(barrier: &Barrier, seen: &Seen) -> Self {
        Self {
            client: barrier.client(),
            slot: seen.config.source.slot.clone(),
            whole: None,
        }
    }

    /// Notes how far the source was seen whole.
    async fn note_whole(&self) -> Result<()> {
        let Some(whole) = &self.whole else {
            return Ok(());
        };
        let whole = *whole.borrow();
        source_watch::note(&self.client, &self.slot, whole).await
    }

    /// Forgets tables that were dropped: everything of them is in their histories. Another one of that name begins anew.
    async fn forget(&self, dropped: &[TableName]) -> Result<()> {
        let histories: Vec<String> = dropped.iter().map(ToString::to_string).collect();
        state::take_out(&self.client, &self.slot, &histories).await?;
        followed::forget(&self.client, &self.slot, dropped)
            .await
            .map_err(Side::Target.failed("could not keep what is followed"))
    }
}

/// It cannot become a definite one.
fn is_sure_to_be_tried(fault: &Fault) -> bool {
    matches!(
        fault.disposition(),
        Disposition::Retry | Disposition::Reconnect
    )
}

/// What ends the session. A definite fault stands only once everything before it is in the history, since the gap that it
/// names begins there.
fn after_last_batch(taken: Result<()>, ended: Result<Ended>) -> Result<Ended> {
    match (taken, ended) {
        (Err(fault), Err(stop)) if !is_sure_to_be_tried(&stop) => {
            tracing::warn!(error = %stop, "the source failed; the changes before are not in the history yet");
            Err(fault)
        }
        (_, ended) => ended,
    }
}

async fn drained(orders: &mut watch::Receiver<Order>) {
    let is_drain = |order: &Order| *order == Order::Drain;
    if orders.wait_for(is_drain).await.is_err() {
        // There is no daemon that could order anything.
        std::future::pending::<()>().await;
    }
}

fn warn_unrecorded(table: &TableName, columns: &[String]) {
    tracing::warn!(
        table = %table,
        columns = columns.join(", "),
        "these columns of the source have no column in the history and are not recorded"
    );
}

fn warn_left_out(pipeline: &Pipeline) {
    let transaction = pipeline.commit_lsn().unwrap_or_default();
    tracing::warn!(
        %transaction,
        "leaving out the transaction that commits here, as --skip-transaction asks; each history that it changes gets a GAP row"
    );
}

fn warn_lacking(lacking: &Lacking) {
    tracing::warn!(
        table = %lacking.table,
        partition = %lacking.partition,
        identity = lacking.identity,
        missing = lacking.missing,
        remedy = lacking.remedy,
        "a partition logs less of an old row than its table; what is missing is NULL and named in unavailable_columns"
    );
}

/// When a message was last left out with a line of the log: an application may send a thousand of them a second.
static NO_CONTEXT: Mutex<Option<Reminder>> = Mutex::new(None);

fn warn_no_context(pipeline: &Pipeline, why: Refused) {
    let mut reminder = NO_CONTEXT.lock().unwrap_or_else(PoisonError::into_inner);
    if reminder.get_or_insert_default().is_due() {
        let transaction = pipeline.commit_lsn().unwrap_or_default();
        tracing::warn!(
            %transaction,
            reason = %why,
            "a message waltrail.context is left out; the changes after it keep the context that they had"
        );
    }
}
