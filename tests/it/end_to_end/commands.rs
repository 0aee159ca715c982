//! Do the commands and the signals do what the contract says, and no more?

use nix::sys::signal::Signal;
use throwaway::Cluster;
use tokio_postgres::Client;

use crate::support::daemon::{Daemon, ending};
use crate::support::oracle::Oracle;
use crate::support::scene::{Scene, complaints, config, streaming};
use crate::support::{BOUND, EMPLOYEES, connect, each, server, texts, value, wait_for_value};

const TABLES: [&str; 1] = ["public.employees"];

/// Runs a command to its end: exit code and all that it wrote.
async fn run(config: &str, args: &[&str]) -> (i32, String) {
    let mut process = Daemon::spawn_with(config, args, &[]);
    let (status, output) = process.wait(BOUND).await;
    (status.code().unwrap_or(-1), output)
}

/// Everything that a set-up makes, with what tells whether it was touched again.
async fn objects(client: &Client) -> Vec<Option<String>> {
    texts(
        client,
        "SELECT 'table ' || oid::regclass || ' ' || xmin || ' ' || relfilenode FROM pg_class
          WHERE relnamespace IN ('public'::regnamespace, coalesce(to_regnamespace('waltrail'), 0)) AND relkind = 'r'
         UNION ALL SELECT 'function ' || oid::regprocedure || ' ' || xmin FROM pg_proc
          WHERE pronamespace = to_regnamespace('waltrail')
         UNION ALL SELECT 'publication ' || pubname || ' ' || xmin || ' ' ||
              (SELECT string_agg(prrelid::regclass || ' ' || r.xmin, ',') FROM pg_publication_rel r
                WHERE r.prpubid = p.oid) FROM pg_publication p
         UNION ALL SELECT 'slot ' || slot_name || ' ' || confirmed_flush_lsn FROM pg_replication_slots
         ORDER BY 1",
    )
    .await
}

async fn checkpoints(client: &Client) -> Vec<Option<String>> {
    texts(
        client,
        "SELECT concat_ws(' ', slot, system_identifier, timeline, end_lsn, reported_lsn) FROM waltrail.checkpoint",
    )
    .await
}

async fn two_tables() -> (Cluster, Client, String) {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            EMPLOYEES,
            "CREATE SCHEMA shop; CREATE TABLE shop.\"Order\" (id integer PRIMARY KEY, note text)",
        ],
    )
    .await;
    let config = config(
        &cluster.dsn_socket("postgres"),
        None,
        &[
            "public.employees",
            "shop.\"Order\"=\"History\".\"of orders\"",
        ],
        "",
    );
    (cluster, client, config)
}

#[tokio::test]
async fn setup_makes_everything_once() {
    let (_cluster, client, config) = two_tables().await;
    let (code, output) = run(&config, &["setup"]).await;
    assert_eq!(code, 0, "{output}");
    let made = (objects(&client).await, checkpoints(&client).await);
    for wanted in [
        "publication waltrail",
        "slot waltrail",
        "table waltrail.checkpoint",
    ] {
        assert!(
            made.0.iter().flatten().any(|line| line.starts_with(wanted)),
            "{wanted} is not among {:?}",
            made.0
        );
    }
    // What changes from now on is recorded, though nobody runs yet.
    each(
        &client,
        &["INSERT INTO shop.\"Order\" VALUES (1, 'canary early')"],
    )
    .await;
    for _ in 0..2 {
        let (code, output) = run(&config, &["setup"]).await;
        assert_eq!(code, 0, "{output}");
        assert_eq!(complaints(&output), ["nothing was missing"]);
        assert_eq!((objects(&client).await, checkpoints(&client).await), made);
    }
    let mut daemon = Daemon::spawn(&config);
    wait_for_value(
        &client,
        "SELECT count(*) FROM \"History\".\"of orders\" WHERE note = 'canary early'",
        1_i64,
        BOUND,
    )
    .await;
    daemon.sigterm();
    daemon.wait(BOUND).await;
}

#[tokio::test]
async fn a_dry_run_changes_nothing_and_its_sql_is_enough() {
    let (_cluster, client, config) = two_tables().await;
    let before = objects(&client).await;
    let (code, sql) = run(&config, &["setup", "--dry-run"]).await;
    assert_eq!(code, 0, "{sql}");
    assert_eq!(objects(&client).await, before);
    let schema: bool = value(&client, "SELECT to_regnamespace('waltrail') IS NULL").await;
    assert!(schema);
    // By hand: as an operator pastes it into psql, where every statement needs its end.
    let mut blocks: Vec<String> = vec![String::new()];
    for line in sql.lines() {
        let begins = ["-- source", "-- target"]
            .iter()
            .any(|side| line.starts_with(side));
        if begins {
            blocks.push(String::new());
        }
        blocks.last_mut().unwrap().push_str(&format!("{line}\n"));
    }
    for block in blocks.iter().filter(|block| !block.trim().is_empty()) {
        assert!(block.trim_end().ends_with(';'), "{block}");
        each(&client, &[block]).await;
    }
    let (code, again) = run(&config, &["setup", "--dry-run"]).await;
    assert_eq!((code, again.trim()), (0, "-- nothing is missing"));
    let made = objects(&client).await;
    let (code, output) = run(&config, &["setup"]).await;
    assert_eq!(code, 0, "{output}");
    assert_eq!(objects(&client).await, made, "nothing was left to make");
    let manual = format!("setup = \"manual\"\n{config}");
    let mut daemon = Daemon::spawn(&manual);
    streaming(&mut daemon).await;
    each(
        &client,
        &[
            "INSERT INTO employees (name) VALUES ('x')",
            "INSERT INTO shop.\"Order\" VALUES (1, 'canary y')",
        ],
    )
    .await;
    wait_for_value(&client, "SELECT count(*) FROM employees_cdc", 1_i64, BOUND).await;
    wait_for_value(
        &client,
        "SELECT count(*) FROM \"History\".\"of orders\"",
        1_i64,
        BOUND,
    )
    .await;
    daemon.sigterm();
    let (status, output) = daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(0), "{output}");
    assert_eq!(complaints(&output), Vec::<&str>::new());
}

#[tokio::test]
async fn manual_set_up_makes_nothing_and_says_what_is_missing() {
    let (_cluster, client, config) = two_tables().await;
    let before = objects(&client).await;
    let manual = format!("setup = \"manual\"\n{config}");
    let (code, output) = run(&manual, &["run"]).await;
    assert_eq!(code, 78, "{output}");
    assert!(output.contains("waltrail setup"), "{output}");
    assert_eq!(objects(&client).await, before);
}

#[tokio::test]
async fn an_older_program_refuses_a_newer_control_schema() {
    let (_cluster, client, config) = two_tables().await;
    let (code, output) = run(&config, &["setup"]).await;
    assert_eq!(code, 0, "{output}");
    each(
        &client,
        &["INSERT INTO waltrail.schema_history
           SELECT 999, 'later', applied_on, checksum FROM waltrail.schema_history WHERE version = 1"],
    )
    .await;
    let before = (objects(&client).await, checkpoints(&client).await);
    let manual = format!("setup = \"manual\"\n{config}");
    let commands: [(&str, &[&str]); 4] = [
        (&config, &["run"]),
        (&manual, &["run"]),
        (&config, &["setup"]),
        (&config, &["setup", "--dry-run"]),
    ];
    for (config, command) in commands {
        let (code, output) = run(config, command).await;
        assert_eq!(code, 78, "{command:?}: {output}");
        let (error, remedy) = ending(&output);
        for part in ["version 999", "knows up to"] {
            assert!(error.contains(part), "{command:?}: {output}");
        }
        assert!(remedy.starts_with("install"), "{command:?}: {output}");
    }
    assert_eq!((objects(&client).await, checkpoints(&client).await), before);
    // It changes nothing in the control schema, and an operator needs it now.
    let (code, output) = run(&config, &["status"]).await;
    assert_eq!(code, 2, "{output}");
    assert!(output.contains("no daemon writes"), "{output}");
}

#[tokio::test]
async fn teardown_drops_what_pins_wal_and_keeps_history_and_checkpoint() {
    let mut scene = Scene::new(EMPLOYEES, &TABLES).await;
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('kept')"],
    )
    .await;
    scene.check().await;
    // Not while somebody streams, and not without a word.
    let (code, output) = run(&scene.config, &["teardown", "--yes"]).await;
    assert_ne!(code, 0, "{output}");
    assert!(output.contains("in use by pid"), "{output}");
    scene.stop().await;
    let (code, output) = run(&scene.config, &["teardown"]).await;
    assert_eq!(code, 64, "{output}");
    let before = checkpoints(&scene.target).await;
    for _ in 0..2 {
        let (code, output) = run(&scene.config, &["teardown", "--yes"]).await;
        assert_eq!(code, 0, "{output}");
        let left: i64 = value(
            &scene.source,
            "SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots)",
        )
        .await;
        assert_eq!(left, 0);
        assert_eq!(checkpoints(&scene.target).await, before);
        let rows: i64 = value(&scene.target, "SELECT count(*) FROM employees_cdc").await;
        assert_eq!(rows, 1);
    }
    // The history has a gap now, and the daemon does not pass over it.
    let (code, output) = scene.refused().await;
    assert_eq!(code, 65, "{output}");
}

#[tokio::test]
async fn status_tells_where_everything_stands() {
    let (_cluster, client, config) = two_tables().await;
    let json = async || -> serde_json::Value {
        let (_, output) = run(&config, &["status", "--json", "--exact"]).await;
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"))
    };
    let before = json().await;
    assert!(
        before["source"].is_null() && before["checkpoint"].is_null(),
        "{before}"
    );
    assert!(before["tables"][1]["rows"].is_null(), "{before}");
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    each(
        &client,
        &["INSERT INTO employees (name) VALUES ('a'), ('b')"],
    )
    .await;
    wait_for_value(&client, "SELECT count(*) FROM employees_cdc", 2_i64, BOUND).await;
    let running = json().await;
    let walsender: i32 = value(&client, "SELECT active_pid FROM pg_replication_slots").await;
    assert_eq!(running["slot"], "waltrail");
    assert_eq!(running["source"]["active"], true);
    assert_eq!(running["source"]["active_pid"], walsender);
    assert_eq!(running["source"]["wal_status"], "reserved");
    assert_eq!(running["source"]["max_slot_wal_keep_size"], "-1");
    assert!(running["source"]["retained_bytes"].as_i64().unwrap() >= 0);
    assert_eq!(running["tables"][0]["source"], "public.employees");
    assert_eq!(running["tables"][0]["rows"], 2);
    assert_eq!(running["tables"][1]["history"], "\"History\".\"of orders\"");
    assert_eq!(running["tables"][1]["rows"], 0);
    assert_eq!(running["verdict"]["level"], "good", "{running}");
    let end: String = value(&client, "SELECT end_lsn::text FROM waltrail.checkpoint").await;
    assert_eq!(running["checkpoint"]["end_lsn"], end);
    daemon.sigterm();
    daemon.wait(BOUND).await;
    each(
        &client,
        &["INSERT INTO employees (name) SELECT 'n' FROM generate_series(1, 100)"],
    )
    .await;
    let behind = json().await;
    assert_eq!(behind["source"]["active"], false);
    assert!(behind["lag_bytes"].as_i64().unwrap() > 1_000, "{behind}");
    assert!(behind["lag_seconds"].as_f64().unwrap() > 0.0, "{behind}");
    let (code, text) = run(&config, &["status", "--exact"]).await;
    assert_eq!(code, 2, "{text}");
    for word in [
        "BROKEN  not running",
        "waltrail (not in use, reserved)",
        "no limit",
        "public.employees -> public.employees_cdc ",
        " 2 following",
        &end,
    ] {
        assert!(text.contains(word), "no {word} in {text}");
    }
}

#[tokio::test]
async fn status_estimates_rows_and_counts_them_only_when_asked() {
    let mut scene = Scene::new(EMPLOYEES, &TABLES).await;
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('a'), ('b')"],
    )
    .await;
    scene.check().await;
    scene.stop().await;
    each(
        &scene.target,
        &["UPDATE pg_class SET reltuples = 5000 WHERE oid = 'employees_cdc'::regclass"],
    )
    .await;
    let config = scene.config.clone();
    let json = async |args: &[&str]| -> serde_json::Value {
        let (_, output) = run(&config, &[&["status", "--json"], args].concat()).await;
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"))
    };
    let counted = json(&["--exact"]).await;
    assert_eq!(
        (&counted["exact"], &counted["tables"][0]["rows"]),
        (&true.into(), &2.into())
    );
    let (code, text) = run(&config, &["status"]).await;
    assert_eq!(code, 2, "{text}");
    assert!(text.contains(" about 5000 following"), "{text}");
    // A table that is locked can be estimated.
    let mut other = scene.target_session().await;
    let locked = other.transaction().await.unwrap();
    locked.batch_execute("LOCK employees_cdc").await.unwrap();
    let estimated = json(&[]).await;
    assert_eq!(
        (&estimated["exact"], &estimated["tables"][0]["rows"]),
        (&false.into(), &5000.into())
    );
}

#[tokio::test]
async fn status_estimates_the_rows_of_a_partitioned_history() {
    let (_cluster, client, config) = two_tables().await;
    each(
        &client,
        &[
            "DROP TABLE employees_cdc;
             CREATE TABLE employees_cdc (cdc_id bigint) PARTITION BY RANGE (cdc_id);
             CREATE TABLE first PARTITION OF employees_cdc FOR VALUES FROM (MINVALUE) TO (100);
             CREATE TABLE rest PARTITION OF employees_cdc DEFAULT;
             INSERT INTO employees_cdc SELECT generate_series(98, 107)",
            // The sum over the partitions is then in the statistics of the whole, too.
            "ANALYZE employees_cdc",
        ],
    )
    .await;
    let (code, output) = run(&config, &["status", "--json"]).await;
    assert_eq!(code, 2, "{output}");
    let status: serde_json::Value = serde_json::from_str(&output).unwrap();
    assert_eq!(status["tables"][0]["rows"], 10, "{output}");
}

#[tokio::test]
async fn a_hangup_adds_a_table_and_changes_the_log_level() {
    let (_cluster, client, both) = two_tables().await;
    let oracle = Oracle::install(&client, &["public.employees", "shop.\"Order\""]).await;
    let one = both.replace(
        "[[table]]\nsource = 'shop.\"Order\"'\nhistory = '\"History\".\"of orders\"'\n",
        "",
    );
    assert_ne!(one, both);
    let mut daemon = Daemon::spawn(&one);
    streaming(&mut daemon).await;
    each(&client, &["INSERT INTO employees (name) VALUES ('before')"]).await;
    std::fs::write(daemon.config_file(), format!("{both}level = \"debug\"\n")).unwrap();
    daemon.signal(Signal::SIGHUP);
    wait_for_value(
        &client,
        "SELECT count(*) FROM pg_publication_tables WHERE pubname = 'waltrail'",
        2_i64,
        BOUND,
    )
    .await;
    each(
        &client,
        &["BEGIN; INSERT INTO employees (name) VALUES ('both'); INSERT INTO shop.\"Order\" VALUES (1, 'canary both');
           UPDATE employees SET salary = 1; COMMIT"],
    )
    .await;
    for (table, history) in [
        ("public.employees", "public.employees_cdc"),
        ("shop.\"Order\"", "\"History\".\"of orders\""),
    ] {
        wait_for_value(
            &client,
            &format!("SELECT to_regclass('{history}') IS NOT NULL"),
            true,
            BOUND,
        )
        .await;
        oracle
            .assert_becomes(&client, table, &client, history, BOUND)
            .await;
    }
    // A file that is wrong changes nothing.
    std::fs::write(daemon.config_file(), both.replace("[[table]]", "[[tabel]]")).unwrap();
    daemon.signal(Signal::SIGHUP);
    let line = daemon
        .wait_log(BOUND, |line| line.contains("the old one stays"))
        .await;
    assert!(line.contains("tabel"), "{line}");
    each(&client, &["INSERT INTO employees (name) VALUES ('still')"]).await;
    oracle
        .assert_becomes(
            &client,
            "public.employees",
            &client,
            "public.employees_cdc",
            BOUND,
        )
        .await;
    // The level alone does not disturb the stream.
    let streams = |output: &str| output.matches("\"streaming\"").count();
    let before = streams(&daemon.output());
    std::fs::write(
        daemon.config_file(),
        both.replace("format = \"json\"", "format = \"json\"\nlevel = \"error\""),
    )
    .unwrap();
    daemon.signal(Signal::SIGHUP);
    wait_for_silence(&mut daemon).await;
    each(&client, &["INSERT INTO employees (name) VALUES ('silent')"]).await;
    oracle
        .assert_becomes(
            &client,
            "public.employees",
            &client,
            "public.employees_cdc",
            BOUND,
        )
        .await;
    assert_eq!(streams(&daemon.output()), before);
    daemon.sigterm();
    let (status, output) = daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(0), "{output}");
    assert!(!output.contains("\"stopped\""), "{output}");
}

/// Asks for status lines until none comes, as long as one may take.
async fn wait_for_silence(daemon: &mut Daemon) {
    for _ in 0..100 {
        let before = daemon.output().len();
        daemon.signal(Signal::SIGUSR1);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        if daemon.output().len() == before {
            return;
        }
    }
    panic!("it still logs:\n{}", daemon.output());
}

#[tokio::test]
async fn a_user_signal_logs_one_status_line() {
    let mut scene = Scene::new(EMPLOYEES, &TABLES).await;
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('a'), ('b')"],
    )
    .await;
    scene.check().await;
    scene.daemon().signal(Signal::SIGUSR1);
    let line = scene
        .daemon()
        .wait_log(BOUND, |line| line.contains("\"message\":\"status\""))
        .await;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["rows"], 2);
    assert_eq!(line["transactions"], 1);
    let end: String = value(
        &scene.target,
        "SELECT end_lsn::text FROM waltrail.checkpoint",
    )
    .await;
    assert_eq!(line["applied"], end);
    assert!(line["lag_seconds"].as_f64().unwrap() == 0.0, "{line}");
    scene.stop().await;
}

#[tokio::test]
async fn a_stop_under_way_keeps_everything_that_was_committed() {
    let mut scene = Scene::new(EMPLOYEES, &TABLES).await;
    let load = crate::support::load::Plan::new(scene.server.dsn_socket("postgres"), 7).start();
    for _ in 0..3 {
        wait_for_value(
            &connect(&scene.server.dsn_socket("postgres")).await,
            "SELECT count(*) > 50 FROM employees_cdc",
            true,
            BOUND,
        )
        .await;
        scene.stop().await;
        scene.start().await;
    }
    load.stop();
    scene.check().await;
    scene.end().await;
}
