//! What must happen after a failure, and what the operator reads.
//!
//! Errors are sorted here by what has to be done next, not by where they arose: a *transient* one is
//! tried again, a *definite* one ends the process with an exit code that says why. Every fault carries
//! one sentence and, where a person can do something, the remedy. **Nothing in a fault may hold a row
//! value**: what a server said is reduced in [`crate::wire::ServerError`] before it gets here.

mod retries;
mod side;

use std::error::Error as StdError;
use std::fmt;
use std::process::ExitCode;

pub(crate) use retries::{Passed, Retries};
pub use side::Side;

use crate::lsn::Lsn;
use crate::name::TableName;
use crate::printable::{TEXT_MAX, printable};

/// The exit codes of the program, which service managers and scripts act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Usage = 64,
    /// Going on would make the history wrong: a gap, another cluster, a table that does not fit.
    HistoryWouldBeWrong = 65,
    Bug = 70,
    /// A server could not be reached, and `--no-retry` was given.
    Unreachable = 75,
    /// A privilege is missing, or the server does not let this role in.
    NoPermission = 77,
    /// The configuration, ours or a server's, does not allow what is asked.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The page that explains each stop with [`Exit::HistoryWouldBeWrong`].
const WHEN_IT_STOPS: &str = "docs/operate/when-it-stops-with-65.md";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It may pass: back off and start the session again from the checkpoint.
    Retry,
    /// A server is away, or another one takes its place: as [`Self::Retry`], and often at first.
    Reconnect,
    /// It seldom passes: a few tries at the same position; then it ends with [`Exit::HistoryWouldBeWrong`].
    RetryFew,
    /// It will not pass by itself: stop with this exit code.
    Halt(Exit),
}

/// A range of the source's WAL of which changes can be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub from: Lsn,
    /// None: it has no end yet.
    pub to: Option<Lsn>,
    /// The histories that can lack changes; empty: all of them.
    pub histories: Vec<TableName>,
}

/// A failure, with what must happen next and what the operator can do about it.
pub struct Fault {
    disposition: Disposition,
    side: Option<Side>,
    message: String,
    remedy: Option<String>,
    headline: Option<&'static str>,
    anchor: Option<&'static str>,
    /// It is the fault of one of several transactions, which end here; zero: it is not.
    among: Lsn,
    /// Boxed: a result is as large as its error.
    gap: Option<Box<Gap>>,
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

/// A result whose failure says what must happen next.
pub type Result<T, E = Fault> = std::result::Result<T, E>;

impl Fault {
    /// A transient failure: the session is started again.
    pub fn retry(message: impl Into<String>) -> Self {
        Self::new(Disposition::Retry, message)
    }

    /// A transient failure of a server that is away, or is about to take another's place.
    pub fn reconnect(message: impl Into<String>) -> Self {
        Self::new(Disposition::Reconnect, message)
    }

    /// A definite failure: the process ends with this exit code.
    pub fn halt(exit: Exit, message: impl Into<String>) -> Self {
        Self::new(Disposition::Halt(exit), message)
    }

    pub fn bug(message: impl Into<String>) -> Self {
        Self::halt(Exit::Bug, message)
            .remedy("this is a defect of waltrail: please report it with the log around this line")
    }

    pub fn new(disposition: Disposition, message: impl Into<String>) -> Self {
        Self {
            disposition,
            side: None,
            message: message.into(),
            remedy: None,
            headline: None,
            anchor: None,
            among: Lsn::ZERO,
            gap: None,
            cause: None,
        }
    }

    /// Adds what the operator can do, as a sentence.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Names the heading of the page "When it stops with 65" that explains this.
    pub fn see(mut self, anchor: &'static str) -> Self {
        self.anchor = Some(anchor);
        self
    }

    /// Says which changes can be missing: the refusal then stands until a person has accepted the gap.
    pub fn missing(mut self, gap: Gap) -> Self {
        self.gap = Some(Box::new(gap));
        self
    }

    /// Adds the last resort against a transaction that cannot be recorded.
    pub fn or_leave_out(mut self, commit_lsn: Lsn) -> Self {
        let before = self.remedy.map(|remedy| remedy + "; ").unwrap_or_default();
        self.remedy = Some(format!(
            "{before}the last resort, which leaves this transaction out and records a gap: \
             waltrail run --skip-transaction {commit_lsn}"
        ));
        self
    }

    /// Says that one of several transactions is at fault, the last of which ends at `end_lsn`.
    pub fn among_others(mut self, end_lsn: Lsn) -> Self {
        self.among = end_lsn;
        self
    }

    /// The end of the transactions of which one is at fault.
    pub fn among(&self) -> Option<Lsn> {
        (self.among != Lsn::ZERO).then_some(self.among)
    }

    pub fn caused_by(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Says whose fault it is.
    pub fn of(mut self, side: Side) -> Self {
        self.side = Some(side);
        self
    }

    /// The server that it is about, where that is known.
    pub fn side(&self) -> Option<Side> {
        self.side
    }

    pub fn disposition(&self) -> Disposition {
        self.disposition
    }

    /// Whether it is tried again.
    pub fn may_pass(&self) -> bool {
        !matches!(self.disposition, Disposition::Halt(_))
    }

    /// Makes it transient, since it is expected to be put right while the process runs. It is a warning with this headline.
    pub fn until_put_right(mut self, headline: &'static str) -> Self {
        self.disposition = Disposition::Retry;
        self.headline = Some(headline);
        self
    }

    /// The headline of the warning that this is; `None`: it is an error.
    pub fn headline(&self) -> Option<&'static str> {
        self.headline
    }

    /// Adds the position up to which everything is in the history.
    pub fn after(mut self, lsn: Lsn) -> Self {
        self.message = format!("{} after {lsn}", self.message);
        self
    }

    /// The exit code when the process ends with this fault.
    pub fn exit(&self) -> Exit {
        match self.disposition {
            Disposition::Retry | Disposition::Reconnect | Disposition::RetryFew => {
                Exit::Unreachable
            }
            Disposition::Halt(exit) => exit,
        }
    }

    /// The changes that can be missing, where that is the fault.
    pub fn gap(&self) -> Option<&Gap> {
        self.gap.as_deref()
    }

    /// The heading that explains this, where there is one.
    pub fn anchor(&self) -> Option<&'static str> {
        self.anchor
    }

    /// What the operator can do, without the page that explains it.
    pub fn remedy_alone(&self) -> Option<&str> {
        self.remedy.as_deref()
    }

    /// Says that so many more things are wrong.
    pub fn and_others(mut self, others: usize) -> Self {
        let more = match others {
            0 => return self,
            1 => "one more error".to_owned(),
            others => format!("{others} more errors"),
        };
        let remedy = self.remedy.unwrap_or_default();
        let end = if remedy.is_empty() { "" } else { "; " };
        self.remedy = Some(format!("{remedy}{end}`waltrail check` shows {more}"));
        self
    }

    /// What the operator can do, where there is something.
    pub fn remedy_text(&self) -> Option<String> {
        let page = match (self.exit(), self.anchor) {
            (Exit::HistoryWouldBeWrong, Some(anchor)) => format!("see {WHEN_IT_STOPS}#{anchor}"),
            (Exit::HistoryWouldBeWrong, None) => format!("see {WHEN_IT_STOPS}"),
            _ => return self.remedy.clone(),
        };
        Some(match &self.remedy {
            Some(remedy) => format!("{remedy} ({page})"),
            None => page,
        })
    }
}

impl fmt::Display for Fault {
    /// The message and its causes, joined by colons; each cause once.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sentence = self.message.clone();
        let mut said = self.message.clone();
        let mut next = self.cause.as_deref().map(|cause| cause as &dyn StdError);
        while let Some(cause) = next {
            let text = cause.to_string();
            if !said.contains(&text) {
                sentence.push_str(": ");
                sentence.push_str(&text);
                said = text;
            }
            next = cause.source();
        }
        // Names and a server's words are part of it.
        f.write_str(&printable(&sentence, TEXT_MAX))
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({:?})", self.disposition)
    }
}

impl StdError for Fault {}
