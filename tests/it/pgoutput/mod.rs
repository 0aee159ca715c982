//! What is read, what is refused and under which name: by hand here, by chance in `chance`; the seeds of the fuzzer in
//! `corpus`.

pub mod build;
mod chance;
mod corpus;

use waltrail::lsn::Lsn;
use waltrail::pgoutput::*;

/// The fields of a message, one after another.
fn bytes(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

const LSN_1: &[u8] = &[0, 0, 0, 0, 0x01, 0x52, 0x0A, 0x30];
const LSN_2: &[u8] = &[0, 0, 0, 0, 0x01, 0x52, 0x0A, 0x60];
const TIME: &[u8] = &[0, 0, 0, 0, 0, 0, 0x03, 0xE8];
const OID: &[u8] = &[0, 0, 0x40, 0x01];

// Messages, byte by byte.

#[test]
fn begin_says_where_and_when_which_transaction_committed() {
    let sent = bytes(&[b"B", LSN_1, TIME, &[0, 0, 0x02, 0xDB]]);
    let Ok(Message::Begin(begin)) = Message::parse(&sent) else {
        panic!("not a Begin");
    };
    assert_eq!(
        begin,
        Begin {
            commit_lsn: Lsn::from_u64(0x0152_0A30),
            commit_time: Timestamp(1000),
            xid: 731,
        }
    );
}

#[test]
fn a_time_before_2000_is_negative() {
    let sent = bytes(&[b"B", LSN_1, &[0xFF; 8], &[0xFF; 4]]);
    let Ok(Message::Begin(begin)) = Message::parse(&sent) else {
        panic!("not a Begin");
    };
    assert_eq!((begin.commit_time, begin.xid), (Timestamp(-1), u32::MAX));
}

#[test]
fn commit_says_where_its_record_starts_and_ends() {
    let sent = bytes(&[b"C\0", LSN_1, LSN_2, TIME]);
    let Ok(Message::Commit(commit)) = Message::parse(&sent) else {
        panic!("not a Commit");
    };
    assert_eq!(
        commit,
        Commit {
            commit_lsn: Lsn::from_u64(0x0152_0A30),
            end_lsn: Lsn::from_u64(0x0152_0A60),
            commit_time: Timestamp(1000),
        }
    );
}

#[test]
fn origin_says_whence_the_transaction_came() {
    let sent = bytes(&[b"O", LSN_1, b"pg_16389\0"]);
    let Ok(Message::Origin(origin)) = Message::parse(&sent) else {
        panic!("not an Origin");
    };
    assert_eq!(
        origin,
        Origin {
            commit_lsn: Lsn::from_u64(0x0152_0A30),
            name: "pg_16389",
        }
    );
}

#[test]
fn relation_says_what_the_table_looks_like() {
    let sent = bytes(&[
        b"R",
        OID,
        b"public\0employees\0d",
        &[0, 2],
        b"\x01id\0",
        &[0, 0, 0, 20],
        &[0xFF; 4],
        b"\0name\0",
        &[0, 0, 0x04, 0x13],
        &[0, 0, 0, 36],
    ]);
    let Ok(Message::Relation(relation)) = Message::parse(&sent) else {
        panic!("not a Relation");
    };
    assert_eq!(relation.oid, 0x4001);
    assert_eq!((relation.schema, relation.name), ("public", "employees"));
    assert_eq!(relation.replica_identity, ReplicaIdentity::Default);
    assert_eq!(relation.columns().left(), 2);
    assert_eq!(
        relation.columns().collect::<Result<Vec<_>, _>>(),
        Ok(vec![
            Column {
                key: true,
                name: "id",
                type_oid: 20,
                type_modifier: -1,
            },
            Column {
                key: false,
                name: "name",
                type_oid: 1043,
                type_modifier: 36,
            },
        ])
    );
}

#[test]
fn every_replica_identity_has_its_letter() {
    let identity = |letter: u8| {
        let sent = bytes(&[b"R", OID, b"\0t\0", &[letter], &[0, 0]]);
        match Message::parse(&sent) {
            Ok(Message::Relation(relation)) => Ok(relation.replica_identity),
            Ok(_) => panic!("not a Relation"),
            Err(error) => Err(error),
        }
    };
    assert_eq!(identity(b'd'), Ok(ReplicaIdentity::Default));
    assert_eq!(identity(b'n'), Ok(ReplicaIdentity::Nothing));
    assert_eq!(identity(b'f'), Ok(ReplicaIdentity::Full));
    assert_eq!(identity(b'i'), Ok(ReplicaIdentity::Index));
    assert_eq!(
        identity(b'x'),
        Err(DecodeError::Unknown("replica identity of Relation"))
    );
}

#[test]
fn type_says_what_an_oid_is_called() {
    let sent = bytes(&[b"Y", OID, b"public\0mood\0"]);
    let Ok(Message::Type(named)) = Message::parse(&sent) else {
        panic!("not a Type");
    };
    assert_eq!(
        named,
        Type {
            oid: 0x4001,
            schema: "public",
            name: "mood",
        }
    );
}

/// Four columns: null, unchanged, text "hi", binary 00 07.
const NEW: &[u8] = b"\0\x04nut\0\0\0\x02hib\0\0\0\x02\0\x07";
/// Two columns: text "k", null.
const OLD: &[u8] = b"\0\x02t\0\0\0\x01kn";

fn assert_is_new(tuple: &Tuple<'_>) {
    assert_eq!((tuple.len(), tuple.is_empty()), (4, false));
    let mut values = tuple.values();
    assert_eq!(values.next(), Ok(Some(Value::Null)));
    assert_eq!(values.next(), Ok(Some(Value::Unchanged)));
    let Ok(Some(Value::Text(text))) = values.next() else {
        panic!("not a text");
    };
    assert_eq!(text.bytes(), b"hi");
    assert_eq!(text.with_length(), b"\0\0\0\x02hi");
    let Ok(Some(Value::Binary(binary))) = values.next() else {
        panic!("not a binary");
    };
    assert_eq!(binary.bytes(), b"\0\x07");
    assert_eq!(binary.with_length(), b"\0\0\0\x02\0\x07");
    assert_eq!(values.next(), Ok(None));
    assert_eq!(values.next(), Ok(None));
}

fn assert_is_old(tuple: &Tuple<'_>) {
    let mut values = tuple.values();
    assert!(matches!(values.next(), Ok(Some(Value::Text(k))) if k.bytes() == b"k"));
    assert_eq!(values.next(), Ok(Some(Value::Null)));
    assert_eq!(values.next(), Ok(None));
}

#[test]
fn insert_holds_the_new_row() {
    let sent = bytes(&[b"I", OID, b"N", NEW]);
    let Ok(Message::Insert(insert)) = Message::parse(&sent) else {
        panic!("not an Insert");
    };
    assert_eq!(insert.relation, 0x4001);
    assert_is_new(&insert.new);
}

#[test]
fn update_holds_the_new_row_and_as_much_of_the_old_one_as_was_logged() {
    for (letter, kind) in [(b"K", OldKind::Key), (b"O", OldKind::Full)] {
        let sent = bytes(&[b"U", OID, letter, OLD, b"N", NEW]);
        let Ok(Message::Update(update)) = Message::parse(&sent) else {
            panic!("not an Update");
        };
        assert_eq!(update.relation, 0x4001);
        let Some((said, old)) = update.old else {
            panic!("no old tuple");
        };
        assert_eq!(said, kind);
        assert_is_old(&old);
        assert_is_new(&update.new);
    }
    let sent = bytes(&[b"U", OID, b"N", NEW]);
    let Ok(Message::Update(update)) = Message::parse(&sent) else {
        panic!("not an Update");
    };
    assert!(update.old.is_none());
    assert_is_new(&update.new);
}

#[test]
fn delete_holds_as_much_of_the_old_row_as_was_logged() {
    for (letter, kind) in [(b"K", OldKind::Key), (b"O", OldKind::Full)] {
        let sent = bytes(&[b"D", OID, letter, OLD]);
        let Ok(Message::Delete(delete)) = Message::parse(&sent) else {
            panic!("not a Delete");
        };
        assert_eq!((delete.relation, delete.kind), (0x4001, kind));
        assert_is_old(&delete.old);
    }
}

#[test]
fn truncate_names_all_its_tables() {
    for (flags, cascade, restart) in [
        (0, false, false),
        (1, true, false),
        (2, false, true),
        (3, true, true),
    ] {
        let sent = bytes(&[b"T", &[0, 0, 0, 2, flags], OID, &[0, 0, 0x40, 0x02]]);
        let Ok(Message::Truncate(truncate)) = Message::parse(&sent) else {
            panic!("not a Truncate");
        };
        assert_eq!(
            (truncate.cascade, truncate.restart_identity),
            (cascade, restart)
        );
        assert_eq!(truncate.relations().len(), 2);
        assert!(truncate.relations().eq([0x4001, 0x4002]));
    }
}

#[test]
fn a_logical_message_holds_any_bytes() {
    for (flags, transactional) in [(0, false), (1, true)] {
        let sent = bytes(&[
            b"M",
            &[flags],
            LSN_1,
            b"app\xff\0",
            &[0, 0, 0, 3],
            &[0xFF, 0, 1],
        ]);
        let Ok(Message::Logical(message)) = Message::parse(&sent) else {
            panic!("not a Message");
        };
        assert_eq!(
            message,
            LogicalMessage {
                transactional,
                lsn: Lsn::from_u64(0x0152_0A30),
                prefix: b"app\xff",
                content: &[0xFF, 0, 1],
            }
        );
    }
}

#[test]
fn a_table_may_have_no_columns() {
    assert_eq!(walk(&bytes(&[b"I", OID, b"N\0\0"])), Ok(()));
    assert_eq!(walk(&bytes(&[b"R", OID, b"public\0t\0d\0\0"])), Ok(()));
    assert_eq!(
        Message::parse(&bytes(&[b"I", OID, b"N\0\0n"])).err(),
        Some(DecodeError::Trailing("a tuple"))
    );
    assert_eq!(
        Message::parse(&bytes(&[b"R", OID, b"public\0t\0d\0\0\0"])).err(),
        Some(DecodeError::Trailing("Relation"))
    );
}

// What is refused, and how it is named.

#[track_caller]
fn refused(parts: &[&[u8]], with: DecodeError) {
    assert_eq!(walk(&bytes(parts)), Err(with));
}

#[test]
fn only_messages_of_protocol_version_1_are_known() {
    for tag in *b"SEcAbPKrpwkx\0" {
        refused(&[&[tag], &[0; 40]], DecodeError::UnknownMessage(tag));
    }
    refused(&[], DecodeError::Truncated("the message type"));
}

#[test]
fn flags_without_a_meaning_are_refused() {
    refused(
        &[b"C\x01", LSN_1, LSN_2, TIME],
        DecodeError::Unknown("flag of Commit"),
    );
    refused(
        &[b"R", OID, b"\0t\0d\0\x01\x02c\0", OID, OID],
        DecodeError::Unknown("flag of a column of Relation"),
    );
    refused(
        &[b"T\0\0\0\x01\x04", OID],
        DecodeError::Unknown("flag of Truncate"),
    );
    refused(
        &[b"M\x02", LSN_1, b"p\0\0\0\0\0"],
        DecodeError::Unknown("flag of Message"),
    );
}

#[test]
fn tuple_markers_stand_where_they_belong() {
    for marker in [b"K", b"O", b"n"] {
        refused(
            &[b"I", OID, marker, OLD],
            DecodeError::Unknown("tuple marker of Insert"),
        );
    }
    for marker in [b"N", b"k"] {
        refused(
            &[b"D", OID, marker, OLD],
            DecodeError::Unknown("tuple marker of Delete"),
        );
    }
    let update = DecodeError::Unknown("tuple marker of Update");
    refused(&[b"U", OID, b"X", NEW], update);
    refused(&[b"U", OID, b"K", OLD, b"K", OLD, b"N", NEW], update);
}

#[test]
fn kinds_of_values_without_a_meaning_are_refused() {
    let unknown = DecodeError::Unknown("kind of a value of a tuple");
    refused(&[b"I", OID, b"N\0\x01x"], unknown);
    refused(&[b"U", OID, b"K\0\x01x", b"N", NEW], unknown);
    refused(&[b"D", OID, b"K\0\x01x"], unknown);
}

#[test]
fn only_a_new_tuple_leaves_out_unchanged_values() {
    refused(
        &[b"U", OID, b"O\0\x01u", b"N", NEW],
        DecodeError::UnchangedInOldTuple,
    );
    refused(&[b"D", OID, b"K\0\x01u"], DecodeError::UnchangedInOldTuple);
}

#[test]
fn negative_lengths_are_refused() {
    let value = DecodeError::Negative("a value of a tuple");
    refused(&[b"I", OID, b"N\0\x01t", &[0xFF; 4]], value);
    refused(&[b"I", OID, b"N\0\x01b\x80\0\0\0"], value);
    refused(
        &[b"I", OID, b"N\xFF\xFF"],
        DecodeError::Negative("the column count of a tuple"),
    );
    refused(
        &[b"R", OID, b"\0t\0d\x80\0"],
        DecodeError::Negative("the column count of Relation"),
    );
    refused(
        &[b"T\xFF\xFF\xFF\xFF\0"],
        DecodeError::Negative("the relation count of Truncate"),
    );
    refused(
        &[b"M\0", LSN_1, b"p\0", &[0xFF; 4]],
        DecodeError::Negative("the content of Message"),
    );
}

#[test]
fn lengths_beyond_the_message_are_refused() {
    let value = DecodeError::Truncated("a value of a tuple");
    refused(&[b"I", OID, b"N\0\x01t\0\0\0\x03hi"], value);
    refused(&[b"I", OID, b"N\0\x01t\x7F\xFF\xFF\xFF"], value);
    refused(&[b"I", OID, b"N\0\x02n"], value);
    refused(
        &[b"T\x7F\xFF\xFF\xFF\0", OID],
        DecodeError::Truncated("the relations of Truncate"),
    );
    refused(
        &[b"Y", OID, b"public\0mood"],
        DecodeError::Truncated("the name of Type"),
    );
}

#[test]
fn names_are_utf_8() {
    refused(
        &[b"Y", OID, b"public\0\xC3\0"],
        DecodeError::NotUtf8("the name of Type"),
    );
    refused(
        &[b"R", OID, b"\xFF\0t\0d\0\0"],
        DecodeError::NotUtf8("the schema of Relation"),
    );
    refused(
        &[b"R", OID, b"\0t\0d\0\x01\0\xE4\0", OID, OID],
        DecodeError::NotUtf8("the name of a column of Relation"),
    );
    refused(
        &[b"O", LSN_1, b"\x80\0"],
        DecodeError::NotUtf8("the name of Origin"),
    );
}

#[test]
fn the_last_column_is_not_handed_out_when_bytes_follow_it() {
    let sent = bytes(&[b"I", OID, b"N\0\x02nn", b"n"]);
    let Ok(Message::Insert(insert)) = Message::parse(&sent) else {
        panic!("not an Insert");
    };
    let mut values = insert.new.values();
    assert_eq!(values.next(), Ok(Some(Value::Null)));
    assert_eq!(values.next(), Err(DecodeError::Trailing("a tuple")));
    assert_eq!(
        insert.new.check(),
        Err(DecodeError::Trailing("a tuple")),
        "and check says so too"
    );
}

#[test]
fn columns_end_after_an_error() {
    let sent = bytes(&[b"R", OID, b"\0t\0d\0\x03\x02"]);
    let Ok(Message::Relation(relation)) = Message::parse(&sent) else {
        panic!("not a Relation");
    };
    let mut columns = relation.columns();
    assert!(columns.next().is_some_and(|column| column.is_err()));
    assert!(columns.next().is_none());
}

#[test]
fn debug_shows_no_values() {
    for sent in [
        bytes(&[b"I", OID, b"N\0\x01t\0\0\0\x06secret"]),
        bytes(&[b"M\0", LSN_1, b"p\0\0\0\0\x06secret"]),
    ] {
        let message = Message::parse(&sent).unwrap();
        let shown = format!("{message:?}");
        assert!(
            !shown.contains("secret") && !shown.contains("115"),
            "{shown}"
        );
    }
    let sent = bytes(&[b"I", OID, b"N\0\x01t\0\0\0\x06secret"]);
    let Ok(Message::Insert(insert)) = Message::parse(&sent) else {
        panic!("not an Insert");
    };
    let mut values = insert.new.values();
    assert_eq!(format!("{values:?}"), "Values(1 left)");
    assert_eq!(format!("{:?}", values.next()), "Ok(Some(Text(6 bytes)))");
}
