//! Do metrics and health tell what is?

use throwaway::StopMode;

use crate::support::http::{address, ask, metric};
use crate::support::scene::Scene;
use crate::support::{BOUND, EMPLOYEES, each, wait_until};

const LISTEN: &str = "[http]\nlisten = \"127.0.0.1:0\"\n";

async fn scene() -> (Scene, String) {
    let mut scene = Scene::with(|builder| builder, EMPLOYEES, &["public.employees"], LISTEN).await;
    let address = address(scene.daemon()).await;
    (scene, address)
}

#[tokio::test]
async fn metrics_count_what_the_history_holds() {
    let (scene, address) = scene().await;
    each(
        &scene.source,
        &[
            "INSERT INTO employees (name) VALUES ('a'), ('b')",
            "UPDATE employees SET salary = 1 WHERE name LIKE '%b'",
        ],
    )
    .await;
    wait_until("three rows are counted", BOUND, async || {
        (metric(&address, "waltrail_batch_rows_sum").await == Some(3.0)).then_some(())
    })
    .await;
    let now = async |name: &str| metric(&address, name).await.unwrap_or(-1.0);
    assert_eq!(now("waltrail_streaming").await, 1.0);
    assert_eq!(now("waltrail_transactions_total").await, 2.0);
    assert_eq!(now("waltrail_lag_seconds").await, 0.0);
    assert_eq!(now("waltrail_session_failures_total").await, 0.0);
    assert_eq!(now("waltrail_log_lines_dropped_total").await, 0.0);
    assert!(now("waltrail_wal_position_bytes{of=\"applied\"}").await > 0.0);
    assert_eq!(
        now("waltrail_snapshot_tables{state=\"copying\"}").await,
        0.0
    );
    scene.check().await;
}

#[tokio::test]
async fn only_what_is_there_is_answered() {
    let (_scene, address) = scene().await;
    assert_eq!(
        ask(&address, "GET /livez").await,
        (200, "alive\n".to_owned())
    );
    assert_eq!(ask(&address, "HEAD /livez").await, (200, String::new()));
    assert_eq!(ask(&address, "GET /").await.0, 404);
    assert_eq!(ask(&address, "POST /metrics").await.0, 405);
    assert_eq!(ask(&address, "nonsense").await.0, 400);
}

#[tokio::test]
async fn ready_is_who_streams_into_a_target_that_takes_commits() {
    let (scene, address) = scene().await;
    let ready = async || ask(&address, "GET /readyz").await;
    wait_until("it is ready", BOUND, async || {
        (ready().await.0 == 200).then_some(())
    })
    .await;
    let mut other = scene.session().await;
    let locked = other.transaction().await.unwrap();
    locked.batch_execute("LOCK employees_cdc").await.unwrap();
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('a')"],
    )
    .await;
    let told = wait_until("it is not ready", BOUND, async || {
        let (status, told) = ready().await;
        (status == 503).then_some(told)
    })
    .await;
    assert!(
        told.contains("the target has taken no commit for"),
        "{told}"
    );
    assert_eq!(ask(&address, "GET /livez").await.0, 200);
    locked.rollback().await.unwrap();
    wait_until("it is ready again", BOUND, async || {
        (ready().await.0 == 200).then_some(())
    })
    .await;
    scene.check().await;
}

#[tokio::test]
async fn who_waits_for_its_source_is_alive_and_not_ready() {
    let (mut scene, address) = scene().await;
    scene.server.stop(StopMode::Fast).unwrap();
    let told = wait_until("it is not ready", BOUND, async || {
        let (status, told) = ask(&address, "GET /readyz").await;
        (status == 503).then_some(told)
    })
    .await;
    assert_eq!(told, "not streaming\n");
    assert_eq!(ask(&address, "GET /livez").await.0, 200);
    wait_until("the failure is counted", BOUND, async || {
        let failures = metric(&address, "waltrail_session_failures_total").await;
        (failures >= Some(1.0)).then_some(())
    })
    .await;
    assert_eq!(metric(&address, "waltrail_streaming").await, Some(0.0));
}
