//! What source tables and history tables look like.
//!
//! [`catalog`] reads both from the servers; [`plan`] (pure) maps the shape that a Relation message gives
//! onto a history table. The Relation message is the truth about a row's shape, since it is as old as the
//! row; the catalogs give only what it does not hold (the primary key, the history's columns).

pub mod catalog;
pub mod partitions;
pub mod plan;
pub mod sight;

pub use crate::name::{Identifier, TableName};

/// A column of a source table, as the catalog has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceColumn {
    pub name: String,
    pub type_oid: u32,
    pub type_sql: String,
    pub wire_type: Option<String>,
}

/// A source table, as the catalog has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTable {
    /// Its OID, the only name that a rename does not change.
    pub oid: u32,
    pub name: TableName,
    /// `d`, `n`, `f` or `i` (manual, `pg_class.relreplident`).
    pub replica_identity: char,
    /// `r` for a table, `p` for a partitioned one.
    pub kind: char,
    /// Its columns that are sent: no dropped and no generated ones.
    pub columns: Vec<SourceColumn>,
    /// The columns of its replica identity, or of its primary key where that is FULL; with FULL and no
    /// primary key, all of them.
    pub key: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryColumn {
    pub name: String,
    pub type_oid: u32,
    /// Names a binary form: two columns with the same one take each other's binary values, whatever the
    /// servers. None for a type that is sent as text.
    pub wire_type: Option<String>,
    pub not_null: bool,
    /// It has a default, an identity or an expression of its own.
    pub has_default: bool,
    /// It is computed and takes no values.
    pub generated: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryTable {
    pub name: TableName,
    pub columns: Vec<HistoryColumn>,
}
