//! Creates what is missing, and refuses what does not fit, before the first change is read.
//!
//! The order is fixed by what depends on what: control schema and history tables in the target, then the
//! publication, then (in `session/start.rs`) the slot; a slot made before the publication would ask for it in WAL
//! that does not have it yet. Every step looks first and changes only what is missing, so that running it
//! again changes nothing.

mod definition;
pub(crate) mod follow;
pub(crate) mod grants;
mod history;
mod owners;
mod patterns;
mod publication;
pub(crate) mod recorded;
mod requirements;

use std::collections::HashSet;
use std::sync::Arc;

use tokio_postgres::Client;

pub(crate) use patterns::{effective, expand};

use crate::config::{Config, Setup, Table};
use crate::fault::{Exit, Fault, Result};
use crate::pipeline::{Altered, Captured};
use crate::schema::plan::Shape;
use crate::schema::{HistoryTable, SourceTable, TableName, types};
use crate::server::Side;

mod embedded {
    // The macro makes an undocumented public module of its own.
    #![allow(missing_docs, unreachable_pub, clippy::pedantic)]
    refinery::embed_migrations!("migrations");
}

/// Where the migration library keeps its book.
const MIGRATION_TABLE: &str = "waltrail.schema_history";
/// That book as the library makes it, for those who run the SQL of a dry run themselves: without it the
/// program would not see that the migrations were applied.
const MIGRATION_BOOK: &str = "CREATE TABLE IF NOT EXISTS waltrail.schema_history (\n    version integer \
    PRIMARY KEY,\n    name varchar(255),\n    applied_on varchar(255),\n    checksum varchar(255)\n)";
/// The form in which the library reads the time of a migration.
const NOW_RFC_3339: &str = "to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')";
/// Serializes set-up among instances: "setup" in 31 bits.
const SETUP_LOCK: i64 = 0x7761_6c74_0000_0001;

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
                Some((name, _)) => Err(Fault::halt(
                    Exit::Config,
                    format!("{name} does not exist on the {side}, and setup = \"manual\""),
                )
                .remedy(
                    "run `waltrail setup`, or `waltrail setup --dry-run` for the SQL to run yourself",
                )),
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
        client
            .batch_execute(statement)
            .await
            .map_err(side.failed(&what))?;
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
    let version = requirements::check(source).await?;
    let mut sources = requirements::source_tables(source, config, version).await?;
    learn_types(source, &mut sources, altered).await?;
    control_schema(target, mode).await?;
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
    let of_source = (version, one_database);
    let servers = (source, &*target);
    let listed = publication::prepare(servers, &config.source, &published, of_source, mode).await?;
    let prepared = config.tables.iter().zip(sources).zip(histories);
    Ok(prepared
        .filter_map(|((table, source), history)| match history {
            history::Prepared::Noted | history::Prepared::LeftOut => None,
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
        .collect())
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

/// The SQL of what is missing, for psql; with what role `grant_to` needs.
pub(crate) async fn dry_run(
    config: &Config,
    source: &Client,
    target: &mut Client,
    grant_to: Option<&str>,
) -> Result<Vec<String>> {
    let mut config = config.clone();
    config.setup = Setup::Auto;
    let config = &effective(&config, source, target).await?;
    let mut mode = Mode::DryRun(Vec::new());
    prepare(config, source, target, &mut mode, &[]).await?;
    let slot = crate::source::slot::inspect(source, &config.source.slot)
        .await
        .map_err(Side::Source.failed("could not show its replication slots"))?;
    if let Mode::DryRun(statements) = &mut mode
        && slot.is_none()
    {
        statements.push(format!(
            "-- source\nSELECT pg_catalog.pg_create_logical_replication_slot('{}', 'pgoutput');",
            config.source.slot
        ));
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

/// Makes the schema `waltrail`, or brings it up to date.
async fn control_schema(target: &mut Client, mode: &mut Mode) -> Result<()> {
    let failed = Side::Target.failed("could not show its control schema");
    let exists: bool = target
        .query_one("SELECT to_regnamespace('waltrail') IS NOT NULL", &[])
        .await
        .map_err(failed)?
        .get(0);
    if exists && !matches!(mode, Mode::Refuse) {
        owners::of_control_schema(target).await?;
    }
    let applied: Vec<i32> = match exists {
        true => applied_migrations(target).await.map_err(failed)?,
        false => Vec::new(),
    };
    let runner = embedded::migrations::runner();
    refuse_newer(&applied, runner.get_migrations())?;
    let missing: Vec<_> = runner
        .get_migrations()
        .iter()
        .filter(|migration| !applied.contains(&migration.version()))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !exists {
        mode.create(
            target,
            Side::Target,
            "schema waltrail",
            "CREATE SCHEMA IF NOT EXISTS waltrail",
        )
        .await?;
    }
    match mode {
        Mode::Create => migrate(target).await,
        Mode::Refuse => Err(Fault::halt(
            Exit::Config,
            "the control schema waltrail on the target is missing or older than this program, and setup = \
             \"manual\"",
        )
        .remedy("run `waltrail setup`")),
        Mode::DryRun(statements) => {
            if applied.is_empty() {
                statements.push(format!("-- target\n{MIGRATION_BOOK};"));
            }
            for migration in missing {
                let sql = migration.sql().unwrap_or_default().trim();
                statements.push(format!(
                    "-- target: migration {migration}\n{sql}\nINSERT INTO {MIGRATION_TABLE} (version, name, \
                     applied_on, checksum) VALUES ({}, '{}', {NOW_RFC_3339}, '{}');",
                    migration.version(),
                    migration.name(),
                    migration.checksum()
                ));
            }
            Ok(())
        }
    }
}

/// What a newer program made of the control schema, an older one would misread.
fn refuse_newer(applied: &[i32], known: &[refinery::Migration]) -> Result<()> {
    let newest = known.iter().map(refinery::Migration::version).max();
    match (applied.iter().copied().max(), newest) {
        (Some(applied), Some(newest)) if applied > newest => Err(Fault::halt(
            Exit::Config,
            format!("the control schema waltrail on the target has version {applied}, and this program knows up to {newest}"),
        )
        .remedy("install the waltrail that made it, or a newer one")),
        _ => Ok(()),
    }
}

/// Runs what is missing, one instance at a time.
async fn migrate(target: &mut Client) -> Result<()> {
    let failed = Side::Target.failed("could not bring its control schema up to date");
    target
        .execute("SELECT pg_advisory_lock($1)", &[&SETUP_LOCK])
        .await
        .map_err(failed)?;
    let mut runner = embedded::migrations::runner();
    runner.set_migration_table_name(MIGRATION_TABLE);
    let done = runner.run_async(target).await;
    target
        .execute("SELECT pg_advisory_unlock($1)", &[&SETUP_LOCK])
        .await
        .map_err(failed)?;
    let report = done.map_err(|error| {
        let database = std::error::Error::source(&error)
            .and_then(|cause| cause.downcast_ref::<tokio_postgres::Error>())
            .and_then(tokio_postgres::Error::as_db_error)
            .map(crate::wire::ServerError::from_db_error);
        let fault = |exit| {
            Fault::halt(
                exit,
                "the target could not bring its control schema up to date",
            )
        };
        match database {
            Some(report) if report.code == "42501" => fault(Exit::NoPermission)
                .remedy("let the owner of schema waltrail run `waltrail setup`")
                .caused_by(report),
            Some(report) => fault(Exit::Config).caused_by(report),
            None => fault(Exit::Config).caused_by(error),
        }
    })?;
    for migration in report.applied_migrations() {
        tracing::info!(side = %Side::Target, migration = %migration, "migrated");
    }
    Ok(())
}

async fn applied_migrations(target: &Client) -> Result<Vec<i32>, tokio_postgres::Error> {
    let known: bool = target
        .query_one(
            &format!("SELECT to_regclass('{MIGRATION_TABLE}') IS NOT NULL"),
            &[],
        )
        .await?
        .get(0);
    if !known {
        return Ok(Vec::new());
    }
    let rows = target
        .query(&format!("SELECT version FROM {MIGRATION_TABLE}"), &[])
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Whether two connections lead to one database of one cluster.
pub(crate) async fn same_database(source: &Client, target: &Client) -> Result<bool> {
    let identity =
        "SELECT system_identifier::text || ' ' || current_database() FROM pg_control_system()";
    let ask = async |client: &Client, side: Side| -> Result<String> {
        let row = client.query_one(identity, &[]).await;
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
