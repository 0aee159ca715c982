//! The statements that put the rows of one table back, from a temporary table that holds them. Pure.
//!
//! The table `undo_n` has a row for each row that is put back: the values that it is to have (`then_...`) and those that the
//! history knows it to have (`now_...`). `fits` is set, under a row lock, where the table has exactly the latter.

use std::collections::BTreeSet;

use super::table::{ForeignKey, Table};
use crate::name::NAME_BYTES_MAX;
use crate::schema::{Identifier, TableName};

/// A column that is put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    /// Its position in the ledger.
    pub at: usize,
    pub name: String,
    /// Its type on the source.
    pub kind: String,
    pub not_null: bool,
    pub is_always: bool,
    /// Two values are compared by `=`; else as text.
    pub has_equality: bool,
}

/// What is known of a table once all of its rows were written.
pub(super) struct Writing<'a> {
    /// The temporary table's number.
    pub n: usize,
    pub source: &'a TableName,
    pub table: &'a Table,
    pub columns: &'a [Column],
    /// Positions in `columns`.
    pub key: &'a [usize],
    /// Columns that some row changes.
    pub changed: &'a BTreeSet<usize>,
    /// Columns of which some row has no value to be put back.
    pub lost: &'a BTreeSet<usize>,
    /// Columns of which some row's present value is not known.
    pub unseen: &'a BTreeSet<usize>,
}

/// The name of a column of the temporary table.
fn named(prefix: &str, n: usize, name: &str) -> String {
    let whole = format!("{prefix}_{name}");
    let name = match whole.len() <= NAME_BYTES_MAX {
        true => whole,
        // No other column begins so.
        false => format!("{prefix}#{n}"),
    };
    Identifier(&name).to_string()
}

/// Two values are the same: never true for NULL where `is_key`.
fn same(is_key: bool, has_equality: bool, one: &str, other: &str) -> String {
    match (is_key, has_equality) {
        (true, true) => format!("{one} = {other}"),
        (true, false) => format!("{one}::text = {other}::text"),
        (false, true) => format!("{one} IS NOT DISTINCT FROM {other}"),
        (false, false) => format!("{one}::text IS NOT DISTINCT FROM {other}::text"),
    }
}

impl Writing<'_> {
    /// The temporary table, its columns, and the head of the statements that fill it.
    pub(super) fn create(n: usize, columns: &[Column]) -> (String, String) {
        let numbered = || columns.iter().enumerate();
        let mut definitions = vec![
            "nr bigint PRIMARY KEY".to_owned(),
            "action text NOT NULL".to_owned(),
            "lost integer[]".to_owned(),
            "unseen integer[]".to_owned(),
        ];
        let mut list = ["nr", "action", "lost", "unseen"]
            .map(str::to_owned)
            .to_vec();
        for prefix in ["then", "now"] {
            for (at, column) in numbered() {
                let name = named(prefix, at, &column.name);
                definitions.push(format!("{name} {}", column.kind));
                list.push(name);
            }
        }
        definitions.push("fits boolean NOT NULL DEFAULT false".to_owned());
        definitions.push("done boolean NOT NULL DEFAULT false".to_owned());
        (
            format!(
                "CREATE TEMPORARY TABLE undo_{n} (\n    {}\n) ON COMMIT DROP;\n",
                definitions.join(",\n    ")
            ),
            format!(
                "INSERT INTO pg_temp.undo_{n} ({}) VALUES\n",
                list.join(", ")
            ),
        )
    }

    fn named(&self, prefix: &str, at: usize) -> String {
        named(prefix, at, &self.columns[at].name)
    }

    /// Row `row` of the table has the key of row `undo`, the one that it is to have (`then`) or that it has (`now`).
    fn has_key(&self, (row, undo): (&str, &str), prefix: &str) -> String {
        let pairs = self.key.iter().map(|&at| {
            let column = &self.columns[at];
            let of_table = format!("{row}.{}", Identifier(&column.name));
            let name = format!("{undo}.{}", self.named(prefix, at));
            same(true, column.has_equality, &of_table, &name)
        });
        pairs.collect::<Vec<_>>().join(" AND ")
    }

    /// Locks the rows that are changed and removed, and notes which are as the history has them.
    pub(super) fn fits(&self) -> String {
        let others = (0..self.columns.len()).filter(|at| !self.key.contains(at));
        let guards = others.map(|at| {
            let column = &self.columns[at];
            let of_table = format!("t.{}", Identifier(&column.name));
            let name = format!("u.{}", self.named("now", at));
            let guard = same(false, column.has_equality, &of_table, &name);
            match self.unseen.contains(&at) {
                true => format!("\n   AND (coalesce({at} = ANY (u.unseen), false) OR {guard})"),
                false => format!("\n   AND {guard}"),
            }
        });
        format!(
            "WITH fitting AS (\n\
             SELECT u.nr FROM {} t JOIN pg_temp.undo_{n} u ON {}\n WHERE u.action IN ('UPDATE', 'DELETE'){}\n   FOR UPDATE OF t)\n\
             UPDATE pg_temp.undo_{n} u SET fits = true FROM fitting WHERE u.nr = fitting.nr;\n",
            self.source,
            self.has_key(("t", "u"), "now"),
            guards.collect::<String>(),
            n = self.n
        )
    }

    /// Removes rows to which no other row refers. `keys`: foreign keys.
    pub(super) fn delete(&self, keys: &[ForeignKey]) -> String {
        let referring = keys.iter().filter(|key| key.parent == self.table.oid);
        let (own, others): (Vec<&ForeignKey>, Vec<&ForeignKey>) =
            referring.partition(|key| key.child == self.table.oid);
        let (n, is_open) = (self.n, "u.action = 'DELETE' AND u.fits AND NOT u.done");
        let has_key = self.has_key(("t", "u"), "now");
        let mut refers: Vec<String> = others
            .iter()
            .map(|key| {
                format!(
                    "EXISTS (SELECT FROM {} r WHERE {})",
                    key.child_table(),
                    self.refers(key, "r")
                )
            })
            .collect();
        let (mut with, mut guards) = ("WITH ".to_owned(), String::new());
        if own.is_empty() {
            guards.extend(refers.iter().map(|refers| format!("\n   AND NOT {refers}")));
        } else {
            // Rows of the same table that are removed with it do not keep a row; one that stays keeps those that it refers to.
            let own: Vec<String> = own.iter().map(|key| self.refers(key, "r")).collect();
            let own = own.join(" OR ");
            let removed = self.has_key(("r", "o"), "now");
            refers.push(format!(
                "EXISTS (SELECT FROM {source} r WHERE ({own})\n        AND NOT EXISTS (SELECT FROM pg_temp.undo_{n} o \
                 WHERE o.action = 'DELETE' AND o.fits AND NOT o.done AND {removed}))",
                source = self.source
            ));
            with = format!(
                "WITH RECURSIVE kept AS (\n\
                 SELECT u.nr FROM {source} t JOIN pg_temp.undo_{n} u ON {has_key}\n WHERE {is_open}\n   AND ({})\n\
                 UNION\n\
                 SELECT u.nr FROM kept JOIN pg_temp.undo_{n} o ON o.nr = kept.nr\n  JOIN {source} r ON {removed}\n  \
                 JOIN {source} t ON {own}\n  JOIN pg_temp.undo_{n} u ON {is_open} AND {has_key}\n), ",
                refers.join("\n     OR "),
                source = self.source
            );
            guards = "\n   AND NOT EXISTS (SELECT FROM kept WHERE kept.nr = u.nr)".to_owned();
        }
        format!(
            "{with}d AS (\n\
             DELETE FROM {} t USING pg_temp.undo_{n} u\n WHERE {is_open} AND {has_key}{guards}\nRETURNING u.nr)\n\
             UPDATE pg_temp.undo_{n} u SET done = true FROM d WHERE u.nr = d.nr;\n",
            self.source
        )
    }

    /// The rows are there to which row `u` is to refer, by columns of which one is `of`. `keys`: foreign keys that are not part
    /// of a circle. Rows of the same table come in the same statement.
    fn has_parents(&self, keys: &[ForeignKey], of: impl Fn(usize) -> bool) -> String {
        let mut guards = String::new();
        for key in keys {
            if key.child != self.table.oid || key.parent == self.table.oid {
                continue;
            }
            let columns = key.child_columns.iter();
            let at = columns.map(|name| self.columns.iter().position(|known| known.name == *name));
            // A column that is not put back is checked by the server.
            let Some(at) = at.collect::<Option<Vec<usize>>>() else {
                continue;
            };
            if !at.iter().any(|at| of(*at)) || at.iter().any(|at| self.lost.contains(at)) {
                continue;
            }
            let names: Vec<String> = at
                .iter()
                .map(|&at| format!("u.{}", self.named("then", at)))
                .collect();
            let pairs = std::iter::zip(&key.parent_columns, &names).zip(&at);
            let pairs = pairs.map(|((parent, name), at)| {
                let parent = format!("p.{}", Identifier(parent));
                same(true, self.columns[*at].has_equality, &parent, name)
            });
            let absent: Vec<String> = names.iter().map(|name| format!("{name} IS NULL")).collect();
            guards.push_str(&format!(
                "\n   AND ({} OR EXISTS (SELECT FROM {} p WHERE {}))",
                absent.join(" OR "),
                key.parent_table(),
                pairs.collect::<Vec<_>>().join(" AND ")
            ));
        }
        guards
    }

    /// Row `row` refers to row `t`.
    fn refers(&self, key: &ForeignKey, row: &str) -> String {
        let pairs =
            std::iter::zip(&key.child_columns, &key.parent_columns).map(|(child, parent)| {
                let mut known = self.table.columns.iter();
                let known = known.find(|column| column.name == *parent);
                let has_equality = known.is_none_or(|column| column.has_equality);
                let (child, parent) = (Identifier(child), Identifier(parent));
                same(
                    true,
                    has_equality,
                    &format!("{row}.{child}"),
                    &format!("t.{parent}"),
                )
            });
        pairs.collect::<Vec<_>>().join(" AND ")
    }

    /// Adds rows, as far as no other row has their key, or, where constraints are checked at once, another unique value of them.
    pub(super) fn insert(&self, keys: &[ForeignKey]) -> String {
        let names = self.columns.iter();
        let names: Vec<String> = names
            .map(|column| Identifier(&column.name).to_string())
            .collect();
        let values = 0..self.columns.len();
        let values: Vec<String> = values
            .map(|at| format!("u.{}", self.named("then", at)))
            .collect();
        let key: Vec<String> = self
            .key
            .iter()
            .map(|&at| Identifier(&self.columns[at].name).to_string())
            .collect();
        let key = key.join(", ");
        let overriding = match self.table.columns.iter().any(|column| column.is_identity) {
            true => " OVERRIDING SYSTEM VALUE",
            false => "",
        };
        // Constraints that are checked late cannot be asked.
        let conflict = match self.table.is_checked_late {
            true => format!("({key}) "),
            false => String::new(),
        };
        format!(
            "WITH d AS (\n\
             INSERT INTO {} ({}){overriding}\n\
             SELECT {} FROM pg_temp.undo_{n} u\n WHERE u.action = 'INSERT' AND NOT u.done{}\n ORDER BY u.nr\n\
             ON CONFLICT {conflict}DO NOTHING RETURNING {key})\n\
             UPDATE pg_temp.undo_{n} u SET done = true FROM d WHERE u.action = 'INSERT' AND {};\n",
            self.source,
            names.join(", "),
            values.join(", "),
            self.has_parents(keys, |_| true),
            self.has_key(("d", "u"), "then"),
            n = self.n
        )
    }

    /// Changes rows. A change of the parent's key can have reached a row before: then it has its key already (`then`).
    pub(super) fn update(&self, keys: &[ForeignKey], prefix: &str) -> Option<String> {
        let columns = self.changed.iter();
        let columns: Vec<&usize> = columns.filter(|at| !self.columns[**at].is_always).collect();
        if columns.is_empty() {
            return None;
        }
        let sets = columns.into_iter().map(|&at| {
            let (column, name) = (Identifier(&self.columns[at].name), self.named("then", at));
            match self.lost.contains(&at) {
                true => format!(
                    "{column} = CASE WHEN coalesce({at} = ANY (u.lost), false) THEN t.{column} ELSE u.{name} END"
                ),
                false => format!("{column} = u.{name}"),
            }
        });
        let sets: Vec<String> = sets.collect();
        Some(self.noting(&format!(
            "UPDATE {} t SET {}\n  FROM pg_temp.undo_{} u\n WHERE u.action = 'UPDATE' AND u.fits AND NOT u.done AND {}{}\n\
             RETURNING u.nr",
            self.source,
            sets.join(", "),
            self.n,
            self.has_key(("t", "u"), prefix),
            self.has_parents(keys, |at| self.changed.contains(&at))
        )))
    }

    /// Whether a change of another table's key changes the key of this one too.
    pub(super) fn has_key_of_another(&self, keys: &[ForeignKey]) -> bool {
        let moves = self.key.iter().any(|at| self.changed.contains(at));
        let is_key = |name: &String| self.key.iter().any(|&at| self.columns[at].name == *name);
        moves
            && keys.iter().any(|key| {
                key.child == self.table.oid && key.cascades && key.child_columns.iter().any(is_key)
            })
    }

    fn noting(&self, statement: &str) -> String {
        format!(
            "WITH d AS (\n{statement})\nUPDATE pg_temp.undo_{n} u SET done = true FROM d WHERE u.nr = d.nr;\n",
            n = self.n
        )
    }

    /// How many rows were put back.
    pub(super) fn count(&self) -> String {
        format!(
            "SELECT {} AS \"table\", action, count(*) AS rows, count(*) FILTER (WHERE done) AS put_back,\n\
             \x20      count(*) FILTER (WHERE NOT done) AS left_out\n  FROM pg_temp.undo_{} GROUP BY action",
            super::literal::text_literal(&self.source.to_string()),
            self.n
        )
    }

    /// The keys of those that were not.
    pub(super) fn left_out(&self) -> String {
        let key = self.key.iter().map(|&at| {
            format!(
                "{} || coalesce({}, {})::text",
                super::literal::text_literal(&format!("{}=", self.columns[at].name)),
                self.named("now", at),
                self.named("then", at)
            )
        });
        format!(
            "SELECT {} AS \"table\", action, concat_ws(', ', {}) AS left_out\n  FROM pg_temp.undo_{} WHERE NOT done",
            super::literal::text_literal(&self.source.to_string()),
            key.collect::<Vec<_>>().join(", "),
            self.n
        )
    }
}
