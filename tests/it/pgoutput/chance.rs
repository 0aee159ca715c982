//! Any message, and any bytes.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use waltrail::pgoutput::*;

use super::build::{Datum, Sent, SentColumn};

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z_]{0,8}",
        vec(
            any::<char>().prop_filter("a zero ends a name", |&c| c != '\0'),
            0..5
        )
        .prop_map(String::from_iter),
    ]
}

fn datum(may_omit: bool) -> impl Strategy<Value = Datum> {
    let bytes = || vec(any::<u8>(), 0..12);
    prop_oneof![
        Just(if may_omit {
            Datum::Unchanged
        } else {
            Datum::Null
        }),
        Just(Datum::Null),
        bytes().prop_map(Datum::Text),
        bytes().prop_map(Datum::Binary),
    ]
}

fn old() -> impl Strategy<Value = (u8, Vec<Datum>)> {
    (prop_oneof![Just(b'K'), Just(b'O')], vec(datum(false), 0..6))
}

fn column() -> impl Strategy<Value = SentColumn> {
    (0..2u8, name(), any::<u32>(), any::<i32>()).prop_map(
        |(flags, name, type_oid, type_modifier)| SentColumn {
            flags,
            name,
            type_oid,
            type_modifier,
        },
    )
}

fn sent() -> impl Strategy<Value = Sent> {
    let new = || vec(datum(true), 0..6);
    let identity = prop_oneof![Just(b'd'), Just(b'n'), Just(b'f'), Just(b'i')];
    prop_oneof![
        any::<(u64, i64, u32)>().prop_map(|(lsn, time, xid)| Sent::Begin(lsn, time, xid)),
        any::<(u64, u64, i64)>().prop_map(|(lsn, end, time)| Sent::Commit(lsn, end, time)),
        (any::<u64>(), name()).prop_map(|(lsn, name)| Sent::Origin(lsn, name)),
        (any::<u32>(), name(), name(), identity, vec(column(), 0..6)).prop_map(
            |(oid, schema, name, identity, columns)| Sent::Relation {
                oid,
                schema,
                name,
                identity,
                columns,
            }
        ),
        (any::<u32>(), name(), name())
            .prop_map(|(oid, schema, name)| Sent::Type(oid, schema, name)),
        (any::<u32>(), new()).prop_map(|(oid, new)| Sent::Insert(oid, new)),
        (any::<u32>(), option::of(old()), new())
            .prop_map(|(oid, old, new)| Sent::Update(oid, old, new)),
        (any::<u32>(), old()).prop_map(|(oid, (marker, old))| Sent::Delete(oid, marker, old)),
        (0..4u8, vec(any::<u32>(), 0..6)).prop_map(|(flags, oids)| Sent::Truncate(flags, oids)),
        (
            0..2u8,
            any::<u64>(),
            vec(1..=255u8, 0..12),
            vec(any::<u8>(), 0..12)
        )
            .prop_map(|(flags, lsn, prefix, content)| Sent::Logical(flags, lsn, prefix, content)),
    ]
}

proptest! {
    #[test]
    fn a_message_is_read_as_it_was_sent(sent in sent()) {
        let encoded = sent.encode();
        let message = Message::parse(&encoded).unwrap();
        prop_assert_eq!(Sent::received(&message), Ok(sent));
        prop_assert_eq!(walk(&encoded), Ok(()));
    }

    #[test]
    fn a_message_cut_short_anywhere_is_refused(sent in sent()) {
        let encoded = sent.encode();
        for len in 0..encoded.len() {
            prop_assert!(
                matches!(walk(&encoded[..len]), Err(DecodeError::Truncated(_))),
                "{} of {} bytes", len, encoded.len()
            );
        }
    }

    #[test]
    fn a_message_with_a_trailing_byte_is_refused(sent in sent(), byte: u8) {
        let mut encoded = sent.encode();
        encoded.push(byte);
        prop_assert!(matches!(walk(&encoded), Err(DecodeError::Trailing(_))));
    }

    #[test]
    fn any_bytes_are_read_or_refused_and_what_was_read_is_all_there_was(
        tag in prop_oneof![proptest::sample::select(&b"BCORYIUDTM"[..]), any::<u8>()],
        rest in vec(prop_oneof![3 => 0..4u8, 2 => proptest::sample::select(&b"NKOntub"[..]), 1 => any::<u8>()], 0..64),
    ) {
        let bytes = [&[tag], &rest[..]].concat();
        if walk(&bytes).is_ok() {
            let message = Message::parse(&bytes).unwrap();
            prop_assert_eq!(Sent::received(&message).unwrap().encode(), bytes);
        }
    }

    #[test]
    fn a_damaged_message_is_read_or_refused(sent in sent(), at: prop::sample::Index, byte: u8) {
        let mut bytes = sent.encode();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if walk(&bytes).is_ok() {
            let message = Message::parse(&bytes).unwrap();
            prop_assert_eq!(Sent::received(&message).unwrap().encode(), bytes);
        }
    }
}
