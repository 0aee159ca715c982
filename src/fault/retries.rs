//! Faults that come again: how long to wait before the next try, and when to say so. Time is an argument.
//!
//! A fault is the same as another one when their words are, numbers and WAL positions apart. Each kind has a back-off of its
//! own, which grows as long as it comes again, however long the tries take and whatever they have written. It is logged once,
//! and then every [`REMIND`] with the number of its failures; a different one is logged at once.
//!
//! ```text
//!   WARN   a fault, when it comes; every REMIND while it lasts
//!   ERROR  once, when faults have lasted for ALARM
//!   INFO   once, when they have passed: both servers are connected, or what had failed is done
//! ```

use std::time::{Duration, Instant, SystemTime};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use super::{Disposition, Exit, Fault, Side};
use crate::lsn::Lsn;

const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// While a server is away, a fail-over does not wait for longer than this, in the first [`OFTEN`].
const PROBE: Duration = Duration::from_secs(1);
const OFTEN: Duration = Duration::from_secs(300);
/// How often a fault that comes again is logged.
const REMIND: Duration = Duration::from_secs(300);
/// Faults that last for so long are an error: a server that is restarted or replaced is back before.
const ALARM: Duration = Duration::from_secs(120);
/// A session that has gone on for so long has got over what failed before.
const STEADY: Duration = Duration::from_secs(60);
/// A fault that has not come again within this time has passed.
const PASSED: Duration = Duration::from_secs(600);
/// And one that seldom passes: a try can take long.
const SELDOM_PASSED: Duration = Duration::from_secs(3600);
/// Kinds that are remembered; the oldest are forgotten.
const KINDS_MAX: usize = 16;

/// What has failed so far.
#[derive(Debug, Default)]
pub(crate) struct Retries {
    kinds: Vec<Kind>,
    tries: Tries,
    last: Option<Instant>,
    trouble: Option<Trouble>,
}

/// Since when nothing goes on, whatever the faults were.
#[derive(Debug)]
struct Trouble {
    first: Instant,
    last: Instant,
    failures: u32,
    /// The server that failed last, where that is known.
    side: Option<Side>,
    /// The last fault was that a server could not be reached.
    is_away: bool,
    /// Where the history ended.
    at: Lsn,
    /// It is in the log that something failed.
    is_said: bool,
    is_alarmed: bool,
}

/// Faults that have passed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Passed {
    lasted: Duration,
    failures: u32,
    side: Option<Side>,
    is_away: bool,
    is_said: bool,
}

#[derive(Debug)]
struct Kind {
    words: String,
    /// It is not just that a server could not be reached.
    stays: bool,
    first: Instant,
    last: Instant,
    said: Option<Instant>,
    is_alarmed: bool,
    failures: u32,
    pauses: ExponentialBackoff,
}

/// What follows from a fault that may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retry {
    pub(crate) pause: Duration,
    /// How often it has failed in this way, and for how long.
    failures: u32,
    lasts: Duration,
    /// Whether to log it.
    is_said: bool,
    /// Whether it is an error by now, and was none before.
    is_alarm: bool,
}

impl Retries {
    /// What follows from a fault at `now`. `at`: the end of the history; `worked`: both servers had been reached.
    ///
    /// # Errors
    /// It has come too often, or will not pass.
    pub(crate) fn after(
        &mut self,
        fault: Fault,
        at: Lsn,
        worked: bool,
        now: Instant,
    ) -> Result<(Retry, Fault), Fault> {
        let last = self.last.replace(now);
        if last.is_none_or(|last| now - last >= SELDOM_PASSED) {
            self.tries = Tries::default();
        }
        let fault = self.tries.judge(fault, at);
        if !fault.may_pass() {
            return Err(fault);
        }
        let words = kind(&fault.to_string());
        let is_away = fault.disposition() == Disposition::Reconnect;
        self.kinds
            .retain(|kind| now - kind.last < PASSED && (kind.stays || !worked));
        let found = self.kinds.iter().position(|kind| kind.words == words);
        let mut kind = match found {
            Some(found) => self.kinds.remove(found),
            None => Kind::new(words, now),
        };
        kind.stays |= worked || !is_away;
        let mut retry = kind.fails(is_away, now);
        let trouble = self.trouble.get_or_insert_with(|| Trouble::new(now));
        trouble.fails(&fault, at, now);
        let lasts = retry.lasts.max(trouble.last - trouble.first);
        if lasts >= ALARM && !kind.is_alarmed && !trouble.is_alarmed {
            (kind.is_alarmed, trouble.is_alarmed) = (true, true);
            (retry.is_alarm, retry.is_said) = (true, true);
            kind.said = Some(now);
        }
        trouble.is_said |= retry.is_said;
        if self.kinds.len() >= KINDS_MAX {
            self.kinds.remove(0);
        }
        self.kinds.push(kind);
        Ok((retry, fault))
    }

    /// Both servers are connected: what has passed by that.
    pub(crate) fn connected(&mut self, now: Instant) -> Option<Passed> {
        let trouble = self.trouble.take_if(|trouble| trouble.is_away)?;
        Some(trouble.passed(now))
    }

    /// A session goes on, and the history ends at `at`: what has passed by that.
    pub(crate) fn going_on(&mut self, at: Lsn, now: Instant) -> Option<Passed> {
        let is_over = |trouble: &mut Trouble| at > trouble.at || now - trouble.last >= STEADY;
        let trouble = self.trouble.take_if(is_over)?;
        Some(trouble.passed(now))
    }

    /// All is done that was tried: what has passed by that.
    pub(crate) fn done(&mut self, now: Instant) -> Option<Passed> {
        self.trouble.take().map(|trouble| trouble.passed(now))
    }
}

impl Trouble {
    fn new(now: Instant) -> Self {
        Self {
            first: now,
            last: now,
            failures: 0,
            side: None,
            is_away: false,
            at: Lsn::ZERO,
            is_said: false,
            is_alarmed: false,
        }
    }

    fn fails(&mut self, fault: &Fault, at: Lsn, now: Instant) {
        self.last = now;
        self.failures = self.failures.saturating_add(1);
        self.side = fault.side().or(self.side);
        self.is_away = fault.disposition() == Disposition::Reconnect;
        self.at = at;
    }

    fn passed(self, now: Instant) -> Passed {
        Passed {
            lasted: now - self.first,
            failures: self.failures,
            side: self.side,
            is_away: self.is_away,
            is_said: self.is_said,
        }
    }
}

impl Passed {
    /// Logs that it has passed, if the log says that it began.
    pub(crate) fn log(&self) {
        let side = self.side.map(|side| side.to_string());
        let (side, failures) = (side.as_deref(), self.failures);
        let seconds = self.lasted.as_secs_f64();
        match (self.is_said, self.is_away) {
            (true, true) => tracing::info!(side, seconds, failures, "connected again"),
            (true, false) => tracing::info!(side, seconds, failures, "the fault has passed"),
            (false, _) => tracing::debug!(side, seconds, failures, "the fault has passed again"),
        }
    }
}

impl Kind {
    fn new(words: String, now: Instant) -> Self {
        Self {
            words,
            stays: false,
            first: now,
            last: now,
            said: None,
            is_alarmed: false,
            failures: 0,
            pauses: ExponentialBuilder::default()
                .with_min_delay(PAUSE_MIN)
                .with_max_delay(PAUSE_MAX)
                .with_jitter()
                .without_max_times()
                .build(),
        }
    }

    fn fails(&mut self, is_away: bool, now: Instant) -> Retry {
        self.last = now;
        self.failures = self.failures.saturating_add(1);
        let lasts = now - self.first;
        let most = match is_away && lasts < OFTEN {
            true => PROBE,
            false => PAUSE_MAX,
        };
        let pause = self.pauses.next().unwrap_or(PAUSE_MAX).min(most);
        let is_said = self.said.is_none_or(|said| now - said >= REMIND);
        if is_said {
            self.said = Some(now);
        }
        Retry {
            // Many sidecars do not come back at once.
            pause: pause.mul_f32(1.0 - fastrand::f32() / 4.0),
            failures: self.failures,
            lasts,
            is_said,
            is_alarm: false,
        }
    }
}

impl Retry {
    /// Logs the fault, if it is to be said; `what`: what has failed.
    pub(crate) fn log(&self, fault: &Fault, what: &'static str) {
        let remedy = fault.remedy_text().unwrap_or_default();
        let retry_in_ms = self.pause.as_millis() as u64;
        let failures = (self.failures > 1).then_some(self.failures);
        let since = failures.and(SystemTime::now().checked_sub(self.lasts));
        let since = since.map(crate::clock::utc);
        let since = since.as_deref();
        let side = fault.side().map(|side| side.to_string());
        let side = side.as_deref();
        let headline = fault.headline().unwrap_or(what);
        if self.is_alarm {
            tracing::error!(side, error = %fault, remedy, failures, since, retry_in_ms, "{headline}");
        } else if self.is_said {
            tracing::warn!(side, error = %fault, remedy, failures, since, retry_in_ms, "{headline}");
        } else {
            tracing::debug!(side, error = %fault, failures, retry_in_ms, "{headline}");
        }
    }
}

/// The words of a fault, without numbers and positions.
fn kind(words: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '/');
    let is_hex = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit());
    let mut kind = String::with_capacity(words.len());
    for part in words.split_inclusive(|c| !is_word(c)) {
        let word = part.trim_end_matches(|c| !is_word(c));
        let is_position = word
            .split_once('/')
            .is_some_and(|(high, low)| is_hex(high) && is_hex(low));
        match is_position || word.parse::<u64>().is_ok() {
            true => kind.push('#'),
            false => kind.push_str(word),
        }
        kind.push_str(&part[word.len()..]);
    }
    kind
}

/// Counts the faults that seldom pass.
#[derive(Debug, Default)]
struct Tries {
    at: Lsn,
    faults: usize,
}

impl Tries {
    const MAX: usize = 3;

    /// Makes a fault definite that has come again after so many tries at the same position.
    fn judge(&mut self, fault: Fault, at: Lsn) -> Fault {
        if fault.disposition != Disposition::RetryFew {
            return fault;
        }
        if self.at != at {
            *self = Self { at, faults: 0 };
        }
        self.faults += 1;
        if self.faults <= Self::MAX {
            return fault;
        }
        Fault {
            disposition: Disposition::Halt(Exit::HistoryWouldBeWrong),
            anchor: fault.anchor.or(Some("a-server-refused-a-statement")),
            remedy: fault.remedy.or_else(|| {
                Some(
                    "see the server's own log for the statement; start again once it is repaired"
                        .to_owned(),
                )
            }),
            ..fault
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn refused() -> Fault {
        Fault::retry("the target did not take the history").after(Lsn::from_u64(fastrand::u64(..)))
    }

    fn away() -> Fault {
        Fault::reconnect("could not connect to the target")
    }

    /// Fails so often, each time after `takes`; returns the last pause and when that was over.
    fn fail(
        retries: &mut Retries,
        fault: fn() -> Fault,
        (times, takes): (u32, Duration),
        worked: bool,
        start: Instant,
    ) -> (Retry, Instant) {
        let mut now = start;
        let mut last = None;
        for _ in 0..times {
            now += takes;
            let (retry, _) = retries.after(fault(), Lsn::ZERO, worked, now).unwrap();
            now += retry.pause;
            last = Some(retry);
        }
        (last.unwrap(), now)
    }

    #[test]
    fn a_fault_that_comes_again_backs_off_however_long_each_try_takes_and_whatever_it_writes() {
        for (takes, worked) in [
            (SECOND / 10, false),
            (50 * SECOND, false),
            (50 * SECOND, true),
        ] {
            let mut retries = Retries::default();
            let start = Instant::now();
            let (retry, now) = fail(&mut retries, refused, (1, takes), worked, start);
            assert!(retry.pause <= 2 * PAUSE_MIN, "{retry:?}");
            let (retry, _) = fail(&mut retries, refused, (10, takes), worked, now);
            assert!(retry.pause > PAUSE_MAX / 2, "{retry:?}");
        }
    }

    #[test]
    fn it_is_a_warning_once_an_error_once_after_two_minutes_and_then_a_warning_every_five() {
        let mut retries = Retries::default();
        let start = Instant::now();
        let mut said = Vec::new();
        for n in 0..200 {
            let now = start + n * 5 * SECOND;
            let (retry, _) = retries.after(refused(), Lsn::ZERO, false, now).unwrap();
            if retry.is_said {
                said.push((retry.failures, retry.lasts, retry.is_alarm));
            }
        }
        let wanted = [
            (1, Duration::ZERO, false),
            (25, ALARM, true),
            (85, ALARM + REMIND, false),
            (145, ALARM + 2 * REMIND, false),
        ];
        assert_eq!(said, wanted);
        let other = Fault::retry("the stream from the source broke");
        let now = start + 1000 * SECOND;
        let (retry, _) = retries.after(other, Lsn::ZERO, false, now).unwrap();
        assert!(retry.is_said && retry.failures == 1 && retry.pause <= 2 * PAUSE_MIN);
    }

    #[test]
    fn a_server_that_is_away_is_asked_every_second_in_the_first_minutes() {
        let mut retries = Retries::default();
        let start = Instant::now();
        let mut now = start;
        while now < start + OFTEN {
            let (retry, _) = retries.after(away(), Lsn::ZERO, false, now).unwrap();
            assert!(retry.pause <= PROBE, "{retry:?}");
            now += retry.pause;
        }
        let (retry, _) = retries.after(away(), Lsn::ZERO, false, now).unwrap();
        assert!(retry.pause > PAUSE_MAX / 2, "{retry:?}");
        // It was there meanwhile: the next time it is away is another one.
        retries.after(refused(), Lsn::ZERO, true, now).unwrap();
        let (retry, _) = retries.after(away(), Lsn::ZERO, false, now).unwrap();
        assert!(retry.failures == 1 && retry.pause <= PROBE);
    }

    #[test]
    fn what_has_passed_is_told_once_with_its_side_and_how_long_it_took() {
        let start = Instant::now();
        let of_target = || away().of(Side::Target);
        let mut retries = Retries::default();
        let (_, now) = fail(&mut retries, of_target, (3, 2 * SECOND), false, start);
        // A history that does not move is no proof, and a session that goes on is none of a connection.
        assert_eq!(retries.going_on(Lsn::ZERO, now), None);
        let passed = retries.connected(now).unwrap();
        assert_eq!((passed.failures, passed.side), (3, Some(Side::Target)));
        assert!(passed.is_said && passed.is_away);
        assert!(
            passed.lasted >= 4 * SECOND && passed.lasted < 8 * SECOND,
            "{passed:?}"
        );
        assert_eq!(retries.connected(now), None);

        let (_, now) = fail(&mut retries, refused, (2, SECOND), true, now);
        assert_eq!(retries.connected(now), None, "the servers were there");
        assert_eq!(retries.going_on(Lsn::ZERO, now), None);
        let passed = retries.going_on(Lsn::from_u64(1), now).unwrap();
        assert!(passed.failures == 2 && !passed.is_away);
        fail(&mut retries, refused, (1, SECOND), true, now);
        assert!(retries.going_on(Lsn::ZERO, now + 2 * STEADY).is_some());
    }

    #[test]
    fn a_connection_that_breaks_again_and_again_is_an_error_once_and_no_line_each_time() {
        let mut retries = Retries::default();
        let mut now = Instant::now();
        let (mut said, mut alarms) = (0, 0);
        for _ in 0..60 {
            now += 10 * SECOND;
            let broke = Fault::reconnect("the stream broke");
            let (retry, _) = retries.after(broke, Lsn::ZERO, true, now).unwrap();
            alarms += u32::from(retry.is_alarm);
            said += u32::from(retries.connected(now + SECOND).unwrap().is_said);
        }
        assert_eq!(
            (said, alarms),
            (3, 1),
            "at first, after two minutes, and after seven"
        );
    }

    #[test]
    fn a_connection_that_breaks_again_and_again_backs_off_too() {
        let lost: fn() -> Fault = || Fault::reconnect("the stream broke");
        let mut retries = Retries::default();
        let (retry, _) = fail(&mut retries, lost, (20, 40 * SECOND), true, Instant::now());
        assert!(retry.pause > PAUSE_MAX / 2, "{retry:?}");
    }

    #[test]
    fn a_fault_that_was_away_for_long_begins_anew() {
        let mut retries = Retries::default();
        let (_, now) = fail(&mut retries, refused, (20, SECOND), true, Instant::now());
        let later = now + PASSED;
        let (retry, _) = retries.after(refused(), Lsn::ZERO, true, later).unwrap();
        assert!(retry.failures == 1 && retry.pause <= 2 * PAUSE_MIN);
    }

    #[test]
    fn a_fault_that_seldom_passes_becomes_definite_at_the_same_position_only() {
        let seldom = || Fault::new(Disposition::RetryFew, "internal error");
        let (mut retries, mut now) = (Retries::default(), Instant::now());
        let mut after = |fault: Fault, at: u64| {
            now += 50 * SECOND;
            retries.after(fault, Lsn::from_u64(at), false, now)
        };
        for at in [1, 1, 1, 2, 2, 2] {
            assert!(after(seldom(), at).is_ok(), "{at}");
        }
        // Others are not counted.
        assert!(after(Fault::retry("gone"), 2).is_ok());
        let Err(last) = after(seldom(), 2) else {
            panic!("it is tried for ever");
        };
        assert_eq!(last.exit(), Exit::HistoryWouldBeWrong);
        assert!(last.remedy_text().is_some_and(|text| text.contains('#')));
    }

    #[test]
    fn kinds_of_faults_differ_in_words_and_not_in_numbers() {
        let words = "table public.t1: after 0/15B2C88, 27 rows [SQLSTATE 53100]";
        assert_eq!(kind(words), "table public.t1: after #, # rows [SQLSTATE #]");
        assert_eq!(kind("1/2: a/b é 7"), "#: # é #");
        assert_eq!(kind(""), "");
    }
}
