//! Warnings of what is about to go wrong: a line when it begins, at most one every five minutes while it lasts, and one when it
//! is over.
//!
//! What is wrong is decided in `status/verdict.rs`, the same for `waltrail status`, the page and the log. Only what no other
//! line says is said here: a server that is away is logged where a session fails, a wait for a lock in `server/wait.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::observer::Observed;
use super::progress::Progress;
use crate::clock;
use crate::status::{Reason, Status, Waits};

/// The codes of all reasons.
pub(crate) const CODES: [&str; 14] = [
    "slot-missing",
    "slot-lost",
    "slot-in-danger",
    "slot-inactive",
    "not-running",
    "source-down",
    "target-down",
    "lagging",
    "gap-not-accepted",
    "publication-empty",
    "snapshot-stuck",
    "long-transaction",
    "clocks-apart",
    "waits",
];

/// Those that are said here.
const SAID: [&str; 5] = [
    "slot-in-danger",
    "lagging",
    "snapshot-stuck",
    "long-transaction",
    "clocks-apart",
];

/// At most one line in this time while something lasts, or comes and goes.
const REMIND: Duration = Duration::from_secs(300);
/// What was not there for so long is over.
const OVER_AFTER: Duration = Duration::from_secs(30);

/// What is worth a line.
#[derive(Clone, Debug, PartialEq)]
enum Line {
    /// It has begun, or lasts.
    Warn { reason: Reason, lasts: Duration },
    Over {
        code: &'static str,
        /// What was said last.
        text: String,
        lasted: Duration,
    },
}

#[derive(Debug, Default)]
struct Warnings(BTreeMap<&'static str, Open>);

#[derive(Debug)]
struct Open {
    since: Instant,
    seen: Instant,
    said: Option<Instant>,
    /// When a line was last written, also of an earlier time.
    last: Option<Instant>,
    text: String,
    is_over: bool,
}

impl Warnings {
    /// Takes what holds now. `can_tell`: both servers have answered, so that what is not there is over. Pure.
    fn look(&mut self, reasons: &[Reason], can_tell: bool, now: Instant) -> Vec<Line> {
        let mut lines = Vec::new();
        for reason in reasons.iter().filter(|it| SAID.contains(&it.code)) {
            lines.extend(self.holds(reason, now));
        }
        for (code, open) in &mut self.0 {
            let is_absent = !open.is_over && now - open.seen >= OVER_AFTER;
            if !can_tell || !is_absent {
                continue;
            }
            open.is_over = true;
            if open.said.take().is_some() {
                lines.push(Line::Over {
                    code,
                    text: open.text.clone(),
                    lasted: open.seen - open.since,
                });
            }
        }
        lines
    }

    fn holds(&mut self, reason: &Reason, now: Instant) -> Option<Line> {
        let open = self.0.entry(reason.code).or_insert_with(|| Open {
            since: now,
            seen: now,
            said: None,
            last: None,
            text: String::new(),
            is_over: false,
        });
        if std::mem::take(&mut open.is_over) {
            open.since = now;
        }
        open.seen = now;
        // What comes again soon is not said again each time.
        let is_due = open.last.is_none_or(|last| now - last >= REMIND);
        if !is_due {
            return None;
        }
        (open.said, open.last) = (Some(now), Some(now));
        open.text.clone_from(&reason.text);
        Some(Line::Warn {
            reason: reason.clone(),
            lasts: now - open.since,
        })
    }
}

impl Line {
    fn log(&self, status: &Status) {
        match self {
            Self::Warn { reason, lasts } => {
                let Reason {
                    code, text, remedy, ..
                } = reason;
                let seconds = Some(lasts.as_secs()).filter(|seconds| *seconds > 0);
                // What lags may wait for the target: the session that writes there, and what is in its way.
                let lags = *code == "lagging";
                let pid = status.daemon.as_ref().map(|daemon| daemon.pid);
                let pid = pid.filter(|_| lags);
                let waits = status.waits.as_ref().filter(|_| lags).map(blocked);
                tracing::warn!(code, seconds, pid, waits, remedy, "{text}");
            }
            Self::Over { code, text, lasted } => {
                let seconds = lasted.as_secs();
                tracing::info!(code, seconds, warning = text, "a warning is over");
            }
        }
    }
}

/// The lock that the writer waits for, and the sessions that hold it.
fn blocked(waits: &Waits) -> String {
    let holders = waits.held_by.iter().map(ToString::to_string);
    let lock = waits.lock.as_deref().unwrap_or("something");
    format!("{lock}, held by {}", holders.collect::<Vec<_>>().join(", "))
}

/// Takes over what the observer sees: into the log, and into what the lag is computed from.
pub(crate) async fn follow(mut observed: Observed, progress: Arc<Progress>) {
    let mut warnings = Warnings::default();
    while let Some(status) = observed.next().await {
        take_over(&status, &progress);
        let can_tell = status.source_error.is_none() && status.target_error.is_none();
        let reasons = &status.verdict.reasons;
        for line in warnings.look(reasons, can_tell, clock::monotonic()) {
            line.log(&status);
        }
    }
}

fn take_over(status: &Status, progress: &Progress) {
    if let Some(slot) = &status.source {
        if let Some(confirmed) = slot.confirmed_flush_lsn {
            progress.source_confirmed(confirmed);
        }
        progress.source(|source| {
            source.answered(slot.current_wal_lsn, status.lag_seconds, clock::now());
        });
    }
    progress.source(|source| {
        if status.source_error.is_some() {
            source.silent();
        }
        if let Some(seconds) = status.clock_offset_seconds {
            source.set_clock_offset(seconds);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Level;

    fn reason(code: &'static str, text: &str) -> Reason {
        Reason {
            code,
            level: Level::Warning,
            text: text.to_owned(),
            remedy: "do something".to_owned(),
        }
    }

    fn danger(seconds: u64) -> Reason {
        reason("slot-in-danger", &format!("{seconds} s left"))
    }

    struct Told {
        warnings: Warnings,
        start: Instant,
    }

    impl Told {
        fn new() -> Self {
            Self {
                warnings: Warnings::default(),
                start: Instant::now(),
            }
        }

        /// What is said in these seconds, in which `holds` gives what holds: `+` begins or lasts, `-` is over.
        fn over(
            &mut self,
            seconds: std::ops::Range<u64>,
            holds: impl Fn(u64) -> Option<Reason>,
        ) -> String {
            let mut told = String::new();
            for second in seconds.step_by(5) {
                let now = self.start + Duration::from_secs(second);
                let reasons: Vec<Reason> = holds(second).into_iter().collect();
                for line in self.warnings.look(&reasons, true, now) {
                    told += &match line {
                        Line::Warn { lasts, .. } => format!("+{second}({}) ", lasts.as_secs()),
                        Line::Over { lasted, .. } => format!("-{second}({}) ", lasted.as_secs()),
                    };
                }
            }
            told
        }
    }

    #[test]
    fn it_is_said_when_it_begins_every_five_minutes_and_when_it_is_over() {
        let mut told = Told::new();
        let holds = |second| (100..=1_000).contains(&second).then(|| danger(second));
        let lines = told.over(0..2_000, holds);
        assert_eq!(lines, "+100(0) +400(300) +700(600) +1000(900) -1030(900) ");
    }

    #[test]
    fn what_comes_and_goes_is_said_every_five_minutes_at_most() {
        let mut told = Told::new();
        let holds = |second| (second % 60 < 10).then(|| danger(second));
        let lines = told.over(0..900, holds);
        assert_eq!(lines, "+0(0) -35(5) +300(0) -335(5) +600(0) -635(5) ");
        let mut told = Told::new();
        let holds = |second| (second % 20 < 10).then(|| danger(second));
        assert_eq!(told.over(0..590, holds), "+0(0) +300(300) ");
    }

    #[test]
    fn what_begins_again_and_was_not_said_is_not_said_to_be_over() {
        let mut told = Told::new();
        let holds = |second| matches!(second, 0..=5 | 100..=105).then(|| danger(second));
        assert_eq!(told.over(0..1_000, holds), "+0(0) -35(5) ");
    }

    #[test]
    fn nothing_is_over_while_a_server_cannot_be_asked() {
        let (mut warnings, start) = (Warnings::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(warnings.look(&[danger(1)], true, at(0)).len(), 1);
        for second in (5..200).step_by(5) {
            assert!(warnings.look(&[], false, at(second)).is_empty());
        }
        let over = warnings.look(&[], true, at(200));
        let over = matches!(&over[..], [Line::Over { code: "slot-in-danger", text, .. }] if text == "1 s left");
        assert!(over);
    }

    #[test]
    fn what_is_said_elsewhere_is_not_said_here() {
        let (mut warnings, now) = (Warnings::default(), Instant::now());
        let reasons = CODES.map(|code| reason(code, "x"));
        let said: Vec<_> = warnings.look(&reasons, true, now);
        assert_eq!(said.len(), SAID.len());
        assert!(SAID.iter().all(|code| CODES.contains(code)));
    }

    #[test]
    fn each_code_has_a_time_of_its_own() {
        let (mut warnings, start) = (Warnings::default(), Instant::now());
        let both = [danger(1), reason("clocks-apart", "7 s")];
        assert_eq!(warnings.look(&both[..1], true, start).len(), 1);
        let later = start + Duration::from_secs(200);
        assert_eq!(warnings.look(&both, true, later).len(), 1);
        let later = start + Duration::from_secs(300);
        assert_eq!(warnings.look(&both, true, later).len(), 1);
    }
}
