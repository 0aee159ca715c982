//! Somebody else at the same tables, or a predecessor that is not gone: what is held stays held.

use std::time::{Duration, Instant};

use waltrail::lsn::Lsn;
use waltrail::schema::TableName;
use waltrail::snapshot::state;

use super::joined::ddl;
use crate::support::scene::{LOCKED, Scene, assert_clean};
use crate::support::{BOUND, wait_for_value, wait_until};

const ONE: [&str; 1] = ["public.employees=public.employees_cdc(id)"];

async fn set_up(ddl: &str, tables: &[&str], more: &str) -> Scene {
    let scene = Scene::existing(|builder| builder, ddl, tables, more).await;
    scene.set_up().await;
    scene
}

#[tokio::test]
async fn an_attempt_that_comes_too_late_leaves_what_is_held() {
    let scene = set_up(&ddl(), &ONE, "").await;
    scene
        .source
        .batch_execute(
            "UPDATE waltrail.snapshot SET state = 'copied', consistent_point = '0/10';
             INSERT INTO waltrail.held (slot, history, lsn, copy, rows)
             VALUES ('waltrail', 'public.employees_cdc', '0/20', '', '')",
        )
        .await
        .unwrap();
    let history: TableName = "public.employees_cdc".parse().unwrap();
    let later = Lsn::from_u64(0x30);
    let time = "2026-01-01 00:00:00+00";
    let begun = state::begin(
        &scene.source,
        "waltrail",
        &[(&history, (0, 0))],
        later,
        time,
    )
    .await;
    assert!(begun.is_err());
    let held = "SELECT count(*) FROM waltrail.held";
    wait_for_value(&scene.source, held, 1_i64, Duration::ZERO).await;
}

#[tokio::test]
async fn what_is_held_is_added_beside_the_stream_however_large_its_pieces_are() {
    let ddl = format!(
        "{} CREATE TABLE notes (id int PRIMARY KEY, body text); INSERT INTO notes VALUES (0, '')",
        ddl()
    );
    let tables = [ONE[0], "public.notes(id)"];
    let mut scene = set_up(&ddl, &tables, "workers = 1\n").await;
    let (locker, source) = (scene.session().await, scene.session().await);
    // Changes take a while to be added, existing rows do not.
    locker
        .batch_execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.1); RETURN NEW; END';
             CREATE TRIGGER slow AFTER INSERT ON notes_cdc FOR EACH ROW
                    WHEN (NEW.change_type <> 'SNAPSHOT') EXECUTE FUNCTION slow()",
        )
        .await
        .unwrap();
    locker
        .batch_execute("BEGIN; LOCK TABLE notes_cdc IN SHARE ROW EXCLUSIVE MODE")
        .await
        .unwrap();
    scene.spawn();
    scene.copying().await;
    let held = "SELECT count(*) FROM waltrail.held WHERE history = 'public.notes_cdc'";
    for n in 1..=40 {
        let insert = format!(
            "INSERT INTO notes SELECT {n}, 'canary' || string_agg(md5(i::text), '') FROM generate_series(1, 32768) i"
        );
        source.batch_execute(&insert).await.unwrap();
    }
    wait_until("all is held", BOUND, async || {
        let rows = source.query_one(
            "SELECT sum(octet_length(rows)) > 40000000 FROM waltrail.held",
            &[],
        );
        (rows.await.unwrap().get::<_, Option<bool>>(0) == Some(true)).then_some(())
    })
    .await;
    locker.batch_execute("COMMIT").await.unwrap();
    let (mut longest, mut mark) = (Duration::ZERO, 0);
    let open = "SELECT count(*) FROM waltrail.snapshot WHERE state <> 'done'";
    while source.query_one(open, &[]).await.unwrap().get::<_, i64>(0) > 0 {
        mark += 1;
        let insert = format!("INSERT INTO employees (name) VALUES ('mark {mark}')");
        source.batch_execute(&insert).await.unwrap();
        let made = Instant::now();
        let seen = format!("SELECT count(*) > 0 FROM employees_cdc WHERE name LIKE '%mark {mark}'");
        wait_for_value(&source, &seen, true, BOUND).await;
        longest = longest.max(made.elapsed());
    }
    println!("the other table lagged at most {longest:?}");
    wait_for_value(&source, held, 0_i64, BOUND).await;
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    scene.check_existing().await;
    assert_clean(&scene.stop_complaining().await, LOCKED);
}

#[tokio::test]
async fn slots_that_are_made_for_nobody_are_ended_by_the_next_start() {
    let mut scene = set_up(&ddl(), &ONE, "").await;
    let writer = scene.session().await;
    let begin = "BEGIN; UPDATE bare SET v = 'w' WHERE id = 1";
    writer.batch_execute(begin).await.unwrap();
    for _ in 0..3 {
        scene.spawn();
        scene
            .daemon()
            .wait_log(BOUND, |line| line.contains("creating the slot waits"))
            .await;
        scene.daemon().kill9();
    }
    scene.spawn();
    scene
        .daemon()
        .wait_log(BOUND, |line| line.contains("creating the slot waits"))
        .await;
    let temporary = "SELECT count(*) FROM pg_replication_slots WHERE temporary";
    wait_for_value(&scene.source, temporary, 1_i64, BOUND).await;
    writer.batch_execute("COMMIT").await.unwrap();
    assert_eq!(scene.check_existing().await.0, 20_000);
    scene.stop_complaining().await;
}

#[tokio::test]
async fn a_partition_whose_detaching_was_cancelled_is_no_part_of_the_table() {
    let mut scene = set_up(&ddl(), &["public.parted(id)"], "").await;
    let (reader, detacher) = (scene.session().await, scene.session().await);
    reader
        .batch_execute("BEGIN; SELECT FROM parted LIMIT 1")
        .await
        .unwrap();
    let detached = detacher
        .batch_execute("SET statement_timeout = 1000")
        .await
        .is_ok()
        && detacher
            .batch_execute("ALTER TABLE parted DETACH PARTITION parted_low CONCURRENTLY")
            .await
            .is_ok();
    assert!(!detached);
    reader.batch_execute("COMMIT").await.unwrap();
    scene.spawn();
    assert_eq!(scene.check_existing().await.0, 10_001);
    scene.stop().await;
}
