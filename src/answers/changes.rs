//! What changed between two moments, as SQL: net, a row for each key that is another, or each change. Pure.
//!
//! Only the keys with rows between the two are looked at, or, where the table was cleared there, also all that it had before.

use super::fold::{self, text};
use super::ledger::{Column, Ledger};
use crate::schema::{Identifier, TableName};

/// The query: `$1` and `$2` are moments that `position` takes, `$3` says whether the net changes are wanted.
pub(super) fn query(ledger: &Ledger, position: &TableName, unbroken: &TableName) -> String {
    let key = fold::key_list(ledger, "e");
    format!(
        "WITH p AS MATERIALIZED (\n\
         \x20   SELECT f.upto AS first, f.after AS first_after, t.upto AS last, t.after AS last_after\n\
         \x20     FROM {position}($1) f, {position}($2) t WHERE {unbroken}(f.upto, t.upto)\n\
         ), touched AS MATERIALIZED (\n\
         SELECT {key} FROM (\n{}\n) e WHERE $3\n\
         UNION SELECT {key} FROM (\n{}\n) e WHERE $3 AND (SELECT p.last_after > p.first FROM p)\n\
         ), was AS (\n{}\n), now AS (\n{}\n)\n{}\nUNION ALL\n{}\nORDER BY {}",
        fold::events(ledger, &within(ledger, "first", "last")),
        fold::events(ledger, &within(ledger, "first_after", "first")),
        state(ledger, "first_after", "first"),
        state(ledger, "last_after", "last"),
        net(ledger),
        each(ledger),
        ledger.columns.len() + 1,
    )
}

fn within(ledger: &Ledger, after: &str, upto: &str) -> String {
    let number = ledger.number();
    format!("{number} > (SELECT p.{after} FROM p) AND {number} <= (SELECT p.{upto} FROM p)")
}

fn list(ledger: &Ledger, value: &dyn Fn(usize, &Column) -> String) -> String {
    let all = ledger.columns.iter().enumerate();
    let all = all.map(|(at, column)| value(at, column));
    all.collect::<Vec<_>>().join(", ")
}

/// The key of `alias` is that of `t`.
fn same_key(ledger: &Ledger, alias: &str) -> String {
    let key = ledger.key.iter();
    let same = key.map(|at| format!("{alias}.v{at} = t.v{at}"));
    same.collect::<Vec<_>>().join(" AND ")
}

/// The last event of each key that is touched.
fn state(ledger: &Ledger, after: &str, upto: &str) -> String {
    let key = fold::key_list(ledger, "e");
    format!(
        "SELECT l.n, l.t, l.gone, {} FROM (\n\
         SELECT DISTINCT ON ({key}) e.* FROM (\n{}\n) e JOIN touched t ON {} ORDER BY {key}, e.n DESC, e.gone) l{}",
        list(ledger, &|at, _| format!(
            "{} AS v{at}",
            fold::value(ledger, at, "l")
        )),
        fold::events(ledger, &within(ledger, after, upto)),
        same_key(ledger, "e"),
        fold::carrying(ledger, "l"),
    )
}

/// Keys whose row is another than it was.
fn net(ledger: &Ledger) -> String {
    let there = |alias: &str| format!("({alias}.n IS NOT NULL AND NOT {alias}.gone)");
    let (was, is) = (there("w"), there("a"));
    let changed = list(ledger, &|at, column| {
        format!(
            "CASE WHEN pg_catalog.record_image_ne(ROW(a.v{at}), ROW(w.v{at})) THEN {} END",
            text(&column.name)
        )
    });
    let values = list(ledger, &|at, column| {
        let name = Identifier(&column.name);
        match ledger.key.contains(&at) {
            true => format!("t.v{at} AS {name}"),
            false => format!("CASE WHEN {is} THEN a.v{at} ELSE w.v{at} END AS {name}"),
        }
    });
    // A key without an event of its own went with all others.
    let cleared_at = format!(
        "(SELECT {} FROM {} h WHERE {} = p.last_after)",
        ledger.time(),
        ledger.history,
        ledger.number()
    );
    format!(
        "SELECT {values}, coalesce(a.n, p.last_after),\n\
         \x20      CASE WHEN NOT {was} THEN 'INSERT'::text WHEN {is} THEN 'UPDATE'::text ELSE 'DELETE'::text END,\n\
         \x20      coalesce(a.t, {cleared_at}),\n\
         \x20      CASE WHEN {was} AND {is} THEN array_remove(ARRAY[{changed}], NULL::text) END\n\
         \x20 FROM p CROSS JOIN touched t LEFT JOIN was w ON {} LEFT JOIN now a ON {}\n\
         \x20WHERE ({was} OR {is}) AND NOT ({was} AND {is} AND pg_catalog.record_image_eq(ROW({}), ROW({})))",
        same_key(ledger, "w"),
        same_key(ledger, "a"),
        list(ledger, &|at, _| format!("a.v{at}")),
        list(ledger, &|at, _| format!("w.v{at}")),
    )
}

/// Each change.
fn each(ledger: &Ledger) -> String {
    format!(
        "SELECT {}, l.n, l.kind, l.t, NULL::text[] FROM (\n\
         SELECT {} AS n, {} AS kind, {} AS t, {} AS lacks, {}\n\
         \x20 FROM {} h WHERE NOT $3 AND {}) l{}",
        list(ledger, &|at, _| fold::value(ledger, at, "l")),
        ledger.number(),
        ledger.kind(),
        ledger.time(),
        fold::lacks(ledger),
        list(ledger, &|at, column| format!("{} AS v{at}", column.value)),
        ledger.history,
        within(ledger, "first", "last"),
        fold::carrying(ledger, "l"),
    )
}
