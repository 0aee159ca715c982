//! Does the history stay exact when anything around it fails: the daemon, a server, the network, the disk?
//!
//! The number of faults comes from FAULTS, their moments from FAULTS_SEED; `make test-long` makes many. The
//! daemons log at level trace, in both formats in turn, and a value that stands in every row must not
//! appear in what they write.

mod disk;
mod setup;

use std::time::{Duration, Instant};

use crate::support::daemon::Daemon;
use crate::support::moments::{faults, long, random_moment, seeded, stops};
use crate::support::proxy::{Mode, Proxy};
use crate::support::scene::{HELD_ELSEWHERE, LOCKED, SERVER_GONE, Scene, assert_clean, streaming};
use crate::support::{BOUND, value, wait_for_value, wait_until};
use fastrand::Rng;
use throwaway::{Builder, Cluster, StopMode};
use tokio_postgres::Client;

async fn text(client: &Client, query: &str) -> String {
    value::<Option<String>>(client, query)
        .await
        .unwrap_or_default()
}

async fn lsn(client: &Client, query: &str) -> waltrail::lsn::Lsn {
    text(client, query).await.parse().unwrap()
}

const CONFIRMED: &str =
    "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'waltrail'";
const END: &str = "SELECT end_lsn::text FROM waltrail.checkpoint";
const REACHED: &str = "SELECT greatest(end_lsn, reported_lsn)::text FROM waltrail.checkpoint";
const INACTIVE: &str = "SELECT NOT active FROM pg_replication_slots WHERE slot_name = 'waltrail'";

#[tokio::test]
async fn a_daemon_killed_at_random_moments_loses_nothing_and_doubles_nothing() {
    let mut rng = seeded();
    let mut scene = Scene::one(|builder| builder).await;
    scene.start().await;
    let load = scene.load(rng.u64(..));
    let mut while_streaming = 0;
    for _ in 0..faults() {
        // Most of them while it streams, some at any moment of its start.
        if rng.u8(..4) > 0 {
            streaming(scene.daemon()).await;
            while_streaming += 1;
        }
        random_moment(&mut rng, 500).await;
        scene.daemon().kill9();
        assert_clean(&scene.daemon().output(), HELD_ELSEWHERE);
        scene.spawn();
    }
    println!(
        "{while_streaming} of {} kills while streaming; {:?}",
        faults(),
        load.stop()
    );
    scene.finish(HELD_ELSEWHERE).await;
}

#[tokio::test]
async fn a_daemon_killed_while_it_makes_its_slot_adopts_the_slot() {
    let mut scene = Scene::one(|builder| builder).await;
    let (client, writer) = (scene.session().await, scene.session().await);
    // Making a slot waits for every transaction that has written.
    writer
        .batch_execute("BEGIN; CREATE TABLE in_the_way ()")
        .await
        .unwrap();
    scene.spawn();
    let making = "SELECT count(*) = 1 FROM pg_stat_activity
        WHERE backend_type = 'walsender' AND wait_event_type = 'Lock'";
    wait_for_value(&client, making, true, BOUND).await;
    scene.daemon().kill9();
    writer.batch_execute("COMMIT").await.unwrap();
    let gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'walsender'";
    wait_for_value(&client, gone, true, BOUND).await;
    // Whether the server finished the slot that nobody waited for depends on its version and the moment.
    client
        .batch_execute(
            "SELECT pg_create_logical_replication_slot('waltrail', 'pgoutput')
             WHERE NOT EXISTS (SELECT FROM pg_replication_slots)",
        )
        .await
        .unwrap();
    let rows =
        "INSERT INTO employees (name) SELECT 'before the second start' FROM generate_series(1, 40)";
    client.batch_execute(rows).await.unwrap();
    scene.start().await;
    assert!(scene.daemon().output().contains("adopted the slot"));
    scene.finish(HELD_ELSEWHERE).await;
}

/// A transaction stays open across the kill: the walsender goes on making the slot for a daemon that is gone.
#[tokio::test]
async fn a_daemon_killed_while_it_makes_its_slot_does_not_stop_the_next_start() {
    let mut scene = Scene::one(|builder| builder).await;
    let (client, writer) = (scene.session().await, scene.session().await);
    let begin = "BEGIN; CREATE TABLE in_the_way ()";
    writer.batch_execute(begin).await.unwrap();
    let making = "SELECT active_pid FROM pg_replication_slots
        WHERE slot_name = 'waltrail' AND confirmed_flush_lsn IS NULL";
    let waits = "SELECT count(*) = 1 FROM pg_stat_activity
        WHERE backend_type = 'walsender' AND wait_event_type = 'Lock'";
    scene.spawn();
    wait_for_value(&client, waits, true, BOUND).await;
    let orphan: i32 = value(&client, making).await;
    scene.daemon().kill9();
    // Beside it, what is only looking says what it sees.
    let mut status = Daemon::spawn_with(&scene.config, &["status"], &[]);
    let (ended, output) = status.wait(BOUND).await;
    assert_eq!(ended.code(), Some(2), "{output}");
    assert!(
        output.contains(&format!("being created by pid {orphan}")),
        "{output}"
    );
    let mut setup = Daemon::spawn_with(&scene.config, &["setup"], &[]);
    let line = setup
        .wait_log(BOUND, |line| {
            line.contains("another process is creating the slot")
        })
        .await;
    let blocker: i32 = value(&writer, "SELECT pg_backend_pid()").await;
    for pid in [orphan, blocker] {
        assert!(line.contains(&pid.to_string()), "{pid} is not in {line}");
    }
    setup.kill9();
    let terminated = |line: &str| line.contains("terminated an orphaned walsender");
    scene.spawn().wait_log(BOUND, terminated).await;
    wait_for_value(&client, waits, true, BOUND).await;
    let ours: i32 = value(&client, making).await;
    assert_ne!(ours, orphan);
    writer.batch_execute("COMMIT").await.unwrap();
    streaming(scene.daemon()).await;
    let rows = "INSERT INTO employees (name) VALUES ('then')";
    client.batch_execute(rows).await.unwrap();
    scene
        .finish(&[HELD_ELSEWHERE, &["creating the slot waits"]].concat())
        .await;
}

/// A target whose asynchronous commits stay unflushed for as long as the server allows, so that a crash
/// takes many.
fn lazy(builder: Builder) -> Builder {
    builder
        .fsync(true)
        .setting("wal_writer_delay", "10s")
        .setting("wal_writer_flush_after", "1GB")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Target,
}

/// Stops a server under load again and again as a crash would: in immediate mode, every third time by
/// SIGKILL.
async fn stop_again_and_again(mut scene: Scene, side: Side) {
    let mut rng = seeded();
    scene.start().await;
    let load = scene.load(rng.u64(..));
    for stop in 0..stops() {
        scene.progress().await;
        // A confirmation is sent once a second: some stops come after one, some before.
        random_moment(&mut rng, 2_000).await;
        let cluster: &mut Cluster = match (side, &mut scene.target_server) {
            (Side::Target, Some(target)) => target,
            _ => &mut scene.server,
        };
        match stop % 3 {
            2 => cluster.kill9(),
            _ => cluster.stop(StopMode::Immediate).unwrap(),
        }
        // Long enough, sometimes, for a second attempt to fail too.
        random_moment(&mut rng, 600).await;
        cluster.start_again().unwrap();
    }
    scene.progress().await;
    println!("{} stops; {:?}", stops(), load.stop());
    scene.finish(SERVER_GONE).await;
}

#[tokio::test]
async fn a_target_that_crashes_under_load_loses_nothing_and_doubles_nothing() {
    let scene = Scene::two(|builder| builder, lazy).await;
    stop_again_and_again(scene, Side::Target).await;
}

#[tokio::test]
async fn a_source_that_crashes_under_load_loses_nothing_and_doubles_nothing() {
    let scene = Scene::two(|builder| builder.fsync(true), |builder| builder).await;
    stop_again_and_again(scene, Side::Source).await;
}

#[tokio::test]
async fn a_database_that_is_source_and_target_crashes_under_load_without_harm() {
    let scene = Scene::one(|builder| builder.fsync(true)).await;
    stop_again_and_again(scene, Side::Source).await;
}

#[tokio::test]
async fn sigterm_under_load_ends_in_time_and_the_next_start_doubles_nothing() {
    let mut rng = seeded();
    let mut scene = Scene::one(|builder| builder).await;
    let client = scene.session().await;
    scene.start().await;
    let load = scene.load(rng.u64(..));
    let mut longest = Duration::ZERO;
    for _ in 0..stops() + 2 {
        scene.progress().await;
        random_moment(&mut rng, 300).await;
        scene.daemon().sigterm();
        let start = Instant::now();
        let (status, output) = scene.daemon().wait(Duration::from_secs(11)).await;
        longest = longest.max(start.elapsed());
        assert_eq!(status.code(), Some(0), "{output}");
        assert_clean(&output, HELD_ELSEWHERE);
        // It drained, and was not just thrown out when the grace was over.
        assert!(output.contains("stopped"), "{output}");
        // What was confirmed at the end is what the history holds.
        wait_for_value(&client, INACTIVE, true, BOUND).await;
        assert_eq!(lsn(&client, CONFIRMED).await, lsn(&client, END).await);
        scene.start().await;
    }
    println!("the longest drain took {longest:?}; {:?}", load.stop());
    scene.finish(HELD_ELSEWHERE).await;
}

/// Takes the history away from the daemon until the returned connection ends its transaction.
async fn lock_history(scene: &Scene) -> Client {
    let locker = scene.target_session().await;
    locker
        .batch_execute("BEGIN; LOCK TABLE employees_cdc IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    locker
}

/// Waits until the daemon waits for the lock.
async fn wait_for_blocked_writer(client: &Client) {
    let blocked = "SELECT count(*) > 0 FROM pg_locks
        WHERE NOT granted AND relation = 'employees_cdc'::regclass";
    wait_for_value(client, blocked, true, BOUND).await;
}

#[tokio::test]
async fn sigterm_while_the_history_is_locked_ends_within_the_grace() {
    let mut scene = Scene::one(|builder| builder).await;
    scene.config.push_str("[shutdown]\ngrace = \"2s\"\n");
    let client = scene.session().await;
    scene.start().await;
    let load = scene.load(1);
    scene.progress().await;
    let locker = lock_history(&scene).await;
    wait_for_blocked_writer(&client).await;
    load.more(20).await;
    scene.daemon().sigterm();
    let start = Instant::now();
    let (status, output) = scene.daemon().wait(Duration::from_secs(10)).await;
    let took = start.elapsed();
    assert_eq!(status.code(), Some(0), "{output}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    // What is locked is named when it lasts.
    assert_clean(&output, &[LOCKED, &["the grace is over"]].concat());
    locker.batch_execute("COMMIT").await.unwrap();
    load.stop();
    scene.start().await;
    scene.finish(HELD_ELSEWHERE).await;
}

#[tokio::test]
async fn a_history_that_refuses_the_last_rows_of_a_stop_is_no_orderly_end() {
    let mut scene = Scene::one(|builder| builder).await;
    let (client, locker) = (scene.session().await, scene.session().await);
    // Several times: a race between two ends of the writer decided it.
    for _ in 0..5 {
        scene.start().await;
        locker
            .batch_execute(
                "BEGIN; ALTER TABLE employees_cdc ADD CONSTRAINT refused CHECK (false) NOT VALID",
            )
            .await
            .unwrap();
        client
            .batch_execute("INSERT INTO employees (name) VALUES ('last')")
            .await
            .unwrap();
        wait_for_blocked_writer(&client).await;
        scene.daemon().sigterm();
        scene
            .daemon()
            .wait_log(BOUND, |line| line.contains("stopping"))
            .await;
        locker.batch_execute("COMMIT").await.unwrap();
        let (status, output) = scene.daemon().wait(BOUND).await;
        assert_eq!(status.code(), Some(65), "{output}");
        client
            .batch_execute("ALTER TABLE employees_cdc DROP CONSTRAINT refused")
            .await
            .unwrap();
    }
    scene.start().await;
    scene.finish(SERVER_GONE).await;
}

#[tokio::test]
async fn a_second_sigterm_leaves_at_once() {
    let mut scene = Scene::one(|builder| builder).await;
    scene.config.push_str("[shutdown]\ngrace = \"1h\"\n");
    let client = scene.session().await;
    scene.start().await;
    let load = scene.load(2);
    scene.progress().await;
    let locker = lock_history(&scene).await;
    wait_for_blocked_writer(&client).await;
    scene.daemon().sigterm();
    scene
        .daemon()
        .wait_log(BOUND, |line| line.contains("stopping"))
        .await;
    scene.daemon().sigterm();
    let start = Instant::now();
    let (status, output) = scene.daemon().wait(Duration::from_secs(10)).await;
    let took = start.elapsed();
    assert_eq!(status.code(), Some(0), "{output}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_clean(&output, &["stopping at once"]);
    // The orphaned backend is still in front of the lock, with a batch that it may yet commit.
    scene.spawn();
    locker.batch_execute("COMMIT").await.unwrap();
    load.stop();
    scene.finish(HELD_ELSEWHERE).await;
}

#[tokio::test]
async fn a_history_locked_for_longer_than_wal_sender_timeout_does_not_end_the_stream() {
    let mut scene = Scene::one(|builder| builder.setting("wal_sender_timeout", "5s")).await;
    let client = scene.session().await;
    scene.start().await;
    let load = scene.load(3);
    scene.progress().await;
    let walsender =
        "SELECT active_pid::text FROM pg_replication_slots WHERE slot_name = 'waltrail'";
    let before = text(&client, walsender).await;
    let locker = lock_history(&scene).await;
    wait_for_blocked_writer(&client).await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(text(&client, walsender).await, before);
    locker.batch_execute("COMMIT").await.unwrap();
    scene.progress().await;
    load.stop();
    assert_eq!(text(&client, walsender).await, before);
    assert!(!scene.server.log_text().contains("terminating walsender"));
    scene.finish(LOCKED).await;
}

#[tokio::test]
async fn a_transaction_of_a_million_rows_takes_little_memory_and_appears_all_at_once() {
    let mut scene = Scene::two(|builder| builder, |builder| builder).await;
    let rows: i64 = if long() { 1_000_000 } else { 300_000 };
    let source = scene.session().await;
    // The oracle would be larger than the test; these rows are known anyway.
    source
        .batch_execute("DROP TRIGGER \"00_oracle_row\" ON employees")
        .await
        .unwrap();
    scene.start().await;
    source
        .batch_execute(&format!(
            "INSERT INTO employees (name, department, salary)
             SELECT 'x' || n, repeat('d', 40), n FROM generate_series(1, {rows}) n"
        ))
        .await
        .unwrap();
    let target = scene.target_session().await;
    // Rows that are written and not yet visible show up in the size of the table.
    let size = "SELECT pg_relation_size('employees_cdc') > 0";
    wait_for_value(&target, size, true, BOUND).await;
    let start = Instant::now();
    let mut looks = 0;
    loop {
        let count: i64 = value(&target, "SELECT count(*) FROM employees_cdc").await;
        looks += 1;
        if count == rows {
            break;
        }
        assert_eq!(count, 0, "part of the transaction is visible");
        assert!(start.elapsed() < 4 * BOUND, "it takes too long");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(looks > 1, "it was never seen in the middle");
    let status = std::fs::read_to_string(format!("/proc/{}/status", scene.daemon().pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    let peak_kb: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    println!("{rows} rows, peak memory {peak_kb} kB, looked {looks} times");
    assert!(peak_kb < 64 * 1024, "{peak_kb} kB");
    let wrong = format!(
        "SELECT count(*) FROM employees_cdc c FULL JOIN generate_series(1, {rows}) n ON c.id = n
         WHERE change_type IS DISTINCT FROM 'INSERT' OR salary IS DISTINCT FROM n
            OR name IS DISTINCT FROM 'CANARY_7f3ax' || n OR department IS DISTINCT FROM repeat('d', 40)
            OR cdc_id - n <> (SELECT min(cdc_id) - 1 FROM employees_cdc)"
    );
    wait_for_value(&target, &wrong, 0_i64, Duration::ZERO).await;
    scene.daemon().sigterm();
    let (status, output) = scene.daemon().wait(Duration::from_secs(11)).await;
    assert_eq!(status.code(), Some(0), "{output}");
    assert_clean(&output, &[]);
}

async fn disturb(rng: &mut Rng, network: &Proxy) {
    match rng.u8(..4) {
        0 => network.cut(),
        1 => {
            network.set(Mode::Stall);
            random_moment(rng, 700).await;
        }
        2 => {
            network.set(Mode::Stall);
            random_moment(rng, 400).await;
            network.cut();
        }
        // The server gets what is sent, a COMMIT among it, and its answer is lost.
        _ => {
            network.set(Mode::Deaf);
            random_moment(rng, 400).await;
            network.cut();
        }
    }
    network.set(Mode::Forward);
}

#[tokio::test]
async fn a_network_that_stalls_and_breaks_loses_nothing_and_doubles_nothing() {
    let mut rng = seeded();
    let mut scene = Scene::two(|builder| builder, |builder| builder).await;
    let (to_source, to_target) = scene.behind_proxies();
    scene.start().await;
    let load = scene.load(rng.u64(..));
    for _ in 0..faults() {
        scene.progress().await;
        random_moment(&mut rng, 300).await;
        let network = if rng.bool() { &to_source } else { &to_target };
        disturb(&mut rng, network).await;
    }
    scene.progress().await;
    println!("{:?}", load.stop());
    scene.finish(SERVER_GONE).await;
}

#[tokio::test]
async fn a_connection_that_was_half_open_is_made_again() {
    let options = |builder: Builder| builder.setting("wal_sender_timeout", "2s");
    let mut scene = Scene::two(options, |builder| builder).await;
    let (to_source, to_target) = scene.behind_proxies();
    scene.start().await;
    let load = scene.load(5);
    scene.progress().await;
    // The server gives up; its end of the connection does not reach the daemon.
    to_source.set(Mode::Stall);
    let source = scene.session().await;
    wait_for_value(&source, INACTIVE, true, BOUND).await;
    load.more(50).await;
    assert!(scene.daemon().is_running());
    to_source.cut();
    to_source.set(Mode::Forward);
    scene.progress().await;
    to_target.set(Mode::Stall);
    load.more(50).await;
    // The stream lives on: the target's silence is not the source's.
    let walsender = "SELECT active_pid::text FROM pg_replication_slots";
    let before = text(&source, walsender).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(text(&source, walsender).await, before);
    to_target.cut();
    to_target.set(Mode::Forward);
    scene.progress().await;
    load.stop();
    scene.finish(SERVER_GONE).await;
}

#[tokio::test]
async fn an_idle_daemon_does_not_hold_up_the_shutdown_of_its_source() {
    for separate in [true, false] {
        let mut scene = match separate {
            true => Scene::two(|builder| builder, |builder| builder).await,
            false => Scene::one(|builder| builder).await,
        };
        scene.start().await;
        let source = scene.session().await;
        for round in 0..3 {
            let source = match round {
                0 => &source,
                _ => &scene.session().await,
            };
            source
                .batch_execute("INSERT INTO employees (name) VALUES ('a'); CREATE TABLE IF NOT EXISTS other (n int)")
                .await
                .unwrap();
            scene.reconnect().await;
            scene.check().await;
            // WAL that is not for us: it has to be confirmed too before the walsender goes.
            source
                .batch_execute("INSERT INTO other SELECT generate_series(1, 100)")
                .await
                .unwrap();
            let start = Instant::now();
            scene.server.stop(StopMode::Fast).unwrap();
            let took = start.elapsed();
            println!("stopped after {took:?}");
            assert!(took < Duration::from_secs(5), "{took:?}");
            // Nothing was confirmed that the target does not know of.
            let stopped = scene
                .daemon()
                .output()
                .matches("the session failed")
                .count();
            assert!(stopped > round || scene.daemon().is_running());
            if separate {
                scene.daemon().kill9();
                assert_clean(&scene.daemon().output(), SERVER_GONE);
                let reached = lsn(&scene.target_session().await, REACHED).await;
                scene.server.start_again().unwrap();
                let confirmed = lsn(&scene.session().await, CONFIRMED).await;
                println!("confirmed {confirmed}, the target knows {reached}");
                assert!(confirmed <= reached, "{confirmed} > {reached}");
                scene.start().await;
            } else {
                scene.server.start_again().unwrap();
                let daemon = &*scene.daemon();
                wait_until("it streams again", BOUND, async || {
                    (daemon.output().matches("streaming").count() > round + 1).then_some(())
                })
                .await;
            }
        }
        scene.finish(SERVER_GONE).await;
    }
}

/// Crashes the target. Fails when more was confirmed than it has afterwards; returns the end of its history then.
async fn crash_the_target(scene: &mut Scene, source: &Client) -> waltrail::lsn::Lsn {
    let target = scene.target_server.as_mut().unwrap();
    target.stop(StopMode::Immediate).unwrap();
    // A daemon that has something to write notices.
    let insert = "INSERT INTO employees (name) VALUES ('after')";
    source.batch_execute(insert).await.unwrap();
    // Whatever it was going to confirm, it has now.
    wait_for_value(source, INACTIVE, true, BOUND).await;
    let confirmed = lsn(source, CONFIRMED).await;
    scene.daemon().kill9();
    assert_clean(&scene.daemon().output(), SERVER_GONE);
    scene.target_server.as_mut().unwrap().start_again().unwrap();
    let target = scene.target_session().await;
    let (end, reached) = (lsn(&target, END).await, lsn(&target, REACHED).await);
    assert!(
        confirmed <= reached,
        "confirmed {confirmed}, durable {reached}"
    );
    end
}

#[tokio::test]
async fn nothing_is_confirmed_to_the_source_before_it_is_durable_in_the_target() {
    let mut rng = seeded();
    let mut scene = Scene::two(|builder| builder, lazy).await;
    let source = scene.session().await;
    // A change that nothing follows: its WAL is in the last page, which the server does not write by itself.
    for _ in 0..3 {
        scene.start().await;
        let insert = "INSERT INTO employees (name) VALUES ('alone')";
        source.batch_execute(insert).await.unwrap();
        scene.check().await;
        let all = lsn(&scene.target_session().await, END).await;
        let confirmed = format!("SELECT ({CONFIRMED})::pg_lsn >= '{all}'");
        wait_for_value(&source, &confirmed, true, BOUND).await;
        crash_the_target(&mut scene, &source).await;
        scene.reconnect().await;
    }
    let mut lost = 0;
    let rounds = stops() * 2;
    scene.start().await;
    let load = scene.load(rng.u64(..));
    for _ in 0..rounds {
        streaming(scene.daemon()).await;
        scene.progress().await;
        // The confirmation is sent once a second.
        random_moment(&mut rng, 2_500).await;
        let visible = lsn(&scene.target_session().await, END).await;
        let end = crash_the_target(&mut scene, &source).await;
        lost += usize::from(end < visible);
        scene.spawn();
    }
    println!(
        "{lost} of {rounds} crashes lost rows that had been visible; {:?}",
        load.stop()
    );
    assert!(lost > 0, "no crash lost anything: nothing was shown");
    scene.finish(SERVER_GONE).await;
}
