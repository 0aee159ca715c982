//! One writer (invariant I6): two instances with one slot.

use crate::support::daemon::Daemon;
use crate::support::{BOUND, EMPLOYEES, server, wait_for_value};

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
    first.wait_log(BOUND, streams).await;
    let mut second = Daemon::spawn(&config);
    let waiting = second
        .wait_log(BOUND, |line| line.contains("another waltrail writes"))
        .await;
    assert!(waiting.contains("\"pid\":"), "{waiting}");
    client
        .batch_execute("INSERT INTO employees (name) VALUES ('a')")
        .await
        .unwrap();
    let rows = "SELECT count(*) FROM employees_cdc";
    wait_for_value(&client, rows, 1i64, BOUND).await;
    assert!(!second.output().lines().any(streams));

    first.kill9();
    second.wait_log(BOUND, streams).await;
    client
        .batch_execute("INSERT INTO employees (name) VALUES ('b')")
        .await
        .unwrap();
    wait_for_value(&client, rows, 2i64, BOUND).await;
    second.sigterm();
    let (status, output) = second.wait(BOUND).await;
    assert!(status.success(), "{output}");
}

/// Whoever moves the checkpoint beside the daemon is found out by the very transaction that would have counted on
/// it, whether its rows go by INSERT or by COPY.
#[tokio::test]
async fn a_checkpoint_that_another_process_moved_stops_the_writer_before_it_writes() {
    let (cluster, client) = server().await;
    client.batch_execute(EMPLOYEES).await.unwrap();
    for rows in [1, 3, 1000] {
        let config = format!(
            "[source]\ndsn = '{}'\nslot = 'waltrail_{rows}'\n[snapshot]\nmode = 'never'\n[[table]]\nsource = 'employees'\n",
            cluster.dsn_socket("postgres")
        );
        let mut daemon = Daemon::spawn(&config);
        daemon.wait_log(BOUND, streams).await;
        let one = "INSERT INTO employees (name) VALUES ('a')";
        client.batch_execute(one).await.unwrap();
        let count = "SELECT count(*) FROM employees_cdc";
        wait_for_value(&client, count, 1i64, BOUND).await;
        client
            .batch_execute("UPDATE waltrail.checkpoint SET end_lsn = end_lsn - 1")
            .await
            .unwrap();
        let more =
            format!("INSERT INTO employees (name) SELECT 'b' FROM generate_series(1, {rows})");
        client.batch_execute(&more).await.unwrap();
        let (status, output) = daemon.wait(BOUND).await;
        assert_eq!(status.code(), Some(65), "{output}");
        assert!(
            output.contains("find out what wrote waltrail.checkpoint"),
            "{output}"
        );
        assert!(!output.contains("table public.employees_cdc"), "{output}");
        wait_for_value(&client, count, 1i64, BOUND).await;
        client
            .batch_execute("TRUNCATE employees_cdc, waltrail.checkpoint, waltrail.snapshot")
            .await
            .unwrap();
    }
}
