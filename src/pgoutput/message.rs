//! One message of the stream, by its type byte.
//!
//! Parsing reads the whole message except the columns of a tuple and of a relation, which are read later
//! ([`Tuple`], [`Relation`]). Matches are closed: a byte without a meaning in
//! protocol version 1 is an error, because what follows it cannot be understood.

use std::fmt;

use super::cursor::Cursor;
use super::{DecodeError, Relation, Tuple};
use crate::lsn::Lsn;

/// Microseconds since 2000-01-01 00:00:00 UTC, by the clock of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

/// One logical replication message of protocol version 1.
#[derive(Clone, Copy, Debug)]
pub enum Message<'a> {
    Begin(Begin),
    /// `C`: the transaction has committed, and all of it was sent.
    Commit(Commit),
    /// `O`: the transaction was replicated into the source from somewhere else.
    Origin(Origin<'a>),
    /// `R`: what a table looks like.
    Relation(Relation<'a>),
    /// `Y`: what a user-defined type is called.
    Type(Type<'a>),
    /// `I`: a row was inserted.
    Insert(Insert<'a>),
    /// `U`: a row was updated.
    Update(Update<'a>),
    /// `D`: a row was deleted.
    Delete(Delete<'a>),
    Truncate(Truncate<'a>),
    /// `M`: what `pg_logical_emit_message` was given.
    Logical(LogicalMessage<'a>),
}

impl<'a> Message<'a> {
    /// Parses exactly one message.
    ///
    /// The last tuple of a change and the columns of a relation are not read here: they are right if,
    /// and only if, [`Message::check`] passes, or all their values were read without an error.
    ///
    /// # Errors
    /// Whatever is not exactly one message of protocol version 1, also messages of later versions
    /// (streamed and prepared transactions), which are not sent unless they are asked for.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut cursor = Cursor::new(bytes);
        match cursor.u8("the message type")? {
            b'I' => Insert::parse(cursor).map(Self::Insert),
            b'U' => Update::parse(cursor).map(Self::Update),
            b'D' => Delete::parse(cursor).map(Self::Delete),
            b'B' => Begin::parse(cursor).map(Self::Begin),
            b'C' => Commit::parse(cursor).map(Self::Commit),
            b'O' => Origin::parse(cursor).map(Self::Origin),
            b'R' => Relation::parse(cursor).map(Self::Relation),
            b'Y' => Type::parse(cursor).map(Self::Type),
            b'T' => Truncate::parse(cursor).map(Self::Truncate),
            b'M' => LogicalMessage::parse(cursor).map(Self::Logical),
            tag => Err(DecodeError::UnknownMessage(tag)),
        }
    }

    /// Reads everything that [`Message::parse`] left unread.
    pub fn check(&self) -> Result<(), DecodeError> {
        match self {
            Self::Insert(insert) => insert.new.check(),
            Self::Update(update) => {
                if let Some((_, old)) = &update.old {
                    old.check()?;
                }
                update.new.check()
            }
            Self::Delete(delete) => delete.old.check(),
            Self::Relation(relation) => relation.columns().try_for_each(|column| column.map(drop)),
            Self::Begin(_)
            | Self::Commit(_)
            | Self::Origin(_)
            | Self::Type(_)
            | Self::Truncate(_)
            | Self::Logical(_) => Ok(()),
        }
    }
}

/// A transaction begins; what follows up to its [`Commit`] belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Where the commit record starts (`final_lsn`); the same as [`Commit::commit_lsn`].
    pub commit_lsn: Lsn,
    /// When it committed; later transactions may have earlier times.
    pub commit_time: Timestamp,
    /// The transaction's id: 32 bits that wrap, in no order.
    pub xid: u32,
}

impl Begin {
    #[inline]
    fn parse(mut cursor: Cursor<'_>) -> Result<Self, DecodeError> {
        let begin = Self {
            commit_lsn: Lsn::from_u64(cursor.u64("the commit_lsn of Begin")?),
            commit_time: Timestamp(cursor.i64("the commit time of Begin")?),
            xid: cursor.u32("the xid of Begin")?,
        };
        cursor.finish("Begin").map(|()| begin)
    }
}

/// The transaction has committed, and all of it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Where the commit record starts.
    pub commit_lsn: Lsn,
    /// Where the commit record ends: what to acknowledge, once the transaction is durable.
    pub end_lsn: Lsn,
    pub commit_time: Timestamp,
}

impl Commit {
    #[inline]
    fn parse(mut cursor: Cursor<'_>) -> Result<Self, DecodeError> {
        if cursor.u8("the flags of Commit")? != 0 {
            return Err(DecodeError::Unknown("flag of Commit"));
        }
        let commit = Self {
            commit_lsn: Lsn::from_u64(cursor.u64("the commit_lsn of Commit")?),
            end_lsn: Lsn::from_u64(cursor.u64("the end_lsn of Commit")?),
            commit_time: Timestamp(cursor.i64("the commit time of Commit")?),
        };
        cursor.finish("Commit").map(|()| commit)
    }
}

/// The transaction was replicated into the source from somewhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// Where it committed **there**: a position in another log.
    pub commit_lsn: Lsn,
    pub name: &'a str,
}

impl<'a> Origin<'a> {
    fn parse(mut cursor: Cursor<'a>) -> Result<Self, DecodeError> {
        let origin = Self {
            commit_lsn: Lsn::from_u64(cursor.u64("the commit_lsn of Origin")?),
            name: cursor.name("the name of Origin")?,
        };
        cursor.finish("Origin").map(|()| origin)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Type<'a> {
    /// The oid of the type; of a domain, the domain's.
    pub oid: u32,
    /// The schema; empty for `pg_catalog`.
    pub schema: &'a str,
    /// The type's name; of a domain, the **base type's**.
    pub name: &'a str,
}

impl<'a> Type<'a> {
    fn parse(mut cursor: Cursor<'a>) -> Result<Self, DecodeError> {
        let named = Self {
            oid: cursor.u32("the oid of Type")?,
            schema: cursor.name("the schema of Type")?,
            name: cursor.name("the name of Type")?,
        };
        cursor.finish("Type").map(|()| named)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Insert<'a> {
    pub relation: u32,
    pub new: Tuple<'a>,
}

impl<'a> Insert<'a> {
    #[inline]
    fn parse(mut cursor: Cursor<'a>) -> Result<Self, DecodeError> {
        let relation = cursor.u32("the relation of Insert")?;
        match cursor.u8("the tuple marker of Insert")? {
            b'N' => {}
            _ => return Err(DecodeError::Unknown("tuple marker of Insert")),
        }
        let new = Tuple::last_new(cursor)?;
        Ok(Self { relation, new })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldKind {
    /// `K`: the columns of the replica identity; every other one stands there as NULL.
    Key,
    /// `O`: all columns (`REPLICA IDENTITY FULL`).
    Full,
}

#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    pub relation: u32,
    /// The old row, as far as it was logged: nothing if no key column changed and the replica identity
    /// is not FULL. An old tuple does not mean that the key changed.
    pub old: Option<(OldKind, Tuple<'a>)>,
    pub new: Tuple<'a>,
}

impl<'a> Update<'a> {
    #[inline]
    fn parse(mut cursor: Cursor<'a>) -> Result<Self, DecodeError> {
        let relation = cursor.u32("the relation of Update")?;
        let mut marker = cursor.u8("the tuple marker of Update")?;
        let kind = match marker {
            b'K' => Some(OldKind::Key),
            b'O' => Some(OldKind::Full),
            _ => None,
        };
        let mut old = None;
        if let Some(kind) = kind {
            old = Some((kind, Tuple::inner_old(&mut cursor)?));
            marker = cursor.u8("the marker of the new tuple of Update")?;
        }
        if marker != b'N' {
            return Err(DecodeError::Unknown("tuple marker of Update"));
        }
        let new = Tuple::last_new(cursor)?;
        Ok(Self { relation, old, new })
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Delete<'a> {
    pub relation: u32,
    pub kind: OldKind,
    /// The old row, as far as it was logged.
    pub old: Tuple<'a>,
}

impl<'a> Delete<'a> {
    #[inline]
    fn parse(mut cursor: Cursor<'a>) -> Result<Self, DecodeError> {
        let relation = cursor.u32("the relation of Delete")?;
        let kind = match cursor.u8("the tuple marker of Delete")? {
            b'K' => OldKind::Key,
            b'O' => OldKind::Full,
            _ => return Err(DecodeError::Unknown("tuple marker of Delete")),
        };
        let old = Tuple::last_old(cursor)?;
        Ok(Self {
            relation,
            kind,
            old,
        })
    }
}

/// One statement truncated tables; no rows are sent.
#[derive(Clone, Copy, Debug)]
pub struct Truncate<'a> {
    pub cascade: bool,
    pub restart_identity: bool,
    oids: &'a [[u8; 4]],
}

impl<'a> Truncate<'a> {
    fn parse(mut cursor: Cursor<'a>) -> Result<Self, DecodeError> {
        let what = "the relation count of Truncate";
        let count = cursor.i32(what)?;
        let count = usize::try_from(count).map_err(|_| DecodeError::Negative(what))?;
        let flags = cursor.u8("the flags of Truncate")?;
        if flags & !0b11 != 0 {
            return Err(DecodeError::Unknown("flag of Truncate"));
        }
        let oids = cursor.oids(count, "the relations of Truncate")?;
        cursor.finish("Truncate")?;
        Ok(Self {
            cascade: flags & 0b01 != 0,
            restart_identity: flags & 0b10 != 0,
            oids,
        })
    }

    /// The oids of the tables; only those that are published.
    pub fn relations(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.oids.iter().map(|oid| u32::from_be_bytes(*oid))
    }
}

/// What `pg_logical_emit_message` was given; sent only when the option `messages` is on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LogicalMessage<'a> {
    /// Whether it belongs to the transaction around it; if not, it may come at any time and stands
    /// even if the transaction that wrote it was rolled back.
    pub transactional: bool,
    /// Where the log record of the message ends.
    pub lsn: Lsn,
    /// Names the application that the message is for. Where the database has no encoding it can be any bytes, and another
    /// application's must not end the stream.
    pub prefix: &'a [u8],
    /// The message: any bytes, in no particular encoding.
    pub content: &'a [u8],
}

impl<'a> LogicalMessage<'a> {
    fn parse(mut cursor: Cursor<'a>) -> Result<Self, DecodeError> {
        let transactional = match cursor.u8("the flags of Message")? {
            0 => false,
            1 => true,
            _ => return Err(DecodeError::Unknown("flag of Message")),
        };
        let message = Self {
            transactional,
            lsn: Lsn::from_u64(cursor.u64("the lsn of Message")?),
            prefix: cursor.ended("the prefix of Message")?,
            content: cursor.sized("the content of Message")?.bytes(),
        };
        cursor.finish("Message").map(|()| message)
    }
}

impl fmt::Debug for LogicalMessage<'_> {
    /// Without the content, which may hold anything and must not reach a log by way of `{:?}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogicalMessage")
            .field("transactional", &self.transactional)
            .field("lsn", &self.lsn)
            .field("prefix", &self.prefix.escape_ascii().to_string())
            .field("content_bytes", &self.content.len())
            .finish()
    }
}
