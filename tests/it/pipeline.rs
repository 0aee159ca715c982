//! What the pipeline makes of tables that changed since the catalogs were read.

use waltrail::history::batch::Batch;
use waltrail::lsn::Lsn;
use waltrail::pipeline::{Captured, Outcome, Pipeline};
use waltrail::schema::exact::Type;
use waltrail::schema::types::Types;
use waltrail::schema::{HistoryColumn, HistoryTable, Rules, SourceColumn, SourceTable, TableName};

use crate::pgoutput::build::{Datum, Sent, SentColumn};

const TABLE: u32 = 16_384;

fn integer() -> Type {
    Type::named("pg_catalog.int4", Some("23".to_owned()))
}

fn captured() -> Captured {
    let name = |name: &str| TableName {
        schema: "public".to_owned(),
        name: name.to_owned(),
    };
    Captured {
        source: SourceTable {
            oid: TABLE,
            name: name("t"),
            replica_identity: 'd',
            kind: 'r',
            columns: vec![SourceColumn {
                name: "id".to_owned(),
                type_oid: 23,
                modifier: -1,
            }],
            key: vec!["id".to_owned()],
            types: Types::new([((23, -1), Some(integer()))].into()),
        },
        history: HistoryTable {
            name: name("t_cdc"),
            columns: vec![HistoryColumn {
                name: "id".to_owned(),
                type_oid: 23,
                kind: integer(),
                not_null: false,
                has_default: false,
                generated: false,
            }],
            made: false,
            homes: Vec::new(),
        },
        rules: Rules::default(),
        settled: Vec::new(),
        gated: false,
    }
}

/// A transaction of one row: what came of its commit, and the rows in the batch.
fn transaction(checkpoint: u64, commit: u64, end: u64) -> (Outcome, usize) {
    let mut pipeline = Pipeline::new(
        vec![captured()],
        Lsn::ZERO,
        Lsn::from_u64(checkpoint),
        false,
    );
    let mut batch = Batch::new(1024);
    let relation = Sent::Relation {
        oid: TABLE,
        schema: "public".to_owned(),
        name: "t".to_owned(),
        identity: b'd',
        columns: vec![SentColumn {
            flags: 1,
            name: "id".to_owned(),
            type_oid: 23,
            type_modifier: -1,
        }],
    };
    let messages = [
        Sent::Begin(commit, 0, 1),
        relation,
        Sent::Insert(TABLE, vec![Datum::Text(b"7".to_vec())]),
        Sent::Commit(commit, end, 0),
    ];
    let mut last = Outcome::Quiet;
    for message in messages {
        last = pipeline.accept(&message.encode(), &mut batch).unwrap();
    }
    (last, batch.count())
}

/// The server usually skips known transactions itself, since the stream starts after them.
#[test]
fn a_transaction_that_the_history_has_leaves_nothing_in_the_batch() {
    let committed = |end: u64, recorded| Outcome::Committed {
        end_lsn: Lsn::from_u64(end),
        recorded,
    };
    assert_eq!(transaction(100, 60, 100), (committed(100, 0), 0));
    assert_eq!(transaction(100, 100, 140), (committed(140, 1), 1));
}
