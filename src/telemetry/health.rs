//! Whether the daemon can be relied on just now. Pure: time is an argument.

use std::time::{Duration, Instant};

use crate::lsn::Lsn;

/// A target that has committed nothing for so long, while rows wait, does not take commits.
pub const STALLED: Duration = Duration::from_secs(10);

/// What is looked at now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    pub streaming: bool,
    /// Complete transactions wait to be committed to the history.
    pub waiting: bool,
    /// The end of the last transaction in the history.
    pub applied: Lsn,
}

#[derive(Debug, Default)]
pub struct Health {
    applied: Lsn,
    streaming: bool,
    /// Since when rows have waited without a commit.
    waiting_since: Option<Instant>,
}

impl Health {
    pub fn look(&mut self, look: Look, now: Instant) {
        let moved = std::mem::replace(&mut self.applied, look.applied) != look.applied;
        self.streaming = look.streaming;
        self.waiting_since = match self.waiting_since {
            _ if !look.waiting => None,
            Some(since) if !moved => Some(since),
            _ => Some(now),
        };
    }

    /// What keeps the daemon from being ready, as of the last look.
    pub fn obstacle(&self, now: Instant) -> Option<String> {
        if !self.streaming {
            return Some("not streaming".to_owned());
        }
        let waited = now.duration_since(self.waiting_since?);
        (waited >= STALLED).then(|| {
            let seconds = waited.as_secs();
            format!("the target has taken no commit for {seconds} s while rows wait")
        })
    }
}
