//! The replication connection: startup with `replication=database`, replication commands by the simple
//! query protocol, and CopyBoth (manual, section 53.4).

use std::pin::pin;
use std::time::Duration;

use postgres_protocol::message::{backend, frontend};
use tokio_postgres::Client;

use super::backlog::{self, Backlog};
use super::frame::{Frame, FrameError, Status};
use super::pace::{self, Aim};
use crate::config;
use crate::fault::Fault;
use crate::lsn::{Lsn, ParseLsnError};
use crate::server::{self, REMIND, Side};
use crate::wire::{self, Channel, Error, Peer};

/// One read takes at most this much off the socket.
const GULP: usize = 256 * 1024;

/// A source that decodes a backlog checks now and then whether its client is still there.
const CHECK_CLIENT: &str = "SET client_connection_check_interval = '2s'";

/// How long the end of a stream waits for the server to close it.
const LINGER_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's unique number, made by initdb.
    pub system_identifier: u64,
    /// The timeline that the server is on.
    pub timeline: u32,
    pub flushed: Lsn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    Plain,
    /// For a stream, with a snapshot of the moment that it begins at.
    Exporting,
    /// For such a snapshot alone; gone with the connection.
    Temporary,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedSlot {
    /// The consistent point: what committed before it is in the snapshot, what commits after it will be streamed.
    pub position: Lsn,
    pub snapshot: Option<String>,
}

/// A connection to a walsender, before the stream starts.
#[derive(Debug)]
pub struct Replication {
    channel: Channel,
    backend_pid: i32,
}

impl Replication {
    /// Connects and logs in. A stream cannot be left: each one needs a new connection.
    pub async fn connect(source: &config::Source) -> Result<Self, Fault> {
        let parameters = [
            ("replication", "database"),
            ("logical_decoding_work_mem", &source.decoding_work_mem),
        ];
        let connected = server::channel(&source.connection, Side::Source, &parameters, GULP);
        let (channel, backend_pid) = connected.await?;
        Ok(Self {
            channel,
            backend_pid,
        })
    }

    /// The process id of the walsender, as `pg_replication_slots.active_pid` shows it.
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// Runs one command of the simple query protocol; returns its rows as text.
    ///
    /// Not cancel-safe: a dropped command leaves its answer on the connection.
    pub async fn query(&mut self, command: &str) -> Result<Vec<Vec<Option<String>>>, Error> {
        self.channel.simple_query(command).await
    }

    /// IDENTIFY_SYSTEM: which cluster and timeline this is, and how far its WAL goes.
    pub async fn identify_system(&mut self) -> Result<Identity, Error> {
        const MALFORMED: Error =
            Error::Protocol("an answer to IDENTIFY_SYSTEM that cannot be read");
        let rows = self.query("IDENTIFY_SYSTEM").await?;
        let column = |n: usize| rows.first().and_then(|row| row.get(n)?.as_deref());
        Ok(Identity {
            system_identifier: column(0)
                .and_then(|text| text.parse().ok())
                .ok_or(MALFORMED)?,
            timeline: column(1)
                .and_then(|text| text.parse().ok())
                .ok_or(MALFORMED)?,
            flushed: column(2)
                .and_then(|text| text.parse().ok())
                .ok_or(MALFORMED)?,
        })
    }

    /// `wal_sender_timeout` of this session; zero when there is none.
    pub async fn wal_sender_timeout(&mut self) -> Result<Duration, Error> {
        let setting =
            "SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'";
        let rows = self.query(setting).await?;
        let ms = rows
            .first()
            .and_then(|row| row.first()?.as_deref()?.parse().ok());
        ms.map(Duration::from_millis)
            .ok_or(Error::Protocol("wal_sender_timeout that cannot be read"))
    }

    /// Where the server's history left `timeline`, if it did: transactions after that position on the old
    /// timeline never happened here (TIMELINE_HISTORY).
    pub async fn left_timeline_at(
        &mut self,
        current: u32,
        timeline: u32,
    ) -> Result<Option<Lsn>, Error> {
        let rows = self.query(&format!("TIMELINE_HISTORY {current}")).await?;
        rows.first()
            .and_then(|row| row.get(1)?.as_deref())
            .and_then(|content| fork_of(content, timeline).ok())
            .ok_or(Error::Protocol(
                "an answer to TIMELINE_HISTORY that cannot be read",
            ))
    }

    /// CREATE_REPLICATION_SLOT. Waits for every running transaction that has written something. A slot that is not
    /// temporary outlives a dropped future (the server goes on). An exported snapshot lives until the next command on
    /// this connection.
    pub async fn create_slot(&mut self, slot: &str, kind: SlotKind) -> Result<CreatedSlot, Error> {
        const MALFORMED: Error =
            Error::Protocol("an answer to CREATE_REPLICATION_SLOT that cannot be read");
        // The words of PostgreSQL 14; later versions take them too (manual, section 53.4).
        let (temporary, snapshot) = match kind {
            SlotKind::Plain => ("", "NOEXPORT_SNAPSHOT"),
            SlotKind::Exporting => ("", "EXPORT_SNAPSHOT"),
            SlotKind::Temporary => ("TEMPORARY ", "EXPORT_SNAPSHOT"),
        };
        let command =
            format!("CREATE_REPLICATION_SLOT \"{slot}\" {temporary}LOGICAL pgoutput {snapshot}");
        let rows = self.query(&command).await?;
        let column = |n: usize| rows.first().and_then(|row| row.get(n)?.as_deref());
        Ok(CreatedSlot {
            position: column(1)
                .and_then(|text| text.parse().ok())
                .ok_or(MALFORMED)?,
            snapshot: column(2).map(str::to_owned),
        })
    }

    /// START_REPLICATION: from here on the connection is a stream.
    ///
    /// # Errors
    /// The connection failed or the server refused; SQLSTATE 55006 when the slot is in use.
    pub async fn start(
        mut self,
        slot: &str,
        from: Lsn,
        publication: &str,
        binary: bool,
    ) -> Result<Stream, Error> {
        let publication = literal(publication);
        let binary = if binary { ", binary 'true'" } else { "" };
        let command = format!(
            "START_REPLICATION SLOT \"{slot}\" LOGICAL {from} \
             (proto_version '1', publication_names '{publication}'{binary})"
        );
        frontend::query(&command, self.channel.outgoing())?;
        self.channel.flush().await?;
        loop {
            let message = self.channel.next().await?;
            match message.tag {
                // CopyBothResponse, which postgres-protocol does not know.
                b'W' => {
                    let narrow = self.channel.peer() == Peer::Loopback;
                    if narrow {
                        // Without it everything works, only slower.
                        let _ = self.channel.limit_window(pace::WINDOW);
                    }
                    return Ok(Stream {
                        channel: self.channel,
                        narrow,
                    });
                }
                _ => match message.parse()? {
                    backend::Message::NoticeResponse(_) | backend::Message::ParameterStatus(_) => {}
                    _ => return Err(Error::Protocol("an unexpected answer to START_REPLICATION")),
                },
            }
        }
    }

    /// Reads what a slot holds up to `end` by SQL; its slot stays where it is. Waits until the source has decoded all of it.
    pub async fn read_backlog(
        mut self,
        slot: &str,
        end: Lsn,
        publication: &str,
        binary: bool,
    ) -> Result<Backlog, Error> {
        // It decodes for long without saying anything. A source that cannot look (14 and later can, on most systems) goes on
        // when this connection is gone.
        match self.query(CHECK_CLIENT).await {
            Ok(_) | Err(Error::Server(_)) => {}
            Err(error) => return Err(error),
        }
        let query = backlog::query(slot, end, &literal(publication), binary);
        frontend::query(&query, self.channel.outgoing())?;
        self.channel.flush().await?;
        loop {
            match self.channel.next_parsed().await? {
                backend::Message::CopyOutResponse(_) => break,
                backend::Message::NoticeResponse(_) | backend::Message::ParameterStatus(_) => {}
                _ => return Err(Error::Protocol("an unexpected answer to COPY")),
            }
        }
        // Errors of the slot and of the decoding come after that, and before the first row.
        while matches!(self.channel.next_tag().await?, b'E' | b'N' | b'S') {
            self.channel.next_parsed().await?;
        }
        Ok(Backlog::new(self.channel, slot))
    }
}

/// Makes a slot, and logs the transactions that this waits for.
pub async fn create_slot(
    source: &Client,
    replication: &mut Replication,
    name: &str,
    kind: SlotKind,
) -> Result<CreatedSlot, Fault> {
    let mut creation = pin!(replication.create_slot(name, kind));
    loop {
        tokio::select! {
            made = &mut creation => {
                return made.map_err(|error| super::failed("could not create the replication slot", error));
            }
            () = tokio::time::sleep(REMIND / 2) => {
                let blockers = super::slot::writers(source).await;
                let blockers =
                    blockers.map_err(Side::Source.failed("could not show its transactions"))?;
                tracing::warn!(
                    slot = name,
                    blockers = blockers.join("; "),
                    "creating the slot waits for these transactions to end"
                );
            }
        }
    }
}

/// One literal that holds a list of identifiers: quoted twice (manual, section 53.5).
fn literal(publication: &str) -> String {
    format!("\"{}\"", publication.replace('"', "\"\"")).replace('\'', "''")
}

#[derive(Debug)]
pub struct Stream {
    channel: Channel,
    /// The receive buffer is [`pace::WINDOW`].
    narrow: bool,
}

impl Stream {
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

pub(super) fn between_frames(message: wire::Message<'_>) -> Result<(), StreamError> {
    match message.parse()? {
        backend::Message::NoticeResponse(_) | backend::Message::ParameterStatus(_) => Ok(()),
        backend::Message::CommandComplete(_) | backend::Message::ReadyForQuery(_) => {
            Err(StreamError::Ended)
        }
        _ => Err(Error::Protocol("an unexpected message in the stream").into()),
    }
}

/// Reads a timeline history file: a line a timeline, `parent <tab> position <tab> reason`. Empty lines and those that
/// begin with # say nothing; a line that cannot be read is an error even when it is another timeline's.
fn fork_of(history: &str, timeline: u32) -> Result<Option<Lsn>, ParseLsnError> {
    for line in history.lines() {
        let mut fields = line.split_whitespace();
        let Some(parent) = fields.next().filter(|field| !field.starts_with('#')) else {
            continue;
        };
        let parent: u32 = parent.parse().map_err(|_| ParseLsnError)?;
        let position = fields.next().ok_or(ParseLsnError)?.parse()?;
        if parent == timeline {
            return Ok(Some(position));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_history_tells_where_a_timeline_was_left() {
        let history =
            "1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\tbefore 2000-01-01\n";
        assert_eq!(fork_of(history, 1), Ok(Some("0/3000148".parse().unwrap())));
        assert_eq!(fork_of(history, 2), Ok(Some("0/5000000".parse().unwrap())));
        assert_eq!(fork_of(history, 3), Ok(None));
        assert_eq!(fork_of("# a comment\n", 1), Ok(None));
        for unreadable in ["1\tx", "1", "x\t0/5000000", "2\tx\treason"] {
            assert_eq!(fork_of(unreadable, 1), Err(ParseLsnError), "{unreadable}");
        }
    }
}
