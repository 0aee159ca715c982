//! Creates what is missing, and refuses what does not fit, before the first change is read.
//!
//! The order is fixed by what depends on what: control schema and history tables in the target, then the
//! publication, then (in `session/start.rs`) the slot; a slot made before the publication would ask for it in WAL
//! that does not have it yet. Every step looks first and changes only what is missing, so that running it
//! again changes nothing.

pub(crate) mod answers;
pub(crate) mod context;
mod control;
mod definition;
pub(crate) mod follow;
pub(crate) mod grants;
mod history;
pub(crate) mod layout;
mod look;
mod owners;
mod patterns;
pub(crate) mod privileges;
mod publication;
pub(crate) mod recorded;
pub(crate) mod requirements;

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::sync::Arc;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

pub(crate) use control::read_only;
pub(crate) use history::may_fill;
pub(crate) use look::{Tables, look, unanswered};
pub(crate) use patterns::{effective, expand, known_histories, left_out};

use crate::config::{Config, Setup, Table};
use crate::fault::{Exit, Fault, Result};
use crate::finding::{Finding, refuse};
use crate::pipeline::{Altered, Captured};
use crate::schema::layout::Layout;
use crate::schema::plan::Shape;
use crate::schema::{HistoryTable, SourceTable, TableName, types};
use crate::server::Side;
use crate::source::replication::Replication;
use crate::source::{failover, slot};

/// Of more things than this, the log has one line with their number; the single ones are at `debug`.
pub(crate) const LINES_MAX: usize = 10;

/// History tables that one query looks into.
const PROBED_AT_ONCE: usize = 500;

/// What may be done about something that is missing.
#[derive(Debug)]
pub(crate) enum Mode {
    Create,
    Refuse,
    /// Note the SQL that would create it.
    DryRun(Vec<String>),
}

impl Mode {
    /// What the configuration says of `run`.
    pub(crate) fn of(config: &Config) -> Self {
        match config.setup {
            Setup::Auto => Self::Create,
            Setup::Manual => Self::Refuse,
        }
    }

    /// Runs `statement` on `client`, notes it, or refuses because `missing` is missing.
    async fn create(
        &mut self,
        client: &Client,
        side: Side,
        missing: &str,
        statement: &str,
    ) -> Result<()> {
        let one = [(missing.to_owned(), statement.to_owned())];
        self.create_all(client, side, missing, &one, 1).await
    }

    /// As [`Mode::create`], for many `things`, each with the name and the statement of it; at most `at_once` of them in
    /// one transaction.
    async fn create_all(
        &mut self,
        client: &Client,
        side: Side,
        things: &str,
        missing: &[(String, String)],
        at_once: usize,
    ) -> Result<()> {
        match self {
            Self::Create => {
                for some in missing.chunks(at_once) {
                    execute_all(client, side, some).await?;
                }
                if missing.len() > LINES_MAX {
                    tracing::info!(%side, created = things, count = missing.len(), "created");
                }
                for (name, _) in missing {
                    match missing.len() > LINES_MAX {
                        true => tracing::debug!(%side, created = name, "created"),
                        false => tracing::info!(%side, created = name, "created"),
                    }
                }
                Ok(())
            }
            Self::Refuse => match missing.first() {
                None => Ok(()),
                Some((name, _)) => Err(must_not_make(&format!(
                    "{name} does not exist on the {side}"
                ))),
            },
            Self::DryRun(statements) => {
                statements.extend(missing.iter().map(|(_, statement)| {
                    let statement = statement.trim().trim_end_matches(';');
                    format!("-- {side}\n{statement};")
                }));
                Ok(())
            }
        }
    }
}

/// Runs statements in one message, which is one transaction. When it fails, one by one, so that the error names what
/// could not be created.
async fn execute_all(client: &Client, side: Side, some: &[(String, String)]) -> Result<()> {
    if some.len() > 1 {
        let statements: Vec<&str> = some.iter().map(|(_, sql)| sql.as_str()).collect();
        if client.batch_execute(&statements.join(";\n")).await.is_ok() {
            return Ok(());
        }
    }
    for (name, statement) in some {
        let what = format!("could not create {name}");
        match client.batch_execute(statement).await {
            Err(error) if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => {
                return Err(Fault::halt(
                    Exit::Config,
                    format!(
                        "{name} does not exist, and the {side} is read-only: a standby, for example"
                    ),
                )
                .remedy(format!("on the primary: {statement}"))
                .caused_by(side.failed("refused")(error)));
            }
            created => created.map_err(side.failed(&what))?,
        }
    }
    Ok(())
}

/// Prepares both servers for the configured tables and returns what is captured; everything but the slot.
///
/// # Errors
/// A server that cannot be used as it is, something missing that may not be created, or a table that does
/// not fit: each with its exit code and remedy.
pub(crate) async fn prepare(
    config: &Config,
    source: &Client,
    target: &mut Client,
    mode: &mut Mode,
    altered: &[Altered],
) -> Result<Vec<Captured>> {
    let mut server = requirements::server(source, &config.source.slot).await?;
    refuse(std::mem::take(&mut server.findings))?;
    let version = server.version;
    let mut sources = requirements::source_tables(source, config, version).await?;
    learn_types(source, &mut sources, altered).await?;
    if matches!(mode, Mode::Refuse) {
        // Nothing can be granted on what does not exist.
        control::prepare(target, mode).await?;
    }
    if !matches!(mode, Mode::DryRun(_)) {
        let mut missing = privileges_missing(config, source, target, &sources).await?;
        if !server.may_replicate && !tried_to_replicate(config).await? {
            missing.insert(0, privileges::replication(&server));
        }
        privileges::refuse(missing)?;
    }
    control::prepare(target, mode).await?;
    let one_database = same_database(source, target).await?;
    // With setup = "manual", an administrator has seen to it.
    let strangers = match mode {
        Mode::Refuse => HashSet::new(),
        _ => owners::of_histories((source, target), &config.tables, one_database).await?,
    };
    let histories = history::prepare(config, (target, &strangers), &sources, altered, mode).await?;
    let prepared = std::iter::zip(&config.tables, &sources).zip(&histories);
    let published: Vec<(&Table, &SourceTable)> = prepared
        .filter(|(_, history)| !matches!(history, history::Prepared::LeftOut))
        .map(|(table, _)| table)
        .collect();
    if published.is_empty() {
        return Err(patterns::no_table(config));
    }
    let (servers, of_source) = ((source, &*target), (version, one_database));
    let listed = publication::prepare(servers, &config.source, &published, of_source, mode).await?;
    if matches!(mode, Mode::DryRun(_)) {
        let described = std::iter::zip(&sources, &histories);
        let described = described.map(|(source, history)| (source, history.table()));
        make_answers(config, target, described, mode).await?;
    }
    let prepared = config.tables.iter().zip(sources).zip(histories);
    let mut all: Vec<Captured> = prepared
        .filter_map(|((table, source), history)| match history {
            history::Prepared::Noted(_) | history::Prepared::LeftOut => None,
            history::Prepared::Fits(history, renamed) => {
                let mut captured = captured(table, source, history, altered);
                // It is in the log by now.
                let present = renamed.then(|| Shape::of_table(&captured.source));
                captured.settled.extend(present);
                // A column that was added is not sent until it is listed.
                captured.absent_unknown = listed.contains(&captured.source.name);
                Some(captured)
            }
        })
        .collect();
    if !matches!(mode, Mode::DryRun(_)) {
        layout::keep((source, &config.source.slot), target, &mut all).await?;
        let described = all
            .iter()
            .map(|table| (&table.source, Some(&table.history)));
        make_answers(config, target, described, mode).await?;
    }
    Ok(all)
}

/// Makes the functions beside those histories whose tables want them, once the columns that rows had before are known.
async fn make_answers<'a>(
    config: &Config,
    target: &Client,
    described: impl Iterator<Item = (&'a SourceTable, Option<&'a HistoryTable>)>,
    mode: &mut Mode,
) -> Result<()> {
    let tables = config.tables.iter().filter(|table| table.functions);
    let tables: HashMap<&TableName, &Table> = tables.map(|table| (&table.history, table)).collect();
    let wanted: Vec<answers::Wanted<'_>> = described
        .filter_map(|(source, history)| {
            let history = history?;
            Some((source, history, tables.get(&history.name)?.rules()))
        })
        .collect();
    answers::prepare(target, &wanted, mode).await
}

/// Whether the role may replicate, although it does not have the attribute: some services give the right otherwise. Trying
/// changes nothing.
///
/// # Errors
/// The source cannot be reached.
pub(crate) async fn tried_to_replicate(config: &Config) -> Result<bool> {
    match Replication::connect(&config.source).await {
        Ok(_) => Ok(true),
        Err(fault) if fault.exit() == Exit::NoPermission => Ok(false),
        Err(fault) => Err(fault),
    }
}

/// Refuses a control schema that a stranger has made, or that the role may not use: it is read before anything else.
///
/// # Errors
/// Exit 78 and 77.
pub(crate) async fn may_use_control_schema(config: &Config, target: &Client) -> Result<()> {
    // With setup = "manual", an administrator has seen to it.
    if config.setup == Setup::Auto {
        owners::of_control_schema(target).await?;
    }
    privileges::refuse(privileges::control_schema(target).await?)
}

/// What the roles lack on both servers. A table that came by a pattern is left out later.
async fn privileges_missing(
    config: &Config,
    source: &Client,
    target: &Client,
    sources: &[SourceTable],
) -> Result<Vec<Finding>> {
    let pairs = std::iter::zip(&config.tables, sources);
    let pairs: Vec<(&Table, &SourceTable)> =
        pairs.filter(|(table, _)| !table.is_optional()).collect();
    let mut missing = privileges::of_source(config, source, &pairs).await?;
    let pairs: Vec<_> = pairs
        .into_iter()
        .map(|(table, source)| (table, Some(source)))
        .collect();
    missing.extend(privileges::of_target(config, target, &pairs).await?);
    Ok(missing)
}

/// Something that set-up makes: a note, or, where `run` must not make it, what it refuses.
pub(crate) fn missing(config: &Config, place: &dyn Display, what: &str) -> Finding {
    match config.setup {
        Setup::Auto => Finding::note(
            place,
            "something-is-missing",
            format!("{what} does not exist yet; `run` and `setup` make it"),
        )
        .remedy("waltrail setup"),
        Setup::Manual => Finding::error(
            place,
            "something-is-missing",
            must_not_make(&format!("{what} does not exist")),
        ),
    }
}

fn must_not_make(what: &str) -> Fault {
    Fault::halt(Exit::Config, format!("{what}, and setup = \"manual\""))
        .remedy("run `waltrail setup`, or `waltrail setup --dry-run` for the SQL to run yourself")
}

/// A table to be followed, and the shapes that the stream has described.
fn captured(
    table: &Table,
    source: SourceTable,
    history: HistoryTable,
    altered: &[Altered],
) -> Captured {
    let of_table = altered.iter().filter(|altered| altered.oid == source.oid);
    let settled = of_table.map(|altered| altered.shape.clone()).collect();
    Captured {
        source,
        history,
        rules: table.rules(),
        settled,
        gated: false,
        absent_unknown: false,
        layout: Layout::default(),
    }
}

/// Looks for the types of columns as they were in the stream: the catalogs may be newer.
async fn learn_types(
    source: &Client,
    tables: &mut [SourceTable],
    altered: &[Altered],
) -> Result<()> {
    let columns = altered.iter().flat_map(|altered| &altered.shape.columns);
    let keys = columns.map(|column| (column.type_oid, column.modifier));
    let found = types::types(source, keys).await;
    let found = found.map_err(Side::Source.failed("could not show its types"))?;
    if found.is_empty() {
        return Ok(());
    }
    for table in tables {
        if altered.iter().any(|altered| altered.oid == table.oid) {
            let known = Arc::make_mut(&mut table.types);
            known.extend(found.iter().map(|(key, kind)| (*key, kind.clone())));
        }
    }
    Ok(())
}

/// The SQL of what is missing, for psql; with what says who makes a change, and what role `grant_to` needs.
pub(crate) async fn dry_run(
    config: &Config,
    source: &Client,
    target: &mut Client,
    context: bool,
    grant_to: Option<&str>,
) -> Result<Vec<String>> {
    let mut config = config.clone();
    config.setup = Setup::Auto;
    owners::of_control_schema(target).await?;
    let config = &effective(&config, source, target).await?;
    let mut mode = Mode::DryRun(Vec::new());
    prepare(config, source, target, &mut mode, &[]).await?;
    let failed = Side::Source.failed("could not show its replication slots");
    let name = config.source.slot.as_str();
    let server = slot::server(source).await.map_err(failed)?;
    let found = slot::inspect(source, name).await.map_err(failed)?;
    if let Mode::DryRun(statements) = &mut mode
        && found.is_none()
    {
        let wanted = failover::is_wanted(config.source.failover, server);
        let make = failover::statement(name, wanted);
        statements.push(format!("-- source\n{make};"));
    }
    if context {
        context::make(config, source, &mut mode).await?;
    }
    if let Some(role) = grant_to {
        grants::grant(config, (source, target), role, &mut mode).await?;
    }
    let Mode::DryRun(mut statements) = mode else {
        return Ok(Vec::new());
    };
    pin(&mut statements);
    Ok(statements)
}

/// Where these statements are run, objects of any schema could stand in for the server's.
fn pin(statements: &mut [String]) {
    for side in [Side::Target, Side::Source].map(|side| format!("-- {side}")) {
        let mut of_side = statements.iter_mut().filter(|sql| sql.starts_with(&side));
        if let Some(first) = of_side.next() {
            *first = format!("{side}\nSET search_path = '';\n{first}");
        }
        let mut of_side = statements.iter_mut().filter(|sql| sql.starts_with(&side));
        if let Some(last) = of_side.next_back() {
            last.push_str("\nRESET search_path;");
        }
    }
}

/// Whether two connections lead to one database of one cluster.
pub(crate) async fn same_database(source: &Client, target: &Client) -> Result<bool> {
    same(
        source,
        target,
        "system_identifier::text || ' ' || current_database()",
    )
    .await
}

/// Whether two connections lead to one cluster, or to a copy of it.
pub(crate) async fn same_cluster(source: &Client, target: &Client) -> Result<bool> {
    same(source, target, "system_identifier::text").await
}

async fn same(source: &Client, target: &Client, identity: &str) -> Result<bool> {
    let identity = format!("SELECT {identity} FROM pg_control_system()");
    let ask = async |client: &Client, side: Side| -> Result<String> {
        let row = client.query_one(&identity, &[]).await;
        row.map(|row| row.get(0))
            .map_err(side.failed("could not name its cluster"))
    };
    Ok(ask(source, Side::Source).await? == ask(target, Side::Target).await?)
}

/// Whether no history table holds a row.
pub(crate) async fn history_is_empty(target: &Client, histories: &[TableName]) -> Result<bool> {
    for some in histories.chunks(PROBED_AT_ONCE) {
        let probes: Vec<String> = some
            .iter()
            .map(|history| format!("EXISTS (SELECT FROM {history})"))
            .collect();
        let row = target
            .query_one(&format!("SELECT {}", probes.join(" OR ")), &[])
            .await;
        let any: bool = row
            .map_err(Side::Target.failed("could not read a history table"))?
            .get(0);
        if any {
            return Ok(false);
        }
    }
    Ok(true)
}
