//! Tables that patterns mean, and columns that stay on the source.

use crate::support::daemon::Daemon;
use crate::support::scene::{complaints, config, streaming};
use crate::support::{BOUND, each, server, texts, value, wait_for_value};
use throwaway::Cluster;
use tokio_postgres::Client;

/// Column lists came with 15.
const LISTS: i32 = 150_000;

/// A configuration with one `[[table]]` of these lines.
fn one(cluster: &Cluster, table: &str) -> String {
    config(&cluster.dsn_socket("postgres"), None, &[], table)
}

async fn stopped(mut daemon: Daemon) -> String {
    daemon.sigterm();
    let (status, output) = daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(0), "{output}");
    output
}

async fn has_rows(client: &Client, history: &str, rows: i64) {
    // It may not be there yet.
    let exists = format!("SELECT to_regclass('{history}') IS NOT NULL");
    wait_for_value(client, &exists, true, BOUND).await;
    wait_for_value(
        client,
        &format!("SELECT count(*) FROM {history}"),
        rows,
        BOUND,
    )
    .await;
}

async fn histories(client: &Client) -> Vec<String> {
    let all = "SELECT history FROM waltrail.followed ORDER BY history COLLATE \"C\"";
    texts(client, all).await.into_iter().flatten().collect()
}

#[tokio::test]
async fn a_pattern_means_the_tables_that_can_be_followed_and_those_to_come() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE SCHEMA billing; CREATE SCHEMA other",
            "CREATE TABLE billing.inv_1 (id int PRIMARY KEY, v text); CREATE TABLE billing.inv_2 (LIKE billing.inv_1 INCLUDING ALL)",
            "CREATE TABLE billing.\"Inv\" (id int PRIMARY KEY); CREATE TABLE billing.tmp_1 (id int PRIMARY KEY)",
            "CREATE TABLE billing.bare (v text); CREATE UNLOGGED TABLE billing.quick (id int PRIMARY KEY)",
            "CREATE TABLE billing.p (id int PRIMARY KEY) PARTITION BY RANGE (id)",
            "CREATE TABLE billing.p1 PARTITION OF billing.p FOR VALUES FROM (0) TO (100)",
            "CREATE VIEW billing.view AS SELECT 1 AS id; CREATE TABLE other.t (id int PRIMARY KEY)",
            "CREATE TABLE billing.named (id int PRIMARY KEY, v text, secret text)",
        ],
    )
    .await;
    let text = one(
        &cluster,
        "[[table]]\nsource = 'billing.*'\nexcept = ['billing.tmp_*']\n\
         [[table]]\nsource = 'billing.named'\nhistory = 'other.of_named'\nexclude_columns = ['secret']\n",
    );
    let mut daemon = Daemon::spawn(&text);
    streaming(&mut daemon).await;
    let expected = [
        "billing.\"Inv_cdc\"",
        "billing.inv_1_cdc",
        "billing.inv_2_cdc",
        "billing.p_cdc",
        "other.of_named",
    ];
    assert_eq!(histories(&client).await, expected);
    each(
        &client,
        &[
            "INSERT INTO billing.inv_1 VALUES (1, 'canary'); INSERT INTO billing.p VALUES (7)",
            "INSERT INTO billing.named VALUES (1, 'canary', 'canary')",
            // They work as they did.
            "INSERT INTO billing.bare VALUES ('canary'); UPDATE billing.bare SET v = 'x'",
            "CREATE TABLE billing.later (id int PRIMARY KEY); INSERT INTO billing.later VALUES (1), (2)",
        ],
    )
    .await;
    has_rows(&client, "billing.inv_1_cdc", 1).await;
    has_rows(&client, "billing.p_cdc", 1).await;
    has_rows(&client, "other.of_named", 1).await;
    // Without a restart of the process; what it held before is not recorded with snapshot.mode = "never".
    let followed =
        "SELECT EXISTS (SELECT FROM waltrail.followed WHERE history = 'billing.later_cdc')";
    wait_for_value(&client, followed, true, BOUND).await;
    each(&client, &["INSERT INTO billing.later VALUES (3)"]).await;
    has_rows(&client, "billing.later_cdc", 1).await;
    let output = stopped(daemon).await;
    let left_out: Vec<&str> = complaints(&output);
    assert_eq!(left_out.len(), 2, "{left_out:#?}");
    assert!(left_out[0].contains("billing.bare") && left_out[0].contains("no replica identity"));
    assert!(left_out[1].contains("billing.quick") && left_out[1].contains("unlogged"));
    // Histories of this database are not meant, also at the next start.
    let mut daemon = Daemon::spawn(&text);
    streaming(&mut daemon).await;
    assert_eq!(histories(&client).await.len(), expected.len() + 1);
    stopped(daemon).await;
}

#[tokio::test]
async fn a_table_of_a_pattern_keeps_its_history_under_another_name_and_is_let_go_when_it_is_dropped()
 {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE SCHEMA app; CREATE SCHEMA audit",
            "CREATE TABLE app.a (id int PRIMARY KEY); CREATE TABLE app.b (id int PRIMARY KEY); CREATE TABLE app.c (id int PRIMARY KEY)",
        ],
    )
    .await;
    let text = one(
        &cluster,
        "[[table]]\nsource = 'app.*'\nhistory = 'audit.*'\n",
    );
    let mut daemon = Daemon::spawn(&text);
    streaming(&mut daemon).await;
    each(
        &client,
        &[
            "INSERT INTO app.a VALUES (1); INSERT INTO app.b VALUES (1); INSERT INTO app.c VALUES (1)",
            "ALTER TABLE app.a RENAME TO z; INSERT INTO app.z VALUES (2)",
            "INSERT INTO app.b VALUES (2); DROP TABLE app.b",
        ],
    )
    .await;
    // Live: everything before the drop is there, and the others go on.
    has_rows(&client, "audit.b", 2).await;
    let gone = "SELECT NOT EXISTS (SELECT FROM waltrail.followed WHERE history = 'audit.b')";
    wait_for_value(&client, gone, true, BOUND).await;
    each(
        &client,
        &["INSERT INTO app.z VALUES (3); INSERT INTO app.c VALUES (2)"],
    )
    .await;
    has_rows(&client, "audit.a", 3).await;
    has_rows(&client, "audit.c", 2).await;
    stopped(daemon).await;
    // Away: the same.
    each(
        &client,
        &[
            "INSERT INTO app.c VALUES (3); DROP TABLE app.c",
            "INSERT INTO app.z VALUES (4); ALTER TABLE app.z RENAME TO y; INSERT INTO app.y VALUES (5)",
        ],
    )
    .await;
    let daemon = Daemon::spawn(&text);
    has_rows(&client, "audit.c", 3).await;
    has_rows(&client, "audit.a", 5).await;
    let only = "SELECT string_agg(history, ' ') FROM waltrail.followed";
    wait_for_value(&client, only, "audit.a".to_owned(), BOUND).await;
    // Another table of that name goes on in its history, after a row that says so.
    each(&client, &["CREATE TABLE app.c (id int PRIMARY KEY)"]).await;
    let followed = "SELECT EXISTS (SELECT FROM waltrail.followed WHERE history = 'audit.c')";
    wait_for_value(&client, followed, true, BOUND).await;
    each(&client, &["INSERT INTO app.c VALUES (7)"]).await;
    let rows =
        "SELECT string_agg(concat_ws(' ', change_type, id), ', ' ORDER BY cdc_id) FROM audit.c";
    let wanted = "INSERT 1, INSERT 2, INSERT 3, GAP, INSERT 7";
    wait_for_value(&client, rows, wanted.to_owned(), BOUND).await;
    stopped(daemon).await;
}

#[tokio::test]
async fn a_table_of_a_pattern_whose_history_does_not_fit_is_left_out() {
    let (cluster, client) = server().await;
    let long = "n".repeat(60);
    each(
        &client,
        &[
            "CREATE TABLE fine (id int PRIMARY KEY); CREATE TABLE odd (id int PRIMARY KEY, change_type text)",
            "CREATE TABLE strange (id int PRIMARY KEY); CREATE VIEW strange_cdc AS SELECT 1 AS id",
            &format!("CREATE TABLE {long} (id int PRIMARY KEY)"),
        ],
    )
    .await;
    let mut daemon = Daemon::spawn(&one(&cluster, "[[table]]\nsource = 'public.*'\n"));
    streaming(&mut daemon).await;
    assert_eq!(histories(&client).await, ["public.fine_cdc"]);
    let published = "SELECT string_agg(tablename, ' ') FROM pg_publication_tables";
    assert_eq!(value::<String>(&client, published).await, "fine");
    let output = stopped(daemon).await;
    for (table, reason) in [
        ("public.odd", "change_type"),
        ("public.strange", "is not a table"),
        (long.as_str(), "longer than 63 bytes"),
    ] {
        let line = complaints(&output).into_iter().find(|line| {
            line.contains("this table is not followed")
                && line.contains(table)
                && line.contains(reason)
        });
        assert!(line.is_some(), "{table}: {output}");
    }
}

#[tokio::test]
async fn a_new_table_that_may_not_be_published_is_left_out_and_the_others_go_on() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE ROLE app LOGIN REPLICATION; GRANT ALL ON DATABASE postgres TO app",
            "CREATE SCHEMA s; GRANT ALL ON SCHEMA s TO app; CREATE TABLE s.a (id int PRIMARY KEY); ALTER TABLE s.a OWNER TO app",
            "CREATE TABLE s.of_others (id int PRIMARY KEY); GRANT SELECT ON s.of_others TO app",
        ],
    )
    .await;
    let auto = one(&cluster, "[[table]]\nsource = 's.*'\n").replace("user=postgres", "user=app");
    let mut daemon = Daemon::spawn(&auto);
    streaming(&mut daemon).await;
    assert_eq!(histories(&client).await, ["s.a_cdc"]);
    let output = stopped(daemon).await;
    let left_out = complaints(&output);
    assert!(
        left_out.len() == 1 && left_out[0].contains("its owner"),
        "{left_out:?}"
    );
    // What setup has to do, run does not.
    each(
        &client,
        &["CREATE TABLE s.later (id int PRIMARY KEY); ALTER TABLE s.later OWNER TO app"],
    )
    .await;
    let manual = format!("setup = 'manual'\n{auto}");
    let mut daemon = Daemon::spawn(&manual);
    streaming(&mut daemon).await;
    each(
        &client,
        &["INSERT INTO s.a VALUES (1); INSERT INTO s.later VALUES (1)"],
    )
    .await;
    has_rows(&client, "s.a_cdc", 1).await;
    let output = stopped(daemon).await;
    assert!(output.contains("run `waltrail setup`"), "{output}");
    let (status, printed) = Daemon::spawn_with(&manual, &["setup", "--dry-run"], &[])
        .wait(BOUND)
        .await;
    assert_eq!(status.code(), Some(0), "{printed}");
    assert!(
        printed.contains("ADD TABLE ONLY s.later") && printed.contains("CREATE TABLE s.later_cdc"),
        "{printed}"
    );
}

/// What the publication sends from now on, as bytes in hexadecimal.
async fn sent(client: &Client) -> String {
    let peek = "SELECT coalesce(string_agg(encode(data, 'hex'), ''), '') FROM pg_logical_slot_peek_binary_changes(
        'other', NULL, NULL, 'proto_version', '1', 'publication_names', 'waltrail')";
    value(client, peek).await
}

#[tokio::test]
async fn excluded_columns_do_not_leave_the_source_where_the_publication_can_list_columns() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE TABLE t (id int PRIMARY KEY, v text, secret text); CREATE TABLE f (LIKE t INCLUDING ALL)",
            "ALTER TABLE f REPLICA IDENTITY FULL",
            "CREATE TABLE t_cdc (change_type text, id int, v text, w text, unavailable_columns text[])",
        ],
    )
    .await;
    let tables = "[[table]]\nsource = 'public.t'\nexclude_columns = ['secret']\n\
                  [[table]]\nsource = 'public.f'\nexclude_columns = ['secret']\n";
    let text = one(&cluster, tables);
    let mut daemon = Daemon::spawn(&text);
    streaming(&mut daemon).await;
    each(
        &client,
        &["SELECT pg_create_logical_replication_slot('other', 'pgoutput')"],
    )
    .await;
    let lists: i32 = value(&client, "SELECT current_setting('server_version_num')::int").await;
    let secret = "43414e415259"; // CANARY
    each(
        &client,
        &[
            "INSERT INTO t VALUES (1, 'a', 'CANARY_7f3a')",
            "UPDATE t SET secret = 'CANARY_7f3a2'",
            "DELETE FROM t",
        ],
    )
    .await;
    has_rows(&client, "t_cdc", 3).await;
    assert_eq!(sent(&client).await.contains(secret), lists < LISTS);
    // A list may not leave out a column of an identity that is FULL.
    each(
        &client,
        &["INSERT INTO f VALUES (1, 'a', 'CANARY_7f3a'); UPDATE f SET v = 'b'"],
    )
    .await;
    has_rows(&client, "f_cdc", 2).await;
    let columns = "SELECT string_agg(DISTINCT attname::text, ' ') FROM pg_attribute
        WHERE attrelid IN ('t_cdc'::regclass, 'f_cdc'::regclass) AND attname ~ 'secret'";
    assert_eq!(value::<Option<String>>(&client, columns).await, None);
    // A column that comes later is listed without a restart of the process.
    each(
        &client,
        &["ALTER TABLE t ADD COLUMN w text; INSERT INTO t VALUES (2, 'a', 'CANARY_7f3a', 'w')"],
    )
    .await;
    has_rows(&client, "t_cdc", 4).await;
    if lists >= LISTS {
        let listed = "SELECT prattrs::text FROM pg_publication_rel WHERE prrelid = 't'::regclass";
        wait_for_value(&client, listed, "1 2 4".to_owned(), BOUND).await;
    }
    each(
        &client,
        &["INSERT INTO t VALUES (3, 'a', 'CANARY_7f3a', 'w')"],
    )
    .await;
    has_rows(&client, "t_cdc", 5).await;
    let later: String = value(&client, "SELECT w FROM t_cdc WHERE id = 3").await;
    assert_eq!(later, "w");
    stopped(daemon).await;
    // An excluded column may go.
    each(
        &client,
        &["ALTER TABLE t DROP COLUMN secret; INSERT INTO t VALUES (4, 'a', 'w')"],
    )
    .await;
    let mut daemon = Daemon::spawn(&text);
    streaming(&mut daemon).await;
    has_rows(&client, "t_cdc", 6).await;
    stopped(daemon).await;
}

#[tokio::test]
async fn a_publication_of_others_may_list_exactly_what_is_not_excluded() {
    let (cluster, client) = server().await;
    let version: i32 = value(&client, "SELECT current_setting('server_version_num')::int").await;
    if version < LISTS {
        return;
    }
    each(
        &client,
        &[
            "CREATE TABLE t (id int PRIMARY KEY, v text, secret text)",
            "CREATE PUBLICATION waltrail FOR TABLE ONLY t (id) WITH (publish_via_partition_root = true)",
        ],
    )
    .await;
    let text = one(
        &cluster,
        "[[table]]\nsource = 'public.t'\nexclude_columns = ['secret']\n",
    );
    let (status, output) = Daemon::spawn(&text).wait(BOUND).await;
    assert_eq!(status.code(), Some(78), "{output}");
    assert!(output.contains("a column list for public.t"), "{output}");
    each(
        &client,
        &["ALTER PUBLICATION waltrail SET TABLE ONLY t (id, v)"],
    )
    .await;
    let mut daemon = Daemon::spawn(&text);
    streaming(&mut daemon).await;
    each(&client, &["INSERT INTO t VALUES (1, 'v', 'canary')"]).await;
    has_rows(&client, "t_cdc", 1).await;
    stopped(daemon).await;
}
