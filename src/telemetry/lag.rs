//! How far the history lags: the one number of metrics, log and page. Pure: time is an argument.
//!
//! Seconds are the age of the oldest commit that is not recorded:
//!
//! ```text
//!   something waits here                  since its commit: exact
//!   the source has more, as it says       since the last moment of which everything is recorded
//!                                         (`status/lag.rs`): never too small
//!   the source cannot be asked            the same, and it grows
//!   neither                               0
//! ```
//!
//! Bytes go from what is recorded to the end of the source's WAL, the newest that is known.

use crate::lsn::Lsn;

/// What is known of the source beside the stream. Times are microseconds since 2000-01-01.
#[derive(Debug, Default)]
pub struct Source {
    /// The last end of its WAL.
    end: Lsn,
    /// Everything that committed before is recorded, by this machine's clock.
    complete: Option<i64>,
    /// When it was last asked, there was nothing that was not recorded.
    is_level: bool,
    /// Its clock minus this machine's, in microseconds.
    clock_offset: i64,
}

impl Source {
    /// Its WAL ended at `end`. `lag_seconds`: as the observer found it.
    pub fn answered(&mut self, end: Lsn, lag_seconds: Option<f64>, now: i64) {
        self.end = end;
        self.is_level = lag_seconds == Some(0.0);
        if let Some(lag) = lag_seconds {
            self.complete = Some(now.saturating_sub((lag * 1e6) as i64));
        }
    }

    /// It could not be asked.
    pub fn silent(&mut self) {
        self.is_level = false;
    }

    pub fn set_clock_offset(&mut self, seconds: f64) {
        self.clock_offset = (seconds * 1e6) as i64;
    }

    /// The last end of its WAL that is known.
    pub fn end(&self) -> Lsn {
        self.end
    }

    /// When it was last asked, there was nothing that was not recorded.
    pub fn is_level(&self) -> bool {
        self.is_level
    }

    /// Microseconds from a commit, by the source's clock, to `now` by this machine's.
    #[inline]
    pub fn age(&self, commit_time: i64, now: i64) -> u64 {
        let age = now
            .saturating_add(self.clock_offset)
            .saturating_sub(commit_time);
        u64::try_from(age).unwrap_or(0)
    }

    /// `oldest`: when the oldest transaction committed that is here and not recorded. `is_here`: everything before the
    /// source's last known end has come.
    pub fn lag_seconds(&self, oldest: Option<i64>, is_here: bool, now: i64) -> f64 {
        let microseconds = match (oldest, self.complete) {
            (Some(oldest), _) => self.age(oldest, now),
            (None, Some(complete)) if !self.is_level && !is_here => {
                u64::try_from(now.saturating_sub(complete)).unwrap_or(0)
            }
            (None, _) => 0,
        };
        microseconds as f64 / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn lsn(at: u64) -> Lsn {
        Lsn::from_u64(at)
    }

    #[test]
    fn what_waits_here_is_as_old_as_its_commit_by_the_clock_of_the_source() {
        let mut source = Source::default();
        let oldest = Some(7 * SECOND);
        assert_eq!(source.lag_seconds(oldest, false, 9 * SECOND), 2.0);
        source.set_clock_offset(3.0);
        assert_eq!(source.lag_seconds(oldest, false, 9 * SECOND), 5.0);
        source.set_clock_offset(-3.0);
        assert_eq!(source.lag_seconds(oldest, false, 9 * SECOND), 0.0);
        source.answered(lsn(1), Some(0.0), 9 * SECOND);
        source.set_clock_offset(0.0);
        assert_eq!(source.lag_seconds(oldest, true, 9 * SECOND), 2.0);
    }

    #[test]
    fn what_the_source_has_and_has_not_sent_grows_older_between_two_questions() {
        let mut source = Source::default();
        assert_eq!(source.lag_seconds(None, false, SECOND), 0.0, "not known");
        source.answered(lsn(100), Some(600.0), 1_000 * SECOND);
        assert_eq!(source.lag_seconds(None, false, 1_000 * SECOND), 600.0);
        assert_eq!(source.lag_seconds(None, false, 1_004 * SECOND), 604.0);
        assert_eq!(source.lag_seconds(None, true, 1_004 * SECOND), 0.0);
        source.answered(lsn(100), Some(0.0), 1_005 * SECOND);
        assert_eq!(source.lag_seconds(None, false, 1_009 * SECOND), 0.0);
    }

    #[test]
    fn a_source_that_cannot_be_asked_may_have_more_since_it_last_answered() {
        let mut source = Source::default();
        source.answered(lsn(100), Some(0.0), 1_000 * SECOND);
        source.silent();
        assert_eq!(source.lag_seconds(None, false, 1_060 * SECOND), 60.0);
        source.answered(lsn(100), Some(0.0), 1_061 * SECOND);
        assert_eq!(source.lag_seconds(None, false, 1_061 * SECOND), 0.0);
    }
}
