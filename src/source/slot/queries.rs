//! What the source's catalogs say about slots.

use std::fmt;
use std::time::SystemTime;

use tokio_postgres::Client;

use super::SlotState;
use crate::lsn::Lsn;

/// What decides which statements about slots a server knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Server {
    /// 15, for example.
    pub major: u32,
    /// It is a standby.
    pub in_recovery: bool,
}

pub(crate) async fn server(client: &Client) -> Result<Server, tokio_postgres::Error> {
    let row = client
        .query_one(
            "SELECT pg_catalog.current_setting('server_version_num')::int / 10000, pg_catalog.pg_is_in_recovery()",
            &[],
        )
        .await?;
    Ok(Server {
        major: row.get::<_, i32>(0).unsigned_abs(),
        in_recovery: row.get(1),
    })
}

/// Reads the slot's row; `None` when there is no such slot.
pub(crate) async fn inspect(
    client: &Client,
    name: &str,
) -> Result<Option<SlotState>, tokio_postgres::Error> {
    // Columns that came with later versions are read through the row as a document.
    let row = client
        .query_opt(
            "SELECT plugin::text, database::text, active_pid, confirmed_flush_lsn, restart_lsn, \
                    wal_status, \
                    coalesce(to_jsonb(s) ->> 'invalidation_reason', \
                             CASE WHEN (to_jsonb(s) ->> 'conflicting')::bool THEN 'conflicting' END), \
                    coalesce((to_jsonb(s) ->> 'two_phase')::bool, false), \
                    EXISTS (SELECT FROM pg_catalog.pg_stat_replication_slots r \
                             WHERE r.slot_name = s.slot_name AND r.total_txns > 0) \
                        OR coalesce((to_jsonb(s) ->> 'synced')::bool, false), \
                    temporary, (to_jsonb(s) ->> 'failover')::bool, \
                    coalesce((to_jsonb(s) ->> 'synced')::bool, false) \
             FROM pg_catalog.pg_replication_slots s WHERE slot_name = $1",
            &[&name],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(SlotState {
        plugin: row.get(0),
        database: row.get(1),
        active_pid: row.get(2),
        confirmed_flush: row.get(3),
        restart_lsn: row.get(4),
        wal_status: row.get(5),
        invalidation_reason: row.get(6),
        two_phase: row.get(7),
        was_read: row.get(8),
        temporary: row.get(9),
        failover: row.get(10),
        synced: row.get(11),
    }))
}

/// Ends the process that is making the slot, when it still is; an unfinished slot goes with it.
pub(crate) async fn end_making(
    client: &Client,
    name: &str,
    pid: i32,
) -> Result<bool, tokio_postgres::Error> {
    let ended = client
        .query_opt(
            "SELECT pg_catalog.pg_terminate_backend(active_pid) FROM pg_catalog.pg_replication_slots \
              WHERE slot_name = $1 AND active_pid = $2 AND confirmed_flush_lsn IS NULL",
            &[&name, &pid],
        )
        .await?;
    Ok(ended.is_some())
}

/// How far the source's WAL is written.
pub(crate) async fn position(client: &Client) -> Result<Lsn, tokio_postgres::Error> {
    let row = client
        .query_one(
            "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
                          ELSE pg_catalog.pg_current_wal_insert_lsn() END",
            &[],
        )
        .await?;
    row.try_get(0)
}

/// The end of the source's WAL, and a time, by the clock of its commit times, at which no transaction committed that ends past
/// it: between taking its commit time and writing its commit record a transaction passes far less than a second. A standby's
/// clock is another one.
pub(crate) async fn position_and_time(
    client: &Client,
) -> Result<(Lsn, Option<SystemTime>), tokio_postgres::Error> {
    let row = client
        .query_one(
            "SELECT CASE WHEN r.standby THEN pg_catalog.pg_last_wal_replay_lsn() \
                         ELSE pg_catalog.pg_current_wal_insert_lsn() END, \
                    CASE WHEN NOT r.standby THEN pg_catalog.clock_timestamp() - '1 s'::interval END \
               FROM pg_catalog.pg_is_in_recovery() AS r (standby)",
            &[],
        )
        .await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// A transaction that the making of a slot waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waited {
    /// None for a prepared one.
    pub pid: Option<i32>,
    /// The name of a prepared one.
    pub gid: Option<String>,
    /// The session's state, where the role may see it.
    pub state: Option<String>,
    /// For how long it has been running or prepared, where the role may see it.
    pub seconds: Option<i32>,
}

impl fmt::Display for Waited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.pid, &self.gid) {
            (Some(pid), _) => {
                let state = self.state.as_deref().unwrap_or("state not shown");
                write!(f, "pid {pid}, {state}")?;
            }
            (None, gid) => write!(
                f,
                "prepared transaction '{}'",
                gid.as_deref().unwrap_or_default()
            )?,
        }
        match self.seconds {
            Some(seconds) => write!(f, ", for {seconds} s"),
            None => write!(f, ", for an unknown number of s"),
        }
    }
}

/// The transactions that the making of a slot waits for: everything that has written something and has not
/// ended, prepared transactions too.
pub(crate) async fn waited_for(client: &Client) -> Result<Vec<Waited>, tokio_postgres::Error> {
    let rows = client
        .query(
            "SELECT pid, NULL::text, state, extract(epoch FROM now() - xact_start)::int \
               FROM pg_catalog.pg_stat_activity \
              WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() \
             UNION ALL \
             SELECT NULL, gid, NULL, extract(epoch FROM now() - prepared)::int \
               FROM pg_catalog.pg_prepared_xacts",
            &[],
        )
        .await?;
    let waited = |row: &tokio_postgres::Row| Waited {
        pid: row.get(0),
        gid: row.get(1),
        state: row.get(2),
        seconds: row.get(3),
    };
    Ok(rows.iter().map(waited).collect())
}

/// The same in words.
pub(crate) async fn writers(client: &Client) -> Result<Vec<String>, tokio_postgres::Error> {
    let waited = waited_for(client).await?;
    Ok(waited.iter().map(ToString::to_string).collect())
}
