//! When to read again.
//!
//! The walsender writes every change with a `send` of its own. A reader that wakes at each of them pays a
//! wake-up and a read per change, and so does the sender. A reader that, **while it is behind**, waits a little
//! between reads lets hundreds of changes pile up in the socket's buffer: some tens of thousands of reads for
//! a million changes instead of half a million, and over TCP a sender that is about twice as fast, because it
//! need not wake anybody. The best pause depends on socket, machine and width of the rows, so it is searched
//! for: longer while the throughput rises, back when it falls.
//!
//! A pause must never cost latency. Whether the stream is behind is told by the source's own clock, from the
//! time a frame was sent and the commit time of its transaction; and a pause that brought next to nothing was
//! for nothing, whatever the clocks say (commit times of replicated transactions are another server's), so that
//! none follows for a while.
//!
//! For the same reason a target transaction is worth its cost only for many rows while the stream is behind:
//! [`Pace::gathers`] says whether a batch shall grow a little more before it is handed over.
//!
//! Pure: time is an argument.

use std::time::{Duration, Instant};

/// The stream counts as behind from this lag on, by the source's clock, in microseconds.
const BEHIND_US: i64 = 5_000;
/// While the stream is behind, a batch grows to this size, or for this long, before it is handed over.
const GATHER_BYTES: usize = 1024 * 1024;
const GATHER: Duration = Duration::from_millis(50);
/// Pauses are searched for between these.
const PAUSE_MIN: Duration = Duration::from_micros(50);
const PAUSE_MAX: Duration = Duration::from_micros(400);
const PAUSE_FIRST: Duration = Duration::from_micros(150);
/// One comparison of throughput takes this long: some dozens of reads.
const WINDOW: Duration = Duration::from_millis(25);
/// A step of the search.
const STEP: f64 = 1.35;
/// Throughput counts as risen or fallen only by more than this; less is noise.
const NOISE: f64 = 0.03;
/// Less than this in one read after a pause: there was no backlog.
const WORTH_IT: usize = 1024;
/// How long there is no pause after one for nothing.
const REST: Duration = Duration::from_millis(100);

/// The search for the best pause.
#[derive(Debug)]
pub struct Pace {
    pause: Duration,
    longer: bool,
    rest_until: Option<Instant>,
    window_start: Option<Instant>,
    window_bytes: usize,
    /// Bytes per second of the window before.
    last_rate: f64,
    paused: bool,
    gathering_since: Option<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            pause: PAUSE_FIRST,
            longer: true,
            rest_until: None,
            window_start: None,
            window_bytes: 0,
            last_rate: 0.0,
            paused: false,
            gathering_since: None,
        }
    }
}

impl Pace {
    /// How long to wait before the next read; `None`: read at once. `lag_us`: the age of the transaction that
    /// arrives, by the source's clock.
    pub fn before_read(&mut self, lag_us: i64, now: Instant) -> Option<Duration> {
        let resting = self.rest_until.is_some_and(|until| now < until);
        self.paused = lag_us >= BEHIND_US && !resting;
        if !self.paused {
            self.window_start = None;
            return None;
        }
        Some(self.pause)
    }

    /// A read brought `bytes`.
    pub fn after_read(&mut self, bytes: usize, now: Instant) {
        if !self.paused {
            return;
        }
        if bytes < WORTH_IT {
            // Either there is no backlog, or the sender is in its slow mode, where it wakes somebody for each
            // change: only the longest pause can tell, and lead out of it.
            if self.pause == PAUSE_MAX {
                self.rest_until = Some(now + REST);
            }
            self.pause = PAUSE_MAX;
            self.longer = false;
            self.window_start = None;
            return;
        }
        let Some(start) = self.window_start else {
            self.window_start = Some(now);
            self.window_bytes = 0;
            return;
        };
        self.window_bytes += bytes;
        let elapsed = now.duration_since(start);
        if elapsed < WINDOW {
            return;
        }
        let rate = self.window_bytes as f64 / elapsed.as_secs_f64();
        if rate < self.last_rate * (1.0 - NOISE) {
            self.longer = !self.longer;
        }
        let step = if self.longer { STEP } else { 1.0 / STEP };
        self.pause = self.pause.mul_f64(step).clamp(PAUSE_MIN, PAUSE_MAX);
        if self.pause == PAUSE_MAX || self.pause == PAUSE_MIN {
            self.longer = self.pause == PAUSE_MIN;
        }
        self.last_rate = rate;
        self.window_start = Some(now);
        self.window_bytes = 0;
    }

    /// How much longer a batch of `bytes` shall grow before it is handed over; `None`: hand it over now.
    pub fn gathers(&mut self, lag_us: i64, bytes: usize, now: Instant) -> Option<Duration> {
        let resting = self.rest_until.is_some_and(|until| now < until);
        if lag_us < BEHIND_US || resting || bytes >= GATHER_BYTES {
            self.gathering_since = None;
            return None;
        }
        let since = *self.gathering_since.get_or_insert(now);
        let left = GATHER.saturating_sub(now.duration_since(since));
        if left.is_zero() {
            self.gathering_since = None;
            return None;
        }
        Some(left)
    }

    /// Something other than the source held the stream up: what is being measured says nothing.
    pub fn disturbed(&mut self) {
        self.window_start = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATE: i64 = 1_000_000;

    /// Drains for two seconds a source whose throughput depends on the pause; returns the pauses taken in
    /// the second half, in microseconds.
    fn drain(throughput: impl Fn(f64) -> f64) -> Vec<f64> {
        let mut pace = Pace::default();
        let start = Instant::now();
        let mut now = start;
        let mut pauses = Vec::new();
        while now < start + Duration::from_secs(2) {
            let pause = pace.before_read(LATE, now).unwrap();
            let took = pause + Duration::from_micros(200);
            now += took;
            let us = pause.as_secs_f64() * 1e6;
            pace.after_read((throughput(us) * took.as_secs_f64()) as usize, now);
            if now > start + Duration::from_secs(1) {
                pauses.push(us);
            }
        }
        pauses
    }

    #[test]
    fn the_pause_goes_where_the_throughput_is_best() {
        for best in [80.0f64, 150.0, 300.0] {
            let pauses = drain(|us| 100e6 / (1.0 + ((us - best) / best).powi(2)));
            let mean = pauses.iter().sum::<f64>() / pauses.len() as f64;
            assert!((mean / best - 1.0).abs() < 0.45, "best {best}, mean {mean}");
        }
    }

    #[test]
    fn a_stream_that_has_caught_up_never_waits() {
        let mut pace = Pace::default();
        let now = Instant::now();
        assert!(pace.before_read(LATE, now).is_some());
        for lag in [-5, 0, BEHIND_US - 1] {
            assert_eq!(pace.before_read(lag, now), None);
        }
    }

    #[test]
    fn a_batch_gathers_only_while_the_stream_is_behind_and_not_for_long() {
        let mut pace = Pace::default();
        let now = Instant::now();
        assert_eq!(pace.gathers(0, 10, now), None);
        assert_eq!(pace.gathers(LATE, GATHER_BYTES, now), None);
        assert_eq!(pace.gathers(LATE, 10, now), Some(GATHER));
        assert_eq!(pace.gathers(LATE, 10, now + GATHER / 2), Some(GATHER / 2));
        assert_eq!(pace.gathers(LATE, 10, now + GATHER), None);
        assert_eq!(pace.gathers(LATE, 10, now + GATHER), Some(GATHER));
    }

    #[test]
    fn a_pause_for_nothing_is_not_repeated_at_once() {
        let mut pace = Pace::default();
        let now = Instant::now();
        for _ in 0..2 {
            assert!(pace.before_read(LATE, now).is_some());
            pace.after_read(100, now);
        }
        assert_eq!(pace.before_read(LATE, now + REST / 2), None);
        pace.after_read(100, now + REST / 2);
        assert!(pace.before_read(LATE, now + REST).is_some());
    }
}
