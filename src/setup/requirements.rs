//! What the source must be like.

use tokio_postgres::Client;

use crate::config::{Config, Table};
use crate::fault::{Exit, Fault, Result};
use crate::schema::catalog::{self, Standing};
use crate::schema::{Identifier, SourceTable, TableName};
use crate::server::Side;

/// The oldest version whose protocol is read: 14.
const OLDEST: i32 = 140_000;
/// From 18 on, UPDATE and DELETE fail where a replica identity has a generated column that is not published.
const GENERATED_MUST_BE_PUBLISHED: i32 = 180_000;

/// Checks version, `wal_level` and the role's attributes; returns `server_version_num`.
///
/// # Errors
/// Exit 78 for the server's configuration, 77 for a missing attribute.
pub(super) async fn check(source: &Client) -> Result<i32> {
    let row = source
        .query_one(
            "SELECT current_setting('server_version_num')::int, current_setting('server_version'), \
                    current_setting('wal_level'), current_setting('max_replication_slots')::int, \
                    current_setting('max_wal_senders')::int, \
                    (SELECT rolreplication OR rolsuper FROM pg_catalog.pg_roles \
                      WHERE rolname = current_user), \
                    current_user::text",
            &[],
        )
        .await
        .map_err(Side::Source.failed("could not show its settings"))?;
    let halt =
        |message: String, remedy: &str| Err(Fault::halt(Exit::Config, message).remedy(remedy));
    if row.get::<_, i32>(0) < OLDEST {
        let version: &str = row.get(1);
        return halt(
            format!("the source is PostgreSQL {version}, older than 14"),
            "follow a server of version 14 or later",
        );
    }
    let wal_level: &str = row.get(2);
    if wal_level != "logical" {
        return halt(
            format!("the source has wal_level = {wal_level}, which does not carry row changes"),
            "ALTER SYSTEM SET wal_level = logical; then restart the source",
        );
    }
    if row.get::<_, i32>(3) == 0 || row.get::<_, i32>(4) == 0 {
        return halt(
            "the source has max_replication_slots or max_wal_senders = 0".to_owned(),
            "ALTER SYSTEM SET max_replication_slots = 10; ALTER SYSTEM SET max_wal_senders = 10; then restart \
             the source",
        );
    }
    if !row.get::<_, bool>(5) {
        let role: &str = row.get(6);
        return Err(Fault::halt(
            Exit::NoPermission,
            format!("the role {role} has no REPLICATION attribute on the source"),
        )
        .remedy(format!("ALTER ROLE {role} REPLICATION")));
    }
    Ok(row.get(0))
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
    let names: Vec<&TableName> = config.tables.iter().map(|table| &table.source).collect();
    let found = catalog::source_tables(source, &config.source.publication, &names, &[]);
    let found = found
        .await
        .map_err(Side::Source.failed("could not describe its tables"))?;
    let mut tables = Vec::with_capacity(names.len());
    for table in &config.tables {
        let Some((source, standing)) = found.named(&table.source) else {
            return Err(Fault::halt(
                Exit::Config,
                format!("the source has no table {}", table.source),
            )
            .remedy("correct [[table]] source (names are schema.table, quoted where they have capitals)"));
        };
        can_be_followed(source, standing, version)?;
        // Later, such a column was dropped.
        if !table.by_pattern && !table.followed {
            check_excluded(table, source)?;
        }
        tables.push(source.clone());
    }
    Ok(tables)
}

fn unfit(anchor: &'static str, message: String, remedy: String) -> Result<()> {
    let fault = Fault::halt(Exit::HistoryWouldBeWrong, message);
    Err(fault.remedy(remedy).see(anchor))
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
    let name = &table.name;
    if !matches!(table.kind, 'r' | 'p') {
        return unfit(
            "not-a-table",
            format!(
                "{name} is not a table: views, foreign tables and sequences have no changes to follow"
            ),
            "name the table beneath it".to_owned(),
        );
    }
    if standing.persistence != 'p' {
        return unfit(
            "an-unlogged-table",
            format!("{name} is unlogged or temporary, so that its changes are not in the WAL"),
            format!("ALTER TABLE {name} SET LOGGED, or leave it out"),
        );
    }
    if let Some(root) = &standing.partition_of {
        return unfit(
            "a-partition",
            format!(
                "{name} is a partition of {root}, whose changes are published as those of {root}"
            ),
            format!("capture {root} instead"),
        );
    }
    if standing.identity.is_empty() && table.replica_identity != 'f'
        || table.replica_identity == 'n'
    {
        return unfit(
            "no-replica-identity",
            format!(
                "{name} has no replica identity: publishing it would make every UPDATE and DELETE on it fail"
            ),
            format!(
                "ALTER TABLE {name} ADD PRIMARY KEY (...), or ALTER TABLE {name} REPLICA IDENTITY FULL; a DEFERRABLE \
                 key is no replica identity"
            ),
        );
    }
    check_generated(table, standing, version)?;
    check_partitions(table, standing)
}

/// Generated columns are not sent, unless the publication says so, and cannot identify a row.
fn check_generated(table: &SourceTable, standing: &Standing, version: i32) -> Result<()> {
    let name = &table.name;
    let of_identity = |column: &&String| match table.replica_identity {
        'f' => version >= GENERATED_MUST_BE_PUBLISHED,
        _ => standing.identity.contains(column),
    };
    let Some(column) = standing.generated.iter().find(of_identity) else {
        return Ok(());
    };
    let message = match version >= GENERATED_MUST_BE_PUBLISHED {
        true => "which is not published: every UPDATE and DELETE on it would fail",
        false => "whose values are not sent: a DELETE would not say which row it deleted",
    };
    unfit(
        "a-generated-column-in-the-replica-identity",
        format!(
            "the replica identity of {name} has the generated column {}, {message}",
            Identifier(column)
        ),
        format!(
            "ALTER TABLE {name} REPLICA IDENTITY USING INDEX ... with an index of plain columns, or leave it out"
        ),
    )
}

/// Refuses partitions whose changes do not come, or come with other values than the table's replica identity says.
fn check_partitions(table: &SourceTable, standing: &Standing) -> Result<()> {
    let name = &table.name;
    let named = |which: &dyn Fn(&&catalog::Partition) -> bool| -> Vec<String> {
        let found = standing.partitions.iter().filter(|leaf| which(leaf));
        found.map(|leaf| leaf.name.to_string()).collect()
    };
    let silent = named(&|leaf| leaf.kind != 'r' || leaf.persistence != 'p');
    if !silent.is_empty() {
        return unfit(
            "partitions-that-are-not-in-the-wal",
            format!(
                "partitions of {name} are unlogged or foreign, so that their changes are not in the WAL: {}",
                silent.join(", ")
            ),
            "ALTER TABLE ... SET LOGGED, or detach them".to_owned(),
        );
    }
    // Another identity than the table's is no reason: what it leaves out is named, and the stream warns of it.
    let without = named(&|leaf| {
        leaf.replica_identity == 'n' || (leaf.replica_identity != 'f' && leaf.identity.is_empty())
    });
    if !without.is_empty() {
        return unfit(
            "partitions-without-replica-identity",
            format!(
                "partitions of {name} have no replica identity, so that every UPDATE and DELETE on them would fail: {}",
                without.join(", ")
            ),
            "ALTER TABLE ... ADD PRIMARY KEY (...), or ALTER TABLE ... REPLICA IDENTITY FULL"
                .to_owned(),
        );
    }
    Ok(())
}

fn check_excluded(table: &Table, found: &SourceTable) -> Result<()> {
    for excluded in &table.exclude_columns {
        if !found.columns.iter().any(|column| column.name == *excluded) {
            return Err(Fault::halt(
                Exit::Config,
                format!(
                    "exclude_columns of {} names {excluded}, which it does not have",
                    table.source
                ),
            )
            .remedy("correct exclude_columns"));
        }
    }
    Ok(())
}
