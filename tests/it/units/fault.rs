//! Unit tests of `fault`.

use waltrail::fault::*;
use waltrail::lsn::Lsn;

#[test]
fn a_cause_is_told_once() {
    let io = std::io::Error::other("connection refused");
    let fault = Fault::retry("could not reach the source").caused_by(io);
    assert_eq!(
        fault.to_string(),
        "could not reach the source: connection refused"
    );
    let again =
        Fault::retry("connection refused").caused_by(std::io::Error::other("connection refused"));
    assert_eq!(again.to_string(), "connection refused");
}

#[test]
fn a_fault_names_the_range_that_is_missing() {
    let gap = Gap {
        from: Lsn::from_u64(0x10),
        to: None,
        histories: Vec::new(),
    };
    let fault = Fault::retry("the source could not send a change").after(gap.from);
    assert_eq!(fault.gap(), None);
    assert_eq!(
        fault.to_string(),
        "the source could not send a change after 0/10"
    );
    assert_eq!(fault.missing(gap.clone()).gap(), Some(&gap));
}
