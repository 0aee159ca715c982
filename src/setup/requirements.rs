//! What the source must be like.

use tokio_postgres::Client;

use crate::config::{Config, Table};
use crate::fault::{Exit, Fault, Result};
use crate::finding::{Finding, refuse};
use crate::schema::catalog::{self, Found, Standing};
use crate::schema::{Identifier, SourceTable, TableName};
use crate::server::{Service, Side};

/// The oldest version whose protocol is read: 14.
const OLDEST: i32 = 140_000;
/// From 18 on, UPDATE and DELETE fail where a replica identity has a generated column that is not published.
const GENERATED_MUST_BE_PUBLISHED: i32 = 180_000;
/// A standby decodes since 16.
const DECODES_ON_STANDBY: i32 = 160_000;

/// What a server that is followed says of itself.
pub(crate) struct Server {
    pub(crate) version: i32,
    pub(crate) service: Service,
    pub(crate) role: String,
    /// It is a standby.
    pub(crate) in_recovery: bool,
    /// The role has the attribute. Without it, only trying shows whether it may replicate.
    pub(crate) may_replicate: bool,
    pub(crate) findings: Vec<Finding>,
}

const SERVER: &str = "
    SELECT current_setting('server_version_num')::int, current_setting('server_version'), current_setting('wal_level'),
           current_setting('max_replication_slots')::int, current_setting('max_wal_senders')::int,
           (SELECT count(*) FROM pg_catalog.pg_replication_slots)::int,
           EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = $1),
           (SELECT rolreplication OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user),
           current_user::text, pg_catalog.pg_is_in_recovery()";

/// Looks at version, `wal_level` and room for the slot.
///
/// # Errors
/// The source did not answer. What it lacks is among the findings.
pub(crate) async fn server(source: &Client, slot: &str) -> Result<Server> {
    let row = source
        .query_one(SERVER, &[&slot])
        .await
        .map_err(Side::Source.failed("could not show its settings"))?;
    let service = Service::of(source).await;
    let (version, named): (i32, &str) = (row.get(0), row.get(1));
    let mut server = Server {
        version,
        service,
        role: row.get(8),
        in_recovery: row.get(9),
        may_replicate: row.get(7),
        findings: Vec::new(),
    };
    let mut halt = |code, message: String, remedy: String| {
        let fault = Fault::halt(Exit::Config, message).remedy(remedy);
        server
            .findings
            .push(Finding::error(Side::Source, code, fault));
    };
    if version < OLDEST {
        halt(
            "version-too-old",
            format!("the source is PostgreSQL {named}, older than 14"),
            "-- follow a server of version 14 or later".to_owned(),
        );
    }
    let wal_level: &str = row.get(2);
    if wal_level != "logical" {
        halt(
            "wal-level",
            format!("the source has wal_level = {wal_level}, which does not carry row changes"),
            service.set_wal_level(),
        );
    }
    let (slots, senders, used): (i32, i32, i32) = (row.get(3), row.get(4), row.get(5));
    if senders == 0 {
        halt(
            "slots-used-up",
            "the source has max_wal_senders = 0".to_owned(),
            service.set("max_wal_senders", "10", true),
        );
    }
    if used >= slots && !row.get::<_, bool>(6) {
        let more = (used + 10).to_string();
        halt(
            "slots-used-up",
            format!(
                "the source has no free replication slot: {used} of max_replication_slots = {slots} are in use"
            ),
            service.set("max_replication_slots", &more, true),
        );
    }
    // One with the slot is about to take its primary's place, and is waited for (`slot::decide`).
    if server.in_recovery && version < DECODES_ON_STANDBY && !row.get::<_, bool>(6) {
        halt(
            "the-source-is-a-standby",
            format!(
                "the source is a standby of PostgreSQL {named}, and only 16 and later can be followed there"
            ),
            "-- name the primary in source.dsn".to_owned(),
        );
    }
    Ok(server)
}

/// Whether commits on the source wait for this history: `synchronous_standby_names` can match our walsender, also by `*`.
///
/// # Errors
/// The source did not answer.
pub(crate) async fn is_waited_for(source: &Client) -> Result<bool> {
    let settings = "SELECT pg_catalog.current_setting('synchronous_standby_names'), \
        pg_catalog.current_setting('application_name')";
    let row = source.query_one(settings, &[]).await;
    let row = row.map_err(Side::Source.failed("could not show synchronous_standby_names"))?;
    let (names, ours): (&str, &str) = (row.get(0), row.get(1));
    let mut names = names
        .split([',', '(', ')'])
        .map(|name| name.trim_matches([' ', '"']));
    Ok(names.any(|name| name == "*" || name.eq_ignore_ascii_case(ours)))
}

/// The source's `server_version_num`.
pub(super) async fn version(source: &Client) -> Result<i32> {
    let version = "SELECT current_setting('server_version_num')::int";
    let row = source.query_one(version, &[]).await;
    row.map(|row| row.get(0))
        .map_err(Side::Source.failed("could not show its version"))
}

/// Looks the configured tables up and refuses what cannot be captured; in the order of the configuration.
///
/// # Errors
/// Exit 78 when there is no such table, 65 when its changes cannot be recorded.
pub(super) async fn source_tables(
    source: &Client,
    config: &Config,
    version: i32,
) -> Result<Vec<SourceTable>> {
    let found = look_up(source, config).await?;
    let findings = config.tables.iter();
    refuse(
        findings
            .flat_map(|table| of_table(table, &found, version))
            .collect(),
    )?;
    let tables = config
        .tables
        .iter()
        .filter_map(|table| found.named(&table.source));
    Ok(tables.map(|(table, _)| table.clone()).collect())
}

/// The configured tables, as far as they exist.
pub(super) async fn look_up(
    source: &Client,
    config: &Config,
) -> Result<Found<(SourceTable, Standing)>> {
    let names: Vec<&TableName> = config.tables.iter().map(|table| &table.source).collect();
    catalog::source_tables(source, &config.source.publication, &names, &[])
        .await
        .map_err(Side::Source.failed("could not describe its tables"))
}

/// What keeps a configured table from being captured.
pub(super) fn of_table(
    table: &Table,
    found: &Found<(SourceTable, Standing)>,
    version: i32,
) -> Vec<Finding> {
    let Some((source, standing)) = found.named(&table.source) else {
        let fault = Fault::halt(
            Exit::Config,
            format!("the source has no table {}", table.source),
        )
        .remedy(
            "correct [[table]] source (names are schema.table, quoted where they have capitals)",
        );
        return vec![Finding::error(&table.source, "no-such-table", fault)];
    };
    let mut findings = unfit_table(source, standing, version);
    // Later, such a column was dropped.
    if !table.by_pattern && !table.followed {
        findings.extend(excluded(table, source));
    }
    findings
}

fn unfit(name: &TableName, anchor: &'static str, message: String, remedy: String) -> Finding {
    let fault = Fault::halt(Exit::HistoryWouldBeWrong, message);
    Finding::error(name, anchor, fault.remedy(remedy).see(anchor))
}

/// Refuses a table whose changes would not all be recorded, or whose UPDATE and DELETE would fail once it is published.
///
/// # Errors
/// Exit 65.
pub(super) fn can_be_followed(
    table: &SourceTable,
    standing: &Standing,
    version: i32,
) -> Result<()> {
    refuse(unfit_table(table, standing, version))
}

/// Why a table's changes would not all be recorded, or its UPDATE and DELETE would fail once it is published.
fn unfit_table(table: &SourceTable, standing: &Standing, version: i32) -> Vec<Finding> {
    let name = &table.name;
    if !matches!(table.kind, 'r' | 'p') {
        return vec![unfit(
            name,
            "not-a-table",
            format!(
                "{name} is not a table: views, foreign tables and sequences have no changes to follow"
            ),
            "name the table beneath it".to_owned(),
        )];
    }
    let mut findings = Vec::new();
    if standing.persistence != 'p' {
        findings.push(unfit(
            name,
            "an-unlogged-table",
            format!("{name} is unlogged or temporary, so that its changes are not in the WAL"),
            format!("ALTER TABLE {name} SET LOGGED; -- or leave it out"),
        ));
    }
    if let Some(root) = &standing.partition_of {
        findings.push(unfit(
            name,
            "a-partition",
            format!(
                "{name} is a partition of {root}, whose changes are published as those of {root}"
            ),
            format!("capture {root} instead"),
        ));
    }
    if standing.identity.is_empty() && table.replica_identity != 'f'
        || table.replica_identity == 'n'
    {
        findings.push(unfit(
            name,
            "no-replica-identity",
            format!(
                "{name} has no replica identity: publishing it would make every UPDATE and DELETE on it fail"
            ),
            format!(
                "ALTER TABLE {name} REPLICA IDENTITY FULL; -- or ALTER TABLE {name} ADD PRIMARY KEY (...); a DEFERRABLE key is no \
                 replica identity"
            ),
        ));
    }
    findings.extend(generated(table, standing, version));
    findings.extend(partitions(table, standing));
    findings
}

/// Generated columns are not sent, unless the publication says so, and cannot identify a row.
fn generated(table: &SourceTable, standing: &Standing, version: i32) -> Option<Finding> {
    let name = &table.name;
    let of_identity = |column: &&String| match table.replica_identity {
        'f' => version >= GENERATED_MUST_BE_PUBLISHED,
        _ => standing.identity.contains(column),
    };
    let column = standing.generated.iter().find(of_identity)?;
    let message = match version >= GENERATED_MUST_BE_PUBLISHED {
        true => "which is not published: every UPDATE and DELETE on it would fail",
        false => "whose values are not sent: a DELETE would not say which row it deleted",
    };
    Some(unfit(
        name,
        "a-generated-column-in-the-replica-identity",
        format!(
            "the replica identity of {name} has the generated column {}, {message}",
            Identifier(column)
        ),
        format!(
            "ALTER TABLE {name} REPLICA IDENTITY USING INDEX ... with an index of plain columns, or leave it out"
        ),
    ))
}

/// The statements that change each of these tables.
fn for_each(tables: &[&TableName], change: &str) -> String {
    let statements: Vec<String> = tables
        .iter()
        .map(|name| format!("ALTER TABLE {name} {change};"))
        .collect();
    statements.join(" ")
}

/// Partitions whose changes do not come, or come with other values than the table's replica identity says.
fn partitions(table: &SourceTable, standing: &Standing) -> Vec<Finding> {
    let name = &table.name;
    let named = |which: &dyn Fn(&&catalog::Partition) -> bool| -> Vec<&TableName> {
        let found = standing.partitions.iter().filter(|leaf| which(leaf));
        found.map(|leaf| &leaf.name).collect()
    };
    let list = |names: &[&TableName]| -> String {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        names.join(", ")
    };
    let mut findings = Vec::new();
    let silent = named(&|leaf| leaf.kind != 'r' || leaf.persistence != 'p');
    if !silent.is_empty() {
        let unlogged = named(&|leaf| leaf.kind == 'r' && leaf.persistence != 'p');
        findings.push(unfit(
            name,
            "partitions-that-are-not-in-the-wal",
            format!(
                "partitions of {name} are unlogged or foreign, so that their changes are not in the WAL: {}",
                list(&silent)
            ),
            format!("{} -- or detach them", for_each(&unlogged, "SET LOGGED")).trim_start().to_owned(),
        ));
    }
    // Another identity than the table's is no reason: what it leaves out is named, and the stream warns of it.
    let without = named(&|leaf| {
        leaf.replica_identity == 'n' || (leaf.replica_identity != 'f' && leaf.identity.is_empty())
    });
    if !without.is_empty() {
        findings.push(unfit(
            name,
            "partitions-without-replica-identity",
            format!(
                "partitions of {name} have no replica identity, so that every UPDATE and DELETE on them would fail: {}",
                list(&without)
            ),
            format!("{} -- or ADD PRIMARY KEY", for_each(&without, "REPLICA IDENTITY FULL")),
        ));
    }
    findings
}

fn excluded(table: &Table, found: &SourceTable) -> Vec<Finding> {
    let lacking = table
        .exclude_columns
        .iter()
        .filter(|excluded| !found.has(excluded));
    let finding = |excluded: &String| {
        let what = format!(
            "exclude_columns of {} names {excluded}, which it does not have",
            table.source
        );
        let fault = Fault::halt(Exit::Config, what).remedy("correct exclude_columns");
        Finding::error(&table.source, "no-such-column", fault)
    };
    lacking.map(finding).collect()
}
