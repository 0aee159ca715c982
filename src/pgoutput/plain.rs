//! The short way to a change of one tuple whose values are NULL or binary: nearly every change.
//!
//! A change costs little more than a copy of it, so that each question asked of its bytes counts. Here as few are
//! asked as tell a well-formed change from everything else. There are no errors: what is not such a change is for
//! [`Message::parse`](super::Message::parse) to read, and to refuse.

use super::cursor::{BriefCursor, Field, WINDOW};

/// What begins as a change of one tuple does.
pub struct Plain<'a> {
    /// Which changes it is like; what follows counts only where that is a head that was made with [`Head::new`].
    pub head: Head,
    /// The row.
    values: &'a [u8],
}

/// What happened to a row, and what the one tuple says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainKind {
    /// It came: the new row.
    Insert,
    /// It changed: the new row.
    Update,
    /// It went: its replica identity.
    DeleteKey,
    /// It went: the old row.
    DeleteFull,
}

impl PlainKind {
    /// The type of its messages, and the marker of the tuple in them.
    const fn markers(self) -> (u8, u8) {
        match self {
            Self::Insert => (b'I', b'N'),
            Self::Update => (b'U', b'N'),
            Self::DeleteKey => (b'D', b'K'),
            Self::DeleteFull => (b'D', b'O'),
        }
    }
}

/// What all changes of one kind and one shape begin with: the type, the relation in four bytes, the marker of the
/// tuple, the number of columns in two. All of it is in one word, so that one comparison is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head(pub u64);

impl Head {
    /// The head of such changes of a relation with so many columns.
    #[must_use]
    pub const fn new(kind: PlainKind, relation: u32, columns: u16) -> Self {
        let (tag, marker) = kind.markers();
        let [a, b, c, d] = relation.to_be_bytes();
        let [e, f] = columns.to_be_bytes();
        Self(u64::from_ne_bytes([tag, a, b, c, d, marker, e, f]))
    }

    /// Whether it is the head of a change of rows.
    #[inline]
    #[must_use]
    pub const fn is_of_change(self) -> bool {
        let [tag, ..] = self.0.to_ne_bytes();
        matches!(tag, b'I' | b'U' | b'D')
    }

    /// The oid of the table, if it is the head of a change.
    #[inline]
    #[must_use]
    pub const fn relation(self) -> u32 {
        let [_, a, b, c, d, ..] = self.0.to_ne_bytes();
        u32::from_be_bytes([a, b, c, d])
    }
}

impl<'a> Plain<'a> {
    /// What `bytes` begin as, unless they are too few.
    #[inline(always)]
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (first, values) = bytes.split_first_chunk()?;
        Some(Self {
            head: Head(u64::from_ne_bytes(*first)),
            values,
        })
    }

    /// The row, value by value, unless it takes more than 255 bytes.
    #[inline(always)]
    #[must_use]
    pub fn values(&self) -> Option<PlainValues<'a>> {
        BriefCursor::new(self.values).map(PlainValues)
    }

    /// The bytes of the row.
    #[inline(always)]
    #[must_use]
    pub const fn size(&self) -> usize {
        self.values.len()
    }
}

/// The values of a [`Plain`] change, read one by one.
#[derive(Clone, Copy)]
pub struct PlainValues<'a>(BriefCursor<'a>);

impl<'a> PlainValues<'a> {
    /// The next value if it is binary and, with its length, not longer than a window on the bytes that begin with it:
    /// the window, and the length of both. Otherwise it stays unread.
    #[inline(always)]
    pub fn window(&mut self) -> Option<(&'a [u8; WINDOW], u8)> {
        self.0.window_behind(b'b')
    }

    /// The next value if it is binary; otherwise it stays unread.
    pub fn binary(&mut self) -> Option<Field<'a>> {
        self.0.sized_behind(b'b')
    }

    /// The last value, if it is binary and nothing follows it.
    #[inline(always)]
    #[must_use]
    pub fn last_binary(self) -> Option<Field<'a>> {
        self.0.sized_to_the_end(b'b')
    }

    /// Whether the next value is NULL; otherwise it stays unread.
    pub fn null(&mut self) -> bool {
        self.0.skip(b'n')
    }

    /// Whether all were read.
    #[must_use]
    pub fn is_at_the_end(&self) -> bool {
        self.0.is_at_the_end()
    }
}
