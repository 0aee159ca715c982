//! What lag means, everywhere: the age of the oldest commit that is not in the history, and the WAL that can hold such commits.
//! Pure.
//!
//! ```text
//!   source's WAL  ----+---------------+-------------> end
//!                  recorded        oldest commit that is not in the history
//!                  at `complete`   (a moment later, or there is none)
//! ```
//!
//! The source has no index from a position to a time. So the age counts from `complete`: the latest moment of which it is known
//! that everything that committed before is recorded. The daemon notes the end of the WAL every few seconds, and knows when it
//! has recorded that much ([`Ends`]). Without a daemon it is the last recorded commit. The age is never too small.

use std::collections::VecDeque;

use crate::lsn::Lsn;

/// Ends of the WAL that are remembered.
const ENDS_MAX: usize = 1_024;

/// Microseconds since 1970, by the source's clock.
pub(crate) type Micros = i64;

/// What both servers say of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    /// The source's present time, and the end of its WAL.
    pub(super) now: Micros,
    pub(super) end: Lsn,
    /// Up to here everything is recorded, or confirmed, which means that nothing else is to be recorded before it.
    pub(super) recorded: Lsn,
    /// A daemon writes, its source has sent all that there is, and it has nothing to write.
    pub(super) is_level: bool,
    /// See the module; none: not known.
    pub(super) complete: Option<Micros>,
}

impl Known {
    /// In bytes and in seconds.
    pub(super) fn lag(self) -> (i64, Option<f64>) {
        let bytes = match self.end > self.recorded {
            true if !self.is_level => self.end.bytes_since(self.recorded),
            _ => return (0, Some(0.0)),
        };
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let age = |complete| seconds(self.now.saturating_sub(complete)).max(0.0);
        (bytes, self.complete.map(age))
    }
}

pub(super) fn seconds(micros: Micros) -> f64 {
    micros as f64 / 1e6
}

/// Where the source's WAL ended at which moments, and up to which of them the history is complete.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    /// Those that are not recorded, in their order.
    ends: VecDeque<(Lsn, Micros)>,
    /// Not closer to each other than this.
    gap: Micros,
    complete: Option<Micros>,
}

impl Ends {
    /// The WAL ended here at this moment, and everything up to `recorded` was recorded a moment before; returns `complete`.
    pub(crate) fn saw(&mut self, end: Lsn, at: Micros, recorded: Lsn) -> Option<Micros> {
        if self.ends.back().is_some_and(|(last, _)| end < *last) {
            // Another server, or one that was restored.
            *self = Self::default();
        }
        while let Some(&(end, at)) = self.ends.front() {
            if end > recorded {
                break;
            }
            self.complete = self.complete.max(Some(at));
            self.ends.pop_front();
        }
        if self.ends.is_empty() {
            self.gap = 0;
        }
        if end <= recorded {
            self.complete = self.complete.max(Some(at));
            return self.complete;
        }
        // One that is left out makes an age only larger, by a small part of it.
        if self
            .ends
            .back()
            .is_none_or(|(_, last)| at - *last >= self.gap)
        {
            self.ends.push_back((end, at));
        }
        if self.ends.len() > ENDS_MAX {
            let mut n = 0;
            self.ends.retain(|_| {
                n += 1;
                n % 2 == 1
            });
            let (first, last) = (self.ends.front(), self.ends.back());
            let whole = Option::zip(first, last).map_or(0, |((_, first), (_, last))| last - first);
            self.gap = whole / (ENDS_MAX as Micros / 2);
        }
        self.complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Micros = 1_000_000;

    fn lsn(position: u64) -> Lsn {
        Lsn::from_u64(position)
    }

    #[test]
    fn what_is_recorded_whole_does_not_lag_however_long_ago_it_was() {
        let known = Known {
            now: 3600 * SECOND,
            end: lsn(1_000),
            recorded: lsn(1_000),
            is_level: false,
            complete: Some(0),
        };
        assert_eq!(known.lag(), (0, Some(0.0)));
        // WAL of others, of which nothing is to be recorded.
        let level = Known {
            end: lsn(20_000),
            is_level: true,
            ..known
        };
        assert_eq!(level.lag(), (0, Some(0.0)));
        let behind = Known {
            is_level: false,
            ..level
        };
        assert_eq!(behind.lag(), (19_000, Some(3600.0)));
        let unknown = Known {
            complete: None,
            ..behind
        };
        assert_eq!(unknown.lag(), (19_000, None));
        // Clocks that are set back.
        let early = Known { now: -5, ..behind };
        assert_eq!(early.lag(), (19_000, Some(0.0)));
    }

    #[test]
    fn the_age_counts_from_the_last_moment_of_which_everything_is_recorded() {
        let mut ends = Ends::default();
        assert_eq!(ends.saw(lsn(100), SECOND, lsn(50)), None);
        assert_eq!(ends.saw(lsn(200), 2 * SECOND, lsn(100)), Some(SECOND));
        // An hour in which nothing is written.
        assert_eq!(
            ends.saw(lsn(200), 3600 * SECOND, lsn(200)),
            Some(3600 * SECOND)
        );
        // And then a commit that the target does not take.
        for second in 3601..3700 {
            let complete = ends.saw(lsn(300), second * SECOND, lsn(200));
            assert_eq!(complete, Some(3600 * SECOND));
        }
    }

    #[test]
    fn days_of_it_are_remembered_in_bounded_memory_and_no_age_becomes_smaller() {
        let mut ends = Ends::default();
        for n in 1..=100_000_i64 {
            let complete = ends.saw(lsn(n.cast_unsigned() * 10), n * SECOND, lsn(5));
            assert_eq!(complete, None);
            assert!(ends.ends.len() <= ENDS_MAX);
        }
        let complete = ends.saw(lsn(2_000_000), 200_000 * SECOND, lsn(600_005));
        let complete = complete.unwrap();
        assert!(complete <= 60_000 * SECOND, "{complete}");
        assert!(complete > 50_000 * SECOND, "{complete}");
    }

    #[test]
    fn a_source_that_was_restored_is_begun_with_anew() {
        let mut ends = Ends::default();
        ends.saw(lsn(1_000), SECOND, lsn(1_000));
        ends.saw(lsn(2_000), 2 * SECOND, lsn(1_000));
        assert_eq!(ends.saw(lsn(500), 3 * SECOND, lsn(100)), None);
    }
}
