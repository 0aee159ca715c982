//! The socket beneath a connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::Endpoint;
use super::local::Local;

/// How long a peer may leave sent bytes unacknowledged before the connection counts as dead. Without it
/// a cut network is noticed only after the kernel's retransmissions, a quarter of an hour.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Where a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// On this machine, behind a Unix-domain socket.
    Unix,
    /// On this machine, behind the loopback interface.
    Loopback,
    /// Elsewhere.
    Remote,
}

/// A byte stream to a server. A TLS variant wraps one of the others and has its place here.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(Local),
}

impl Stream {
    /// Connects. Not cancel-safe in the sense that a dropped attempt is given up.
    pub(super) async fn connect(endpoint: &Endpoint) -> io::Result<Self> {
        match endpoint {
            Endpoint::Unix(path) => Self::local(UnixStream::connect(path).await?),
            Endpoint::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                let socket = SockRef::from(&stream);
                let keepalive = TcpKeepalive::new()
                    .with_time(KEEPALIVE_IDLE)
                    .with_interval(KEEPALIVE_INTERVAL);
                socket.set_tcp_keepalive(&keepalive)?;
                #[cfg(target_os = "linux")]
                socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
                Ok(Self::Tcp(stream))
            }
        }
    }

    /// Of a connected Unix-domain socket.
    pub(super) fn local(socket: UnixStream) -> io::Result<Self> {
        Ok(Self::Unix(Local::new(socket)?))
    }

    /// Where the peer is.
    pub(super) fn peer(&self) -> Peer {
        match self {
            Self::Unix(_) => Peer::Unix,
            Self::Tcp(stream) => match (stream.peer_addr(), stream.local_addr()) {
                // Packets to an address of this machine do not leave it.
                (Ok(peer), Ok(local)) if peer.ip() == local.ip() => Peer::Loopback,
                _ => Peer::Remote,
            },
        }
    }

    /// See `Channel::limit_window`.
    pub(super) fn limit_window(&self, bytes: usize) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => SockRef::from(stream).set_recv_buffer_size(bytes),
            Self::Unix(local) => local.limit_window(bytes),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(local) => local.poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(local) => local.poll_write(cx, &[io::IoSlice::new(buf)]),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(local) => local.poll_write(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(local) => Poll::Ready(local.shutdown()),
        }
    }
}
