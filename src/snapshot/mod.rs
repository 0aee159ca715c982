//! The initial snapshot: rows that were there before a table was followed, joined to its changes.
//!
//! ```text
//!   slot --- consistent point P, snapshot ---> holder (locks) ---> workers --- raw COPY ---> history
//!                                                                                  |copied
//!   stream ---> applier --- held until then ---> waltrail.held --- replayed -------+-> history
//! ```
//!
//! Why nothing is lost and nothing comes twice: whatever committed before P is in the snapshot, and its
//! changes are left out for that table; whatever committed after it is held, in the transaction that moves the
//! checkpoint past it, and added once the rows are recorded. The stream of other tables goes on meanwhile. When little is
//! left, the applier adds the rest between two batches and from then on writes the changes of this table like any other's: the
//! table is *joined*.
//!
//! A [`TableSync`] is the work on some tables at one point, a task that outlives a session. What it knows is in
//! `waltrail.snapshot`; a sync that fails for a passing reason begins again with a new point for the tables that are not recorded, and one that was killed is taken up by the next
//! start in the same way (ARCHITECTURE.md, "Why no restart loses or doubles a change").

pub(crate) mod baseline;
pub(crate) mod copy;
pub(crate) mod point;
pub mod progress;
pub mod state;
pub(crate) mod table_sync;
pub(crate) mod tables;

use std::collections::HashSet;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::clock;
use crate::config::Config;
use crate::fault::Fault;
use crate::history::held::Request;
use crate::schema::TableName;
use crate::server::answers;
use point::Point;
use progress::{CopyProgress, TableCopy};
use state::{State, Table};
use table_sync::TableSync;

/// Where the session that runs takes requests.
pub type RequestSender = watch::Sender<Option<mpsc::Sender<Request>>>;

/// What syncs, sessions and the daemon share.
#[derive(Debug)]
pub struct Shared {
    /// Tables that some sync works on, and whether their rows are still to be recorded.
    in_hand: Mutex<HashSet<(TableName, bool)>>,
    /// When tables were last begun with or recorded, in microseconds since 2000-01-01.
    moved: AtomicI64,
    /// The progress of the attempts at work.
    attempts: Mutex<Vec<Weak<CopyProgress>>>,
    /// Where the session that runs takes requests.
    pub requests: RequestSender,
}

impl Shared {
    /// The tables that are being copied now, by all syncs.
    pub fn tables(&self) -> Vec<TableCopy> {
        let attempts = self.attempts(|attempts| attempts.clone());
        let attempts = attempts.iter().filter_map(Weak::upgrade);
        attempts.flat_map(|progress| progress.tables()).collect()
    }

    /// How many tables are still to be recorded, and how many are recorded and not joined yet.
    pub fn unjoined(&self) -> (usize, usize) {
        self.in_hand(|tables| {
            let copying = tables.iter().filter(|(_, copying)| *copying).count();
            (copying, tables.len() - copying)
        })
    }

    /// When the recording of existing rows last went on, in microseconds since 2000-01-01; `None`: none are to be recorded.
    pub fn last_progress(&self) -> Option<i64> {
        let (copying, _) = self.unjoined();
        let tables = self.tables().into_iter();
        let moved = tables.map(|line| line.counter.moved()).max();
        let moved = moved.max(Some(self.moved.load(Ordering::Relaxed)));
        moved.filter(|_| copying > 0)
    }

    fn moves(&self) {
        self.moved.store(clock::now(), Ordering::Relaxed);
    }

    /// A progress for an attempt; it is forgotten with it.
    fn progress(&self) -> Arc<CopyProgress> {
        let progress = Arc::new(CopyProgress::default());
        self.attempts(|attempts| {
            attempts.retain(|progress| progress.strong_count() > 0);
            attempts.push(Arc::downgrade(&progress));
        });
        progress
    }

    fn attempts<T>(&self, act: impl FnOnce(&mut Vec<Weak<CopyProgress>>) -> T) -> T {
        act(&mut self.attempts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn in_hand<T>(&self, act: impl FnOnce(&mut HashSet<(TableName, bool)>) -> T) -> T {
        act(&mut self.in_hand.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The rows of a table are recorded.
    fn recorded(&self, table: &TableName) {
        self.moves();
        self.in_hand(|tables| {
            tables.remove(&(table.clone(), true));
            tables.insert((table.clone(), false));
        });
    }

    /// The work on a table has ended.
    fn release(&self, table: &TableName) {
        self.in_hand(|tables| {
            for copying in [true, false] {
                tables.remove(&(table.clone(), copying));
            }
        });
    }
}

pub struct TableSyncs {
    shared: Arc<Shared>,
    faults: mpsc::UnboundedSender<Fault>,
    tasks: Mutex<Vec<AbortHandle>>,
    no_retry: bool,
    instance: AtomicU32,
}

impl TableSyncs {
    /// No sync yet; the receiver gets the fault of one that ended for good, and with it the daemon must. `no_retry`: any
    /// fault is such an end.
    pub fn new(no_retry: bool) -> (Self, mpsc::UnboundedReceiver<Fault>) {
        let (faults, ended) = mpsc::unbounded_channel();
        let syncs = Self {
            shared: Arc::new(Shared {
                in_hand: Mutex::default(),
                moved: AtomicI64::default(),
                attempts: Mutex::default(),
                requests: watch::channel(None).0,
            }),
            faults,
            tasks: Mutex::default(),
            no_retry,
            instance: AtomicU32::new(fastrand::u32(..)),
        };
        (syncs, ended)
    }

    pub fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Says where the session that runs takes requests, or that none runs.
    pub fn send_requests_to(&self, requests: Option<mpsc::Sender<Request>>) {
        self.shared.requests.send_replace(requests);
    }

    /// Begins a sync of the tables that no other sync works on. `point`: that of the slot that was made just now.
    pub fn begin(&self, config: &Config, tables: &[Table], point: Option<Point>) {
        let tables: Vec<TableName> = self.shared.in_hand(|in_hand| {
            let in_hand: HashSet<&TableName> = in_hand.iter().map(|(name, _)| name).collect();
            tables
                .iter()
                .filter(|table| table.state != State::Done)
                .filter(|table| !in_hand.contains(&table.history))
                .map(|table| table.history.clone())
                .collect()
        });
        if tables.is_empty() {
            return;
        }
        self.shared.moves();
        self.shared
            .in_hand(|in_hand| in_hand.extend(tables.iter().map(|name| (name.clone(), true))));
        let sync = TableSync {
            config: Arc::new(config.clone()),
            tables,
            shared: Arc::clone(&self.shared),
            no_retry: self.no_retry,
            instance: self.instance.load(Ordering::Relaxed),
        };
        let task = tokio::spawn(async move { sync.run(point).await });
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|task| !task.is_finished());
        tasks.push(task.abort_handle());
        let faults = self.faults.clone();
        tokio::spawn(async move {
            let fault = match task.await {
                Ok(Err(fault)) => fault,
                Err(error) if error.is_panic() => answers::of_task("the snapshot", error),
                // It was stopped.
                Ok(Ok(())) | Err(_) => return,
            };
            // Without a daemon there is nothing to end.
            let _ = faults.send(fault);
        });
    }

    /// Ends every sync; what was not recorded rolls back. Returns the tables whose rows the next sync must copy again.
    pub fn stop(&self) -> Vec<TableName> {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.drain(..).for_each(|task| task.abort());
        self.instance.store(fastrand::u32(..), Ordering::Relaxed);
        let in_hand = self.shared.in_hand(std::mem::take);
        let mut redone: Vec<TableName> = in_hand
            .into_iter()
            .filter_map(|(table, copying)| copying.then_some(table))
            .collect();
        redone.sort();
        redone
    }
}
