//! What is copied, and how it joins the changes.

use std::time::{Duration, Instant};

use super::load::churn;
use crate::support::daemon::Daemon;
use crate::support::scene::{LOCKED, Scene, assert_clean};
use crate::support::{BOUND, EMPLOYEES, each, wait_for_value, wait_until};

/// Tables of every kind, with rows that clients change while they are copied. `wide` is cut into parts.
pub const TABLES: &str = "
    CREATE SEQUENCE fresh START 100000;
    CREATE TABLE bare (id int, v text, pad text);
    ALTER TABLE bare REPLICA IDENTITY FULL;
    INSERT INTO bare SELECT n, 'canary' || n, repeat('p', 50) FROM generate_series(1, 20000) n;
    CREATE TABLE parted (id int, v text, pad text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
    CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (MINVALUE) TO (10000);
    CREATE TABLE parted_high (pad text, v text, id int NOT NULL);
    ALTER TABLE parted ATTACH PARTITION parted_high FOR VALUES FROM (10000) TO (MAXVALUE);
    INSERT INTO parted SELECT n, 'canary' || n, repeat('p', 50) FROM generate_series(1, 20000) n;
    CREATE TABLE wide (id int PRIMARY KEY, v text, pad text);
    ALTER TABLE wide ALTER pad SET STORAGE PLAIN;
    INSERT INTO wide SELECT n, 'canary' || n, repeat('p', 5000) FROM generate_series(1, 20000) n;";

pub const NAMES: [&str; 4] = [
    "public.bare(id)",
    "public.parted(id)",
    "public.wide(id)",
    "public.employees=public.employees_cdc(id)",
];

pub fn ddl() -> String {
    format!(
        "{EMPLOYEES} INSERT INTO employees (name, department, salary)
             SELECT 'n' || n, repeat('d', n % 90), n FROM generate_series(1, 20000) n; {TABLES}"
    )
}

#[tokio::test]
async fn rows_that_exist_are_recorded_and_changes_follow() {
    let ddl = format!(
        "{EMPLOYEES} INSERT INTO employees (name, salary) SELECT 'n' || n, n FROM generate_series(1, 1000) n;
         CREATE TABLE notes (id int PRIMARY KEY, body text);
         INSERT INTO notes SELECT n, 'canary' || repeat('x', n) FROM generate_series(1, 300) n;"
    );
    let tables = [
        "public.employees=public.employees_cdc(id)",
        "public.notes(id)",
    ];
    let mut scene = Scene::existing(|builder| builder, &ddl, &tables, "").await;
    scene.spawn();
    scene.joined().await;
    scene
        .source
        .batch_execute(
            "UPDATE employees SET salary = 0 WHERE id <= 10; DELETE FROM employees WHERE id = 11;
             INSERT INTO notes VALUES (1000, 'new'); UPDATE notes SET id = id + 2000 WHERE id < 5",
        )
        .await
        .unwrap();
    assert_eq!(scene.check_existing().await.0, 1300);
    scene.stop().await;
    scene.spawn();
    scene.check_existing().await;
    scene.stop().await;
}

#[tokio::test]
async fn rows_that_change_while_they_are_copied_are_recorded_exactly_once() {
    let mut scene = Scene::existing(|builder| builder, &ddl(), &NAMES, "workers = 3\n").await;
    let churn = churn(&scene, 1);
    scene.spawn();
    scene.joined().await;
    churn.more(200).await;
    churn.stop();
    let (rows, changes) = scene.check_existing().await;
    assert!(rows > 70_000 && changes > 200, "{rows} {changes}");
    // Numbers of a table that was copied in parts are unique too.
    let doubled = "SELECT count(*) - count(DISTINCT (commit_lsn, tx_seq)) FROM wide_cdc WHERE change_type = 'SNAPSHOT'";
    wait_for_value(&scene.source, doubled, 0_i64, Duration::ZERO).await;
    wait_for_value(
        &scene.source,
        "SELECT count(*) FROM waltrail.held",
        0_i64,
        Duration::ZERO,
    )
    .await;
    scene.stop().await;
}

#[tokio::test]
async fn a_table_added_under_load_is_copied_while_the_others_go_on() {
    // Without tx_seq: the oracle would count changes of the late table from the beginning.
    let plain = |table: &str| {
        format!(
            "CREATE TABLE {table}_cdc (cdc_id bigint GENERATED ALWAYS AS IDENTITY, change_type text,
                change_timestamp timestamptz, id int, v text, pad text, old_id int, old_v text, old_pad text);"
        )
    };
    let ddl = format!("{} {} {}", ddl(), plain("bare"), plain("parted"));
    let mut scene = Scene::existing(|builder| builder, &ddl, &NAMES, "workers = 2\n").await;
    let all = scene.config.clone();
    let wide = "[[table]]\nsource = 'public.wide'\n";
    let fewer = all.replace(wide, "");
    assert_ne!(all, fewer);
    scene.config = fewer;
    scene.spawn();
    let done = "SELECT count(*) FROM waltrail.snapshot WHERE state = 'done'";
    scene
        .daemon()
        .wait_log(BOUND, |line| line.contains("\"streaming\""))
        .await;
    wait_for_value(&scene.source, done, 3_i64, BOUND).await;
    let churn = churn(&scene, 2);
    std::fs::write(scene.daemon().config_file(), &all).unwrap();
    scene.daemon().signal(nix::sys::signal::Signal::SIGHUP);
    // The lag of the others: how long a marked change takes into its history.
    let (mut longest, start) = (Duration::ZERO, Instant::now());
    let client = scene.session().await;
    let mut mark = 1_000_000;
    loop {
        mark += 1;
        client
            .batch_execute(&format!("INSERT INTO bare VALUES ({mark}, 'canary', '')"))
            .await
            .unwrap();
        let made = Instant::now();
        let seen = format!("SELECT count(*) FROM bare_cdc WHERE id = {mark}");
        wait_for_value(&client, &seen, 1_i64, BOUND).await;
        longest = longest.max(made.elapsed());
        let joined: i64 = client.query_one(done, &[]).await.unwrap().get(0);
        if joined == 4 {
            break;
        }
        assert!(start.elapsed() < BOUND);
    }
    println!(
        "joined after {:?}; the others lagged at most {longest:?}",
        start.elapsed()
    );
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    churn.more(50).await;
    churn.stop();
    scene.check_existing().await;
    // An autovacuum of the table that is added, for example.
    assert_clean(&scene.stop_complaining().await, &["waiting for a lock on"]);
}

#[tokio::test]
async fn status_tells_how_far_the_snapshot_is() {
    let tables = ["public.wide(id)"];
    let mut scene = Scene::existing(|builder| builder, &ddl(), &tables, "workers = 2\n").await;
    scene.set_up().await;
    let status = async |scene: &Scene| -> serde_json::Value {
        let mut status = Daemon::spawn_with(&scene.config, &["status", "--json"], &[]);
        let (_, output) = status.wait(BOUND).await;
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"))
    };
    assert_eq!(
        status(&scene).await["tables"][0]["snapshot"]["state"],
        "waiting"
    );
    // A worker that waits for the target keeps its snapshot of the source.
    let locker = scene.target_session().await;
    each(&locker, &["BEGIN; LOCK TABLE wide_cdc IN SHARE MODE"]).await;
    scene.spawn();
    let waits =
        "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation = 'wide_cdc'::regclass";
    wait_for_value(&scene.target, waits, true, BOUND).await;
    let held = status(&scene).await;
    assert!(
        held["source_snapshot"]["seconds"].as_f64() > Some(0.0),
        "{held}"
    );
    assert!(
        held["source"]["catalog_xmin_age"].as_i64() >= Some(0),
        "{held}"
    );
    each(&locker, &["COMMIT"]).await;
    scene.joined().await;
    let told = status(&scene).await;
    let snapshot = &told["tables"][0]["snapshot"];
    assert_eq!(snapshot["state"], "done");
    assert_eq!(snapshot["rows"], 20_000);
    assert!(snapshot["bytes"].as_i64() > Some(100_000_000), "{snapshot}");
    assert_eq!(snapshot["held_bytes"], 0);
    assert_clean(&scene.stop_complaining().await, LOCKED);
}

#[tokio::test]
async fn a_finished_table_is_not_copied_again() {
    let mut scene = Scene::existing(|builder| builder, &ddl(), &NAMES, "").await;
    scene.spawn();
    scene.joined().await;
    scene.daemon().kill9();
    scene
        .source
        .batch_execute(
            "CREATE ROLE follower LOGIN REPLICATION;
             GRANT pg_write_all_data TO follower; GRANT USAGE, CREATE ON SCHEMA waltrail TO follower;
             GRANT ALL ON ALL TABLES IN SCHEMA waltrail TO follower;
             GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA waltrail TO follower;
             GRANT SELECT ON bare_cdc, parted_cdc, wide_cdc, employees_cdc TO follower;
             GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO follower;
             UPDATE employees SET salary = 1 WHERE id = 1",
        )
        .await
        .unwrap();
    scene.config = scene.config.replace("user=postgres", "user=follower");
    assert!(scene.config.contains("follower"), "{}", scene.config);
    scene.spawn();
    scene.check_existing().await;
    scene.stop().await;
}

#[tokio::test]
async fn never_means_that_existing_rows_are_not_recorded() {
    let tables = ["public.employees=public.employees_cdc(id)"];
    let mut scene = Scene::existing(|builder| builder, &ddl(), &tables, "mode = \"never\"\n").await;
    let streams = |line: &str| line.contains("\"streaming\"");
    scene.spawn().wait_log(BOUND, streams).await;
    scene.joined().await;
    scene
        .source
        .batch_execute("INSERT INTO employees (name) VALUES ('first')")
        .await
        .unwrap();
    wait_for_value(
        &scene.source,
        "SELECT count(*) FROM employees_cdc",
        1_i64,
        BOUND,
    )
    .await;
    // Not either when the setting changes: the table is followed already.
    scene.stop().await;
    scene.config = scene.config.replace("never", "initial");
    scene.spawn().wait_log(BOUND, streams).await;
    scene.joined().await;
    scene
        .source
        .batch_execute("INSERT INTO employees (name) VALUES ('second')")
        .await
        .unwrap();
    wait_for_value(
        &scene.source,
        "SELECT count(*) FROM employees_cdc",
        2_i64,
        BOUND,
    )
    .await;
    scene.stop().await;
}

#[tokio::test]
async fn timeouts_of_the_role_end_nothing() {
    let tables = ["public.wide(id)"];
    let ddl = format!(
        "{} ALTER ROLE postgres SET statement_timeout = '200ms';
         ALTER ROLE postgres SET idle_in_transaction_session_timeout = '200ms';
         ALTER ROLE postgres SET idle_session_timeout = '200ms'; ALTER ROLE postgres SET lock_timeout = '200ms';
         DO $$ BEGIN
             IF current_setting('transaction_timeout', true) IS NOT NULL THEN
                 ALTER ROLE postgres SET transaction_timeout = '200ms';
             END IF;
         END $$;
         SET statement_timeout = 0; SET idle_session_timeout = 0",
        ddl()
    );
    let mut scene = Scene::existing(|builder| builder, &ddl, &tables, "workers = 2\n").await;
    scene.spawn();
    let client = &scene.source;
    wait_until("the table is joined", BOUND, async || {
        let rows = client
            .query("SELECT FROM waltrail.snapshot WHERE state = 'done'", &[])
            .await;
        rows.is_ok_and(|rows| rows.len() == 1).then_some(())
    })
    .await;
    client
        .batch_execute("ALTER ROLE postgres RESET ALL")
        .await
        .unwrap();
    scene.reconnect().await;
    scene.check_existing().await;
    scene.stop().await;
}

#[tokio::test]
async fn a_slot_that_was_there_is_adopted_and_the_rows_get_a_point_of_their_own() {
    let mut scene = Scene::existing(|builder| builder, &ddl(), &NAMES, "").await;
    scene.set_up().await;
    let churn = churn(&scene, 3);
    churn.more(50).await;
    scene.spawn();
    scene.joined().await;
    churn.more(50).await;
    churn.stop();
    scene.check_existing().await;
    scene.stop().await;
}
