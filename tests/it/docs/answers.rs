//! The documents' questions to a history, and the answers that they show.

use throwaway::Cluster;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::set_up::{ROWS, execute, stop, streaming};
use super::{block, table};
use crate::support::{BOUND, each, server, value, wait_for_value};

/// Moments of the documents.
const MONDAY: &str = "2026-11-23 09:00+00";
const FRIDAY: &str = "2026-11-27 18:00+00";

/// The tables of the documents with a history, and when Monday and Friday were.
struct Place {
    // Held until the end.
    _cluster: Cluster,
    client: Client,
    monday: String,
    friday: String,
}

impl Place {
    async fn new() -> Self {
        let (cluster, client) = server().await;
        execute(&client, block("example")).await;
        each(
            &client,
            &[
                "CREATE TABLE orders (id int PRIMARY KEY, item text)",
                "CREATE TABLE sales (employee_id int, sold_at timestamptz, amount int)",
            ],
        )
        .await;
        let config = format!(
            "[source]\ndsn = '{}'\n[[table]]\nsource = 'employees'\n[[table]]\nsource = 'orders'\n",
            cluster.dsn_socket("postgres")
        );
        let daemon = streaming(&config).await;
        // Existing rows, of which there are none, are recorded first.
        let joined = "SELECT count(*) FROM waltrail.baseline";
        wait_for_value(&client, joined, 2i64, BOUND).await;
        let hire = "INSERT INTO employees (name, department, salary) VALUES ('Ada', 'Research', 5000), ('Bob', 'Sales', 4000)";
        let sale = |who: i32, amount: i32| {
            format!("INSERT INTO sales VALUES ({who}, clock_timestamp(), {amount})")
        };
        each(&client, &[hire, &sale(1, 10), &sale(2, 20)]).await;
        let monday = now(&client).await;
        each(
            &client,
            &[
                "UPDATE employees SET salary = 5500 WHERE name = 'Ada'",
                "DELETE FROM employees WHERE name = 'Bob'",
                "INSERT INTO employees (name, department, salary) VALUES ('Cid', 'Sales', 3000)",
                &sale(1, 30),
            ],
        )
        .await;
        let friday = now(&client).await;
        each(
            &client,
            &[
                "UPDATE employees SET salary = 0",
                "INSERT INTO orders VALUES (1, 'lamp'), (2, 'chair')",
                "DELETE FROM orders",
            ],
        )
        .await;
        wait_for_value(&client, ROWS, 7i64, BOUND).await;
        wait_for_value(&client, "SELECT count(*) FROM orders_cdc", 4i64, BOUND).await;
        stop(daemon).await;
        Self {
            _cluster: cluster,
            client,
            monday,
            friday,
        }
    }

    fn here(&self, sql: &str) -> String {
        sql.replace(MONDAY, &self.monday)
            .replace(FRIDAY, &self.friday)
    }

    /// What a query gives, in rows of cells as the documents show them.
    async fn rows(&self, sql: &str) -> Vec<Vec<String>> {
        let sql = self.here(sql);
        let messages = self.client.simple_query(&sql).await;
        let messages = messages.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let cell = |cell: Option<&str>| cell.unwrap_or_default().to_owned();
        rows.map(|row| (0..row.len()).map(|n| cell(row.get(n))).collect())
            .collect()
    }
}

async fn now(client: &Client) -> String {
    value(client, "SELECT clock_timestamp()::text").await
}

#[tokio::test]
async fn the_questions_have_the_answers_that_are_shown() {
    let place = Place::new().await;
    for name in [
        "as-of-table",
        "as-of-except",
        "as-of-row",
        "as-of-life",
        "as-of-changes",
        "as-of-before",
        "scd2-versions",
        "scd2-facts",
    ] {
        assert_eq!(place.rows(block(name)).await, table(name), "{name}");
    }
    the_models_give_the_versions(&place).await;
    let client = &place.client;
    // The statements that `check` prints, and then it has nothing to say.
    execute(client, block("answer-indexes")).await;
    let made: i64 = value(
        client,
        "SELECT count(*) FROM pg_index WHERE indrelid = 'employees_cdc'::regclass AND indisvalid",
    )
    .await;
    assert_eq!(made, 3);
    execute(client, block("drop-functions")).await;
    let left: i64 = value(
        client,
        "SELECT count(*) FROM pg_proc WHERE proname LIKE 'employees\\_%'",
    )
    .await;
    assert_eq!(left, 0);
}

/// What dbt makes of a model: the first time, or later.
fn rendered(model: &str, is_incremental: bool) -> String {
    let mut sql = String::new();
    let mut skips = false;
    for line in model.lines() {
        match line.trim() {
            line if line.starts_with("{{ config(") => {}
            "{% if is_incremental() %}" => skips = !is_incremental,
            "{% endif %}" => skips = false,
            _ if skips => {}
            _ => sql.push_str(&format!("{line}\n")),
        }
    }
    for table in ["employees_versions", "employees_cdc"] {
        sql = sql.replace(
            &format!("{{{{ source('app', '{table}') }}}}"),
            &format!("public.{table}"),
        );
    }
    let sql = sql.replace("{{ this }}", "public.dimension");
    assert!(!sql.contains('{'), "{sql}");
    sql
}

async fn the_models_give_the_versions(place: &Place) {
    let client = &place.client;
    let as_table = rendered(block("dbt-table"), false);
    each(client, &[&format!("CREATE TABLE versions AS {as_table}")]).await;
    let keys = "SELECT count(DISTINCT employee_version) FROM versions";
    assert_eq!(value::<i64>(client, keys).await, 6);
    let model = block("dbt-incremental");
    let first = rendered(model, false);
    // A run in between, as of the rows that were there on Friday.
    let friday = "SELECT max(cdc_id) FROM public.employees_cdc WHERE change_timestamp <= '2026-11-27 18:00+00'::timestamptz AT TIME ZONE 'UTC'";
    let upto: i32 = place.rows(friday).await[0][0].parse().unwrap();
    each(
        client,
        &[
            &format!("CREATE TABLE dimension AS {first}"),
            &format!("UPDATE dimension SET upto_cdc_id = {upto}"),
            "DELETE FROM dimension WHERE salary = 0",
            "UPDATE dimension SET valid_to = NULL, is_current = true WHERE id <> 2 AND salary IN (5500, 3000)",
        ],
    )
    .await;
    let next = rendered(model, true);
    each(
        client,
        &[
            &format!("CREATE TABLE next AS {next}"),
            "DELETE FROM dimension WHERE id IN (SELECT id FROM next)",
            "INSERT INTO dimension SELECT * FROM next",
        ],
    )
    .await;
    let touched = "SELECT string_agg(DISTINCT id::text, ' ') FROM next";
    assert_eq!(value::<String>(client, touched).await, "1 3");
    let differ = "SELECT count(*) FROM (
        (SELECT id, name, salary, valid_from, valid_to FROM dimension EXCEPT ALL SELECT id, name, salary, valid_from, valid_to FROM employees_versions)
        UNION ALL
        (SELECT id, name, salary, valid_from, valid_to FROM employees_versions EXCEPT ALL SELECT id, name, salary, valid_from, valid_to FROM dimension)) d";
    assert_eq!(value::<i64>(client, differ).await, 0);
    assert_eq!(
        value::<i64>(client, "SELECT count(*) FROM dimension").await,
        6
    );
}
