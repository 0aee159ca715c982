//! Values of every kind, on servers of one version and of two.

use std::time::Duration;

use throwaway::{Builder, Cluster};
use tokio_postgres::Client;

use super::{counts, named, scene, verify, verify_one};
use crate::support::daemon::{Daemon, run};
use crate::support::load::Plan;
use crate::support::scene::{config, streaming};
use crate::support::{BOUND, builder, connect, each, other_version, wait_for_value};

const TABLES: &str = r#"
    CREATE TYPE mood AS ENUM ('sad', 'glad');
    CREATE TYPE pair AS (a int, b text);
    CREATE DOMAIN percent AS numeric(5,2) CHECK (value <= 100);
    CREATE TABLE kinds (
        id bigint, part char(5), "Odd ""name" text, PRIMARY KEY (part, id),
        m mood, ms mood[], c char(4), n numeric, n2 numeric(10,2), p percent, j json, jb jsonb, t timestamp, tz timestamptz(3),
        d date, i interval, f8 float8, f4 float4, b bytea, ia int[], ta text[], na numeric[], mo money, u uuid, ip inet, ci cidr,
        bits bit(3), vb varbit, x xml, r int4range, pt point, co pair, bo bool, rc regclass, ch "char", tv tsvector,
        g int GENERATED ALWAYS AS (1) STORED);
    INSERT INTO kinds VALUES
        (1, 'a', '', 'sad', '{sad,NULL}', 'x', 1.50, 1.5, 99.5, '{"a" : 1,  "a":2}', '{"b":1.0}', 'infinity', '2026-01-01 12:00:00.123456+05',
         '0044-03-15 BC', '1 year -2 days 03:04:05.678', '-0', 'NaN', '\xdeadbeef', '[2:3]={1,NULL}', '{"a,b","NULL",NULL,""}', '{1.0,1.00}', '1234.5',
         '00000000-0000-0000-0000-000000000001', '10.0.0.1/8', '10.0.0.1', '101', '1', '<a>b</a>', '[1,5)', '(1,2)', '(1,"b c")', true, 'pg_class', 'q',
         'a fat cat');
    INSERT INTO kinds (id, part) VALUES (2, 'a b');
    INSERT INTO kinds VALUES
        (3, 'e', E'tab\there \\ "quoted" (x,y)\r\nline ü', 'glad', '{}', 'y  ', 'NaN', -0.01, 0, 'null', 'null', '-infinity',
         '2026-06-01 00:00:00.9999+00', 'infinity', '-1 mons', 1e300, 0.1, '', '{}', '{{a},{b}}', '{}', '-0.01', NULL, '::1', '::/0', '000', '',
         'text', 'empty', NULL, ROW(NULL, NULL), false, NULL, '', '');
    CREATE TABLE toast (id int PRIMARY KEY, big text, n int);
    ALTER TABLE toast ALTER big SET STORAGE EXTERNAL;
    INSERT INTO toast SELECT n, repeat(n::text, 3000), 0 FROM generate_series(1, 30) n;
    CREATE TABLE parts (id int, at date, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
    CREATE TABLE parts_2 PARTITION OF parts DEFAULT;
    INSERT INTO parts SELECT n, date '2026-01-20' + n, 'v' || n FROM generate_series(1, 30) n;
    CREATE TABLE loose (a int, b text);
    ALTER TABLE loose REPLICA IDENTITY FULL;
    INSERT INTO loose SELECT n / 2, 'b' FROM generate_series(1, 20) n;
    CREATE TABLE amounts (a numeric PRIMARY KEY, v text);
    INSERT INTO amounts VALUES (1.0, 'one'), (2, 'two');
    CREATE TABLE wide (id int PRIMARY KEY, n int, ci cidr);
    INSERT INTO wide VALUES (1, 1, '10.0.0.1'), (2, NULL, NULL);
    CREATE TABLE bare (id int PRIMARY KEY);
    INSERT INTO bare SELECT generate_series(1, 100);"#;

/// A history of the user's own, whose columns are wider.
const WIDE: &str = "CREATE TABLE wide_cdc (cdc_id bigserial PRIMARY KEY, change_type text, change_timestamp timestamptz, \
    id bigint, n numeric, ci inet)";

const NAMES: [&str; 7] = [
    "public.kinds",
    "public.toast",
    "public.parts",
    "public.loose",
    "public.amounts",
    "public.wide",
    "public.bare",
];

/// Statements after which every table is another one.
const CHANGES: [&str; 17] = [
    "UPDATE kinds SET n = 1.500, c = 'zz', part = 'new' WHERE id = 1",
    "UPDATE kinds SET id = 20, \"Odd \"\"name\" = 'x' WHERE id = 2",
    "INSERT INTO kinds (id, part, m) VALUES (4, '', 'glad')",
    "UPDATE toast SET n = n + 1",
    "UPDATE toast SET n = n + 1, id = id + 100 WHERE id < 5",
    "UPDATE toast SET n = n + 1 WHERE id > 20",
    "DELETE FROM toast WHERE id = 20",
    "UPDATE parts SET at = '2026-03-01' WHERE id = 2",
    "DELETE FROM parts WHERE id = 3",
    "UPDATE loose SET b = 'c' WHERE a = 3",
    "DELETE FROM loose WHERE a = 4",
    "INSERT INTO loose VALUES (5, NULL), (5, NULL)",
    "UPDATE wide SET n = 5 WHERE id = 2",
    "DELETE FROM bare WHERE id = 7",
    "BEGIN; TRUNCATE bare; INSERT INTO bare VALUES (1); SAVEPOINT s; INSERT INTO bare VALUES (2); ROLLBACK TO s; COMMIT",
    "INSERT INTO amounts VALUES (3, NULL); UPDATE amounts SET a = 4 WHERE a = 3",
    "UPDATE amounts SET v = 'once more' WHERE a = 4",
];

#[tokio::test]
async fn every_kind_of_value_and_table_is_the_same_on_both_sides() {
    let (mut scene, ticks) = scene(&format!("{TABLES}{WIDE};"), &NAMES).await;
    verify(&scene, &[], 0);
    each(&scene.source, &CHANGES).await;
    let tables = verify(&scene, &[], 0);
    let kinds = tables
        .iter()
        .find(|table| table["table"] == "public.kinds")
        .unwrap();
    // The name of an object, and what is not sent.
    assert_eq!(kinds["not_compared"], serde_json::json!(["rc"]));
    assert_eq!(kinds["rows"], 4);
    each(
        &scene.target,
        &[
            "DELETE FROM loose_cdc WHERE cdc_id = (SELECT min(cdc_id) FROM loose_cdc)",
            "UPDATE parts_cdc SET v = 'other' WHERE id = 10",
            "UPDATE toast_cdc SET big = 'other' WHERE id = 11 AND big IS NOT NULL",
            "INSERT INTO loose_cdc (change_type, change_timestamp, commit_lsn, tx_seq, xid, a, b) \
             SELECT 'INSERT', change_timestamp, commit_lsn, tx_seq, xid, 77, b FROM loose_cdc WHERE a = 1 LIMIT 2",
            "UPDATE kinds_cdc SET jb = '{\"b\": 1.00}' WHERE id = 1",
        ],
    )
    .await;
    let found = verify(&scene, &["--show-keys"], 1);
    let of = |name: &str| {
        let table = found.iter().find(|table| table["table"] == name);
        table.unwrap().clone()
    };
    assert_eq!(counts(&of("public.loose")), [1, 2, 0]);
    assert_eq!(
        named(&of("public.parts")),
        ["different [v] [10,2026-01-30]"]
    );
    assert_eq!(named(&of("public.toast")), ["different [big] [11]"]);
    assert_eq!(counts(&of("public.kinds")), [0, 0, 1]);
    assert_eq!(
        of("public.kinds")["keys"][0]["columns"],
        serde_json::json!(["jb"])
    );
    for name in ["public.amounts", "public.bare", "public.ticks"] {
        assert_eq!(of(name)["outcome"], "same");
    }
    let repaired = verify(&scene, &["--repair", "--yes"], 0);
    assert!(repaired.iter().all(|table| table["left"] == 0));
    verify(&scene, &[], 0);
    ticks.stop();
    scene.stop().await;
}

/// Two servers, a database on each, and a daemon between them.
async fn follow([source, target]: [Builder; 2], encoding: Option<[&str; 2]>) -> (Servers, Client) {
    let servers = [source, target].map(|builder| builder.start().unwrap());
    let mut dsns = servers
        .each_ref()
        .map(|server| server.dsn_socket("postgres"));
    if let Some(encodings) = encoding {
        for (server, encoding) in servers.iter().zip(encodings) {
            let client = connect(&server.dsn_socket("postgres")).await;
            let make = format!(
                "CREATE DATABASE other TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
            );
            each(&client, &[&make]).await;
        }
        dsns = servers.each_ref().map(|server| server.dsn_socket("other"));
    }
    let (source, target) = (connect(&dsns[0]).await, connect(&dsns[1]).await);
    each(&source, &[TABLES, super::TICKS]).await;
    // What a session writes by default must not matter.
    each(
        &target,
        &[
            WIDE,
            "ALTER ROLE ALL SET datestyle = 'SQL, DMY'",
            "ALTER ROLE ALL SET intervalstyle = 'iso_8601'",
            "ALTER ROLE ALL SET bytea_output = 'escape'",
            "ALTER ROLE ALL SET extra_float_digits = 0",
            "ALTER ROLE ALL SET timezone = 'Asia/Kolkata'",
        ],
    )
    .await;
    let mut tables = NAMES.to_vec();
    tables.push("public.ticks");
    let settings = config(&dsns[0], Some(&dsns[1]), &tables, "")
        .replace("mode = \"never\"", "mode = \"initial\"");
    let mut daemon = Daemon::spawn(&settings);
    streaming(&mut daemon).await;
    let done = "SELECT count(*) FROM waltrail.snapshot WHERE state = 'done'";
    wait_for_value(&target, done, 8_i64, BOUND).await;
    let servers = Servers {
        daemon,
        settings,
        dsn: dsns[0].clone(),
        _servers: servers,
    };
    (servers, source)
}

struct Servers {
    daemon: Daemon,
    settings: String,
    dsn: String,
    _servers: [Cluster; 2],
}

impl Servers {
    fn verify(&self) -> (Option<i32>, String) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("waltrail.toml");
        std::fs::write(&file, &self.settings).unwrap();
        let arguments = ["--config", file.to_str().unwrap(), "verify"];
        let (status, out, err) = run(folder.path(), &arguments, &[]);
        (status.code(), format!("{out}\n{err}"))
    }
}

async fn is_same_between(builders: [Builder; 2], encoding: Option<[&str; 2]>) {
    let (mut servers, source) = follow(builders, encoding).await;
    let ticks = Plan::new(servers.dsn.clone(), 1)
        .statements(|_| "UPDATE ticks SET n = n + 1".to_owned())
        .pause(Duration::from_millis(20))
        .start();
    each(&source, &CHANGES).await;
    let (code, output) = servers.verify();
    assert_eq!(code, Some(0), "{output}");
    ticks.stop();
    servers.daemon.sigterm();
    servers.daemon.wait(BOUND).await;
}

#[tokio::test]
async fn databases_of_two_encodings_are_compared() {
    is_same_between([builder(), builder()], Some(["LATIN1", "UTF8"])).await;
}

#[tokio::test]
async fn a_database_without_an_encoding_is_compared() {
    is_same_between([builder(), builder()], Some(["UTF8", "SQL_ASCII"])).await;
}

async fn is_same_from(source: u32, target: u32) {
    let (Some(source), Some(target)) = (other_version(source), other_version(target)) else {
        return;
    };
    let builders = [source, target].map(|found| builder().binaries(found));
    is_same_between(builders, None).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL 14 and 18: make test-versions"]
async fn a_table_of_14_is_compared_with_its_history_in_18() {
    is_same_from(14, 18).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL 14 and 18: make test-versions"]
async fn a_table_of_18_is_compared_with_its_history_in_14() {
    is_same_from(18, 14).await;
}

/// Equal keys that are written differently: the history is folded as the table's key tells rows apart.
#[tokio::test]
async fn a_key_that_is_written_differently_is_the_same_key() {
    let (mut scene, ticks) = scene(
        "CREATE TABLE amounts (a numeric PRIMARY KEY, v text); INSERT INTO amounts VALUES (1.0, 'one'), (2, 'two');",
        &["public.amounts(a)"],
    )
    .await;
    each(
        &scene.source,
        &[
            "UPDATE amounts SET a = 1.00 WHERE a = 1",
            "UPDATE amounts SET v = 'two!' WHERE a = 2",
        ],
    )
    .await;
    let found = verify_one(&scene, "public.amounts", &[], 0);
    assert_eq!(found["rows"], 2);
    ticks.stop();
    scene.stop().await;
}
