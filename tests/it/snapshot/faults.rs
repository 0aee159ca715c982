//! Killed, restarted, out of room: the history is the same in the end.

use std::time::Duration;

use super::joined::{NAMES, ddl};
use super::load::churn;
use crate::support::moments::{faults, random_moment, seeded};
use crate::support::scene::Scene;
use crate::support::wait_for_value;

#[tokio::test]
async fn a_daemon_killed_at_random_moments_of_the_snapshot_loses_nothing_and_doubles_nothing() {
    let mut rng = seeded();
    let (mut in_the_middle, mut left) = (0, faults());
    // Once all tables are joined there is nothing left to interrupt: the next server has them all again.
    while left > 0 {
        let mut scene = Scene::existing(|builder| builder, &ddl(), &NAMES, "workers = 2\n").await;
        let churn = churn(&scene, rng.u64(..1000));
        let client = scene.session().await;
        loop {
            scene.spawn();
            random_moment(&mut rng, 1_500).await;
            scene.daemon().kill9();
            left -= 1;
            let states = client
                .query("SELECT state FROM waltrail.snapshot", &[])
                .await
                .unwrap_or_default();
            let open = states
                .iter()
                .filter(|row| row.get::<_, &str>(0) != "done")
                .count();
            in_the_middle += usize::from(open > 0);
            if left == 0 || (!states.is_empty() && open == 0) {
                break;
            }
        }
        scene.spawn();
        scene.joined().await;
        churn.more(20).await;
        churn.stop();
        scene.check_existing().await;
        scene.stop_complaining().await;
    }
    println!(
        "{in_the_middle} of {} kills found a table that was not joined",
        faults()
    );
    assert!(in_the_middle > 0);
}

#[tokio::test]
async fn parts_that_were_committed_alone_are_removed_before_the_next_attempt() {
    parts_are_removed("timestamptz").await;
}

#[tokio::test]
async fn parts_are_removed_also_where_the_history_keeps_no_fractions_of_a_second() {
    parts_are_removed("timestamptz(0)").await;
    parts_are_removed("timestamp(1)").await;
}

async fn parts_are_removed(time: &str) {
    let tables = ["public.wide(id)"];
    let mut scene = Scene::existing(|builder| builder, &ddl(), &tables, "workers = 2\n").await;
    scene.set_up().await;
    // What a kill between two commits leaves: rows, and the transaction that wrote them.
    let alter = format!("ALTER TABLE wide_cdc ALTER change_timestamp TYPE {time}");
    scene.source.batch_execute(&alter).await.unwrap();
    scene
        .source
        .batch_execute(
            "SET TimeZone = 'UTC'; BEGIN;
             UPDATE waltrail.snapshot SET state = 'copying', attempt = 1, consistent_point = '0/1',
                    snapshot_time = '2026-01-01 00:00:00.75+00';
             INSERT INTO wide_cdc (change_type, change_timestamp, commit_lsn, tx_seq, xid, id)
             SELECT 'SNAPSHOT', '2026-01-01 00:00:00.75+00', '0/1', n, 0, n FROM generate_series(1, 500) n;
             SELECT waltrail.copied('waltrail', 'public.wide_cdc', 1, false, 500, 500);
             COMMIT",
        )
        .await
        .unwrap();
    scene.spawn();
    assert_eq!(scene.check_existing().await.0, 20_000);
    let parts = "SELECT count(*) FROM waltrail.snapshot_part";
    wait_for_value(&scene.source, parts, 0_i64, Duration::ZERO).await;
    scene.stop().await;
}

#[tokio::test]
async fn an_end_in_the_middle_says_what_is_begun_again() {
    let mut scene = Scene::existing(
        |builder| builder,
        &ddl(),
        &["public.wide(id)"],
        "workers = 1\n",
    )
    .await;
    // The copy cannot end while the history is locked.
    scene.set_up().await;
    let locker = scene.session().await;
    locker
        .batch_execute("BEGIN; LOCK TABLE wide_cdc IN SHARE ROW EXCLUSIVE MODE")
        .await
        .unwrap();
    scene.spawn();
    scene.copying().await;
    let output = scene.stop_complaining().await;
    assert!(
        output.contains("the next start begins with them again"),
        "{output}"
    );
    assert!(output.contains("public.wide_cdc"), "{output}");
    locker.batch_execute("COMMIT").await.unwrap();
    scene.spawn();
    assert_eq!(scene.check_existing().await.0, 20_000);
    scene.stop().await;
}

#[tokio::test]
async fn a_source_that_restarts_in_the_middle_is_waited_for() {
    let mut scene = Scene::existing(|builder| builder, &ddl(), &NAMES, "workers = 2\n").await;
    let churn = churn(&scene, 9);
    scene.spawn();
    scene.copying().await;
    scene.server.stop(throwaway::StopMode::Immediate).unwrap();
    scene.server.start_again().unwrap();
    scene.reconnect().await;
    scene.joined().await;
    churn.more(20).await;
    churn.stop();
    scene.check_existing().await;
    scene.stop_complaining().await;
}
