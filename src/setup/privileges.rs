//! What the roles may do, beside what a start and its set-up need: everything that is missing, each with its GRANT.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Display;

use tokio_postgres::{Client, Row};

use super::publication::{self, Publication};
use super::requirements::Server;
use crate::config::{Config, SchemaChanges, Setup, SnapshotMode, Table};
use crate::fault::{Exit, Fault, Result};
use crate::finding::Finding;
use crate::schema::{Identifier, SourceTable, TableName, home};
use crate::server::Side;

const CODE: &str = "privilege-missing";

/// What the daemon does with the tables of the control schema. As documented in `docs/start/self-hosted.md`.
const CONTROL: [(&str, &[&str]); 16] = [
    ("schema_history", &["SELECT"]),
    ("checkpoint", &["SELECT", "INSERT", "UPDATE"]),
    ("barrier", &["SELECT", "INSERT", "UPDATE"]),
    ("watched", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("gap", &["SELECT", "INSERT", "UPDATE"]),
    ("followed", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("home", &["SELECT", "INSERT", "DELETE"]),
    ("adopted", &["SELECT", "INSERT"]),
    ("baseline", &["SELECT", "INSERT", "DELETE"]),
    ("layout", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("column_range", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("described", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("inherited", &["SELECT"]),
    ("snapshot", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("snapshot_part", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("held", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
];

/// A privilege that a role lacks.
fn lacks(side: Side, role: &str, what: impl Display, grant: String) -> Finding {
    let role = Identifier(role);
    let fault = Fault::halt(
        Exit::NoPermission,
        format!("the role {role} on the {side} lacks {what}"),
    );
    Finding::error(side, CODE, fault.remedy(grant))
}

/// The right to replicate, where trying has shown that it is missing.
pub(crate) fn replication(server: &Server) -> Finding {
    let grant = server.service.let_replicate(&server.role);
    lacks(
        Side::Source,
        &server.role,
        "the right to replicate (REPLICATION)",
        grant,
    )
}

/// Refuses a start that lacks privileges: all of them are named.
///
/// # Errors
/// Exit 77.
pub(super) fn refuse(mut missing: Vec<Finding>) -> Result<()> {
    missing.retain(Finding::is_error);
    if missing.is_empty() {
        return Ok(());
    }
    let whats: Vec<&str> = missing
        .iter()
        .map(|finding| finding.what.as_str())
        .collect();
    let grants = missing
        .iter()
        .filter_map(|finding| finding.remedy.as_deref());
    // One database can be both sides.
    let grants: BTreeSet<&str> = grants.collect();
    let grants: Vec<&str> = grants.into_iter().collect();
    Err(Fault::halt(Exit::NoPermission, whats.join("; ")).remedy(grants.join(" ")))
}

const SOURCE: &str = "
    SELECT current_user::text, current_database()::text, has_database_privilege(current_database(), 'CREATE'),
           (SELECT pg_has_role(pubowner, 'USAGE') FROM pg_catalog.pg_publication WHERE pubname = $1)";

/// A row security policy would hide existing rows.
const TABLES: &str = "
    SELECT c.oid, pg_get_userbyid(c.relowner)::text, pg_has_role(c.relowner, 'USAGE'),
           has_table_privilege(c.oid, 'SELECT'), has_schema_privilege(c.relnamespace, 'USAGE'), n.nspname::text,
           row_security_active(c.oid),
           (SELECT rolsuper FROM pg_catalog.pg_roles r WHERE r.oid = c.relowner)
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE c.oid = ANY ($1)";

/// What the role lacks on the source for these tables.
pub(super) async fn of_source(
    config: &Config,
    source: &Client,
    tables: &[(&Table, &SourceTable)],
) -> Result<Vec<Finding>> {
    let failed = Side::Source.failed("could not show the privileges of its role");
    let publication = publication::look(source, &config.source.publication).await?;
    let row = source
        .query_one(SOURCE, &[&config.source.publication])
        .await
        .map_err(failed)?;
    let role: &str = row.get(0);
    let creates = config.setup == Setup::Auto;
    let mut found = Vec::new();
    let members = publication
        .as_ref()
        .map(Publication::names)
        .unwrap_or_default();
    let to_add = |table: &TableName| creates && !members.contains(table);
    let adds = tables.iter().any(|(_, source)| to_add(&source.name));
    let known = (config.source.publication.as_str(), publication.is_some());
    let is_anothers = row.get::<_, Option<bool>>(3) == Some(false);
    found.extend(may_publish(&row, publication.is_some() || !adds));
    let oids: Vec<u32> = tables.iter().map(|(_, source)| source.oid).collect();
    let rows = source.query(TABLES, &[&oids]).await.map_err(failed)?;
    let rows: HashMap<u32, &Row> = rows.iter().map(|row| (row.get(0), row)).collect();
    // What is lacking for which tables, each with its GRANT.
    let mut lacking: BTreeMap<Lacking, Vec<String>> = BTreeMap::new();
    for (table, source) in tables {
        let Some(row) = rows.get(&source.oid) else {
            continue;
        };
        let mut lack = |what| {
            lacking
                .entry(what)
                .or_default()
                .push(source.name.to_string())
        };
        if to_add(&source.name) && (is_anothers || !row.get::<_, bool>(2)) {
            // A membership in a superuser would be everything.
            let by_others = is_anothers || row.get::<_, Option<bool>>(7) == Some(true);
            lack(match by_others {
                true => Lacking::Published,
                false => Lacking::Owner(row.get(1)),
            });
        }
        if config.snapshot.mode == SnapshotMode::Never || table.followed {
            continue;
        }
        if !row.get::<_, bool>(4) {
            lack(Lacking::Schema(row.get(5)));
        }
        if !row.get::<_, bool>(3) {
            lack(Lacking::Select);
        }
        if row.get(6) {
            lack(Lacking::BypassRls);
        }
    }
    found.extend(
        lacking
            .iter()
            .map(|(what, tables)| what.finding(role, known, tables)),
    );
    Ok(found)
}

/// What a role can lack for a table of the source.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Lacking {
    /// Membership in this role.
    Owner(String),
    /// USAGE of this schema.
    Schema(String),
    /// A superuser owns the table, or another role the publication: that one has to publish it.
    Published,
    Select,
    BypassRls,
}

impl Lacking {
    fn finding(
        &self,
        role: &str,
        (publication, exists): (&str, bool),
        tables: &[String],
    ) -> Finding {
        let quoted = Identifier(role);
        let only = tables.join(", ONLY ");
        let tables = tables.join(", ");
        let (what, grant) = match self {
            Self::Owner(owner) => {
                let owner = Identifier(owner);
                let what =
                    format!("membership in {owner}, which owns and alone may publish {tables}");
                (what, format!("GRANT {owner} TO {quoted};"))
            }
            Self::Schema(schema) => {
                let schema = Identifier(schema);
                let what = format!("USAGE on schema {schema}");
                (what, format!("GRANT USAGE ON SCHEMA {schema} TO {quoted};"))
            }
            Self::Published => {
                let publication = Identifier(publication);
                let statement = match exists {
                    true => format!("ALTER PUBLICATION {publication} ADD TABLE ONLY {only};"),
                    false => format!(
                        "CREATE PUBLICATION {publication} FOR TABLE ONLY {only} WITH (publish_via_partition_root = true); \
                         ALTER PUBLICATION {publication} OWNER TO {quoted};"
                    ),
                };
                let what = format!(
                    "the right to publish {tables}, which their owner or the publication's has to do"
                );
                (what, statement)
            }
            Self::Select => {
                let what = format!("SELECT on {tables}, for the existing rows");
                (what, format!("GRANT SELECT ON {tables} TO {quoted};"))
            }
            Self::BypassRls => {
                let what = format!("BYPASSRLS: row security hides rows of {tables}");
                (what, format!("ALTER ROLE {quoted} BYPASSRLS;"))
            }
        };
        lacks(Side::Source, role, what, grant)
    }
}

/// What keeps a role from making the publication, if it has to be made.
fn may_publish(row: &Row, exists: bool) -> Option<Finding> {
    let (role, database, creates): (&str, &str, bool) = (row.get(0), row.get(1), row.get(2));
    if exists || creates {
        return None;
    }
    let (quoted, database) = (Identifier(role), Identifier(database));
    Some(lacks(
        Side::Source,
        role,
        format!("CREATE on database {database}, for the publication"),
        format!("GRANT CREATE ON DATABASE {database} TO {quoted};"),
    ))
}

const TARGET: &str = "
    SELECT current_user::text, current_database()::text, has_database_privilege(current_database(), 'CREATE'),
           EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'waltrail')";

/// Whether the role `$1` may use the control schema and its functions.
const MAY_USE: &str = "
    SELECT has_schema_privilege($1::name, s.oid, 'USAGE'),
           NOT EXISTS (SELECT FROM pg_catalog.pg_proc p
                        WHERE p.pronamespace = s.oid AND p.proname <> 'say_context' AND NOT has_function_privilege($1::name, p.oid, 'EXECUTE'))
      FROM pg_catalog.pg_namespace s WHERE s.nspname = 'waltrail'";

/// Of the tables `$2` of the control schema, those for which the role `$1` lacks the privilege `$3`.
const LACKED: &str = "
    SELECT w.name, w.privilege
      FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS w (name, privilege, nth)
      JOIN pg_catalog.pg_namespace n ON n.nspname = 'waltrail'
      JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
     WHERE NOT has_table_privilege($1::name, c.oid, w.privilege)
     ORDER BY w.nth";

/// History tables and their schemas. Sequences beside the columns whose defaults use them.
const HISTORIES: &str = "
    SELECT n.oid IS NOT NULL, coalesce(has_schema_privilege(n.oid, 'CREATE'), false),
           coalesce(has_schema_privilege(n.oid, 'USAGE'), false), c.oid IS NOT NULL,
           coalesce(has_table_privilege(c.oid, 'INSERT'), false), s.columns, s.names,
           coalesce(pg_has_role(c.relowner, 'USAGE'), true), pg_get_userbyid(c.relowner)::text,
           pg_catalog.obj_description(c.oid, 'pg_class')
      FROM unnest($1::name[], $2::name[]) WITH ORDINALITY AS w (schema, name, nth)
      LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
      LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
      LEFT JOIN LATERAL (
          SELECT array_agg(a.attname::text) AS columns, array_agg(format('%I.%I', sn.nspname, sc.relname)) AS names
            FROM pg_catalog.pg_attrdef d
            JOIN pg_catalog.pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
            JOIN pg_catalog.pg_depend dep ON dep.classid = 'pg_catalog.pg_attrdef'::regclass AND dep.objid = d.oid
             AND dep.refclassid = 'pg_catalog.pg_class'::regclass
            JOIN pg_catalog.pg_class sc ON sc.oid = dep.refobjid AND sc.relkind = 'S'
            JOIN pg_catalog.pg_namespace sn ON sn.oid = sc.relnamespace
           WHERE d.adrelid = c.oid
             AND CASE sc.relkind WHEN 'S' THEN NOT has_sequence_privilege(sc.oid, 'USAGE, UPDATE') END) s ON true
     ORDER BY w.nth";

/// What the role lacks on the target for these tables; the source's side of a table may be unknown.
pub(super) async fn of_target(
    config: &Config,
    target: &Client,
    tables: &[(&Table, Option<&SourceTable>)],
) -> Result<Vec<Finding>> {
    let mut found = control_schema(target).await?;
    let failed = Side::Target.failed("could not show the privileges of its role");
    let row = target.query_one(TARGET, &[]).await.map_err(failed)?;
    let (role, database, may_create): (&str, &str, bool) = (row.get(0), row.get(1), row.get(2));
    let quoted = Identifier(role);
    let creates = config.setup == Setup::Auto;
    let names = tables.iter().map(|(table, _)| &table.history);
    let (schemas, histories): (Vec<&str>, Vec<&str>) = names
        .map(|name| (name.schema.as_str(), name.name.as_str()))
        .unzip();
    let rows = target
        .query(HISTORIES, &[&schemas, &histories])
        .await
        .map_err(failed)?;
    let lacks_schema = rows.iter().any(|row| !row.get::<_, bool>(0));
    if creates && !may_create && (lacks_schema || !row.get::<_, bool>(3)) {
        let database = Identifier(database);
        let what = match lacks_schema {
            true => "for the schemas of histories, and waltrail's",
            false => "for the schema waltrail",
        };
        found.push(lacks(
            Side::Target,
            role,
            format!("CREATE on database {database}, {what}"),
            format!("GRANT CREATE ON DATABASE {database} TO {quoted};"),
        ));
    }
    for ((table, source), row) in std::iter::zip(tables, &rows) {
        found.extend(of_history(role, table, *source, row, creates));
        found.extend(cannot_follow(config, role, table, row));
    }
    found.dedup_by(|one, other| one.remedy == other.remedy);
    Ok(found)
}

/// What is lacking for one history, as [`HISTORIES`] has it.
fn of_history(
    role: &str,
    table: &Table,
    source: Option<&SourceTable>,
    row: &Row,
    creates: bool,
) -> Vec<Finding> {
    let (schema_exists, may_create, may_use): (bool, bool, bool) =
        (row.get(0), row.get(1), row.get(2));
    let (exists, inserts): (bool, bool) = (row.get(3), row.get(4));
    let (history, quoted) = (&table.history, Identifier(role));
    let schema = Identifier(&history.schema);
    let mut found = Vec::new();
    let mut lack = |what: String, grant: String| {
        found.push(lacks(Side::Target, role, what, grant));
    };
    if schema_exists && !may_use {
        lack(
            format!("USAGE on schema {schema}"),
            format!("GRANT USAGE ON SCHEMA {schema} TO {quoted};"),
        );
    }
    if schema_exists && !exists && creates && !may_create {
        lack(
            format!("CREATE on schema {schema}, for {history}"),
            format!("GRANT CREATE ON SCHEMA {schema} TO {quoted};"),
        );
    }
    if exists && !inserts {
        lack(
            format!("INSERT on {history}"),
            format!("GRANT SELECT, INSERT ON {history} TO {quoted};"),
        );
    }
    let columns: Option<Vec<String>> = row.get(5);
    let sequences: Option<Vec<String>> = row.get(6);
    let rules = table.rules();
    for (column, sequence) in
        std::iter::zip(columns.unwrap_or_default(), sequences.unwrap_or_default())
    {
        // Where the source has a value, the default is not asked.
        if source.is_some_and(|source| super::history::may_fill(source, &rules, &column)) {
            continue;
        }
        lack(
            format!(
                "USAGE on sequence {sequence}, for {history}.{}",
                Identifier(&column)
            ),
            format!("GRANT USAGE ON SEQUENCE {sequence} TO {quoted};"),
        );
    }
    found
}

/// A history that gets the new columns of its source, from a role that may not add them. A start goes on.
fn cannot_follow(config: &Config, role: &str, table: &Table, row: &Row) -> Option<Finding> {
    let (owns, owner): (bool, Option<&str>) = (row.get(7), row.get(8));
    let follows = match config.schema_changes {
        Some(changes) => changes == SchemaChanges::Follow,
        None => home::is_made(row.get(9)),
    };
    if owns || !follows || config.setup == Setup::Manual {
        return None;
    }
    let (role, owner) = (Identifier(role), Identifier(owner?));
    let history = &table.history;
    let what = format!(
        "{owner} owns {history}, and the role {role} may not add columns: waltrail stops when one has to be added"
    );
    let finding = Finding::warning(history, "the-history-cannot-follow", what);
    Some(finding.remedy(format!(
        "GRANT {owner} TO {role}; -- or schema_changes = \"halt\""
    )))
}

/// What the role lacks for the control schema, where that exists.
pub(crate) async fn control_schema(target: &Client) -> Result<Vec<Finding>> {
    let failed = Side::Target.failed("could not show the privileges of its role");
    let row = target.query_one(TARGET, &[]).await.map_err(failed)?;
    let (role, exists): (&str, bool) = (row.get(0), row.get(3));
    let lacked = match exists {
        true => Lacked::of(target, role).await.map_err(failed)?,
        false => None,
    };
    let Some(lacked) = lacked else {
        return Ok(Vec::new());
    };
    let quoted = Identifier(role);
    let mut found = Vec::new();
    let mut lack = |what: &str, grant: String| found.push(lacks(Side::Target, role, what, grant));
    if lacked.usage {
        let grant = format!("GRANT USAGE ON SCHEMA waltrail TO {quoted};");
        lack("USAGE on schema waltrail", grant);
    }
    if lacked.execute {
        let grant = format!("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA waltrail TO {quoted};");
        lack("EXECUTE on the functions of schema waltrail", grant);
    }
    for (table, missing) in lacked.tables {
        let missing = missing.join(", ");
        let grant = format!("GRANT {missing} ON waltrail.{table} TO {quoted};");
        lack(&format!("{missing} on waltrail.{table}"), grant);
    }
    Ok(found)
}

/// What a role lacks of [`CONTROL`], of the schema and of its functions.
pub(super) struct Lacked {
    usage: bool,
    execute: bool,
    tables: Vec<(&'static str, Vec<String>)>,
}

impl Lacked {
    /// None where the control schema does not exist.
    pub(super) async fn of(
        target: &Client,
        role: &str,
    ) -> std::result::Result<Option<Self>, tokio_postgres::Error> {
        let Some(schema) = target.query_opt(MAY_USE, &[&role]).await? else {
            return Ok(None);
        };
        let needed = CONTROL
            .iter()
            .flat_map(|(table, all)| all.iter().map(|one| (*table, *one)));
        let (tables, privileges): (Vec<&str>, Vec<&str>) = needed.unzip();
        let rows = target.query(LACKED, &[&role, &tables, &privileges]).await?;
        let of_table = |(table, _): &(&'static str, &[&str])| {
            let missing = rows.iter().filter(|row| row.get::<_, &str>(0) == *table);
            (*table, missing.map(|row| row.get(1)).collect())
        };
        let mut tables: Vec<(_, Vec<String>)> = CONTROL.iter().map(of_table).collect();
        tables.retain(|(_, missing)| !missing.is_empty());
        Ok(Some(Self {
            usage: !schema.get::<_, bool>(0),
            execute: !schema.get::<_, bool>(1),
            tables,
        }))
    }

    pub(super) fn is_nothing(&self) -> bool {
        !self.usage && !self.execute && self.tables.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table that a migration makes and this list lacks would be granted to no role.
    #[test]
    fn every_table_of_the_control_schema_has_its_privileges() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
        let mut made = BTreeSet::from(["schema_history".to_owned()]);
        for file in std::fs::read_dir(folder).unwrap() {
            let sql = std::fs::read_to_string(file.unwrap().path()).unwrap();
            let tables = sql.split("CREATE TABLE waltrail.").skip(1);
            let views = sql.split("CREATE VIEW waltrail.").skip(1);
            made.extend(
                tables
                    .chain(views)
                    .map(|rest| rest.split(' ').next().unwrap().to_owned()),
            );
        }
        let listed = CONTROL.iter().map(|(table, _)| (*table).to_owned());
        assert_eq!(listed.collect::<BTreeSet<_>>(), made);
    }
}
