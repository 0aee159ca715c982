//! Is a table that was unlogged for a while, or truncated by partitions, ever passed over in silence?

use crate::support::daemon::Daemon;
use crate::support::scene::{complaints, config, streaming};
use crate::support::{BOUND, each, server, value, wait_for_value};

const UNLOGGED: &str = "BEGIN; ALTER TABLE s.t SET UNLOGGED; INSERT INTO s.t VALUES (2, 'canary'); \
    ALTER TABLE s.t SET LOGGED; COMMIT";

async fn stop(mut daemon: Daemon) -> Vec<String> {
    daemon.sigterm();
    let (status, output) = daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(0), "{output}");
    complaints(&output).into_iter().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_table_that_the_publication_names_cannot_be_unlogged() {
    let (cluster, client) = server().await;
    each(&client, &["CREATE TABLE t (id int PRIMARY KEY, v text)"]).await;
    let config = config(&cluster.dsn_socket("postgres"), None, &["public.t"], "");
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    let refused = client.batch_execute("ALTER TABLE t SET UNLOGGED").await;
    let refused = refused.unwrap_err();
    let says = refused.as_db_error().unwrap().message();
    assert!(
        says.contains("part of a publication") || says.contains("to unlogged"),
        "{says}"
    );
    each(
        &client,
        &[
            "INSERT INTO t VALUES (1, 'canary')",
            "VACUUM FULL t",
            "INSERT INTO t VALUES (2, 'x')",
        ],
    )
    .await;
    wait_for_value(&client, "SELECT count(*) FROM t_cdc", 2_i64, BOUND).await;
    assert_eq!(stop(daemon).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_table_that_was_unlogged_between_two_looks_is_told_while_it_streams_and_after_a_stop() {
    let (cluster, client) = server().await;
    if cluster.binaries().major() < 15 {
        println!("not tried, the server does not publish schemas");
        return;
    }
    each(
        &client,
        &[
            "CREATE SCHEMA s",
            "CREATE TABLE s.t (id int PRIMARY KEY, v text)",
            "CREATE PUBLICATION waltrail FOR TABLES IN SCHEMA s",
        ],
    )
    .await;
    let config = config(
        &cluster.dsn_socket("postgres"),
        None,
        &["s.t=public.t_cdc"],
        "",
    );
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    let changes = [
        UNLOGGED,
        "INSERT INTO s.t VALUES (3, 'canary')",
        "DELETE FROM s.t",
    ];
    let wanted = |line: &str| line.contains("s.t") && line.contains("if it was unlogged");
    let gone = "SELECT count(*) FROM t_cdc WHERE id = 3 AND change_type = 'DELETE'";
    each(&client, &changes).await;
    daemon.wait_log(BOUND, wanted).await;
    wait_for_value(&client, gone, 1_i64, BOUND).await;
    assert_eq!(stop(daemon).await.len(), 1);
    each(&client, &changes).await;
    let mut daemon = Daemon::spawn(&config);
    daemon.wait_log(BOUND, wanted).await;
    wait_for_value(&client, gone, 2_i64, BOUND).await;
    assert_eq!(stop(daemon).await.len(), 1);
    let unlogged = "SELECT count(*) FROM t_cdc WHERE id = 2 AND change_type = 'INSERT'";
    assert_eq!(value::<i64>(&client, unlogged).await, 0);
}

#[tokio::test]
async fn a_partition_that_was_truncated_while_nothing_ran_is_told_at_the_start() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)",
            "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)",
            "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)",
        ],
    )
    .await;
    let config = config(&cluster.dsn_socket("postgres"), None, &["public.p"], "");
    for (change, says) in [
        ("SELECT", None),
        ("TRUNCATE p1", Some("a partition was rewritten")),
        ("TRUNCATE p1, p2", Some("every partition was rewritten")),
        ("TRUNCATE p", Some("every partition was rewritten")),
        ("SELECT", None),
    ] {
        each(&client, &[change]).await;
        let mut daemon = Daemon::spawn(&config);
        streaming(&mut daemon).await;
        daemon.sigterm();
        let (_, output) = daemon.wait(BOUND).await;
        assert_eq!(output.contains("rewritten"), says.is_some(), "{output}");
        assert!(says.is_none_or(|says| output.contains(says)), "{output}");
    }
}
