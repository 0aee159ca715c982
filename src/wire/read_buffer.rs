//! The read buffer of a connection, which messages are parsed in.

use std::ops::Range;
use std::task::{Context, Poll, ready};

use super::Error;
use super::limits::{KEPT_MAX, Limits, Verdict, shortened};
use super::transport::Transport;

/// Tag and length of a message (manual, section 53.1): one byte, and four that count themselves.
pub(super) const HEADER: usize = 5;
/// Above this a read buffer that had to grow for one large message is given back.
pub(super) const RETAINED_MAX: usize = 2 * 1024 * 1024;
/// Bytes received and not yet parsed. `bytes` is initialised to its end, so that reading needs no unsafe
/// code and no zeroing per read. It grows with what has arrived, not with the length that a message announces.
#[derive(Debug)]
pub(super) struct ReadBuffer {
    pub(super) bytes: Vec<u8>,
    pub(super) start: usize,
    pub(super) end: usize,
    /// The body of the message taken last.
    pub(super) last: Range<usize>,
    gulp: usize,
    limits: Limits,
    /// The rest of a message that was shortened, which is still to come.
    discard: usize,
}

impl ReadBuffer {
    /// `answer_max`: see [`Limits::new`].
    pub(super) fn new(gulp: usize, answer_max: usize) -> Self {
        Self {
            bytes: vec![0; gulp],
            start: 0,
            end: 0,
            last: 0..0,
            gulp,
            limits: Limits::new(answer_max),
            discard: 0,
        }
    }

    /// The length of the first message with its header as the server announces it.
    #[inline]
    pub(super) fn announced(&self) -> Result<Option<usize>, Error> {
        let Some(header) = self.bytes[self.start..self.end].first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        if !(4..=i32::MAX as u32).contains(&length) {
            return Err(Error::Protocol("a message length out of range"));
        }
        Ok(Some(length as usize + 1))
    }

    /// The length of the first message with its header, once four bytes of length are here. One that is too long is
    /// shortened, once enough of it is here.
    #[inline]
    pub(super) fn message_len(&mut self) -> Result<Option<usize>, Error> {
        match self.announced()? {
            Some(length) if length > KEPT_MAX => self.long(length).map(Some),
            length => Ok(length),
        }
    }

    #[cold]
    fn long(&mut self, length: usize) -> Result<usize, Error> {
        let tag = self.bytes[self.start];
        if self.limits.judge(tag, length)? == Verdict::Keep {
            return Ok(length);
        }
        let here = (self.end - self.start).min(length);
        if here < KEPT_MAX {
            return Ok(KEPT_MAX);
        }
        let beginning = self.start + HEADER..self.start + KEPT_MAX;
        let instead = shortened(tag, &self.bytes[beginning], length);
        // Before what follows the message, or at the end of what is here of it.
        self.start += here - instead.len();
        self.bytes[self.start..self.start + instead.len()].copy_from_slice(&instead);
        self.discard = length - here;
        Ok(instead.len())
    }

    /// Takes the next complete message: its tag and where its body lies until the next fill.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<(u8, Range<usize>)>, Error> {
        match self.message_len()? {
            Some(length) if length <= self.end - self.start => {
                let tag = self.bytes[self.start];
                self.take(length)?;
                Ok(Some((tag, self.last.clone())))
            }
            _ => Ok(None),
        }
    }

    /// Takes the first message, which is here whole.
    #[inline]
    pub(super) fn take(&mut self, length: usize) -> Result<(), Error> {
        let tag = self.bytes[self.start];
        self.last = self.start + HEADER..self.start + length;
        self.limits.note(tag, &self.bytes[self.last.clone()])?;
        self.start += length;
        Ok(())
    }

    /// Notes that a row of a COPY begins, which is not taken as a message.
    pub(super) fn note_row(&mut self) -> Result<(), Error> {
        self.limits.note(b'd', &[])
    }

    #[cfg(test)]
    pub(super) fn log_in(&mut self) {
        self.limits.note(b'Z', b"I").unwrap();
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
        let unwanted = got.min(self.discard);
        if unwanted > 0 {
            let read = self.end..self.end + got;
            self.bytes
                .copy_within(read.start + unwanted..read.end, read.start);
            self.discard -= unwanted;
        }
        self.end += got - unwanted;
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
        let is_tight =
            self.start + needed > self.bytes.len() || self.bytes.len() - self.end < self.gulp / 4;
        if is_tight && self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.bytes.len() && needed > self.end {
            self.bytes.resize(needed.min(2 * self.end), 0);
        }
        if self.end == self.bytes.len() {
            // A buffer full of complete messages that were not taken: the caller drains before it fills.
            return Err(Error::Protocol("read buffer filled before it was drained"));
        }
        Ok(())
    }
}
