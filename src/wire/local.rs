//! A Unix-domain socket that is told of bytes to read, and of room to write only while there was none.
//!
//! Linux tells whoever asks that such a socket has room each time the peer reads, also where there always was room
//! (`unix_write_space`); TCP tells only who found none. tokio's own `UnixStream` always asks for both, so that a server
//! that begins to work on what it was sent would wake us first, on the way of every change.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, ReadBuf};

/// See the module.
#[derive(Debug)]
pub(super) struct Local {
    socket: AsyncFd<UnixStream>,
    /// The same socket once more, which waits for room: while it is full.
    full: Option<AsyncFd<UnixStream>>,
}

impl Local {
    /// Takes over a connected socket.
    ///
    /// # Errors
    /// It cannot be watched.
    pub(super) fn new(socket: tokio::net::UnixStream) -> io::Result<Self> {
        Ok(Self {
            socket: watch(socket.into_std()?, Interest::READABLE)?,
            full: None,
        })
    }

    pub(super) fn limit_window(&self, bytes: usize) -> io::Result<()> {
        SockRef::from(&self.socket).set_recv_buffer_size(bytes)
    }

    pub(super) fn shutdown(&self) -> io::Result<()> {
        self.socket.get_ref().shutdown(Shutdown::Write)
    }

    pub(super) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(cx))?;
            let room = buf.initialize_unfilled();
            // Nothing here after all: it is waited for again.
            let Ok(count) = ready.try_io(|socket| socket.get_ref().read(room)) else {
                continue;
            };
            let count = count?;
            // All that was here: there will be another event for more.
            if (1..room.len()).contains(&count) {
                ready.clear_ready();
            }
            buf.advance(count);
            return Poll::Ready(Ok(()));
        }
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let waited = match &self.full {
                Some(full) => Some(ready!(full.poll_write_ready(cx))?),
                None => None,
            };
            match self.socket.get_ref().write_vectored(bufs) {
                Ok(count) => {
                    self.full = None;
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match waited {
                    Some(mut waited) => waited.clear_ready(),
                    None => {
                        let again = self.socket.get_ref().try_clone()?;
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
fn watch(socket: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    AsyncFd::with_interest(socket, interest)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn write_all(local: &mut Local, bytes: &[u8]) {
        let mut sent = 0;
        while sent < bytes.len() {
            let rest = [IoSlice::new(&bytes[sent..])];
            sent += poll_fn(|cx| local.poll_write(cx, &rest)).await.unwrap();
        }
    }

    async fn read(local: &Local, room: &mut [u8]) -> usize {
        let mut buf = ReadBuf::new(room);
        poll_fn(|cx| local.poll_read(cx, &mut buf)).await.unwrap();
        buf.filled().len()
    }

    #[tokio::test]
    async fn more_than_fits_goes_through_as_the_peer_reads() {
        let (ours, mut theirs) = tokio::net::UnixStream::pair().unwrap();
        let mut local = Local::new(ours).unwrap();
        let bytes: Vec<u8> = (0..4_000_000u32).map(|n| (n % 251) as u8).collect();
        let reading = async {
            let mut got = vec![0; bytes.len()];
            theirs.read_exact(&mut got).await.unwrap();
            got
        };
        let (got, ()) = tokio::join!(reading, write_all(&mut local, &bytes));
        assert!(got == bytes);
        // It was full on the way, and waits for room no more.
        assert!(local.full.is_none());
    }

    #[tokio::test]
    async fn bytes_and_the_end_arrive_however_they_are_cut() {
        let (ours, mut theirs) = tokio::net::UnixStream::pair().unwrap();
        let local = Local::new(ours).unwrap();
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
                match read(&local, &mut room).await {
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
        let mut local = Local::new(ours).unwrap();
        write_all(&mut local, b"some").await;
        assert_eq!(asked(&local.socket), [EPOLLIN]);
        let large = vec![0; 4_000_000];
        {
            let mut writing = std::pin::pin!(write_all(&mut local, &large));
            let full = poll_fn(|cx| Poll::Ready(writing.as_mut().poll(cx).is_pending())).await;
            assert!(full);
        }
        assert_eq!(asked(local.full.as_ref().unwrap()), [EPOLLOUT]);
        let mut room = vec![0; 4_000_000];
        let (_, ()) = tokio::join!(theirs.read(&mut room), write_all(&mut local, b"more"));
        assert!(local.full.is_none());
    }
}
