//! Gaps and what a person does about them: whatever is refused can be accepted, once and with one answer, and what cannot be
//! missing is not refused.

use super::source_changes::{accept, count, following, recorded};
use crate::support::daemon::ending;
use crate::support::scene::Scene;
use crate::support::{BOUND, each, value, wait_for_value};
use waltrail::lsn::Lsn;

/// Removes a table from the configuration.
fn without(scene: &mut Scene, table: &str) {
    let entry = format!("[[table]]\nsource = '{table}'\n");
    assert!(scene.config.contains(&entry));
    scene.config = scene.config.replace(&entry, "");
}

#[tokio::test]
async fn the_gap_of_a_table_that_is_not_configured_any_more_can_be_accepted() {
    let mut scene = following().await;
    each(&scene.source, &["DROP TABLE t"]).await;
    let (status, output) = scene.daemon().wait(BOUND).await;
    assert_eq!(status.code(), Some(65), "{output}");
    without(&mut scene, "public.t");
    let (code, output) = scene.refused().await;
    assert_eq!(code, 65, "{output}");
    let (code, output) = accept(&scene, &[]).await;
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("public.t_cdc"), "{output}");
    scene.start().await;
    assert_eq!(count(&scene, "t_cdc", "GAP").await, 1);
    assert_eq!(count(&scene, "beside_cdc", "GAP").await, 0);
    each(&scene.source, &["INSERT INTO beside VALUES (7, 'x')"]).await;
    recorded(&scene, "beside_cdc", 7).await;
    scene.stop().await;
}

#[tokio::test]
async fn a_gap_of_the_publication_is_accepted_for_all_tables_or_for_none() {
    let mut scene = following().await;
    each(
        &scene.source,
        &[
            "ALTER PUBLICATION waltrail SET (publish = 'insert')",
            "UPDATE t SET v = 'TWO' WHERE id = 2",
            "ALTER PUBLICATION waltrail SET (publish = 'insert, update, delete, truncate')",
        ],
    )
    .await;
    scene.daemon().wait(BOUND).await;
    let (code, output) = accept(&scene, &["--table", "public.t"]).await;
    assert_eq!(code, 64, "{output}");
    assert!(output.contains("without --table"), "{output}");
    assert_eq!(count(&scene, "t_cdc", "GAP").await, 0);
    let (code, output) = accept(&scene, &[]).await;
    assert_eq!(code, 0, "{output}");
    scene.start().await;
    scene.joined().await;
    scene.check_fold("public.t", &["id"]).await;
    scene.stop().await;
}

#[tokio::test]
async fn a_table_that_is_not_configured_is_not_accepted() {
    let mut scene = following().await;
    scene.stop().await;
    let (code, output) = accept(&scene, &["--table", "public.unknown"]).await;
    assert_eq!(code, 64, "{output}");
}

#[tokio::test]
async fn a_view_under_the_old_name_of_a_table_is_no_other_table() {
    let mut scene = following().await;
    each(
        &scene.source,
        &[
            "BEGIN",
            "ALTER TABLE t RENAME TO u",
            "CREATE VIEW t AS SELECT * FROM u",
            "COMMIT",
            "INSERT INTO t VALUES (3, 'three', 'w3')",
        ],
    )
    .await;
    recorded(&scene, "t_cdc", 3).await;
    scene.stop_complaining().await;
    each(&scene.source, &["INSERT INTO t VALUES (4, 'four', 'w4')"]).await;
    scene.start().await;
    recorded(&scene, "t_cdc", 4).await;
    scene.stop_complaining().await;
    assert_eq!(count(&scene, "t_cdc", "GAP").await, 0);
}

#[tokio::test]
async fn a_table_that_is_attached_to_a_published_table_is_a_gap() {
    let mut scene = following().await;
    each(
        &scene.source,
        &[
            "CREATE TABLE p (id int PRIMARY KEY, v text, w text) PARTITION BY RANGE (id)",
            "ALTER TABLE p ATTACH PARTITION t FOR VALUES FROM (0) TO (1000)",
            "ALTER PUBLICATION waltrail ADD TABLE ONLY p",
            "INSERT INTO t VALUES (3, 'three', 'w3')",
        ],
    )
    .await;
    let (status, output) = scene.daemon().wait(BOUND).await;
    assert_eq!(status.code(), Some(65), "{output}");
}

#[tokio::test]
async fn another_publication_in_the_configuration_hides_nothing() {
    let mut scene = following().await;
    each(
        &scene.source,
        &[
            "CREATE PUBLICATION other FOR TABLE ONLY beside WITH (publish_via_partition_root = true)",
            "INSERT INTO t VALUES (3, 'three', 'w3')",
        ],
    )
    .await;
    recorded(&scene, "t_cdc", 3).await;
    scene.stop().await;
    each(&scene.source, &["INSERT INTO t VALUES (4, 'four', 'w4')"]).await;
    scene.config = scene
        .config
        .replace("[source]\n", "[source]\npublication = 'other'\n");
    let (code, output) = scene.refused().await;
    assert_eq!(code, 65, "{output}");
    let sentence = "was read through publication \"waltrail\"";
    assert!(ending(&output).0.contains(sentence), "{output}");
    let (code, output) = accept(&scene, &[]).await;
    assert_eq!(code, 0, "{output}");
    scene.start().await;
    scene.joined().await;
    scene.check_fold("public.t", &["id"]).await;
    scene.stop().await;
}

#[tokio::test]
async fn what_is_altered_while_a_start_prepares_is_a_gap() {
    let mut scene = following().await;
    scene.stop().await;
    each(&scene.source, &["CREATE TABLE n (id int PRIMARY KEY)"]).await;
    scene.config =
        scene
            .config
            .replacen("[[table]]", "[[table]]\nsource = 'public.n'\n[[table]]", 1);
    let blocker = scene.target_session().await;
    each(&blocker, &["BEGIN", "CREATE TABLE n_cdc (id int)"]).await;
    scene.spawn();
    let blocked = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock')";
    wait_for_value(&scene.source, blocked, true, BOUND).await;
    each(
        &scene.source,
        &[
            "ALTER PUBLICATION waltrail DROP TABLE t",
            "INSERT INTO t VALUES (3, 'three', 'w3')",
            "ALTER PUBLICATION waltrail ADD TABLE ONLY t",
        ],
    )
    .await;
    each(&blocker, &["ROLLBACK"]).await;
    let (status, output) = scene.daemon().wait(BOUND).await;
    assert_eq!(status.code(), Some(65), "{output}");
    assert!(output.contains("public.t was taken out"), "{output}");
}

#[tokio::test]
async fn a_history_that_refuses_the_row_of_a_gap_keeps_the_slot() {
    let mut scene = following().await;
    each(
        &scene.source,
        &[
            "ALTER TABLE t_cdc ADD CHECK (change_type <> 'GAP')",
            "ALTER PUBLICATION waltrail SET (publish = 'insert')",
        ],
    )
    .await;
    scene.daemon().wait(BOUND).await;
    let (code, output) = accept(&scene, &[]).await;
    assert_ne!(code, 0, "{output}");
    let slots: i64 = value(&scene.source, "SELECT count(*) FROM pg_replication_slots").await;
    assert_eq!(slots, 1, "{output}");
    each(
        &scene.source,
        &[
            "ALTER TABLE t_cdc DROP CONSTRAINT t_cdc_change_type_check",
            "ALTER PUBLICATION waltrail SET (publish = 'insert, update, delete, truncate')",
        ],
    )
    .await;
    let (code, output) = accept(&scene, &[]).await;
    assert_eq!(code, 0, "{output}");
    scene.start().await;
    scene.joined().await;
    scene.check_fold("public.t", &["id"]).await;
    scene.stop().await;
}

#[tokio::test]
async fn a_gap_of_a_table_with_capitals_in_its_name_is_accepted_by_that_name() {
    let ddl =
        "CREATE TABLE \"T\" (id int PRIMARY KEY, v text); INSERT INTO \"T\" VALUES (1, 'one');
        CREATE TABLE beside (id int PRIMARY KEY, v text)";
    let tables = ["public.\"T\"(id)", "public.beside(id)"];
    let mut scene = Scene::existing(|builder| builder, ddl, &tables, "").await;
    scene.start().await;
    scene.joined().await;
    each(
        &scene.source,
        &[
            "ALTER PUBLICATION waltrail DROP TABLE \"T\"",
            "INSERT INTO \"T\" VALUES (2, 'two')",
        ],
    )
    .await;
    scene.daemon().wait(BOUND).await;
    let (code, output) = accept(&scene, &["--table", "\"T\""]).await;
    assert_eq!(code, 0, "{output}");
    scene.start().await;
    scene.joined().await;
    scene.check_fold("public.\"T\"", &["id"]).await;
    assert_eq!(count(&scene, "\"T_cdc\"", "GAP").await, 1);
    scene.stop().await;
}

#[tokio::test]
async fn a_stop_while_the_end_of_the_stream_is_awaited_keeps_what_was_found() {
    let mut scene = following().await;
    let lock = scene.target_session().await;
    each(&lock, &["BEGIN", "LOCK TABLE t_cdc"]).await;
    each(
        &scene.source,
        &[
            "INSERT INTO t VALUES (3, 'three', 'w3')",
            "ALTER PUBLICATION waltrail DROP TABLE t",
            "INSERT INTO t VALUES (4, 'four', 'w4')",
        ],
    )
    .await;
    let found = |line: &str| line.contains("what was written before is still read");
    scene.daemon().wait_log(BOUND, found).await;
    scene.daemon().sigterm();
    let (status, output) = scene.daemon().wait(BOUND).await;
    each(&lock, &["ROLLBACK"]).await;
    assert_eq!(status.code(), Some(0), "{output}");
    each(
        &scene.source,
        &["ALTER PUBLICATION waltrail ADD TABLE ONLY t"],
    )
    .await;
    let (code, again) = scene.refused().await;
    assert_eq!(code, 65, "{output}\n{again}");
    recorded(&scene, "t_cdc", 3).await;
    let (code, output) = accept(&scene, &[]).await;
    assert_eq!(code, 0, "{output}");
    scene.start().await;
    scene.joined().await;
    scene.check_fold("public.t", &["id"]).await;
    scene.stop().await;
}

#[tokio::test]
async fn a_gap_that_is_found_while_existing_rows_are_copied_is_accepted() {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT n, 'x' FROM generate_series(1, 300) n;
        CREATE TABLE beside (id int PRIMARY KEY, v text); INSERT INTO beside VALUES (1, 'x')";
    let mut scene = Scene::existing(|b| b, ddl, &["public.t(id)", "public.beside(id)"], "").await;
    scene.set_up().await;
    let lock = scene.target_session().await;
    each(&lock, &["BEGIN", "LOCK TABLE t_cdc IN SHARE MODE"]).await;
    scene.start().await;
    let copying = "SELECT EXISTS (SELECT FROM waltrail.snapshot WHERE state = 'copying')";
    wait_for_value(&scene.target, copying, true, BOUND).await;
    each(
        &scene.source,
        &[
            "UPDATE t SET v = 'held' WHERE id = 1",
            "ALTER PUBLICATION waltrail DROP TABLE t",
            "UPDATE t SET v = 'missing' WHERE id = 2",
            "ALTER PUBLICATION waltrail ADD TABLE ONLY t",
            "DELETE FROM t WHERE id = 3",
            "INSERT INTO beside VALUES (2, 'y')",
        ],
    )
    .await;
    let found = |line: &str| line.contains("what was written before is still read");
    scene.daemon().wait_log(BOUND, found).await;
    each(&lock, &["ROLLBACK"]).await;
    let (status, output) = scene.daemon().wait(BOUND).await;
    assert_eq!(status.code(), Some(65), "{output}");
    let (code, output) = accept(&scene, &["--table", "t"]).await;
    assert_eq!(code, 0, "{output}");
    scene.start().await;
    scene.joined().await;
    scene.check_fold("public.t", &["id"]).await;
    scene.check_fold("public.beside", &["id"]).await;
    assert_eq!(count(&scene, "t_cdc", "GAP").await, 1);
    scene.stop().await;
}

#[tokio::test]
async fn a_killed_daemon_goes_on_without_the_table_of_its_last_transaction() {
    let mut scene = following().await;
    for round in 0..6 {
        each(
            &scene.source,
            &[&format!("INSERT INTO t VALUES ({}, 'x', 'y')", 10 + round)],
        )
        .await;
        recorded(&scene, "t_cdc", 10 + round).await;
        scene.daemon().kill9();
        let config = scene.config.clone();
        if round % 2 == 0 {
            scene.config = config.replace("[[table]]\nsource = 'public.t'\n", "");
        }
        each(
            &scene.source,
            &[&format!("INSERT INTO beside VALUES ({}, 'x')", 10 + round)],
        )
        .await;
        scene.start().await;
        recorded(&scene, "beside_cdc", 10 + round).await;
        scene.daemon().kill9();
        scene.config = config;
        scene.start().await;
        scene.joined().await;
    }
    // Each time that it came back, its existing rows were recorded again, after a row that says so.
    scene.check_fold("public.beside", &["id"]).await;
    scene.check_fold("public.t", &["id"]).await;
    assert_eq!(count(&scene, "t_cdc", "GAP").await, 3);
    assert_eq!(count(&scene, "beside_cdc", "GAP").await, 0);
    scene.stop_complaining().await;
}

#[tokio::test]
async fn a_table_that_was_not_followed_for_a_while_says_so_in_its_history() {
    let mut scene = following().await;
    scene.stop().await;
    let config = scene.config.clone();
    without(&mut scene, "public.t");
    scene.start().await;
    let out = lsn(&scene, "SELECT end_lsn FROM waltrail.checkpoint").await;
    each(
        &scene.source,
        &[
            "DELETE FROM t WHERE id = 1",
            "INSERT INTO t VALUES (3, 'three', 'w3')",
            "INSERT INTO beside VALUES (3, 'x')",
        ],
    )
    .await;
    recorded(&scene, "beside_cdc", 3).await;
    let missed = lsn(&scene, "SELECT pg_current_wal_lsn()").await;
    scene.daemon().kill9();
    scene.config = config;
    scene.start().await;
    scene.joined().await;
    scene.check_fold("public.t", &["id"]).await;
    let gap = "SELECT commit_lsn FROM t_cdc WHERE change_type = 'GAP'";
    assert!(lsn(&scene, gap).await >= missed);
    assert_eq!(
        lsn(&scene, "SELECT from_lsn FROM waltrail.gap").await,
        out,
        "the last position that is in the history"
    );
    // It says so once.
    scene.daemon().kill9();
    scene.start().await;
    assert_eq!(count(&scene, "t_cdc", "GAP").await, 1);
    scene.stop().await;
}

async fn lsn(scene: &Scene, query: &str) -> Lsn {
    scene.target.query_one(query, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_gap_without_a_baseline_goes_on() {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE beside (id int PRIMARY KEY, v text)";
    let mut scene = Scene::new(ddl, &["public.t", "public.beside"]).await;
    each(&scene.source, &["INSERT INTO t VALUES (1, 'x')"]).await;
    recorded(&scene, "t_cdc", 1).await;
    for (round, chosen) in [&["--table", "t"][..], &[]].into_iter().enumerate() {
        each(&scene.source, &["ALTER PUBLICATION waltrail DROP TABLE t"]).await;
        scene.daemon().wait(BOUND).await;
        let (code, output) = accept(&scene, chosen).await;
        assert_eq!(code, 0, "{output}");
        scene.start().await;
        let id = 10 + round as i32;
        each(
            &scene.source,
            &[
                &format!("INSERT INTO t VALUES ({id}, 'x')"),
                &format!("INSERT INTO beside VALUES ({id}, 'x')"),
            ],
        )
        .await;
        recorded(&scene, "t_cdc", id).await;
        recorded(&scene, "beside_cdc", id).await;
    }
    let rows: i64 = value(&scene.target, "SELECT count(*) FROM t_cdc").await;
    assert_eq!(rows, 5);
    scene.stop().await;
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_not_passed_over() {
    let mut scene = following().await;
    scene.stop().await;
    each(
        &scene.target,
        &["UPDATE waltrail.followed SET seen = '{}' WHERE history = 'public.t_cdc'"],
    )
    .await;
    let (code, output) = scene.refused().await;
    assert_eq!(code, 78, "{output}");
    assert!(
        output.contains("a record of slot waltrail that this program cannot read"),
        "{output}"
    );
}
