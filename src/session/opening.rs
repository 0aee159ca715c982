//! Opens the stream, or a backlog, from the checkpoint on, once the slot is free.

use std::pin::pin;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::compare::{inspect, read_checkpoint, still_fits};
use super::standbys;
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::fault::{Fault, Result};
use crate::lsn::Lsn;
use crate::pgoutput::Timestamp;
use crate::server::{Reminder, Side};
use crate::source;
use crate::source::backlog::{self, Backlog};
use crate::source::replication::{Replication, StreamOptions};
use crate::source::slot::{self, SlotState};
use crate::source::stream::Stream;
use crate::wire;

/// How often something that another process holds is asked for again.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(500);
/// And how often while the session before this one may still be ending.
pub(super) const ASK_AGAIN_SOON: Duration = Duration::from_millis(20);
pub(super) const ENDING_MAX: Duration = Duration::from_secs(1);
/// A source that has not refused a backlog for so long decodes it.
const DECODES: Duration = Duration::from_secs(1);

pub(super) enum Way {
    CatchUp(Backlog),
    Stream(Stream),
}

pub(super) struct Opened {
    pub(super) way: Way,
    pub(super) place: Place,
}

/// Where a stream or a backlog goes on.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// The end of the last transaction in the history.
    pub(super) checkpoint: Lsn,
    pub(super) reported: Lsn,
    /// Where the stream begins.
    pub(super) begins: Lsn,
    /// It begins before the checkpoint: when the transaction committed that ends there.
    pub(super) expected: Option<Timestamp>,
    /// When the last transaction in the history committed.
    pub(super) recorded: Option<Timestamp>,
    /// This walsender's `wal_sender_timeout`; zero when it has none.
    pub(super) wal_sender_timeout: Duration,
}

impl Place {
    /// `known`: the checkpoint; none where it has no position. The server is asked for [`Place::begins`].
    pub(super) fn of(
        known: Option<Checkpoint>,
        confirmed: Option<Lsn>,
        wal_sender_timeout: Duration,
    ) -> Option<Self> {
        let known = known?;
        let checkpoint = known.end_lsn?;
        Some(Self {
            checkpoint,
            reported: known.reported_lsn?,
            // From before the checkpoint, so that the end of the history is seen in the source's log.
            begins: confirmed.map_or(checkpoint, |at| at.min(checkpoint)),
            expected: known.commit_time,
            recorded: known.commit_time,
            wal_sender_timeout,
        })
    }

    /// The slot was at `at` when the stream had begun. The last confirmation of a walsender that was just ending can have
    /// moved it.
    pub(super) fn begun(self, at: Lsn) -> Self {
        let begins = self.begins.max(at.min(self.checkpoint));
        let expected = self.expected.filter(|_| begins < self.checkpoint);
        Self {
            begins,
            expected,
            ..self
        }
    }

    /// The highest position that the slot may be at.
    pub(super) fn slot_max(&self) -> Lsn {
        self.reported.max(self.checkpoint)
    }
}

/// What a stream or a backlog is opened with.
pub(super) struct Opening<'a> {
    pub(super) config: &'a Config,
    pub(super) source: &'a Client,
    pub(super) target: &'a Client,
    pub(super) options: StreamOptions,
    pub(super) on_decoding: &'a (dyn Fn() + Sync),
}

impl Opening<'_> {
    /// Opens once the slot is free, on `connected` first, and compares once more when it cannot be moved by others. At
    /// most `wal_max` bytes of WAL are read by SQL.
    pub(super) async fn open(&self, connected: Replication, mut wal_max: u64) -> Result<Opened> {
        let name = self.config.source.slot.as_str();
        let mut reminder = Reminder::default();
        let began = Instant::now();
        let mut connected = Some(connected);
        loop {
            let mut replication = match connected.take() {
                Some(connected) => connected,
                None => Replication::connect(&self.config.source).await?,
            };
            let known = read_checkpoint(self.target, name).await?;
            let wal_sender_timeout = replication
                .limit_wal_sender_timeout()
                .await
                .map_err(|error| source::failed("could not set wal_sender_timeout", error))?;
            let pid = replication.backend_pid();
            let slot = inspect(self.source, name).await?;
            if !standbys::is_altered(self.config, self.source, &mut replication, slot.as_ref())
                .await?
            {
                self.wait_while_in_use(began, &mut reminder).await?;
                continue;
            }
            let confirmed = slot.as_ref().and_then(|slot| slot.confirmed_flush);
            let place = Place::of(known, confirmed, wal_sender_timeout).ok_or_else(|| {
                Fault::retry("the checkpoint vanished while the stream was started")
            })?;
            let backlog = backlog_end(self.source, slot, place.checkpoint, wal_max).await?;
            match self.begin(replication, place, backlog).await {
                Ok(way) => {
                    // After a backlog the slot is not ours, but it moves forward only.
                    let user = backlog.is_none().then_some(pid);
                    let at = still_fits(self.source, name, user, place.slot_max()).await?;
                    standbys::log_waited_for(self.source, &mut false).await?;
                    standbys::log_failover(self.config, self.source, self.target).await?;
                    return Ok(Opened {
                        way,
                        place: place.begun(at),
                    });
                }
                Err(error) if error.server().is_some_and(|report| report.code == "55006") => {
                    self.wait_while_in_use(began, &mut reminder).await?;
                }
                Err(error) if backlog.is_some() && error.server().is_some() => {
                    tracing::warn!(slot = name, error = %error, "the backlog could not be read by SQL; it is streamed");
                    wal_max = 0;
                }
                Err(error) => return Err(source::failed("could not start the stream", error)),
            }
        }
    }

    /// Has the source decode the WAL up to the end of a backlog, or stream from a position.
    async fn begin(
        &self,
        replication: Replication,
        place: Place,
        backlog: Option<Lsn>,
    ) -> std::result::Result<Way, wire::Error> {
        if let Some(end) = backlog {
            let backlog = self.decode(replication, place.checkpoint, end).await;
            return backlog.map(Way::CatchUp);
        }
        let source = &self.config.source;
        let started = replication.start(
            &source.slot,
            place.begins,
            &source.publication,
            self.options,
        );
        started.await.map(Way::Stream)
    }

    /// Has the source decode the WAL up to `end`.
    async fn decode(
        &self,
        replication: Replication,
        from: Lsn,
        end: Lsn,
    ) -> std::result::Result<Backlog, wire::Error> {
        let name = self.config.source.slot.as_str();
        let bytes = end.bytes_since(from);
        tracing::info!(slot = name, from = %from, to = %end, bytes, "catching up");
        let publication = &self.config.source.publication;
        let mut reading = pin!(replication.read_backlog(name, end, publication, self.options));
        // A slot that is not to be had is reported sooner.
        match tokio::time::timeout(DECODES, &mut reading).await {
            Ok(read) => read,
            Err(_) => {
                (self.on_decoding)();
                reading.await
            }
        }
    }

    async fn wait_while_in_use(&self, began: Instant, reminder: &mut Reminder) -> Result<()> {
        // A walsender of ours that has just ended has it for a moment.
        if began.elapsed() < ENDING_MAX {
            tokio::time::sleep(ASK_AGAIN_SOON).await;
            return Ok(());
        }
        if reminder.is_due() {
            self.warn_in_use().await?;
        }
        tokio::time::sleep(ASK_AGAIN).await;
        Ok(())
    }

    async fn warn_in_use(&self) -> Result<()> {
        let name = self.config.source.slot.as_str();
        let slot = inspect(self.source, name).await?;
        let pid = slot.and_then(|slot| slot.active_pid);
        tracing::warn!(
            slot = name,
            pid,
            "the slot is in use by another process; waiting until it is free"
        );
        Ok(())
    }
}

/// Up to where the backlog is read by SQL, if it is.
async fn backlog_end(
    source: &Client,
    slot: Option<SlotState>,
    from: Lsn,
    wal_max: u64,
) -> Result<Option<Lsn>> {
    if wal_max == 0 {
        return Ok(None);
    }
    let flushed = slot::position(source)
        .await
        .map_err(Side::Source.failed("could not show the end of its WAL"))?;
    let restart = slot.and_then(|slot| slot.restart_lsn);
    Ok(restart.and_then(|restart| backlog::end(restart, from, flushed, wal_max)))
}
