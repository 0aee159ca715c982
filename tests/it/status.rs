//! Does `waltrail status` say what is the case: the verdict, its reasons, the exit code, and never a wait that does not end?

mod observer;
mod screen;
mod servers;

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_postgres::Client;

use crate::support::daemon::Daemon;
use crate::support::scene::{LOCKED, SERVER_GONE, Scene, assert_clean};
use crate::support::{
    BOUND, EMPLOYEES, each, server, server_with, value, wait_for_value, wait_until,
};

const TABLES: [&str; 1] = ["public.employees"];
const INSERT: &str = "INSERT INTO employees (name) VALUES ('a')";
/// No answer of a server is waited for for longer than ten seconds, and a machine is busy.
const ANSWERS: Duration = Duration::from_secs(25);

/// What `waltrail status --json` says, and its exit code.
async fn ask(config: &str) -> (i32, Value) {
    ask_with(config, &[]).await
}

async fn ask_with(config: &str, args: &[&str]) -> (i32, Value) {
    let start = Instant::now();
    let args = [&["status", "--json"], args].concat();
    let mut status = Daemon::spawn_with(config, &args, &[]);
    let (ended, output) = status.wait(BOUND).await;
    assert!(start.elapsed() < ANSWERS, "{:?}: {output}", start.elapsed());
    let code = ended.code().unwrap_or(-1);
    let json: Value =
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"));
    let level = match code {
        0 => "good",
        1 => "warning",
        _ => "broken",
    };
    assert_eq!(json["verdict"]["level"], level, "{code}: {json}");
    (code, json)
}

/// The codes of its reasons.
fn codes(told: &Value) -> Vec<&str> {
    let reasons = told["verdict"]["reasons"].as_array().unwrap();
    let code = |reason: &Value| {
        assert!(!reason["remedy"].as_str().unwrap().is_empty(), "{told}");
    };
    reasons.iter().for_each(code);
    reasons
        .iter()
        .map(|reason| reason["code"].as_str().unwrap())
        .collect()
}

fn text<'a>(told: &'a Value, code: &str) -> &'a str {
    let reasons = told["verdict"]["reasons"].as_array().unwrap();
    let reason = reasons.iter().find(|reason| reason["code"] == code);
    reason.unwrap_or_else(|| panic!("no {code} in {told}"))["text"]
        .as_str()
        .unwrap()
}

async fn holds(config: &str, state: &str, wanted: &[&str]) -> Value {
    let (_, told) = ask(config).await;
    assert_eq!(
        (told["verdict"]["state"].as_str(), codes(&told)),
        (Some(state), wanted.to_vec()),
        "{told}"
    );
    told
}

#[tokio::test]
async fn an_idle_system_is_good_and_its_lag_stays_0_whatever_others_write() {
    let scene = Scene::new(
        &format!("{EMPLOYEES} CREATE TABLE noise (filler text);"),
        &TABLES,
    )
    .await;
    each(&scene.source, &[INSERT]).await;
    scene.check().await;
    let writer = "SELECT l.pid FROM pg_locks l WHERE l.locktype = 'advisory' AND l.classid = 2002873460::oid";
    let pid: i32 = value(&scene.target, writer).await;
    let mut rounds = 0;
    let start = Instant::now();
    // By then a commit that lags would be seen to grow older.
    while start.elapsed() < Duration::from_secs(8) {
        let noise = "INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 200)";
        each(&scene.source, &[noise]).await;
        // What is on its way is not lag that stays.
        let told = wait_until("nothing lags", Duration::from_secs(8), async || {
            let (code, told) = ask(&scene.config).await;
            (code == 0 && told["lag_seconds"] == 0.0).then_some(told)
        })
        .await;
        assert_eq!(told["verdict"]["state"], "streaming", "{told}");
        assert_eq!(told["lag_bytes"], 0, "{told}");
        assert_eq!(told["daemon"]["pid"], pid, "{told}");
        assert_eq!(told["servers"]["source_role"], "primary", "{told}");
        rounds += 1;
    }
    assert!(rounds > 3, "{rounds}");
    // The daemon counts what it writes, and leaves that for this command.
    let told = wait_until("it knows the last minute", BOUND, async || {
        let (_, told) = ask(&scene.config).await;
        told["rate"]["rows_per_second"].is_number().then_some(told)
    })
    .await;
    assert!(
        told["rate"]["wal_bytes_per_second"].as_f64() > Some(0.0),
        "{told}"
    );
    scene.end().await;
}

#[tokio::test]
async fn before_the_first_start_it_says_that_nothing_is_set_up() {
    let (cluster, client) = server().await;
    each(&client, &[EMPLOYEES]).await;
    let config = crate::support::scene::config(&cluster.dsn_socket("postgres"), None, &TABLES, "");
    let told = holds(&config, "not set up", &["slot-missing", "not-running"]).await;
    assert_eq!(told["tables"][0]["source"], "public.employees");
    assert_eq!(told["tables"][0]["rows"], 0);
    // With a pattern, what it would mean.
    let pattern = config.replace("public.employees", "public.*");
    let told = holds(&pattern, "not set up", &["slot-missing", "not-running"]).await;
    assert_eq!(told["tables"][0]["source"], "public.employees", "{told}");
}

#[tokio::test]
async fn a_daemon_that_ended_a_slot_and_a_publication_that_are_gone_are_said() {
    let mut scene = Scene::new(EMPLOYEES, &TABLES).await;
    each(&scene.source, &[INSERT]).await;
    scene.check().await;
    scene.stop().await;
    holds(&scene.config, "not running", &["not-running"]).await;
    each(
        &scene.source,
        &["ALTER PUBLICATION waltrail DROP TABLE employees"],
    )
    .await;
    let told = holds(
        &scene.config,
        "not running",
        &["publication-empty", "not-running"],
    )
    .await;
    assert!(
        text(&told, "publication-empty").contains("holds no table"),
        "{told}"
    );
    each(&scene.source, &["DROP PUBLICATION waltrail"]).await;
    let told = holds(
        &scene.config,
        "not running",
        &["publication-empty", "not-running"],
    )
    .await;
    assert!(
        text(&told, "publication-empty").contains("does not exist"),
        "{told}"
    );
    each(
        &scene.source,
        &["SELECT pg_drop_replication_slot('waltrail')"],
    )
    .await;
    let wanted = ["slot-missing", "publication-empty", "not-running"];
    let told = holds(&scene.config, "not running", &wanted).await;
    assert!(
        text(&told, "slot-missing").contains("the history has begun"),
        "{told}"
    );
}

#[tokio::test]
async fn lag_danger_and_loss_are_said_while_no_daemon_reads() {
    let settings = |builder: throwaway::Builder| {
        let settings = [
            ("max_slot_wal_keep_size", "64MB"),
            ("wal_keep_size", "0"),
            ("max_wal_size", "4GB"),
            ("checkpoint_timeout", "1h"),
            ("checkpoint_flush_after", "0"),
        ];
        settings
            .into_iter()
            .fold(builder, |builder, (name, value)| {
                builder.setting(name, value)
            })
    };
    let mut scene = Scene::with(
        settings,
        &format!("{EMPLOYEES} CREATE TABLE noise (filler text);"),
        &TABLES,
        "",
    )
    .await;
    each(&scene.source, &[INSERT]).await;
    scene.check().await;
    scene.stop().await;
    let noise = "INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 20000)";
    each(&scene.source, &[noise]).await;
    // Two minutes ago, by the source's clock.
    let ago = "UPDATE waltrail.checkpoint SET commit_timestamp = now() - interval '120 s'";
    // The daemon has noted a later moment at which everything was whole.
    let unknown = "UPDATE waltrail.watched SET whole_time = NULL";
    each(&scene.target, &[ago, unknown]).await;
    let told = holds(
        &scene.config,
        "not running",
        &["not-running", "slot-in-danger", "lagging"],
    )
    .await;
    let lag = told["lag_seconds"].as_f64().unwrap();
    assert!((119.0..180.0).contains(&lag), "{told}");
    let rate = told["rate"]["wal_bytes_per_second"].as_f64().unwrap();
    let left = told["rate"]["seconds_left"].as_f64().unwrap();
    let safe = told["source"]["safe_wal_size"].as_f64().unwrap();
    assert!(
        rate > 100_000.0 && (left - safe / rate).abs() < 1.0,
        "{told}"
    );
    assert!(
        text(&told, "slot-in-danger").contains("is lost in"),
        "{told}"
    );
    // More than the slot may keep.
    for _ in 0..4 {
        each(&scene.source, &[noise, "SELECT pg_switch_wal()"]).await;
    }
    let wal_status = "SELECT wal_status FROM pg_replication_slots";
    wait_for_value(&scene.source, wal_status, "unreserved".to_owned(), BOUND).await;
    let told = holds(
        &scene.config,
        "not running",
        &["not-running", "slot-in-danger", "lagging"],
    )
    .await;
    assert!(
        text(&told, "slot-in-danger").contains("next checkpoint"),
        "{told}"
    );
    each(&scene.source, &["CHECKPOINT"]).await;
    wait_for_value(&scene.source, wal_status, "lost".to_owned(), BOUND).await;
    let told = holds(
        &scene.config,
        "not running",
        &["slot-lost", "not-running", "lagging"],
    )
    .await;
    assert_eq!(told["rate"]["seconds_left"], Value::Null, "{told}");
}

/// The history is quiet for a while first: lag is the age of what waits, not of the last commit before.
#[tokio::test]
async fn a_locked_history_is_said_with_who_holds_it_and_lags_since_the_commit_that_waits() {
    let mut scene = Scene::new(EMPLOYEES, &TABLES).await;
    each(&scene.source, &[INSERT]).await;
    scene.check().await;
    let noted = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '/* waltrail waltrail {%'";
    wait_for_value(&scene.target, noted, 1_i64, BOUND).await;
    let quiet = Instant::now();
    while quiet.elapsed() < Duration::from_secs(20) {
        let (code, told) = ask(&scene.config).await;
        assert_eq!(code, 0, "{told}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let locker = scene.target_session().await;
    let pid: i32 = value(&locker, "SELECT pg_backend_pid()").await;
    each(
        &locker,
        &[
            "SET application_name = 'report'",
            "BEGIN",
            "LOCK TABLE employees_cdc",
        ],
    )
    .await;
    let since = Instant::now();
    each(&scene.source, &[INSERT]).await;
    let told = wait_until("the wait is said", BOUND, async || {
        let (code, told) = ask(&scene.config).await;
        (code == 1 && codes(&told) == ["waits"]).then_some(told)
    })
    .await;
    assert_eq!(told["verdict"]["state"], "waiting", "{told}");
    let says = format!(
        "lock on public.employees_cdc in the target, held by pid {pid} (report): LOCK TABLE employees_cdc"
    );
    assert!(text(&told, "waits").contains(&says), "{told}");
    assert_eq!(told["waits"]["held_by"][0]["pid"], pid, "{told}");
    // At most one look of the daemon more.
    let (lag, most) = (
        told["lag_seconds"].as_f64().unwrap(),
        since.elapsed().as_secs_f64() + 6.0,
    );
    assert!(lag >= 9.0 && lag <= most, "{lag}, {most}: {told}");
    assert!(told["lag_bytes"].as_i64() > Some(0), "{told}");
    // Its rows are estimated, and not counted where they are asked for.
    assert!(told["tables"][0]["rows"].is_number(), "{told}");
    let (_, counted) = ask_with(&scene.config, &["--exact"]).await;
    assert_eq!(counted["tables"][0]["rows"], Value::Null, "{counted}");
    assert!(
        counted["tables"][0]["rows_error"]
            .as_str()
            .unwrap()
            .contains("55P03"),
        "{counted}"
    );
    each(&locker, &["COMMIT"]).await;
    wait_until("it is good again", BOUND, async || {
        (ask_with(&scene.config, &[]).await.0 == 0).then_some(())
    })
    .await;
    assert_clean(&scene.stop_complaining().await, LOCKED);
}

#[tokio::test]
async fn a_gap_that_is_not_accepted_is_broken_until_it_is() {
    let mut scene = Scene::new(EMPLOYEES, &TABLES).await;
    each(&scene.source, &[INSERT]).await;
    scene.check().await;
    each(
        &scene.source,
        &["ALTER PUBLICATION waltrail DROP TABLE employees"],
    )
    .await;
    let (ended, output) = scene.daemon().wait(BOUND).await;
    assert_eq!(ended.code(), Some(65), "{output}");
    let wanted = ["gap-not-accepted", "publication-empty", "not-running"];
    let told = holds(&scene.config, "not running", &wanted).await;
    assert!(
        text(&told, "gap-not-accepted").contains("public.employees"),
        "{told}"
    );
    assert_eq!(
        told["tables"][0]["gap"]["accepted_at"],
        Value::Null,
        "{told}"
    );
    let mut accept = Daemon::spawn_with(&scene.config, &["accept-gap"], &[]);
    let (ended, output) = accept.wait(BOUND).await;
    assert_eq!(ended.code(), Some(0), "{output}");
    let (_, told) = ask(&scene.config).await;
    assert!(!codes(&told).contains(&"gap-not-accepted"), "{told}");
    assert!(
        told["tables"][0]["gap"]["accepted_at"].is_string(),
        "{told}"
    );
}

#[tokio::test]
async fn existing_rows_that_are_recorded_are_a_state_and_no_complaint() {
    let tables = ["public.employees(id)"];
    let ddl = format!(
        "{EMPLOYEES} INSERT INTO employees (name) SELECT 'n' FROM generate_series(1, 100);"
    );
    let mut scene = Scene::existing(|builder| builder, &ddl, &tables, "").await;
    scene.set_up().await;
    let told = holds(&scene.config, "not running", &["not-running"]).await;
    assert_eq!(told["tables"][0]["snapshot"]["state"], "waiting", "{told}");
    let locker = scene.target_session().await;
    each(
        &locker,
        &["BEGIN", "LOCK TABLE employees_cdc IN SHARE MODE"],
    )
    .await;
    scene.spawn();
    let told = wait_until("it is being recorded", BOUND, async || {
        let (code, told) = ask(&scene.config).await;
        let snapshot = &told["tables"][0]["snapshot"];
        (code == 0 && snapshot["state"] == "copying").then_some(told)
    })
    .await;
    assert_eq!(
        told["verdict"]["state"], "recording existing rows",
        "{told}"
    );
    assert_eq!(told["tables"][0]["snapshot"]["state"], "copying", "{told}");
    each(&locker, &["COMMIT"]).await;
    scene.joined().await;
    wait_until("it streams", BOUND, async || {
        let (_, told) = ask(&scene.config).await;
        (told["verdict"]["state"] == "streaming").then_some(())
    })
    .await;
    assert_clean(&scene.stop_complaining().await, LOCKED);
}

#[tokio::test]
async fn what_is_open_on_the_source_and_was_spilled_is_shown() {
    let settings = |builder: throwaway::Builder| {
        builder
            .setting("max_prepared_transactions", "5")
            .setting("logical_decoding_work_mem", "64kB")
    };
    let scene = Scene::with(settings, EMPLOYEES, &TABLES, "").await;
    let open = scene.session().await;
    each(&open, &["BEGIN", "CREATE TABLE open ()"]).await;
    let pid: i32 = value(&open, "SELECT pg_backend_pid()").await;
    let told = holds(&scene.config, "streaming", &[]).await;
    assert_eq!(told["oldest_transaction"]["pid"], pid, "{told}");
    assert!(
        told["oldest_transaction"]["seconds"].as_f64() >= Some(0.0),
        "{told}"
    );
    each(&open, &["PREPARE TRANSACTION 'left behind'"]).await;
    let told = holds(&scene.config, "streaming", &[]).await;
    assert_eq!(told["oldest_transaction"]["pid"], Value::Null, "{told}");
    assert_eq!(
        told["oldest_transaction"]["application"], "left behind",
        "{told}"
    );
    assert!(told["spill"]["total_txns"].is_number(), "{told}");
    each(&open, &["ROLLBACK PREPARED 'left behind'"]).await;
    let told = wait_until("nothing is open", BOUND, async || {
        let (_, told) = ask(&scene.config).await;
        told["oldest_transaction"].is_null().then_some(told)
    })
    .await;
    assert!(
        told["clock_offset_seconds"].as_f64().unwrap().abs() < 1.0,
        "{told}"
    );
    scene.end().await;
}

/// A process that is stopped keeps its session, and the server its socket.
#[tokio::test]
async fn a_daemon_that_hangs_is_not_taken_for_one_that_runs() {
    let mut scene = Scene::new(EMPLOYEES, &TABLES).await;
    holds(&scene.config, "streaming", &[]).await;
    scene.daemon().signal(nix::sys::signal::Signal::SIGSTOP);
    let told = wait_until("it is said", BOUND, async || {
        let (code, told) = ask(&scene.config).await;
        (code == 2).then_some(told)
    })
    .await;
    assert_eq!(codes(&told), ["not-running"], "{told}");
    assert!(
        text(&told, "not-running").contains("has shown nothing"),
        "{told}"
    );
    scene.daemon().signal(nix::sys::signal::Signal::SIGCONT);
    wait_until("it goes on", BOUND, async || {
        (ask_with(&scene.config, &[]).await.0 == 0).then_some(())
    })
    .await;
    assert_clean(&scene.stop_complaining().await, SERVER_GONE);
}

/// A role that may see nothing of others.
async fn as_role(scene: &Scene, client: &Client) -> String {
    each(
        client,
        &[
            "CREATE ROLE plain LOGIN",
            "GRANT USAGE ON SCHEMA waltrail TO plain",
            "GRANT SELECT ON ALL TABLES IN SCHEMA waltrail TO plain",
        ],
    )
    .await;
    scene.config.replace("user=postgres", "user=plain")
}

#[tokio::test]
async fn a_role_that_may_not_see_other_sessions_is_told_what_it_may_see() {
    let mut scene = Scene::new(EMPLOYEES, &TABLES).await;
    each(&scene.source, &[INSERT]).await;
    scene.check().await;
    let config = as_role(&scene, &scene.source).await;
    assert_ne!(config, scene.config);
    let open = scene.session().await;
    each(&open, &["BEGIN", "CREATE TABLE open ()"]).await;
    let (_, told) = ask(&config).await;
    assert!(told["source"]["active"].as_bool().unwrap(), "{told}");
    assert!(told["daemon"]["pid"].is_number(), "{told}");
    assert_eq!(told["oldest_transaction"]["seconds"], Value::Null, "{told}");
    assert!(told["oldest_transaction"]["pid"].is_number(), "{told}");
    each(&open, &["ROLLBACK"]).await;
    scene.stop().await;
}

#[tokio::test]
async fn three_hundred_tables_cost_as_many_statements_as_one() {
    let (cluster, client) = server_with(|builder| {
        builder
            .setting("log_statement", "all")
            .setting("log_line_prefix", "%a|")
    })
    .await;
    let names: Vec<String> = (1..=300).map(|n| format!("public.t{n}")).collect();
    for some in names.chunks(100) {
        let made = |name: &String| format!("CREATE TABLE {name} (id int PRIMARY KEY); ");
        each(&client, &[&some.iter().map(made).collect::<String>()]).await;
    }
    let statements = || {
        let log = cluster.log_text();
        let is_one = |line: &&str| line.contains("waltrail status|LOG:  execute");
        log.lines().filter(is_one).count()
    };
    let mut counts = Vec::new();
    for tables in [1, 300] {
        let entries: Vec<&str> = names.iter().take(tables).map(String::as_str).collect();
        let config =
            crate::support::scene::config(&cluster.dsn_socket("postgres"), None, &entries, "");
        let mut setup = Daemon::spawn_with(&config, &["setup"], &[]);
        let (ended, output) = setup.wait(BOUND).await;
        assert_eq!(ended.code(), Some(0), "{output}");
        let before = statements();
        let start = Instant::now();
        let (_, told) = ask(&config).await;
        println!("{tables} tables: {:?}", start.elapsed());
        assert_eq!(told["tables"].as_array().unwrap().len(), tables);
        counts.push(statements() - before);
    }
    assert!(
        counts[0] > 0 && counts[0] == counts[1] && counts[1] <= 6,
        "{counts:?}"
    );
}
