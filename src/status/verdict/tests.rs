use super::*;
use crate::status::sample::{gap, good, snapshot, table};
use crate::status::{Holder, OldTransaction, Waits};

/// The level, the state and the codes of a picture that a daemon has not taken itself.
fn told(status: &Status) -> (Level, &'static str, Vec<&'static str>) {
    told_with(status, &Beside::default())
}

fn told_with(status: &Status, beside: &Beside) -> (Level, &'static str, Vec<&'static str>) {
    let verdict = of(status, beside);
    assert!(STATES.contains(&verdict.state));
    for reason in &verdict.reasons {
        assert!(
            !reason.text.is_empty() && !reason.remedy.is_empty(),
            "{reason:?}"
        );
    }
    let codes = verdict.reasons.iter().map(|reason| reason.code).collect();
    (verdict.level, verdict.state, codes)
}

#[test]
fn a_daemon_that_streams_is_good() {
    assert_eq!(told(&good()), (Level::Good, "streaming", vec![]));
}

#[test]
fn what_was_never_set_up_is_said_to_be_so() {
    let mut status = good();
    (status.source, status.checkpoint, status.daemon) = (None, None, None);
    status.publication.as_mut().unwrap().tables = 0;
    let codes = vec!["slot-missing", "not-running"];
    assert_eq!(told(&status), (Level::Broken, "not set up", codes));
}

#[test]
fn a_slot_that_is_missing_or_lost_is_broken() {
    let mut missing = good();
    (missing.source, missing.daemon) = (None, None);
    let codes = vec!["slot-missing", "not-running"];
    assert_eq!(told(&missing), (Level::Broken, "not running", codes));
    for (wal_status, reason) in [("lost", None), ("reserved", Some("rows_removed"))] {
        let mut lost = good();
        lost.daemon = None;
        let slot = lost.source.as_mut().unwrap();
        slot.wal_status = Some(wal_status.to_owned());
        slot.invalidation_reason = reason.map(str::to_owned);
        (slot.active, slot.active_pid) = (false, None);
        let codes = vec!["slot-lost", "not-running"];
        assert_eq!(told(&lost), (Level::Broken, "not running", codes));
    }
}

#[test]
fn a_slot_that_will_be_lost_soon_is_a_warning() {
    let mut status = good();
    let rate = status.rate.as_mut().unwrap();
    rate.seconds_left = Some(SLOT_LEFT_MIN - 1.0);
    let verdict = of(&status, &Beside::default());
    assert_eq!(verdict.level, Level::Warning);
    assert_eq!(verdict.reasons[0].code, "slot-in-danger");
    assert!(
        verdict.reasons[0].text.contains("1 h 59 min"),
        "{verdict:?}"
    );
    assert!(verdict.reasons[0].text.contains("900.0 MiB"), "{verdict:?}");
    status.rate.as_mut().unwrap().seconds_left = Some(SLOT_LEFT_MIN);
    assert_eq!(told(&status).0, Level::Good);
    status.source.as_mut().unwrap().wal_status = Some("unreserved".to_owned());
    let codes = vec!["slot-in-danger"];
    assert_eq!(told(&status), (Level::Warning, "streaming", codes));
}

#[test]
fn a_daemon_whose_slot_is_not_read_waits() {
    let mut status = good();
    let slot = status.source.as_mut().unwrap();
    (slot.active, slot.active_pid) = (false, None);
    let codes = vec!["slot-inactive"];
    assert_eq!(told(&status), (Level::Warning, "waiting", codes));
}

#[test]
fn without_a_daemon_or_with_one_that_hangs_nothing_is_recorded() {
    let mut status = good();
    status.daemon = None;
    let codes = vec!["not-running"];
    assert_eq!(told(&status), (Level::Broken, "not running", codes.clone()));
    let mut silent = good();
    silent.daemon.as_mut().unwrap().silent_seconds = Some(SILENT_MAX + 1.0);
    assert_eq!(told(&silent), (Level::Broken, "not running", codes));
}

#[test]
fn a_server_that_is_away_is_broken_and_the_rest_is_still_judged() {
    let mut source = good();
    source.source_error = Some("could not connect to the source".to_owned());
    (source.source, source.publication) = (None, None);
    (source.servers.source_version, source.servers.source_role) = (None, None);
    (source.lag_bytes, source.lag_seconds) = (None, None);
    let codes = vec!["source-down"];
    assert_eq!(told(&source), (Level::Broken, "waiting", codes));
    source.daemon = None;
    let codes = vec!["source-down", "not-running"];
    assert_eq!(told(&source), (Level::Broken, "not running", codes));

    let mut target = good();
    target.target_error = Some("could not connect to the target".to_owned());
    (target.daemon, target.checkpoint) = (None, None);
    target.tables.clear();
    target.servers.target_version = None;
    let codes = vec!["target-down"];
    assert_eq!(told(&target), (Level::Broken, "cannot tell", codes.clone()));
    // The daemon knows of itself that it runs.
    let inside = Beside {
        inside: true,
        ..Beside::default()
    };
    assert_eq!(
        told_with(&target, &inside),
        (Level::Broken, "waiting", codes)
    );

    target.source_error = Some("could not connect to the source".to_owned());
    (target.source, target.publication, target.servers) = (None, None, Default::default());
    let codes = vec!["source-down", "target-down"];
    assert_eq!(told(&target), (Level::Broken, "cannot tell", codes));
}

#[test]
fn the_remedy_of_a_server_that_is_away_is_that_of_its_fault() {
    let mut status = good();
    status.source_error = Some("no".to_owned());
    status.servers.source_version = None;
    let beside = Beside {
        source_remedy: Some("say please".to_owned()),
        ..Beside::default()
    };
    assert_eq!(of(&status, &beside).reasons[0].remedy, "say please");
}

#[test]
fn a_gap_that_nobody_has_accepted_is_broken() {
    let mut status = good();
    status.daemon = None;
    status.tables.push(table("public.other"));
    for table in &mut status.tables {
        table.gap = Some(gap(false));
    }
    let verdict = of(&status, &Beside::default());
    assert_eq!(verdict.level, Level::Broken);
    assert_eq!(verdict.reasons[0].code, "gap-not-accepted");
    assert!(
        verdict.reasons[0].text.contains("1 more tables"),
        "{verdict:?}"
    );
    for table in &mut status.tables {
        table.gap = Some(gap(true));
    }
    assert_eq!(told(&status).2, ["not-running"]);
}

#[test]
fn a_publication_without_tables_is_broken() {
    let mut status = good();
    status.publication.as_mut().unwrap().tables = 0;
    let codes = vec!["publication-empty"];
    assert_eq!(told(&status), (Level::Broken, "streaming", codes.clone()));
    status.publication.as_mut().unwrap().exists = false;
    assert_eq!(told(&status).2, codes);
}

#[test]
fn lag_of_more_than_a_minute_is_a_warning() {
    let mut status = good();
    (status.lag_seconds, status.lag_bytes) = (Some(LAG_MAX), Some(5 << 20));
    assert_eq!(told(&status).0, Level::Good);
    status.lag_seconds = Some(LAG_MAX + 1.0);
    let codes = vec!["lagging"];
    assert_eq!(told(&status), (Level::Warning, "catching up", codes));
}

#[test]
fn a_lock_that_is_waited_for_is_said_with_who_holds_it() {
    let mut status = good();
    status.waits = Some(Waits {
        seconds: WAIT_MAX + 1.0,
        lock: Some("public.employees_cdc".to_owned()),
        held_by: vec![Holder {
            pid: 7,
            application: Some("report".to_owned()),
            statement: Some("LOCK TABLE employees_cdc".to_owned()),
        }],
    });
    let verdict = of(&status, &Beside::default());
    assert_eq!((verdict.level, verdict.state), (Level::Warning, "waiting"));
    let says = "a lock on public.employees_cdc in the target, held by pid 7 (report): LOCK TABLE employees_cdc";
    assert!(verdict.reasons[0].text.contains(says), "{verdict:?}");
    status.waits.as_mut().unwrap().seconds = WAIT_MAX;
    assert_eq!(told(&status).0, Level::Good);
    status.target_error =
        Some("waiting for a lock on waltrail.checkpoint, held by pid 7".to_owned());
    let beside = Beside {
        locked: true,
        ..Beside::default()
    };
    assert_eq!(told_with(&status, &beside).2, ["waits"]);
}

#[test]
fn existing_rows_are_recorded_and_can_be_stuck() {
    let mut status = good();
    status.tables[0].snapshot = Some(snapshot("copying"));
    assert_eq!(
        told(&status),
        (Level::Good, "recording existing rows", vec![])
    );
    let snapshot = status.tables[0].snapshot.as_mut().unwrap();
    snapshot.still_seconds = Some(STILL_MAX + 1.0);
    let codes = vec!["snapshot-stuck"];
    assert_eq!(
        told(&status),
        (Level::Warning, "recording existing rows", codes)
    );
}

#[test]
fn a_long_transaction_is_a_warning_with_the_statement_that_ends_it() {
    let mut status = good();
    status.oldest_transaction = Some(OldTransaction {
        pid: Some(8),
        application: Some("psql".to_owned()),
        seconds: Some(TRANSACTION_MAX + 1.0),
        xmin_age: 5,
    });
    let verdict = of(&status, &Beside::default());
    assert_eq!(verdict.reasons[0].code, "long-transaction");
    assert!(
        verdict.reasons[0]
            .remedy
            .contains("pg_terminate_backend(8)"),
        "{verdict:?}"
    );
    let prepared = status.oldest_transaction.as_mut().unwrap();
    (prepared.pid, prepared.application) = (None, Some("it's".to_owned()));
    let verdict = of(&status, &Beside::default());
    assert!(
        verdict.reasons[0]
            .remedy
            .contains("ROLLBACK PREPARED 'it''s'"),
        "{verdict:?}"
    );
    status.oldest_transaction.as_mut().unwrap().seconds = Some(TRANSACTION_MAX);
    assert_eq!(told(&status).0, Level::Good);
}

#[test]
fn clocks_that_are_apart_are_a_warning() {
    let mut status = good();
    for (offset, level) in [
        (5.0, Level::Good),
        (5.1, Level::Warning),
        (-5.1, Level::Warning),
    ] {
        status.clock_offset_seconds = Some(offset);
        assert_eq!(told(&status).0, level, "{offset}");
    }
}

#[test]
fn the_worst_comes_first() {
    let mut status = good();
    status.clock_offset_seconds = Some(60.0);
    status.daemon = None;
    assert_eq!(told(&status).2, ["not-running", "clocks-apart"]);
}
