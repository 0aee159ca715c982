//! Unit tests of `telemetry::health`.

use std::time::{Duration, Instant};

use waltrail::lsn::Lsn;
use waltrail::telemetry::health::*;

fn look(streaming: bool, waiting: bool, applied: u64) -> Look {
    Look {
        streaming,
        waiting,
        applied: Lsn::from_u64(applied),
    }
}

#[test]
fn ready_is_who_streams_and_whose_target_commits() {
    let mut health = Health::default();
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    assert_eq!(health.obstacle(at(0)).as_deref(), Some("not streaming"));
    health.look(look(true, false, 10), at(0));
    assert_eq!(health.obstacle(at(100)), None, "nothing waits");
    health.look(look(true, true, 10), at(100));
    assert_eq!(health.obstacle(at(109)), None);
    health.look(look(true, true, 20), at(109));
    assert_eq!(health.obstacle(at(118)), None, "one was committed");
    health.look(look(true, true, 20), at(118));
    let obstacle = health.obstacle(at(119)).unwrap();
    assert!(obstacle.contains("no commit for 10 s"), "{obstacle}");
    health.look(look(true, false, 30), at(120));
    assert_eq!(health.obstacle(at(200)), None);
}
