//! History tables: checked, or created.

use std::collections::HashSet;

use tokio_postgres::Client;

use super::follow::follow;
use super::{Mode, definition, patterns};
use crate::config::{Config, Table};
use crate::fault::{Exit, Fault, Result};
use crate::pipeline::Altered;
use crate::schema::catalog::{self, HistoryStanding};
use crate::schema::home::{self, Home};
use crate::schema::plan::{Own, Plan, PlanError, Shape};
use crate::schema::{HistoryTable, Identifier, Rules, SourceTable, TableName, recorded};
use crate::server::Side;

/// History tables that are created in one transaction: a few thousand locks, which the server's table has room for.
const CREATED_AT_ONCE: usize = 200;

/// A history table.
pub(super) enum Prepared {
    /// And whether a column of it was probably renamed.
    Fits(HistoryTable, bool),
    /// A dry run noted its creation.
    Noted,
    /// Its table is not followed, which was logged.
    LeftOut,
}

/// The history table of each source table, created if it may be. Tables whose histories are `strangers`' are left out.
///
/// # Errors
/// Exit 65 for a table that cannot take every change, 77 for a missing privilege.
pub(super) async fn prepare(
    config: &Config,
    (target, strangers): (&Client, &HashSet<TableName>),
    sources: &[SourceTable],
    altered: &[Altered],
    mode: &mut Mode,
) -> Result<Vec<Prepared>> {
    let tables = &config.tables;
    let describe = Side::Target.failed("could not describe the history tables");
    let names: Vec<&TableName> = tables.iter().map(|table| &table.history).collect();
    let found = catalog::history_tables(target, &names, &[]);
    let mut found = found.await.map_err(describe)?;
    let mut missing: Vec<(&Table, &SourceTable)> = std::iter::zip(tables, sources)
        .filter(|(table, _)| found.named(&table.history).is_none())
        .collect();
    if matches!(mode, Mode::Refuse) {
        missing.retain(|(table, _)| {
            let is_new = table.is_optional();
            if is_new {
                let reason =
                    "it has no history table, and setup = \"manual\": run `waltrail setup`";
                patterns::leave_out(&table.source, &reason);
            }
            !is_new
        });
    }
    if !missing.is_empty() {
        create(target, &missing, mode).await?;
        let all = catalog::history_tables(target, &names, &[]);
        found = all.await.map_err(describe)?;
    }
    let mut histories = Vec::with_capacity(tables.len());
    for (table, source) in std::iter::zip(tables, sources) {
        let is_strange = strangers.contains(&table.history);
        let known = found.named(&table.history).filter(|_| !is_strange);
        let Some((history, standing)) = known else {
            let is_noted = matches!(mode, Mode::DryRun(_)) && !is_strange;
            histories.push(if is_noted {
                Prepared::Noted
            } else {
                Prepared::LeftOut
            });
            continue;
        };
        let pair = (table, source);
        let fitting = fitting(config, target, pair, (history, standing), altered, mode).await;
        histories.push(match unless_left_out(table, fitting)? {
            Some((history, renamed)) => Prepared::Fits(history, renamed),
            None => Prepared::LeftOut,
        });
    }
    Ok(histories)
}

/// A history that takes every change, and whether a column of it was probably renamed.
async fn fitting(
    config: &Config,
    target: &Client,
    (table, source): (&Table, &SourceTable),
    (history, standing): (&HistoryTable, &HistoryStanding),
    altered: &[Altered],
    mode: &mut Mode,
) -> Result<(HistoryTable, bool)> {
    keeps_its_rows(&history.name, standing)?;
    let mut history = history.clone();
    let won = won_names(source, &history, &table.rules());
    record(target, &mut history, won, mode).await?;
    let pair = (table, source);
    let (history, renamed) = follow(config, target, pair, history, altered, mode).await?;
    check(table, source, &history)?;
    match standing.may_insert {
        true => Ok((history, renamed)),
        false => Err(may_not_insert(target, &history.name).await?),
    }
}

/// A table that came by a pattern is left out where it does not fit; none then.
fn unless_left_out<T>(table: &Table, result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(fault) if table.is_optional() && fault.exit() == Exit::HistoryWouldBeWrong => {
            patterns::leave_out(&table.source, &fault);
            Ok(None)
        }
        Err(fault) => Err(fault),
    }
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
    let statements = definition::statements(target, missing).await?;
    for ((table, _), statement) in std::iter::zip(missing, statements) {
        tables.extend(unless_left_out(table, statement)?);
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
            || !home::is_own(&column.name, &rules.prefix)
                && (from_source(&column.name)
                    || column.name.strip_prefix("old_").is_some_and(from_source));
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
