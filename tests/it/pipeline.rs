//! What the pipeline makes of messages that are rare on a server: known transactions, partitions, columns left out.

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
                modifier: -1,
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
        absent_unknown: false,
        layout: Default::default(),
    }
}

fn relation_of(oid: u32, name: &str) -> Sent {
    Sent::Relation {
        oid,
        schema: "public".to_owned(),
        name: name.to_owned(),
        identity: b'd',
        columns: vec![SentColumn {
            flags: 1,
            name: "id".to_owned(),
            type_oid: 23,
            type_modifier: -1,
        }],
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
    let messages = [
        Sent::Begin(commit, 0, 1),
        relation_of(TABLE, "t"),
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

/// Two tables, a transaction in which message `bad` stands between two inserts into the first one, and one more after it:
/// the rows, where the first transaction is left out, if that goes.
fn left_out(bad: &[u8]) -> Result<Vec<String>, String> {
    let mut second = captured();
    (second.source.oid, second.source.name.name) = (TABLE + 1, "u".to_owned());
    second.history.name.name = "u_cdc".to_owned();
    let mut both = vec![captured(), second];
    for captured in &mut both {
        let mut kind = captured.history.columns[0].clone();
        (kind.name, kind.type_oid) = ("change_type".to_owned(), 25);
        kind.kind = Type::named("pg_catalog.text", Some("25".to_owned()));
        captured.history.columns.push(kind);
    }
    let mut pipeline = Pipeline::new(both, Lsn::ZERO, Lsn::ZERO, false);
    pipeline.skip(Lsn::from_u64(60));
    let mut batch = Batch::new(1024);
    let insert = |id: &str| Sent::Insert(TABLE, vec![Datum::Text(id.into())]).encode();
    let messages = [
        Sent::Begin(60, 0, 1).encode(),
        relation_of(TABLE, "t").encode(),
        relation_of(TABLE + 1, "u").encode(),
        insert("1"),
        bad.to_vec(),
        insert("2"),
        Sent::Commit(60, 70, 0).encode(),
        Sent::Begin(80, 0, 2).encode(),
        insert("3"),
        Sent::Commit(80, 90, 0).encode(),
    ];
    for message in messages {
        let accepted = pipeline.accept(&message, &mut batch);
        accepted.map_err(|error| error.to_string())?;
    }
    let row = |rows: &waltrail::history::batch::Rows| {
        let text = String::from_utf8(rows.bytes().to_vec()).unwrap();
        format!(
            "{}: {}",
            rows.plan().history.name,
            text.replace('\t', " ").replace('\n', ",")
        )
    };
    Ok(batch.tables().map(row).collect())
}

#[test]
fn a_gap_is_in_every_history_that_a_transaction_may_have_changed_that_is_left_out() {
    let gap_then_row = "t_cdc: \\N GAP,3 INSERT,".to_owned();
    let also = "u_cdc: \\N GAP,".to_owned();
    // The value is of another form, but the relation is there.
    let damaged = |oid: u32| [b"I".as_slice(), &oid.to_be_bytes(), b"N\0\x01x"].concat();
    let alone = vec![gap_then_row.replace("public.", "")];
    let names = |rows: Vec<String>| {
        rows.iter()
            .map(|row| row.replace("public.", ""))
            .collect::<Vec<_>>()
    };
    assert_eq!(left_out(&damaged(TABLE)).map(names), Ok(alone));
    let both = vec![gap_then_row, also];
    for of_any in [
        damaged(TABLE + 1),
        damaged(TABLE + 7),
        b"?".to_vec(),
        b"I\0".to_vec(),
    ] {
        assert_eq!(left_out(&of_any).map(names), Ok(both.clone()), "{of_any:?}");
    }
    // What holds for later transactions, and what ends this one, must be right.
    for refused in [b"R\0".as_slice(), b"C\0", &Sent::Begin(61, 0, 1).encode()] {
        assert!(left_out(refused).is_err(), "{refused:?}");
    }
}

/// A message of a transaction about itself.
fn say(flags: u8, prefix: &str, content: &str) -> Vec<u8> {
    Sent::Logical(flags, 1, prefix.into(), content.into()).encode()
}

/// What comes of each of these messages, and the rows, where the history ends at position 50 and the transaction at 80 is left out.
fn with_context(messages: &[Vec<u8>]) -> (Vec<Result<Outcome, String>>, String) {
    let mut captured = captured();
    for name in ["change_type", "context"] {
        let mut column = captured.history.columns[0].clone();
        (column.name, column.type_oid) = (name.to_owned(), 25);
        column.kind = Type::named("pg_catalog.text", Some("text".to_owned()));
        captured.history.columns.push(column);
    }
    assert!(Pipeline::records_context(std::slice::from_ref(&captured)));
    let mut pipeline = Pipeline::new(vec![captured], Lsn::ZERO, Lsn::from_u64(50), false);
    pipeline.skip(Lsn::from_u64(80));
    let mut batch = Batch::new(1024);
    let outcomes = messages.iter().map(|message| {
        let accepted = pipeline.accept(message, &mut batch);
        accepted.map_err(|error| error.to_string())
    });
    let outcomes = outcomes.collect();
    let rows = batch.tables().map(|rows| rows.bytes().to_vec());
    let rows = rows.collect::<Vec<_>>().concat();
    (outcomes, String::from_utf8(rows).unwrap())
}

#[test]
fn a_transaction_is_heard_from_its_message_to_its_end_and_no_other_is() {
    const OURS: &str = "waltrail.context";
    let insert = |id: &str| Sent::Insert(TABLE, vec![Datum::Text(id.into())]).encode();
    let begin = |at: u64| Sent::Begin(at, 0, 1).encode();
    let commit = |at: u64| Sent::Commit(at, at + 5, 0).encode();
    let wrong = say(1, OURS, "SECRET");
    let (outcomes, rows) = with_context(&[
        say(0, OURS, "{\"outside\":1}"),
        // It is in the history.
        begin(20),
        relation_of(TABLE, "t").encode(),
        wrong.clone(),
        insert("1"),
        commit(20),
        begin(60),
        insert("2"),
        say(1, "another", "{\"a\":0}"),
        say(0, OURS, "{\"a\":0}"),
        insert("3"),
        say(1, OURS, "{\"a\":1,\"b\":\"\\\\\\t\"}"),
        insert("4"),
        wrong.clone(),
        Sent::Truncate(0, vec![TABLE]).encode(),
        say(1, OURS, "{\"a\":2}"),
        Sent::Delete(TABLE, b'K', vec![Datum::Text(b"5".to_vec())]).encode(),
        commit(60),
        begin(70),
        insert("6"),
        commit(70),
        begin(80),
        say(1, OURS, "{\"a\":3}"),
        wrong,
        insert("7"),
        commit(80),
        say(1, OURS, "{}"),
    ]);
    assert_eq!(
        rows,
        "2\tINSERT\t\\N\n3\tINSERT\t\\N\n4\tINSERT\t{\"a\":1,\"b\":\"\\\\\\\\\\\\t\"}\n\
         \\N\tTRUNCATE\t{\"a\":1,\"b\":\"\\\\\\\\\\\\t\"}\n5\tDELETE\t{\"a\":2,\"b\":\"\\\\\\\\\\\\t\"}\n\
         6\tINSERT\t\\N\n\\N\tGAP\t\\N\n"
    );
    let refused =
        |outcome: &&Result<Outcome, String>| matches!(outcome, Ok(Outcome::ContextRefused(_)));
    assert_eq!(outcomes.iter().filter(refused).count(), 1);
    let (last, others) = outcomes.split_last().unwrap();
    assert!(last.is_err(), "{last:?}");
    assert!(others.iter().all(Result::is_ok), "{others:?}");
}

const PARTITION: u32 = 17_000;
const OTHER: u32 = 18_000;
const COLUMNS: [&str; 3] = ["id", "site", "note"];

/// A partitioned table with the key (id, site), and a history that has every old value.
fn partitioned(identity: char) -> Captured {
    let mut captured = captured();
    captured.source.kind = 'p';
    captured.source.replica_identity = identity;
    captured.source.key = vec!["id".to_owned(), "site".to_owned()];
    let id = captured.source.columns[0].clone();
    captured.source.columns = COLUMNS
        .iter()
        .map(|name| SourceColumn {
            name: (*name).to_owned(),
            ..id.clone()
        })
        .collect();
    let id = captured.history.columns[0].clone();
    let names =
        "change_type id site note old_id old_site old_note changed_columns unavailable_columns";
    captured.history.columns = names
        .split(' ')
        .map(|name| HistoryColumn {
            name: name.to_owned(),
            ..id.clone()
        })
        .collect();
    captured
}

/// A table with these columns; those of its identity have a star.
fn relation(oid: u32, identity: u8, columns: &str) -> Sent {
    let columns = columns.split(' ').map(|name| SentColumn {
        flags: u8::from(name.ends_with('*')),
        name: name.trim_end_matches('*').to_owned(),
        type_oid: 23,
        type_modifier: -1,
    });
    Sent::Relation {
        oid,
        schema: "public".to_owned(),
        name: format!("t{oid}").replace(&format!("t{TABLE}"), "t"),
        identity,
        columns: columns.collect(),
    }
}

/// Values as text; `-` is NULL, `u` is unchanged.
fn tuple(values: &str) -> Vec<Datum> {
    let datum = |value| match value {
        "-" => Datum::Null,
        "u" => Datum::Unchanged,
        value => Datum::Text(value.as_bytes().to_vec()),
    };
    values.split(' ').map(datum).collect()
}

/// Every row of one transaction, and what came of its messages but silence. Rows are in text.
fn rows(captured: Captured, messages: Vec<Sent>) -> (Vec<String>, Vec<Outcome>, u64) {
    // The catalogs are from after the transaction, so that a shape may differ from theirs.
    let mut pipeline = Pipeline::new(vec![captured], Lsn::from_u64(90), Lsn::ZERO, false);
    let mut batch = Batch::new(1024);
    let mut outcomes = Vec::new();
    let begin = [Sent::Begin(60, 0, 1)];
    for message in begin.into_iter().chain(messages) {
        match pipeline.accept(&message.encode(), &mut batch).unwrap() {
            Outcome::Quiet | Outcome::Begun { .. } => {}
            outcome => outcomes.push(outcome),
        }
    }
    let rows: Vec<u8> = batch
        .tables()
        .flat_map(|rows| rows.bytes().to_vec())
        .collect();
    let rows = String::from_utf8(rows).unwrap().replace("\\N", "-");
    let rows = rows.lines().map(|row| row.replace('\t', " ")).collect();
    let unavailable = batch.tables().map(|rows| rows.tally().unavailable).sum();
    (rows, outcomes, unavailable)
}

fn update(old: Option<(u8, &str)>, new: &str) -> Sent {
    let old = old.map(|(tag, old)| (tag, tuple(old)));
    Sent::Update(TABLE, old, tuple(new))
}

#[test]
fn null_in_a_key_tuple_is_not_a_value_of_the_key() {
    let mut captured = partitioned('d');
    captured.source.kind = 'r';
    let (rows, _, unavailable) = rows(
        captured,
        vec![
            relation(TABLE, b'd', "id* site* note"),
            Sent::Delete(TABLE, b'K', tuple("1 - -")),
            update(Some((b'K', "1 - -")), "2 u 5"),
        ],
    );
    assert_eq!(
        rows,
        [
            r#"1 - - 1 - - DELETE - {"site","note","old_site","old_note"}"#,
            r#"2 - 5 1 - - UPDATE - {"site","old_site","old_note"}"#,
        ]
    );
    assert_eq!(unavailable, 7);
}

#[test]
fn a_full_tuple_of_an_ordinary_table_is_trusted_and_null_in_it_a_value() {
    let mut captured = partitioned('f');
    captured.source.kind = 'r';
    let (rows, _, unavailable) = rows(
        captured,
        vec![
            relation(TABLE, b'f', "id* site* note*"),
            update(Some((b'O', "1 2 -")), "1 2 5"),
        ],
    );
    assert_eq!(rows, [r#"1 2 5 1 2 - UPDATE {"note"} -"#]);
    assert_eq!(unavailable, 0);
}

#[test]
fn a_partition_is_taken_by_its_identity_until_it_has_another_one() {
    let (full, key) = ("id* site* note*", "id* site* note");
    let (rows, outcomes, _) = rows(
        partitioned('f'),
        vec![
            relation(TABLE, b'f', full),
            relation(PARTITION, b'd', key),
            update(Some((b'O', "1 2 -")), "1 3 5"),
            update(None, "1 3 6"),
            // The same again: no second warning.
            relation(TABLE, b'f', full),
            relation(PARTITION, b'd', key),
            Sent::Delete(TABLE, b'O', tuple("1 3 -")),
            relation(TABLE, b'f', full),
            relation(PARTITION, b'f', full),
            Sent::Delete(TABLE, b'O', tuple("1 3 -")),
        ],
    );
    assert_eq!(
        rows,
        [
            r#"1 3 5 1 2 - UPDATE - {"old_note"}"#,
            r#"1 3 6 1 3 - UPDATE - {"old_note"}"#,
            r#"1 3 - 1 3 - DELETE - {"note","old_note"}"#,
            "1 3 - 1 3 - DELETE - -",
        ]
    );
    assert!(
        matches!(&outcomes[..], [Outcome::Lacking(lacking)]
            if lacking.remedy == "ALTER TABLE public.t17000 REPLICA IDENTITY FULL"),
        "{outcomes:?}"
    );
}

/// The server picks the partition's columns by the numbers of the table's, so that a wrong one can stand there.
#[test]
fn a_partition_whose_columns_are_not_the_tables_says_nothing_of_its_key() {
    let (rows, outcomes, _) = rows(
        partitioned('d'),
        vec![
            relation(TABLE, b'd', "id* site*"),
            relation(PARTITION, b'd', "id* note"),
            update(None, "1 2"),
        ],
    );
    assert_eq!(rows, [r#"1 2 - - UPDATE - {"old_id","old_site"}"#]);
    assert!(
        matches!(&outcomes[..], [Outcome::Lacking(lacking)] if lacking.identity == "DEFAULT"),
        "{outcomes:?}"
    );
}

#[test]
fn a_table_that_follows_a_partitioned_one_is_not_taken_for_its_partition() {
    let table = || relation(TABLE, b'd', "id* site* note");
    let partition = relation(PARTITION, b'd', "id* site* note");
    let other = || relation(OTHER, b'i', "id* site note");
    let (rows, outcomes, _) = rows(
        partitioned('d'),
        vec![
            table(),
            partition,
            other(),
            update(None, "1 2 3"),
            // A TRUNCATE describes the table alone.
            table(),
            Sent::Truncate(0, vec![TABLE]),
            other(),
            // So does one of several; this one has a column that is not the table's.
            table(),
            relation(OTHER + 1, b'i', "id* else"),
            Sent::Truncate(0, vec![TABLE, OTHER + 1]),
            update(None, "1 2 4"),
        ],
    );
    assert_eq!(outcomes, []);
    assert_eq!(rows[0], r#"1 2 3 1 2 - UPDATE - {"old_note"}"#);
    assert_eq!(rows[3], r#"1 2 4 1 2 - UPDATE - {"old_note"}"#);
}

#[test]
fn a_column_that_an_altered_publication_left_out_is_named_in_every_row() {
    let mut captured = partitioned('d');
    captured.source.kind = 'r';
    let messages = || {
        vec![
            relation(TABLE, b'd', "id* site*"),
            Sent::Insert(TABLE, tuple("1 2")),
            update(None, "1 2"),
            Sent::Delete(TABLE, b'K', tuple("1 2")),
            Sent::Truncate(0, vec![TABLE]),
        ]
    };
    // A column that is only in catalogs from later has no value yet.
    let (without, _, unavailable) = rows(captured.clone(), messages());
    assert_eq!(
        without,
        [
            "1 2 - - INSERT - -",
            "1 2 1 2 UPDATE - -",
            "1 2 1 2 DELETE - -",
            "- - - - TRUNCATE - -",
        ]
    );
    assert_eq!(unavailable, 0);
    let mut altered = partitioned('d');
    altered.source.kind = 'r';
    altered.absent_unknown = true;
    let (named, _, unavailable) = rows(altered.clone(), messages());
    assert_eq!(
        named,
        [
            r#"1 2 - - INSERT - {"note"}"#,
            r#"1 2 1 2 UPDATE - {"note","old_note"}"#,
            r#"1 2 1 2 DELETE - {"note","old_note"}"#,
            "- - - - TRUNCATE - -",
        ]
    );
    assert_eq!(unavailable, 5);
    altered.rules.exclude = vec!["note".to_owned()];
    assert_eq!(rows(altered, messages()).0, without);
}
