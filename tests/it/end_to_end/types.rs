//! Does every value arrive as it was, in binary and as text, whatever the role's defaults?
//!
//! Here the comparison is of the text of each value on both sides, in one session: the oracle's JSON would hide differences.

use tokio_postgres::Client;

use crate::support::daemon::{Daemon, ending};
use crate::support::scene::{config, streaming};
use crate::support::{BOUND, connect, each, server, server_with, texts, value, wait_for_value};

/// Settings that change how values are written, for every session of the role that the daemon uses.
const ODD_ROLE: &str = "
    CREATE ROLE odd LOGIN SUPERUSER;
    ALTER ROLE odd SET DateStyle = 'SQL, DMY';
    ALTER ROLE odd SET IntervalStyle = 'sql_standard';
    ALTER ROLE odd SET extra_float_digits = -10;
    ALTER ROLE odd SET bytea_output = 'escape';
    ALTER ROLE odd SET TimeZone = 'Asia/Kathmandu';
    ALTER ROLE odd SET search_path = 'odd, public';
    ALTER ROLE odd SET xmloption = 'document';
    ALTER ROLE odd SET array_nulls = off;
    ALTER ROLE odd SET quote_all_identifiers = on;
    ALTER ROLE odd SET backslash_quote = off;
    ALTER ROLE odd SET lc_monetary = 'C';
    ALTER ROLE odd SET standard_conforming_strings = off;
    ALTER ROLE odd SET statement_timeout = '50ms';
    ALTER ROLE odd SET lock_timeout = '50ms';
    ALTER ROLE odd SET default_transaction_isolation = 'serializable';
    ALTER ROLE odd SET default_transaction_read_only = off;
    ALTER ROLE odd SET transform_null_equals = on;
    ALTER ROLE odd SET client_encoding = 'LATIN1';";

/// What history columns of type text must hold: the values as a session with these settings writes them.
const PINNED: &str = "SET DateStyle = 'ISO, MDY'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC';
    SET extra_float_digits = 3; SET bytea_output = 'hex'; SET lc_monetary = 'C'; SET search_path = ''";

const USER_TYPES: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'so so', 'glad, \"very\"');
    CREATE DOMAIN percent AS numeric CHECK (value BETWEEN 0 AND 100);
    CREATE DOMAIN percents AS percent;
    CREATE DOMAIN moods AS mood[];
    CREATE TYPE point3 AS (x integer, y text, z numeric);
    CREATE TYPE floats AS RANGE (subtype = float8);";

/// Type and three values of it. Each row gets one NULL of each as well.
const TYPES: &[(&str, &str, [&str; 3])] = &[
    ("boolean", "bo", ["true", "false", "NULL"]),
    ("smallint", "i2", ["-32768", "32767", "0"]),
    ("integer", "i4", ["-2147483648", "2147483647", "0"]),
    (
        "bigint",
        "i8",
        ["-9223372036854775808", "9223372036854775807", "0"],
    ),
    ("real", "f4", ["'NaN'", "'-Infinity'", "0.1"]),
    (
        "double precision",
        "f8",
        ["'-0'", "'Infinity'", "0.1::float8 + 0.2"],
    ),
    (
        "numeric",
        "nu",
        ["'NaN'", "'-Infinity'", "123456789012345678901234567890.000"],
    ),
    ("numeric(10,3)", "nu3", ["1.5", "'NaN'", "-0.001"]),
    ("money", "mo", ["'1234567.89'", "'-0.01'", "0"]),
    (
        "text",
        "te",
        [r"E'tab\there\nand\rthere\\N \\. \\'", "''", r"'\N'"],
    ),
    (
        "varchar(30)",
        "vc",
        [r"E'canary\b\f\v\x01'", "'ünïcödé 😀'", "'\\.'"],
    ),
    ("char(5)", "ch", ["'a'", "'     '", "'ab\tc'"]),
    ("\"char\"", "c1", ["'x'", "''", "'\\'"]),
    ("name", "na", ["'a name'", "''", "'x'"]),
    ("bytea", "by", [r"'\x00ff5c0a09'", "''", r"'\x5c4e'"]),
    (
        "date",
        "da",
        ["'infinity'", "'0001-01-01 BC'", "'2024-02-29'"],
    ),
    ("time", "ti", ["'24:00'", "'00:00:00.000001'", "'12:00'"]),
    (
        "timetz",
        "tz",
        ["'24:00+05:45'", "'00:00:00.000001-12'", "'12:00Z'"],
    ),
    (
        "timestamp",
        "ts",
        [
            "'-infinity'",
            "'4713-01-01 BC'",
            "'2024-03-31 02:30:00.123456'",
        ],
    ),
    (
        "timestamptz",
        "tt",
        [
            "'infinity'",
            "'-infinity'",
            "'2024-03-31 02:30:00.123456+05:45'",
        ],
    ),
    (
        "timestamptz(0)",
        "tt0",
        ["'2024-12-31 23:59:59.6Z'", "'294276-12-31'", "'1900-01-01'"],
    ),
    (
        "interval",
        "iv",
        [
            "'-1 year 2 months -3 days 04:05:06.7'",
            "'178000000 years'",
            "'0'",
        ],
    ),
    (
        "interval day to second",
        "ids",
        ["'1 02:03:04.5'", "'-1 day'", "'0'"],
    ),
    (
        "uuid",
        "uu",
        [
            "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
            "'00000000-0000-0000-0000-000000000000'",
            "NULL",
        ],
    ),
    (
        "json",
        "js",
        [
            r#"'{"b":1, "a" : "\t\\", "a":null}'"#,
            "'null'",
            r#"'"\u00e9"'"#,
        ],
    ),
    (
        "jsonb",
        "jb",
        [
            r#"'{"b":1, "a" : "\t\\", "a":null}'"#,
            "'null'",
            "'[1e400]'",
        ],
    ),
    (
        "jsonpath",
        "jp",
        ["'$.a[*] ? (@ > 1)'", "'$'", "'strict $.\"x y\"'"],
    ),
    (
        "xml",
        "xm",
        ["'<a b=\"1\">\t</a>'", "'<a/>'", "'<?x?><b/>'"],
    ),
    ("inet", "ine", ["'192.168.0.1/24'", "'::1'", "'10.0.0.1'"]),
    ("cidr", "ci", ["'10.0.0.0/8'", "'::/0'", "'10.1.2.3/32'"]),
    (
        "macaddr",
        "ma",
        ["'08:00:2b:01:02:03'", "'ff:ff:ff:ff:ff:ff'", "NULL"],
    ),
    (
        "macaddr8",
        "m8",
        ["'08:00:2b:01:02:03:04:05'", "NULL", "NULL"],
    ),
    ("bit(3)", "b3", ["'101'", "'000'", "'111'"]),
    ("bit varying", "bv", ["''", "'10101010101'", "'1'"]),
    (
        "point",
        "pt",
        ["'(0.1,-0)'", "'(NaN,Infinity)'", "'(1e300,1e-300)'"],
    ),
    ("line", "li", ["'{1,2,3}'", "'{0,1,0.1}'", "NULL"]),
    ("lseg", "ls", ["'[(0,0),(1,0.1)]'", "NULL", "NULL"]),
    ("box", "bx", ["'(1,1),(0,0.1)'", "NULL", "NULL"]),
    (
        "path",
        "pa",
        ["'[(0,0),(1,0.1)]'", "'((0,0),(1,1))'", "NULL"],
    ),
    ("polygon", "po", ["'((0,0),(1,0.1),(1,0))'", "NULL", "NULL"]),
    ("circle", "cc", ["'<(0,0),0.1>'", "NULL", "NULL"]),
    ("tsvector", "tv", ["'a:1A ''b c'':2,3'", "''", "'x'"]),
    ("tsquery", "tq", ["'a & !b:*A <2> c'", "''", "'x'"]),
    ("pg_lsn", "pl", ["'FFFFFFFF/FFFFFFFF'", "'0/0'", "NULL"]),
    ("xid8", "x8", ["'18446744073709551615'", "'0'", "NULL"]),
    ("oid", "oi", ["4294967295", "0", "1"]),
    (
        "integer[]",
        "ai",
        ["'{1,NULL,3}'", "'{}'", "'[2:3][0:1]={{1,2},{3,4}}'"],
    ),
    (
        "text[]",
        "at",
        [
            r#"'{a,"b,c","\"q\\\\",NULL,"NULL",""}'"#,
            "'{}'",
            r#"E'{"tab\\tnew\\nline"}'"#,
        ],
    ),
    ("varchar(4)[]", "av", ["'{a}'", "'{}'", "'{NULL}'"]),
    ("numeric[]", "an", ["'{NaN,Infinity,1.50}'", "'{}'", "NULL"]),
    (
        "timestamptz[]",
        "att",
        ["'{infinity,2024-01-01 00:00Z}'", "'{}'", "NULL"],
    ),
    (
        "jsonb[]",
        "aj",
        [r#"ARRAY['{"a":1}'::jsonb, 'null', NULL]"#, "'{}'", "NULL"],
    ),
    (
        "bytea[]",
        "ab",
        [r"ARRAY['\x00'::bytea, '']", "'{}'", "NULL"],
    ),
    ("int4range", "ri", ["'[1,5]'", "'empty'", "'(,)'"]),
    ("numrange", "rn", ["'(0.10,1.5]'", "'[1,]'", "'empty'"]),
    (
        "tstzrange",
        "rt",
        ["'[2024-01-01Z,infinity)'", "'empty'", "'(,2000-01-01)'"],
    ),
    (
        "daterange[]",
        "ard",
        ["'{\"[2024-01-01,2024-02-01)\",empty}'", "'{}'", "NULL"],
    ),
    ("int8multirange", "rm", ["'{[1,3),[5,9)}'", "'{}'", "NULL"]),
    (
        "regclass",
        "rc",
        ["'pg_catalog.pg_class'", "'public.everything'", "0"],
    ),
    ("regtype", "ry", ["'integer'", "'public.mood'", "NULL"]),
    (
        "public.mood",
        "em",
        ["'sad'", "'so so'", "'glad, \"very\"'"],
    ),
    (
        "public.mood[]",
        "aem",
        ["'{sad,\"so so\"}'", "'{}'", "NULL"],
    ),
    ("public.percent", "dp", ["99.50", "0", "NULL"]),
    ("public.percents", "dpp", ["1.0", "0", "NULL"]),
    ("public.moods", "dm", ["'{sad}'", "NULL", "NULL"]),
    (
        "public.point3",
        "co",
        [r#"'(1,"a,\"b",NaN)'"#, "'(,,)'", "'(0,\"\",)'"],
    ),
    (
        "public.point3[]",
        "aco",
        [r#"'{"(1,a,2)"}'"#, "'{}'", "NULL"],
    ),
    ("public.floats", "rf", ["'[0.1,0.3)'", "'empty'", "NULL"]),
    ("int2vector", "i2v", ["'1 -2'", "''", "NULL"]),
    ("oidvector", "ov", ["'4294967295 0'", "''", "NULL"]),
    (
        "int2vector[]",
        "ai2v",
        ["ARRAY['1 2'::int2vector, '']", "'{}'", "NULL"],
    ),
    (
        "oidvector[]",
        "aov",
        ["ARRAY['1 2'::oidvector, '']", "'{}'", "NULL"],
    ),
    (
        "interval[]",
        "aiv",
        ["'{1 day,NULL,-1 mon}'", "'{}'", "NULL"],
    ),
];

/// Types whose values have no binary form here, so that a table with one is followed as text.
const TEXT_ONLY: [&str; 12] = [
    "tq", "rc", "ry", "aem", "dm", "co", "aco", "rf", "i2v", "ov", "ai2v", "aov",
];

fn columns(chosen: &[usize], type_of: impl Fn(usize) -> String) -> String {
    chosen
        .iter()
        .map(|&n| format!(", {} {}", TYPES[n].1, type_of(n)))
        .collect()
}

/// Rows 1 to 3 with the values, and row 4 with NULLs.
async fn fill(client: &Client, table: &str, chosen: &[usize]) {
    for row in 0..3 {
        let values: String = chosen
            .iter()
            .map(|&n| format!(", {}", TYPES[n].2[row]))
            .collect();
        each(
            client,
            &[&format!("INSERT INTO {table} VALUES ({}{values})", row + 1)],
        )
        .await;
    }
    each(client, &[&format!("INSERT INTO {table} VALUES (4)")]).await;
}

/// Compares the text of every column. In one session both sides are written alike.
async fn same(client: &Client, source: &str, history: &str, chosen: &[usize]) {
    each(client, &[PINNED]).await;
    for &n in chosen {
        let (type_name, column, _) = TYPES[n];
        let as_text = |table: &str, order: &str| {
            // The output function, as in COPY: a cast to text makes other text of a boolean, and trims.
            format!(
                "SELECT CASE WHEN {column} IS DISTINCT FROM NULL THEN format('%s', {column}) END
                 FROM public.{table} ORDER BY {order}"
            )
        };
        let wanted = texts(client, &as_text(source, "id")).await;
        let found = texts(client, &as_text(history, "cdc_id")).await;
        assert_eq!(found, wanted, "{type_name} in {history}");
    }
}

/// Follows `everything` into the history of this definition, or the one that waltrail makes, and compares.
async fn follow(chosen: Vec<usize>, history: Option<String>, binary: bool) {
    let (cluster, client) =
        server_with(|builder| builder.setting("log_replication_commands", "on")).await;
    each(&client, &[ODD_ROLE, USER_TYPES]).await;
    each(
        &client,
        &[
            &format!(
                "CREATE TABLE everything (id integer PRIMARY KEY{})",
                columns(&chosen, |n| TYPES[n].0.to_owned())
            ),
            &history.unwrap_or_default(),
        ],
    )
    .await;
    let dsn = cluster
        .dsn_tcp("postgres")
        .replace("user=postgres", "user=odd");
    let config = config(&dsn, None, &["public.everything"], "").replace("level = \"info\"", "");
    let mut daemon = Daemon::spawn_with(&config, &["run"], &[("WALTRAIL_LOG__LEVEL", "debug")]);
    streaming(&mut daemon).await;
    fill(&client, "everything", &chosen).await;
    let reader = connect(&cluster.dsn_socket("postgres")).await;
    wait_for_value(&reader, "SELECT count(*) FROM everything_cdc", 4_i64, BOUND).await;
    same(&reader, "everything", "everything_cdc", &chosen).await;
    // More rows than are inserted one by one, so that COPY carries the same values too.
    each(&client, &["TRUNCATE everything"]).await;
    each(&client, &["BEGIN"]).await;
    for _ in 0..5 {
        each(&client, &["DELETE FROM everything"]).await;
        fill(&client, "everything", &chosen).await;
    }
    each(&client, &["COMMIT"]).await;
    wait_for_value(
        &reader,
        "SELECT count(*) FROM public.everything_cdc",
        4 + 1 + 4 * 9_i64,
        BOUND,
    )
    .await;
    each(
        &reader,
        &["DELETE FROM public.everything_cdc WHERE cdc_id <= (SELECT max(cdc_id) - 4 FROM public.everything_cdc)"],
    )
    .await;
    same(&reader, "everything", "everything_cdc", &chosen).await;
    daemon.sigterm();
    let (status, output) = daemon.wait(BOUND).await;
    assert!(status.success(), "{output}");
    assert_eq!(
        crate::support::scene::complaints(&output),
        Vec::<&str>::new()
    );
    let asked = cluster.log_text().contains("binary 'true'");
    assert_eq!(asked, binary, "asked for binary");
}

fn all() -> Vec<usize> {
    (0..TYPES.len()).collect()
}

#[tokio::test]
async fn types_with_a_binary_form_pass_through_unchanged() {
    let binary: Vec<usize> = all()
        .into_iter()
        .filter(|&n| !TEXT_ONLY.contains(&TYPES[n].1))
        .collect();
    follow(binary, None, true).await;
}

#[tokio::test]
async fn types_without_a_binary_form_pass_as_text_with_all_others() {
    follow(all(), None, false).await;
}

#[tokio::test]
async fn a_history_of_text_holds_every_value_as_postgres_writes_it() {
    let ddl = format!(
        "CREATE TABLE everything_cdc (cdc_id serial, change_type text, change_timestamp text,
             commit_lsn text, tx_seq text, xid text, id text{})",
        columns(&all(), |_| "text".to_owned())
    );
    follow(all(), Some(ddl), false).await;
}

#[tokio::test]
async fn history_columns_of_other_types_take_what_they_can_hold() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            ODD_ROLE,
            USER_TYPES,
            "CREATE TABLE t (id integer PRIMARY KEY, small smallint, day date, at timestamptz, label public.mood,
                 share percent, doc json, addr cidr, words varchar(5)[], amount numeric, raw bytea)",
            "CREATE TABLE t_cdc (cdc_id bigserial, change_type char(10), change_timestamp date, tx_seq smallint,
                 commit_lsn text, xid numeric, id bigint, small numeric, day timestamp, at timestamptz(0), label text,
                 share double precision, doc jsonb, addr inet, words text[], amount varchar, raw bytea,
                 unavailable_columns varchar(100), changed_columns varchar(20)[])",
        ],
    )
    .await;
    let dsn = cluster
        .dsn_tcp("postgres")
        .replace("user=postgres", "user=odd");
    let lossy = "source = 'public.t'\nallow_lossy = ['day', 'at', 'share', 'doc']";
    let config = config(&dsn, None, &["public.t"], "").replace("source = 'public.t'", lossy);
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    each(
        &client,
        &[
            r#"INSERT INTO t VALUES (1, -5, '2024-02-29', '2024-02-29 12:00:00.7+05:45', 'so so', 12.5, '{"b" :1}',
                 '10.0.0.0/8', E'{a,"b,\\\\c"}', 'NaN', '\x5c00')"#,
            "DELETE FROM t",
        ],
    )
    .await;
    wait_for_value(&client, "SELECT count(*) FROM t_cdc", 2_i64, BOUND).await;
    each(&client, &["SET TimeZone = 'UTC'"]).await;
    let row: String = value(
        &client,
        "SELECT to_jsonb(t)::text FROM (SELECT id, small, day, at, label, share, doc, addr, words, amount, raw,
             change_type, tx_seq, change_timestamp = (now() AT TIME ZONE 'UTC')::date AS today,
             commit_lsn ~ '^[0-9A-F]+/[0-9A-F]+$' AS lsn FROM t_cdc WHERE change_type = 'INSERT') t",
    )
    .await;
    let row: serde_json::Value = serde_json::from_str(&row).unwrap();
    assert_eq!(
        row,
        serde_json::json!({
            "id": 1, "small": -5, "day": "2024-02-29T00:00:00", "at": "2024-02-29T06:15:01+00:00", "label": "so so",
            "share": 12.5, "doc": {"b": 1}, "addr": "10.0.0.0/8", "words": ["a", "b,\\c"], "amount": "NaN",
            "raw": "\\x5c00", "change_type": "INSERT    ", "tx_seq": 1, "today": true, "lsn": true
        })
    );
    let missing: String = value(
        &client,
        "SELECT unavailable_columns FROM t_cdc WHERE change_type = 'DELETE'",
    )
    .await;
    assert_eq!(
        missing,
        r#"{"small","day","at","label","share","doc","addr","words","amount","raw"}"#
    );
    daemon.sigterm();
    assert!(daemon.wait(BOUND).await.0.success());
}

#[tokio::test]
async fn a_value_that_the_history_cannot_hold_stops_with_65_and_is_not_shown() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE TABLE t (id integer PRIMARY KEY, name text)",
            "CREATE TABLE t_cdc (cdc_id serial, change_type text, id smallint, name varchar(10), change_timestamp timestamptz)",
        ],
    )
    .await;
    let lossy = "source = 'public.t'\nallow_lossy = ['id', 'name']";
    let config = config(&cluster.dsn_socket("postgres"), None, &["public.t"], "")
        .replace("source = 'public.t'", lossy);
    let mut daemon = Daemon::spawn_with(&config, &["run"], &[("WALTRAIL_LOG__LEVEL", "trace")]);
    streaming(&mut daemon).await;
    each(
        &client,
        &[
            "INSERT INTO t VALUES (1, 'fits')",
            "INSERT INTO t VALUES (2, 'canary-that-does-not-fit')",
        ],
    )
    .await;
    let (status, output) = daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(65), "{output}");
    assert!(!output.contains("canary"), "{output}");
    assert_ne!(ending(&output).1, "", "{output}");
    // Once the history fits, nothing is missing and nothing is twice.
    each(
        &client,
        &["ALTER TABLE t_cdc ALTER name TYPE text, ALTER id TYPE integer"],
    )
    .await;
    let mut daemon = Daemon::spawn(&config);
    wait_for_value(
        &client,
        "SELECT string_agg(name, ',' ORDER BY cdc_id) FROM t_cdc",
        Some("fits,canary-that-does-not-fit".to_owned()),
        BOUND,
    )
    .await;
    daemon.sigterm();
    assert!(daemon.wait(BOUND).await.0.success());
}

/// Before 17 the bytes of 'infinity' are some other interval.
#[tokio::test]
async fn an_interval_with_infinity_has_another_binary_form_than_one_without() {
    let (cluster, client) = server().await;
    let types = waltrail::schema::types::types(&client, [(23, -1), (1186, -1), (1187, -1)]);
    let types = types.await.unwrap();
    let forms = types.values().flatten();
    let forms: Vec<_> = forms.map(|kind| kind.wire.as_deref().unwrap()).collect();
    let wanted = match cluster.binaries().major() >= 17 {
        true => ["23", "1186 with infinity", "1187 with infinity"],
        false => ["23", "1186", "1187"],
    };
    assert_eq!(forms, wanted);
}
