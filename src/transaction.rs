//! Transactions as the stream delivers them: whole, one after the other, in commit order.
//!
//! The assembler refuses every other order, numbers the rows of a transaction, and decides which
//! transactions are already in the history. That decision (invariant I2) is made at Begin, where the
//! transaction's end is not known yet: its commit record starts at `commit_lsn` and ends at `end_lsn`, and
//! the checkpoint is always the end of some commit record, so
//!
//! ```text
//!   end_lsn > checkpoint   <=>   commit_lsn >= checkpoint
//! ```
//!
//! and Commit checks that both said the same. Pure.

use crate::lsn::Lsn;
use crate::pgoutput::{Begin, Commit, Timestamp};

#[derive(Debug, Clone, Copy)]
pub struct Open {
    /// The start of the commit record.
    pub commit_lsn: Lsn,
    pub commit_time: Timestamp,
    pub xid: u32,
    /// The changes recorded of it so far, over all tables: the last `tx_seq` given out.
    pub recorded: u64,
    pub known: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// The byte after the commit record: what a checkpoint holds and a status confirms.
    pub end_lsn: Lsn,
    pub commit_time: Timestamp,
    /// The changes recorded of it, over all tables.
    pub recorded: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    #[error("a transaction begins before the one at {0} has ended")]
    NestedBegin(Lsn),
    /// A transaction that committed before the last one.
    #[error("a transaction with commit position {1} follows one with {0}")]
    Backwards(Lsn, Lsn),
    /// A change or a commit outside a transaction.
    #[error("a {0} outside a transaction")]
    Outside(&'static str),
    /// A commit that is not that of the open transaction.
    #[error("the transaction at {0} ends with the commit of {1}")]
    Mismatch(Lsn, Lsn),
    /// The transaction at which the history ends is not in the source's log, or it is another one.
    #[error("the source's log has no transaction that ends at {0}, where the history ends")]
    Unrecognized(Lsn),
    /// `commit_lsn` and `end_lsn` lie on different sides of the checkpoint.
    #[error("the checkpoint {0} lies inside a commit record")]
    CheckpointInsideCommit(Lsn),
}

/// The state between two messages of the stream.
#[derive(Debug)]
pub struct Assembler {
    checkpoint: Lsn,
    last_commit: Lsn,
    open: Option<Open>,
    /// When the transaction committed that ends at the checkpoint, until it has come.
    expected: Option<Timestamp>,
}

impl Assembler {
    /// `checkpoint`: the end of the last transaction in the history.
    pub fn new(checkpoint: Lsn) -> Self {
        Self {
            checkpoint,
            last_commit: Lsn::ZERO,
            open: None,
            expected: None,
        }
    }

    /// Lets new transactions come only after the one that ends at the checkpoint, which committed at `time`: the stream
    /// begins before it. A copy of the source that is restored from an older state has another one there, or none.
    pub fn expect_checkpoint(&mut self, time: Timestamp) {
        self.expected = Some(time);
    }

    pub fn begin(&mut self, begin: &Begin) -> Result<&Open, OrderError> {
        if let Some(open) = self.open {
            return Err(OrderError::NestedBegin(open.commit_lsn));
        }
        if begin.commit_lsn <= self.last_commit {
            return Err(OrderError::Backwards(self.last_commit, begin.commit_lsn));
        }
        let known = begin.commit_lsn < self.checkpoint;
        if !known && self.expected.is_some() {
            return Err(OrderError::Unrecognized(self.checkpoint));
        }
        Ok(self.open.insert(Open {
            commit_lsn: begin.commit_lsn,
            commit_time: begin.commit_time,
            xid: begin.xid,
            recorded: 0,
            known,
        }))
    }

    /// The source has read its log up to here, and sent every transaction that ends before.
    ///
    /// # Errors
    /// The one that ends at the checkpoint has not come.
    pub fn processed(&self, lsn: Lsn) -> Result<(), OrderError> {
        match self.expected {
            Some(_) if lsn >= self.checkpoint && self.open.is_none() => {
                Err(OrderError::Unrecognized(self.checkpoint))
            }
            _ => Ok(()),
        }
    }

    /// The transaction that a change belongs to.
    #[inline]
    pub fn open(&mut self) -> Result<&mut Open, OrderError> {
        self.open.as_mut().ok_or(OrderError::Outside("change"))
    }

    /// The transaction that is open, if one is.
    pub fn peek(&self) -> Option<&Open> {
        self.open.as_ref()
    }

    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    pub fn commit(&mut self, commit: &Commit) -> Result<Closed, OrderError> {
        let open = self.open.take().ok_or(OrderError::Outside("commit"))?;
        if commit.commit_lsn != open.commit_lsn {
            return Err(OrderError::Mismatch(open.commit_lsn, commit.commit_lsn));
        }
        if (commit.end_lsn > self.checkpoint) == open.known {
            return Err(match self.expected {
                Some(_) => OrderError::Unrecognized(self.checkpoint),
                None => OrderError::CheckpointInsideCommit(self.checkpoint),
            });
        }
        if let Some(expected) = self.expected
            && commit.end_lsn == self.checkpoint
        {
            if open.commit_time != expected {
                return Err(OrderError::Unrecognized(self.checkpoint));
            }
            self.expected = None;
        }
        self.last_commit = commit.commit_lsn;
        Ok(Closed {
            end_lsn: commit.end_lsn,
            commit_time: open.commit_time,
            recorded: open.recorded,
        })
    }
}
