//! Many tables: set-up and starts cost what the catalogs cost. The server's log counts the statements.
//!
//! `MANY_TABLES=1000` measures with as many tables, and prints times.

use std::time::{Duration, Instant};

use crate::support::daemon::Daemon;
use crate::support::scene::{config, streaming};
use crate::support::{BOUND, each, server_with, wait_for_value};
use throwaway::Cluster;

/// Every statement of the daemon is a line with this in it.
const STATEMENT: [&str; 2] = ["waltrail|LOG:  statement: ", "waltrail|LOG:  execute "];

/// How many statements the daemon has sent so far.
fn statements(cluster: &Cluster) -> usize {
    let log = cluster.log_text();
    let is_one = |line: &&str| STATEMENT.iter().any(|start| line.contains(start));
    log.lines().filter(is_one).count()
}

/// The processor's time that a process has used.
fn cpu(daemon: &Daemon) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |at: usize| -> u64 { fields.get(at).and_then(|f| f.parse().ok()).unwrap_or(0) };
    // User and system time are the 14th and 15th field (man proc_pid_stat), in hundredths of a second.
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// Statements of `waltrail setup`, of the first start until all tables are joined, and of the next start.
async fn starts(tables: usize) -> [usize; 3] {
    let (cluster, client) = server_with(|builder| {
        builder
            .setting("log_statement", "all")
            .setting("log_line_prefix", "%a|")
    })
    .await;
    let names: Vec<String> = (1..=tables).map(|n| format!("public.t{n}")).collect();
    for some in names.chunks(100) {
        let made = |name: &String| {
            format!(
                "CREATE TABLE {name} (id int PRIMARY KEY, a text, b numeric, c timestamptz);
                 INSERT INTO {name} SELECT n, 'canary', n, now() FROM generate_series(1, 10) n;"
            )
        };
        each(&client, &[&some.iter().map(made).collect::<String>()]).await;
    }
    let entries: Vec<&str> = names.iter().map(String::as_str).collect();
    let text = config(&cluster.dsn_socket("postgres"), None, &entries, "")
        .replace("mode = \"never\"", "mode = \"initial\"");
    let (mut counts, mut before) = ([0; 3], statements(&cluster));
    let mut count = |at: usize| {
        let now = statements(&cluster);
        counts[at] += now - std::mem::replace(&mut before, now);
    };
    let mut setup = Daemon::spawn_with(&text, &["setup"], &[]);
    let (status, output) = setup.wait(BOUND).await;
    assert_eq!(status.code(), Some(0), "{output}");
    count(0);
    for (at, what) in [(1, "the first start"), (2, "the next start")] {
        let began = Instant::now();
        let mut daemon = Daemon::spawn(&text);
        streaming(&mut daemon).await;
        let (streams, used) = (began.elapsed(), cpu(&daemon));
        let joined = "SELECT count(*) FROM waltrail.snapshot WHERE state = 'done'";
        wait_for_value(&client, joined, tables as i64, BOUND).await;
        println!(
            "{tables} tables, {what}: streams after {streams:?} and {used:?} of CPU, all joined after {:?} and {:?}",
            began.elapsed(),
            cpu(&daemon)
        );
        daemon.sigterm();
        let (status, output) = daemon.wait(BOUND).await;
        assert_eq!(status.code(), Some(0), "{output}");
        let lines = output.lines().count();
        assert!(lines < 40, "{lines} lines of the log:\n{output}");
        count(at);
    }
    println!("{tables} tables: {counts:?} statements");
    let rows: i64 = crate::support::value(
        &client,
        "SELECT sum((xpath('/row/c/text()', query_to_xml('SELECT count(*) AS c FROM ' || history, true, true, '')))[1]::text::bigint)::bigint
           FROM waltrail.snapshot",
    )
    .await;
    assert_eq!(rows, 10 * tables as i64);
    counts
}

#[tokio::test]
async fn setting_up_and_starting_take_as_many_statements_for_many_tables_as_for_few() {
    let many = std::env::var("MANY_TABLES").ok();
    let many_tables = many.and_then(|many| many.parse().ok()).unwrap_or(120);
    let (few, many) = (starts(20).await, starts(many_tables).await);
    // History tables are created by the hundred.
    assert!(
        many[0] <= few[0] + many_tables / 100,
        "setup: {few:?}, {many:?}"
    );
    // How often something is asked for again depends on the time.
    assert!(many[2] <= few[2] + 8, "the next start: {few:?}, {many:?}");
}
