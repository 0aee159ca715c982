//! The control schema `waltrail` in the target: made, or brought up to date.

use tokio_postgres::Client;

use super::Mode;
use crate::config::Config;
use crate::fault::{Disposition, Exit, Fault, Result};
use crate::finding::{Finding, refuse};
use crate::name::Identifier;
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

/// What is wrong with the control schema, or missing.
pub(super) async fn findings(config: &Config, target: &Client) -> Result<Vec<Finding>> {
    let known = embedded::migrations::runner();
    let known = known.get_migrations();
    let (exists, applied) = applied(target).await?;
    let mut found: Vec<Finding> = newer(&applied, known).into_iter().collect();
    if !exists
        || known
            .iter()
            .any(|migration| !applied.contains(&migration.version()))
    {
        let what = "the control schema waltrail of this version";
        found.push(super::missing(config, &Side::Target, what));
    }
    Ok(found)
}

const READ_ONLY: &str = "
    SELECT current_setting('transaction_read_only') = 'on', pg_catalog.pg_is_in_recovery(),
           (SELECT source FROM pg_catalog.pg_settings WHERE name = 'default_transaction_read_only'),
           current_user::text, current_database()::text";

/// A target that takes no rows. A standby can be promoted, so a start tries again.
pub(crate) async fn read_only(target: &Client) -> Result<Option<Finding>> {
    let row = target.query_one(READ_ONLY, &[]).await;
    let row = row.map_err(Side::Target.failed("could not show its settings"))?;
    if !row.get::<_, bool>(0) {
        return Ok(None);
    }
    let (role, database) = (Identifier(row.get(3)), Identifier(row.get(4)));
    let (in_recovery, set_by): (bool, &str) = (row.get(1), row.get(2));
    let name = "default_transaction_read_only";
    let (why, remedy) = match (in_recovery, set_by) {
        (true, _) => (
            "it is a standby",
            "-- name the primary in target.dsn".to_owned(),
        ),
        (_, "database") => (name, format!("ALTER DATABASE {database} RESET {name};")),
        (_, "user") => (name, format!("ALTER ROLE {role} RESET {name};")),
        (_, "database user") => (
            name,
            format!("ALTER ROLE {role} IN DATABASE {database} RESET {name};"),
        ),
        _ => (
            name,
            format!("ALTER SYSTEM SET {name} = off; SELECT pg_reload_conf();"),
        ),
    };
    let fault = Fault::retry(format!("the target takes no rows: {why}")).remedy(remedy);
    Ok(Some(Finding::error(
        Side::Target,
        "the-target-is-read-only",
        fault,
    )))
}

/// Whether the schema exists, and what was done to it.
async fn applied(target: &Client) -> Result<(bool, Vec<i32>)> {
    let failed = Side::Target.failed("could not show its control schema");
    let exists: bool = target
        .query_one("SELECT to_regnamespace('waltrail') IS NOT NULL", &[])
        .await
        .map_err(failed)?
        .get(0);
    let applied = match exists {
        true => applied_migrations(target).await.map_err(failed)?,
        false => Vec::new(),
    };
    Ok((exists, applied))
}

/// Makes the schema `waltrail`, or brings it up to date.
pub(super) async fn prepare(target: &mut Client, mode: &mut Mode) -> Result<()> {
    refuse(read_only(target).await?.into_iter().collect())?;
    let (exists, applied) = applied(target).await?;
    let runner = embedded::migrations::runner();
    refuse(
        newer(&applied, runner.get_migrations())
            .into_iter()
            .collect(),
    )?;
    let mut missing: Vec<_> = runner
        .get_migrations()
        .iter()
        .filter(|migration| !applied.contains(&migration.version()))
        .collect();
    // They are listed by their files' names, 10 before 9.
    missing.sort_by_key(|migration| migration.version());
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
fn newer(applied: &[i32], known: &[refinery::Migration]) -> Option<Finding> {
    let newest = known.iter().map(refinery::Migration::version).max()?;
    let applied = applied.iter().copied().max()?;
    let fault = Fault::halt(
        Exit::Config,
        format!("the control schema waltrail on the target has version {applied}, and this program knows up to {newest}"),
    )
    .remedy("install the waltrail that made it, or a newer one");
    (applied > newest).then(|| Finding::error(Side::Target, "the-control-schema-is-newer", fault))
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
        let fault = |disposition| {
            Fault::new(
                disposition,
                "the target could not bring its control schema up to date",
            )
        };
        let config = Disposition::Halt(Exit::Config);
        match database {
            Some(report) if report.code == "42501" => fault(Disposition::Halt(Exit::NoPermission))
                .remedy("let the owner of schema waltrail run `waltrail setup`")
                .caused_by(report),
            // A full disk, a canceled statement: a migration is a transaction, and begins anew.
            Some(report) if report.disposition() == Disposition::Retry => {
                fault(Disposition::Retry).caused_by(report)
            }
            Some(report) => fault(config).caused_by(report),
            None => fault(config).caused_by(error),
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
