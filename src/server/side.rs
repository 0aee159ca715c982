//! Which of the two servers a connection, a message or a hint is about.

use std::fmt;

use super::failed;
use crate::fault::Fault;

/// One of the two servers. Displayed as in messages and as the prefix of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Source,
    Target,
}

impl Side {
    /// Makes a fault of a statement that failed: `.map_err(Side::Source.failed("could not show its slots"))`.
    pub fn failed(
        self,
        what: impl fmt::Display + Copy,
    ) -> impl Fn(tokio_postgres::Error) -> Fault + Copy {
        move |error| failed(self, &what, error)
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}
