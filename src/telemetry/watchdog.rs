//! Whether the tasks of a session move. The service manager's watchdog is fed only while all do, and `/livez` says so.
//!
//! A task moves its **pulse** at every turn of its loop. Each loop has a timer, so a task that has nothing to do moves, too:
//!
//! ```text
//!   reader    at least every 10 s, since it answers the source; also while it catches up
//!   applier   every 3 s, between two batches
//!   barrier   every 3 s, between two barriers
//! ```
//!
//! A task that does not move is alive while it **waits for a server**: its connection is owed an answer, the watch of that
//! connection (`server/wait.rs`) runs, and does not find that the server has nothing to do. A history that is locked for an
//! hour, a standby that is away, a frozen server and a network that drops packets are no reason to end the daemon: it logs
//! them, and a restart would wait for the same.
//!
//! Everything else that stands still for [`STUCK`] is stuck: a future that is never woken, two tasks that wait for each
//! other, an answer that lies in the socket and is not read. What blocks the thread itself stops the feeding in any case.
//!
//! A false alarm kills a daemon that works, and a missed one leaves things as they are. So what is not surely stuck counts as
//! alive: tasks that are starting, ending, or joining a table, whose waits are many; and a process that was itself stopped,
//! since the time between two looks counts as [`LOOK_MAX`] at most. Time is an argument here.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How often the tasks are looked at, and the service manager hears of it.
pub(crate) const LOOK: Duration = Duration::from_secs(5);
/// So much counts between two looks.
const LOOK_MAX: Duration = Duration::from_secs(10);
/// A task that has stood still for so long is stuck.
const STUCK: Duration = Duration::from_secs(60);

/// Whether a task's connection waits for a server that is watched.
type Waits = Box<dyn Fn() -> bool + Send + Sync>;

#[derive(Debug, Default)]
pub(crate) struct Watchdog(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    pulses: Vec<Weak<Heart>>,
    looked: Option<Instant>,
    stuck: Option<Stuck>,
}

/// A task that stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stuck {
    pub(crate) task: &'static str,
    pub(crate) still: Duration,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { task, still } = self;
        write!(f, "the {task} has not moved for {} s", still.as_secs())
    }
}

struct Heart {
    task: &'static str,
    beats: AtomicU64,
    waits: Waits,
    seen: Mutex<(u64, Duration)>,
}

impl fmt::Debug for Heart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heart").field("task", &self.task).finish()
    }
}

/// Moved by a task; it is looked at until it is dropped.
#[derive(Debug)]
pub(crate) struct Pulse(Arc<Heart>);

impl Pulse {
    /// The task goes on.
    pub(crate) async fn beat(&self) {
        self.0.beats.fetch_add(1, Ordering::Relaxed);
        #[cfg(debug_assertions)]
        for_tests::hang(self.0.task).await;
    }
}

impl Watchdog {
    /// Looks at a task from now on. `waits`: whether it waits for a server that is watched.
    pub(crate) fn watch(
        &self,
        task: &'static str,
        waits: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Pulse {
        let heart = Arc::new(Heart {
            task,
            beats: AtomicU64::new(0),
            waits: Box::new(waits),
            seen: Mutex::default(),
        });
        self.state(|state| state.pulses.push(Arc::downgrade(&heart)));
        Pulse(heart)
    }

    /// Looks at all tasks; returns one that is stuck.
    pub(crate) fn look(&self, now: Instant) -> Option<Stuck> {
        self.look_with(now, stuck_after())
    }

    fn look_with(&self, now: Instant, limit: Duration) -> Option<Stuck> {
        self.state(|state| {
            let since = state.looked.replace(now);
            let since = since
                .map_or(Duration::ZERO, |last| now - last)
                .min(LOOK_MAX);
            state.pulses.retain(|heart| heart.strong_count() > 0);
            let hearts = state.pulses.iter().filter_map(Weak::upgrade);
            let still = hearts.map(|heart| heart.look(since));
            let stuck = still.filter(|stuck| stuck.still >= limit);
            state.stuck = stuck.max_by_key(|stuck| stuck.still);
            state.stuck
        })
    }

    /// What the last look found.
    pub(crate) fn stuck(&self) -> Option<Stuck> {
        self.state(|state| state.stuck)
    }

    fn state<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Heart {
    /// How long it has stood still, `since` after the last look.
    fn look(&self, since: Duration) -> Stuck {
        let beats = self.beats.load(Ordering::Relaxed);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let still = match seen.0 == beats && !(self.waits)() {
            true => seen.1 + since,
            false => Duration::ZERO,
        };
        *seen = (beats, still);
        Stuck {
            task: self.task,
            still,
        }
    }
}

fn stuck_after() -> Duration {
    #[cfg(debug_assertions)]
    if let Some(shorter) = for_tests::stuck_after() {
        return shorter;
    }
    STUCK
}

/// A build for tests takes another limit and lets a task hang, as its environment says. No release has this.
#[cfg(debug_assertions)]
mod for_tests {
    use std::sync::LazyLock;
    use std::time::Duration;

    static HANGS: LazyLock<Option<String>> =
        LazyLock::new(|| std::env::var("TEST_WALTRAIL_HANG").ok());
    static STUCK_MS: LazyLock<Option<u64>> =
        LazyLock::new(|| std::env::var("TEST_WALTRAIL_STUCK_MS").ok()?.parse().ok());

    pub(super) fn stuck_after() -> Option<Duration> {
        STUCK_MS.map(Duration::from_millis)
    }

    /// A future that is never woken.
    pub(super) async fn hang(task: &str) {
        if HANGS.as_deref() == Some(task) {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::AtomicBool;
    use std::task::{Context, Waker};

    use super::*;

    fn beat(pulse: &Pulse) {
        let mut beat = pin!(pulse.beat());
        let _ = beat.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    }

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_task_that_moves_is_never_stuck_and_one_that_stands_still_for_a_minute_is() {
        let (watchdog, start) = (Watchdog::default(), Instant::now());
        let [reader, applier] = ["reader", "applier"].map(|task| watchdog.watch(task, || false));
        for second in (0..1_000).step_by(5) {
            beat(&reader);
            beat(&applier);
            assert_eq!(watchdog.look_with(at(start, second), STUCK), None);
        }
        for second in (1_000..1_055).step_by(5) {
            beat(&reader);
            assert_eq!(
                watchdog.look_with(at(start, second), STUCK),
                None,
                "{second}"
            );
        }
        let stuck = Stuck {
            task: "applier",
            still: STUCK,
        };
        beat(&reader);
        assert_eq!(watchdog.look_with(at(start, 1_055), STUCK), Some(stuck));
        assert_eq!(watchdog.stuck(), Some(stuck));
        assert_eq!(stuck.to_string(), "the applier has not moved for 60 s");
        beat(&applier);
        assert_eq!(watchdog.look_with(at(start, 1_060), STUCK), None);
    }

    #[test]
    fn a_task_that_waits_for_a_server_is_not_stuck_however_long() {
        let (watchdog, start) = (Watchdog::default(), Instant::now());
        let waits = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&waits);
        let _applier = watchdog.watch("applier", move || asked.load(Ordering::Relaxed));
        for second in (0..3_600).step_by(5) {
            assert_eq!(watchdog.look_with(at(start, second), STUCK), None);
        }
        waits.store(false, Ordering::Relaxed);
        let stuck = (3_600..3_700)
            .step_by(5)
            .find_map(|second| watchdog.look_with(at(start, second), STUCK).map(|_| second));
        assert_eq!(stuck, Some(3_655));
    }

    #[test]
    fn a_process_that_was_stopped_for_an_hour_has_lost_ten_seconds() {
        let (watchdog, start) = (Watchdog::default(), Instant::now());
        let _reader = watchdog.watch("reader", || false);
        assert_eq!(watchdog.look_with(start, STUCK), None);
        assert_eq!(watchdog.look_with(at(start, 3_600), STUCK), None);
        assert_eq!(watchdog.look_with(at(start, 3_605), STUCK), None);
    }

    #[test]
    fn a_task_that_has_ended_is_not_looked_at() {
        let (watchdog, start) = (Watchdog::default(), Instant::now());
        let reader = watchdog.watch("reader", || false);
        let looks = (0..100).step_by(5);
        let stuck = |second| watchdog.look_with(at(start, second), STUCK);
        assert!(looks.clone().any(|second| stuck(second).is_some()));
        drop(reader);
        assert_eq!(stuck(200), None);
    }
}
