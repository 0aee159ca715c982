//! A backlog, read by SQL.
//!
//! A walsender sends each change by itself and looks for an answer after each WAL record. Over a Unix-domain socket that is
//! three fifths of its time. `pg_logical_slot_peek_binary_changes` gives the same messages through a COPY, eight kilobytes at
//! a time, for a third of the source's CPU. The source decodes everything before it gives the first row, and keeps it in a
//! temporary file meanwhile: this is for a start that is behind, and for a limited amount of WAL.
//!
//! Peeking leaves the slot where it is. [`Backlog::advance`] moves it once everything is durable in the target.

use std::fmt::Write;
use std::sync::Arc;

use super::frame::FrameError;
use super::replication::StreamOptions;
use super::stream::StreamError;
use crate::config::CATCH_UP_WAL_MIN;
use crate::lsn::Lsn;
use crate::wire::{Asked, COPY_HEADER, COPY_TRAILER, Channel, Error};

/// A row of one column: the number of columns, and the length of the value.
const ROW: usize = 6;

/// Up to where the WAL after `from` is read by SQL, when that is worth it. `flushed` is the end of the source's WAL.
/// Decoding begins at `restart`, the slot's, and `max` bytes count from there: a transaction that has been open for long
/// makes every piece dear.
pub(crate) fn end(restart: Lsn, from: Lsn, flushed: Lsn, max: u64) -> Option<Lsn> {
    let last = Lsn::from_u64(restart.as_u64().saturating_add(max));
    let end = flushed.min(last);
    let bytes = end.as_u64().checked_sub(from.as_u64())?;
    (bytes >= CATCH_UP_WAL_MIN).then_some(end)
}

/// The COPY that gives it. `publication` is quoted as START_REPLICATION wants it.
pub(crate) fn query(slot: &str, end: Lsn, publication: &str, options: StreamOptions) -> String {
    let mut query = format!(
        "COPY (SELECT data FROM pg_catalog.pg_logical_slot_peek_binary_changes('{slot}', '{end}', NULL, \
         'proto_version', '1', 'publication_names', '{publication}'"
    );
    for name in options.names() {
        let _ = write!(query, ", '{name}', 'true'");
    }
    let _ = write!(query, ")) TO STDOUT (FORMAT binary)");
    query
}

/// A COPY that gives the messages of a slot, up to a position.
#[derive(Debug)]
pub struct Backlog {
    channel: Channel,
    slot: String,
}

/// What comes next in a [`Backlog`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next<'a> {
    Payload(&'a [u8]),
    NotHere,
    End,
}

impl Backlog {
    /// `channel`: the COPY has begun on it.
    pub(crate) fn new(channel: Channel, slot: &str) -> Self {
        Self {
            channel,
            slot: slot.to_owned(),
        }
    }

    /// What is next, without waiting.
    ///
    /// # Errors
    /// The server reported an error, or sent what such a COPY does not give.
    pub fn next_buffered(&mut self) -> Result<Next<'_>, StreamError> {
        // In a loop because of notices and the marks of a COPY. The borrow checker cannot see that the returned payload
        // ends the loop, hence the message first, its body second.
        loop {
            let Some(message) = self.channel.next_buffered()? else {
                return Ok(Next::NotHere);
            };
            match message.tag {
                b'd' => match Row::parse(message.body)? {
                    Row::Payload(_) => break,
                    Row::Mark => {}
                },
                // CopyDone and CommandComplete: what counts is that the server is ready again.
                b'c' | b'C' => {}
                b'Z' => return Ok(Next::End),
                _ => super::stream::between_frames(message)?,
            }
        }
        match Row::parse(self.channel.last_body())? {
            Row::Payload(payload) => Ok(Next::Payload(payload)),
            Row::Mark => Err(FrameError::Row.into()),
        }
    }

    /// Whether the source owes an answer.
    pub(crate) fn asked(&self) -> &Arc<Asked> {
        self.channel.asked()
    }

    /// Waits until more has arrived. Cancel-safe.
    pub async fn fill(&mut self) -> Result<(), Error> {
        self.channel.expect_more();
        self.channel.fill().await.map(|_| ())
    }

    /// Gives it up: the source ends the transaction that it reads it in, which keeps its vacuum from removing rows.
    pub fn abandon(&self) {
        self.channel.shut_down();
    }

    /// Moves the slot to `durable`, the end of a transaction, after [`Next::End`].
    pub async fn advance(mut self, durable: Lsn) -> Result<(), Error> {
        let advance = format!(
            "SELECT pg_catalog.pg_replication_slot_advance('{}', '{durable}')",
            self.slot
        );
        self.channel.simple_query(&advance).await.map(|_| ())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Row<'a> {
    Payload(&'a [u8]),
    Mark,
}

impl<'a> Row<'a> {
    #[inline]
    fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        if let Some(payload) = value(bytes) {
            return Ok(Self::Payload(payload));
        }
        // The first row comes with what begins the COPY.
        match bytes.strip_prefix(COPY_HEADER) {
            Some([] | COPY_TRAILER) => Ok(Self::Mark),
            Some(row) => value(row).map(Self::Payload).ok_or(FrameError::Row),
            None if bytes == COPY_TRAILER => Ok(Self::Mark),
            None => Err(FrameError::Row),
        }
    }
}

/// The value of a row of one column.
#[inline]
fn value(row: &[u8]) -> Option<&[u8]> {
    let (&[0, 1, a, b, c, d], value) = row.split_first_chunk::<ROW>()? else {
        return None;
    };
    (u32::from_be_bytes([a, b, c, d]) as usize == value.len()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lsn(value: u64) -> Lsn {
        Lsn::from_u64(value)
    }

    fn row(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 1];
        bytes.extend((payload.len() as u32).to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn a_backlog_is_read_by_sql_when_it_is_worth_it_and_as_much_as_allowed() {
        let end = |from, flushed, max| end(lsn(1000), lsn(from), lsn(flushed), max);
        assert_eq!(
            end(2000, 2000 + CATCH_UP_WAL_MIN, u64::MAX),
            Some(lsn(2000 + CATCH_UP_WAL_MIN))
        );
        assert_eq!(end(2000, 1999 + CATCH_UP_WAL_MIN, u64::MAX), None);
        assert_eq!(
            end(2000, u64::MAX, 1000 + CATCH_UP_WAL_MIN),
            Some(lsn(2000 + CATCH_UP_WAL_MIN))
        );
        assert_eq!(end(2001, u64::MAX, 1000 + CATCH_UP_WAL_MIN), None);
        assert_eq!(end(2000, u64::MAX, 0), None);
        assert_eq!(end(3000, 2000, u64::MAX), None);
    }

    #[test]
    fn rows_are_read_with_and_without_what_begins_and_ends_a_copy() {
        let first = [COPY_HEADER, &row(b"B")].concat();
        assert_eq!(Row::parse(&first), Ok(Row::Payload(b"B")));
        assert_eq!(Row::parse(&row(b"")), Ok(Row::Payload(b"")));
        assert_eq!(Row::parse(COPY_HEADER), Ok(Row::Mark));
        assert_eq!(Row::parse(COPY_TRAILER), Ok(Row::Mark));
        assert_eq!(
            Row::parse(&[COPY_HEADER, COPY_TRAILER].concat()),
            Ok(Row::Mark)
        );
        for wrong in [
            &b""[..],
            b"w",
            &[0, 2, 0, 0, 0, 1, b'B', 0, 0, 0, 0],
            &[0, 1, 0, 0, 0, 2, b'B'],
            &[0, 1, 0xff, 0xff, 0xff, 0xff],
            &[COPY_HEADER, COPY_HEADER].concat(),
            &[COPY_HEADER, &b"x"[..]].concat(),
        ] {
            assert_eq!(Row::parse(wrong), Err(FrameError::Row), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = Row::parse(&bytes);
        }
    }
}
