//! The rows that share one target transaction.
//!
//! A batch holds, per shape of a table, the rows of whole source transactions, ready to be sent, and perhaps
//! the first rows of one more. What is complete can be written while the rest waits: [`Batch::take_rest`]
//! moves the incomplete part to the next batch. A transaction larger than a batch leaves in pieces: a batch
//! without a [`Seal`] is written into the target transaction that stays open. Pure.

use std::sync::Arc;

use super::tally::{Kind, Tally};
use crate::lsn::Lsn;
use crate::pgoutput::Timestamp;
use crate::schema::plan::Plan;

/// Emptied buffers that are kept: a batch touches few tables, or its buffers are small.
const SPARE_MAX: usize = 64;
/// Room for the commit times of so many transactions is kept.
const TIMES_KEPT: usize = 8 * 1024;

/// What the checkpoint says once the batch is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Of the last transaction.
    pub commit_lsn: Lsn,
    pub end_lsn: Lsn,
    pub commit_time: Timestamp,
}

#[derive(Debug)]
pub struct Rows {
    plan: Arc<Plan>,
    bytes: Vec<u8>,
    count: usize,
    tally: Tally,
    complete_bytes: usize,
    complete_count: usize,
    complete_tally: Tally,
    /// For a gated plan: where the rows of each transaction begin, by its commit position.
    marks: Vec<(Lsn, usize)>,
}

impl Rows {
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The rows, in the plan's format, one after the other.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// The same by the kind of change.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    fn keep_complete(&mut self) {
        self.bytes.truncate(self.complete_bytes);
        self.count = self.complete_count;
        self.tally = self.complete_tally;
        let complete = self.complete_bytes;
        self.marks.retain(|&(_, start)| start < complete);
    }

    /// Where the rows of each transaction begin, by its commit position; only of a gated plan.
    pub fn marks(&self) -> &[(Lsn, usize)] {
        &self.marks
    }
}

#[derive(Debug)]
pub struct Batch {
    retained_max: usize,
    /// In the order of their first row, which keeps the order of rows where a table's shape changes.
    rows: Vec<Rows>,
    /// Indexed by plan id: the position in `rows`, if any.
    position: Vec<Option<u32>>,
    /// Positions with rows of the transaction that is not complete.
    incomplete: Vec<u32>,
    spare: Vec<Vec<u8>>,
    count: usize,
    bytes: usize,
    complete_count: usize,
    /// When each complete transaction committed, by the source's clock.
    commit_times: Vec<Timestamp>,
    /// The commit position of the transaction that began last, and when it committed.
    begun: Lsn,
    begun_time: Option<Timestamp>,
    seal: Option<Seal>,
    /// What else its target transaction does.
    also: Vec<String>,
}

impl Batch {
    /// An empty batch that keeps at most `retained_max` bytes of memory when it is emptied.
    pub fn new(retained_max: usize) -> Self {
        Self {
            retained_max,
            rows: Vec::new(),
            position: Vec::new(),
            incomplete: Vec::new(),
            spare: Vec::new(),
            count: 0,
            bytes: 0,
            complete_count: 0,
            commit_times: Vec::new(),
            begun: Lsn::ZERO,
            begun_time: None,
            seal: None,
            also: Vec::new(),
        }
    }

    /// Lets `write` append rows of the plan with this `id`, of the transaction that committed at `commit_lsn`, and return
    /// their number. A changed shape has another id.
    ///
    /// # Errors
    /// What `write` fails with; the batch then holds part of a row and must be dropped.
    #[inline]
    pub fn append<E>(
        &mut self,
        id: usize,
        plan: &Arc<Plan>,
        commit_lsn: Lsn,
        kind: Kind,
        write: impl FnOnce(&mut Vec<u8>) -> Result<usize, E>,
    ) -> Result<(), E> {
        let at = self.position_of(id, plan);
        let rows = &mut self.rows[at as usize];
        let before = rows.bytes.len();
        let written = write(&mut rows.bytes)?;
        rows.tally.add(kind, written);
        self.added(at, commit_lsn, before, written);
        Ok(())
    }

    #[inline(always)]
    fn position_of(&mut self, id: usize, plan: &Arc<Plan>) -> u32 {
        match self.position.get(id) {
            Some(&Some(at)) => at,
            _ => self.open_rows(id, plan),
        }
    }

    /// Rows were added to those at `at`, whose bytes ended at `before`.
    #[inline(always)]
    fn added(&mut self, at: u32, commit_lsn: Lsn, before: usize, count: usize) {
        let rows = &mut self.rows[at as usize];
        if rows.count == rows.complete_count {
            self.incomplete.push(at);
            // No row of another transaction is incomplete.
            if rows.plan.gated {
                rows.marks.push((commit_lsn, before));
            }
        }
        rows.count += count;
        self.count += count;
        self.bytes += rows.bytes.len() - before;
    }

    /// Counts values that the WAL did not carry, of the row that was appended last, which has the plan with this `id`.
    #[cold]
    pub fn note_unavailable(&mut self, id: usize, values: u64) {
        let at = self.position.get(id).copied().flatten();
        if let Some(rows) = at.and_then(|at| self.rows.get_mut(at as usize)) {
            rows.tally.unavailable += values;
        }
    }

    #[cold]
    #[inline(never)]
    fn open_rows(&mut self, id: usize, plan: &Arc<Plan>) -> u32 {
        if id >= self.position.len() {
            self.position.resize(id + 1, None);
        }
        // Far fewer than 2^32 plans.
        let at = self.rows.len() as u32;
        self.position[id] = Some(at);
        self.rows.push(Rows {
            plan: Arc::clone(plan),
            bytes: self.spare.pop().unwrap_or_default(),
            count: 0,
            tally: Tally::default(),
            complete_bytes: 0,
            complete_count: 0,
            complete_tally: Tally::default(),
            marks: Vec::new(),
        });
        at
    }

    /// A transaction begins.
    pub fn begin(&mut self, commit_lsn: Lsn, commit_time: Timestamp) {
        self.begun = commit_lsn;
        self.begun_time = Some(commit_time);
    }

    /// The transaction that is not complete in `before` goes on here.
    pub fn go_on_from(&mut self, before: &Self) {
        (self.begun, self.begun_time) = (before.begun, before.begun_time);
    }

    /// When the first of the transactions committed that have rows here.
    pub fn oldest(&self) -> Option<Timestamp> {
        match self.commit_times.first() {
            Some(first) => Some(*first),
            None => self.begun_time.filter(|_| self.count > 0),
        }
    }

    /// The commit position of the one transaction that has rows here; `None` when several have.
    pub fn only_transaction(&self) -> Option<Lsn> {
        match (self.transactions(), self.seal) {
            (0, _) => Some(self.begun),
            (1, Some(seal)) => Some(seal.commit_lsn),
            _ => None,
        }
    }

    pub fn complete(&mut self, seal: Seal) {
        for at in self.incomplete.drain(..) {
            let rows = &mut self.rows[at as usize];
            (rows.complete_bytes, rows.complete_count) = (rows.bytes.len(), rows.count);
            rows.complete_tally = rows.tally;
        }
        self.complete_count = self.count;
        self.commit_times.push(seal.commit_time);
        self.seal = Some(seal);
    }

    /// Adds a statement to the target transaction of what is complete.
    #[cold]
    pub fn add_statement(&mut self, statement: String) {
        self.also.push(statement);
    }

    /// The statements that its target transaction runs beside its rows.
    pub fn statements(&self) -> &[String] {
        &self.also
    }

    /// What the checkpoint says once this is committed; `None` when no transaction ended in it.
    pub fn seal(&self) -> Option<Seal> {
        self.seal
    }

    pub fn count(&self) -> usize {
        self.count
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn transactions(&self) -> usize {
        self.commit_times.len()
    }

    /// When each complete transaction committed, by the source's clock.
    pub fn commit_times(&self) -> &[Timestamp] {
        &self.commit_times
    }

    pub fn tables(&self) -> impl Iterator<Item = &Rows> {
        self.rows.iter().filter(|rows| rows.count > 0)
    }

    /// Moves the rows of the transaction that is not complete to `next`. Call it on a batch that has a seal,
    /// before it is written.
    pub fn take_rest(&mut self, next: &mut Self) {
        next.go_on_from(self);
        if self.complete_count == self.count {
            return;
        }
        for (id, at) in self.position.iter().enumerate() {
            let Some(rows) = at.and_then(|at| self.rows.get_mut(at as usize)) else {
                continue;
            };
            let moved = rows.count - rows.complete_count;
            if moved == 0 {
                continue;
            }
            let rest = &rows.bytes[rows.complete_bytes..];
            // They are all of one transaction, the last.
            let commit_lsn = rows.marks.last().map_or(Lsn::ZERO, |&(lsn, _)| lsn);
            let to = next.position_of(id, &rows.plan);
            let next_rows = &mut next.rows[to as usize];
            let before = next_rows.bytes.len();
            next_rows.bytes.extend_from_slice(rest);
            next_rows.tally += rows.tally.since(&rows.complete_tally);
            next.added(to, commit_lsn, before, moved);
            self.bytes -= rest.len();
            rows.keep_complete();
        }
        self.incomplete.clear();
        self.count = self.complete_count;
    }

    /// Drops the rows of the transaction that is not complete, and what [`Batch::append`] left of a row when it failed.
    pub fn keep_complete(&mut self) {
        for rows in &mut self.rows {
            rows.keep_complete();
        }
        self.bytes = self.rows.iter().map(|rows| rows.bytes.len()).sum();
        self.count = self.complete_count;
        self.incomplete.clear();
    }

    /// Empties the batch and keeps what memory is worth keeping: the largest buffers, since the next rows
    /// are likely to be for the same tables.
    pub fn clear(&mut self) {
        self.spare
            .extend(self.rows.drain(..).map(|rows| rows.bytes));
        self.spare
            .sort_unstable_by_key(|bytes| std::cmp::Reverse(bytes.capacity()));
        let mut retained = 0;
        self.spare.retain_mut(|bytes| {
            bytes.clear();
            let fits = retained + bytes.capacity() <= self.retained_max;
            retained += if fits { bytes.capacity() } else { 0 };
            fits
        });
        self.spare.truncate(SPARE_MAX);
        self.spare.reverse();
        self.position.fill(None);
        self.incomplete.clear();
        self.also.clear();
        self.commit_times.clear();
        self.commit_times.shrink_to(TIMES_KEPT);
        (self.count, self.bytes, self.complete_count, self.seal) = (0, 0, 0, None);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::schema::TableName;

    pub(in crate::history) fn plan(name: &str) -> Arc<Plan> {
        let name = TableName {
            schema: "public".into(),
            name: name.into(),
        };
        Arc::new(Plan {
            source: name.clone(),
            history: name,
            binary: true,
            columns: vec![],
            homes: vec![],
            old_tuples: crate::schema::plan::OldTuples::AsTagged,
            absent: vec![],
            records_old: false,
            splits_key_changes: false,
            own: vec![],
            width: 0,
            copy: String::new(),
            guard: String::new(),
            check: String::new(),
            insert: String::new(),
            parameters: vec![],
            opening: String::new(),
            unrecorded: vec![],
            unrecorded_old: vec![],
            gated: false,
        })
    }

    fn add(batch: &mut Batch, id: usize, plan: &Arc<Plan>, bytes: &[u8]) {
        batch
            .append(id, plan, Lsn::ZERO, Kind::Insert, |out| {
                out.extend_from_slice(bytes);
                Ok::<_, ()>(1)
            })
            .unwrap();
    }

    fn seal(end: u64) -> Seal {
        Seal {
            commit_lsn: Lsn::from_u64(end - 1),
            end_lsn: Lsn::from_u64(end),
            commit_time: Timestamp(0),
        }
    }

    fn content(batch: &Batch) -> Vec<(String, Vec<u8>, usize)> {
        batch
            .tables()
            .map(|rows| {
                (
                    rows.plan().history.name.clone(),
                    rows.bytes().to_vec(),
                    rows.count(),
                )
            })
            .collect()
    }

    #[test]
    fn the_incomplete_transaction_moves_to_the_next_batch() {
        let (a, b) = (plan("a"), plan("b"));
        let (mut batch, mut next) = (Batch::new(1000), Batch::new(1000));
        add(&mut batch, 0, &a, b"1");
        add(&mut batch, 1, &b, b"2");
        batch.complete(seal(10));
        add(&mut batch, 1, &b, b"3");
        add(&mut batch, 0, &a, b"4");
        batch.take_rest(&mut next);
        assert_eq!(
            content(&batch),
            [
                ("a".into(), b"1".to_vec(), 1),
                ("b".into(), b"2".to_vec(), 1)
            ]
        );
        assert_eq!(
            content(&next),
            [
                ("a".into(), b"4".to_vec(), 1),
                ("b".into(), b"3".to_vec(), 1)
            ]
        );
        assert_eq!(
            (batch.count(), batch.bytes(), batch.seal()),
            (2, 2, Some(seal(10)))
        );
        assert_eq!((next.count(), next.bytes(), next.seal()), (2, 2, None));
        next.complete(seal(20));
        assert_eq!(next.transactions(), 1);
    }

    /// Rows by kind, and values that the WAL did not carry, over all tables.
    fn counted(batch: &Batch) -> ([u64; 5], u64) {
        let mut sum = Tally::default();
        batch.tables().for_each(|rows| sum += rows.tally());
        (Kind::ALL.map(|(kind, _)| sum.rows(kind)), sum.unavailable)
    }

    #[test]
    fn counts_by_kind_go_with_their_rows() {
        let a = plan("a");
        let (mut batch, mut next) = (Batch::new(1000), Batch::new(1000));
        let put = |batch: &mut Batch, kind, rows| {
            let put = batch.append(0, &a, Lsn::ZERO, kind, |out| {
                out.push(b'x');
                Ok::<_, ()>(rows)
            });
            put.unwrap();
        };
        put(&mut batch, Kind::Insert, 1);
        put(&mut batch, Kind::Update, 2);
        batch.note_unavailable(0, 2);
        batch.complete(seal(10));
        put(&mut batch, Kind::Delete, 1);
        batch.note_unavailable(0, 1);
        assert_eq!(counted(&batch), ([2, 0, 2, 0, 0], 3));
        batch.take_rest(&mut next);
        assert_eq!(counted(&batch), ([2, 0, 1, 0, 0], 2));
        assert_eq!(counted(&next), ([0, 0, 1, 0, 0], 1));
        put(&mut batch, Kind::Truncate, 1);
        batch.keep_complete();
        assert_eq!(counted(&batch), ([2, 0, 1, 0, 0], 2));
        assert_eq!(batch.commit_times(), [Timestamp(0)]);
        batch.clear();
        assert_eq!((counted(&batch), batch.transactions()), (([0; 5], 0), 0));
    }

    #[test]
    fn only_what_is_complete_is_kept_also_after_a_row_that_failed() {
        let (a, b) = (plan("a"), plan("b"));
        let mut batch = Batch::new(1000);
        add(&mut batch, 0, &a, b"1");
        batch.complete(seal(10));
        add(&mut batch, 0, &a, b"2");
        for (id, plan) in [(0, &a), (1, &b)] {
            let failed = batch.append(id, plan, Lsn::ZERO, Kind::Insert, |out| {
                out.extend_from_slice(b"half");
                Err::<usize, _>(())
            });
            assert_eq!(failed, Err(()));
        }
        batch.keep_complete();
        assert_eq!(content(&batch), [("a".into(), b"1".to_vec(), 1)]);
        assert_eq!(
            (batch.count(), batch.bytes(), batch.seal()),
            (1, 1, Some(seal(10)))
        );
    }

    #[test]
    fn an_emptied_batch_is_empty_and_keeps_no_more_memory_than_allowed() {
        let a = plan("a");
        let mut batch = Batch::new(1000);
        add(&mut batch, 0, &a, &[0; 4000]);
        add(&mut batch, 5, &a, &[0; 100]);
        batch.complete(seal(10));
        batch.clear();
        assert_eq!(
            (batch.count(), batch.bytes(), batch.seal(), content(&batch)),
            (0, 0, None, vec![])
        );
        assert!(batch.spare.iter().map(Vec::capacity).sum::<usize>() <= 1000);
        add(&mut batch, 0, &a, b"x");
        assert_eq!(content(&batch), [("a".into(), b"x".to_vec(), 1)]);
    }
}
