//! Are several tables, whatever they are called, and the times of their changes recorded as they should be?

use crate::support::scene::Scene;
use crate::support::{EMPLOYEES, each, texts, value};

#[tokio::test]
async fn a_change_has_its_commit_time_also_when_nobody_was_listening() {
    // The history's column has no time zone: it is UTC, whatever zone the servers live in.
    let mut scene = Scene::with(
        |builder| builder.setting("timezone", "Asia/Tokyo"),
        EMPLOYEES,
        &["public.employees"],
        "",
    )
    .await;
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('while it runs')"],
    )
    .await;
    scene.check().await;
    scene.stop().await;
    each(
        &scene.source,
        &[
            "INSERT INTO employees (name) VALUES ('while it is down')",
            // Begun long before its commit: it is the commit's time that counts.
            "BEGIN; UPDATE employees SET salary = 1 WHERE id = 1; SELECT pg_sleep(0.2); COMMIT",
            "DELETE FROM employees WHERE id = 2",
        ],
    )
    .await;
    let before: f64 = value(
        &scene.source,
        "SELECT extract(epoch FROM clock_timestamp())::float8",
    )
    .await;
    scene.start().await;
    assert_eq!(scene.check().await.rows, 4);
    let last: f64 = value(
        &scene.target,
        "SELECT max(extract(epoch FROM change_timestamp))::float8 FROM employees_cdc",
    )
    .await;
    assert!(
        last < before,
        "recorded as of {last}, but made before {before}"
    );
    scene.end().await;
}

const MANY: &str = r#"
    CREATE SCHEMA "Other Schema";
    CREATE SCHEMA archive;
    CREATE TABLE plain (id integer PRIMARY KEY, note text);
    CREATE TABLE "Order" (id integer PRIMARY KEY, "order" integer, "Select ""me""" text, "tab	ü" text);
    CREATE TABLE "Other Schema"."Käse" (a integer, b text, "order" integer, PRIMARY KEY (b, a));
    CREATE TABLE "Other Schema".plain (id integer PRIMARY KEY, note text);
    CREATE TABLE quiet (id integer PRIMARY KEY);
    CREATE TABLE wide (id integer PRIMARY KEY, zweck text, left_out text);
"#;

const NAMES: [&str; 6] = [
    "public.plain",
    r#"public."Order""#,
    r#""Other Schema"."Käse""#,
    r#""Other Schema".plain=archive."History of plain""#,
    "public.quiet",
    "public.wide",
];

#[tokio::test]
async fn tables_with_odd_names_have_each_their_own_history() {
    let scene = Scene::new(MANY, &NAMES).await;
    each(
        &scene.source,
        &[
            "INSERT INTO plain VALUES (1, 'canary')",
            r#"INSERT INTO "Order" VALUES (1, 2, 'x', 'y'), (2, NULL, 'x', NULL)"#,
            r#"UPDATE "Order" SET "order" = 5, id = id + 10"#,
            r#"INSERT INTO "Other Schema"."Käse" VALUES (1, 'Brie', 3), (1, 'Gouda', 4)"#,
            r#"UPDATE "Other Schema"."Käse" SET a = 2 WHERE b = 'Brie'"#,
            r#"DELETE FROM "Other Schema"."Käse""#,
            r#"INSERT INTO "Other Schema".plain VALUES (1, 'canary, not the other one')"#,
            "INSERT INTO wide VALUES (1, 'z', 'l')",
            r#"TRUNCATE "Order", "Other Schema".plain"#,
        ],
    )
    .await;
    scene.check().await;
    for (table, key) in [
        (NAMES[0], vec!["id"]),
        (NAMES[1], vec!["id"]),
        (NAMES[2], vec!["b", "a"]),
        (NAMES[3], vec!["id"]),
        (NAMES[4], vec!["id"]),
    ] {
        scene.check_fold(table, &key).await;
    }
    let quiet: i64 = value(&scene.target, "SELECT count(*) FROM quiet_cdc").await;
    assert_eq!(quiet, 0);
    scene.end().await;
}

#[tokio::test]
async fn tx_seq_counts_over_all_captured_tables_of_a_transaction() {
    let scene = Scene::new(
        &format!("{MANY} CREATE TABLE noise (id integer PRIMARY KEY);"),
        &NAMES[..3],
    )
    .await;
    each(
        &scene.source,
        &[r#"BEGIN;
             INSERT INTO plain VALUES (1, 'canary first'), (2, 'canary second');
             INSERT INTO noise VALUES (1);
             INSERT INTO "Order" VALUES (1, 3);
             UPDATE plain SET note = 'fourth' WHERE id = 2;
             INSERT INTO "Other Schema"."Käse" VALUES (5, 'fifth', 5);
             UPDATE "Order" SET id = 6;
             UPDATE noise SET id = 2;
             DELETE FROM plain WHERE id = 1;
             COMMIT"#],
    )
    .await;
    scene.check().await;
    let order = texts(
        &scene.target,
        r#"SELECT format('%s %s %s', t, tx_seq, change_type) FROM (
               SELECT 'plain' AS t, tx_seq, change_type, commit_lsn FROM plain_cdc
               UNION ALL SELECT 'Order', tx_seq, change_type, commit_lsn FROM "Order_cdc"
               UNION ALL SELECT 'Käse', tx_seq, change_type, commit_lsn FROM "Other Schema"."Käse_cdc") s
           ORDER BY commit_lsn, tx_seq"#,
    )
    .await;
    let order: Vec<String> = order.into_iter().flatten().collect();
    assert_eq!(
        order,
        [
            "plain 1 INSERT",
            "plain 2 INSERT",
            "Order 3 INSERT",
            "plain 4 UPDATE",
            "Käse 5 INSERT",
            "Order 6 UPDATE",
            "plain 7 DELETE",
        ]
    );
    scene.end().await;
}

#[tokio::test]
async fn columns_that_are_excluded_are_not_recorded() {
    let scene = Scene::with(
        |builder| builder,
        MANY,
        &["public.plain"],
        "[[table]]\nsource = 'public.wide'\nexclude_columns = ['left_out']\n",
    )
    .await;
    each(
        &scene.source,
        &["INSERT INTO wide VALUES (1, 'kept', 'canary-left-out')"],
    )
    .await;
    crate::support::wait_for_value(
        &scene.target,
        "SELECT count(*) FROM wide_cdc WHERE zweck = 'kept'",
        1_i64,
        crate::support::BOUND,
    )
    .await;
    let has: bool = value(
        &scene.target,
        "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'wide_cdc'::regclass AND attname = 'left_out')",
    )
    .await;
    assert!(!has);
    scene.end().await;
}

const PARTED: &str = "
    CREATE TABLE parted (id integer, region text, note text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
    CREATE TABLE parted_n PARTITION OF parted FOR VALUES IN ('north');
    -- Its columns lie in another order, with one dropped among them.
    CREATE TABLE parted_s (note text, gone integer, region text NOT NULL, id integer NOT NULL, PRIMARY KEY (id, region));
    ALTER TABLE parted_s DROP COLUMN gone;
    ALTER TABLE parted ATTACH PARTITION parted_s FOR VALUES IN ('south');";

#[tokio::test]
async fn a_partitioned_table_is_recorded_under_its_own_name() {
    let scene = Scene::new(PARTED, &["public.parted"]).await;
    // The oracle's triggers were cloned onto the partitions and know the table they were made for.
    each(
        &scene.source,
        &[
            "INSERT INTO parted VALUES (1, 'north', 'a'), (2, 'south', 'b'), (3, 'south', NULL)",
            "UPDATE parted SET note = 'c' WHERE id = 2",
            "UPDATE parted_n SET id = 4",
            "DELETE FROM parted WHERE id = 3",
        ],
    )
    .await;
    scene.check().await;
    // Moving between partitions is a DELETE and an INSERT, in the trigger's eyes too.
    each(
        &scene.source,
        &["UPDATE parted SET region = 'south', note = 'moved' WHERE id = 4"],
    )
    .await;
    scene.check().await;
    let moved = texts(
        &scene.target,
        "SELECT format('%s %s %s %s', change_type, id, region, tx_seq) FROM parted_cdc
         ORDER BY cdc_id DESC LIMIT 2",
    )
    .await;
    let moved: Vec<String> = moved.into_iter().flatten().collect();
    assert_eq!(moved, ["INSERT 4 south 2", "DELETE 4 north 1"]);
    scene.check_fold("public.parted", &["id", "region"]).await;
    each(
        &scene.source,
        &[
            "CREATE TABLE parted_w PARTITION OF parted FOR VALUES IN ('west')",
            "INSERT INTO parted VALUES (9, 'west', 'a partition made later')",
            "TRUNCATE parted",
        ],
    )
    .await;
    scene.check().await;
    scene.end().await;
}
