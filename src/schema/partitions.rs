//! What the partitions of a partitioned table log of an old row.
//!
//! A partition writes the old tuple by its own replica identity. pgoutput sends it under the partitioned table's OID and
//! tags it by that table's identity, so the tag does not say what the tuple holds. The walsender describes the
//! partition directly after the partitioned table, before the partition's first change and again after anything touched
//! it (`maybe_send_schema` in pgoutput.c). Pure.
//!
//! A change does not name its partition. So what is known of an old row is what every described partition logs.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::{OldTuples, Plan, Shape};
use super::{Identifier, SourceTable, TableName};
use crate::pgoutput::{Relation, ReplicaIdentity};

/// What a partition logs of an old row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Logged {
    Everything,
    /// These columns, in the order of their names.
    Key(Vec<String>),
    /// Its columns do not say.
    Unknown,
}

/// A partition that logs less of an old row than its table announces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    pub table: TableName,
    pub partition: TableName,
    /// As in `ALTER TABLE ... REPLICA IDENTITY`, with the columns.
    pub identity: String,
    /// What history rows of this partition lack.
    pub missing: &'static str,
    /// The statement that makes them whole.
    pub remedy: String,
}

/// The partitions that the stream has described.
#[derive(Debug, Default)]
pub(crate) struct Partitions {
    /// Partitioned table and what is logged, by the partition's OID.
    by_oid: BTreeMap<u32, (u32, Logged)>,
    /// How many partitions of a table log what.
    counts: BTreeMap<u32, BTreeMap<Logged, usize>>,
    /// Partitions that were reported as lacking.
    reported: BTreeSet<u32>,
}

impl Partitions {
    /// Remembers what `partition` logs, which the stream describes directly after `root`. Returns what is lacking, once.
    pub(crate) fn describe(
        &mut self,
        root: u32,
        table: &SourceTable,
        shape: &Shape,
        partition: &Relation<'_>,
        described: &Shape,
    ) -> Option<Lacking> {
        let logged = match partition.replica_identity {
            ReplicaIdentity::Full => Logged::Everything,
            // With a column list the server picks the partition's columns by the table's numbers.
            _ if names(described, false) != names(shape, false) => Logged::Unknown,
            _ => Logged::Key(names(described, true)),
        };
        let missing = match (&logged, shape.full) {
            (Logged::Everything, _) => None,
            (_, true) => Some("old values outside its identity"),
            (Logged::Key(key), false) if *key == names(shape, true) => None,
            (_, false) => {
                Some("old values of the table's key, and whether an UPDATE changed the key")
            }
        };
        self.put(partition.oid, root, logged.clone());
        let missing = missing.filter(|_| self.reported.insert(partition.oid))?;
        let key = match logged {
            Logged::Key(_) => Some(key_of(described)),
            Logged::Everything | Logged::Unknown => None,
        };
        Some(lacking(table, shape, partition, key, missing))
    }

    fn put(&mut self, oid: u32, root: u32, logged: Logged) {
        *self
            .counts
            .entry(root)
            .or_default()
            .entry(logged.clone())
            .or_default() += 1;
        if let Some((root, logged)) = self.by_oid.insert(oid, (root, logged))
            && let Some(counts) = self.counts.get_mut(&root)
            && let Some(count) = counts.get_mut(&logged)
        {
            *count -= 1;
            counts.retain(|_, count| *count > 0);
        }
    }

    /// Forgets the partitions of `root`, whose columns have changed: the stream describes each of them again.
    pub(crate) fn forget(&mut self, root: u32) {
        self.counts.remove(&root);
        self.by_oid.retain(|_, (of, _)| *of != root);
    }

    /// Has `plan`, of the partitioned table `root`, trust old tuples as far as its partitions allow.
    pub(crate) fn apply(&self, root: u32, plan: &mut Plan) {
        // A table whose partitions the stream has not described: nothing is sure.
        let none = BTreeMap::from([(Logged::Unknown, 1)]);
        let logged = self.counts.get(&root).unwrap_or(&none);
        let whole = logged.keys().all(|logged| *logged == Logged::Everything);
        plan.old_tuples = match whole {
            true => OldTuples::Whole,
            false => OldTuples::Partial,
        };
        for column in &mut plan.columns {
            column.kept = logged.keys().all(|logged| match logged {
                // An UPDATE of such a partition always has an old tuple.
                Logged::Everything => true,
                Logged::Key(key) => key.binary_search(&column.name).is_ok(),
                Logged::Unknown => false,
            });
        }
    }
}

/// Whether a relation with this shape can be a partition of `table`: it has no other columns.
pub(crate) fn can_be_partition(table: &SourceTable, shape: &Shape, described: &Shape) -> bool {
    let mut columns = described.columns.iter();
    columns.all(|column| shape.has(&column.name) || table.has(&column.name))
}

/// The columns of a shape, or of its identity, in the order of their names.
fn names(shape: &Shape, identity: bool) -> Vec<String> {
    let columns = shape
        .columns
        .iter()
        .filter(|column| !identity || column.key);
    let mut names: Vec<String> = columns.map(|column| column.name.clone()).collect();
    names.sort_unstable();
    names
}

/// The columns of a shape's identity, as SQL lists them.
fn key_of(shape: &Shape) -> String {
    let key = shape.columns.iter().filter(|column| column.key);
    let key: Vec<String> = key
        .map(|column| Identifier(&column.name).to_string())
        .collect();
    key.join(", ")
}

/// `key`: the columns that identify a row of the partition, where they are known.
fn lacking(
    table: &SourceTable,
    shape: &Shape,
    partition: &Relation<'_>,
    key: Option<String>,
    missing: &'static str,
) -> Lacking {
    let name = TableName::new(partition.schema, partition.name);
    let alter = format!("ALTER TABLE {name} REPLICA IDENTITY");
    let remedy = match (&key, table.replica_identity) {
        _ if shape.full => format!("{alter} FULL"),
        (None, _) => format!(
            "make {name} with its columns in the order of {}",
            table.name
        ),
        // A partition has the primary key of its table.
        (_, 'd') => format!("{alter} DEFAULT"),
        _ => format!(
            "{alter} USING INDEX, with its unique index on ({})",
            key_of(shape)
        ),
    };
    let kind = match partition.replica_identity {
        ReplicaIdentity::Default => "DEFAULT",
        ReplicaIdentity::Nothing => "NOTHING",
        ReplicaIdentity::Full => "FULL",
        ReplicaIdentity::Index => "USING INDEX",
    };
    let identity = match key.filter(|key| !key.is_empty()) {
        Some(key) => format!("{kind} ({key})"),
        None => kind.to_owned(),
    };
    Lacking {
        table: table.name.clone(),
        partition: name,
        identity,
        missing,
        remedy,
    }
}
