//! What may be confirmed to the source, and when a status update is due.
//!
//! The one inequality of this file (invariant I3):
//!
//! ```text
//!   confirmed <= max(durable, reported) <= received
//! ```
//!
//! `durable` is the end of the last transaction whose rows and checkpoint survive a crash of the target.
//! `reported` is a position that was written durably to the checkpoint row *before* it may be sent: it
//! follows keepalives while nothing is pending, so that an idle table does not pin WAL. Why a keepalive
//! may move it: the walsender decodes in WAL order and sends each transaction at its commit record, so
//! when it says that it has processed WAL up to K, every transaction that committed before K has been
//! received here; if all of those are durable, so is everything that K stands for.
//!
//! Less is confirmed for a moment after a table was described: the WAL from before that is wanted until the source's catalogs were
//! read ([`Feedback::on_described`]), since it says where a column was made again (`commits.rs`).
//!
//! Because each write of `reported` is itself WAL, which in a single cluster comes back as the next
//! keepalive, it is written only [`REPORT_BYTES`] **and** [`REPORT_INTERVAL`] after the last one.
//!
//! Pure: time is an argument.

use std::time::{Duration, Instant};

use super::frame::Status;
use crate::lsn::Lsn;

/// `reported` moves by at least this much WAL.
pub const REPORT_BYTES: u64 = 1024 * 1024;
/// `reported` is written at most this often.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// A changed confirmation is sent at most this often, unless the server asks.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(1);
/// A server that asks twice within this time about the same position is shutting down and waits until
/// everything it sent is confirmed (a live connection asks every half `wal_sender_timeout`).
const SHUTDOWN_PING: Duration = Duration::from_millis(500);

/// The state of the conversation about progress.
#[derive(Debug)]
pub struct Feedback {
    interval: Duration,
    received: Lsn,
    /// The end of the last transaction handed to the target; everything up to here must become durable.
    pending: Lsn,
    durable: Lsn,
    reported: Lsn,
    confirmed: Lsn,
    in_transaction: bool,
    /// The commit position of the last transaction before which the source's catalogs have to be read, and from where on they
    /// were not.
    described: Lsn,
    seen: Lsn,
    reply_wanted: bool,
    /// Everything received is written and nothing more is on its way.
    quiet: bool,
    /// What was acknowledged to the server as received.
    acknowledged: Lsn,
    last_sent: Instant,
    last_report: Option<Instant>,
    last_ping: Option<(Lsn, Instant)>,
    source_stops: bool,
}

impl Feedback {
    /// `start`: the checkpoint's `end_lsn`. That it could be read does not mean that it is durable: nothing is confirmed until
    /// [`Feedback::on_durable`] says so. `wal_sender_timeout` of this session, zero when there is none: a status goes out at
    /// least three times as often, and at least every 10 s.
    pub fn new(start: Lsn, wal_sender_timeout: Duration, now: Instant) -> Self {
        let longest = Duration::from_secs(10);
        let interval = match wal_sender_timeout {
            Duration::ZERO => longest,
            timeout => (timeout / 4).clamp(Duration::from_millis(50), longest),
        };
        Self {
            interval,
            received: start,
            pending: start,
            durable: Lsn::ZERO,
            reported: Lsn::ZERO,
            confirmed: Lsn::ZERO,
            in_transaction: false,
            described: Lsn::ZERO,
            seen: Lsn::ZERO,
            reply_wanted: false,
            quiet: false,
            acknowledged: Lsn::ZERO,
            last_sent: now,
            last_report: None,
            last_ping: None,
            source_stops: false,
        }
    }

    /// The stream begins before the checkpoint: what lies between has still to come, and is not confirmed before it has.
    pub fn begins_at(&mut self, lsn: Lsn) {
        self.received = self.received.min(lsn);
    }

    /// The server has processed its WAL up to `processed`.
    pub fn on_keepalive(&mut self, processed: Lsn, reply_wanted: bool, now: Instant) {
        // Right after the start the walsender reads from restart_lsn: its positions begin in the past.
        self.received = self.received.max(processed);
        if reply_wanted {
            self.reply_wanted = true;
            let again = self.last_ping.is_some_and(|(lsn, at)| {
                lsn == processed && now.duration_since(at) < SHUTDOWN_PING.min(self.interval)
            });
            self.source_stops |= again;
            self.last_ping = Some((processed, now));
        }
    }

    pub fn on_begin(&mut self) {
        self.in_transaction = true;
    }

    /// The transaction that ends at `end_lsn` has been received whole; `captured` when some of its rows go
    /// to the target.
    pub fn on_commit(&mut self, end_lsn: Lsn, captured: bool) {
        self.in_transaction = false;
        self.received = self.received.max(end_lsn);
        if captured {
            self.pending = self.pending.max(end_lsn);
        }
    }

    /// The transaction that commits at `commit_lsn` has described a table: the WAL from before it is wanted until the catalogs
    /// were read.
    pub fn on_described(&mut self, commit_lsn: Lsn) {
        self.described = self.described.max(commit_lsn);
    }

    /// What has to be seen before everything that is durable may be confirmed, if anything has.
    pub fn wants_to_see(&self) -> Option<Lsn> {
        (self.described > self.seen).then_some(self.described)
    }

    /// The catalogs were read when the WAL was written up to `lsn`.
    pub fn on_seen(&mut self, lsn: Lsn) {
        self.seen = self.seen.max(lsn);
    }

    /// The target has written everything that was received, and nothing more has arrived. A walsender that does
    /// not know sends a keepalive whenever it wakes, and the next transaction would have to wait for one.
    pub fn on_quiet(&mut self) {
        self.quiet = self.is_unacknowledged();
    }

    /// Whether the server does not know of everything that was received.
    pub fn is_unacknowledged(&self) -> bool {
        self.received > self.acknowledged
    }

    /// Rows and checkpoint up to `end_lsn` are durable in the target.
    pub fn on_durable(&mut self, end_lsn: Lsn) {
        self.durable = self.durable.max(end_lsn);
    }

    /// `lsn` has been written durably as `reported_lsn`.
    pub fn on_reported(&mut self, lsn: Lsn) {
        self.reported = self.reported.max(lsn);
    }

    /// Whether every received change is durable in the target.
    pub fn nothing_pending(&self) -> bool {
        !self.in_transaction && self.durable >= self.pending
    }

    /// A position worth writing as `reported_lsn` now, if any. The caller writes it durably and then
    /// calls [`Feedback::on_reported`].
    pub fn report_due(&mut self, now: Instant) -> Option<Lsn> {
        let known = self.durable.max(self.reported);
        if !self.nothing_pending() || self.received <= known {
            return None;
        }
        let worth_it = self.received.bytes_since(known) >= REPORT_BYTES
            && self
                .last_report
                .is_none_or(|at| now.duration_since(at) >= REPORT_INTERVAL);
        if !worth_it && !self.source_stops {
            return None;
        }
        self.last_report = Some(now);
        self.source_stops = false;
        Some(self.received)
    }

    /// The status update to send now, if one is due.
    pub fn status_due(&mut self, now: Instant) -> Option<Status> {
        let flushed = self.confirmable();
        let since = now.duration_since(self.last_sent);
        let idle = since >= self.interval;
        let news = flushed > self.confirmed && since >= CONFIRM_INTERVAL.min(self.interval);
        if !(self.reply_wanted || self.quiet || idle || news) {
            return None;
        }
        Some(self.status(flushed, idle, now))
    }

    /// The last status update of the stream, whatever is due.
    pub fn final_status(&mut self, now: Instant) -> Status {
        let flushed = self.confirmable();
        self.status(flushed, false, now)
    }

    /// How long until [`Feedback::status_due`] can have something to say by the passing of time alone.
    pub fn until_due(&self, now: Instant) -> Duration {
        let interval = match self.confirmable() > self.confirmed {
            true => CONFIRM_INTERVAL.min(self.interval),
            false => self.interval,
        };
        interval.saturating_sub(now.duration_since(self.last_sent))
    }

    /// The end of the last transaction handed to the target.
    pub fn pending(&self) -> Lsn {
        self.pending
    }

    pub fn received(&self) -> Lsn {
        self.received
    }

    /// The last position confirmed to the source.
    pub fn confirmed(&self) -> Lsn {
        self.confirmed
    }

    /// The end of the WAL that is not needed here any more; never beyond what was received, since the server
    /// believes any number it is sent.
    fn confirmable(&self) -> Lsn {
        let known = self.durable.max(self.reported).min(self.received);
        let wanted = match self.wants_to_see() {
            Some(_) => known.min(self.seen),
            None => known,
        };
        wanted.max(self.confirmed)
    }

    fn status(&mut self, flushed: Lsn, reply_wanted: bool, now: Instant) -> Status {
        self.reply_wanted = false;
        self.quiet = false;
        self.acknowledged = self.received;
        self.last_sent = now;
        self.confirmed = flushed;
        // While not caught up the server speaks of its progress only when asked.
        Status {
            received: self.received,
            flushed,
            reply_wanted,
        }
    }
}
