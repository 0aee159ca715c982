//! Unit tests of `source::feedback`.

use std::time::{Duration, Instant};

use waltrail::lsn::Lsn;
use waltrail::source::feedback::*;

const SECOND: Duration = Duration::from_secs(1);

fn lsn(raw: u64) -> Lsn {
    Lsn::from_u64(raw)
}

fn feedback(now: Instant) -> Feedback {
    let mut feedback = Feedback::new(lsn(100), 60 * SECOND, now);
    feedback.on_durable(lsn(100));
    feedback
}

#[test]
fn a_silent_stream_is_acknowledged_once() {
    let now = Instant::now();
    let mut feedback = feedback(now);
    feedback.status_due(now + 11 * SECOND).unwrap();
    let now = now + 12 * SECOND;
    feedback.on_quiet();
    assert_eq!(feedback.status_due(now), None, "nothing was received");
    feedback.on_begin();
    feedback.on_commit(lsn(200), true);
    assert_eq!(feedback.status_due(now), None);
    feedback.on_quiet();
    let status = feedback.status_due(now).unwrap();
    assert_eq!((status.received, status.flushed), (lsn(200), lsn(100)));
    feedback.on_quiet();
    assert_eq!(feedback.status_due(now), None);
}

#[test]
fn what_was_before_a_description_is_kept_until_the_catalogs_are_read() {
    let now = Instant::now();
    let mut feedback = feedback(now);
    let take = |end: u64, feedback: &mut Feedback| {
        feedback.on_commit(lsn(end), true);
        feedback.on_durable(lsn(end));
        feedback.final_status(now).flushed
    };
    feedback.on_seen(lsn(150));
    assert_eq!(take(200, &mut feedback), lsn(200));
    feedback.on_described(lsn(290));
    assert_eq!(take(300, &mut feedback), lsn(200));
    feedback.on_seen(lsn(250));
    assert_eq!(take(310, &mut feedback), lsn(250));
    feedback.on_seen(lsn(290));
    assert_eq!(take(320, &mut feedback), lsn(320));
}

#[test]
fn nothing_is_confirmed_before_it_is_durable() {
    let now = Instant::now();
    let mut feedback = feedback(now);
    feedback.on_begin();
    feedback.on_commit(lsn(500), true);
    feedback.on_keepalive(lsn(100 + 2 * REPORT_BYTES), true, now);
    assert_eq!(feedback.report_due(now), None);
    assert_eq!(feedback.status_due(now).unwrap().flushed, lsn(100));
    feedback.on_durable(lsn(500));
    assert_eq!(feedback.status_due(now + SECOND).unwrap().flushed, lsn(500));
}

#[test]
fn what_was_read_at_the_start_is_not_confirmed_before_it_is_durable() {
    let now = Instant::now();
    let mut feedback = Feedback::new(lsn(100), 60 * SECOND, now);
    feedback.on_keepalive(lsn(100 + 2 * REPORT_BYTES), true, now);
    assert_eq!(feedback.report_due(now), None);
    let status = feedback.status_due(now).unwrap();
    assert_eq!(status.flushed, Lsn::ZERO);
    feedback.on_durable(lsn(100));
    assert_eq!(feedback.status_due(now + SECOND).unwrap().flushed, lsn(100));
}

#[test]
fn a_keepalive_moves_the_slot_only_after_it_was_reported() {
    let now = Instant::now();
    let mut feedback = feedback(now);
    let far = lsn(100 + REPORT_BYTES);
    feedback.on_keepalive(far, false, now);
    assert_eq!(feedback.final_status(now).flushed, lsn(100));
    assert_eq!(feedback.report_due(now), Some(far));
    assert_eq!(feedback.final_status(now).flushed, lsn(100));
    feedback.on_reported(far);
    assert_eq!(feedback.final_status(now).flushed, far);
}

#[test]
fn reports_are_a_mebibyte_and_ten_seconds_apart() {
    let now = Instant::now();
    let mut feedback = feedback(now);
    feedback.on_keepalive(lsn(99 + REPORT_BYTES), false, now);
    assert_eq!(feedback.report_due(now + 60 * SECOND), None);
    feedback.on_keepalive(lsn(100 + REPORT_BYTES), false, now);
    assert!(feedback.report_due(now).is_some());
    feedback.on_reported(lsn(100 + REPORT_BYTES));
    feedback.on_keepalive(lsn(100 + 9 * REPORT_BYTES), false, now);
    assert_eq!(feedback.report_due(now + 9 * SECOND), None);
    assert!(feedback.report_due(now + 10 * SECOND).is_some());
}

#[test]
fn nothing_follows_keepalives_inside_a_transaction() {
    let now = Instant::now();
    let mut feedback = feedback(now);
    feedback.on_begin();
    feedback.on_keepalive(lsn(10 * REPORT_BYTES), false, now);
    assert_eq!(feedback.report_due(now), None);
    feedback.on_commit(lsn(11 * REPORT_BYTES), false);
    assert_eq!(feedback.report_due(now), Some(lsn(11 * REPORT_BYTES)));
}

#[test]
fn positions_never_go_backwards() {
    let now = Instant::now();
    let mut feedback = feedback(now);
    feedback.on_keepalive(lsn(50), true, now);
    let status = feedback.status_due(now).unwrap();
    assert_eq!((status.received, status.flushed), (lsn(100), lsn(100)));
    feedback.on_durable(lsn(60));
    assert_eq!(feedback.final_status(now).flushed, lsn(100));
}

#[test]
fn a_status_goes_out_several_times_within_wal_sender_timeout() {
    let now = Instant::now();
    let mut feedback = Feedback::new(lsn(1), 5 * SECOND, now);
    let _ = feedback.final_status(now);
    assert!(feedback.status_due(now + SECOND).is_none());
    assert!(
        feedback
            .status_due(now + SECOND + SECOND / 4)
            .unwrap()
            .reply_wanted
    );
    assert!(feedback.until_due(now + 2 * SECOND) <= SECOND);
}

#[test]
fn a_server_that_shuts_down_gets_its_last_position_confirmed() {
    let now = Instant::now();
    let mut feedback = feedback(now);
    feedback.on_keepalive(lsn(200), true, now);
    assert_eq!(
        feedback.report_due(now),
        None,
        "one ping is the normal sign of life"
    );
    feedback.on_keepalive(lsn(200), true, now + Duration::from_millis(2));
    assert_eq!(feedback.report_due(now), Some(lsn(200)));
}

#[test]
fn what_was_not_received_is_never_confirmed() {
    let now = Instant::now();
    let mut feedback = feedback(now);
    feedback.on_reported(lsn(900));
    assert_eq!(feedback.final_status(now).flushed, lsn(100));
}
