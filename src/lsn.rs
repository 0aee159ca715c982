//! Positions in the write-ahead log.
//!
//! Only what a log position is lives here: its text, its order, and the distance between two of
//! them. There is no arithmetic, so that a length can never be added to a position by accident.
//! Pure: no clock, no socket, no log.

use std::error::Error;
use std::fmt;
use std::str::FromStr;

use bytes::BytesMut;
use postgres_protocol::types;
use postgres_types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};
use serde::{Serialize, Serializer};

/// A byte position in the write-ahead log of one cluster and timeline.
///
/// Written `X/Y`: the upper and the lower 32 bits in hexadecimal (manual, section 8.20, `pg_lsn`).
/// [`Lsn::ZERO`] (`0/0`) is PostgreSQL's "no position".
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

impl Lsn {
    /// `0/0`, which PostgreSQL never gives to a record.
    pub const ZERO: Self = Self(0);
    /// After every position.
    pub const MAX: Self = Self(u64::MAX);

    /// The position as it stands in a protocol message: an unsigned 64-bit integer.
    pub const fn from_u64(raw: u64) -> Self {
        Self(raw)
    }

    /// The position as it is written into a protocol message.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Bytes of log from `earlier` to `self`; 0 when `earlier` is not earlier.
    pub const fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'a> FromSql<'a> for Lsn {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        types::lsn_from_sql(raw).map(Self)
    }

    accepts!(PG_LSN);
}

impl ToSql for Lsn {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        types::lsn_to_sql(self.0, out);
        Ok(IsNull::No)
    }

    accepts!(PG_LSN);
    to_sql_checked!();
}

/// A text that is not of the form `X/Y` with two hexadecimal numbers of at most 32 bits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a log position of the form X/Y")]
pub struct ParseLsnError;

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, ParseLsnError> {
        let half = |digits: &str| {
            let plain = digits.len() <= 8 && digits.bytes().all(|b| b.is_ascii_hexdigit());
            if !plain {
                return Err(ParseLsnError);
            }
            u64::from_str_radix(digits, 16).map_err(|_| ParseLsnError)
        };
        let (high, low) = text.split_once('/').ok_or(ParseLsnError)?;
        Ok(Self(half(high)? << 32 | half(low)?))
    }
}
