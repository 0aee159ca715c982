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
//! The three run concurrently in one task: a batch changes hands without waking anybody (`handover.rs`). `select!` only
//! names what happened; what follows is decided in [`Feedback`] and [`Pipeline`]. Whatever fails ends the whole
//! session; the next one reads the checkpoint again, so there is no state to repair.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::{mpsc, watch};

use crate::config::Config;
use crate::handover::{self, Handover};
use crate::pipeline::Pipeline;
use crate::reader::{Ended, Given, Links, Order, Reader, drained};
use crate::report::{Fault, Result};
use crate::server::Side;
use crate::snapshot::Rounds;
use crate::source::feedback::Feedback;
use crate::start::{self, How, Started};
use crate::target::applier;
use crate::target::durability::{self, Pages};
use crate::telemetry::progress::Progress;

/// What a session is given.
pub struct Session<'a> {
    /// The settings.
    pub config: &'a Config,
    /// What the daemon asks.
    pub orders: watch::Receiver<Order>,
    /// Ask for text although the catalogs allow binary.
    pub text: bool,
    /// Stream what is behind too, instead of reading it in one piece.
    pub live: bool,
    /// Shared counters.
    pub progress: Arc<Progress>,
    /// Who records rows that exist already.
    pub rounds: &'a Rounds,
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
        let told = AtomicBool::new(false);
        let on_streaming = || {
            if !told.swap(true, Ordering::Relaxed) {
                (self.on_streaming)();
            }
        };
        let how = How {
            text: self.text,
            live: self.live,
            on_decoding: &on_streaming,
        };
        let started = tokio::select! {
            started = start::start(self.config, how) => started?,
            () = drained(&mut orders) => return Ok(Ended::Drained),
        };
        on_streaming();
        let ended = self.follow(started).await;
        self.rounds.post(None);
        ended
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
            tables,
            point,
            wal_sender_timeout,
        } = started;
        let handover = Handover::default();
        let (applied_tx, mut applied) = watch::channel(checkpoint);
        let (pages, reached) = Pages::new();
        let (reports, report_rx) = mpsc::channel(1);
        let (post, requests) = mpsc::channel(16);
        let slot = self.config.source.slot.as_str();
        let progress = &*self.progress;
        let mut reader = Reader::new(Given {
            stream,
            pipeline: Pipeline::new(captured, catalogs_at, checkpoint, binary),
            feedback: Feedback::new(checkpoint, reported, wal_sender_timeout, Instant::now()),
            limits: self.config.batch,
            to_applier: handover.full(),
            progress,
        });
        progress.starts_at(checkpoint);
        self.rounds.begin(self.config, &tables, point)?;
        self.rounds.post(Some(post));
        let mut links = Links {
            from_applier: handover.empty(),
            durable: handover.durable(),
            reported: handover.reported(),
            reports,
            orders: self.orders.clone(),
        };
        let applying = pin!(applier::apply(applier::Given {
            session: target,
            client: &monitor,
            checkpoint,
            batches: handover.full(),
            emptied: handover.empty(),
            applied: applied_tx,
            pages,
            requests,
            progress,
        }));
        let watching = pin!(durability::watch(durability::Given {
            client: &monitor,
            slot,
            applied: applied.clone(),
            pages: reached,
            start: checkpoint,
            durable: handover.durable(),
            reports: report_rx,
            reported: handover.reported(),
        }));
        let mut writing = pin!(async {
            tokio::select! {
                Err(fault) = applying => Err(fault),
                ended = watching => Err(ended.map_or_else(
                    Side::Target.failed("could not tell how far it is flushed"),
                    |()| Fault::retry("the target's writer ended"),
                )),
            }
        });
        let ended = {
            let reading = pin!(reader.run(&mut links));
            handover::turns(&handover, reading, writing.as_mut()).await?
        };
        if matches!(ended, Ended::Drained | Ended::BacklogRead { .. }) {
            // Everything complete has been handed over: wait until it is committed, make it durable, confirm.
            let pending = reader.pending();
            tokio::select! {
                reached = applied.wait_for(|applied| *applied >= pending) => {
                    reached.map_err(|_| Fault::retry("the target's writer ended"))?;
                }
                fault = &mut writing => return fault,
            }
            let flushed = durability::flush(&monitor, slot).await;
            flushed.map_err(Side::Target.failed("could not flush the last rows"))?;
            reader.finish(pending).await;
        }
        Ok(ended)
    }
}
