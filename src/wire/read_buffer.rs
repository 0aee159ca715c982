//! The read buffer of a connection, which messages are parsed in.

use std::ops::Range;
use std::task::{Context, Poll, ready};

use super::Error;
use super::transport::Transport;

/// Tag and length of a message (manual, section 53.1): one byte, and four that count themselves.
pub(super) const HEADER: usize = 5;
/// Above this a read buffer that had to grow for one large message is given back.
pub(super) const RETAINED_MAX: usize = 2 * 1024 * 1024;
/// Bytes received and not yet parsed. `bytes` is initialised to its end, so that reading needs no unsafe
/// code and no zeroing per read.
#[derive(Debug)]
pub(super) struct ReadBuffer {
    pub(super) bytes: Vec<u8>,
    pub(super) start: usize,
    pub(super) end: usize,
    /// The body of the message taken last.
    pub(super) last: Range<usize>,
    gulp: usize,
}

impl ReadBuffer {
    pub(super) fn new(gulp: usize) -> Self {
        Self {
            bytes: vec![0; gulp],
            start: 0,
            end: 0,
            last: 0..0,
            gulp,
        }
    }

    /// The length of the first message with its header, once four bytes of length are here.
    #[inline]
    pub(super) fn message_len(&self) -> Result<Option<usize>, Error> {
        let Some(header) = self.bytes[self.start..self.end].first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        if !(4..=i32::MAX as u32).contains(&length) {
            return Err(Error::Protocol("a message length out of range"));
        }
        Ok(Some(length as usize + 1))
    }

    /// Takes the next complete message: its tag and where its body lies until the next fill.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<(u8, Range<usize>)>, Error> {
        match self.message_len()? {
            Some(length) if length <= self.end - self.start => {
                let tag = self.bytes[self.start];
                self.last = self.start + HEADER..self.start + length;
                self.start += length;
                Ok(Some((tag, self.last.clone())))
            }
            _ => Ok(None),
        }
    }

    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Transport,
    ) -> Poll<Result<usize, Error>> {
        self.make_room()?;
        self.last = 0..0;
        let got = ready!(stream.poll_read(cx, &mut self.bytes[self.end..]))?;
        if got == 0 {
            return Poll::Ready(Err(Error::Closed));
        }
        self.end += got;
        Poll::Ready(Ok(got))
    }

    /// Moves what is left to the front, and grows when one message is larger than the buffer.
    fn make_room(&mut self) -> Result<(), Error> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            if self.bytes.len() > RETAINED_MAX {
                self.bytes = vec![0; self.gulp];
            }
        }
        let needed = self.message_len()?.unwrap_or(HEADER);
        if self.start + needed > self.bytes.len() || self.bytes.len() - self.end < self.gulp / 4 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if needed > self.bytes.len() {
            self.bytes.resize(needed, 0);
        }
        if self.end == self.bytes.len() {
            // A buffer full of complete messages that were not taken: the caller drains before it fills.
            return Err(Error::Protocol("read buffer filled before it was drained"));
        }
        Ok(())
    }
}
