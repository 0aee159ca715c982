//! Is every finding explained, and arranged by a test?

use waltrail::finding::CODES;

use crate::docs::codes_of_check;

/// What no test can arrange on one machine, and why. The pure function that decides it is tested beside it, or the refusal by
/// the tests of a start.
const NOT_ARRANGED: &[&str] = &[
    // Two clocks, two machines.
    "clocks-differ",
    "a-connection-in-the-clear",
    // A standby that streams: the tests of fail-over have one (`failover/`).
    "the-history-can-be-ahead-of-a-standby",
    "a-standby-may-lose-the-slot",
    // Versions that are not there.
    "version-too-old",
    "known-bugs",
    // A start's tests arrange these (`restart.rs`, `refusals.rs`, `gaps.rs`).
    "the-source-was-promoted-before-the-end-of-the-history",
];

#[test]
fn every_finding_is_explained_and_arranged() {
    assert_eq!(codes_of_check(), CODES);
    let tests = [
        include_str!("answers.rs"),
        include_str!("connections.rs"),
        include_str!("servers.rs"),
        include_str!("tables.rs"),
    ];
    for code in CODES {
        let quoted = format!("\"{code}\"");
        let arranged = tests.iter().any(|text| text.contains(&quoted));
        assert_ne!(arranged, NOT_ARRANGED.contains(code), "{code}");
    }
}
