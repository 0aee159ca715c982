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
/// Name, type and whether it belongs to the key.
const COLUMNS: [(&str, u32, bool); 4] = [
    ("id", 23, true),
    ("a", 25, false),
    ("part", 20, true),
    ("b", 1700, false),
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
    fn captured(&self, oid: u32) -> Captured {
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
        let old = COLUMNS.iter().filter(|(name, ..)| Some(*name) == self.old);
        let old = old.map(|(name, oid, _)| history(format!("old_{name}"), oid.to_string()));
        let new = COLUMNS
            .iter()
            .map(|(name, oid, _)| history((*name).to_owned(), oid.to_string()));
        Captured {
            source: SourceTable {
                oid,
                name: name(""),
                replica_identity: 'd',
                kind: 'r',
                columns: COLUMNS
                    .iter()
                    .map(|(name, oid, _)| SourceColumn {
                        name: (*name).to_owned(),
                        type_oid: *oid,
                        type_sql: String::new(),
                        wire_type: Some(oid.to_string()),
                    })
                    .collect(),
                key: vec!["id".to_owned(), "part".to_owned()],
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

fn relation(oid: u32) -> Sent {
    Sent::Relation {
        oid,
        schema: "public".to_owned(),
        name: format!("t{oid}"),
        identity: b'd',
        columns: COLUMNS
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

fn tuple() -> impl Strategy<Value = Vec<Datum>> {
    let datum = prop_oneof![
        60 => binary(),
        20 => Just(Datum::Null),
        2 => Just(Datum::Unchanged),
        1 => Just(Datum::Text(b"text".to_vec())),
    ];
    prop_oneof![30 => vec(datum.clone(), 4), 1 => vec(datum, 0..7)]
}

fn key() -> impl Strategy<Value = Vec<Datum>> {
    prop_oneof![
        4 => (binary(), binary()).prop_map(|(id, part)| vec![id, Datum::Null, part, Datum::Null]),
        1 => tuple(),
    ]
}

/// A change, as bytes, some of which are damaged.
fn change() -> impl Strategy<Value = Vec<u8>> {
    let oid = || prop_oneof![20 => select(&TABLES[..]), 1 => any::<u32>()];
    let old = prop_oneof![
        3 => Just(None),
        1 => (Just(b'K'), key()).prop_map(Some),
        1 => (Just(b'O'), tuple()).prop_map(Some),
    ];
    let sent = prop_oneof![
        (oid(), tuple()).prop_map(|(oid, new)| Sent::Insert(oid, new)),
        (oid(), old, tuple()).prop_map(|(oid, old, new)| Sent::Update(oid, old, new)),
        (oid(), key()).prop_map(|(oid, old)| Sent::Delete(oid, b'K', old)),
        (oid(), tuple()).prop_map(|(oid, old)| Sent::Delete(oid, b'O', old)),
        select(&TABLES[..]).prop_map(relation),
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
fn taken(tables: &[Table; 2], transactions: &[Vec<Vec<u8>>], shortly: bool) -> Vec<String> {
    let captured = std::iter::zip(tables, TABLES).map(|(table, oid)| table.captured(oid));
    let mut pipeline = Pipeline::new(captured.collect(), Lsn::ZERO, Lsn::from_u64(3), true);
    let mut batch = Batch::new(0);
    let mut came = Vec::new();
    for (n, changes) in (1..).zip(transactions) {
        let mut messages = vec![Sent::Begin(2 * n, -7, n as u32).encode()];
        if n == 1 {
            messages.extend(TABLES.map(|oid| relation(oid).encode()));
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
            for known in pipeline.known.iter_mut().filter(|_| !shortly) {
                if let Known::Captured(followed) = known {
                    followed.short = Short::default();
                }
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]
    #[test]
    fn the_short_way_says_what_the_long_way_says(
        tables in [table(), table()],
        transactions in vec(vec(change(), 0..8), 1..6),
    ) {
        let (short, long) = (taken(&tables, &transactions, true), taken(&tables, &transactions, false));
        prop_assert_eq!(short, long);
    }
}
