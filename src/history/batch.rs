//! The rows that share one target transaction.
//!
//! A batch holds, per shape of a table, the rows of whole source transactions, ready to be sent, and perhaps
//! the first rows of one more. What is complete can be written while the rest waits: [`Batch::take_rest`]
//! moves the incomplete part to the next batch. A transaction larger than a batch leaves in pieces: a batch
//! without a [`Seal`] is written into the target transaction that stays open. Pure.

use std::sync::Arc;

use crate::lsn::Lsn;
use crate::pgoutput::Timestamp;
use crate::schema::plan::Plan;

/// Emptied buffers that are kept: a batch touches few tables, or its buffers are small.
const SPARE_MAX: usize = 64;

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
    complete_bytes: usize,
    complete_count: usize,
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

    fn keep_complete(&mut self) {
        self.bytes.truncate(self.complete_bytes);
        self.count = self.complete_count;
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
    transactions: usize,
    /// The commit position of the transaction that began last.
    begun: Lsn,
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
            transactions: 0,
            begun: Lsn::ZERO,
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
        write: impl FnOnce(&mut Vec<u8>) -> Result<usize, E>,
    ) -> Result<(), E> {
        let at = match self.position.get(id) {
            Some(&Some(at)) => at,
            _ => self.open_rows(id, plan),
        };
        let rows = &mut self.rows[at as usize];
        let before = rows.bytes.len();
        let written = write(&mut rows.bytes)?;
        if rows.count == rows.complete_count {
            self.incomplete.push(at);
            // No row of another transaction is incomplete.
            if plan.gated {
                rows.marks.push((commit_lsn, before));
            }
        }
        rows.count += written;
        self.count += written;
        self.bytes += rows.bytes.len() - before;
        Ok(())
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
            complete_bytes: 0,
            complete_count: 0,
            marks: Vec::new(),
        });
        at
    }

    /// A transaction begins.
    pub fn begin(&mut self, commit_lsn: Lsn) {
        self.begun = commit_lsn;
    }

    /// The commit position of the one transaction that has rows here; `None` when several have.
    pub fn only_transaction(&self) -> Option<Lsn> {
        match (self.transactions, self.seal) {
            (0, _) => Some(self.begun),
            (1, Some(seal)) => Some(seal.commit_lsn),
            _ => None,
        }
    }

    pub fn complete(&mut self, seal: Seal) {
        for at in self.incomplete.drain(..) {
            let rows = &mut self.rows[at as usize];
            (rows.complete_bytes, rows.complete_count) = (rows.bytes.len(), rows.count);
        }
        self.complete_count = self.count;
        self.transactions += 1;
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
        self.transactions
    }

    pub fn tables(&self) -> impl Iterator<Item = &Rows> {
        self.rows.iter().filter(|rows| rows.count > 0)
    }

    /// Moves the rows of the transaction that is not complete to `next`. Call it on a batch that has a seal,
    /// before it is written.
    pub fn take_rest(&mut self, next: &mut Self) {
        next.begun = self.begun;
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
            let copied: Result<(), std::convert::Infallible> =
                next.append(id, &rows.plan, commit_lsn, |out| {
                    out.extend_from_slice(rest);
                    Ok(moved)
                });
            let Ok(()) = copied;
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
        (
            self.count,
            self.bytes,
            self.complete_count,
            self.transactions,
            self.seal,
        ) = (0, 0, 0, 0, None);
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
            .append(id, plan, Lsn::ZERO, |out| {
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

    #[test]
    fn only_what_is_complete_is_kept_also_after_a_row_that_failed() {
        let (a, b) = (plan("a"), plan("b"));
        let mut batch = Batch::new(1000);
        add(&mut batch, 0, &a, b"1");
        batch.complete(seal(10));
        add(&mut batch, 0, &a, b"2");
        for (id, plan) in [(0, &a), (1, &b)] {
            let failed = batch.append(id, plan, Lsn::ZERO, |out| {
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
