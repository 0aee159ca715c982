//! One writer (invariant I6): two instances with one slot.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot do its own work must stop, and say where"
)]

mod support;

use std::time::Duration;

use support::daemon::Daemon;
use support::{EMPLOYEES, server, wait_for_value};

const PATIENCE: Duration = Duration::from_secs(30);

fn streams(line: &str) -> bool {
    line.contains("\"streaming\"")
}

#[tokio::test]
async fn a_second_instance_waits_says_so_and_takes_over() {
    let (cluster, client) = server().await;
    client.batch_execute(EMPLOYEES).await.unwrap();
    let config = format!(
        "[source]\ndsn = '{}'\n[[table]]\nsource = 'employees'\n",
        cluster.dsn_socket("postgres")
    );
    let mut first = Daemon::spawn(&config);
    first.wait_log(PATIENCE, streams).await;
    let mut second = Daemon::spawn(&config);
    let waiting = second
        .wait_log(PATIENCE, |line| line.contains("another waltrail writes"))
        .await;
    assert!(waiting.contains("\"pid\":"), "{waiting}");
    client
        .batch_execute("INSERT INTO employees (name) VALUES ('a')")
        .await
        .unwrap();
    let rows = "SELECT count(*) FROM employees_cdc";
    wait_for_value(&client, rows, 1i64, PATIENCE).await;
    assert!(!second.output().lines().any(streams));

    first.kill9();
    second.wait_log(PATIENCE, streams).await;
    client
        .batch_execute("INSERT INTO employees (name) VALUES ('b')")
        .await
        .unwrap();
    wait_for_value(&client, rows, 2i64, PATIENCE).await;
    second.sigterm();
    let (status, output) = second.wait(PATIENCE).await;
    assert!(status.success(), "{output}");
}
