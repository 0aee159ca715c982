//! Do the metrics say what is, in formats that Prometheus takes, at every moment?

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::daemon::assert_silent;
use crate::support::http::address;
use crate::support::scene::{LOCKED, SERVER_GONE, Scene, assert_clean, streaming};
use crate::support::{BOUND, EMPLOYEES, each, value, wait_until};

const LISTEN: &str = "[http]\nlisten = \"127.0.0.1:0\"\n";
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// What Prometheus 2 sends.
const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
    text/plain;version=0.0.4;q=0.3,*/*;q=0.2";

/// The type and the body of `/metrics`; none where nothing answers.
async fn scraped(address: &str, accept: &str) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request =
        format!("GET /metrics HTTP/1.1\r\nHost: waltrail.test\r\nAccept: {accept}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert_silent(body);
    let kind = head
        .lines()
        .find_map(|line| line.strip_prefix("content-type: "));
    Some((kind.unwrap().to_owned(), body.to_owned()))
}

/// Every sample by its name with its labels.
async fn samples(address: &str) -> Option<BTreeMap<String, f64>> {
    let (_, body) = scraped(address, "*/*").await?;
    let samples = body.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    };
    Some(samples.map(sample).collect())
}

/// The samples, once they are so.
async fn once(
    address: &str,
    what: &str,
    are: impl Fn(&BTreeMap<String, f64>) -> bool,
) -> BTreeMap<String, f64> {
    wait_until(what, BOUND, async || {
        samples(address).await.filter(|samples| are(samples))
    })
    .await
}

fn sum(samples: &BTreeMap<String, f64>, family: &str) -> f64 {
    let of = |name: &&String| name.split('{').next() == Some(family);
    samples.keys().filter(of).map(|name| samples[name]).sum()
}

async fn scene(ddl: &str, tables: &[&str]) -> (Scene, String) {
    let mut scene = Scene::with(|builder| builder, ddl, tables, LISTEN).await;
    let address = address(scene.daemon()).await;
    (scene, address)
}

#[tokio::test]
async fn rows_are_counted_by_table_and_kind_and_batches_and_latencies_fit_to_them() {
    let ddl = "CREATE TABLE paper (id integer PRIMARY KEY, title text, body text);
        ALTER TABLE paper ALTER body SET STORAGE EXTERNAL;
        CREATE TABLE quiet (id integer PRIMARY KEY)";
    let (scene, address) = scene(ddl, &["public.paper", "public.quiet"]).await;
    let began: f64 = value(
        &scene.source,
        "SELECT extract(epoch FROM clock_timestamp())::float8",
    )
    .await;
    each(
        &scene.source,
        &[
            "INSERT INTO paper VALUES (1, 'a', repeat('canary', 1000)), (2, 'b', ''), (3, 'c', '')",
            "UPDATE paper SET title = 'd' WHERE id < 3",
            "DELETE FROM paper WHERE id = 3",
            "TRUNCATE paper",
        ],
    )
    .await;
    let told = once(&address, "seven rows", |told| {
        sum(told, "waltrail_history_rows_total") == 7.0
    })
    .await;
    let rows = |kind: &str| {
        let labels = format!("table=\"public.paper\",change_type=\"{kind}\"");
        told[&format!("waltrail_history_rows_total{{{labels}}}")]
    };
    let kinds = ["INSERT", "UPDATE", "DELETE", "TRUNCATE"].map(rows);
    assert_eq!(kinds, [3.0, 2.0, 1.0, 1.0]);
    let lacking =
        |table: &str| told[&format!("waltrail_unavailable_values_total{{table=\"{table}\"}}")];
    // The body that the UPDATE did not change, and what the DELETE's key leaves out.
    assert_eq!(
        (lacking("public.paper"), lacking("public.quiet")),
        (3.0, 0.0)
    );
    assert_eq!(told["waltrail_transactions_total"], 4.0);
    assert_eq!(told["waltrail_latency_seconds_count"], 4.0);
    assert_eq!(told["waltrail_batch_rows_sum"], 7.0);
    let batches = told["waltrail_batches_total"];
    assert_eq!(told["waltrail_batch_rows_count"], batches);
    assert_eq!(told["waltrail_batch_commit_seconds_count"], batches);
    assert!(told["waltrail_batch_commit_seconds_sum"] > 0.0);
    let now: f64 = value(
        &scene.source,
        "SELECT extract(epoch FROM clock_timestamp())::float8",
    )
    .await;
    let recorded = told["waltrail_last_recorded_timestamp_seconds"];
    assert!(
        began < recorded && recorded < now,
        "{began} {recorded} {now}"
    );
    assert!(told["process_resident_memory_bytes"] > 1e6);
    scene.end().await;
}

/// The part of each histogram's observations that is at most this large.
fn below(told: &BTreeMap<String, f64>, family: &str, bound: &str) -> f64 {
    told[&format!("{family}_bucket{{le=\"{bound}\"}}")]
}

#[tokio::test]
async fn what_waits_is_as_old_as_its_commit_and_its_latency_is_as_long() {
    let (mut scene, address) = scene(EMPLOYEES, &["public.employees"]).await;
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('a')"],
    )
    .await;
    let told = once(&address, "one row", |told| {
        told["waltrail_transactions_total"] == 1.0
    })
    .await;
    assert_eq!(told["waltrail_lag_seconds"], 0.0);
    assert_eq!(below(&told, "waltrail_latency_seconds", "1"), 1.0);
    let locker = scene.target_session().await;
    each(
        &locker,
        &["BEGIN; LOCK TABLE employees_cdc IN ACCESS EXCLUSIVE MODE"],
    )
    .await;
    let start = Instant::now();
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('b')"],
    )
    .await;
    let committed = start.elapsed().as_secs_f64();
    let later = ["INSERT INTO employees (name) VALUES ('c')"; 3];
    each(&scene.source, &later).await;
    for seconds in [1.0, 2.0, 4.0] {
        let told = once(&address, "it lags", |told| {
            told["waltrail_lag_seconds"] > seconds
        })
        .await;
        let lag = told["waltrail_lag_seconds"];
        // The clock of the source is known about as well as that on a busy machine.
        let most = start.elapsed().as_secs_f64() + 0.5;
        assert!((seconds..=most).contains(&lag), "{lag} s after {most} s");
        assert!(told["waltrail_lag_bytes"] > 0.0);
    }
    each(&locker, &["COMMIT"]).await;
    let waited = start.elapsed().as_secs_f64() - committed;
    let told = once(&address, "all rows", |told| {
        told["waltrail_transactions_total"] == 5.0
    })
    .await;
    let sum = told["waltrail_latency_seconds_sum"];
    // All four have waited for about as long.
    assert!(
        sum > 4.0 * 3.9 && sum < 4.0 * waited + 10.0,
        "{sum} after {waited}"
    );
    assert_eq!(below(&told, "waltrail_latency_seconds", "2.5"), 1.0);
    once(&address, "nothing lags", |told| {
        told["waltrail_lag_seconds"] == 0.0
    })
    .await;
    scene.finish(LOCKED).await;
}

/// `source >= received >= applied >= confirmed` in one scrape, and none has gone back since the last one but what was received:
/// what a lost session had not recorded comes again.
#[track_caller]
fn check_positions(told: &BTreeMap<String, f64>, last: &mut [f64; 4]) {
    let of = |of: &str| told[&format!("waltrail_wal_position_bytes{{of=\"{of}\"}}")];
    let now = ["source", "received", "applied", "confirmed"].map(of);
    assert!(now.is_sorted_by(|a, b| a >= b), "{now:?}");
    let forward = [0, 2, 3].iter().all(|&at| now[at] >= last[at]);
    assert!(forward, "{last:?}, then {now:?}");
    *last = now;
}

#[tokio::test]
async fn positions_are_in_order_at_every_scrape_under_load_with_restarts_and_lost_sessions() {
    let (mut scene, first) = scene(EMPLOYEES, &["public.employees"]).await;
    each(&scene.source, &["CREATE TABLE other (t text)"]).await;
    let load = scene.load(7);
    let (mut scrapes, mut caught_up) = (0, 0);
    let mut address = first;
    for round in 0..3 {
        let mut last = [0.0; 4];
        let until = Instant::now() + Duration::from_secs(6);
        let mut rounds = 0;
        while Instant::now() < until {
            let told = samples(&address).await.unwrap();
            check_positions(&told, &mut last);
            scrapes += 1;
            rounds += 1;
            if rounds % 200 == 0 {
                let lost = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE application_name = 'waltrail' AND random() < 0.3";
                each(&scene.session().await, &[lost]).await;
            }
        }
        // A backlog, most of it of another table.
        if round == 1 {
            scene.daemon().sigterm();
            scene.daemon().wait(BOUND).await;
        } else {
            scene.daemon().kill9();
        }
        let backlog =
            "INSERT INTO other SELECT repeat(md5(n::text), 60) FROM generate_series(1, 10000) n";
        each(&scene.session().await, &[backlog]).await;
        let daemon = scene.spawn();
        address = crate::support::http::address(daemon).await;
        let mut last = [0.0; 4];
        while !daemon.output().contains("\"streaming\"") {
            check_positions(&samples(&address).await.unwrap(), &mut last);
            scrapes += 1;
        }
        streaming(daemon).await;
        caught_up += daemon.output().matches("\"catching up\"").count();
    }
    load.stop();
    println!("{scrapes} scrapes, {caught_up} times catching up");
    assert!(scrapes > 300 && caught_up > 0);
    let told = once(&address, "all is recorded", |told| {
        told["waltrail_lag_seconds"] == 0.0
    })
    .await;
    check_positions(&told, &mut [0.0; 4]);
    scene.finish(SERVER_GONE).await;
}

fn has_promtool() -> bool {
    let found = Command::new("promtool").arg("--version").output().is_ok();
    if !found {
        println!("not tried: there is no promtool (Debian's package prometheus)");
    }
    found
}

/// What `promtool check metrics` has to say.
fn promtool(metrics: &str) -> String {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(metrics.as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    format!(
        "{}{}{}",
        said[0],
        said[1],
        match output.status.code() {
            Some(0) => String::new(),
            code => format!("{code:?}"),
        }
    )
}

/// OpenMetrics as the text format, in which a counter's own name ends in `_total` and there is no `# EOF`.
fn as_text(metrics: &str) -> String {
    let mut counters = Vec::new();
    for line in metrics.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            match kind {
                "counter" => counters.push((name.to_owned(), format!("{name}_total"))),
                "info" => counters.push((name.to_owned(), format!("{name}_info"))),
                _ => {}
            }
        }
    }
    let lines = metrics.lines().filter(|line| *line != "# EOF");
    let mut text = String::new();
    for line in lines {
        let mut words: Vec<&str> = line.splitn(4, ' ').collect();
        if let ["#", _, name, ..] = words[..]
            && let Some((_, whole)) = counters.iter().find(|(known, _)| known == name)
        {
            words[2] = whole;
            if words[1] == "TYPE" && words[3] == "info" {
                words[3] = "gauge";
            }
        }
        text.push_str(&words.join(" "));
        text.push('\n');
    }
    text
}

#[tokio::test]
async fn promtool_has_nothing_to_say_of_the_metrics_in_either_format() {
    let table = r#"public."we\ird ""na{me""#;
    let ddl = format!("CREATE TABLE {table} (id integer PRIMARY KEY)");
    let (scene, address) = scene(&ddl, &[table]).await;
    each(&scene.source, &[&format!("INSERT INTO {table} VALUES (1)")]).await;
    once(&address, "a row", |told| {
        told["waltrail_transactions_total"] == 1.0
    })
    .await;
    let (kind, text) = scraped(&address, "*/*").await.unwrap();
    assert_eq!(kind, TEXT);
    assert!(!text.contains("# EOF"));
    let series = r#"waltrail_history_rows_total{table="public.\"we\\ird \"\"na{me\"",change_type="INSERT"} 1"#;
    assert!(text.contains(series), "{text}");
    let (kind, open) = scraped(&address, PROMETHEUS).await.unwrap();
    assert_eq!(kind, OPEN_METRICS);
    assert!(open.ends_with("# EOF\n"), "{open}");
    if has_promtool() {
        assert_eq!(promtool(&text), "", "{text}");
        assert_eq!(promtool(&as_text(&open)), "", "{open}");
    }
    scene.end().await;
}

#[test]
fn promtool_would_say_what_is_wrong() {
    if has_promtool() {
        let said = promtool("# TYPE waltrail_rows counter\nwaltrail_rows 1\n");
        assert!(said.contains("_total"), "{said}");
    }
}

const LIMITED: &str = "200MB";

#[tokio::test]
async fn a_slot_that_will_be_lost_is_warned_of_and_measured_and_it_is_said_when_that_is_over() {
    let limited = |builder: throwaway::Builder| {
        let builder = builder.setting("max_slot_wal_keep_size", LIMITED);
        builder.setting("max_wal_size", "1GB")
    };
    let mut scene = Scene::two(limited, |builder| builder).await;
    scene.config += LISTEN;
    let address = address(scene.start().await).await;
    let seen = once(&address, "the servers are seen", |told| {
        told.contains_key("waltrail_slot_limit_bytes")
    })
    .await;
    assert_eq!(seen["waltrail_slot_limit_bytes"], f64::from(200 << 20));
    for side in ["source", "target"] {
        assert_eq!(seen[&format!("waltrail_up{{side=\"{side}\"}}")], 1.0);
    }
    let warning = "waltrail_warning{code=\"slot-in-danger\"}";
    assert_eq!(seen[warning], 0.0);
    assert!(!seen.contains_key("waltrail_slot_seconds_left"), "{seen:?}");
    let locker = scene.target_session().await;
    each(
        &locker,
        &["BEGIN; LOCK TABLE employees_cdc IN ACCESS EXCLUSIVE MODE"],
    )
    .await;
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('a')"],
    )
    .await;
    let wal = "SELECT pg_logical_emit_message(false, 'other', repeat('x', 1000000))";
    let start = Instant::now();
    let told = wait_until("it is in danger", BOUND, async || {
        each(&scene.source, &[wal]).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        samples(&address).await.filter(|told| told[warning] == 1.0)
    })
    .await;
    println!("in danger after {:?}", start.elapsed());
    let left = told["waltrail_slot_seconds_left"];
    assert!(left > 0.0 && left < 7_200.0, "{left}");
    assert!(told["waltrail_slot_retained_bytes"] > 1e6);
    assert!(told["waltrail_slot_safe_bytes"] < told["waltrail_slot_limit_bytes"]);
    assert_eq!(told["waltrail_slot_wal_status{status=\"lost\"}"], 0.0);
    let line = scene
        .daemon()
        .wait_log(BOUND, |line| line.contains("\"slot-in-danger\""))
        .await;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["level"], "WARN");
    assert!(
        line["remedy"]
            .as_str()
            .unwrap()
            .contains("max_slot_wal_keep_size"),
        "{line}"
    );
    each(&locker, &["COMMIT"]).await;
    let over = scene
        .daemon()
        .wait_log(2 * BOUND, |line| line.contains("a warning is over"))
        .await;
    println!("{over}\nover after {:?}", start.elapsed());
    let over: serde_json::Value = serde_json::from_str(&over).unwrap();
    assert_eq!(
        (&over["level"], &over["code"]),
        (&"INFO".into(), &line["code"])
    );
    assert_eq!(over["warning"], line["message"]);
    let said = scene.daemon().output();
    assert_eq!(said.matches("\"slot-in-danger\"").count(), 2, "{said}");
    let allowed = [LOCKED, &["slot is lost in"]].concat();
    scene.finish(&allowed).await;
}

#[tokio::test]
async fn while_the_source_is_away_it_is_not_up_and_the_lag_grows() {
    let mut scene = Scene::two(|builder| builder, |builder| builder).await;
    scene.config += LISTEN;
    let address = address(scene.start().await).await;
    let up = "waltrail_up{side=\"source\"}";
    once(&address, "it is seen", |told| told.get(up) == Some(&1.0)).await;
    scene.server.stop(throwaway::StopMode::Fast).unwrap();
    let told = once(&address, "it lags", |told| {
        told[up] == 0.0 && told["waltrail_lag_seconds"] > 5.0
    })
    .await;
    assert_eq!(told["waltrail_up{side=\"target\"}"], 1.0);
    assert_eq!(told["waltrail_warning{code=\"source-down\"}"], 1.0);
    scene.server.start_again().unwrap();
    once(&address, "it does not lag any more", |told| {
        told[up] == 1.0 && told["waltrail_lag_seconds"] == 0.0
    })
    .await;
    scene.finish(SERVER_GONE).await;
}

#[tokio::test]
async fn sessions_that_are_lost_are_counted_by_the_side_that_failed() {
    let mut scene = Scene::two(|builder| builder, |builder| builder).await;
    scene.config += LISTEN;
    let daemon = scene.start().await;
    let address = address(daemon).await;
    let lost = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name = 'waltrail' AND backend_type = 'client backend'";
    let of = |told: &BTreeMap<String, f64>| {
        ["source", "target"]
            .map(|side| told[&format!("waltrail_reconnects_total{{side=\"{side}\"}}")])
    };
    for (n, client) in [(1.0, &scene.target), (2.0, &scene.target)] {
        each(client, &[lost]).await;
        let told = once(&address, "it is counted", |told| of(told)[1] >= n).await;
        assert_eq!(of(&told)[0], 0.0);
        once(&address, "it streams again", |told| {
            told["waltrail_streaming"] == 1.0
        })
        .await;
    }
    let stream =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'";
    each(&scene.source, &[stream]).await;
    once(&address, "the source is counted", |told| of(told)[0] >= 1.0).await;
    let output = scene.stop_complaining().await;
    assert_clean(&output, SERVER_GONE);
}
