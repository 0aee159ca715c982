//! What slot and checkpoint may be, and what follows: a test a row.

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
        server: Server {
            major: 17,
            in_recovery: false,
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

#[test]
fn a_position_past_a_promotion_that_was_confirmed_without_a_change_is_followed() {
    // The former primary's keepalives went on; the standby had not received that.
    let mut slot = slot(80);
    let behind = slot.clone();
    let mut at = situation(Some(&behind), Some(known(80, 2000)));
    at.identity.timeline = 2;
    at.fork = Some(lsn(90));
    assert_eq!(decide(&at).unwrap(), Decision::Resume(lsn(80)));
    // What this server sent past the fork is not in the history.
    slot.confirmed_flush = Some(lsn(91));
    let mut ahead = situation(Some(&slot), Some(known(80, 2000)));
    ahead.identity.timeline = 2;
    ahead.fork = Some(lsn(90));
    refused(&ahead, WRONG, "ahead");
}

#[test]
fn a_standby_before_16_is_waited_for_where_it_takes_over_and_refused_elsewhere() {
    let own = slot(80);
    let mut standby = situation(Some(&own), Some(known(80, 90)));
    standby.server = Server {
        major: 15,
        in_recovery: true,
    };
    assert!(decide(&standby).unwrap_err().may_pass());
    standby.server.major = 16;
    assert_eq!(decide(&standby).unwrap(), Decision::Resume(lsn(80)));
    let mut first = situation(None, None);
    first.server = Server {
        major: 15,
        in_recovery: true,
    };
    refused(&first, Exit::Config, "PostgreSQL 15");
}

#[test]
fn a_standby_is_waited_for_until_it_is_promoted_or_has_what_was_read() {
    let synced = SlotState {
        synced: true,
        ..slot(80)
    };
    let mut standby = situation(Some(&synced), Some(known(80, 90)));
    standby.server.in_recovery = true;
    assert_eq!(decide(&standby).unwrap(), Decision::NotYet(NotYet::Promote));
    // It stays marked after the promotion.
    standby.server.in_recovery = false;
    assert_eq!(decide(&standby).unwrap(), Decision::Resume(lsn(80)));
    let own = slot(80);
    let mut standby = situation(Some(&own), Some(known(80, 2000)));
    standby.server.in_recovery = true;
    assert_eq!(
        decide(&standby).unwrap(),
        Decision::NotYet(NotYet::Receive(lsn(2000)))
    );
}
