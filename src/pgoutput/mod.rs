//! What the walsender says: the messages of `pgoutput`, protocol version 1.
//!
//! Manual, section "Logical Replication Message Formats".
//!
//! ```text
//! one CopyData payload        Message::parse         the row writer
//! +---+----------+---+---+    +--------------+       +------------------------+
//! | I | relation | N | 3 | -> | Insert { .. }| ----> | Values::next() x 3     |
//! +---+----------+---+---+    | Tuple: bytes |       | Field::with_length()   |
//! | t | len | .. | n | b .|    +--------------+       |   straight into COPY   |
//! +---+----------+---+---+      borrows all          +------------------------+
//! ```
//!
//! Bytes become messages here and nothing more: no socket, no order between messages, no memory of
//! what was said before. Pure: no clock, no log, no allocation, no panic, whatever the bytes.
//!
//! **Every byte of a message that was read to its end was understood.** What follows an unknown byte may
//! not mean what it seems to, so nothing is skipped and nothing is guessed. The columns of a row are not read when the message is parsed: a row is walked once, and
//! [`Values`] hands out the last column only if it ends the message.
//!
//! Neither an error nor `{:?}` shows a row value.

mod cursor;
mod message;
mod relation;
mod tuple;

pub use cursor::Field;
pub use message::{
    Begin, Commit, Delete, Insert, LogicalMessage, Message, OldKind, Origin, Timestamp, Truncate,
    Type, Update,
};
pub use relation::{Column, Columns, Relation, ReplicaIdentity};
pub use tuple::{Tuple, Value, Values};

/// Bytes that are not exactly one message of protocol version 1.
///
/// Says what was malformed; never with bytes of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The type byte is none of protocol version 1.
    #[error("unknown message type {:?}", char::from(*.0))]
    UnknownMessage(u8),
    /// The message ends too early.
    #[error("the message ends inside {0}")]
    Truncated(&'static str),
    /// Bytes are left where the message should end.
    #[error("bytes are left after the end of {0}")]
    Trailing(&'static str),
    /// A count or a length is below zero.
    #[error("negative length: {0}")]
    Negative(&'static str),
    /// A byte or a bit has no meaning in protocol version 1.
    #[error("unknown {0}")]
    Unknown(&'static str),
    /// A name is not UTF-8, although the connection asked for that encoding.
    #[error("not UTF-8: {0}")]
    NotUtf8(&'static str),
    /// An old tuple holds a value that was "not sent because it is unchanged".
    #[error("an old tuple leaves out an unchanged value")]
    UnchangedInOldTuple,
}

/// Parses one message and reads all of it: what the fuzzer runs.
pub fn walk(bytes: &[u8]) -> Result<(), DecodeError> {
    Message::parse(bytes)?.check()
}
