//! Why a server or the demonstration cannot go on.

use std::error::Error as StdError;

/// What kind of failure it is, from which the program's exit code follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This machine does not have or allow what is needed.
    Environment,
    /// A defect of waltrail.
    Defect,
    /// The history cannot be continued: the daemon said so.
    HistoryWouldBeWrong,
    /// A signal ended the demonstration before it had a result.
    Interrupted,
}

/// One sentence, what a person can do about it, and the error beneath.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: Kind,
    message: String,
    remedy: Option<String>,
    #[source]
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

/// A result whose failure is an [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            remedy: None,
            cause: None,
        }
    }

    pub(crate) fn environment(message: impl Into<String>) -> Self {
        Self::new(Kind::Environment, message)
    }

    pub(crate) fn defect(message: impl Into<String>) -> Self {
        Self::new(Kind::Defect, message)
    }

    #[must_use]
    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    #[must_use]
    pub(crate) fn caused_by(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Puts `before` and a space before the message.
    #[must_use]
    pub(crate) fn after(mut self, before: &str) -> Self {
        self.message = format!("{before} {}", self.message);
        self
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What a person can do, where there is something.
    #[must_use]
    pub fn remedy_text(&self) -> Option<&str> {
        self.remedy.as_deref()
    }

    /// The error beneath.
    #[must_use]
    pub fn into_cause(self) -> Option<Box<dyn StdError + Send + Sync>> {
        self.cause
    }
}
