//! Faults that are really made, a daemon that meets them, and a Prometheus that scrapes it: does the alert fire, and end?

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use throwaway::{Builder, StopMode};

use super::dashboard;
use super::prometheus::Prometheus;
use crate::snapshot::told::half_way;
use crate::support::http::address;
use crate::support::scene::{Scene, streaming};
use crate::support::{BOUND, each, wait_until};

const LISTEN: &str = "[http]\nlisten = \"127.0.0.1:0\"\n";

/// Three megabytes of WAL: some tens of them are more than the tenth of the limit below which no slot is in danger.
const WRITE: &str =
    "SELECT pg_catalog.pg_logical_emit_message(false, 'canary', repeat('x', 3000000))";

/// Two servers, a daemon that streams, and its Prometheus, which has nothing to complain of.
async fn watched(source: impl FnOnce(Builder) -> Builder) -> Option<(Scene, Prometheus)> {
    let mut scene = Scene::two(source, |target| target).await;
    scene.config.push_str(LISTEN);
    let address = address(scene.start().await).await;
    let prometheus = Prometheus::start(&address).await?;
    prometheus.is_calm().await;
    Some((scene, prometheus))
}

async fn insert(scene: &Scene) {
    let statement = "INSERT INTO employees (name) VALUES ('a')";
    each(&scene.source, &[statement]).await;
}

#[tokio::test]
async fn a_locked_history_is_an_alert_until_it_is_unlocked() {
    let Some((scene, prometheus)) = watched(|source| source).await else {
        return;
    };
    insert(&scene).await;
    scene.check().await;
    prometheus.is_calm().await;
    let mut other = scene.target_session().await;
    let locked = other.transaction().await.unwrap();
    locked.batch_execute("LOCK employees_cdc").await.unwrap();
    insert(&scene).await;
    prometheus.fires("WaltrailStalled").await;
    prometheus.fires("WaltrailLags").await;
    locked.rollback().await.unwrap();
    prometheus.has_ended("WaltrailStalled").await;
    prometheus.has_ended("WaltrailLags").await;
    scene.check().await;
}

#[tokio::test]
async fn a_source_that_is_down_is_an_alert_until_it_is_back() {
    let Some((mut scene, prometheus)) = watched(|source| source).await else {
        return;
    };
    scene.server.stop(StopMode::Fast).unwrap();
    prometheus.fires("WaltrailServerDown").await;
    prometheus.fires("WaltrailNotStreaming").await;
    let down = prometheus
        .query("ALERTS{alertname=\"WaltrailServerDown\"}")
        .await;
    assert_eq!(down[0]["metric"]["side"], "source", "{down:?}");
    scene.server.start_again().unwrap();
    prometheus.has_ended("WaltrailServerDown").await;
    prometheus.has_ended("WaltrailNotStreaming").await;
}

#[tokio::test]
async fn a_slot_that_will_be_lost_soon_is_an_alert() {
    let limited = |source: Builder| source.setting("max_slot_wal_keep_size", "2GB");
    let Some((scene, prometheus)) = watched(limited).await else {
        return;
    };
    let mut other = scene.target_session().await;
    let locked = other.transaction().await.unwrap();
    locked.batch_execute("LOCK employees_cdc").await.unwrap();
    insert(&scene).await;
    // At that rate 2 GB last for less than two hours.
    wait_until("the alert fires", BOUND, async || {
        each(&scene.source, &[WRITE]).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let firing = prometheus.firing().await;
        firing
            .contains(&"WaltrailSlotLostSoon".to_owned())
            .then_some(())
    })
    .await;
    locked.rollback().await.unwrap();
    prometheus.has_ended("WaltrailSlotLostSoon").await;
    scene.check().await;
}

#[tokio::test]
async fn existing_rows_that_are_stuck_are_an_alert_until_they_go_on() {
    let (mut scene, lock) = half_way(LISTEN).await;
    let address = address(scene.spawn()).await;
    let Some(prometheus) = Prometheus::start(&address).await else {
        return;
    };
    prometheus.fires("WaltrailSnapshotStuck").await;
    lock.batch_execute("SELECT pg_advisory_unlock(7)")
        .await
        .unwrap();
    prometheus.has_ended("WaltrailSnapshotStuck").await;
    streaming(scene.daemon()).await;
}

/// Queries that have no answer while all is well.
const SILENT: &[&str] = &["Warnings", "Alerts", "Starts"];

/// Instead of a Grafana: Prometheus answers what the dashboard asks, for a daemon that is busy with everything.
#[tokio::test]
async fn every_query_of_the_dashboard_is_answered() {
    let (mut scene, lock) = half_way(LISTEN).await;
    each(
        &scene.source,
        &[
            "ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'",
            "SELECT pg_reload_conf()",
            // Large values are then not in the WAL of an UPDATE that leaves them alone.
            "ALTER TABLE notes ALTER body SET STORAGE EXTERNAL",
        ],
    )
    .await;
    let address = address(scene.spawn()).await;
    let Some(prometheus) = Prometheus::start(&address).await else {
        return;
    };
    let mut open: Queries = dashboard::queries().into_iter().collect();
    open.retain(|(title, _)| !SILENT.contains(&title.as_str()));
    // First what is only there while existing rows are recorded, and the slot keeps more and more.
    let first = ["snapshot", "seconds_left"];
    let start = Instant::now();
    while open
        .iter()
        .any(|(_, query)| first.iter().any(|part| query.contains(part)))
    {
        assert!(start.elapsed() < BOUND, "no answer to {open:#?}");
        each(&scene.source, &[WRITE]).await;
        ask(&prometheus, &mut open).await;
    }
    lock.batch_execute("SELECT pg_advisory_unlock(7)")
        .await
        .unwrap();
    streaming(scene.daemon()).await;
    let (start, mut number) = (Instant::now(), 1_000_000);
    while !open.is_empty() {
        assert!(start.elapsed() < BOUND, "no answer to {open:#?}");
        number += 2;
        let insert = format!("INSERT INTO notes VALUES ({number}, repeat('canary', 5000))");
        let update = format!("UPDATE notes SET id = id + 1 WHERE id = {number}");
        each(&scene.source, &[&insert, &update]).await;
        ask(&prometheus, &mut open).await;
    }
}

/// Title and query.
type Queries = BTreeSet<(String, String)>;

/// Asks each query, and takes out those that have an answer.
async fn ask(prometheus: &Prometheus, open: &mut Queries) {
    for asked in open.clone() {
        let query = asked.1.replace("$instance", ".*");
        let query = query.replace("$__rate_interval", "5s");
        if !prometheus.query(&query).await.is_empty() {
            open.remove(&asked);
        }
    }
}
