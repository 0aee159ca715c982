//! Do throw-away servers start, end in every way and leave nothing behind?

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{builder, connect, server, server_with, try_connect};
use throwaway::{Cluster, StopMode};

const BOUND: Duration = Duration::from_secs(30);

/// The command lines of all processes that mention `folder`.
fn processes_of(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        if let Ok(line) = std::fs::read(entry.path().join("cmdline")) {
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(folder.to_str().unwrap()) {
                found.push(line);
            }
        }
    }
    found
}

/// Whether the System V segment of this id is still there.
fn segment_exists(id: &str) -> bool {
    let table = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
    table
        .lines()
        .any(|line| line.split_whitespace().nth(1) == Some(id))
}

fn segment_of(cluster: &Cluster) -> String {
    let text = std::fs::read_to_string(cluster.data_dir().join("postmaster.pid")).unwrap();
    let line = text.lines().nth(6).unwrap();
    line.split_whitespace().nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn a_server_takes_connections_over_socket_and_tcp() {
    let start = Instant::now();
    let (cluster, client) = server().await;
    println!("first answer after {:?}", start.elapsed());
    let level: String = client
        .query_one("SHOW wal_level", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(level, "logical");
    let tcp = connect(&cluster.dsn_tcp("postgres")).await;
    let port: i32 = tcp
        .query_one("SELECT inet_server_port()", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(port, i32::from(cluster.port()));
}

#[tokio::test]
async fn data_outlive_every_kind_of_end() {
    let (mut cluster, client) = server().await;
    client
        .batch_execute("CREATE TABLE kept (n int)")
        .await
        .unwrap();
    drop(client);
    let port = cluster.port();
    type End = fn(&mut Cluster);
    let ends: [(&str, End); 4] = [
        ("smart", |cluster| cluster.stop(StopMode::Smart).unwrap()),
        ("fast", |cluster| cluster.stop(StopMode::Fast).unwrap()),
        ("immediate", |cluster| {
            cluster.stop(StopMode::Immediate).unwrap()
        }),
        ("kill -9", Cluster::kill9),
    ];
    for (n, (name, end)) in (1_i64..).zip(ends) {
        let client = connect(&cluster.dsn_tcp("postgres")).await;
        client
            .batch_execute("INSERT INTO kept VALUES (1)")
            .await
            .unwrap();
        drop(client);
        // The client's other half closes the socket; a smart stop waits for that.
        tokio::task::yield_now().await;
        end(&mut cluster);
        assert_eq!(cluster.pid(), None);
        assert!(try_connect(&cluster.dsn_tcp("postgres")).await.is_err());
        let start = Instant::now();
        cluster.start_again().unwrap();
        println!("up again after {name} within {:?}", start.elapsed());
        assert_eq!(cluster.port(), port);
        let client = connect(&cluster.dsn_tcp("postgres")).await;
        let rows: i64 = client
            .query_one("SELECT count(*) FROM kept", &[])
            .await
            .unwrap()
            .get(0);
        assert_eq!(rows, n, "after {name}");
    }
}

#[tokio::test]
async fn two_servers_run_side_by_side() {
    let first = std::thread::spawn(|| builder().start().unwrap());
    let second = builder().start().unwrap();
    let first = first.join().unwrap();
    assert_ne!(first.port(), second.port());
    let a = connect(&first.dsn_tcp("postgres")).await;
    let b = connect(&second.dsn_tcp("postgres")).await;
    a.batch_execute("CREATE TABLE only_here ()").await.unwrap();
    assert!(b.batch_execute("TABLE only_here").await.is_err());
}

#[tokio::test]
async fn only_a_fresh_initdb_gives_another_system_identifier() {
    const QUERY: &str = "SELECT system_identifier FROM pg_control_system()";
    let mut identifiers = Vec::new();
    let (one, first) = server().await;
    let (two, second) = server().await;
    let (three, third) = server_with(|builder| builder.fresh_initdb()).await;
    for client in [first, second, third] {
        let identifier: i64 = client.query_one(QUERY, &[]).await.unwrap().get(0);
        identifiers.push(identifier);
    }
    assert_eq!(identifiers[0], identifiers[1]);
    assert_ne!(identifiers[0], identifiers[2]);
    drop((one, two, three));
}

#[tokio::test]
async fn a_changed_setting_is_in_force_when_the_call_returns() {
    let (mut cluster, client) = server().await;
    let show = async |cluster: &Cluster, name: &str| -> String {
        let client = connect(&cluster.dsn_socket("postgres")).await;
        let row = client.query_one(&format!("SHOW {name}"), &[]).await;
        row.unwrap().get(0)
    };
    assert_eq!(show(&cluster, "wal_sender_timeout").await, "1min");
    cluster.set("wal_sender_timeout", "5s").unwrap();
    assert_eq!(show(&cluster, "wal_sender_timeout").await, "5s");
    cluster.set("application_name", "it's \\ quoted").unwrap();
    assert!(cluster.set("wal_sender_timeout", "soon").is_err());
    assert!(cluster.set("no_such_parameter", "1").is_err());
    cluster.set("wal_sender_timeout", "6s").unwrap();
    assert_eq!(show(&cluster, "wal_sender_timeout").await, "6s");
    // One that needs a restart is taken at the restart.
    cluster.set("max_wal_senders", "0").unwrap();
    cluster.set("wal_level", "replica").unwrap();
    cluster.restart(StopMode::Fast).unwrap();
    assert_eq!(show(&cluster, "wal_level").await, "replica");
    drop(client);
}

#[tokio::test]
async fn extra_access_lines_come_first() {
    let (cluster, client) =
        server_with(|builder| builder.hba("host all guarded 127.0.0.1/32 scram-sha-256")).await;
    client
        .batch_execute("CREATE ROLE guarded LOGIN PASSWORD 'right'")
        .await
        .unwrap();
    let dsn = format!(
        "host=127.0.0.1 port={} dbname=postgres user=guarded",
        cluster.port()
    );
    assert!(try_connect(&format!("{dsn} password=wrong")).await.is_err());
    assert!(try_connect(&format!("{dsn} password=right")).await.is_ok());
}

#[tokio::test]
async fn dropping_leaves_nothing_behind() {
    for crash in [false, true] {
        let (mut cluster, _client) = server().await;
        let folder = cluster.folder().to_owned();
        let segment = segment_of(&cluster);
        assert!(
            processes_of(&folder).len() >= 2,
            "the server and its watchdog"
        );
        assert!(segment_exists(&segment));
        if crash {
            cluster.kill9();
        }
        drop(cluster);
        assert!(!folder.exists());
        assert_eq!(processes_of(&folder), [""; 0]);
        assert!(!segment_exists(&segment), "crash: {crash}");
    }
}

#[test]
fn a_panic_leaves_nothing_behind() {
    let (sender, receiver) = std::sync::mpsc::channel::<PathBuf>();
    let owner = std::thread::spawn(move || {
        let cluster = builder().start().unwrap();
        sender.send(cluster.folder().to_owned()).unwrap();
        panic!("this panic is part of the test");
    });
    assert!(owner.join().is_err());
    let folder = receiver.recv().unwrap();
    assert!(!folder.exists());
    assert_eq!(processes_of(&folder), [""; 0]);
}

#[test]
fn an_owner_that_is_killed_leaves_nothing_behind() {
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().join("folder");
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cluster::owner_to_be_killed"])
        .env("WALTRAIL_TEST_PLACE", &place)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let folder = loop {
        if let Ok(text) = std::fs::read_to_string(&place)
            && let Some(folder) = text.strip_suffix('\n')
        {
            break PathBuf::from(folder);
        }
        assert!(
            start.elapsed() < BOUND,
            "the owner did not start its server"
        );
        std::thread::sleep(Duration::from_millis(10));
    };
    owner.kill().unwrap();
    owner.wait().unwrap();
    let start = Instant::now();
    while folder.exists() || !processes_of(&folder).is_empty() {
        assert!(
            start.elapsed() < BOUND,
            "still there: {:?}",
            processes_of(&folder)
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The other process of [`an_owner_that_is_killed_leaves_nothing_behind`]; by itself it has nothing to show.
#[test]
fn owner_to_be_killed() {
    let Some(place) = std::env::var_os("WALTRAIL_TEST_PLACE") else {
        return;
    };
    let cluster = builder().start().unwrap();
    std::fs::write(place, format!("{}\n", cluster.folder().display())).unwrap();
    std::thread::sleep(BOUND);
}

#[test]
fn a_long_folder_name_moves_the_socket_elsewhere() {
    let parent = tempfile::Builder::new()
        .prefix(&"long-".repeat(20))
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir()
        .unwrap();
    let cluster = builder().parent(parent.path()).start().unwrap();
    let sockets = cluster.socket_dir().to_owned();
    assert!(!sockets.starts_with(parent.path()));
    drop(cluster);
    assert!(!sockets.exists());
    assert_eq!(parent.path().read_dir().unwrap().count(), 0);
}

#[tokio::test]
async fn root_steps_down() {
    use std::os::unix::fs::MetadataExt;
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: not root");
        return;
    }
    let (cluster, _client) = server().await;
    let process = std::fs::metadata(format!("/proc/{}", cluster.pid().unwrap())).unwrap();
    assert_ne!(process.uid(), 0);
    assert_ne!(std::fs::metadata(cluster.data_dir()).unwrap().uid(), 0);
}

#[test]
fn a_taken_port_is_said_plainly() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().port();
    let fault = builder().port(taken).start().unwrap_err();
    assert!(fault.to_string().contains("FATAL"), "{fault}");
}
