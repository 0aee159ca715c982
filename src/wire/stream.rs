//! The socket beneath a connection, TCP or Unix-domain, which is watched for as little as can be.
//!
//! Linux wakes a process that watches a Unix-domain socket for room each time the peer reads, also where there always was
//! room (`unix_write_space`). tokio's own types always watch for both, so a server that begins to work on what it was sent
//! would wake this process first, on the way of every change. So room is watched for only while there is none.
//!
//! Bytes to read are not watched for either while the owner looks by itself from time to time ([`Stream::unwatch`]): with a
//! watcher, be it an epoll in which no process sleeps, each `send` of the peer goes through the list of those to be woken.

use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{Socket, TcpKeepalive};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::coop;

use super::asked::Asked;

/// How a dead peer is noticed on TCP; libpq's keywords of these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keepalive {
    pub enabled: bool,
    pub idle: Duration,
    pub interval: Duration,
    pub count: Option<u32>,
    /// How long a peer may leave sent bytes unacknowledged before the connection counts as dead. Without it
    /// a cut network is noticed only after the kernel's retransmissions, a quarter of an hour.
    pub user_timeout: Duration,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self {
            enabled: true,
            idle: Duration::from_secs(15),
            interval: Duration::from_secs(5),
            count: None,
            user_timeout: Duration::from_secs(30),
        }
    }
}

impl Keepalive {
    fn apply(self, socket: &Socket) -> io::Result<()> {
        if self.enabled {
            let mut keepalive = TcpKeepalive::new()
                .with_time(self.idle)
                .with_interval(self.interval);
            if let Some(count) = self.count {
                keepalive = keepalive.with_retries(count);
            }
            socket.set_tcp_keepalive(&keepalive)?;
        }
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(self.user_timeout))?;
        Ok(())
    }
}

/// What kind of socket leads to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Unix,
    Loopback,
    Remote,
}

/// A byte stream to a server. TLS has its place between this and the channel.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Waits for bytes to read; before the socket, which is not to be closed first.
    watched: Option<AsyncFd<RawFd>>,
    /// The same socket once more, which waits for room: while it is full.
    full: Option<AsyncFd<Socket>>,
    socket: Socket,
    peer: Peer,
    asked: Arc<Asked>,
}

impl Stream {
    pub(super) async fn connect_unix(path: &Path) -> io::Result<Self> {
        Self::local(UnixStream::connect(path).await?)
    }

    pub(super) async fn connect_tcp(address: SocketAddr, keepalive: Keepalive) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let peer = match (stream.peer_addr(), stream.local_addr()) {
            // Packets to an address of this machine do not leave it.
            (Ok(peer), Ok(local)) if peer.ip() == local.ip() => Peer::Loopback,
            _ => Peer::Remote,
        };
        let socket = Socket::from(stream.into_std()?);
        keepalive.apply(&socket)?;
        Ok(Self::new(socket, peer))
    }

    pub(super) fn local(socket: UnixStream) -> io::Result<Self> {
        Ok(Self::new(Socket::from(socket.into_std()?), Peer::Unix))
    }

    fn new(socket: Socket, peer: Peer) -> Self {
        Self {
            watched: None,
            full: None,
            socket,
            peer,
            asked: Arc::default(),
        }
    }

    pub(super) fn peer(&self) -> Peer {
        self.peer
    }

    pub(super) fn asked(&self) -> &Arc<Asked> {
        &self.asked
    }

    pub(super) fn limit_window(&self, bytes: usize) -> io::Result<()> {
        self.socket.set_recv_buffer_size(bytes)
    }

    pub(super) fn shut_down(&self) {
        // It fails when the peer was faster.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    pub(super) fn unwatch(&mut self) {
        self.watched = None;
    }

    /// Reads once; 0 is the end.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        room: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let waited = match &self.watched {
                Some(watched) => Some(ready!(watched.poll_read_ready(cx))?),
                None => {
                    // Whoever always finds something must not keep the thread for ever.
                    ready!(coop::poll_proceed(cx)).made_progress();
                    None
                }
            };
            match (&self.socket).read(room) {
                Ok(count) => {
                    // All that was here: there will be another event for more.
                    if let Some(mut waited) = waited
                        && (1..room.len()).contains(&count)
                    {
                        waited.clear_ready();
                    }
                    self.asked.on_received();
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match waited {
                    Some(mut waited) => waited.clear_ready(),
                    None => {
                        let socket = self.socket.as_raw_fd();
                        self.watched = Some(watch(socket, Interest::READABLE)?);
                    }
                },
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Writes once, as much as there is room for.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let waited = match &self.full {
                Some(full) => Some(ready!(full.poll_write_ready(cx))?),
                None => {
                    ready!(coop::poll_proceed(cx)).made_progress();
                    None
                }
            };
            match (&self.socket).write_vectored(bufs) {
                Ok(count) => {
                    self.full = None;
                    self.asked.on_sent();
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match waited {
                    Some(mut waited) => waited.clear_ready(),
                    None => {
                        let again = self.socket.try_clone()?;
                        self.full = Some(watch(again, Interest::WRITABLE)?);
                    }
                },
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "what it is deprecated for is a type that answers with descriptors of others; the other way is unsafe"
)]
fn watch<T: AsRawFd>(socket: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(socket, interest)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn write_all(stream: &mut Stream, bytes: &[u8]) {
        let mut sent = 0;
        while sent < bytes.len() {
            let rest = [IoSlice::new(&bytes[sent..])];
            sent += poll_fn(|cx| stream.poll_write(cx, &rest)).await.unwrap();
        }
    }

    async fn read(stream: &mut Stream, room: &mut [u8]) -> usize {
        poll_fn(|cx| stream.poll_read(cx, room)).await.unwrap()
    }

    #[tokio::test]
    async fn more_than_fits_goes_through_as_the_peer_reads() {
        let (ours, mut theirs) = tokio::net::UnixStream::pair().unwrap();
        let mut stream = Stream::local(ours).unwrap();
        let bytes: Vec<u8> = (0..4_000_000u32).map(|n| (n % 251) as u8).collect();
        let reading = async {
            let mut got = vec![0; bytes.len()];
            theirs.read_exact(&mut got).await.unwrap();
            got
        };
        let (got, ()) = tokio::join!(reading, write_all(&mut stream, &bytes));
        assert!(got == bytes);
        // It was full on the way, and waits for room no more.
        assert!(stream.full.is_none());
    }

    #[tokio::test]
    async fn bytes_and_the_end_arrive_however_they_are_cut() {
        let (ours, mut theirs) = tokio::net::UnixStream::pair().unwrap();
        let mut stream = Stream::local(ours).unwrap();
        let bytes: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
        let writing = async {
            for piece in bytes.chunks(777) {
                theirs.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(theirs);
        };
        let reading = async {
            let mut got = Vec::new();
            let mut room = [0; 1000];
            loop {
                match read(&mut stream, &mut room).await {
                    0 => return got,
                    count => got.extend_from_slice(&room[..count]),
                }
            }
        };
        let ((), got) = tokio::join!(writing, reading);
        assert!(got == bytes);
    }

    #[cfg(target_os = "linux")]
    const EPOLLIN: u32 = 1;
    #[cfg(target_os = "linux")]
    const EPOLLOUT: u32 = 4;

    /// What the epolls of this process ask of a file, as the kernel tells it: once for each handle of an epoll.
    #[cfg(target_os = "linux")]
    fn asked(file: &impl std::os::fd::AsRawFd) -> Vec<u32> {
        let named = format!("tfd: {:8} ", file.as_raw_fd());
        let mut asked = Vec::new();
        for entry in std::fs::read_dir("/proc/self/fdinfo").unwrap() {
            // Other tests close theirs meanwhile.
            let info = std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
            for line in info.lines().filter(|line| line.starts_with(&named)) {
                let events = line[named.len()..].split_whitespace().nth(1).unwrap();
                asked.push(u32::from_str_radix(events, 16).unwrap() & (EPOLLIN | EPOLLOUT));
            }
        }
        asked.dedup();
        asked
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn room_is_asked_for_only_while_there_is_none() {
        let (ours, mut theirs) = tokio::net::UnixStream::pair().unwrap();
        let mut stream = Stream::local(ours).unwrap();
        write_all(&mut stream, b"some").await;
        assert_eq!(asked(&stream.socket), [0u32; 0]);
        let large = vec![0; 4_000_000];
        {
            let mut writing = std::pin::pin!(write_all(&mut stream, &large));
            let full = poll_fn(|cx| Poll::Ready(writing.as_mut().poll(cx).is_pending())).await;
            assert!(full);
        }
        assert_eq!(asked(stream.full.as_ref().unwrap()), [EPOLLOUT]);
        let mut room = vec![0; 4_000_000];
        let (_, ()) = tokio::join!(theirs.read(&mut room), write_all(&mut stream, b"more"));
        assert!(stream.full.is_none());
    }

    /// Reads what is here, if anything is.
    async fn try_read(stream: &mut Stream) -> Option<usize> {
        let mut room = [0; 100];
        let read = poll_fn(|cx| Poll::Ready(stream.poll_read(cx, &mut room))).await;
        match read {
            Poll::Ready(count) => Some(count.unwrap()),
            Poll::Pending => None,
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn bytes_are_asked_for_from_a_read_that_found_none_until_the_owner_looks_by_himself() {
        let (ours, mut theirs) = tokio::net::UnixStream::pair().unwrap();
        let mut stream = Stream::local(ours).unwrap();
        for _ in 0..3 {
            assert_eq!(try_read(&mut stream).await, None);
            assert_eq!(asked(&stream.socket), [EPOLLIN]);
            // It is woken.
            let mut room = [0; 100];
            let (got, written) =
                tokio::join!(read(&mut stream, &mut room), theirs.write_all(b"some"));
            written.unwrap();
            assert_eq!(got, 4);
            assert_eq!(asked(&stream.socket), [EPOLLIN]);
            stream.unwatch();
            for _ in 0..3 {
                theirs.write_all(b"more").await.unwrap();
                assert_eq!(asked(&stream.socket), [0u32; 0]);
                assert_eq!(try_read(&mut stream).await, Some(4));
            }
            assert_eq!(asked(&stream.socket), [0u32; 0]);
        }
    }

    #[tokio::test]
    async fn reads_and_writes_that_never_wait_let_others_have_their_turn() {
        let (ours, mut theirs) = tokio::net::UnixStream::pair().unwrap();
        let mut stream = Stream::local(ours).unwrap();
        theirs.write_all(&[0; 10_000]).await.unwrap();
        let turn = tokio::spawn(async {});
        for _ in 0..10_000 {
            assert_eq!(read(&mut stream, &mut [0]).await, 1);
        }
        assert!(turn.is_finished());
        let turn = tokio::spawn(async {});
        for _ in 0..200 {
            write_all(&mut stream, b"1").await;
        }
        assert!(turn.is_finished());
    }
}
