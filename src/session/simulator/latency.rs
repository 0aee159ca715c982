//! How long a change takes while nothing fails: no longer than one interval, whatever the socket holds.

use std::time::Duration;

use fastrand::Rng;
use tokio::sync::watch;
use tokio::time::sleep;

use super::daemon::{self, Start};
use super::{Shared, World, lock, schedule};
use crate::lsn::Lsn;
use crate::session::{Order, Phase};

const INTERVAL: Duration = Duration::from_millis(25);
/// tokio's timers are exact to a millisecond, and source and target take one each here.
const MORE: Duration = Duration::from_millis(4);
/// Transactions in each millisecond: what comes in an interval is less than a rest waits for, and more.
const RATES: [usize; 3] = [1, 4, 8];
const MILLISECONDS: u32 = 1000;

/// The longest time from a commit until the history has it.
async fn longest(per_millisecond: usize) -> Duration {
    let mut rng = Rng::with_seed(7);
    let begin = Lsn::from_u64(1 << 24);
    let world = Shared::new(World::new(begin, true, false).into());
    let mut config = schedule::config(&mut rng);
    config.batch.interval = INTERVAL;
    (config.batch.max_rows, config.batch.max_bytes) = (10_000, 4 << 20);
    let (_orders, ordered) = watch::channel(Order::Run);
    let start = Start {
        config,
        rng: rng.fork(),
        orders: ordered,
        phase: Phase::Stream,
        one_by_one: Lsn::ZERO,
        wal_sender_timeout: Duration::from_secs(60),
        socket: 64 * 1024,
        gulp: 64 * 1024,
    };
    let session = tokio::spawn(daemon::run(Shared::clone(&world), start));
    while !lock(&world).source.is_streaming() {
        sleep(Duration::from_millis(1)).await;
    }
    let began = tokio::time::Instant::now();
    let mut longest = Duration::ZERO;
    let mut committed = Vec::new();
    for _ in 0..MILLISECONDS {
        sleep(Duration::from_millis(1)).await;
        assert!(!session.is_finished());
        let World {
            source,
            store,
            violation,
            ..
        } = &mut *lock(&world);
        assert_eq!(*violation, None);
        let time = began.elapsed();
        for _ in 0..per_millisecond {
            source.commit(&mut rng, time.as_micros() as i64, 8);
            committed.push((source.end, time));
            source.read_on(&mut rng, 0);
        }
        source.send(usize::MAX);
        source.hear().unwrap();
        for _ in 0..store.is_asked() {
            store.step(0, &source.log).unwrap();
        }
        let checkpoint = store.now().checkpoint;
        committed.retain(|(end, since)| {
            let is_written = *end <= checkpoint;
            if is_written {
                longest = longest.max(time - *since);
            }
            !is_written
        });
    }
    session.abort();
    longest
}

#[tokio::test(start_paused = true)]
async fn a_change_waits_for_one_interval_at_most() {
    for rate in RATES {
        let longest = longest(rate).await;
        assert!(
            longest <= INTERVAL + MORE,
            "{rate} a millisecond: {longest:?}"
        );
    }
}
