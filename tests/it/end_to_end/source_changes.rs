//! What people do to the source's publication and tables: is every change that it hides noticed, placed, and never passed
//! over?

use crate::support::daemon::{Daemon, ending};
use crate::support::scene::Scene;
use crate::support::{BOUND, each, texts, value, wait_for_value, wait_until};

const DDL: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v text, w text); INSERT INTO t VALUES (1, 'one', 'w1');
    CREATE TABLE beside (id int PRIMARY KEY, v text); INSERT INTO beside VALUES (1, 'x')";
const TABLES: [&str; 2] = ["public.t(id)", "public.beside(id)"];

/// A daemon that has recorded what was there, and one change.
pub(super) async fn following() -> Scene {
    let mut scene = Scene::existing(|builder| builder, DDL, &TABLES, "").await;
    scene.start().await;
    scene.joined().await;
    each(&scene.source, &["INSERT INTO t VALUES (2, 'two', 'w2')"]).await;
    recorded(&scene, "t_cdc", 2).await;
    scene
}

/// Waits until the history has this id.
pub(super) async fn recorded(scene: &Scene, history: &str, id: i32) {
    let there = format!("SELECT EXISTS (SELECT FROM {history} WHERE id = {id})");
    wait_for_value(&scene.target, &there, true, BOUND).await;
}

/// Runs `waltrail accept-gap` with these arguments: its exit code and what it wrote.
pub(super) async fn accept(scene: &Scene, more: &[&str]) -> (i32, String) {
    let arguments: Vec<&str> = std::iter::once(&"accept-gap")
        .chain(more)
        .copied()
        .collect();
    let mut command = Daemon::spawn_with(&scene.config, &arguments, &[]);
    let (status, output) = command.wait(BOUND).await;
    (status.code().unwrap_or(-1), output)
}

pub(super) async fn count(scene: &Scene, history: &str, kind: &str) -> i64 {
    let rows = format!("SELECT count(*) FROM {history} WHERE change_type = '{kind}'");
    value(&scene.target, &rows).await
}

struct Case<'a> {
    /// Hides changes.
    change: &'a [&'a str],
    /// What the refusal says of it.
    says: &'a str,
    /// What a person puts right before accepting.
    repair: &'a [&'a str],
}

/// The change is noticed, what came before it is recorded, the refusal stands, and after `accept-gap` the history folds into
/// the table again.
async fn is_a_gap(case: &Case<'_>, live: bool) {
    let mut scene = following().await;
    if !live {
        scene.stop().await;
    }
    // In the WAL before the change, and received or not.
    each(&scene.source, &["INSERT INTO t VALUES (3, 'three', 'w3')"]).await;
    each(&scene.source, case.change).await;
    if !live {
        scene.spawn();
    }
    let (status, output) = scene.daemon().wait(BOUND).await;
    assert_eq!(status.code(), Some(65), "{output}");
    assert!(output.contains(case.says), "{}: {output}", case.says);
    assert!(output.contains("waltrail accept-gap"), "{output}");
    recorded(&scene, "t_cdc", 3).await;
    // A container starts again by itself, also after it was put right.
    each(&scene.source, case.repair).await;
    for _ in 0..2 {
        let (code, output) = scene.refused().await;
        assert_eq!(code, 65, "{output}");
        assert!(
            output.contains("is not accepted") && output.contains(case.says),
            "{output}"
        );
    }
    let (code, output) = accept(&scene, &[]).await;
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("a GAP row says so"), "{output}");
    scene.start().await;
    scene.joined().await;
    each(
        &scene.source,
        &[
            "INSERT INTO t VALUES (100, 'new', 'w')",
            "UPDATE t SET v = 'changed' WHERE id = 100",
            "INSERT INTO beside VALUES (100, 'y')",
        ],
    )
    .await;
    recorded(&scene, "t_cdc", 100).await;
    recorded(&scene, "beside_cdc", 100).await;
    let changed = "SELECT EXISTS (SELECT FROM t_cdc WHERE change_type = 'UPDATE' AND id = 100)";
    wait_for_value(&scene.target, changed, true, BOUND).await;
    scene.check_fold("public.t", &["id"]).await;
    scene.check_fold("public.beside", &["id"]).await;
    assert_eq!(count(&scene, "t_cdc", "GAP").await, 1);
    let (code, output) = accept(&scene, &[]).await;
    assert_eq!(code, 75, "{output}");
    scene.stop().await;
    let (code, output) = accept(&scene, &[]).await;
    assert_eq!(
        (code, output.contains("nothing to accept")),
        (0, true),
        "{output}"
    );
}

/// One test for each way of being noticed.
macro_rules! gaps {
    ($($name:ident: $case:expr;)*) => {
        $(mod $name {
            use super::*;

            #[tokio::test]
            async fn live() {
                is_a_gap(&$case, true).await;
            }

            #[tokio::test]
            async fn while_away() {
                is_a_gap(&$case, false).await;
            }
        })*
    };
}

gaps! {
    a_table_that_is_swapped: Case {
        change: &[
            "BEGIN", "CREATE TABLE t_new (LIKE t INCLUDING ALL)", "INSERT INTO t_new SELECT * FROM t",
            "ALTER TABLE t RENAME TO t_old", "ALTER TABLE t_new RENAME TO t", "COMMIT",
            "INSERT INTO t VALUES (4, 'four', 'w4')", "UPDATE t SET v = 'TWO' WHERE id = 2", "DELETE FROM t WHERE id = 1",
        ],
        says: "public.t is another table now",
        repair: &[],
    };
    a_table_that_is_made_anew: Case {
        change: &[
            "BEGIN", "DROP TABLE t", "CREATE TABLE t (id int PRIMARY KEY, v text, w text)",
            "INSERT INTO t VALUES (2, 'x', 'w')", "COMMIT", "UPDATE t SET v = 'y'",
        ],
        says: "public.t is another table now",
        repair: &[],
    };
    a_table_taken_out_of_the_publication: Case {
        change: &["ALTER PUBLICATION waltrail DROP TABLE t", "UPDATE t SET v = 'TWO' WHERE id = 2"],
        says: "public.t was taken out of the publication",
        repair: &["ALTER PUBLICATION waltrail ADD TABLE ONLY t"],
    };
    a_table_taken_out_and_added_again: Case {
        change: &[
            "ALTER PUBLICATION waltrail DROP TABLE t", "UPDATE t SET v = 'TWO' WHERE id = 2",
            "ALTER PUBLICATION waltrail ADD TABLE ONLY t", "INSERT INTO t VALUES (4, 'four', 'w4')",
        ],
        says: "public.t was taken out of the publication and added again",
        repair: &[],
    };
    a_publication_that_publishes_less_for_a_while: Case {
        change: &[
            "ALTER PUBLICATION waltrail SET (publish = 'insert')", "UPDATE t SET v = 'TWO' WHERE id = 2",
            "ALTER PUBLICATION waltrail SET (publish = 'insert, update, delete, truncate')",
        ],
        says: "the publication was altered",
        repair: &[],
    };
    a_row_filter: Case {
        change: &["ALTER PUBLICATION waltrail SET TABLE t WHERE (id > 2), beside", "UPDATE t SET v = 'TWO' WHERE id = 2"],
        says: "public.t",
        repair: &["ALTER PUBLICATION waltrail SET TABLE ONLY t, ONLY beside"],
    };
    a_column_list: Case {
        change: &["ALTER PUBLICATION waltrail SET TABLE t (id, v), beside", "INSERT INTO t VALUES (4, 'four', 'w4')"],
        says: "public.t",
        repair: &["ALTER PUBLICATION waltrail SET TABLE ONLY t, ONLY beside"],
    };
    a_publication_that_is_dropped_and_made_again: Case {
        change: &[
            "DROP PUBLICATION waltrail",
            "CREATE PUBLICATION waltrail FOR TABLE ONLY t, ONLY beside WITH (publish_via_partition_root = true)",
            "INSERT INTO t VALUES (4, 'four', 'w4')",
        ],
        says: "publication",
        repair: &[],
    };
    a_table_that_is_unlogged: Case {
        change: &["ALTER PUBLICATION waltrail DROP TABLE t", "ALTER TABLE t SET UNLOGGED", "INSERT INTO t VALUES (4, 'four', 'w4')"],
        says: "public.t is unlogged",
        repair: &["ALTER TABLE t SET LOGGED", "ALTER PUBLICATION waltrail ADD TABLE ONLY t"],
    };
}

#[tokio::test]
async fn a_renamed_table_is_followed_live_and_after_a_start() {
    let mut scene = following().await;
    each(
        &scene.source,
        &[
            "ALTER TABLE t RENAME TO u",
            "INSERT INTO u VALUES (3, 'three', 'w3')",
        ],
    )
    .await;
    recorded(&scene, "t_cdc", 3).await;
    scene.stop_complaining().await;
    each(
        &scene.source,
        &[
            "CREATE SCHEMA s",
            "ALTER TABLE u SET SCHEMA s",
            "INSERT INTO s.u VALUES (4, 'four', 'w4')",
        ],
    )
    .await;
    scene.start().await;
    recorded(&scene, "t_cdc", 4).await;
    let output = scene.stop_complaining().await;
    assert!(
        output.contains("is followed under its new name"),
        "{output}"
    );
    assert_eq!(count(&scene, "t_cdc", "GAP").await, 0);
}

#[tokio::test]
async fn a_gap_of_one_table_leaves_the_others_alone() {
    let mut scene = following().await;
    each(
        &scene.source,
        &[
            "ALTER PUBLICATION waltrail DROP TABLE t",
            "INSERT INTO beside VALUES (2, 'y')",
        ],
    )
    .await;
    scene.daemon().wait(BOUND).await;
    recorded(&scene, "beside_cdc", 2).await;
    let (code, sql) = accept(&scene, &["--dry-run", "--table", "public.t"]).await;
    assert_eq!(code, 0, "{sql}");
    assert!(
        sql.contains("'GAP'") && !sql.contains("beside_cdc"),
        "{sql}"
    );
    let (code, output) = accept(&scene, &["--table", "public.beside"]).await;
    assert_eq!(
        (code, output.contains("nothing to accept")),
        (0, true),
        "{output}"
    );
    let (code, output) = accept(&scene, &["--table", "public.t"]).await;
    assert_eq!(code, 0, "{output}");
    scene.start().await;
    scene.joined().await;
    for history in ["t_cdc", "beside_cdc"] {
        let snapshots = if history == "t_cdc" { 1 + 2 } else { 1 };
        assert_eq!(
            count(&scene, history, "SNAPSHOT").await,
            snapshots,
            "{history}"
        );
    }
    assert_eq!(count(&scene, "beside_cdc", "GAP").await, 0);
    scene.check_fold("public.t", &["id"]).await;
    scene.check_fold("public.beside", &["id"]).await;
    scene.stop().await;
}

#[tokio::test]
async fn a_history_belongs_to_one_slot() {
    let mut scene = following().await;
    scene.stop().await;
    scene.config = scene
        .config
        .replace("[source]\n", "[source]\nslot = 'second'\n");
    let (code, output) = scene.refused().await;
    assert_eq!(code, 65, "{output}");
    let (error, _) = ending(&output);
    assert!(error.contains("belongs to slot \"waltrail\""), "{output}");
    assert_eq!(count(&scene, "t_cdc", "SNAPSHOT").await, 1);
    // A person decides that the first slot is given up.
    let (code, output) = accept(&scene, &[]).await;
    assert_eq!(code, 0, "{output}");
    scene.start().await;
    scene.joined().await;
    scene.check_fold("public.t", &["id"]).await;
    scene.stop().await;
}

#[tokio::test]
async fn a_slot_that_was_read_is_not_adopted_by_another_target() {
    let mut scene = following().await;
    scene.stop().await;
    each(&scene.source, &["CREATE DATABASE wrong"]).await;
    let right = scene.config.clone();
    let dsn = scene.server.dsn_socket("wrong");
    scene.config = right.replace("[[table]]", &format!("[target]\ndsn = '{dsn}'\n[[table]]"));
    // Only the first of them is a section.
    let extra = format!("[target]\ndsn = '{dsn}'\n[[table]]");
    let at = scene.config.find(&extra).unwrap() + extra.len();
    let rest = scene.config[at..].replace(&extra, "[[table]]");
    scene.config.truncate(at);
    scene.config.push_str(&rest);
    let (code, output) = scene.refused().await;
    assert_eq!(code, 65, "{output}");
    assert!(output.contains("target.dsn"), "{output}");
    scene.config = right;
    each(&scene.source, &["INSERT INTO t VALUES (3, 'three', 'w3')"]).await;
    scene.start().await;
    recorded(&scene, "t_cdc", 3).await;
    scene.stop().await;
}

#[tokio::test]
async fn a_partition_that_comes_and_goes_is_told() {
    let ddl = "CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); INSERT INTO p VALUES (1, 'one')";
    let mut scene = Scene::existing(|builder| builder, ddl, &["public.p(id)"], "").await;
    scene.start().await;
    scene.joined().await;
    each(
        &scene.source,
        &[
            "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)",
            "INSERT INTO p VALUES (11, 'x')",
        ],
    )
    .await;
    let wanted = |line: &str| line.contains("public.p2") && line.contains("created or attached");
    scene.daemon().wait_log(BOUND, wanted).await;
    each(
        &scene.source,
        &["TRUNCATE p2", "INSERT INTO p VALUES (13, 'x')"],
    )
    .await;
    let wanted =
        |line: &str| line.contains("public.p2") && line.contains("a partition was rewritten");
    scene.daemon().wait_log(BOUND, wanted).await;
    each(
        &scene.source,
        &[
            "ALTER TABLE p DETACH PARTITION p1",
            "INSERT INTO p VALUES (12, 'x')",
        ],
    )
    .await;
    let wanted = |line: &str| line.contains("public.p1") && line.contains("dropped or detached");
    scene.daemon().wait_log(BOUND, wanted).await;
    each(
        &scene.source,
        &["CREATE UNLOGGED TABLE p3 PARTITION OF p FOR VALUES FROM (20) TO (30)"],
    )
    .await;
    let (status, output) = scene.daemon().wait(BOUND).await;
    assert_eq!(status.code(), Some(65), "{output}");
    assert!(
        output.contains("partition public.p3 of public.p is unlogged"),
        "{output}"
    );
    let seen = texts(&scene.target, "SELECT id::text FROM p_cdc ORDER BY cdc_id").await;
    assert_eq!(seen.len(), 4);
    wait_until("the gap is kept", BOUND, async || {
        let open = "SELECT count(*) FROM waltrail.gap WHERE accepted_at IS NULL";
        (value::<i64>(&scene.target, open).await == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_table_renamed_while_its_existing_rows_wait_is_recorded_under_its_new_name() {
    let mut scene = Scene::existing(|builder| builder, DDL, &TABLES, "").await;
    scene.set_up().await;
    let other = scene.session().await;
    each(&other, &["BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE"]).await;
    // From 18 on it is already a look at the catalogs that waits.
    let waits = |line: &str| {
        line.contains("creating the slot waits") || line.contains("waiting for a lock on")
    };
    scene.spawn().wait_log(BOUND, waits).await;
    each(&other, &["ALTER TABLE t RENAME TO u; COMMIT"]).await;
    scene.joined().await;
    each(&scene.source, &["INSERT INTO u VALUES (2, 'two', 'w2')"]).await;
    recorded(&scene, "t_cdc", 2).await;
    assert_eq!(count(&scene, "t_cdc", "SNAPSHOT").await, 1);
    scene.stop_complaining().await;
}
