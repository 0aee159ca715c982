//! Can a history that is altered while waltrail writes it take a value that is not the source's?
//!
//! The type of a column, or its modifier alone, is altered before the first write of a session and later; the next change
//! is a single row or several. Rows are written in binary (`t`) or as text (`x`, where the history widens a column).

use tokio_postgres::Client;

use crate::support::daemon::Daemon;
use crate::support::scene::{config, streaming};
use crate::support::{BOUND, each, server, value, wait_for_value};

/// A column, its type, another one whose assignment cast changes values in silence or refuses them, and such a value.
const ALTERED: [(&str, &str, &str, &str); 6] = [
    ("n", "numeric", "numeric(10,2)", "1.005"),
    ("s", "text", "varchar(3)", "'CANARY_7f3a'"),
    (
        "z",
        "timestamptz",
        "timestamptz(0)",
        "'2026-01-02 03:04:05.6+00'",
    ),
    (
        "z",
        "timestamptz",
        "timestamp",
        "'2026-01-02 03:04:05.6+00'",
    ),
    ("f", "float8", "real", "0.1"),
    ("b", "integer", "real", "16777217"),
];
const COLUMNS: &str = "id integer, n numeric, s text, z timestamptz, f float8, b integer";

/// Puts `rows` into the table in one transaction.
async fn insert(client: &Client, table: &str, rows: usize, column: &str, value: &str) {
    let insert = format!(
        "INSERT INTO {table} (id, {column}) SELECT last.id + n, {value}
           FROM (SELECT coalesce(max(id), 0) FROM {table}) AS last (id), generate_series(1, {rows}) n"
    );
    each(client, &[&insert]).await;
}

async fn recorded(client: &Client, table: &str) {
    let query = format!("SELECT count(*) >= (SELECT count(*) FROM {table}) FROM {table}_cdc");
    wait_for_value(client, &query, true, BOUND).await;
}

/// Rows whose value is not recorded as it is.
async fn wrong(client: &Client, table: &str, column: &str, value_: &str, beside: &str) -> i64 {
    let query = format!(
        "SELECT count(*) FROM {table}_cdc WHERE id IN (SELECT id FROM {table} WHERE {column} = {value_})
            AND ({column} = {value_} OR {beside} = {value_}) IS NOT TRUE"
    );
    value(client, &query).await
}

#[tokio::test]
async fn a_history_that_is_altered_while_it_is_written_refuses_what_it_would_change() {
    let (cluster, client) = server().await;
    let history = COLUMNS.replace("id integer", "cdc_id serial, change_type text, id integer");
    each(
        &client,
        &[
            &format!("CREATE TABLE t ({COLUMNS}, PRIMARY KEY (id))"),
            &format!("CREATE TABLE x ({COLUMNS}, PRIMARY KEY (id))"),
            &format!("CREATE TABLE t_cdc ({history})"),
            &format!(
                "CREATE TABLE x_cdc ({})",
                history.replace("id integer", "id bigint")
            ),
        ],
    )
    .await;
    let config = config(
        &cluster.dsn_socket("postgres"),
        None,
        &["public.t", "public.x"],
        "",
    );
    let mut n = 0;
    for (column, kind, altered, of) in ALTERED {
        for (table, rows) in [("t", 1), ("t", 3), ("x", 1), ("x", 3)] {
            let case = format!("{table}.{column} {altered} by {rows}");
            let mut daemon = Daemon::spawn(&config);
            streaming(&mut daemon).await;
            // Each second case alters before anything is written.
            n += 1;
            if n / 2 % 2 == 0 {
                insert(&client, table, rows, "n", "7").await;
                recorded(&client, table).await;
            }
            let alter = format!("ALTER TABLE {table}_cdc ALTER {column} TYPE");
            let without = "USING NULL";
            each(&client, &[&format!("{alter} {altered} {without}")]).await;
            insert(&client, table, rows, column, of).await;
            let (status, output) = daemon.wait(BOUND).await;
            assert_eq!(status.code(), Some(65), "{case}: {output}");
            assert!(
                output.contains("does not keep every value of"),
                "{case}: {output}"
            );
            each(&client, &[&format!("{alter} {kind} {without}")]).await;
            let mut daemon = Daemon::spawn(&config);
            let last = format!("SELECT max(id) FROM {table}");
            let last: i32 = value(&client, &last).await;
            let is_there = format!("SELECT count(*) = 1 FROM {table}_cdc WHERE id = {last}");
            wait_for_value(&client, &is_there, true, BOUND).await;
            let last_rows = format!(
                "SELECT count(*) FROM {table}_cdc WHERE id > {last} - {rows} AND {column} = {of}"
            );
            assert_eq!(
                value::<i64>(&client, &last_rows).await,
                rows as i64,
                "{case}"
            );
            daemon.sigterm();
            daemon.wait(BOUND).await;
        }
    }
}

#[tokio::test]
async fn a_history_of_ours_that_is_altered_while_it_is_written_gets_a_column_that_keeps_the_value()
{
    let (cluster, client) = server().await;
    for (n, (column, _, altered, of)) in ALTERED.into_iter().enumerate() {
        for rows in [1, 3] {
            let table = format!("t{n}{rows}");
            each(
                &client,
                &[&format!(
                    "CREATE TABLE {table} ({COLUMNS}, PRIMARY KEY (id))"
                )],
            )
            .await;
            let name = format!("public.{table}");
            let config = config(&cluster.dsn_socket("postgres"), None, &[&name], "");
            let mut daemon = Daemon::spawn(&config);
            streaming(&mut daemon).await;
            insert(&client, &table, rows, "n", "7").await;
            recorded(&client, &table).await;
            let alter = format!("ALTER TABLE {table}_cdc ALTER {column} TYPE {altered} USING NULL");
            each(&client, &[&alter]).await;
            insert(&client, &table, rows, column, of).await;
            recorded(&client, &table).await;
            let beside = format!("{column}_2");
            let wrong = wrong(&client, &table, column, of, &beside).await;
            assert_eq!(wrong, 0, "{table}.{column} {altered} by {rows}");
            daemon.sigterm();
            let (status, output) = daemon.wait(BOUND).await;
            assert_eq!(status.code(), Some(0), "{output}");
            assert!(
                output.contains("was altered while it was written"),
                "{output}"
            );
        }
    }
}
