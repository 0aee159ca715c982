//! The last five minutes as the charts show them, kept here so that a page has them as soon as it is opened. Pure: what is
//! measured is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;

/// Between two points.
pub(super) const STEP: Duration = Duration::from_secs(2);
/// Five minutes.
const POINTS: usize = 150;

/// The newest point is last; a point that is not known is none.
#[derive(Debug, Default, Serialize)]
pub(super) struct Series {
    rows_per_second: VecDeque<Option<f64>>,
    lag_seconds: VecDeque<Option<f64>>,
    retained_bytes: VecDeque<Option<f64>>,
    /// The rows at the last point, and when that was.
    #[serde(skip)]
    last: Option<(u64, Instant)>,
}

/// What is so at a point.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    /// Rows committed since the start.
    pub(super) rows: u64,
    pub(super) lag_seconds: Option<f64>,
    pub(super) retained_bytes: Option<i64>,
}

impl Series {
    pub(super) fn add(&mut self, point: Point, now: Instant) {
        let rate = self.last.and_then(|(rows, at)| {
            let seconds = now.duration_since(at).as_secs_f64();
            let rows = point.rows.saturating_sub(rows);
            (seconds > 0.0).then(|| rounded(rows as f64 / seconds, 10.0))
        });
        self.last = Some((point.rows, now));
        push(&mut self.rows_per_second, rate);
        let lag = point.lag_seconds.map(|lag| rounded(lag, 1000.0));
        push(&mut self.lag_seconds, lag);
        let retained = point.retained_bytes.map(|bytes| bytes.max(0) as f64);
        push(&mut self.retained_bytes, retained);
    }
}

fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

fn push(points: &mut VecDeque<Option<f64>>, point: Option<f64>) {
    if points.len() >= POINTS {
        points.pop_front();
    }
    points.push_back(point);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_minutes_are_kept_and_rates_are_by_the_time_that_has_passed() {
        let mut series = Series::default();
        let began = Instant::now();
        for n in 0..200_u32 {
            let point = Point {
                rows: u64::from(n) * 100,
                lag_seconds: (n > 100).then_some(0.123_456),
                retained_bytes: Some(i64::from(n)),
            };
            series.add(point, began + STEP * n);
        }
        let json = serde_json::to_value(&series).unwrap();
        for name in ["rows_per_second", "lag_seconds", "retained_bytes"] {
            assert_eq!(json[name].as_array().unwrap().len(), POINTS, "{name}");
        }
        assert_eq!(json["rows_per_second"][0], 50.0);
        assert_eq!(json["lag_seconds"][0], serde_json::Value::Null);
        assert_eq!(json["lag_seconds"][149], 0.123);
        assert_eq!(json["retained_bytes"][149], 199.0);
        assert!(json.get("last").is_none());
    }

    #[test]
    fn the_first_point_has_no_rate() {
        let mut series = Series::default();
        let point = Point {
            rows: 7,
            lag_seconds: None,
            retained_bytes: None,
        };
        series.add(point, Instant::now());
        assert_eq!(series.rows_per_second, [None]);
    }
}
