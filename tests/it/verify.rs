//! Does `waltrail verify` find what is wrong in a history, all of it and nothing else, while everything writes?

mod kinds;
mod large;
mod repaired;

use std::time::Duration;

use serde_json::Value;

use crate::support::daemon::run;
use crate::support::load::{Load, Plan};
use crate::support::scene::Scene;
use crate::support::{BOUND, DESIGN, EMPLOYEES, each, value, wait_for_value, wait_until};

/// What keeps the position of the history moving where nothing else is written.
const TICKS: &str = "
    CREATE TABLE ticks (id int PRIMARY KEY, n bigint);
    INSERT INTO ticks VALUES (1, 0);";

/// A scene with a table that ticks, and all that exists recorded.
async fn scene(ddl: &str, tables: &[&str]) -> (Scene, Load) {
    let followed: Vec<&str> = tables.iter().copied().chain(["public.ticks(id)"]).collect();
    let mut scene =
        Scene::existing(|builder| builder, &format!("{ddl}{TICKS}"), &followed, "").await;
    scene.start().await;
    scene.joined().await;
    let ticks = ticks(&scene);
    (scene, ticks)
}

fn ticks(scene: &Scene) -> Load {
    Plan::new(scene.server.dsn_tcp("postgres"), 1)
        .statements(|_| "UPDATE ticks SET n = n + 1".to_owned())
        .pause(Duration::from_millis(20))
        .start()
}

/// `waltrail verify` with these arguments: its exit code and what it printed.
fn verify_text(scene: &Scene, arguments: &[&str]) -> (i32, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("waltrail.toml");
    std::fs::write(&file, &scene.config).unwrap();
    let file = file.to_str().unwrap();
    let arguments = [&["--config", file, "verify"], arguments].concat();
    let (status, out, err) = run(folder.path(), &arguments, &[]);
    (status.code().unwrap_or(-1), out, err)
}

/// The same with `--json`: what it says of each table.
#[track_caller]
fn verify(scene: &Scene, arguments: &[&str], code: i32) -> Vec<Value> {
    let (exit, out, err) = verify_text(scene, &[&["--json"], arguments].concat());
    assert_eq!(exit, code, "{out}\n{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["same"], code == 0, "{out}");
    report["tables"].as_array().unwrap().clone()
}

/// What it says of the one table that is named.
#[track_caller]
fn verify_one(scene: &Scene, table: &str, arguments: &[&str], code: i32) -> Value {
    let tables = verify(scene, &[&["--table", table], arguments].concat(), code);
    assert_eq!(tables.len(), 1);
    tables[0].clone()
}

/// `missing`, `extra` and `different` rows.
fn counts(table: &Value) -> [i64; 3] {
    ["missing", "extra", "different"].map(|name| table[name].as_i64().unwrap())
}

/// Difference, columns and key of each key that is named, in an order of their own.
fn named(table: &Value) -> Vec<String> {
    let keys = table["keys"].as_array().unwrap();
    let mut named: Vec<String> = keys
        .iter()
        .map(|key| {
            format!("{} {} {}", key["difference"], key["columns"], key["values"]).replace('"', "")
        })
        .collect();
    named.sort();
    named
}

#[tokio::test]
async fn the_histories_of_the_design_are_their_tables_under_load() {
    let (mut scene, ticks) = scene(EMPLOYEES, &["public.employees=public.employees_cdc(id)"]).await;
    each(
        &scene.source,
        &["INSERT INTO employees (name, salary) SELECT 'n' || n, n FROM generate_series(1, 5000) n"],
    )
    .await;
    let load = Plan::new(scene.server.dsn_tcp("postgres"), 7).start();
    for _ in 0..5 {
        load.more(100).await;
        for table in verify(&scene, &[], 0) {
            assert_eq!(table["outcome"], "same");
        }
    }
    load.stop();
    ticks.stop();
    scene.stop().await;
}

/// Few keys, and no pause: many of them change just when the position is taken.
#[tokio::test]
async fn keys_that_change_at_that_moment_are_one_of_their_versions() {
    let (mut scene, ticks) = scene(
        "CREATE TABLE hot (id int PRIMARY KEY, n bigint);
         INSERT INTO hot SELECT n, 0 FROM generate_series(1, 20) n;
         CREATE TABLE hot_cdc (cdc_id bigserial PRIMARY KEY, change_type text, id int, n bigint, change_timestamp timestamptz);",
        &["public.hot=public.hot_cdc(id)"],
    )
    .await;
    let load = Plan::new(scene.server.dsn_tcp("postgres"), 3)
        .statements(|rng| match rng.u32(..10) {
            0 => format!("DELETE FROM hot WHERE id = {}", rng.u32(1..20)),
            1 => format!(
                "INSERT INTO hot VALUES ({}, 0) ON CONFLICT DO NOTHING",
                rng.u32(1..20)
            ),
            2 if rng.u32(..50) == 0 => "TRUNCATE hot".to_owned(),
            _ => format!("UPDATE hot SET n = n + 1 WHERE id = {}", rng.u32(1..20)),
        })
        .start();
    let (mut rounds, mut changing) = (0, 0);
    while rounds < 5 || changing == 0 {
        load.more(50).await;
        let found = verify_one(&scene, "public.hot", &[], 0);
        changing += found["changing"].as_i64().unwrap();
        rounds += 1;
        assert!(rounds < 50, "no key changed at the position");
    }
    println!("{rounds} rounds, {changing} keys changed at the position");
    load.stop();
    ticks.stop();
    scene.stop().await;
}

#[tokio::test]
async fn each_row_that_was_altered_removed_or_added_is_named() {
    let (mut scene, ticks) = scene(DESIGN, &["public.employees=public.employees_cdc(id)"]).await;
    each(
        &scene.source,
        &[
            "INSERT INTO employees (name, salary) SELECT 'CANARY_7f3a' || n, n FROM generate_series(1, 3000) n",
            "UPDATE employees SET salary = salary + 0.50 WHERE id % 3 = 0",
            "DELETE FROM employees WHERE id = 5",
        ],
    )
    .await;
    wait_for_value(
        &scene.target,
        "SELECT count(*) FROM employees_cdc",
        4001_i64,
        BOUND,
    )
    .await;
    verify(&scene, &[], 0);
    each(
        &scene.target,
        &[
            "UPDATE employees_cdc SET salary = 9.5 WHERE id = 9 AND change_type = 'UPDATE'",
            "UPDATE employees_cdc SET name = NULL WHERE id = 10",
            // Another number, though an equal one.
            "UPDATE employees_cdc SET salary = 11.0 WHERE id = 11",
            "DELETE FROM employees_cdc WHERE id = 12",
            "INSERT INTO employees_cdc (change_type, id, name) VALUES ('INSERT', 7000, 'x')",
        ],
    )
    .await;
    let found = verify_one(&scene, "public.employees", &["--show-keys"], 1);
    assert_eq!(counts(&found), [1, 1, 3]);
    assert_eq!(found["rows"], 2999);
    assert_eq!(
        named(&found),
        [
            "different [name] [10]",
            "different [salary] [11]",
            "different [salary] [9]",
            "extra [] [7000]",
            "missing [] [12]",
        ]
    );
    let hidden = verify_one(&scene, "public.employees", &[], 1);
    let hashes = |table: &Value| -> Vec<String> {
        let keys = table["keys"].as_array().unwrap();
        keys.iter().map(|key| key["key"].to_string()).collect()
    };
    assert_eq!(hashes(&hidden), hashes(&found));
    assert!(
        hidden["keys"]
            .as_array()
            .unwrap()
            .iter()
            .all(|key| key["values"].is_null())
    );
    let (code, text, _) = verify_text(&scene, &["--table", "public.employees"]);
    assert_eq!(code, 1);
    assert!(
        text.contains("1 missing in the history, 1 not in the table, 3 with other values"),
        "{text}"
    );
    ticks.stop();
    scene.stop().await;
}

#[tokio::test]
async fn without_a_daemon_it_ends_with_75_and_says_what_to_start() {
    let (mut scene, ticks) = scene(DESIGN, &["public.employees=public.employees_cdc(id)"]).await;
    ticks.stop();
    scene.stop().await;
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('a')"],
    )
    .await;
    let (code, out, err) = verify_text(&scene, &[]);
    assert_eq!(code, 75, "{out}\n{err}");
    assert!(
        err.contains("no waltrail writes for slot waltrail"),
        "{err}"
    );
    assert!(err.contains("systemctl start waltrail"), "{err}");
    let left = "SELECT count(*) FROM pg_replication_slots WHERE temporary";
    wait_for_value(&scene.source, left, 0_i64, BOUND).await;
}

/// The daemon says that it has everything only when the source has written enough.
#[tokio::test]
async fn a_source_that_rests_is_verified_too() {
    let (mut scene, ticks) = scene(DESIGN, &["public.employees=public.employees_cdc(id)"]).await;
    ticks.stop();
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('a')"],
    )
    .await;
    wait_for_value(
        &scene.target,
        "SELECT count(*) FROM employees_cdc",
        1_i64,
        BOUND,
    )
    .await;
    for table in verify(&scene, &[], 0) {
        assert_eq!(table["outcome"], "same");
        assert_eq!(table["rows"], 1);
    }
    scene.stop().await;
}

#[tokio::test]
async fn a_history_that_lacks_its_beginning_says_so() {
    let ddl = "CREATE TABLE old (id int PRIMARY KEY, v text);
        INSERT INTO old SELECT n, 'v' FROM generate_series(1, 100) n;";
    let mut scene = Scene::with(
        |b| b,
        &format!("{ddl}{TICKS}"),
        &["public.old", "public.ticks"],
        "",
    )
    .await;
    let ticks = ticks(&scene);
    let found = verify_one(&scene, "public.old", &[], 1);
    assert_eq!(found["outcome"], "incomplete");
    assert_eq!(found["reason"], "the existing rows were never recorded");
    // What comes after it is known.
    each(
        &scene.source,
        &["TRUNCATE old", "INSERT INTO old VALUES (1, 'w')"],
    )
    .await;
    wait_for_value(&scene.target, "SELECT count(*) FROM old_cdc", 2_i64, BOUND).await;
    let found = verify_one(&scene, "public.old", &[], 0);
    assert_eq!(
        (&found["outcome"], &found["rows"]),
        (&"same".into(), &1.into())
    );
    ticks.stop();
    scene.stop().await;
}

/// A large value that was never logged: it did not change while the table was followed.
#[tokio::test]
async fn a_value_that_no_row_of_the_history_has_is_counted_and_can_be_repaired() {
    let ddl = "CREATE TABLE big (id int PRIMARY KEY, n int, v text);
        ALTER TABLE big ALTER v SET STORAGE EXTERNAL;
        INSERT INTO big VALUES (1, 0, repeat('x', 5000));";
    let mut scene = Scene::with(
        |b| b,
        &format!("{ddl}{TICKS}"),
        &["public.big", "public.ticks"],
        "",
    )
    .await;
    let ticks = ticks(&scene);
    each(&scene.source, &["UPDATE big SET n = 1"]).await;
    wait_for_value(&scene.target, "SELECT count(*) FROM big_cdc", 1_i64, BOUND).await;
    let found = verify_one(&scene, "public.big", &[], 0);
    assert_eq!(
        (&found["outcome"], &found["unknown_values"]),
        (&"same".into(), &1.into())
    );
    let found = verify_one(&scene, "public.big", &["--repair", "--yes"], 0);
    assert_eq!(
        (&found["outcome"], &found["repaired"]),
        (&"repaired".into(), &1.into())
    );
    let found = verify_one(&scene, "public.big", &[], 0);
    assert_eq!(
        (&found["outcome"], &found["unknown_values"]),
        (&"same".into(), &0.into())
    );
    // What is not known of a row must not hide what is known to be wrong.
    each(
        &scene.target,
        &[
            "DELETE FROM big_cdc WHERE change_type = 'REPAIR'",
            "UPDATE big_cdc SET n = 7",
        ],
    )
    .await;
    let found = verify_one(&scene, "public.big", &["--show-keys"], 1);
    assert_eq!(found["unknown_values"], 1);
    ticks.stop();
    scene.stop().await;
}

#[tokio::test]
async fn a_history_with_a_gap_says_so_until_its_rows_are_recorded_again() {
    let ddl = "CREATE TABLE made (id int PRIMARY KEY, v text);
        INSERT INTO made SELECT n, 'v' FROM generate_series(1, 100) n;";
    let (mut scene, ticks) = scene(ddl, &["public.made(id)"]).await;
    verify(&scene, &[], 0);
    each(
        &scene.target,
        &["INSERT INTO made_cdc (change_type, change_timestamp, commit_lsn, tx_seq, xid) \
           SELECT 'GAP', change_timestamp, commit_lsn, 0, 0 FROM made_cdc ORDER BY cdc_id DESC LIMIT 1"],
    )
    .await;
    let found = verify_one(&scene, "public.made", &["--repair", "--yes"], 1);
    assert_eq!(found["outcome"], "incomplete");
    let reason = found["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("changes are missing before its last GAP row"),
        "{reason}"
    );
    assert_eq!(found["repaired"], 0);
    ticks.stop();
    scene.stop().await;
}

/// Rows from before a change of the schema have the values that the table gave them then.
#[tokio::test]
async fn a_history_whose_table_was_altered_is_compared() {
    let ddl = "CREATE TABLE shape (id int PRIMARY KEY, a text, b int);
        INSERT INTO shape SELECT n, 'a' || n, n FROM generate_series(1, 100) n;";
    let (mut scene, ticks) = scene(ddl, &["public.shape(id)"]).await;
    for (n, change) in [
        "ALTER TABLE shape RENAME a TO c",
        "ALTER TABLE shape ADD d int DEFAULT 7",
        "ALTER TABLE shape DROP b; ALTER TABLE shape ADD b int",
        "ALTER TABLE shape ALTER d TYPE numeric",
        "ALTER TABLE shape RENAME c TO a; ALTER TABLE shape ADD c text DEFAULT 'c'",
    ]
    .into_iter()
    .enumerate()
    {
        each(
            &scene.source,
            &[
                change,
                &format!("UPDATE shape SET d = {n} WHERE id % 10 = {n}")
                    .replace("d =", if n == 0 { "b =" } else { "d =" }),
            ],
        )
        .await;
        let rows = format!(
            "SELECT count(*) FROM shape_cdc WHERE change_type = 'UPDATE' AND id % 10 = {n}"
        );
        wait_for_value(&scene.target, &rows, 10_i64, BOUND).await;
        let found = verify_one(&scene, "public.shape", &["--show-keys"], 0);
        println!("{change}: {found}");
    }
    // Existing rows get values that no log carries.
    each(
        &scene.source,
        &[
            "ALTER TABLE shape ADD e float8 DEFAULT random()",
            "UPDATE shape SET e = 1 WHERE id = 1",
        ],
    )
    .await;
    let rows = "SELECT count(*) FROM shape_cdc WHERE change_type = 'UPDATE'";
    wait_for_value(&scene.target, rows, 51_i64, BOUND).await;
    let found = verify_one(&scene, "public.shape", &["--repair", "--yes"], 0);
    assert_eq!(
        (counts(&found), &found["repaired"]),
        ([0, 0, 99], &99.into())
    );
    verify_one(&scene, "public.shape", &[], 0);
    ticks.stop();
    // A rename is a warning.
    scene.stop_complaining().await;
}

/// Nothing that it needs outlives it: no slot, no session, no lock on the table.
#[tokio::test]
async fn a_verification_leaves_nothing_behind() {
    let (mut scene, ticks) = scene(DESIGN, &["public.employees=public.employees_cdc(id)"]).await;
    verify(&scene, &[], 0);
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name <> 'waltrail'";
    wait_for_value(&scene.source, slots, 0_i64, BOUND).await;
    wait_until("its sessions are gone", BOUND, async || {
        let held = "SELECT count(*) FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND backend_type = 'client backend' \
            AND pid <> pg_backend_pid()";
        (value::<i64>(&scene.source, held).await == 0).then_some(())
    })
    .await;
    ticks.stop();
    scene.stop().await;
}
