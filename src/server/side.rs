//! Faults of one side.

use std::fmt;

use super::failed;
use crate::fault::Fault;
pub use crate::fault::Side;

impl Side {
    /// Makes a fault of a statement that failed: `.map_err(Side::Source.failed("could not show its slots"))`.
    pub fn failed(
        self,
        what: impl fmt::Display + Copy,
    ) -> impl Fn(tokio_postgres::Error) -> Fault + Copy {
        move |error| failed(self, &what, error)
    }
}
