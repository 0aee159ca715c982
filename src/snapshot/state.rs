//! How far each table's snapshot is: the rows of `waltrail.snapshot`, as ordinary SQL touches them.
//!
//! Everything that a restart must know is there. What stands in memory is only who works on what.

use std::collections::HashMap;

use tokio_postgres::Client;

use crate::config::{Config, SnapshotMode};
use crate::fault::{Exit, Fault, Result};
use crate::history::gap;
use crate::history::gate::Gate;
use crate::lsn::Lsn;
use crate::pipeline::Captured;
use crate::schema::TableName;
use crate::server::Side;

/// How far a table is (migration V3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Waiting,
    /// An attempt is on its way, or was when it was stopped.
    Copying,
    /// Its rows are recorded, changes held meanwhile are not all added.
    Copied,
    /// Its changes go to the history directly.
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub history: TableName,
    pub state: State,
    pub attempt: i32,
    /// What committed before it is in the snapshot.
    pub point: Option<Lsn>,
}

impl Table {
    /// Where its changes go when a session starts at this checkpoint; none: to the history.
    pub fn gate(&self, checkpoint: Lsn) -> Option<Gate> {
        match (self.state, self.point) {
            (State::Waiting, _) | (State::Copying | State::Copied, None) => Some(Gate::Waiting),
            (State::Copying | State::Copied, Some(point)) => Some(Gate::Holding(point)),
            (State::Done, Some(point)) if point > checkpoint => Some(Gate::Synced(point)),
            (State::Done, _) => None,
        }
    }
}

fn failed(error: tokio_postgres::Error) -> Fault {
    Side::Target.failed("could not keep the state of the snapshot")(error)
}

/// Brings the rows up to the captured tables: new ones are added, to be copied or not, and those of tables that are
/// no longer captured are removed, so that they are copied when they are captured again.
///
/// `resumes`: the history goes on from its checkpoint. It then knows every table; one without any row is
/// from before snapshots were made. Otherwise it begins anew, and positions from before mean nothing.
/// `flushed`: the end of the source's WAL.
pub async fn register(
    target: &Client,
    config: &Config,
    captured: &[Captured],
    resumes: bool,
    flushed: Lsn,
) -> Result<()> {
    let slot = &config.source.slot;
    let histories: Vec<String> = captured
        .iter()
        .map(|c| c.history.name.to_string())
        .collect();
    let sources: Vec<String> = captured.iter().map(|c| c.source.name.to_string()).collect();
    refuse_others(target, slot, &histories).await?;
    let known: bool = target
        .query_one(
            "SELECT EXISTS (SELECT FROM waltrail.snapshot WHERE slot = $1)",
            &[slot],
        )
        .await
        .map_err(failed)?
        .get(0);
    let wanted = config.snapshot.mode == SnapshotMode::Initial && (known || !resumes);
    let others = target
        .query(
            "SELECT history FROM waltrail.snapshot WHERE slot = $1 AND history <> ALL ($2)",
            &[slot, &histories],
        )
        .await
        .map_err(failed)?;
    let others: Vec<String> = others.iter().map(|row| row.get(0)).collect();
    take_out(target, slot, &others).await?;
    let histories_with_prefix: Vec<_> = captured
        .iter()
        .map(|c| (&c.history, c.rules.prefix.as_str()))
        .collect();
    gap::put_back(target, slot, &histories_with_prefix, flushed)
        .await
        .map_err(Side::Target.failed("could not write the row of a gap"))?;
    target
        .execute(
            "INSERT INTO waltrail.snapshot (slot, history, source, state) \
             SELECT $1, t.history, t.source, $4 FROM unnest($2::text[], $3::text[]) AS t (history, source) \
             ON CONFLICT (slot, history) DO NOTHING",
            &[slot, &histories, &sources, &if wanted { "waiting" } else { "done" }],
        )
        .await
        .map_err(failed)?;
    if !resumes {
        target
            .execute(
                "WITH known AS (DELETE FROM waltrail.held h USING waltrail.snapshot s \
                        WHERE s.slot = $1 AND h.slot = s.slot AND h.history = s.history \
                          AND (s.state IN ('waiting', 'copying') OR h.lsn < s.consistent_point)) \
                 UPDATE waltrail.snapshot SET consistent_point = '0/0' \
                  WHERE slot = $1 AND consistent_point IS NOT NULL",
                &[slot],
            )
            .await
            .map_err(failed)?;
    }
    Ok(())
}

/// Takes tables out that are captured no longer; what was held of them has no place any more. Added again, their histories get
/// a row that says what is missing, and their existing rows are copied again.
pub(crate) async fn take_out(target: &Client, slot: &str, histories: &[String]) -> Result<()> {
    if histories.is_empty() {
        return Ok(());
    }
    give_up(target, slot, histories).await?;
    remove_parts(target, slot, histories).await?;
    gap::take_out(target, slot, histories)
        .await
        .map_err(failed)?;
    target
        .execute(
            "WITH gone AS (DELETE FROM waltrail.held WHERE slot = $1 AND history = ANY ($2)) \
             DELETE FROM waltrail.snapshot WHERE slot = $1 AND history = ANY ($2)",
            &[&slot, &histories],
        )
        .await
        .map(|_| ())
        .map_err(failed)
}

/// The slots that write these histories, but for this one.
pub async fn other_slots(
    target: &Client,
    slot: &str,
    histories: &[String],
) -> Result<Vec<(String, String)>> {
    let statement = "SELECT slot, history FROM waltrail.snapshot WHERE slot <> $1 AND history = ANY ($2) ORDER BY 1, 2";
    let rows = target.query(statement, &[&slot, &histories]).await;
    let rows = rows.map_err(failed)?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// A history of two slots would have every change twice.
///
/// # Errors
/// Exit 65.
pub(crate) async fn refuse_others(target: &Client, slot: &str, histories: &[String]) -> Result<()> {
    let others = other_slots(target, slot, histories).await?;
    let Some((other, history)) = others.first() else {
        return Ok(());
    };
    Err(Fault::halt(
        Exit::HistoryWouldBeWrong,
        format!("the history {history} belongs to slot \"{other}\": slot \"{slot}\" would record its changes again"),
    )
    .remedy(format!(
        "set source.slot = \"{other}\", or choose another history; if slot \"{other}\" is not used any more: \
         waltrail accept-gap"
    ))
    .see("the-history-belongs-to-another-slot"))
}

/// The latest point of the tables whose existing rows are recorded.
pub async fn latest_point(target: &Client, slot: &str) -> Result<Option<Lsn>> {
    let row = target
        .query_opt(
            "SELECT consistent_point FROM waltrail.snapshot \
              WHERE slot = $1 AND state IN ('copied', 'done') AND consistent_point IS NOT NULL \
              ORDER BY consistent_point DESC LIMIT 1",
            &[&slot],
        )
        .await
        .map_err(failed)?;
    Ok(row.map(|row| row.get(0)))
}

/// All tables of a slot.
pub async fn read(target: &Client, slot: &str) -> Result<Vec<Table>> {
    of(target, slot, None).await
}

/// Those of these histories that are captured.
pub async fn read_some(target: &Client, slot: &str, histories: &[String]) -> Result<Vec<Table>> {
    of(target, slot, Some(histories)).await
}

async fn of(target: &Client, slot: &str, histories: Option<&[String]>) -> Result<Vec<Table>> {
    let rows = target
        .query(
            "SELECT history, state, attempt, consistent_point FROM waltrail.snapshot \
              WHERE slot = $1 AND ($2::text[] IS NULL OR history = ANY ($2)) ORDER BY history",
            &[&slot, &histories],
        )
        .await
        .map_err(failed)?;
    rows.iter()
        .map(|row| {
            let state = match row.get(1) {
                "waiting" => State::Waiting,
                "copying" => State::Copying,
                "copied" => State::Copied,
                "done" => State::Done,
                unknown => return Err(unknown_state(row.get(0), unknown)),
            };
            let history: &str = row.get(0);
            let history = history.parse();
            Ok(Table {
                history: history.map_err(|_| Fault::bug("a history with an impossible name"))?,
                state,
                attempt: row.get(2),
                point: row.get(3),
            })
        })
        .collect()
}

/// Of a newer program: what it means for the changes that are held is not known here.
fn unknown_state(history: &str, state: &str) -> Fault {
    let what = format!(
        "the snapshot of {history} is in a state that this program does not know: \"{state}\""
    );
    Fault::halt(Exit::HistoryWouldBeWrong, what)
        .remedy("install the waltrail that wrote it, or a newer one")
        .see("a-snapshot-state-is-unknown")
}

/// Gives up attempts that did not come to their end: nothing of theirs can be committed any more.
pub async fn give_up(target: &Client, slot: &str, histories: &[String]) -> Result<()> {
    // It waits for a COMMIT of a predecessor that is on its way, and then finds the table copied.
    target
        .execute(
            "UPDATE waltrail.snapshot \
                SET state = 'waiting', attempt = attempt + 1, consistent_point = NULL, rows = 0, bytes = 0 \
              WHERE slot = $1 AND history = ANY ($2) AND state = 'copying'",
            &[&slot, &histories],
        )
        .await
        .map(|_| ())
        .map_err(failed)
}

/// Removes the rows that attempts committed before they were given up; those of one that goes on are not touched.
async fn remove_parts(target: &Client, slot: &str, histories: &[String]) -> Result<()> {
    let parts = target
        .query(
            // The name may have a prefix, and the source a column of the plain name: then the time is left out.
            "SELECT history, array_agg(p.xid::text), \
                    (SELECT min(format('%I = CAST(''%s''::timestamptz%s AS %s)', a.attname, s.snapshot_time, \
                                       CASE a.atttypid WHEN 'timestamptz'::regtype THEN '' \
                                            ELSE ' AT TIME ZONE ''UTC''' END, \
                                       format_type(a.atttypid, a.atttypmod))) \
                       FROM pg_catalog.pg_attribute a \
                       JOIN pg_catalog.pg_attribute k ON k.attrelid = a.attrelid AND NOT k.attisdropped \
                        AND k.attname = replace(a.attname, 'change_timestamp', 'change_type') \
                      WHERE a.attrelid = to_regclass(history) AND a.attname ~ '^[a-z0-9_]{0,16}change_timestamp$' \
                        AND NOT a.attisdropped AND a.atttypid IN ('timestamptz'::regtype, 'timestamp'::regtype) \
                     HAVING count(*) = 1) \
               FROM waltrail.snapshot_part p JOIN waltrail.snapshot s USING (slot, history) \
              WHERE slot = $1 AND history = ANY ($2) AND s.state = 'waiting' GROUP BY history, s.snapshot_time",
            &[&slot, &histories],
        )
        .await
        .map_err(failed)?;
    for row in parts {
        remove(target, slot, row.get(0), (row.get(1), row.get(2))).await?;
    }
    Ok(())
}

/// The transactions that wrote them, and the condition that they say the time of the attempt.
async fn remove(
    target: &Client,
    slot: &str,
    history: &str,
    (xids, time): (Vec<String>, Option<&str>),
) -> Result<()> {
    // A row's xmin has the lower 32 bits. The time, where it is there, keeps rows out that are from one turn of
    // the counter before.
    let xids: Vec<String> = xids
        .iter()
        .map(|xid| Ok((xid.parse::<u64>()? & 0xffff_ffff).to_string()))
        .collect::<Result<_, std::num::ParseIntError>>()
        .map_err(|_| {
            Fault::bug("a transaction id that cannot be read in waltrail.snapshot_part")
        })?;
    let time = time.map_or_else(String::new, |time| format!(" AND {time}"));
    let removed = format!(
        "BEGIN; DELETE FROM {history} WHERE xmin = ANY ('{{{}}}'::xid[]){time}; \
         DELETE FROM waltrail.snapshot_part WHERE slot = '{slot}' AND history = {}; COMMIT",
        xids.join(","),
        crate::schema::plan::literal(history)
    );
    target
        .batch_execute(&removed)
        .await
        .map_err(Side::Target.failed("could not remove the rows of an attempt that was given up"))
}

/// What an attempt begins with: a history, and the rows and bytes that are expected.
pub type Beginning<'a> = (&'a TableName, (i64, i64));

/// Begins the attempt to copy these tables at a point: from here on their attempts of before count no more. Returns
/// the number of each attempt, by history.
pub async fn begin(
    target: &Client,
    slot: &str,
    tables: &[Beginning<'_>],
    point: Lsn,
    time: &str,
) -> Result<HashMap<String, i32>> {
    let histories: Vec<String> = tables.iter().map(|(name, _)| name.to_string()).collect();
    let rows: Vec<i64> = tables.iter().map(|(_, (rows, _))| *rows).collect();
    let bytes: Vec<i64> = tables.iter().map(|(_, (_, bytes))| *bytes).collect();
    remove_parts(target, slot, &histories).await?;
    let begun = target
        .query(
            "WITH wanted AS (SELECT * FROM unnest($2::text[], $5::bigint[], $6::bigint[]) \
                               AS w (history, rows_estimated, bytes_estimated)), \
             begun AS (UPDATE waltrail.snapshot s \
                SET state = 'copying', attempt = s.attempt + 1, consistent_point = $3, \
                    snapshot_time = $4::text::timestamptz, rows = 0, bytes = 0, \
                    rows_estimated = w.rows_estimated, bytes_estimated = w.bytes_estimated, \
                    started_at = clock_timestamp(), finished_at = NULL \
               FROM wanted w \
              WHERE s.slot = $1 AND s.history = w.history AND s.state = 'waiting' \
             RETURNING s.history, s.attempt), \
             covered AS (DELETE FROM waltrail.held h USING begun b \
              WHERE h.slot = $1 AND h.history = b.history AND h.lsn < $3) \
             SELECT history, attempt FROM begun",
            &[&slot, &histories, &point, &time, &rows, &bytes],
        )
        .await
        .map_err(failed)?;
    let begun: HashMap<String, i32> = begun.iter().map(|row| (row.get(0), row.get(1))).collect();
    match histories
        .iter()
        .find(|history| !begun.contains_key(*history))
    {
        None => Ok(begun),
        // What is held is then held for that other attempt.
        Some(table) => Err(Fault::retry(format!(
            "another process has begun to record the existing rows of {table}"
        ))),
    }
}

/// Leaves tables' existing rows out after all (`snapshot.mode` is now `never`): what is held is still to be added.
pub async fn leave_out(target: &Client, slot: &str, tables: &[TableName]) -> Result<()> {
    let histories: Vec<String> = tables.iter().map(ToString::to_string).collect();
    remove_parts(target, slot, &histories).await?;
    target
        .execute(
            "UPDATE waltrail.snapshot SET state = 'copied', consistent_point = '0/0', rows = 0, bytes = 0 \
              WHERE slot = $1 AND history = ANY ($2) AND state = 'waiting'",
            &[&slot, &histories],
        )
        .await
        .map(|_| ())
        .map_err(failed)
}

/// Notes how far a table's copy is, for `status`.
pub async fn note(
    target: &Client,
    slot: &str,
    table: &TableName,
    rows: u64,
    bytes: u64,
) -> Result<()> {
    target
        .execute(
            "UPDATE waltrail.snapshot SET rows = $3, bytes = $4 \
              WHERE slot = $1 AND history = $2 AND state = 'copying'",
            &[
                &slot,
                &table.to_string(),
                &rows.cast_signed(),
                &bytes.cast_signed(),
            ],
        )
        .await
        .map(|_| ())
        .map_err(failed)
}
