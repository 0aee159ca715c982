//! The two histories, with everything that a waltrail that had written them would have left.
//!
//! A daemon runs first, on empty tables: it makes the control schema, the history that is not there, the functions, and the
//! rows that say since when a history is complete and where its columns stand. Then the histories are filled by SQL with what
//! [`EVENTS`] says, in the order of the commits, and the beginning is dated back to the first of them.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use postgres::Client;
use throwaway::Cluster;

use super::Size;
use crate::contender::Daemon;
use crate::server::Transport;
use crate::workload::{EMPLOYEES, EMPLOYEES_CDC};

/// A table of which waltrail makes the history.
const STAFF: &str = "CREATE TABLE staff (
    id SERIAL PRIMARY KEY, name VARCHAR(100), department VARCHAR(100), salary NUMERIC)";
/// How often the daemon is looked at, and for how long.
const POLL: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(60);
/// What is added to a key that changes.
const MOVED: u32 = 1_000_000_000;
/// When the existing rows were recorded, and where.
pub(super) const BEGIN: &str = "timestamptz '2026-01-01 00:00+00'";
pub(super) const POINT: &str = "pg_lsn '0/2000000'";

/// What happened, in order: each key once in a round, in another order each time. The first round is of the rows that
/// existed. Every twentieth key is deleted in round 4 and inserted again in round 5; every hundredth gets another key in
/// round 6. A transaction has ten changes, and there is one a second: `tx` counts them, `tx_seq` their changes.
///
/// `g`, `r` (round), `k` (what the row was inserted as), `kind`, `id`, `old_id`, `name`, `department`, `salary`, `tx`, `tx_seq`.
pub(super) fn events(size: Size) -> String {
    let (rows, keys) = (size.rows, size.keys());
    format!(
        "SELECT g, r, k,
                CASE WHEN r = 0 OR k % 20 = 0 AND r = 5 THEN 'INSERT' WHEN k % 20 = 0 AND r = 4 THEN 'DELETE' ELSE 'UPDATE' END AS kind,
                k + CASE WHEN k % 100 = 7 AND r >= 6 THEN {MOVED} ELSE 0 END AS id,
                k + CASE WHEN k % 100 = 7 AND r > 6 THEN {MOVED} ELSE 0 END AS old_id,
                'name ' || k AS name, 'dept ' || (k + r) % 50 AS department, (1000 + (k * 31 + r * 7) % 9000)::numeric AS salary,
                (g - {keys}) / 10 AS tx, 1 + g % 10 AS tx_seq
           FROM (SELECT g, g / {keys} AS r, (1 + ((g % {keys})::bigint * 7919 + (g / {keys}) * 104729) % {keys})::int AS k
                   FROM generate_series(0, {rows} - 1) AS g) AS g"
    )
}

/// The commit time of an event.
pub(super) fn time() -> String {
    format!("{BEGIN} + CASE WHEN r > 0 THEN (tx + 1) * interval '1 s' ELSE interval '0' END")
}

/// Makes the tables and lets a daemon follow them.
pub(super) fn follow(
    client: &mut Client,
    cluster: &Cluster,
    database: &str,
    program: &Path,
) -> Result<()> {
    for statement in [EMPLOYEES, EMPLOYEES_CDC, STAFF] {
        client.batch_execute(statement)?;
    }
    let dsn = Transport::Unix.dsn(cluster, database);
    let tables = ["public.employees", "public.staff"];
    let mut daemon = Daemon::start_with(program, &dsn, &dsn, tables, &[])?;
    until(
        client,
        &mut daemon,
        "SELECT to_regclass('waltrail.baseline') IS NOT NULL",
    )?;
    until(
        client,
        &mut daemon,
        "SELECT count(*) = 2 FROM waltrail.baseline",
    )?;
    for table in ["employees", "staff"] {
        client.batch_execute(&format!("INSERT INTO {table} (name) VALUES ('first')"))?;
        client.batch_execute(&format!("DELETE FROM {table}"))?;
        let recorded = format!("SELECT count(*) = 2 FROM {table}_cdc");
        until(client, &mut daemon, &recorded)?;
    }
    daemon.stop()
}

fn until(client: &mut Client, daemon: &mut Daemon, holds: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        daemon.look()?;
        // What is asked for may not be there yet.
        if client.query_one(holds, &[])?.get(0) {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            bail!("waited in vain until {holds}");
        }
        sleep(POLL);
    }
}

/// Fills both histories.
pub(super) fn histories(client: &mut Client, size: Size) -> Result<()> {
    let (events, time) = (events(size), time());
    client.batch_execute("TRUNCATE staff_cdc, employees_cdc RESTART IDENTITY")?;
    let carried = "CASE WHEN w.kind <> 'DELETE' THEN name END, CASE WHEN w.kind <> 'DELETE' THEN department END, \
        CASE WHEN w.kind <> 'DELETE' THEN salary END";
    client.batch_execute(&format!(
        "INSERT INTO staff_cdc (change_type, change_timestamp, commit_lsn, tx_seq, xid, id, name, department, salary, old_id,
                unavailable_columns)
         SELECT kind, {time}, {POINT} + CASE WHEN r > 0 THEN (tx + 1) * 1000 ELSE 0 END,
                CASE WHEN r > 0 THEN tx_seq ELSE g + 1 END, CASE WHEN r > 0 THEN 1000 + tx ELSE 0 END, id, {carried},
                CASE WHEN kind <> 'INSERT' THEN old_id END,
                CASE WHEN kind = 'DELETE' THEN ARRAY['name', 'department', 'salary'] END
           FROM ({events}) AS w"
    ))?;
    // Without a column for it, a change of the key is two rows.
    client.batch_execute(&format!(
        "INSERT INTO employees_cdc (change_type, change_timestamp, id, name, department, salary)
         SELECT w.kind, ({time}) AT TIME ZONE 'UTC', w.id, {carried}
           FROM ({events}) AS e CROSS JOIN LATERAL (
                SELECT 'DELETE', old_id WHERE e.kind = 'UPDATE' AND e.id <> old_id
                UNION ALL
                SELECT CASE WHEN e.kind = 'UPDATE' AND e.id <> old_id THEN 'INSERT' ELSE e.kind END, e.id) AS w (kind, id)"
    ))?;
    client.batch_execute(&format!(
        "UPDATE waltrail.baseline SET taken_at = {BEGIN}, point = {POINT}, last_number = {}",
        size.keys()
    ))?;
    let row = client.query_one(
        "SELECT (SELECT count(*) FROM staff_cdc),
                (SELECT count(*) FROM (SELECT change_timestamp >= lag(change_timestamp) OVER (ORDER BY cdc_id) AS in_order
                   FROM employees_cdc) AS o WHERE NOT in_order)",
        &[],
    )?;
    let (rows, out_of_order): (i64, i64) = (row.get(0), row.get(1));
    ensure!(
        rows == i64::from(size.rows) && out_of_order == 0,
        "the histories hold {rows} rows, of which {out_of_order} are out of order"
    );
    // Each by itself: VACUUM stands in no transaction.
    for history in ["staff_cdc", "employees_cdc"] {
        client.batch_execute(&format!("VACUUM ANALYZE {history}"))?;
    }
    Ok(())
}
