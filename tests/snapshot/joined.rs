//! What is copied, and how it joins the changes.

use crate::scene::Scene;
use crate::support::EMPLOYEES;

#[tokio::test]
async fn rows_that_exist_are_recorded_and_changes_follow() {
    let ddl = format!(
        "{EMPLOYEES} INSERT INTO employees (name, salary) SELECT 'n' || n, n FROM generate_series(1, 1000) n;
         CREATE TABLE notes (id int PRIMARY KEY, body text);
         INSERT INTO notes SELECT n, repeat('x', n) FROM generate_series(1, 300) n;"
    );
    let tables = [
        "public.employees=public.employees_cdc(id)",
        "public.notes(id)",
    ];
    let mut scene = Scene::new(|builder| builder, &ddl, &tables, "").await;
    scene.start();
    scene.joined().await;
    scene
        .source
        .batch_execute(
            "UPDATE employees SET salary = 0 WHERE id <= 10; DELETE FROM employees WHERE id = 11;
             INSERT INTO notes VALUES (1000, 'new'); UPDATE notes SET id = id + 2000 WHERE id < 5",
        )
        .await
        .unwrap();
    assert_eq!(scene.check().await.0, 1300);
    scene.stop_silent().await;
    scene.start();
    scene.check().await;
    scene.stop_silent().await;
}
