//! `TupleData`: the columns of one row, as the walsender sends them.
//!
//! Parsing a message only finds its tuples. The code that writes a row reads the values, so that a row is
//! walked **once**. Values are not looked at and not copied.

use std::fmt;

use super::DecodeError;
use super::cursor::{Cursor, Field};

/// One column of a [`Tuple`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// NULL; in a key tuple, of a column outside the key, it means "not logged".
    Null,
    /// A value stored out of line that the change did not touch, and that was therefore not sent.
    ///
    /// Only in new tuples, and not only of an update: a row filter can turn an update into an insert.
    Unchanged,
    /// The value as text, in the `client_encoding` of the connection.
    Text(Field<'a>),
    /// The value as its type's send function writes it.
    Binary(Field<'a>),
}

/// The columns of one row, in the order of the [`Relation`](super::Relation) message.
#[derive(Clone, Copy)]
pub struct Tuple<'a> {
    columns: u16,
    /// The server reads out-of-line values back for old tuples, so that none is left out there.
    may_omit: bool,
    cursor: Cursor<'a>,
}

impl<'a> Tuple<'a> {
    /// The new tuple, which reaches to the end of its message.
    #[inline]
    pub(super) fn last_new(cursor: Cursor<'a>) -> Result<Self, DecodeError> {
        Self::last(cursor, true)
    }

    /// The old tuple, where it reaches to the end of its message.
    #[inline]
    pub(super) fn last_old(cursor: Cursor<'a>) -> Result<Self, DecodeError> {
        Self::last(cursor, false)
    }

    #[inline]
    fn last(mut cursor: Cursor<'a>, may_omit: bool) -> Result<Self, DecodeError> {
        let columns = cursor.count("the column count of a tuple")?;
        if columns == 0 {
            cursor.finish("a tuple")?;
        }
        Ok(Self {
            columns,
            may_omit,
            cursor,
        })
    }

    /// The old tuple that another tuple follows: walked, because nothing else says where it ends.
    #[inline]
    pub(super) fn inner_old(cursor: &mut Cursor<'a>) -> Result<Self, DecodeError> {
        let columns = cursor.count("the column count of a tuple")?;
        let start = *cursor;
        for _ in 0..columns {
            value(cursor, false)?;
        }
        Ok(Self {
            columns,
            may_omit: false,
            cursor: start.until(*cursor),
        })
    }

    #[inline]
    pub const fn len(&self) -> u16 {
        self.columns
    }

    /// Whether there are no columns: a table may have none.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// The values, from the first column on.
    #[inline]
    pub const fn values(&self) -> Values<'a> {
        Values {
            left: self.columns,
            may_omit: self.may_omit,
            cursor: self.cursor,
        }
    }

    pub fn check(&self) -> Result<(), DecodeError> {
        let mut values = self.values();
        while values.next()?.is_some() {}
        Ok(())
    }
}

impl fmt::Debug for Tuple<'_> {
    /// The number of columns only: a row value must not reach a log by way of `{:?}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tuple({} columns)", self.columns)
    }
}

/// The values of a [`Tuple`], read one by one.
#[derive(Clone)]
pub struct Values<'a> {
    left: u16,
    may_omit: bool,
    cursor: Cursor<'a>,
}

impl<'a> Values<'a> {
    /// The next value; `None` when every column was read.
    ///
    /// The bytes of a tuple are right if, and only if, all its columns were read without an error:
    /// the last column is handed out only when it also ends the message. After an error the walk is
    /// over.
    ///
    /// # Errors
    /// Truncated or trailing bytes, a negative length, an unknown kind of value, or an unchanged
    /// value in an old tuple.
    #[inline]
    #[expect(
        clippy::should_implement_trait,
        reason = "a walk that can fail is stopped by `?`, which an iterator of results does not ask for"
    )]
    pub fn next(&mut self) -> Result<Option<Value<'a>>, DecodeError> {
        let Some(left) = self.left.checked_sub(1) else {
            return Ok(None);
        };
        let value = value(&mut self.cursor, self.may_omit)?;
        self.left = left;
        if left == 0 {
            self.cursor.finish("a tuple")?;
        }
        Ok(Some(value))
    }
}

impl fmt::Debug for Values<'_> {
    /// The number of columns only: a row value must not reach a log by way of `{:?}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Values({} left)", self.left)
    }
}

#[inline]
fn value<'a>(cursor: &mut Cursor<'a>, may_omit: bool) -> Result<Value<'a>, DecodeError> {
    let what = "a value of a tuple";
    let kind = cursor.u8(what)?;
    match kind {
        b'b' => cursor.sized(what).map(Value::Binary),
        b't' => cursor.sized(what).map(Value::Text),
        b'n' => Ok(Value::Null),
        _ => unchanged(kind, may_omit).map(|()| Value::Unchanged),
    }
}

/// Not inlined: three kinds cost compares above, four a jump table.
#[cold]
#[inline(never)]
fn unchanged(kind: u8, may_omit: bool) -> Result<(), DecodeError> {
    match kind {
        b'u' if may_omit => Ok(()),
        b'u' => Err(DecodeError::UnchangedInOldTuple),
        _ => Err(DecodeError::Unknown("kind of a value of a tuple")),
    }
}
