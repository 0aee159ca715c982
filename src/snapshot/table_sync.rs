//! One sync: some tables, one point, until all of them are joined.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::Client;

use super::Shared;
use super::copy::{self, Job};
use super::point::{Point, SnapshotHolder};
use super::progress::{self, CopyProgress, Counter, TableCopy};
use super::state::{self, State, Table};
use super::tables;
use crate::config::{Config, SnapshotMode};
use crate::fault::{Fault, Result, Tries};
use crate::history::held::{self, Added};
use crate::history::writer::Writer;
use crate::history::{gate::Gate, held::Request};
use crate::lsn::Lsn;
use crate::schema::TableName;
use crate::server::{self, Side};

const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A table is joined, while the stream waits, when one transaction added all that was held: then little has come
/// meanwhile. Or after so many tries to get there: changes come as fast as they are added.
const REPLAYS_MAX: usize = 10_000;
const HOLDER_CHECK_EVERY: Duration = Duration::from_secs(20);

pub(crate) struct TableSync {
    pub config: Arc<Config>,
    pub tables: Vec<TableName>,
    pub shared: Arc<Shared>,
    pub no_retry: bool,
    /// Common to all syncs that may be at work now.
    pub instance: u32,
}

impl TableSync {
    pub(crate) async fn run(&self, mut point: Option<Point>) -> Result<()> {
        let mut backoff = ExponentialBuilder::default()
            .with_min_delay(BACKOFF_MIN)
            .with_max_delay(BACKOFF_MAX)
            .with_jitter()
            .without_max_times()
            .build();
        let mut tries = Tries::default();
        while let Err(fault) = self.attempt(point.take()).await {
            let fault = tries.judge(fault, Lsn::ZERO);
            if self.no_retry || !fault.may_pass() {
                return Err(fault);
            }
            let remedy = fault.remedy_text().unwrap_or_default();
            let pause = backoff.next().unwrap_or(BACKOFF_MAX).min(BACKOFF_MAX);
            let retry_in_ms = pause.as_millis() as u64;
            tracing::error!(error = %fault, remedy, retry_in_ms, "the snapshot failed and is begun again");
            tokio::time::sleep(pause).await;
        }
        for table in &self.tables {
            self.shared.release(table);
        }
        Ok(())
    }

    async fn attempt(&self, point: Option<Point>) -> Result<()> {
        let slot = self.config.source.slot.as_str();
        // While a session runs this is the one writer: without one, another instance may be at the same tables.
        self.session().await;
        let target = Arc::new(server::sql(&self.config.target, Side::Target).await?);
        let histories: Vec<String> = self.tables.iter().map(ToString::to_string).collect();
        state::give_up(&target, slot, &histories).await?;
        let mut waiting = Vec::new();
        let (copied, mut to_settle) = mpsc::unbounded_channel();
        for table in self.known(&target).await? {
            match (table.state, self.config.snapshot.mode) {
                (State::Done, _) => self.shared.release(&table.history),
                (State::Waiting | State::Copying, SnapshotMode::Initial) => {
                    self.hold_singly(&table.history).await;
                    waiting.push(table.history);
                }
                (State::Waiting | State::Copying, SnapshotMode::Never) => {
                    state::leave_out(&target, slot, &table.history).await?;
                    tracing::warn!(
                        history = %table.history,
                        "snapshot.mode is \"never\" now: the existing rows of this table are left out, and its history \
                         begins with the changes that are held"
                    );
                    let _ = copied.send(table.history);
                }
                (State::Copied, _) => {
                    let _ = copied.send(table.history);
                }
            }
        }
        let progress = self.shared.progress();
        let copying = async {
            // The reports of recorded tables end with the copy.
            let copied = copied;
            if waiting.is_empty() {
                return Ok(());
            }
            let point = match point {
                Some(point) => point,
                None => Point::take(&self.config, self.instance).await?,
            };
            self.copy(&target, &progress, point, &waiting, copied).await
        };
        let settling = async {
            while let Some(table) = to_settle.recv().await {
                self.shared.recorded(&table);
                if let Some(line) = progress.remove(&table) {
                    let (rows, bytes) = line.counter.now();
                    tracing::info!(table = %line.source, history = %table, rows, bytes, "the existing rows are recorded");
                }
                self.settle(&target, &table).await?;
                self.shared.release(&table);
            }
            Ok::<_, Fault>(())
        };
        tokio::select! {
            done = async { tokio::try_join!(copying, settling) } => done.map(|_| ()),
            () = progress::report(&progress, &target, slot) => Ok(()),
        }
    }

    /// The tables of this sync that are still captured.
    async fn known(&self, target: &Client) -> Result<Vec<Table>> {
        let mut known = state::read(target, &self.config.source.slot).await?;
        known.retain(|table| self.tables.contains(&table.history));
        Ok(known)
    }

    async fn copy(
        &self,
        target: &Client,
        progress: &CopyProgress,
        mut point: Point,
        waiting: &[TableName],
        copied: mpsc::UnboundedSender<TableName>,
    ) -> Result<()> {
        let slot = self.config.source.slot.as_str();
        let wanted = self.config.tables.iter();
        let wanted: Vec<_> = wanted
            .filter(|table| waiting.contains(&table.history))
            .collect();
        let mut jobs = Vec::with_capacity(wanted.len());
        for work in tables::plan(&self.config, &point, target, &wanted).await? {
            let attempt = state::begin(
                target,
                slot,
                &work.history,
                point.lsn,
                &point.holder.time,
                work.estimates,
            )
            .await?;
            self.announce_point(&work.history, point.lsn);
            let counter = Arc::new(Counter::default());
            progress.add(TableCopy::new(
                work.source.clone(),
                work.history.clone(),
                work.estimates.0.unsigned_abs(),
                Arc::clone(&counter),
            ));
            jobs.push(Job {
                work,
                attempt,
                counter,
            });
        }
        tracing::info!(
            tables = jobs.len(),
            point = %point.lsn,
            rows_expected = jobs.iter().map(|job| job.work.estimates.0).sum::<i64>(),
            "recording the rows that exist already"
        );
        let holder = Arc::clone(&point.holder);
        tokio::select! {
            done = copy::run(&self.config, &mut point, jobs, copied) => done,
            fault = lost(&holder) => Err(fault),
        }
    }

    /// Adds what is held of a table whose rows are recorded, and joins it to the stream.
    async fn settle(&self, target: &Arc<Client>, table: &TableName) -> Result<()> {
        let mut session = None;
        for sync in 0.. {
            let known = self.known(target).await?;
            let known = known.iter().find(|known| known.history == *table);
            let point = match known.map(|known| (known.state, known.point)) {
                Some((State::Copied, Some(point))) => point,
                Some((State::Copied, None)) => {
                    return Err(Fault::bug(
                        "recorded existing rows without a consistent point",
                    ));
                }
                Some((State::Done, _)) => break,
                // No longer captured.
                None => return Ok(()),
                Some(_) => {
                    return Err(Fault::retry(format!(
                        "the target has lost the existing rows of {table} in a crash"
                    )));
                }
            };
            if sync == 0 {
                let session = session
                    .insert(Writer::connect(&self.config.target, &self.config.source.slot).await?);
                for _ in 0..REPLAYS_MAX {
                    if held::replay(session, target, table, point).await? != Added::Some {
                        break;
                    }
                }
            }
            drop(session.take());
            let history = table.clone();
            self.asked(|done| Request::Join {
                client: Arc::clone(target),
                history: history.clone(),
                point,
                done,
            })
            .await;
        }
        tracing::info!(history = %table, "joined the stream");
        Ok(())
    }

    /// Before a point is taken nothing may be held as if it were past the last one. The process that gave the last attempt up may not
    /// have come so far as to say it.
    async fn hold_singly(&self, history: &TableName) {
        while !self
            .asked(|done| Request::Hold {
                history: history.clone(),
                gate: Gate::Waiting,
                done,
            })
            .await
        {}
    }

    /// Lets the session that runs, if one does, know the point: it may hold less.
    fn announce_point(&self, history: &TableName, point: Lsn) {
        let (done, _) = oneshot::channel();
        let request = Request::Hold {
            history: history.clone(),
            gate: Gate::Holding(point),
            done,
        };
        if let Some(session) = &*self.shared.requests.borrow() {
            // A session that is busy holds everything, which is as right.
            let _ = session.try_send(request);
        }
    }

    async fn session(&self) -> mpsc::Sender<Request> {
        let mut senders = self.shared.requests.subscribe();
        loop {
            if let Some(session) = &*senders.borrow_and_update() {
                return session.clone();
            }
            if senders.changed().await.is_err() {
                // There will be no session any more.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Asks the session that runs, and waits; false when it ended instead of answering.
    async fn asked(&self, request: impl Fn(oneshot::Sender<()>) -> Request) -> bool {
        let session = self.session().await;
        let (done, answer) = oneshot::channel();
        if session.send(request(done)).await.is_ok() && answer.await.is_ok() {
            return true;
        }
        // It says so itself in a moment.
        tokio::time::sleep(BACKOFF_MIN).await;
        false
    }
}

/// Ends when the snapshot is gone, since a copy that went on would be for nothing. A connection that is used is also not
/// forgotten by a network that forgets those that are not.
async fn lost(holder: &SnapshotHolder) -> Fault {
    loop {
        tokio::time::sleep(HOLDER_CHECK_EVERY).await;
        if let Err(fault) = holder.check().await {
            return fault;
        }
    }
}
