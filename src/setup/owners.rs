//! Whose code runs when waltrail writes. Triggers, defaults and functions of what it writes into run as its role, so their
//! owners must be trusted: a role that may create objects could have made `waltrail` or a history beforehand.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Client;

use super::patterns;
use crate::config::Table;
use crate::fault::{Exit, Fault, Result};
use crate::name::{Identifier, TableName};
use crate::server::Side;

/// Roles that could do as much without waltrail: this one and those that it is a member of, superusers, and the owner of the
/// database. A superuser is a member of every role, which says nothing.
const TRUSTED: &str = "
    trusted AS (
        SELECT r.oid FROM pg_catalog.pg_roles r
         WHERE r.rolsuper OR r.rolname = current_user
            OR r.oid = (SELECT d.datdba FROM pg_catalog.pg_database d WHERE d.datname = current_database())
            OR pg_has_role(r.oid, 'MEMBER')
               AND NOT (SELECT me.rolsuper FROM pg_catalog.pg_roles me WHERE me.rolname = current_user)
    )";

/// What in the schema `waltrail` belongs to another role.
const OF_SCHEMA: &str = "
    WITH {TRUSTED}
    SELECT made.what, pg_get_userbyid(made.owner)::text FROM (
        SELECT 'schema waltrail' AS what, n.oid AS schema, n.nspowner AS owner FROM pg_catalog.pg_namespace n
        UNION ALL SELECT 'waltrail.' || quote_ident(c.relname), c.relnamespace, c.relowner FROM pg_catalog.pg_class c
        UNION ALL SELECT 'function waltrail.' || quote_ident(p.proname), p.pronamespace, p.proowner FROM pg_catalog.pg_proc p
        UNION ALL SELECT 'type waltrail.' || quote_ident(t.typname), t.typnamespace, t.typowner FROM pg_catalog.pg_type t
    ) made
     WHERE made.schema = to_regnamespace('waltrail') AND made.owner NOT IN (SELECT oid FROM trusted) LIMIT 1";

/// Histories (schemas `$1`, names `$2`) that belong to another role, and that role.
const OF_HISTORIES: &str = "
    WITH {TRUSTED}
    SELECT n.nspname, c.relname, pg_get_userbyid(c.relowner)::text
      FROM unnest($1::name[], $2::name[]) AS w (schema, name)
      JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
      JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
     WHERE c.relowner NOT IN (SELECT oid FROM trusted)";

/// The owners of tables (schemas `$1`, names `$2`).
const OWNERS: &str = "
    SELECT n.nspname, c.relname, pg_get_userbyid(c.relowner)::text
      FROM unnest($1::name[], $2::name[]) AS w (schema, name)
      JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
      JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name";

/// Refuses a control schema that another role has made, before anything in it is used.
///
/// # Errors
/// Exit 78.
pub(super) async fn of_control_schema(target: &Client) -> Result<()> {
    of_schema(target, Side::Target).await
}

/// The same for the schema `waltrail` of either side.
pub(super) async fn of_schema(client: &Client, side: Side) -> Result<()> {
    let query = OF_SCHEMA.replace("{TRUSTED}", TRUSTED);
    let row = client.query_opt(&query, &[]).await;
    let row = row.map_err(side.failed("could not show who owns its schema waltrail"))?;
    let Some(row) = row else { return Ok(()) };
    let (what, owner): (&str, &str) = (row.get(0), row.get(1));
    Err(Fault::halt(
        Exit::Config,
        format!(
            "{what} on the {side} belongs to role {}: what that role puts there would run as this one",
            Identifier(owner)
        ),
    )
    .remedy(format!(
        "if that role has set waltrail up, run `waltrail setup` as {}; if not, look at what it has made, and then: \
         DROP SCHEMA waltrail CASCADE",
        Identifier(owner)
    )))
}

/// Refuses a history that a stranger has made. Who owns the table itself may own its history. Returns those of tables that
/// came by a pattern: such a table is left out.
///
/// # Errors
/// Exit 78.
pub(super) async fn of_histories(
    (source, target): (&Client, &Client),
    tables: &[Table],
    one_database: bool,
) -> Result<HashSet<TableName>> {
    let query = OF_HISTORIES.replace("{TRUSTED}", TRUSTED);
    let histories = tables.iter().map(|table| &table.history);
    let failed = Side::Target.failed("could not show who owns the history tables");
    let strangers = owners(target, &query, histories).await.map_err(failed)?;
    if strangers.is_empty() {
        return Ok(HashSet::new());
    }
    let sources = tables.iter().map(|table| &table.source);
    let sources = match one_database {
        true => owners(source, OWNERS, sources)
            .await
            .map_err(Side::Source.failed("could not show who owns its tables"))?,
        false => HashMap::new(),
    };
    let mut left_out = HashSet::new();
    for table in tables {
        let Some(owner) = strangers.get(&table.history) else {
            continue;
        };
        if sources.get(&table.source) == Some(owner) {
            continue;
        }
        let fault = refusal(&table.history, Identifier(owner));
        if !table.is_optional() {
            return Err(fault);
        }
        patterns::leave_out(&table.source, &fault);
        left_out.insert(table.history.clone());
    }
    Ok(left_out)
}

fn refusal(history: &TableName, owner: Identifier<'_>) -> Fault {
    Fault::halt(
        Exit::Config,
        format!(
            "the history table {history} belongs to role {owner}: its triggers and defaults would run as this role"
        ),
    )
    .remedy(format!(
        "look at the table, then: ALTER TABLE {history} OWNER TO CURRENT_USER; or run `waltrail setup` as {owner} and use \
         setup = \"manual\""
    ))
}

async fn owners<'a>(
    client: &Client,
    query: &str,
    tables: impl Iterator<Item = &'a TableName>,
) -> Result<HashMap<TableName, String>, tokio_postgres::Error> {
    let (schemas, names): (Vec<&str>, Vec<&str>) = tables
        .map(|table| (table.schema.as_str(), table.name.as_str()))
        .unzip();
    let rows = client.query(query, &[&schemas, &names]).await?;
    let named = |row: &tokio_postgres::Row| {
        let name = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        (name, row.get(2))
    };
    Ok(rows.iter().map(named).collect())
}
