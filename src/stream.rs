//! One run of the stream: from the checkpoint until something ends it.
//!
//! ```text
//!   reader (here)                     applier                durability
//!   frames -> Pipeline -> Batch ----> COPY, advance, COMMIT -> flushed?
//!      ^          empty batch <------    |  applied              |
//!      |                                 +---------------------> |
//!      +--- status updates <---- Feedback <------- durable ------+
//! ```
//!
//! The three run concurrently on one thread: a batch changes hands without waking another core. `select!` only
//! names what happened; what follows is decided in [`Feedback`] and [`Pipeline`]. Whatever fails ends the whole
//! session; the next one reads the checkpoint again, so there is no state to repair.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use crate::clock;
use crate::config::Config;
use crate::lsn::Lsn;
use crate::pipeline::{Outcome, Pipeline, PipelineError};
use crate::report::{Exit, Fault, Result};
use crate::source::feedback::Feedback;
use crate::source::frame::Frame;
use crate::source::pace::Pace;
use crate::source::replication::{Stream, StreamError};
use crate::sql;
use crate::start::{self, Started};
use crate::target::batch::Batch;
use crate::target::session::SessionError;
use crate::target::{applier, durability};
use crate::telemetry::progress::Progress;
use crate::wire;

/// What the daemon asks of a running session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Go on.
    Run,
    /// Finish what can be finished and end.
    Drain,
}

/// How a session ended without a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As ordered: everything complete that was received is in the history, durable and confirmed.
    Drained,
    /// The schema changed so that the stream has to be asked for as text.
    NeedsText,
    /// The schema changed: both catalogs have to be read again.
    NeedsCatalogs,
}

/// What a session is given.
pub struct Session<'a> {
    /// The settings.
    pub config: &'a Config,
    /// What the daemon asks.
    pub orders: watch::Receiver<Order>,
    /// Ask for text although the catalogs allow binary.
    pub text: bool,
    /// Shared counters.
    pub progress: Arc<Progress>,
    /// Told when the stream runs.
    pub on_streaming: &'a (dyn Fn() + Sync),
}

impl Session<'_> {
    /// Runs until ordered to end or until something fails.
    ///
    /// # Errors
    /// Transient faults: run it again. Definite ones: stop.
    pub async fn run(mut self) -> Result<Ended> {
        let mut orders = self.orders.clone();
        let started = tokio::select! {
            started = start::start(self.config, self.text) => started?,
            () = drained(&mut orders) => return Ok(Ended::Drained),
        };
        (self.on_streaming)();
        self.follow(started).await
    }

    async fn follow(&mut self, started: Started) -> Result<Ended> {
        let Started {
            stream,
            target,
            monitor,
            captured,
            catalogs_at,
            checkpoint,
            reported,
            binary,
            wal_sender_timeout,
        } = started;
        let (to_applier, batches) = mpsc::channel(1);
        let (emptied, from_applier) = mpsc::channel(2);
        let (applied_tx, mut applied) = watch::channel(checkpoint);
        let (durable_tx, durable) = watch::channel(checkpoint);
        let (reports, report_rx) = mpsc::channel(1);
        let (reported_tx, reported_rx) = watch::channel(reported);
        let slot = self.config.source.slot.as_str();
        let progress = &*self.progress;
        let limits = self.config.batch;
        let mut reader = Reader {
            stream,
            pipeline: Pipeline::new(captured, catalogs_at, checkpoint, binary),
            feedback: Feedback::new(checkpoint, reported, wal_sender_timeout, Instant::now()),
            filling: Batch::new(2 * limits.max_bytes),
            spare: Some(Batch::new(2 * limits.max_bytes)),
            max_rows: limits.max_rows,
            max_bytes: limits.max_bytes,
            to_applier,
            progress,
            pace: Pace::default(),
            sent_at: 0,
            commit_time: 0,
        };
        let mut links = Links {
            from_applier,
            durable,
            reported: reported_rx,
            reports,
            orders: self.orders.clone(),
        };
        let applying = pin!(applier::apply(
            target, checkpoint, batches, emptied, applied_tx, progress
        ));
        let watching = pin!(durability::watch(
            &monitor,
            slot,
            applied.clone(),
            durable_tx,
            report_rx,
            reported_tx
        ));
        let mut writing = pin!(async {
            tokio::select! {
                ended = applying => Err(ended.map_or_else(target_fault, |()| Fault::retry("the target's writer ended"))),
                ended = watching => Err(ended.map_or_else(
                    |error| sql::fault("target", "could not tell how far it is flushed", error),
                    |()| Fault::retry("the target's writer ended"),
                )),
            }
        });
        let ended = tokio::select! {
            ended = reader.run(&mut links) => ended?,
            fault = &mut writing => return fault,
        };
        if ended == Ended::Drained {
            // Everything complete has been handed over: wait until it is committed, make it durable, confirm.
            // `links` still lives: an applier that could not give a batch back would leave the next one.
            let pending = reader.feedback.pending();
            tokio::select! {
                reached = applied.wait_for(|applied| *applied >= pending) => {
                    reached.map_err(|_| Fault::retry("the target's writer ended"))?;
                }
                fault = &mut writing => return fault,
            }
            let flushed = durability::flush(&monitor, slot).await;
            flushed
                .map_err(|error| sql::fault("target", "could not flush the last rows", error))?;
            reader.finish(pending).await;
        }
        Ok(ended)
    }
}

/// Waits for the order to end.
async fn drained(orders: &mut watch::Receiver<Order>) {
    if orders
        .wait_for(|order| *order == Order::Drain)
        .await
        .is_err()
    {
        // Nobody can order anything any more.
        std::future::pending::<()>().await;
    }
}

/// What the reader hears from the other tasks and tells them.
struct Links {
    from_applier: mpsc::Receiver<Batch>,
    durable: watch::Receiver<Lsn>,
    reported: watch::Receiver<Lsn>,
    reports: mpsc::Sender<Lsn>,
    orders: watch::Receiver<Order>,
}

/// Task 1: reads frames, fills batches, answers the source.
struct Reader<'a> {
    stream: Stream,
    pipeline: Pipeline,
    feedback: Feedback,
    filling: Batch,
    /// The other batch, while the target is free.
    spare: Option<Batch>,
    max_rows: usize,
    max_bytes: usize,
    to_applier: mpsc::Sender<Batch>,
    progress: &'a Progress,
    pace: Pace,
    /// The source's clock when it sent the last frame and when that frame's transaction committed.
    sent_at: i64,
    commit_time: i64,
}

/// What woke the reader.
enum Event {
    /// Bytes came in or went out.
    Moved(usize),
    Emptied(Batch),
    Durable(Lsn),
    Reported(Lsn),
    Time,
    Drain,
}

impl Reader<'_> {
    /// Reads until ordered to end. All waits are cancel-safe and a wait that is cancelled loses nothing.
    async fn run(&mut self, links: &mut Links) -> Result<Ended> {
        loop {
            let blocked = match self.take_buffered() {
                Ok(blocked) => blocked,
                Err(Stop::NeedsText(why)) => {
                    tracing::info!(reason = %why, "the stream is asked for again as text");
                    return Ok(Ended::NeedsText);
                }
                Err(Stop::NeedsCatalogs(why)) => {
                    tracing::info!(reason = %why, "the tables are looked at again");
                    return Ok(Ended::NeedsCatalogs);
                }
                Err(Stop::Fault(fault)) => return Err(fault),
            };
            let now = Instant::now();
            let lag_us = self.sent_at - self.commit_time;
            let mut gather = None;
            if !blocked && self.filling.seal().is_some() && self.spare.is_some() {
                gather = self.pace.gathers(lag_us, self.filling.bytes(), now);
                if gather.is_none() {
                    self.hand_over();
                }
            }
            if let Some(lsn) = self.feedback.report_due(now) {
                // A full channel means that the last report is still being written.
                let _ = links.reports.try_send(lsn);
            }
            if !self.stream.has_unsent()
                && let Some(status) = self.feedback.status_due(now)
            {
                self.stream.queue_status(status, clock::now());
                self.progress
                    .positions(self.feedback.received(), self.feedback.confirmed());
            }
            if blocked {
                self.pace.disturbed();
            } else if let Some(pause) = self.pace.before_read(lag_us, now) {
                // The runtime's timers are too coarse for this, and what else this thread has to do can wait as
                // long: the target's socket holds more than it takes in this time.
                std::thread::sleep(pause);
            }
            let until_due = self.feedback.until_due(now).max(Duration::from_millis(1));
            let until_due = gather.map_or(until_due, |left| left.min(until_due));
            let event = tokio::select! {
                _ = drained(&mut links.orders) => Event::Drain,
                Some(batch) = links.from_applier.recv() => Event::Emptied(batch),
                Ok(()) = links.durable.changed() => Event::Durable(*links.durable.borrow_and_update()),
                Ok(()) = links.reported.changed() => Event::Reported(*links.reported.borrow_and_update()),
                moved = self.stream.advance(!blocked) => {
                    Event::Moved(moved.map_err(stream_fault)?)
                }
                () = tokio::time::sleep(until_due) => Event::Time,
            };
            match event {
                Event::Moved(bytes) => self.pace.after_read(bytes, Instant::now()),
                Event::Time => {}
                Event::Emptied(batch) => self.spare = Some(batch),
                Event::Durable(lsn) => self.feedback.on_durable(lsn),
                Event::Reported(lsn) => self.feedback.on_reported(lsn),
                Event::Drain => {
                    return self.drain(links).await;
                }
            }
        }
    }

    /// Takes every frame that is here; true when both batches are in use and the stream has to wait.
    fn take_buffered(&mut self) -> std::result::Result<bool, Stop> {
        let now = Instant::now();
        loop {
            let full =
                self.filling.count() >= self.max_rows || self.filling.bytes() >= self.max_bytes;
            if full && !self.hand_over() {
                return Ok(true);
            }
            let Some(frame) = self.stream.next_buffered()? else {
                return Ok(false);
            };
            match frame {
                Frame::XLogData { payload, sent_at } => {
                    self.sent_at = sent_at;
                    match self.pipeline.accept(payload, &mut self.filling)? {
                        Outcome::Quiet => {}
                        Outcome::Begun { commit_time } => {
                            self.feedback.on_begin();
                            self.commit_time = commit_time;
                            self.progress.begun(commit_time);
                        }
                        Outcome::Committed { end_lsn, recorded } => {
                            self.feedback.on_commit(end_lsn, recorded > 0);
                            if recorded > 0 {
                                self.progress.pending(end_lsn);
                            }
                        }
                        Outcome::Unrecorded { table, columns } => tracing::warn!(
                            table = %table,
                            columns = columns.join(", "),
                            "these columns of the source have no column in the history and are not recorded"
                        ),
                    }
                }
                Frame::Keepalive {
                    processed,
                    reply_wanted,
                } => {
                    self.feedback.on_keepalive(processed, reply_wanted, now);
                }
            }
        }
    }

    /// Gives the target what is complete, or a piece of a transaction that is larger than a batch; false when
    /// the target is busy.
    fn hand_over(&mut self) -> bool {
        let Some(mut next) = self.spare.take() else {
            return false;
        };
        if self.filling.seal().is_some() {
            self.filling.take_rest(&mut next);
        }
        let full = std::mem::replace(&mut self.filling, next);
        // There is room: the applier gave back the batch before this one.
        self.to_applier.try_send(full).is_ok()
    }

    /// Hands over what is complete, as soon as the target is free; changes of an unfinished transaction stay
    /// behind and come again.
    async fn drain(&mut self, links: &mut Links) -> Result<Ended> {
        while self.filling.seal().is_some() && !self.hand_over() {
            tokio::select! {
                Some(batch) = links.from_applier.recv() => self.spare = Some(batch),
                () = tokio::time::sleep(self.feedback.until_due(Instant::now())) => {
                    if let Some(status) = self.feedback.status_due(Instant::now()) {
                        self.stream.queue_status(status, clock::now());
                    }
                    self.stream.send().await.map_err(stream_fault)?;
                }
            }
        }
        Ok(Ended::Drained)
    }

    /// Confirms everything up to `pending`, which is durable, and ends the stream.
    async fn finish(mut self, pending: Lsn) {
        self.feedback.on_durable(pending);
        let status = self.feedback.final_status(Instant::now());
        self.stream.queue_status(status, clock::now());
        self.progress
            .positions(self.feedback.received(), self.feedback.confirmed());
        // The confirmation is a courtesy: without it the next start skips what the history has.
        if let Err(error) = self.stream.finish().await {
            tracing::debug!(%error, "the stream did not end cleanly");
        }
    }
}

/// Why no further frame can be taken.
enum Stop {
    /// The same stream can be read as text.
    NeedsText(PipelineError),
    /// The same stream can be read with the catalogs as they are now.
    NeedsCatalogs(PipelineError),
    Fault(Fault),
}

impl From<StreamError> for Stop {
    fn from(error: StreamError) -> Self {
        Self::Fault(match error {
            StreamError::Wire(error) => stream_fault(error),
            StreamError::Ended => Fault::retry("the source ended the stream: it is shutting down"),
            StreamError::Frame(error) => {
                Fault::halt(Exit::HistoryWouldBeWrong, "the stream cannot be read").caused_by(error)
            }
        })
    }
}

impl From<PipelineError> for Stop {
    fn from(error: PipelineError) -> Self {
        if error.needs_text() {
            return Self::NeedsText(error);
        }
        if error.needs_catalogs() {
            return Self::NeedsCatalogs(error);
        }
        let remedy = match &error {
            PipelineError::Renamed { is, .. } => {
                format!("name {is} in [[table]] source, with the same history, and start again")
            }
            PipelineError::Plan(_) => {
                "change the history table so that it fits, and start again".to_owned()
            }
            _ => "the slot keeps what follows; report this with the versions of both servers"
                .to_owned(),
        };
        Self::Fault(Fault::halt(Exit::HistoryWouldBeWrong, error.to_string()).remedy(remedy))
    }
}

fn stream_fault(error: wire::Error) -> Fault {
    let disposition = error.disposition();
    let fault = Fault::new(disposition, "the stream from the source broke");
    match error.server().map(|report| report.code.as_str()) {
        Some("42704") => fault.remedy(
            "the publication did not exist yet at this point of the WAL: create the publication before the slot",
        ),
        Some("58P01") => fault.remedy("WAL that the slot needs was removed on the source"),
        _ => fault,
    }
    .caused_by(error)
}

fn target_fault(error: SessionError) -> Fault {
    match error {
        SessionError::Wire(error) => {
            let fault = Fault::new(error.disposition(), "the target did not take the history");
            match error.server().map(|report| report.code.as_str()) {
                Some("53100") => fault.remedy("free disk space on the target; nothing is lost meanwhile"),
                Some("42501") => fault.remedy("GRANT INSERT on the history table, USAGE on its sequences"),
                Some("WTR01") => fault.remedy("find out who wrote waltrail.checkpoint; only waltrail may"),
                Some(code) if code.starts_with("22") || code.starts_with("23") => fault.remedy(
                    "change the history table so that it takes every value of the source, and start again",
                ),
                Some(code) if ["P0", "42", "44", "09", "27"].iter().any(|class| code.starts_with(class)) => fault.remedy(
                    "see the target's own log for its words, correct the history table or the trigger on it, and start \
                     again",
                ),
                _ => fault,
            }
            .caused_by(error)
        }
        error => Fault::halt(Exit::HistoryWouldBeWrong, error.to_string())
            .remedy("connect to the target itself, without a pooler"),
    }
}
