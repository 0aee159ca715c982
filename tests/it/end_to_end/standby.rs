//! What does a synchronous standby change: one of the target, and a source that takes waltrail for one?

use std::process::Command;

use throwaway::{Cluster, StopMode};

use crate::support::scene::{SERVER_GONE, Scene};
use crate::support::{BOUND, builder, each, value, wait_for_value};

const CONFIRMED: &str =
    "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'waltrail'";
const SYNCHRONOUS: &str = "SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'";
const SLOW: &str = "the target does not make the history durable";
const WAITED_FOR: &str = "commits on the source wait for this history";
/// A session that waits for a standby.
const WAITING: &str = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'";

/// Gives a server, which is stopped meanwhile, a standby that its commits wait for.
pub fn standby_of(primary: &mut Cluster) -> Cluster {
    let mut standby = builder().start().unwrap();
    standby.stop(StopMode::Fast).unwrap();
    primary.stop(StopMode::Fast).unwrap();
    let data = standby.data_dir();
    std::fs::remove_dir_all(&data).unwrap();
    let copied = Command::new("cp")
        .arg("-a")
        .args([&primary.data_dir(), &data])
        .status();
    assert!(copied.unwrap().success());
    // A file of the right owner, whose content does not matter.
    let signal = Command::new("cp")
        .arg("-a")
        .args([data.join("PG_VERSION"), data.join("standby.signal")])
        .status();
    assert!(signal.unwrap().success());
    let sockets = standby.socket_dir().display().to_string();
    standby.set("unix_socket_directories", &sockets).unwrap();
    let primary_is = primary.dsn_tcp("postgres");
    standby.set("primary_conninfo", &primary_is).unwrap();
    primary.start_again().unwrap();
    standby.start_again().unwrap();
    primary.set("synchronous_standby_names", "*").unwrap();
    standby
}

#[tokio::test]
async fn a_stopped_standby_of_the_target_holds_up_the_confirmation_and_not_the_history() {
    let mut scene = Scene::two(|builder| builder, |builder| builder).await;
    let mut standby = standby_of(scene.target_server.as_mut().unwrap());
    scene.reconnect().await;
    wait_for_value(&scene.target, SYNCHRONOUS, true, BOUND).await;
    scene.start().await;
    let insert = "INSERT INTO employees (name) SELECT 'a' FROM generate_series(1, 30)";
    each(&scene.source, &[insert]).await;
    scene.check().await;
    standby.stop(StopMode::Fast).unwrap();

    each(&scene.source, &[insert, "UPDATE employees SET salary = 1"]).await;
    let daemon = scene.daemon();
    daemon.wait_log(BOUND, |line| line.contains(SLOW)).await;
    let confirmed: String = value(&scene.source, CONFIRMED).await;
    // Everything is there, also what is written while the barrier waits.
    each(&scene.source, &[insert]).await;
    scene.check().await;
    // A wait that is given up for the target proves nothing.
    let canceled: bool = value(
        &scene.target,
        &format!("SELECT bool_and(pg_cancel_backend(pid)) {WAITING}"),
    )
    .await;
    assert!(canceled);
    let failed = |line: &str| line.contains("the session failed");
    scene.daemon().wait_log(BOUND, failed).await;
    let again = format!("SELECT count(*) > 0 {WAITING}");
    each(&scene.source, &[insert]).await;
    wait_for_value(&scene.target, &again, true, BOUND).await;
    scene.check().await;
    assert_eq!(value::<String>(&scene.source, CONFIRMED).await, confirmed);

    standby.start_again().unwrap();
    let behind = format!("SELECT ({CONFIRMED})::pg_lsn > '{confirmed}'");
    wait_for_value(&scene.source, &behind, true, BOUND).await;
    scene.finish(SERVER_GONE).await;
}

#[tokio::test]
async fn a_source_whose_commits_wait_for_the_history_is_not_held_up_by_it() {
    let mut scene = Scene::one(|builder| builder).await;
    // As a guide or a manager of clusters sets it.
    scene.server.set("synchronous_standby_names", "*").unwrap();
    for _ in 0..2 {
        // A first start makes its objects; a later one finds what its predecessor has left.
        scene.start().await;
        let waits = |line: &str| line.contains(WAITED_FOR);
        scene.daemon().wait_log(BOUND, waits).await;
        each(
            &scene.source,
            &["INSERT INTO employees (name) VALUES ('a')"],
        )
        .await;
        scene.check().await;
        scene.daemon().sigterm();
        // It waits for the next daemon.
        let session = scene.session().await;
        let (status, output) = scene.daemon().wait(BOUND).await;
        assert_eq!(status.code(), Some(0), "{output}");
        let waiting = tokio::spawn(async move {
            each(&session, &["UPDATE employees SET salary = 1"]).await;
        });
        let waits = format!("SELECT count(*) > 0 {WAITING}");
        wait_for_value(&scene.target, &waits, true, BOUND).await;
        scene.start().await;
        tokio::time::timeout(BOUND, waiting).await.unwrap().unwrap();
        scene.check().await;
        scene.daemon().sigterm();
        scene.daemon().wait(BOUND).await;
    }
}
