//! Is nothing false where a partition has another replica identity than its table?
//!
//! The server tags an old tuple by the table's identity and fills it by the partition's. So each test has the rows that
//! must be there, and the oracle compares every value with the truth: it is that, or NULL and named.

use crate::support::scene::{Scene, assert_clean, complaints};
use crate::support::{BOUND, each, texts, wait_for_value};

/// What the daemon may say here.
const LACKING: &str = "a partition logs less of an old row than its table";

/// Waits for the history of `t` to have `wanted` rows, the last of which are these, and compares all with the truth.
async fn history(scene: &Scene, line: &str, rows: i64, wanted: &[&str]) {
    let count = "SELECT count(*) FROM t_cdc";
    wait_for_value(&scene.target, count, rows, BOUND).await;
    let query = format!("SELECT {line} FROM t_cdc ORDER BY cdc_id");
    let found: Vec<String> = texts(&scene.target, &query)
        .await
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(found[found.len() - wanted.len()..], *wanted);
    truth(scene).await;
}

async fn truth(scene: &Scene) {
    let compared = scene
        .oracle
        .compare_with_truth(&scene.source, "public.t", &scene.target, "t_cdc")
        .await;
    if let Err(difference) = compared {
        panic!("{difference}");
    }
}

/// The warning about this partition, which is given once.
fn warning(output: &str, partition: &str) -> serde_json::Value {
    let named = format!("\"partition\":\"public.{partition}\"");
    let lines: Vec<&str> = complaints(output)
        .into_iter()
        .filter(|line| line.contains(LACKING) && line.contains(&named))
        .collect();
    assert_eq!(lines.len(), 1, "{output}");
    serde_json::from_str(lines[0]).unwrap()
}

const DAYS: &str = "
    CREATE TABLE t (id int, day date, note text, n int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    ALTER TABLE t REPLICA IDENTITY FULL; ALTER TABLE t ALTER note SET STORAGE EXTERNAL;
    CREATE TABLE t1 PARTITION OF t FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
    ALTER TABLE t1 REPLICA IDENTITY FULL;
    CREATE TABLE t_cdc (cdc_id serial PRIMARY KEY, change_type text, id int, day date, note text, n int, old_id int,
        old_day date, old_note text, old_n int, change_timestamp timestamptz, changed_columns text[],
        unavailable_columns text[]);";

const NEW_PARTITION: &str =
    "CREATE TABLE t2 PARTITION OF t FOR VALUES FROM ('2024-02-01') TO ('2024-03-01')";

const DAYS_LINE: &str = "format('%s %s %s %s from %s %s %s changed %s missing %s', change_type, id,
    length(note), n, old_id, length(old_note), old_n, changed_columns, unavailable_columns)";

#[tokio::test]
async fn a_partition_made_later_without_full_identity_gives_no_false_value() {
    let mut scene = Scene::new(DAYS, &["public.t"]).await;
    each(
        &scene.source,
        &[
            "INSERT INTO t VALUES (7, '2024-01-05', NULL, 70)",
            // Every partition has FULL: NULL is a value.
            "UPDATE t SET n = 71 WHERE id = 7",
            NEW_PARTITION,
            "INSERT INTO t VALUES (1, '2024-02-05',
                 (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 300) i), 10)",
            "UPDATE t SET n = 11 WHERE id = 1",
            "UPDATE t SET id = 2 WHERE id = 1",
            "DELETE FROM t WHERE id = 2",
            // Nothing says which partition a change is of.
            "UPDATE t SET n = NULL WHERE id = 7",
            "UPDATE t SET note = 'canary' WHERE id = 7",
            "UPDATE t SET n = 72 WHERE id = 7",
            "UPDATE t SET n = 73 WHERE id = 7",
        ],
    )
    .await;
    history(
        &scene,
        DAYS_LINE,
        10,
        &[
            "INSERT 7  70 from    changed  missing ",
            "UPDATE 7  71 from 7  70 changed {n} missing ",
            "INSERT 1 9600 10 from    changed  missing ",
            "UPDATE 1  11 from 1   changed  missing {note,old_note,old_n}",
            "UPDATE 2  11 from 1   changed  missing {note,old_note,old_n}",
            "DELETE 2   from 2   changed  missing {note,n,old_note,old_n}",
            "UPDATE 7   from 7  71 changed  missing {old_note}",
            "UPDATE 7 6  from 7   changed  missing {old_note,old_n}",
            "UPDATE 7 6 72 from 7 6  changed  missing {old_n}",
            "UPDATE 7 6 73 from 7 6 72 changed {n} missing ",
        ],
    )
    .await;
    let warning = warning(&scene.daemon().output(), "t2");
    assert_eq!(warning["table"], "public.t");
    assert_eq!(warning["identity"], "DEFAULT (id, day)");
    let remedy = warning["remedy"].as_str().unwrap();
    each(
        &scene.source,
        &[
            remedy,
            "INSERT INTO t VALUES (3, '2024-02-05', NULL, 30)",
            "UPDATE t SET n = 31 WHERE id = 3",
            "DELETE FROM t WHERE id = 3",
        ],
    )
    .await;
    history(
        &scene,
        DAYS_LINE,
        13,
        &[
            "UPDATE 3  31 from 3  30 changed {n} missing ",
            "DELETE 3  31 from 3  31 changed  missing ",
        ],
    )
    .await;
    assert_clean(&scene.stop_complaining().await, &[LACKING]);
}

const REGIONS: &str = "
    CREATE TABLE t (id int, region text, code text NOT NULL, amount int, PRIMARY KEY (id, region))
        PARTITION BY LIST (region);
    CREATE TABLE t_eu PARTITION OF t FOR VALUES IN ('eu');";

/// A partition that identifies its rows by another column.
const BY_CODE: &str = "
    CREATE TABLE t_us (id int NOT NULL, region text NOT NULL, code text NOT NULL, amount int,
        PRIMARY KEY (id, region));
    CREATE UNIQUE INDEX u ON t_us (code); ALTER TABLE t_us REPLICA IDENTITY USING INDEX u;
    ALTER TABLE t ATTACH PARTITION t_us FOR VALUES IN ('us')";

const REGION_CHANGES: [&str; 7] = [
    "INSERT INTO t VALUES (5, 'eu', 'e', 50)",
    BY_CODE,
    "INSERT INTO t VALUES (1, 'us', 'a', 10)",
    "UPDATE t SET amount = 11 WHERE id = 1",
    "UPDATE t SET id = 2 WHERE id = 1",
    "UPDATE t SET code = 'b' WHERE id = 2",
    "DELETE FROM t WHERE id = 2",
];

#[tokio::test]
async fn a_partition_with_another_key_does_not_say_that_the_key_stayed() {
    let mut scene = Scene::new(REGIONS, &["public.t"]).await;
    each(&scene.source, &REGION_CHANGES).await;
    each(
        &scene.source,
        &[
            "UPDATE t SET amount = 51 WHERE id = 5",
            "UPDATE t SET id = 6 WHERE id = 5",
            "DELETE FROM t WHERE id = 6",
        ],
    )
    .await;
    let line = "format('%s %s %s %s %s from %s %s missing %s', change_type, id, region, code, amount, old_id,
        old_region, unavailable_columns)";
    history(
        &scene,
        line,
        9,
        &[
            "INSERT 5 eu e 50 from   missing ",
            "INSERT 1 us a 10 from   missing ",
            "UPDATE 1 us a 11 from   missing {old_id,old_region}",
            "UPDATE 2 us a 11 from   missing {old_id,old_region}",
            "UPDATE 2 us b 11 from   missing {old_id,old_region}",
            "DELETE   b  from   missing {id,region,amount,old_id,old_region}",
            // Nothing says which partition a change without an old tuple is of.
            "UPDATE 5 eu e 51 from   missing {old_id,old_region}",
            "UPDATE 6 eu e 51 from 5 eu missing ",
            "DELETE 6 eu   from 6 eu missing {code,amount}",
        ],
    )
    .await;
    let warning = warning(&scene.daemon().output(), "t_us");
    assert_eq!(warning["identity"], "USING INDEX (code)");
    let remedy = warning["remedy"].as_str().unwrap();
    each(
        &scene.source,
        &[
            remedy,
            "INSERT INTO t VALUES (3, 'us', 'c', 30)",
            "UPDATE t SET amount = 31 WHERE id = 3",
            "UPDATE t SET id = 4 WHERE id = 3",
        ],
    )
    .await;
    history(
        &scene,
        line,
        12,
        &[
            "UPDATE 3 us c 31 from 3 us missing ",
            "UPDATE 4 us c 31 from 3 us missing ",
        ],
    )
    .await;
    assert_clean(&scene.stop_complaining().await, &[LACKING]);
}

#[tokio::test]
async fn a_key_change_that_a_partition_does_not_log_is_not_split() {
    let ddl = format!(
        "{REGIONS} CREATE TABLE t_cdc (cdc_id serial, change_type text, id int, region text, code text, amount int,
             old_code text, change_timestamp timestamptz, changed_columns text[], unavailable_columns text[])"
    );
    let mut scene = Scene::new(&ddl, &["public.t"]).await;
    each(&scene.source, &REGION_CHANGES).await;
    let count = "SELECT count(*) FROM t_cdc";
    wait_for_value(&scene.target, count, 6_i64, BOUND).await;
    let found = texts(
        &scene.target,
        "SELECT format('%s %s %s %s %s from %s changed %s missing %s', change_type, id, region, code, amount, old_code,
             changed_columns, unavailable_columns) FROM t_cdc ORDER BY cdc_id",
    )
    .await;
    let found: Vec<String> = found.into_iter().flatten().collect();
    assert_eq!(
        found[2..],
        [
            "UPDATE 1 us a 11 from  changed  missing {old_code}",
            "UPDATE 2 us a 11 from  changed  missing {old_code}",
            "UPDATE 2 us b 11 from a changed  missing ",
            "DELETE   b  from b changed  missing {id,region,amount}",
        ]
    );
    assert_clean(&scene.stop_complaining().await, &[LACKING]);
}

const EVENTS: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v text, n int) PARTITION BY RANGE (id);
    CREATE TABLE t_a PARTITION OF t FOR VALUES FROM (0) TO (100);
    CREATE TABLE t_b PARTITION OF t FOR VALUES FROM (100) TO (200);";

const EVENTS_LINE: &str =
    "format('%s %s %s %s from %s missing %s', change_type, id, v, n, old_id, unavailable_columns)";

#[tokio::test]
async fn full_identity_of_the_partitioned_table_alone_gives_no_false_value() {
    let mut scene = Scene::new(EVENTS, &["public.t"]).await;
    each(
        &scene.source,
        &[
            "INSERT INTO t VALUES (1, 'canary', 1), (2, 'x', 2), (3, NULL, 3), (4, NULL, 4), (101, NULL, 5), (102, NULL, 6)",
            "DELETE FROM t WHERE id = 1",
            "ALTER TABLE t REPLICA IDENTITY FULL",
            "DELETE FROM t WHERE id = 2",
            "ALTER TABLE t_a REPLICA IDENTITY FULL",
            "DELETE FROM t WHERE id = 3",
            "DELETE FROM t WHERE id = 101",
            "ALTER TABLE t_b REPLICA IDENTITY FULL",
            "DELETE FROM t WHERE id = 102",
            // Now every partition has FULL, and NULL is a value.
            "DELETE FROM t WHERE id = 4",
        ],
    )
    .await;
    let wanted = [
        "DELETE 1   from 1 missing {v,n}",
        "DELETE 2   from 2 missing {v,n}",
        "DELETE 3  3 from 3 missing {v}",
        "DELETE 101   from 101 missing {v,n}",
        "DELETE 102  6 from 102 missing ",
        "DELETE 4  4 from 4 missing ",
    ];
    history(&scene, EVENTS_LINE, 12, &wanted).await;
    // The same while the daemon is away: the WAL has the catalogs as they were.
    each(
        &scene.source,
        &[
            "ALTER TABLE t REPLICA IDENTITY DEFAULT",
            "ALTER TABLE t_a REPLICA IDENTITY DEFAULT",
            "ALTER TABLE t_b REPLICA IDENTITY DEFAULT",
        ],
    )
    .await;
    scene.stop_complaining().await;
    each(
        &scene.source,
        &[
            "INSERT INTO t VALUES (1, 'x', 1), (2, 'x', 2), (3, NULL, 3)",
            "ALTER TABLE t REPLICA IDENTITY FULL",
            "DELETE FROM t WHERE id = 1",
            "ALTER TABLE t_a REPLICA IDENTITY FULL",
            "ALTER TABLE t_b REPLICA IDENTITY FULL",
            "DELETE FROM t WHERE id = 3",
        ],
    )
    .await;
    scene.start().await;
    let wanted = [
        "DELETE 1   from 1 missing {v,n}",
        "DELETE 3  3 from 3 missing ",
    ];
    history(&scene, EVENTS_LINE, 17, &wanted).await;
    assert_clean(&scene.stop_complaining().await, &[LACKING]);
}

#[tokio::test]
async fn a_column_renamed_in_every_partition_keeps_its_key() {
    let mut scene = Scene::new(
        &format!(
            "{EVENTS} CREATE TABLE t_cdc (cdc_id serial, change_type text, id int, key int, v text, n int, old_id int,
                 old_key int, change_timestamp timestamptz, unavailable_columns text[])"
        ),
        &["public.t"],
    )
    .await;
    each(
        &scene.source,
        &["INSERT INTO t VALUES (1, 'canary', 1), (101, 'x', 1)"],
    )
    .await;
    wait_for_value(&scene.target, "SELECT count(*) FROM t_cdc", 2_i64, BOUND).await;
    scene.stop().await;
    each(
        &scene.source,
        &[
            "INSERT INTO t VALUES (2, 'x', 1), (102, 'x', 1)",
            "ALTER TABLE t RENAME id TO key",
            "UPDATE t SET n = 2 WHERE key = 1",
            "UPDATE t SET key = 3 WHERE key = 2",
        ],
    )
    .await;
    scene.start().await;
    wait_for_value(&scene.target, "SELECT count(*) FROM t_cdc", 6_i64, BOUND).await;
    let found = texts(
        &scene.target,
        "SELECT format('%s %s %s from %s %s missing %s', change_type, id, key, old_id, old_key, unavailable_columns)
         FROM t_cdc WHERE change_type = 'UPDATE' ORDER BY cdc_id",
    )
    .await;
    let found: Vec<String> = found.into_iter().flatten().collect();
    assert_eq!(
        found,
        ["UPDATE  1 from  1 missing ", "UPDATE  3 from  2 missing ",]
    );
    let output = scene.stop_complaining().await;
    assert_clean(&output, &["a column was renamed"]);
}
