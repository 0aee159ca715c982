//! Without a terminal: `--tables`.

use crate::init::{Place, WEIRD, dsn, ends, objects};
use crate::support::{BOUND, connect, each, server, server_with, value, wait_for_value};

#[tokio::test]
async fn tables_are_named_and_the_file_leads_to_history() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE TABLE orders (id int PRIMARY KEY, what text)",
            "CREATE SCHEMA billing",
            "CREATE TABLE billing.items (id int PRIMARY KEY, what text)",
            "CREATE TABLE other (id int PRIMARY KEY)",
            "INSERT INTO orders VALUES (1, 'canary')",
        ],
    )
    .await;
    let place = Place::new();
    let out = place.written(
        &dsn(&cluster),
        &["--tables", "orders, billing.items=billing.items_log"],
    );
    assert!(out.contains("waltrail.toml is written: 2 tables"), "{out}");
    assert!(out.contains("waltrail --config waltrail.toml run"), "{out}");
    let names = [
        ("public.orders", "public.orders_cdc"),
        ("billing.items", "billing.items_log"),
    ];
    let names = names.map(|(source, history)| (source.to_owned(), history.to_owned()));
    assert_eq!(place.tables(), names);
    let daemon = place.streams().await;
    each(
        &client,
        &[
            "INSERT INTO orders VALUES (2, 'canary')",
            "INSERT INTO billing.items VALUES (1, 'canary')",
        ],
    )
    .await;
    let rows =
        "SELECT (SELECT count(*) FROM orders_cdc) + (SELECT count(*) FROM billing.items_log)";
    wait_for_value(&client, rows, 3i64, BOUND).await;
    ends(daemon).await;
}

#[tokio::test]
async fn a_pattern_stays_a_pattern_and_says_what_it_leaves_out() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE TABLE a (id int PRIMARY KEY)",
            "CREATE TABLE b (id int)",
            "CREATE UNLOGGED TABLE c (id int PRIMARY KEY)",
        ],
    )
    .await;
    let place = Place::new();
    let out = place.written(&dsn(&cluster), &["--tables", "public.*"]);
    assert!(out.contains("1 table with"), "{out}");
    assert!(
        out.contains("  public.b: public.b has no replica identity"),
        "{out}"
    );
    assert!(out.contains("  public.c: public.c is unlogged"), "{out}");
    let config = place.config();
    assert!(config.tables.is_empty());
    assert_eq!(config.patterns[0].source.to_string(), "public.*");
    let daemon = place.streams().await;
    each(&client, &["CREATE TABLE d (id int PRIMARY KEY)"]).await;
    each(&client, &["INSERT INTO d VALUES (1)"]).await;
    let made = "SELECT to_regclass('d_cdc') IS NOT NULL";
    wait_for_value(&client, made, true, BOUND).await;
    wait_for_value(&client, "SELECT count(*) FROM d_cdc", 1i64, BOUND).await;
    ends(daemon).await;
}

#[tokio::test]
async fn what_cannot_be_followed_is_refused_as_a_start_refuses_it() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE TABLE keyless (id int)",
            "CREATE VIEW v AS SELECT 1 AS one",
            "CREATE TABLE whole (id int PRIMARY KEY) PARTITION BY RANGE (id)",
            "CREATE TABLE part PARTITION OF whole FOR VALUES FROM (0) TO (9)",
        ],
    )
    .await;
    let place = Place::new();
    for (tables, code, error, hint) in [
        (
            "keyless",
            65,
            "has no replica identity",
            "REPLICA IDENTITY FULL",
        ),
        ("v", 65, "is not a table", ""),
        ("part", 65, "is a partition of", "capture public.whole"),
        ("missing", 78, "the source has no table public.missing", ""),
        (
            "Missing.*",
            78,
            "no table that can be followed for missing.*",
            "",
        ),
        (
            "waltrail.checkpoint",
            78,
            "belongs to PostgreSQL or to waltrail",
            "",
        ),
        (
            "pg_catalog.pg_class",
            78,
            "belongs to PostgreSQL or to waltrail",
            "",
        ),
        ("whole,whole", 78, "a second time", ""),
        ("no good", 78, "--table", "double quotes"),
        (" , ", 64, "names no table", "'public.*'"),
    ] {
        let (found, out, err) = place.init(&dsn(&cluster), &["--tables", tables]);
        assert_eq!(found, code, "{tables}: {err}");
        assert!(err.contains(error) && err.contains(hint), "{tables}: {err}");
        assert_eq!(out, "");
        place.is_empty();
    }
}

#[tokio::test]
async fn weird_names_are_taken_as_sql_writes_them() {
    let (cluster, client) = server().await;
    each(&client, &[WEIRD]).await;
    let place = Place::new();
    let tables = r#""My Schema"."with space, and comma","My Schema"."say ""hi"" it's", "Upper", public."user", "a=b*c""#;
    place.written(&dsn(&cluster), &["--tables", tables]);
    let sources: Vec<String> = place
        .tables()
        .into_iter()
        .map(|(source, _)| source)
        .collect();
    assert_eq!(
        sources,
        [
            r#""My Schema"."with space, and comma""#,
            r#""My Schema"."say ""hi"" it's""#,
            r#"public."Upper""#,
            r#"public."user""#,
            r#"public."a=b*c""#
        ]
    );
    ends(place.streams().await).await;
    // Two patterns for all of them: one name is too long for a pattern's history.
    let patterns = Place::new();
    patterns.written(&dsn(&cluster), &["--tables", r#""My Schema".*,public.*"#]);
    assert_eq!(patterns.config().patterns.len(), 2);
}

#[tokio::test]
async fn a_file_that_exists_stays_without_force() {
    let (cluster, client) = server().await;
    each(&client, &["CREATE TABLE a (id int PRIMARY KEY)"]).await;
    let (place, dsn) = (Place::new(), dsn(&cluster));
    std::fs::write(place.file(), "# mine\n").unwrap();
    // Also where the server cannot be asked at all.
    for dsn in [&*dsn, "host=/nowhere"] {
        let (code, out, err) = place.init(dsn, &["--tables", "a"]);
        assert_eq!((code, &*out), (64, ""), "{err}");
        assert!(
            err.contains("waltrail.toml exists already") && err.contains("--force"),
            "{err}"
        );
        assert_eq!(place.text(), "# mine\n");
    }
    place.written(&dsn, &["--tables", "a", "--output", "other.toml"]);
    let other = place.path().join("other.toml");
    assert!(other.exists() && place.text() == "# mine\n");
    place.written(&dsn, &["--tables", "a", "--force"]);
    assert_eq!(place.text(), std::fs::read_to_string(other).unwrap());
    // As every new file.
    use std::os::unix::fs::PermissionsExt as _;
    let mode = place.file().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o600, 0o600, "{mode:o}");
    let failed = place.init(&dsn, &["--tables", "a", "--output", "none/x.toml"]);
    assert_eq!(failed.0, 78, "{failed:?}");
    let files = place.path().read_dir().unwrap().count();
    assert_eq!(files, 2, "nothing else is left");
}

#[tokio::test]
async fn a_password_is_never_in_the_file_and_variables_are_written_out() {
    let (cluster, client) = server_with(|builder| {
        builder
            .hba("local all secret scram-sha-256")
            .hba("host all secret 127.0.0.1/32 scram-sha-256")
    })
    .await;
    each(
        &client,
        &[
            "CREATE TABLE a (id int PRIMARY KEY)",
            "CREATE ROLE secret LOGIN PASSWORD 'canary word'",
        ],
    )
    .await;
    let port = cluster.port();
    let uri =
        format!("postgresql://secret:canary%20word@127.0.0.1:{port}/postgres?sslmode=disable");
    let place = Place::new();
    let out = place.written(&uri, &["--tables", "a"]);
    assert!(
        out.contains("The password is not in the file") && out.contains("source.password_file"),
        "{out}"
    );
    let text = place.text();
    assert!(!text.to_lowercase().contains("canary"), "{text}");
    assert!(
        text.contains(&format!(
            "dsn = \"host=127.0.0.1 port={port} dbname=postgres user=secret sslmode=disable\""
        )),
        "{text}"
    );
    // Nothing but variables, and no user in them: the file has what they said.
    let place = Place::new();
    let port = port.to_string();
    let variables = [
        ("PGHOST", "127.0.0.1"),
        ("PGPORT", &port),
        ("PGDATABASE", "postgres"),
        ("PGUSER", "secret"),
        ("PGPASSWORD", "canary word"),
        ("WALTRAIL_TABLE", "public.ignored"),
    ];
    let args = ["init", "--tables", "a"];
    let (status, out, err) = crate::support::daemon::run(place.path(), &args, &variables);
    assert_eq!(status.code(), Some(0), "{err}");
    assert!(out.contains("The password is not in the file"), "{out}");
    let text = place.text();
    assert!(
        text.contains(&format!(
            "dsn = \"host=127.0.0.1 port={port} dbname=postgres user=secret\""
        )),
        "{text}"
    );
    assert_eq!(place.tables()[0].0, "public.a");
    // A password that is wrong is a refused login; nothing is asked.
    let place = Place::new();
    let (code, _, err) = place.init(&uri.replace("word", "other"), &["--tables", "a"]);
    assert_eq!(code, 77, "{err}");
    place.is_empty();
}

#[tokio::test]
async fn it_only_looks_and_says_what_a_role_without_rights_lacks() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE ROLE nothing LOGIN",
            "CREATE ROLE owner",
            "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
            "CREATE SCHEMA closed",
            "CREATE TABLE closed.a (id int PRIMARY KEY)",
            "ALTER TABLE closed.a OWNER TO owner",
        ],
    )
    .await;
    let before = objects(&client).await;
    let dsn = dsn(&cluster).replace("user=postgres", "user=nothing");
    let place = Place::new();
    let out = place.written(&dsn, &["--tables", "closed.a"]);
    assert_eq!(objects(&client).await, before);
    for part in [
        "Before `waltrail run`, an administrator has to do this",
        "ALTER ROLE nothing REPLICATION;",
        "GRANT owner TO nothing;",
        "GRANT CREATE ON DATABASE postgres TO nothing;",
        "waltrail setup --grant-to nothing",
    ] {
        assert!(out.contains(part), "{part} is not in\n{out}");
    }
    // What it prints can be pasted, and is enough.
    let (_, statements) = out.split_once("has to do this:\n").unwrap();
    let (statements, _) = statements.split_once("\nOr these").unwrap();
    each(&client, &[statements]).await;
    let (status, output) =
        crate::support::daemon::Daemon::spawn_with(&place.text(), &["check"], &[])
            .wait(BOUND)
            .await;
    assert_eq!(status.code(), Some(0), "{output}");
}

#[tokio::test]
async fn the_history_goes_into_another_database() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE DATABASE history",
            "CREATE TABLE a (id int PRIMARY KEY)",
        ],
    )
    .await;
    let place = Place::new();
    let target = cluster.dsn_socket("history");
    // By the names that the command line has for them, too.
    let args = [
        "init",
        "--dsn",
        &dsn(&cluster),
        "--target-dsn",
        &target,
        "--tables",
        "a",
    ];
    let (status, _, err) = crate::support::daemon::run(place.path(), &args, &[]);
    assert_eq!(status.code(), Some(0), "{err}");
    let config = place.config();
    assert_eq!(config.target.dbname(), "history");
    assert!(!config.target_is_source);
    let daemon = place.streams().await;
    each(&client, &["INSERT INTO a VALUES (1)"]).await;
    let history = connect(&target).await;
    wait_for_value(&history, "SELECT count(*) FROM a_cdc", 1i64, BOUND).await;
    let none: bool = value(&client, "SELECT to_regclass('a_cdc') IS NULL").await;
    assert!(none);
    ends(daemon).await;
}

#[tokio::test]
async fn a_locked_table_does_not_hold_it_up() {
    let (cluster, mut client) = server().await;
    each(
        &client,
        &[
            "CREATE TABLE a (id int PRIMARY KEY)",
            "INSERT INTO a SELECT generate_series(1, 10000)",
            "VACUUM ANALYZE a",
        ],
    )
    .await;
    let locked = client.transaction().await.unwrap();
    locked
        .batch_execute("LOCK TABLE a IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let place = Place::new();
    let out = place.written(&dsn(&cluster), &["--tables", "a"]);
    // The size that VACUUM has found, without the index.
    assert!(
        out.contains("public.a (3") && out.contains("10 k rows"),
        "{out}"
    );
    locked.rollback().await.unwrap();
}

#[tokio::test]
async fn without_a_terminal_it_says_that_it_cannot_ask() {
    let place = Place::new();
    let (code, out, err) = place.init("host=/nowhere", &[]);
    assert_eq!((code, &*out), (64, ""), "{err}");
    assert!(
        err.contains("no terminal to ask on") && err.contains("--tables"),
        "{err}"
    );
    let args = ["init", "--tables", "a"];
    let (status, _, err) = crate::support::daemon::run(place.path(), &args, &[]);
    assert_eq!(status.code(), Some(78), "{err}");
    assert!(err.contains("no source database is named"), "{err}");
    let (code, _, err) = place.init("host=/nowhere", &["--tables", "a"]);
    assert_eq!(code, 75, "{err}");
    place.is_empty();
}
