//! The replication slot, and whether the stream may start from the checkpoint (invariant I4).
//!
//! The server believes whatever position it is asked for: one before the slot's is silently raised to the
//! slot's, one ahead skips what lies between. So the slot is compared with the checkpoint here, before
//! the stream starts and again right after, and everything that would leave a gap or a double stops with
//! exit code 65. [`decide`] is pure; each of its rows is a test.

mod queries;

pub(crate) use queries::{Waited, end_making, inspect, position, waited_for, writers};

use crate::checkpoint::Checkpoint;
use crate::fault::{Exit, Fault, Result};
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
    /// Why the server invalidated it (17 and later).
    pub invalidation_reason: Option<String>,
    pub two_phase: bool,
    /// Transactions were read from it.
    pub was_read: bool,
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
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Situation<'a> {
    pub name: &'a str,
    pub database: &'a str,
    pub slot: Option<&'a SlotState>,
    pub known: Option<Checkpoint>,
    pub identity: Identity,
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
    }
    let end_lsn = known.and_then(|known| known.end_lsn);
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

fn check_cluster(situation: &Situation<'_>, known: Checkpoint) -> Result<()> {
    let Situation {
        name,
        identity,
        fork,
        ..
    } = *situation;
    if known.system_identifier != identity.system_identifier {
        return Err(wrong("the-source-is-another-cluster", format!(
            "the source is another cluster: its system identifier is {}, the checkpoint of slot \"{name}\" is \
             from {}",
            identity.system_identifier, known.system_identifier
        ))
        .remedy(
            "correct source.dsn; if another waltrail follows that cluster into this target, choose another source.slot; \
             if this source takes its place for good: waltrail accept-gap --source-replaced",
        ));
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
    let seen = known
        .reported_lsn
        .map_or(end_lsn, |reported| reported.max(end_lsn));
    if identity.flushed < seen {
        return Err(wrong("the-source-was-restored-from-an-older-state", format!(
            "the source's WAL ends at {}, before the position {seen} that was already read from it: it was restored \
             from an older state, and its next changes would take the place of others in the history",
            identity.flushed
        ))
        .remedy(format!("correct source.dsn; {ACCEPT}")));
    }
    Ok(())
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
            .remedy(format!("raise max_slot_wal_keep_size if it was the limit; {ACCEPT}")))
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
    let reported = known
        .and_then(|known| known.reported_lsn)
        .map_or(end_lsn, |lsn| lsn.max(end_lsn));
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
mod tests {
    mod making;

    use super::*;
    use crate::fault::Disposition;

    fn lsn(raw: u64) -> Lsn {
        Lsn::from_u64(raw)
    }

    fn slot(confirmed: u64) -> SlotState {
        SlotState {
            plugin: Some("pgoutput".to_owned()),
            database: Some("app".to_owned()),
            confirmed_flush: Some(lsn(confirmed)),
            restart_lsn: Some(lsn(1)),
            wal_status: Some("reserved".to_owned()),
            ..SlotState::default()
        }
    }

    fn known(end: u64, reported: u64) -> Checkpoint {
        Checkpoint {
            system_identifier: 7,
            timeline: 1,
            end_lsn: Some(lsn(end)),
            reported_lsn: Some(lsn(reported)),
            commit_time: None,
        }
    }

    fn situation(slot: Option<&SlotState>, known: Option<Checkpoint>) -> Situation<'_> {
        Situation {
            name: "waltrail",
            database: "app",
            slot,
            known,
            identity: Identity {
                system_identifier: 7,
                timeline: 1,
                flushed: lsn(1000),
            },
            fork: None,
            history_is_empty: true,
            rows_of: None,
            histories: &[],
        }
    }

    #[track_caller]
    fn refused(situation: &Situation<'_>, exit: Exit, word: &str) {
        let fault = decide(situation).unwrap_err();
        assert_eq!(fault.disposition(), Disposition::Halt(exit));
        assert!(fault.to_string().contains(word), "{fault}");
        assert!(fault.remedy_text().is_some());
    }

    const WRONG: Exit = Exit::HistoryWouldBeWrong;

    #[test]
    fn a_first_start_makes_the_slot() {
        assert_eq!(decide(&situation(None, None)).unwrap(), Decision::Create);
        let intent = Checkpoint {
            end_lsn: None,
            reported_lsn: None,
            ..known(0, 0)
        };
        assert_eq!(
            decide(&situation(None, Some(intent))).unwrap(),
            Decision::Create
        );
    }

    #[test]
    fn a_slot_made_and_not_yet_recorded_is_adopted() {
        let intent = Checkpoint {
            end_lsn: None,
            reported_lsn: None,
            ..known(0, 0)
        };
        let slot = slot(50);
        let mut situation = situation(Some(&slot), Some(intent));
        situation.history_is_empty = false;
        assert_eq!(decide(&situation).unwrap(), Decision::Adopt(lsn(50)));
    }

    #[test]
    fn a_slot_without_checkpoint_is_adopted_only_for_an_empty_history() {
        let slot = slot(50);
        let mut situation = situation(Some(&slot), None);
        assert_eq!(decide(&situation).unwrap(), Decision::Adopt(lsn(50)));
        situation.history_is_empty = false;
        refused(&situation, WRONG, "no checkpoint");
    }

    #[test]
    fn a_slot_that_was_read_is_adopted_only_by_a_target_that_knows_it() {
        let read = SlotState {
            was_read: true,
            ..slot(50)
        };
        refused(&situation(Some(&read), None), WRONG, "another target");
        let intent = Checkpoint {
            end_lsn: None,
            reported_lsn: None,
            ..known(0, 0)
        };
        let situation = situation(Some(&read), Some(intent));
        assert_eq!(decide(&situation).unwrap(), Decision::Adopt(lsn(50)));
    }

    #[test]
    fn a_slot_before_the_checkpoint_is_normal() {
        assert_eq!(
            decide(&situation(Some(&slot(50)), Some(known(80, 90)))).unwrap(),
            Decision::Resume(lsn(80))
        );
    }

    #[test]
    fn a_slot_at_the_checkpoint_starts() {
        assert_eq!(
            decide(&situation(Some(&slot(80)), Some(known(80, 80)))).unwrap(),
            Decision::Resume(lsn(80))
        );
    }

    #[test]
    fn a_slot_that_followed_reported_keepalives_starts() {
        assert_eq!(
            decide(&situation(Some(&slot(90)), Some(known(80, 90)))).unwrap(),
            Decision::Resume(lsn(80))
        );
    }

    #[test]
    fn a_slot_ahead_of_what_was_reported_is_refused() {
        refused(
            &situation(Some(&slot(91)), Some(known(80, 90))),
            WRONG,
            "ahead",
        );
    }

    #[test]
    fn a_missing_slot_is_refused() {
        refused(
            &situation(None, Some(known(80, 90))),
            WRONG,
            "does not exist",
        );
    }

    #[test]
    fn a_lost_slot_is_refused() {
        let lost = SlotState {
            wal_status: Some("lost".to_owned()),
            restart_lsn: None,
            ..slot(50)
        };
        refused(&situation(Some(&lost), Some(known(80, 90))), WRONG, "lost");
        let idle = SlotState {
            invalidation_reason: Some("idle_timeout".to_owned()),
            ..slot(50)
        };
        refused(
            &situation(Some(&idle), Some(known(80, 90))),
            WRONG,
            "idle_timeout",
        );
    }

    #[test]
    fn another_cluster_is_refused() {
        let slot = slot(80);
        let other = Checkpoint {
            system_identifier: 8,
            ..known(80, 90)
        };
        refused(
            &situation(Some(&slot), Some(other)),
            WRONG,
            "another cluster",
        );
    }

    #[test]
    fn source_wal_that_ends_before_the_checkpoint_is_refused() {
        refused(
            &situation(Some(&slot(80)), Some(known(2000, 2000))),
            WRONG,
            "restored",
        );
    }

    #[test]
    fn a_promotion_past_the_checkpoint_is_followed_and_one_before_it_refused() {
        let slot = slot(80);
        let mut situation = situation(Some(&slot), Some(known(80, 90)));
        situation.identity.timeline = 2;
        situation.fork = Some(lsn(80));
        assert_eq!(decide(&situation).unwrap(), Decision::Resume(lsn(80)));
        situation.fork = Some(lsn(79));
        refused(&situation, WRONG, "promoted");
        situation.fork = None;
        refused(&situation, WRONG, "descend");
    }

    #[test]
    fn existing_rows_from_past_a_promotion_are_refused() {
        let slot = slot(80);
        let mut situation = situation(Some(&slot), Some(known(80, 80)));
        situation.rows_of = Some(lsn(95));
        assert_eq!(decide(&situation).unwrap(), Decision::Resume(lsn(80)));
        situation.identity.timeline = 2;
        situation.fork = Some(lsn(95));
        assert_eq!(decide(&situation).unwrap(), Decision::Resume(lsn(80)));
        situation.fork = Some(lsn(90));
        refused(&situation, WRONG, "promoted");
        situation.fork = None;
        situation.identity.timeline = 1;
        situation.rows_of = Some(lsn(2000));
        refused(&situation, WRONG, "restored");
    }

    #[test]
    fn a_slot_for_somebody_else_is_refused() {
        let plugin = SlotState {
            plugin: Some("test_decoding".to_owned()),
            ..slot(1)
        };
        refused(
            &situation(Some(&plugin), None),
            Exit::Config,
            "test_decoding",
        );
        let physical = SlotState {
            plugin: None,
            ..slot(1)
        };
        refused(&situation(Some(&physical), None), Exit::Config, "physical");
        let database = SlotState {
            database: Some("other".to_owned()),
            ..slot(1)
        };
        refused(&situation(Some(&database), None), Exit::Config, "other");
        let two_phase = SlotState {
            two_phase: true,
            ..slot(1)
        };
        refused(
            &situation(Some(&two_phase), None),
            Exit::Config,
            "two_phase",
        );
    }
}
