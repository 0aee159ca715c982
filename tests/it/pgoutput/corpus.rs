//! What the fuzzer starts from.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::build::{Datum, Sent, SentColumn};

fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/pgoutput")
}

/// At least one message of every kind, and one seed of every kind of error.
fn seeds() -> BTreeMap<&'static str, Vec<u8>> {
    let text = |text: &str| Datum::Text(text.into());
    let column = |flags, name: &str, type_oid, type_modifier| SentColumn {
        flags,
        name: name.into(),
        type_oid,
        type_modifier,
    };
    let employee = || {
        vec![
            Datum::Binary(7i64.to_be_bytes().into()),
            text("Ada Lovelace"),
            Datum::Null,
            Datum::Unchanged,
        ]
    };
    let key = || vec![text("7"), Datum::Null, Datum::Null, Datum::Null];
    let full = || vec![text("7"), text("Ada"), text("2026-01-31"), text("")];
    let relation = |identity, columns| Sent::Relation {
        oid: 16385,
        schema: "public".into(),
        name: "employees".into(),
        identity,
        columns,
    };
    let columns = || {
        vec![
            column(1, "id", 20, -1),
            column(0, "name", 1043, 36),
            column(0, "left_on", 1082, -1),
            column(0, "notiz_ü", 25, -1),
        ]
    };
    let good = [
        ("begin", Sent::Begin(0x0152_0A30, 823_456_789_012_345, 731)),
        (
            "commit",
            Sent::Commit(0x0152_0A30, 0x0152_0A60, 823_456_789_012_345),
        ),
        ("origin", Sent::Origin(0x99, "pg_16389".into())),
        ("relation_default", relation(b'd', columns())),
        ("relation_full", relation(b'f', columns())),
        ("relation_index", relation(b'i', columns())),
        ("relation_nothing_no_columns", relation(b'n', vec![])),
        ("type", Sent::Type(16390, "public".into(), "mood".into())),
        ("insert", Sent::Insert(16385, employee())),
        ("insert_no_columns", Sent::Insert(16385, vec![])),
        ("update", Sent::Update(16385, None, employee())),
        (
            "update_key",
            Sent::Update(16385, Some((b'K', key())), employee()),
        ),
        (
            "update_full",
            Sent::Update(16385, Some((b'O', full())), employee()),
        ),
        ("delete_key", Sent::Delete(16385, b'K', key())),
        ("delete_full", Sent::Delete(16385, b'O', full())),
        ("truncate", Sent::Truncate(0, vec![16385])),
        (
            "truncate_cascade_restart",
            Sent::Truncate(3, vec![16385, 16386]),
        ),
        (
            "message",
            Sent::Logical(1, 0x0152_0A30, "app".into(), b"{}".into()),
        ),
    ];
    let bad = [
        ("unknown_message", b"S\0\0\x02\xDB\x01".to_vec()),
        ("truncated", b"I\0\0\x40\x01N\0\x01t\0\0\0\x09short".into()),
        ("trailing", b"I\0\0\x40\x01N\0\x01nn".into()),
        ("negative", b"I\0\0\x40\x01N\0\x01b\xFF\xFF\xFF\xFE".into()),
        ("unknown_kind", b"D\0\0\x40\x01K\0\x01x".into()),
        ("not_utf8", b"Y\0\0\x40\x01\0\xFF\0".into()),
        ("unchanged_in_old", b"D\0\0\x40\x01O\0\x01u".into()),
    ];
    let good = good.map(|(name, sent)| (name, sent.encode()));
    good.into_iter().chain(bad).collect()
}

/// With `WRITE_SEEDS=1` the corpus is written anew, after a change of [`seeds`].
#[test]
fn the_fuzzer_starts_from_these_seeds() {
    if std::env::var_os("WRITE_SEEDS").is_some() {
        fs::create_dir_all(corpus()).unwrap();
        for (name, bytes) in seeds() {
            fs::write(corpus().join(name), bytes).unwrap();
        }
    }
    for (name, bytes) in seeds() {
        assert_eq!(fs::read(corpus().join(name)).unwrap(), bytes, "{name}");
    }
}
