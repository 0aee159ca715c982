//! What the target says: first who writes, which no lock holds up, then the checkpoint and the tables.

use std::collections::HashMap;
use std::time::Duration;

use tokio_postgres::{Client, Row};

use super::lag::Micros;
use super::note::{self, Note};
use super::source::CONNECTIONS_LEFT;
use super::statement::shown;
use super::{CheckpointStatus, Daemon, GapStatus, Holder, SnapshotStatus, TableStatus, Waits};
use crate::config::{Config, TableName};
use crate::fault::{Fault, Result};
use crate::history::lock;
use crate::lsn::Lsn;
use crate::server::Side;

/// A history that is locked is waited for so long while the first one is counted, and then hardly.
const COUNT_WAIT: Duration = Duration::from_secs(3);
const COUNT_WAIT_LATER: Duration = Duration::from_millis(100);

/// The target at a moment.
#[derive(Clone, Debug)]
pub(crate) struct TargetSeen {
    pub(crate) version: String,
    /// See [`super::source::SourceSeen`].
    pub(crate) connections_left: i32,
    pub(super) writer: Option<Writer>,
    pub(super) waits: Option<Waits>,
    pub(super) note: Option<Note>,
    /// What the tables of the control schema say.
    pub(super) recorded: Result<Recorded, Unread>,
}

/// Why they could not be read in time.
#[derive(Clone, Debug)]
pub(super) struct Unread {
    pub(super) text: String,
    /// Another session keeps one locked.
    pub(super) locked: bool,
}

/// The session that writes for the slot.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    pub(super) daemon: Daemon,
    /// It has nothing to write at the moment.
    pub(super) is_idle: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Recorded {
    pub(super) checkpoint: Option<CheckpointStatus>,
    /// The checkpoint's commit time, and its age by the target's clock.
    pub(super) commit: Option<Micros>,
    /// Where everything was whole, and a time by the source's clock before which everything committed that ends before it.
    pub(super) whole: Option<(Lsn, Micros)>,
    pub(super) tables: Vec<TableStatus>,
}

/// Which tables are shown.
#[derive(Clone, Debug)]
pub(crate) struct Tables<'a> {
    pub(crate) config: &'a Config,
    /// What patterns mean, where nothing is recorded of it.
    pub(crate) meant: &'a [(TableName, TableName)],
}

pub(super) async fn see(client: &Client, tables: &Tables<'_>) -> Result<TargetSeen> {
    let slot = &tables.config.source.slot;
    let failed = Side::Target.failed("could not show its sessions");
    let row = client
        .query_one(&who(slot), &[&note::head(slot)])
        .await
        .map_err(failed)?;
    let pid: Option<i32> = row.get(2);
    let waits = match pid {
        Some(pid) if row.get::<_, Option<bool>>(8) == Some(true) => waits(client, pid).await?,
        _ => None,
    };
    let known: Vec<String> = row.get(9);
    let statement: Option<String> = row.get(10);
    let recorded = recorded(client, &known, tables).await;
    Ok(TargetSeen {
        version: row.get(0),
        connections_left: row.get(1),
        writer: pid.map(|pid| writer(pid, &row)),
        waits,
        note: statement.and_then(|statement| Note::read(&statement, slot)),
        recorded: match recorded {
            Ok(recorded) => Ok(recorded),
            Err(fault) => Err(why(client, fault).await),
        },
    })
}

/// Who writes for the slot, what the daemon has left to read, and which tables the control schema has: catalogs and what is in
/// the server's memory, so no lock holds it up. `$1`: how a note begins.
fn who(slot: &str) -> String {
    let held = lock::held(slot);
    format!(
        "SELECT pg_catalog.split_part(pg_catalog.current_setting('server_version'), ' ', 1), {CONNECTIONS_LEFT}, w.pid, \
                pg_catalog.host(a.client_addr), (extract(epoch FROM a.backend_start) * 1000000)::bigint, \
                a.state, a.wait_event_type = 'Client', \
                extract(epoch FROM pg_catalog.clock_timestamp() - a.state_change)::float8, \
                a.wait_event_type = 'Lock', \
                ARRAY(SELECT c.relname::text FROM pg_catalog.pg_class c \
                        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'waltrail'), \
                (SELECT b.query FROM pg_catalog.pg_stat_activity b \
                  WHERE b.usename = current_user AND b.datname = pg_catalog.current_database() \
                    AND pg_catalog.starts_with(b.query, $1::text) ORDER BY b.query_start DESC LIMIT 1) \
           FROM (SELECT 1) one \
           LEFT JOIN (SELECT pid FROM {held} LIMIT 1) w ON true \
           LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = w.pid"
    )
}

fn writer(pid: i32, row: &Row) -> Writer {
    let state: Option<&str> = row.get(5);
    // A COPY waits for its client while rows come.
    let silent = match (state, row.get::<_, Option<bool>>(6)) {
        (Some("idle"), Some(true)) => row.get(7),
        _ => None,
    };
    Writer {
        daemon: Daemon {
            pid,
            host: row.get(3),
            since: row.get::<_, Option<Micros>>(4).map(super::rfc3339),
            silent_seconds: silent,
        },
        // Another role's session says nothing.
        is_idle: matches!(state, Some("idle") | None),
    }
}

/// The lock that a session waits for, and who holds it. The name of a relation is whole, since no schema is searched.
async fn waits(client: &Client, pid: i32) -> Result<Option<Waits>> {
    let locks = "
        SELECT extract(epoch FROM pg_catalog.clock_timestamp() - l.waitstart)::float8,
               CASE l.locktype WHEN 'relation' THEN l.relation::regclass::text WHEN 'transactionid' THEN 'a row'
                               WHEN 'tuple' THEN l.relation::regclass::text ELSE l.locktype END,
               b.pid, a.application_name, a.query
          FROM pg_catalog.pg_locks l
          LEFT JOIN LATERAL (SELECT DISTINCT u.pid
                               FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids(l.pid)) AS u (pid)) b ON true
          LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid AND b.pid <> 0
         WHERE l.pid = $1 AND NOT l.granted ORDER BY b.pid";
    let rows = client.query(locks, &[&pid]).await;
    let rows = rows.map_err(Side::Target.failed("could not show what a session waits for"))?;
    let Some(first) = rows.first() else {
        return Ok(None);
    };
    Ok(Some(Waits {
        seconds: first.get::<_, Option<f64>>(0).unwrap_or_default(),
        lock: first.get(1),
        held_by: rows.iter().filter_map(|row| holder(row, 2)).collect(),
    }))
}

/// From the columns pid, application_name and query, the first of which is this.
fn holder(row: &Row, at: usize) -> Option<Holder> {
    let pid: Option<i32> = row.get(at);
    let statement: Option<&str> = row.get(at + 2);
    pid.map(|pid| Holder {
        pid,
        application: row.get(at + 1),
        statement: statement.and_then(shown),
    })
}

/// Why the control schema could not be read: for a lock, who holds it.
async fn why(client: &Client, fault: Fault) -> Unread {
    let holders = "
        SELECT l.relation::regclass::text, l.pid, a.application_name, a.query
          FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_class c ON c.oid = l.relation
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
         WHERE n.nspname = 'waltrail' AND c.relkind = 'r' AND l.granted AND l.mode = 'AccessExclusiveLock'
           AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
         ORDER BY l.pid LIMIT 1";
    let found = client.query_opt(holders, &[]).await;
    match found.ok().flatten() {
        Some(row) => {
            let holder = holder(&row, 1).map(|holder| holder.to_string());
            let holder = holder.unwrap_or_else(|| "a prepared transaction".to_owned());
            let table: &str = row.get(0);
            Unread {
                text: format!("waiting for a lock on {table}, held by {holder}"),
                locked: true,
            }
        }
        None => Unread {
            text: fault.to_string(),
            locked: false,
        },
    }
}

async fn recorded(client: &Client, known: &[String], tables: &Tables<'_>) -> Result<Recorded> {
    let has = |name: &str| known.iter().any(|known| known == name);
    let slot = &tables.config.source.slot;
    // Sent together.
    let (checkpoint, rows, gaps) = tokio::try_join!(
        checkpoint(client, slot, has("checkpoint"), has("watched")),
        states(client, tables, &has),
        gaps(client, slot, has("gap")),
    )?;
    let mut gaps = gaps;
    let mut found = Vec::with_capacity(rows.len());
    for mut table in rows {
        table.gap = gaps.remove(&table.history);
        found.push(table);
    }
    Ok(Recorded {
        tables: found,
        ..checkpoint
    })
}

async fn checkpoint(client: &Client, slot: &str, known: bool, watched: bool) -> Result<Recorded> {
    if !known {
        return Ok(Recorded::default());
    }
    // A column that came with a later version is read through the row as a document.
    let whole = match watched {
        true => {
            "LEFT JOIN (SELECT v.slot, v.whole_lsn, \
                        (pg_catalog.to_jsonb(v) ->> 'whole_time')::timestamptz AS whole_time \
                   FROM waltrail.watched v) w ON w.slot = c.slot"
        }
        false => {
            "LEFT JOIN (SELECT NULL::text AS slot, NULL::pg_lsn AS whole_lsn, NULL::timestamptz AS whole_time) w ON false"
        }
    };
    let query = format!(
        "SELECT c.end_lsn, c.reported_lsn, c.commit_timestamp::text, c.updated_at::text, \
                extract(epoch FROM pg_catalog.clock_timestamp() - c.commit_timestamp)::float8, \
                (extract(epoch FROM c.commit_timestamp) * 1000000)::bigint, \
                w.whole_lsn, (extract(epoch FROM w.whole_time) * 1000000)::bigint \
           FROM waltrail.checkpoint c {whole} WHERE c.slot = $1"
    );
    let row = client.query_opt(&query, &[&slot]).await;
    let row = row.map_err(Side::Target.failed("could not show its checkpoint"))?;
    let Some(row) = row else {
        return Ok(Recorded::default());
    };
    Ok(Recorded {
        checkpoint: Some(CheckpointStatus {
            end_lsn: row.get(0),
            reported_lsn: row.get(1),
            commit_timestamp: row.get(2),
            updated_at: row.get(3),
            commit_age_seconds: row.get(4),
        }),
        commit: row.get(5),
        whole: Option::zip(row.get(6), row.get(7)),
        tables: Vec::new(),
    })
}

/// The rows of a history as the server's statistics have them, with all its partitions, which are not locked. Nothing is removed
/// from a history: rows added since the last start are known at once, all of them since the last ANALYZE. A partitioned table
/// has no rows of its own.
const ESTIMATE: &str = "
    WITH RECURSIVE part (oid) AS (
        SELECT c.oid
         UNION ALL
        SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN part ON i.inhparent = part.oid)
    SELECT coalesce(pg_catalog.sum(greatest(pg_catalog.pg_stat_get_live_tuples(p.oid), p.reltuples::bigint, 0)), 0)::bigint
             AS rows
      FROM part JOIN pg_catalog.pg_class p ON p.oid = part.oid WHERE p.relkind <> 'p'";

/// Every table with its state and the estimate of its rows.
async fn states(
    client: &Client,
    tables: &Tables<'_>,
    has: &impl Fn(&str) -> bool,
) -> Result<Vec<TableStatus>> {
    let config = tables.config;
    let named = config.tables.iter();
    let named = named.map(|table| (table.history.to_string(), table.source.to_string()));
    let meant = tables.meant.iter();
    let meant = meant.map(|(source, history)| (history.to_string(), source.to_string()));
    let (histories, sources): (Vec<String>, Vec<String>) = named.chain(meant).unzip();
    // What patterns mean is recorded.
    let recorded = match has("followed") && !config.patterns.is_empty() {
        true => {
            "UNION ALL SELECT f.history, f.source, NULL FROM waltrail.followed f \
              WHERE f.slot = $1::text AND f.history <> ALL ($2::text[])"
        }
        false => "",
    };
    let (snapshot, held) = (has("snapshot"), has("held"));
    let snapshot = match snapshot && held {
        true => {
            "LEFT JOIN (SELECT s.*, CASE WHEN s.state = 'copying' AND s.rows > 0 THEN s.rows / greatest(extract( \
                            epoch FROM pg_catalog.clock_timestamp() - s.started_at), 0.001) END::float8 AS pace \
                          FROM waltrail.snapshot s WHERE s.slot = $1::text) s ON s.history = h.history \
             LEFT JOIN (SELECT d.history, pg_catalog.sum(pg_catalog.octet_length(d.rows))::bigint AS bytes \
                          FROM waltrail.held d WHERE d.slot = $1::text GROUP BY d.history) d ON d.history = h.history"
        }
        false => {
            "LEFT JOIN (SELECT NULL::text AS state, NULL::pg_lsn AS consistent_point, 0::bigint AS rows, \
                               0::bigint AS bytes, 0::bigint AS rows_estimated, 0::float8 AS pace \
                         WHERE $1::text IS NULL) s ON true \
             LEFT JOIN (SELECT 0::bigint AS bytes) d ON false"
        }
    };
    let query = format!(
        "SELECT h.history, h.source, e.rows, s.state, nullif(s.consistent_point, '0/0'), s.rows, s.bytes, \
                nullif(s.rows_estimated, 0), s.pace, coalesce(d.bytes, 0) \
           FROM (SELECT t.history, t.source, t.n \
                   FROM ROWS FROM (pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[])) \
                        WITH ORDINALITY AS t (history, source, n) {recorded}) h \
           {snapshot} \
           LEFT JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(h.history) \
           LEFT JOIN LATERAL ({ESTIMATE}) e ON c.oid IS NOT NULL \
          ORDER BY h.n NULLS LAST, h.source"
    );
    let rows = client
        .query(&query, &[&config.source.slot, &histories, &sources])
        .await
        .map_err(Side::Target.failed("could not show the state of the tables"))?;
    let by_pattern = |history: &str| {
        let history: Option<TableName> = history.parse().ok();
        let mut patterns = config.patterns.iter();
        history.is_some_and(|history| patterns.any(|pattern| pattern.has_history(&history)))
    };
    let found = rows.iter().map(table);
    let is_shown =
        |table: &TableStatus| histories.contains(&table.history) || by_pattern(&table.history);
    Ok(found.filter(is_shown).collect())
}

fn table(row: &Row) -> TableStatus {
    let state: Option<String> = row.get(3);
    TableStatus {
        source: row.get(1),
        history: row.get(0),
        rows: row.get(2),
        rows_error: None,
        snapshot: state.map(|state| snapshot(state, row)),
        gap: None,
    }
}

fn snapshot(state: String, row: &Row) -> SnapshotStatus {
    let (rows, estimated): (i64, Option<i64>) = (row.get(5), row.get(7));
    let rows_per_second: Option<f64> = row.get(8);
    let left = estimated.map(|estimated| (estimated - rows).max(0) as f64);
    SnapshotStatus {
        state,
        consistent_point: row.get(4),
        rows,
        bytes: row.get(6),
        rows_estimated: estimated,
        rows_per_second,
        seconds_left: rows_per_second.and_then(|rate| Some(left? / rate)),
        held_bytes: row.get(9),
        still_seconds: None,
    }
}

/// The last gap of each history.
async fn gaps(client: &Client, slot: &str, known: bool) -> Result<HashMap<String, GapStatus>> {
    if !known {
        return Ok(HashMap::new());
    }
    let last = "SELECT DISTINCT ON (history) history, from_lsn, to_lsn, reason, found_at::text, accepted_at::text \
        FROM waltrail.gap WHERE slot = $1 ORDER BY history, id DESC";
    let rows = client.query(last, &[&slot]).await;
    let rows = rows.map_err(Side::Target.failed("could not show the gaps of the history"))?;
    let gap = |row: &Row| GapStatus {
        from_lsn: row.get(1),
        to_lsn: row.get(2),
        reason: row.get(3),
        found_at: row.get(4),
        accepted_at: row.get(5),
    };
    Ok(rows.iter().map(|row| (row.get(0), gap(row))).collect())
}

/// Counts the rows of each history, as long as that takes. One that is locked is left out.
pub(super) async fn count(client: &Client, tables: &mut [TableStatus]) {
    let mut wait = COUNT_WAIT;
    for table in tables.iter_mut().filter(|table| table.rows.is_some()) {
        // Text of the catalog's: a name that was parsed and quoted.
        let count = format!(
            "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = {}",
            wait.as_millis()
        );
        let counted = async {
            client.batch_execute(&count).await?;
            let count = format!("SELECT pg_catalog.count(*) FROM {}", table.history);
            client.query_one(&count, &[]).await
        };
        match counted.await {
            Ok(row) => table.rows = Some(row.get(0)),
            Err(error) => {
                wait = COUNT_WAIT_LATER;
                let fault = Side::Target.failed("could not count its rows")(error);
                (table.rows, table.rows_error) = (None, Some(fault.to_string()));
            }
        }
        // Where it fails, so does the next statement.
        let _ = client.batch_execute("ROLLBACK").await;
    }
}
