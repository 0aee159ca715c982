//! What the daemon knows and no server: left where `waltrail status` finds it. Pure.
//!
//! It stands in a comment of the last statement of a session of its own in the target, which `pg_stat_activity` shows to the same
//! role. So nothing is written, and it is gone with the daemon.

use serde::{Deserialize, Serialize};

use super::Rate;
use super::lag::Micros;

/// `pg_stat_activity` cuts a longer one, unless `track_activity_query_size` is raised.
const BYTES_MAX: usize = 900;
/// One that is older is of a daemon that hangs.
const SECONDS_MAX: f64 = 30.0;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// When it was made, by the source's clock.
    pub(crate) at: Micros,
    /// Everything that committed before is recorded: see `lag.rs`.
    pub(crate) complete: Option<Micros>,
    pub(crate) wal: Option<f64>,
    pub(crate) rows: Option<f64>,
    /// Seconds until the slot is lost.
    pub(crate) left: Option<f64>,
    /// The history whose existing rows have not moved for longest, and for how many seconds.
    pub(crate) still: Option<(String, f64)>,
}

/// How a note of this slot begins.
pub(super) fn head(slot: &str) -> String {
    format!("/* waltrail {slot} ")
}

impl Note {
    /// The statement that leaves it.
    pub(crate) fn statement(&self, slot: &str) -> String {
        let of = |note: &Self| {
            let json = serde_json::to_string(note).unwrap_or_default();
            // Names hold any character, and only strings of JSON hold these: no comment ends early or begins anew.
            json.replace('*', "\\u002a").replace('/', "\\u002f")
        };
        let mut json = of(self);
        if json.len() > BYTES_MAX {
            json = of(&Self {
                still: None,
                ..self.clone()
            });
        }
        format!("{}{json} */ SELECT", head(slot))
    }

    /// Reads the statement of a session.
    pub(super) fn read(statement: &str, slot: &str) -> Option<Self> {
        let json = statement.strip_prefix(&head(slot))?;
        serde_json::from_str(json.split_once(" */")?.0).ok()
    }

    /// The rates in it, while it is fresh.
    pub(super) fn rate(&self, now: Micros) -> Option<Rate> {
        self.is_fresh(now).then_some(())?;
        Some(Rate {
            wal_bytes_per_second: self.wal?,
            rows_per_second: self.rows,
            seconds_left: self.left,
        })
    }

    pub(super) fn is_fresh(&self, now: Micros) -> bool {
        super::lag::seconds(now.saturating_sub(self.at)) < SECONDS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_back_and_no_name_ends_its_comment() {
        let evil = "public.\"x */; DROP TABLE employees; /* \u{1}'\"\"é\"";
        let note = Note {
            at: 1,
            complete: Some(2),
            wal: Some(3.5),
            rows: None,
            left: Some(7200.25),
            still: Some((evil.to_owned(), 4.0)),
        };
        let statement = note.statement("waltrail");
        assert_eq!(statement.matches("*/").count(), 1, "{statement}");
        assert_eq!(statement.matches("/*").count(), 1, "{statement}");
        assert!(statement.ends_with(" */ SELECT"), "{statement}");
        assert_eq!(Note::read(&statement, "waltrail"), Some(note));
        assert_eq!(Note::read(&statement, "other"), None);
        for cut in 0..statement.len() - " */ SELECT".len() {
            assert_eq!(
                statement
                    .get(..cut)
                    .and_then(|cut| Note::read(cut, "waltrail")),
                None
            );
        }
    }

    #[test]
    fn a_note_is_never_longer_than_the_server_shows() {
        let slot = "s".repeat(63);
        for (length, kept) in [(1, true), (126, true), (400, false)] {
            let note = Note {
                still: Some(("*".repeat(length), 1.0)),
                ..Note::default()
            };
            let statement = note.statement(&slot);
            assert!(statement.len() < 1024, "{}", statement.len());
            let read = Note::read(&statement, &slot).unwrap();
            assert_eq!(read.still.is_some(), kept, "{length}");
        }
    }

    #[test]
    fn the_rates_of_a_daemon_that_hangs_are_not_shown() {
        let note = Note {
            at: 0,
            wal: Some(1.0),
            ..Note::default()
        };
        assert!(note.rate(29_000_000).is_some());
        assert!(note.rate(31_000_000).is_none());
    }
}
