//! The short way to a change of one tuple whose values are NULL or binary: nearly every change.
//!
//! A change costs little more than a copy of it, so that each question asked of its bytes counts. Here as few are
//! asked as tell a well-formed change from everything else. There are no errors: what is not such a change is for
//! [`Message::parse`](super::Message::parse) to read, and to refuse.

use super::cursor::{Cursor, Field, WINDOW};

/// A change of one tuple.
pub struct Plain<'a> {
    /// What happened to the row.
    pub kind: PlainKind,
    /// Whose row it is.
    pub head: Head,
    /// The row.
    pub values: PlainValues<'a>,
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
    /// Each of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [
        Self::Insert,
        Self::Update,
        Self::DeleteKey,
        Self::DeleteFull,
    ];
}

/// What all changes of one shape begin with: the relation and the number of its columns.
///
/// Both are in one word, with room for the two markers between them, so that one comparison is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head(u64);

/// Takes the two markers out of the first eight bytes of a change.
const MARKERS_OUT: u64 = u64::from_ne_bytes([0, 255, 255, 255, 255, 0, 255, 255]);

impl Head {
    /// The head of changes of a relation with so many columns.
    #[must_use]
    pub const fn new(relation: u32, columns: u16) -> Self {
        let [a, b, c, d] = relation.to_be_bytes();
        let [e, f] = columns.to_be_bytes();
        Self(u64::from_ne_bytes([0, a, b, c, d, 0, e, f]))
    }

    /// The oid of the table.
    #[inline]
    #[must_use]
    pub const fn relation(self) -> u32 {
        let [_, a, b, c, d, ..] = self.0.to_ne_bytes();
        u32::from_be_bytes([a, b, c, d])
    }
}

impl<'a> Plain<'a> {
    /// The change that `bytes` begin as, if they do.
    #[inline(always)]
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        // The type, the relation in four bytes, the marker of the tuple, the number of columns in two.
        let (first, values) = bytes.split_first_chunk()?;
        let kind = match (first[0], first[5]) {
            (b'I', b'N') => PlainKind::Insert,
            (b'U', b'N') => PlainKind::Update,
            (b'D', b'K') => PlainKind::DeleteKey,
            (b'D', b'O') => PlainKind::DeleteFull,
            _ => return None,
        };
        Some(Self {
            kind,
            head: Head(u64::from_ne_bytes(*first) & MARKERS_OUT),
            values: PlainValues(Cursor::new(values)),
        })
    }
}

/// The values of a [`Plain`] change, read one by one.
#[derive(Clone, Copy)]
pub struct PlainValues<'a>(Cursor<'a>);

impl<'a> PlainValues<'a> {
    /// The bytes that are left of them.
    #[inline(always)]
    #[must_use]
    pub const fn left(&self) -> usize {
        self.0.left()
    }

    /// The next value if it is binary and, with its length, not longer than a window on the bytes that begin with it:
    /// the window, and the length of both. Otherwise it stays unread.
    #[inline(always)]
    pub fn window(&mut self) -> Option<(&'a [u8; WINDOW], usize)> {
        self.0.window_behind(b'b')
    }

    /// The next value if it is binary; otherwise it stays unread.
    #[inline(always)]
    pub fn binary(&mut self) -> Option<Field<'a>> {
        self.0.sized_behind(b'b')
    }

    /// Whether the next value is NULL; otherwise it stays unread.
    #[inline(always)]
    pub fn null(&mut self) -> bool {
        self.0.skip(b'n')
    }
}
