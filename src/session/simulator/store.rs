//! The target: commits are visible at once and durable later, and a crash forgets those that are not.

use tokio::sync::oneshot;

use super::log::Transaction;
use super::{Shared, lock};
use crate::checkpoint::Checkpoint;
use crate::fault::{self, Fault};
use crate::history::batch::{Batch, Seal};
use crate::history::write::Write;
use crate::history::writer::WriterError;
use crate::lsn::Lsn;
use crate::pgoutput::Timestamp;
use crate::source::slot::SlotState;
use crate::wire::Error;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    table: usize,
    commit: u64,
    seq: u64,
    kind: Vec<u8>,
    id: i32,
    value: Option<Vec<u8>>,
}

/// What one more commit has made of the target.
#[derive(Clone, Copy, Debug)]
pub(super) struct Version {
    /// The history's rows.
    rows: usize,
    /// So many transactions of the source's log are in it, or left nothing to record.
    pub(super) done: usize,
    pub(super) checkpoint: Lsn,
    time: Option<Timestamp>,
    pub(super) reported: Lsn,
}

/// What a session has asked for.
enum What {
    Write {
        rows: Vec<Row>,
        seal: Option<Seal>,
        seen: Lsn,
    },
    Durable {
        reported: Option<Lsn>,
        /// What was committed when it was asked for.
        versions: usize,
    },
}

/// It is done, in one step or two, before its answer goes out.
struct Asked {
    what: What,
    /// Who asked.
    copy: u32,
    done: bool,
    answer: oneshot::Sender<()>,
}

pub(super) struct Store {
    versions: Vec<Version>,
    /// So many of them survive a crash.
    durable: usize,
    rows: Vec<Row>,
    /// Rows of the target transaction that is open.
    open: Vec<Row>,
    asked: Vec<Asked>,
    /// Sessions of another one are gone.
    generation: u64,
    /// While it is set, nothing is done.
    pub(super) stalled: bool,
    /// Whatever is committed from now on is wrong.
    pub(super) frozen: bool,
}

impl Store {
    /// Without history, for a slot that was made at `begin`.
    pub(super) fn new(begin: Lsn) -> Self {
        Self {
            versions: vec![Version {
                rows: 0,
                done: 0,
                checkpoint: begin,
                time: None,
                reported: begin,
            }],
            durable: 1,
            rows: Vec::new(),
            open: Vec::new(),
            asked: Vec::new(),
            generation: 0,
            stalled: false,
            frozen: false,
        }
    }

    pub(super) fn now(&self) -> Version {
        self.versions[self.versions.len() - 1]
    }

    pub(super) fn durable(&self) -> Version {
        self.versions[self.durable - 1]
    }

    pub(super) fn is_durable(&self) -> bool {
        self.durable == self.versions.len()
    }

    pub(super) fn is_asked(&self) -> usize {
        self.asked.len()
    }

    /// The checkpoint, for a session of `generation`.
    pub(super) fn checkpoint(&self, generation: u64) -> Option<Checkpoint> {
        let now = self.now();
        (generation == self.generation).then_some(Checkpoint {
            system_identifier: 7,
            timeline: 1,
            end_lsn: Some(now.checkpoint),
            reported_lsn: Some(now.reported),
            commit_time: now.time,
        })
    }

    /// WAL reaches the disk without a barrier, up to the `n`th commit that was not there.
    pub(super) fn flush(&mut self, n: usize) {
        self.durable = self.versions.len().min(self.durable + n);
    }

    /// The daemon is gone. Of what it asked for, `keeps` says whether it still happens.
    pub(super) fn abandoned(
        &mut self,
        log: &[Transaction],
        mut keeps: impl FnMut() -> bool,
    ) -> Result<(), String> {
        let asked = std::mem::take(&mut self.asked);
        for mut asked in asked {
            while !asked.done && keeps() {
                asked.done = self.execute(&mut asked.what, log)?;
            }
        }
        self.open.clear();
        self.generation += 1;
        Ok(())
    }

    /// All sessions end, and of what was committed `kept` commits remain that were not durable.
    pub(super) fn crash(&mut self, kept: usize) -> usize {
        let before = self.versions.len();
        self.asked.clear();
        self.open.clear();
        self.generation += 1;
        self.versions.truncate(self.durable + kept);
        self.rows.truncate(self.now().rows);
        self.durable = self.versions.len();
        before - self.versions.len()
    }

    /// An older state is restored, in which nothing from `lsn` on was confirmed; whether there is one.
    pub(super) fn restore(&mut self, lsn: Lsn) -> bool {
        let older = |version: &Version| version.checkpoint.max(version.reported) < lsn;
        self.durable = match self.versions.iter().rposition(older) {
            Some(last) => last + 1,
            None => return false,
        };
        self.crash(0);
        true
    }

    /// Takes one step with one of the things that were asked for.
    pub(super) fn step(&mut self, at: usize, log: &[Transaction]) -> Result<(), String> {
        let mut asked = self.asked.remove(at);
        if asked.done {
            // It may have given up.
            let _ = asked.answer.send(());
            return Ok(());
        }
        asked.done = self.execute(&mut asked.what, log)?;
        self.asked.insert(at, asked);
        Ok(())
    }

    /// Whether that was all of it.
    fn execute(&mut self, what: &mut What, log: &[Transaction]) -> Result<bool, String> {
        match what {
            What::Write { rows, seal, seen } => {
                self.open.append(rows);
                if let Some(seal) = seal {
                    self.commit(*seal, *seen, log)?;
                }
                Ok(true)
            }
            What::Durable { reported, versions } => {
                if let Some(lsn) = reported.take() {
                    let now = self.now();
                    let reported = now.reported.max(lsn);
                    self.versions.push(Version { reported, ..now });
                    *versions = self.versions.len();
                    return Ok(false);
                }
                self.durable = self.durable.max(*versions);
                Ok(true)
            }
        }
    }

    /// Commits what is open (I1, I2): rows and checkpoint together, and nothing but the next transactions, whole.
    fn commit(&mut self, seal: Seal, seen: Lsn, log: &[Transaction]) -> Result<(), String> {
        let now = self.now();
        if self.frozen {
            return Err(format!(
                "I4: {} was written after a stranger's change",
                seal.end_lsn
            ));
        }
        if seen != now.checkpoint {
            return Err(format!(
                "I6: the checkpoint is {}, the writer believes {seen}",
                now.checkpoint
            ));
        }
        let of = |transaction: &Transaction| {
            transaction.is_ours()
                && transaction.end == seal.end_lsn
                && transaction.commit == seal.commit_lsn
                && transaction.time == seal.commit_time.0
        };
        let Some(last) = log.iter().rposition(of) else {
            return Err(format!("I2: {} is the end of no transaction", seal.end_lsn));
        };
        let rows = std::mem::take(&mut self.open);
        if now.done > last {
            return Err(format!("I2: {} is in the history already", seal.end_lsn));
        }
        compare(&rows, &log[now.done..=last])?;
        self.rows.extend(rows);
        self.versions.push(Version {
            rows: self.rows.len(),
            done: last + 1,
            checkpoint: seal.end_lsn,
            time: Some(seal.commit_time),
            reported: now.reported.max(seal.end_lsn),
        });
        Ok(())
    }

    /// The whole history is that of the log up to the checkpoint.
    pub(super) fn check_all(&self, log: &[Transaction]) -> Result<(), String> {
        compare(&self.rows, &log[..self.now().done])
    }
}

/// Whether each table's rows are those of `log`, in order.
fn compare(rows: &[Row], log: &[Transaction]) -> Result<(), String> {
    for table in 0..super::log::OURS {
        let mut got = rows.iter().filter(|row| row.table == table);
        for transaction in log {
            for (seq, change) in transaction.recorded() {
                if change.table != table {
                    continue;
                }
                let wanted = Row {
                    table,
                    commit: transaction.commit.as_u64(),
                    seq,
                    kind: change.kind.into(),
                    id: change.id,
                    value: change.value.clone(),
                };
                match got.next() {
                    Some(row) if *row == wanted => {}
                    got => return Err(format!("I1: the history has {got:?} for {wanted:?}")),
                }
            }
        }
        if let Some(row) = got.next() {
            return Err(format!("I1: the history has {row:?} too many"));
        }
    }
    Ok(())
}

/// The rows of a batch, which stand in COPY's binary format.
fn rows(batch: &Batch) -> Vec<Row> {
    let mut all = Vec::new();
    for of_table in batch.tables() {
        let table = of_table.plan().history.name.parse().unwrap();
        let mut bytes = of_table.bytes();
        for _ in 0..of_table.count() {
            let (width, rest) = bytes.split_first_chunk().unwrap();
            assert_eq!(i16::from_be_bytes(*width), 5);
            bytes = rest;
            let mut next = || {
                let (length, rest) = bytes.split_first_chunk().unwrap();
                let length = usize::try_from(i32::from_be_bytes(*length)).ok();
                let (value, rest) = rest.split_at(length.unwrap_or(0));
                bytes = rest;
                length.map(|_| value.to_vec())
            };
            let mut must = || next().unwrap();
            let id = i32::from_be_bytes(must().try_into().unwrap());
            let value = next();
            let mut must = || next().unwrap();
            all.push(Row {
                table,
                id,
                value,
                kind: must(),
                commit: u64::from_be_bytes(must().try_into().unwrap()),
                seq: u64::from_be_bytes(must().try_into().unwrap()),
            });
        }
        assert!(bytes.is_empty());
    }
    all
}

/// A daemon's connections to the target, and the one by which it looks at the source.
pub(super) struct Sessions {
    world: Shared,
    pub(super) generation: u64,
    source: u64,
    /// Tells copies of it apart: which of two tasks asks first in one moment is tokio's choice, and not the seed's.
    copy: u32,
}

impl Clone for Sessions {
    fn clone(&self) -> Self {
        Self {
            world: Shared::clone(&self.world),
            generation: self.generation,
            source: self.source,
            copy: self.copy + 1,
        }
    }
}

impl Sessions {
    pub(super) fn open(world: &Shared) -> Self {
        let (generation, source) = {
            let world = lock(world);
            (world.store.generation, world.source.generation)
        };
        Self {
            world: Shared::clone(world),
            generation,
            source,
            copy: 0,
        }
    }

    /// Where the slot is.
    pub(super) fn slot(&self) -> fault::Result<SlotState> {
        let source = &lock(&self.world).source;
        if source.generation != self.source {
            return Err(Fault::retry("the source crashed"));
        }
        Ok(SlotState {
            plugin: Some("pgoutput".to_owned()),
            database: Some("app".to_owned()),
            confirmed_flush: Some(source.confirmed),
            restart_lsn: Some(source.persisted),
            wal_status: Some("reserved".to_owned()),
            ..SlotState::default()
        })
    }

    /// Whether it was done. It was, or was not, when the answer is lost.
    async fn ask(&self, what: What) -> bool {
        let answered = {
            let store = &mut lock(&self.world).store;
            if store.generation != self.generation {
                return false;
            }
            let (answer, answered) = oneshot::channel();
            store.asked.push(Asked {
                what,
                copy: self.copy,
                done: false,
                answer,
            });
            store.asked.sort_by_key(|asked| match asked.what {
                What::Write { .. } => None,
                What::Durable { .. } => Some(asked.copy),
            });
            answered
        };
        answered.await.is_ok()
    }
}

impl Write for Sessions {
    type Session = Self;

    async fn write(session: &mut Self, batch: &Batch, seen: Lsn) -> Result<(), WriterError> {
        let what = What::Write {
            rows: rows(batch),
            seal: batch.seal(),
            seen,
        };
        match session.ask(what).await {
            true => Ok(()),
            false => Err(Error::Closed.into()),
        }
    }

    async fn make_durable(&self, reported: Option<Lsn>) -> fault::Result<()> {
        let versions = lock(&self.world).store.versions.len();
        match self.ask(What::Durable { reported, versions }).await {
            true => Ok(()),
            false => Err(Fault::retry("the target crashed")),
        }
    }
}
