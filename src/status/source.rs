//! What the source says: one statement, and a second one for temporary files that this role may see.

use tokio_postgres::{Client, Row};

use super::lag::Micros;
use super::{OldTransaction, PublicationStatus, SlotStatus, SnapshotHeld, Spill};
use crate::config::Config;
use crate::fault::Result;
use crate::lsn::Lsn;
use crate::server::Side;

/// So much WAL may be on its way to the daemon where its source has sent everything, as far as it can be seen.
const ON_ITS_WAY: i64 = 1024 * 1024;

/// The source at a moment.
#[derive(Clone, Debug)]
pub(crate) struct SourceSeen {
    pub(crate) now: Micros,
    pub(crate) version: String,
    pub(crate) role: &'static str,
    /// How far its WAL goes; on a standby, how far it was replayed.
    pub(crate) end: Lsn,
    /// Connections that this role may still open before the server, the database or the role has no more.
    pub(crate) connections_left: i32,
    /// The process that reads the slot waits for new WAL.
    pub(crate) has_sent_all: bool,
    pub(super) slot: Option<SlotStatus>,
    pub(super) publication: PublicationStatus,
    pub(super) held: Option<SnapshotHeld>,
    pub(super) oldest_transaction: Option<OldTransaction>,
    pub(super) spill: Option<Spill>,
}

impl SourceSeen {
    pub(crate) fn slot(&self) -> Option<&SlotStatus> {
        self.slot.as_ref()
    }
}

/// How many more connections a role can have here. Those of autovacuum count too: it is a lower limit.
pub(super) const CONNECTIONS_LEFT: &str = "
    (SELECT least(
        pg_catalog.current_setting('max_connections')::int
          - pg_catalog.current_setting('superuser_reserved_connections')::int
          - coalesce(pg_catalog.current_setting('reserved_connections', true)::int, 0) - b.whole,
        (SELECT nullif(r.rolconnlimit, -1) FROM pg_catalog.pg_roles r WHERE r.rolname = current_user) - b.of_role,
        (SELECT nullif(d.datconnlimit, -1) FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
          - b.of_database)
       FROM (SELECT pg_catalog.count(*)::int AS whole,
                    (pg_catalog.count(*) FILTER (WHERE a.usename = current_user))::int AS of_role,
                    (pg_catalog.count(*) FILTER (WHERE a.datname = pg_catalog.current_database()))::int AS of_database
               FROM pg_catalog.pg_stat_activity a WHERE a.datid IS NOT NULL) b)";

/// The present time in microseconds.
pub(super) const NOW: &str = "(extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint";

/// Columns that came with later versions are read through the row as a document.
fn statement() -> String {
    format!(
        "SELECT {NOW}, pg_catalog.split_part(pg_catalog.current_setting('server_version'), ' ', 1), w.standby, w.lsn, {CONNECTIONS_LEFT}, \
                coalesce(pg_catalog.lower(a.wait_event) = 'walsenderwaitforwal', false) \
                    OR coalesce(t.sent_lsn >= w.lsn - {ON_ITS_WAY}::numeric, false), \
                EXISTS (SELECT FROM pg_catalog.pg_publication p WHERE p.pubname = $2), \
                (SELECT pg_catalog.count(*) FROM pg_catalog.pg_publication_tables p WHERE p.pubname = $2), \
                h.sessions, h.seconds, h.age, o.pid, o.name, o.seconds, o.age, \
                x.spill_txns, x.spill_bytes, x.stream_txns, x.stream_bytes, x.total_txns, x.total_bytes, \
                pg_catalog.has_function_privilege('pg_catalog.pg_ls_tmpdir()', 'execute'), \
                s.active, s.active_pid, s.confirmed_flush_lsn, s.restart_lsn, s.wal_status, \
                coalesce(pg_catalog.to_jsonb(s) ->> 'invalidation_reason', \
                         CASE WHEN (pg_catalog.to_jsonb(s) ->> 'conflicting')::bool THEN 'conflicting' END), \
                (w.lsn - s.restart_lsn)::bigint, pg_catalog.age(s.catalog_xmin), s.safe_wal_size, \
                pg_catalog.current_setting('max_slot_wal_keep_size'), (pg_catalog.to_jsonb(s) ->> 'failover')::bool, \
                coalesce((pg_catalog.to_jsonb(s) ->> 'synced')::bool, false) AND w.standby \
           FROM (SELECT r.standby, CASE WHEN r.standby THEN pg_catalog.pg_last_wal_replay_lsn() \
                                        ELSE pg_catalog.pg_current_wal_lsn() END AS lsn \
                   FROM pg_catalog.pg_is_in_recovery() AS r (standby)) w \
           LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = $1 \
           LEFT JOIN pg_catalog.pg_stat_replication_slots x ON x.slot_name = s.slot_name \
           LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid \
           LEFT JOIN pg_catalog.pg_stat_replication t ON t.pid = s.active_pid \
           CROSS JOIN LATERAL ({HELD}) h \
           LEFT JOIN LATERAL ({OLDEST}) o ON true"
    )
}

/// Snapshots that sessions of this role and name hold.
const HELD: &str = "
    SELECT pg_catalog.count(*) AS sessions,
           pg_catalog.max(extract(epoch FROM pg_catalog.clock_timestamp() - b.xact_start))::float8 AS seconds,
           pg_catalog.max(pg_catalog.age(b.backend_xmin)) AS age
      FROM pg_catalog.pg_stat_activity b
     WHERE b.usename = current_user AND b.datname = pg_catalog.current_database() AND b.backend_xmin IS NOT NULL
       AND b.application_name = $3::text AND b.pid <> pg_catalog.pg_backend_pid()";

/// The oldest transaction that has a number: a slot keeps the WAL since its begin, whatever database it is in.
const OLDEST: &str = "
    SELECT u.* FROM (
        SELECT b.pid, b.application_name AS name,
               extract(epoch FROM pg_catalog.clock_timestamp() - b.xact_start)::float8 AS seconds,
               pg_catalog.age(b.backend_xid) AS age
          FROM pg_catalog.pg_stat_activity b
         WHERE b.backend_xid IS NOT NULL AND b.pid <> pg_catalog.pg_backend_pid()
         UNION ALL
        SELECT NULL, p.gid, extract(epoch FROM pg_catalog.clock_timestamp() - p.prepared)::float8,
               pg_catalog.age(p.transaction)
          FROM pg_catalog.pg_prepared_xacts p) u
     ORDER BY u.age DESC LIMIT 1";

pub(super) async fn see(client: &Client, config: &Config) -> Result<SourceSeen> {
    let (slot, publication) = (&config.source.slot, &config.source.publication);
    let name = config.source.connection.application_name();
    let row = client
        .query_one(&statement(), &[slot, publication, &name])
        .await
        .map_err(Side::Source.failed("could not show its replication slots"))?;
    let mut seen = SourceSeen {
        now: row.get(0),
        version: row.get(1),
        role: match row.get(2) {
            true => "standby",
            false => "primary",
        },
        end: row.get(3),
        connections_left: row.get(4),
        has_sent_all: row.get(5),
        publication: PublicationStatus {
            name: publication.clone(),
            exists: row.get(6),
            tables: row.get(7),
        },
        held: held(&row),
        oldest_transaction: oldest(&row),
        spill: spill(&row),
        slot: slot_status(&row),
    };
    if let Some(slot) = &mut seen.slot
        && let Some(pid) = slot.active_pid
        && row.get(21)
    {
        slot.temp_bytes = Some(temp_bytes(client, pid).await?);
    }
    Ok(seen)
}

fn held(row: &Row) -> Option<SnapshotHeld> {
    let (seconds, xmin_age): (Option<f64>, Option<i32>) = (row.get(9), row.get(10));
    Option::zip(seconds, xmin_age).map(|(seconds, xmin_age)| SnapshotHeld {
        sessions: row.get(8),
        seconds,
        xmin_age,
    })
}

fn oldest(row: &Row) -> Option<OldTransaction> {
    let xmin_age: Option<i32> = row.get(14);
    xmin_age.map(|xmin_age| OldTransaction {
        pid: row.get(11),
        application: row.get(12),
        seconds: row.get(13),
        xmin_age,
    })
}

fn spill(row: &Row) -> Option<Spill> {
    let spill_txns: Option<i64> = row.get(15);
    spill_txns.map(|spill_txns| Spill {
        spill_txns,
        spill_bytes: row.get(16),
        stream_txns: row.get(17),
        stream_bytes: row.get(18),
        total_txns: row.get(19),
        total_bytes: row.get(20),
    })
}

fn slot_status(row: &Row) -> Option<SlotStatus> {
    let active: Option<bool> = row.get(22);
    active.map(|active| SlotStatus {
        active,
        active_pid: row.get(23),
        confirmed_flush_lsn: row.get(24),
        restart_lsn: row.get(25),
        wal_status: row.get(26),
        invalidation_reason: row.get(27),
        current_wal_lsn: row.get(3),
        retained_bytes: row.get(28),
        catalog_xmin_age: row.get(29),
        temp_bytes: None,
        safe_wal_size: row.get(30),
        max_slot_wal_keep_size: row.get(31),
        failover: row.get(32),
        synced: row.get(33),
    })
}

/// The size of a process's temporary files in the default tablespace.
async fn temp_bytes(client: &Client, pid: i32) -> Result<i64> {
    let files = "SELECT coalesce(pg_catalog.sum(size), 0)::bigint FROM pg_catalog.pg_ls_tmpdir() \
        WHERE pg_catalog.starts_with(name, 'pgsql_tmp' || $1::int || '.')";
    let row = client.query_one(files, &[&pid]).await;
    let row = row.map_err(Side::Source.failed("could not show its temporary files"))?;
    Ok(row.get(0))
}
