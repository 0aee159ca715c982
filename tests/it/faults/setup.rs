//! A fault while the control schema is made.

use crate::support::scene::{SERVER_GONE, Scene, streaming};
use crate::support::{BOUND, each, value, wait_for_value};

#[tokio::test]
async fn a_migration_that_is_canceled_is_begun_again() {
    let mut scene = Scene::one(|builder| builder).await;
    let (client, blocker) = (scene.session().await, scene.session().await);
    each(
        &blocker,
        &[
            "CREATE SCHEMA waltrail",
            "BEGIN",
            "CREATE TABLE waltrail.checkpoint ()",
        ],
    )
    .await;
    scene.spawn();
    let waits =
        "FROM pg_stat_activity WHERE application_name = 'waltrail' AND wait_event_type = 'Lock'";
    let one = format!("SELECT count(*) = 1 {waits}");
    wait_for_value(&client, &one, true, BOUND).await;
    let cancel = format!("SELECT bool_and(pg_cancel_backend(pid)) {waits}");
    assert!(value::<bool>(&client, &cancel).await);
    let failed = |line: &str| line.contains("could not bring its control schema up to date");
    let line = scene.daemon().wait_log(BOUND, failed).await;
    assert!(line.contains("57014"), "{line}");
    each(&blocker, &["ROLLBACK"]).await;
    streaming(scene.daemon()).await;
    scene.finish(SERVER_GONE).await;
}
