//! Messages in and out over one connection.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::{backend, frontend};

use super::asked::Asked;
use super::read_buffer::{HEADER, ReadBuffer};
use super::stream::Peer;
use super::transport::Transport;
use super::{Error, ServerError};

/// Bytes of an answer that is kept: a value or some, or the history of timelines.
const ANSWER_MAX: usize = 4 * 1024 * 1024;
/// Counted for each value beside its bytes.
const VALUE_COST: usize = 32;
/// Slices handed to one `writev`; the kernel takes at most 1024.
const SLICES_MAX: usize = 64;

/// One message of the server, still in the read buffer.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// The message type (manual, section 53.7).
    pub tag: u8,
    pub body: &'a [u8],
}

/// A connection that speaks messages.
///
/// All its waits are cancel-safe: what has arrived stays in `incoming`, what has not been sent stays in
/// `outgoing`.
#[derive(Debug)]
pub struct Channel {
    stream: Transport,
    incoming: ReadBuffer,
    outgoing: BytesMut,
}

impl Channel {
    /// `gulp`: bytes that one read asks for at the most.
    pub(super) fn new(stream: Transport, gulp: usize) -> Self {
        Self {
            stream,
            incoming: ReadBuffer::new(gulp, usize::MAX),
            outgoing: BytesMut::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn in_session(stream: super::stream::Stream) -> Self {
        let mut channel = Self::new(Transport::Plain(stream), 64);
        channel.incoming.log_in();
        channel
    }

    /// One whose other end is in this process.
    #[cfg(test)]
    pub(crate) fn in_memory(pipe: tokio::io::DuplexStream, gulp: usize) -> Self {
        let mut channel = Self::new(Transport::Memory(pipe, Arc::default()), gulp);
        channel.incoming.log_in();
        channel
    }

    pub fn peer(&self) -> Peer {
        self.stream.peer()
    }

    pub(super) fn end_point(&self) -> Option<&[u8]> {
        self.stream.end_point()
    }

    /// Whether the server owes an answer.
    pub(crate) fn asked(&self) -> &Arc<Asked> {
        self.stream.asked()
    }

    /// Says that more is expected, although nothing was sent.
    pub(crate) fn expect_more(&self) {
        self.asked().expect_more();
    }

    /// Says that what is sent is not answered each time, or that its wait is logged elsewhere.
    pub(crate) fn expect_no_answers(&self) {
        self.asked().stop_watching();
    }

    /// Lets at most about this many bytes wait in the receive buffer, instead of as many as the kernel sees fit.
    pub fn limit_window(&self, bytes: usize) -> io::Result<()> {
        self.stream.limit_window(bytes)
    }

    /// Asks no more to be woken for what arrives, until a read finds nothing: a caller that looks by itself after a while
    /// spares the server the wake-up.
    pub fn unwatch(&mut self) {
        self.stream.unwatch();
    }

    /// Closes both directions; what has arrived stays.
    pub fn shut_down(&self) {
        self.stream.shut_down();
    }

    /// Where to put messages to be sent by [`Channel::flush`].
    pub fn outgoing(&mut self) -> &mut BytesMut {
        &mut self.outgoing
    }

    /// Sends what is queued, and no more is queued than a stalled server could be owed: a caller that
    /// must not wait looks at [`Channel::has_unsent`] first. Cancel-safe: what was not sent stays queued.
    pub async fn flush(&mut self) -> Result<(), Error> {
        while !self.outgoing.is_empty() {
            let sent =
                poll_fn(|cx| self.stream.poll_write(cx, &[IoSlice::new(&self.outgoing)])).await?;
            if sent == 0 {
                return Err(Error::Closed);
            }
            let _ = self.outgoing.split_to(sent);
        }
        Ok(())
    }

    /// Whether queued bytes wait for the socket to take them.
    pub fn has_unsent(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Reads once, and while waiting sends what is queued. Cancel-safe.
    ///
    /// Returns the number of bytes that one read brought.
    pub async fn fill(&mut self) -> Result<usize, Error> {
        poll_fn(|cx| {
            while !self.outgoing.is_empty() {
                match self.stream.poll_write(cx, &[IoSlice::new(&self.outgoing)]) {
                    Poll::Ready(Ok(sent)) => drop(self.outgoing.split_to(sent)),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                    Poll::Pending => break,
                }
            }
            self.incoming.poll_fill(cx, &mut self.stream)
        })
        .await
    }

    /// The next message that is already here, without waiting.
    #[inline]
    pub fn next_buffered(&mut self) -> Result<Option<Message<'_>>, Error> {
        match self.incoming.next()? {
            Some((tag, body)) => Ok(Some(Message {
                tag,
                body: &self.incoming.bytes[body],
            })),
            None => Ok(None),
        }
    }

    /// The length of the message that is not here whole, as far as it is known, in bytes.
    pub fn arriving(&self) -> usize {
        self.incoming.announced().ok().flatten().unwrap_or(0)
    }

    /// The body of the message that was taken last; valid until the next fill.
    #[inline]
    pub fn last_body(&self) -> &[u8] {
        &self.incoming.bytes[self.incoming.last.clone()]
    }

    /// The next message, waiting for it. Cancel-safe.
    ///
    /// # Errors
    /// The socket failed or was closed; a length that no message can have.
    pub async fn next(&mut self) -> Result<Message<'_>, Error> {
        loop {
            if let Some((tag, body)) = self.incoming.next()? {
                return Ok(Message {
                    tag,
                    body: &self.incoming.bytes[body],
                });
            }
            self.fill().await?;
        }
    }

    /// The tag of the next message, waiting for it; the message stays. Cancel-safe.
    pub async fn next_tag(&mut self) -> Result<u8, Error> {
        loop {
            if self.incoming.start < self.incoming.end {
                return Ok(self.incoming.bytes[self.incoming.start]);
            }
            self.fill().await?;
        }
    }

    /// The next message as `postgres-protocol` reads it: for conversations, not for rows. Cancel-safe.
    pub async fn next_parsed(&mut self) -> Result<backend::Message, Error> {
        self.next().await?.parse()
    }

    /// Runs one command of the simple query protocol (manual, section 53.2.2); returns its rows as text.
    ///
    /// **Not cancel-safe**: a dropped command leaves its answer on the connection.
    pub async fn simple_query(&mut self, command: &str) -> Result<Vec<Vec<Option<String>>>, Error> {
        frontend::query(command, &mut self.outgoing)?;
        self.flush().await?;
        let mut rows = Vec::new();
        let mut failure = None;
        let mut kept = 0;
        loop {
            match self.next_parsed().await {
                Ok(backend::Message::DataRow(row)) => {
                    let values = texts(&row)?;
                    kept += row.buffer().len() + VALUE_COST * (1 + values.len());
                    if kept > ANSWER_MAX {
                        return Err(Error::Protocol("an answer longer than any to its question"));
                    }
                    rows.push(values);
                }
                Ok(backend::Message::ReadyForQuery(_)) => break,
                Ok(
                    backend::Message::RowDescription(_)
                    | backend::Message::CommandComplete(_)
                    | backend::Message::EmptyQueryResponse
                    | backend::Message::NoticeResponse(_)
                    | backend::Message::ParameterStatus(_),
                ) => {}
                Ok(_) => return Err(Error::Protocol("an unexpected answer to a command")),
                Err(Error::Server(error)) => failure = Some(error),
                Err(error) => return Err(error),
            }
        }
        failure.map_or(Ok(rows), |error| Err(error.into()))
    }

    /// Takes the next message if it is here whole and one that may come at any time; whether it was one; `None`
    /// when it is not here.
    pub(super) fn skip_beside(&mut self) -> Result<Option<bool>, Error> {
        let length = self.incoming.message_len()?;
        let here = self.incoming.end - self.incoming.start;
        let Some(length) = length.filter(|&length| length <= here) else {
            return Ok(None);
        };
        let beside = matches!(self.incoming.bytes[self.incoming.start], b'N' | b'S' | b'A');
        if beside {
            self.incoming.take(length)?;
        }
        Ok(Some(beside))
    }

    /// Takes what is here of CopyData messages, heads included, up to the first message that is none; `left` is what
    /// is still to come of the last one, to be given back with the next call. Returns where the bytes lie until the
    /// next fill, and how many messages begin there.
    pub(super) fn copy_data_buffered(
        &mut self,
        left: &mut usize,
    ) -> Result<(Range<usize>, u64), Error> {
        let from = self.incoming.start;
        let mut messages = 0;
        loop {
            let here = self.incoming.end - self.incoming.start;
            let whole = (*left).min(here);
            self.incoming.start += whole;
            *left -= whole;
            if *left > 0 || whole == here {
                break;
            }
            match self.incoming.message_len()? {
                Some(length) if self.incoming.bytes[self.incoming.start] == b'd' => {
                    *left = length;
                    messages += 1;
                    self.incoming.note_row()?;
                }
                _ => break,
            }
        }
        Ok((from..self.incoming.start, messages))
    }

    pub(super) fn buffered(&self, range: Range<usize>) -> &[u8] {
        &self.incoming.bytes[range]
    }

    /// Sends `bytes`, and meanwhile looks for an error that the server reports. **Not cancel-safe.**
    pub(super) async fn send_watching(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut sent = 0;
        while sent < bytes.len() {
            poll_fn(|cx| {
                // Also when there is room: a server that has failed goes on reading COPY data for ever.
                if let Poll::Ready(filled) = self.incoming.poll_fill(cx, &mut self.stream) {
                    return Poll::Ready(filled.map(|_| ()));
                }
                sent += ready!(self.stream.poll_write(cx, &[IoSlice::new(&bytes[sent..])]))?;
                Poll::Ready(Ok::<_, Error>(()))
            })
            .await?;
            while let Some(message) = self.next_buffered()? {
                match message.tag {
                    b'N' | b'S' | b'A' => {}
                    _ => {
                        message.parse()?;
                        return Err(Error::Protocol("an unexpected answer to a COPY"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends `parts` in order and calls `on_message` for each message that comes back, until it says that
    /// the last answer is here. Reading goes on while writing: a server that must get rid of an answer
    /// before it reads on never stops both sides. **Not cancel-safe**: a dropped exchange leaves the
    /// connection in the middle of a message, so the owner must drop the channel with it.
    pub async fn exchange(
        &mut self,
        parts: &[&[u8]],
        mut on_message: impl FnMut(Message<'_>) -> Result<Answer, Error>,
    ) -> Result<(), Error> {
        let mut unsent = Unsent {
            parts,
            next: 0,
            offset: 0,
        };
        let mut answered = false;
        loop {
            while let Some(message) = self.next_buffered()? {
                if on_message(message)? == Answer::Last {
                    answered = true;
                }
            }
            match answered {
                true if unsent.is_empty() => return Ok(()),
                true => {}
                // Part of an answer may have come.
                false => self.expect_more(),
            }
            poll_fn(|cx| {
                let sent = match unsent.poll_send(cx, &mut self.stream)? {
                    Poll::Ready(()) => true,
                    Poll::Pending => false,
                };
                if answered && sent {
                    return Poll::Ready(Ok(0));
                }
                self.incoming.poll_fill(cx, &mut self.stream)
            })
            .await?;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    More,
    Last,
}

impl Message<'_> {
    /// The message as `postgres-protocol` reads it.
    pub fn parse(self) -> Result<backend::Message, Error> {
        let mut copy = BytesMut::with_capacity(HEADER + self.body.len());
        copy.extend_from_slice(&[self.tag]);
        // The length fitted an i32 when it came off the wire.
        copy.extend_from_slice(&(self.body.len() as u32 + 4).to_be_bytes());
        copy.extend_from_slice(self.body);
        match backend::Message::parse(&mut copy) {
            Ok(Some(backend::Message::ErrorResponse(body))) => {
                Err(ServerError::from_fields(body.fields()).into())
            }
            Ok(Some(message)) => Ok(message),
            Ok(None) | Err(_) => Err(Error::Protocol("a message that cannot be read")),
        }
    }
}

fn texts(row: &backend::DataRowBody) -> Result<Vec<Option<String>>, Error> {
    let mut ranges = row.ranges();
    let mut columns = Vec::new();
    while let Some(range) = ranges.next()? {
        let text = |range| String::from_utf8_lossy(&row.buffer()[range]).into_owned();
        columns.push(range.map(text));
    }
    Ok(columns)
}

struct Unsent<'a> {
    parts: &'a [&'a [u8]],
    next: usize,
    offset: usize,
}

impl Unsent<'_> {
    fn is_empty(&self) -> bool {
        self.next == self.parts.len()
    }

    /// Writes once. With more to write it asks for another turn, instead of going on: writing until the
    /// socket is full starves the reader, because each write may wake the peer on this core.
    fn poll_send(&mut self, cx: &mut Context<'_>, stream: &mut Transport) -> io::Result<Poll<()>> {
        if self.is_empty() {
            return Ok(Poll::Ready(()));
        }
        let rest = &self.parts[self.next..];
        let mut slices: [IoSlice<'_>; SLICES_MAX] = std::array::from_fn(|_| IoSlice::new(&[]));
        let count = rest.len().min(SLICES_MAX);
        for (slice, part) in slices.iter_mut().zip(rest) {
            *slice = IoSlice::new(part);
        }
        slices[0] = IoSlice::new(&rest[0][self.offset..]);
        match stream.poll_write(cx, &slices[..count]) {
            Poll::Ready(Ok(0)) if slices[..count].iter().any(|slice| !slice.is_empty()) => {
                return Err(io::ErrorKind::WriteZero.into());
            }
            Poll::Ready(Ok(sent)) => self.advance(sent),
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => return Ok(Poll::Pending),
        }
        if self.is_empty() {
            return Ok(Poll::Ready(()));
        }
        cx.waker().wake_by_ref();
        Ok(Poll::Pending)
    }

    fn advance(&mut self, mut sent: usize) {
        while let Some(part) = self.parts.get(self.next) {
            let left = part.len() - self.offset;
            if sent < left {
                self.offset += sent;
                return;
            }
            sent -= left;
            self.next += 1;
            self.offset = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::read_buffer::RETAINED_MAX;
    use super::super::stream::Stream;
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend((body.len() as u32 + 4).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    async fn pair() -> (Channel, tokio::net::UnixStream) {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        (Channel::in_session(Stream::local(ours).unwrap()), theirs)
    }

    #[tokio::test]
    async fn a_dropped_wait_leaves_the_stream_in_step() {
        use tokio::io::AsyncWriteExt;
        let (mut channel, mut server) = pair().await;
        let wire: Vec<u8> = (0..50u8)
            .flat_map(|n| message(b'd', &vec![n; usize::from(n) * 3]))
            .collect();
        let mut seen = 0u8;
        for byte in wire {
            server.write_all(&[byte]).await.unwrap();
            // Poll a few times and drop each time, as a select! with a busier neighbour does.
            for _ in 0..3 {
                tokio::task::yield_now().await;
                let next = channel.next();
                tokio::pin!(next);
                if let Poll::Ready(message) =
                    poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx))).await
                {
                    let message = message.unwrap();
                    assert_eq!(
                        (message.tag, message.body),
                        (b'd', &vec![seen; usize::from(seen) * 3][..])
                    );
                    seen += 1;
                }
            }
        }
        drop(server);
        while let Ok(message) = channel.next().await {
            assert_eq!(message.body, &vec![seen; usize::from(seen) * 3][..]);
            seen += 1;
        }
        assert_eq!(seen, 50);
    }

    #[tokio::test]
    async fn a_message_larger_than_the_buffer_is_read_whole_and_the_memory_given_back() {
        use tokio::io::AsyncWriteExt;
        let (mut channel, mut server) = pair().await;
        let body = vec![7u8; RETAINED_MAX + 1];
        let sent = message(b'd', &body);
        let writer = tokio::spawn(async move {
            server.write_all(&sent).await.unwrap();
            server.write_all(&message(b'Z', b"I")).await.unwrap();
            server
        });
        assert_eq!(channel.next().await.unwrap().body.len(), body.len());
        assert_eq!(channel.next().await.unwrap().tag, b'Z');
        assert!(channel.next_buffered().unwrap().is_none());
        let mut server = writer.await.unwrap();
        server.write_all(&message(b'Z', b"I")).await.unwrap();
        channel.next().await.unwrap();
        assert_eq!(channel.incoming.bytes.len(), 64);
    }

    #[tokio::test]
    async fn an_exchange_reads_while_it_writes() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut channel, mut server) = pair().await;
        // The server answers with more than a socket holds before it reads on.
        let peer = tokio::spawn(async move {
            let flood = message(b'N', &vec![0; 4 << 20]);
            server.write_all(&flood).await.unwrap();
            let mut request = vec![0; 8 << 20];
            server.read_exact(&mut request).await.unwrap();
            server.write_all(&message(b'Z', b"I")).await.unwrap();
            server
        });
        let request = vec![1u8; 4 << 20];
        let mut tags = Vec::new();
        channel
            .exchange(&[&request, &[], &request], |message| {
                tags.push(message.tag);
                Ok(if message.tag == b'Z' {
                    Answer::Last
                } else {
                    Answer::More
                })
            })
            .await
            .unwrap();
        assert_eq!(tags, [b'N', b'Z']);
        drop(peer.await.unwrap());
    }

    #[tokio::test]
    async fn an_exchange_writes_once_a_turn() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut channel, mut server) = pair().await;
        let parts = vec![&b"x"[..]; 3 * SLICES_MAX];
        let mut received = vec![0; parts.len()];
        let mut exchange = std::pin::pin!(channel.exchange(&parts, |_| Ok(Answer::Last)));
        for turn in 1..=3 {
            let pending = poll_fn(|cx| Poll::Ready(exchange.as_mut().poll(cx).is_pending())).await;
            assert!(pending);
            let here = server.read(&mut received).await.unwrap();
            assert_eq!(here, SLICES_MAX, "turn {turn}");
        }
        server.write_all(&message(b'Z', b"I")).await.unwrap();
        exchange.await.unwrap();
    }

    #[tokio::test]
    async fn an_exchange_asks_for_its_next_turn() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut channel, mut server) = pair().await;
        let parts = vec![&b"x"[..]; 3 * SLICES_MAX];
        // Nothing else would wake it.
        let peer = tokio::spawn(async move {
            server.read_exact(&mut [0; 3 * SLICES_MAX]).await.unwrap();
            server.write_all(&message(b'Z', b"I")).await.unwrap();
            server
        });
        let exchange = channel.exchange(&parts, |_| Ok(Answer::Last));
        let done = tokio::time::timeout(std::time::Duration::from_secs(20), exchange).await;
        done.unwrap().unwrap();
        peer.await.unwrap();
    }

    #[tokio::test]
    async fn an_impossible_length_is_a_violation() {
        use tokio::io::AsyncWriteExt;
        for length in [0u32, 3, 0x8000_0000, u32::MAX] {
            let (mut channel, mut server) = pair().await;
            let mut bytes = vec![b'd'];
            bytes.extend(length.to_be_bytes());
            server.write_all(&bytes).await.unwrap();
            assert!(
                matches!(channel.next().await, Err(Error::Protocol(_))),
                "{length}"
            );
        }
    }

    #[tokio::test]
    async fn a_closed_connection_is_told_as_such() {
        let (mut channel, server) = pair().await;
        drop(server);
        assert!(matches!(channel.next().await, Err(Error::Closed)));
    }
}
