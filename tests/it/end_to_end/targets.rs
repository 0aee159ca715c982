//! May the history live in the source database, in another database beside it, and on another server?

use throwaway::Cluster;

use crate::support::daemon::Daemon;
use crate::support::oracle::Oracle;
use crate::support::scene::{complaints, config, streaming};
use crate::support::{BOUND, DESIGN, EMPLOYEES, connect, each, server, server_with, value};

/// Follows `employees` of `source` into `employees_cdc` of the database `target`, plain or made by waltrail.
async fn follow_into(source: &Cluster, target: &str, ddl: &str) {
    let client = connect(&source.dsn_socket("postgres")).await;
    let history = connect(target).await;
    each(&client, &[EMPLOYEES, "DROP TABLE employees_cdc"]).await;
    each(&history, &[ddl]).await;
    let oracle = Oracle::install(&client, &["public.employees"]).await;
    let config = config(
        &source.dsn_socket("postgres"),
        Some(target),
        &["public.employees"],
        "",
    );
    for round in 0..2 {
        let mut daemon = Daemon::spawn(&config);
        streaming(&mut daemon).await;
        each(
            &client,
            &[
                &format!(
                    "INSERT INTO employees (name) SELECT '{round}' FROM generate_series(1, 100)"
                ),
                "UPDATE employees SET salary = id WHERE id % 3 = 0",
                "DELETE FROM employees WHERE id % 7 = 0",
            ],
        )
        .await;
        oracle
            .assert_becomes(
                &client,
                "public.employees",
                &history,
                "public.employees_cdc",
                BOUND,
            )
            .await;
        daemon.sigterm();
        let (status, output) = daemon.wait(BOUND).await;
        assert_eq!(status.code(), Some(0), "{output}");
        assert_eq!(complaints(&output), Vec::<&str>::new());
    }
    let here: bool = value(&client, "SELECT to_regnamespace('waltrail') IS NULL").await;
    assert!(
        here,
        "the source got a control schema that belongs into the target"
    );
}

fn plain() -> &'static str {
    // The second of the design's two definitions.
    &DESIGN[DESIGN.find("CREATE TABLE employees_cdc").unwrap()..]
}

#[tokio::test]
async fn another_server_as_target() {
    let (source, _) = server().await;
    let (target, _) = server_with(|builder| {
        builder
            .fresh_initdb()
            .setting("wal_level", "minimal")
            .setting("max_wal_senders", "0")
    })
    .await;
    follow_into(&source, &target.dsn_tcp("postgres"), plain()).await;
}

#[tokio::test]
async fn another_server_of_the_same_origin_as_target() {
    // Both have one system identifier and a database of one name, like a copy of a server.
    let (source, _) = server().await;
    let (target, _) = server().await;
    follow_into(&source, &target.dsn_tcp("postgres"), "").await;
}

#[tokio::test]
async fn another_database_of_the_same_server_as_target() {
    let (source, client) = server().await;
    each(&client, &["CREATE DATABASE history"]).await;
    follow_into(&source, &source.dsn_tcp("history"), plain()).await;
}

#[tokio::test]
async fn a_database_of_another_encoding_as_target() {
    let (source, client) = server().await;
    each(
        &client,
        &["CREATE DATABASE history ENCODING 'LATIN1' TEMPLATE template0"],
    )
    .await;
    let history = connect(&source.dsn_socket("history")).await;
    each(
        &client,
        &["CREATE TABLE t (id integer PRIMARY KEY, v text)"],
    )
    .await;
    let config = config(
        &source.dsn_socket("postgres"),
        Some(&source.dsn_socket("history")),
        &["public.t"],
        "",
    );
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    each(&client, &["INSERT INTO t VALUES (1, 'é')"]).await;
    crate::support::wait_for_value(
        &history,
        "SELECT string_agg(v, ',') FROM t_cdc",
        Some("é".to_owned()),
        BOUND,
    )
    .await;
    // What the target cannot write is refused, never changed.
    each(&client, &["INSERT INTO t VALUES (2, '→ canary')"]).await;
    let (status, output) = daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(65), "{output}");
}
