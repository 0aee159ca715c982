//! `setup --grant-to`: what the role of the daemon needs when another role has set up.
//!
//! The role gets what `run`, `status` and `accept-gap` need and nothing else: it writes the control schema, adds rows to the
//! histories, and reads the tables. It owns nothing.

use std::collections::BTreeSet;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::privileges::Lacked;
use super::{Mode, effective};
use crate::config::{Config, SnapshotMode};
use crate::fault::{Exit, Fault, Result};
use crate::name::{Identifier, TableName};
use crate::server::{self, Side};

/// Tables in one statement: each is locked until it ends.
const GRANTED_AT_ONCE: usize = 500;

/// Whether the role `$1` has USAGE on the schema and the privileges `$4` on each table, in order; and the sequences of its
/// `serial` columns that it may not use.
const TABLES: &str = "
    SELECT coalesce(has_schema_privilege($1::name, n.oid, 'USAGE'), false),
           coalesce((SELECT bool_and(has_table_privilege($1::name, c.oid, p)) FROM unnest($4::text[]) AS p), false),
           ARRAY(SELECT format('%I.%I', sn.nspname, s.relname) FROM pg_catalog.pg_depend d
                   JOIN pg_catalog.pg_class s ON s.oid = d.objid
                   JOIN pg_catalog.pg_namespace sn ON sn.oid = s.relnamespace
                  WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refobjid = c.oid AND d.deptype = 'a'
                    AND NOT CASE s.relkind WHEN 'S' THEN has_sequence_privilege($1::name, s.oid, 'USAGE') END),
           c.oid IS NOT NULL
      FROM unnest($2::name[], $3::name[]) WITH ORDINALITY AS w (schema, name, nth)
      LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
      LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
     ORDER BY w.nth";

/// Gives `role` what the daemon needs of what is there.
///
/// # Errors
/// As [`grant`].
pub(crate) async fn after_set_up(config: &Config, role: &str) -> Result<()> {
    let source = server::sql(&config.source.connection, Side::Source).await?;
    let target = server::sql(&config.target, Side::Target).await?;
    let config = &effective(config, &source, &target).await?;
    grant(config, (&source, &target), role, &mut Mode::Create).await
}

/// Gives `role` what the daemon needs on both servers, or notes the SQL of it.
///
/// # Errors
/// Exit 78 for a role that does not exist, 77 for what may not be granted.
pub(crate) async fn grant(
    config: &Config,
    (source, target): (&Client, &Client),
    role: &str,
    mode: &mut Mode,
) -> Result<()> {
    let histories: Vec<&TableName> = config.tables.iter().map(|table| &table.history).collect();
    let sources: Vec<&TableName> = config.tables.iter().map(|table| &table.source).collect();
    let writes: &[&str] = &["SELECT", "INSERT"];
    let reads: &[&str] = match config.snapshot.mode {
        SnapshotMode::Initial => &["SELECT"],
        SnapshotMode::Never => &[],
    };
    must_exist(target, Side::Target, role).await?;
    must_exist(source, Side::Source, role).await?;
    let sides = [
        (target, Side::Target, histories, writes),
        (source, Side::Source, sources, reads),
    ];
    for (client, side, tables, privileges) in sides {
        let statements = missing(client, side, role, (&tables, privileges), mode).await?;
        if let Mode::DryRun(noted) = mode {
            noted.extend(statements.iter().map(|sql| format!("-- {side}\n{sql};")));
            continue;
        }
        for statement in &statements {
            run(client, side, statement).await?;
        }
        let left = missing(client, side, role, (&tables, privileges), mode).await?;
        if !left.is_empty() {
            let (role, left) = (Identifier(role), left.join("; "));
            return Err(Fault::halt(
                Exit::NoPermission,
                format!("this role may not grant role {role} what it needs on the {side}"),
            )
            .remedy(format!("let the owner run: {left}")));
        }
        if !statements.is_empty() {
            tracing::info!(%side, role, "granted what the role needs");
        }
    }
    Ok(())
}

/// Grants. What this role may not grant is an error or none: it is looked for afterwards.
async fn run(client: &Client, side: Side, statement: &str) -> Result<()> {
    match client.batch_execute(statement).await {
        Err(error) if error.code() != Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            Err(side.failed("could not grant what the role needs")(error))
        }
        _ => Ok(()),
    }
}

async fn must_exist(client: &Client, side: Side, role: &str) -> Result<()> {
    let known = "SELECT FROM pg_catalog.pg_roles WHERE rolname = $1";
    let known = client.query_opt(known, &[&role]).await;
    if known
        .map_err(side.failed("could not show its roles"))?
        .is_some()
    {
        return Ok(());
    }
    let attributes = match side {
        Side::Source => "LOGIN REPLICATION",
        Side::Target => "LOGIN",
    };
    let role = Identifier(role);
    Err(
        Fault::halt(Exit::Config, format!("the {side} has no role {role}"))
            .remedy(format!("CREATE ROLE {role} {attributes} PASSWORD '...'")),
    )
}

/// The statements that grant what the role lacks.
async fn missing(
    client: &Client,
    side: Side,
    role: &str,
    (tables, privileges): (&[&TableName], &[&str]),
    mode: &Mode,
) -> Result<Vec<String>> {
    let failed = side.failed("could not show the privileges of a role");
    let mut statements = Vec::new();
    let quoted = Identifier(role);
    if side == Side::Target {
        let lacked = Lacked::of(client, role).await.map_err(failed)?;
        // A migration that is only noted can make more tables.
        let is_noted = matches!(mode, Mode::DryRun(noted) if noted.iter().any(|sql| sql.starts_with("-- target: migration")));
        if is_noted || !lacked.is_some_and(|lacked| lacked.is_nothing()) {
            // The library's book is the owner's to write.
            statements.push(format!(
                "GRANT USAGE ON SCHEMA waltrail TO {quoted};\n\
                 GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA waltrail TO {quoted};\n\
                 REVOKE INSERT, UPDATE, DELETE ON waltrail.schema_history FROM {quoted};\n\
                 GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA waltrail TO {quoted}"
            ));
        }
    }
    if privileges.is_empty() {
        return Ok(statements);
    }
    let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let rows = client
        .query(TABLES, &[&role, &schemas, &names, &privileges])
        .await
        .map_err(failed)?;
    let (mut closed, mut denied, mut unused) = (BTreeSet::new(), Vec::new(), Vec::new());
    for (table, row) in std::iter::zip(tables, &rows) {
        // A table of a pattern that was left out has no history.
        if matches!(mode, Mode::Create) && !row.get::<_, bool>(3) {
            continue;
        }
        if !row.get::<_, bool>(0) {
            closed.insert(Identifier(&table.schema).to_string());
        }
        if !row.get::<_, bool>(1) {
            denied.push(table.to_string());
        }
        if privileges.contains(&"INSERT") {
            unused.extend(row.get::<_, Vec<String>>(2));
        }
    }
    let closed: Vec<String> = closed.into_iter().collect();
    let privileges = privileges.join(", ");
    for (what, names) in [
        ("USAGE ON SCHEMA", closed),
        (&*format!("{privileges} ON TABLE"), denied),
        ("USAGE ON SEQUENCE", unused),
    ] {
        let some = names.chunks(GRANTED_AT_ONCE);
        statements
            .extend(some.map(|names| format!("GRANT {what} {} TO {quoted}", names.join(", "))));
    }
    Ok(statements)
}
