//! What keeps a history from answering, or from answering quickly.

use super::{Server, check, gone, the};
use crate::support::daemon::Daemon;
use crate::support::scene::config;
use crate::support::{BOUND, each, value};

const CLEAN: &[&str] = &["DROP TABLE IF EXISTS t", "DROP TABLE IF EXISTS t_cdc"];

#[tokio::test]
async fn what_keeps_a_history_from_answering_is_a_note() {
    let mut server = Server::start(|builder| builder.hba("local all waltrail trust")).await;
    let dsn = server.cluster.dsn_socket("postgres");
    let of = |dsn: &str| config(dsn, None, &["public.t"], "");
    let code = "answers-are-missing";
    let cdc = "CREATE TABLE t_cdc (cdc_id bigserial, change_type text, change_timestamp timestamptz, id int, n int)";
    let table = "CREATE TABLE t (id int PRIMARY KEY, n int)";
    for made in [
        "CREATE TABLE t_cdc (change_type text, change_timestamp timestamptz, id int, n int)",
        "CREATE TABLE t_cdc (cdc_id bigserial, change_type text, id int, n int)",
        "CREATE TABLE t_cdc (cdc_id bigserial, change_type text, change_timestamp timestamptz, n int)",
    ] {
        each(&server.client, CLEAN).await;
        server.heals(&of(&dsn), &[table, made], code, "note").await;
    }
    // Names that are taken, one after the other.
    each(&server.client, CLEAN).await;
    let taken = [
        table,
        cdc,
        "CREATE FUNCTION t_as_of(x int, \"Y\" text) RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ];
    server.heals(&of(&dsn), &taken, code, "note").await;
    let taken = ["CREATE TABLE t_versions ()"];
    server.heals(&of(&dsn), &taken, code, "note").await;
    let there: bool = value(
        &server.client,
        "SELECT to_regclass('t_versions_former') IS NOT NULL AND to_regproc('t_as_of_former') IS NOT NULL",
    )
    .await;
    assert!(there);
    // A role that may not make functions, and a configuration that does not let them be made.
    each(
        &server.client,
        &[
            "CREATE ROLE waltrail LOGIN REPLICATION",
            "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        ],
    )
    .await;
    let as_waltrail = of(&dsn.replace("user=postgres", "user=waltrail"));
    let manual = format!("setup = 'manual'\n{}", of(&dsn));
    the(&check(&manual).await, code, "note");
    server.heals(&as_waltrail, &[], code, "note").await;
    let (status, output) = Daemon::spawn_with(&of(&dsn), &["setup"], &[])
        .wait(BOUND)
        .await;
    assert_eq!(status.code(), Some(0), "{output}");
    gone(&check(&manual).await, code);
    // What is not wanted is not missed.
    each(
        &server.client,
        &["DROP VIEW t_versions", "DROP FUNCTION t_as_of(timestamptz)"],
    )
    .await;
    the(&check(&manual).await, code, "note");
    gone(&check(&without_functions(&manual)).await, code);
}

fn without_functions(config: &str) -> String {
    config.replace("'public.t'\n", "'public.t'\nfunctions = false\n")
}

#[tokio::test]
async fn a_large_history_without_the_indexes_of_its_functions_is_a_note() {
    let mut server = Server::start(|builder| builder).await;
    let config = config(
        &server.cluster.dsn_socket("postgres"),
        None,
        &["public.t"],
        "",
    );
    let code = "indexes-for-answers";
    let table = "CREATE TABLE t (id int, part varchar(20), \"N\" int, PRIMARY KEY (id, part))";
    let fill = |rows: u32| {
        format!(
            "DO $$ BEGIN \
                 INSERT INTO t_cdc (change_type, change_timestamp, commit_lsn, tx_seq, xid, id, part) \
                 SELECT 'INSERT', now(), '0/1', g, 3, g, 'p' FROM generate_series(1, {rows}) g; \
             EXCEPTION WHEN undefined_column THEN \
                 INSERT INTO t_cdc (change_type, change_timestamp, id, part) \
                 SELECT 'INSERT', now(), g, 'p' FROM generate_series(1, {rows}) g; \
             END $$"
        )
    };
    // As waltrail makes it, as a person does, and with partitions.
    for made in [
        "",
        "CREATE TABLE t_cdc (cdc_id serial, change_type varchar(10), change_timestamp timestamp, id int, part varchar(20))",
        "CREATE TABLE t_cdc (cdc_id bigserial, change_type text, change_timestamp timestamptz, id int, part text, old_id int,
            old_part text, unavailable_columns text[]) PARTITION BY RANGE (cdc_id);
         CREATE TABLE t_cdc_1 PARTITION OF t_cdc FOR VALUES FROM (0) TO (60000);
         CREATE TABLE t_cdc_2 PARTITION OF t_cdc DEFAULT",
    ] {
        each(&server.client, CLEAN).await;
        each(&server.client, &[table, made]).await;
        let (status, output) = Daemon::spawn_with(&config, &["setup"], &[])
            .wait(BOUND)
            .await;
        assert_eq!(status.code(), Some(0), "{output}");
        each(&server.client, &[&fill(90_000), "ANALYZE"]).await;
        gone(&check(&config).await, code);
        each(&server.client, &[&fill(20_000), "ANALYZE"]).await;
        gone(&check(&without_functions(&config)).await, code);
        server.heals_as_it_is(&config, code, "note").await;
        each(&server.client, &["SELECT pg_drop_replication_slot('waltrail')", "DROP SCHEMA waltrail CASCADE"]).await;
    }
}
