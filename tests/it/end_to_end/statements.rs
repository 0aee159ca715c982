//! Is every kind of statement recorded as it should be, in the plain history of the design and in one that
//! waltrail made itself?

use crate::support::scene::Scene;
use crate::support::{EMPLOYEES, each, texts, value};

#[derive(Clone, Copy, PartialEq, Eq)]
enum History {
    /// As the design has it, without any column that would help.
    Plain,
    /// Made by waltrail.
    Created,
}

const CONTRACTORS: &str = "
    CREATE TABLE contractors (id SERIAL PRIMARY KEY, name VARCHAR(100), employee INTEGER
        REFERENCES employees ON DELETE CASCADE ON UPDATE CASCADE);
    CREATE TABLE contractors_cdc (
        cdc_id SERIAL PRIMARY KEY, change_type VARCHAR(10), id INTEGER, name VARCHAR(100), employee INTEGER,
        change_timestamp TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
    CREATE TABLE noise (id integer);";

async fn scene(history: History) -> Scene {
    let mut ddl = format!("{EMPLOYEES}{CONTRACTORS}");
    if history == History::Created {
        ddl.push_str("DROP TABLE employees_cdc, contractors_cdc;");
    }
    Scene::new(&ddl, &["public.employees", "public.contractors"]).await
}

/// The end of every question: the histories are right, fold into the tables, and are in order.
async fn settle(scene: Scene, history: History, rows: usize) {
    let summary = scene.check().await;
    assert_eq!(summary.rows, rows);
    for table in ["employees", "contractors"] {
        scene.check_fold(&format!("public.{table}"), &["id"]).await;
        if history == History::Created {
            let disorder: i64 = value(
                &scene.target,
                &format!(
                    "SELECT count(*) FROM (SELECT (commit_lsn, tx_seq) > lag((commit_lsn, tx_seq))
                         OVER (ORDER BY cdc_id) AS rises FROM {table}_cdc) s WHERE NOT rises"
                ),
            )
            .await;
            assert_eq!(disorder, 0);
        }
    }
    scene.end().await;
}

const THREE: &str = "INSERT INTO employees (name, department, salary)
    VALUES ('Ann', 'R&D', 1), ('Bob', NULL, 2.50), ('Cy', '', NULL)";

async fn rows_that_are_inserted(history: History) {
    let scene = scene(history).await;
    each(
        &scene.source,
        &[
            "INSERT INTO employees (name, salary) VALUES ('one', 1)",
            THREE,
            "INSERT INTO employees (name) SELECT 'n' || n FROM generate_series(1, 40) n",
        ],
    )
    .await;
    settle(scene, history, 44).await;
}

async fn rows_that_are_copied_in(history: History) {
    let scene = scene(history).await;
    each(
        &scene.source,
        &[r"COPY employees (name, department, salary)
            FROM PROGRAM $$printf 'a\tx\t1\nb\t\\N\t2\nc\\td\t\t3\n'$$"],
    )
    .await;
    settle(scene, history, 3).await;
}

async fn rows_that_are_updated_and_deleted(history: History) {
    let scene = scene(history).await;
    each(
        &scene.source,
        &[
            THREE,
            "UPDATE employees SET salary = salary + 1",
            "UPDATE employees SET name = name WHERE id = 2",
            "UPDATE employees SET department = NULL WHERE id = 1",
            "DELETE FROM employees WHERE id = 1",
            "DELETE FROM employees",
        ],
    )
    .await;
    settle(scene, history, 3 + 3 + 1 + 1 + 1 + 2).await;
}

async fn a_key_that_changes(history: History) {
    let scene = scene(history).await;
    each(
        &scene.source,
        &[
            THREE,
            "UPDATE employees SET id = 10, salary = 7 WHERE id = 1",
            // The keys of two rows change places with a third.
            "BEGIN; UPDATE employees SET id = 11 WHERE id = 2; UPDATE employees SET id = 2 WHERE id = 3;
             INSERT INTO employees (id, name) VALUES (3, 'again'); COMMIT",
            "UPDATE employees SET id = id + 100",
        ],
    )
    .await;
    let rows = match history {
        // DELETE and INSERT for each change of a key.
        History::Plain => 3 + 2 + (2 + 2 + 1) + 8,
        History::Created => 3 + 1 + 3 + 4,
    };
    if history == History::Created {
        scene.check().await;
        let changes = texts(
            &scene.target,
            "SELECT format('%s %s->%s %s', change_type, old_id, id, tx_seq) FROM employees_cdc
             WHERE id <> old_id ORDER BY cdc_id LIMIT 3",
        )
        .await;
        let changes: Vec<String> = changes.into_iter().flatten().collect();
        assert_eq!(
            changes,
            ["UPDATE 1->10 1", "UPDATE 2->11 1", "UPDATE 3->2 2"]
        );
    }
    settle(scene, history, rows).await;
}

async fn tables_that_are_truncated(history: History) {
    let scene = scene(history).await;
    each(
        &scene.source,
        &[
            THREE,
            "INSERT INTO contractors (name) VALUES ('c')",
            "TRUNCATE contractors",
            "TRUNCATE contractors",
            "INSERT INTO contractors (name) VALUES ('d')",
            "TRUNCATE employees, contractors RESTART IDENTITY",
            THREE,
            // With a table that is not captured, among other changes.
            "BEGIN; INSERT INTO contractors (name) VALUES ('e'); TRUNCATE noise, employees CASCADE;
             INSERT INTO employees (name) VALUES ('last'); COMMIT",
        ],
    )
    .await;
    settle(scene, history, 3 + 1 + 1 + 1 + 1 + 2 + 3 + (1 + 2 + 1)).await;
}

async fn transactions_that_are_rolled_back(history: History) {
    let scene = scene(history).await;
    each(
        &scene.source,
        &[
            "BEGIN; INSERT INTO employees (name) VALUES ('never'); ROLLBACK",
            "INSERT INTO employees (name) VALUES ('kept')",
            "BEGIN; UPDATE employees SET salary = 1; TRUNCATE employees CASCADE; ROLLBACK",
            "DO $$ BEGIN INSERT INTO employees (name) VALUES ('caught'); RAISE 'no';
             EXCEPTION WHEN OTHERS THEN NULL; END $$",
        ],
    )
    .await;
    settle(scene, history, 1).await;
}

async fn savepoints_that_are_rolled_back(history: History) {
    let scene = scene(history).await;
    each(
        &scene.source,
        &["BEGIN; INSERT INTO employees (name) VALUES ('1');
           SAVEPOINT a; INSERT INTO employees (name) VALUES ('2');
             SAVEPOINT b; INSERT INTO employees (name) VALUES ('3');
               SAVEPOINT c; UPDATE employees SET salary = 4; RELEASE c;
             ROLLBACK TO b; INSERT INTO employees (name) VALUES ('5');
           RELEASE a; SAVEPOINT d; DELETE FROM employees; ROLLBACK TO d; RELEASE d;
           UPDATE employees SET salary = 6; COMMIT"],
    )
    .await;
    settle(scene, history, 1 + 1 + 1 + 3).await;
}

async fn transactions_without_captured_changes(history: History) {
    let scene = scene(history).await;
    each(
        &scene.source,
        &[
            "INSERT INTO noise VALUES (1)",
            "CREATE TABLE more_noise (id integer); DROP TABLE more_noise",
            "BEGIN; INSERT INTO noise VALUES (2); INSERT INTO employees (name) VALUES ('among'); 
             UPDATE noise SET id = 3; COMMIT",
            "SELECT pg_logical_emit_message(true, 'somebody', 'else')",
            "SELECT pg_logical_emit_message(false, 'somebody', 'else')",
            "UPDATE noise SET id = 4",
        ],
    )
    .await;
    settle(scene, history, 1).await;
}

async fn one_row_changed_many_times_in_one_transaction(history: History) {
    let scene = scene(history).await;
    each(
        &scene.source,
        &[
            THREE,
            "BEGIN; UPDATE employees SET salary = 10 WHERE id = 1; UPDATE employees SET salary = 11 WHERE id = 1;
             UPDATE employees SET salary = 12 WHERE id = 1; COMMIT",
            "BEGIN; INSERT INTO employees (id, name) VALUES (50, 'short'); UPDATE employees SET name = 'life'
             WHERE id = 50; DELETE FROM employees WHERE id = 50; COMMIT",
        ],
    )
    .await;
    settle(scene, history, 9).await;
}

async fn statements_that_choose_what_to_do(history: History) {
    let scene = scene(history).await;
    each(
        &scene.source,
        &[
            THREE,
            "INSERT INTO employees (id, name) VALUES (1, 'conflict'), (90, 'new')
             ON CONFLICT (id) DO UPDATE SET name = excluded.name",
            "INSERT INTO employees (id, name) VALUES (1, 'nothing') ON CONFLICT DO NOTHING",
        ],
    )
    .await;
    let mut rows = 3 + 2;
    let version: i32 = value(
        &scene.source,
        "SELECT current_setting('server_version_num')::int",
    )
    .await;
    if version >= 150_000 {
        each(
            &scene.source,
            &[
                "MERGE INTO employees e USING (VALUES (1, 'gone'), (2, 'merged'), (91, 'in')) v (id, name)
             ON e.id = v.id WHEN MATCHED AND v.name = 'gone' THEN DELETE
             WHEN MATCHED THEN UPDATE SET name = v.name
             WHEN NOT MATCHED THEN INSERT (id, name) VALUES (v.id, v.name)",
            ],
        )
        .await;
        rows += 3;
    }
    settle(scene, history, rows).await;
}

async fn changes_that_cascade(history: History) {
    let scene = scene(history).await;
    each(
        &scene.source,
        &[
            THREE,
            "INSERT INTO contractors (name, employee) VALUES ('a', 1), ('b', 1), ('c', 2)",
            "DELETE FROM employees WHERE id = 1",
            "UPDATE employees SET id = 20 WHERE id = 2",
        ],
    )
    .await;
    let key_change = match history {
        History::Plain => 2,
        History::Created => 1,
    };
    settle(scene, history, 3 + 3 + 3 + key_change + 1).await;
}

async fn sessions_that_interleave(history: History) {
    let scene = scene(history).await;
    let (a, b) = (scene.session().await, scene.session().await);
    each(&scene.source, &[THREE]).await;
    each(
        &a,
        &["BEGIN; INSERT INTO employees (name) VALUES ('first to write')"],
    )
    .await;
    each(&b, &["BEGIN; UPDATE employees SET salary = 1 WHERE id = 1"]).await;
    each(
        &a,
        &["UPDATE employees SET name = 'still open' WHERE id = 2"],
    )
    .await;
    each(&b, &["INSERT INTO employees (name) VALUES ('b'); COMMIT"]).await;
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('between')"],
    )
    .await;
    each(&a, &["COMMIT"]).await;
    scene.check().await;
    let order = texts(
        &scene.target,
        "SELECT replace(name, 'CANARY_7f3a', '') FROM employees_cdc
         WHERE replace(name, 'CANARY_7f3a', '') ~ '^(first|b)' ORDER BY cdc_id",
    )
    .await;
    let order: Vec<String> = order.into_iter().flatten().collect();
    assert_eq!(order, ["b", "between", "first to write"]);
    settle(scene, history, 3 + 2 + 1 + 2).await;
}

macro_rules! in_both_histories {
    ($($question:ident),* $(,)?) => {
        mod plain {
            $(#[tokio::test] async fn $question() { super::$question(super::History::Plain).await; })*
        }
        mod created {
            $(#[tokio::test] async fn $question() { super::$question(super::History::Created).await; })*
        }
    };
}

in_both_histories!(
    rows_that_are_inserted,
    rows_that_are_copied_in,
    rows_that_are_updated_and_deleted,
    a_key_that_changes,
    tables_that_are_truncated,
    transactions_that_are_rolled_back,
    savepoints_that_are_rolled_back,
    transactions_without_captured_changes,
    one_row_changed_many_times_in_one_transaction,
    statements_that_choose_what_to_do,
    changes_that_cascade,
    sessions_that_interleave,
);
