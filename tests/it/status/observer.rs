//! The daemon's own look: what it takes of the servers.

use super::*;
use crate::support::scene::streaming;

const OURS: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'waltrail observer'";

#[tokio::test]
async fn the_observer_keeps_one_session_where_source_and_target_are_one_and_leaves_with_the_daemon()
{
    let mut scene = Scene::new(EMPLOYEES, &TABLES).await;
    wait_for_value(&scene.source, OURS, 1_i64, BOUND).await;
    let limits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'waltrail observer' AND query LIKE '/* waltrail waltrail {%'";
    wait_for_value(&scene.source, limits, 1_i64, BOUND).await;
    scene.stop().await;
    wait_for_value(&scene.source, OURS, 0_i64, BOUND).await;
}

#[tokio::test]
async fn with_two_servers_it_keeps_one_session_in_each() {
    let mut scene = Scene::two(|builder| builder, |builder| builder).await;
    scene.start().await;
    wait_for_value(&scene.source, OURS, 1_i64, BOUND).await;
    wait_for_value(&scene.target, OURS, 1_i64, BOUND).await;
    scene.stop().await;
}

/// The role's limit counts its sessions of every kind but walsenders.
#[tokio::test]
async fn where_connections_are_scarce_it_keeps_none_and_the_daemon_streams() {
    let (cluster, client) = server().await;
    each(&client, &[EMPLOYEES, "CREATE ROLE narrow LOGIN SUPERUSER"]).await;
    let dsn = cluster
        .dsn_socket("postgres")
        .replace("user=postgres", "user=narrow");
    let config = crate::support::scene::config(&dsn, None, &TABLES, "");
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    wait_for_value(&client, OURS, 1_i64, BOUND).await;
    // What it has now, and two more.
    let limit = "DO $$ BEGIN EXECUTE format('ALTER ROLE narrow CONNECTION LIMIT %s', 2 + \
        (SELECT count(*) FROM pg_stat_activity WHERE usename = 'narrow')); END $$";
    each(&client, &[limit]).await;
    wait_for_value(&client, OURS, 0_i64, BOUND).await;
    each(&client, &[INSERT]).await;
    wait_for_value(&client, "SELECT count(*) FROM employees_cdc", 1_i64, BOUND).await;
    daemon.sigterm();
    let (ended, output) = daemon.wait(BOUND).await;
    assert_eq!(ended.code(), Some(0), "{output}");
    assert_clean(&output, &[]);
}

/// It is nobody's business that it could not look.
#[tokio::test]
async fn sessions_of_it_that_are_ended_end_nothing_else() {
    let mut scene = Scene::new(EMPLOYEES, &TABLES).await;
    for _ in 0..2 {
        wait_for_value(&scene.source, OURS, 1_i64, BOUND).await;
        let end = OURS.replace("count(*)", "count(pg_terminate_backend(pid))");
        value::<i64>(&scene.source, &end).await;
        wait_for_value(&scene.source, OURS, 0_i64, BOUND).await;
    }
    each(&scene.source, &[INSERT]).await;
    scene.check().await;
    scene.stop().await;
}
