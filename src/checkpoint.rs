//! What the target knows of the source's log: the row that both ends of the program are compared with.

use crate::lsn::Lsn;
use crate::pgoutput::Timestamp;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub system_identifier: u64,
    pub timeline: u32,
    /// The end of the last transaction in the history; none while the slot is being made.
    pub end_lsn: Option<Lsn>,
    /// The highest position that may have been confirmed.
    pub reported_lsn: Option<Lsn>,
    /// When that last transaction committed, by the source's clock; none before the first one.
    pub commit_time: Option<Timestamp>,
}

impl Checkpoint {
    /// The highest position that may have been confirmed and that the source has: where its timeline began at `fork`, the
    /// former primary may have been confirmed more, which this server never had.
    pub(crate) fn reported_on_this_timeline(&self, fork: Option<Lsn>) -> Lsn {
        let reported = self.reported_lsn.unwrap_or_default();
        fork.map_or(reported, |fork| reported.min(fork))
    }
}
