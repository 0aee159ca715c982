//! What source tables and history tables look like.
//!
//! [`catalog`] reads both from the servers; [`plan`] (pure) maps the shape that a Relation message gives
//! onto a history table. The Relation message is the truth about a row's shape, since it is as old as the
//! row; the catalogs give only what it does not hold (the primary key, the history's columns).

pub mod addition;
pub mod catalog;
pub mod exact;
pub mod home;
pub mod layout;
pub mod partitions;
pub mod plan;
pub mod recorded;
pub mod sight;
pub mod types;

use exact::Type;
use home::Home;
use types::Types;

pub use crate::name::{Identifier, TableName};

/// A column of a source table, as the catalog has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceColumn {
    pub name: String,
    pub type_oid: u32,
    /// The type's modifier; -1 where it has none.
    pub modifier: i32,
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
    /// The types of its columns, and of those that it had.
    pub types: Types,
}

impl SourceTable {
    /// The type of one of its columns, of now or before; `None` when it was never looked for.
    pub fn type_of(&self, type_oid: u32, modifier: i32) -> Option<Type> {
        let found = self.types.get(&(type_oid, modifier))?;
        Some(found.clone().unwrap_or_else(Type::dropped))
    }

    pub fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|known| known.name == column)
    }
}

/// What the configuration says of a table's columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Source columns that are never recorded.
    pub exclude: Vec<String>,
    /// Source columns whose history column may round or cut their values.
    pub lossy: Vec<String>,
    /// What the names of waltrail's own columns begin with.
    pub prefix: String,
}

impl Rules {
    pub fn excludes(&self, column: &str) -> bool {
        self.exclude.iter().any(|excluded| excluded == column)
    }

    pub fn is_lossy(&self, column: &str) -> bool {
        self.lossy.iter().any(|lossy| lossy == column)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryColumn {
    pub name: String,
    pub type_oid: u32,
    /// `atttypmod`; a domain has its own elsewhere.
    pub modifier: i32,
    pub kind: Type,
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
    /// waltrail made it.
    pub made: bool,
    /// Where values stand that do not stand where the rule says.
    pub homes: Vec<Home>,
}
