//! Task 1 of a session: reads frames, fills batches, answers the source.
//!
//! Two batches go around: one is filled here while the other is written. What has happened is named by
//! `select!`; when to send a status is [`Feedback`]'s to say, what a message means [`Pipeline`]'s, and when to
//! read again [`Pace`]'s. Nothing here waits for the target except a stream that has no room left, and that
//! goes on answering the source (invariant I5).

use std::pin::pin;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::clock;
use crate::config::Batch as Limits;
use crate::handover::Place;
use crate::lsn::Lsn;
use crate::pipeline::{Outcome, Pipeline, PipelineError};
use crate::report::{Exit, Fault, Result};
use crate::source::aside::Aside;
use crate::source::feedback::Feedback;
use crate::source::frame::Frame;
use crate::source::pace::{GATHER_BYTES, Pace};
use crate::source::replication::{Stream, StreamError};
use crate::target::batch::Batch;
use crate::telemetry::progress::Progress;
use crate::wire;

/// A target that has taken nothing for so long is not waited for with a backlog half read.
const BLOCKED_MAX: Duration = Duration::from_secs(10);
/// How often is looked for that.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

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
    /// A backlog was read to its end, all of it is in the history, and the slot was moved there.
    BacklogRead {
        /// There was something of ours in it.
        anything: bool,
    },
}

/// Waits for the order to end.
pub(crate) async fn drained(orders: &mut watch::Receiver<Order>) {
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
pub struct Links<'a> {
    /// Batches that were written and are empty again.
    pub from_applier: &'a Place<Batch>,
    /// The end of the last transaction that is durable in the target.
    pub durable: &'a Place<Lsn>,
    /// The last position written as `reported_lsn`.
    pub reported: &'a Place<Lsn>,
    /// Positions to be written as `reported_lsn`.
    pub reports: mpsc::Sender<Lsn>,
    /// What the daemon asks.
    pub orders: watch::Receiver<Order>,
}

/// What a reader is given.
pub struct Given<'a> {
    /// The running stream.
    pub stream: Stream,
    /// What turns its messages into rows.
    pub pipeline: Pipeline,
    /// What may be confirmed.
    pub feedback: Feedback,
    /// How large a batch may grow.
    pub limits: Limits,
    /// Where full batches go.
    pub to_applier: &'a Place<Batch>,
    /// Shared counters.
    pub progress: &'a Progress,
}

/// See the module.
pub struct Reader<'a> {
    stream: Stream,
    pipeline: Pipeline,
    feedback: Feedback,
    filling: Batch,
    /// The other batch, while the target is free.
    spare: Option<Batch>,
    limits: Limits,
    to_applier: &'a Place<Batch>,
    progress: &'a Progress,
    pace: Pace,
    aside: Aside,
    /// The source's clock when it sent the last frame and when that frame's transaction committed.
    sent_at: i64,
    commit_time: i64,
    /// Where the history ended when this began.
    began_at: Lsn,
    /// Since when there is no room for what a backlog gives, and whether it was given up.
    blocked_since: Option<Instant>,
    abandoned: bool,
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

impl<'a> Reader<'a> {
    /// A reader at the start of its stream, the target being free.
    #[must_use]
    pub fn new(given: Given<'a>) -> Self {
        let batch = || Batch::new(2 * given.limits.max_bytes);
        let began_at = given.feedback.pending();
        Self {
            filling: batch(),
            spare: Some(batch()),
            pipeline: given.pipeline,
            feedback: given.feedback,
            limits: given.limits,
            to_applier: given.to_applier,
            progress: given.progress,
            pace: Pace::new(given.stream.aim()),
            aside: given.stream.aside(),
            stream: given.stream,
            sent_at: 0,
            commit_time: 0,
            began_at,
            blocked_since: None,
            abandoned: false,
        }
    }

    /// The end of the last transaction that was handed to the target.
    #[must_use]
    pub fn pending(&self) -> Lsn {
        self.feedback.pending()
    }

    /// Reads until ordered to end. All waits are cancel-safe and a wait that is cancelled loses nothing.
    ///
    /// # Errors
    /// The stream broke, or holds what cannot be recorded.
    pub async fn run(&mut self, links: &mut Links<'_>) -> Result<Ended> {
        let mut alarm = pin!(sleep(Duration::ZERO));
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
                Err(Stop::BacklogRead) => {
                    self.drain(links).await?;
                    let anything = self.feedback.pending() > self.began_at;
                    return Ok(Ended::BacklogRead { anything });
                }
                Err(Stop::Fault(fault)) => return Err(fault),
            };
            self.progress.unavailable(self.pipeline.take_unavailable());
            let now = Instant::now();
            let lag_us = self.sent_at.saturating_sub(self.commit_time);
            self.wait_no_longer_than(blocked, now);
            let mut gather = None;
            if !blocked && self.spare.is_some() {
                if self.filling.seal().is_some() {
                    gather = self.pace.gathers(lag_us, self.filling.bytes(), now);
                    if gather.is_none() {
                        self.hand_over();
                    }
                } else if self.filling.bytes() >= GATHER_BYTES {
                    // A piece of a transaction that is still arriving: what is written already need not be waited for
                    // at its end.
                    self.hand_over();
                }
            }
            if let Some(lsn) = self.feedback.report_due(now) {
                // A full channel means that the last report is still being written.
                let _ = links.reports.try_send(lsn);
            }
            if self.stream.takes_status()
                && !self.stream.has_unsent()
                && let Some(status) = self.feedback.status_due(now)
            {
                self.stream.queue_status(status, clock::now());
                self.progress
                    .positions(self.feedback.received(), self.feedback.confirmed());
            }
            if !blocked && let Some(pause) = self.pace.before_read(lag_us, now) {
                self.stream.unwatch();
                self.aside.step(now);
                // The read waits for nobody, so that the others would not have their turn. They have it before the pause: what
                // the target is sent, it works on meanwhile.
                tokio::task::yield_now().await;
                // The runtime's timers are too coarse for this, and what else this thread has to do can wait as
                // long: the target's socket holds more than it takes in this time.
                std::thread::sleep(pause);
            }
            let until_due = self.until_status(now).max(Duration::from_millis(1));
            let due = now + gather.map_or(until_due, |left| left.min(until_due));
            // Setting it costs more than being woken once for nothing.
            if alarm.is_elapsed() || due < alarm.deadline().into_std() {
                alarm.as_mut().reset(due.into());
            }
            // In this order, so that the time is up only when the read has found nothing.
            let event = tokio::select! {
                biased;
                _ = drained(&mut links.orders) => Event::Drain,
                batch = links.from_applier.taken() => Event::Emptied(batch),
                lsn = links.durable.taken() => Event::Durable(lsn),
                lsn = links.reported.taken() => Event::Reported(lsn),
                moved = self.stream.advance(!blocked) => {
                    Event::Moved(moved.map_err(stream_fault)?)
                }
                () = &mut alarm => Event::Time,
            };
            match event {
                Event::Moved(bytes) => self.pace.after_read(bytes, Instant::now()),
                Event::Time if !blocked => self.pace.found_nothing(Instant::now()),
                Event::Time => {}
                Event::Emptied(batch) => {
                    self.spare = Some(batch);
                    if self.filling.count() == 0 && !self.pipeline.in_transaction() {
                        self.feedback.on_quiet();
                    }
                }
                Event::Durable(lsn) => self.feedback.on_durable(lsn),
                Event::Reported(lsn) => self.feedback.on_reported(lsn),
                Event::Drain => {
                    return self.drain(links).await;
                }
            }
        }
    }

    /// How long until there may be something to tell the source, or to look after.
    fn until_status(&self, now: Instant) -> Duration {
        if self.stream.takes_status() {
            self.feedback.until_due(now)
        } else {
            LOOK_AGAIN
        }
    }

    /// Gives a backlog up that the target has no room for: the source reads it in a transaction, and would keep what its vacuum could remove
    /// for as long as the target waits.
    fn wait_no_longer_than(&mut self, blocked: bool, now: Instant) {
        if !blocked || self.stream.takes_status() {
            self.blocked_since = None;
            return;
        }
        let since = *self.blocked_since.get_or_insert(now);
        if now.duration_since(since) >= BLOCKED_MAX && !std::mem::replace(&mut self.abandoned, true)
        {
            tracing::warn!(
                seconds = BLOCKED_MAX.as_secs(),
                "the target has taken nothing for a while: the source need not hold the rest of the backlog for it any longer"
            );
            self.stream.abandon();
        }
    }

    /// Takes every frame that is here; true when both batches are in use and the stream has to wait.
    fn take_buffered(&mut self) -> std::result::Result<bool, Stop> {
        let now = Instant::now();
        loop {
            let full = self.filling.count() >= self.limits.max_rows
                || self.filling.bytes() >= self.limits.max_bytes;
            if full && !self.hand_over() {
                return Ok(true);
            }
            let payload = match self.stream.next_buffered()? {
                None => return Ok(false),
                Some(Frame::Keepalive {
                    processed,
                    reply_wanted,
                }) => {
                    self.feedback.on_keepalive(processed, reply_wanted, now);
                    continue;
                }
                Some(Frame::XLogData { payload, sent_at }) => {
                    self.sent_at = sent_at;
                    payload
                }
            };
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
        self.to_applier.give(full);
        true
    }

    /// Hands over what is complete, as soon as the target is free; changes of an unfinished transaction stay
    /// behind and come again.
    async fn drain(&mut self, links: &mut Links<'_>) -> Result<Ended> {
        while self.filling.seal().is_some() && !self.hand_over() {
            tokio::select! {
                batch = links.from_applier.taken() => self.spare = Some(batch),
                () = sleep(self.until_status(Instant::now())) => {
                    if self.stream.takes_status()
                        && let Some(status) = self.feedback.status_due(Instant::now())
                    {
                        self.stream.queue_status(status, clock::now());
                    }
                    self.stream.send().await.map_err(stream_fault)?;
                }
            }
        }
        Ok(Ended::Drained)
    }

    /// Confirms everything up to `pending`, which is durable, and ends the stream.
    pub async fn finish(mut self, pending: Lsn) {
        self.feedback.on_durable(pending);
        if self.stream.takes_status() {
            let status = self.feedback.final_status(Instant::now());
            self.stream.queue_status(status, clock::now());
        }
        self.progress
            .positions(self.feedback.received(), self.feedback.confirmed());
        // The confirmation is a courtesy: without it the next start skips what the history has.
        if let Err(error) = self.stream.finish(pending).await {
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
    /// There is nothing more in it.
    BacklogRead,
    Fault(Fault),
}

impl From<StreamError> for Stop {
    fn from(error: StreamError) -> Self {
        Self::Fault(match error {
            StreamError::Wire(error) => stream_fault(error),
            StreamError::BacklogRead => return Self::BacklogRead,
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
