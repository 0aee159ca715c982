//! A slot while it is made.

use super::*;

/// What `pg_replication_slots` shows of a slot while it is made, from the first moment to the last, on 14 to 18.
#[test]
fn a_slot_that_is_being_made_is_waited_for_in_every_state() {
    let making = |plugin: &str, restart: Option<u64>, wal_status: Option<&str>| SlotState {
        plugin: Some(plugin.to_owned()),
        active_pid: Some(5),
        confirmed_flush: None,
        restart_lsn: restart.map(lsn),
        wal_status: wal_status.map(str::to_owned),
        ..slot(1)
    };
    let states = [
        making("", None, None),
        making("pgoutput", None, None),
        making("pgoutput", Some(1), Some("reserved")),
        making("pgoutput", Some(1), Some("extended")),
        making("pgoutput", Some(1), Some("unreserved")),
        // Its WAL is gone before it was finished: the server ends its process.
        making("pgoutput", None, Some("lost")),
        SlotState {
            invalidation_reason: Some("wal_removed".to_owned()),
            ..making("pgoutput", None, Some("lost"))
        },
        // Its process has just ended.
        SlotState {
            active_pid: None,
            ..making("pgoutput", Some(1), Some("reserved"))
        },
    ];
    let intent = Checkpoint {
        end_lsn: None,
        reported_lsn: None,
        ..known(0, 0)
    };
    let checkpoints = [
        (None, false),
        (Some(intent), true),
        // Another process makes it anew: once it is made, that is refused.
        (Some(known(80, 90)), false),
    ];
    for state in &states {
        for (known, intended) in checkpoints {
            let pid = state.active_pid;
            let wanted = Decision::BeingMade { pid, intended };
            assert_eq!(
                decide(&situation(Some(state), known)).unwrap(),
                wanted,
                "{state:?}"
            );
        }
    }
}

#[test]
fn an_unfinished_slot_that_is_for_another_program_is_refused() {
    let other = SlotState {
        plugin: Some("test_decoding".to_owned()),
        active_pid: Some(5),
        confirmed_flush: None,
        ..slot(1)
    };
    refused(
        &situation(Some(&other), None),
        Exit::Config,
        "test_decoding",
    );
    let physical = SlotState {
        plugin: None,
        ..other
    };
    refused(&situation(Some(&physical), None), Exit::Config, "physical");
}

#[test]
fn a_slot_that_was_just_finished_is_adopted_while_its_process_still_has_it() {
    let finished = SlotState {
        active_pid: Some(5),
        ..slot(50)
    };
    assert_eq!(
        decide(&situation(Some(&finished), None)).unwrap(),
        Decision::Adopt(lsn(50))
    );
}
