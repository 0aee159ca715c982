//! What grows with time? One daemon under load, whose sessions end now and then, and at the same time an idle one, each with
//! its own server. Both are watched: memory, descriptors, sessions and what they keep, the control schema.
//!
//! `make soak` takes an hour (`SOAK`, in minutes). Every disturbance happens once before the first measurement, and the last
//! ones are over at half time, so that the second half is one session. Without `SOAK` it takes half a minute: enough for a
//! descriptor or a session that one disturbance leaves behind.

mod measure;

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::daemon::Daemon;
use crate::support::load::{Load, Plan};
use crate::support::scene::{Scene, assert_clean};
use crate::support::{BOUND, EMPLOYEES, each, value, wait_for_value, wait_until};
use measure::Watched;

/// In seconds, without `SOAK`.
const SHORT: f64 = 30.0;
/// After the first ones, before half time.
const DISTURBANCES: u32 = 12;
/// Comparisons with what triggers saw.
const SLICES: u32 = 20;
const SLICE_MIN: Duration = Duration::from_secs(15);
const ADDED_ROWS: i64 = 2000;

const DDL: &str = "
    CREATE TABLE notes (id serial PRIMARY KEY, body text);
    CREATE VIEW slice AS SELECT * FROM employees_cdc;";
/// Rows in which the table and its history, folded, are unlike: there are too many for [`Scene::check_fold`].
const UNLIKE: &str = "
    WITH last AS (SELECT DISTINCT ON (id) * FROM employees_cdc ORDER BY id, cdc_id DESC),
        folded AS (SELECT id, name, department, salary FROM last WHERE change_type <> 'DELETE')
    SELECT count(*) FROM (
        (TABLE folded EXCEPT TABLE employees) UNION ALL (TABLE employees EXCEPT TABLE folded)) unlike";

/// A scene at work, and what was done to it.
struct Work {
    scene: Scene,
    load: Option<Load>,
    seed: u64,
    disturbances: u32,
    notes: i64,
    tables: i64,
    changes: usize,
}

impl Work {
    async fn new() -> Self {
        let keyed = [
            "public.employees=public.employees_cdc(id)",
            "public.notes(id)",
        ];
        // Comparisons must not spill, so that a spill is a session's of the daemon.
        let server = |builder: throwaway::Builder| builder.setting("work_mem", "256MB");
        let mut scene = Scene::existing(server, &format!("{EMPLOYEES} {DDL}"), &keyed, "").await;
        scene.config = scene.config.replace("level = \"debug\"\n", "");
        scene.start().await;
        scene.joined().await;
        let mut work = Self {
            scene,
            load: None,
            seed: 0,
            disturbances: 0,
            notes: 0,
            tables: 2,
            changes: 0,
        };
        work.resume();
        work
    }

    /// Some thirty transactions and more than a hundred changes a second.
    fn resume(&mut self) {
        self.seed += 1;
        let plan = Plan::new(self.scene.server.dsn_tcp("postgres"), self.seed);
        self.load = Some(plan.pause(Duration::from_millis(100)).start());
    }

    /// Compares what was recorded since the last time with what triggers saw, while the clients rest.
    async fn check_slice(&mut self) {
        if let Some(load) = self.load.take() {
            load.stop();
        }
        let (scene, source) = (&self.scene, &self.scene.source);
        let summary = scene
            .oracle
            .assert_becomes(source, "public.employees", &scene.target, "slice", BOUND)
            .await;
        self.changes += summary.rows;
        scene.oracle.forget(source).await;
        let last: i64 = value(
            source,
            "SELECT coalesce(max(cdc_id), 0)::bigint FROM employees_cdc",
        )
        .await;
        let view =
            format!("CREATE VIEW slice AS SELECT * FROM employees_cdc WHERE cdc_id > {last}");
        each(source, &["DROP VIEW slice", &view]).await;
        self.resume();
    }

    /// A new column, a cut of every connection, and a table that is added, in turn.
    async fn disturb(&mut self) {
        let number = self.disturbances;
        self.disturbances += 1;
        match number % 3 {
            0 => self.change_columns(number).await,
            1 => self.cut().await,
            _ => self.add_table(number).await,
        }
    }

    async fn change_columns(&mut self, number: u32) {
        let add = format!("ALTER TABLE notes ADD c{number} integer");
        let insert = format!("INSERT INTO notes (body, c{number}) VALUES ('canary', {number})");
        let noted = format!(
            "SELECT count(*) FROM notes_cdc h WHERE to_jsonb(h)->>'c{number}' = '{number}'"
        );
        each(&self.scene.source, &[&add, &insert]).await;
        wait_for_value(&self.scene.target, &noted, 1_i64, BOUND).await;
        self.notes += 1;
        let all = "SELECT count(*) FROM notes_cdc";
        wait_for_value(&self.scene.target, all, self.notes, BOUND).await;
    }

    /// As a network that breaks.
    async fn cut(&mut self) {
        let streams = |daemon: &Daemon| daemon.output().matches("\"streaming\"").count();
        let before = streams(self.scene.daemon());
        let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'waltrail'";
        assert!(value::<i64>(&self.scene.source, cut).await > 2);
        let daemon: &Daemon = self.scene.daemon();
        wait_until("it streams again", BOUND, async || {
            (streams(daemon) > before).then_some(())
        })
        .await;
    }

    async fn add_table(&mut self, number: u32) {
        let table = format!("added_{number}");
        let make = format!("CREATE TABLE {table} (id integer PRIMARY KEY, v text)");
        let fill = format!(
            "INSERT INTO {table} SELECT n, 'canary' FROM generate_series(1, {ADDED_ROWS}) n"
        );
        each(&self.scene.source, &[&make, &fill]).await;
        let more = format!("[[table]]\nsource = 'public.{table}'\n");
        self.scene.config.push_str(&more);
        let file = self.scene.daemon().config_file();
        std::fs::write(file, &self.scene.config).unwrap();
        self.scene.daemon().signal(Signal::SIGHUP);
        self.tables += 1;
        let done = "SELECT count(*) FROM waltrail.snapshot WHERE state = 'done'";
        wait_for_value(&self.scene.target, done, self.tables, BOUND).await;
        each(
            &self.scene.source,
            &[&format!("INSERT INTO {table} VALUES (0, 'canary')")],
        )
        .await;
        let all = format!("SELECT count(*) FROM {table}_cdc");
        wait_for_value(&self.scene.target, &all, ADDED_ROWS + 1, BOUND).await;
    }

    /// Every change was compared; at the end each history, folded, is its table.
    async fn end(mut self) {
        self.check_slice().await;
        self.load.take().unwrap().stop();
        self.check_slice().await;
        self.load.take().unwrap().stop();
        let known = [
            "the session failed and is started again",
            "waiting for a table lock",
        ];
        assert_clean(&self.scene.stop_complaining().await, &known);
        wait_for_value(&self.scene.target, UNLIKE, 0_i64, Duration::ZERO).await;
        self.scene.check_fold("public.notes", &["id"]).await;
    }
}

/// For how long.
fn length() -> Duration {
    let minutes = std::env::var("SOAK").ok();
    let minutes = minutes.map(|text| text.parse::<f64>().expect("a number of minutes"));
    Duration::from_secs_f64(minutes.map_or(SHORT, |minutes| minutes * 60.0))
}

/// A daemon that nothing happens to, after one change.
async fn idle() -> Scene {
    let scene = Scene::new(EMPLOYEES, &["public.employees"]).await;
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('x')"],
    )
    .await;
    scene.check().await;
    scene
}

#[tokio::test]
async fn nothing_grows_with_time() {
    let length = length();
    let mut work = Work::new().await;
    let mut idle = idle().await;
    let pid = work.scene.daemon().pid();
    let mut loaded = Watched::new("under load", true, pid, &work.scene.server).await;
    let mut quiet = Watched::new("idle", false, idle.daemon().pid(), &idle.server).await;
    let began = Instant::now();
    for _ in 0..3 {
        work.disturb().await;
    }
    let warm = began + length / 30;
    while Instant::now() < warm {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    work.check_slice().await;
    loaded.starts(&work.scene.server).await;
    quiet.starts(&idle.server).await;
    watch(length, &mut work, &mut loaded, &idle, &mut quiet).await;
    let (table, mut failed) = loaded.end(&work.scene.server).await;
    let (second, more) = quiet.end(&idle.server).await;
    failed.extend(more);
    println!("{table}{second}");
    work.end().await;
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    idle.end().await;
}

/// Until the time is over: samples, disturbances, comparisons, and a line each minute.
async fn watch(
    length: Duration,
    work: &mut Work,
    loaded: &mut Watched,
    idle: &Scene,
    quiet: &mut Watched,
) {
    let began = Instant::now();
    let step = (length / 60).min(Duration::from_secs(5));
    let slice = (length / SLICES).max(SLICE_MIN);
    let disturbance = length / 2 / (DISTURBANCES + 1);
    let (mut lines, mut slices, mut disturbed, mut is_second_half) = (0, 1, 1, false);
    while began.elapsed() < length {
        loaded.sample().await;
        quiet.sample().await;
        let passed = began.elapsed();
        if passed >= Duration::from_secs(60) * (lines + 1) {
            lines += 1;
            println!(
                "minute {lines}: {}; {}; {} changes compared",
                loaded.line(),
                quiet.line(),
                work.changes
            );
        }
        if disturbed <= DISTURBANCES && passed >= disturbance * disturbed {
            disturbed += 1;
            work.disturb().await;
        }
        if passed >= slice * slices {
            slices += 1;
            work.check_slice().await;
        }
        if !is_second_half && passed >= length / 2 {
            is_second_half = true;
            loaded.is_at_half_time(&work.scene.server).await;
            quiet.is_at_half_time(&idle.server).await;
        }
        tokio::time::sleep(step).await;
    }
}
