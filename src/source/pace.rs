//! When to read a stream that is behind.
//!
//! The walsender writes each change with a `send` of its own. A reader that wakes at each of them pays a wake-up and a read
//! per change, and so does the sender. A reader that, **while it is behind**, pauses between reads lets hundreds of changes
//! gather in the socket's buffer, and over TCP the sender is twice as fast, because it wakes no process.
//!
//! A pause is as long as it takes until a certain number of bytes has come ([`Aim`]), so that it follows the throughput.
//! On the loopback interface the sender itself does the receiver's part of TCP, message by message, unless the receiver's
//! window is closed. Then what it sends gathers in its own buffer and goes over in one piece, for half of its time. So there
//! the window is as small as one packet ([`WINDOW`]), and a pause nearly fills it.
//!
//! A stream that is not behind is not read while its changes could not be written anyway ([`Pace::rest`]): neither side is woken
//! then. But what the socket holds is little, so the rest ends when that comes near.
//!
//! A pause must never cost latency: whether the stream is behind is known from the source's own clock, by the time a frame was
//! sent and the commit time of its transaction. Several pauses in a row that brought next to nothing show that the clocks
//! mislead (commit times of replicated transactions are another server's): then none follows for a while.
//!
//! Pure: time is an argument.

use std::time::{Duration, Instant};

/// The stream counts as behind from this lag on, by the source's clock, in microseconds.
const BEHIND_US: i64 = 50_000;
/// Less than this in one read after the longest pause: there was no backlog, or the sender did not run.
const WORTH_IT: usize = 1024;
/// So many in a row: there was no backlog.
const IN_VAIN_MAX: u32 = 8;
/// How long there is no pause then.
const REST: Duration = Duration::from_millis(100);

/// The receive buffer on the loopback interface, in bytes. Linux takes twice as many, which is one packet of that interface,
/// and makes nearly all of it the window; kernels before 6.6 half of it.
pub(crate) const WINDOW: usize = 32 * 1024;
/// Messages larger than this, in bytes, do not suit such a window: each pause would be the longest.
pub(crate) const NARROW_MAX: usize = 8 * 1024;
/// The receive buffer from then on, in bytes.
pub(crate) const WIDE: usize = 512 * 1024;
/// The longest pause where the window is smaller than the aim, or the sender is slow: a longer one stops the sender.
const UNFILLED: Duration = Duration::from_millis(1);

/// What pauses aim at over one kind of socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aim {
    /// What one read shall bring, in bytes.
    bytes: usize,
    shortest: Duration,
    longest: Duration,
}

impl Aim {
    pub const TCP: Self = Self {
        bytes: 20 * 1024,
        shortest: Duration::from_micros(50),
        longest: Duration::from_micros(800),
    };
    /// Over TCP on the loopback interface, with [`WINDOW`]. In its slow mode the sender brings 16 bytes per microsecond:
    /// the longest pause must suffice for the aim then too, or it is never left.
    pub const LOOPBACK: Self = Self {
        bytes: 52_000,
        shortest: Duration::from_micros(50),
        longest: Duration::from_micros(4_000),
    };
    /// Over a Unix-domain socket, whose buffer holds few small messages: a full one stops the sender.
    pub const UNIX: Self = Self {
        bytes: 12 * 1024,
        shortest: Duration::from_micros(50),
        longest: Duration::from_micros(400),
    };
}

#[derive(Debug)]
pub(crate) struct Pace {
    aim: Aim,
    /// So many of the longest pauses in a row brought less than the aim.
    unfilled: u32,
    pause: Duration,
    paused: bool,
    /// Pauses in a row that were for nothing.
    in_vain: u32,
    rest_until: Option<Instant>,
    last_read: Option<Instant>,
    /// How long the last read's bytes took to come.
    filled_in: Duration,
    /// What the last read brought.
    filled: usize,
}

impl Pace {
    /// A pace for one kind of socket.
    pub(crate) fn new(aim: Aim) -> Self {
        Self {
            aim,
            unfilled: 0,
            pause: aim.longest / 2,
            paused: false,
            in_vain: 0,
            rest_until: None,
            last_read: None,
            filled_in: Duration::ZERO,
            filled: 0,
        }
    }

    /// How long to wait before the next read; `None`: read at once. `lag_us`: the age of the transaction that
    /// arrives, by the source's clock.
    pub(crate) fn before_read(&mut self, lag_us: i64, now: Instant) -> Option<Duration> {
        self.paused = self.is_behind(lag_us, now);
        self.paused.then_some(self.pause)
    }

    pub(crate) fn after_read(&mut self, bytes: usize, now: Instant) {
        let last = self.last_read.replace(now);
        self.filled_in = last.map_or(Duration::MAX, |last| now - last);
        self.filled = bytes;
        if !std::mem::take(&mut self.paused) {
            return;
        }
        if bytes < WORTH_IT {
            // There is no backlog, or the sender wakes this process for each change, or it did not run: only the
            // longest pause can show it.
            if self.pause == self.longest() {
                self.in_vain += 1;
            }
            if self.in_vain == IN_VAIN_MAX {
                self.in_vain = 0;
                self.rest_until = Some(now + REST);
            }
            self.pause = self.longest();
            return;
        }
        self.in_vain = 0;
        if bytes >= self.aim.bytes / 10 * 9 {
            self.unfilled = 0;
        } else if self.pause >= self.longest() {
            self.unfilled = (self.unfilled + 1).min(IN_VAIN_MAX);
        }
        // Half the way, since one read says little.
        let wanted = self.pause.mul_f64(self.aim.bytes as f64 / bytes as f64);
        self.pause = ((self.pause + wanted) / 2).clamp(self.aim.shortest, self.longest());
    }

    fn longest(&self) -> Duration {
        if self.unfilled == IN_VAIN_MAX {
            self.aim.longest.min(UNFILLED)
        } else {
            self.aim.longest
        }
    }

    /// How long not to read at all, at most for `left`; `None`: read now. At the rate of the last read, the socket has to
    /// have room for what comes meanwhile. A read that filled it shows no rate, and a stream that is behind has no rest.
    pub(crate) fn rest(&self, lag_us: i64, left: Duration, now: Instant) -> Option<Duration> {
        if lag_us >= BEHIND_US || self.filled >= self.aim.bytes {
            return None;
        }
        let since = self.last_read.map_or(Duration::ZERO, |last| now - last);
        let full = self.filled_in.as_secs_f64() * self.aim.bytes as f64 / self.filled.max(1) as f64;
        let left = left.as_secs_f64().min(full - since.as_secs_f64());
        let rest = Duration::try_from_secs_f64(left).unwrap_or_default();
        (!rest.is_zero()).then_some(rest)
    }

    fn is_behind(&self, lag_us: i64, now: Instant) -> bool {
        lag_us >= BEHIND_US && self.rest_until.is_none_or(|until| now >= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATE: i64 = 1_000_000;

    /// How a stream settles that brings `rate` bytes per microsecond into a socket that holds `room`: the bytes of a read,
    /// and the pause.
    fn settled_in(aim: Aim, rate: f64, room: usize) -> (usize, Duration) {
        let mut pace = Pace::new(aim);
        let now = Instant::now();
        let mut read = 0;
        for _ in 0..100 {
            let pause = pace.before_read(LATE, now).unwrap();
            read = room.min((rate * pause.as_secs_f64() * 1e6) as usize);
            pace.after_read(read, now);
        }
        (read, pace.before_read(LATE, now).unwrap())
    }

    /// The pause then, in a socket that holds everything.
    fn settled(aim: Aim, rate: f64) -> Duration {
        settled_in(aim, rate, usize::MAX).1
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
    fn a_rest_ends_with_the_interval_or_before_the_socket_is_full() {
        let mut pace = Pace::new(Aim::UNIX);
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let interval = ms(20);
        let rest = |pace: &Pace, now| pace.rest(0, interval, now);
        assert_eq!(pace.rest(0, Duration::ZERO, start), None);
        pace.after_read(700, start);
        assert_eq!(rest(&pace, start), Some(interval));
        // A thousand bytes in 10 ms: the room is enough for much longer.
        pace.after_read(1_000, start + ms(10));
        assert_eq!(rest(&pace, start + ms(10)), Some(interval));
        assert_eq!(pace.rest(LATE, interval, start + ms(10)), None);
        // Half the aim in 5 ms: for 10 ms.
        let now = start + ms(15);
        pace.after_read(Aim::UNIX.bytes / 2, now);
        let near = |at, wanted| {
            let rest = rest(&pace, at).unwrap();
            assert!(rest.abs_diff(wanted) < Duration::from_micros(1), "{rest:?}");
        };
        near(now, ms(10));
        near(now + ms(4), ms(6));
        assert_eq!(rest(&pace, now + ms(11)), None);
        // Less than a nanosecond is none.
        let end = now + ms(10);
        assert!(rest(&pace, end).is_none_or(|rest| !rest.is_zero()));
        assert_eq!(
            pace.rest(0, Duration::from_nanos(1), now),
            Some(Duration::from_nanos(1))
        );
        pace.after_read(Aim::UNIX.bytes, now + ms(30));
        assert_eq!(rest(&pace, now + ms(30)), None);
    }

    #[test]
    fn pauses_for_nothing_end_and_one_alone_says_nothing() {
        let mut pace = Pace::new(Aim::TCP);
        let now = Instant::now();
        for _ in 0..3 {
            // The first of them is not the longest.
            for _ in 0..IN_VAIN_MAX - 1 {
                assert!(pace.before_read(LATE, now).is_some());
                pace.after_read(100, now);
            }
            assert!(pace.before_read(LATE, now).is_some());
            pace.after_read(WORTH_IT, now);
        }
        for _ in 0..IN_VAIN_MAX {
            assert!(pace.before_read(LATE, now).is_some());
            pace.after_read(100, now);
        }
        assert_eq!(pace.before_read(LATE, now + REST / 2), None);
        pace.after_read(100, now + REST / 2);
        assert!(pace.before_read(LATE, now + REST).is_some());
    }

    #[test]
    fn a_window_is_nearly_filled() {
        for rate in [16.0, 40.0, 80.0, 500.0] {
            let (read, pause) = settled_in(Aim::LOOPBACK, rate, 2 * WINDOW);
            assert!(read < 2 * WINDOW && read > WINDOW / 4 * 6, "{rate}: {read}");
            let full = Duration::from_secs_f64(2.0 * WINDOW as f64 / rate / 1e6);
            assert!(
                pause < full && pause < Aim::LOOPBACK.longest,
                "{rate}: {pause:?}"
            );
        }
    }

    #[test]
    fn a_sender_does_not_wait_long_where_the_window_is_smaller_than_the_aim() {
        for window in [WINDOW, WINDOW / 2] {
            assert_eq!(settled_in(Aim::LOOPBACK, 40.0, window), (window, UNFILLED));
        }
    }
}
