//! Unit tests of `transaction`.

use waltrail::lsn::Lsn;
use waltrail::pgoutput::{Begin, Commit, Timestamp};
use waltrail::transaction::*;

fn lsn(raw: u64) -> Lsn {
    Lsn::from_u64(raw)
}

fn begin(commit: u64) -> Begin {
    Begin {
        commit_lsn: lsn(commit),
        commit_time: Timestamp(0),
        xid: 1,
    }
}

fn commit(commit: u64, end: u64) -> Commit {
    Commit {
        commit_lsn: lsn(commit),
        end_lsn: lsn(end),
        commit_time: Timestamp(0),
    }
}

#[test]
fn a_transaction_is_new_exactly_when_it_ends_past_the_checkpoint() {
    let mut assembler = Assembler::new(lsn(100));
    assembler.begin(&begin(60)).unwrap();
    assert!(assembler.open().unwrap().known);
    assembler.commit(&commit(60, 100)).unwrap();
    // The next commit record can start exactly at the checkpoint.
    assembler.begin(&begin(100)).unwrap();
    assert!(!assembler.open().unwrap().known);
    assert_eq!(
        assembler.commit(&commit(100, 140)).unwrap().end_lsn,
        lsn(140)
    );
}

#[test]
fn every_other_order_is_refused() {
    let mut assembler = Assembler::new(lsn(10));
    assert_eq!(assembler.open().unwrap_err(), OrderError::Outside("change"));
    assert_eq!(
        assembler.commit(&commit(20, 30)).unwrap_err(),
        OrderError::Outside("commit")
    );
    assembler.begin(&begin(20)).unwrap();
    assert_eq!(
        assembler.begin(&begin(40)).unwrap_err(),
        OrderError::NestedBegin(lsn(20))
    );
    assert_eq!(
        assembler.commit(&commit(21, 30)).unwrap_err(),
        OrderError::Mismatch(lsn(20), lsn(21))
    );
    assembler.begin(&begin(40)).unwrap();
    assembler.commit(&commit(40, 50)).unwrap();
    assert_eq!(
        assembler.begin(&begin(40)).unwrap_err(),
        OrderError::Backwards(lsn(40), lsn(40))
    );
}

#[test]
fn a_checkpoint_inside_a_commit_record_is_refused() {
    let mut assembler = Assembler::new(lsn(25));
    assembler.begin(&begin(20)).unwrap();
    assert_eq!(
        assembler.commit(&commit(20, 30)).unwrap_err(),
        OrderError::CheckpointInsideCommit(lsn(25))
    );
}

#[test]
fn a_stream_from_before_the_checkpoint_must_have_the_transaction_that_ends_there() {
    let expecting = || {
        let mut assembler = Assembler::new(lsn(100));
        assembler.expect_checkpoint(Timestamp(0));
        assembler
    };
    let unrecognized = OrderError::Unrecognized(lsn(100));
    let mut same = expecting();
    same.begin(&begin(20)).unwrap();
    same.commit(&commit(20, 40)).unwrap();
    same.begin(&begin(60)).unwrap();
    same.commit(&commit(60, 100)).unwrap();
    same.begin(&begin(100)).unwrap();
    same.commit(&commit(100, 140)).unwrap();
    // None ends there.
    let mut other = expecting();
    other.begin(&begin(20)).unwrap();
    other.commit(&commit(20, 90)).unwrap();
    assert_eq!(other.begin(&begin(110)).unwrap_err(), unrecognized);
    // The source says that it has read on.
    let other = expecting();
    assert_eq!(other.processed(lsn(99)), Ok(()));
    assert_eq!(other.processed(lsn(100)), Err(unrecognized));
    // One goes over it.
    let mut other = expecting();
    other.begin(&begin(90)).unwrap();
    assert_eq!(other.commit(&commit(90, 110)), Err(unrecognized));
    // Another one ends there.
    let mut other = Assembler::new(lsn(100));
    other.expect_checkpoint(Timestamp(7));
    other.begin(&begin(60)).unwrap();
    assert_eq!(other.commit(&commit(60, 100)), Err(unrecognized));
}
