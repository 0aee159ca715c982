//! What the source must be like.

use tokio_postgres::Client;

use crate::config::Table;
use crate::fault::{Exit, Fault, Result};
use crate::schema::{SourceTable, catalog};
use crate::server::Side;

/// The oldest version whose protocol is read: 14.
const OLDEST: i32 = 140_000;

/// Checks version, `wal_level` and the role's attributes.
///
/// # Errors
/// Exit 78 for the server's configuration, 77 for a missing attribute.
pub(super) async fn check(source: &Client) -> Result<()> {
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
    Ok(())
}

/// Looks a configured table up and refuses what cannot be captured.
///
/// # Errors
/// Exit 78 when there is no such table, 65 when its changes cannot be recorded.
pub(super) async fn source_table(source: &Client, table: &Table) -> Result<SourceTable> {
    let name = &table.source;
    let found = catalog::source_table(source, name)
        .await
        .map_err(Side::Source.failed("could not describe a table"))?;
    let Some((found, standing)) = found else {
        return Err(Fault::halt(Exit::Config, format!("the source has no table {name}"))
            .remedy("correct [[table]] source (names are schema.table, quoted where they have capitals)"));
    };
    let unfit = |anchor: &'static str, message: String, remedy: String| {
        let fault = Fault::halt(Exit::HistoryWouldBeWrong, message);
        Err(fault.remedy(remedy).see(anchor))
    };
    if !matches!(found.kind, 'r' | 'p') {
        return unfit(
            "not-a-table",
            format!(
                "{name} is not a table: views, foreign tables and sequences have no changes to follow"
            ),
            "name the table beneath it".to_owned(),
        );
    }
    match standing.persistence {
        'p' => {}
        _ => {
            return unfit(
                "an-unlogged-table",
                format!("{name} is unlogged or temporary, so that its changes are not in the WAL"),
                format!("ALTER TABLE {name} SET LOGGED, or leave it out"),
            );
        }
    }
    if let Some(root) = standing.partition_of {
        return unfit(
            "a-partition",
            format!(
                "{name} is a partition of {root}, whose changes are published as those of {root}"
            ),
            format!("capture {root} instead"),
        );
    }
    if found.key.is_empty() || found.replica_identity == 'n' {
        return unfit(
            "no-replica-identity",
            format!(
                "{name} has no replica identity: publishing it would make every UPDATE and DELETE on it fail"
            ),
            format!(
                "ALTER TABLE {name} ADD PRIMARY KEY (...), or ALTER TABLE {name} REPLICA IDENTITY FULL"
            ),
        );
    }
    if !standing.odd_partitions.is_empty() {
        return unfit(
"partitions-with-another-replica-identity",
            format!(
                "partitions of {name} have another replica identity than it, or none: {}",
                standing.odd_partitions.join(", ")
            ),
            "give every partition the replica identity of the partitioned table (ALTER TABLE ... REPLICA \
             IDENTITY ...)"
                .to_owned(),
        );
    }
    check_excluded(table, &found)?;
    Ok(found)
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
