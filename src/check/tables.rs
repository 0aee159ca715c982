//! What a history will lack, and what it has for nothing.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use crate::config::{Config, Table};
use crate::finding::Finding;
use crate::schema::catalog::Standing;
use crate::schema::plan::Own;
use crate::schema::{HistoryTable, Identifier, SourceTable};
use crate::server::Side;
use crate::setup::{self, Tables};

/// Triggers that run after each row that is written.
const TRIGGERS: &str = "
    SELECT format('%I.%I', n.nspname, c.relname), g.tgname::text FROM pg_catalog.pg_trigger g
      JOIN pg_catalog.pg_class c ON c.oid = g.tgrelid
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE NOT g.tgisinternal AND g.tgenabled <> 'D' AND g.tgtype & 6 = 4
       AND c.oid IN (SELECT pg_catalog.to_regclass(w.name) FROM unnest($1::text[]) AS w (name)) ORDER BY 1, 2";

/// What the tables of both sides say.
pub(super) fn notes(config: &Config, looked: &Tables) -> Vec<Finding> {
    let mut found = Vec::new();
    for table in &config.tables {
        let source = looked.sources.named(&table.source);
        if let Some((source, standing)) = source {
            found.extend(old_values(table, source));
            found.extend(partitions(source, standing));
            found.extend(generated(table, standing));
        }
        let history = looked.histories.named(&table.history);
        if let (Some((source, _)), Some((history, _))) = (source, history) {
            found.extend(empty(table, source, history));
            found.extend(looks_like_null(table, source, history));
            found.extend(setup::context::column(config, (table, source), history));
        }
    }
    found
}

fn list<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let names: Vec<String> = names
        .into_iter()
        .map(|name| Identifier(name).to_string())
        .collect();
    names.join(", ")
}

/// Columns that are recorded and are not part of the replica identity.
fn outside<'a>(table: &'a Table, source: &'a SourceTable) -> Vec<&'a String> {
    let columns = source.columns.iter().map(|column| &column.name);
    let rules = &table.exclude_columns;
    columns
        .filter(|name| !source.key.contains(name) && !rules.contains(name))
        .collect()
}

fn old_values(table: &Table, source: &SourceTable) -> Option<Finding> {
    let outside = outside(table, source);
    if source.replica_identity == 'f' || outside.is_empty() {
        return None;
    }
    let name = &source.name;
    let what = format!(
        "the row of a DELETE has only {}, and the row of an UPDATE lacks large values that did not change: {} are NULL there",
        list(&source.key),
        list(outside)
    );
    let remedy = format!(
        "ALTER TABLE {name} REPLICA IDENTITY FULL; -- writes the old row to the WAL of the source"
    );
    Some(Finding::note(name, "old-values-are-missing", what).remedy(remedy))
}

fn partitions(source: &SourceTable, standing: &Standing) -> Vec<Finding> {
    let whole: BTreeSet<&String> = standing.identity.iter().collect();
    let is_full = source.replica_identity == 'f';
    let lacking = standing.partitions.iter().filter(|leaf| {
        let key: BTreeSet<&String> = leaf.identity.iter().collect();
        // Neither is a start's to refuse.
        !matches!(leaf.replica_identity, 'f' | 'n') && !key.is_empty() && (is_full || key != whole)
    });
    let finding = |leaf: &crate::schema::catalog::Partition| {
        let what = format!(
            "partition {} logs less of an old row than {}: what is missing is NULL",
            leaf.name, source.name
        );
        let identity = if is_full { "FULL" } else { "DEFAULT" };
        let remedy = format!("ALTER TABLE {} REPLICA IDENTITY {identity};", leaf.name);
        Finding::warning(&source.name, "a-partition-logs-less", what).remedy(remedy)
    };
    lacking.map(finding).collect()
}

fn generated(table: &Table, standing: &Standing) -> Option<Finding> {
    let columns = standing.generated.iter();
    let columns: Vec<&String> = columns
        .filter(|name| !table.exclude_columns.contains(name))
        .collect();
    let what = format!(
        "generated columns are not sent, and not recorded: {}",
        list(columns.iter().copied())
    );
    let finding = Finding::note(&table.source, "a-generated-column", what);
    (!columns.is_empty()).then_some(finding)
}

/// Columns of a history that get no value.
fn empty(table: &Table, source: &SourceTable, history: &HistoryTable) -> Option<Finding> {
    let rules = table.rules();
    let is_known = |name: &str| {
        history.homes.iter().any(|home| home.history_column == name)
            || Own::named(name, &rules.prefix).is_some()
            || setup::may_fill(source, &rules, name)
            || setup::context::is_recorded((table, source), history, name)
    };
    let columns = history.columns.iter();
    let columns = columns.filter(|column| !column.not_null && !column.has_default);
    let columns: Vec<&String> = columns
        .map(|column| &column.name)
        .filter(|name| !is_known(name))
        .collect();
    if columns.is_empty() {
        return None;
    }
    let what = format!(
        "nothing fills these columns of {}: {}; they are NULL in new rows",
        history.name,
        list(columns)
    );
    Some(Finding::note(&history.name, "columns-stay-empty", what))
}

fn looks_like_null(table: &Table, source: &SourceTable, history: &HistoryTable) -> Option<Finding> {
    let rules = table.rules();
    let own = format!("{}{}", rules.prefix, Own::UnavailableColumns.name());
    let has = history.columns.iter().any(|column| column.name == own);
    if has || source.replica_identity == 'f' || outside(table, source).is_empty() {
        return None;
    }
    let name = &history.name;
    let what = format!(
        "{name} has no column {own}: a value that the WAL does not carry looks like a NULL"
    );
    let remedy = format!("ALTER TABLE {name} ADD COLUMN {} text[];", Identifier(&own));
    Some(Finding::note(name, "unavailable-values-look-like-null", what).remedy(remedy))
}

/// Tables whose changes do not say who made them.
pub(super) async fn context(config: &Config, source: &Client) -> Vec<Finding> {
    let found = setup::context::findings(config, source).await;
    found.unwrap_or_else(|fault| vec![super::unanswered(Side::Source, fault)])
}

/// Triggers on histories that run after each row.
pub(super) async fn triggers(config: &Config, target: &Client) -> Vec<Finding> {
    let names = config
        .tables
        .iter()
        .map(|table: &Table| table.history.to_string());
    let names: Vec<String> = names.collect();
    let rows = target.query(TRIGGERS, &[&names]).await;
    let rows = match rows.map_err(Side::Target.failed("could not show triggers")) {
        Ok(rows) => rows,
        Err(fault) => return vec![super::unanswered(Side::Target, fault)],
    };
    let finding = |row: &tokio_postgres::Row| {
        let (history, trigger): (&str, &str) = (row.get(0), row.get(1));
        let trigger = Identifier(trigger);
        let what = format!(
            "trigger {trigger} runs in the transaction that writes history: what it raises stops waltrail"
        );
        let remedy = format!(
            "ALTER TABLE {history} DISABLE TRIGGER {trigger}; -- if it is not needed there"
        );
        Finding::note(history, "triggers-on-the-history", what).remedy(remedy)
    };
    rows.iter().map(finding).collect()
}
