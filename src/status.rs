//! `waltrail status`: where the slot, the checkpoint and the history stand. Reads only.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde::Serialize;
use tokio_postgres::Client;

use crate::config::Config;
use crate::fault::Result;
use crate::lsn::Lsn;
use crate::printable::{TEXT_MAX, printable};
use crate::server::{self, Side};
use crate::setup;

/// What `status` shows; the field names of `--json` are stable.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    pub slot: String,
    /// The slot as the source has it; none when there is none.
    pub source: Option<SlotStatus>,
    /// The checkpoint as the target has it; none when there is none.
    pub checkpoint: Option<CheckpointStatus>,
    /// What sessions of this role and name hold on the source beside the slot; none: nothing.
    pub source_snapshot: Option<SnapshotHeld>,
    /// WAL between the checkpoint (or what was confirmed since) and the source's end.
    pub lag_bytes: Option<i64>,
    /// Seconds since the commit of the last transaction in the history while newer WAL is unread, by the
    /// source's clock; 0 when nothing is unread.
    pub lag_seconds: Option<f64>,
    /// The rows of the histories were counted, not estimated.
    pub exact: bool,
    pub tables: Vec<TableStatus>,
}

#[derive(Debug, Serialize)]
pub(crate) struct SlotStatus {
    pub active: bool,
    pub active_pid: Option<i32>,
    pub confirmed_flush_lsn: Option<Lsn>,
    pub restart_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    pub current_wal_lsn: Lsn,
    pub retained_bytes: Option<i64>,
    /// The source's VACUUM keeps what was removed from the catalogs in so many transactions.
    pub catalog_xmin_age: Option<i32>,
    /// The temporary files of the process that reads the slot: a backlog that was decoded. None where the role may not see them.
    pub temp_bytes: Option<i64>,
    /// How much more may be written before the slot is lost; none when nothing limits it.
    pub safe_wal_size: Option<i64>,
    /// What limits the WAL kept for slots.
    pub max_slot_wal_keep_size: String,
    /// It survives a fail-over; none before PostgreSQL 17.
    pub failover: Option<bool>,
    /// The source is a standby, and this is its copy of the primary's slot.
    pub synced: bool,
}

/// Snapshots keep the source's VACUUM from removing rows.
#[derive(Debug, Serialize)]
pub(crate) struct SnapshotHeld {
    pub sessions: i64,
    /// The age of the oldest one, in seconds and in transactions.
    pub seconds: f64,
    pub xmin_age: i32,
}

/// How far the source's WAL goes; on a standby, how far it was replayed.
const WAL_END: &str = "CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
    ELSE pg_catalog.pg_current_wal_lsn() END";

#[derive(Debug, Serialize)]
pub(crate) struct CheckpointStatus {
    /// The end of the last transaction in the history.
    pub end_lsn: Option<Lsn>,
    /// The highest position that may have been confirmed.
    pub reported_lsn: Option<Lsn>,
    pub commit_timestamp: Option<String>,
    pub updated_at: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct TableStatus {
    pub source: String,
    pub history: String,
    /// Rows of the history; none when it does not exist.
    pub rows: Option<i64>,
    /// How far the recording of its existing rows is; none before the first start.
    pub snapshot: Option<SnapshotStatus>,
    /// Its last gap, if it has one.
    pub gap: Option<GapStatus>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct GapStatus {
    pub from_lsn: Lsn,
    pub to_lsn: Lsn,
    pub reason: String,
    pub found_at: String,
    /// None: waltrail does not start until it is accepted.
    pub accepted_at: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct SnapshotStatus {
    /// `waiting`, `copying`, `copied` (changes that were held are being added) or `done`.
    pub state: String,
    /// What committed before it is in the rows; none when existing rows are not recorded.
    pub consistent_point: Option<Lsn>,
    pub rows: i64,
    /// Bytes of them, as they were sent.
    pub bytes: i64,
    pub rows_estimated: Option<i64>,
    /// Rows a second, while it is copied.
    pub rows_per_second: Option<f64>,
    pub seconds_left: Option<f64>,
    /// Bytes of changes that are held until it is done.
    pub held_bytes: i64,
}

/// Reads both servers. With `exact` the rows of each history are counted.
pub(crate) async fn read(config: &Config, exact: bool) -> Result<Status> {
    let source = server::sql(&config.source.connection, Side::Source).await?;
    let target = server::sql(&config.target, Side::Target).await?;
    let config = &setup::effective(config, &source, &target).await?;
    let slot = slot_status(&source, &config.source.slot).await?;
    let source_snapshot = snapshot_held(&source).await?;
    let checkpoint = checkpoint_status(&target, &config.source.slot).await?;
    let (lag_bytes, lag_seconds) = lag(&source, &checkpoint).await?;
    let mut gaps = gaps(&target, &config.source.slot).await?;
    let mut tables = Vec::with_capacity(config.tables.len());
    for table in &config.tables {
        let history = table.history.to_string();
        tables.push(TableStatus {
            source: table.source.to_string(),
            rows: rows(&target, &history, exact).await?,
            snapshot: snapshot_status(&target, &config.source.slot, &history).await?,
            gap: gaps.remove(&history),
            history,
        });
    }
    Ok(Status {
        slot: config.source.slot.clone(),
        source: slot,
        checkpoint,
        source_snapshot,
        lag_bytes,
        lag_seconds,
        exact,
        tables,
    })
}

async fn snapshot_held(source: &Client) -> Result<Option<SnapshotHeld>> {
    let held = "SELECT count(*), max(extract(epoch FROM clock_timestamp() - xact_start))::float8, max(age(backend_xmin)) \
        FROM pg_catalog.pg_stat_activity \
        WHERE usename = current_user AND datname = current_database() AND backend_xmin IS NOT NULL \
          AND application_name = current_setting('application_name') AND pid <> pg_backend_pid()";
    let row = source.query_one(held, &[]).await;
    let row = row.map_err(Side::Source.failed("could not show its sessions"))?;
    let (seconds, xmin_age): (Option<f64>, Option<i32>) = (row.get(1), row.get(2));
    Ok(
        Option::zip(seconds, xmin_age).map(|(seconds, xmin_age)| SnapshotHeld {
            sessions: row.get(0),
            seconds,
            xmin_age,
        }),
    )
}

/// The size of a process's temporary files in the default tablespace.
async fn temp_bytes(source: &Client, pid: i32) -> Result<Option<i64>> {
    let failed = Side::Source.failed("could not show its temporary files");
    let may = "SELECT has_function_privilege('pg_catalog.pg_ls_tmpdir()', 'execute')";
    if !source
        .query_one(may, &[])
        .await
        .map_err(failed)?
        .get::<_, bool>(0)
    {
        return Ok(None);
    }
    let files = "SELECT coalesce(sum(size), 0)::bigint FROM pg_catalog.pg_ls_tmpdir() \
        WHERE starts_with(name, 'pgsql_tmp' || $1::int || '.')";
    let row = source.query_one(files, &[&pid]).await;
    Ok(row.map_err(failed)?.get(0))
}

async fn slot_status(source: &Client, slot: &str) -> Result<Option<SlotStatus>> {
    let row = source
        .query_opt(
            &format!(
                "SELECT active, active_pid, confirmed_flush_lsn, restart_lsn, wal_status, \
                        {WAL_END}, ({WAL_END} - restart_lsn)::bigint, safe_wal_size, \
                        current_setting('max_slot_wal_keep_size'), (to_jsonb(s) ->> 'failover')::bool, \
                        coalesce((to_jsonb(s) ->> 'synced')::bool, false) AND pg_catalog.pg_is_in_recovery(), \
                        age(catalog_xmin) \
                   FROM pg_catalog.pg_replication_slots s WHERE slot_name = $1"
            ),
            &[&slot],
        )
        .await
        .map_err(Side::Source.failed("could not show its replication slots"))?;
    let Some(row) = row else { return Ok(None) };
    let active_pid: Option<i32> = row.get(1);
    let temp_bytes = match active_pid {
        Some(pid) => temp_bytes(source, pid).await?,
        None => None,
    };
    Ok(Some(SlotStatus {
        active: row.get(0),
        active_pid,
        temp_bytes,
        catalog_xmin_age: row.get(11),
        confirmed_flush_lsn: row.get(2),
        restart_lsn: row.get(3),
        wal_status: row.get(4),
        current_wal_lsn: row.get(5),
        retained_bytes: row.get(6),
        safe_wal_size: row.get(7),
        max_slot_wal_keep_size: row.get(8),
        failover: row.get(9),
        synced: row.get(10),
    }))
}

async fn checkpoint_status(target: &Client, slot: &str) -> Result<Option<CheckpointStatus>> {
    let failed = Side::Target.failed("could not show its checkpoint");
    let known = target
        .query_one("SELECT to_regclass('waltrail.checkpoint') IS NOT NULL", &[])
        .await;
    if !known.map_err(failed)?.get::<_, bool>(0) {
        return Ok(None);
    }
    let row = target
        .query_opt(
            "SELECT end_lsn, reported_lsn, commit_timestamp::text, updated_at::text \
               FROM waltrail.checkpoint WHERE slot = $1",
            &[&slot],
        )
        .await
        .map_err(failed)?;
    Ok(row.map(|row| CheckpointStatus {
        end_lsn: row.get(0),
        reported_lsn: row.get(1),
        commit_timestamp: row.get(2),
        updated_at: row.get(3),
    }))
}

async fn snapshot_status(
    target: &Client,
    slot: &str,
    history: &str,
) -> Result<Option<SnapshotStatus>> {
    let failed = Side::Target.failed("could not show the state of the snapshot");
    let known = target
        .query_one("SELECT to_regclass('waltrail.snapshot') IS NOT NULL", &[])
        .await;
    if !known.map_err(failed)?.get::<_, bool>(0) {
        return Ok(None);
    }
    let row = target
        .query_opt(
            "SELECT state, nullif(consistent_point, '0/0'), rows, bytes, nullif(rows_estimated, 0), \
                    CASE WHEN state = 'copying' AND rows > 0 THEN rows / greatest(extract( \
                         epoch FROM clock_timestamp() - started_at), 0.001) END::float8, \
                    (SELECT coalesce(sum(octet_length(h.rows)), 0)::bigint FROM waltrail.held h \
                      WHERE h.slot = s.slot AND h.history = s.history) \
               FROM waltrail.snapshot s WHERE slot = $1 AND history = $2",
            &[&slot, &history],
        )
        .await
        .map_err(failed)?;
    Ok(row.map(|row| {
        let (rows, estimated): (i64, Option<i64>) = (row.get(2), row.get(4));
        let rows_per_second: Option<f64> = row.get(5);
        let left = estimated.map(|estimated| (estimated - rows).max(0) as f64);
        SnapshotStatus {
            state: row.get(0),
            consistent_point: row.get(1),
            rows,
            bytes: row.get(3),
            rows_estimated: estimated,
            rows_per_second,
            seconds_left: rows_per_second.and_then(|rate| Some(left? / rate)),
            held_bytes: row.get(6),
        }
    }))
}

/// The last gap of each history.
async fn gaps(target: &Client, slot: &str) -> Result<HashMap<String, GapStatus>> {
    let failed = Side::Target.failed("could not show the gaps of the history");
    let known = "SELECT to_regclass('waltrail.gap') IS NOT NULL";
    let known = target.query_one(known, &[]).await.map_err(failed)?;
    if !known.get::<_, bool>(0) {
        return Ok(HashMap::new());
    }
    let last = "SELECT DISTINCT ON (history) history, from_lsn, to_lsn, reason, found_at::text, accepted_at::text \
        FROM waltrail.gap WHERE slot = $1 ORDER BY history, id DESC";
    let rows = target.query(last, &[&slot]).await.map_err(failed)?;
    let gap = |row: &tokio_postgres::Row| GapStatus {
        from_lsn: row.get(1),
        to_lsn: row.get(2),
        reason: row.get(3),
        found_at: row.get(4),
        accepted_at: row.get(5),
    };
    Ok(rows.iter().map(|row| (row.get(0), gap(row))).collect())
}

async fn lag(
    source: &Client,
    checkpoint: &Option<CheckpointStatus>,
) -> Result<(Option<i64>, Option<f64>)> {
    let Some(checkpoint) = checkpoint else {
        return Ok((None, None));
    };
    let row = source
        .query_one(
            &format!(
                "SELECT greatest(({WAL_END} - greatest($1::pg_lsn, $2::pg_lsn))::bigint, 0), \
                        extract(epoch FROM clock_timestamp() - $3::text::timestamptz)::float8"
            ),
            &[
                &checkpoint.end_lsn,
                &checkpoint.reported_lsn,
                &checkpoint.commit_timestamp,
            ],
        )
        .await
        .map_err(Side::Source.failed("could not show the end of its WAL"))?;
    let bytes: Option<i64> = row.get(0);
    let seconds: Option<f64> = row.get(1);
    Ok((bytes, if bytes == Some(0) { Some(0.0) } else { seconds }))
}

/// The rows of a history: counted, or as the server's statistics have them; none when it does not exist.
async fn rows(target: &Client, history: &str, exact: bool) -> Result<Option<i64>> {
    let failed = Side::Target.failed("could not count a history table");
    // Nothing is removed from a history: rows added since the last start are known at once, all of them since the last
    // ANALYZE. A partitioned table has no rows of its own.
    let estimate = "SELECT (SELECT coalesce(sum(greatest(pg_catalog.pg_stat_get_live_tuples(part.oid), \
                                                         part.reltuples::bigint, 0)), 0)::bigint \
                              FROM pg_catalog.pg_class part \
                             WHERE part.relkind <> 'p' AND (part.oid = history.oid \
                                OR part.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree(history.oid)))) \
        FROM pg_catalog.pg_class history WHERE history.oid = to_regclass($1)";
    let Some(row) = target
        .query_opt(estimate, &[&history])
        .await
        .map_err(failed)?
    else {
        return Ok(None);
    };
    if !exact {
        return Ok(Some(row.get(0)));
    }
    let count = format!("SELECT count(*) FROM {history}");
    Ok(Some(
        target.query_one(&count, &[]).await.map_err(failed)?.get(0),
    ))
}

impl Status {
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{name:<12}{}", printable(&value, TEXT_MAX));
        };
        match &self.source {
            None => line("slot", format!("{} (does not exist)", self.slot)),
            Some(slot) => slot.lines(&self.slot, &mut line),
        }
        match &self.checkpoint {
            None => line("checkpoint", "does not exist".to_owned()),
            Some(checkpoint) => {
                let (end, time) = (&checkpoint.end_lsn, &checkpoint.commit_timestamp);
                line(
                    "checkpoint",
                    format!("{} (committed {})", or_dash(end), or_dash(time)),
                );
                line("reported", or_dash(&checkpoint.reported_lsn));
            }
        }
        let seconds = self.lag_seconds.map(|seconds| format!("{seconds:.1} s"));
        line(
            "lag",
            format!("{}, {}", size(self.lag_bytes), or_dash(&seconds)),
        );
        if let Some(held) = &self.source_snapshot {
            let SnapshotHeld {
                sessions,
                seconds,
                xmin_age,
            } = held;
            line(
                "held",
                format!(
                    "a snapshot of the source for {seconds:.1} s, {xmin_age} transactions ({sessions} sessions)"
                ),
            );
        }
        for table in &self.tables {
            let rows = match table.rows {
                None => "does not exist".to_owned(),
                Some(rows) if self.exact => format!("{rows} rows"),
                Some(rows) => format!("about {rows} rows"),
            };
            line(
                "table",
                format!("{} -> {}: {rows}", table.source, table.history),
            );
            let snapshot = table.snapshot.as_ref();
            if let Some(snapshot) = snapshot.filter(|snapshot| snapshot.state != "done") {
                line("snapshot", snapshot.text());
            }
            if let Some(gap) = &table.gap {
                let accepted = match &gap.accepted_at {
                    Some(at) => format!("accepted {at}"),
                    None => "not accepted: waltrail accept-gap".to_owned(),
                };
                line(
                    "gap",
                    format!("{} to {}, {accepted}", gap.from_lsn, gap.to_lsn),
                );
            }
        }
        out
    }
}

impl SlotStatus {
    fn lines(&self, name: &str, line: &mut impl FnMut(&str, String)) {
        let user = match self.active_pid {
            Some(pid) if self.confirmed_flush_lsn.is_none() => {
                format!("being created by pid {pid}")
            }
            Some(pid) => format!("in use by pid {pid}"),
            None => "not in use".to_owned(),
        };
        line(
            "slot",
            format!("{name} ({user}, {})", or_dash(&self.wal_status)),
        );
        match self.failover {
            _ if self.synced => line("failover", "a copy of the primary's slot".to_owned()),
            Some(true) => line("failover", "yes: standbys may keep a copy".to_owned()),
            Some(false) => line("failover", "no: it is lost at a promotion".to_owned()),
            None => {}
        }
        line("confirmed", or_dash(&self.confirmed_flush_lsn));
        line("WAL end", self.current_wal_lsn.to_string());
        let limit = match self.max_slot_wal_keep_size.as_str() {
            "-1" => "no limit: max_slot_wal_keep_size = -1".to_owned(),
            limit => format!(
                "max_slot_wal_keep_size = {limit}, {} left",
                size(self.safe_wal_size)
            ),
        };
        let (kept, since) = (size(self.retained_bytes), or_dash(&self.restart_lsn));
        line("WAL kept", format!("{kept} since {since} ({limit})"));
        if self.temp_bytes > Some(0) {
            line("temp files", size(self.temp_bytes));
        }
    }
}

fn or_dash(value: &Option<impl ToString>) -> String {
    value
        .as_ref()
        .map_or_else(|| "-".to_owned(), ToString::to_string)
}

fn size(bytes: Option<i64>) -> String {
    or_dash(&bytes.map(|bytes| bytesize::ByteSize::b(bytes.max(0).unsigned_abs())))
}

impl SnapshotStatus {
    fn text(&self) -> String {
        let mut text = format!("{}, {} rows", self.state, self.rows);
        // Writing to a String cannot fail.
        if let Some(estimated) = self.rows_estimated {
            let _ = write!(text, " of about {estimated}");
        }
        let _ = write!(text, ", {}", size(Some(self.bytes)));
        if let Some(rate) = self.rows_per_second {
            let _ = write!(text, ", {rate:.0} rows/s");
        }
        if let Some(left) = self.seconds_left {
            let _ = write!(text, ", {left:.0} s left");
        }
        if self.held_bytes > 0 {
            let _ = write!(text, ", {} of changes held", size(Some(self.held_bytes)));
        }
        text
    }
}
