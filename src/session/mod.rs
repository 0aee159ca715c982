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
mod opening;
mod pause;
mod reader;
mod source_watch;
mod standbys;
mod start;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::config::{Config, Source};
use crate::fault::{Disposition, Exit, Fault, Gap, Result};
use crate::history::followed;
use crate::lsn::Lsn;
use crate::pipeline::{Altered, Pipeline, PipelineError};
use crate::schema::TableName;
use crate::schema::partitions::Lacking;
use crate::schema::plan::PlanError;
use crate::server::{Side, answers};
use crate::snapshot::{TableSyncs, state};
use crate::source::backlog::Backlog;
use crate::source::feedback::Feedback;
use crate::source::stream::StreamError;
use crate::telemetry::progress::Progress;
use crate::transaction::OrderError;
use crate::wire;

use applier::Applier;
use batches::Batches;
use catch_up::CatchUp;
use durability::{Barrier, Watch};
use opening::Way;
use reader::{Confirming, Reader, Watching};
use source_watch::{SourceWatch, Until};
use start::{Seen, StartOptions, Started};

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
    /// Shapes that the histories are to be prepared for.
    pub altered: &'a [Altered],
    pub progress: Arc<Progress>,
    pub syncs: &'a TableSyncs,
    pub on_streaming: &'a (dyn Fn() + Sync),
}

impl Session<'_> {
    /// Runs until ordered to end or until something fails.
    pub(crate) async fn run(self) -> Result<Ended> {
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
        let ended = self.follow(started).await;
        self.syncs.send_requests_to(None);
        ended
    }

    async fn follow(&self, started: Started) -> Result<Ended> {
        let checkpoint = started.checkpoint;
        let (batches, applier_end) = Batches::new(self.config.batch);
        self.progress.starts_at(checkpoint);
        if started.seen.until.is_none() {
            let config = &started.seen.config;
            self.syncs.begin(config, &started.tables, started.point);
        }
        let (sender, requests) = mpsc::channel(16);
        self.syncs.send_requests_to(Some(sender));
        let (applied_tx, applied) = watch::channel(checkpoint);
        let barrier = started.barrier;
        let monitor = barrier.client();
        let applier = Applier {
            session: started.target,
            checkpoint,
            batches: applier_end,
            applied: applied_tx,
            requests,
            progress: Arc::clone(&self.progress),
        };
        let (mut target, confirming) = Target::start(applier, applied, barrier, started.reported);
        let mut pipeline = Pipeline::new(
            started.captured,
            started.catalogs_at,
            checkpoint,
            started.binary,
        );
        if let Some(time) = started.expected {
            pipeline.expect_checkpoint(time);
        }
        match started.way {
            Way::CatchUp(backlog) => {
                let catch_up = CatchUp {
                    pipeline,
                    batches,
                    progress: &self.progress,
                    checkpoint,
                    pending: checkpoint,
                    orders: self.orders.clone(),
                };
                self.catch_up(catch_up, backlog, target).await
            }
            Way::Stream(stream) => {
                let timeout = started.wal_sender_timeout;
                let mut feedback = Feedback::new(checkpoint, timeout, Instant::now());
                feedback.begins_at(started.begins);
                let progress = Arc::clone(&self.progress);
                let reader = Reader::new(stream, pipeline, feedback, batches, progress)?;
                let watching = target.watch_source(started.seen, monitor);
                self.stream(reader, confirming, watching, target).await
            }
        }
    }

    async fn catch_up(
        &self,
        mut catch_up: CatchUp<'_>,
        mut backlog: Backlog,
        mut target: Target,
    ) -> Result<Ended> {
        let ended = tokio::select! {
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
            // A courtesy: without it the next start skips what the history has.
            match backlog.advance(pending).await {
                Ok(()) => self.progress.confirmed(pending),
                Err(error) => tracing::debug!(%error, "the slot was not moved"),
            }
        }
        Ok(ended)
    }

    async fn stream(
        &self,
        mut reader: Reader,
        mut confirming: Confirming,
        mut watching: Watching,
        mut target: Target,
    ) -> Result<Ended> {
        let ended = tokio::select! {
            ended = reader.run(&mut confirming, &mut watching, self.orders.clone()) => ended,
            fault = target.failed() => return Err(fault),
        };
        let until: Option<Until> = watching.until.borrow().clone();
        let pending = reader.pending();
        match (ended, until) {
            (Ok(ended), until) => {
                target.take(reader.batches(), pending).await?;
                target.note_whole().await?;
                reader.finish(pending).await;
                let Some(until) = until.filter(|_| ended == Ended::Refused) else {
                    return Ok(ended);
                };
                let slot = &self.config.source.slot;
                target.forget(slot, until.dropped()).await?;
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
struct Target {
    tasks: JoinSet<Result<Infallible>>,
    /// The end of the last committed transaction.
    applied: watch::Receiver<Lsn>,
    barrier: Barrier,
    /// The slot, and the position at which the source was last seen whole, once it is watched.
    whole: Option<(String, watch::Receiver<Lsn>)>,
}

impl Target {
    /// Starts the tasks, and returns what the reader hears from them.
    fn start(
        applier: Applier,
        applied: watch::Receiver<Lsn>,
        barrier: Barrier,
        reported: Lsn,
    ) -> (Self, Confirming) {
        let (durable_tx, durable) = watch::channel(Lsn::ZERO);
        let (reported_tx, reported_rx) = watch::channel(Lsn::ZERO);
        let (reports, report_rx) = mpsc::channel(1);
        let watch = Watch {
            barrier: barrier.clone(),
            applied: applied.clone(),
            durable: durable_tx,
            known: reported,
            reports: report_rx,
            reported: reported_tx,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(applier.run());
        tasks.spawn(watch.run());
        let target = Self {
            tasks,
            applied,
            barrier,
            whole: None,
        };
        let confirming = Confirming {
            durable,
            reported: reported_rx,
            reports,
        };
        (target, confirming)
    }

    /// Starts the watch of the source, and returns what the reader hears from it.
    fn watch_source(&mut self, seen: Seen, monitor: Arc<Client>) -> Watching {
        let (hints, hinted) = mpsc::channel(1);
        let found = seen.until.is_some();
        let (until_tx, until) = watch::channel(seen.until);
        let (whole_tx, whole) = watch::channel(seen.record.whole);
        if !found {
            self.whole = Some((seen.config.source.slot.clone(), whole));
            let watch = SourceWatch {
                config: seen.config,
                source: seen.source,
                target: monitor,
                record: seen.record,
                hints: hinted,
                until: until_tx,
                whole: whole_tx,
                expanded: tokio::time::Instant::now(),
                may_be_promoted: true,
            };
            self.tasks.spawn(watch.run());
        }
        Watching { hints, until }
    }

    /// Notes how far the source was seen whole.
    async fn note_whole(&self) -> Result<()> {
        match &self.whole {
            Some((slot, whole)) => {
                let lsn = *whole.borrow();
                source_watch::note(&self.barrier.client(), slot, lsn).await
            }
            None => Ok(()),
        }
    }

    /// Forgets tables that were dropped: everything of them is in their histories. Another one of that name begins anew.
    async fn forget(&self, slot: &str, dropped: &[TableName]) -> Result<()> {
        let client = self.barrier.client();
        let histories: Vec<String> = dropped.iter().map(ToString::to_string).collect();
        state::take_out(&client, slot, &histories).await?;
        followed::forget(&client, slot, dropped)
            .await
            .map_err(Side::Target.failed("could not keep what is followed"))
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
        self.barrier.pass().await
    }
}

/// What ends the session. A definite fault stands only once everything before it is in the history, since the gap that it
/// names begins there.
fn after_last_batch(taken: Result<()>, ended: Result<Ended>) -> Result<Ended> {
    match (taken, ended) {
        (Err(fault), Err(stop)) if stop.disposition() != Disposition::Retry => {
            tracing::warn!(error = %stop, "the source failed; the changes before are not in the history yet");
            Err(fault)
        }
        (_, ended) => ended,
    }
}

async fn drained(orders: &mut watch::Receiver<Order>) {
    let order = orders.wait_for(|order| *order == Order::Drain).await;
    if order.is_err() {
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

/// Why no further message can be taken.
enum Stop {
    /// The same changes can be read as text.
    NeedsText(PipelineError),
    /// The same changes can be read once the history is prepared for them.
    Altered(Box<Altered>),
    /// The connection to the source failed, or the source reported an error.
    Source(wire::Error),
    Fault(Fault),
}

impl Stop {
    /// `history_end`: everything up to there was handed to the target.
    fn ended(self, source: &Source, history_end: Lsn) -> Result<Ended> {
        match self {
            Self::NeedsText(why) => {
                tracing::info!(reason = %why, "asking for the changes again as text");
                Ok(Ended::NeedsText)
            }
            Self::Altered(altered) => {
                let table = &altered.table;
                if let Some((was, now)) = &altered.renamed {
                    tracing::warn!(%table, was, now, "a column was renamed: the history goes on under its new name");
                }
                tracing::info!(%table, "its columns have changed: reading the catalogs again");
                Ok(Ended::Altered(altered))
            }
            Self::Source(error) => Err(stream_fault(error, &source.publication, history_end)),
            Self::Fault(fault) => Err(fault),
        }
    }
}

impl From<wire::Error> for Stop {
    fn from(error: wire::Error) -> Self {
        Self::Source(error)
    }
}

impl From<StreamError> for Stop {
    fn from(error: StreamError) -> Self {
        Self::Fault(match error {
            StreamError::Wire(error) => return Self::Source(error),
            StreamError::Ended => Fault::retry("the source ended the stream: it is shutting down"),
            StreamError::Frame(error) => {
                Fault::halt(Exit::HistoryWouldBeWrong, "the stream cannot be read")
                    .caused_by(error)
                    .see("the-stream-cannot-be-read")
            }
        })
    }
}

impl From<PipelineError> for Stop {
    fn from(error: PipelineError) -> Self {
        if error.needs_text() {
            return Self::NeedsText(error);
        }
        let error = match error {
            PipelineError::Altered(altered) => return Self::Altered(altered),
            error => error,
        };
        let (anchor, remedy) = match &error {
            PipelineError::Order(OrderError::Unrecognized(_)) => (
                "the-source-was-restored-from-an-older-state",
                "correct source.dsn; or remove the history rows that the source does not have, then: waltrail accept-gap --source-replaced"
                    .to_owned(),
            ),
            PipelineError::Plan(error @ PlanError::Inexact(_)) => {
                ("a-history-column-changes-values", error.remedy())
            }
            PipelineError::Plan(_) => (
                "nothing-in-common",
                "change the history table so that it fits, and start again".to_owned(),
            ),
            _ => (
                "the-stream-cannot-be-read",
                "the slot keeps what follows; report this with the versions of both servers"
                    .to_owned(),
            ),
        };
        let fault = Fault::halt(Exit::HistoryWouldBeWrong, error.to_string());
        Self::Fault(fault.remedy(remedy).see(anchor))
    }
}

/// What follows from an error of the stream or the backlog, when the history ends at `history_end`.
fn stream_fault(error: wire::Error, publication: &str, history_end: Lsn) -> Fault {
    let disposition = error.disposition();
    let broke = Fault::new(disposition, "the stream from the source broke");
    let Some(report) = error.server() else {
        return match error {
            wire::Error::Protocol(_) => broke.see("the-stream-cannot-be-read"),
            _ => broke,
        }
        .caused_by(error);
    };
    let gap = Gap {
        from: history_end,
        to: None,
        histories: Vec::new(),
    };
    let fault = match (report.code.as_str(), disposition) {
        ("42704", _) => {
            let at = report
                .lsn
                .map_or_else(|| format!("after {history_end}"), |lsn| format!("at {lsn}"));
            let what = format!(
                "publication \"{publication}\" did not exist {at}: changes from there are not published, and the history \
                 ends at {history_end}"
            );
            Fault::halt(Exit::HistoryWouldBeWrong, what)
                .remedy("to let the history go on with this gap, run: waltrail accept-gap")
                .see("the-publication-was-missing")
        }
        ("58P01", _) => broke
            .after(history_end)
            .remedy("WAL that the slot needs was removed on the source; to let the history go on with this gap, run: waltrail accept-gap")
            .see("wal-was-removed"),
        (_, Disposition::RetryFew | Disposition::Halt(Exit::HistoryWouldBeWrong)) => {
            Fault::new(disposition, "the source could not send a change")
                .after(history_end)
                .remedy("see the source's log; to let the history go on with this gap, run: waltrail accept-gap")
                .see("a-change-cannot-be-sent")
        }
        _ => return broke.caused_by(error),
    };
    fault.missing(gap).caused_by(error)
}
