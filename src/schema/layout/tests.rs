use super::*;

/// Of type `int4`, but where the name says another one.
fn type_of(name: &str) -> (String, u32) {
    match name.split_once(' ') {
        Some((name, type_oid)) => (name.to_owned(), type_oid.parse().unwrap()),
        None => (name.to_owned(), 23),
    }
}

fn attributes(known: &[(i16, &str)]) -> Vec<Attribute> {
    let attribute = |&(attnum, name): &(i16, &str)| {
        let (name, type_oid) = type_of(name);
        Attribute {
            attnum,
            name,
            type_oid,
            modifier: -1,
        }
    };
    known.iter().map(attribute).collect()
}

fn assigned(
    before: &[(i16, &str)],
    names: &[&str],
    now: &[(i16, &str)],
    prefers_now: bool,
) -> Option<(Vec<i16>, bool)> {
    let column = |attribute: Attribute| Column {
        attnum: attribute.attnum,
        name: attribute.name,
        type_oid: attribute.type_oid,
        modifier: -1,
        column: None,
        value: None,
        known: true,
    };
    let layout = Layout {
        before: attributes(before),
        now: attributes(now).into_iter().map(column).collect(),
        ..Layout::default()
    };
    let shape = |name: &&str| {
        let (name, type_oid) = type_of(name);
        ShapeColumn {
            name,
            type_oid,
            modifier: -1,
            key: false,
        }
    };
    let shape: Vec<ShapeColumn> = names.iter().map(shape).collect();
    let found = layout.assign(&layout.before, &shape, |_| prefers_now, false)?;
    let attnums = found.attributes.iter().map(|one| one.attnum).collect();
    Some((attnums, found.renamed))
}

#[test]
fn a_column_that_was_added_comes_when_it_comes() {
    let (before, now) = ([(1, "id"), (2, "a")], [(1, "id"), (2, "a"), (3, "b")]);
    for prefers_now in [false, true] {
        let of = |names| assigned(&before, names, &now, prefers_now);
        assert_eq!(of(&["id", "a"]), Some((vec![1, 2], false)));
        assert_eq!(of(&["id", "a", "b"]), Some((vec![1, 2, 3], false)));
        // It had another name first.
        assert_eq!(of(&["id", "a", "x"]), Some((vec![1, 2, 3], true)));
        assert_eq!(of(&["id", "a", "b", "c"]), None);
    }
}

#[test]
fn a_column_that_is_gone_or_not_sent_is_left_out() {
    let known = [(1, "id"), (2, "a"), (3, "b")];
    let of = |names| assigned(&known, names, &known, true);
    assert_eq!(of(&["id", "b"]), Some((vec![1, 3], false)));
    assert_eq!(of(&["id"]), Some((vec![1], false)));
    // Either was renamed, and the other dropped.
    assert_eq!(of(&["id", "x"]), None);
}

#[test]
fn a_name_between_two_others_is_the_same_attribute() {
    let (before, now) = ([(1, "id"), (2, "n")], [(1, "id"), (2, "d")]);
    assert_eq!(
        assigned(&before, &["id", "c"], &now, true),
        Some((vec![1, 2], true))
    );
}

#[test]
fn a_new_column_under_the_former_name_is_another_attribute() {
    let (before, now) = ([(1, "id"), (2, "n")], [(1, "id"), (2, "c"), (3, "n")]);
    for prefers_now in [false, true] {
        let of = |names| assigned(&before, names, &now, prefers_now);
        assert_eq!(of(&["id", "n"]), Some((vec![1, 2], false)));
        assert_eq!(of(&["id", "c"]), Some((vec![1, 2], false)));
        assert_eq!(of(&["id", "c", "n"]), Some((vec![1, 2, 3], false)));
        // The name was given once more: what comes first is the attribute that came first.
        let now = [(1, "id"), (2, "c"), (3, "d"), (4, "n")];
        let of = |names| assigned(&before, names, &now, prefers_now);
        assert_eq!(of(&["id", "c", "n"]), Some((vec![1, 2, 3], true)));
        assert_eq!(of(&["id", "c", "d", "n"]), Some((vec![1, 2, 3, 4], false)));
    }
}

#[test]
fn names_that_change_places_are_known_by_the_order() {
    let (before, now) = ([(1, "a"), (2, "b")], [(1, "b"), (2, "a")]);
    let of = |names| assigned(&before, names, &now, true);
    assert_eq!(of(&["a", "b"]), Some((vec![1, 2], false)));
    assert_eq!(of(&["b", "a"]), Some((vec![1, 2], false)));
    assert_eq!(of(&["x", "a"]), Some((vec![1, 2], true)));
}

#[test]
fn a_column_made_again_under_its_name_is_told_by_what_is_preferred() {
    let (before, now) = ([(1, "id"), (2, "b")], [(1, "id"), (3, "b")]);
    let of = |names, prefers_now| assigned(&before, names, &now, prefers_now);
    assert_eq!(of(&["id", "b"], false), Some((vec![1, 2], false)));
    assert_eq!(of(&["id", "b"], true), Some((vec![1, 3], false)));
    assert_eq!(of(&["id"], true), Some((vec![1], false)));
    // One of another type is that of this type.
    let now = [(1, "id"), (3, "b 25")];
    for prefers_now in [false, true] {
        let of = |name| assigned(&before, &["id", name], &now, prefers_now);
        assert_eq!(of("b"), Some((vec![1, 2], false)));
        assert_eq!(of("b 25"), Some((vec![1, 3], false)));
    }
    // One that was renamed is more likely to be there.
    let now = [(1, "id"), (3, "b")];
    let of = |prefers_now| assigned(&before, &["id", "x"], &now, prefers_now);
    assert_eq!(of(false), Some((vec![1, 2], true)));
    assert_eq!(of(true), Some((vec![1, 3], true)));
}

#[test]
fn a_column_made_again_twice_is_another_attribute_each_time() {
    let column = |attnum, name: &str| Column {
        attnum,
        name: name.to_owned(),
        type_oid: 23,
        modifier: -1,
        column: None,
        value: None,
        known: true,
    };
    let layout = Layout {
        before: attributes(&[(1, "id"), (2, "b")]),
        now: vec![column(1, "id"), column(4, "b")],
        gone: [(2, 100), (3, 200)]
            .map(|(attnum, by)| Dropped {
                attnum,
                by,
                end: None,
            })
            .to_vec(),
        ..Layout::default()
    };
    let shape = ["id", "b"].map(|name| ShapeColumn {
        name: name.to_owned(),
        type_oid: 23,
        modifier: -1,
        key: false,
    });
    for (xid, expected) in [(99, 2), (101, 3), (201, 4)] {
        let is_gone = |attnum| layout.was_dropped_by(attnum, described(xid, 0));
        let found = layout.assign(&layout.before, &shape, is_gone, false);
        assert_eq!(found.unwrap().attributes[1].attnum, expected, "{xid}");
        let again = layout.made_again(is_gone);
        let again = again.map_or(2, |attributes| attributes[1].attnum);
        assert_eq!(again, expected, "{xid}");
    }
}

fn described(xid: u32, commit_lsn: u64) -> Described {
    Described {
        commit_lsn: Lsn::from_u64(commit_lsn),
        xid,
        is_news: false,
    }
}

#[test]
fn where_a_transaction_ended_tells_more_than_its_id() {
    let mut layout = Layout {
        gone: vec![Dropped {
            attnum: 2,
            by: 100,
            end: None,
        }],
        ..Layout::default()
    };
    let was = |layout: &Layout, tx| layout.was_dropped_by(2, tx);
    assert!(was(&layout, described(101, 5)) && !was(&layout, described(99, 15)));
    let news = Described {
        is_news: true,
        ..described(99, 5)
    };
    assert!(was(&layout, news));
    layout.gone[0].end = Some(Lsn::from_u64(10));
    assert!(
        !was(&layout, described(101, 5)) && was(&layout, described(99, 15)) && !was(&layout, news)
    );
    assert!(was(&layout, described(100, 5)));
}

#[test]
fn columns_of_a_table_of_which_nothing_is_known_are_not_assigned() {
    assert_eq!(assigned(&[], &["id"], &[], true), None);
    assert_eq!(
        assigned(&[], &["id"], &[(4, "id")], false),
        Some((vec![4], false))
    );
}

#[test]
fn the_opening_names_what_is_recorded_and_what_rows_had_before() {
    let layout = Layout {
        before: Vec::new(),
        now: vec![Column {
            attnum: 2,
            name: "b".to_owned(),
            type_oid: 23,
            modifier: -1,
            column: Some("b".to_owned()),
            value: Some("it's".to_owned()),
            known: true,
        }],
        ..Layout::default()
    };
    let both = attributes(&[(2, "b"), (3, "gone")]);
    let history = TableName::new("public", "t_cdc");
    let opening = layout.opening(&history, std::iter::zip(&both, ["b", ""]));
    let expected = "SELECT waltrail.arrived(E'public.t_cdc', E'\
         [{\"attnum\":2,\"name\":\"b\",\"type\":23,\"modifier\":-1,\"column\":\"b\",\"value\":\"it''s\",\"known\":true},\
         {\"attnum\":3,\"name\":\"gone\",\"type\":23,\"modifier\":-1,\"column\":null,\"value\":null,\"known\":false}]')";
    assert_eq!(opening, expected);
}
