//! What `check` says of the servers, and what `run` and `setup` refuse: one value for both.
//!
//! A rule is one function that returns findings. A start takes the errors among them as its fault, `check` prints them
//! all. Pure.

use std::fmt;

use crate::fault::{Fault, Result};

/// Every code that a finding can have; `docs/operate/check.md` explains each. A stop with 65 has the name of its heading in
/// `docs/operate/when-it-stops-with-65.md`.
pub const CODES: &[&str] = &[
    // Connections.
    "unreachable",
    "login-refused",
    "cannot-connect",
    "a-pooler-in-the-path",
    "a-connection-in-the-clear",
    "clocks-differ",
    "could-not-be-checked",
    // The source.
    "version-too-old",
    "known-bugs",
    "wal-level",
    "slots-used-up",
    "few-slots-or-senders",
    "no-limit-for-the-slot",
    "a-small-limit-for-the-slot",
    "a-slot-near-its-limit",
    "an-idle-slot-is-dropped",
    "the-source-is-a-standby",
    "commits-wait-for-the-history",
    "a-transaction-delays-the-slot",
    "encodings-differ",
    "a-fail-over-loses-the-slot",
    "a-standby-holds-the-history-up",
    "the-history-can-be-ahead-of-a-standby",
    "a-standby-may-lose-the-slot",
    // Privileges.
    "privilege-missing",
    // The publication and the slot.
    "something-is-missing",
    "the-publication-hides-changes",
    "the-slot-is-not-ours",
    // Tables.
    "no-such-table",
    "no-such-column",
    "old-values-are-missing",
    "a-partition-logs-less",
    "a-generated-column",
    "a-table-is-left-out",
    "the-source-does-not-say-who",
    // Histories and the target.
    "columns-not-recorded",
    "columns-stay-empty",
    "unavailable-values-look-like-null",
    "context-is-not-recorded",
    "the-history-cannot-follow",
    "triggers-on-the-history",
    "answers-are-missing",
    "indexes-for-answers",
    "the-control-schema-is-newer",
    "the-target-is-read-only",
    "the-target-does-not-flush",
    "a-standby-is-missing",
    // What stops with 65.
    "the-slot-does-not-exist",
    "the-slot-is-lost",
    "the-slot-is-ahead-of-the-history",
    "the-slot-was-read-for-another-target",
    "the-checkpoint-is-missing",
    "the-source-is-another-cluster",
    "the-source-was-restored-from-an-older-state",
    "the-source-was-promoted-before-the-end-of-the-history",
    "the-source-is-on-an-unrelated-timeline",
    "the-source-was-changed",
    "the-publication-is-another-one",
    "the-publication-holds-a-history-table",
    "the-history-belongs-to-another-slot",
    "a-gap-is-not-accepted",
    "not-a-table",
    "an-unlogged-table",
    "a-partition",
    "no-replica-identity",
    "a-generated-column-in-the-replica-identity",
    "partitions-that-are-not-in-the-wal",
    "partitions-without-replica-identity",
    "the-history-is-not-a-table",
    "an-unlogged-history",
    "a-history-on-another-server",
    "a-trigger-on-the-history",
    "a-history-column-is-not-null",
    "a-history-column-changes-values",
    "a-column-name-is-taken",
    "nothing-in-common",
    "a-schema-change-is-not-followed",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// `run` or `setup` refuses it.
    Error,
    /// It works, and can go wrong.
    Warning,
    /// Worth knowing.
    Note,
}

impl Severity {
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

#[derive(Debug)]
pub struct Finding {
    pub severity: Severity,
    /// One of [`CODES`].
    pub code: &'static str,
    /// `source`, `target`, or a table.
    pub place: String,
    pub what: String,
    /// SQL or a command to paste, with remarks as SQL comments.
    pub remedy: Option<String>,
    /// What a start ends with: an error's.
    fault: Option<Fault>,
}

impl Finding {
    /// What ends a start. `code` counts where the fault has no heading of its own.
    pub fn error(place: impl fmt::Display, code: &'static str, fault: Fault) -> Self {
        Self {
            severity: Severity::Error,
            code: fault.anchor().unwrap_or(code),
            place: place.to_string(),
            what: fault.to_string(),
            remedy: fault.remedy_alone().map(str::to_owned),
            fault: Some(fault),
        }
    }

    pub fn warning(place: impl fmt::Display, code: &'static str, what: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            code,
            place: place.to_string(),
            what: what.into(),
            remedy: None,
            fault: None,
        }
    }

    pub fn note(place: impl fmt::Display, code: &'static str, what: impl Into<String>) -> Self {
        Self {
            severity: Severity::Note,
            ..Self::warning(place, code, what)
        }
    }

    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Says more.
    pub fn and(mut self, more: &str) -> Self {
        self.what.push_str(more);
        self
    }

    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// The first error as the fault of a start, which says how many others there are.
///
/// # Errors
/// There is an error among the findings.
pub fn refuse(findings: Vec<Finding>) -> Result<()> {
    let mut faults = findings.into_iter().filter_map(|finding| finding.fault);
    match faults.next() {
        None => Ok(()),
        Some(first) => Err(first.and_others(faults.count())),
    }
}
