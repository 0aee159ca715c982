//! Does every column of the source find a history column that keeps its values, and does each mean one thing?

use throwaway::Cluster;
use tokio_postgres::Client;

use crate::support::daemon::{Daemon, ending};
use crate::support::scene::{Scene, complaints, config, streaming};
use crate::support::{BOUND, connect, each, server, texts, value, wait_for_value};

/// The types of a history's columns that are the source's, in order.
async fn types_of(client: &Client, history: &str) -> Vec<String> {
    let sql = format!(
        "SELECT attname || ' ' || format_type(atttypid, atttypmod) FROM pg_attribute
         WHERE attrelid = '{history}'::regclass AND attnum > 6 AND attname <> 'unavailable_columns'
           AND NOT attisdropped ORDER BY attnum"
    );
    texts(client, &sql).await.into_iter().flatten().collect()
}

async fn stop(mut daemon: Daemon) -> String {
    daemon.sigterm();
    let (status, output) = daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(0), "{output}");
    output
}

#[tokio::test]
async fn a_history_that_waltrail_makes_has_the_base_types_of_domains() {
    let mut scene = Scene::existing(
        |builder| builder,
        "CREATE DOMAIN email AS varchar(40) NOT NULL;
         CREATE DOMAIN key AS int NOT NULL DEFAULT 5;
         CREATE DOMAIN pos AS int;
         CREATE DOMAIN small AS pos;
         CREATE DOMAIN cents AS numeric(10,2);
         CREATE DOMAIN list AS small[];
         CREATE FUNCTION even(i int) RETURNS bool LANGUAGE sql AS 'select i%2=0';
         CREATE FUNCTION f(i int) RETURNS bool LANGUAGE plpgsql AS 'begin return public.even(i); end';
         CREATE DOMAIN ev AS int CHECK (f(VALUE));
         CREATE TABLE t (id key PRIMARY KEY, name email, p pos, s small, c cents[], l list, e ev, d date);
         INSERT INTO t VALUES (1, 'CANARY_7f3a', -1, -2, '{1.50}', '{1}', 2, '2024-01-01');
         ALTER DOMAIN pos ADD CONSTRAINT c CHECK (VALUE > 0) NOT VALID;",
        &["public.t(id)"],
        "",
    )
    .await;
    scene.start().await;
    scene.joined().await;
    each(
        &scene.source,
        &[
            "INSERT INTO t VALUES (2, 'CANARY_7f3ab', 1, 1, '{1.25,NULL}', '{1,2}', 4, NULL)",
            "UPDATE t SET name = 'CANARY_7f3ac' WHERE id = 2",
            "UPDATE t SET id = 3 WHERE id = 2",
            "DELETE FROM t WHERE id = 3",
            "TRUNCATE t",
        ],
    )
    .await;
    assert_eq!(
        types_of(&scene.target, "t_cdc").await,
        [
            "id integer",
            "name character varying(40)",
            "p integer",
            "s integer",
            "c numeric(10,2)[]",
            "l integer[]",
            "e integer",
            "d date",
            "old_id integer"
        ]
    );
    scene.check_existing().await;
    // A default of the domain would be written for a row that leaves the column out.
    let old: i64 = value(
        &scene.target,
        "SELECT count(old_id) FROM t_cdc WHERE change_type = 'SNAPSHOT'",
    )
    .await;
    assert_eq!(old, 0);
    let comment: String = value(
        &scene.target,
        "SELECT obj_description('t_cdc'::regclass, 'pg_class')",
    )
    .await;
    assert_eq!(comment, "history of public.t, made by waltrail");
    scene.stop().await;
}

#[tokio::test]
async fn a_column_of_the_source_wins_over_the_former_value_of_another() {
    let long = "k".repeat(61);
    let (other, third) = (format!("{long}a"), format!("{long}b"));
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE TABLE a (id int PRIMARY KEY, price int, old_price int)",
            "INSERT INTO a VALUES (1, 10, 9)",
            "CREATE TABLE b (id int PRIMARY KEY, old_id int)",
            "CREATE TABLE c (id int PRIMARY KEY, old_id int)",
            "CREATE TABLE c_cdc (cdc_id serial PRIMARY KEY, change_type text, id int, old_id int)",
            &format!("CREATE TABLE d ({other} int, {third} int, PRIMARY KEY ({other}, {third}))"),
        ],
    )
    .await;
    let tables = ["public.a", "public.b", "public.c", "public.d"];
    let config = config(&cluster.dsn_socket("postgres"), None, &tables, "")
        .replace("mode = \"never\"", "mode = \"initial\"");
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    each(
        &client,
        &[
            "INSERT INTO a VALUES (2, 20, 19)",
            "UPDATE a SET price = 21 WHERE id = 2",
            "INSERT INTO b VALUES (1, 5)",
            "UPDATE b SET id = 2",
            "INSERT INTO c VALUES (1, 5)",
            "UPDATE c SET id = 2",
            "INSERT INTO d VALUES (1, 2)",
            &format!("UPDATE d SET {other} = 3"),
            "DELETE FROM d",
        ],
    )
    .await;
    let rows = async |table: &str, columns: &str, wanted: &[&str]| {
        let history = format!("{table}_cdc");
        let count = format!("SELECT count(*) FROM {history}");
        wait_for_value(&client, &count, wanted.len() as i64, BOUND).await;
        let sql =
            format!("SELECT concat_ws('|', change_type, {columns}) FROM {history} ORDER BY cdc_id");
        let found: Vec<String> = texts(&client, &sql).await.into_iter().flatten().collect();
        assert_eq!(found, wanted, "{table}");
    };
    let a = ["INSERT|1|10|9", "INSERT|2|20|19", "UPDATE|2|21|19"];
    rows("a", "id, price, old_price", &a).await;
    // The former value of the key has no place: a change of it is two rows.
    for table in ["b", "c"] {
        let wanted = ["INSERT|1|5", "DELETE|1|", "INSERT|2|5"];
        rows(table, "id, coalesce(old_id::text, '')", &wanted).await;
    }
    let home = |column: &str| {
        format!(
            "(SELECT quote_ident(history_column) FROM waltrail.home WHERE history = 'public.d_cdc'
               AND former AND source_column = '{column}')"
        )
    };
    let first: String = value(&client, &format!("SELECT {}", home(&other))).await;
    let second: String = value(&client, &format!("SELECT {}", home(&third))).await;
    let columns = format!("{other}, {third}, {first}, {second}");
    let d = ["INSERT|1|2", "UPDATE|3|2|1|2", "DELETE|3|2|3|2"];
    rows("d", &columns, &d).await;
    let output = stop(daemon).await;
    let warned = complaints(&output);
    assert_eq!(warned.len(), 2, "{output}");
    for (line, table) in warned.iter().zip(["public.b", "public.c"]) {
        assert!(line.contains("the source has a column of"), "{line}");
        assert!(line.contains(table), "{line}");
    }
    // It is said once, and means the same at every start.
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    each(
        &client,
        &["ALTER TABLE c DROP old_id", "UPDATE c SET id = 3"],
    )
    .await;
    let wanted = [
        "INSERT|1|5",
        "DELETE|1|",
        "INSERT|2|5",
        "DELETE|2|",
        "INSERT|3|",
    ];
    rows("c", "id, coalesce(old_id::text, '')", &wanted).await;
    assert_eq!(complaints(&stop(daemon).await), Vec::<&str>::new());
}

#[tokio::test]
async fn a_prefix_keeps_names_of_the_source_apart_from_waltrail_s_own() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE TABLE t (cdc_id int PRIMARY KEY, change_type text, commit_lsn int)",
            "INSERT INTO t VALUES (7, 'canary', 1)",
        ],
    )
    .await;
    let plain = config(&cluster.dsn_socket("postgres"), None, &["public.t"], "")
        .replace("mode = \"never\"", "mode = \"initial\"");
    let mut refused = Daemon::spawn(&plain);
    let (status, output) = refused.wait(BOUND).await;
    assert_eq!(status.code(), Some(65), "{output}");
    let (_, hint) = ending(&output);
    assert!(
        hint.starts_with("set prefix = \"_\" for public.t"),
        "{output}"
    );
    let config = plain.replace("'public.t'\n", "'public.t'\nprefix = '_'\n");
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    each(
        &client,
        &[
            "UPDATE t SET cdc_id = 8, commit_lsn = 2",
            "DELETE FROM t WHERE cdc_id = 8",
        ],
    )
    .await;
    wait_for_value(&client, "SELECT count(*) FROM t_cdc", 3_i64, BOUND).await;
    let rows = texts(
        &client,
        "SELECT concat_ws('|', _change_type, cdc_id, change_type, commit_lsn, old_cdc_id, _tx_seq,
                _unavailable_columns) FROM t_cdc ORDER BY _cdc_id",
    )
    .await;
    let rows: Vec<String> = rows.into_iter().flatten().collect();
    assert_eq!(
        rows,
        [
            "INSERT|7|canary|1|1",
            "UPDATE|8|canary|2|7|1",
            "DELETE|8|8|1|{change_type,commit_lsn}"
        ]
    );
    assert_eq!(complaints(&stop(daemon).await), Vec::<&str>::new());
}

/// Pairs whose cast changes some values: the type of the source's column, and the history's.
const LOSSY: [(&str, &str); 10] = [
    ("numeric", "numeric(10,2)"),
    ("double precision", "real"),
    ("timestamp", "date"),
    ("timestamptz", "timestamptz(0)"),
    ("text", "name"),
    ("json", "jsonb"),
    ("bigint", "oid"),
    ("timestamp", "timestamptz"),
    ("char(5)", "varchar(3)"),
    ("numeric(14,4)[]", "numeric(10,2)[]"),
];

#[tokio::test]
async fn a_history_that_would_change_values_is_refused_with_both_types_and_the_statement() {
    let (cluster, client) = server().await;
    for (n, (of, to)) in LOSSY.iter().enumerate() {
        each(
            &client,
            &[
                &format!("CREATE TABLE t{n} (id int PRIMARY KEY, x {of})"),
                &format!("CREATE TABLE t{n}_cdc (cdc_id serial, change_type text, id int, x {to})"),
            ],
        )
        .await;
        let table = format!("public.t{n}");
        let config = config(&cluster.dsn_socket("postgres"), None, &[&table], "");
        let mut refused = Daemon::spawn(&config);
        let (status, output) = refused.wait(BOUND).await;
        assert_eq!(status.code(), Some(65), "{of} into {to}: {output}");
        let (_, hint) = ending(&output);
        let (remedy, _) = hint.split_once(';').unwrap();
        let wanted = format!("ALTER TABLE public.t{n}_cdc ALTER COLUMN x TYPE ");
        assert!(remedy.starts_with(&wanted), "{output}");
        assert!(
            output.contains(&format!("public.t{n}.x of type ")),
            "{output}"
        );
        // What it names can be allowed, or done as it is written.
        let lossy = format!("'{table}'\nallow_lossy = ['x']\n");
        let allowed = config.replace(&format!("'{table}'\n"), &lossy);
        let mut daemon = Daemon::spawn_with(&allowed, &["setup", "--dry-run"], &[]);
        let (status, output) = daemon.wait(BOUND).await;
        assert_eq!(status.code(), Some(0), "{of} into {to}: {output}");
        each(&client, &[remedy]).await;
        let mut daemon = Daemon::spawn_with(&config, &["setup", "--dry-run"], &[]);
        let (status, output) = daemon.wait(BOUND).await;
        assert_eq!(status.code(), Some(0), "{of} into {to}: {output}");
    }
}

/// The server rounds binary rows just as it rounds text.
#[tokio::test]
async fn a_value_that_may_be_rounded_is_rounded_alike_whatever_the_batch() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE TABLE t (id int PRIMARY KEY, x numeric, i interval)",
            "CREATE TABLE t_cdc (cdc_id serial, change_type text, id int, x numeric(10,2), i interval(0))",
            "INSERT INTO t VALUES (1, 1.2567, '1 s 750 ms')",
        ],
    )
    .await;
    let config = config(&cluster.dsn_socket("postgres"), None, &["public.t"], "")
        .replace("'public.t'\n", "'public.t'\nallow_lossy = ['x', 'i']\n")
        .replace("mode = \"never\"", "mode = \"initial\"");
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    each(
        &client,
        &[
            "INSERT INTO t VALUES (2, 1.2567, '1 s 750 ms')",
            "INSERT INTO t SELECT n, 1.2567, '1 s 750 ms' FROM generate_series(3, 60) n",
        ],
    )
    .await;
    let as_wanted = "SELECT count(*) FROM t_cdc WHERE x = 1.26 AND i = '2 s'";
    wait_for_value(&client, as_wanted, 60_i64, BOUND).await;
    stop(daemon).await;
}

#[tokio::test]
async fn a_database_without_an_encoding_passes_its_bytes() {
    let (cluster, client) = server().await;
    let database =
        "CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'";
    each(&client, &[database]).await;
    let client = connect(&cluster.dsn_socket("bytes")).await;
    let word = r"convert_from('\x63616665e9', 'SQL_ASCII')";
    each(
        &client,
        &[
            "CREATE TABLE t (id int PRIMARY KEY, v text)",
            // A type without a binary form: everything comes as text.
            "CREATE TABLE u (id int PRIMARY KEY, v text, r regclass)",
            &format!("INSERT INTO t VALUES (1, {word})"),
            &format!("INSERT INTO u VALUES (1, {word})"),
        ],
    )
    .await;
    for (table, tables) in [
        ("t", ["public.t"].as_slice()),
        ("u", &["public.t", "public.u"]),
    ] {
        let config = config(&cluster.dsn_socket("bytes"), None, tables, "")
            .replace("mode = \"never\"", "mode = \"initial\"");
        let mut daemon = Daemon::spawn(&config);
        streaming(&mut daemon).await;
        each(
            &client,
            &[
                &format!("INSERT INTO {table} VALUES (2, {word})"),
                &format!("INSERT INTO {table} SELECT n, {word} FROM generate_series(3, 60) n"),
            ],
        )
        .await;
        let kept = format!(r"SELECT count(*) FROM {table}_cdc WHERE v::bytea = '\x63616665e9'");
        wait_for_value(&client, &kept, 60_i64, BOUND).await;
        stop(daemon).await;
    }
}

/// A target in another server: what it does not know becomes text.
#[tokio::test]
async fn a_type_that_the_target_lacks_is_kept_as_text() {
    let (source, client) = server().await;
    let (target, history) = server().await;
    each(
        &client,
        &[
            "CREATE TYPE span AS RANGE (subtype = float8)",
            "CREATE TYPE pair AS (a int, b text)",
            "CREATE TABLE t (id int PRIMARY KEY, m span, ms span[], p pair, n numeric(4,1)[])",
        ],
    )
    .await;
    let dsn = |cluster: &Cluster| cluster.dsn_socket("postgres");
    let config = config(&dsn(&source), Some(&dsn(&target)), &["public.t"], "");
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    each(
        &client,
        &["INSERT INTO t VALUES (1, '[1,2)', '{empty,NULL}', '(1,canary)', '{1.5}')"],
    )
    .await;
    wait_for_value(&history, "SELECT count(*) FROM t_cdc", 1_i64, BOUND).await;
    assert_eq!(
        types_of(&history, "t_cdc").await,
        [
            "id integer",
            "m text",
            "ms text",
            "p text",
            "n numeric(4,1)[]",
            "old_id integer"
        ]
    );
    let row: String = value(&history, "SELECT concat_ws('|', m, ms, p, n) FROM t_cdc").await;
    assert_eq!(row, "[1,2)|{empty,NULL}|(1,canary)|{1.5}");
    let output = stop(daemon).await;
    // A composite is text everywhere.
    assert_eq!(complaints(&output).len(), 2, "{output}");
}
