//! Writes the script: per table its rows, then the statements of all tables in an order that foreign keys accept.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, Write};

use super::literal::{comment, text_literal, value};
use super::net::{Found, Need};
use super::order::Order;
use super::statements::{Column, Writing};
use super::table::{ForeignKey, Table};
use crate::life::book::Book;
use crate::life::row::{Cell, Key};
use crate::schema::{Identifier, TableName};

/// A statement that fills a temporary table ends at so many rows, or bytes.
const ROWS_MAX: usize = 1_000;
const BYTES_MAX: usize = 256 * 1024;

/// Settings that the text of values counts on, and what keeps objects of other schemas out.
const SETTINGS: [&str; 10] = [
    "search_path = ''",
    "client_encoding = 'UTF8'",
    "DateStyle = 'ISO, MDY'",
    "IntervalStyle = 'postgres'",
    "TimeZone = 'UTC'",
    "lc_monetary = 'C'",
    "array_nulls = on",
    "xmloption = 'content'",
    "standard_conforming_strings = on",
    "transform_null_equals = off",
];

/// What becomes of rows, as the temporary table says.
const ACTIONS: [&str; 3] = ["INSERT", "UPDATE", "DELETE"];

/// The rows of one table, as they are written.
pub(super) struct Rows<'a> {
    pub n: usize,
    pub source: &'a TableName,
    pub table: &'a Table,
    pub columns: Vec<Column>,
    /// Positions in `columns`.
    key: Vec<usize>,
    /// Columns of the key.
    key_width: usize,
    /// Columns without which no row can be added.
    missing: Vec<&'a str>,
    /// Columns that are not recorded.
    unrecorded: Vec<&'a str>,
    head: String,
    values: String,
    pending: usize,
    pub count: [u64; 3],
    pub left_out: u64,
    changed: BTreeSet<usize>,
    lost: BTreeSet<usize>,
    unseen: BTreeSet<usize>,
}

/// The values of a row, and positions of columns.
#[derive(Default)]
struct Cells {
    then: Vec<Cell>,
    now: Vec<Cell>,
    /// They have other values now.
    changed: Vec<usize>,
    /// There is no value to be put back.
    lost: Vec<usize>,
    /// Of these a comment says so.
    untold: Vec<usize>,
    /// The present value is not known.
    unseen: Vec<usize>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(n: usize, book: &'a Book, table: &'a Table) -> Self {
        let ledger = &book.ledger;
        let of_source = |name: &str| table.columns.iter().find(|known| known.name == name);
        let recorded = ledger.columns.iter().enumerate();
        let recorded = recorded.filter(|(_, column)| !book.rules.is_lossy(&column.name));
        let columns: Vec<Column> = recorded
            .filter_map(|(at, column)| {
                let known = of_source(&column.name).filter(|known| !known.is_generated)?;
                Some(Column {
                    at,
                    name: known.name.clone(),
                    kind: known.kind.clone(),
                    not_null: known.not_null,
                    is_always: known.is_always,
                    has_equality: known.has_equality,
                })
            })
            .collect();
        let key = ledger.key.iter();
        let key = key.filter_map(|at| columns.iter().position(|column| column.at == *at));
        let is_written = |name: &str| columns.iter().any(|column| column.name == name);
        let unrecorded: Vec<_> = table
            .columns
            .iter()
            .filter(|known| !known.is_generated && !is_written(&known.name))
            .collect();
        let needed = unrecorded.iter();
        let needed = needed.filter(|known| known.not_null && !known.has_default);
        Self {
            n,
            source: &ledger.source,
            table,
            key: key.collect(),
            key_width: ledger.key.len(),
            missing: needed.map(|known| known.name.as_str()).collect(),
            unrecorded: unrecorded.iter().map(|known| known.name.as_str()).collect(),
            head: String::new(),
            values: String::new(),
            pending: 0,
            count: [0; 3],
            left_out: 0,
            changed: BTreeSet::new(),
            lost: BTreeSet::new(),
            unseen: BTreeSet::new(),
            columns,
        }
    }

    /// Whether each column of the key is put back: rows are found by it.
    pub(super) fn has_key(&self) -> bool {
        !self.key.is_empty() && self.key.len() == self.key_width
    }

    /// Whether there is a row to be put back.
    pub(super) fn is_needed(&self) -> bool {
        self.count.iter().any(|count| *count > 0)
    }

    pub(super) fn writing(&self) -> Writing<'_> {
        Writing {
            n: self.n,
            source: self.source,
            table: self.table,
            columns: &self.columns,
            key: &self.key,
            changed: &self.changed,
            lost: &self.lost,
            unseen: &self.unseen,
        }
    }

    /// Writes what a key needs.
    pub(super) fn write(&mut self, need: &Need, out: &mut dyn Write) -> io::Result<()> {
        match need {
            Need::ChangedSince(key) => {
                self.left_out += 1;
                let key = self.shown(key);
                write_comment(
                    out,
                    &format!("left out, changed since: {} {key}", self.source),
                )
            }
            Need::Put { now, then } => self.put(now.as_ref(), then.as_ref(), out),
        }
    }

    fn put(
        &mut self,
        now: Option<&Found>,
        then: Option<&Found>,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let Some((key, _)) = now.or(then) else {
            return Ok(());
        };
        let shown = format!("{} {}", self.source, self.shown(key));
        let action = match (now, then) {
            (None, _) => 0,
            (Some(_), Some(_)) => 1,
            (Some(_), None) => 2,
        };
        let cells = self.cells(action, now, then);
        if !cells.untold.is_empty() {
            let names = cells
                .untold
                .iter()
                .map(|at| self.columns[*at].name.as_str());
            let names: Vec<&str> = names.collect();
            let told = format!(
                "not known, and left as it is: {shown}: {}",
                names.join(", ")
            );
            write_comment(out, &told)?;
        }
        let needs = |at: &usize| self.columns[*at].not_null;
        match action {
            0 if !self.missing.is_empty() || cells.untold.iter().any(needs) => {
                self.left_out += 1;
                let told = "left out, a value that it must have is not known";
                return write_comment(out, &format!("{told}: {shown}"));
            }
            1 if cells.changed.is_empty() => return Ok(()),
            _ => {}
        }
        self.changed.extend(&cells.changed);
        self.lost.extend(&cells.lost);
        self.unseen.extend(&cells.unseen);
        self.count[action] += 1;
        self.add(action, &cells, out)
    }

    /// The values of a row, in the order of the columns.
    fn cells(&self, action: usize, now: Option<&Found>, then: Option<&Found>) -> Cells {
        let cell = |found: Option<&Found>, column: &Column| {
            let found = found.and_then(|(_, version)| version.get(column.at).cloned());
            found.unwrap_or_default()
        };
        let mut cells = Cells::default();
        for (at, column) in self.columns.iter().enumerate() {
            let (was, is) = (cell(then, column), cell(now, column));
            // Where neither is known, no change said anything of it.
            if then.is_some() && !was.is_known() && (action == 0 || is.is_known()) {
                cells.untold.push(at);
            }
            if action == 1 && was.is_known() && was != is {
                cells.changed.push(at);
            }
            if action == 1 && !was.is_known() {
                cells.lost.push(at);
            }
            if now.is_some() && !is.is_known() {
                cells.unseen.push(at);
            }
            cells.then.push(was);
            cells.now.push(is);
        }
        cells
    }

    fn add(&mut self, action: usize, cells: &Cells, out: &mut dyn Write) -> io::Result<()> {
        let list = |at: &[usize]| match at {
            [] => "NULL".to_owned(),
            at => {
                let at: Vec<String> = at.iter().map(ToString::to_string).collect();
                format!("'{{{}}}'", at.join(","))
            }
        };
        let nr: u64 = self.count.iter().sum();
        if nr == 1 {
            self.begin(out)?;
        }
        // Writing to a String cannot fail.
        let _ = write!(
            self.values,
            "{}({nr}, '{}', {}, {}",
            if self.pending > 0 { ",\n" } else { "" },
            ACTIONS[action],
            list(&cells.lost),
            list(&cells.unseen)
        );
        let kinds = self.columns.iter().chain(&self.columns);
        for (cell, column) in cells.then.iter().chain(&cells.now).zip(kinds) {
            let _ = write!(self.values, ", {}", value(cell, &column.kind));
        }
        self.values.push(')');
        self.pending += 1;
        match self.pending >= ROWS_MAX || self.values.len() >= BYTES_MAX {
            true => self.flush(out),
            false => Ok(()),
        }
    }

    /// The temporary table, before its first row.
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let (create, head) = Writing::create(self.n, &self.columns);
        self.head = head;
        writeln!(out)?;
        write_comment(out, &format!("Rows of {}.", self.source))?;
        if !self.table.triggers.is_empty() {
            let triggers = self.table.triggers.join(", ");
            write_comment(out, &format!("Its triggers fire: {triggers}"))?;
        }
        if !self.unrecorded.is_empty() {
            let names = self.unrecorded.join(", ");
            write_comment(out, &format!("Not recorded, and left as they are: {names}"))?;
        }
        out.write_all(create.as_bytes())
    }

    /// Ends the statement that adds rows.
    pub(super) fn flush(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.pending == 0 {
            return Ok(());
        }
        self.pending = 0;
        out.write_all(self.head.as_bytes())?;
        out.write_all(self.values.as_bytes())?;
        self.values.clear();
        out.write_all(b";\n")
    }

    fn shown(&self, key: &Key) -> String {
        let columns = self.key.iter().map(|at| &self.columns[*at].name);
        let parts = std::iter::zip(columns, key)
            .map(|(name, value)| format!("{}={}", Identifier(name), text_literal(value)));
        parts.collect::<Vec<_>>().join(", ")
    }
}

pub(super) fn write_comment(out: &mut dyn Write, text: &str) -> io::Result<()> {
    out.write_all(comment(text).as_bytes())
}

/// What stands before the rows.
pub(super) fn begin(out: &mut dyn Write) -> io::Result<()> {
    out.write_all(b"BEGIN;\n")?;
    for setting in SETTINGS {
        writeln!(out, "SET LOCAL {setting};")?;
    }
    out.write_all(b"SET CONSTRAINTS ALL DEFERRED;\n")
}

/// The statements of all tables.
pub(super) fn end(
    tables: &[Rows<'_>],
    order: &Order,
    keys: &[ForeignKey],
    out: &mut dyn Write,
) -> io::Result<()> {
    let sorted = order.parents_first.iter().map(|at| &tables[*at]);
    let parents_first: Vec<&Rows<'_>> = sorted.filter(|rows| rows.is_needed()).collect();
    let with = |action: usize| {
        let tables = parents_first.iter().copied();
        tables.filter(move |rows| rows.count[action] > 0)
    };
    writeln!(out)?;
    for key in order.circular.iter().filter(|key| !key.is_deferrable) {
        write_comment(
            out,
            &format!(
                "The foreign key {} is part of a circle and cannot be deferred: it can refuse this.",
                key.name
            ),
        )?;
    }
    for rows in &parents_first {
        writeln!(out, "ANALYZE pg_temp.undo_{};", rows.n)?;
    }
    write_comment(
        out,
        "The rows that are as the history has them are locked; only they are changed or removed.",
    )?;
    for rows in with(1).chain(with(2).filter(|rows| rows.count[1] == 0)) {
        out.write_all(rows.writing().fits().as_bytes())?;
    }
    let children_first = || with(2).collect::<Vec<_>>().into_iter().rev();
    for rows in children_first() {
        write_comment(
            out,
            &format!(
                "Remove rows of {} that were added; none to which another row refers.",
                rows.source
            ),
        )?;
        out.write_all(rows.writing().delete(keys).as_bytes())?;
    }
    // In a circle, a row can come before the one that it refers to.
    let straight = keys.iter().filter(|key| !order.circular.contains(key));
    let straight: Vec<ForeignKey> = straight.cloned().collect();
    for rows in &parents_first {
        add_and_change(rows, &straight, out)?;
    }
    // What stood in the way may be gone now.
    let is_referred_to = |rows: &&Rows<'_>| keys.iter().any(|key| key.parent == rows.table.oid);
    for rows in children_first().filter(is_referred_to) {
        out.write_all(rows.writing().delete(keys).as_bytes())?;
    }
    report(&parents_first, out)
}

/// The end: what was done.
fn report(tables: &[&Rows<'_>], out: &mut dyn Write) -> io::Result<()> {
    out.write_all(b"SET CONSTRAINTS ALL IMMEDIATE;\n\n")?;
    write_comment(
        out,
        "What was done, and the rows that were left out because they are not as the history has them.",
    )?;
    let counts: Vec<String> = tables.iter().map(|rows| rows.writing().count()).collect();
    writeln!(out, "{}\n ORDER BY 1, 2;", counts.join("\nUNION ALL\n"))?;
    let left: Vec<String> = tables
        .iter()
        .map(|rows| rows.writing().left_out())
        .collect();
    writeln!(out, "{}\n ORDER BY 1, 2, 3;", left.join("\nUNION ALL\n"))?;
    out.write_all(b"COMMIT;\n")
}

/// Adds and changes rows of a table. Those to which they refer are there, and what they had before may still be taken.
fn add_and_change(rows: &Rows<'_>, keys: &[ForeignKey], out: &mut dyn Write) -> io::Result<()> {
    let (writing, [inserts, updates, _]) = (rows.writing(), rows.count);
    if inserts > 0 {
        write_comment(
            out,
            &format!("Add rows of {} that were removed.", rows.source),
        )?;
        out.write_all(writing.insert(keys).as_bytes())?;
    }
    if updates > 0 {
        write_comment(out, &format!("Change rows of {} back.", rows.source))?;
        let follows = writing.has_key_of_another(keys);
        for prefix in ["now", "then"]
            .into_iter()
            .take(if follows { 2 } else { 1 })
        {
            out.write_all(writing.update(keys, prefix).unwrap_or_default().as_bytes())?;
        }
    }
    if inserts > 0 && updates > 0 && rows.table.has_more_unique {
        out.write_all(writing.insert(keys).as_bytes())?;
    }
    Ok(())
}
