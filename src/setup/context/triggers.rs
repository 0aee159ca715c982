//! The triggers on the source that say who makes a change.
//!
//! Making one blocks writers of its table for a moment, and while it waits for them it blocks those that come later. So it
//! waits for [`LOCK_TIMEOUT`] at most, and tries again.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row};

use super::missing;
use crate::config::Table;
use crate::fault::{Exit, Fault, Result};
use crate::finding::Finding;
use crate::name::{Identifier, TableName};
use crate::schema::plan::literal;
use crate::server::Side;
use crate::setup::Mode;

const NAME: &str = "waltrail_context";
const LOCK_TIMEOUT: &str = "2s";
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// The tables (schemas `$1`, names `$2`) and their partitions, with the trigger of our name.
const TABLES: &str = "
    WITH RECURSIVE tree AS (
        SELECT w.nth, c.oid FROM unnest($1::name[], $2::name[]) WITH ORDINALITY AS w (schema, name, nth)
          JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
          JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
        UNION ALL SELECT t.nth, i.inhrelid FROM tree t
          JOIN pg_catalog.pg_class p ON p.oid = t.oid AND p.relkind = 'p'
          JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid AND NOT i.inhdetachpending
    )
    SELECT n.nspname, c.relname, t.nth, g.oid IS NOT NULL, g.tgenabled IN ('O', 'A'),
           f.proname = 'say_context' AND f.pronamespace = to_regnamespace('waltrail') AND g.tgtype = 62 AND g.tgqual IS NULL,
           has_table_privilege(c.oid, 'TRIGGER'), current_user::text
      FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid AND c.relkind IN ('r', 'p')
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN pg_catalog.pg_trigger g ON g.tgrelid = c.oid AND g.tgname = 'waltrail_context'
      LEFT JOIN pg_catalog.pg_proc f ON f.oid = g.tgfoid
     ORDER BY t.nth, c.oid";

/// The tables that have the trigger, whichever are followed.
const WITH_TRIGGER: &str = "
    SELECT n.nspname, c.relname, g.tgname, pg_has_role(c.relowner, 'USAGE') FROM pg_catalog.pg_trigger g
      JOIN pg_catalog.pg_proc f ON f.oid = g.tgfoid AND f.proname = 'say_context'
       AND f.pronamespace = to_regnamespace('waltrail')
      JOIN pg_catalog.pg_class c ON c.oid = g.tgrelid
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE NOT g.tgisinternal ORDER BY 4 DESC, c.oid";

const FUNCTIONS: &str = "
    SELECT format('%I.%I(%s)', 'waltrail', p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid))
      FROM pg_catalog.pg_proc p
     WHERE p.pronamespace = to_regnamespace('waltrail') AND p.proname IN ('say_context', 'set_context')";

/// Whether nothing is in the schema.
const EMPTY: &str = "
    SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_class WHERE relnamespace = to_regnamespace('waltrail'))
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_proc WHERE pronamespace = to_regnamespace('waltrail'))
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_type WHERE typnamespace = to_regnamespace('waltrail'))";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Fires,
    Disabled,
    Missing,
    /// Another trigger has its name.
    Taken,
}

/// A followed table, or a partition of one.
struct Place {
    name: TableName,
    /// The number of the followed table, from 1.
    nth: i64,
    state: State,
    may_make: bool,
    role: String,
}

impl Place {
    fn of(row: &Row) -> Self {
        let state = match (
            row.get::<_, bool>(3),
            row.get::<_, Option<bool>>(5),
            row.get::<_, Option<bool>>(4),
        ) {
            (false, ..) => State::Missing,
            (true, Some(true), Some(true)) => State::Fires,
            (true, Some(true), _) => State::Disabled,
            (true, ..) => State::Taken,
        };
        Self {
            name: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
            nth: row.get(2),
            state,
            may_make: row.get(6),
            role: row.get(7),
        }
    }

    /// The statement that makes the trigger fire.
    fn statement(&self) -> String {
        let table = &self.name;
        match self.state {
            State::Disabled => format!("ALTER TABLE {table} ENABLE TRIGGER {NAME}"),
            _ => format!(
                "CREATE TRIGGER {NAME} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table} \
                 FOR EACH STATEMENT EXECUTE FUNCTION waltrail.say_context()"
            ),
        }
    }
}

async fn look(source: &Client, tables: &[Table]) -> Result<Vec<Place>> {
    let names = tables.iter().map(|table| &table.source);
    let (schemas, names): (Vec<&str>, Vec<&str>) = names
        .map(|name| (name.schema.as_str(), name.name.as_str()))
        .unzip();
    let rows = source.query(TABLES, &[&schemas, &names]).await;
    let rows = rows.map_err(Side::Source.failed("could not show its triggers"))?;
    Ok(rows.iter().map(Place::of).collect())
}

/// Makes the triggers that are missing, each in a transaction of its own, or notes the SQL.
pub(super) async fn make(source: &Client, tables: &[Table], mode: &mut Mode) -> Result<()> {
    let places = look(source, tables).await?;
    let wanted = places.iter().filter(|place| place.state != State::Fires);
    let wanted: Vec<&Place> = wanted.collect();
    if let Mode::DryRun(statements) = mode {
        let sql = |place: &&Place| limited(&place.statement());
        statements.extend(wanted.iter().map(sql));
        return Ok(());
    }
    refuse(&wanted)?;
    limit_locks(source).await?;
    let present = places.len() - wanted.len();
    for (done, place) in wanted.iter().enumerate() {
        let state = format!("{} of {} tables have it", present + done, places.len());
        let again = "waltrail setup --context";
        locking(source, &place.name, &place.statement(), (&state, again)).await?;
    }
    if !wanted.is_empty() {
        let count = wanted.len();
        tracing::info!(side = %Side::Source, created = "triggers", count, "created");
    }
    Ok(())
}

/// The statement for psql.
fn limited(statement: &str) -> String {
    format!("-- source\nBEGIN;\nSET LOCAL lock_timeout = '{LOCK_TIMEOUT}';\n{statement};\nCOMMIT;")
}

async fn limit_locks(source: &Client) -> Result<()> {
    let limit = format!("SET lock_timeout = '{LOCK_TIMEOUT}'");
    let set = source.batch_execute(&limit).await;
    set.map_err(Side::Source.failed("could not set up its session"))
}

/// Refuses before anything is made.
fn refuse(wanted: &[&Place]) -> Result<()> {
    if let Some(Place { name, .. }) = wanted.iter().find(|place| place.state == State::Taken) {
        return Err(Fault::halt(
            Exit::Config,
            format!("{name} has a trigger {NAME} that is not waltrail's"),
        )
        .remedy(format!(
            "look at it, then: ALTER TRIGGER {NAME} ON {name} RENAME TO another_name"
        )));
    }
    let denied: Vec<&&Place> = wanted.iter().filter(|place| !place.may_make).collect();
    let Some(first) = denied.first() else {
        return Ok(());
    };
    let names: Vec<String> = denied.iter().map(|place| place.name.to_string()).collect();
    let names = names.join(", ");
    Err(Fault::halt(
        Exit::NoPermission,
        format!("this role may not make a trigger on {names}"),
    )
    .remedy(format!(
        "let the owner run: GRANT TRIGGER ON TABLE {names} TO {}",
        Identifier(&first.role)
    )))
}

/// Runs a statement that locks `table`. `state` says how far it is, and `again` what goes on from there.
async fn locking(
    source: &Client,
    table: &TableName,
    statement: &str,
    (state, again): (&str, &str),
) -> Result<()> {
    for left in (0..TRIES).rev() {
        let error = match source.batch_execute(statement).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        match error.code() {
            // A partition that was dropped meanwhile.
            Some(&SqlState::UNDEFINED_TABLE) => return Ok(()),
            Some(&SqlState::LOCK_NOT_AVAILABLE | &SqlState::T_R_DEADLOCK_DETECTED) if left > 0 => {
                tracing::info!(side = %Side::Source, %table, "waiting for a table lock");
                tokio::time::sleep(PAUSE).await;
            }
            Some(&SqlState::LOCK_NOT_AVAILABLE | &SqlState::T_R_DEADLOCK_DETECTED) => {
                return Err(Fault::retry(format!(
                    "{table} on the source is locked by other sessions: its trigger {NAME} could not be changed in {TRIES} \
                     tries of {LOCK_TIMEOUT}; {state}"
                ))
                .remedy(format!(
                    "look at SELECT pid, state, xact_start FROM pg_stat_activity WHERE pid IN (SELECT pid FROM pg_locks WHERE \
                     relation = {}::regclass); then `{again}` goes on",
                    literal(&table.to_string())
                )));
            }
            _ => {
                let what = format!("could not change trigger {NAME} on {table}");
                return Err(Side::Source.failed(&what)(error));
            }
        }
    }
    Ok(())
}

/// Where a trigger is missing or does not fire; one finding a followed table.
pub(super) async fn findings(source: &Client, tables: &[Table]) -> Result<Vec<Finding>> {
    let mut silent: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    for place in look(source, tables).await? {
        if place.state != State::Fires {
            silent
                .entry(place.nth)
                .or_default()
                .push(place.name.to_string());
        }
    }
    let finding = |(nth, names): (i64, Vec<String>)| {
        let table = usize::try_from(nth - 1)
            .ok()
            .and_then(|nth| tables.get(nth))?;
        let what = format!(
            "trigger {NAME} is missing or disabled on {}: its changes do not say who made them",
            names.join(", ")
        );
        Some(missing(&table.source, what))
    };
    Ok(silent.into_iter().filter_map(finding).collect())
}

/// Removes triggers and functions from the source, and the schema that is then empty. Returns what was dropped, for a person.
///
/// # Errors
/// A table is locked: what was dropped is gone, and another run goes on.
pub(crate) async fn remove(source: &Client) -> Result<Vec<String>> {
    let failed = Side::Source.failed("could not show its triggers");
    let rows = source.query(WITH_TRIGGER, &[]).await.map_err(failed)?;
    let functions = source.query(FUNCTIONS, &[]).await.map_err(failed)?;
    if functions.is_empty() {
        return Ok(Vec::new());
    }
    limit_locks(source).await?;
    let mut dropped = Vec::new();
    let again = "waltrail teardown";
    for (done, row) in rows.iter().enumerate() {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let trigger = Identifier(row.get(2));
        let statement = match row.get(3) {
            true => format!("DROP TRIGGER IF EXISTS {trigger} ON {table}"),
            // A table of another role's loses it with the function.
            false => "DROP FUNCTION IF EXISTS waltrail.say_context() CASCADE".to_owned(),
        };
        let state = format!("{done} of {} are dropped", rows.len());
        locking(source, &table, &statement, (&state, again)).await?;
        dropped.push(format!("trigger {trigger} on {table}"));
    }
    for row in &functions {
        let function: &str = row.get(0);
        let statement = format!("DROP FUNCTION IF EXISTS {function}");
        let gone = source.batch_execute(&statement).await;
        gone.map_err(Side::Source.failed("could not drop a function of the schema waltrail"))?;
        dropped.push(format!("function {function}"));
    }
    dropped.extend(leave_schema(source).await?);
    Ok(dropped)
}

/// The schema is waltrail's own again, or gone where nothing is in it.
async fn leave_schema(source: &Client) -> Result<Option<String>> {
    let failed = Side::Source.failed("could not give up the schema waltrail");
    let is_empty = source.query_one(EMPTY, &[]).await.map_err(failed)?;
    let (statement, dropped) = match is_empty.get(0) {
        true => ("DROP SCHEMA waltrail", Some("schema waltrail".to_owned())),
        false => ("REVOKE USAGE ON SCHEMA waltrail FROM PUBLIC", None),
    };
    source.batch_execute(statement).await.map_err(failed)?;
    Ok(dropped)
}
