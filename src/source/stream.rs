//! A running stream: CopyBoth (manual, section 53.4).

use std::time::Duration;

use postgres_protocol::message::{backend, frontend};

use super::frame::{Frame, FrameError, Status};
use super::pace::{self, Aim};
use crate::wire::{self, Channel, Error, Peer, ServerError};

/// How long the end of a stream waits for the server to close it.
const LINGER_MAX: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Stream {
    channel: Channel,
    /// The receive buffer is [`pace::WINDOW`].
    narrow: bool,
}

impl Stream {
    /// Of a connection whose server has answered START_REPLICATION.
    pub(crate) fn new(channel: Channel) -> Self {
        channel.expect_no_answers();
        let narrow = channel.peer() == Peer::Loopback;
        if narrow {
            // Without it everything works, only slower.
            let _ = channel.limit_window(pace::WINDOW);
        }
        Self { channel, narrow }
    }

    /// What pauses between reads of this stream aim at.
    pub fn aim(&self) -> Aim {
        match self.channel.peer() {
            Peer::Unix => Aim::UNIX,
            Peer::Loopback => Aim::LOOPBACK,
            Peer::Remote => Aim::TCP,
        }
    }

    /// The next frame that is already here, without waiting.
    ///
    /// # Errors
    /// The server reported an error or ended the stream; a frame that the protocol does not know.
    #[inline]
    pub fn next_buffered(&mut self) -> Result<Option<Frame<'_>>, StreamError> {
        // In a loop because notices and parameter changes can stand between frames. The borrow checker
        // cannot see that the returned frame ends the loop, hence the position first, the frame second.
        loop {
            let Some(message) = self.channel.next_buffered()? else {
                return Ok(None);
            };
            match message.tag {
                b'd' => break,
                b'c' => return Err(StreamError::Ended),
                _ => between_frames(message)?,
            }
        }
        Ok(Some(Frame::parse(self.channel.last_body())?))
    }

    /// The next frame, waiting for it. **Cancel-safe**: a partial frame stays in the connection, and a
    /// later call goes on where this one was dropped.
    pub async fn next_frame(&mut self) -> Result<Frame<'_>, StreamError> {
        while !self.has_frame()? {
            self.fill().await?;
        }
        Ok(Frame::parse(self.channel.last_body())?)
    }

    fn has_frame(&mut self) -> Result<bool, StreamError> {
        Ok(self.next_buffered()?.is_some())
    }

    /// Waits until more has arrived; sends what is queued meanwhile. Cancel-safe. Returns the bytes that
    /// one read brought.
    pub async fn fill(&mut self) -> Result<usize, Error> {
        if self.narrow && self.channel.arriving() > pace::NARROW_MAX {
            self.narrow = false;
            let _ = self.channel.limit_window(pace::WIDE);
        }
        self.channel.fill().await
    }

    /// Waits until something moves: with `read` until more has arrived, else until what is queued is sent.
    /// Cancel-safe. Returns the bytes that came in.
    pub async fn advance(&mut self, read: bool) -> Result<usize, Error> {
        match (read, self.has_unsent()) {
            (true, _) => self.fill().await,
            (false, true) => self.send().await.map(|()| 0),
            (false, false) => std::future::pending().await,
        }
    }

    /// To be called before a pause: the walsender need not care who waits for what it sends. See [`Channel::unwatch`].
    pub fn unwatch(&mut self) {
        self.channel.unwatch();
    }

    /// Queues a status update; [`Stream::fill`] and [`Stream::send`] bring it to the socket.
    pub fn queue_status(&mut self, status: Status, now: i64) {
        status.write(now, self.channel.outgoing());
    }

    /// Sends what is queued. Cancel-safe.
    pub async fn send(&mut self) -> Result<(), Error> {
        self.channel.flush().await
    }

    /// Whether a queued status waits for the socket to take it.
    pub fn has_unsent(&self) -> bool {
        self.channel.has_unsent()
    }

    /// Ends the stream: CopyDone, then Terminate. What the server still sends is thrown away, for a moment only
    /// (it finishes the transaction that it is sending, which can take long): a socket that is closed with
    /// unread bytes is reset, and the reset can overtake the last status update.
    pub async fn finish(mut self) -> Result<(), Error> {
        frontend::copy_done(self.channel.outgoing());
        frontend::terminate(self.channel.outgoing());
        self.channel.flush().await?;
        let closed = async { while self.channel.next().await.is_ok() {} };
        // When the time is over, the server may or may not have read it.
        let _ = tokio::time::timeout(LINGER_MAX, closed).await;
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error(transparent)]
    Wire(#[from] Error),
    /// The server ended the stream: it is shutting down.
    #[error("the source ended the stream")]
    Ended,
    /// A frame that the protocol does not know.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// A publication that does not exist where the source decodes is an error up to 17. From 18 on it is a warning, and the
/// changes are left out: here it is the same error.
pub(super) fn check_notice(notice: &backend::NoticeResponseBody) -> Result<(), Error> {
    let report = ServerError::from_notice(notice);
    match report.code.as_str() {
        "55000" => Err(Error::Server(ServerError {
            code: "42704".to_owned(),
            ..report
        })),
        _ => Ok(()),
    }
}

pub(super) fn between_frames(message: wire::Message<'_>) -> Result<(), StreamError> {
    match message.parse()? {
        backend::Message::NoticeResponse(notice) => Ok(check_notice(&notice)?),
        backend::Message::ParameterStatus(_) => Ok(()),
        backend::Message::CommandComplete(_) | backend::Message::ReadyForQuery(_) => {
            Err(StreamError::Ended)
        }
        _ => Err(Error::Protocol("an unexpected message in the stream").into()),
    }
}
