//! What source tables and history tables look like.
//!
//! [`catalog`] reads both from the servers; [`plan`] (pure) maps the shape that a Relation message gives
//! onto a history table. The Relation message is the truth about a row's shape, since it is as old as the
//! row; the catalogs give only what it does not hold (the primary key, the history's columns).

pub mod catalog;
pub mod plan;

use std::fmt;

use serde::Serialize;

/// A schema-qualified table name, as the catalogs spell it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct TableName {
    /// The schema.
    pub schema: String,
    /// The table.
    pub name: String,
}

impl fmt::Display for TableName {
    /// As SQL: quoted where it has to be.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", Identifier(&self.schema), Identifier(&self.name))
    }
}

/// A name as SQL writes it: quoted unless it is plain.
#[derive(Clone, Copy, Debug)]
pub struct Identifier<'a>(pub &'a str);

impl fmt::Display for Identifier<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = self.0.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            && !self.0.starts_with(|c: char| c.is_ascii_digit())
            && !self.0.is_empty()
            && !RESERVED.contains(&self.0);
        match plain {
            true => f.write_str(self.0),
            false => write!(f, "\"{}\"", self.0.replace('"', "\"\"")),
        }
    }
}

/// Words that cannot name a table or column unquoted (manual, appendix C, "reserved").
const RESERVED: [&str; 77] = [
    "all", "analyse", "analyze", "and", "any", "array", "as", "asc", "asymmetric", "both", "case", "cast",
    "check", "collate", "column", "constraint", "create", "current_catalog", "current_date", "current_role",
    "current_time", "current_timestamp", "current_user", "default", "deferrable", "desc", "distinct", "do",
    "else", "end", "except", "false", "fetch", "for", "foreign", "from", "grant", "group", "having", "in",
    "initially", "intersect", "into", "lateral", "leading", "limit", "localtime", "localtimestamp", "not",
    "null", "offset", "on", "only", "or", "order", "placing", "primary", "references", "returning", "select",
    "session_user", "some", "symmetric", "system_user", "table", "then", "to", "trailing", "true", "union",
    "unique", "user", "using", "variadic", "when", "where", "with",
];

/// A column of a source table, as the catalog has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceColumn {
    /// Its name.
    pub name: String,
    /// The OID of its declared type.
    pub type_oid: u32,
    /// Its type as SQL, with modifiers.
    pub type_sql: String,
    /// See [`HistoryColumn::wire_type`].
    pub wire_type: Option<String>,
}

/// A source table, as the catalog has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTable {
    /// Its OID, the only name that a rename does not change.
    pub oid: u32,
    /// Its name.
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

/// A column of a history table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryColumn {
    /// Its name.
    pub name: String,
    /// The OID of its declared type.
    pub type_oid: u32,
    /// Names a binary form: two columns with the same one take each other's binary values, whatever the
    /// servers. None for a type that is sent as text.
    pub wire_type: Option<String>,
    /// NOT NULL.
    pub not_null: bool,
    /// It has a default, an identity or an expression of its own.
    pub has_default: bool,
    /// It is computed and takes no values.
    pub generated: bool,
}

/// A history table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryTable {
    /// Its name.
    pub name: TableName,
    /// Its columns.
    pub columns: Vec<HistoryColumn>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_where_they_have_to_be() {
        let quoted = |name| Identifier(name).to_string();
        assert_eq!(quoted("employees"), "employees");
        assert_eq!(quoted("user"), "\"user\"");
        assert_eq!(quoted("Weird \" name"), "\"Weird \"\" name\"");
        assert_eq!(quoted("1st"), "\"1st\"");
        assert_eq!(quoted(""), "\"\"");
    }
}
