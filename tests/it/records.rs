//! What the control schema has to know so that a history can say what its table was: baselines, gaps, commit times out of order,
//! and where the values of a column stand that was added, renamed or made again.

use std::time::Instant;

use tokio_postgres::Client;

use crate::support::scene::Scene;
use crate::support::{BOUND, connect, each, texts, value, wait_for_value};

/// What each row of the table is by its history: the last row of each key, each column read as `waltrail.inherited` says, or
/// from its own history column.
const BY_HISTORY: &str = "
    WITH columns AS (
        SELECT c.name, c.\"column\" AS own FROM waltrail.layout l,
               jsonb_to_recordset(l.columns) AS c (name text, \"column\" text)
         WHERE l.history = 'public.{t}_cdc'
    ), last AS (
        SELECT DISTINCT ON (id) h.cdc_id, h.change_type, to_jsonb(h) AS row FROM {t}_cdc h ORDER BY id, cdc_id DESC
    ), known AS (
        SELECT l.cdc_id, c.name, i.known IS NOT FALSE AS known,
               CASE WHEN i.history IS NULL THEN l.row ->> c.own
                    WHEN i.history_column IS NULL THEN i.value ELSE l.row ->> i.history_column END AS value,
               count(*) OVER (PARTITION BY l.cdc_id, c.name) AS lines
          FROM last l CROSS JOIN columns c
          LEFT JOIN waltrail.inherited i ON i.history = 'public.{t}_cdc' AND i.source_column = c.name
           AND l.cdc_id > i.after_number AND l.cdc_id <= i.until_number
         WHERE l.change_type NOT IN ('DELETE', 'GAP')
    )
    SELECT string_agg(name || '=' || CASE WHEN lines > 1 THEN 'twice' WHEN known THEN coalesce(value, 'NULL') ELSE 'unknown' END,
                      ' ' ORDER BY name)
      FROM known GROUP BY cdc_id ORDER BY 1";

const BY_TABLE: &str = "
    SELECT (SELECT string_agg(c.key || '=' || coalesce(c.value, 'NULL'), ' ' ORDER BY c.key) FROM jsonb_each_text(to_jsonb(t)) c)
      FROM {t} t ORDER BY 1";

/// Waits until the history of a table says what the table is.
async fn becomes(source: &Client, target: &Client, table: &str) {
    let expected = texts(source, &BY_TABLE.replace("{t}", table)).await;
    is_said(target, table, &expected).await;
}

async fn is_said(target: &Client, table: &str, expected: &[Option<String>]) {
    let begun = Instant::now();
    loop {
        let said = target.query(&BY_HISTORY.replace("{t}", table), &[]).await;
        // A column can be on its way.
        let said: Vec<Option<String>> = said.iter().flatten().map(|row| row.get(0)).collect();
        if said == expected {
            return;
        }
        if begun.elapsed() > BOUND {
            let kept = format!(
                "SELECT to_jsonb(r)::text FROM waltrail.column_range r WHERE history = 'public.{table}_cdc'
                 UNION ALL SELECT columns::text FROM waltrail.layout WHERE history = 'public.{table}_cdc'
                 UNION ALL SELECT to_jsonb(h)::text FROM {table}_cdc h"
            );
            let kept = texts(target, &kept).await;
            panic!("{table} is {expected:#?}, and its history says {said:#?}: {kept:#?}");
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Each with what happens to its table `{t} (id int PRIMARY KEY, a int, b int)`, where a row is written before, between and
/// after.
const CHANGES: &[(&str, &[&str])] = &[
    (
        "added",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1)",
            "ALTER TABLE {t} ADD c int DEFAULT 5, ADD d text",
            "INSERT INTO {t} VALUES (2, 2, 2, 6, 'x')",
            "UPDATE {t} SET c = NULL WHERE id = 2",
        ],
    ),
    (
        "renamed",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1)",
            "ALTER TABLE {t} RENAME b TO c",
            "INSERT INTO {t} VALUES (2, 2, 2)",
            "ALTER TABLE {t} RENAME c TO d",
            "INSERT INTO {t} VALUES (3, 3, 3)",
        ],
    ),
    (
        "there_and_back",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1)",
            "ALTER TABLE {t} RENAME b TO c",
            "INSERT INTO {t} VALUES (2, 2, 2)",
            "ALTER TABLE {t} RENAME c TO b",
            "INSERT INTO {t} VALUES (3, 3, 3)",
        ],
    ),
    (
        "name_used_again",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1)",
            "ALTER TABLE {t} RENAME b TO c",
            "INSERT INTO {t} VALUES (2, 2, 2)",
            "ALTER TABLE {t} ADD b int DEFAULT 9",
            "INSERT INTO {t} VALUES (3, 3, 3, 3)",
        ],
    ),
    (
        "name_used_again_twice",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1)",
            "BEGIN; ALTER TABLE {t} RENAME b TO c; ALTER TABLE {t} ADD b int DEFAULT 8; COMMIT",
            "INSERT INTO {t} VALUES (2, 2, 2, 2)",
            "BEGIN; ALTER TABLE {t} RENAME b TO d; ALTER TABLE {t} ADD b int DEFAULT 9; COMMIT",
            "INSERT INTO {t} VALUES (3, 3, 3, 3, 3)",
        ],
    ),
    (
        "name_used_again_at_once",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1)",
            "BEGIN; ALTER TABLE {t} RENAME b TO c; ALTER TABLE {t} ADD b int; COMMIT",
            "INSERT INTO {t} VALUES (3, 3, 3, 3)",
        ],
    ),
    (
        "dropped_and_made_again_later",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1)",
            "ALTER TABLE {t} DROP b",
            "INSERT INTO {t} VALUES (2, 2)",
            "ALTER TABLE {t} ADD b int DEFAULT 7",
            "INSERT INTO {t} VALUES (3, 3, 3)",
        ],
    ),
    (
        "made_again",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1)",
            "BEGIN; ALTER TABLE {t} DROP b; ALTER TABLE {t} ADD b int DEFAULT 7; COMMIT",
            "INSERT INTO {t} VALUES (2, 2, 8)",
        ],
    ),
    (
        "made_again_twice",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1)",
            "BEGIN; ALTER TABLE {t} DROP b; ALTER TABLE {t} ADD b int DEFAULT 7; COMMIT",
            "INSERT INTO {t} VALUES (2, 2, 8)",
            "BEGIN; ALTER TABLE {t} DROP b; ALTER TABLE {t} ADD b int DEFAULT 9; COMMIT",
            "INSERT INTO {t} VALUES (3, 3, 10)",
        ],
    ),
    (
        "made_again_with_another_type",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1)",
            "BEGIN; ALTER TABLE {t} DROP b; ALTER TABLE {t} ADD b text DEFAULT 'seven'; COMMIT",
            "INSERT INTO {t} VALUES (2, 2, 'eight')",
        ],
    ),
    (
        "made_again_beside_others",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1)",
            "BEGIN; ALTER TABLE {t} DROP b; ALTER TABLE {t} ADD b int; ALTER TABLE {t} RENAME a TO x; COMMIT",
            "INSERT INTO {t} VALUES (2, 2, 8)",
        ],
    ),
    (
        "names_exchanged",
        &[
            "INSERT INTO {t} VALUES (1, 10, 20)",
            "BEGIN; ALTER TABLE {t} RENAME a TO x; ALTER TABLE {t} RENAME b TO a; ALTER TABLE {t} RENAME x TO b; COMMIT",
            "INSERT INTO {t} VALUES (2, 30, 40)",
        ],
    ),
    (
        "other_type",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1)",
            "ALTER TABLE {t} ALTER b TYPE text",
            "INSERT INTO {t} VALUES (2, 2, 'two')",
            "ALTER TABLE {t} ALTER b TYPE int USING length(b)",
            "UPDATE {t} SET b = 4",
            "ALTER TABLE {t} RENAME b TO c",
            "INSERT INTO {t} VALUES (3, 3, 3)",
        ],
    ),
    (
        "inside_a_transaction",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1)",
            "BEGIN; INSERT INTO {t} VALUES (2, 2, 2); ALTER TABLE {t} ADD c int DEFAULT 3; \
             INSERT INTO {t} VALUES (3, 3, 3, 4); ALTER TABLE {t} RENAME b TO d; INSERT INTO {t} VALUES (4, 4, 4, 5); COMMIT",
        ],
    ),
    (
        "partitioned",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1), (100, 1, 1)",
            "ALTER TABLE {t} ADD c int DEFAULT 5",
            "ALTER TABLE {t} RENAME b TO d",
            "INSERT INTO {t} VALUES (2, 2, 2, 6), (101, 2, 2, 6)",
        ],
    ),
];

async fn changing() -> Scene {
    let tables: Vec<String> = CHANGES
        .iter()
        .map(|(name, _)| format!("public.{name}"))
        .collect();
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    let ddl = |(name, _): &(&str, _)| match *name {
        "partitioned" => {
            "CREATE TABLE partitioned (id int PRIMARY KEY, a int, b int) PARTITION BY RANGE (id);
            CREATE TABLE low PARTITION OF partitioned FOR VALUES FROM (0) TO (50);
            CREATE TABLE high PARTITION OF partitioned FOR VALUES FROM (50) TO (500);"
                .to_owned()
        }
        name => format!("CREATE TABLE {name} (id int PRIMARY KEY, a int, b int);"),
    };
    let ddl: String = CHANGES.iter().map(ddl).collect();
    Scene::with(|builder| builder, &ddl, &tables, "").await
}

#[tokio::test]
async fn values_of_before_a_schema_change_are_known_while_it_is_followed() {
    let mut scene = changing().await;
    for (table, statements) in CHANGES {
        for statement in *statements {
            each(&scene.source, &[&statement.replace("{t}", table)]).await;
        }
        becomes(&scene.source, &scene.target, table).await;
    }
    // And at the next start.
    scene.stop_complaining().await;
    scene.start().await;
    for (table, _) in CHANGES {
        becomes(&scene.source, &scene.target, table).await;
    }
}

#[tokio::test]
async fn values_of_before_a_schema_change_are_known_that_is_read_later() {
    let mut scene = changing().await;
    for (table, statements) in CHANGES {
        each(&scene.source, &[&statements[0].replace("{t}", table)]).await;
        becomes(&scene.source, &scene.target, table).await;
    }
    scene.stop().await;
    for (table, statements) in CHANGES {
        for statement in &statements[1..] {
            each(&scene.source, &[&statement.replace("{t}", table)]).await;
        }
    }
    scene.start().await;
    for (table, _) in CHANGES {
        becomes(&scene.source, &scene.target, table).await;
    }
}

/// Number, commit time of the last row in order, and what is kept of it.
const BASELINES: &str = "
    SELECT format('%s: point %s, time %s, last %s, after gap %s', b.history, b.point = s.consistent_point,
                  b.taken_at = s.snapshot_time, b.last_number, b.after_gap)
      FROM waltrail.baseline b JOIN waltrail.snapshot s USING (slot, history) ORDER BY b.history, b.id";

#[tokio::test]
async fn each_time_the_existing_rows_are_recorded_is_kept() {
    let ddl =
        "CREATE TABLE t (id int PRIMARY KEY, b int); CREATE TABLE void (id int PRIMARY KEY, b int);
        INSERT INTO t SELECT n, n FROM generate_series(1, 7) n";
    let tables = ["public.t(id)", "public.void(id)"];
    let mut scene = Scene::existing(|builder| builder, ddl, &tables, "").await;
    scene.start().await;
    scene.joined().await;
    let baselines = |last: [&str; 2]| last.map(|last| Some(last.to_owned())).to_vec();
    let first = [
        "public.t_cdc: point t, time t, last 7, after gap 0",
        "public.void_cdc: point t, time t, last 0, after gap 0",
    ];
    assert_eq!(texts(&scene.target, BASELINES).await, baselines(first));
    each(&scene.source, &["INSERT INTO t VALUES (8, 8)"]).await;
    becomes(&scene.source, &scene.target, "t").await;
    scene.stop_complaining().await;

    // Another start takes none, and a table that is taken out and put back takes another.
    scene.start().await;
    scene.stop_complaining().await;
    assert_eq!(texts(&scene.target, BASELINES).await, baselines(first));
    let both = scene.config.clone();
    scene.config = both.replace("[[table]]\nsource = 'public.t'\n", "");
    scene.start().await;
    scene.stop_complaining().await;
    let gone = "INSERT INTO t VALUES (9, 9); UPDATE t SET b = 0 WHERE id = 1";
    let more = "ALTER TABLE t ADD c int DEFAULT 5; INSERT INTO t VALUES (10, 10, 10); ALTER TABLE t RENAME b TO d";
    each(&scene.source, &[gone, more]).await;
    scene.config = both;
    scene.start().await;
    scene.joined().await;
    each(&scene.source, &["INSERT INTO t VALUES (11, 11, 11)"]).await;
    // Of the rows of before nothing is left: they have keys that are there again.
    becomes(&scene.source, &scene.target, "t").await;
    let last = "SELECT b.last_number = (SELECT max(cdc_id) FROM t_cdc WHERE change_type = 'SNAPSHOT')
               AND b.after_gap = g.id AND g.whole_at BETWEEN (SELECT taken_at FROM waltrail.baseline ORDER BY id LIMIT 1)
                                                         AND b.taken_at
          FROM waltrail.baseline b, waltrail.gap g WHERE b.history = 'public.t_cdc' AND g.history = b.history
         ORDER BY b.id DESC LIMIT 1";
    assert!(value::<bool>(&scene.target, last).await);
    let count = "SELECT count(*) FROM waltrail.baseline WHERE history = 'public.t_cdc'";
    assert_eq!(value::<i64>(&scene.target, count).await, 2);
}

#[tokio::test]
async fn where_existing_rows_are_not_recorded_nothing_says_that_they_are() {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, b int); INSERT INTO t VALUES (1, 1)";
    let scene = Scene::new(ddl, &["public.t"]).await;
    let none = "SELECT count(*) FROM waltrail.baseline";
    assert_eq!(value::<i64>(&scene.target, none).await, 0);
    scene.end().await;
}

/// A transaction says itself when it committed, as those do that come from another server.
async fn commit_at(source: &Client, id: u32, time: &str) {
    let statement = format!(
        "BEGIN; SELECT pg_replication_origin_xact_setup('0/1', '{time}'); INSERT INTO t VALUES ({id}, 1); COMMIT"
    );
    source.batch_execute(&statement).await.unwrap();
}

#[tokio::test]
async fn by_how_much_commit_times_are_out_of_order_is_kept() {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, b int)";
    let mut scene = Scene::new(ddl, &["public.t"]).await;
    let origin =
        "SELECT pg_replication_origin_create('o'); SELECT pg_replication_origin_session_setup('o')";
    each(&scene.source, &[origin]).await;
    let is = async |seconds: f64, rows: i64| {
        let recorded = "SELECT count(*) FROM t_cdc";
        wait_for_value(&scene.target, recorded, rows, BOUND).await;
        let kept = "SELECT extract(epoch FROM disorder)::float8 FROM waltrail.checkpoint";
        assert_eq!(value::<f64>(&scene.target, kept).await, seconds);
    };
    is(0.0, 0).await;
    commit_at(&scene.source, 1, "2030-01-01 00:01:00+00").await;
    is(0.0, 1).await;
    commit_at(&scene.source, 2, "2030-01-01 00:00:50+00").await;
    is(10.0, 2).await;
    commit_at(&scene.source, 3, "2030-01-01 00:00:55+00").await;
    is(10.0, 3).await;
    commit_at(&scene.source, 4, "2030-01-01 00:00:30.5+00").await;
    is(29.5, 4).await;
    scene.stop().await;
    // The latest time is not kept, and may have been so much later than the last.
    scene.start().await;
    let is = async |seconds: f64, rows: i64| {
        let recorded = "SELECT count(*) FROM t_cdc";
        wait_for_value(&scene.target, recorded, rows, BOUND).await;
        let kept = "SELECT extract(epoch FROM disorder)::float8 FROM waltrail.checkpoint";
        assert_eq!(value::<f64>(&scene.target, kept).await, seconds);
    };
    commit_at(&scene.source, 5, "2030-01-01 00:00:40+00").await;
    is(29.5, 5).await;
    commit_at(&scene.source, 6, "2030-01-01 00:00:20+00").await;
    is(40.0, 6).await;
    // What began before this was measured stays unknown.
    let unknown = "UPDATE waltrail.checkpoint SET disorder = NULL";
    scene.stop().await;
    each(&scene.target, &[unknown]).await;
    scene.start().await;
    commit_at(&scene.source, 7, "2029-01-01 00:00:00+00").await;
    let recorded = "SELECT count(*) FROM t_cdc";
    wait_for_value(&scene.target, recorded, 7i64, BOUND).await;
    let kept = "SELECT disorder IS NULL FROM waltrail.checkpoint";
    assert!(value::<bool>(&scene.target, kept).await);
    scene.stop().await;
}

/// No row of the stream says anything of it: the catalogs do, at a look.
#[tokio::test]
async fn a_column_that_no_row_has_yet_has_the_value_that_it_was_added_with() {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, b int)";
    let mut scene = Scene::new(ddl, &["public.t"]).await;
    each(&scene.source, &["INSERT INTO t VALUES (1, 1), (2, 2)"]).await;
    becomes(&scene.source, &scene.target, "t").await;
    let statement = "BEGIN; ALTER TABLE t ADD c int DEFAULT 5; ALTER TABLE t RENAME b TO d; COMMIT";
    each(&scene.source, &[statement]).await;
    becomes(&scene.source, &scene.target, "t").await;
    each(&scene.source, &["INSERT INTO t VALUES (3, 3, 3)"]).await;
    becomes(&scene.source, &scene.target, "t").await;
    scene.stop_complaining().await;
}

#[tokio::test]
async fn values_that_a_rewrite_gave_to_rows_are_not_made_up() {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, b int)";
    let mut scene = Scene::new(ddl, &["public.t"]).await;
    each(
        &scene.source,
        &[
            "INSERT INTO t VALUES (1, 1)",
            "ALTER TABLE t ADD c double precision DEFAULT random(), ADD d serial, ADD e int",
            "INSERT INTO t VALUES (2, 2, 0.5, 7)",
        ],
    )
    .await;
    let expected = [
        "b=1 c=unknown d=unknown e=NULL id=1",
        "b=2 c=0.5 d=7 e=NULL id=2",
    ];
    is_said(
        &scene.target,
        "t",
        &expected.map(|row| Some(row.to_owned())),
    )
    .await;
    let output = scene.stop_complaining().await;
    let warned = "the table was rewritten for a new column";
    assert_eq!(output.matches(warned).count(), 2, "{output}");
}

/// Neither the order of their ids nor the stream tells which of these transactions came first: one with a later id changed the
/// table before the column was made again, and one with an earlier id afterwards.
async fn make_again_among_others(source: &Client, dsn: &str, what: &str) {
    let (late, maker) = (connect(dsn).await, connect(dsn).await);
    each(&late, &["BEGIN; INSERT INTO elsewhere VALUES (1)"]).await;
    each(&maker, &["BEGIN; INSERT INTO elsewhere VALUES (2)"]).await;
    each(
        source,
        &[
            "INSERT INTO t VALUES (2, 2)",
            "ANALYZE t",
            "INSERT INTO t VALUES (3, 3)",
        ],
    )
    .await;
    each(&maker, &[what, "COMMIT"]).await;
    each(&late, &["INSERT INTO t VALUES (4, 4); COMMIT"]).await;
}

#[tokio::test]
async fn a_column_that_is_made_again_is_placed_among_transactions_that_overlap() {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, b int); CREATE TABLE elsewhere (x int)";
    let mut scene = Scene::new(ddl, &["public.t"]).await;
    let dsn = scene.server.dsn_socket("postgres");
    let again = "ALTER TABLE t DROP b, ADD b int DEFAULT 7";
    each(&scene.source, &["INSERT INTO t VALUES (1, 1)"]).await;
    becomes(&scene.source, &scene.target, "t").await;
    make_again_among_others(&scene.source, &dsn, again).await;
    becomes(&scene.source, &scene.target, "t").await;
    // And read later.
    scene.stop().await;
    each(&scene.source, &["DELETE FROM t WHERE id > 1"]).await;
    make_again_among_others(
        &scene.source,
        &dsn,
        "ALTER TABLE t DROP b, ADD b int DEFAULT 8",
    )
    .await;
    scene.start().await;
    becomes(&scene.source, &scene.target, "t").await;
    // A subtransaction has an id of its own.
    let inside = "DO $$ BEGIN ALTER TABLE t DROP b, ADD b int DEFAULT 9; EXCEPTION WHEN division_by_zero THEN END $$";
    scene.stop().await;
    each(&scene.source, &["DELETE FROM t WHERE id > 1"]).await;
    make_again_among_others(&scene.source, &dsn, inside).await;
    scene.start().await;
    let said = |line: &str| line.contains("is not certain");
    scene.daemon().wait_log(BOUND, said).await;
    scene.stop_complaining().await;
}

/// A column that the configuration leaves out has values, and they are nowhere.
#[tokio::test]
async fn values_of_a_column_that_was_left_out_are_not_known() {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, b int, c int)";
    let mut scene = Scene::new(ddl, &["public.t"]).await;
    scene.stop().await;
    let all = scene.config.clone();
    let left_out = "source = 'public.t'\nexclude_columns = [\"c\"]\n";
    scene.config = all.replace("source = 'public.t'\n", left_out);
    scene.start().await;
    each(&scene.source, &["INSERT INTO t VALUES (1, 1, 1)"]).await;
    let rows = "SELECT count(*) FROM t_cdc";
    wait_for_value(&scene.target, rows, 1i64, BOUND).await;
    scene.stop_complaining().await;
    scene.config = all;
    scene.start().await;
    each(&scene.source, &["INSERT INTO t VALUES (2, 2, 2)"]).await;
    let expected = ["b=1 c=unknown id=1", "b=2 c=2 id=2"];
    is_said(
        &scene.target,
        "t",
        &expected.map(|row| Some(row.to_owned())),
    )
    .await;
    scene.stop_complaining().await;
}

/// As a release before this one left them.
#[tokio::test]
async fn baselines_of_before_they_were_kept_are_found_in_the_histories() {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, b int); INSERT INTO t VALUES (1, 1), (2, 2)";
    let mut scene = Scene::existing(|builder| builder, ddl, &["public.t(id)"], "").await;
    scene.start().await;
    scene.joined().await;
    each(&scene.source, &["INSERT INTO t VALUES (3, 3)"]).await;
    becomes(&scene.source, &scene.target, "t").await;
    let kept = "SELECT format('%s %s %s %s %s', history, point, taken_at, last_number, after_gap) FROM waltrail.baseline";
    let baseline: String = value(&scene.target, kept).await;
    scene.stop_complaining().await;
    let former = "
        DROP VIEW waltrail.inherited;
        DROP TABLE waltrail.baseline, waltrail.layout, waltrail.column_range, waltrail.described;
        DROP FUNCTION waltrail.last_number, waltrail.arrived, waltrail.noted, waltrail.renumbered, waltrail.whole_until;
        ALTER TABLE waltrail.gap DROP whole_at; ALTER TABLE waltrail.watched DROP whole_time;
        ALTER TABLE waltrail.checkpoint DROP disorder; ALTER TABLE waltrail.held DROP opening;
        DELETE FROM waltrail.schema_history WHERE version >= 9";
    each(&scene.target, &[former]).await;
    scene.start().await;
    assert_eq!(value::<String>(&scene.target, kept).await, baseline);
    let unknown = "SELECT disorder IS NULL FROM waltrail.checkpoint";
    assert!(value::<bool>(&scene.target, unknown).await);
    each(
        &scene.source,
        &[
            "ALTER TABLE t ADD c int DEFAULT 5",
            "INSERT INTO t VALUES (4, 4, 4)",
        ],
    )
    .await;
    becomes(&scene.source, &scene.target, "t").await;
    scene.stop_complaining().await;
}
