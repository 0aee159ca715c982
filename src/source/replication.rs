//! The replication connection: startup with `replication=database`, replication commands by the simple
//! query protocol, and CopyBoth (manual, section 53.4).

use std::pin::pin;
use std::time::Duration;

use postgres_protocol::message::{backend, frontend};
use tokio_postgres::Client;

use super::backlog::{self, Backlog};
use super::slot::Identity;
use super::stream::{Stream, check_notice};
use crate::config;
use crate::fault::Fault;
use crate::lsn::{Lsn, ParseLsnError};
use crate::server::{self, CHECK_CLIENT, NOTICED, REMIND, Reminder, Side};
use crate::wire::{Channel, Error};

/// One read takes at most this much off the socket.
const GULP: usize = 256 * 1024;

/// A walsender keeps the slot of a client that has stopped for so long at the most.
const WAL_SENDER_TIMEOUT_MAX_MS: u32 = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    /// With `failover`, it survives a fail-over (17 and later).
    Plain { failover: bool },
    /// For a stream, with a snapshot of the moment that it begins at.
    Exporting { failover: bool },
    /// For such a snapshot alone; gone with the connection.
    Temporary,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedSlot {
    /// The consistent point: what committed before it is in the snapshot, what commits after it will be streamed.
    pub position: Lsn,
    pub snapshot: Option<String>,
}

/// What is asked for beside the changes, and in which form.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// Values in binary.
    pub binary: bool,
    /// What `pg_logical_emit_message` was given, by every application.
    pub messages: bool,
}

impl StreamOptions {
    /// pgoutput's names of those that are on.
    pub(super) fn names(self) -> impl Iterator<Item = &'static str> {
        let named = [("binary", self.binary), ("messages", self.messages)];
        named
            .into_iter()
            .filter_map(|(name, on)| on.then_some(name))
    }
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
            // See `check_notice`.
            ("client_min_messages", "warning"),
        ];
        let parameters: Vec<_> = parameters.into_iter().chain(NOTICED).collect();
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

    /// Has this walsender end soon when it hears nothing, and returns after how long: `wal_sender_timeout`.
    pub async fn limit_wal_sender_timeout(&mut self) -> Result<Duration, Error> {
        // It is 0 where there is none.
        let limited = format!("least(nullif(setting::int, 0), {WAL_SENDER_TIMEOUT_MAX_MS})");
        let command = format!(
            "SELECT {limited}, pg_catalog.set_config(name, {limited}::text, false) FROM pg_catalog.pg_settings \
             WHERE name = 'wal_sender_timeout'"
        );
        let rows = self.query(&command).await?;
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
        // The words of PostgreSQL 14, which later versions take too, but not beside others (manual, section 53.4).
        let (temporary, options) = match kind {
            SlotKind::Plain { failover: false } => ("", "NOEXPORT_SNAPSHOT"),
            SlotKind::Plain { failover: true } => ("", "(SNAPSHOT 'nothing', FAILOVER)"),
            SlotKind::Exporting { failover: false } => ("", "EXPORT_SNAPSHOT"),
            SlotKind::Exporting { failover: true } => ("", "(SNAPSHOT 'export', FAILOVER)"),
            SlotKind::Temporary => ("TEMPORARY ", "EXPORT_SNAPSHOT"),
        };
        // What it waits for is logged beside it: see `create_slot`.
        self.channel.expect_no_answers();
        let command =
            format!("CREATE_REPLICATION_SLOT \"{slot}\" {temporary}LOGICAL pgoutput {options}");
        let rows = self.query(&command).await?;
        let column = |n: usize| rows.first().and_then(|row| row.get(n)?.as_deref());
        Ok(CreatedSlot {
            position: column(1)
                .and_then(|text| text.parse().ok())
                .ok_or(MALFORMED)?,
            snapshot: column(2).map(str::to_owned),
        })
    }

    /// ALTER_REPLICATION_SLOT (17 and later).
    ///
    /// # Errors
    /// The connection failed or the server refused; SQLSTATE 55006 when the slot is in use.
    pub async fn alter_slot(&mut self, slot: &str, failover: bool) -> Result<(), Error> {
        let command = format!("ALTER_REPLICATION_SLOT \"{slot}\" (FAILOVER {failover})");
        self.query(&command).await.map(drop)
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
        options: StreamOptions,
    ) -> Result<Stream, Error> {
        let publication = literal(publication);
        let mut command = format!(
            "START_REPLICATION SLOT \"{slot}\" LOGICAL {from} \
             (proto_version '1', publication_names '{publication}'"
        );
        options
            .names()
            .for_each(|name| command.push_str(&format!(", {name} 'true'")));
        command.push(')');
        frontend::query(&command, self.channel.outgoing())?;
        self.channel.flush().await?;
        loop {
            let message = self.channel.next().await?;
            match message.tag {
                // CopyBothResponse, which postgres-protocol does not know.
                b'W' => return Ok(Stream::new(self.channel)),
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
        options: StreamOptions,
    ) -> Result<Backlog, Error> {
        // It decodes for long without saying anything. A source that cannot look goes on when this connection is gone.
        match self.query(CHECK_CLIENT).await {
            Ok(_) | Err(Error::Server(_)) => {}
            Err(error) => return Err(error),
        }
        let query = backlog::query(slot, end, &literal(publication), options);
        frontend::query(&query, self.channel.outgoing())?;
        self.channel.flush().await?;
        loop {
            match self.channel.next_parsed().await? {
                backend::Message::CopyOutResponse(_) => break,
                backend::Message::NoticeResponse(notice) => check_notice(&notice)?,
                backend::Message::ParameterStatus(_) => {}
                _ => return Err(Error::Protocol("an unexpected answer to COPY")),
            }
        }
        // Errors of the slot and of the decoding come after that, and before the first row.
        while matches!(self.channel.next_tag().await?, b'E' | b'N' | b'S') {
            if let backend::Message::NoticeResponse(notice) = self.channel.next_parsed().await? {
                check_notice(&notice)?;
            }
        }
        Ok(Backlog::new(self.channel, slot))
    }
}

const WAITS_FOR_TRANSACTIONS: &str = "creating the slot waits for these transactions to end";
const WAITS_FOR_RECORD: &str =
    "creating the slot on a standby waits for a record of the primary's running transactions";

/// Makes a slot, and logs the transactions that this waits for.
pub async fn create_slot(
    source: &Client,
    replication: &mut Replication,
    name: &str,
    kind: SlotKind,
) -> Result<CreatedSlot, Fault> {
    let mut creation = pin!(replication.create_slot(name, kind));
    let mut reminder = Reminder::default();
    loop {
        tokio::select! {
            made = &mut creation => {
                return made.map_err(|error| match error.server() {
                    Some(report) if report.code == "42710" => {
                        Fault::retry("another process has just created the replication slot").caused_by(error)
                    }
                    _ => super::failed("could not create the replication slot", error),
                });
            }
            () = tokio::time::sleep(REMIND / 2) => {
                if !reminder.is_due() {
                    continue;
                }
                if super::slot::server(source).await.is_ok_and(|server| server.in_recovery) {
                    tracing::warn!(
                        slot = name,
                        remedy = "on the primary: SELECT pg_log_standby_snapshot()",
                        "{WAITS_FOR_RECORD}"
                    );
                    reminder.shows(WAITS_FOR_RECORD);
                    continue;
                }
                let blockers = super::slot::writers(source).await;
                let blockers =
                    blockers.map_err(Side::Source.failed("could not show its transactions"))?;
                tracing::warn!(
                    slot = name,
                    blockers = blockers.join("; "),
                    "{WAITS_FOR_TRANSACTIONS}"
                );
                reminder.shows(WAITS_FOR_TRANSACTIONS);
            }
        }
    }
}

/// One literal that holds a list of identifiers: quoted twice (manual, section 53.5).
fn literal(publication: &str) -> String {
    format!("\"{}\"", publication.replace('"', "\"\"")).replace('\'', "''")
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
