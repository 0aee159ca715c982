//! The SQL client's bytes, with a count of the answers that the server owes.
//!
//! The client sends requests without waiting for the answers of those before: a statement that is dropped is closed together
//! with the next request. So a byte that comes does not mean that the last request was answered. Each request ends with Sync
//! or is a Query, and each answer ends with ReadyForQuery (manual, section 53.2).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::transport::Transport;

#[derive(Debug)]
pub(crate) struct Counted {
    pub(super) transport: Transport,
    sent: Heads,
    received: Heads,
    /// Answers that have not come; the login is one.
    owed: u32,
}

impl Counted {
    /// Of a connection on which nothing was said yet.
    pub(super) fn new(transport: Transport) -> Self {
        Self {
            transport,
            // The first message has no tag.
            sent: Heads {
                head: vec![0],
                body: 0,
            },
            received: Heads::default(),
            owed: 1,
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let room = buf.initialize_unfilled();
        let count = ready!(this.transport.poll_read(cx, room))?;
        let answered = this.received.count(&room[..count], b"Z");
        this.owed = this.owed.saturating_sub(answered);
        if this.owed > 0 {
            this.transport.asked().expect_more();
        }
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let sent = ready!(this.transport.poll_write(cx, &[IoSlice::new(bytes)]))?;
        this.owed += this.sent.count(&bytes[..sent], b"QS");
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.transport.shut_down();
        Poll::Ready(Ok(()))
    }
}

/// Finds the heads of messages in bytes that come in pieces.
#[derive(Debug, Default)]
struct Heads {
    /// What is here of a head: a tag and a length.
    head: Vec<u8>,
    /// So much of the last message's body is still to come.
    body: usize,
}

impl Heads {
    /// How many messages with one of these tags begin in `bytes`.
    fn count(&mut self, mut bytes: &[u8], tags: &[u8]) -> u32 {
        let mut found = 0;
        loop {
            let passed = self.body.min(bytes.len());
            self.body -= passed;
            bytes = &bytes[passed..];
            let Some((&byte, rest)) = bytes.split_first() else {
                return found;
            };
            bytes = rest;
            self.head.push(byte);
            if let &[tag, a, b, c, d] = self.head.as_slice() {
                found += u32::from(tags.contains(&tag));
                // The length counts itself.
                self.body = (u32::from_be_bytes([a, b, c, d]) as usize).saturating_sub(4);
                self.head.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_the_bytes_are_cut() {
        let mut bytes = Vec::new();
        for (tag, body) in [(b'Z', "I"), (b'D', "ZZZZZZZZZZ"), (b'1', ""), (b'Z', "T")] {
            bytes.push(tag);
            bytes.extend((body.len() as u32 + 4).to_be_bytes());
            bytes.extend(body.as_bytes());
        }
        for size in 1..=bytes.len() {
            let mut heads = Heads::default();
            let pieces = bytes.chunks(size);
            let found: u32 = pieces.map(|piece| heads.count(piece, b"Z")).sum();
            assert_eq!(found, 2, "in pieces of {size}");
        }
    }
}
