//! How a change of one source table becomes rows of its history table.
//!
//! A [`Plan`] is made when a Relation message arrives, from the shape that it gives and the history's own
//! columns, matched by name. It fixes, once per shape, where each value of a row goes, so that a change is
//! only copied. The order of the columns in a row is: new values in the source's order, `old_` values in the
//! source's order, what waltrail itself knows. Pure.

use super::{HistoryColumn, HistoryTable, Identifier, SourceTable, TableName};
use crate::pgoutput::{DecodeError, Relation, ReplicaIdentity};

/// What `change_type` says. `INSERT` for baseline rows is the snapshot's to choose.
pub mod change_type {
    pub const INSERT: &str = "INSERT";
    pub const UPDATE: &str = "UPDATE";
    pub const DELETE: &str = "DELETE";
    pub const TRUNCATE: &str = "TRUNCATE";
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
}

impl Own {
    pub const ALL: [(&'static str, Self); 7] = [
        ("change_type", Self::ChangeType),
        ("change_timestamp", Self::ChangeTimestamp),
        ("commit_lsn", Self::CommitLsn),
        ("tx_seq", Self::TxSeq),
        ("xid", Self::Xid),
        ("changed_columns", Self::ChangedColumns),
        ("unavailable_columns", Self::UnavailableColumns),
    ];

    /// The column of this name, if it is one of ours.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find_map(|&(own, kind)| (own == name).then_some(kind))
    }

    /// How its value is written in binary into a column of this type; `None`: only as text.
    fn binary_form(self, column: &HistoryColumn) -> Option<OwnForm> {
        let wire = column.wire_type.as_deref()?;
        match (self, wire) {
            (Self::ChangeType, "text" | "bpchar") => Some(OwnForm::Text),
            (Self::ChangeType, wire) if wire.starts_with("enum ") => Some(OwnForm::Text),
            (Self::ChangeTimestamp, "1114" | "1184") => Some(OwnForm::Int8),
            (Self::CommitLsn, "3220") => Some(OwnForm::Int8),
            (Self::TxSeq | Self::Xid, "20") => Some(OwnForm::Int8),
            (Self::TxSeq, "23") => Some(OwnForm::Int4),
            (Self::Xid, "28") => Some(OwnForm::Int4),
            (Self::ChangedColumns | Self::UnavailableColumns, "1009") => Some(OwnForm::TextArray),
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
    pub old_tuples: OldTuples,
    /// History columns whose values the stream left out though the source has them, named in every row: the flag is set for
    /// an `old_` column.
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
    /// The statement that fails when the history's columns have other types than the rows were made for; none
    /// for rows of text, which every type reads by itself.
    pub guard: Option<String>,
    /// The `INSERT ... SELECT` statement that takes one row of this plan as its parameters. It can be given a FROM and a
    /// WHERE.
    pub insert: String,
    /// The types of a row's parameters, in the target.
    pub parameters: Vec<u32>,
    /// Source columns that the history has no column for.
    pub unrecorded: Vec<String>,
    /// The table's initial snapshot is not done: its rows may have to be held, transaction by transaction.
    pub gated: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// In binary the rows would not fit; as text they would.
    #[error("the types of {table}.{column} and its history column differ")]
    NeedsText { table: TableName, column: String },
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

/// The shape of a row: what a Relation message gives, or the catalog before the first one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Name, type OID and whether the column belongs to the replica identity.
    pub columns: Vec<(String, u32, bool)>,
    /// The replica identity is FULL: every column is flagged, and the catalog knows the key.
    pub full: bool,
}

impl Shape {
    /// The shape that a Relation message gives.
    pub fn of_relation(relation: &Relation<'_>) -> Result<Self, DecodeError> {
        let columns = relation.columns().map(|column| {
            let column = column?;
            Ok((column.name.to_owned(), column.type_oid, column.key))
        });
        Ok(Self {
            columns: columns.collect::<Result<_, DecodeError>>()?,
            full: relation.replica_identity == ReplicaIdentity::Full,
        })
    }

    /// Whether both have the same columns of the same types.
    pub fn has_columns_of(&self, other: &Self) -> bool {
        self.columns.len() == other.columns.len()
            && std::iter::zip(&self.columns, &other.columns)
                .all(|(ours, others)| (&ours.0, ours.1) == (&others.0, others.1))
    }

    /// The shape that the catalog has now.
    pub fn of_table(table: &SourceTable) -> Self {
        let full = table.replica_identity == 'f';
        Self {
            columns: table
                .columns
                .iter()
                .map(|column| {
                    (
                        column.name.clone(),
                        column.type_oid,
                        full || table.key.contains(&column.name),
                    )
                })
                .collect(),
            full,
        }
    }
}

impl Plan {
    /// Maps `shape` onto `history`. `source` is the catalog's view of the table, which gives the key of a
    /// table with REPLICA IDENTITY FULL and the wire types.
    ///
    /// # Errors
    /// [`PlanError::NeedsText`] where `binary` is asked for and some column is not the same on both sides.
    pub fn new(
        shape: &Shape,
        source: &SourceTable,
        history: &HistoryTable,
        exclude: &[String],
        binary: bool,
    ) -> Result<Self, PlanError> {
        let writable = |name: &str| {
            history
                .columns
                .iter()
                .find(|column| column.name == name && !column.generated)
        };
        let mut columns = Vec::with_capacity(shape.columns.len());
        let mut unrecorded = Vec::new();
        for (name, type_oid, identity) in &shape.columns {
            let excluded = exclude.contains(name);
            let recorded = (!excluded).then(|| writable(name)).flatten();
            let recorded_old = (!excluded)
                .then(|| writable(&format!("old_{name}")))
                .flatten();
            if recorded.is_some() && Own::named(name).is_some() {
                return Err(PlanError::NameClash {
                    table: source.name.clone(),
                    column: name.clone(),
                });
            }
            if recorded.is_none() && !excluded {
                unrecorded.push(name.clone());
            }
            let written = recorded.iter().chain(&recorded_old).copied();
            if binary && !have_same_form(source, name, *type_oid, written) {
                return Err(PlanError::NeedsText {
                    table: source.name.clone(),
                    column: name.clone(),
                });
            }
            let key = match shape.full {
                true => source.key.contains(name),
                false => *identity,
            };
            columns.push(SourceSlot {
                name: name.clone(),
                recorded: recorded.is_some(),
                recorded_old: recorded_old.is_some(),
                key,
                kept: key,
            });
        }
        if !columns.iter().any(|column| column.recorded) {
            return Err(PlanError::NothingInCommon {
                table: source.name.clone(),
                history: history.name.clone(),
            });
        }
        let own = own_columns(source, history, binary)?;
        let splits_key_changes = !columns
            .iter()
            .filter(|column| column.key)
            .all(|column| column.recorded_old);
        Self::assemble(
            columns,
            own,
            unrecorded,
            splits_key_changes,
            source,
            history,
            binary,
        )
    }

    fn assemble(
        columns: Vec<SourceSlot>,
        own: Vec<(Own, OwnForm)>,
        unrecorded: Vec<String>,
        splits_key_changes: bool,
        source: &SourceTable,
        history: &HistoryTable,
        binary: bool,
    ) -> Result<Self, PlanError> {
        let new = columns
            .iter()
            .filter(|column| column.recorded)
            .map(|column| column.name.clone());
        let old = columns
            .iter()
            .filter(|column| column.recorded_old)
            .map(|column| format!("old_{}", column.name));
        let ours = own.iter().filter_map(|(kind, _)| {
            Own::ALL
                .iter()
                .find_map(|(name, known)| (known == kind).then(|| (*name).to_owned()))
        });
        let written: Vec<String> = new.chain(old).chain(ours).collect();
        let type_of = |name: &String| {
            let column = history.columns.iter().find(|column| column.name == *name);
            column.map_or(0, |column| column.type_oid)
        };
        let types: Vec<u32> = written.iter().map(type_of).collect();
        let names: Vec<String> = written
            .iter()
            .map(|name| Identifier(name).to_string())
            .collect();
        let width = u16::try_from(names.len())
            .ok()
            .filter(|&width| width < i16::MAX as u16)
            .ok_or_else(|| PlanError::TooWide(history.name.clone()))?;
        let list = names.join(", ");
        let copy = copy_in(&history.name, &list, binary);
        let guard = binary.then(|| guard(&history.name, &written, &types));
        let parameters: Vec<String> = (1..=names.len()).map(|n| format!("${n}")).collect();
        let parameters = parameters.join(", ");
        let insert = format!(
            "INSERT INTO {} ({list}) OVERRIDING SYSTEM VALUE SELECT {parameters}",
            history.name
        );
        Ok(Self {
            source: source.name.clone(),
            history: history.name.clone(),
            binary,
            records_old: columns.iter().any(|column| column.recorded_old),
            columns,
            old_tuples: OldTuples::AsTagged,
            absent: Vec::new(),
            splits_key_changes,
            own,
            width,
            copy,
            guard,
            insert,
            parameters: types,
            unrecorded,
            gated: false,
        })
    }
}

impl Plan {
    /// Names in every row what the history has a column for and `shape` leaves out, though the source has it.
    pub fn name_absent(
        &mut self,
        shape: &Shape,
        source: &SourceTable,
        history: &HistoryTable,
        exclude: &[String],
    ) {
        let is_absent = |name: &String| {
            !exclude.contains(name) && !shape.columns.iter().any(|column| column.0 == *name)
        };
        let columns = source.columns.iter().map(|column| &column.name);
        let columns: Vec<&String> = columns.filter(|name| is_absent(name)).collect();
        for old in [false, true] {
            let has = |name: &&&String| {
                let prefix = if old { "old_" } else { "" };
                let name = format!("{prefix}{name}");
                let mut ours = history.columns.iter();
                // A column of the source's own that is called so is recorded as that.
                (!old || source.columns.iter().all(|column| column.name != name))
                    && ours.any(|column| column.name == name && !column.generated)
            };
            let absent = columns.iter().filter(has);
            self.absent
                .extend(absent.map(|name| ((*name).clone(), old)));
        }
    }
}

/// A text as a literal that is read alike with every `standard_conforming_strings`.
pub fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', r"\\").replace('\'', "''"))
}

/// The COPY statement that takes rows into these columns.
pub(crate) fn copy_in(history: &TableName, columns: &str, binary: bool) -> String {
    let format = if binary { "binary" } else { "text" };
    format!("COPY {history} ({columns}) FROM STDIN (FORMAT {format})")
}

/// The statement that fails when these columns of a history have other types. The function, which names the reason, is called
/// only then.
pub fn guard(history: &TableName, columns: &[String], types: &[u32]) -> String {
    let names: Vec<String> = columns.iter().map(|name| literal(name)).collect();
    // A type's OID has no blank.
    let pairs = std::iter::zip(columns, types).map(|(name, oid)| literal(&format!("{name} {oid}")));
    let pairs: Vec<String> = pairs.collect();
    let types: Vec<String> = types.iter().map(u32::to_string).collect();
    format!(
        "SELECT waltrail.expect_types({history}, ARRAY[{}], '{{{}}}') FROM pg_catalog.pg_attribute a \
         WHERE a.attrelid = {history}::regclass AND a.attnum > 0 AND a.attname || ' ' || a.atttypid = ANY (ARRAY[{}]) \
         HAVING pg_catalog.count(*) <> {}",
        names.join(", "),
        types.join(","),
        pairs.join(", "),
        columns.len(),
        history = literal(&history.to_string()),
    )
}

/// Whether the values of a source column have the binary form of these history columns.
fn have_same_form<'a>(
    source: &SourceTable,
    name: &str,
    type_oid: u32,
    mut written: impl Iterator<Item = &'a HistoryColumn>,
) -> bool {
    let wire = source
        .columns
        .iter()
        .find(|column| column.name == name && column.type_oid == type_oid)
        .and_then(|column| column.wire_type.as_deref());
    written.all(|column| wire.is_some() && column.wire_type.as_deref() == wire)
}

/// The columns that waltrail fills itself, each with its form.
fn own_columns(
    source: &SourceTable,
    history: &HistoryTable,
    binary: bool,
) -> Result<Vec<(Own, OwnForm)>, PlanError> {
    let mut own = Vec::new();
    for column in history.columns.iter().filter(|column| !column.generated) {
        let Some(kind) = Own::named(&column.name) else {
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
        own.push((kind, form));
    }
    Ok(own)
}
