//! The functions beside a history, case by case.

use crate::support::daemon::Daemon;
use crate::support::scene::Scene;
use crate::support::{BOUND, connect, each, texts, value, wait_for_value, wait_until};

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

/// A history that waltrail makes, with values out of line.
const DOCS: &str =
    "CREATE TABLE docs (id int, part text, n int, body text, PRIMARY KEY (id, part));
    ALTER TABLE docs ALTER COLUMN body SET STORAGE EXTERNAL";

/// Waits until the history of `docs` has a row for the last change.
async fn recorded(scene: &Scene, n: i32) {
    each(
        &scene.source,
        &[&format!("INSERT INTO docs VALUES (-{n}, 'end', 0, '')")],
    )
    .await;
    let there = format!("SELECT count(*) FROM docs_cdc WHERE id = -{n}");
    wait_for_value(&scene.target, &there, 1i64, BOUND).await;
}

/// What the table has, as [`answered`] shows it.
const NOW: &str = "SELECT concat_ws(' ', id, part, n, left(body, 3), length(body)) FROM docs WHERE id > 0 ORDER BY 1";

async fn answered(scene: &Scene, from: &str) -> Vec<String> {
    rows(scene, &NOW.replace("FROM docs", &format!("FROM {from}"))).await
}

#[tokio::test]
async fn values_that_the_wal_lacks_are_carried_through_changes_of_the_key() {
    let mut scene = Scene::existing(|b| b, DOCS, &["public.docs(id, part)"], "").await;
    each(
        &scene.source,
        &["INSERT INTO docs VALUES (1, 'a', 1, repeat('x', 9000))"],
    )
    .await;
    scene.start().await;
    scene.joined().await;
    let mut then = Vec::new();
    for (n, change) in [
        "UPDATE docs SET n = 2 WHERE id = 1",
        "UPDATE docs SET id = 5 WHERE id = 1",
        "UPDATE docs SET n = 3 WHERE id = 5; UPDATE docs SET part = 'b', id = 6 WHERE id = 5",
        "INSERT INTO docs VALUES (5, 'a', 9, NULL), (1, 'a', 8, repeat('y', 9000))",
        "UPDATE docs SET n = n + 1 WHERE id > 0",
        "DELETE FROM docs WHERE id = 5",
        "TRUNCATE docs",
        "INSERT INTO docs VALUES (6, 'b', 1, repeat('z', 9000))",
        "UPDATE docs SET n = 5 WHERE id > 0; SAVEPOINT a; DELETE FROM docs; ROLLBACK TO a; UPDATE docs SET id = 7 WHERE id = 6",
    ]
    .iter()
    .enumerate()
    {
        each(&scene.source, &[&format!("BEGIN; {change}; COMMIT")]).await;
        // Every row that is not of this test has a number below zero.
        recorded(&scene, i32::try_from(n).unwrap() + 1).await;
        let at: String = value(&scene.source, "SELECT clock_timestamp()::text").await;
        let lsn: String = value(&scene.source, "SELECT pg_current_wal_lsn()::text").await;
        then.push((at, lsn, rows(&scene, NOW).await));
    }
    recorded(&scene, 99).await;
    for (at, lsn, were) in &then {
        assert_eq!(
            &answered(&scene, &format!("docs_as_of('{at}'::timestamptz)")).await,
            were,
            "{at}"
        );
        assert_eq!(
            &answered(&scene, &format!("docs_as_of('{lsn}'::pg_lsn)")).await,
            were,
            "{lsn}"
        );
        // A literal without a type.
        assert_eq!(
            &answered(&scene, &format!("docs_as_of('{lsn}')")).await,
            were,
            "{lsn}"
        );
        let valid = format!(
            "docs_versions v WHERE valid_from <= '{at}' AND (valid_to > '{at}' OR is_current) AND"
        );
        let query = NOW.replace("FROM docs WHERE", &format!("FROM {valid}"));
        assert_eq!(&rows(&scene, &query).await, were, "{at}");
    }
    for pair in then.windows(2) {
        let ((from, _, was), (to, _, is)) = (&pair[0], &pair[1]);
        let net = format!(
            "SELECT change_type, concat_ws(' ', id, part, n, left(body, 3), length(body)) \
               FROM docs_changes('{from}', '{to}') WHERE id > 0"
        );
        let mut state = was.clone();
        let key = |row: &str| row.split(' ').take(2).collect::<Vec<_>>().join(" ");
        for row in scene.target.query(&net, &[]).await.unwrap() {
            let (kind, text): (String, String) = (row.get(0), row.get(1));
            let known = state.iter().any(|other| key(other) == key(&text));
            assert_eq!(known, kind != "INSERT", "{kind} {text} in {state:?}");
            state.retain(|other| key(other) != key(&text));
            if kind != "DELETE" {
                state.push(text);
            }
        }
        state.sort();
        assert_eq!(&state, is, "from {from} to {to}");
    }
    scene.stop().await;
}

#[tokio::test]
async fn a_reader_needs_nothing_but_the_history() {
    let mut scene = Scene::existing(|b| b, DOCS, &["public.docs(id, part)"], "").await;
    each(
        &scene.source,
        &[
            "INSERT INTO docs VALUES (1, 'a', 1, 'x')",
            "CREATE ROLE reader LOGIN; CREATE ROLE stranger LOGIN",
        ],
    )
    .await;
    scene.start().await;
    scene.joined().await;
    each(&scene.target, &["GRANT SELECT ON docs_cdc TO reader"]).await;
    let dsn = scene.server.dsn_socket("postgres");
    let of = |role: &str| dsn.replace("user=postgres", &format!("user={role}"));
    let reader = connect(&of("reader")).await;
    // Objects of any schema could stand in for the server's.
    for query in [
        "SELECT count(*) FROM docs_as_of(now())",
        "SELECT count(*) FROM docs_versions",
        "SELECT count(*) FROM docs_changes(now(), now())",
    ] {
        let _: i64 = value(&reader, query).await;
    }
    let stranger = connect(&of("stranger")).await;
    for query in [
        "SELECT * FROM docs_as_of(now())",
        "SELECT * FROM docs_versions",
    ] {
        let error = stranger.query(query, &[]).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501", "{error}");
    }
    scene.stop().await;
}

#[tokio::test]
async fn functions_are_left_out_and_names_that_are_taken_are_left_alone() {
    let ddl = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY);
        CREATE FUNCTION b_as_of(timestamptz) RETURNS int LANGUAGE sql AS 'SELECT 7'";
    let tables = ["public.a(id)", "public.b(id)", "public.c(id)"];
    let mut scene = Scene::existing(|b| b, ddl, &tables, "").await;
    scene.config = scene
        .config
        .replace("'public.a'\n", "'public.a'\nfunctions = false\n");
    scene.start().await;
    scene.joined().await;
    let made = "SELECT array_agg(DISTINCT proname::text ORDER BY proname::text)::text FROM pg_proc \
        WHERE pronamespace = 'public'::regnamespace AND proname ~ '^[abc]_'";
    assert_eq!(
        value::<String>(&scene.target, made).await,
        "{b_as_of,c_as_of,c_changes,c_current,c_position,c_unbroken,c_versions}"
    );
    let seven: i32 = value(&scene.target, "SELECT b_as_of(now())").await;
    assert_eq!(seven, 7);
    let output = scene.stop_complaining().await;
    assert!(output.contains("one of their names is taken"), "{output}");
}

/// A column that comes is answered without a restart; what depends on the view keeps it, and the stream goes on.
#[tokio::test]
async fn the_functions_follow_schema_changes() {
    let mut scene = Scene::existing(|b| b, DOCS, &["public.docs(id, part)"], "").await;
    scene.start().await;
    scene.joined().await;
    each(
        &scene.source,
        &[
            "ALTER TABLE docs ADD COLUMN grade text",
            "INSERT INTO docs VALUES (1, 'a', 1, 'x', 'first')",
        ],
    )
    .await;
    let grade = "SELECT grade FROM docs_as_of(now()) WHERE id = 1";
    wait_until("the column is answered", BOUND, async || {
        let row = scene.target.query_opt(grade, &[]).await.ok().flatten()?;
        (row.get::<_, Option<&str>>(0) == Some("first")).then_some(())
    })
    .await;
    // A reader that keeps the view locked holds nothing up for long, and neither does a view on the view.
    each(
        &scene.target,
        &["CREATE VIEW mine AS SELECT id, grade FROM docs_versions"],
    )
    .await;
    each(
        &scene.source,
        &[
            "ALTER TABLE docs ADD COLUMN more int",
            "INSERT INTO docs VALUES (2, 'a', 1, 'x', 'second', 5)",
        ],
    )
    .await;
    wait_for_value(
        &scene.target,
        "SELECT count(*) FROM mine WHERE grade = 'second'",
        1i64,
        BOUND,
    )
    .await;
    let output = scene.stop_complaining().await;
    assert!(
        output.contains("goes on without the functions that answer from it"),
        "{output}"
    );
    each(&scene.target, &["DROP VIEW mine"]).await;
    scene.set_up().await;
    let more: i32 = value(
        &scene.target,
        "SELECT more FROM docs_as_of(now()) WHERE id = 2",
    )
    .await;
    assert_eq!(more, 5);
    // Altering and dropping the history is as if they were not there.
    each(
        &scene.target,
        &[
            "ALTER TABLE docs_cdc ALTER COLUMN n TYPE bigint",
            "DROP TABLE docs_cdc",
        ],
    )
    .await;
}

#[tokio::test]
async fn a_dry_run_prints_functions_that_work() {
    let scene = Scene::existing(|b| b, DOCS, &["public.docs(id, part)"], "").await;
    let mut dry = Daemon::spawn_with(&scene.config, &["setup", "--dry-run"], &[]);
    let (status, output) = dry.wait(BOUND).await;
    assert_eq!(status.code(), Some(0), "{output}");
    let begin = output.find("CREATE FUNCTION public.docs_position").unwrap();
    let functions = output[..begin].rfind("-- target").unwrap();
    let end = output[begin..]
        .find("-- source")
        .map_or(output.len(), |at| begin + at);
    scene.set_up().await;
    let drop = "DROP VIEW docs_versions; DROP FUNCTION docs_versions, docs_as_of(timestamptz), docs_as_of(pg_lsn), docs_as_of(text)";
    each(&scene.target, &[drop]).await;
    let again = output[functions..end].replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION");
    each(&scene.target, &[&again]).await;
    let mut dry = Daemon::spawn_with(&scene.config, &["setup", "--dry-run"], &[]);
    let (_, output) = dry.wait(BOUND).await;
    assert!(!output.contains("FUNCTION"), "{output}");
}
