//! Bytes that rows are appended to.
//!
//! A `Vec` whose last bytes do not count yet: they are there already, so that a short row is written into them
//! without its room being filled with zeros first, and they stay when the buffer is emptied.

use std::fmt;

/// What the room is enlarged by at least: a dozen short rows. More would cost more where long rows, which take the
/// room away, alternate with short ones.
const ENLARGED_BY: usize = 1024;

/// See the module.
#[derive(Clone, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    /// How many of them count.
    len: usize,
}

impl Buffer {
    /// How many bytes there are.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// How much memory it takes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Lets `write` append bytes as to any `Vec`.
    #[inline]
    pub fn with_vec<T>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        self.bytes.truncate(self.len);
        let written = write(&mut self.bytes);
        self.len = self.bytes.len();
        written
    }

    /// Takes all bytes away; the room stays.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Room for at least `length` bytes behind the last one. What is written there does not count before
    /// [`Buffer::all_but`].
    #[inline(always)]
    pub fn room(&mut self, length: usize) -> &mut [u8] {
        if self.bytes.len() - self.len < length {
            self.enlarge(length);
        }
        &mut self.bytes[self.len..]
    }

    #[cold]
    #[inline(never)]
    fn enlarge(&mut self, length: usize) {
        self.bytes.resize(self.len + length.max(ENLARGED_BY), 0);
    }

    /// All bytes of the room count from now on but the last `left`.
    #[inline(always)]
    pub fn all_but(&mut self, left: usize) {
        self.len = self.bytes.len() - left;
    }
}

impl fmt::Debug for Buffer {
    /// The length only: a row value must not reach a log by way of `{:?}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_into_the_room_counts_once_it_is_appended() {
        let mut buffer = Buffer::default();
        buffer.with_vec(|out| out.extend_from_slice(b"ab"));
        let room = buffer.room(3);
        room[..3].copy_from_slice(b"cde");
        let left = room.len() - 2;
        assert_eq!(buffer.bytes(), b"ab");
        buffer.all_but(left);
        assert_eq!(buffer.bytes(), b"abcd");
        buffer.with_vec(|out| out.push(b'x'));
        let room = buffer.room(2 * ENLARGED_BY);
        room[0] = b'y';
        let left = room.len() - 1;
        buffer.all_but(left);
        assert_eq!(buffer.bytes(), b"abcdxy");
        buffer.clear();
        assert!(buffer.is_empty());
        assert!(buffer.room(1).len() > ENLARGED_BY);
    }
}
