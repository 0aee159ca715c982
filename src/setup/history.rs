//! History tables: checked, or created.

use std::fmt::Write as _;

use tokio_postgres::Client;

use super::Mode;
use crate::config::Table;
use crate::fault::{Exit, Fault, Result};
use crate::schema::plan::{Own, Plan, PlanError, Shape};
use crate::schema::{HistoryTable, Identifier, SourceTable, catalog};
use crate::server::Side;

/// The history table of a source table, created if it may be; `None` when a dry run only noted its creation.
///
/// # Errors
/// Exit 65 for a table that cannot take every change, 77 for a missing privilege.
pub(super) async fn prepare(
    target: &Client,
    table: &Table,
    source: &SourceTable,
    mode: &mut Mode,
) -> Result<Option<HistoryTable>> {
    let name = &table.history;
    let describe = Side::Target.failed("could not describe a history table");
    let mut found = catalog::history_table(target, name)
        .await
        .map_err(describe)?;
    if found.is_none() {
        // IF NOT EXISTS would ask for the privilege to create schemas although there is nothing to create.
        let schema = Identifier(&name.schema);
        let exists = target
            .query_one(
                "SELECT to_regnamespace($1) IS NOT NULL",
                &[&schema.to_string()],
            )
            .await
            .map_err(describe)?;
        if !exists.get::<_, bool>(0) {
            let statement = format!("CREATE SCHEMA IF NOT EXISTS {schema}");
            mode.create(
                target,
                Side::Target,
                &format!("schema {schema}"),
                &statement,
            )
            .await?;
        }
        let missing = format!("history table {name}");
        mode.create(
            target,
            Side::Target,
            &missing,
            &create_statement(table, source)?,
        )
        .await?;
        found = catalog::history_table(target, name)
            .await
            .map_err(describe)?;
    }
    let Some((history, kind)) = found else {
        return Ok(None);
    };
    if !matches!(kind, 'r' | 'p') {
        return Err(unfit(
            "the-history-is-not-a-table",
            format!("{name} is not a table"),
        )
        .remedy("name a table in [[table]] history"));
    }
    check(table, source, &history)?;
    may_insert(target, &history).await?;
    Ok(Some(history))
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

async fn may_insert(target: &Client, history: &HistoryTable) -> Result<()> {
    let name = history.name.to_string();
    let row = target
        .query_one(
            "SELECT has_table_privilege(to_regclass($1), 'INSERT'), current_user::text",
            &[&name],
        )
        .await
        .map_err(Side::Target.failed("could not show the privileges on a history table"))?;
    if row.get::<_, Option<bool>>(0) == Some(true) {
        return Ok(());
    }
    let role: &str = row.get(1);
    Err(Fault::halt(
        Exit::NoPermission,
        format!("the role {role} may not write into {name} on the target"),
    )
    .remedy(format!(
        "GRANT SELECT, INSERT ON {name} TO {role}; and USAGE on its cdc_id sequence"
    )))
}
