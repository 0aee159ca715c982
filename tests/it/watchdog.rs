//! Is the service manager told that the daemon is alive exactly while it is?
//!
//! The test is the service manager: it has the socket and counts. A build for tests takes a shorter limit than the minute of the
//! product, and lets a task hang, by variables that no release reads.

use std::time::{Duration, Instant};

use tempfile::TempDir;
use throwaway::Builder;
use tokio::net::UnixDatagram;

use crate::support::daemon::Daemon;
use crate::support::http::{address, ask};
use crate::support::scene::{LOCKED, SERVER_GONE, Scene, assert_clean, streaming};
use crate::support::{BOUND, each, wait_for_value};

const LISTEN: &str = "[http]\nlisten = \"127.0.0.1:0\"\n";
/// A task that does not move for so long is stuck.
const STUCK: Duration = Duration::from_secs(8);
/// How often a notice is due is half of this.
const WATCHDOG: Duration = Duration::from_secs(2);
const INSERT: &str = "INSERT INTO employees (name) VALUES ('a')";

struct Manager {
    socket: UnixDatagram,
    folder: TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        Self { socket, folder }
    }

    fn spawn(&self, config: &str, hangs: &str) -> Daemon {
        let path = self.folder.path().join("notify");
        let variables = [
            ("NOTIFY_SOCKET", path.to_str().unwrap()),
            ("WATCHDOG_USEC", &WATCHDOG.as_micros().to_string()),
            ("TEST_WALTRAIL_STUCK_MS", &STUCK.as_millis().to_string()),
            ("TEST_WALTRAIL_HANG", hangs),
        ];
        Daemon::spawn_with(config, &["run"], &variables)
    }

    /// Waits for a sign of life, for as long as a manager would.
    async fn is_told(&self) -> bool {
        let told = async {
            let mut buffer = [0; 4096];
            loop {
                let count = self.socket.recv(&mut buffer).await.unwrap();
                if buffer[..count].starts_with(b"WATCHDOG=1") {
                    return;
                }
            }
        };
        tokio::time::timeout(WATCHDOG, told).await.is_ok()
    }

    async fn is_told_for(&self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            assert!(self.is_told().await, "not after {:?}", start.elapsed());
        }
    }
}

/// The reader answers a quarter as often as this, and moves at least as often.
fn soon(builder: Builder) -> Builder {
    builder.setting("wal_sender_timeout", "8s")
}

async fn scene() -> Scene {
    let mut scene = Scene::two(soon, |builder| builder).await;
    scene.config += LISTEN;
    scene
}

#[tokio::test]
async fn an_idle_daemon_is_alive() {
    let (scene, manager) = (scene().await, Manager::new());
    let mut daemon = manager.spawn(&scene.config, "");
    streaming(&mut daemon).await;
    manager.is_told_for(2 * STUCK).await;
    each(&scene.source, &[INSERT]).await;
    scene.check().await;
    assert_clean(&daemon.output(), &[]);
}

#[tokio::test]
async fn a_history_that_is_locked_for_long_is_no_reason_to_be_killed() {
    let (scene, manager) = (scene().await, Manager::new());
    let mut daemon = manager.spawn(&scene.config, "");
    streaming(&mut daemon).await;
    let address = address(&mut daemon).await;
    let locker = scene.target_session().await;
    let lock = "BEGIN; LOCK TABLE employees_cdc IN ACCESS EXCLUSIVE MODE";
    each(&locker, &[lock]).await;
    each(&scene.source, &[INSERT]).await;
    let waits = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation = 'employees_cdc'::regclass";
    wait_for_value(&scene.target, waits, true, BOUND).await;
    // An hour to the product's minute is what this is to the test's limit, near enough.
    manager.is_told_for(4 * STUCK).await;
    assert_eq!(ask(&address, "GET /livez").await.0, 200);
    assert_eq!(ask(&address, "GET /readyz").await.0, 503);
    each(&locker, &["COMMIT"]).await;
    scene.check().await;
    manager.is_told_for(STUCK).await;
    assert_clean(&daemon.output(), LOCKED);
}

#[tokio::test]
async fn a_target_that_is_paused_for_long_is_no_reason_to_be_killed() {
    let (mut scene, manager) = (scene().await, Manager::new());
    let mut daemon = manager.spawn(&scene.config, "");
    streaming(&mut daemon).await;
    each(&scene.source, &[INSERT]).await;
    scene.check().await;
    scene.target_server.as_mut().unwrap().pause();
    each(&scene.source, &[INSERT]).await;
    manager.is_told_for(4 * STUCK).await;
    scene.target_server.as_mut().unwrap().resume();
    scene.check().await;
    assert_clean(&daemon.output(), SERVER_GONE);
}

#[tokio::test]
async fn a_source_that_is_away_is_no_reason_to_be_killed() {
    let (mut scene, manager) = (scene().await, Manager::new());
    let mut daemon = manager.spawn(&scene.config, "");
    streaming(&mut daemon).await;
    scene.server.stop(throwaway::StopMode::Immediate).unwrap();
    manager.is_told_for(2 * STUCK).await;
    assert!(!daemon.output().contains("has not moved"));
}

/// A future that is never woken.
async fn hangs(task: &str) {
    let (scene, manager) = (scene().await, Manager::new());
    let mut daemon = manager.spawn(&scene.config, task);
    let address = address(&mut daemon).await;
    streaming(&mut daemon).await;
    each(&scene.source, &[INSERT]).await;
    let start = Instant::now();
    assert!(manager.is_told().await, "at first it may only be slow");
    let stuck = format!("the {task} has not moved for");
    let line = daemon
        .wait_log(BOUND, |line| {
            line.contains(&stuck) && line.contains("ERROR")
        })
        .await;
    println!("{line}\nafter {:?}", start.elapsed());
    assert!(start.elapsed() >= STUCK - WATCHDOG, "{:?}", start.elapsed());
    // What was on its way.
    while manager.is_told().await {}
    let (status, told) = ask(&address, "GET /livez").await;
    assert!(status == 503 && told.contains(&stuck), "{status} {told}");
    assert!(!manager.is_told().await);
    assert_eq!(
        daemon.output().matches(&stuck).count(),
        1,
        "it is said once"
    );
}

#[tokio::test]
async fn a_reader_that_is_never_woken_is_not_called_alive() {
    hangs("reader").await;
}

#[tokio::test]
async fn an_applier_that_is_never_woken_is_not_called_alive() {
    hangs("applier").await;
}

#[tokio::test]
async fn a_barrier_that_is_never_woken_is_not_called_alive() {
    hangs("barrier").await;
}
