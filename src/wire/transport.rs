//! The bytes of one connection: as they are, or encrypted.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll};

use super::asked::Asked;
use super::stream::{Peer, Stream};
use super::tls;

/// A connection that was dialled; encrypted where that was agreed.
#[derive(Debug)]
pub(crate) enum Transport {
    Plain(Stream),
    Tls(Box<tls::Session>),
}

impl Transport {
    fn stream(&self) -> &Stream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(session) => &session.stream,
        }
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The hash of the server's certificate for channel binding, where there is one.
    pub(super) fn end_point(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(session) => session.end_point(),
        }
    }

    /// Encrypted, this machine's own packets are as those of another: each change is a record, and its length says nothing of
    /// what the socket holds.
    pub(super) fn peer(&self) -> Peer {
        match self {
            Self::Plain(stream) => stream.peer(),
            Self::Tls(_) => Peer::Remote,
        }
    }

    pub(super) fn limit_window(&self, bytes: usize) -> io::Result<()> {
        self.stream().limit_window(bytes)
    }

    /// Whether the server owes an answer.
    pub(crate) fn asked(&self) -> &Arc<Asked> {
        self.stream().asked()
    }

    pub(super) fn shut_down(&self) {
        self.stream().shut_down();
    }

    pub(super) fn unwatch(&mut self) {
        match self {
            Self::Plain(stream) => stream.unwatch(),
            Self::Tls(session) => session.stream.unwatch(),
        }
    }

    /// Reads once; 0 is the end.
    #[inline]
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        room: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(stream) => stream.poll_read(cx, room),
            Self::Tls(session) => session.poll_read(cx, room),
        }
    }

    /// Writes once, as much as there is room for. Until bytes are reported as taken, the next call must begin with them:
    /// they may have been encrypted.
    #[inline]
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(stream) => stream.poll_write(cx, bufs),
            Self::Tls(session) => session.poll_write(cx, bufs),
        }
    }
}
