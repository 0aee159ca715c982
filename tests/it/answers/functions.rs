//! The functions beside a history, case by case.

use crate::support::scene::Scene;
use crate::support::{BOUND, each, texts, value, wait_for_value};

/// As in the README.
const TABLES: &str = "CREATE TABLE employees (
        id SERIAL PRIMARY KEY, name VARCHAR(100), department VARCHAR(100), salary NUMERIC);
    CREATE TABLE employees_cdc (
        cdc_id SERIAL PRIMARY KEY, change_type VARCHAR(10),
        id INTEGER, name VARCHAR(100), department VARCHAR(100), salary NUMERIC,
        change_timestamp TIMESTAMP DEFAULT CURRENT_TIMESTAMP)";

async fn rows(scene: &Scene, query: &str) -> Vec<String> {
    let rows = texts(&scene.target, query).await;
    rows.into_iter().map(Option::unwrap_or_default).collect()
}

/// What the two tables of the README answer, exactly as they stand.
#[tokio::test]
async fn the_tables_of_the_readme_answer() {
    let mut scene = Scene::existing(|b| b, TABLES, &["public.employees(id)"], "").await;
    let two = "INSERT INTO employees (name, department, salary) VALUES ('Ada', 'R', 5000), ('Bob', 'S', 4000)";
    each(&scene.source, &[two]).await;
    scene.start().await;
    scene.joined().await;
    let start: String = value(&scene.target, "SELECT clock_timestamp()::text").await;
    let changes = [
        "UPDATE employees SET salary = 5500 WHERE name = 'Ada'",
        "UPDATE employees SET id = 7 WHERE id = 2",
        "DELETE FROM employees WHERE id = 1",
    ];
    each(&scene.source, &changes).await;
    let count = "SELECT count(*) FROM employees_cdc";
    wait_for_value(&scene.target, count, 6i64, BOUND).await;
    let then = format!("SELECT e::text FROM employees_as_of('{start}') e ORDER BY id");
    assert_eq!(
        rows(&scene, &then).await,
        ["(1,Ada,R,5000)", "(2,Bob,S,4000)"]
    );
    let now = "SELECT e::text FROM employees_as_of(now()) e";
    assert_eq!(rows(&scene, now).await, ["(7,Bob,S,4000)"]);
    let versions = "SELECT concat_ws(' ', id, salary, is_current) FROM employees_versions ORDER BY valid_from, id";
    assert_eq!(
        rows(&scene, versions).await,
        ["1 5000 f", "2 4000 f", "1 5500 f", "7 4000 t"]
    );
    let net = format!(
        "SELECT concat_ws(' ', change_type, id, name, salary, changed_columns) \
           FROM employees_changes('{start}', now(), net => true) ORDER BY id"
    );
    assert_eq!(
        rows(&scene, &net).await,
        [
            "DELETE 1 Ada 5000",
            "DELETE 2 Bob 4000",
            "INSERT 7 Bob 4000"
        ]
    );
    let all = format!(
        "SELECT concat_ws(' ', cdc_id, change_type, id, salary) FROM employees_changes('{start}', now(), net => false)"
    );
    assert_eq!(
        rows(&scene, &all).await,
        [
            "3 UPDATE 1 5500",
            "4 DELETE 2",
            "5 INSERT 7 4000",
            "6 DELETE 1"
        ]
    );
    let early = "SELECT count(*) FROM employees_as_of('2020-01-01')";
    let error = scene.target.query(early, &[]).await.unwrap_err();
    let message = error.as_db_error().unwrap().message();
    assert!(message.contains("begins at"), "{message}");
    scene.stop().await;
}
