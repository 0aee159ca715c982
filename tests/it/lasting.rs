//! Faults that do not pass by themselves: they end with 65 and a remedy, and everything that was received whole before
//! them is in the history.

use crate::support::daemon::{Daemon, ending};
use crate::support::scene::{self, HELD_ELSEWHERE, Scene, streaming};
use crate::support::{BOUND, EMPLOYEES, each, server, value};

const TABLES: [&str; 1] = ["public.employees"];
const COUNT: &str = "SELECT count(*) FROM employees_cdc";
const END: &str = "SELECT end_lsn::text FROM waltrail.checkpoint";

/// The daemon ends with 65 and says all these parts, and again at the next start.
async fn stops(scene: &mut Scene, parts: &[&str]) {
    for again in [false, true] {
        if again {
            scene.spawn();
        }
        let (status, output) = scene.daemon().wait(BOUND).await;
        assert_eq!(status.code(), Some(65), "{output}");
        let (error, remedy) = ending(&output);
        println!("{error}\n{remedy}");
        for part in parts {
            assert!(
                error.contains(part) || remedy.contains(part),
                "no {part} in:\n{output}"
            );
        }
    }
}

/// The publication is dropped after so many transactions, while the daemon is away: all of them are recorded at the next
/// start. PostgreSQL 18 warns instead of failing.
async fn publication_dropped(transactions: i64) {
    let mut scene = Scene::new(EMPLOYEES, &TABLES).await;
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('one')"],
    )
    .await;
    scene.check().await;
    scene.stop().await;
    for _ in 0..transactions {
        each(
            &scene.source,
            &["INSERT INTO employees (name) VALUES ('before')"],
        )
        .await;
    }
    each(
        &scene.source,
        &[
            "DROP PUBLICATION waltrail",
            "INSERT INTO employees (name) VALUES ('last')",
        ],
    )
    .await;
    scene.spawn();
    let (status, output) = scene.daemon().wait(BOUND).await;
    assert_eq!(status.code(), Some(65), "{output}");
    let recorded: i64 = value(&scene.target, COUNT).await;
    assert_eq!(recorded, transactions + 1, "{output}");
    let end: String = value(&scene.target, END).await;
    stops(
        &mut scene,
        &[
            "publication \"waltrail\" did not exist at ",
            &format!("the history ends at {end}"),
            "waltrail accept-gap",
            "the publication was dropped",
        ],
    )
    .await;
}

#[tokio::test]
async fn a_publication_that_is_missing_in_a_backlog_is_noticed_too() {
    let mut scene = Scene::new(EMPLOYEES, &TABLES).await;
    scene.stop().await;
    let padding = "SELECT pg_logical_emit_message(true, 'padding', repeat('x', 17000000))";
    each(
        &scene.source,
        &[
            "INSERT INTO employees (name) VALUES ('before')",
            "DROP PUBLICATION waltrail",
            "INSERT INTO employees (name) VALUES ('after')",
            padding,
        ],
    )
    .await;
    scene.spawn();
    stops(&mut scene, &["publication \"waltrail\" did not exist at "]).await;
    assert_eq!(value::<i64>(&scene.target, COUNT).await, 1);
}

/// The gap would begin too early.
#[tokio::test]
async fn a_fault_of_the_source_does_not_stand_before_the_target_has_taken_what_precedes_it() {
    let mut scene = Scene::new(EMPLOYEES, &TABLES).await;
    scene.stop().await;
    each(
        &scene.source,
        &[
            "INSERT INTO employees (name) VALUES ('before')",
            "DROP PUBLICATION waltrail",
            "INSERT INTO employees (name) VALUES ('after')",
        ],
    )
    .await;
    let lock = scene.target_session().await;
    each(&lock, &["BEGIN", "LOCK TABLE employees_cdc IN SHARE MODE"]).await;
    let waits = |line: &str| line.contains("did not take the last changes");
    scene.spawn().wait_log(BOUND, waits).await;
    assert!(scene.daemon().is_running());
    each(&lock, &["COMMIT"]).await;
    stops(&mut scene, &["publication \"waltrail\" did not exist at "]).await;
    assert_eq!(value::<i64>(&scene.target, COUNT).await, 1);
}

#[tokio::test]
async fn three_transactions_before_a_dropped_publication_are_recorded() {
    publication_dropped(3).await;
}

#[tokio::test]
async fn three_thousand_transactions_before_a_dropped_publication_are_recorded_at_once() {
    publication_dropped(3000).await;
}

#[tokio::test]
async fn a_row_that_is_too_large_for_the_history_is_not_tried_for_ever() {
    let columns: Vec<String> = (0..1010).map(|n| format!("c{n} bigint")).collect();
    let ddl = format!(
        "CREATE TABLE wide (id bigint PRIMARY KEY, {})",
        columns.join(", ")
    );
    let mut scene = Scene::new(&ddl, &["public.wide"]).await;
    let names: Vec<String> = (0..995).map(|n| format!("c{n}")).collect();
    let insert = format!(
        "INSERT INTO wide (id, {}) SELECT {}1",
        names.join(", "),
        "1, ".repeat(995)
    );
    each(&scene.source, &[&insert]).await;
    stops(
        &mut scene,
        &[
            "row is too big",
            "public.wide_cdc",
            " after ",
            "table.exclude_columns",
        ],
    )
    .await;
}

#[tokio::test]
async fn a_table_of_more_columns_than_a_history_can_have_is_refused() {
    let columns: Vec<String> = (0..1596).map(|n| format!("c{n} bigint")).collect();
    let ddl = format!(
        "CREATE TABLE wide (id bigint PRIMARY KEY, {})",
        columns.join(", ")
    );
    let mut scene = Scene::existing(|builder| builder, &ddl, &["public.wide(id)"], "").await;
    scene.spawn();
    stops(
        &mut scene,
        &[
            "tables can have at most 1600 columns",
            "wide_cdc",
            "table.exclude_columns",
        ],
    )
    .await;
}

#[tokio::test]
async fn a_history_without_a_partition_for_the_row_says_so() {
    let ddl = format!(
        "{} DROP TABLE employees_cdc; CREATE TABLE employees_cdc (cdc_id bigserial, change_type text, id int, name text,
         department text, salary numeric, change_timestamp timestamp) PARTITION BY RANGE (id);
         CREATE TABLE employees_cdc_1 PARTITION OF employees_cdc FOR VALUES FROM (1) TO (10);",
        EMPLOYEES
    );
    let mut scene = Scene::new(&ddl, &TABLES).await;
    each(
        &scene.source,
        &["INSERT INTO employees (id, name) VALUES (20, 'far')"],
    )
    .await;
    stops(
        &mut scene,
        &["no partition", "public.employees_cdc", "PARTITION OF"],
    )
    .await;
    each(
        &scene.target,
        &["CREATE TABLE employees_cdc_d PARTITION OF employees_cdc DEFAULT"],
    )
    .await;
    scene.start().await;
    scene.finish(HELD_ELSEWHERE).await;
}

/// It may be a race: so it is tried a few times.
#[tokio::test]
async fn an_internal_error_of_a_server_is_tried_a_few_times() {
    // The first time is a warning, those that follow are logged at this level.
    let level = "level = \"debug\"\n";
    let mut scene = Scene::with(|builder| builder, EMPLOYEES, &TABLES, level).await;
    each(
        &scene.target,
        &["CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               RAISE EXCEPTION USING ERRCODE = 'XX000'; END $$",
          "CREATE TRIGGER fails AFTER INSERT ON employees_cdc FOR EACH ROW EXECUTE FUNCTION fails()"],
    )
    .await;
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('x')"],
    )
    .await;
    stops(&mut scene, &["internal error of the server", "XX000"]).await;
    let tried = |output: &str| {
        output
            .matches("the session failed and is started again")
            .count()
    };
    assert_eq!(tried(&scene.daemon().output()), 3);
    each(&scene.target, &["DROP TRIGGER fails ON employees_cdc"]).await;
    scene.start().await;
    scene.finish(HELD_ELSEWHERE).await;
}

#[tokio::test]
async fn existing_rows_of_a_column_with_any_name_are_recorded() {
    let ddl = "CREATE TABLE odd (id int PRIMARY KEY, \"{tx_seq}\" text); INSERT INTO odd VALUES (1, 'CANARY_7f3a')";
    let mut scene = Scene::existing(|builder| builder, ddl, &["public.odd(id)"], "").await;
    scene.start().await;
    assert_eq!(scene.check_existing().await.0, 1);
    scene.stop().await;
}

/// PostgreSQL's own limit of 1 GB for a message, in the stream and for an existing row. The values compress well, so that
/// only the server's memory is used.
#[tokio::test]
async fn a_change_that_is_too_large_for_a_message_is_not_decoded_for_ever() {
    let (server, client) = server().await;
    let dsn = server.dsn_socket("postgres");
    let value = "repeat('x', 280 * 1024 * 1024)";
    each(
        &client,
        &[
            "CREATE TABLE large (id int PRIMARY KEY, a text, b text)",
            "ALTER TABLE large REPLICA IDENTITY FULL",
            &format!("INSERT INTO large SELECT 1, {value}, {value}"),
        ],
    )
    .await;
    let config = scene::config(&dsn, None, &["public.large"], "");
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    let update = format!("UPDATE large SET a = {value} || 'y', b = {value} || 'z'");
    each(&client, &[&update]).await;
    let (status, output) = daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(65), "{output}");
    for part in [
        "could not send a change after ",
        "SQLSTATE 54000",
        "#a-change-cannot-be-sent",
    ] {
        assert!(output.contains(part), "no {part} in:\n{output}");
    }
}

#[tokio::test]
async fn an_existing_row_that_is_too_large_for_a_message_is_not_read_for_ever() {
    let (server, client) = server().await;
    let dsn = server.dsn_socket("postgres");
    each(
        &client,
        &[
            // A table that goes as text, and a value that takes twice as much then.
            "CREATE TABLE large (id int PRIMARY KEY, a bytea, q tsquery)",
            "INSERT INTO large SELECT 1, convert_to(repeat('x', 530 * 1024 * 1024), 'UTF8')",
        ],
    )
    .await;
    let config =
        scene::config(&dsn, None, &["public.large"], "").replace("\"never\"", "\"initial\"");
    let mut daemon = Daemon::spawn(&config);
    let (status, output) = daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(65), "{output}");
    for part in [
        "public.large",
        "invalid memory alloc request size",
        "SQLSTATE XX000",
    ] {
        assert!(output.contains(part), "no {part} in:\n{output}");
    }
}
