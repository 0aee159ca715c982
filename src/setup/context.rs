//! `setup --context`: who made a change.
//!
//! A trigger on the source says of each transaction who it is, in a message of the WAL (`history/context.rs` reads it). It is
//! a statement's, so it fires only for the table that the statement names: each partition has one too. Its function fails
//! for no session: it reads nothing that a role may be forbidden to read, and writes no row.

mod function;
mod triggers;

use tokio_postgres::Client;

use super::{Mode, effective, owners, requirements};
use crate::config::{Config, Table};
use crate::fault::{Exit, Fault, Result};
use crate::finding::Finding;
use crate::name::{Identifier, TableName};
use crate::schema::home::{self, Home, Homes};
use crate::schema::{HistoryTable, SourceTable, catalog, recorded};
use crate::server::{self, Side};

pub(crate) use triggers::remove;

/// Settings of `$1` that belong to an extension and not to every session.
const OF_EXTENSIONS: &str = "
    SELECT name FROM pg_catalog.pg_settings
     WHERE lower(name) IN (SELECT lower(s.name) FROM unnest($1::text[]) AS s (name)) AND context <> 'user' LIMIT 1";

/// Makes functions and triggers on the source. Histories that waltrail made have their column by then; the others are named.
pub(crate) async fn after_set_up(config: &Config) -> Result<()> {
    let source = server::sql(&config.source.connection, Side::Source).await?;
    let target = server::sql(&config.target, Side::Target).await?;
    let config = &effective(config, &source, &target).await?;
    make(config, &source, &mut Mode::Create).await?;
    let names: Vec<&TableName> = config.tables.iter().map(|table| &table.history).collect();
    let histories = catalog::history_tables(&target, &names, &[]).await;
    let histories =
        histories.map_err(Side::Target.failed("could not describe the history tables"))?;
    let sources = requirements::look_up(&source, config).await?;
    for table in &config.tables {
        let (source, history) = (
            sources.named(&table.source),
            histories.named(&table.history),
        );
        if let (Some((source, _)), Some((history, _))) = (source, history)
            && let Some(finding) = column(config, (table, source), history)
        {
            tracing::warn!(table = %source.name, history = %history.name, remedy = finding.remedy, "{}", finding.what);
        }
    }
    Ok(())
}

/// The same, or the SQL of it.
///
/// # Errors
/// Exit 78 for a setting that cannot be read, or what a stranger has made; 77 for a missing privilege; 75 for a table that
/// is locked: what was made stays, and another run goes on.
pub(super) async fn make(config: &Config, source: &Client, mode: &mut Mode) -> Result<()> {
    let settings = settings(config);
    owners::of_schema(source, Side::Source).await?;
    refuse_settings(source, settings).await?;
    let exists = "SELECT to_regnamespace('waltrail') IS NOT NULL";
    let exists = source.query_one(exists, &[]).await;
    let exists = exists.map_err(Side::Source.failed("could not show its schemas"))?;
    // Where the history is in the source database, set-up makes the schema for it.
    let is_there = exists.get::<_, bool>(0) || config.target_is_source;
    if !is_there {
        mode.create(source, Side::Source, "schema waltrail", SCHEMA)
            .await?;
    }
    if !function::are_current(source, settings).await? {
        let statements = function::statements(source, settings).await?;
        let name = "functions say_context() and set_context(jsonb)";
        mode.create(source, Side::Source, name, &statements).await?;
    }
    triggers::make(source, &config.tables, mode).await
}

const SCHEMA: &str = "CREATE SCHEMA IF NOT EXISTS waltrail";

fn settings(config: &Config) -> &[String] {
    let context = config.context.as_ref();
    context.map_or(&[], |context| &context.settings)
}

/// What an extension has defined, it may let some roles alone read.
async fn refuse_settings(source: &Client, settings: &[String]) -> Result<()> {
    let row = source.query_opt(OF_EXTENSIONS, &[&settings]).await;
    let row = row.map_err(Side::Source.failed("could not show its settings"))?;
    let Some(row) = row else { return Ok(()) };
    let name: &str = row.get(0);
    Err(Fault::halt(
        Exit::Config,
        format!(
            "context.settings names {name}, a setting of an extension that not every role may set"
        ),
    )
    .remedy("name settings that the application sets itself, for example \"app.user\""))
}

/// The history with its column for the context, where waltrail made the history and the configuration wants it.
pub(super) async fn with_column(
    config: &Config,
    target: &Client,
    (table, source): (&Table, &SourceTable),
    history: HistoryTable,
    mode: &mut Mode,
) -> Result<HistoryTable> {
    let name = home::context_name(&table.prefix);
    let is_taken = history.columns.iter().any(|column| column.name == name)
        || source.has(&name) && !table.rules().excludes(&name);
    if config.context.is_none() || !history.made || is_taken {
        return Ok(history);
    }
    let mut statement = add_column(&history.name, &name);
    if let Some(record) = recorded::statement(&history.name, &[home::ours(name)]) {
        statement = format!("{statement} {record}");
    }
    match mode {
        Mode::Refuse => return Ok(history),
        Mode::DryRun(statements) => {
            statements.push(format!("-- target\n{statement};"));
            return Ok(history);
        }
        Mode::Create => {}
    }
    let added = target.batch_execute(&statement).await;
    added.map_err(Side::Target.failed("could not add columns to a history table"))?;
    tracing::info!(table = %source.name, history = %history.name, "the history has a new column for the context of changes");
    let described = catalog::history_tables(target, &[&history.name], &[]).await;
    let described =
        described.map_err(Side::Target.failed("could not describe the history tables"))?;
    let described = described.named(&history.name);
    Ok(described.map_or(history, |(history, _)| history.clone()))
}

fn add_column(history: &TableName, name: &str) -> String {
    format!(
        "ALTER TABLE {history} ADD COLUMN IF NOT EXISTS {} jsonb;",
        Identifier(name)
    )
}

/// Calls `ask` with the history columns of a table.
fn with_homes<T>(
    (table, source): (&Table, &SourceTable),
    history: &HistoryTable,
    ask: impl FnOnce(&Homes<'_>) -> T,
) -> T {
    ask(&Homes {
        history,
        rules: &table.rules(),
        in_source: &|name| source.has(name),
    })
}

/// What is to be recorded of the history column for the context.
pub(super) fn claim(pair: (&Table, &SourceTable), history: &HistoryTable) -> Option<Home> {
    with_homes(pair, history, |homes| homes.claim())
}

/// Whether the history column of this name holds the context.
pub(crate) fn is_recorded(
    pair: (&Table, &SourceTable),
    history: &HistoryTable,
    name: &str,
) -> bool {
    with_homes(pair, history, |homes| {
        homes.context().is_some_and(|column| column.name == name)
    })
}

/// A history without a column for the context, although the configuration wants it.
pub(crate) fn column(
    config: &Config,
    (table, source): (&Table, &SourceTable),
    history: &HistoryTable,
) -> Option<Finding> {
    let own = home::context_name(&table.prefix);
    if config.context.is_none() || is_recorded((table, source), history, &own) {
        return None;
    }
    let (name, column) = (&history.name, Identifier(&own));
    let (why, remedy) = if source.has(&own) && !table.rules().excludes(&own) {
        let why = format!("{} has a column {column} itself", source.name);
        (why, format!("-- set prefix = \"_\" for {}", source.name))
    } else if history.columns.iter().any(|known| known.name == own) {
        let why = format!("its column {column} is not jsonb, json or text, or is NOT NULL");
        let remedy = format!("ALTER TABLE {name} RENAME COLUMN {column} TO former_{own}; ");
        (why, remedy + &add_column(name, &own))
    } else {
        (format!("it has no column {column}"), add_column(name, &own))
    };
    let what = format!("{name} does not record who made a change: {why}");
    Some(Finding::warning(name, "context-is-not-recorded", what).remedy(remedy))
}

/// Where the source does not say who makes a change, although the configuration wants it.
pub(crate) async fn findings(config: &Config, source: &Client) -> Result<Vec<Finding>> {
    if config.context.is_none() {
        return Ok(Vec::new());
    }
    let mut found = triggers::findings(source, &config.tables).await?;
    if found.is_empty() && !function::are_current(source, settings(config)).await? {
        let what = "waltrail.say_context() is not the function of this version and these settings";
        found.push(missing(&Side::Source, what.to_owned()));
    }
    Ok(found)
}

fn missing(place: &dyn std::fmt::Display, what: String) -> Finding {
    Finding::warning(place, "the-source-does-not-say-who", what).remedy("waltrail setup --context")
}
