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
//! shorter one. The number depends on the socket ([`Aim`]). A Unix socket's buffer holds few small messages, each
//! of which costs its kernel overhead, and a full one stops the sender.
//!
//! On the loopback interface the sender itself does the receiver's part of TCP, message by message, unless the
//! receiver's window is closed: then what it sends lies together in its own buffer and goes over in one piece, for half of
//! its time. So there the window is kept as small as one packet ([`WINDOW`]), and a pause is as long as it takes to fill it nearly.
//! In a larger one it is a matter of luck: when the sender was stopped for some 50 ms, so that everything was read and the
//! window stood open, half of the streams stayed slow for ever.
//!
//! A pause must never cost latency. Whether the stream is behind is told by the source's own clock, from the
//! time a frame was sent and the commit time of its transaction; and when several pauses in a row brought next to
//! nothing they were for nothing, whatever the clocks say (commit times of replicated transactions are another
//! server's), so that none follows for a while. One alone says nothing: a busy machine let somebody else run.
//!
//! For the same reason a target transaction is worth its cost only for many rows while the stream is behind:
//! [`Pace::gathers`] says whether a batch shall grow a little more before it is handed over. At the end of a backlog nothing
//! comes any more that it could grow by.
//!
//! Pure: time is an argument.

use std::time::{Duration, Instant};

/// The stream counts as behind from this lag on, by the source's clock, in microseconds.
const BEHIND_US: i64 = 5_000;
/// While the stream is behind, a batch grows to this size, or for this long, before it is handed over. From this size on
/// a COPY is worth its cost.
pub const GATHER_BYTES: usize = 1024 * 1024;
const GATHER: Duration = Duration::from_millis(50);
/// So long without a byte in the middle of a backlog, it is at its end. More than a tick of a busy machine's scheduler, in which
/// the sender does not run.
const SILENCE: Duration = Duration::from_millis(6);
/// What is asked too late for that is asked again after this.
const ASK_AGAIN: Duration = Duration::from_millis(1);
/// A stream that has been behind for so long works a backlog off. One that has just begun is late by what its start took.
const BACKLOG: Duration = Duration::from_millis(100);
/// Less than this in one read after the longest pause: there was no backlog, or the sender did not run.
const WORTH_IT: usize = 1024;
/// So many in a row: there was no backlog.
const IN_VAIN_MAX: u32 = 8;
/// How long there is no pause then.
const REST: Duration = Duration::from_millis(100);
/// The receive buffer that is asked for on the loopback interface, in bytes. Linux takes twice as many, which is one packet of that
/// interface, and makes nearly all of it the window; kernels before 6.6 half of it.
pub const WINDOW: usize = 32 * 1024;
/// Messages larger than this, in bytes, are not for such a window: it holds less of them than what is aimed at, so that each pause would be the
/// longest.
pub const NARROW_MAX: usize = 8 * 1024;
/// The receive buffer that is asked for instead, from then on, in bytes.
pub const WIDE: usize = 512 * 1024;
/// The longest pause where the window is not what was aimed at, or the sender is slow: who waits longer stops it.
const UNFILLED: Duration = Duration::from_millis(1);

/// What pauses aim at over one kind of socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aim {
    /// What one read shall bring, in bytes.
    bytes: usize,
    /// The limits of a pause for that.
    shortest: Duration,
    longest: Duration,
    /// What a target on this machine shall have before it at the most, in bytes: somewhat less than it takes in a pause.
    /// With more it works for milliseconds without a break, and a reader that shares its core comes too late.
    pub unread: Option<usize>,
}

impl Aim {
    /// Over TCP from another machine.
    pub const TCP: Self = Self {
        bytes: 20 * 1024,
        shortest: Duration::from_micros(50),
        longest: Duration::from_micros(800),
        unread: None,
    };
    /// Over TCP on the loopback interface, with [`WINDOW`]. In its slow mode the sender brings 16 bytes per microsecond:
    /// the longest pause must suffice for the aim then too, or it is never left.
    pub const LOOPBACK: Self = Self {
        bytes: 52_000,
        shortest: Duration::from_micros(50),
        longest: Duration::from_micros(4_000),
        unread: None,
    };
    /// Over a Unix-domain socket.
    pub const UNIX: Self = Self {
        bytes: 12 * 1024,
        shortest: Duration::from_micros(50),
        longest: Duration::from_micros(400),
        unread: Some(16 * 1024),
    };
}

/// The pause between two reads.
#[derive(Debug)]
pub struct Pace {
    aim: Aim,
    /// So many of the longest pauses in a row brought less than was aimed at.
    unfilled: u32,
    pause: Duration,
    paused: bool,
    /// Pauses in a row that were for nothing.
    in_vain: u32,
    rest_until: Option<Instant>,
    gathering_since: Option<Instant>,
    /// Since when the stream has been behind.
    behind_since: Option<Instant>,
    /// When a read brought something.
    read_at: Option<Instant>,
    /// A read found nothing, `SILENCE` after the last that brought something.
    silent: bool,
}

impl Pace {
    /// A pace for one kind of socket.
    #[must_use]
    pub fn new(aim: Aim) -> Self {
        Self {
            aim,
            unfilled: 0,
            pause: aim.longest / 2,
            paused: false,
            in_vain: 0,
            rest_until: None,
            gathering_since: None,
            behind_since: None,
            read_at: None,
            silent: false,
        }
    }

    /// How long to wait before the next read; `None`: read at once. `lag_us`: the age of the transaction that
    /// arrives, by the source's clock.
    pub fn before_read(&mut self, lag_us: i64, now: Instant) -> Option<Duration> {
        self.paused = self.is_behind(lag_us, now);
        if self.paused {
            self.behind_since.get_or_insert(now);
        } else {
            self.behind_since = None;
        }
        self.paused.then_some(self.pause)
    }

    /// A read found nothing.
    pub fn found_nothing(&mut self, now: Instant) {
        let quiet = self.read_at.map(|at| now.duration_since(at));
        self.silent = quiet.is_some_and(|quiet| quiet >= SILENCE);
    }

    /// A read brought `bytes`.
    pub fn after_read(&mut self, bytes: usize, now: Instant) {
        self.read_at = Some(now);
        self.silent = false;
        if !std::mem::take(&mut self.paused) {
            return;
        }
        if bytes < WORTH_IT {
            // Either there is no backlog, or the sender is in its slow mode, where it wakes somebody for each
            // change, or it did not run: only the longest pause can tell, and lead out of it.
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

    /// How much longer a batch of `bytes` shall grow before it is handed over, or before this is asked again; `None`: hand
    /// it over now.
    pub fn gathers(&mut self, lag_us: i64, bytes: usize, now: Instant) -> Option<Duration> {
        let mut left = Duration::ZERO;
        let backlog = self
            .behind_since
            .is_some_and(|since| now.duration_since(since) >= BACKLOG);
        if self.is_behind(lag_us, now) && bytes < GATHER_BYTES && !(backlog && self.silent) {
            let since = *self.gathering_since.get_or_insert(now);
            left = GATHER.saturating_sub(now.duration_since(since));
        }
        if backlog {
            let quiet = self.read_at.map_or(SILENCE, |at| now.duration_since(at));
            left = left.min(SILENCE.saturating_sub(quiet).max(ASK_AGAIN));
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
    fn a_batch_does_not_gather_beyond_the_end_of_a_backlog() {
        let mut pace = Pace::new(Aim::UNIX);
        let began = Instant::now();
        let silent_at = |pace: &mut Pace, now| {
            pace.before_read(LATE, now);
            pace.after_read(10_000, now);
            let nearly = now + SILENCE / 2;
            pace.found_nothing(nearly);
            let early = pace.gathers(LATE, 10, nearly);
            pace.found_nothing(now + SILENCE);
            (early, pace.gathers(LATE, 10, now + SILENCE))
        };
        // Not at once: it may be late by its start alone.
        let (early, late) = silent_at(&mut pace, began);
        assert_eq!((early, late), (Some(GATHER), Some(GATHER - SILENCE / 2)));
        let mut now = began + BACKLOG;
        let (early, late) = silent_at(&mut pace, now);
        assert_eq!((early, late), (None, None));
        // What was over the time that a batch may grow was handed over; the next one.
        now += BACKLOG;
        let (early, late) = silent_at(&mut pace, now);
        assert_eq!((early, late), (Some(SILENCE / 2), None));
        // More came after all.
        pace.after_read(10_000, now);
        assert_eq!(pace.gathers(LATE, 10, now), Some(SILENCE));
        // No read has found nothing yet: this is late by itself.
        let late = now + SILENCE * 2;
        assert_eq!(pace.gathers(LATE, 10, late), Some(ASK_AGAIN));
        // It has caught up, and a new backlog begins.
        pace.before_read(0, now);
        let (early, late) = silent_at(&mut pace, now);
        assert!(early.is_some() && late.is_some());
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
            assert!(pause < full, "{rate}: {pause:?}");
        }
    }

    #[test]
    fn a_sender_does_not_wait_long_where_the_window_is_smaller_than_what_is_aimed_at() {
        for window in [WINDOW, WINDOW / 2] {
            assert_eq!(settled_in(Aim::LOOPBACK, 40.0, window), (window, UNFILLED));
        }
        // Until one read brings nearly as much as wanted.
        let mut pace = Pace::new(Aim::LOOPBACK);
        let now = Instant::now();
        for _ in 0..100 {
            pace.before_read(LATE, now);
            pace.after_read(WINDOW, now);
        }
        assert_eq!(pace.before_read(LATE, now), Some(UNFILLED));
        pace.after_read(2 * WINDOW, now);
        for _ in 0..4 {
            pace.before_read(LATE, now);
            pace.after_read(WINDOW, now);
        }
        assert!(pace.before_read(LATE, now).unwrap() > UNFILLED);
    }

    #[test]
    fn a_sender_in_its_slow_mode_is_waited_for_until_it_has_sent_as_much() {
        let (_, pause) = settled_in(Aim::LOOPBACK, 16.0, 2 * WINDOW);
        assert!(pause < Aim::LOOPBACK.longest, "{pause:?}");
    }
}
