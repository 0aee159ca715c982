//! The source's log: transactions, and the bytes by which pgoutput tells of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use fastrand::Rng;

use crate::lsn::Lsn;
use crate::pipeline::Captured;
use crate::schema::exact::Type;
use crate::schema::types::Types;
use crate::schema::{HistoryColumn, HistoryTable, Rules, SourceColumn, SourceTable, TableName};

/// So many tables have a history; one more is only published.
pub(super) const OURS: usize = 3;
const OID: u32 = 16_384;
const INT4: u32 = 23;
const TEXT: u32 = 25;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) table: usize,
    pub(super) kind: &'static str,
    pub(super) id: i32,
    /// None of a removed row: it is no part of the key.
    pub(super) value: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
pub(super) struct Transaction {
    pub(super) commit: Lsn,
    pub(super) end: Lsn,
    pub(super) time: i64,
    xid: u32,
    pub(super) changes: Vec<Change>,
}

impl Transaction {
    /// Any transaction whose WAL comes after `end`, at about `time`.
    pub(super) fn any(rng: &mut Rng, end: Lsn, time: i64, xid: u32, large: usize) -> Self {
        let between = match rng.u32(..10) {
            0..3 => 0,
            3..8 => rng.u64(1..4000),
            _ => rng.u64(1..6 * 1024 * 1024),
        };
        let commit = end.as_u64() + between;
        let count = match rng.u32(..20) {
            0..2 => 0,
            2..10 => 1,
            10..17 => rng.usize(1..8),
            _ => rng.usize(1..=large),
        };
        // The last table is the stranger's.
        let tables = match rng.u32(..10) {
            0 => OURS..OURS + 1,
            1..6 => 0..OURS,
            _ => 0..OURS + 1,
        };
        Self {
            commit: Lsn::from_u64(commit),
            end: Lsn::from_u64(commit + rng.u64(8..120)),
            time,
            xid,
            changes: (0..count)
                .map(|_| Change::any(rng, tables.clone()))
                .collect(),
        }
    }

    pub(super) fn is_ours(&self) -> bool {
        self.changes.iter().any(|change| change.table < OURS)
    }

    /// What the history has of it: each change with its number.
    pub(super) fn recorded(&self) -> impl Iterator<Item = (u64, &Change)> {
        (1..).zip(self.changes.iter().filter(|change| change.table < OURS))
    }

    /// Its messages. A table is described before its first change, and again where `described` does not say that it was or
    /// chance wills it.
    pub(super) fn messages(&self, rng: &mut Rng, described: &mut [bool]) -> Vec<Vec<u8>> {
        let commit = self.commit.as_u64().to_be_bytes();
        let time = self.time.to_be_bytes();
        let mut messages = vec![[b"B", &commit[..], &time, &self.xid.to_be_bytes()].concat()];
        for change in &self.changes {
            if !described[change.table] || rng.u32(..10) == 0 {
                described[change.table] = true;
                messages.push(relation(change.table));
            }
            messages.push(change.message());
        }
        let end = self.end.as_u64().to_be_bytes();
        messages.push([b"C", &[0][..], &commit, &end, &time].concat());
        messages
    }
}

impl Change {
    fn any(rng: &mut Rng, tables: std::ops::Range<usize>) -> Self {
        let kind = ["INSERT", "UPDATE", "DELETE"][rng.usize(..3)];
        let length = match rng.u32(..30) {
            0 => rng.usize(..3000),
            _ => rng.usize(..20),
        };
        let value = vec![rng.u8(b'a'..=b'z'); length];
        Self {
            table: rng.usize(tables),
            kind,
            id: rng.i32(..),
            value: (kind != "DELETE").then_some(value),
        }
    }

    fn message(&self) -> Vec<u8> {
        let oid = oid(self.table).to_be_bytes();
        let (tag, marker) = match self.kind {
            "INSERT" => (b'I', b'N'),
            "UPDATE" => (b'U', b'N'),
            _ => (b'D', b'K'),
        };
        let mut message = [&[tag][..], &oid, &[marker, 0, 2]].concat();
        datum(&mut message, &self.id.to_be_bytes());
        match &self.value {
            Some(value) => datum(&mut message, value),
            None => message.push(b'n'),
        }
        message
    }
}

fn datum(message: &mut Vec<u8>, value: &[u8]) {
    message.push(b'b');
    message.extend((value.len() as u32).to_be_bytes());
    message.extend(value);
}

fn oid(table: usize) -> u32 {
    OID + table as u32
}

fn relation(table: usize) -> Vec<u8> {
    let mut message = [b"R", &oid(table).to_be_bytes()[..], b"public\0"].concat();
    message.extend(format!("t{table}\0d\0\x02").bytes());
    for (key, name, oid) in [(1, "id", INT4), (0, "v", TEXT)] {
        message.push(key);
        message.extend(format!("{name}\0").bytes());
        message.extend(oid.to_be_bytes());
        message.extend((-1i32).to_be_bytes());
    }
    message
}

fn history_column(name: &str, oid: u32, kind: Type) -> HistoryColumn {
    HistoryColumn {
        name: name.to_owned(),
        type_oid: oid,
        modifier: -1,
        kind,
        not_null: false,
        has_default: false,
        generated: false,
    }
}

/// The tables that have a history. Its columns are `id`, `v`, `change_type`, `commit_lsn` and `tx_seq`.
pub(super) fn captured() -> Vec<Captured> {
    let kind =
        |name: &str, wire: &str| Type::named(&format!("pg_catalog.{name}"), Some(wire.to_owned()));
    let (int4, text) = (kind("int4", "23"), kind("text", "text"));
    let name = |name: String| TableName {
        schema: "public".to_owned(),
        name,
    };
    let column = |name: &str, type_oid| SourceColumn {
        name: name.to_owned(),
        type_oid,
        modifier: -1,
    };
    let types: BTreeMap<_, _> = [
        ((INT4, -1), Some(int4.clone())),
        ((TEXT, -1), Some(text.clone())),
    ]
    .into();
    let types: Types = Arc::new(types);
    let table = |table: usize| Captured {
        source: SourceTable {
            oid: oid(table),
            name: name(format!("t{table}")),
            replica_identity: 'd',
            kind: 'r',
            columns: vec![column("id", INT4), column("v", TEXT)],
            key: vec!["id".to_owned()],
            types: Arc::clone(&types),
        },
        history: HistoryTable {
            name: name(table.to_string()),
            columns: vec![
                history_column("id", INT4, int4.clone()),
                history_column("v", TEXT, text.clone()),
                history_column("change_type", TEXT, text.clone()),
                history_column("commit_lsn", 3220, kind("pg_lsn", "3220")),
                history_column("tx_seq", 20, kind("int8", "20")),
            ],
            made: false,
            homes: Vec::new(),
        },
        rules: Rules::default(),
        settled: Vec::new(),
        gated: false,
        absent_unknown: false,
        layout: Default::default(),
    };
    (0..OURS).map(table).collect()
}
