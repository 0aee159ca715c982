//! What a picture comes to: good, a warning, or broken; the state in a word, and each reason with what to do. Pure.
//!
//! *Broken* means that changes are not recorded now, or are missing. A *warning* is on the way there, or needs a person.

use bytesize::ByteSize;

use super::{Level, OldTransaction, Reason, SlotStatus, Status, TableStatus, Verdict, span};

/// More lag than this, in seconds, is a warning.
pub(crate) const LAG_MAX: f64 = 60.0;
/// Less time than this until the slot is lost, in seconds, is a warning.
pub(crate) const SLOT_LEFT_MIN: f64 = 2.0 * 3600.0;
/// An open transaction that has kept the slot back for longer, in seconds, is a warning.
pub(crate) const TRANSACTION_MAX: f64 = 600.0;
/// Clocks that differ by more seconds are a warning.
pub(crate) const CLOCKS_MAX: f64 = 5.0;
/// Existing rows that have not moved for longer, in seconds, are a warning.
pub(crate) const STILL_MAX: f64 = 300.0;
/// A wait for a lock that lasts longer, in seconds, is a warning.
pub(crate) const WAIT_MAX: f64 = 10.0;
/// A daemon that has shown nothing for longer, in seconds, hangs, or its machine is gone.
pub(crate) const SILENT_MAX: f64 = 15.0;

/// The states there are.
#[cfg(test)]
pub(super) const STATES: [&str; 7] = [
    "streaming",
    "catching up",
    "recording existing rows",
    "waiting",
    "not running",
    "not set up",
    "cannot tell",
];

/// What is known beside the picture.
#[derive(Clone, Debug, Default)]
pub(super) struct Beside {
    /// It is the daemon that asks.
    pub(super) inside: bool,
    pub(super) source_remedy: Option<String>,
    pub(super) target_remedy: Option<String>,
    /// The control schema could not be read for a lock.
    pub(super) locked: bool,
}

pub(super) fn of(status: &Status, beside: &Beside) -> Verdict {
    let runs = beside.inside || status.daemon.is_some();
    let one = |reason: Option<Reason>| reason.into_iter();
    let mut reasons: Vec<Reason> = one(down(status, beside))
        .chain(one(target_down(status, beside)))
        .chain(one(gap(status)))
        .chain(one(slot(status)))
        .chain(one(publication(status)))
        .chain(one(not_running(status, runs)))
        .chain(one(slot_inactive(status, runs)))
        .chain(one(in_danger(status)))
        .chain(one(waits(status, beside)))
        .chain(one(lagging(status)))
        .chain(one(still(status)))
        .chain(one(long_transaction(status)))
        .chain(one(clocks(status)))
        .collect();
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.level));
    let level = reasons.iter().map(|reason| reason.level).max();
    Verdict {
        level: level.unwrap_or(Level::Good),
        state: state(status, runs),
        reasons,
    }
}

fn reason(
    code: &'static str,
    level: Level,
    text: impl Into<String>,
    remedy: impl Into<String>,
) -> Option<Reason> {
    Some(Reason {
        code,
        level,
        text: text.into(),
        remedy: remedy.into(),
    })
}

fn is_down(version: Option<&String>) -> bool {
    version.is_none()
}

fn state(status: &Status, runs: bool) -> &'static str {
    let source_down = is_down(status.servers.source_version.as_ref());
    let target_down = is_down(status.servers.target_version.as_ref());
    let is_unfinished = |table: &TableStatus| {
        let snapshot = table.snapshot.as_ref();
        snapshot.is_some_and(|snapshot| snapshot.state != "done")
    };
    let is_active = status.source.as_ref().is_some_and(|slot| slot.active);
    let waits = status.waits.as_ref();
    if target_down && !runs {
        "cannot tell"
    } else if source_down || target_down {
        if runs { "waiting" } else { "not running" }
    } else if !runs && status.source.is_none() && status.checkpoint.is_none() {
        "not set up"
    } else if !runs || is_silent(status).is_some() {
        "not running"
    } else if !is_active || waits.is_some_and(|waits| waits.seconds > WAIT_MAX) {
        "waiting"
    } else if status.tables.iter().any(is_unfinished) {
        "recording existing rows"
    } else if status.lag_seconds > Some(LAG_MAX) {
        "catching up"
    } else {
        "streaming"
    }
}

fn down(status: &Status, beside: &Beside) -> Option<Reason> {
    let error = status.source_error.as_ref()?;
    let remedy = beside.source_remedy.clone();
    let remedy = remedy.unwrap_or_else(|| "start the server, or correct source.dsn".to_owned());
    reason("source-down", Level::Broken, error, remedy)
}

fn target_down(status: &Status, beside: &Beside) -> Option<Reason> {
    let error = status.target_error.as_ref()?;
    // One server that is both is said once.
    if beside.locked || status.source_error.as_ref() == Some(error) {
        return None;
    }
    let remedy = beside.target_remedy.clone();
    let remedy = remedy.unwrap_or_else(|| "start the server, or correct target.dsn".to_owned());
    reason("target-down", Level::Broken, error, remedy)
}

fn gap(status: &Status) -> Option<Reason> {
    let open = |table: &&TableStatus| {
        let gap = table.gap.as_ref();
        gap.is_some_and(|gap| gap.accepted_at.is_none())
    };
    let mut tables = status.tables.iter().filter(open);
    let first = tables.next()?;
    let gap = first.gap.as_ref()?;
    let more = match tables.count() {
        0 => String::new(),
        more => format!(", and those of {more} more tables"),
    };
    let text = format!(
        "changes of {} between {} and {} can be missing{more}: {}",
        first.source, gap.from_lsn, gap.to_lsn, gap.reason
    );
    reason(
        "gap-not-accepted",
        Level::Broken,
        text,
        "see docs/operate/when-it-stops-with-65.md; to go on without them: waltrail accept-gap",
    )
}

fn slot(status: &Status) -> Option<Reason> {
    let known = !is_down(status.servers.source_version.as_ref());
    let Some(slot) = &status.source else {
        return match (known, &status.checkpoint) {
            (false, _) => None,
            (true, None) => reason(
                "slot-missing",
                Level::Broken,
                format!("the replication slot {} does not exist yet", status.slot),
                "start `waltrail run`, which makes it; or: waltrail setup",
            ),
            (true, Some(_)) => reason(
                "slot-missing",
                Level::Broken,
                format!(
                    "the replication slot {} does not exist, and the history has begun: changes since then are missing",
                    status.slot
                ),
                "see docs/operate/when-it-stops-with-65.md#the-slot-does-not-exist",
            ),
        };
    };
    let why = lost(slot)?;
    reason(
        "slot-lost",
        Level::Broken,
        format!("the replication slot {} is lost: {why}", status.slot),
        "see docs/operate/when-it-stops-with-65.md#the-slot-is-lost",
    )
}

fn lost(slot: &SlotStatus) -> Option<&str> {
    let invalidated = slot.invalidation_reason.as_deref();
    let gone = slot.wal_status.as_deref() == Some("lost")
        || slot.restart_lsn.is_none() && slot.active_pid.is_none();
    invalidated.or(gone.then_some("the WAL that it needs was removed"))
}

fn publication(status: &Status) -> Option<Reason> {
    let publication = status.publication.as_ref()?;
    // Before the first start it is as missing as the slot.
    let is_begun = status.source.is_some() || status.checkpoint.is_some();
    if publication.tables > 0 || !is_begun {
        return None;
    }
    let name = &publication.name;
    let text = match publication.exists {
        true => format!("the publication {name} holds no table, so no change is sent"),
        false => format!("the publication {name} does not exist, so no change is sent"),
    };
    let remedy =
        "waltrail check, which says what is missing; waltrail setup puts the tables into it";
    reason("publication-empty", Level::Broken, text, remedy)
}

/// For how many seconds the daemon has shown nothing.
fn is_silent(status: &Status) -> Option<f64> {
    let daemon = status.daemon.as_ref()?;
    daemon.silent_seconds.filter(|silent| *silent > SILENT_MAX)
}

fn not_running(status: &Status, runs: bool) -> Option<Reason> {
    if let Some(silent) = is_silent(status) {
        return reason(
            "not-running",
            Level::Broken,
            format!(
                "the daemon has shown nothing for {}: its process is stopped, or its machine is gone",
                span(silent)
            ),
            "look at the process; a second waltrail would end its session and take over",
        );
    }
    let known = !is_down(status.servers.target_version.as_ref());
    if runs || !known {
        return None;
    }
    reason(
        "not-running",
        Level::Broken,
        format!("no daemon writes for slot {}", status.slot),
        "start it: systemctl start waltrail, or waltrail run; its last log lines say why it ended",
    )
}

fn slot_inactive(status: &Status, runs: bool) -> Option<Reason> {
    let slot = status.source.as_ref()?;
    if !runs || slot.active || lost(slot).is_some() {
        return None;
    }
    reason(
        "slot-inactive",
        Level::Warning,
        format!("a daemon runs, and nothing reads the slot {}", status.slot),
        "it is starting, or tries again: look at its log",
    )
}

fn in_danger(status: &Status) -> Option<Reason> {
    let slot = status.source.as_ref()?;
    if lost(slot).is_some() {
        return None;
    }
    let left = status.rate.and_then(|rate| rate.seconds_left);
    let limit = &slot.max_slot_wal_keep_size;
    let text = match (slot.wal_status.as_deref(), left) {
        (Some("unreserved"), _) => {
            "the slot keeps more WAL than it may: it is lost at the next checkpoint of the source"
                .to_owned()
        }
        (_, Some(left)) if left < SLOT_LEFT_MIN => {
            let room = slot.safe_wal_size.unwrap_or_default().max(0).unsigned_abs();
            format!(
                "the slot is lost in {} at the present rate, after {} more WAL",
                span(left),
                ByteSize::b(room)
            )
        }
        _ => return None,
    };
    reason(
        "slot-in-danger",
        Level::Warning,
        text,
        format!(
            "let the daemon catch up; or, on the source, a larger limit than {limit}: ALTER SYSTEM SET \
             max_slot_wal_keep_size = '...'; SELECT pg_reload_conf()"
        ),
    )
}

fn waits(status: &Status, beside: &Beside) -> Option<Reason> {
    if beside.locked {
        let error = status.target_error.as_ref()?;
        return reason(
            "waits",
            Level::Warning,
            format!("the target does not show the history's state: {error}"),
            "look at that session in pg_stat_activity; pg_terminate_backend(pid) ends it",
        );
    }
    let waits = status.waits.as_ref()?;
    if waits.seconds <= WAIT_MAX {
        return None;
    }
    let lock = waits.lock.as_deref().unwrap_or("something");
    let holders: Vec<String> = waits.held_by.iter().map(ToString::to_string).collect();
    let held = match holders.is_empty() {
        true => String::new(),
        false => format!(", held by {}", holders.join(", ")),
    };
    reason(
        "waits",
        Level::Warning,
        format!(
            "the daemon has waited for {} for a lock on {lock} in the target{held}",
            span(waits.seconds)
        ),
        "look at these sessions in pg_stat_activity; pg_terminate_backend(pid) ends one",
    )
}

fn lagging(status: &Status) -> Option<Reason> {
    let lag = status.lag_seconds.filter(|lag| *lag > LAG_MAX)?;
    let bytes = status.lag_bytes.unwrap_or_default().max(0).unsigned_abs();
    reason(
        "lagging",
        Level::Warning,
        format!(
            "the history lags by {} ({} of WAL)",
            span(lag),
            ByteSize::b(bytes)
        ),
        "see docs/operate/watch.md#lag: what the target waits for, and how busy it is",
    )
}

fn still(status: &Status) -> Option<Reason> {
    let still = |table: &TableStatus| {
        let snapshot = table.snapshot.as_ref()?;
        snapshot.still_seconds.filter(|still| *still > STILL_MAX)
    };
    let tables = status.tables.iter();
    let (table, seconds) = tables.filter_map(|t| Some((t, still(t)?))).next()?;
    reason(
        "snapshot-stuck",
        Level::Warning,
        format!(
            "no existing row of {} has been recorded for {}",
            table.source,
            span(seconds)
        ),
        "look for a lock on the history, and for \"waiting for a lock\" in the log",
    )
}

fn long_transaction(status: &Status) -> Option<Reason> {
    let old = status.oldest_transaction.as_ref()?;
    let seconds = old.seconds.filter(|seconds| *seconds > TRANSACTION_MAX)?;
    // Without a slot it holds nothing back.
    status.source.as_ref()?;
    let application = old.application.as_deref().unwrap_or_default();
    let OldTransaction { pid, xmin_age, .. } = old;
    let (what, remedy) = match pid {
        Some(pid) => {
            let named = match application {
                "" => String::new(),
                name => format!(" ({name})"),
            };
            (
                format!("pid {pid}{named}"),
                format!(
                    "end it in its application; or, on the source: SELECT pg_terminate_backend({pid})"
                ),
            )
        }
        None => (
            format!("prepared transaction '{application}'"),
            format!(
                "on the source: COMMIT PREPARED '{0}' or ROLLBACK PREPARED '{0}'",
                application.replace('\'', "''")
            ),
        ),
    };
    reason(
        "long-transaction",
        Level::Warning,
        format!(
            "a transaction of the source has been open for {}, {xmin_age} transactions ago: {what}. The slot keeps all WAL \
             since then",
            span(seconds)
        ),
        remedy,
    )
}

fn clocks(status: &Status) -> Option<Reason> {
    let offset = status.clock_offset_seconds?;
    if offset.abs() <= CLOCKS_MAX {
        return None;
    }
    let side = if offset > 0.0 { "ahead of" } else { "behind" };
    reason(
        "clocks-apart",
        Level::Warning,
        format!(
            "the source's clock is {} {side} this machine's: ages shown here and by the metrics are wrong by that much",
            span(offset.abs())
        ),
        "see whether both machines synchronize their clocks (chronyc tracking, timedatectl)",
    )
}

#[cfg(test)]
mod tests;
