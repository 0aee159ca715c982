//! The short way of a change and the long one lead to the same rows and the same errors, whatever the messages.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;
use crate::pgoutput::build::{Datum, Sent, SentColumn};
use crate::schema::plan::Own;
use crate::schema::{HistoryColumn, SourceColumn};

/// Tables that take turns in the stream.
const TABLES: [u32; 2] = [16_384, 16_385];
/// Name, type and whether it belongs to the key; both tables have so many of them.
const COLUMNS: [(&str, u32, bool); 10] = [
    ("id", 23, true),
    ("a", 25, false),
    ("part", 20, true),
    ("b", 1700, false),
    ("c", 20, false),
    ("d", 25, false),
    ("e", 1700, false),
    ("f", 16, false),
    ("g", 25, false),
    ("h", 2950, false),
];

/// A table whose history has these of waltrail's own columns, and which of the others.
#[derive(Clone, Debug)]
struct Table {
    own: Vec<(Own, &'static str)>,
    old: Option<&'static str>,
    excluded: Option<&'static str>,
    gated: bool,
}

fn table() -> impl Strategy<Value = Table> {
    let own = proptest::sample::subsequence(
        vec![
            (Own::ChangeType, "text"),
            (Own::ChangeTimestamp, "1114"),
            (Own::CommitLsn, "3220"),
            (Own::TxSeq, "20"),
            (Own::TxSeq, "23"),
            (Own::Xid, "28"),
            (Own::Xid, "20"),
            (Own::ChangedColumns, "1009"),
            (Own::UnavailableColumns, "1009"),
        ],
        0..=9,
    );
    let column = || prop_oneof![3 => Just(None), 1 => select(&["id", "a", "b"][..]).prop_map(Some)];
    (own.prop_shuffle(), column(), column(), any::<bool>()).prop_map(
        |(mut own, old, excluded, gated)| {
            let mut seen = Vec::new();
            own.retain(|(own, _)| {
                let first = !seen.contains(own);
                seen.push(*own);
                first
            });
            Table {
                own,
                old,
                excluded,
                gated,
            }
        },
    )
}

impl Table {
    fn captured(&self, oid: u32, columns: &[(&str, u32, bool)]) -> Captured {
        let name = |suffix: &str| TableName::new("public", format!("t{oid}{suffix}"));
        let history = |name: String, wire: String| HistoryColumn {
            name,
            type_oid: 0,
            wire_type: Some(wire),
            not_null: false,
            has_default: false,
            generated: false,
        };
        let own = self.own.iter().filter_map(|&(own, wire)| {
            let (name, _) = Own::ALL.iter().find(|(_, kind)| *kind == own)?;
            Some(history((*name).to_owned(), wire.to_owned()))
        });
        let old = columns.iter().filter(|(name, ..)| Some(*name) == self.old);
        let old = old.map(|(name, oid, _)| history(format!("old_{name}"), oid.to_string()));
        let new = columns
            .iter()
            .map(|(name, oid, _)| history((*name).to_owned(), oid.to_string()));
        Captured {
            source: SourceTable {
                oid,
                name: name(""),
                replica_identity: 'd',
                kind: 'r',
                columns: columns
                    .iter()
                    .map(|(name, oid, _)| SourceColumn {
                        name: (*name).to_owned(),
                        type_oid: *oid,
                        type_sql: String::new(),
                        wire_type: Some(oid.to_string()),
                    })
                    .collect(),
                key: columns
                    .iter()
                    .filter(|(.., key)| *key)
                    .map(|(name, ..)| (*name).to_owned())
                    .collect(),
            },
            history: HistoryTable {
                name: name("_cdc"),
                columns: own.chain(new).chain(old).collect(),
            },
            exclude: self
                .excluded
                .iter()
                .map(|name| (*name).to_owned())
                .collect(),
            gated: self.gated,
        }
    }
}

fn relation(oid: u32, columns: &[(&str, u32, bool)]) -> Sent {
    Sent::Relation {
        oid,
        schema: "public".to_owned(),
        name: format!("t{oid}"),
        identity: b'd',
        columns: columns
            .iter()
            .map(|&(name, type_oid, key)| SentColumn {
                flags: u8::from(key),
                name: name.to_owned(),
                type_oid,
                type_modifier: -1,
            })
            .collect(),
    }
}

fn binary() -> impl Strategy<Value = Datum> {
    prop_oneof![30 => vec(any::<u8>(), 0..50), 1 => vec(any::<u8>(), 900..1100)]
        .prop_map(Datum::Binary)
}

fn tuple(width: usize) -> impl Strategy<Value = Vec<Datum>> {
    let datum = prop_oneof![
        60 => binary(),
        20 => Just(Datum::Null),
        2 => Just(Datum::Unchanged),
        1 => Just(Datum::Text(b"text".to_vec())),
    ];
    prop_oneof![30 => vec(datum.clone(), width), 1 => vec(datum, 0..COLUMNS.len() + 3)]
}

fn key(width: usize) -> impl Strategy<Value = Vec<Datum>> {
    let key = vec(binary(), width).prop_map(|values| {
        let keep = |(value, (.., key)): (Datum, (&str, u32, bool))| match key {
            true => value,
            false => Datum::Null,
        };
        std::iter::zip(values, COLUMNS).map(keep).collect()
    });
    prop_oneof![4 => key, 1 => tuple(width)]
}

/// A change, as bytes, some of which are damaged.
fn change(width: usize) -> impl Strategy<Value = Vec<u8>> {
    let oid = || prop_oneof![20 => select(&TABLES[..]), 1 => any::<u32>()];
    let old = prop_oneof![
        3 => Just(None),
        1 => (Just(b'K'), key(width)).prop_map(Some),
        1 => (Just(b'O'), tuple(width)).prop_map(Some),
    ];
    let sent = prop_oneof![
        (oid(), tuple(width)).prop_map(|(oid, new)| Sent::Insert(oid, new)),
        (oid(), old, tuple(width)).prop_map(|(oid, old, new)| Sent::Update(oid, old, new)),
        (oid(), key(width)).prop_map(|(oid, old)| Sent::Delete(oid, b'K', old)),
        (oid(), tuple(width)).prop_map(|(oid, old)| Sent::Delete(oid, b'O', old)),
        select(&TABLES[..]).prop_map(move |oid| relation(oid, &COLUMNS[..width])),
        (0..4u8, vec(select(&TABLES[..]), 0..3))
            .prop_map(|(flags, oids)| Sent::Truncate(flags, oids)),
    ];
    let damage = prop_oneof![
        60 => Just(None),
        1 => (any::<Index>(), prop_oneof![any::<u8>(), select(&b"IUDNKOntub"[..])]).prop_map(Some),
    ];
    let end = prop_oneof![60 => Just(None), 1 => (any::<Index>(), any::<bool>()).prop_map(Some)];
    (sent, damage, end).prop_map(|(sent, damage, end)| {
        let mut bytes = sent.encode();
        if let Some((at, byte)) = damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        match end {
            Some((at, true)) => bytes.truncate(at.index(bytes.len())),
            Some((_, false)) => bytes.push(0),
            None => {}
        }
        bytes
    })
}

/// What comes of the messages, and all that is in the batch if none was refused; shortly or one by one, the long way.
fn taken(
    tables: &[Table; 2],
    columns: &[(&str, u32, bool)],
    transactions: &[Vec<Vec<u8>>],
    shortly: bool,
) -> Vec<String> {
    let captured = std::iter::zip(tables, TABLES).map(|(table, oid)| table.captured(oid, columns));
    let mut pipeline = Pipeline::new(captured.collect(), Lsn::ZERO, Lsn::from_u64(3), true);
    let mut batch = Batch::new(0);
    let mut came = Vec::new();
    for (n, changes) in (1..).zip(transactions) {
        let mut messages = vec![Sent::Begin(2 * n, -7, n as u32).encode()];
        if n == 1 {
            messages.extend(TABLES.map(|oid| relation(oid, columns).encode()));
        }
        messages.extend_from_slice(changes);
        messages.push(Sent::Commit(2 * n, 2 * n + 1, -7).encode());
        let mut rest = messages.iter().map(Vec::as_slice);
        while let Some(message) = match shortly {
            true => pipeline.accept_short(&mut rest, &mut batch),
            false => rest.next(),
        } {
            let outcome = pipeline.accept(message, &mut batch);
            let failed = outcome.is_err();
            if !matches!(outcome, Ok(Outcome::Quiet)) {
                came.push(format!("{outcome:?} before {}", rest.len()));
            }
            if failed {
                return came;
            }
        }
    }
    came.push(format!(
        "{} {} {}",
        batch.count(),
        batch.bytes(),
        pipeline.take_unavailable()
    ));
    came.extend(batch.tables().map(|rows| {
        let table = &rows.plan().history;
        format!(
            "{table} {} {:?} {:?}",
            rows.count(),
            rows.marks(),
            rows.bytes()
        )
    }));
    came
}

#[test]
fn usual_changes_go_the_short_way() {
    for columns in (1..=COLUMNS.len()).map(|width| &COLUMNS[..width]) {
        let table = Table {
            own: vec![(Own::ChangeType, "text"), (Own::CommitLsn, "3220")],
            old: None,
            excluded: None,
            gated: false,
        };
        let (captured, checkpoint) = (table.captured(TABLES[0], columns), Lsn::from_u64(3));
        let mut pipeline = Pipeline::new(vec![captured], Lsn::ZERO, checkpoint, true);
        let mut batch = Batch::new(0);
        for message in [Sent::Begin(4, -7, 1), relation(TABLES[0], columns)] {
            pipeline.accept(&message.encode(), &mut batch).unwrap();
        }
        let row = |value: Datum| vec![value; columns.len()];
        let key = columns.iter().map(|(.., key)| match key {
            true => Datum::Binary(vec![1; 4]),
            false => Datum::Null,
        });
        let changes = [
            Sent::Insert(TABLES[0], row(Datum::Binary(vec![1; 4]))),
            Sent::Insert(TABLES[0], row(Datum::Binary(vec![1; 20]))),
            Sent::Update(TABLES[0], None, row(Datum::Null)),
            Sent::Delete(TABLES[0], b'K', key.collect()),
            Sent::Delete(TABLES[0], b'O', row(Datum::Binary(Vec::new()))),
        ]
        .map(|change| change.encode());
        let mut messages = changes.iter().map(Vec::as_slice);
        assert_eq!(pipeline.accept_short(&mut messages, &mut batch), None);
        assert_eq!(batch.count(), changes.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]
    #[test]
    fn the_short_way_says_what_the_long_way_says(
        tables in [table(), table()],
        (width, transactions) in (1..=COLUMNS.len()).prop_flat_map(|width| (Just(width), vec(vec(change(width), 0..8), 1..6))),
    ) {
        let columns = &COLUMNS[..width];
        let (short, long) =
            (taken(&tables, columns, &transactions, true), taken(&tables, columns, &transactions, false));
        prop_assert_eq!(short, long);
    }
}
