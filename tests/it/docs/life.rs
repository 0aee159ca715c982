//! The pages about `waltrail log` and `waltrail undo`, as the role that only reads and adds.

use std::collections::BTreeSet;

use super::set_up::{self, PATIENCE, Place, execute};
use super::who::indented;
use super::{block, code, table};
use crate::support::{value, wait_for_value};

#[tokio::test]
async fn the_log_is_followed_and_changes_are_undone_as_the_pages_say() {
    let (cluster, app) = set_up::app().await;
    let place = Place::of(&cluster);
    execute(&app, block("roles")).await;
    let config = place.config("[context]\nsettings = []\n");
    place.set_up();
    let daemon = set_up::streaming(&config).await;
    // What comes before that can become an existing row.
    wait_for_value(&app, set_up::JOINED, 1i64, PATIENCE).await;
    app.batch_execute("INSERT INTO employees (name, department, salary) VALUES ('Ada', 'Sales', 5000), ('Bob', 'Research', 4000)")
        .await
        .unwrap();
    app.batch_execute("BEGIN").await.unwrap();
    let xid: String = value(&app, "SELECT pg_current_xact_id()::text").await;
    app.batch_execute(
        "SELECT pg_logical_emit_message(true, 'waltrail.context', '{\"app.user\": \"42\"}');
         UPDATE employees SET salary = 0; COMMIT",
    )
    .await
    .unwrap();
    wait_for_value(&app, set_up::ROWS, 4i64, PATIENCE).await;
    let this = |text: &str| text.replace("812", &xid);

    let life = place.sh(block("log-key"), &[]);
    assert!(
        life.contains("  by app.user=42\n  salary: 5000 -> 0\n"),
        "{life}"
    );
    let others = place.sh(&this(block("log-others")), &[]);
    assert_eq!(
        others.matches("public.employees").count(),
        2 + 4 + 4,
        "{others}"
    );
    let since = place.sh(&this(&indented("undo-log")), &[]);
    assert!(since.contains("id=2"), "{since}");
    let fields: BTreeSet<&str> = table("log-fields")
        .iter()
        .flat_map(|row| code(row[0]))
        .collect();
    let json = place.sh("waltrail --config waltrail.toml log employees --json", &[]);
    for line in json.lines() {
        let line: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
        let unknown = line.keys().find(|key| !fields.contains(key.as_str()));
        assert_eq!(unknown, None, "{line:?}");
    }
    for query in [block("log-cursor"), block("log-position")] {
        assert_eq!(
            app.simple_query(query).await.unwrap().len(),
            4 + 2,
            "{query}"
        );
    }
    let settled: bool = value(&app, block("log-settled")).await;
    assert!(settled);

    let script = |text: &str| {
        place.sh(&this(&indented(text)), &[]);
        std::fs::read_to_string(place.folder.path().join("undo.sql")).unwrap()
    };
    app.simple_query(&script("undo-xid")).await.unwrap();
    let salaries = "SELECT string_agg(salary::text, ' ' ORDER BY id) FROM employees";
    assert_eq!(value::<String>(&app, salaries).await, "5000 4000");
    wait_for_value(&app, set_up::ROWS, 6i64, PATIENCE).await;
    app.batch_execute("UPDATE employees SET salary = 1")
        .await
        .unwrap();
    wait_for_value(&app, set_up::ROWS, 8i64, PATIENCE).await;
    // Within these two hours the rows were added.
    app.simple_query(&script("undo-since")).await.unwrap();
    assert_eq!(value::<String>(&app, salaries).await, "1");
    set_up::stop(daemon).await;
}
