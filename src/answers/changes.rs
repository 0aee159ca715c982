//! What changed between two moments, as SQL: net, a row for each key that is another, or each change. Pure.
//!
//! Only the keys with rows between the two are looked at, or, where the table was cleared there, also all that it had before.
//! What those keys had before is looked for key by key where the history has indexes for it, else by reading it as a whole.

use super::fold::{self, Bounds, text};
use super::ledger::{Column, Ledger};
use crate::schema::{Identifier, TableName};

/// The query: `$1` and `$2` are moments that `position` takes, `$3` says whether the net changes are wanted. `unbroken` says
/// whether there are indexes.
pub(super) fn query(ledger: &Ledger, position: &TableName, unbroken: &TableName) -> String {
    let key = fold::key_list(ledger, "e");
    let events = fold::events(ledger, "true");
    format!(
        "WITH p AS MATERIALIZED (\n\
         \x20   SELECT f.upto AS first, f.after AS first_after, t.upto AS last, t.after AS last_after,\n\
         \x20          t.after > f.upto AS is_cleared, {unbroken}(f.upto, t.upto) AND t.after <= f.upto AS by_key\n\
         \x20     FROM {position}($1) f, {position}($2) t\n\
         ), ranged AS MATERIALIZED (\n\
         SELECT DISTINCT ON ({key}) e.* FROM (\n{events}\n) e\n\
         \x20WHERE $3 AND e.n > (SELECT p.first FROM p) AND e.n <= (SELECT p.last FROM p) ORDER BY {key}, e.n DESC, e.gone\n\
         ), touched AS MATERIALIZED (\n\
         SELECT {key} FROM ranged e\n\
         UNION SELECT {key} FROM (\n{events}\n) e WHERE $3 AND (SELECT p.is_cleared FROM p) AND {before}\n\
         ), was AS (\n{was}\n), now AS (\n{now}\n)\n{net}\nUNION ALL\n{each}\nORDER BY {nth}",
        before = before().holds("e.n"),
        was = was(ledger),
        now = state(
            ledger,
            "SELECT e.* FROM ranged e WHERE e.n > (SELECT p.last_after FROM p)"
        ),
        net = net(ledger),
        each = each(ledger),
        nth = ledger.columns.len() + 1,
    )
}

/// What counts at the first moment.
fn before() -> Bounds {
    Bounds {
        after: "(SELECT p.first_after FROM p)".to_owned(),
        upto: "(SELECT p.first FROM p)".to_owned(),
    }
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

/// Of each touched key the last event that counts at the first moment.
fn was(ledger: &Ledger) -> String {
    let (key, same) = (fold::key_list(ledger, "e"), same_key(ledger, "e"));
    let events = fold::events(ledger, "true");
    let bounds = before().holds("e.n");
    let last = format!(
        "SELECT * FROM (SELECT DISTINCT ON ({key}) e.* FROM (\n{events}\n) e JOIN touched t ON {same}\n\
         \x20WHERE {bounds} ORDER BY {key}, e.n DESC, e.gone) e WHERE (SELECT NOT p.by_key FROM p)\n\
         UNION ALL\n\
         SELECT e.* FROM touched t CROSS JOIN LATERAL (SELECT e.* FROM (\n{events}\n) e\n\
         \x20WHERE {same} AND {bounds} ORDER BY e.n DESC, e.gone LIMIT 1) e WHERE (SELECT p.by_key FROM p)"
    );
    state(ledger, &last)
}

/// These events with all values, as far as they are not the end of a row.
fn state(ledger: &Ledger, events: &str) -> String {
    format!(
        "SELECT l.n, l.t, l.gone, {} FROM (SELECT e.n, e.t, e.gone, e.lacks AND NOT e.gone AS lacks, {} FROM (\n{events}\n) e) l{}",
        list(ledger, &|at, _| format!(
            "{} AS v{at}",
            fold::value(ledger, at, "l")
        )),
        list(ledger, &|at, _| format!("e.v{at}")),
        fold::carrying_by_function(ledger, "l"),
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
         \x20 FROM {} h WHERE NOT $3 AND {number} > (SELECT p.first FROM p) AND {number} <= (SELECT p.last FROM p)) l{}",
        list(ledger, &|at, _| fold::value(ledger, at, "l")),
        ledger.number(),
        ledger.kind(),
        ledger.time(),
        fold::lacks(ledger),
        list(ledger, &|at, column| format!("{} AS v{at}", column.value)),
        ledger.history,
        fold::carrying_by_function(ledger, "l"),
        number = ledger.number(),
    )
}
