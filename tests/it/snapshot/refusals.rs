//! What stands in the way of a snapshot is named, and nothing is half done.

use std::time::Duration;

use super::joined::ddl;
use crate::support::daemon::ending;
use crate::support::scene::{Scene, complaints};
use crate::support::{BOUND, wait_for_value};

const ONE: [&str; 1] = ["public.employees=public.employees_cdc(id)"];

#[tokio::test]
async fn tables_that_may_not_be_read_are_named_and_nothing_is_half_done() {
    let names = [
        "public.employees=public.employees_cdc(id)",
        "public.bare(id)",
        "public.wide(id)",
    ];
    let mut scene = Scene::existing(|builder| builder, &ddl(), &names, "").await;
    scene.set_up().await;
    scene
        .source
        .batch_execute(
            "CREATE ROLE follower LOGIN REPLICATION; GRANT SELECT ON employees TO follower;
             GRANT USAGE ON SCHEMA waltrail TO follower; GRANT ALL ON ALL TABLES IN SCHEMA waltrail TO follower;
             GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA waltrail TO follower;
             GRANT SELECT, INSERT ON employees_cdc, bare_cdc, wide_cdc TO follower;
             GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO follower",
        )
        .await
        .unwrap();
    scene.config = scene.config.replace("user=postgres", "user=follower");
    let (code, output) = scene.refused().await;
    assert_eq!(code, 77, "{output}");
    assert!(output.contains("public.bare, public.wide"), "{output}");
    assert!(output.contains("GRANT SELECT ON"), "{output}");
    for history in ["employees_cdc", "bare_cdc", "wide_cdc"] {
        let rows = format!("SELECT count(*) FROM {history}");
        wait_for_value(&scene.source, &rows, 0_i64, Duration::ZERO).await;
    }
    scene
        .source
        .batch_execute("GRANT SELECT ON bare, wide TO follower")
        .await
        .unwrap();
    scene.spawn();
    scene.check_existing().await;
    scene.stop().await;
}

#[tokio::test]
async fn a_state_that_a_newer_program_wrote_is_refused_and_holds_what_it_held() {
    let mut scene = Scene::existing(|builder| builder, &ddl(), &ONE, "").await;
    scene.spawn();
    scene.check_existing().await;
    scene.stop().await;
    scene
        .source
        .batch_execute(
            "ALTER TABLE waltrail.snapshot DROP CONSTRAINT snapshot_state_check;
             UPDATE waltrail.snapshot SET state = 'verifying';
             UPDATE employees SET salary = 1 WHERE id <= 10",
        )
        .await
        .unwrap();
    let (code, output) = scene.refused().await;
    assert_eq!(code, 65, "{output}");
    let (error, remedy) = ending(&output);
    for part in ["public.employees_cdc", "\"verifying\""] {
        assert!(error.contains(part), "{output}");
    }
    assert!(remedy.starts_with("install"), "{output}");
    // The changes are still to come when the newer program has finished.
    scene
        .source
        .batch_execute("UPDATE waltrail.snapshot SET state = 'done'")
        .await
        .unwrap();
    scene.spawn();
    scene.check_existing().await;
    scene.stop().await;
}

#[tokio::test]
async fn row_security_that_would_hide_rows_is_refused() {
    let mut scene = Scene::existing(|builder| builder, &ddl(), &ONE, "").await;
    scene.set_up().await;
    scene
        .source
        .batch_execute(
            "CREATE ROLE follower LOGIN REPLICATION; GRANT SELECT ON employees TO follower;
             ALTER TABLE employees ENABLE ROW LEVEL SECURITY;
             CREATE POLICY late ON employees USING (id > 10);
             GRANT USAGE ON SCHEMA waltrail TO follower; GRANT ALL ON ALL TABLES IN SCHEMA waltrail TO follower;
             GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA waltrail TO follower;
             GRANT SELECT, INSERT ON employees_cdc TO follower;",
        )
        .await
        .unwrap();
    scene.config = scene.config.replace("user=postgres", "user=follower");
    let (code, output) = scene.refused().await;
    assert_eq!(code, 77, "{output}");
    assert!(
        output.contains("row security hides rows of public.employees"),
        "{output}"
    );
}

#[tokio::test]
async fn a_row_that_the_history_cannot_take_stops_with_65_and_leaves_no_row() {
    let ddl = format!(
        "{} ALTER TABLE employees_cdc ADD CHECK (salary < 19000)",
        ddl()
    );
    let mut scene = Scene::existing(|builder| builder, &ddl, &ONE, "").await;
    let (code, output) = scene.refused().await;
    assert_eq!(code, 65, "{output}");
    assert!(
        output.contains("the target did not take the history"),
        "{output}"
    );
    assert!(output.contains("public.employees_cdc"), "{output}");
    wait_for_value(
        &scene.source,
        "SELECT count(*) FROM employees_cdc",
        0_i64,
        Duration::ZERO,
    )
    .await;
    scene
        .source
        .batch_execute("ALTER TABLE employees_cdc DROP CONSTRAINT employees_cdc_salary_check")
        .await
        .unwrap();
    scene.spawn();
    assert_eq!(scene.check_existing().await.0, 20_000);
    scene.stop().await;
}

#[tokio::test]
async fn writers_and_prepared_transactions_that_delay_the_slot_are_named() {
    let mut scene = Scene::existing(
        |builder| builder.setting("max_prepared_transactions", "2"),
        &ddl(),
        &ONE,
        "",
    )
    .await;
    scene.set_up().await;
    let writer = scene.session().await;
    let begin = "BEGIN; UPDATE bare SET v = 'w' WHERE id = 1";
    writer.batch_execute(begin).await.unwrap();
    scene
        .source
        .batch_execute(
            "BEGIN; UPDATE bare SET v = 'p' WHERE id = 2; PREPARE TRANSACTION 'forgotten'",
        )
        .await
        .unwrap();
    let pid: i32 = writer
        .query_one("SELECT pg_backend_pid()", &[])
        .await
        .unwrap()
        .get(0);
    scene.spawn();
    let line = scene
        .daemon()
        .wait_log(BOUND, |line| line.contains("creating the slot waits"))
        .await;
    assert!(
        line.contains(&format!("pid {pid}")) && line.contains("forgotten"),
        "{line}"
    );
    // An end meanwhile leaves no slot behind, once those have ended.
    scene.stop_complaining().await;
    writer.batch_execute("COMMIT").await.unwrap();
    scene
        .source
        .batch_execute("COMMIT PREPARED 'forgotten'")
        .await
        .unwrap();
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name <> 'waltrail'";
    wait_for_value(&scene.source, slots, 0_i64, BOUND).await;
    scene.spawn();
    assert_eq!(scene.check_existing().await.0, 20_000);
    scene.stop().await;
}

#[tokio::test]
async fn a_source_without_a_free_slot_says_so_and_the_stream_goes_on() {
    let mut scene = Scene::existing(
        |builder| builder.setting("max_replication_slots", "1"),
        &ddl(),
        &ONE,
        "",
    )
    .await;
    scene.set_up().await;
    scene.spawn();
    let line = scene
        .daemon()
        .wait_log(BOUND, |line| {
            line.contains("has no slot left for the snapshot")
        })
        .await;
    assert!(line.contains("max_replication_slots"), "{line}");
    assert!(scene.daemon().is_running());
    scene.stop_complaining().await;
}

#[tokio::test]
async fn a_table_that_was_dropped_is_named() {
    let mut scene = Scene::existing(
        |builder| builder,
        &ddl(),
        &["public.bare(id)", "public.wide(id)"],
        "",
    )
    .await;
    scene.set_up().await;
    // Making the point waits for this transaction, in which the table goes.
    let dropper = scene.session().await;
    dropper
        .batch_execute("BEGIN; INSERT INTO bare VALUES (-1)")
        .await
        .unwrap();
    scene.spawn();
    scene
        .daemon()
        .wait_log(BOUND, |line| line.contains("\"streaming\""))
        .await;
    dropper
        .batch_execute("DROP TABLE wide; COMMIT")
        .await
        .unwrap();
    let (status, output) = scene.daemon().wait(BOUND).await;
    assert_eq!(status.code(), Some(65), "{output}");
    assert!(output.contains("public.wide was dropped"), "{output}");
}

#[tokio::test]
async fn a_table_that_is_locked_at_the_start_is_waited_for_and_the_holder_is_named() {
    let mut scene = Scene::existing(|builder| builder, &ddl(), &ONE, "").await;
    let locker = scene.session().await;
    locker
        .batch_execute("BEGIN; LOCK TABLE employees IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let row = locker.query_one("SELECT pg_backend_pid()", &[]).await;
    let pid: i32 = row.unwrap().get(0);
    scene.spawn();
    let named = scene
        .daemon()
        .wait_log(BOUND, |line| line.contains("waiting for a lock on"))
        .await;
    assert!(named.contains(&pid.to_string()), "{named}");
    locker.batch_execute("COMMIT").await.unwrap();
    scene.joined().await;
    let change = "INSERT INTO employees (name) VALUES ('a change')";
    locker.batch_execute(change).await.unwrap();
    scene.check_existing().await;
    scene.stop_complaining().await;
}

#[tokio::test]
async fn a_table_that_is_truncated_while_it_waits_for_its_lock_gets_a_new_point() {
    let mut scene = Scene::existing(|builder| builder, &ddl(), &ONE, "").await;
    scene.set_up().await;
    // No transaction number yet, so that making the point does not wait for it.
    let locker = scene.session().await;
    locker
        .batch_execute("BEGIN; LOCK TABLE employees IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap_or_default();
    scene.spawn();
    let pid: i32 = locker
        .query_one("SELECT pg_backend_pid()", &[])
        .await
        .unwrap()
        .get(0);
    let wide = scene
        .daemon()
        .wait_log(BOUND, |line| {
            line.contains("waiting for a lock on") || line.contains("creating the slot waits")
        })
        .await;
    assert!(wide.contains(&pid.to_string()), "{wide}");
    locker
        .batch_execute("TRUNCATE employees; INSERT INTO employees (name) VALUES ('after'); COMMIT")
        .await
        .unwrap();
    scene.check_existing().await;
    let output = scene.stop_complaining().await;
    for line in complaints(&output) {
        assert!(
            line.contains("was changed between")
                || line.contains("waiting for a lock on")
                || line.contains("creating the slot waits"),
            "{line}"
        );
    }
}
