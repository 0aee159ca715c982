//! Does a quiet table neither pin WAL nor make work?

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::support::scene::Scene;
use crate::support::{BOUND, EMPLOYEES, each, value, wait_for_value, wait_until};

const CONFIRMED: &str = "SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots";
const WRITTEN: &str = "SELECT xmin::text || ' ' || updated_at FROM waltrail.checkpoint";
const WAL: &str = "SELECT (pg_current_wal_lsn() - '0/0')::bigint";

#[tokio::test]
async fn writes_to_other_tables_are_confirmed_within_seconds_and_hardly_noted() {
    let scene = Scene::new(
        &format!("{EMPLOYEES} CREATE TABLE noise (id integer, filler text);"),
        &["public.employees"],
    )
    .await;
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('before')"],
    )
    .await;
    scene.check().await;
    let mut versions = BTreeSet::from([value::<String>(&scene.target, WRITTEN).await]);
    let before: i64 = value(&scene.source, WAL).await;
    for _ in 0..40 {
        each(
            &scene.source,
            &["INSERT INTO noise SELECT n, repeat('x', 1000) FROM generate_series(1, 1000) n"],
        )
        .await;
        versions.insert(value(&scene.target, WRITTEN).await);
    }
    let end: i64 = value(&scene.source, WAL).await;
    assert!(end - before > 40_000_000);
    let started = Instant::now();
    loop {
        versions.insert(value(&scene.target, WRITTEN).await);
        // The last megabyte may wait for more.
        if value::<i64>(&scene.source, CONFIRMED).await >= end - 1024 * 1024 {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(15), "not confirmed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(
        versions.len() <= 4,
        "the checkpoint was written {} times",
        versions.len() - 1
    );
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('after')"],
    )
    .await;
    scene.end().await;
}

#[tokio::test]
async fn an_idle_system_stays_idle() {
    let scene = Scene::new(EMPLOYEES, &["public.employees"]).await;
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('the last')"],
    )
    .await;
    scene.check().await;
    // Settled: confirmed, and no WAL for a second.
    let started = Instant::now();
    let mut last = (0, started);
    while last.1.elapsed() < Duration::from_secs(1) {
        assert!(started.elapsed() < Duration::from_secs(20), "never at rest");
        let now: i64 = value(&scene.source, WAL).await;
        if now != last.0 {
            last = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let before: (i64, String) = (
        value(&scene.source, WAL).await,
        value(&scene.target, WRITTEN).await,
    );
    // This is the question itself: does time alone make work?
    tokio::time::sleep(Duration::from_secs(4)).await;
    let after: (i64, String) = (
        value(&scene.source, WAL).await,
        value(&scene.target, WRITTEN).await,
    );
    assert_eq!(before.1, after.1, "the checkpoint was written");
    // The server itself notes its running transactions now and then.
    assert!(
        after.0 - before.0 < 500,
        "{} bytes of WAL",
        after.0 - before.0
    );
    scene.end().await;
}

/// A status that confirms comes a second after the one before at the earliest, and one that is sent only because time passes
/// after 2.5 s.
#[tokio::test]
async fn what_was_received_is_acknowledged_before_it_is_durable() {
    let scene = Scene::new(EMPLOYEES, &["public.employees"]).await;
    let sent =
        "SELECT coalesce(max(extract(epoch FROM reply_time)), 0)::float8 FROM pg_stat_replication";
    // On a machine that is busy the next one may be due by then.
    for round in 1..=10 {
        let confirmed = "SELECT coalesce(flush_lsn >= (SELECT end_lsn FROM waltrail.checkpoint), false) FROM pg_stat_replication";
        wait_for_value(&scene.source, confirmed, true, BOUND).await;
        let before: f64 = value(&scene.source, sent).await;
        let timed = wait_until("a status is sent", BOUND, async || {
            let now: f64 = value(&scene.source, sent).await;
            (now > before).then_some(now)
        })
        .await;
        let insert = "INSERT INTO employees (name) VALUES ('a')";
        each(&scene.source, &[insert]).await;
        let acknowledged = format!(
            "SELECT coalesce((SELECT count(*) FROM employees_cdc) = {round} \
             AND write_lsn >= (SELECT end_lsn FROM waltrail.checkpoint), false) \
             FROM pg_stat_replication"
        );
        wait_for_value(&scene.source, &acknowledged, true, Duration::from_secs(5)).await;
        if value::<f64>(&scene.source, sent).await - timed < 0.9 {
            scene.end().await;
            return;
        }
    }
    panic!("what was received is acknowledged when it is confirmed");
}
