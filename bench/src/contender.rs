//! Who is measured.
//!
//! Each is prepared first, which is not timed; then it starts, and is done when the marker (`workload.rs`) has gone
//! all the way. After that its target is checked row by row count: a run that lost or doubled a row is a failure.

mod daemon;
mod reader;
mod subscription;

use std::path::Path;

use anyhow::Result;

pub use daemon::{Daemon, NO_BASELINE, SLOT, STREAMING};
pub use reader::Drain as Reader;
pub use subscription::Subscription;

use crate::server::Transport;
use crate::target::Target;
use crate::usage::Usage;
use crate::workload::{BASE_SLOT, Source};

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contender {
    /// The daemon: history rows and a checkpoint.
    Waltrail,
    /// The same when it was told to stream what was there before its start, too.
    Streaming,
    /// Reads and throws away.
    Recvlogical,
    /// Keeps a plain copy, and no history.
    Subscription,
}

impl Contender {
    /// All of them, in the order of their turns.
    pub const ALL: [Self; 4] = [
        Self::Waltrail,
        Self::Streaming,
        Self::Recvlogical,
        Self::Subscription,
    ];

    /// As it stands in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Waltrail => "waltrail",
            Self::Streaming => "waltrail, streaming",
            Self::Recvlogical => "pg_recvlogical",
            Self::Subscription => "subscription",
        }
    }

    /// Makes everything ready for one run.
    ///
    /// # Errors
    /// A server fails.
    pub fn prepare<'a>(
        self,
        program: &Path,
        source: &'a Source,
        target: &'a mut Target,
        transport: Transport,
    ) -> Result<Box<dyn Attempt + 'a>> {
        Ok(match self {
            Self::Waltrail | Self::Streaming => Box::new(daemon::Drain::prepare(
                program,
                source,
                target,
                transport,
                self == Self::Streaming,
            )?),
            Self::Recvlogical => Box::new(reader::Drain::prepare(
                &source.cluster,
                BASE_SLOT,
                &source.end,
                transport,
            )?),
            Self::Subscription => {
                Box::new(subscription::Drain::prepare(source, target, transport)?)
            }
        })
    }
}

/// One run of a contender.
pub trait Attempt {
    /// Lets it go.
    ///
    /// # Errors
    /// It cannot be started.
    fn start(&mut self) -> Result<()>;

    /// Whether the marker has gone all the way. Also looks at the process.
    ///
    /// # Errors
    /// It gave up.
    fn is_done(&mut self) -> Result<bool>;

    /// Ends it, and checks that its target holds every row; how many those are, `None` for one that keeps nothing.
    ///
    /// # Errors
    /// A row is missing or too many.
    fn finish(&mut self) -> Result<Option<i64>>;

    /// What it took.
    fn usage(&self) -> Usage;
}
