//! History tables: checked, or created.

use std::fmt::Write as _;

use tokio_postgres::Client;

use super::Mode;
use crate::config::Table;
use crate::fault::{Exit, Fault, Result};
use crate::schema::catalog::{self, HistoryStanding};
use crate::schema::plan::{Own, Plan, PlanError, Shape};
use crate::schema::{HistoryTable, Identifier, SourceTable, TableName};
use crate::server::Side;

/// History tables that are created in one transaction: a few thousand locks, which the server's table has room for.
const CREATED_AT_ONCE: usize = 200;

/// The history table of each source table, created if it may be; `None` where a dry run only noted its creation.
///
/// # Errors
/// Exit 65 for a table that cannot take every change, 77 for a missing privilege.
pub(super) async fn prepare(
    target: &Client,
    tables: &[Table],
    sources: &[SourceTable],
    mode: &mut Mode,
) -> Result<Vec<Option<HistoryTable>>> {
    let describe = Side::Target.failed("could not describe the history tables");
    let names: Vec<&TableName> = tables.iter().map(|table| &table.history).collect();
    let found = catalog::history_tables(target, &names, &[]);
    let mut found = found.await.map_err(describe)?;
    let missing: Vec<(&Table, &SourceTable)> = std::iter::zip(tables, sources)
        .filter(|(table, _)| found.named(&table.history).is_none())
        .collect();
    if !missing.is_empty() {
        create(target, &missing, mode).await?;
        let all = catalog::history_tables(target, &names, &[]);
        found = all.await.map_err(describe)?;
    }
    let mut histories = Vec::with_capacity(tables.len());
    for (table, source) in std::iter::zip(tables, sources) {
        let Some((history, standing)) = found.named(&table.history) else {
            histories.push(None);
            continue;
        };
        keeps_its_rows(&history.name, standing)?;
        check(table, source, history)?;
        if !standing.may_insert {
            return Err(may_not_insert(target, &history.name).await?);
        }
        histories.push(Some(history.clone()));
    }
    Ok(histories)
}

/// Creates history tables, and the schemas that they need.
async fn create(
    target: &Client,
    missing: &[(&Table, &SourceTable)],
    mode: &mut Mode,
) -> Result<()> {
    let mut schemas: Vec<String> = missing
        .iter()
        .map(|(table, _)| table.history.schema.clone())
        .collect();
    schemas.sort();
    schemas.dedup();
    // IF NOT EXISTS alone would ask for the privilege to create schemas although there is nothing to create.
    let absent = target
        .query(
            "SELECT s.name::text FROM unnest($1::name[]) AS s (name) \
              WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_namespace n WHERE n.nspname = s.name)",
            &[&schemas],
        )
        .await
        .map_err(Side::Target.failed("could not show its schemas"))?;
    for row in absent {
        let schema = Identifier(row.get(0));
        let statement = format!("CREATE SCHEMA IF NOT EXISTS {schema}");
        let missing = format!("schema {schema}");
        mode.create(target, Side::Target, &missing, &statement)
            .await?;
    }
    let mut tables = Vec::with_capacity(missing.len());
    for (table, source) in missing {
        let name = format!("history table {}", table.history);
        tables.push((name, create_statement(table, source)?));
    }
    mode.create_all(
        target,
        Side::Target,
        "history tables",
        &tables,
        CREATED_AT_ONCE,
    )
    .await
}

/// Refuses a history whose rows are not kept as they are written.
fn keeps_its_rows(name: &TableName, standing: &HistoryStanding) -> Result<()> {
    if !matches!(standing.kind, 'r' | 'p') {
        return Err(unfit(
            "the-history-is-not-a-table",
            format!("{name} is not a table"),
        )
        .remedy("name a table in [[table]] history"));
    }
    if !standing.unlogged.is_empty() {
        let names = standing.unlogged.join(", ");
        return Err(unfit(
            "an-unlogged-history",
            format!("the history {name} is not in the WAL of the target, so that a crash would empty it: {names}"),
        )
        .remedy(format!("ALTER TABLE {} SET LOGGED", standing.unlogged[0])));
    }
    if !standing.foreign.is_empty() || standing.distributed {
        let reason = match standing.distributed {
            true => "it is a Citus table".to_owned(),
            false => format!(
                "these partitions are foreign tables: {}",
                standing.foreign.join(", ")
            ),
        };
        return Err(unfit(
            "a-history-on-another-server",
            format!(
                "rows of the history {name} would be committed on another server than the checkpoint: {reason}"
            ),
        )
        .remedy("name an ordinary table in [[table]] history"));
    }
    if let Some(filter) = &standing.filter {
        return Err(unfit(
            "a-trigger-on-the-history",
            format!("the {filter} on the history {name} can leave rows out or change them"),
        )
        .remedy(match filter.strip_prefix("rule ") {
            Some(rule) => format!("DROP RULE {rule} ON {name}, or use an AFTER trigger"),
            None => format!(
                "DROP TRIGGER {} ON {name}, or make it an AFTER trigger",
                filter.trim_start_matches("trigger ")
            ),
        }));
    }
    Ok(())
}

fn unfit(anchor: &'static str, message: String) -> Fault {
    Fault::halt(Exit::HistoryWouldBeWrong, message).see(anchor)
}

/// The definition of a history table that waltrail makes itself (docs/reference/history-tables.md).
fn create_statement(table: &Table, source: &SourceTable) -> Result<String> {
    let recorded: Vec<_> = source
        .columns
        .iter()
        .filter(|column| !table.exclude_columns.contains(&column.name))
        .collect();
    let mut sql = format!(
        "CREATE TABLE {} (\n    cdc_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY \
         KEY,\n    change_type text NOT NULL,\n    change_timestamp timestamptz NOT NULL,\n    commit_lsn pg_lsn NOT \
         NULL,\n    tx_seq bigint NOT NULL,\n    xid bigint NOT NULL",
        table.history
    );
    let mut taken: Vec<String> = Own::ALL
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    taken.push("cdc_id".to_owned());
    let mut column = |name: &str, type_sql: &str| -> Result<()> {
        if taken.iter().any(|other| other == name) {
            return Err(unfit("a-column-name-is-taken", format!(
                "the history of {} cannot be created: column {name} of the source has a name that the history \
                 needs itself",
                table.source
            ))
            .remedy(format!("add \"{name}\" to exclude_columns, or create {} yourself", table.history)));
        }
        taken.push(name.to_owned());
        // Writing to a String cannot fail.
        let _ = write!(sql, ",\n    {} {type_sql}", Identifier(name));
        Ok(())
    };
    for source_column in &recorded {
        column(&source_column.name, &source_column.type_sql)?;
    }
    for source_column in recorded
        .iter()
        .filter(|column| source.key.contains(&column.name))
    {
        column(
            &format!("old_{}", source_column.name),
            &source_column.type_sql,
        )?;
    }
    sql.push_str(",\n    unavailable_columns text[]\n)");
    Ok(sql)
}

/// Refuses a history table that could not take some change that may come.
fn check(table: &Table, source: &SourceTable, history: &HistoryTable) -> Result<()> {
    let name = &history.name;
    for column in history
        .columns
        .iter()
        .filter(|column| column.not_null && !column.generated)
    {
        let always_filled = matches!(
            Own::named(&column.name),
            Some(Own::ChangeType | Own::ChangeTimestamp | Own::CommitLsn | Own::TxSeq | Own::Xid)
        );
        if always_filled {
            continue;
        }
        let from_source = |name: &str| {
            source.columns.iter().any(|column| column.name == name)
                && !table
                    .exclude_columns
                    .iter()
                    .any(|excluded| excluded == name)
        };
        let filled = Own::named(&column.name).is_some()
            || from_source(&column.name)
            || column.name.strip_prefix("old_").is_some_and(from_source);
        let quoted = Identifier(&column.name);
        if filled {
            return Err(unfit("a-history-column-is-not-null", format!(
                "{name}.{quoted} is NOT NULL, but some changes have no value for it (a TRUNCATE has none at all)"
            ))
            .remedy(format!("ALTER TABLE {name} ALTER COLUMN {quoted} DROP NOT NULL")));
        }
        if !column.has_default {
            return Err(unfit(
                "a-history-column-is-not-null",
                format!(
                    "{name}.{quoted} is NOT NULL, has no default, and nothing in {} fills it",
                    source.name
                ),
            )
            .remedy(format!(
                "ALTER TABLE {name} ALTER COLUMN {quoted} DROP NOT NULL, or give it a default"
            )));
        }
    }
    check_names(table, source, history)
}

/// In text every column pair is allowed; what remains are clashes of names.
fn check_names(table: &Table, source: &SourceTable, history: &HistoryTable) -> Result<()> {
    let name = &history.name;
    match Plan::new(
        &Shape::of_table(source),
        source,
        history,
        &table.exclude_columns,
        false,
    ) {
        Ok(plan) => {
            if !plan.unrecorded.is_empty() {
                tracing::warn!(
                    table = %source.name,
                    history = %name,
                    columns = plan.unrecorded.join(", "),
                    "these columns of the source have no column in the history and are not recorded"
                );
            }
            Ok(())
        }
        Err(error) => {
            let (anchor, remedy) = match &error {
                PlanError::NameClash { column, .. } => (
                    "a-column-name-is-taken",
                    format!("add \"{column}\" to exclude_columns of {}", source.name),
                ),
                _ => (
                    "nothing-in-common",
                    format!("give {name} columns named like those of {}", source.name),
                ),
            };
            Err(unfit(anchor, error.to_string()).remedy(remedy))
        }
    }
}

async fn may_not_insert(target: &Client, name: &TableName) -> Result<Fault> {
    let row = target.query_one("SELECT current_user::text", &[]).await;
    let row = row.map_err(Side::Target.failed("could not show its role"))?;
    let role: &str = row.get(0);
    Ok(Fault::halt(
        Exit::NoPermission,
        format!("the role {role} may not write into {name} on the target"),
    )
    .remedy(format!(
        "GRANT SELECT, INSERT ON {name} TO {role}; and USAGE on its cdc_id sequence"
    )))
}
