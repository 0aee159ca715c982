//! Unit tests of `fault`.

use waltrail::fault::*;

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
