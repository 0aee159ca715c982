//! The only code that counts bytes.
//!
//! Everything else in this room asks the cursor for a field and gives the field's name, so that an error
//! can say it. The one invariant: a cursor hands out each byte once, and none past the end of the slice.

use std::fmt;

use super::DecodeError;

/// The bytes that a length itself takes.
const LENGTH_BYTES: usize = 4;

/// What is left to read of one message.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    #[inline]
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    #[inline]
    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(DecodeError::Truncated(what))?;
        self.rest = rest;
        Ok(*head)
    }

    #[inline]
    fn slice(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(DecodeError::Truncated(what))?;
        self.rest = rest;
        Ok(head)
    }

    #[inline]
    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.array(what).map(u8::from_be_bytes)
    }

    #[inline]
    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        self.array(what).map(u32::from_be_bytes)
    }

    #[inline]
    pub(super) fn i32(&mut self, what: &'static str) -> Result<i32, DecodeError> {
        self.array(what).map(i32::from_be_bytes)
    }

    #[inline]
    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        self.array(what).map(u64::from_be_bytes)
    }

    #[inline]
    pub(super) fn i64(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        self.array(what).map(i64::from_be_bytes)
    }

    /// A signed 16-bit count, which must not be negative.
    #[inline]
    pub(super) fn count(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        let count = i16::from_be_bytes(self.array(what)?);
        u16::try_from(count).map_err(|_| DecodeError::Negative(what))
    }

    /// A signed 32-bit length and as many bytes.
    #[inline]
    pub(super) fn sized(&mut self, what: &'static str) -> Result<Field<'a>, DecodeError> {
        let mut ahead = *self;
        let len = u32::try_from(ahead.i32(what)?).map_err(|_| DecodeError::Negative(what))?;
        let with_length = self.slice(LENGTH_BYTES + len as usize, what)?;
        Ok(Field { with_length })
    }

    /// A name: UTF-8, ended by a zero byte that is not part of it.
    pub(super) fn name(&mut self, what: &'static str) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.ended(what)?).map_err(|_| DecodeError::NotUtf8(what))
    }

    /// Bytes in any encoding, ended by a zero byte that is not part of them.
    pub(super) fn ended(&mut self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let len = self.rest.iter().position(|&byte| byte == 0);
        let bytes = self.slice(len.ok_or(DecodeError::Truncated(what))?, what)?;
        self.u8(what)?;
        Ok(bytes)
    }

    /// `count` oids, still in network order.
    pub(super) fn oids(
        &mut self,
        count: usize,
        what: &'static str,
    ) -> Result<&'a [[u8; 4]], DecodeError> {
        let len = count.checked_mul(4).ok_or(DecodeError::Truncated(what))?;
        let (oids, _) = self.slice(len, what)?.as_chunks();
        Ok(oids)
    }

    /// The part of `self` that lies before `later`, a copy of `self` that was read on.
    #[inline]
    pub(super) fn until(self, later: Self) -> Self {
        let read = self.rest.len().saturating_sub(later.rest.len());
        Self::new(self.rest.get(..read).unwrap_or_default())
    }

    /// Refuses bytes that are left.
    #[inline]
    pub(super) const fn finish(self, what: &'static str) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Trailing(what))
        }
    }
}

/// One column value that was sent, in text or binary form: its length and its bytes.
///
/// On the wire a value is a signed 32-bit length and that many bytes, which is also how a field of
/// `COPY (FORMAT binary)` is written: [`Field::with_length`] is both in one slice.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    with_length: &'a [u8],
}

impl<'a> Field<'a> {
    /// The bytes of the value.
    #[inline]
    pub fn bytes(self) -> &'a [u8] {
        self.with_length.get(LENGTH_BYTES..).unwrap_or_default()
    }

    /// The length (4 bytes, signed, big-endian) and the bytes of the value, as one slice.
    #[inline]
    pub const fn with_length(self) -> &'a [u8] {
        self.with_length
    }
}

impl fmt::Debug for Field<'_> {
    /// The length only: a row value must not reach a log by way of `{:?}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes().len())
    }
}
