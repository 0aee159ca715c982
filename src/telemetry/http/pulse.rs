//! Whether the stream's thread still moves: HTTP has a thread of its own, which would answer in any case.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const BEAT_EVERY: Duration = Duration::from_secs(1);
/// Later than this, something holds up the thread.
pub(super) const LATE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Pulse {
    began: Instant,
    /// The last beat, in milliseconds since it began.
    last_ms: AtomicU64,
}

impl Pulse {
    pub(super) fn new(began: Instant) -> Self {
        Self {
            began,
            last_ms: AtomicU64::new(0),
        }
    }

    fn beats(&self, now: Instant) {
        let since = now.duration_since(self.began).as_millis();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        self.last_ms.store(since, Ordering::Relaxed);
    }

    /// How long ago the last beat was, where it is late.
    pub(super) fn late(&self, now: Instant) -> Option<Duration> {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        let ago = now.duration_since(self.began).saturating_sub(last);
        (ago >= LATE).then_some(ago)
    }
}

/// Runs among the stream's tasks.
pub(super) async fn beat(pulse: Arc<Pulse>) {
    super::repeat(BEAT_EVERY, || pulse.beats(Instant::now())).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_does_not_move_is_late() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let pulse = Pulse::new(began);
        assert_eq!(pulse.late(at(4)), None);
        assert_eq!(pulse.late(at(5)), Some(LATE));
        pulse.beats(at(9));
        assert_eq!(pulse.late(at(10)), None);
        assert_eq!(pulse.late(at(20)), Some(Duration::from_secs(11)));
    }
}
