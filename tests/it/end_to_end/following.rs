//! Do histories that waltrail made follow their tables through changes of the schema, without a value lost or in a wrong place?
//!
//! The truth is what a trigger saw of each row, with the columns that the table had then.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tokio_postgres::Client;

use crate::support::daemon::{Daemon, ending};
use crate::support::oracle::Oracle;
use crate::support::scene::{complaints, config, streaming};
use crate::support::{BOUND, each, server, server_with, texts, value, wait_for_value};
use throwaway::Cluster;

pub(super) struct Followed {
    daemon: Daemon,
    pub(super) client: Client,
    config: String,
    pub(super) cluster: Cluster,
}

pub(super) const TABLE: &str =
    "CREATE TABLE t (id integer PRIMARY KEY, name text, a integer, b integer)";

pub(super) async fn follow(ddl: &[&str], more: &str) -> Followed {
    let (cluster, client) = server().await;
    each(&client, ddl).await;
    Oracle::install(&client, &["public.t"]).await;
    let config = config(&cluster.dsn_socket("postgres"), None, &["public.t"], "");
    let config = format!("{more}\n{config}");
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    Followed {
        daemon,
        client,
        config,
        cluster,
    }
}

/// The columns of a row, as text.
type Columns = BTreeMap<String, Option<String>>;

fn columns(json: &str) -> Columns {
    let object: Map<String, Value> = serde_json::from_str(json).unwrap();
    let text = |value: Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    };
    let columns = object.into_iter();
    columns.map(|(name, value)| (name, text(value))).collect()
}

/// A value of a source column stands in one of its history columns, and the others are NULL.
fn is_kept(row: &Columns, column: &str, value: &Option<String>) -> bool {
    let is_of = |name: &str| {
        let beside = name.strip_prefix(column);
        beside.is_some_and(|rest| {
            let number = rest.strip_prefix('_');
            rest.is_empty() || number.is_some_and(|n| n.parse::<u8>().is_ok())
        })
    };
    let homes = row.iter().filter(|(name, _)| is_of(name));
    let found: Vec<&String> = homes.filter_map(|(_, value)| value.as_ref()).collect();
    match value {
        None => found.is_empty(),
        Some(value) => found == [value],
    }
}

impl Followed {
    /// Waits until the history has every change of the source, and compares each value of each with what the trigger saw.
    pub(super) async fn check(&self) -> usize {
        let document = "(SELECT jsonb_object_agg(key, value) FROM jsonb_each_text";
        let truth = texts(
            &self.client,
            &format!(
                "SELECT concat(op, ' ', {document}(coalesce(new, old)))::text)
                 FROM oracle.change ORDER BY coalesce(new, old) ->> 'id', seq"
            ),
        )
        .await;
        let count = format!("SELECT count(*) >= {} FROM t_cdc", truth.len());
        wait_for_value(&self.client, &count, true, BOUND).await;
        let found = texts(
            &self.client,
            &format!(
                "SELECT concat(change_type, ' ', {document}(to_jsonb(h)))::text)
                 FROM t_cdc h ORDER BY id::text, cdc_id"
            ),
        )
        .await;
        assert_eq!(found.len(), truth.len());
        for (truth, found) in truth.iter().flatten().zip(found.iter().flatten()) {
            let (op, new) = truth.split_once(' ').unwrap();
            let (change_type, row) = found.split_once(' ').unwrap();
            assert_eq!(change_type, op, "{truth}\n{found}");
            let row = columns(row);
            let known = columns(new).into_iter();
            // Of a removed row only the key is known.
            for (name, value) in known.filter(|(name, _)| op != "DELETE" || name == "id") {
                assert!(is_kept(&row, &name, &value), "{name}: {truth}\n{found}");
            }
        }
        truth.len()
    }

    async fn columns_of_history(&self) -> Vec<String> {
        let sql = "SELECT attname || ' ' || format_type(atttypid, atttypmod) FROM pg_attribute
             WHERE attrelid = 't_cdc'::regclass AND attnum > 6 AND attname <> 'unavailable_columns'
               AND NOT attisdropped ORDER BY attnum";
        let columns = texts(&self.client, sql).await;
        columns.into_iter().flatten().collect()
    }

    pub(super) async fn stop(&mut self) -> String {
        self.daemon.sigterm();
        let (status, output) = self.daemon.wait(BOUND).await;
        assert_eq!(status.code(), Some(0), "{output}");
        output
    }

    async fn start(&mut self) {
        self.daemon = Daemon::spawn(&self.config);
        streaming(&mut self.daemon).await;
    }
}

/// Each kind of change, with rows before and after it, and several of them within one transaction.
const CHANGES: [&str; 14] = [
    "INSERT INTO t VALUES (1, 'CANARY_7f3a', 1, 1)",
    "ALTER TABLE t ADD c integer DEFAULT 7",
    "INSERT INTO t VALUES (2, 'CANARY_7f3a', 2, 2, 8)",
    "UPDATE t SET c = 9 WHERE id = 1",
    "ALTER TABLE t RENAME a TO z",
    "INSERT INTO t VALUES (3, 'CANARY_7f3a', 3, 3, 3)",
    "ALTER TABLE t ALTER b TYPE bigint",
    "INSERT INTO t VALUES (4, 'CANARY_7f3a', 4, 5000000000, 4)",
    "BEGIN; INSERT INTO t VALUES (5, 'CANARY_7f3a', 5, 5, 5); ALTER TABLE t ADD d numeric(4,1);
     UPDATE t SET d = 1.5 WHERE id = 5; ALTER TABLE t DROP c, ALTER d TYPE numeric(6,3);
     UPDATE t SET d = 1.256 WHERE id = 5; ALTER TABLE t ALTER d TYPE text;
     UPDATE t SET d = 'words' WHERE id = 4; ALTER TABLE t ADD c text; UPDATE t SET c = 'again' WHERE id = 3; COMMIT",
    "UPDATE t SET id = 6 WHERE id = 5",
    "ALTER TABLE t ALTER b TYPE integer USING 1",
    "INSERT INTO t VALUES (7, 'CANARY_7f3a', 7, 7, 'more', 'text')",
    "DELETE FROM t WHERE id = 1",
    "INSERT INTO t SELECT n, 'CANARY_7f3a', n, n, 'words', 'more' FROM generate_series(10, 60) n",
];

/// As the daemon finds the columns. `d_2` is what the catalogs had after the transaction, and keeps what `d` had in between.
const AFTER_CHANGES: [&str; 11] = [
    "id integer",
    "name text",
    "a integer",
    "b integer",
    "old_id integer",
    "c integer",
    "z integer",
    "b_2 bigint",
    "d numeric(4,1)",
    "d_2 text",
    "c_2 text",
];

#[tokio::test]
async fn changes_of_the_schema_are_followed_live() {
    let mut followed = follow(&[TABLE], "").await;
    for change in CHANGES {
        each(&followed.client, &[change]).await;
        followed.check().await;
    }
    assert_eq!(followed.columns_of_history().await, AFTER_CHANGES);
    let output = followed.stop().await;
    let complaints = complaints(&output);
    let renamed = complaints
        .iter()
        .filter(|line| line.contains("was renamed"));
    assert_eq!(renamed.count(), 1, "{output}");
    let beside = complaints
        .iter()
        .filter(|line| line.contains("another type"));
    assert_eq!(beside.count(), 3, "{output}");
    assert_eq!(complaints.len(), 4, "{output}");
    // The same types find the same columns, and nothing is added twice.
    followed.start().await;
    each(
        &followed.client,
        &[
            "ALTER TABLE t ALTER b TYPE bigint",
            "INSERT INTO t VALUES (8, 'CANARY_7f3a', 8, 5000000001, 'more', 'text')",
        ],
    )
    .await;
    followed.check().await;
    assert_eq!(followed.columns_of_history().await, AFTER_CHANGES);
    followed.stop().await;
}

/// The catalogs are newer than every message.
#[tokio::test]
async fn changes_of_the_schema_are_followed_in_a_backlog() {
    let mut followed = follow(&[TABLE], "").await;
    followed.stop().await;
    each(&followed.client, &CHANGES).await;
    followed.start().await;
    followed.check().await;
    let mut columns = followed.columns_of_history().await;
    columns.sort();
    // What the catalogs have now is there first, and text keeps what was before it.
    let wanted = [
        "a integer",
        "b integer",
        "b_2 bigint",
        "c text",
        "d text",
        "id integer",
        "name text",
        "old_id integer",
        "z integer",
    ];
    assert_eq!(columns, wanted);
    let output = followed.stop().await;
    assert_eq!(
        complaints(&output)
            .iter()
            .filter(|line| line.contains("was renamed"))
            .count(),
        1,
        "{output}"
    );
}

#[tokio::test]
async fn a_backlog_that_is_read_by_sql_is_followed_too() {
    let mut followed = follow(&[TABLE], "").await;
    followed.stop().await;
    each(
        &followed.client,
        &["INSERT INTO t SELECT n, 'CANARY_7f3a', n, n FROM generate_series(100, 20099) n"],
    )
    .await;
    each(&followed.client, &CHANGES).await;
    // So that there is enough of it to be read by SQL.
    each(
        &followed.client,
        &["SELECT pg_logical_emit_message(true, 'more', repeat('x', 1000000)) FROM generate_series(1, 20)"],
    )
    .await;
    followed.start().await;
    followed.check().await;
    let output = followed.stop().await;
    assert!(output.contains("catching up"), "{output}");
}

/// Nothing of the old name is in the stream: the columns of the history say it.
#[tokio::test]
async fn a_column_that_is_renamed_while_the_daemon_is_away_is_named_once() {
    for before in ["", "INSERT INTO t VALUES (2, 'CANARY_7f3a', 2, 2);"] {
        let mut followed = follow(&[TABLE], "").await;
        each(
            &followed.client,
            &["INSERT INTO t VALUES (1, 'CANARY_7f3a', 1, 1)"],
        )
        .await;
        followed.check().await;
        followed.stop().await;
        each(
            &followed.client,
            &[
                &format!("{before} ALTER TABLE t RENAME a TO z"),
                "INSERT INTO t VALUES (3, 'CANARY_7f3a', 3, 3)",
            ],
        )
        .await;
        followed.start().await;
        followed.check().await;
        let output = followed.stop().await;
        let complaints = complaints(&output);
        assert_eq!(complaints.len(), 1, "{output}");
        assert!(complaints[0].contains("\"a\""), "{output}");
    }
}

#[tokio::test]
async fn a_wider_type_rounds_nothing() {
    let mut followed = follow(
        &["CREATE TABLE t (id int PRIMARY KEY, p numeric(10,2), at timestamp(0), w varchar(3), i interval(0), l numeric(4,1)[])"],
        "",
    )
    .await;
    let row = "'2020-01-01 00:00:00.75', 'abcd', '1 s 750 ms', '{1.25}'";
    each(
        &followed.client,
        &[
            "INSERT INTO t VALUES (1, 1.25, '2020-01-01', 'abc', '1 s', '{1.5}')",
            "ALTER TABLE t ALTER p TYPE numeric(14,4), ALTER at TYPE timestamp(6), ALTER w TYPE varchar(9),
                 ALTER i TYPE interval, ALTER l TYPE numeric[]",
            &format!("INSERT INTO t VALUES (2, 1.2567, {row})"),
            &format!("INSERT INTO t SELECT n, 1.2567, {row} FROM generate_series(3, 40) n"),
        ],
    )
    .await;
    followed.check().await;
    followed.stop().await;
    each(
        &followed.client,
        &[
            "ALTER TABLE t ALTER p TYPE numeric(20,10)",
            "INSERT INTO t SELECT n, 1.0000000001, now()::timestamp, 'x', '1.5 s', '{1.23456}' FROM generate_series(50, 90) n",
        ],
    )
    .await;
    followed.start().await;
    followed.check().await;
    followed.stop().await;
}

#[tokio::test]
async fn a_key_that_is_renamed_or_gets_another_type_keeps_its_former_values() {
    let mut followed = follow(
        &["CREATE TABLE t (id int, name text, PRIMARY KEY (id))"],
        "",
    )
    .await;
    each(
        &followed.client,
        &[
            "INSERT INTO t VALUES (1, 'CANARY_7f3a')",
            "ALTER TABLE t RENAME id TO k",
            "UPDATE t SET k = 2",
            "ALTER TABLE t ALTER k TYPE bigint",
            "UPDATE t SET k = 5000000000",
            "DELETE FROM t",
        ],
    )
    .await;
    wait_for_value(&followed.client, "SELECT count(*) FROM t_cdc", 4_i64, BOUND).await;
    let rows = texts(
        &followed.client,
        "SELECT concat_ws('|', change_type, id, old_id, k, old_k, k_2, old_k_2) FROM t_cdc ORDER BY cdc_id",
    )
    .await;
    let rows: Vec<String> = rows.into_iter().flatten().collect();
    assert_eq!(
        rows,
        [
            "INSERT|1",
            "UPDATE|2|1",
            "UPDATE|5000000000|2",
            "DELETE|5000000000|5000000000"
        ]
    );
    followed.stop().await;
}

/// What was recorded of the columns of a history that was dropped is not about the next one.
#[tokio::test]
async fn a_history_that_is_made_again_begins_with_the_rule() {
    let mut followed = follow(&[TABLE], "").await;
    each(
        &followed.client,
        &[
            "ALTER TABLE t ADD old_id integer",
            "INSERT INTO t VALUES (1, 'CANARY_7f3a', 1, 1, 5)",
        ],
    )
    .await;
    wait_for_value(&followed.client, "SELECT count(*) FROM t_cdc", 1_i64, BOUND).await;
    followed.stop().await;
    each(
        &followed.client,
        &[
            "DROP TABLE t_cdc",
            "ALTER TABLE t DROP old_id",
            "TRUNCATE t",
            "TRUNCATE oracle.change",
        ],
    )
    .await;
    followed.start().await;
    each(
        &followed.client,
        &[
            "INSERT INTO t VALUES (1, 'CANARY_7f3a', 1, 1)",
            "UPDATE t SET id = 2",
        ],
    )
    .await;
    let former =
        "SELECT old_id FROM t_cdc WHERE change_type = 'UPDATE' UNION ALL SELECT NULL LIMIT 1";
    wait_for_value(&followed.client, former, Some(1), BOUND).await;
    let recorded: i64 = value(&followed.client, "SELECT count(*) FROM waltrail.home").await;
    assert_eq!(recorded, 0);
    followed.stop().await;
}

/// Names that the source takes later are the source's, and no history column gets two meanings.
#[tokio::test]
async fn names_that_are_taken_later_get_a_number() {
    let mut followed = follow(&[TABLE], "").await;
    each(
        &followed.client,
        &[
            "INSERT INTO t VALUES (1, 'CANARY_7f3a', 1, 1)",
            "ALTER TABLE t ALTER b TYPE text",
            "INSERT INTO t VALUES (2, 'CANARY_7f3a', 1, 'words')",
        ],
    )
    .await;
    followed.check().await;
    each(
        &followed.client,
        &[
            "ALTER TABLE t ADD b_2 integer, ADD old_id integer, ADD change_type text, ADD cdc_id integer",
            "INSERT INTO t VALUES (3, 'CANARY_7f3a', 1, 'words', 2, 30, 'mine', 31)",
            "UPDATE t SET id = 4 WHERE id = 3",
        ],
    )
    .await;
    wait_for_value(&followed.client, "SELECT count(*) FROM t_cdc", 4_i64, BOUND).await;
    let rows = texts(
        &followed.client,
        "SELECT concat_ws('|', change_type, id, b, b_2, b_2_2, old_id_2, change_type_2, cdc_id_2, old_id)
         FROM t_cdc ORDER BY cdc_id",
    )
    .await;
    let rows: Vec<String> = rows.into_iter().flatten().collect();
    assert_eq!(
        rows,
        [
            "INSERT|1|1",
            "INSERT|2|words",
            "INSERT|3|words|2|30|mine|31",
            "UPDATE|4|words|2|30|mine|31|3"
        ]
    );
    followed.stop().await;
}

#[tokio::test]
async fn a_type_that_is_gone_by_now_is_kept_as_text() {
    let mut followed = follow(
        &[
            "CREATE TABLE t (id int PRIMARY KEY, name text)",
            "CREATE TYPE mood AS ENUM ('sad')",
        ],
        "",
    )
    .await;
    followed.stop().await;
    each(
        &followed.client,
        &[
            "ALTER TABLE t ADD m mood",
            "INSERT INTO t VALUES (1, 'CANARY_7f3a', 'sad')",
            "ALTER TABLE t DROP m",
            "DROP TYPE mood",
            "INSERT INTO t VALUES (2, 'CANARY_7f3a')",
        ],
    )
    .await;
    followed.start().await;
    followed.check().await;
    assert!(
        followed
            .columns_of_history()
            .await
            .contains(&"m text".to_owned())
    );
    followed.stop().await;
}

#[tokio::test]
async fn a_halt_stands_until_the_history_has_the_column() {
    let mut followed = follow(&[TABLE], "schema_changes = \"halt\"").await;
    each(
        &followed.client,
        &[
            "INSERT INTO t VALUES (1, 'CANARY_7f3a', 1, 1)",
            "ALTER TABLE t ADD c integer, ALTER b TYPE bigint",
            "INSERT INTO t VALUES (2, 'CANARY_7f3a', 2, 5000000000, 3)",
        ],
    )
    .await;
    let mut remedy = String::new();
    for again in [false, true] {
        if again {
            followed.daemon = Daemon::spawn(&followed.config);
        }
        let (status, output) = followed.daemon.wait(BOUND).await;
        assert_eq!(status.code(), Some(65), "{output}");
        assert!(
            output.contains("public.t_cdc has no column that keeps public.t.b of type bigint, public.t.c of type integer"),
            "{output}"
        );
        let rows: i64 = value(&followed.client, "SELECT count(*) FROM t_cdc").await;
        assert_eq!(rows, 1, "{output}");
        let (_, hint) = ending(&output);
        let (statement, _) = hint
            .split_once("; -- on the target; then start again")
            .unwrap();
        statement.clone_into(&mut remedy);
    }
    each(&followed.client, &[&remedy]).await;
    followed.start().await;
    followed.check().await;
    assert_eq!(complaints(&followed.stop().await), Vec::<&str>::new());
}

#[tokio::test]
async fn a_table_that_is_renamed_or_moved_is_followed() {
    let mut followed = follow(&[TABLE, "CREATE SCHEMA other"], "").await;
    for change in [
        "INSERT INTO t VALUES (1, 'CANARY_7f3a', 1, 1)",
        "ALTER TABLE t RENAME TO t2; INSERT INTO t2 VALUES (2, 'CANARY_7f3a', 1, 1)",
        "ALTER TABLE t2 SET SCHEMA other; INSERT INTO other.t2 VALUES (3, 'CANARY_7f3a', 1, 1)",
    ] {
        each(&followed.client, &[change]).await;
        followed.check().await;
    }
    let output = followed.stop().await;
    let warned = complaints(&output);
    assert_eq!(warned.len(), 2, "{output}");
    assert!(
        warned[0].contains("public.t2") && warned[1].contains("other.t2"),
        "{output}"
    );
}

/// The target is another server, which does not have the type of a column that is added.
#[tokio::test]
async fn a_new_column_of_a_type_that_the_target_lacks_is_text() {
    let (cluster, client) = server().await;
    let (target, history) = server_with(|builder| builder).await;
    let span = "CREATE TYPE span AS RANGE (subtype = float8)";
    each(&client, &[TABLE, span]).await;
    let dsn = |cluster: &Cluster| cluster.dsn_socket("postgres");
    let config = config(&dsn(&cluster), Some(&dsn(&target)), &["public.t"], "");
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    each(
        &client,
        &[
            "INSERT INTO t VALUES (1, 'CANARY_7f3a', 1, 1)",
            "ALTER TABLE t ADD m span, ADD ms span[]",
            "INSERT INTO t VALUES (2, 'CANARY_7f3a', 1, 1, '[1,2)', '{empty}')",
        ],
    )
    .await;
    let row = "SELECT count(*) FROM t_cdc";
    wait_for_value(&history, row, 2_i64, BOUND).await;
    let row: String = value(
        &history,
        "SELECT concat_ws('|', m, ms) FROM t_cdc WHERE id = 2",
    )
    .await;
    assert_eq!(row, "[1,2)|{empty}");
    daemon.sigterm();
    let (status, output) = daemon.wait(BOUND).await;
    assert!(status.success(), "{output}");
    let warned = complaints(&output);
    assert_eq!(warned.len(), 2, "{output}");
    assert!(
        warned[0].contains("span") && warned[1].contains("span[]"),
        "{output}"
    );
}
