//! Tables and histories that do not fit: each is refused before anything is made for replication.

use crate::support::daemon::{Daemon, ending};
use crate::support::scene::{config, streaming};
use crate::support::{BOUND, each, server_with, value};
use throwaway::{Builder, Cluster};
use tokio_postgres::Client;

/// From 18 on, a replica identity with a generated column that is not published makes writes fail.
const REFUSES_WRITES: i32 = 180_000;

async fn server(ddl: &[&str]) -> (Cluster, Client) {
    server_of(|builder| builder, ddl).await
}

async fn server_of(options: impl FnOnce(Builder) -> Builder, ddl: &[&str]) -> (Cluster, Client) {
    let (cluster, client) = server_with(options).await;
    each(&client, ddl).await;
    (cluster, client)
}

async fn version(client: &Client) -> i32 {
    value(client, "SELECT current_setting('server_version_num')::int").await
}

/// The first start for these tables ends with 65 and these words, and nothing was made for replication.
async fn refused(cluster: &Cluster, client: &Client, table: &str, words: &[&str]) {
    let config = config(&cluster.dsn_socket("postgres"), None, &[table], "");
    let (status, output) = Daemon::spawn(&config).wait(BOUND).await;
    assert_eq!(status.code(), Some(65), "{table}: {output}");
    let (error, remedy) = ending(&output);
    let said = format!("{error}\n    {remedy}");
    println!("{said}");
    for part in words {
        assert!(said.contains(part), "{part}: {said}");
    }
    let made = "SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots)";
    assert_eq!(value::<i64>(client, made).await, 0);
}

#[tokio::test]
async fn a_deferrable_key_is_no_replica_identity() {
    let (cluster, client) = server(&[
        "CREATE TABLE t (id int, seat text, PRIMARY KEY (id) DEFERRABLE INITIALLY DEFERRED)",
        "INSERT INTO t VALUES (1, 'a'), (2, 'b')",
        "CREATE TABLE p (id int, n int) PARTITION BY RANGE (id)",
        "ALTER TABLE p ADD PRIMARY KEY (id) DEFERRABLE",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)",
    ])
    .await;
    let words = [
        "has no replica identity",
        "REPLICA IDENTITY FULL",
        "DEFERRABLE",
    ];
    refused(&cluster, &client, "public.t", &words).await;
    refused(&cluster, &client, "public.p", &words).await;
    each(
        &client,
        &[
            "UPDATE t SET seat = 'aa' WHERE id = 1",
            "DELETE FROM t WHERE id = 2",
        ],
    )
    .await;
    // With FULL it is followed, and does not count as a key: within a transaction two rows may have it.
    each(&client, &["ALTER TABLE t REPLICA IDENTITY FULL"]).await;
    let full = config(&cluster.dsn_socket("postgres"), None, &["public.t"], "");
    streaming(&mut Daemon::spawn(&full)).await;
    let old = "SELECT count(*) FROM pg_attribute WHERE attrelid = 't_cdc'::regclass AND attname LIKE 'old_%'";
    assert_eq!(value::<i64>(&client, old).await, 2);
}

#[tokio::test]
async fn a_generated_column_in_the_replica_identity_is_refused() {
    let (cluster, client) = server(&[
        "CREATE TABLE k (a text, b text, id text GENERATED ALWAYS AS (a || '-' || b) STORED PRIMARY KEY, n int)",
        "CREATE TABLE f (id int PRIMARY KEY, price int, qty int, total int GENERATED ALWAYS AS (price * qty) STORED)",
        "ALTER TABLE f REPLICA IDENTITY FULL",
        "CREATE TABLE i (id int PRIMARY KEY, c int NOT NULL, g int GENERATED ALWAYS AS (c + 1) STORED NOT NULL)",
        "CREATE UNIQUE INDEX i_g ON i (g)",
        "ALTER TABLE i REPLICA IDENTITY USING INDEX i_g",
        // No part of the identity: followed as before.
        "CREATE TABLE fine (id int PRIMARY KEY, c int, g int GENERATED ALWAYS AS (c + 1) STORED)",
    ])
    .await;
    let dsn = cluster.dsn_socket("postgres");
    refused(
        &cluster,
        &client,
        "public.k",
        &["public.k has the generated column id"],
    )
    .await;
    refused(
        &cluster,
        &client,
        "public.i",
        &["public.i has the generated column g"],
    )
    .await;
    let mut tables = vec!["public.fine"];
    if version(&client).await >= REFUSES_WRITES {
        let words = ["public.f has the generated column total", "would fail"];
        refused(&cluster, &client, "public.f", &words).await;
        each(
            &client,
            &[
                "CREATE TABLE v (id int PRIMARY KEY, c int, g int GENERATED ALWAYS AS (c + 1) VIRTUAL)",
                "ALTER TABLE v REPLICA IDENTITY FULL",
            ],
        )
        .await;
        refused(
            &cluster,
            &client,
            "public.v",
            &["public.v has the generated column g"],
        )
        .await;
        // Stored ones can be published.
        let publication = "CREATE PUBLICATION waltrail FOR TABLE ONLY f, ONLY k, ONLY fine
            WITH (publish_via_partition_root = true, publish_generated_columns = stored)";
        each(&client, &[publication]).await;
        tables.push("public.k");
    }
    tables.push("public.f");
    let mut daemon = Daemon::spawn(&config(&dsn, None, &tables, ""));
    streaming(&mut daemon).await;
    each(
        &client,
        &[
            "INSERT INTO f VALUES (1, 2, 3); INSERT INTO k VALUES ('p', 'q', DEFAULT, 2)",
            "UPDATE f SET qty = 5; DELETE FROM f; DELETE FROM k",
            "INSERT INTO fine VALUES (1, 1); UPDATE fine SET c = 2; DELETE FROM fine",
        ],
    )
    .await;
    let rows = "SELECT count(*) FROM f_cdc";
    crate::support::wait_for_value(&client, rows, 3_i64, BOUND).await;
    assert!(!daemon.output().contains("WARN"), "{}", daemon.output());
}

#[tokio::test]
async fn partitions_that_are_not_in_the_wal_are_refused_by_name() {
    let (cluster, client) = server(&[
        "CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)",
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)",
        "CREATE UNLOGGED TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (20)",
        "CREATE FOREIGN DATA WRAPPER elsewhere; CREATE SERVER far FOREIGN DATA WRAPPER elsewhere",
        "CREATE TABLE f (id int, v text) PARTITION BY RANGE (id); ALTER TABLE f REPLICA IDENTITY FULL",
        "CREATE FOREIGN TABLE f1 PARTITION OF f FOR VALUES FROM (0) TO (10) SERVER far",
        "CREATE TABLE d (id int, code int NOT NULL, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
        "CREATE TABLE d1 PARTITION OF d FOR VALUES FROM (0) TO (10)",
        "ALTER TABLE d1 REPLICA IDENTITY NOTHING",
    ])
    .await;
    refused(
        &cluster,
        &client,
        "public.t",
        &["partitions of public.t", ": public.t2"],
    )
    .await;
    refused(
        &cluster,
        &client,
        "public.f",
        &["partitions of public.f", ": public.f1"],
    )
    .await;
    let words = [
        "partitions of public.d have no replica identity",
        ": public.d1",
    ];
    refused(&cluster, &client, "public.d", &words).await;
}

#[tokio::test]
async fn a_history_that_cannot_keep_its_rows_is_refused() {
    let columns = "(change_type text, id int, v text)";
    let history = |kind: &str, name: &str| format!("CREATE {kind} TABLE {name} {columns}");
    let (cluster, client) = server_of(
        |builder| builder.setting("allow_system_table_mods", "on"),
        &[
            "CREATE TABLE t (id int PRIMARY KEY, v text)",
            &history("UNLOGGED", "unlogged_cdc"),
            &format!("{} PARTITION BY LIST (change_type)", history("", "parted_cdc")),
            "CREATE UNLOGGED TABLE parted_u PARTITION OF parted_cdc DEFAULT",
            &format!("{} PARTITION BY LIST (change_type)", history("", "far_cdc")),
            "CREATE FOREIGN DATA WRAPPER elsewhere; CREATE SERVER far FOREIGN DATA WRAPPER elsewhere",
            "CREATE FOREIGN TABLE far_p PARTITION OF far_cdc DEFAULT SERVER far",
            "CREATE VIEW view_cdc AS SELECT 'x' AS change_type, 1 AS id, 'v' AS v",
            "CREATE FUNCTION half() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN RETURN CASE WHEN NEW.id % 2 = 0 THEN NEW END; END'",
            &history("", "half_cdc"),
            "CREATE TRIGGER half BEFORE INSERT ON half_cdc FOR EACH ROW EXECUTE FUNCTION half()",
            &history("", "rule_cdc"),
            "CREATE RULE quiet AS ON INSERT TO rule_cdc DO INSTEAD NOTHING",
            &history("", "citus_cdc"),
            "CREATE TABLE pg_catalog.pg_dist_partition (logicalrelid regclass)",
            "INSERT INTO pg_catalog.pg_dist_partition VALUES ('citus_cdc')",
        ],
    )
    .await;
    for (history, words) in [
        (
            "unlogged_cdc",
            [
                "is not in the WAL of the target",
                "ALTER TABLE public.unlogged_cdc SET LOGGED",
            ],
        ),
        (
            "parted_cdc",
            [
                "is not in the WAL of the target",
                "ALTER TABLE public.parted_u SET LOGGED",
            ],
        ),
        ("far_cdc", ["committed on another server", "public.far_p"]),
        (
            "view_cdc",
            ["public.view_cdc is not a table", "name a table"],
        ),
        (
            "half_cdc",
            [
                "trigger half on the history public.half_cdc",
                "DROP TRIGGER half ON public.half_cdc",
            ],
        ),
        (
            "rule_cdc",
            [
                "rule quiet on the history public.rule_cdc",
                "DROP RULE quiet ON public.rule_cdc",
            ],
        ),
        ("citus_cdc", ["committed on another server", "Citus"]),
    ] {
        refused(
            &cluster,
            &client,
            &format!("public.t=public.{history}"),
            &words,
        )
        .await;
    }
    // A disabled trigger does nothing, and one AFTER the row cannot leave it out.
    each(
        &client,
        &[
            "ALTER TABLE half_cdc DISABLE TRIGGER half",
            "CREATE TRIGGER after AFTER INSERT ON half_cdc FOR EACH ROW EXECUTE FUNCTION half()",
        ],
    )
    .await;
    let fine = config(
        &cluster.dsn_socket("postgres"),
        None,
        &["public.t=public.half_cdc"],
        "",
    );
    streaming(&mut Daemon::spawn(&fine)).await;
}

#[tokio::test]
async fn what_a_domain_says_counts_for_a_column_of_the_history() {
    let (cluster, client) = server(&[
        "CREATE DOMAIN word AS text NOT NULL; CREATE DOMAIN words AS word; CREATE DOMAIN five AS int DEFAULT 5",
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "CREATE TABLE strict_cdc (change_type text, id int, v words)",
        "CREATE TABLE other_cdc (change_type text, id int, v text, batch word)",
        "CREATE TABLE five_cdc (change_type text, id int, old_id five, v text, batch five NOT NULL)",
        "INSERT INTO t VALUES (1, 'a')",
    ])
    .await;
    let words = ["public.strict_cdc.v is NOT NULL"];
    refused(&cluster, &client, "public.t=public.strict_cdc", &words).await;
    let words = [
        "public.other_cdc.batch is NOT NULL",
        "nothing in public.t fills it",
    ];
    refused(&cluster, &client, "public.t=public.other_cdc", &words).await;
    // Existing rows have no former key, whatever the domain's default.
    let table = ["public.t=public.five_cdc"];
    let config = config(&cluster.dsn_socket("postgres"), None, &table, "")
        .replace("mode = \"never\"", "mode = \"initial\"");
    let _daemon = Daemon::spawn(&config);
    let row = "SELECT coalesce((SELECT format('%s %s %s', id, coalesce(old_id, 0), batch) FROM five_cdc), '')";
    crate::support::wait_for_value(&client, row, "1 0 5".to_owned(), BOUND).await;
}
