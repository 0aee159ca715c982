//! The bytes of one connection: as they are, or encrypted.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll};

#[cfg(test)]
use tokio::io::{AsyncRead, AsyncWrite};

use super::asked::Asked;
use super::stream::{Peer, Stream};
use super::tls;

/// A connection that was dialled; encrypted where that was agreed.
#[derive(Debug)]
pub(crate) enum Transport {
    Plain(Stream),
    Tls(Box<tls::Session>),
    /// Within a simulation.
    #[cfg(test)]
    Memory(tokio::io::DuplexStream, Arc<Asked>),
}

impl Transport {
    fn stream(&self) -> Option<&Stream> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Tls(session) => Some(&session.stream),
            #[cfg(test)]
            Self::Memory(..) => None,
        }
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The hash of the server's certificate for channel binding, where there is one.
    pub(super) fn end_point(&self) -> Option<&[u8]> {
        match self {
            Self::Tls(session) => session.end_point(),
            _ => None,
        }
    }

    /// Encrypted, this machine's own packets are as those of another: each change is a record, and its length says nothing of
    /// what the socket holds.
    pub(super) fn peer(&self) -> Peer {
        match self {
            Self::Plain(stream) => stream.peer(),
            _ => Peer::Remote,
        }
    }

    pub(super) fn limit_window(&self, bytes: usize) -> io::Result<()> {
        self.stream()
            .map_or(Ok(()), |stream| stream.limit_window(bytes))
    }

    /// Whether the server owes an answer.
    pub(crate) fn asked(&self) -> &Arc<Asked> {
        match self {
            Self::Plain(stream) => stream.asked(),
            Self::Tls(session) => session.stream.asked(),
            #[cfg(test)]
            Self::Memory(_, asked) => asked,
        }
    }

    pub(super) fn shut_down(&self) {
        if let Some(stream) = self.stream() {
            stream.shut_down();
        }
    }

    pub(super) fn unwatch(&mut self) {
        match self {
            Self::Plain(stream) => stream.unwatch(),
            Self::Tls(session) => session.stream.unwatch(),
            #[cfg(test)]
            Self::Memory(..) => {}
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
            #[cfg(test)]
            Self::Memory(pipe, _) => {
                let mut room = tokio::io::ReadBuf::new(room);
                std::task::ready!(std::pin::Pin::new(pipe).poll_read(cx, &mut room))?;
                Poll::Ready(Ok(room.filled().len()))
            }
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
            #[cfg(test)]
            Self::Memory(pipe, _) => std::pin::Pin::new(pipe).poll_write_vectored(cx, bufs),
        }
    }
}
