//! Messages in, rows in a batch out: joins decoder, assembler and row writer, and has no rules of its own.
//!
//! ```text
//!   payload -> pgoutput::Message -> Assembler (order, numbers, known or new)
//!                    |                   |
//!                Relation -> Plan     Change -> row -> Batch
//! ```
//!
//! Pure: no socket, no clock, no log. What the caller has to know comes back as an [`Outcome`].

mod described;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::history::batch::{Batch, Seal};
use crate::history::context;
use crate::history::disorder::Disorder;
use crate::history::left_out;
use crate::history::row::{self, Change, RowError, Scratch};
use crate::lsn::Lsn;
use crate::pgoutput::{self, DecodeError, Message, Timestamp};
use crate::schema::layout::{Attribute, Layout};
use crate::schema::partitions::{Lacking, Partitions};
use crate::schema::plan::{Plan, PlanError, Shape};
use crate::schema::{HistoryTable, Rules, SourceTable, TableName};
use crate::transaction::{Assembler, OrderError};

/// Tables that a stream may describe: some hundred bytes each are kept.
const RELATIONS_MAX: usize = 500_000;

/// A captured table, as both catalogs had it when the session began.
#[derive(Clone, Debug)]
pub struct Captured {
    pub source: SourceTable,
    pub history: HistoryTable,
    pub rules: Rules,
    /// Shapes beside the present one that the history was prepared for: what it lacks of them stays missing.
    pub settled: Vec<Shape>,
    pub gated: bool,
    /// The stream can lack columns that the source has, because the publication was altered: their values are not known.
    pub absent_unknown: bool,
    /// The attributes of its rows; empty: they are not kept.
    pub layout: Layout,
}

impl Captured {
    /// Whether the stream must stop before a change of this shape: its history can be prepared for it.
    fn has_to_prepare_for(&self, shape: &Shape, is_news: bool) -> bool {
        let present = Shape::of_table(&self.source);
        if *shape == present {
            return false;
        }
        // With FULL, the key is known from the catalogs alone.
        let has_new_key = is_news && shape.full && !shape.has_columns_of(&present);
        has_new_key
            || match Plan::new(shape, &self.source, &self.history, &self.rules, false) {
                Ok(plan) => !plan.unrecorded.is_empty() || !plan.unrecorded_old.is_empty(),
                Err(_) => true,
            }
            || shape.columns.iter().any(|column| {
                let known = self.source.type_of(column.type_oid, column.modifier);
                known.is_none() && !self.rules.excludes(&column.name)
            })
    }
}

/// A table has a shape that its history is not prepared for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Altered {
    pub table: TableName,
    pub oid: u32,
    pub shape: Shape,
    /// A column that has another name now, with that name.
    pub renamed: Option<(String, String)>,
}

#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// A message that is not what the protocol says.
    #[error("the stream holds a malformed message: {0}")]
    Decode(#[from] DecodeError),
    #[error("the stream is out of order: {0}")]
    Order(#[from] OrderError),
    /// A shape that the history does not fit.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A row that does not fit its plan.
    #[error("a change of {table} cannot be written: {error}")]
    Row { table: TableName, error: RowError },
    /// A change of a table that no Relation message announced.
    #[error("a change names relation {0}, which the stream has not described")]
    UnknownRelation(u32),
    #[error("a TRUNCATE names relation {0} more than once")]
    Repeated(u32),
    #[error("the stream describes more than {RELATIONS_MAX} tables")]
    TooManyRelations,
    /// A captured table has a shape that its history is not prepared for.
    #[error("the columns of {} have changed while it was followed", .0.table)]
    Altered(Box<Altered>),
}

impl PipelineError {
    /// Whether it would not be without the transaction that is being read.
    pub fn is_of_a_transaction(&self) -> bool {
        match self {
            Self::Decode(_) | Self::Row { .. } | Self::UnknownRelation(_) | Self::Repeated(_) => {
                true
            }
            Self::Order(_) | Self::Plan(_) | Self::TooManyRelations | Self::Altered(_) => false,
        }
    }

    /// Whether the same stream can be read when it is asked for as text.
    pub fn needs_text(&self) -> bool {
        matches!(
            self,
            Self::Plan(PlanError::NeedsText { .. })
                | Self::Row {
                    error: RowError::NeedsText,
                    ..
                }
        )
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Quiet,
    Begun {
        /// The source's clock at its commit, microseconds since 2000-01-01 UTC.
        commit_time: i64,
        /// It is the one to be left out.
        left_out: bool,
    },
    /// A transaction ended; `recorded` rows of it are in the batch.
    Committed {
        /// The byte after its commit record.
        end_lsn: Lsn,
        recorded: u64,
    },
    /// A captured table has columns that its history has no column for.
    Unrecorded {
        table: TableName,
        columns: Vec<String>,
    },
    /// A partition logs less of an old row than its table announces; once per partition.
    Lacking(Box<Lacking>),
    /// A transaction has said something of itself that cannot be recorded, and is left out.
    ContextRefused(context::Refused),
}

/// A relation that the stream has described.
enum Known {
    Captured(Followed),
    /// Published but not configured: its changes are skipped.
    Ignored,
}

struct Followed {
    plan_id: usize,
    plan: Arc<Plan>,
    shape: Shape,
    /// Of its columns; empty where they are not known.
    attributes: Vec<Attribute>,
    /// What says so in the target.
    opening: String,
    /// It was described after the catalogs were read.
    is_news: bool,
    /// The table's index in `captured`.
    table: usize,
}

pub struct Pipeline {
    captured: Vec<Captured>,
    /// The catalogs were read after this position of the source's WAL.
    catalogs_at: Lsn,
    binary: bool,
    assembler: Assembler,
    /// What the stream has described, by OID.
    relations: BTreeMap<u32, Known>,
    partitions: Partitions,
    /// The partitioned table that was described by the last Relation message, whose partition may be next.
    described: Option<u32>,
    next_plan_id: usize,
    /// A table was described since this was last asked.
    hinted: bool,
    /// The commit position of the last transaction that has described a table of which the catalogs may be newer than they are
    /// known.
    noted: Option<Lsn>,
    /// The commit position of a transaction that is to be left out.
    skip: Option<Lsn>,
    /// It is open.
    left_out: Option<LeftOut>,
    /// The histories that get a GAP row for it.
    gaps: Vec<TableName>,
    /// Whose checkpoint and gaps are kept.
    slot: String,
    /// By how much commit times are out of order, where that is known.
    disorder: Option<Disorder>,
    scratch: Scratch,
}

/// What is known of the tables that a transaction changes that is left out.
#[derive(Default)]
struct LeftOut {
    relations: BTreeSet<u32>,
    /// Something was not readable: it may be any table that the stream has described.
    any: bool,
}

impl LeftOut {
    /// Notes which relations a message changes.
    fn note(&mut self, payload: &[u8]) {
        match (payload.split_first(), Message::parse(payload)) {
            (_, Ok(Message::Truncate(truncate))) => self.relations.extend(truncate.relations()),
            // The message may be malformed after its relation.
            (Some((b'I' | b'U' | b'D', [a, b, c, d, ..])), _) => {
                self.relations.insert(u32::from_be_bytes([*a, *b, *c, *d]));
            }
            _ => self.any = true,
        }
    }
}

impl Pipeline {
    /// `catalogs_at`: a position of the source's WAL from before the catalogs were read. A table that looks different
    /// in a transaction after it was altered since; in a transaction before it, that is only an older shape.
    /// `checkpoint`: the end of the last transaction in the history. `binary`: whether the stream was requested in
    /// binary.
    pub fn new(captured: Vec<Captured>, catalogs_at: Lsn, checkpoint: Lsn, binary: bool) -> Self {
        Self {
            captured,
            catalogs_at,
            binary,
            assembler: Assembler::new(checkpoint),
            relations: BTreeMap::new(),
            partitions: Partitions::default(),
            described: None,
            next_plan_id: 0,
            hinted: false,
            noted: None,
            skip: None,
            left_out: None,
            gaps: Vec::new(),
            slot: String::new(),
            disorder: None,
            scratch: Scratch::default(),
        }
    }

    /// Keeps for this slot which transaction was left out, and by how much commit times are out of order.
    pub fn keep_for(&mut self, slot: &str, disorder: Option<Disorder>) {
        slot.clone_into(&mut self.slot);
        self.disorder = disorder;
    }

    /// See [`Assembler::expect_checkpoint`].
    pub fn expect_checkpoint(&mut self, time: Timestamp) {
        self.assembler.expect_checkpoint(time);
    }

    /// Leaves out the transaction that commits at `commit_lsn`, where it is not in the history yet: each history that it
    /// changes gets a GAP row instead.
    pub fn skip(&mut self, commit_lsn: Lsn) {
        self.skip = Some(commit_lsn);
    }

    /// The commit position of the transaction that is being read.
    pub fn commit_lsn(&self) -> Option<Lsn> {
        self.assembler.peek().map(|open| open.commit_lsn)
    }

    /// See [`Assembler::processed`].
    pub fn processed(&self, lsn: Lsn) -> Result<(), PipelineError> {
        Ok(self.assembler.processed(lsn)?)
    }

    /// Whether every captured table can be followed in binary, by the catalogs.
    pub fn can_be_binary(captured: &[Captured]) -> bool {
        captured.iter().all(|table| {
            let shape = Shape::of_table(&table.source);
            Plan::new(&shape, &table.source, &table.history, &table.rules, true).is_ok()
        })
    }

    /// Whether some history records what transactions say of themselves, by the catalogs.
    pub fn records_context(captured: &[Captured]) -> bool {
        captured.iter().any(|table| {
            let shape = Shape::of_table(&table.source);
            Plan::new(&shape, &table.source, &table.history, &table.rules, false)
                .is_ok_and(|plan| plan.records_context())
        })
    }

    pub fn in_transaction(&self) -> bool {
        self.assembler.is_open()
    }

    /// When the transaction committed that is being read, where rows of it are recorded.
    pub fn recording_since(&self) -> Option<Timestamp> {
        let open = self.assembler.peek().filter(|open| open.recorded > 0);
        open.map(|open| open.commit_time)
    }

    /// Whether the stream has described a table since the last call.
    pub fn take_described(&mut self) -> bool {
        std::mem::take(&mut self.hinted)
    }

    /// The commit position of the last transaction that has described a table, and whose rows' columns the catalogs may have to
    /// tell apart: the source must keep the WAL from before it until they are read again.
    pub fn noted(&self) -> Option<Lsn> {
        self.noted
    }

    /// How much of what is durable, up to `end`, the source need not keep.
    pub fn safe(&self, end: Lsn) -> Lsn {
        match self.noted {
            Some(_) => end.min(self.catalogs_at),
            None => end,
        }
    }

    #[inline]
    pub fn accept(&mut self, payload: &[u8], batch: &mut Batch) -> Result<Outcome, PipelineError> {
        if let Some(left_out) = &mut self.left_out {
            // What describes a table holds for later transactions, too.
            if !matches!(
                payload.first(),
                Some(b'B' | b'C' | b'R' | b'Y' | b'O' | b'M')
            ) {
                left_out.note(payload);
                return Ok(Outcome::Quiet);
            }
        }
        match Message::parse(payload)? {
            Message::Insert(insert) => {
                self.change(insert.relation, &Change::Insert(insert.new), batch)
            }
            Message::Update(update) => self.change(
                update.relation,
                &Change::Update(update.old, update.new),
                batch,
            ),
            Message::Delete(delete) => self.change(
                delete.relation,
                &Change::Delete(delete.kind, delete.old),
                batch,
            ),
            Message::Truncate(truncate) => {
                self.described = None;
                let mut named = BTreeSet::new();
                for relation in truncate.relations() {
                    if !named.insert(relation) {
                        return Err(PipelineError::Repeated(relation));
                    }
                    self.change(relation, &Change::Truncate, batch)?;
                }
                Ok(Outcome::Quiet)
            }
            Message::Begin(begin) => self.begin(&begin, batch),
            Message::Commit(commit) => self.commit(&commit, batch),
            Message::Relation(relation) => {
                self.hinted = true;
                if let Some(root) = self.described.take()
                    && let Some(outcome) = self.partition(root, &relation)?
                {
                    return Ok(outcome);
                }
                self.relation(&relation)
            }
            Message::Origin(_) => self
                .assembler
                .open()
                .map(|_| Outcome::Quiet)
                .map_err(Into::into),
            Message::Logical(message) => self.heard(&message),
            Message::Type(_) => Ok(Outcome::Quiet),
        }
    }

    /// Keeps what the transaction says of itself, for the changes after it. Messages of others are none of ours.
    fn heard(&mut self, message: &pgoutput::LogicalMessage<'_>) -> Result<Outcome, PipelineError> {
        if !message.transactional || message.prefix != context::PREFIX.as_bytes() {
            return Ok(Outcome::Quiet);
        }
        let tx = self.assembler.open()?;
        // The GAP rows of a transaction that is left out hold nothing of it: it may be why.
        if tx.known || self.left_out.is_some() {
            return Ok(Outcome::Quiet);
        }
        let merged = self.scratch.context.merge(message.content);
        Ok(merged.map_or_else(Outcome::ContextRefused, |()| Outcome::Quiet))
    }

    #[inline]
    fn begin(
        &mut self,
        begin: &pgoutput::Begin,
        batch: &mut Batch,
    ) -> Result<Outcome, PipelineError> {
        batch.begin(begin.commit_lsn, begin.commit_time);
        self.scratch.context.clear();
        let open = self.assembler.begin(begin)?;
        let left_out = !open.known && self.skip == Some(begin.commit_lsn);
        self.left_out = left_out.then(LeftOut::default);
        Ok(Outcome::Begun {
            commit_time: begin.commit_time.0,
            left_out,
        })
    }

    #[inline]
    fn commit(
        &mut self,
        commit: &pgoutput::Commit,
        batch: &mut Batch,
    ) -> Result<Outcome, PipelineError> {
        self.record_gaps(batch)?;
        let closed = self.assembler.commit(commit)?;
        if closed.recorded > 0 {
            batch.complete(Seal {
                commit_lsn: commit.commit_lsn,
                end_lsn: closed.end_lsn,
                commit_time: closed.commit_time,
            });
            if let Some(disorder) = &mut self.disorder
                && disorder.takes(closed.commit_time)
            {
                batch.add_statement(disorder.statement(&self.slot));
            }
            for history in self.gaps.drain(..) {
                let (lsn, time) = (commit.commit_lsn, closed.commit_time);
                batch.add_statement(left_out::statement(&self.slot, &history, lsn, time));
            }
        }
        Ok(Outcome::Committed {
            end_lsn: closed.end_lsn,
            recorded: closed.recorded,
        })
    }

    /// Ends a transaction that is left out: a GAP row for each table that it changes.
    fn record_gaps(&mut self, batch: &mut Batch) -> Result<(), PipelineError> {
        let Some(left_out) = self.left_out.take() else {
            return Ok(());
        };
        let known = |oid: &u32| self.relations.contains_key(oid);
        let any = left_out.any || !left_out.relations.iter().all(known);
        let concerned = |(oid, _): &(&u32, &Known)| any || left_out.relations.contains(oid);
        let concerned: Vec<u32> = self
            .relations
            .iter()
            .filter(concerned)
            .map(|(oid, _)| *oid)
            .collect();
        for relation in concerned {
            self.change(relation, &Change::Gap, batch)?;
            if let Some(Known::Captured(followed)) = self.relations.get(&relation) {
                self.gaps.push(followed.plan.history.clone());
            }
        }
        Ok(())
    }

    #[inline]
    fn change(
        &mut self,
        relation: u32,
        change: &Change<'_>,
        batch: &mut Batch,
    ) -> Result<Outcome, PipelineError> {
        let tx = self.assembler.open()?;
        let (id, plan) = match self.relations.get(&relation) {
            Some(Known::Captured(followed)) => (followed.plan_id, &followed.plan),
            Some(Known::Ignored) => return Ok(Outcome::Quiet),
            None => return Err(PipelineError::UnknownRelation(relation)),
        };
        if tx.known {
            return Ok(Outcome::Quiet);
        }
        let scratch = &mut self.scratch;
        batch
            .append(id, plan, tx.commit_lsn, change.kind(), |out| {
                row::write(plan, tx, change, scratch, out)
            })
            .map_err(|error| PipelineError::Row {
                table: plan.source.clone(),
                error,
            })?;
        if scratch.unavailable_count > 0 {
            batch.note_unavailable(id, std::mem::take(&mut scratch.unavailable_count));
        }
        Ok(Outcome::Quiet)
    }
}
