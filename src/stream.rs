//! One run of the stream: from the checkpoint until something ends it.
//!
//! ```text
//!   reader                            applier                durability
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
use std::time::Instant;

use tokio::sync::{mpsc, watch};

use crate::config::Config;
use crate::pipeline::Pipeline;
use crate::reader::{Ended, Given, Links, Order, Reader, drained};
use crate::report::{Exit, Fault, Result};
use crate::source::feedback::Feedback;
use crate::sql;
use crate::start::{self, Started};
use crate::target::session::SessionError;
use crate::target::{applier, durability};
use crate::telemetry::progress::Progress;

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
        let mut reader = Reader::new(Given {
            stream,
            pipeline: Pipeline::new(captured, catalogs_at, checkpoint, binary),
            feedback: Feedback::new(checkpoint, reported, wal_sender_timeout, Instant::now()),
            limits: self.config.batch,
            to_applier,
            progress,
        });
        progress.starts_at(checkpoint);
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
            let pending = reader.pending();
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
