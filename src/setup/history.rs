//! History tables: checked, or created.

use std::collections::HashSet;

use tokio_postgres::Client;

use super::follow::follow;
use super::{Mode, context, definition, patterns};
use crate::config::{Config, Setup, Table};
use crate::fault::{Exit, Fault, Result};
use crate::finding::{Finding, refuse};
use crate::pipeline::Altered;
use crate::schema::catalog::{self, HistoryStanding};
use crate::schema::exact::Type;
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
    /// A dry run noted its creation: as it would be.
    Noted(HistoryTable),
    /// Its table is not followed, which was logged.
    LeftOut,
}

impl Prepared {
    /// The history, as it is or would be.
    pub(super) fn table(&self) -> Option<&HistoryTable> {
        match self {
            Self::Fits(history, _) | Self::Noted(history) => Some(history),
            Self::LeftOut => None,
        }
    }
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
        create(config, target, &missing, mode).await?;
        let all = catalog::history_tables(target, &names, &[]);
        found = all.await.map_err(describe)?;
    }
    let mut histories = Vec::with_capacity(tables.len());
    for (table, source) in std::iter::zip(tables, sources) {
        let is_strange = strangers.contains(&table.history);
        let known = found.named(&table.history).filter(|_| !is_strange);
        let Some((history, standing)) = known else {
            let is_noted = matches!(mode, Mode::DryRun(_)) && !is_strange;
            histories.push(match definition::as_table(table, source) {
                Ok(history) if is_noted => Prepared::Noted(history),
                _ => Prepared::LeftOut,
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
    refuse(loses_rows(&history.name, standing))?;
    let pair = (table, source);
    let mut history = context::with_column(config, target, pair, history.clone(), mode).await?;
    let mut known = won_names(source, &history, &table.rules());
    known.extend(context::claim(pair, &history));
    record(target, &mut history, known, mode).await?;
    let (history, renamed) = follow(config, target, pair, history, altered, mode).await?;
    refuse(never_filled(table, source, &history))?;
    match plan(table, source, &history) {
        Ok(plan) => log_unrecorded(&plan),
        Err(finding) => refuse(vec![*finding])?,
    }
    Ok((history, renamed))
}

/// What keeps a history from taking every change, as `fitting` finds it, and what it does not record. Nothing is changed.
pub(super) async fn findings(
    config: &Config,
    target: &Client,
    (table, source): (&Table, &SourceTable),
    (history, standing): (&HistoryTable, &HistoryStanding),
) -> Vec<Finding> {
    let name = &history.name;
    let mut findings = loses_rows(name, standing);
    let pair = (table, source);
    let mut noted = Mode::DryRun(Vec::new());
    if config.setup == Setup::Manual {
        noted = Mode::Refuse;
    }
    let history = match follow(config, target, pair, history.clone(), &[], &mut noted).await {
        Ok((history, _)) => history,
        Err(fault) => {
            findings.push(Finding::error(name, "could-not-be-checked", fault));
            return findings;
        }
    };
    findings.extend(never_filled(table, source, &history));
    match plan(table, source, &history) {
        Err(finding) => findings.push(*finding),
        Ok(plan) if plan.unrecorded.is_empty() => {}
        Ok(plan) => findings.push(unrecorded(source, name, &plan)),
    }
    findings
}

/// A column of the source that the history has no column for.
fn unrecorded(source: &SourceTable, history: &TableName, plan: &Plan) -> Finding {
    let kind = |column: &&String| {
        let known = source.columns.iter().find(|known| known.name == **column);
        let kind = known.and_then(|known| source.type_of(known.type_oid, known.modifier));
        kind.map_or_else(Type::text, Type::home).sql
    };
    let added = plan.unrecorded.iter().map(|column| {
        let kind = kind(&column);
        format!("ADD COLUMN {} {kind}", Identifier(column))
    });
    let added: Vec<String> = added.collect();
    let what = format!(
        "these columns of {} have no column in {history} and are not recorded: {}",
        source.name,
        plan.unrecorded.join(", ")
    );
    Finding::warning(history, "columns-not-recorded", what)
        .remedy(format!("ALTER TABLE {history} {};", added.join(", ")))
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
    config: &Config,
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
    let statements = definition::statements(target, missing, config.context.is_some()).await?;
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

/// Why the rows of a history are not kept as they are written.
pub(super) fn loses_rows(name: &TableName, standing: &HistoryStanding) -> Vec<Finding> {
    let unfit = |anchor, message, remedy: String| {
        Finding::error(name, anchor, unfit(anchor, message).remedy(remedy))
    };
    if !matches!(standing.kind, 'r' | 'p') {
        return vec![unfit(
            "the-history-is-not-a-table",
            format!("{name} is not a table"),
            "name a table in [[table]] history".to_owned(),
        )];
    }
    let mut findings = Vec::new();
    if !standing.unlogged.is_empty() {
        let names = standing.unlogged.join(", ");
        let logged = standing.unlogged.iter();
        let logged: Vec<String> = logged
            .map(|name| format!("ALTER TABLE {name} SET LOGGED;"))
            .collect();
        findings.push(unfit(
            "an-unlogged-history",
            format!("the history {name} is not in the WAL of the target, so that a crash would empty it: {names}"),
            logged.join(" "),
        ));
    }
    if !standing.foreign.is_empty() || standing.distributed {
        let reason = match standing.distributed {
            true => "it is a Citus table".to_owned(),
            false => format!(
                "these partitions are foreign tables: {}",
                standing.foreign.join(", ")
            ),
        };
        findings.push(unfit(
            "a-history-on-another-server",
            format!(
                "rows of the history {name} would be committed on another server than the checkpoint: {reason}"
            ),
            "name an ordinary table in [[table]] history".to_owned(),
        ));
    }
    if let Some(filter) = &standing.filter {
        findings.push(unfit(
            "a-trigger-on-the-history",
            format!("the {filter} on the history {name} can leave rows out or change them"),
            match filter.strip_prefix("rule ") {
                Some(rule) => format!("DROP RULE {rule} ON {name}; -- or use an AFTER trigger"),
                None => format!(
                    "DROP TRIGGER {} ON {name}; -- or make it an AFTER trigger",
                    filter.trim_start_matches("trigger ")
                ),
            },
        ));
    }
    findings
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

/// Columns that could not take some change that may come: they are NOT NULL, and are not always filled.
fn never_filled(table: &Table, source: &SourceTable, history: &HistoryTable) -> Vec<Finding> {
    let name = &history.name;
    let rules = table.rules();
    let mut findings = Vec::new();
    let columns = history.columns.iter();
    for column in columns.filter(|column| column.not_null && !column.generated) {
        let own = Own::named(&column.name, &rules.prefix);
        let always_filled = matches!(
            own,
            Some(Own::ChangeType | Own::ChangeTimestamp | Own::CommitLsn | Own::TxSeq | Own::Xid)
        );
        let filled = own.is_some() || may_fill(source, &rules, &column.name);
        if always_filled || !filled && column.has_default {
            continue;
        }
        let quoted = Identifier(&column.name);
        let message = match filled {
            true => format!(
                "{name}.{quoted} is NOT NULL, but some changes have no value for it (a TRUNCATE has none at all)"
            ),
            false => format!(
                "{name}.{quoted} is NOT NULL, has no default, and nothing in {} fills it",
                source.name
            ),
        };
        let or = if filled {
            ""
        } else {
            " -- or give it a default"
        };
        let anchor = "a-history-column-is-not-null";
        let fault = unfit(anchor, message).remedy(format!(
            "ALTER TABLE {name} ALTER COLUMN {quoted} DROP NOT NULL;{or}"
        ));
        findings.push(Finding::error(name, anchor, fault));
    }
    findings
}

/// Whether a column of this name in a history gets a value of the source.
pub(crate) fn may_fill(source: &SourceTable, rules: &Rules, name: &str) -> bool {
    let from_source = |name: &str| source.has(name) && !rules.excludes(name);
    !home::is_own(name, &rules.prefix)
        && (from_source(name) || name.strip_prefix("old_").is_some_and(from_source))
}

/// How changes become rows of the history; a finding where it does not keep every value.
fn plan(table: &Table, source: &SourceTable, history: &HistoryTable) -> Result<Plan, Box<Finding>> {
    let shape = Shape::of_table(source);
    Plan::new(&shape, source, history, &table.rules(), false).map_err(|error| {
        let anchor = match &error {
            PlanError::NameClash { .. } => "a-column-name-is-taken",
            PlanError::Inexact(_) => "a-history-column-changes-values",
            _ => "nothing-in-common",
        };
        let fault = unfit(anchor, error.to_string()).remedy(error.remedy());
        Box::new(Finding::error(&history.name, anchor, fault))
    })
}

fn log_unrecorded(plan: &Plan) {
    if !plan.unrecorded.is_empty() {
        tracing::warn!(
            table = %plan.source,
            history = %plan.history,
            columns = plan.unrecorded.join(", "),
            "these columns of the source have no column in the history and are not recorded"
        );
    }
}
