//! Is a transaction that is far larger than a batch still one transaction, in its place?

use crate::support::daemon::Daemon;
use crate::support::oracle::Oracle;
use crate::support::scene::{Scene, config, names, streaming};
use crate::support::{BOUND, EMPLOYEES, connect, each, server, texts, value, wait_for_value};

const SMALL_BATCHES: &str = "[batch]\nmax_rows = 100\nmax_bytes = \"64KiB\"\n";

#[tokio::test]
async fn a_large_transaction_among_small_ones_is_whole_and_in_its_place() {
    let ddl = format!(
        "{EMPLOYEES} CREATE TABLE items (id serial PRIMARY KEY, employee integer, note text);
         CREATE TABLE tags (name text PRIMARY KEY);"
    );
    let tables = ["public.employees", "public.items", "public.tags"];
    let scene = Scene::with(|builder| builder, &ddl, &tables, SMALL_BATCHES).await;
    let (large, small) = (scene.session().await, scene.session().await);
    each(
        &large,
        &["BEGIN; INSERT INTO employees (name) SELECT 'large ' || n FROM generate_series(1, 2000) n"],
    )
    .await;
    for n in 0..20 {
        each(
            &small,
            &[&format!(
                "BEGIN; INSERT INTO items (note) VALUES ('canary small {n}'); INSERT INTO tags VALUES ('canary t{n}'); COMMIT"
            )],
        )
        .await;
    }
    each(
        &large,
        &[
            "INSERT INTO items (employee, note) SELECT id, 'canary' || repeat('x', 194) FROM employees WHERE id % 2 = 0",
            "UPDATE employees SET salary = 1 WHERE id % 4 = 0; INSERT INTO tags VALUES ('large'); COMMIT",
        ],
    )
    .await;
    for n in 20..40 {
        each(
            &small,
            &[&format!("INSERT INTO tags VALUES ('canary t{n}')")],
        )
        .await;
    }
    assert_eq!(
        scene.check().await.rows,
        2000 + 20 + 20 + 1000 + 500 + 1 + 20
    );
    let order: Vec<String> = texts(&scene.target, "SELECT name FROM tags_cdc ORDER BY cdc_id")
        .await
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(order[20], "large");
    scene.end().await;
}

#[tokio::test]
async fn a_large_value_is_a_piece_of_its_own() {
    let scene = Scene::with(
        |builder| builder,
        "CREATE TABLE docs (id integer PRIMARY KEY, body text)",
        &["public.docs"],
        SMALL_BATCHES,
    )
    .await;
    each(
        &scene.source,
        &[
            "INSERT INTO docs SELECT n, repeat(md5(n::text), 100 * n) FROM generate_series(1, 40) n",
            "INSERT INTO docs VALUES (100, repeat('0123456789', 200000))",
            "INSERT INTO docs VALUES (101, 'canary small')",
        ],
    )
    .await;
    assert_eq!(scene.check().await.rows, 42);
    scene.end().await;
}

#[tokio::test]
async fn nothing_of_a_large_transaction_is_visible_before_its_commit() {
    let (cluster, source) = server().await;
    // Counts the pieces, in a way that no transaction hides, and takes its time.
    each(
        &source,
        &[
            EMPLOYEES,
            "CREATE SEQUENCE pieces;
             CREATE FUNCTION count_pieces() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM nextval('public.pieces'), pg_sleep(0.005); RETURN NULL; END $$;
             CREATE TRIGGER count_pieces AFTER INSERT ON employees_cdc
                 FOR EACH STATEMENT EXECUTE FUNCTION count_pieces()",
        ],
    )
    .await;
    let tables = ["public.employees"];
    let oracle = Oracle::install(&source, &tables).await;
    let dsn = cluster.dsn_socket("postgres");
    let mut daemon = Daemon::spawn_with(
        &config(&dsn, None, &tables, ""),
        &["run"],
        &[
            ("WALTRAIL_BATCH__MAX_ROWS", "100"),
            ("WALTRAIL_BATCH__MAX_BYTES", "64KiB"),
        ],
    );
    streaming(&mut daemon).await;
    let reader = connect(&dsn).await;
    let count = "SELECT count(*) FROM employees_cdc";
    each(
        &source,
        &["INSERT INTO employees (name) SELECT 'n' || n FROM generate_series(1, 20000) n"],
    )
    .await;
    wait_for_value(&reader, "SELECT last_value > 20 FROM pieces", true, BOUND).await;
    let seen: i64 = value(&reader, count).await;
    let pieces: i64 = value(&reader, "SELECT last_value FROM pieces").await;
    assert!(pieces < 200, "it was over before it was looked at");
    assert_eq!(seen, 0);
    // Killed in its midst it begins anew.
    daemon.kill9();
    assert_eq!(value::<i64>(&reader, count).await, 0);
    let mut daemon = Daemon::spawn(&config(&dsn, None, &tables, SMALL_BATCHES));
    loop {
        let seen: i64 = value(&reader, count).await;
        assert!(
            seen == 0 || seen == 20_000,
            "{seen} rows of 20000 are visible"
        );
        if seen > 0 {
            break;
        }
        assert!(daemon.is_running());
    }
    let (table, history) = names(tables[0]);
    oracle
        .assert_becomes(&source, &table, &reader, &history, BOUND)
        .await;
    let pieces: i64 = value(&reader, "SELECT last_value FROM pieces").await;
    assert!(pieces > 200, "{pieces} pieces in all");
}
