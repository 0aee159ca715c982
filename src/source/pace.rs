//! When to read again.
//!
//! The walsender writes every change with a `send` of its own. A reader that wakes at each of them pays a
//! wake-up and a read per change, and so does the sender. A reader that, **while it is behind**, waits a little
//! between reads lets hundreds of changes pile up in the socket's buffer: some ten thousand reads for a
//! million changes instead of half a million, and over TCP a sender that is about twice as fast, because it
//! need not wake anybody.
//!
//! How long? As long as it takes until a certain number of bytes has come, so that the pause follows the
//! throughput by itself: a sender in its slow mode gets a longer pause, which leads it out; wide rows get a
//! shorter one. The number depends on the socket. A TCP buffer holds megabytes. A Unix socket's holds few small
//! messages, each of which costs its kernel overhead, and a full one stops the sender.
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
/// Less than this in one read after the longest pause: there was no backlog.
const WORTH_IT: usize = 1024;
/// How long there is no pause after one for nothing.
const REST: Duration = Duration::from_millis(100);

/// What a pause aims at over one kind of socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aim {
    /// Bytes that one read shall bring.
    bytes: usize,
    shortest: Duration,
    longest: Duration,
}

impl Aim {
    /// Over TCP.
    pub const TCP: Self = Self {
        bytes: 20 * 1024,
        shortest: Duration::from_micros(50),
        longest: Duration::from_micros(800),
    };
    /// Over a Unix-domain socket.
    pub const UNIX: Self = Self {
        bytes: 6 * 1024,
        shortest: Duration::from_micros(50),
        longest: Duration::from_micros(300),
    };
}

/// The pause between two reads.
#[derive(Debug)]
pub struct Pace {
    aim: Aim,
    pause: Duration,
    paused: bool,
    rest_until: Option<Instant>,
    gathering_since: Option<Instant>,
}

impl Pace {
    /// A pace for one kind of socket.
    #[must_use]
    pub fn new(aim: Aim) -> Self {
        Self {
            aim,
            pause: aim.longest / 2,
            paused: false,
            rest_until: None,
            gathering_since: None,
        }
    }

    /// How long to wait before the next read; `None`: read at once. `lag_us`: the age of the transaction that
    /// arrives, by the source's clock.
    pub fn before_read(&mut self, lag_us: i64, now: Instant) -> Option<Duration> {
        self.paused = self.is_behind(lag_us, now);
        self.paused.then_some(self.pause)
    }

    /// A read brought `bytes`.
    pub fn after_read(&mut self, bytes: usize, now: Instant) {
        if !std::mem::take(&mut self.paused) {
            return;
        }
        if bytes < WORTH_IT {
            // Either there is no backlog, or the sender is in its slow mode, where it wakes somebody for each
            // change: only the longest pause can tell, and lead out of it.
            if self.pause == self.aim.longest {
                self.rest_until = Some(now + REST);
            }
            self.pause = self.aim.longest;
            return;
        }
        // Half the way, since one read says little.
        let wanted = self.pause.mul_f64(self.aim.bytes as f64 / bytes as f64);
        self.pause = ((self.pause + wanted) / 2).clamp(self.aim.shortest, self.aim.longest);
    }

    /// How much longer a batch of `bytes` shall grow before it is handed over; `None`: hand it over now.
    pub fn gathers(&mut self, lag_us: i64, bytes: usize, now: Instant) -> Option<Duration> {
        let mut left = Duration::ZERO;
        if self.is_behind(lag_us, now) && bytes < GATHER_BYTES {
            let since = *self.gathering_since.get_or_insert(now);
            left = GATHER.saturating_sub(now.duration_since(since));
        }
        if left.is_zero() {
            self.gathering_since = None;
            return None;
        }
        Some(left)
    }

    fn is_behind(&self, lag_us: i64, now: Instant) -> bool {
        lag_us >= BEHIND_US && self.rest_until.is_none_or(|until| now >= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATE: i64 = 1_000_000;

    /// The pause after a while over a socket that brings `rate` bytes per microsecond.
    fn settled(aim: Aim, rate: f64) -> Duration {
        let mut pace = Pace::new(aim);
        let now = Instant::now();
        for _ in 0..100 {
            let pause = pace.before_read(LATE, now).unwrap();
            pace.after_read((rate * pause.as_secs_f64() * 1e6) as usize, now);
        }
        pace.before_read(LATE, now).unwrap()
    }

    #[test]
    fn the_pause_follows_the_throughput() {
        for rate in [30.0, 60.0, 200.0] {
            let pause = settled(Aim::TCP, rate);
            let bytes = rate * pause.as_secs_f64() * 1e6;
            assert!(
                (bytes / Aim::TCP.bytes as f64 - 1.0).abs() < 0.05,
                "{rate}: {bytes}"
            );
        }
        assert_eq!(settled(Aim::TCP, 5.0), Aim::TCP.longest);
        assert_eq!(settled(Aim::TCP, 10_000.0), Aim::TCP.shortest);
        assert_eq!(settled(Aim::UNIX, 5.0), Aim::UNIX.longest);
    }

    #[test]
    fn a_stream_that_has_caught_up_never_waits() {
        let mut pace = Pace::new(Aim::TCP);
        let now = Instant::now();
        assert!(pace.before_read(LATE, now).is_some());
        for lag in [-5, 0, BEHIND_US - 1] {
            assert_eq!(pace.before_read(lag, now), None);
        }
    }

    #[test]
    fn a_batch_gathers_only_while_the_stream_is_behind_and_not_for_long() {
        let mut pace = Pace::new(Aim::TCP);
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
        let mut pace = Pace::new(Aim::TCP);
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
