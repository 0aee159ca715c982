//! Streams of `pgoutput` messages in memory, as a walsender would write them for changes of `employees`.

use waltrail::history::batch::Batch;
use waltrail::lsn::Lsn;
use waltrail::pipeline::{Captured, Pipeline};
use waltrail::schema::exact::Type;
use waltrail::schema::types::Types;
use waltrail::schema::{HistoryColumn, HistoryTable, Rules, SourceColumn, SourceTable, TableName};

/// The table's OID.
const RELATION: u32 = 16_384;
/// Changes between Begin and Commit.
const PER_TRANSACTION: usize = 100;
/// Position and time of the transaction before the first one.
const FIRST: (u64, i64) = (0x100_0000, 800_000_000_000_000);
const INT4: u32 = 23;
const VARCHAR: u32 = 1043;
const NUMERIC: u32 = 1700;
const TIMESTAMP: u32 = 1114;

/// The operation of every change in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new row.
    Insert,
    /// A changed row without its old key, which did not change.
    Update,
    /// A removed row: its key.
    Delete,
}

/// How values are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As their types' send functions write them.
    Binary,
    /// As text.
    Text,
}

/// Messages, one after the other.
#[derive(Debug)]
pub struct Stream {
    form: Form,
    bytes: Vec<u8>,
    ends: Vec<usize>,
    changes: usize,
}

impl Stream {
    /// Whole transactions with `changes` changes in all.
    #[must_use]
    pub fn new(operation: Operation, form: Form, changes: usize) -> Self {
        let mut stream = Self {
            form,
            bytes: Vec::new(),
            ends: Vec::new(),
            changes,
        };
        let (mut lsn, mut time) = FIRST;
        let mut id = 0i32;
        for start in (0..changes).step_by(PER_TRANSACTION) {
            lsn += 0x1000;
            time += 1_000;
            stream.push(|out| begin(lsn, time, out));
            for _ in start..(start + PER_TRANSACTION).min(changes) {
                id += 1;
                stream.push(|out| change(operation, form, 100_000 + id, out));
            }
            stream.push(|out| commit(lsn, time, out));
        }
        stream
    }

    fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.ends.push(self.bytes.len());
    }

    /// The messages one by one.
    #[inline]
    pub fn messages(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let message = &self.bytes[start..end];
            start = end;
            message
        })
    }

    /// All of their bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Row changes among the messages.
    #[must_use]
    pub fn changes(&self) -> usize {
        self.changes
    }

    /// A pipeline that takes the stream. It has read what the table looks like, as at the start of a session.
    ///
    /// # Panics
    /// It refuses that.
    #[must_use]
    pub fn pipeline(&self) -> Pipeline {
        let binary = self.form == Form::Binary;
        let mut pipeline = Pipeline::new(vec![captured()], Lsn::ZERO, Lsn::ZERO, binary);
        let mut start = Self {
            form: self.form,
            bytes: Vec::new(),
            ends: Vec::new(),
            changes: 0,
        };
        let (lsn, time) = FIRST;
        start.push(|out| begin(lsn, time, out));
        start.push(relation);
        start.push(|out| commit(lsn, time, out));
        let mut batch = Batch::new(0);
        for message in start.messages() {
            if let Err(error) = pipeline.accept(message, &mut batch) {
                panic!("{error}");
            }
        }
        pipeline
    }
}

fn begin(lsn: u64, time: i64, out: &mut Vec<u8>) {
    out.push(b'B');
    out.extend(lsn.to_be_bytes());
    out.extend(time.to_be_bytes());
    out.extend(7_777u32.to_be_bytes());
}

fn commit(lsn: u64, time: i64, out: &mut Vec<u8>) {
    out.extend(b"C\0");
    out.extend(lsn.to_be_bytes());
    out.extend((lsn + 48).to_be_bytes());
    out.extend(time.to_be_bytes());
}

fn relation(out: &mut Vec<u8>) {
    out.push(b'R');
    out.extend(RELATION.to_be_bytes());
    out.extend(b"public\0employees\0d");
    out.extend(4i16.to_be_bytes());
    for (name, oid, key) in COLUMNS {
        out.push(u8::from(key));
        out.extend(name.as_bytes());
        out.push(0);
        out.extend(oid.to_be_bytes());
        out.extend((-1i32).to_be_bytes());
    }
}

const COLUMNS: [(&str, u32, bool); 4] = [
    ("id", INT4, true),
    ("name", VARCHAR, false),
    ("department", VARCHAR, false),
    ("salary", NUMERIC, false),
];

fn change(operation: Operation, form: Form, id: i32, out: &mut Vec<u8>) {
    let tag = match operation {
        Operation::Insert => b'I',
        Operation::Update => b'U',
        Operation::Delete => b'D',
    };
    out.push(tag);
    out.extend(RELATION.to_be_bytes());
    out.push(if operation == Operation::Delete {
        b'K'
    } else {
        b'N'
    });
    out.extend(4i16.to_be_bytes());
    let mut value = |binary: &[u8], text: String| {
        let (tag, bytes) = match form {
            Form::Binary => (b'b', binary),
            Form::Text => (b't', text.as_bytes()),
        };
        out.push(tag);
        out.extend((bytes.len() as u32).to_be_bytes());
        out.extend(bytes);
    };
    value(&id.to_be_bytes(), id.to_string());
    if operation == Operation::Delete {
        out.extend(b"nnn");
        return;
    }
    let (name, department) = (format!("new {id}"), format!("dept {}", id % 50));
    value(name.as_bytes(), name.clone());
    value(department.as_bytes(), department.clone());
    // One digit of base 10,000: digits, weight, sign, scale, digit.
    let salary = (2_000 + id % 5_000) as i16;
    let mut numeric = [0u8; 10];
    numeric[1] = 1;
    numeric[8..].copy_from_slice(&salary.to_be_bytes());
    value(&numeric, salary.to_string());
}

/// `employees` and `employees_cdc`, as the catalogs of both servers describe them.
fn captured() -> Captured {
    let kind = |oid: u32| {
        let (name, wire) = match oid {
            VARCHAR => ("varchar", "text".to_owned()),
            INT4 => ("int4", oid.to_string()),
            NUMERIC => ("numeric", oid.to_string()),
            _ => ("timestamp", oid.to_string()),
        };
        Type::named(&format!("pg_catalog.{name}"), Some(wire))
    };
    let source = SourceTable {
        oid: RELATION,
        name: TableName::new("public", "employees"),
        replica_identity: 'd',
        kind: 'r',
        columns: COLUMNS
            .iter()
            .map(|&(name, oid, _)| SourceColumn {
                name: name.to_owned(),
                type_oid: oid,
                modifier: -1,
            })
            .collect(),
        key: vec!["id".to_owned()],
        types: Types::new(
            COLUMNS
                .iter()
                .map(|&(_, oid, _)| ((oid, -1), Some(kind(oid))))
                .collect(),
        ),
    };
    let history = [
        ("cdc_id", INT4),
        ("change_type", VARCHAR),
        ("id", INT4),
        ("name", VARCHAR),
        ("department", VARCHAR),
        ("salary", NUMERIC),
        ("change_timestamp", TIMESTAMP),
    ];
    let history = HistoryTable {
        name: TableName::new("public", "employees_cdc"),
        columns: history
            .iter()
            .map(|&(name, oid)| HistoryColumn {
                name: name.to_owned(),
                type_oid: oid,
                modifier: -1,
                kind: kind(oid),
                not_null: name == "cdc_id",
                has_default: name == "cdc_id",
                generated: false,
            })
            .collect(),
        made: false,
        homes: Vec::new(),
    };
    Captured {
        source,
        history,
        rules: Rules::default(),
        settled: Vec::new(),
        gated: false,
        absent_unknown: false,
        layout: Default::default(),
    }
}
