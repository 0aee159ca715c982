//! How far `verify` is: a bar on a terminal, nothing elsewhere.

use indicatif::{HumanBytes, ProgressBar};

use crate::schema::TableName;
use crate::snapshot::progress;

/// The bar of a run; it is gone when this is dropped.
pub(crate) struct Progress(Option<ProgressBar>);

impl Progress {
    pub(crate) fn new() -> Self {
        let bar = progress::spinner();
        if let Some(bar) = &bar {
            bar.set_message("waiting for a position");
        }
        Self(bar)
    }

    /// Whether a person sees it.
    pub(crate) fn is_drawn(&self) -> bool {
        self.0.is_some()
    }

    /// The history has still so many bytes of WAL to record.
    pub(crate) fn waits(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.set_message(match bytes {
                0 => String::new(),
                bytes => format!("waiting for the history: {} of WAL", HumanBytes(bytes)),
            });
        }
    }

    /// `done` of `all` parts of a table.
    pub(crate) fn step(&self, table: &TableName, done: u64, all: u64) {
        if let Some(bar) = &self.0 {
            bar.set_prefix(table.to_string());
            bar.set_length(all);
            bar.set_position(done);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            progress::clear(bar);
        }
    }
}
