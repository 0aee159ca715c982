//! Is it told how far the recording of existing rows is: on a terminal, in the log, by `status` and by the metrics?
//!
//! A copy is stopped in its middle by a trigger on the history that waits for a lock, so that all must tell the same.

use std::time::Duration;

use tokio_postgres::Client;

use crate::support::daemon::Daemon;
use crate::support::http::{address, metric};
use crate::support::scene::{LOCKED, Scene, assert_clean};
use crate::support::{BOUND, wait_until};

const ROWS: u32 = 20_000;

/// A history that takes half of the rows and then waits for the lock that the client holds.
pub async fn half_way(more: &str) -> (Scene, Client) {
    let ddl = format!(
        "CREATE TABLE notes (id integer PRIMARY KEY, body text);
         INSERT INTO notes SELECT n, 'canary' || repeat('x', 494) FROM generate_series(1, {ROWS}) n;
         ANALYZE notes;
         CREATE TABLE notes_cdc (cdc_id serial PRIMARY KEY, change_type text, id integer, body text,
             change_timestamp timestamp);
         CREATE FUNCTION wait() RETURNS boolean LANGUAGE plpgsql AS $$
             BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN true; END $$;
         ALTER TABLE notes_cdc ADD CHECK (id <> {ROWS} / 2 OR wait())"
    );
    let tables = ["public.notes(id)"];
    let scene = Scene::existing(|builder| builder, &ddl, &tables, more).await;
    let client = scene.session().await;
    client
        .batch_execute("SELECT pg_advisory_lock(7)")
        .await
        .unwrap();
    (scene, client)
}

#[tokio::test]
async fn the_log_status_and_metrics_tell_the_same() {
    let (mut scene, lock) = half_way("[http]\nlisten = \"127.0.0.1:0\"\n").await;
    let address = address(scene.spawn()).await;
    let count = async |what: &str| {
        metric(
            &address,
            &format!("waltrail_snapshot_{what}{{table=\"public.notes\"}}"),
        )
        .await
    };
    // It stands when what it has sent fills all buffers, and then nothing moves any more.
    let line = scene
        .daemon()
        .wait_log(BOUND, |line| line.contains("recording the existing rows"))
        .await;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let rows = line["rows"].as_f64().unwrap();
    assert!(rows > 0.0 && rows < f64::from(ROWS), "{line}");
    assert_eq!(line["table"], "public.notes");
    assert_eq!(line["rows_expected"], ROWS);
    assert!(line["rows_per_second"].as_f64() > Some(0.0), "{line}");
    assert!(line["seconds_left"].as_f64() > Some(0.0), "{line}");
    assert_eq!(count("rows").await, Some(rows));
    assert_eq!(count("bytes").await, line["bytes"].as_f64());
    assert_eq!(count("rows_expected").await, Some(f64::from(ROWS)));
    assert!(count("rows_per_second").await > Some(0.0));
    assert!(count("seconds_left").await > Some(0.0));
    let copying = "waltrail_snapshot_tables{state=\"copying\"}";
    assert_eq!(metric(&address, copying).await, Some(1.0));
    let config = scene.config.clone();
    let told = wait_until("status tells it too", BOUND, async || {
        let mut status = Daemon::spawn_with(&config, &["status", "--json"], &[]);
        let (_, output) = status.wait(BOUND).await;
        let told: serde_json::Value = serde_json::from_str(&output).unwrap();
        let snapshot = told["tables"][0]["snapshot"].clone();
        (snapshot["rows"] == line["rows"]).then_some(snapshot)
    })
    .await;
    assert_eq!(told["state"], "copying");
    assert_eq!(told["bytes"], line["bytes"]);
    assert_eq!(told["rows_estimated"], ROWS);
    assert!(told["seconds_left"].as_f64() > Some(0.0), "{told}");
    drop(lock);
    scene.joined().await;
    wait_until(
        "nothing is left to tell",
        Duration::from_secs(10),
        async || (metric(&address, copying).await == Some(0.0)).then_some(()),
    )
    .await;
    assert_eq!(count("rows").await, None);
    scene.check_existing().await;
    assert_clean(&scene.stop_complaining().await, LOCKED);
}

#[tokio::test]
async fn on_a_terminal_there_is_a_bar_and_log_lines_stand_above_it() {
    let (mut scene, lock) = half_way("").await;
    let daemon = &*scene.spawn_on_terminal();
    let bar = wait_until("there is a bar that moves", BOUND, async || {
        let output = daemon.output();
        let mut bars = output.split("public.notes").map(str::to_owned);
        bars.find(|bar| bar.contains("of about 20,000 rows, ") && !bar.contains(" 0 of about"))
    })
    .await;
    let told = bar.split_once("rows, ").unwrap().1;
    let told: Vec<&str> = told.split(", ").collect();
    assert!(told[0].ends_with("iB"), "bytes: {bar}");
    assert!(told[1].ends_with("/s"), "a rate: {bar}");
    assert!(told[2].contains(" left"), "the time left: {bar}");
    drop(lock);
    let joined = |line: &str| line.contains("joined the stream");
    scene.daemon().wait_log(BOUND, joined).await;
    let output = scene.stop_complaining().await;
    // Every log line begins where a line does, or where a bar was wiped away.
    for (at, _) in output.match_indices("{\"timestamp\"") {
        let before = &output[..at];
        let clear = before.is_empty() || before.ends_with('\n') || before.ends_with("\x1b[2K");
        assert!(clear, "{output}");
    }
}

#[tokio::test]
async fn setup_says_once_that_the_first_run_records_the_existing_rows() {
    let ddl = "CREATE TABLE notes (id integer PRIMARY KEY); INSERT INTO notes VALUES (1)";
    let mut scene = Scene::existing(|builder| builder, ddl, &["public.notes(id)"], "").await;
    let setup = async |config: &str| {
        let (status, output) = Daemon::spawn_with(config, &["setup"], &[])
            .wait(BOUND)
            .await;
        assert_eq!(status.code(), Some(0), "{output}");
        output
            .matches("the first `waltrail run` records the existing rows")
            .count()
    };
    assert_eq!(setup(&scene.config).await, 1);
    scene
        .source
        .batch_execute("INSERT INTO notes VALUES (2)")
        .await
        .unwrap();
    scene.start().await;
    assert_eq!(scene.check_existing().await, (2, 0));
    scene.stop().await;
    assert_eq!(setup(&scene.config).await, 0);
}
