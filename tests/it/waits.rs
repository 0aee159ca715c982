//! Does anything hang without a word, and is a server ever held up?

use std::time::{Duration, Instant};

use throwaway::{Cluster, StopMode};

use crate::support::daemon::Daemon;
use crate::support::scene::{LOCKED, SERVER_GONE, Scene, assert_clean};
use crate::support::{BOUND, EMPLOYEES, each, server, value, wait_for_value, wait_until};

const INSERT: &str = "INSERT INTO employees (name) SELECT 'a' FROM generate_series(1, 30)";
const LOCK: &str =
    "SET application_name = 'report'; BEGIN; LOCK TABLE employees_cdc IN ACCESS EXCLUSIVE MODE";
const WAITS: &str =
    "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation = 'employees_cdc'::regclass";
const WALSENDER: &str = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'waltrail'";

fn allowed() -> Vec<&'static str> {
    [SERVER_GONE, LOCKED].concat()
}

#[tokio::test]
async fn a_locked_history_holds_up_no_writer_of_the_source_and_its_holder_is_named() {
    let mut scene = Scene::two(|builder| builder, |builder| builder).await;
    scene.start().await;
    let locker = scene.target_session().await;
    locker.batch_execute(LOCK).await.unwrap();
    let pid: i32 = value(&locker, "SELECT pg_backend_pid()").await;
    each(&scene.source, &[INSERT]).await;
    wait_for_value(&scene.target, WAITS, true, BOUND).await;
    let held = format!("waiting for a lock on public.employees_cdc, held by pid {pid} (report)");
    let start = Instant::now();
    scene
        .daemon()
        .wait_log(BOUND, |line| line.contains(&held))
        .await;
    println!("said after {:?}", start.elapsed());
    let mut longest = Duration::ZERO;
    for _ in 0..200 {
        let start = Instant::now();
        each(&scene.source, &[INSERT]).await;
        longest = longest.max(start.elapsed());
    }
    let start = Instant::now();
    let alter = "ALTER TABLE employees ADD COLUMN age int; ALTER TABLE employees DROP COLUMN age";
    each(&scene.source, &[alter]).await;
    println!(
        "at most {longest:?} for a transaction, {:?} for DDL",
        start.elapsed()
    );
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    assert!(start.elapsed() < Duration::from_secs(1));
    locker.batch_execute("COMMIT").await.unwrap();
    scene.finish(&allowed()).await;
}

/// The kernel acknowledges what is sent to a paused server, so that no connection breaks.
async fn pause(side: &str, still: Duration) {
    let mut scene = Scene::two(|builder| builder, |builder| builder).await;
    scene.start().await;
    each(&scene.source, &[INSERT]).await;
    scene.check().await;
    let walsender: i32 = value(&scene.source, WALSENDER).await;
    let paused = match side {
        "source" => &mut scene.server,
        _ => scene.target_server.as_mut().unwrap(),
    };
    paused.pause();
    if side == "target" {
        each(&scene.source, &[INSERT]).await;
    }
    let start = Instant::now();
    let silent = format!("the {side} has not answered for");
    scene
        .daemon()
        .wait_log(BOUND, |line| line.contains(&silent))
        .await;
    println!("said after {:?}", start.elapsed());
    tokio::time::sleep(still).await;
    scene.server.resume();
    scene.target_server.as_mut().unwrap().resume();
    each(&scene.source, &[INSERT]).await;
    scene.check().await;
    assert_eq!(value::<i32>(&scene.source, WALSENDER).await, walsender);
    let said = scene.daemon().output();
    said.lines()
        .filter(|line| line.contains(&silent))
        .for_each(|line| println!("{line}"));
    scene.finish(&allowed()).await;
}

#[tokio::test]
async fn a_source_that_is_paused_is_named_and_then_goes_on() {
    pause("source", Duration::ZERO).await;
}

#[tokio::test]
async fn a_target_that_is_paused_is_named_and_then_goes_on() {
    pause("target", Duration::ZERO).await;
}

#[tokio::test]
#[ignore = "takes ten minutes"]
async fn a_target_that_is_paused_for_ten_minutes_goes_on() {
    pause("target", Duration::from_secs(600)).await;
}

#[tokio::test]
async fn a_command_that_waits_for_a_lock_or_a_paused_server_ends_with_75() {
    let mut scene = Scene::two(|builder| builder, |builder| builder).await;
    scene.set_up().await;
    let locker = scene.target_session().await;
    let lock = "SET application_name = 'report'; BEGIN; LOCK TABLE waltrail.checkpoint IN ACCESS EXCLUSIVE MODE";
    locker.batch_execute(lock).await.unwrap();
    let pid: i32 = value(&locker, "SELECT pg_backend_pid()").await;
    let commands: [&[&str]; 2] = [&["check"], &["accept-gap"]];
    let run = |args: &[&str]| Daemon::spawn_with(&scene.config, args, &[]);
    // `status` shows what it can.
    let mut status = run(&["status"]);
    let (ended, output) = status.wait(BOUND).await;
    assert_eq!(ended.code(), Some(2), "{output}");
    let mut running: Vec<(&[&str], Daemon)> = commands.map(|args| (args, run(args))).into();
    let held = format!("waiting for a lock on waltrail.checkpoint, held by pid {pid} (report)");
    for (args, command) in &mut running {
        let (ended, output) = command.wait(BOUND).await;
        assert_eq!(ended.code(), Some(75), "{args:?}: {output}");
        assert!(output.contains(&held), "{output}");
    }
    locker.batch_execute("COMMIT").await.unwrap();
    scene.target_server.as_mut().unwrap().pause();
    let mut check = Daemon::spawn_with(&scene.config, &["accept-gap"], &[]);
    let (ended, output) = check.wait(BOUND).await;
    assert_eq!(ended.code(), Some(75), "{output}");
    scene.target_server.as_mut().unwrap().resume();
}

/// How long a server takes to stop.
async fn time_to_stop(server: &mut Cluster, mode: StopMode) -> Duration {
    // Clients that were dropped take their leave.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    let start = Instant::now();
    server.stop(mode).unwrap();
    start.elapsed()
}

async fn streams_again(scene: &mut Scene, before: usize) {
    let daemon = &*scene.daemon();
    wait_until("it streams again", BOUND, async || {
        let output = daemon.output();
        (output.matches("streaming").count() > before).then_some(())
    })
    .await;
}

#[derive(Clone, Copy, Debug)]
enum Target {
    Free,
    Locked,
    Paused,
}

/// Stops the source in fast mode while the target is like this and changes wait for it.
async fn stop_source(target: Target, rows: u32) {
    let mut scene = Scene::two(|builder| builder, |builder| builder).await;
    scene.start().await;
    each(&scene.source, &[INSERT]).await;
    scene.check().await;
    let locker = scene.target_session().await;
    match target {
        Target::Free => {}
        Target::Locked => locker.batch_execute(LOCK).await.unwrap(),
        Target::Paused => scene.target_server.as_mut().unwrap().pause(),
    }
    let many = format!("INSERT INTO employees (name) SELECT 'b' FROM generate_series(1, {rows})");
    each(&scene.source, &[&many]).await;
    // By then the stream has said all that makes the source be looked at, and the watch of it may wait for the target.
    let said = match target {
        Target::Free => "streaming",
        Target::Locked => "waiting for a lock on public.employees_cdc",
        Target::Paused => "the target has not answered",
    };
    scene
        .daemon()
        .wait_log(BOUND, |line| line.contains(said))
        .await;
    let before = scene.daemon().output().matches("streaming").count();
    let took = time_to_stop(&mut scene.server, StopMode::Fast).await;
    println!("{target:?}, {rows} rows: stopped after {took:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    scene.target_server.as_mut().unwrap().resume();
    drop(locker);
    scene.server.start_again().unwrap();
    streams_again(&mut scene, before).await;
    scene.finish(&allowed()).await;
}

#[tokio::test]
async fn a_source_stops_in_fast_mode_while_many_changes_are_on_their_way() {
    stop_source(Target::Free, 100_000).await;
}

#[tokio::test]
async fn a_source_stops_in_fast_mode_while_the_history_is_locked() {
    stop_source(Target::Locked, 30).await;
}

#[tokio::test]
async fn a_source_stops_in_fast_mode_while_the_target_is_paused() {
    stop_source(Target::Paused, 30).await;
}

/// Sessions that are open hear nothing of a stop in smart mode.
#[tokio::test]
async fn either_server_stops_in_smart_mode() {
    let (spare, _client) = server().await;
    let mut scene = Scene::two(|builder| builder, |builder| builder).await;
    scene.start().await;
    each(&scene.source, &[INSERT]).await;
    scene.check().await;
    for source in [true, false] {
        let elsewhere = crate::support::connect(&spare.dsn_socket("postgres")).await;
        let client = match source {
            true => &mut scene.source,
            false => &mut scene.target,
        };
        *client = elsewhere;
        let stopped = match source {
            true => &mut scene.server,
            false => scene.target_server.as_mut().unwrap(),
        };
        let took = time_to_stop(stopped, StopMode::Smart).await;
        println!("stopped after {took:?}");
        assert!(took < Duration::from_secs(15), "{took:?}");
        stopped.start_again().unwrap();
        let before = scene.daemon().output().matches("streaming").count();
        streams_again(&mut scene, before).await;
        scene.reconnect().await;
    }
    let output = scene.daemon().output();
    assert!(output.contains("the source is shutting down"), "{output}");
    assert!(output.contains("the target is shutting down"), "{output}");
    scene.finish(&allowed()).await;
}

#[tokio::test]
async fn one_server_for_both_stops_in_every_mode() {
    let (spare, _client) = server().await;
    let mut scene = Scene::one(|builder| builder).await;
    scene.start().await;
    for mode in [StopMode::Fast, StopMode::Smart] {
        scene.source = crate::support::connect(&spare.dsn_socket("postgres")).await;
        scene.target = crate::support::connect(&spare.dsn_socket("postgres")).await;
        let took = time_to_stop(&mut scene.server, mode).await;
        println!("{mode:?}: stopped after {took:?}");
        assert!(took < Duration::from_secs(15), "{took:?}");
        scene.server.start_again().unwrap();
        let before = scene.daemon().output().matches("streaming").count();
        streams_again(&mut scene, before).await;
    }
    scene.finish(&allowed()).await;
}

#[tokio::test]
async fn a_standby_that_cannot_be_reached_holds_up_no_first_start() {
    let mut scene = Scene::one(|builder| builder).await;
    scene
        .server
        .set("synchronous_standby_names", "far")
        .unwrap();
    scene.start().await;
    let local = "SET synchronous_commit = local";
    each(&scene.source, &[local, INSERT]).await;
    scene.check().await;
    scene.finish(&[]).await;
}

#[tokio::test]
async fn a_source_that_begins_to_wait_for_the_history_is_named() {
    let mut scene = Scene::one(|builder| builder).await;
    scene.start().await;
    for (names, said) in [
        ("*", "commits on the source wait for this history\""),
        ("", "no more"),
    ] {
        scene
            .server
            .set("synchronous_standby_names", names)
            .unwrap();
        scene
            .daemon()
            .wait_log(BOUND, |line| line.contains(said))
            .await;
        each(&scene.source, &[INSERT]).await;
        scene.check().await;
    }
    scene
        .finish(&["commits on the source wait for this history"])
        .await;
}

#[tokio::test]
#[ignore = "takes more than a minute"]
async fn a_target_that_takes_no_rows_does_not_keep_a_snapshot_and_locks_on_the_source_for_ever() {
    let ddl = format!(
        "{EMPLOYEES} INSERT INTO employees (name) SELECT 'a' FROM generate_series(1, 1000);"
    );
    let tables = ["public.employees=public.employees_cdc(id)"];
    let mut scene = Scene::existing(|builder| builder, &ddl, &tables, "").await;
    let locker = scene.target_session().await;
    locker
        .batch_execute("BEGIN; LOCK TABLE employees_cdc IN SHARE MODE")
        .await
        .unwrap();
    scene.spawn();
    wait_for_value(&scene.target, WAITS, true, BOUND).await;
    let start = Instant::now();
    let given_up = |line: &str| line.contains("the target has taken no rows of public.employees");
    scene.daemon().wait_log(2 * BOUND, given_up).await;
    println!("given back after {:?}", start.elapsed());
    let locks = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
        WHERE a.application_name = 'waltrail' AND relation = 'employees'::regclass";
    wait_for_value(&scene.source, locks, 0i64, BOUND).await;
    locker.batch_execute("COMMIT").await.unwrap();
    scene.check_existing().await;
    let complaints = [&allowed()[..], &["the snapshot failed"]].concat();
    assert_clean(&scene.stop_complaining().await, &complaints);
}
