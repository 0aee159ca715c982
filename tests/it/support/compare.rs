//! Whether a history is what the oracle says it must be: a pure function of two lists.
//!
//! Rows are matched transaction by transaction. The commit time of a row, exact to the microsecond,
//! names its transaction (with the xid where the history has one), so a plain history needs no more
//! columns than the design gives it.
//!
//! The *order* of commits is not that of their timestamps: a transaction takes its timestamp before it
//! writes its commit record, and another may come between. What is certain is what a transaction **saw**:
//! when A is finished in a snapshot that B took, then A's commit record lies before B's. The history must
//! agree with every such pair. A client that waits for its commits is thereby ordered completely.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Write as _};

/// Values by column, as text; `None` is NULL.
pub type Row = BTreeMap<String, Option<String>>;

/// Which transactions were finished for an observer; PostgreSQL's `pg_snapshot`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The first transaction that was not yet started.
    pub xmax: u64,
    /// The ones below that were still running.
    pub running: BTreeSet<u64>,
}

impl Snapshot {
    /// Reads `xmin:xmax:xip,xip`.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.split(':').skip(1);
        let xmax = parts.next().unwrap().parse().unwrap();
        let running = parts.next().unwrap().split(',');
        Self {
            xmax,
            running: running
                .filter(|xid| !xid.is_empty())
                .map(|xid| xid.parse().unwrap())
                .collect(),
        }
    }

    fn sees(&self, xid: u64) -> bool {
        xid < self.xmax && !self.running.contains(&xid)
    }
}

/// One row that the history must have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpectedRow {
    pub change_type: String,
    /// The change's ordinal in its transaction, over all captured tables, from 1.
    pub tx_seq: i64,
    /// The second of the two rows that one change became; has the `tx_seq` of the first.
    pub second_half: bool,
    /// Every column that is compared.
    pub values: Row,
    /// Columns that must be named in `unavailable_columns`.
    pub unavailable: BTreeSet<String>,
    /// Columns that may be NULL instead, when they are named in `unavailable_columns`: unchanged values
    /// so large that the WAL need not carry them.
    pub maybe_unavailable: BTreeSet<String>,
    /// Columns on which the design is silent: the value or NULL, named as unavailable or not.
    pub or_null: BTreeSet<String>,
}

/// One transaction of the source, with its rows for one history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpectedTx {
    /// All 64 bits.
    pub xid: u64,
    /// Microseconds since 1970, UTC.
    pub commit_time: i64,
    /// The last snapshot that it took.
    pub saw: Snapshot,
    pub rows: Vec<ExpectedRow>,
}

/// One row that the history has. Columns that the history does not have are `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistoryRow {
    pub cdc_id: i64,
    pub change_type: String,
    /// Microseconds since 1970, UTC.
    pub change_timestamp: Option<i64>,
    pub values: Row,
    pub commit_lsn: Option<i64>,
    pub tx_seq: Option<i64>,
    pub xid: Option<i64>,
    pub unavailable: Option<BTreeSet<String>>,
}

/// What a history that is right holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub transactions: usize,
    pub rows: usize,
    /// Values that the WAL did not carry though the oracle knows them.
    pub unavailable: usize,
}

/// What is wrong first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    Missing,
    Duplicate,
    Unexpected,
    Value,
    OrderOfRows,
    OrderOfTransactions,
    Timestamp,
    Xid,
    TxSeq,
    CommitLsn,
}

/// The first difference, told readably, and how much is wrong in all.
#[derive(Clone)]
pub struct Difference {
    pub wrong: Wrong,
    /// Rows that the history lacks, compared value by value.
    pub missing: usize,
    /// Rows that the history has too often.
    pub duplicate: usize,
    /// Rows of the history that should not be there at all.
    pub unexpected: usize,
    text: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the history is wrong: {:?}; {} rows missing, {} too often, {} unexpected\n{}",
            self.wrong, self.missing, self.duplicate, self.unexpected, self.text
        )
    }
}

impl fmt::Debug for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Compares a history, in the order of `cdc_id`, with what it must be. Transactions of `expected` that
/// have no row here are ignored.
///
/// Two transactions of the same microsecond whose rows begin alike are told apart by what they saw, then
/// by their length; a history without xids cannot do better.
pub fn compare(expected: &[ExpectedTx], actual: &[HistoryRow]) -> Result<Summary, Difference> {
    let expected: Vec<&ExpectedTx> = expected.iter().filter(|tx| !tx.rows.is_empty()).collect();
    let mut comparison = Comparison {
        placed: vec![false; expected.len()],
        expected,
        actual,
        order: Vec::new(),
        summary: Summary::default(),
    };
    comparison.place_all()?;
    comparison.check_order()?;
    comparison.check_positions()?;
    Ok(comparison.summary)
}

struct Comparison<'a> {
    expected: Vec<&'a ExpectedTx>,
    actual: &'a [HistoryRow],
    placed: Vec<bool>,
    /// Transactions in the order of the history, each with the index of its first row.
    order: Vec<(usize, usize)>,
    summary: Summary,
}

impl Comparison<'_> {
    fn place_all(&mut self) -> Result<(), Difference> {
        let mut by_time: HashMap<i64, Vec<usize>> = HashMap::new();
        for (index, tx) in self.expected.iter().enumerate() {
            by_time.entry(tx.commit_time).or_default().push(index);
        }
        let mut at = 0;
        while let Some(row) = self.actual.get(at) {
            let candidates: Vec<usize> = row
                .change_timestamp
                .and_then(|time| by_time.get(&time))
                .into_iter()
                .flatten()
                .copied()
                .filter(|&index| !self.placed[index])
                .collect();
            let fitting: Vec<usize> = candidates
                .iter()
                .copied()
                .filter(|&index| self.mismatch(index, at).is_none())
                .collect();
            let best = fitting.iter().copied().min_by_key(|&index| {
                let tx = self.expected[index];
                let after_another = fitting
                    .iter()
                    .any(|&other| other != index && tx.saw.sees(self.expected[other].xid));
                (after_another, usize::MAX - tx.rows.len(), tx.xid)
            });
            let Some(index) = best else {
                return Err(self.explain(at, &candidates));
            };
            let rows = &self.expected[index].rows;
            for (wanted, found) in rows.iter().zip(&self.actual[at..]) {
                self.summary.unavailable += wanted
                    .maybe_unavailable
                    .iter()
                    .filter(|&column| found.values.get(column) == Some(&None))
                    .filter(|&column| wanted.values.get(column) != Some(&None))
                    .count();
            }
            self.placed[index] = true;
            self.order.push((index, at));
            self.summary.transactions += 1;
            self.summary.rows += rows.len();
            at += rows.len();
        }
        match self.next_expected() {
            Some(index) => Err(self.difference(Wrong::Missing, index, 0, at)),
            None => Ok(()),
        }
    }

    /// The first row of this transaction that the history at `at` does not have, and what is wrong.
    fn mismatch(&self, index: usize, at: usize) -> Option<(usize, Wrong)> {
        let tx = self.expected[index];
        tx.rows.iter().enumerate().find_map(|(offset, wanted)| {
            let wrong = match self.actual.get(at + offset) {
                Some(found) => row_mismatch(tx, wanted, found)?,
                None => Wrong::Missing,
            };
            Some((offset, wrong))
        })
    }

    /// No transaction fits the rows from `at`: says why, by what fits best.
    fn explain(&self, at: usize, candidates: &[usize]) -> Difference {
        // A candidate has the right time; without one, what should come next is the best guess.
        let closest = candidates
            .iter()
            .copied()
            .max_by_key(|&index| self.mismatch(index, at).map(|(offset, _)| offset));
        let row = &self.actual[at];
        let is_repeated = closest.is_none()
            && self.order.iter().any(|&(index, _)| {
                let tx = self.expected[index];
                tx.rows
                    .iter()
                    .any(|wanted| row_mismatch(tx, wanted, row).is_none())
            });
        let Some(index) = closest.or_else(|| self.next_expected()) else {
            let wrong = if is_repeated {
                Wrong::Duplicate
            } else {
                Wrong::Unexpected
            };
            return self.difference(wrong, self.expected.len(), 0, at);
        };
        if is_repeated {
            return self.difference(Wrong::Duplicate, index, 0, at);
        }
        let tx = self.expected[index];
        let (offset, wrong) = self.mismatch(index, at).unwrap_or((0, Wrong::Unexpected));
        let fits = |wanted: usize, found: usize| match (tx.rows.get(wanted), self.actual.get(found))
        {
            (Some(wanted), Some(found)) => row_mismatch(tx, wanted, found).is_none(),
            _ => false,
        };
        let here = at + offset;
        let later = (offset + 1..tx.rows.len()).any(|wanted| fits(wanted, here));
        let wrong = if matches!(wrong, Wrong::Timestamp) && closest.is_none() {
            // The values are right, or another transaction's row stands here.
            if values_mismatch(&tx.rows[0], row).is_none() {
                Wrong::Timestamp
            } else {
                Wrong::Unexpected
            }
        } else if offset > 0 && (0..offset).any(|wanted| fits(wanted, here)) {
            Wrong::Duplicate
        } else if later && (here..here + tx.rows.len()).any(|found| fits(offset, found)) {
            Wrong::OrderOfRows
        } else if later || self.starts_another(here, index) {
            Wrong::Missing
        } else {
            wrong
        };
        self.difference(wrong, index, offset, here)
    }

    /// Whether the row at `at` is the first of a transaction that is still to come.
    fn starts_another(&self, at: usize, except: usize) -> bool {
        let Some(row) = self.actual.get(at) else {
            return true;
        };
        (0..self.expected.len())
            .filter(|&index| index != except && !self.placed[index])
            .any(|index| {
                let tx = self.expected[index];
                row_mismatch(tx, &tx.rows[0], row).is_none()
            })
    }

    /// The transaction that probably comes next: by commit time.
    fn next_expected(&self) -> Option<usize> {
        (0..self.expected.len())
            .filter(|&index| !self.placed[index])
            .min_by_key(|&index| (self.expected[index].commit_time, self.expected[index].xid))
    }

    /// No transaction may come before one that it saw finished.
    fn check_order(&self) -> Result<(), Difference> {
        let mut later: BTreeSet<u64> = BTreeSet::new();
        for &(index, at) in self.order.iter().rev() {
            let tx = self.expected[index];
            if let Some(seen) = later.range(..tx.saw.xmax).find(|&&xid| tx.saw.sees(xid)) {
                let mut difference = self.difference(Wrong::OrderOfTransactions, index, 0, at);
                let _ = writeln!(
                    difference.text,
                    "transaction {} had seen {seen} finished, yet comes before it",
                    tx.xid
                );
                return Err(difference);
            }
            later.insert(tx.xid);
        }
        Ok(())
    }

    /// `(commit_lsn, tx_seq)` rises with `cdc_id`, and a transaction has one `commit_lsn`.
    fn check_positions(&self) -> Result<(), Difference> {
        let mut last = None;
        for &(index, at) in &self.order {
            let rows = &self.expected[index].rows;
            for (offset, wanted) in rows.iter().enumerate() {
                let Some(lsn) = self.actual[at + offset].commit_lsn else {
                    continue;
                };
                let ok = match last {
                    Some(last) if offset == 0 => lsn > last,
                    Some(last) => lsn == last,
                    None => true,
                };
                // The tx_seq of each row was compared; the expected ones rise by themselves.
                let rises = offset == 0
                    || wanted.tx_seq > rows[offset - 1].tx_seq
                    || wanted.second_half && wanted.tx_seq == rows[offset - 1].tx_seq;
                assert!(rises, "the oracle's own ordinals do not rise");
                if !ok {
                    return Err(self.difference(Wrong::CommitLsn, index, offset, at + offset));
                }
                last = Some(lsn);
            }
        }
        Ok(())
    }

    fn difference(&self, wrong: Wrong, index: usize, offset: usize, at: usize) -> Difference {
        let mut text = String::new();
        if let Some(tx) = self.expected.get(index) {
            let _ = writeln!(
                text,
                "expected, of transaction {} committed at {}:",
                tx.xid, tx.commit_time
            );
            for (number, row) in tx.rows.iter().enumerate() {
                if number + 3 >= offset && number <= offset + 3 {
                    let mark = if number == offset { '>' } else { ' ' };
                    let _ = writeln!(
                        text,
                        "{mark} {:>9} tx_seq {:<5} {}",
                        row.change_type,
                        row.tx_seq,
                        show(&row.values)
                    );
                }
            }
        } else {
            text.push_str("expected: nothing more\n");
        }
        let _ = writeln!(text, "found, of {} rows:", self.actual.len());
        for (number, row) in self.actual.iter().enumerate() {
            if number + 3 >= at && number <= at + 3 {
                let mark = if number == at { '>' } else { ' ' };
                let _ = write!(
                    text,
                    "{mark} {:>9} cdc_id {:<5} ",
                    row.change_type, row.cdc_id
                );
                let _ = writeln!(
                    text,
                    "{} at {:?} xid {:?} tx_seq {:?} unavailable {:?}",
                    show(&row.values),
                    row.change_timestamp,
                    row.xid,
                    row.tx_seq,
                    row.unavailable
                );
            }
        }
        if at >= self.actual.len() {
            text.push_str("> (the end)\n");
        }
        let mut difference = Difference {
            wrong,
            missing: 0,
            duplicate: 0,
            unexpected: 0,
            text,
        };
        self.count(&mut difference);
        difference
    }

    fn count(&self, difference: &mut Difference) {
        let mut balance: HashMap<(i64, &str, &Row), (i64, i64)> = HashMap::new();
        for tx in &self.expected {
            for row in &tx.rows {
                let key = (tx.commit_time, row.change_type.as_str(), &row.values);
                balance.entry(key).or_default().0 += 1;
            }
        }
        for row in self.actual {
            let time = row.change_timestamp.unwrap_or_default();
            let key = (time, row.change_type.as_str(), &row.values);
            balance.entry(key).or_default().1 += 1;
        }
        for (wanted, found) in balance.into_values() {
            let surplus = usize::try_from(found - wanted).unwrap_or(0);
            difference.missing += usize::try_from(wanted - found).unwrap_or(0);
            if wanted == 0 {
                difference.unexpected += surplus;
            } else {
                difference.duplicate += surplus;
            }
        }
    }
}

fn row_mismatch(tx: &ExpectedTx, wanted: &ExpectedRow, found: &HistoryRow) -> Option<Wrong> {
    if found.change_timestamp != Some(tx.commit_time) {
        return Some(Wrong::Timestamp);
    }
    if let Some(wrong) = values_mismatch(wanted, found) {
        return Some(wrong);
    }
    // The history keeps the 32 bits that PostgreSQL's logical decoding gives.
    if found
        .xid
        .is_some_and(|xid| xid != (tx.xid & 0xffff_ffff).cast_signed())
    {
        return Some(Wrong::Xid);
    }
    if found.tx_seq.is_some_and(|tx_seq| tx_seq != wanted.tx_seq) {
        return Some(Wrong::TxSeq);
    }
    None
}

fn values_mismatch(wanted: &ExpectedRow, found: &HistoryRow) -> Option<Wrong> {
    if wanted.change_type != found.change_type {
        return Some(Wrong::Value);
    }
    let is_named = |column: &String| {
        let names = found.unavailable.as_ref();
        names.is_none_or(|names| names.contains(column))
    };
    for (column, value) in &wanted.values {
        let found = found.values.get(column).unwrap_or(&None);
        let excused = found.is_none()
            && (wanted.or_null.contains(column)
                || wanted.maybe_unavailable.contains(column) && is_named(column));
        if found != value && !excused {
            return Some(Wrong::Value);
        }
    }
    if let Some(names) = &found.unavailable {
        // What is named as unavailable is NULL, and nothing that the WAL had is named.
        let wrongly_named = names.iter().any(|column| {
            let allowed = wanted.unavailable.contains(column)
                || wanted.maybe_unavailable.contains(column)
                || wanted.or_null.contains(column);
            !allowed || found.values.get(column).is_some_and(Option::is_some)
        });
        if wrongly_named || !wanted.unavailable.is_subset(names) {
            return Some(Wrong::Value);
        }
    }
    None
}

fn show(row: &Row) -> String {
    let values: Vec<String> = row
        .iter()
        .map(|(column, value)| {
            let text = value.as_deref().unwrap_or("NULL");
            let short: String = text.chars().take(40).collect();
            format!("{column}={short}")
        })
        .collect();
    values.join(" ")
}

/// The table that a history amounts to, by key. Values that a row does not carry keep their last state.
///
/// # Panics
/// When the history contradicts itself: it changes or deletes a row that is not there, or adds one twice.
pub fn fold(history: &[HistoryRow], key: &[&str]) -> BTreeMap<Vec<Option<String>>, Row> {
    let mut table: BTreeMap<Vec<Option<String>>, Row> = BTreeMap::new();
    for row in history {
        let value = |column: &str| row.values.get(column).cloned().flatten();
        let id: Vec<_> = key.iter().map(|column| value(column)).collect();
        let old_id: Vec<_> = key
            .iter()
            .map(|column| value(&format!("old_{column}")).or_else(|| value(column)))
            .collect();
        match row.change_type.as_str() {
            // After a gap the existing rows come again.
            "TRUNCATE" | "GAP" => table.clear(),
            "DELETE" => {
                let gone = table.remove(&id);
                assert!(gone.is_some(), "deleted, but not there: {row:?}");
            }
            "UPDATE" => {
                let mut new = bare(&row.values);
                let old = table.remove(&old_id);
                let old = old.unwrap_or_else(|| panic!("updated, but not there: {row:?}"));
                for column in row.unavailable.iter().flatten() {
                    if new.contains_key(column) {
                        new.insert(column.clone(), old.get(column).cloned().flatten());
                    }
                }
                assert!(table.insert(id, new).is_none(), "there already: {row:?}");
            }
            _ => {
                let before = table.insert(id, bare(&row.values));
                assert!(before.is_none(), "there already: {row:?}");
            }
        }
    }
    table
}

/// The values after the change alone.
fn bare(values: &Row) -> Row {
    let mut bare = values.clone();
    bare.retain(|name, _| {
        let of = name.strip_prefix("old_");
        !of.is_some_and(|column| values.contains_key(column))
    });
    bare
}
