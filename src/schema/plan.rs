//! How a change of one source table becomes rows of its history table.
//!
//! A [`Plan`] is made when a Relation message arrives, from the shape that it gives and the history's own
//! columns, matched by name. It fixes, once per shape, where each value of a row goes, so that a change is
//! only copied. The order of the columns in a row is: new values in the source's order, `old_` values in the
//! source's order, what waltrail itself knows. Pure.

use super::exact::Type;
use super::home::{self, Homeless, Homes};
use super::{HistoryColumn, HistoryTable, Identifier, Rules, SourceTable, TableName};
use crate::pgoutput::{DecodeError, Relation, ReplicaIdentity};

/// What `change_type` says. `INSERT` for baseline rows is the snapshot's to choose.
pub mod change_type {
    pub const INSERT: &str = "INSERT";
    pub const UPDATE: &str = "UPDATE";
    pub const DELETE: &str = "DELETE";
    pub const TRUNCATE: &str = "TRUNCATE";
    /// Changes are missing here.
    pub const GAP: &str = "GAP";
    /// `waltrail verify --repair` found that the row is so.
    pub const REPAIR: &str = "REPAIR";
}

/// A history column whose value is waltrail's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    ChangeType,
    ChangeTimestamp,
    CommitLsn,
    TxSeq,
    Xid,
    ChangedColumns,
    UnavailableColumns,
    /// What the transaction has said of itself.
    Context,
}

impl Own {
    const ALL: [(&'static str, Self); 8] = [
        ("change_type", Self::ChangeType),
        ("change_timestamp", Self::ChangeTimestamp),
        ("commit_lsn", Self::CommitLsn),
        ("tx_seq", Self::TxSeq),
        ("xid", Self::Xid),
        ("changed_columns", Self::ChangedColumns),
        ("unavailable_columns", Self::UnavailableColumns),
        ("context", Self::Context),
    ];

    /// The column of this name, if it is one of ours whatever the source is like. Their names begin with `prefix`. Which
    /// one is [`Self::Context`] depends on the source: see [`Homes::context`].
    pub fn named(name: &str, prefix: &str) -> Option<Self> {
        let name = name.strip_prefix(prefix)?;
        let known = Self::ALL.iter().find(|(own, _)| *own == name);
        known
            .map(|&(_, kind)| kind)
            .filter(|kind| *kind != Self::Context)
    }

    /// Its name, without a prefix.
    pub fn name(self) -> &'static str {
        let known = Self::ALL.iter().find(|(_, kind)| *kind == self);
        known.map_or("", |(name, _)| name)
    }

    /// How its value is written in binary into a column of this type; `None`: only as text.
    fn binary_form(self, column: &HistoryColumn) -> Option<OwnForm> {
        let wire = column.kind.wire.as_deref()?;
        match (self, wire) {
            (Self::ChangeType, "text" | "bpchar") => Some(OwnForm::Text),
            (Self::ChangeTimestamp, "1114" | "1184") => Some(OwnForm::Int8),
            (Self::CommitLsn, "3220") => Some(OwnForm::Int8),
            (Self::TxSeq | Self::Xid, "20") => Some(OwnForm::Int8),
            (Self::TxSeq, "23") => Some(OwnForm::Int4),
            (Self::Xid, "28") => Some(OwnForm::Int4),
            (Self::ChangedColumns | Self::UnavailableColumns, "1009") => Some(OwnForm::TextArray),
            (Self::Context, "3802") => Some(OwnForm::Jsonb),
            (Self::Context, "114" | "text") => Some(OwnForm::Text),
            _ => None,
        }
    }
}

/// The binary form of an own value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnForm {
    Text,
    Int4,
    Int8,
    TextArray,
    Jsonb,
}

/// A column of the source's rows, in the order of the Relation message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSlot {
    pub name: String,
    /// The history records its value after the change.
    pub recorded: bool,
    /// The history records its value before the change (`old_<name>`).
    pub recorded_old: bool,
    pub key: bool,
    /// An UPDATE without an old tuple says that it did not change.
    pub kept: bool,
}

/// What an old tuple holds. In every one of them a value is what it was; NULL says so only in a whole one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldTuples {
    /// What its tag says.
    AsTagged,
    /// Every column, whatever the tag says.
    Whole,
    /// Whatever the tag says, perhaps not every column.
    Partial,
}

/// How rows of one shape are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub source: TableName,
    pub history: TableName,
    /// Rows are in binary: values pass as they come. Otherwise everything is text.
    pub binary: bool,
    pub columns: Vec<SourceSlot>,
    /// Beside each of them, the history columns of its value after the change and before; empty where it is not recorded.
    pub homes: Vec<[String; 2]>,
    pub old_tuples: OldTuples,
    /// History columns whose values the stream left out though the source has them, named in every row: the flag is set for
    /// a value before the change.
    pub absent: Vec<(String, bool)>,
    /// Whether any `old_` column is recorded.
    pub records_old: bool,
    /// An UPDATE that changes the key is recorded as DELETE and INSERT.
    pub splits_key_changes: bool,
    /// waltrail's own columns, with their binary form.
    pub own: Vec<(Own, OwnForm)>,
    pub width: u16,
    /// The COPY statement that takes rows of this plan.
    pub copy: String,
    /// The statement that fails when the history's columns have other types or modifiers than the rows were made for.
    pub guard: String,
    /// A SELECT of those columns that gives no row. The server refuses to run it again once one of them has another type or
    /// modifier.
    pub check: String,
    /// The `INSERT ... SELECT` statement that takes one row of this plan as its parameters. It can be given a FROM and a
    /// WHERE.
    pub insert: String,
    /// The types of a row's parameters, in the target.
    pub parameters: Vec<u32>,
    /// The statement that says where the values of these columns stand from its first row on; empty: none.
    pub opening: String,
    /// Source columns that the history has no column for.
    pub unrecorded: Vec<String>,
    /// Columns of the key whose value before the change has no column, in a history that waltrail made.
    pub unrecorded_old: Vec<String>,
    /// The table's initial snapshot is not done: its rows may have to be held, transaction by transaction.
    pub gated: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// In binary the rows would not fit; as text they would.
    #[error("the types of {table}.{column} and its history column differ")]
    NeedsText { table: TableName, column: String },
    /// The history column would round, cut or refuse some values.
    #[error(transparent)]
    Inexact(Box<Inexact>),
    /// A source column has the name of a column that waltrail fills.
    #[error(
        "column {column} of {table} has the name of a history column that waltrail fills itself"
    )]
    NameClash { table: TableName, column: String },
    /// The history has none of the source's columns.
    #[error("{history} has no column of {table}")]
    NothingInCommon {
        table: TableName,
        history: TableName,
    },
    /// More columns than a row can have.
    #[error("{0} has too many columns")]
    TooWide(TableName),
}

/// A history column that does not keep every value of its source column.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{history}.{history_column} of type {to} does not keep every value of {table}.{column} of type {of}"
)]
pub struct Inexact {
    pub table: TableName,
    pub column: String,
    pub of: String,
    pub history: TableName,
    pub history_column: String,
    pub to: String,
    /// The type that does.
    pub wanted: String,
}

impl PlanError {
    /// What makes the history fit.
    pub fn remedy(&self) -> String {
        match self {
            Self::Inexact(inexact) => format!(
                "ALTER TABLE {} ALTER COLUMN {} TYPE {}; -- or add \"{}\" to allow_lossy of {}",
                inexact.history,
                Identifier(&inexact.history_column),
                inexact.wanted,
                inexact.column,
                inexact.table
            ),
            Self::NameClash { table, column } => {
                format!(
                    "set prefix = \"_\" for {table} and name the columns of the history so, or add \"{column}\" to exclude_columns"
                )
            }
            Self::NothingInCommon { table, history } => {
                format!("give {history} columns named like those of {table}")
            }
            Self::NeedsText { .. } | Self::TooWide(_) => {
                "change the history table so that it fits, and start again".to_owned()
            }
        }
    }
}

/// A column as a Relation message describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeColumn {
    pub name: String,
    pub type_oid: u32,
    pub modifier: i32,
    /// It belongs to the replica identity.
    pub key: bool,
}

/// The shape of a row: what a Relation message gives, or the catalog before the first one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub columns: Vec<ShapeColumn>,
    /// The replica identity is FULL: every column is flagged, and the catalog knows the key.
    pub full: bool,
}

impl Shape {
    /// The shape that a Relation message gives.
    pub fn of_relation(relation: &Relation<'_>) -> Result<Self, DecodeError> {
        let columns = relation.columns().map(|column| {
            let column = column?;
            Ok(ShapeColumn {
                name: column.name.to_owned(),
                type_oid: column.type_oid,
                modifier: column.type_modifier,
                key: column.key,
            })
        });
        Ok(Self {
            columns: columns.collect::<Result<_, DecodeError>>()?,
            full: relation.replica_identity == ReplicaIdentity::Full,
        })
    }

    /// Whether both have the same columns of the same types.
    pub fn has_columns_of(&self, other: &Self) -> bool {
        self.columns.len() == other.columns.len()
            && std::iter::zip(&self.columns, &other.columns).all(|(ours, others)| {
                (&ours.name, ours.type_oid, ours.modifier)
                    == (&others.name, others.type_oid, others.modifier)
            })
    }

    pub fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|known| known.name == column)
    }

    /// The one column that has another name in `now`, where that is all that is different; with that name.
    pub fn renamed_in(&self, now: &Self) -> Option<(String, String)> {
        if self.columns.len() != now.columns.len() {
            return None;
        }
        let mut pairs = std::iter::zip(&self.columns, &now.columns);
        let is_same = |(was, is): &(&ShapeColumn, &ShapeColumn)| was.name == is.name;
        let (was, is) = pairs.find(|pair| !is_same(pair))?;
        let same_type = (was.type_oid, was.modifier) == (is.type_oid, is.modifier);
        let is_only = pairs.all(|pair| is_same(&pair)) && same_type;
        (is_only && !self.has(&is.name)).then(|| (was.name.clone(), is.name.clone()))
    }

    /// The shape that the catalog has now.
    pub fn of_table(table: &SourceTable) -> Self {
        let full = table.replica_identity == 'f';
        let columns = table.columns.iter().map(|column| ShapeColumn {
            name: column.name.clone(),
            type_oid: column.type_oid,
            modifier: column.modifier,
            key: full || table.key.contains(&column.name),
        });
        Self {
            columns: columns.collect(),
            full,
        }
    }

    /// Whether a column of it is part of the key. With FULL, only the catalog knows the key.
    pub fn is_key(&self, column: &ShapeColumn, source: &SourceTable) -> bool {
        match self.full {
            true => source.key.contains(&column.name),
            false => column.key,
        }
    }
}

/// The history columns of one source column.
type Found<'h> = [Option<&'h HistoryColumn>; 2];

/// What a plan is made from.
struct Mapping<'a> {
    shape: &'a Shape,
    source: &'a SourceTable,
    homes: Homes<'a>,
    binary: bool,
}

impl<'a> Mapping<'a> {
    /// The history columns for the values of `column` after the change and before.
    fn find(&self, column: &ShapeColumn) -> Result<Found<'a>, PlanError> {
        let Homes { history, rules, .. } = self.homes;
        if rules.excludes(&column.name) {
            return Ok([None, None]);
        }
        let kind = self.source.type_of(column.type_oid, column.modifier);
        let kind = kind.unwrap_or_else(Type::dropped);
        let lossy = rules.is_lossy(&column.name);
        let find = |former: bool| {
            let fits = |known: &HistoryColumn| lossy || known.kind.keeps(&kind);
            match self.homes.find(&column.name, former, fits) {
                Ok(known) => Ok(Some(known)),
                Err(Homeless::Absent) => Ok(None),
                Err(Homeless::Inexact(known)) => Err(PlanError::Inexact(Box::new(Inexact {
                    table: self.source.name.clone(),
                    column: column.name.clone(),
                    of: kind.sql.clone(),
                    history: history.name.clone(),
                    history_column: known.name.clone(),
                    to: known.kind.sql.clone(),
                    wanted: kind.clone().home().sql,
                }))),
            }
        };
        let found = [find(false)?, find(true)?];
        let same_name = |known: &HistoryColumn| known.name == column.name;
        let is_own = home::is_own(&column.name, &rules.prefix);
        if found[0].is_none() && is_own && history.columns.iter().any(same_name) {
            return Err(PlanError::NameClash {
                table: self.source.name.clone(),
                column: column.name.clone(),
            });
        }
        // A receive function rounds and cuts in silence, as an input function does.
        let same_form = |known: &HistoryColumn| {
            kind.wire.is_some() && known.kind.wire == kind.wire && known.kind.keeps(&kind)
        };
        if self.binary && !found.iter().flatten().all(|known| same_form(known)) {
            return Err(PlanError::NeedsText {
                table: self.source.name.clone(),
                column: column.name.clone(),
            });
        }
        Ok(found)
    }
}

impl Plan {
    /// Maps `shape` onto `history`. `source` is the catalog's view of the table, which gives the types and the key of a
    /// table with REPLICA IDENTITY FULL.
    ///
    /// # Errors
    /// [`PlanError::NeedsText`] where `binary` is asked for and some column is not the same on both sides.
    pub fn new(
        shape: &Shape,
        source: &SourceTable,
        history: &HistoryTable,
        rules: &Rules,
        binary: bool,
    ) -> Result<Self, PlanError> {
        let mapping = Mapping {
            shape,
            source,
            homes: Homes {
                history,
                rules,
                in_source: &|name: &str| shape.has(name) || source.has(name),
            },
            binary,
        };
        let found: Vec<Found<'_>> = shape
            .columns
            .iter()
            .map(|column| mapping.find(column))
            .collect::<Result<_, _>>()?;
        if found.iter().all(|[new, _]| new.is_none()) {
            return Err(PlanError::NothingInCommon {
                table: source.name.clone(),
                history: history.name.clone(),
            });
        }
        let own = own_columns(source, &mapping.homes, binary)?;
        Self::assemble(&mapping, &found, own)
    }

    fn assemble(
        mapping: &Mapping<'_>,
        found: &[Found<'_>],
        own: Vec<(&HistoryColumn, Own, OwnForm)>,
    ) -> Result<Self, PlanError> {
        let (source, binary) = (mapping.source, mapping.binary);
        let Homes { history, rules, .. } = mapping.homes;
        let shape = &mapping.shape.columns;
        let slot = |(column, [new, old]): (&ShapeColumn, &Found<'_>)| {
            let key = mapping.shape.is_key(column, source);
            SourceSlot {
                name: column.name.clone(),
                recorded: new.is_some(),
                recorded_old: old.is_some(),
                key,
                kept: key,
            }
        };
        let columns: Vec<SourceSlot> = std::iter::zip(shape, found).map(slot).collect();
        let news = found.iter().filter_map(|[new, _]| *new);
        let olds = found.iter().filter_map(|[_, old]| *old);
        let ours = own.iter().map(|(column, ..)| *column);
        let written: Vec<&HistoryColumn> = news.chain(olds).chain(ours).collect();
        let types: Vec<u32> = written.iter().map(|column| column.type_oid).collect();
        let width = u16::try_from(written.len())
            .ok()
            .filter(|&width| width < i16::MAX as u16)
            .ok_or_else(|| PlanError::TooWide(history.name.clone()))?;
        let quoted = written
            .iter()
            .map(|column| Identifier(&column.name).to_string());
        let list = quoted.collect::<Vec<String>>().join(", ");
        let parameters: Vec<String> = (1..=written.len()).map(|n| format!("${n}")).collect();
        let parameters = parameters.join(", ");
        let insert = format!(
            "INSERT INTO {} ({list}) OVERRIDING SYSTEM VALUE SELECT {parameters}",
            history.name
        );
        let missing = |slot: &&SourceSlot| !slot.recorded && !rules.excludes(&slot.name);
        let missing_old = |slot: &&SourceSlot| {
            let is_kept = slot.recorded_old || mapping.homes.is_won(&slot.name);
            history.made && slot.key && !is_kept && !rules.excludes(&slot.name)
        };
        let name_of = |slot: &SourceSlot| slot.name.clone();
        Ok(Self {
            source: source.name.clone(),
            history: history.name.clone(),
            binary,
            records_old: columns.iter().any(|column| column.recorded_old),
            splits_key_changes: !columns
                .iter()
                .filter(|column| column.key)
                .all(|column| column.recorded_old),
            own: own.iter().map(|&(_, own, form)| (own, form)).collect(),
            width,
            copy: copy_in(&history.name, &list, binary),
            guard: guard(&history.name, &written),
            check: format!("SELECT {list} FROM ONLY {} WHERE false", history.name),
            insert,
            parameters: types,
            opening: String::new(),
            unrecorded: columns.iter().filter(missing).map(name_of).collect(),
            unrecorded_old: columns.iter().filter(missing_old).map(name_of).collect(),
            gated: false,
            old_tuples: OldTuples::AsTagged,
            absent: Vec::new(),
            homes: found.iter().map(|pair| pair.map(home_name)).collect(),
            columns,
        })
    }
}

impl Plan {
    /// Whether its rows have a place for what transactions say of themselves.
    pub fn records_context(&self) -> bool {
        self.own.iter().any(|(own, _)| *own == Own::Context)
    }

    /// Names in every row what the history has a column for and `shape` leaves out, though the source has it.
    pub fn name_absent(
        &mut self,
        shape: &Shape,
        source: &SourceTable,
        history: &HistoryTable,
        rules: &Rules,
    ) {
        let homes = Homes {
            history,
            rules,
            in_source: &|name: &str| shape.has(name) || source.has(name),
        };
        let left_out = |name: &str| !rules.excludes(name) && !shape.has(name);
        for former in [false, true] {
            let names = source.columns.iter().map(|column| &column.name);
            for name in names.filter(|name| left_out(name)) {
                if let Ok(home) = homes.find(name, former, |_| true) {
                    self.absent.push((home.name.clone(), former));
                }
            }
        }
    }
}

fn home_name(column: Option<&HistoryColumn>) -> String {
    column.map_or_else(String::new, |column| column.name.clone())
}

/// A text as a literal that is read alike with every `standard_conforming_strings`.
pub fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', r"\\").replace('\'', "''"))
}

const BINARY: &str = "(FORMAT binary)";

/// The COPY statement that takes rows into these columns.
pub(crate) fn copy_in(history: &TableName, columns: &str, binary: bool) -> String {
    let format = if binary { BINARY } else { "(FORMAT text)" };
    format!("COPY {history} ({columns}) FROM STDIN {format}")
}

/// Whether a statement of [`copy_in`] takes rows in binary.
pub(crate) fn takes_binary(copy: &str) -> bool {
    copy.ends_with(BINARY)
}

/// The statement that fails when these columns of a history have other types or modifiers: a value could be read as something
/// else, or be rounded. The function (migration V2) is called only then, for a column that no table has.
pub fn guard(history: &TableName, columns: &[&HistoryColumn]) -> String {
    // Neither number has a blank.
    let form = |column: &&HistoryColumn| {
        let HistoryColumn {
            name,
            type_oid,
            modifier,
            ..
        } = column;
        literal(&format!("{name} {type_oid} {modifier}"))
    };
    let forms: Vec<String> = columns.iter().map(form).collect();
    format!(
        "SELECT waltrail.expect_types({history}, '{{\"\"}}', '{{0}}') FROM pg_catalog.pg_attribute a \
         WHERE a.attrelid = {history}::regclass AND a.attnum > 0 \
         AND a.attname || ' ' || a.atttypid || ' ' || a.atttypmod = ANY (ARRAY[{}]) HAVING pg_catalog.count(*) <> {}",
        forms.join(", "),
        columns.len(),
        history = literal(&history.to_string()),
    )
}

/// The columns that waltrail fills itself, each with its form.
fn own_columns<'h>(
    source: &SourceTable,
    homes: &Homes<'h>,
    binary: bool,
) -> Result<Vec<(&'h HistoryColumn, Own, OwnForm)>, PlanError> {
    let mut own = Vec::new();
    let context = homes.context();
    let columns = homes.history.columns.iter();
    for column in columns.filter(|column| !column.generated) {
        let is_context = context.is_some_and(|context| std::ptr::eq(context, column));
        let kind = Own::named(&column.name, &homes.rules.prefix);
        let Some(kind) = kind.or(is_context.then_some(Own::Context)) else {
            continue;
        };
        let form = match kind.binary_form(column) {
            Some(form) => form,
            None if binary => {
                return Err(PlanError::NeedsText {
                    table: source.name.clone(),
                    column: column.name.clone(),
                });
            }
            None => OwnForm::Text,
        };
        own.push((column, kind, form));
    }
    Ok(own)
}
