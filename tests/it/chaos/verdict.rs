//! What a history is worth: how many changes it has, and how many it lacks, has twice or has in another order.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio_postgres::Client;

use crate::support::compare::{Difference, ExpectedTx, HistoryRow, Wrong, compare, fold};
use crate::support::oracle::{Oracle, columns_of, read_history, read_table};

const TABLE: &str = "public.employees";
const HISTORY: &str = "public.employees_cdc";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Changes, and rows that existed before, that are in the history.
    pub checked: usize,
    pub lost: usize,
    pub doubled: usize,
    pub reordered: usize,
    /// Any other difference: a value, a time, a row that never was.
    pub other: usize,
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        self.checked += other.checked;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.reordered += other.reordered;
        self.other += other.other;
    }

    pub fn is_exact(&self) -> bool {
        (self.lost, self.doubled, self.reordered, self.other) == (0, 0, 0, 0)
    }

    fn count(&mut self, difference: &Difference) {
        self.lost += difference.missing;
        self.doubled += difference.duplicate;
        self.other += difference.unexpected;
        let counted = difference.missing + difference.duplicate + difference.unexpected > 0;
        match difference.wrong {
            Wrong::OrderOfRows | Wrong::OrderOfTransactions | Wrong::CommitLsn | Wrong::TxSeq => {
                self.reordered += 1;
            }
            _ if !counted => self.other += 1,
            _ => {}
        }
    }
}

/// The history as it is now, and what is wrong with it in words. The source must be at rest.
pub async fn judge(source: &Client, target: &Client) -> (Counts, String) {
    let columns: Vec<String> = columns_of(source, TABLE).await.into_iter().collect();
    let rows = read_history(target, HISTORY, &columns).await;
    let expected = Oracle.expected(source, TABLE, target, HISTORY).await;
    let mut now = read_table(source, TABLE).await;
    let mut counts = Counts {
        checked: rows.len(),
        ..Counts::default()
    };
    let mut words = String::new();
    let folded = catch_unwind(AssertUnwindSafe(|| fold(&rows, &["id"])));
    match folded {
        Ok(folded) => {
            let mut folded: Vec<_> = folded.into_values().collect();
            folded.sort();
            now.sort();
            if folded != now {
                counts.lost += now.iter().filter(|row| !folded.contains(row)).count();
                counts.other += folded.iter().filter(|row| !now.contains(row)).count();
                let _ = writeln!(
                    words,
                    "the history folds into {} rows, the table has {}",
                    folded.len(),
                    now.len()
                );
            }
        }
        Err(_) => {
            counts.other += 1;
            words.push_str("the history contradicts itself\n");
        }
    }
    let (existing, changes): (Vec<HistoryRow>, Vec<HistoryRow>) = rows
        .into_iter()
        .partition(|row| row.change_type == "SNAPSHOT");
    if let (Some(last), Some(first)) = (existing.last(), changes.first())
        && last.cdc_id > first.cdc_id
    {
        counts.reordered += 1;
        words.push_str("a change comes before an existing row\n");
    }
    let expected = expected.into_iter().filter(|tx| !tx.rows.is_empty());
    let expected = match existing.is_empty() {
        true => expected.collect(),
        false => after_the_rows(expected, &changes, &mut counts, &mut words),
    };
    if let Err(difference) = compare(&expected, &changes) {
        counts.count(&difference);
        let _ = writeln!(words, "{difference}");
    }
    (counts, words)
}

/// The transactions that committed after the existing rows were read. The others are in those rows, as the fold shows; none
/// of them may have seen one that came after.
fn after_the_rows(
    expected: impl Iterator<Item = ExpectedTx>,
    changes: &[HistoryRow],
    counts: &mut Counts,
    words: &mut String,
) -> Vec<ExpectedTx> {
    let times: BTreeSet<i64> = changes
        .iter()
        .filter_map(|row| row.change_timestamp)
        .collect();
    let (there, before): (Vec<_>, Vec<_>) =
        expected.partition(|tx: &ExpectedTx| times.contains(&tx.commit_time));
    for tx in &before {
        let saw =
            |other: &&ExpectedTx| other.xid < tx.saw.xmax && !tx.saw.running.contains(&other.xid);
        if there.iter().any(|other| saw(&other)) {
            counts.lost += tx.rows.len();
            let _ = writeln!(words, "transaction {} is missing", tx.xid);
        }
    }
    there
}
