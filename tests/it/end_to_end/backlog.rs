//! A start that is behind: what it reads in one piece, what it streams, and what can go wrong between the two.

use std::time::Duration;

use crate::support::proxy::{Mode, Proxy};
use crate::support::scene::{Scene, complaints, config, streaming};
use crate::support::{BOUND, EMPLOYEES, each, value, wait_for_value, wait_until};

const TABLES: [&str; 1] = ["public.employees"];
const CATCHING_UP: &str = "\"catching up\"";

/// A history with one change, and the daemon stopped.
async fn stopped(more: &str) -> Scene {
    let mut scene = Scene::with(|builder| builder, EMPLOYEES, &TABLES, more).await;
    each(
        &scene.source,
        &[
            "CREATE TABLE other (t text)",
            "INSERT INTO employees (name) VALUES ('before')",
        ],
    )
    .await;
    scene.check().await;
    scene.stop().await;
    scene
}

/// Twenty megabytes of WAL, most of it of another table, with changes of every kind in it.
async fn fall_behind(scene: &Scene) {
    each(
        &scene.source,
        &[
            "INSERT INTO employees (name, salary) SELECT 'new ' || n, n FROM generate_series(1, 500) n",
            "INSERT INTO other SELECT repeat(md5(n::text), 60) FROM generate_series(1, 10000) n",
            "UPDATE employees SET salary = salary + 1 WHERE id % 3 = 0",
            "BEGIN; DELETE FROM employees WHERE id % 7 = 0; SAVEPOINT s; TRUNCATE employees; ROLLBACK TO s;
             INSERT INTO employees (name) VALUES ('last of a transaction'); COMMIT",
            "TRUNCATE employees",
            "INSERT INTO employees (name) VALUES (NULL), (''), (repeat('x', 90))",
        ],
    )
    .await;
}

/// As much of rows that are recorded: more than is under way at a time.
async fn fall_behind_with_rows(scene: &Scene) {
    let rows = "INSERT INTO employees (name, department, salary)
        SELECT repeat(md5(n::text), 3), repeat(md5(n::text), 3), n FROM generate_series(1, 60000) n";
    each(
        &scene.source,
        &[rows, "UPDATE employees SET salary = 0 WHERE id % 1000 = 0"],
    )
    .await;
}

/// How much is read in one piece.
fn allow(scene: &mut Scene, wal: &str) {
    let rest: String = scene
        .config
        .split_inclusive('\n')
        .filter(|line| !line.starts_with("catch_up_wal"))
        .collect();
    scene.config = rest.replacen(
        "[source]\n",
        &format!("[source]\ncatch_up_wal = '{wal}'\n"),
        1,
    );
}

fn times(output: &str, part: &str) -> usize {
    output.matches(part).count()
}

#[tokio::test]
async fn a_backlog_is_read_by_sql_and_what_follows_is_streamed() {
    let mut scene = stopped("").await;
    fall_behind(&scene).await;
    scene.start().await;
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('while it is read')"],
    )
    .await;
    scene.check().await;
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('afterwards')"],
    )
    .await;
    scene.check().await;
    let output = scene.stop_complaining().await;
    assert_eq!(complaints(&output), Vec::<&str>::new());
    assert_eq!(times(&output, CATCHING_UP), 1, "{output}");
    assert_eq!(times(&output, "\"streaming\""), 2, "{output}");
    scene.check().await;
}

#[tokio::test]
async fn a_backlog_larger_than_allowed_is_read_in_pieces_and_the_slot_moves_between_them() {
    let mut scene = stopped("").await;
    allow(&mut scene, "32MiB");
    for _ in 0..3 {
        fall_behind(&scene).await;
        // So that decoding can begin here, once the slot has come so far.
        each(&scene.source, &["CHECKPOINT"]).await;
    }
    scene.start().await;
    scene.check().await;
    let output = scene.stop_complaining().await;
    assert_eq!(complaints(&output), Vec::<&str>::new());
    assert!(times(&output, CATCHING_UP) >= 2, "{output}");
    scene.check().await;
}

#[tokio::test]
async fn whoever_allows_nothing_or_is_little_behind_streams() {
    let mut scene = stopped("").await;
    fall_behind(&scene).await;
    allow(&mut scene, "0");
    scene.start().await;
    scene.check().await;
    let output = scene.stop_complaining().await;
    assert_eq!(times(&output, CATCHING_UP), 0, "{output}");
    allow(&mut scene, "512MiB");
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('a little')"],
    )
    .await;
    scene.start().await;
    scene.check().await;
    let output = scene.stop_complaining().await;
    assert_eq!(times(&output, CATCHING_UP), 0, "{output}");
}

#[tokio::test]
async fn a_backlog_without_anything_of_ours_is_looked_at_once() {
    let mut scene = stopped("").await;
    each(
        &scene.source,
        &["INSERT INTO other SELECT repeat(md5(n::text), 60) FROM generate_series(1, 10000) n"],
    )
    .await;
    scene.start().await;
    scene
        .daemon()
        .wait_log(BOUND, |line| line.contains("\"streaming\""))
        .await;
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('afterwards')"],
    )
    .await;
    scene.check().await;
    let output = scene.stop_complaining().await;
    assert_eq!(times(&output, CATCHING_UP), 1, "{output}");
    assert_eq!(complaints(&output), Vec::<&str>::new());
}

#[tokio::test]
async fn a_daemon_killed_while_it_works_a_backlog_off_loses_nothing_and_doubles_nothing() {
    let mut scene = stopped("").await;
    fall_behind_with_rows(&scene).await;
    fall_behind(&scene).await;
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..6 {
        scene.spawn();
        scene
            .daemon()
            .wait_log(BOUND, |line| line.contains(CATCHING_UP))
            .await;
        tokio::time::sleep(Duration::from_millis(random.u64(..400))).await;
        scene.daemon().kill9();
    }
    scene.spawn();
    scene.check().await;
    scene.stop_complaining().await;
    scene.check().await;
}

#[tokio::test]
async fn a_source_that_cannot_read_in_one_piece_streams() {
    let mut scene = stopped("").await;
    fall_behind_with_rows(&scene).await;
    // Less than its temporary file needs.
    each(
        &scene.source,
        &[
            "ALTER ROLE postgres SET temp_file_limit = '1MB'",
            "ALTER ROLE postgres SET work_mem = '64kB'",
        ],
    )
    .await;
    scene.start().await;
    scene.check().await;
    let output = scene.stop_complaining().await;
    let complaints = complaints(&output);
    assert_eq!(complaints.len(), 1, "{output}");
    assert!(
        complaints[0].contains("it is streamed") && complaints[0].contains("53400"),
        "{output}"
    );
}

#[tokio::test]
async fn a_backlog_that_the_target_has_no_room_for_is_not_kept_in_a_transaction_of_the_source() {
    const HELD: &str = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'waltrail' AND query LIKE 'COPY (%'
        AND state = 'active' AND backend_xmin IS NOT NULL";
    let mut scene = stopped("[batch]\nmax_bytes = \"64KiB\"\n").await;
    fall_behind_with_rows(&scene).await;
    let locking = scene.session().await;
    each(
        &locking,
        &["BEGIN", "LOCK TABLE employees_cdc IN SHARE MODE"],
    )
    .await;
    scene.start().await;
    // What it reads it in, and what must not last.
    wait_for_value(&scene.source, HELD, 1_i64, BOUND).await;
    scene
        .daemon()
        .wait_log(BOUND, |line| line.contains("the target has taken nothing"))
        .await;
    wait_for_value(&scene.source, HELD, 0_i64, BOUND).await;
    each(&locking, &["COMMIT"]).await;
    scene.check().await;
    let output = scene.stop_complaining().await;
    assert_eq!(
        times(&output, "the target has taken nothing"),
        1,
        "{output}"
    );
    scene.check().await;
}

#[tokio::test]
async fn a_source_that_takes_its_time_to_decode_does_not_keep_the_daemon_from_being_ready() {
    let mut scene = stopped("").await;
    fall_behind_with_rows(&scene).await;
    let network = Proxy::start(scene.server.port());
    let source = format!(
        "host=127.0.0.1 port={} user=postgres dbname=postgres",
        network.port()
    );
    let target = scene.server.dsn_socket("postgres");
    scene.config = config(&source, Some(&target), &TABLES, "");
    scene.spawn();
    scene
        .daemon()
        .wait_log(BOUND, |line| line.contains(CATCHING_UP))
        .await;
    network.set(Mode::Stall);
    // A service manager waits for this, and for a minute and a half only.
    streaming(scene.daemon()).await;
    network.set(Mode::Forward);
    scene.check().await;
    scene.stop().await;
}

#[tokio::test]
async fn a_slot_that_moves_while_a_backlog_is_decoded_is_not_followed() {
    let mut scene = stopped("").await;
    fall_behind_with_rows(&scene).await;
    let history = "SELECT count(*) FROM employees_cdc";
    let before: i64 = value(&scene.target, history).await;
    // Whoever takes the slot first makes the daemon wait, moves the slot behind the first transaction, and lets it go.
    let taking = scene.session().await;
    let taken = taking.batch_execute(
        "SELECT count(*) FROM pg_logical_slot_get_binary_changes('waltrail', NULL, 1000,
        'proto_version', '1', 'publication_names', 'waltrail')",
    );
    let (taken, ()) = tokio::join!(taken, async {
        wait_until("the slot is taken", BOUND, async || {
            let active: bool =
                value(&scene.source, "SELECT active FROM pg_replication_slots").await;
            active.then_some(())
        })
        .await;
        scene.spawn();
    });
    taken.unwrap();
    let (status, output) = scene.daemon().wait(BOUND).await;
    assert_eq!(status.code(), Some(65), "{output}");
    let after: i64 = value(&scene.target, history).await;
    assert_eq!(after, before, "{output}");
}
