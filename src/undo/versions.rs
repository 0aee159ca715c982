//! The queries behind [`net`](super::net): the versions of the keys that some changes touched. Pure.

use super::net::Block;
use crate::answers::fold::{self, Bounds};
use crate::answers::ledger::Ledger;
use crate::life::reader::{cells, knows_old};
use crate::schema::Identifier;

/// The positions of rows, given as a list for each column, that fulfil a condition.
pub(super) fn fulfils(ledger: &Ledger, condition: &str) -> String {
    let columns = ledger.columns.iter().enumerate();
    let named = columns
        .map(|(at, column)| format!("w.c{at}::{} AS {}", column.kind, Identifier(&column.name)));
    let named: Vec<String> = named.collect();
    let lists = (1..=ledger.columns.len()).map(|n| format!("${n}::text[]"));
    let names = (0..ledger.columns.len()).map(|at| format!("c{at}"));
    format!(
        "SELECT \"#\" FROM (SELECT w.\"#\", {} FROM unnest({}) WITH ORDINALITY w ({}, \"#\")) AS {} WHERE (\n{condition}\n)",
        named.join(", "),
        lists.collect::<Vec<_>>().join(", "),
        names.collect::<Vec<_>>().join(", "),
        Identifier(&ledger.source.name)
    )
}

/// The keys that the changes touched, as `k0`, `k1`, ...
pub(super) fn touched(ledger: &Ledger, block: &Block) -> String {
    let number = ledger.number();
    let within = format!("{number} BETWEEN {} AND {}", block.first, block.last);
    let keys = ledger.key.iter().enumerate();
    let keys: Vec<String> = keys.map(|(n, at)| format!("e.v{at} AS k{n}")).collect();
    let keys = keys.join(", ");
    let mut sql = format!(
        "SELECT DISTINCT {keys} FROM (\n{}\n) e",
        fold::events(ledger, &within)
    );
    if block.truncates {
        let last = last_events(ledger, &bounds(block, 0), "");
        sql.push_str(&format!(
            "\nUNION\nSELECT {keys} FROM (\n{last}\n) e WHERE NOT e.gone"
        ));
    }
    sql
}

/// Before the changes, after them, and now.
fn bounds(block: &Block, at: usize) -> Bounds {
    let upto = [block.first - 1, block.last, block.end];
    Bounds {
        after: block.cleared[at].to_string(),
        upto: upto[at].to_string(),
    }
}

/// The last event of each key.
fn last_events(ledger: &Ledger, bounds: &Bounds, join: &str) -> String {
    let (number, key) = (ledger.number(), fold::key_list(ledger, "e"));
    let within = format!(
        "{number} > {} AND {number} <= {}",
        bounds.after, bounds.upto
    );
    format!(
        "SELECT DISTINCT ON ({key}) e.* FROM (\n{}\n) e{join}\n ORDER BY {key}, e.n DESC, e.gone",
        fold::events(ledger, &within)
    )
}

/// For each of the keys that `keys` gives (as `k0`, `k1`, ...): the key, the versions before, after and now, and the first
/// change with what it says of the row before.
pub(super) fn versions(ledger: &Ledger, keys: &str, block: &Block) -> String {
    let numbered = || ledger.key.iter().enumerate();
    let same = |alias: &str| {
        let pairs = numbered().map(|(n, at)| format!("{alias}.v{at} = t.k{n}"));
        pairs.collect::<Vec<_>>().join(" AND ")
    };
    let joined = format!(" JOIN touched t ON {}", same("e"));
    let version = |at: usize| {
        let key = numbered().map(|(_, at)| format!("l.v{at}"));
        let (values, known) = cells(ledger, "l");
        format!(
            "(SELECT {}, {values} AS held, {known} AS known FROM (\n{}\n) l{} WHERE NOT l.gone)",
            key.collect::<Vec<_>>().join(", "),
            last_events(ledger, &bounds(block, at), &joined),
            fold::carrying(ledger, "l")
        )
    };
    let shown: Vec<String> = (0..ledger.key.len())
        .map(|n| format!("t.k{n}::text"))
        .collect();
    let now = match block.last == block.end {
        true => "(SELECT NULL::text[] AS held, NULL::bool[] AS known) c ON true".to_owned(),
        false => format!("{} c ON {}", version(2), same("c")),
    };
    format!(
        "WITH touched AS MATERIALIZED (\n{keys}\n)\n\
         SELECT ARRAY[{}]::text[], b.held, b.known, a.held, a.known, c.held, c.known, f.kind, f.held, f.known\n\
         \x20 FROM touched t LEFT JOIN {} b ON {}\n LEFT JOIN {} a ON {}\n LEFT JOIN {now}\n LEFT JOIN {} f ON {}",
        shown.join(", "),
        version(0),
        same("b"),
        version(1),
        same("a"),
        first_changes(ledger, block, &joined),
        same("f"),
    )
}

/// The first change of each key, and what it says of the row before.
fn first_changes(ledger: &Ledger, block: &Block, join: &str) -> String {
    let (number, kind) = (ledger.number(), ledger.kind());
    let changes_key = ledger.changes_key();
    let held = ledger.key.iter().map(|at| {
        let column = &ledger.columns[*at];
        match (&changes_key, &column.old) {
            (Some(changes), Some(old)) => format!(
                "CASE WHEN {changes} THEN {} ELSE {} END AS v{at}",
                ledger.own(old),
                column.value
            ),
            _ => format!("{} AS v{at}", column.value),
        }
    });
    let held: Vec<String> = held.collect();
    let columns = || ledger.columns.iter().enumerate();
    let values = columns().map(|(at, column)| match &column.old {
        Some(old) if !ledger.key.contains(&at) => format!(
            "CASE WHEN {kind} = 'UPDATE' THEN {}::text ELSE {}::text END",
            ledger.own(old),
            column.value
        ),
        Some(old) => format!(
            "CASE WHEN {} THEN {}::text ELSE {}::text END",
            changes_key.as_deref().unwrap_or("false"),
            ledger.own(old),
            column.value
        ),
        None => format!("{}::text", column.value),
    });
    let known = columns().map(|(at, column)| {
        let has = format!("NOT {}", column.unavailable.as_deref().unwrap_or("false"));
        match ledger.key.contains(&at) {
            true => "true".to_owned(),
            // Without that column, NULL in a DELETE is mostly what the WAL did not carry.
            false if ledger.unavailable.is_none() => format!(
                "CASE WHEN {kind} = 'UPDATE' THEN {} ELSE {} IS NOT NULL END",
                knows_old(ledger, column),
                column.value
            ),
            false => format!(
                "CASE WHEN {kind} = 'UPDATE' THEN {} ELSE {has} END",
                knows_old(ledger, column)
            ),
        }
    });
    let (values, known): (Vec<String>, Vec<String>) = (values.collect(), known.collect());
    let key = fold::key_list(ledger, "e");
    let within = format!("{number} BETWEEN {} AND {}", block.first, block.last);
    // Under its new key there was no row before.
    let came = changes_key.as_ref().map(|changes_key| {
        let key = ledger.key_columns().map(|column| column.value.as_str());
        format!(
            "\nUNION ALL\nSELECT {number}, 'INSERT', {}, NULL, NULL FROM {} h WHERE {within} AND {changes_key}",
            key.collect::<Vec<_>>().join(", "),
            ledger.history
        )
    });
    format!(
        "(SELECT DISTINCT ON ({key}) e.* FROM (\n\
         SELECT {number} AS n, {kind} AS kind, {}, ARRAY[{}]::text[] AS held, ARRAY[{}]::bool[] AS known\n\
         \x20 FROM {} h WHERE {within} AND NOT {}{}\n) e{join} ORDER BY {key}, e.n)",
        held.join(", "),
        values.join(", "),
        known.join(", "),
        ledger.history,
        fold::clears(ledger),
        came.unwrap_or_default()
    )
}
