//! What `verify` has found: for a person, or as JSON. The field names of `--json` are stable.

use std::fmt::Write as _;

use serde::Serialize;

use super::difference::{Difference, Kind};
use crate::lsn::Lsn;
use crate::printable::{TEXT_MAX, printable};

/// Keys that are named of one table; all are counted.
pub(crate) const KEYS_MAX: usize = 1000;

#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// Every history is its table, or was repaired.
    pub(crate) same: bool,
    pub(crate) tables: Vec<Table>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// The history is the table.
    Same,
    #[default]
    Different,
    /// The history does not have all of the table: `reason` says why.
    Incomplete,
    /// It was different, and is the table now.
    Repaired,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Table {
    pub(crate) table: String,
    pub(crate) history: String,
    pub(crate) outcome: Outcome,
    /// What committed before it was compared.
    pub(crate) position: Lsn,
    /// Rows of the table.
    pub(crate) rows: i64,
    /// Rows that the history does not have.
    pub(crate) missing: i64,
    /// Rows of the history that are not in the table.
    pub(crate) extra: i64,
    /// Rows with other values.
    pub(crate) different: i64,
    /// Values that the WAL did not carry, nor any earlier row of the history.
    pub(crate) unknown_values: i64,
    /// Keys that changed around the position, in a history without `commit_lsn`: they are one of their versions there.
    pub(crate) changing: i64,
    /// Columns that were not compared.
    pub(crate) not_compared: Vec<String>,
    /// Why the history is incomplete.
    pub(crate) reason: Option<String>,
    /// The first differences.
    pub(crate) keys: Vec<Key>,
    /// Differences that are not among them.
    pub(crate) keys_left_out: i64,
    /// Keys that `--repair` put right.
    pub(crate) repaired: i64,
    /// Keys that it left, since they had changed by then.
    pub(crate) left: i64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Key {
    /// The hash of its values: the same in every run.
    pub(crate) key: String,
    /// `missing`, `extra`, `different` or `unknown`.
    pub(crate) difference: &'static str,
    /// Where values differ: in these columns.
    pub(crate) columns: Vec<String>,
    /// With `--show-keys`, its values.
    pub(crate) values: Option<Vec<Option<String>>>,
}

impl Table {
    pub(crate) fn incomplete(reason: String) -> Self {
        Self {
            outcome: Outcome::Incomplete,
            reason: Some(reason),
            ..Self::default()
        }
    }

    /// Counts a difference, and names its key. `names`: of the compared columns.
    pub(crate) fn add(&mut self, found: &Difference, names: &[String], show_keys: bool) {
        self.unknown_values += i64::try_from(found.unknown).unwrap_or(i64::MAX);
        let (difference, count) = match found.kind {
            Kind::Missing => ("missing", &mut self.missing),
            Kind::Extra => ("extra", &mut self.extra),
            Kind::Values(_) => ("different", &mut self.different),
            Kind::Unknown => return,
        };
        *count += found.copies;
        if self.keys.len() == KEYS_MAX {
            self.keys_left_out += 1;
            return;
        }
        let columns = match &found.kind {
            Kind::Values(columns) => columns
                .iter()
                .filter_map(|&at| names.get(at))
                .cloned()
                .collect(),
            _ => Vec::new(),
        };
        self.keys.push(Key {
            key: format!("{:016x}", found.hash),
            difference,
            columns,
            values: show_keys.then(|| found.key.clone()),
        });
    }

    pub(crate) fn differences(&self) -> i64 {
        self.missing + self.extra + self.different
    }

    fn is_same(&self) -> bool {
        matches!(self.outcome, Outcome::Same | Outcome::Repaired)
    }

    fn headline(&self) -> String {
        let mut text = match self.outcome {
            Outcome::Same => format!("the history is the table: {} rows", self.rows),
            Outcome::Different => {
                format!("the history differs from the table of {} rows", self.rows)
            }
            Outcome::Incomplete => {
                let reason = self.reason.as_deref().unwrap_or_default();
                format!("the history is not complete: {reason}")
            }
            Outcome::Repaired => format!("repaired: {} keys of {} rows", self.repaired, self.rows),
        };
        if self.outcome == Outcome::Incomplete {
            return text;
        }
        for (count, what) in [
            (self.missing, "missing in the history"),
            (self.extra, "not in the table"),
            (self.different, "with other values"),
        ] {
            if count > 0 {
                let _ = write!(text, ", {count} {what}");
            }
        }
        let _ = write!(text, " (at {})", self.position);
        text
    }

    fn lines(&self, out: &mut String) {
        // Writing to a String cannot fail.
        let mut line = |indent: &str, text: String| {
            let _ = writeln!(out, "{indent}{}", printable(&text, TEXT_MAX));
        };
        line("", format!("{}: {}", self.table, self.headline()));
        for key in &self.keys {
            let mut text = format!("{}  {}", key.key, key.difference);
            if !key.columns.is_empty() {
                let _ = write!(text, ": {}", key.columns.join(", "));
            }
            if let Some(values) = &key.values {
                let values = values
                    .iter()
                    .map(|value| value.as_deref().unwrap_or("NULL"));
                let _ = write!(text, "  ({})", values.collect::<Vec<_>>().join(", "));
            }
            line("  ", text);
        }
        if self.keys_left_out > 0 {
            line("  ", format!("and {} more", self.keys_left_out));
        }
        if self.outcome != Outcome::Repaired && self.repaired > 0 {
            line("  ", format!("repaired: {} keys", self.repaired));
        }
        if self.left > 0 {
            line(
                "  ",
                format!(
                    "not repaired: {} keys have changed since: run it again",
                    self.left
                ),
            );
        }
        if self.unknown_values > 0 {
            line("  ", format!("not known: {} values", self.unknown_values));
        }
        if self.changing > 0 {
            line(
                "  ",
                format!(
                    "{} keys changed at this moment: each is one of its versions then",
                    self.changing
                ),
            );
        }
        if !self.not_compared.is_empty() {
            line(
                "  ",
                format!("not compared: {}", self.not_compared.join(", ")),
            );
        }
    }
}

impl Report {
    pub(crate) fn of(tables: Vec<Table>) -> Self {
        Self {
            same: tables.iter().all(Table::is_same),
            tables,
        }
    }

    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        for table in &self.tables {
            table.lines(&mut out);
        }
        out
    }
}
