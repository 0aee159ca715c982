//! The reader: reads frames, fills batches, answers the source.
//!
//! `select!` names what has happened. When to send a status is [`Feedback`]'s to decide, what a message means
//! [`Pipeline`]'s, and when to read again [`Pace`]'s. Nothing here waits for the target except a stream that has no room
//! left, and that goes on answering the source (invariant I5).

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::batches::{Batches, WORTH_A_COPY_BYTES};
use super::pause::Pause;
use super::source_watch::Until;
use super::{
    Ended, Order, Stop, drained, warn_lacking, warn_left_out, warn_no_context, warn_unrecorded,
};
use crate::clock;
use crate::fault::Result;
use crate::history::followed::Whole;
use crate::lsn::Lsn;
use crate::pipeline::{Outcome, Pipeline};
use crate::source::feedback::Feedback;
use crate::source::frame::Frame;
use crate::source::pace::Pace;
use crate::source::stream::Stream;
use crate::telemetry::progress::Progress;
use crate::telemetry::watchdog::Pulse;

/// So long an end waits for a look at the source, which is under way.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// What the reader hears about durability, and asks for.
pub(super) struct Confirming {
    /// The end of the last transaction that is durable in the target.
    pub(super) durable: watch::Receiver<Lsn>,
    /// The last position written as `reported_lsn`.
    pub(super) reported: watch::Receiver<Lsn>,
    /// Positions to be written as `reported_lsn`.
    pub(super) reports: mpsc::Sender<Lsn>,
}

/// How the reader and the watch of the source hear each other.
pub(super) struct Watching {
    /// The stream has described a table.
    pub(super) hints: mpsc::Sender<()>,
    /// The position at which the source was last seen whole.
    pub(super) whole: watch::Receiver<Whole>,
    /// Where the stream has to end.
    pub(super) until: watch::Receiver<Option<Until>>,
}

impl Watching {
    /// Whether the stream has come to its end.
    fn has_ended(&self, received: Lsn) -> bool {
        let until = self.until.borrow();
        until.as_ref().is_some_and(|until| received >= until.lsn)
    }
}

pub(super) struct Reader {
    stream: Stream,
    pipeline: Pipeline,
    feedback: Feedback,
    batches: Batches,
    progress: Arc<Progress>,
    pace: Pace,
    pause: Pause,
    /// The stream has not been read since it rested.
    rested: bool,
    /// The source's clock when it sent the last frame and when that frame's transaction committed.
    sent_at: i64,
    commit_time: i64,
}

enum Event {
    /// So many bytes came in.
    Moved(usize),
    Emptied,
    Durable,
    Reported,
    Time,
    /// Everything that was received is written, and nothing more has come.
    Quiet,
    Drain,
}

impl Reader {
    /// A reader at the start of its stream, the target being free.
    pub(super) fn new(
        stream: Stream,
        pipeline: Pipeline,
        feedback: Feedback,
        batches: Batches,
        progress: Arc<Progress>,
        pause: Pause,
    ) -> Self {
        Self {
            pace: Pace::new(stream.aim()),
            pause,
            rested: false,
            stream,
            pipeline,
            feedback,
            batches,
            progress,
            sent_at: 0,
            commit_time: 0,
        }
    }

    /// The end of the last transaction that was handed to the target.
    pub(super) fn pending(&self) -> Lsn {
        self.feedback.pending()
    }

    pub(super) fn batches(&mut self) -> &mut Batches {
        &mut self.batches
    }

    /// Reads until ordered to end. All waits are cancel-safe and a wait that is cancelled loses nothing.
    pub(super) async fn run(
        &mut self,
        confirming: &mut Confirming,
        watching: &mut Watching,
        mut orders: watch::Receiver<Order>,
    ) -> Result<Ended, Stop> {
        let mut alarm = pin!(sleep(Duration::ZERO));
        // Nothing here waits for a server without a timer beside it.
        let pulse = self.progress.watchdog.watch("reader", || false);
        loop {
            pulse.beat().await;
            let blocked = self.take_buffered()?;
            self.note_received(watching);
            if !self.pipeline.in_transaction() && watching.has_ended(self.feedback.received()) {
                return self.drain(Ended::Refused, &pulse).await;
            }
            let now = clock::monotonic();
            let waits = self.hand_over_or_wait(blocked, now);
            if let Some(lsn) = self.feedback.report_due(now) {
                // A full channel means that the last report is still being written.
                let _ = confirming.reports.try_send(lsn);
            }
            if !self.stream.has_unsent() {
                self.queue_status_if_due(now);
            }
            let rest = match blocked {
                true => None,
                false => self.pause_or_rest(now).await,
            };
            let until_due = self.feedback.until_due(now).max(Duration::from_millis(1));
            let due = now + waits.map_or(until_due, |left| left.min(until_due));
            // Setting it costs more than being woken once for nothing.
            if alarm.is_elapsed() || due < alarm.deadline().into_std() {
                alarm.as_mut().reset(due.into());
            }
            let reads = !blocked && rest.is_none();
            let event = tokio::select! {
                biased;
                () = drained(&mut orders) => Event::Drain,
                () = self.batches.emptied() => Event::Emptied,
                Ok(()) = confirming.durable.changed() => Event::Durable,
                Ok(()) = confirming.reported.changed() => Event::Reported,
                Ok(()) = watching.until.changed() => Event::Time,
                moved = self.stream.advance(reads) => Event::Moved(moved?),
                () = std::future::ready(()), if reads && self.rested => Event::Moved(0),
                // A rest that cannot be had costs speed alone.
                _ = self.pause.wait(rest.unwrap_or_default()), if rest.is_some() => Event::Time,
                () = &mut alarm => Event::Time,
                // Nothing else has happened, which includes that nothing has come.
                () = std::future::ready(()), if reads && self.has_nothing_to_do() => Event::Quiet,
            };
            match event {
                Event::Moved(bytes) => {
                    self.rested &= !reads;
                    if bytes > 0 {
                        self.pace.after_read(bytes, clock::monotonic());
                    }
                }
                Event::Emptied | Event::Time => {}
                Event::Quiet => self.feedback.on_quiet(),
                Event::Durable => self
                    .feedback
                    .on_durable(*confirming.durable.borrow_and_update()),
                Event::Reported => self
                    .feedback
                    .on_reported(*confirming.reported.borrow_and_update()),
                Event::Drain => return self.drain(Ended::Drained, &pulse).await,
            }
        }
    }

    /// Says what has come: to the counters, to what is confirmed, and to what watches the source.
    fn note_received(&mut self, watching: &Watching) {
        let whole = !self.pipeline.in_transaction();
        let oldest = self.batches.oldest().or(self.pipeline.recording_since());
        let received = self.feedback.received();
        self.progress
            .received(received, whole, oldest.map(|time| time.0));
        if let Some(commit_lsn) = self.pipeline.noted() {
            self.feedback.on_described(commit_lsn);
        }
        self.feedback.on_seen(watching.whole.borrow().lsn);
        if self.pipeline.take_described() {
            // A full channel means that the source is looked at in any case.
            let _ = watching.hints.try_send(());
        }
    }

    /// Hands over what is complete once the interval is over, or as soon as there is enough of it; else says how long it
    /// waits for that end.
    fn hand_over_or_wait(&mut self, blocked: bool, now: Instant) -> Option<Duration> {
        if blocked || !self.batches.target_is_free() {
            return None;
        }
        // Without a seal this is a piece of a transaction that is still arriving: it is written by the time its end comes.
        let enough = self.batches.filling.bytes() >= WORTH_A_COPY_BYTES;
        let complete = self.batches.filling.seal().is_some();
        let left = self.batches.interval_left(now);
        // What came during a rest is read first, so that it need not wait for another interval.
        if enough || complete && left.is_zero() && !self.rested {
            self.batches.hand_over();
            return None;
        }
        complete.then_some(left)
    }

    fn has_nothing_to_do(&self) -> bool {
        self.feedback.is_unacknowledged()
            && !self.stream.has_unsent()
            && self.batches.target_is_free()
            && self.batches.filling.count() == 0
            && !self.pipeline.in_transaction()
    }

    /// Pauses before the next read of a stream that is behind, or says how long not to read at all: until the interval is
    /// over, what comes can lie in the socket.
    async fn pause_or_rest(&mut self, now: Instant) -> Option<Duration> {
        let lag_us = self.sent_at.saturating_sub(self.commit_time);
        if let Some(pause) = self.pace.before_read(lag_us, now) {
            self.stream.unwatch();
            // A pause that cannot be had costs speed alone.
            let _ = self.pause.wait(pause).await;
            return None;
        }
        let rest = self.pace.rest(lag_us, self.batches.interval_left(now), now);
        if rest.is_some() {
            self.stream.unwatch();
            self.rested = true;
        }
        rest
    }

    fn queue_status_if_due(&mut self, now: Instant) {
        if let Some(status) = self.feedback.status_due(now) {
            self.stream.queue_status(status, clock::now());
            self.progress.confirmed(self.feedback.confirmed());
        }
    }

    /// Takes every frame that is here; true when both batches are in use and the stream has to wait.
    fn take_buffered(&mut self) -> Result<bool, Stop> {
        let now = clock::monotonic();
        loop {
            if self.batches.is_full() && !self.batches.hand_over() {
                return Ok(true);
            }
            let payload = match self.stream.next_buffered()? {
                None => return Ok(false),
                Some(Frame::Keepalive {
                    processed,
                    reply_wanted,
                }) => {
                    self.pipeline.processed(processed)?;
                    self.feedback.on_keepalive(processed, reply_wanted, now);
                    continue;
                }
                Some(Frame::XLogData { payload, sent_at }) => {
                    self.sent_at = sent_at;
                    payload
                }
            };
            let accepted = self.pipeline.accept(payload, &mut self.batches.filling);
            match accepted.map_err(|error| Stop::at(error, &self.pipeline))? {
                Outcome::Quiet => {}
                Outcome::Begun {
                    commit_time,
                    left_out,
                } => {
                    if left_out {
                        warn_left_out(&self.pipeline);
                    }
                    self.feedback.on_begin();
                    self.commit_time = commit_time;
                }
                Outcome::Committed { end_lsn, recorded } => {
                    self.feedback.on_commit(end_lsn, recorded > 0);
                    if recorded > 0 {
                        self.progress.pending(end_lsn);
                    }
                }
                Outcome::Unrecorded { table, columns } => warn_unrecorded(&table, &columns),
                Outcome::Lacking(lacking) => warn_lacking(&lacking),
                Outcome::ContextRefused(why) => warn_no_context(&self.pipeline, why),
            }
        }
    }

    /// Hands over what is complete, as soon as the target is free; changes of a transaction that is not complete come
    /// again.
    async fn drain(&mut self, ended: Ended, pulse: &Pulse) -> Result<Ended, Stop> {
        while self.batches.filling.seal().is_some() && !self.batches.hand_over() {
            pulse.beat().await;
            let until_due = self.feedback.until_due(clock::monotonic());
            tokio::select! {
                biased;
                () = self.batches.emptied() => {}
                () = sleep(until_due.max(Duration::from_millis(1))) => {
                    self.queue_status_if_due(clock::monotonic());
                    self.stream.send().await?;
                }
            }
        }
        Ok(ended)
    }

    /// Waits for the next look at the source, where it has to come before everything can be confirmed. Without it the next start
    /// looks, and confirms then.
    pub(super) async fn wait_for_look(&mut self, watching: &mut Watching) {
        if let Some(described) = self.feedback.wants_to_see() {
            let seen = watching.whole.wait_for(|whole| whole.lsn >= described);
            if let Ok(Ok(whole)) = tokio::time::timeout(LOOK_MAX, seen).await {
                self.feedback.on_seen(whole.lsn);
            }
        }
    }

    /// Confirms everything up to `pending`, which is durable, and ends the stream.
    pub(super) async fn finish(mut self, pending: Lsn) {
        self.feedback.on_durable(pending);
        let status = self.feedback.final_status(clock::monotonic());
        self.stream.queue_status(status, clock::now());
        self.progress.confirmed(self.feedback.confirmed());
        // The confirmation is a courtesy: without it the next start skips what the history has.
        if let Err(error) = self.stream.finish().await {
            tracing::debug!(%error, "the stream did not end cleanly");
        }
    }
}
