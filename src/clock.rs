//! PostgreSQL's times.

use std::fmt::Write as _;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Microseconds between the Unix epoch and PostgreSQL's, 2000-01-01 00:00:00 UTC.
const POSTGRES_EPOCH_UNIX_US: i64 = 946_684_800_000_000;

/// This machine's clock: microseconds since 2000-01-01 00:00:00 UTC.
pub(crate) fn now() -> i64 {
    let unix = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(unix.as_micros()).unwrap_or(i64::MAX) - POSTGRES_EPOCH_UNIX_US
}

/// A time of PostgreSQL as seconds since 1970.
pub(crate) fn unix_seconds(time: i64) -> f64 {
    time.saturating_add(POSTGRES_EPOCH_UNIX_US) as f64 / 1e6
}

/// This machine's clock: microseconds since 1970-01-01 00:00:00 UTC.
pub(crate) fn unix_now() -> i64 {
    now() + POSTGRES_EPOCH_UNIX_US
}

/// A clock that only goes forward; where tokio's time is paused, it is paused as well.
pub(crate) fn monotonic() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Appends `time` (microseconds since 2000-01-01 00:00:00 UTC) as PostgreSQL's ISO form in UTC, which both
/// `timestamp` and `timestamptz` columns read as that moment's UTC wall clock.
pub(crate) fn write_utc(out: &mut String, time: i64) {
    let unix_us = i128::from(time) + i128::from(POSTGRES_EPOCH_UNIX_US);
    match time::OffsetDateTime::from_unix_timestamp_nanos(unix_us * 1000) {
        Ok(t) => {
            let _ = write!(
                out,
                "{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:06}+00",
                t.year(),
                u8::from(t.month()),
                t.day(),
                t.hour(),
                t.minute(),
                t.second(),
                t.microsecond()
            );
        }
        // Beyond the calendar's years: only an infinite timestamp could be meant.
        Err(_) => out.push_str(if time < 0 { "-infinity" } else { "infinity" }),
    }
}

/// A time as the log writes it, to the second.
pub(crate) fn utc(time: SystemTime) -> String {
    let time = time::OffsetDateTime::from(time);
    let (date, clock) = (time.date(), time.time());
    format!(
        "{date}T{:02}:{:02}:{:02}Z",
        clock.hour(),
        clock.minute(),
        clock.second()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_with_all_its_microseconds() {
        let mut text = String::new();
        write_utc(&mut text, 1);
        assert_eq!(text, "2000-01-01 00:00:00.000001+00");
        text.clear();
        write_utc(&mut text, -1);
        assert_eq!(text, "1999-12-31 23:59:59.999999+00");
    }
}
