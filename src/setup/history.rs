//! History tables: checked, or created.

use tokio_postgres::Client;

use super::{Mode, definition};
use crate::config::Table;
use crate::fault::{Exit, Fault, Result};
use crate::schema::home::Home;
use crate::schema::plan::{Own, Plan, PlanError, Shape};
use crate::schema::{HistoryTable, Identifier, Rules, SourceTable, catalog, recorded};
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
        let made = definition::Definition::of(target, table, source).await?;
        mode.create(target, Side::Target, &missing, &made.sql())
            .await?;
        found = catalog::history_table(target, name)
            .await
            .map_err(describe)?;
    }
    let Some((mut history, kind)) = found else {
        return Ok(None);
    };
    if !matches!(kind, 'r' | 'p') {
        return Err(unfit(
            "the-history-is-not-a-table",
            format!("{name} is not a table"),
        )
        .remedy("name a table in [[table]] history"));
    }
    let won = won_names(source, &history, &table.rules());
    record(target, &mut history, won, mode).await?;
    check(table, source, &history)?;
    may_insert(target, &history).await?;
    Ok(Some(history))
}

pub(super) fn unfit(anchor: &'static str, message: String) -> Fault {
    Fault::halt(Exit::HistoryWouldBeWrong, message).see(anchor)
}

/// Columns of the source's own that have the name of another's value before a change. They win, for good, in a history
/// that waltrail did not make.
fn won_names(source: &SourceTable, history: &HistoryTable, rules: &Rules) -> Vec<Home> {
    let is_recorded = |name: &str| history.homes.iter().any(|home| home.history_column == name);
    let wins = |name: &str| {
        let other = name.strip_prefix("old_");
        other.is_some_and(|other| source.has(other)) && source.has(name) && !rules.excludes(name)
    };
    let names = history.columns.iter().map(|column| column.name.as_str());
    let won = names.filter(|name| !history.made && wins(name) && !is_recorded(name));
    won.map(|name| {
        tracing::warn!(
            table = %source.name, history = %history.name, column = name,
            "the source has a column of this name itself: the history does not keep the former value of the other column"
        );
        Home {
            source_column: name.to_owned(),
            former: false,
            history_column: name.to_owned(),
        }
    })
    .collect()
}

/// Records history columns, so that they mean the same at every start.
async fn record(
    target: &Client,
    history: &mut HistoryTable,
    homes: Vec<Home>,
    mode: &mut Mode,
) -> Result<()> {
    let Some(statement) = recorded::statement(&history.name, &homes) else {
        return Ok(());
    };
    match mode {
        Mode::DryRun(statements) => statements.push(format!("-- target\n{statement};")),
        Mode::Create | Mode::Refuse => target
            .batch_execute(&statement)
            .await
            .map_err(Side::Target.failed("could not record the columns of a history table"))?,
    }
    history.homes.extend(homes);
    Ok(())
}

/// Refuses a history table that could not take some change that may come.
fn check(table: &Table, source: &SourceTable, history: &HistoryTable) -> Result<()> {
    let name = &history.name;
    let rules = table.rules();
    for column in history
        .columns
        .iter()
        .filter(|column| column.not_null && !column.generated)
    {
        let own = Own::named(&column.name, &rules.prefix);
        let always_filled = matches!(
            own,
            Some(Own::ChangeType | Own::ChangeTimestamp | Own::CommitLsn | Own::TxSeq | Own::Xid)
        );
        if always_filled {
            continue;
        }
        let from_source = |name: &str| source.has(name) && !rules.excludes(name);
        let filled = own.is_some()
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
    check_columns(table, source, history)
}

/// Every column of the source has a history column that keeps its values, or is named in a warning.
fn check_columns(table: &Table, source: &SourceTable, history: &HistoryTable) -> Result<()> {
    let shape = Shape::of_table(source);
    match Plan::new(&shape, source, history, &table.rules(), false) {
        Ok(plan) => {
            if !plan.unrecorded.is_empty() {
                tracing::warn!(
                    table = %source.name,
                    history = %history.name,
                    columns = plan.unrecorded.join(", "),
                    "these columns of the source have no column in the history and are not recorded"
                );
            }
            Ok(())
        }
        Err(error) => {
            let anchor = match &error {
                PlanError::NameClash { .. } => "a-column-name-is-taken",
                PlanError::Inexact(_) => "a-history-column-changes-values",
                _ => "nothing-in-common",
            };
            Err(unfit(anchor, error.to_string()).remedy(error.remedy()))
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
