//! The connection that writes history: the only COMMIT of history rows is here.
//!
//! Everything of a batch is sent at once and answered at once. A single row goes as
//!
//! ```text
//!   INSERT | check | advance | Sync
//! ```
//!
//! and more go as
//!
//! ```text
//!   COPY, rows, CopyDone ... | check ... | advance | Sync
//! ```
//!
//! which the server runs as one transaction up to the Sync (`outgoing.rs`). A transaction that is larger than a batch has
//! BEGIN before its first piece and COMMIT after its last one. Either way rows and checkpoint rise and fall together
//! (invariant I1). The check fails when the history's columns have changed meanwhile (`statements.rs`).
//!
//! `synchronous_commit` is off: the answer does not wait for the disk. What may be confirmed to the source is
//! decided elsewhere, by what is durable.

use bytes::BufMut;

use super::batch::{Batch, Rows, Seal};
use super::gate::{self, Gate, Gates, Route};
use super::hold;
use super::outgoing::Outgoing;
use super::statements::Statements;
use crate::fault::{Disposition, Exit, Fault};
use crate::lsn::Lsn;
use crate::schema::TableName;
use crate::server::{self, Connection, Side};
use crate::wire::{Answer, Channel, Error, Message, ServerError};

const GULP: usize = 16 * 1024;

/// A larger row goes by COPY, whose progress shows that this process runs however slow the network is (`lock.rs`).
const INSERT_BYTES_MAX: usize = 64 * 1024;

const PINNED: [(&str, &str); 1] = [("synchronous_commit", "off")];

#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    #[error(transparent)]
    Wire(#[from] Error),
    /// The COMMIT did not commit although nothing failed before it.
    #[error("the target answered COMMIT with {0}")]
    NotCommitted(String),
}

impl WriterError {
    /// Whether a row was refused, and would be again.
    pub(crate) fn is_of_a_row(&self) -> bool {
        let Self::Wire(error) = self else {
            return false;
        };
        let lasts = matches!(
            error.disposition(),
            Disposition::RetryFew | Disposition::Halt(Exit::HistoryWouldBeWrong)
        );
        lasts
            && error
                .server()
                .is_some_and(|report| !report.code.starts_with("WTR"))
    }
}

impl From<WriterError> for Fault {
    fn from(error: WriterError) -> Self {
        match error {
            WriterError::Wire(error) => {
                let code = error.server().map(|report| report.code.as_str());
                let anchor = match code {
                    Some("WTR01") => "another-process-moved-the-checkpoint",
                    _ => "the-target-refused-a-row",
                };
                let fault = Self::new(error.disposition(), "the target did not take the history")
                    .of(Side::Target)
                    .see(anchor);
                if error.server().is_some_and(ServerError::lacks_partition) {
                    return fault
                        .remedy("add the partition, or a default one: CREATE TABLE ... PARTITION OF ... DEFAULT")
                        .caused_by(error);
                }
                match code {
                Some("53100") => fault.remedy("free disk space on the target; nothing is lost meanwhile"),
                Some("42501") => fault.remedy("let the role that set up grant SELECT and INSERT on the history table, USAGE on its sequences and what else is needed: waltrail setup --grant-to ROLE"),
                Some("WTR02") => fault.remedy("give the columns of the history table their former types, or wait for the next try"),
                Some("WTR01") => fault.remedy("find out what wrote waltrail.checkpoint; only waltrail may"),
                Some(code) if code.starts_with("22") || code.starts_with("23") => fault.remedy(
                    "change the history table so that it takes every value of the source, and start again",
                ),
                Some(code) if code.starts_with("54") => fault.remedy(
                    "make the row of the history smaller: table.exclude_columns leaves columns out; then start again",
                ),
                Some(code) if ["P0", "42", "44", "09", "27"].iter().any(|class| code.starts_with(class)) => fault.remedy(
                    "see the target's own log for its words, correct the history table or the trigger on it, and start \
                     again",
                ),
                _ => fault,
            }
            .caused_by(error)
            }
            error => Self::halt(Exit::HistoryWouldBeWrong, error.to_string())
                .remedy("connect to the target itself, without a pooler")
                .see("the-target-did-not-commit"),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Writer {
    channel: Channel,
    /// The slot, as it stands in statements: `a-z0-9_` only.
    slot: String,
    pub(super) statements: Statements,
    /// A transaction is open: some pieces of a large one are written.
    open: bool,
    /// Tables whose changes are not simply written.
    gates: Gates,
}

impl Writer {
    /// Connects and logs in.
    ///
    /// # Errors
    /// The target cannot be reached or refuses, or is behind a pooler, which would break the lock of the one writer.
    pub(crate) async fn connect(connection: &Connection, slot: &str) -> Result<Self, Fault> {
        let (mut channel, pid) = server::channel(connection, Side::Target, &PINNED, GULP).await?;
        let rows = channel.simple_query("SELECT pg_backend_pid()").await;
        let rows = rows.map_err(WriterError::Wire)?;
        let answered = rows
            .first()
            .and_then(|row| row.first()?.as_deref()?.parse().ok());
        if answered != Some(pid) {
            return Err(Fault::halt(
                Exit::Config,
                format!("a connection pooler stands before the target {connection}"),
            )
            .remedy("connect to the server itself with target.dsn: a pooler would break the lock of the one writer"));
        }
        Ok(Self {
            channel,
            slot: slot.to_owned(),
            statements: Statements::new(slot),
            open: false,
            gates: Gates::new(),
        })
    }

    pub(crate) fn slot(&self) -> &str {
        &self.slot
    }

    /// Whether a target transaction is open, so that nothing else can be done.
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// Says where the rows of a table go from now on.
    pub(crate) fn set_gate(&mut self, history: TableName, gate: Gate) {
        self.gates.insert(history, gate);
    }

    /// The connection, for what is not a batch.
    pub(crate) fn channel(&mut self) -> &mut Channel {
        &mut self.channel
    }

    fn route(&self, rows: &Rows) -> Route {
        if !rows.plan().gated {
            return Route::Write(0);
        }
        let gate = self.gates.get(&rows.plan().history).copied();
        gate::route(gate, rows.marks(), rows.bytes().len())
    }

    /// Writes a batch. With a seal the target transaction is committed, and the checkpoint moves from `seen`
    /// to the seal's end; without one it stays open for the next piece.
    ///
    /// **Not cancel-safe**, and after an error the session must be dropped, which rolls back what is open.
    pub(crate) async fn write(&mut self, batch: &Batch, seen: Lsn) -> Result<(), WriterError> {
        let mut tables = batch.tables();
        match (tables.next(), batch.seal()) {
            (Some(rows), Some(seal))
                if batch.count() == 1
                    && batch.statements().is_empty()
                    && batch.bytes() <= INSERT_BYTES_MAX
                    && !self.open
                    && rows.plan().binary
                    && self.route(rows) == Route::Write(0) =>
            {
                self.insert(rows, seen, seal).await
            }
            (_, seal) => self.copy(batch, seen, seal).await,
        }
    }

    async fn insert(&mut self, row: &Rows, seen: Lsn, seal: Seal) -> Result<(), WriterError> {
        let mut out = Outgoing::default();
        self.statements.open(row.plan(), &mut out)?;
        let name = self.statements.row(row.plan(), &mut out.own)?;
        // A row of a binary COPY is the parameter block of a Bind.
        out.execute_with(name, |out| out.put_slice(row.bytes()))?;
        self.statements.check(row.plan(), &mut out)?;
        self.advance(seen, seal, &mut out)?;
        let answers = self.send(&mut out).await?;
        let Err(error) = answers.done(Some(row)) else {
            return Ok(());
        };
        Err(self.cause(error, &[row], false).await.into())
    }

    /// Why a write failed: where a history was altered, what the server says of a value or a statement is a consequence.
    /// `is_open`: the transaction that failed is one of several pieces, which the failure has not ended.
    async fn cause(&mut self, error: Error, written: &[&Rows], is_open: bool) -> Error {
        let by_server = error.server();
        if by_server.is_none_or(|report| report.code.starts_with("WTR")) {
            return error;
        }
        if is_open && self.channel.simple_query("ROLLBACK").await.is_err() {
            return error;
        }
        for rows in written {
            let found = self.channel.simple_query(&rows.plan().guard).await;
            if let Err(found) = found
                && found.server().is_some_and(|report| report.code == "WTR02")
            {
                return found;
            }
        }
        error
    }

    async fn copy(
        &mut self,
        batch: &Batch,
        seen: Lsn,
        seal: Option<Seal>,
    ) -> Result<(), WriterError> {
        let mut out = Outgoing::default();
        if !self.open && seal.is_none() {
            let begin = self.statements.plain("BEGIN", &mut out.own)?;
            out.execute(begin)?;
        }
        // The number of each COPY among the statements.
        let mut copies = Vec::new();
        let mut copied = Vec::new();
        let mut pieces = Vec::new();
        for rows in batch.tables() {
            let plan = rows.plan();
            match self.route(rows) {
                Route::Write(from) if from < rows.bytes().len() => {
                    self.statements.open(plan, &mut out)?;
                    let copy = self.statements.plain(&plan.copy, &mut out.own)?;
                    copies.push(out.statements());
                    out.copy(copy, plan.binary, [&rows.bytes()[from..]])?;
                    copied.push(rows);
                }
                Route::Write(_) => {}
                Route::Hold(held) => {
                    pieces.extend(held.into_iter().map(|piece| (rows, piece)));
                }
            }
        }
        if !pieces.is_empty() {
            let name = self.statements.plain(hold::HOLD, &mut out.own)?;
            hold::copy(name, &self.slot, &pieces, &mut out)?;
        }
        for rows in &copied {
            self.statements.check(rows.plan(), &mut out)?;
        }
        for statement in batch.statements() {
            out.execute_once(statement)?;
        }
        if let Some(seal) = seal {
            self.advance(seen, seal, &mut out)?;
            if self.open {
                let commit = self.statements.plain("COMMIT", &mut out.own)?;
                out.execute(commit)?;
            }
        }
        let answers = self.send(&mut out).await?;
        let tag = answers.last_tag.clone();
        let failed = copies.iter().position(|&copy| copy == answers.executed);
        if let Err(error) = answers.done(failed.map(|n| copied[n])) {
            let is_open = self.open || seal.is_none();
            return Err(self.cause(error, &copied, is_open).await.into());
        }
        let was_open = std::mem::replace(&mut self.open, seal.is_none());
        match seal {
            Some(_) if was_open && tag != "COMMIT" => Err(WriterError::NotCommitted(tag)),
            _ => Ok(()),
        }
    }

    /// Moves the checkpoint from `seen`.
    fn advance(&mut self, seen: Lsn, seal: Seal, out: &mut Outgoing<'_>) -> Result<(), Error> {
        let name = self.statements.advance(&mut out.own)?;
        let words = [
            seen.as_u64(),
            seal.end_lsn.as_u64(),
            seal.commit_time.0.cast_unsigned(),
        ];
        out.execute_with(name, |out| {
            // As many as ADVANCE_TYPES.
            out.put_u16(words.len() as u16);
            for word in words {
                out.put_u32(8);
                out.put_u64(word);
            }
        })
    }

    /// Sends statements and takes all their answers.
    pub(super) async fn send(&mut self, out: &mut Outgoing<'_>) -> Result<Answers, Error> {
        let mut answers = Answers::default();
        let exchanged = self
            .channel
            .exchange(&out.parts(), |message| answers.take(message))
            .await;
        match (exchanged, &answers.failure) {
            (Ok(()), _) => Ok(answers),
            // The last words of a server that stops, or of a session that was terminated.
            (Err(error), Some(why)) if why.disposition() == Disposition::Reconnect => {
                Err(answers.failure.take().unwrap_or(error))
            }
            (Err(error), _) => Err(error),
        }
    }
}

#[derive(Default)]
pub(super) struct Answers {
    failure: Option<Error>,
    /// Statements that were completed before the first failure.
    executed: usize,
    pub(super) last_tag: String,
}

impl Answers {
    fn take(&mut self, message: Message<'_>) -> Result<Answer, Error> {
        match message.tag {
            b'Z' => return Ok(Answer::Last),
            b'C' => {
                self.executed += usize::from(self.failure.is_none());
                let tag = message.body.strip_suffix(&[0]).unwrap_or(message.body);
                self.last_tag = String::from_utf8_lossy(tag).into_owned();
            }
            // The first failure is the cause; the following ones say that the transaction is aborted.
            b'E' => {
                if let Err(error) = message.parse()
                    && self.failure.is_none()
                {
                    self.failure = Some(error);
                }
            }
            // ParseComplete, BindComplete, NoData, rows and columns of a SELECT, CopyInResponse, notices, parameters.
            b'1' | b'2' | b'n' | b'T' | b'D' | b'G' | b'N' | b'S' | b'I' | b'A' => {}
            _ => return Err(Error::Protocol("an unexpected answer to a write")),
        }
        Ok(Answer::More)
    }

    /// `failed`: the rows that were being written when it failed. Of a value that does not fit the server
    /// names no table.
    pub(super) fn done(self, failed: Option<&Rows>) -> Result<(), Error> {
        let Some(mut failure) = self.failure else {
            return Ok(());
        };
        // Moving the checkpoint is part of the last row's statement and no fault of its table.
        if let (Error::Server(report), Some(rows)) = (&mut failure, failed)
            && report.code != "WTR01"
        {
            report
                .subject
                .get_or_insert_with(|| format!("table {}", rows.plan().history));
        }
        Err(failure)
    }
}
