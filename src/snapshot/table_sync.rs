//! One sync: some tables, one point, until all of them are joined.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_postgres::Client;

use super::Shared;
use super::copy::{self, Job};
use super::point::{Point, SnapshotHolder};
use super::progress::{self, CopyProgress, Counter, TableCopy};
use super::state::{self, Beginning, State, Table};
use super::tables;
use crate::config::{Config, SnapshotMode};
use crate::fault::{Fault, Result, Retries};
use crate::history::held::{self, Added};
use crate::history::writer::Writer;
use crate::history::{gate::Gate, held::Request};
use crate::lsn::Lsn;
use crate::schema::TableName;
use crate::server::{self, Side};
use crate::setup::{LINES_MAX, layout};

/// A line of the log at `info`, or, where there are too many of its kind, at `debug`.
macro_rules! log_each {
    ($are_many:expr, $($line:tt)*) => {
        match $are_many {
            true => tracing::debug!($($line)*),
            false => tracing::info!($($line)*),
        }
    };
}

/// A session that ended says why in a moment.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// A table is joined, while the stream waits, when one transaction added all that was held: then little has come
/// meanwhile. Or after so many tries to get there: changes come as fast as they are added.
const REPLAYS_MAX: usize = 10_000;
/// Tables that are recorded at one point: each is locked by every worker, and the server's table of locks has limited room.
pub(crate) const TABLES_AT_A_POINT: usize = 1_000;
/// Tables that are joined at once, while the stream waits.
const SETTLED_AT_ONCE: usize = 256;
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
        let mut retries = Retries::default();
        while let Err(fault) = self.attempt(point.take()).await {
            if self.no_retry {
                return Err(fault);
            }
            let (retry, fault) = retries.after(fault, Lsn::ZERO, false, Instant::now())?;
            retry.log(&fault, "the snapshot failed and is begun again");
            tokio::time::sleep(retry.pause).await;
        }
        if let Some(passed) = retries.done(Instant::now()) {
            passed.log();
        }
        for table in &self.tables {
            self.shared.release(table);
        }
        if self.are_many() {
            tracing::info!(tables = self.tables.len(), "all tables joined the stream");
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
        let (copied, mut to_settle) = mpsc::unbounded_channel();
        let waiting = self.waiting(&target, &copied).await?;
        let progress = self.shared.progress();
        let copying = async {
            // The reports of recorded tables end with the copy.
            let copied = copied;
            let mut point = point;
            for some in waiting.chunks(TABLES_AT_A_POINT) {
                let point = match point.take() {
                    Some(point) => point,
                    None => Point::take(&self.config, self.instance).await?,
                };
                self.copy(&target, &progress, point, some, copied.clone())
                    .await?;
            }
            Ok(())
        };
        let settling = async {
            let mut recorded = Vec::new();
            while to_settle.recv_many(&mut recorded, SETTLED_AT_ONCE).await > 0 {
                for table in &recorded {
                    self.is_recorded(&progress, table);
                }
                self.settle(&target, std::mem::take(&mut recorded)).await?;
            }
            Ok::<_, Fault>(())
        };
        tokio::select! {
            done = async { tokio::try_join!(copying, settling) } => done.map(|_| ()),
            () = progress::report(&progress, &target, slot) => Ok(()),
        }
    }

    /// The tables whose existing rows are to be recorded, in the order of the configuration; those that are recorded go
    /// to `copied`.
    async fn waiting(
        &self,
        target: &Client,
        copied: &mpsc::UnboundedSender<TableName>,
    ) -> Result<Vec<TableName>> {
        let (mut waiting, mut left_out) = (HashSet::new(), Vec::new());
        for table in self.known(target, &self.tables).await? {
            match (table.state, self.config.snapshot.mode) {
                (State::Done, _) => self.shared.release(&table.history),
                (State::Waiting | State::Copying, SnapshotMode::Initial) => {
                    waiting.insert(table.history);
                }
                (State::Waiting | State::Copying, SnapshotMode::Never) => {
                    left_out.push(table.history);
                }
                (State::Copied, _) => {
                    let _ = copied.send(table.history);
                }
            }
        }
        if !left_out.is_empty() {
            let slot = self.config.source.slot.as_str();
            state::leave_out(target, slot, &left_out).await?;
        }
        for history in left_out {
            tracing::warn!(
                %history,
                "snapshot.mode is \"never\" now: the existing rows of this table are left out, and its history begins \
                 with the changes that are held"
            );
            let _ = copied.send(history);
        }
        let wanted = self.config.tables.iter().map(|table| &table.history);
        let waiting: Vec<TableName> = wanted
            .filter(|history| waiting.contains(*history))
            .cloned()
            .collect();
        if !waiting.is_empty() {
            self.hold_singly(&waiting).await;
        }
        Ok(waiting)
    }

    /// What is known of these tables, as far as they are still captured.
    async fn known(&self, target: &Client, tables: &[TableName]) -> Result<Vec<Table>> {
        let histories: Vec<String> = tables.iter().map(ToString::to_string).collect();
        state::read_some(target, &self.config.source.slot, &histories).await
    }

    fn is_recorded(&self, progress: &CopyProgress, table: &TableName) {
        self.shared.recorded(table);
        if let Some(line) = progress.remove(table) {
            let (rows, bytes) = line.counter.now();
            log_each!(self.are_many(), table = %line.source, history = %table, rows, bytes, "the existing rows are recorded");
        }
    }

    /// More tables than the log has lines for.
    fn are_many(&self) -> bool {
        self.tables.len() > LINES_MAX
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
        let waiting: HashSet<&TableName> = waiting.iter().collect();
        let wanted = self.config.tables.iter();
        let wanted: Vec<_> = wanted
            .filter(|table| waiting.contains(&table.history))
            .collect();
        let works = tables::plan(&self.config, &point, target, &wanted).await?;
        let beginnings: Vec<Beginning<'_>> = works
            .iter()
            .map(|work| (&work.history, work.estimates))
            .collect();
        let begun = state::begin(target, slot, &beginnings, point.lsn, &point.holder.time).await?;
        let layouts = works
            .iter()
            .map(|work| (&work.history, work.layout.clone()));
        let layouts: Vec<_> = layouts.collect();
        layout::arrive(target, &layouts)
            .await
            .map_err(Side::Target.failed("could not keep the columns of the tables"))?;
        self.announce_point(
            works.iter().map(|work| work.history.clone()).collect(),
            point.lsn,
        );
        let mut jobs = Vec::with_capacity(works.len());
        for work in works {
            let counter = Arc::new(Counter::default());
            progress.add(TableCopy::new(
                work.source.clone(),
                work.history.clone(),
                work.estimates.0.unsigned_abs(),
                Arc::clone(&counter),
            ));
            jobs.push(Job {
                attempt: begun
                    .get(&work.history.to_string())
                    .copied()
                    .unwrap_or_default(),
                work,
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

    /// Adds what is held of tables whose rows are recorded, and joins them to the stream.
    async fn settle(&self, target: &Arc<Client>, mut tables: Vec<TableName>) -> Result<()> {
        self.replay(target, &tables).await?;
        while !tables.is_empty() {
            let (joined, unjoined) = self.unjoined(target, &tables).await?;
            for history in &joined {
                log_each!(self.are_many(), %history, "joined the stream");
            }
            for table in &tables {
                if !unjoined.iter().any(|(history, _)| history == table) {
                    self.shared.release(table);
                }
            }
            tables = unjoined
                .iter()
                .map(|(history, _)| history.clone())
                .collect();
            if !unjoined.is_empty() {
                self.asked(|done| Request::Join {
                    client: Arc::clone(target),
                    histories: unjoined.clone(),
                    done,
                })
                .await;
            }
        }
        Ok(())
    }

    /// Adds what is held, until one transaction takes the rest of each table: then little has come meanwhile.
    async fn replay(&self, target: &Client, tables: &[TableName]) -> Result<()> {
        let slot = self.config.source.slot.as_str();
        let holding = held::holding(target, slot, &tables.iter().collect::<Vec<_>>()).await?;
        if holding.is_empty() {
            return Ok(());
        }
        let mut session = Writer::connect(&self.config.target, slot).await?;
        for (table, point) in self.unjoined(target, tables).await?.1 {
            for _ in 0..REPLAYS_MAX {
                let added = match holding.contains(&table) {
                    true => held::replay(&mut session, target, &table, point).await?,
                    false => Added::Nothing,
                };
                if added != Added::Some {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Which of these tables are joined, and which are not, with their points; the others are no longer captured.
    async fn unjoined(
        &self,
        target: &Client,
        tables: &[TableName],
    ) -> Result<(Vec<TableName>, Vec<(TableName, Lsn)>)> {
        let (mut joined, mut unjoined) = (Vec::new(), Vec::new());
        for table in self.known(target, tables).await? {
            match (table.state, table.point) {
                (State::Copied, Some(point)) => unjoined.push((table.history, point)),
                (State::Copied, None) => {
                    return Err(Fault::bug(
                        "recorded existing rows without a consistent point",
                    ));
                }
                (State::Done, _) => joined.push(table.history),
                (State::Waiting | State::Copying, _) => {
                    return Err(Fault::retry(format!(
                        "the target has lost the existing rows of {} in a crash",
                        table.history
                    )));
                }
            }
        }
        Ok((joined, unjoined))
    }

    /// Before a point is taken nothing may be held as if it were past the last one. The process that gave the last attempt up may not
    /// have come so far as to say it.
    async fn hold_singly(&self, histories: &[TableName]) {
        while !self
            .asked(|done| Request::Hold {
                histories: histories.to_vec(),
                gate: Gate::Waiting,
                done,
            })
            .await
        {}
    }

    /// Lets the session that runs, if one does, know the point: it may hold less.
    fn announce_point(&self, histories: Vec<TableName>, point: Lsn) {
        let (done, _) = oneshot::channel();
        let request = Request::Hold {
            histories,
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
        tokio::time::sleep(ASK_AGAIN).await;
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
