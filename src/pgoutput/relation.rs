//! `Relation`: what a table looks like from here on in the stream.
//!
//! Only the message as it was sent. The pipeline remembers it and compares it with the one before.

use std::fmt;
use std::iter::FusedIterator;

use super::DecodeError;
use super::cursor::Cursor;

/// Which old columns a table logs (manual, `ALTER TABLE ... REPLICA IDENTITY`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// Those of the primary key, where there is one.
    Default,
    Nothing,
    /// All; then every column is marked as part of the key.
    Full,
    Index,
}

/// A table, sent before the first change of it in a session and again after anything touched it.
///
/// Repeats that say nothing new are usual.
#[derive(Clone, Copy, Debug)]
pub struct Relation<'a> {
    /// Names the table in the changes that follow; kept across renames.
    pub oid: u32,
    /// The schema; empty for `pg_catalog`.
    pub schema: &'a str,
    pub name: &'a str,
    pub replica_identity: ReplicaIdentity,
    columns: Columns<'a>,
}

impl<'a> Relation<'a> {
    pub(super) fn parse(mut cursor: Cursor<'a>) -> Result<Self, DecodeError> {
        let oid = cursor.u32("the oid of Relation")?;
        let schema = cursor.name("the schema of Relation")?;
        let name = cursor.name("the name of Relation")?;
        let replica_identity = match cursor.u8("the replica identity of Relation")? {
            b'd' => ReplicaIdentity::Default,
            b'n' => ReplicaIdentity::Nothing,
            b'f' => ReplicaIdentity::Full,
            b'i' => ReplicaIdentity::Index,
            _ => return Err(DecodeError::Unknown("replica identity of Relation")),
        };
        let left = cursor.count("the column count of Relation")?;
        if left == 0 {
            cursor.finish("Relation")?;
        }
        Ok(Self {
            oid,
            schema,
            name,
            replica_identity,
            columns: Columns { left, cursor },
        })
    }

    /// The published columns, in the order of the values of every tuple.
    ///
    /// They are read as they are asked for: the message is right if, and only if, all of them were
    /// read without an error. Dropped columns are not among them.
    pub const fn columns(&self) -> Columns<'a> {
        self.columns
    }
}

/// One column of a [`Relation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column<'a> {
    /// Whether it is part of the replica identity.
    pub key: bool,
    pub name: &'a str,
    /// The oid of its type; of a domain, the domain's.
    pub type_oid: u32,
    /// Its type modifier (`atttypmod`); -1 where it has none.
    pub type_modifier: i32,
}

impl<'a> Column<'a> {
    fn parse(cursor: &mut Cursor<'a>) -> Result<Self, DecodeError> {
        let key = match cursor.u8("the flags of a column of Relation")? {
            0 => false,
            1 => true,
            _ => return Err(DecodeError::Unknown("flag of a column of Relation")),
        };
        Ok(Self {
            key,
            name: cursor.name("the name of a column of Relation")?,
            type_oid: cursor.u32("the type oid of a column of Relation")?,
            type_modifier: cursor.i32("the type modifier of a column of Relation")?,
        })
    }
}

/// The columns of a [`Relation`], read one by one; ends after the first error.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    left: u16,
    cursor: Cursor<'a>,
}

impl Columns<'_> {
    /// The number of columns that were not read yet.
    pub const fn left(&self) -> u16 {
        self.left
    }
}

impl<'a> Iterator for Columns<'a> {
    type Item = Result<Column<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let left = self.left.checked_sub(1)?;
        let mut column = Column::parse(&mut self.cursor);
        if left == 0 && column.is_ok() {
            column = self.cursor.finish("Relation").and(column);
        }
        self.left = if column.is_ok() { left } else { 0 };
        Some(column)
    }
}

impl FusedIterator for Columns<'_> {}

impl fmt::Debug for Columns<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Columns({} left)", self.left)
    }
}
