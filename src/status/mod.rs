//! `waltrail status`: one picture of slot, checkpoint and history. Reads only.
//!
//! ```text
//!   source.rs  one statement --+
//!                              +--> Status --> verdict.rs (P) --> screen.rs (P), JSON, exit code
//!   target.rs  one statement --+
//! ```
//!
//! Each server may be away, or keep a table locked: what the other one says is shown, with the reason. **No answer is
//! waited for for longer than 5 s**, and nothing here writes. The daemon reads the same picture (`telemetry/observer.rs`).

mod lag;
mod look;
mod note;
mod rate;
#[cfg(test)]
mod sample;
mod screen;
mod source;
mod statement;
mod target;
mod verdict;
mod watch;

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

pub(crate) use lag::{Ends, Micros};
pub(crate) use look::{Inside, Looks, Seen};
pub(crate) use note::Note;
pub(crate) use rate::{Reading, Readings};
pub(crate) use watch::{Show, show};

use crate::clock;

use crate::lsn::Lsn;

/// What `status` shows; the field names of `--json` are stable: docs/reference/status-json.md.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Status {
    /// What it comes to.
    pub verdict: Verdict,
    /// When it was read, by this machine's clock; RFC 3339.
    pub at: String,
    /// Of this program.
    pub version: &'static str,
    pub slot: String,
    /// The slot as the source has it; none when there is none, or the source could not be asked.
    pub source: Option<SlotStatus>,
    /// Why the source could not be asked.
    pub source_error: Option<String>,
    /// Why the target could not be asked.
    pub target_error: Option<String>,
    /// The publication as the source has it; none where the source could not be asked.
    pub publication: Option<PublicationStatus>,
    /// The checkpoint as the target has it; none when there is none.
    pub checkpoint: Option<CheckpointStatus>,
    /// What sessions of this role and name hold on the source beside the slot; none: nothing.
    pub source_snapshot: Option<SnapshotHeld>,
    /// WAL between what is recorded or confirmed and the source's end; 0 where nothing in it is unrecorded.
    pub lag_bytes: Option<i64>,
    /// Age of the oldest commit that is not in the history, by the source's clock; 0 when there is none.
    pub lag_seconds: Option<f64>,
    /// The last minute's, as the daemon counts it; without one, since the last recorded commit.
    pub rate: Option<Rate>,
    pub servers: Servers,
    /// The session of the target that writes for this slot; none: none runs.
    pub daemon: Option<Daemon>,
    /// What that session waits for.
    pub waits: Option<Waits>,
    /// The source's clock minus this machine's.
    pub clock_offset_seconds: Option<f64>,
    /// The oldest open transaction of the source that has written something, or is prepared: the slot keeps the WAL since its begin.
    pub oldest_transaction: Option<OldTransaction>,
    /// What decoding put on the source's disk, or sent before its end; since the source's statistics were reset.
    pub spill: Option<Spill>,
    /// The rows of the histories were counted, not estimated.
    pub exact: bool,
    pub tables: Vec<TableStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Verdict {
    /// The worst of the reasons'.
    pub level: Level,
    /// In words, as docs/operate/watch.md lists them.
    pub state: &'static str,
    /// The worst first.
    pub reasons: Vec<Reason>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Good,
    Warning,
    Broken,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Reason {
    /// Stable: docs/operate/watch.md.
    pub code: &'static str,
    pub level: Level,
    pub text: String,
    pub remedy: String,
}

/// How fast things go, per second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Rate {
    /// WAL that the source writes.
    pub wal_bytes_per_second: f64,
    /// Rows that reach the history; none where no daemon says so.
    pub rows_per_second: Option<f64>,
    /// Until the slot is lost at this rate; none: no limit, or what the slot keeps does not grow.
    pub seconds_left: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Servers {
    pub source_version: Option<String>,
    /// `primary` or `standby`.
    pub source_role: Option<&'static str>,
    pub target_version: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Daemon {
    /// Of its session in the target, not of the process.
    pub pid: i32,
    /// The address that it connects from; none: the target's own machine, or not shown to this role.
    pub host: Option<String>,
    /// When that session began, by the target's clock; RFC 3339.
    pub since: Option<String>,
    /// For how long it has shown nothing while the server waited for it; a daemon that runs shows something every 3 s.
    pub silent_seconds: Option<f64>,
}

/// A lock that the writer waits for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Waits {
    pub seconds: f64,
    /// The table, or the kind of lock.
    pub lock: Option<String>,
    pub held_by: Vec<Holder>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Holder {
    /// 0: a prepared transaction.
    pub pid: i32,
    pub application: Option<String>,
    /// How its statement begins, as far as there is no value in it; none where this role may not see it.
    pub statement: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct OldTransaction {
    /// None: a prepared transaction.
    pub pid: Option<i32>,
    /// The session's application, or the name of a prepared transaction.
    pub application: Option<String>,
    /// For how long it has been open or prepared; none where this role may not see it.
    pub seconds: Option<f64>,
    /// Transactions since.
    pub xmin_age: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Spill {
    pub spill_txns: i64,
    pub spill_bytes: i64,
    pub stream_txns: i64,
    pub stream_bytes: i64,
    pub total_txns: i64,
    pub total_bytes: i64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct PublicationStatus {
    pub name: String,
    pub exists: bool,
    /// Tables that it publishes.
    pub tables: i64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct SlotStatus {
    pub active: bool,
    pub active_pid: Option<i32>,
    pub confirmed_flush_lsn: Option<Lsn>,
    pub restart_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Why the server invalidated it (17 and later; on a standby that runs 16, `conflicting`).
    pub invalidation_reason: Option<String>,
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
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct SnapshotHeld {
    pub sessions: i64,
    /// The age of the oldest one, in seconds and in transactions.
    pub seconds: f64,
    pub xmin_age: i32,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct CheckpointStatus {
    /// The end of the last transaction in the history.
    pub end_lsn: Option<Lsn>,
    /// The highest position that may have been confirmed.
    pub reported_lsn: Option<Lsn>,
    pub commit_timestamp: Option<String>,
    /// Seconds since then, by the source's clock; by the target's where the source could not be asked.
    pub commit_age_seconds: Option<f64>,
    pub updated_at: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct TableStatus {
    pub source: String,
    pub history: String,
    /// Rows of the history; none when it does not exist.
    pub rows: Option<i64>,
    /// Why its rows could not be counted.
    pub rows_error: Option<String>,
    /// How far the recording of its existing rows is; none before the first start.
    pub snapshot: Option<SnapshotStatus>,
    /// Its last gap, if it has one.
    pub gap: Option<GapStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct GapStatus {
    pub from_lsn: Lsn,
    pub to_lsn: Lsn,
    pub reason: String,
    pub found_at: String,
    /// None: waltrail does not start until it is accepted.
    pub accepted_at: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
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
    /// For how long nothing has been added, as the daemon saw it; none where none says so, or when it is done.
    pub still_seconds: Option<f64>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pid == 0 {
            return f.write_str("a prepared transaction");
        }
        write!(f, "pid {}", self.pid)?;
        if let Some(name) = self.application.as_deref().filter(|name| !name.is_empty()) {
            write!(f, " ({name})")?;
        }
        match &self.statement {
            Some(statement) => write!(f, ": {statement}"),
            None => Ok(()),
        }
    }
}

fn rfc3339(time: Micros) -> String {
    let since = Duration::from_micros(time.max(0).unsigned_abs());
    clock::utc(UNIX_EPOCH + since)
}

/// A duration in words of one or two units.
fn span(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3_600 % 24, whole / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) if whole < 10 => format!("{:.1} s", seconds.max(0.0)),
        (0, 0, 0) => format!("{whole} s"),
        (0, 0, _) if whole < 600 => format!("{minutes} min {} s", whole % 60),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        (1..=9, _, _) => format!("{days} d {hours} h"),
        (_, _, _) => format!("{days} d"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    const PAGE: &str = include_str!("../../docs/reference/status-json.md");

    /// The paths of all values, with `[]` for what stands in a list.
    fn paths(value: &Value, path: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let dot = if path.is_empty() { "" } else { "." };
                    paths(value, &format!("{path}{dot}{name}"), found);
                }
            }
            Value::Array(values) => {
                for value in values {
                    paths(value, &format!("{path}[]"), found);
                }
            }
            _ => {
                found.insert(path.to_owned());
            }
        }
    }

    #[test]
    fn the_page_has_every_field_of_the_json_and_no_other() {
        let mut found = BTreeSet::new();
        let json = serde_json::to_value(sample::full()).unwrap();
        paths(&json, "", &mut found);
        let (_, table) = PAGE.split_once("<!-- checked: status-json -->\n").unwrap();
        let rows = table
            .lines()
            .take_while(|line| line.starts_with('|'))
            .skip(2);
        let documented: BTreeSet<String> = rows
            .map(|row| row.split('`').nth(1).unwrap().to_owned())
            .collect();
        assert_eq!(documented, found);
    }

    #[test]
    fn the_page_says_which_states_and_codes_there_are() {
        for state in verdict::STATES {
            assert!(PAGE.contains(&format!("`{state}`")), "{state}");
        }
    }

    #[test]
    fn a_duration_has_one_or_two_units() {
        for (seconds, says) in [
            (0.04, "0.0 s"),
            (-3.0, "0.0 s"),
            (9.99, "10.0 s"),
            (59.9, "59 s"),
            (61.0, "1 min 1 s"),
            (600.0, "10 min"),
            (3_600.0, "1 h 0 min"),
            (100_000.0, "1 d 3 h"),
            (1e9, "11574 d"),
        ] {
            assert_eq!(span(seconds), says);
        }
    }

    #[test]
    fn a_time_is_written_as_rfc_3339_has_it() {
        assert_eq!(rfc3339(1_700_000_000_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(rfc3339(-1), "1970-01-01T00:00:00Z");
    }
}
