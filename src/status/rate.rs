//! How fast things go: WAL, rows, and how long the slot lasts. Pure.

use std::collections::VecDeque;

use super::Rate;
use super::lag::{Micros, seconds};
use crate::lsn::Lsn;

/// What a rate is taken over, in seconds.
const MINUTE: f64 = 60.0;
/// Less than this between two readings says little.
const LEAST: f64 = 4.0;

/// What was read at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Reading {
    pub(crate) at: Micros,
    /// Of the source's WAL.
    pub(crate) end: Lsn,
    /// What the slot keeps; none: there is no slot.
    pub(crate) retained: Option<i64>,
    /// How much more may be written; none: no limit.
    pub(crate) safe: Option<i64>,
    /// Rows that the daemon has written since it began.
    pub(crate) rows: u64,
}

impl Reading {
    /// The slot keeps more than a tenth of what it may. With less, it only waits for the next confirmation.
    fn is_used(&self) -> bool {
        let kept = self.retained.unwrap_or_default();
        self.safe.is_some_and(|safe| kept >= (kept + safe) / 10)
    }
}

/// The last minute's readings.
#[derive(Debug, Default)]
pub(crate) struct Readings(VecDeque<Reading>);

impl Readings {
    /// Takes a reading; returns what the last minute's come to.
    pub(crate) fn take(&mut self, reading: Reading) -> Option<Rate> {
        let is_before = |last: &Reading| {
            reading.end < last.end || reading.rows < last.rows || reading.at <= last.at
        };
        if self.0.back().is_some_and(is_before) {
            self.0.clear();
        }
        self.0.push_back(reading);
        let since = |first: &Reading| seconds(reading.at - first.at);
        // One that is older than a minute stays, so that a minute is covered.
        while self.0.get(1).is_some_and(|second| since(second) >= MINUTE) {
            self.0.pop_front();
        }
        let first = self.0.front()?;
        let took = since(first);
        if took < LEAST {
            return None;
        }
        Some(Rate {
            wal_bytes_per_second: reading.end.bytes_since(first.end) as f64 / took,
            rows_per_second: Some((reading.rows - first.rows) as f64 / took),
            seconds_left: left(reading.safe, self.growth()).filter(|_| reading.is_used()),
        })
    }

    /// By how much more WAL the slot keeps, each second. It lets go of WAL in leaps, some seconds apart, so the least of the first
    /// half of the minute is compared with the least of the second.
    fn growth(&self) -> Option<f64> {
        let (first, last) = (self.0.front()?, self.0.back()?);
        let middle = first.at + (last.at - first.at) / 2;
        let least = |of: &dyn Fn(&&Reading) -> bool| {
            let halves = self.0.iter().filter(of);
            let kept = halves.filter_map(|reading| Some((reading.retained?, reading.at)));
            kept.min()
        };
        let (before, at) = least(&|reading| reading.at <= middle)?;
        let (after, then) = least(&|reading| reading.at > middle)?;
        Some((after - before) as f64 / seconds(then - at))
    }
}

/// Until a slot is lost that may keep so much more WAL.
pub(super) fn left(safe: Option<i64>, growth: Option<f64>) -> Option<f64> {
    let (safe, growth) = (safe?, growth?);
    // Less than this is no growth: it would last for years.
    (growth >= 1.0).then(|| safe.max(0) as f64 / growth)
}

/// The rate since a moment of which it is known where the WAL ended: what there is where no daemon counts. The last one that is a
/// minute ago counts, or the first one.
pub(super) fn since(known: &[Option<(Lsn, Micros)>], now: (Lsn, Micros)) -> Option<f64> {
    let took = |at: Micros| seconds(now.1 - at);
    let known = || known.iter().flatten();
    let minute = known().filter(|(_, at)| took(*at) >= MINUTE);
    let minute = minute.max_by_key(|(_, at)| *at);
    let (end, at) = minute.or_else(|| known().min_by_key(|(_, at)| *at))?;
    (took(*at) >= LEAST && now.0 >= *end).then(|| now.0.bytes_since(*end) as f64 / took(*at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(second: i64, end: u64, retained: i64) -> Reading {
        Reading {
            at: second * 1_000_000,
            end: Lsn::from_u64(end),
            retained: Some(retained),
            safe: Some(72_000),
            rows: end / 10,
        }
    }

    #[test]
    fn a_rate_needs_two_readings_and_covers_a_minute() {
        let mut readings = Readings::default();
        assert_eq!(readings.take(reading(0, 0, 0)), None);
        assert_eq!(readings.take(reading(1, 1_000, 0)), None);
        let rate = readings.take(reading(5, 5_000, 0)).unwrap();
        assert_eq!(rate.wal_bytes_per_second, 1_000.0);
        assert_eq!(rate.rows_per_second, Some(100.0));
        // Then it is quiet.
        let mut last = None;
        for second in 2..=13 {
            last = readings.take(reading(5 * second, 5_000, 0));
        }
        assert_eq!(last.unwrap().wal_bytes_per_second, 0.0);
        assert!(readings.0.len() <= 14, "{}", readings.0.len());
    }

    #[test]
    fn a_slot_that_lets_go_in_leaps_is_not_in_danger() {
        let mut readings = Readings::default();
        for n in 0..100_i64 {
            // 1,000 bytes a second, which are let go of every 15 s.
            let rate = readings.take(reading(5 * n, n.cast_unsigned() * 5_000, n % 3 * 5_000));
            if n >= 12 {
                assert_eq!(rate.unwrap().seconds_left, None, "{n}");
            }
        }
    }

    #[test]
    fn a_slot_that_lets_go_of_nothing_has_its_time() {
        let mut readings = Readings::default();
        let mut last = None;
        for n in 0..=12_i64 {
            last = readings.take(reading(5 * n, n.cast_unsigned() * 5_000, n * 5_000));
        }
        assert_eq!(last.unwrap().seconds_left, Some(72.0));
        let few = Reading {
            safe: Some(i64::MAX / 2),
            ..reading(65, 65_000, 65_000)
        };
        assert_eq!(readings.take(few).unwrap().seconds_left, None);
        assert_eq!(left(None, Some(1_000.0)), None);
        assert_eq!(left(Some(-5), Some(1_000.0)), Some(0.0));
        assert_eq!(left(Some(5), Some(0.1)), None);
    }

    #[test]
    fn another_server_or_process_begins_anew() {
        let mut readings = Readings::default();
        readings.take(reading(0, 50_000, 0));
        assert_eq!(readings.take(reading(5, 10, 0)), None);
        assert_eq!(readings.0.len(), 1);
    }

    #[test]
    fn without_a_daemon_the_rate_is_that_since_a_known_moment() {
        let at = |lsn: u64, second: i64| (Lsn::from_u64(lsn), second * 1_000_000);
        let one = |lsn, second| [Some(at(lsn, second)), None];
        assert_eq!(since(&one(0, 0), at(6_000, 60)), Some(100.0));
        assert_eq!(since(&one(0, 0), at(6_000, 1)), None);
        assert_eq!(since(&one(9_000, 0), at(6_000, 60)), None);
        let two = [Some(at(0, 0)), Some(at(4_000, 80))];
        assert_eq!(since(&two, at(6_000, 100)), Some(60.0));
        assert_eq!(since(&two, at(10_000, 140)), Some(100.0));
        assert_eq!(since(&[None, None], at(10_000, 140)), None);
    }
}
