//! Which applied transactions are durable (invariant I3).
//!
//! History is committed with `synchronous_commit = off`: visible at once, on disk a moment later. The **barrier** is a small
//! synchronous transaction on a connection of its own, into a row that no history lock and no other transaction touches. WAL
//! is flushed in order, and sent to standbys in order: what was committed before the barrier began is durable when it
//! returns. This needs no function that shows WAL, so it holds for every target that keeps the promise of a COMMIT.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use crate::config::Durable;
use crate::fault::{Fault, Result};
use crate::history::batch::Batch;
use crate::history::checkpoint;
use crate::history::lock::BEAT;
use crate::history::write::Write;
use crate::history::writer::{Writer, WriterError};
use crate::lsn::Lsn;
use crate::server::Side;
use crate::telemetry::watchdog::{Pulse, Watchdog};
use crate::wire::Asked;

/// The least time between two barriers.
const INTERVAL: Duration = Duration::from_millis(200);
/// `synchronous_commit` is set within the statement, and counts at its commit.
const BARRIER: &str = "WITH level AS MATERIALIZED (SELECT pg_catalog.set_config('synchronous_commit', $2, true)) \
    INSERT INTO waltrail.barrier (slot, passed_at) SELECT $1, pg_catalog.clock_timestamp() FROM level \
    ON CONFLICT (slot) DO UPDATE SET passed_at = excluded.passed_at";
/// What the target's settings promise. With `off` they promise nothing.
const PROMISED: &str = "SELECT CASE reset_val WHEN 'off' THEN 'local' ELSE reset_val END \
    FROM pg_catalog.pg_settings WHERE name = 'synchronous_commit'";
/// A wait for a standby that was canceled succeeds with no more than a warning; see [`crate::server::sql`].
const HEAR_WARNINGS: &str = "SET client_min_messages = warning";
/// The same for every address of one server, and never the same for two.
const SERVER: &str = "SELECT pg_catalog.pg_postmaster_start_time()::text";

/// What passes barriers.
#[derive(Clone)]
pub(super) struct Barrier {
    client: Arc<Client>,
    /// Whether the server owes that session an answer.
    asked: Arc<Asked>,
    slot: String,
    /// The `synchronous_commit` of a barrier.
    level: String,
    statement: Statement,
}

impl Barrier {
    /// On `target`, for which the configuration may say what is durable.
    pub(super) async fn new(
        (target, asked): (Client, Arc<Asked>),
        source: &Client,
        slot: &str,
        durable: Option<Durable>,
    ) -> Result<Self> {
        let failed = Side::Target.failed("could not say when a commit is durable");
        target.batch_execute(HEAR_WARNINGS).await.map_err(failed)?;
        let same = server(source, Side::Source).await? == server(&target, Side::Target).await?;
        let level = match durable {
            Some(Durable::Local) => "local".to_owned(),
            // A commit of the source's server can wait for this very stream: waiting for it here would end both.
            None if same => "local".to_owned(),
            _ => target
                .query_one(PROMISED, &[])
                .await
                .map_err(failed)?
                .get(0),
        };
        Ok(Self {
            statement: target.prepare(BARRIER).await.map_err(failed)?,
            client: Arc::new(target),
            asked,
            slot: slot.to_owned(),
            level,
        })
    }

    /// The session that passes it, for other statements.
    pub(super) fn client(&self) -> Arc<Client> {
        Arc::clone(&self.client)
    }

    /// To be moved by what passes it.
    pub(super) fn pulse(&self, watchdog: &Watchdog) -> Pulse {
        let asked = Arc::clone(&self.asked);
        watchdog.watch("barrier", move || asked.is_waited_for())
    }

    /// Returns when everything that was committed before is durable.
    async fn pass(&self) -> Result<()> {
        let parameters: [&(dyn ToSql + Sync); 2] = [&self.slot, &self.level];
        let passed = self.client.execute(&self.statement, &parameters).await;
        passed.map_err(Side::Target.failed("could not make the history durable"))?;
        Ok(())
    }
}

impl Write for Barrier {
    type Session = Writer;

    async fn write(
        session: &mut Writer,
        batch: &Batch,
        seen: Lsn,
    ) -> std::result::Result<(), WriterError> {
        session.write(batch, seen).await
    }

    async fn make_durable(&self, reported: Option<Lsn>) -> Result<()> {
        if let Some(lsn) = reported {
            checkpoint::report(&self.client, &self.slot, lsn)
                .await
                .map_err(Side::Target.failed("could not keep its checkpoint"))?;
        }
        self.pass().await
    }
}

/// What tells a running server from every other.
async fn server(client: &Client, side: Side) -> Result<String> {
    let row = client.query_one(SERVER, &[]).await;
    Ok(row
        .map_err(side.failed("could not show when it was started"))?
        .get(0))
}

pub(super) struct Watch<H> {
    pub(super) history: H,
    /// The end of the last committed transaction.
    pub(super) applied: watch::Receiver<Lsn>,
    /// The end of the last durable transaction.
    pub(super) durable: watch::Sender<Lsn>,
    /// `reported_lsn` as it was read at the start.
    pub(super) known: Lsn,
    /// Positions to be written as `reported_lsn`.
    pub(super) reports: mpsc::Receiver<Lsn>,
    /// The last of them that is written.
    pub(super) reported: watch::Sender<Lsn>,
    pub(super) pulse: Pulse,
}

impl<H: Write> Watch<H> {
    /// Watches until a channel closes or the target fails.
    pub(super) async fn run(mut self) -> Result<Infallible> {
        // The checkpoint as it was read may be no more than visible.
        let mut safe = *self.applied.borrow();
        self.history.make_durable(None).await?;
        self.durable.send_replace(safe);
        self.reported.send_replace(self.known);
        let mut next = Instant::now() + INTERVAL;
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.pulse.beat().await;
            tokio::select! {
                biased;
                committed = unconfirmed(&mut self.applied, safe, next) => {
                    let committed = committed.map_err(|_| Fault::retry("the target's writer ended"))?;
                    self.history.make_durable(None).await?;
                    next = Instant::now() + INTERVAL;
                    safe = committed;
                    self.durable.send_replace(safe);
                }
                Some(lsn) = self.reports.recv() => {
                    self.history.make_durable(Some(lsn)).await?;
                    self.reported.send_replace(lsn);
                }
                _ = beat.tick() => {}
            }
        }
    }
}

/// Waits until more is committed than is known to be durable, and until `next`; returns up to where. Cancel-safe.
async fn unconfirmed(
    applied: &mut watch::Receiver<Lsn>,
    durable: Lsn,
    next: Instant,
) -> std::result::Result<Lsn, watch::error::RecvError> {
    applied.wait_for(|&applied| applied > durable).await?;
    sleep_until(next).await;
    Ok(*applied.borrow())
}
