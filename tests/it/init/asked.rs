//! On a terminal: what is shown, what can be chosen, and how it ends.

use std::os::unix::process::ExitStatusExt as _;

use crate::init::{Place, SMALL, WEIRD, WEIRD_TABLES, dsn, ends};
use crate::support::terminal::{CTRL_C, DOWN, ESCAPE, Typist};
use crate::support::{BOUND, each, server, server_with, wait_for_value};

const SHOP: &[&str] = &[
    "CREATE TABLE orders (id int PRIMARY KEY)",
    "CREATE TABLE orders_items (id int PRIMARY KEY)",
    "CREATE TABLE customers (id int PRIMARY KEY)",
    "CREATE TABLE events (id int)",
    "CREATE VIEW v AS SELECT 1 AS one",
    "CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id)",
    "CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (9)",
];

#[tokio::test]
async fn tables_are_filtered_chosen_and_followed() {
    let (cluster, client) = server().await;
    each(&client, SHOP).await;
    let place = Place::new();
    let mut typist = place.ask(&["--source", &dsn(&cluster)]);
    typist.sees("The database that keeps the history").await;
    typist.keys("\r");
    let screen = typist.sees("0 of 5 chosen").await;
    println!("{screen}");
    for part in [
        "public.customers",
        "public.parts",
        "1 partitions",
        "cannot be followed",
    ] {
        assert!(screen.contains(part), "{part} is not in\n{screen}");
    }
    for part in ["public.v ", "parts_1", "pg_class"] {
        assert!(!screen.contains(part), "{part} is in\n{screen}");
    }
    // All that match a filter, and one more by another filter.
    typist.keys("ORDERS\t");
    typist.sees("2 of 5 chosen").await;
    typist.keys(ESCAPE);
    typist.sees("1-5 of 5").await;
    typist.keys("event");
    let screen = typist.sees("1-1 of 1").await;
    assert!(screen.contains("no replica identity"), "{screen}");
    assert!(screen.contains("REPLICA IDENTITY FULL"), "{screen}");
    typist.keys(" ");
    typist.sees("this table cannot be followed as it is").await;
    typist.keys("\u{15}");
    typist.sees("1-5 of 5").await;
    // The cursor is on the first one, `customers`.
    typist.keys(" ");
    typist.sees("3 of 5 chosen").await;
    typist.keys(&format!("{DOWN}{DOWN} "));
    typist.sees("3 of 5 chosen").await;
    typist.keys("\r");
    let (status, is_cooked, screen) = typist.end().await;
    assert!(status.success() && is_cooked, "{screen}");
    assert!(
        screen.contains("waltrail.toml is written: 2 tables"),
        "{screen}"
    );
    assert!(!screen.contains("filter:"), "the list is gone\n{screen}");
    let sources: Vec<String> = place
        .tables()
        .into_iter()
        .map(|(source, _)| source)
        .collect();
    assert_eq!(sources, ["public.customers", "public.orders_items"]);
    let daemon = place.streams().await;
    each(&client, &["INSERT INTO customers VALUES (1)"]).await;
    wait_for_value(&client, "SELECT count(*) FROM customers_cdc", 1i64, BOUND).await;
    ends(daemon).await;
    histories_are_not_offered_and_what_is_followed_is_marked(&dsn(&cluster)).await;
}

async fn histories_are_not_offered_and_what_is_followed_is_marked(dsn: &str) {
    let place = Place::new();
    let mut typist = place.ask(&["--source", dsn, "--target", dsn]);
    let screen = typist.sees("2 of 5 chosen").await;
    let line = |name: &str| {
        let mut lines = screen.lines();
        lines.find(|line| line.contains(name)).unwrap().to_owned()
    };
    assert!(line("public.customers").contains("[x]"), "{screen}");
    assert!(
        line("public.customers").contains("followed already"),
        "{screen}"
    );
    assert!(line("public.orders ").contains("[ ]"), "{screen}");
    assert!(!screen.contains("_cdc"), "{screen}");
    typist.keys(CTRL_C);
    typist.end().await;
    place.is_empty();
}

#[tokio::test]
async fn a_history_that_a_person_made_is_not_offered_and_another_table_keeps_its_name() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            crate::support::DESIGN,
            "CREATE TABLE a (id int PRIMARY KEY)",
            "CREATE TABLE a_cdc (id int PRIMARY KEY)",
        ],
    )
    .await;
    let place = Place::new();
    let mut typist = place.ask(&["--source", &dsn(&cluster)]);
    typist.sees("keeps the history").await;
    typist.keys("\r");
    let screen = typist.sees("0 of 3 chosen").await;
    assert!(!screen.contains("employees_cdc"), "{screen}");
    typist.keys("\t\r");
    typist.sees("All 3 tables of public are chosen").await;
    typist.keys("n\r");
    let (status, _, screen) = typist.end().await;
    assert!(status.success(), "{screen}");
    let expected = [
        ("public.a", "public.a_cdc2"),
        ("public.a_cdc", "public.a_cdc_cdc"),
        ("public.employees", "public.employees_cdc"),
    ];
    let expected = expected.map(|(source, history)| (source.to_owned(), history.to_owned()));
    assert_eq!(place.tables(), expected);
    ends(place.streams().await).await;
}

#[tokio::test]
async fn weird_names_are_shown_chosen_and_followed() {
    let (cluster, client) = server().await;
    each(&client, &[WEIRD]).await;
    let place = Place::new();
    let mut typist = place.ask(&["--source", &dsn(&cluster), "--target", &dsn(&cluster)]);
    let screen = typist.sees(&format!("0 of {WEIRD_TABLES} chosen")).await;
    println!("{screen}");
    for part in [
        "straße 日本",
        "a.b",
        r"new\nline",
        r"back\slash",
        "\"Upper\"",
    ] {
        assert!(screen.contains(part), "{part} is not in\n{screen}");
    }
    typist.keys("日本");
    typist.sees("1-1 of 1").await;
    typist.keys("\x7f\x7f\t\r");
    typist.sees("tables of \"My Schema\" are chosen").await;
    typist.keys("\r");
    typist.sees("tables of public are chosen").await;
    typist.keys("no\r");
    let (status, _, screen) = typist.end().await;
    assert!(status.success(), "{screen}");
    let daemon = place.streams().await;
    let followed = "SELECT count(*) FROM waltrail.snapshot WHERE state = 'done'";
    wait_for_value(&client, followed, WEIRD_TABLES, BOUND).await;
    each(
        &client,
        &[r#"INSERT INTO "My Schema"."say ""hi"" it's" VALUES (1)"#],
    )
    .await;
    let rows = r#"SELECT count(*) FROM "My Schema"."say ""hi"" it's_cdc""#;
    wait_for_value(&client, rows, 1i64, BOUND).await;
    ends(daemon).await;
}

#[tokio::test]
async fn all_of_a_schema_can_become_a_pattern() {
    let (cluster, client) = server().await;
    each(&client, SHOP).await;
    let place = Place::new();
    let mut typist = place.ask(&["--source", &dsn(&cluster), "--target", &dsn(&cluster)]);
    typist.sees("0 of 5 chosen").await;
    typist.keys("\t\r");
    typist.sees("All 4 tables of public are chosen").await;
    typist.keys("y\r");
    let (status, _, screen) = typist.end().await;
    assert!(status.success(), "{screen}");
    let config = place.config();
    assert!(config.tables.is_empty());
    assert_eq!(config.patterns[0].source.to_string(), "public.*");
}

#[tokio::test]
async fn ctrl_c_leaves_the_terminal_as_it_was_and_no_file() {
    let (cluster, client) = server().await;
    each(&client, SHOP).await;
    let dsn = dsn(&cluster);
    let place = Place::new();
    for (args, seen) in [
        (&["--source", &*dsn, "--target", &*dsn][..], "0 of 5 chosen"),
        (&["--source", &*dsn][..], "keeps the history"),
        (&[][..], "The database to follow"),
    ] {
        let mut typist = place.ask(args);
        typist.sees(seen).await;
        assert!(!typist.is_cooked());
        typist.keys(CTRL_C);
        let (status, is_cooked, screen) = typist.end().await;
        assert_eq!(status.signal(), Some(2), "{screen}");
        assert!(
            is_cooked && screen.contains("nothing was written"),
            "{screen}"
        );
        assert!(!screen.contains("filter:"), "{screen}");
        place.is_empty();
    }
}

#[tokio::test]
async fn connection_and_password_are_asked_for_until_they_are_right() {
    let (cluster, client) =
        server_with(|builder| builder.hba("local all secret scram-sha-256")).await;
    each(
        &client,
        &[
            "CREATE TABLE a (id int PRIMARY KEY)",
            "CREATE ROLE secret LOGIN PASSWORD 'canary word'",
        ],
    )
    .await;
    let place = Place::new();
    let mut typist = place.ask(&[]);
    typist.sees("The database to follow").await;
    typist.keys("hots=x\r");
    typist.sees("unknown keyword `hots`").await;
    let dsn = dsn(&cluster).replace("user=postgres", "user=secret");
    typist.keys(&format!("{dsn}\r"));
    typist.sees("Password of secret:").await;
    typist.keys("canary wrong\r");
    typist
        .until(|screen| screen.matches("Password of secret:").count() == 2)
        .await;
    typist.keys("canary wodr\x7f\x7frd\r");
    typist.sees("keeps the history").await;
    typist.keys("\r");
    typist.sees("0 of 1 chosen").await;
    typist.keys("\r");
    typist.sees("choose a table first").await;
    typist.keys(" \r");
    let (status, is_cooked, screen) = typist.end().await;
    assert!(status.success() && is_cooked, "{screen}");
    assert!(
        screen.contains("The password is not in the file"),
        "{screen}"
    );
    let text = place.text();
    assert!(
        !text.to_lowercase().contains("canary") && text.contains("user=secret"),
        "{text}"
    );
}

#[tokio::test]
async fn a_database_without_a_table_says_so() {
    let (cluster, client) = server().await;
    each(&client, &["CREATE TABLE keyless (id int)"]).await;
    let place = Place::new();
    let dsn = dsn(&cluster);
    let typist = place.ask(&["--source", &dsn, "--target", &dsn]);
    let (status, _, screen) = typist.end().await;
    assert_eq!(status.code(), Some(78), "{screen}");
    assert!(screen.contains("no table that can be followed"), "{screen}");
    assert!(screen.contains("REPLICA IDENTITY FULL"), "{screen}");
    place.is_empty();
}

#[tokio::test]
async fn the_list_fits_every_screen() {
    let (cluster, client) = server().await;
    each(&client, SHOP).await;
    let place = Place::new();
    let dsn = dsn(&cluster);
    let args = ["init", "--source", &*dsn, "--target", &*dsn];
    for size in [(10, 40), SMALL, (40, 140)] {
        let mut typist = Typist::spawn(place.path(), &args, size);
        let screen = typist.sees("of 5 chosen").await;
        println!("{screen}\n----");
        let lines: Vec<&str> = screen.lines().collect();
        assert!(lines.len() < usize::from(size.0), "{screen}");
        assert!(
            lines.iter().any(|line| line.starts_with("> [ ] public.c")),
            "{screen}"
        );
        typist.keys(CTRL_C);
        typist.end().await;
    }
}
