//! Unit tests of `schema::plan`.

use waltrail::schema::exact::Type;
use waltrail::schema::home::Home;
use waltrail::schema::plan::*;
use waltrail::schema::types::Types;
use waltrail::schema::{HistoryColumn, HistoryTable, Rules, SourceColumn, SourceTable, TableName};

fn kind(oid: u32) -> Type {
    let (name, wire) = match oid {
        20 => ("int8", "20"),
        21 => ("int2", "21"),
        23 => ("int4", "23"),
        25 => ("text", "text"),
        1043 => ("varchar", "text"),
        1114 => ("timestamp", "1114"),
        1700 => ("numeric", "1700"),
        _ => panic!("no type {oid}"),
    };
    Type::named(&format!("pg_catalog.{name}"), Some(wire.to_owned()))
}

fn types() -> Types {
    let known = [20, 21, 23, 25, 1043, 1114, 1700];
    Types::new(known.map(|oid| ((oid, -1), Some(kind(oid)))).into())
}

fn employees(replica_identity: char) -> SourceTable {
    let columns = [
        ("id", 23),
        ("name", 1043),
        ("department", 1043),
        ("salary", 1700),
    ];
    SourceTable {
        oid: 1,
        name: TableName {
            schema: "public".into(),
            name: "employees".into(),
        },
        replica_identity,
        kind: 'r',
        columns: columns
            .iter()
            .map(|(name, oid)| SourceColumn {
                name: (*name).into(),
                type_oid: *oid,
                modifier: -1,
            })
            .collect(),
        key: vec!["id".into()],
        types: types(),
    }
}

fn history(columns: &[(&str, u32)]) -> HistoryTable {
    HistoryTable {
        name: TableName {
            schema: "public".into(),
            name: "employees_cdc".into(),
        },
        columns: columns
            .iter()
            .map(|(name, oid)| HistoryColumn {
                name: (*name).into(),
                type_oid: *oid,
                modifier: -1,
                kind: kind(*oid),
                not_null: false,
                has_default: false,
                generated: false,
            })
            .collect(),
        made: false,
        homes: Vec::new(),
    }
}

const PLAIN: [(&str, u32); 7] = [
    ("cdc_id", 23),
    ("change_type", 1043),
    ("id", 23),
    ("name", 1043),
    ("department", 1043),
    ("salary", 1700),
    ("change_timestamp", 1114),
];

fn plan(source: &SourceTable, columns: &[(&str, u32)], binary: bool) -> Result<Plan, PlanError> {
    Plan::new(
        &Shape::of_table(source),
        source,
        &history(columns),
        &Rules::default(),
        binary,
    )
}

#[test]
fn the_two_tables_of_the_contract_pass_values_through_in_binary() {
    let plan = plan(&employees('d'), &PLAIN, true).unwrap();
    assert_eq!(
        plan.copy,
        "COPY public.employees_cdc (id, name, department, salary, change_type, change_timestamp) \
         FROM STDIN (FORMAT binary)"
    );
    assert!(plan.splits_key_changes);
    assert_eq!(plan.width, 6);
}

#[test]
fn a_key_change_is_one_row_where_the_history_has_the_whole_old_key() {
    let mut columns = PLAIN.to_vec();
    columns.push(("old_id", 23));
    assert!(
        !plan(&employees('d'), &columns, true)
            .unwrap()
            .splits_key_changes
    );
}

#[test]
fn the_key_of_a_table_with_full_identity_is_its_primary_key() {
    let plan = plan(&employees('f'), &PLAIN, true).unwrap();
    let keys: Vec<_> = plan
        .columns
        .iter()
        .filter(|c| c.key)
        .map(|c| c.name.as_str())
        .collect();
    assert_eq!(keys, ["id"]);
}

#[test]
fn a_column_of_another_type_asks_for_text() {
    let mut columns = PLAIN.to_vec();
    columns[2].1 = 20;
    assert!(matches!(
        plan(&employees('d'), &columns, true),
        Err(PlanError::NeedsText { column, .. }) if column == "id"
    ));
    assert!(
        plan(&employees('d'), &columns, false)
            .unwrap()
            .copy
            .ends_with("(FORMAT text)")
    );
}

#[test]
fn a_relation_of_another_type_than_the_catalog_asks_for_text() {
    let source = employees('d');
    let mut shape = Shape::of_table(&source);
    shape.columns[0].type_oid = 21;
    assert!(matches!(
        Plan::new(&shape, &source, &history(&PLAIN), &Rules::default(), true),
        Err(PlanError::NeedsText { .. })
    ));
}

#[test]
fn excluded_columns_are_not_recorded() {
    let source = employees('d');
    let shape = Shape::of_table(&source);
    let rules = Rules {
        exclude: vec!["salary".into()],
        ..Rules::default()
    };
    let plan = Plan::new(&shape, &source, &history(&PLAIN), &rules, true).unwrap();
    assert!(!plan.copy.contains("salary"));
    assert!(plan.unrecorded.is_empty());
}

#[test]
fn a_source_column_named_like_ours_is_refused() {
    for name in ["change_type", "cdc_id"] {
        let mut source = employees('d');
        source.columns[1].name = name.into();
        assert!(matches!(
            plan(&source, &PLAIN, true),
            Err(PlanError::NameClash { .. })
        ));
    }
}

/// `id` and `old_id` are columns of the source; the history has both.
fn with_old_id() -> (SourceTable, HistoryTable) {
    let mut source = employees('d');
    source.columns[1].name = "old_id".into();
    source.columns[1].type_oid = 23;
    (source, history(&[("id", 23), ("old_id", 23)]))
}

fn written(source: &SourceTable, history: &HistoryTable) -> String {
    let shape = Shape::of_table(source);
    let plan = Plan::new(&shape, source, history, &Rules::default(), true).unwrap();
    let (_, list) = plan.copy.split_once('(').unwrap();
    list.split_once(')').unwrap().0.to_owned()
}

fn home(source_column: &str, former: bool, history_column: &str) -> Home {
    Home {
        source_column: source_column.into(),
        former,
        history_column: history_column.into(),
    }
}

#[test]
fn a_column_of_the_source_s_own_wins_over_the_former_value_of_another() {
    let (source, mut history) = with_old_id();
    assert_eq!(written(&source, &history), "id, old_id");
    // Where waltrail made the history, the name means the former value unless it is recorded.
    history.made = true;
    let shape = Shape::of_table(&source);
    let plan = Plan::new(&shape, &source, &history, &Rules::default(), true).unwrap();
    assert_eq!(plan.unrecorded, ["old_id", "department", "salary"]);
    history.homes.push(home("old_id", false, "old_id"));
    assert_eq!(written(&source, &history), "id, old_id");
}

#[test]
fn a_recorded_column_is_used_for_what_it_is_recorded_for_and_for_nothing_else() {
    let source = employees('d');
    let mut history = history(&[("id", 23), ("k", 23), ("salary", 1700), ("salary_2", 25)]);
    history.homes.push(home("id", true, "k"));
    history.homes.push(home("salary", false, "salary_2"));
    assert_eq!(written(&source, &history), "id, salary, k");
    history.homes.push(home("gone", false, "salary"));
    let shape = Shape::of_table(&source);
    let plan = Plan::new(&shape, &source, &history, &Rules::default(), false).unwrap();
    assert!(plan.copy.contains("(id, salary_2, k)"), "{}", plan.copy);
}

#[test]
fn a_column_that_does_not_keep_every_value_is_refused_or_allowed() {
    let source = employees('d');
    let history = history(&[("id", 21)]);
    let shape = Shape::of_table(&source);
    let refused = Plan::new(&shape, &source, &history, &Rules::default(), false).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "public.employees_cdc.id of type int2 does not keep every value of public.employees.id of type int4"
    );
    let rules = Rules {
        lossy: vec!["id".into()],
        ..Rules::default()
    };
    assert!(Plan::new(&shape, &source, &history, &rules, false).is_ok());
    // A receive function would cut in silence what an input function refuses.
    assert!(matches!(
        Plan::new(&shape, &source, &history, &rules, true),
        Err(PlanError::NeedsText { .. })
    ));
}

#[test]
fn with_a_prefix_the_plain_names_are_the_source_s() {
    let mut source = employees('d');
    source.columns[1].name = "change_type".into();
    let history = history(&[
        ("id", 23),
        ("change_type", 1043),
        ("_change_type", 25),
        ("_cdc_id", 20),
    ]);
    let rules = Rules {
        prefix: "_".into(),
        ..Rules::default()
    };
    let shape = Shape::of_table(&source);
    let plan = Plan::new(&shape, &source, &history, &rules, true).unwrap();
    assert!(
        plan.copy.contains("(id, change_type, _change_type)"),
        "{}",
        plan.copy
    );
}

#[test]
fn names_that_are_too_long_are_cut_and_kept_apart() {
    use waltrail::schema::home::free_name;
    let long = format!("{}ü{}", "k".repeat(53), "x".repeat(6));
    let first = free_name(&long, true, |_| false);
    assert!(first.len() <= 63 && first.starts_with("old_kkk"), "{first}");
    let other = free_name(&format!("{}y", &long[..60]), true, |_| false);
    assert_ne!(first, other);
    let second = free_name(&long, true, |name| name == first);
    assert!(second.len() <= 63 && second != first, "{second}");
    assert_eq!(
        free_name("b", false, |name| name == "b" || name == "b_2"),
        "b_3"
    );
}
