//! The replication slot, and whether the stream may start from the checkpoint (invariant I4).
//!
//! The server believes whatever position it is asked for: one before the slot's is silently raised to the
//! slot's, one ahead skips what lies between. So the slot is compared with the checkpoint here, before
//! the stream starts and again right after, and everything that would leave a gap or a double stops with
//! exit code 65. [`decide`] is pure; each of its rows is a test.

mod queries;

pub(crate) use queries::{
    Server, Waited, end_making, inspect, position, position_and_time, server, waited_for, writers,
};

use std::fmt;

use super::failover;
use crate::checkpoint::Checkpoint;
use crate::fault::{Exit, Fault, Result, Side};
use crate::lsn::Lsn;
use crate::name::TableName;

/// The answer to IDENTIFY_SYSTEM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's unique number, made by initdb.
    pub system_identifier: u64,
    /// The timeline that the server is on.
    pub timeline: u32,
    pub flushed: Lsn,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SlotState {
    /// The output plugin; none for a physical slot.
    pub plugin: Option<String>,
    pub database: Option<String>,
    pub active_pid: Option<i32>,
    pub confirmed_flush: Option<Lsn>,
    /// The oldest WAL that it keeps; none when that WAL is gone.
    pub restart_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Why the server invalidated it (17 and later; on a standby that runs 16, `conflicting`).
    pub invalidation_reason: Option<String>,
    pub two_phase: bool,
    /// Transactions were read from it, or can have been before a fail-over, which clears the count.
    pub was_read: bool,
    /// It is gone when its session ends, or, while it is being synchronized, at a promotion.
    pub temporary: bool,
    /// It survives a fail-over; none before 17.
    pub failover: Option<bool>,
    /// It is a copy of the primary's, or was one before this server was promoted.
    pub synced: bool,
}

impl SlotState {
    /// A logical slot gets its confirmed position when it is finished. Until then it is gone as soon as its process is.
    fn is_being_made(&self) -> bool {
        self.plugin.is_some() && self.confirmed_flush.is_none()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// No slot and no history yet: make the slot.
    Create,
    /// A slot that was not read from: history begins at its position.
    Adopt(Lsn),
    Resume(Lsn),
    /// A process is making the slot: wait until it is there, or gone.
    BeingMade {
        pid: Option<i32>,
        /// It was intended from here, so the process works for a predecessor that is gone.
        intended: bool,
    },
    /// A standby that cannot be read from yet: wait.
    NotYet(NotYet),
}

/// What a standby has to do before it can be read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotYet {
    /// Be promoted: the slot is a copy of the primary's.
    Promote,
    /// Receive the WAL up to this position, which was already read.
    Receive(Lsn),
}

/// The first version with logical decoding on a standby.
const DECODES_ON_STANDBY: u32 = 16;

impl fmt::Display for NotYet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Promote => f.write_str(
                "the slot is synchronized from the primary; waiting until this standby is promoted",
            ),
            Self::Receive(lsn) => write!(
                f,
                "the standby has no WAL up to {lsn}, which was already read; waiting until it has"
            ),
        }
    }
}

impl NotYet {
    pub(crate) fn remedy(self) -> &'static str {
        match self {
            Self::Promote => {
                "point source.dsn at the primary; or, to read from this standby, choose another source.slot"
            }
            Self::Receive(_) => "see pg_stat_wal_receiver on the source if it does not go on",
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Situation<'a> {
    pub name: &'a str,
    pub database: &'a str,
    pub slot: Option<&'a SlotState>,
    pub known: Option<Checkpoint>,
    pub identity: Identity,
    pub server: Server,
    /// Where the server left the checkpoint's timeline, when it is on another one.
    pub fork: Option<Lsn>,
    /// Whether no history table holds a row.
    pub history_is_empty: bool,
    /// The latest point at which existing rows were recorded.
    pub rows_of: Option<Lsn>,
    /// The history tables, for statements that the operator may have to run.
    pub histories: &'a [TableName],
}

fn wrong(anchor: &'static str, message: String) -> Fault {
    Fault::halt(Exit::HistoryWouldBeWrong, message).see(anchor)
}

/// Whether the stream may start, and from where.
///
/// # Errors
/// Exit 65 for everything that would leave a gap or a double, saying which range is missing and what can
/// be done; exit 78 for a slot that is not for this program.
pub(crate) fn decide(situation: &Situation<'_>) -> Result<Decision> {
    let Situation {
        name,
        slot,
        known,
        identity,
        ..
    } = *situation;
    if let Some(slot) = slot {
        check_kind(situation, slot)?;
    }
    if let Some(known) = known {
        check_cluster(situation, known)?;
        // A standby that was restarted receives it again.
        if let Some(seen) = behind(situation, known) {
            return Ok(Decision::NotYet(NotYet::Receive(seen)));
        }
    }
    let end_lsn = known.and_then(|known| known.end_lsn);
    if situation.server.in_recovery {
        if slot.is_some_and(|slot| slot.synced) {
            return Ok(Decision::NotYet(NotYet::Promote));
        }
        check_standby(situation, end_lsn)?;
    }
    match (slot, end_lsn) {
        (None, None) => Ok(Decision::Create),
        (None, Some(end_lsn)) => Err(wrong("the-slot-does-not-exist", format!(
            "replication slot \"{name}\" does not exist, but the history ends at {end_lsn}: changes from there \
             to the source's present position {} are missing if a new one is made",
            identity.flushed
        ))
        .remedy(ACCEPT)),
        (Some(slot), _) if slot.is_being_made() => Ok(Decision::BeingMade {
            pid: slot.active_pid,
            intended: known.is_some() && end_lsn.is_none(),
        }),
        (Some(slot), end_lsn) => {
            let confirmed = check_alive(situation, slot, end_lsn)?;
            match end_lsn {
                None if known.is_some() => Ok(Decision::Adopt(confirmed)),
                None if situation.history_is_empty && slot.was_read => Err(wrong("the-slot-was-read-for-another-target", format!(
                    "replication slot \"{name}\" was read up to {confirmed}, and the target has no checkpoint for it: what \
                     was read is in another target"
                ))
                .remedy(
                    "correct target.dsn; or choose another source.slot; or, for a history that begins now, waltrail accept-gap",
                )),
                None if situation.history_is_empty => Ok(Decision::Adopt(confirmed)),
                None => Err(wrong("the-checkpoint-is-missing", format!(
                    "replication slot \"{name}\" exists and the history tables hold rows, but the target has no \
                     checkpoint for it: changes after {confirmed} might be recorded twice"
                ))
                .remedy(format!("restore the table waltrail.checkpoint; {ACCEPT}"))),
                Some(end_lsn) => {
                    check_not_ahead(situation, known, confirmed, end_lsn)?;
                    Ok(Decision::Resume(end_lsn))
                }
            }
        }
    }
}

fn check_kind(situation: &Situation<'_>, slot: &SlotState) -> Result<()> {
    let name = situation.name;
    let refuse = |what: String, remedy: &str| {
        Err(Fault::halt(Exit::Config, format!("replication slot \"{name}\" {what}")).remedy(remedy))
    };
    let rename = "choose another name with source.slot, or drop that slot if it is not needed";
    match slot.plugin.as_deref() {
        Some("pgoutput") => {}
        // Its making has just begun.
        Some("") if slot.is_being_made() => {}
        Some(plugin) => {
            return refuse(
                format!("belongs to the plugin {plugin}, not to pgoutput"),
                rename,
            );
        }
        None => return refuse("is a physical slot".to_owned(), rename),
    }
    match slot.database.as_deref() {
        Some(database) if database == situation.database => {}
        other => {
            let other = other.unwrap_or("none");
            return refuse(
                format!(
                    "belongs to the database {other}, not to {}",
                    situation.database
                ),
                rename,
            );
        }
    }
    if slot.two_phase {
        return refuse(
            "decodes prepared transactions (two_phase), which this program does not read"
                .to_owned(),
            "choose another name with source.slot, or re-create the slot without two_phase",
        );
    }
    Ok(())
}

/// Refuses a standby that cannot decode.
fn check_standby(situation: &Situation<'_>, end_lsn: Option<Lsn>) -> Result<()> {
    let major = situation.server.major;
    if major >= DECODES_ON_STANDBY {
        return Ok(());
    }
    let message = format!(
        "the source is a standby that runs PostgreSQL {major}, which does not decode there"
    );
    Err(match end_lsn {
        // It takes the primary's place in a moment.
        Some(_) => Fault::reconnect(message).of(Side::Source).remedy("promote it, or point source.dsn at the primary"),
        None => Fault::halt(Exit::Config, message).remedy(format!(
            "point source.dsn at the primary, or follow a standby that runs PostgreSQL {DECODES_ON_STANDBY} or later"
        )),
    })
}

fn check_cluster(situation: &Situation<'_>, known: Checkpoint) -> Result<()> {
    let Situation {
        name,
        identity,
        fork,
        ..
    } = *situation;
    if known.system_identifier != identity.system_identifier {
        let upgraded = situation.slot.is_some() && situation.server.major >= failover::FIRST;
        return Err(wrong("the-source-is-another-cluster", format!(
            "the source is another cluster: its system identifier is {}, the checkpoint of slot \"{name}\" is \
             from {}",
            identity.system_identifier, known.system_identifier
        ))
        .remedy(format!(
            "correct source.dsn; if another waltrail follows that cluster into this target, choose another source.slot; \
             {}if this source takes its place for good: waltrail accept-gap --source-replaced",
            if upgraded { "after pg_upgrade: waltrail adopt; " } else { "" }
        )));
    }
    let Some(end_lsn) = known.end_lsn else {
        return Ok(());
    };
    // The stream may be far before a snapshot that it has joined.
    let end_lsn = end_lsn.max(situation.rows_of.unwrap_or(end_lsn));
    if known.timeline != identity.timeline {
        match fork {
            Some(fork) if fork >= end_lsn => {}
            Some(fork) => {
                return Err(wrong("the-source-was-promoted-before-the-end-of-the-history", format!(
                    "the source was promoted from timeline {} at {fork}, before the history's end {end_lsn}: the \
                     history holds transactions between the two that this server never had, and this server \
                     has others there",
                    known.timeline
                ))
                .remedy(format!(
                    "{}, or keep these rows as a record of what was lost; {ACCEPT}",
                    delete_past(situation.histories, fork)
                )));
            }
            None => {
                return Err(wrong("the-source-is-on-an-unrelated-timeline", format!(
                    "the source is on timeline {}, which does not descend from timeline {} that the checkpoint \
                     of slot \"{name}\" is on",
                    identity.timeline, known.timeline
                ))
                .remedy(format!("correct source.dsn; {ACCEPT}")));
            }
        }
    }
    let Some(seen) = behind(situation, known) else {
        return Ok(());
    };
    if !situation.server.in_recovery {
        return Err(wrong("the-source-was-restored-from-an-older-state", format!(
            "the source's WAL ends at {}, before the position {seen} that was already read from it: it was restored \
             from an older state, and its next changes would take the place of others in the history",
            identity.flushed
        ))
        .remedy(format!("correct source.dsn; {ACCEPT}")));
    }
    Ok(())
}

/// The position that was already read from the source, when its WAL ends before.
fn behind(situation: &Situation<'_>, known: Checkpoint) -> Option<Lsn> {
    let end_lsn = known.end_lsn?;
    let reported = known.reported_on_this_timeline(situation.fork);
    let seen = reported
        .max(end_lsn)
        .max(situation.rows_of.unwrap_or(end_lsn));
    (situation.identity.flushed < seen).then_some(seen)
}

/// Refuses a slot whose WAL is gone; returns its confirmed position.
fn check_alive(situation: &Situation<'_>, slot: &SlotState, end_lsn: Option<Lsn>) -> Result<Lsn> {
    let name = situation.name;
    let lost = slot.wal_status.as_deref() == Some("lost")
        || slot.invalidation_reason.is_some()
        || (slot.restart_lsn.is_none() && slot.active_pid.is_none());
    match slot.confirmed_flush {
        Some(confirmed) if !lost => Ok(confirmed),
        confirmed => {
            let from = end_lsn.or(confirmed).unwrap_or_default();
            let reason = slot
                .invalidation_reason
                .as_deref()
                .unwrap_or("the WAL that it needs was removed");
            Err(wrong("the-slot-is-lost", format!(
                "replication slot \"{name}\" is lost ({reason}): changes from {from} to the source's present position \
                 {} are missing",
                situation.identity.flushed
            ))
            .remedy(format!("{}; {ACCEPT}", failover::against(reason))))
        }
    }
}

fn check_not_ahead(
    situation: &Situation<'_>,
    known: Option<Checkpoint>,
    confirmed: Lsn,
    end_lsn: Lsn,
) -> Result<()> {
    let name = situation.name;
    let reported = known.map_or(end_lsn, |known| {
        known.reported_on_this_timeline(situation.fork).max(end_lsn)
    });
    if confirmed <= reported {
        return Ok(());
    }
    Err(wrong("the-slot-is-ahead-of-the-history", format!(
        "replication slot \"{name}\" is at {confirmed}, ahead of {reported}, the last position that was confirmed from \
         here: another process read from it, or it was re-created, and changes between {end_lsn} and {confirmed} are \
         missing"
    ))
    .remedy(format!("find what moved the slot (one slot serves one waltrail); {ACCEPT}")))
}

/// The statements that remove what the source never had. A commit record that begins at the fork is not on the new
/// timeline.
fn delete_past(histories: &[TableName], fork: Lsn) -> String {
    let statements: Vec<_> = histories
        .iter()
        .map(|history| format!("DELETE FROM {history} WHERE commit_lsn >= '{fork}'"))
        .collect();
    format!(
        "remove the history rows at or past the fork: {}",
        statements.join("; ")
    )
}

/// What a person types who decides that the history goes on without what is missing.
const ACCEPT: &str = "to go on without them: waltrail accept-gap";

#[cfg(test)]
mod tests;
