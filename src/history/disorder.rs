//! By how much commit times are out of the order of commits: kept in the checkpoint's row (migration V9), so that "as of" a time
//! is known to be complete. A clock that was set back shows there, and a commit time that was taken a moment before another
//! transaction's commit. Pure.

use crate::pgoutput::Timestamp;
use crate::schema::plan::literal;

/// The most by which a commit time ever lay before that of an earlier commit, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disorder {
    /// At least the latest commit time so far.
    latest: i64,
    most: i64,
}

impl Disorder {
    /// Goes on from what the checkpoint says: `last` is the commit time there, none before the first transaction.
    pub fn new(last: Option<Timestamp>, most: i64) -> Self {
        // Only the last commit time is kept; none before it was later than that by more.
        let latest = last.map_or(i64::MIN, |last| last.0.saturating_add(most));
        Self { latest, most }
    }

    /// Takes the commit time of the next transaction; whether there is more disorder than before.
    #[inline]
    pub fn takes(&mut self, time: Timestamp) -> bool {
        if time.0 >= self.latest {
            self.latest = time.0;
            return false;
        }
        let behind = self.latest.saturating_sub(time.0);
        let grows = behind > self.most;
        self.most = self.most.max(behind);
        grows
    }

    /// The statement that keeps it. Where it is not known, it stays so.
    pub fn statement(self, slot: &str) -> String {
        format!(
            "UPDATE waltrail.checkpoint SET disorder = greatest(disorder, '{} us'::interval) \
              WHERE slot = {} AND disorder IS NOT NULL",
            self.most,
            literal(slot)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(mut disorder: Disorder, times: &[i64]) -> (Vec<bool>, i64) {
        let grows = times.iter().map(|&time| disorder.takes(Timestamp(time)));
        let grows = grows.collect();
        (grows, disorder.most)
    }

    #[test]
    fn times_in_order_are_no_disorder() {
        let begins = Disorder::new(None, 0);
        let (grows, most) = after(begins, &[i64::MIN, -5, -5, 7, i64::MAX]);
        assert_eq!((grows, most), (vec![false; 5], 0));
    }

    #[test]
    fn a_time_is_compared_with_the_latest_and_not_with_the_last() {
        let begins = Disorder::new(None, 0);
        let (grows, most) = after(begins, &[100, 90, 80, 85, 100, 79]);
        assert_eq!(grows, [false, true, true, false, false, true]);
        assert_eq!(most, 21);
    }

    #[test]
    fn what_goes_on_from_a_checkpoint_is_never_too_little() {
        // The latest was 100, the last one 70.
        let goes_on = Disorder::new(Some(Timestamp(70)), 30);
        assert_eq!(after(goes_on, &[75, 70, 100]), (vec![false; 3], 30));
        assert_eq!(after(goes_on, &[60]), (vec![true], 40));
        // It may have been 70, which is not kept.
        assert_eq!(after(goes_on, &[101, 60]), (vec![false, true], 41));
    }

    #[test]
    fn a_time_that_no_calendar_has_does_not_overflow() {
        let goes_on = Disorder::new(Some(Timestamp(i64::MAX)), 30);
        assert_eq!(after(goes_on, &[i64::MIN]), (vec![true], i64::MAX));
    }
}
