//! The page about who made a change, step by step.

use super::block;
use super::set_up::{JOINED, PATIENCE, execute, stop, streaming, waltrail};
use crate::support::{server, texts, value, wait_for_value};

/// What stands in a list is indented.
pub(super) fn indented(name: &str) -> String {
    let lines = block_of_list(name).lines();
    lines.map(|line| format!("{}\n", line.trim())).collect()
}

/// The fenced block after the mark, in a list.
fn block_of_list(name: &str) -> &'static str {
    let rest = super::after(&format!("<!-- executed: {name} -->\n   ```"));
    rest.split_once('\n')
        .unwrap()
        .1
        .split_once("```")
        .unwrap()
        .0
}

#[tokio::test]
async fn the_page_says_who_changed_it() {
    let (cluster, client) = server().await;
    let (employees, _) = block("example").split_once(";\n").unwrap();
    execute(&client, employees).await;
    let dsn = cluster.dsn_socket("postgres");
    let config = format!(
        "snapshot.mode = 'never'\n[source]\ndsn = '{dsn}'\n[[table]]\nsource = 'employees'\n{}",
        indented("who-config")
    );
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("waltrail.toml"), &config).unwrap();
    for line in indented("who-set-up")
        .lines()
        .filter(|line| !line.is_empty())
    {
        let printed = waltrail(folder.path(), line);
        assert_eq!(
            printed.contains("CREATE TRIGGER"),
            line.ends_with("--dry-run")
        );
    }
    execute(&client, block("who-own-history")).await;
    let daemon = streaming(&config).await;
    // What comes before that can become an existing row.
    wait_for_value(&client, JOINED, 1i64, PATIENCE).await;
    execute(
        &client,
        "INSERT INTO employees (name, salary) VALUES ('Ada', 5000);\n",
    )
    .await;
    for part in ["who-application", "who-more", "who-message"] {
        execute(&client, block(part)).await;
    }
    wait_for_value(
        &client,
        "SELECT count(*) FROM employees_cdc",
        4i64,
        PATIENCE,
    )
    .await;
    let query = block("who-query").trim_end().trim_end_matches(';');
    let who = format!("SELECT concat_ws(' ', salary, app_user, role) FROM ({query}) answers");
    let said = [
        "7000 postgres",
        "6500 postgres",
        "6000 42 postgres",
        "5000 postgres",
    ];
    assert_eq!(
        texts(&client, &who).await,
        said.map(|said| Some(said.to_owned()))
    );
    let more = "SELECT string_agg(coalesce(context ->> 'ticket', context ->> 'batch'), ' ' ORDER BY cdc_id) FROM employees_cdc";
    assert_eq!(value::<String>(&client, more).await, "4711 night");
    execute(&client, block("who-removal")).await;
    let left = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'waltrail%'";
    assert_eq!(value::<i64>(&client, left).await, 0);
    stop(daemon).await;
}
