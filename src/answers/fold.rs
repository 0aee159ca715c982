//! A history folded into its table, as SQL. Pure.
//!
//! The rows after the last TRUNCATE or GAP count, up to some number. Of each key the last row says what the table has. An
//! UPDATE of the key in one row is two events: the row under the former key is gone, the one under the new key is there.
//! A value that the WAL did not carry is that of the row's version before, followed through changes of the key.

use super::ledger::{Column, Ledger, object};
use crate::schema::plan::literal;
use crate::schema::{Identifier, TableName};

/// Rows of a history by number, each end an SQL expression: from past `after` up to `upto`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub after: String,
    pub upto: String,
}

impl Bounds {
    /// The condition over a row's `number`. The planner knows neither end: it takes two comparisons of one column for a range of
    /// few rows, and a comparison of rows for a third of all.
    pub fn holds(&self, number: &str) -> String {
        let Self { after, upto } = self;
        format!("ROW({number}, 0) > ROW({after}, 0) AND {number} <= {upto}")
    }
}

/// Row `h` says that every row of the table is gone, or not known.
pub fn clears(ledger: &Ledger) -> String {
    format!(
        "{} = ANY (ARRAY['TRUNCATE'::text, 'GAP'::text])",
        ledger.kind()
    )
}

/// The number of the last row that clears the table, up to `upto`; 0 where there is none.
pub fn after(ledger: &Ledger, upto: &str) -> String {
    let number = ledger.number();
    format!(
        "(SELECT coalesce(max({number}), 0) FROM {} h WHERE {} AND {number} <= {upto})",
        ledger.history,
        clears(ledger)
    )
}

/// What happened to keys, in columns: `n` the row's number, `t` its time, `gone`, `lacks` whether some value has to be looked
/// for, and `v0`, `v1`, ... the values of the ledger's columns. `rows` is a condition over `h`.
pub fn events(ledger: &Ledger, rows: &str) -> String {
    let (number, time, kind) = (ledger.number(), ledger.time(), ledger.kind());
    let values = |value: &dyn Fn(usize, &Column) -> String| -> String {
        let all = ledger.columns.iter().enumerate();
        let all = all.map(|(at, column)| format!("{} AS v{at}", value(at, column)));
        all.collect::<Vec<_>>().join(", ")
    };
    let lacks = lacks(ledger);
    let mut sql = format!(
        "SELECT {number} AS n, {time} AS t, {kind} = 'DELETE'::text AS gone, {lacks} AS lacks, {}\n\
         \x20 FROM {} h\n WHERE {rows} AND NOT {}",
        values(&|_, column| column.value.clone()),
        ledger.history,
        clears(ledger)
    );
    if let Some(changes_key) = ledger.changes_key() {
        let old = |at: usize, column: &Column| match &column.old {
            Some(old) if ledger.key.contains(&at) => ledger.own(old),
            _ => format!("NULL::{}", column.kind),
        };
        sql.push_str(&format!(
            "\nUNION ALL\nSELECT {number}, {time}, true, false, {}\n  FROM {} h\n WHERE {rows} AND {changes_key}",
            values(&old),
            ledger.history,
        ));
    }
    sql
}

/// Whether the WAL did not carry some value of row `h`.
pub fn lacks(ledger: &Ledger) -> String {
    match &ledger.unavailable {
        Some(own) => format!("{} IS NOT NULL", ledger.own(own)),
        None => "false".to_owned(),
    }
}

/// The names of the key's columns in [`events`].
pub fn key_list(ledger: &Ledger, alias: &str) -> String {
    let key = ledger.key.iter().map(|at| format!("{alias}.v{at}"));
    key.collect::<Vec<_>>().join(", ")
}

/// The columns of the table, by their names, from `alias` as [`events`] has them and `c` as [`carried`] has them.
pub fn named(ledger: &Ledger, alias: &str) -> String {
    let columns = ledger.columns.iter().enumerate().map(|(at, column)| {
        let value = value(ledger, at, alias);
        format!("{value} AS {}", Identifier(&column.name))
    });
    columns.collect::<Vec<_>>().join(", ")
}

/// One of them.
pub fn value(ledger: &Ledger, at: usize, alias: &str) -> String {
    let is_looked_for = ledger.columns[at].unavailable.is_some() && !ledger.key.contains(&at);
    match is_looked_for {
        true => format!("CASE WHEN {alias}.lacks THEN c.v{at} ELSE {alias}.v{at} END"),
        false => format!("{alias}.v{at}"),
    }
}

/// The join that looks for the values that a row of `alias` lacks; nothing where the history cannot say that it lacks some.
/// OFFSET keeps the condition inside, so that nothing is looked for where nothing lacks.
pub fn carrying(ledger: &Ledger, alias: &str) -> String {
    match carried(ledger, &format!("{alias}.n")) {
        Some(carried) => format!(
            "\n  LEFT JOIN LATERAL (SELECT * FROM (\n{carried}\n) b WHERE {alias}.lacks OFFSET 0) c ON true"
        ),
        None => String::new(),
    }
}

/// The same by the function beside the history that looks for them: the planner takes what it looks for as little, and plans it
/// once.
pub fn carrying_by_function(ledger: &Ledger, alias: &str) -> String {
    match carried(ledger, "0") {
        Some(_) => format!(
            "\n  LEFT JOIN LATERAL (SELECT f.* FROM {}({alias}.n) f WHERE {alias}.lacks OFFSET 0) c ON true",
            object(&ledger.history, "_carried")
        ),
        None => String::new(),
    }
}

/// The table as the history has it within `bounds`.
pub fn whole(ledger: &Ledger, bounds: &Bounds) -> String {
    if ledger.key.is_empty() {
        return copies(ledger, bounds);
    }
    let key = key_list(ledger, "e");
    // The condition stands outside of the union: a query of its own within would keep it from being run in parallel.
    format!(
        "SELECT {}\n  FROM (SELECT DISTINCT ON ({key}) e.* FROM (\n{}\n) e WHERE {} ORDER BY {key}, e.n DESC, e.gone) l{}\n WHERE NOT l.gone",
        named(ledger, "l"),
        events(ledger, "true"),
        bounds.holds("e.n"),
        carrying_by_function(ledger, "l"),
    )
}

/// The same for a table without a key: each row as often as it was added and not taken away.
fn copies(ledger: &Ledger, bounds: &Bounds) -> String {
    let (rows, kind) = (bounds.holds(&ledger.number()), ledger.kind());
    let list = |value: &dyn Fn(usize, &Column) -> String| -> String {
        let all = ledger.columns.iter().enumerate();
        all.map(|(at, column)| value(at, column))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut events = format!(
        "SELECT CASE {kind} WHEN 'DELETE'::text THEN -1 ELSE 1 END AS w, {}\n  FROM {} h\n WHERE {rows} AND NOT {}",
        list(&|at, column| format!("{} AS v{at}", column.value)),
        ledger.history,
        clears(ledger)
    );
    // Without them, such an UPDATE is a DELETE and an INSERT.
    if ledger.columns.iter().all(|column| column.old.is_some()) {
        let old = |_: usize, column: &Column| match &column.old {
            Some(old) => ledger.own(old),
            None => column.value.clone(),
        };
        events.push_str(&format!(
            "\nUNION ALL\nSELECT -1, {}\n  FROM {} h\n WHERE {rows} AND {kind} = 'UPDATE'::text",
            list(&old),
            ledger.history
        ));
    }
    let all = list(&|at, _| format!("e.v{at}"));
    format!(
        "SELECT {}\n  FROM (SELECT {all}, sum(e.w) AS copies FROM (\n{events}\n) e GROUP BY {all}) l\n \
         CROSS JOIN LATERAL generate_series(1::bigint, l.copies)",
        list(&|at, column| format!("l.v{at} AS {}", Identifier(&column.name))),
    )
}

/// The values of the row with this number, an SQL expression, with those that the WAL did not carry: one row of `v0`, `v1`, ...
/// and `known0`, `known1`, ... for the columns that are not of the key. None where the history cannot say what it lacks.
pub fn carried(ledger: &Ledger, number: &str) -> Option<String> {
    ledger.unavailable.as_ref()?;
    let others: Vec<(usize, &Column, &String)> = ledger
        .columns
        .iter()
        .enumerate()
        .filter(|(at, _)| !ledger.key.contains(at))
        .filter_map(|(at, column)| Some((at, column, column.unavailable.as_ref()?)))
        .collect();
    if others.is_empty() || ledger.key.is_empty() {
        return None;
    }
    let join = |each: &dyn Fn(&(usize, &Column, &String)) -> String, with: &str| {
        others.iter().map(each).collect::<Vec<_>>().join(with)
    };
    let base = join(
        &|(at, column, lacks)| format!("{} AS v{at}, NOT {lacks} AS known{at}", column.value),
        ", ",
    );
    let step = join(
        &|(at, ..)| {
            format!(
                "CASE WHEN b.known{at} THEN b.v{at} ELSE p.v{at} END, b.known{at} OR p.known{at}"
            )
        },
        ", ",
    );
    let complete = join(&|(at, ..)| format!("b.known{at}"), " AND ");
    let nothing_new = join(
        &|(at, _, lacks)| format!("(b.known{at} OR {lacks})"),
        " AND ",
    );
    let former = former(ledger);
    let numbered = ledger.key.iter().enumerate();
    let same = numbered.map(|(n, &at)| format!("{} = b.k{n}", ledger.columns[at].value));
    let same: Vec<String> = same.collect();
    let keys: Vec<String> = (0..ledger.key.len()).map(|n| format!("p.k{n}")).collect();
    let passes = match ledger.changes_key() {
        Some(changes_key) => format!(
            "({} <> 'UPDATE'::text OR {changes_key} OR NOT ({nothing_new}))",
            ledger.kind()
        ),
        None => format!(
            "({} <> 'UPDATE'::text OR NOT ({nothing_new}))",
            ledger.kind()
        ),
    };
    let (n, history) = (
        ledger.number(),
        format!("{} h {}", ledger.history, itself(ledger)),
    );
    Some(format!(
        "WITH RECURSIVE back AS (\n\
         SELECT {n} AS n, {former}, {base} FROM {history} WHERE {n} = {number}\n\
         UNION ALL\n\
         SELECT p.n, p.goes_on, {}, {step} FROM back b CROSS JOIN LATERAL (\n\
         SELECT {n} AS n, {former}, {base} FROM {history}\n\
         \x20WHERE {} AND {n} < b.n AND NOT {} AND {passes}\n\
         \x20ORDER BY {n} DESC LIMIT 1) p\n\
         \x20WHERE b.goes_on AND NOT ({complete})\n\
         ) SELECT {} FROM back b ORDER BY b.n LIMIT 1",
        keys.join(", "),
        same.join(" AND "),
        clears(ledger),
        join(&|(at, ..)| format!("b.v{at}, b.known{at}"), ", "),
    ))
}

/// Whether the row before `h` is a version of the same row, and the key that it had: `goes_on`, `k0`, `k1`, ...; in a query
/// that also has [`itself`].
fn former(ledger: &Ledger) -> String {
    let kind = ledger.kind();
    let keys = ledger.key_columns().enumerate();
    let goes_on = format!("{kind} = ANY (ARRAY['UPDATE'::text, 'DELETE'::text])");
    if let Some(changes_key) = ledger.changes_key() {
        let keys = keys.map(|(n, column)| match &column.old {
            Some(old) => format!(
                "CASE WHEN {changes_key} THEN {} ELSE {} END AS k{n}",
                ledger.own(old),
                column.value
            ),
            None => format!("{} AS k{n}", column.value),
        });
        let keys: Vec<String> = keys.collect();
        return format!("{goes_on} AS goes_on, {}", keys.join(", "));
    }
    // The DELETE of the former key is the row before the INSERT of the new one, of the same transaction.
    let number = ledger.number();
    let before = |what: &str| {
        format!(
            "(SELECT {what} FROM {} h WHERE {number} < o.n ORDER BY {number} DESC LIMIT 1)",
            ledger.history
        )
    };
    let is_split = format!(
        "{kind} = 'INSERT'::text AND o.lacks AND {}",
        before(&format!(
            "{kind} = 'DELETE'::text AND {} = o.t",
            ledger.time()
        ))
    );
    let keys = keys.map(|(n, column)| {
        let value = &column.value;
        format!(
            "CASE WHEN {is_split} THEN {} ELSE {value} END AS k{n}",
            before(value)
        )
    });
    let keys: Vec<String> = keys.collect();
    format!("({goes_on} OR {is_split}) AS goes_on, {}", keys.join(", "))
}

/// Row `h` under another name, for queries within.
fn itself(ledger: &Ledger) -> String {
    let lacks = lacks(ledger);
    format!(
        "CROSS JOIN LATERAL (SELECT {} AS n, {} AS t, {lacks} AS lacks) o",
        ledger.number(),
        ledger.time()
    )
}

/// An index that these queries want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Columns of the history.
    pub columns: Vec<String>,
    /// Which rows are in it; without one, all.
    pub predicate: Option<String>,
}

impl Index {
    /// The statement that makes it; `concurrently` where the table has no partitions.
    pub fn sql(&self, history: &TableName, concurrently: bool) -> String {
        let names = self.columns.iter();
        let names: Vec<String> = names.map(|name| Identifier(name).to_string()).collect();
        let concurrently = if concurrently { " CONCURRENTLY" } else { "" };
        let mut sql = format!(
            "CREATE INDEX{concurrently} ON {history} ({})",
            names.join(", ")
        );
        if let Some(predicate) = &self.predicate {
            sql.push_str(&format!(" WHERE {predicate}"));
        }
        sql
    }

    /// Whether an index with these leading columns and this predicate, as `pg_get_expr` writes it, serves as well.
    pub fn is_served_by(&self, columns: &[String], predicate: Option<&str>) -> bool {
        columns.starts_with(&self.columns)
            && match (&self.predicate, predicate) {
                (_, None) => self.predicate.is_none(),
                (None, Some(_)) => false,
                (Some(wanted), Some(known)) => bare(wanted) == bare(known),
            }
    }
}

/// A condition without what the server writes in another way: parentheses, blanks, casts to text, upper case.
fn bare(condition: &str) -> String {
    let condition = condition.replace("::text", "").replace("pg_catalog.", "");
    let kept = condition.chars();
    let kept = kept.filter(|c| !c.is_whitespace() && !matches!(c, '(' | ')'));
    kept.collect::<String>().to_lowercase()
}

/// A condition over `h`, for a statement that knows no alias.
fn without_alias(condition: &str) -> String {
    let mut kept = String::new();
    for (at, piece) in condition.split("h.").enumerate() {
        let inside_a_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '"');
        if at > 0 && kept.ends_with(inside_a_name) {
            kept.push_str("h.");
        }
        kept.push_str(piece);
    }
    kept
}

/// The indexes that these queries want: by number, by key, of what clears the table, and by a key's former value.
pub fn indexes(ledger: &Ledger) -> Vec<Index> {
    let number = ledger.number.clone();
    let mut wanted = vec![Index {
        columns: vec![number.clone()],
        predicate: None,
    }];
    let mut add = |mut columns: Vec<String>, condition: Option<String>| {
        // An index has no queries in it.
        if condition.as_ref().is_some_and(|sql| sql.contains("SELECT")) {
            return;
        }
        columns.push(number.clone());
        wanted.push(Index {
            columns,
            predicate: condition.map(|sql| without_alias(&sql)),
        });
    };
    if !ledger.key.is_empty() {
        let key = ledger.key_columns().map(|column| column.home.clone());
        add(key.collect(), None);
    }
    add(Vec::new(), Some(clears(ledger)));
    if let Some(changes_key) = ledger.changes_key() {
        let old = ledger.key_columns().filter_map(|column| column.old.clone());
        add(old.collect(), Some(changes_key));
    }
    wanted
}

/// A text as a literal of type text.
pub fn text(text: &str) -> String {
    format!("{}::text", literal(text))
}
