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

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio_postgres::Client;

use crate::clock;
use crate::config::Config;
use crate::lsn::Lsn;
use crate::pipeline::{Captured, Outcome, Pipeline};
use crate::report::{Disposition, Exit, Fault, Result};
use crate::setup;
use crate::source::feedback::Feedback;
use crate::source::frame::Frame;
use crate::source::replication::{Replication, Stream, StreamError};
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
        let Started { stream, target, monitor, captured, checkpoint, reported, binary, wal_sender_timeout } = started;
        let (to_applier, batches) = mpsc::channel(1);
        let (emptied, from_applier) = mpsc::channel(2);
        let (applied_tx, applied) = watch::channel(checkpoint);
        let (durable_tx, durable) = watch::channel(checkpoint);
        let (reports, report_rx) = mpsc::channel(1);
        let (reported_tx, reported_rx) = watch::channel(reported);
        let progress = Arc::clone(&self.progress);
        let slot = self.config.source.slot.clone();
        let monitor = Arc::new(monitor);

        let applying = tokio::spawn({
            let progress = Arc::clone(&progress);
            async move { applier::apply(target, checkpoint, batches, emptied, applied_tx, &progress).await }
        });
        let watching = tokio::spawn({
            let (slot, applied, monitor) = (slot.clone(), applied.clone(), Arc::clone(&monitor));
            async move { durability::watch(&monitor, &slot, applied, durable_tx, report_rx, reported_tx).await }
        });
        let (applying, watching) = (Task(applying), Task(watching));
        let limits = self.config.batch;
        let mut reader = Reader {
            stream,
            pipeline: Pipeline::new(captured, checkpoint, binary),
            feedback: Feedback::new(checkpoint, reported, wal_sender_timeout, Instant::now()),
            filling: Batch::new(2 * limits.max_bytes),
            spare: Some(Batch::new(2 * limits.max_bytes)),
            max_rows: limits.max_rows,
            max_bytes: limits.max_bytes,
            to_applier,
            progress,
            in_piece: false,
        };
        let links = Links { from_applier, durable, reported: reported_rx, reports, orders: self.orders.clone() };
        let outcome = tokio::select! {
            outcome = reader.run(links) => outcome,
            ended = applying.ended() => Err(match ended? {
                Err(error) => target_fault(error),
                Ok(()) => Fault::bug("the applier ended by itself"),
            }),
            ended = watching.ended() => Err(match ended? {
                Err(error) => sql::fault("target", "could not tell how far it is flushed", error),
                Ok(()) => Fault::bug("the durability watch ended by itself"),
            }),
        };
        match outcome {
            Ok(Ended::Drained) => {
                self.drain(reader, applied, &monitor, &slot, applying).await?;
                Ok(Ended::Drained)
            }
            Err(fault) if matches!(fault.disposition(), Disposition::Retry) => Err(fault),
            other => {
                // What is complete and at hand is worth keeping, but nothing waits for it here: the next
                // session starts from the checkpoint.
                other
            }
        }
    }

    /// The end on order: what is complete has been handed over; wait until it is committed, make it durable,
    /// confirm it.
    async fn drain(
        &self,
        mut reader: Reader,
        mut applied: watch::Receiver<Lsn>,
        monitor: &Client,
        slot: &str,
        applying: Task<std::result::Result<(), SessionError>>,
    ) -> Result<()> {
        let pending = reader.feedback.pending();
        tokio::select! {
            reached = applied.wait_for(|applied| *applied >= pending) => {
                reached.map(|_| ()).map_err(|_| Fault::retry("the target went away while the last rows were written"))?;
            }
            ended = applying.ended() => {
                ended?.map_err(target_fault)?;
            }
        }
        let flushed = durability::flush(monitor, slot).await;
        flushed.map_err(|error| sql::fault("target", "could not flush the last rows", error))?;
        reader.feedback.on_durable(pending);
        let status = reader.feedback.final_status(Instant::now());
        reader.stream.queue_status(status, clock::now());
        reader.progress.positions(reader.feedback.received(), reader.feedback.confirmed());
        // The confirmation is a courtesy: without it the next start skips what the history has.
        if let Err(error) = reader.stream.finish().await {
            tracing::debug!(%error, "the stream did not end cleanly");
        }
        Ok(())
    }
}

/// A task that ends with its handle.
struct Task<T>(tokio::task::JoinHandle<T>);

impl<T> Task<T> {
    async fn ended(&self) -> Result<T>
    where
        T: Send + 'static,
    {
        std::future::pending().await
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
