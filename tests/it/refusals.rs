//! What cannot work: each with its exit code, one clear sentence and a remedy, and nothing left half-done.
//!
//! Every refusal is asked for twice, once in each log format, at level trace; a value that stands in the
//! rows must not appear.

use std::time::Duration;

use crate::support::daemon::{CANARY, Daemon, ending};
use crate::support::oracle::Oracle;
use crate::support::scene::{
    HELD_ELSEWHERE, SERVER_GONE, Scene, assert_clean, config as changes, streaming, traced,
};
use crate::support::{BOUND, EMPLOYEES, server_with, source, wait_for_value, wait_until};
use throwaway::{Builder, Cluster};
use tokio_postgres::Client;
use waltrail::source::{
    replication::{Replication, StreamOptions},
    stream::Stream,
};

/// As the shared one, with all that can be logged.
fn config(source: &str, target: Option<&str>, format: &str, more: &str) -> String {
    traced(
        &changes(source, target, &["public.employees"], more),
        format,
    )
}

/// A server with `employees`, its history and a row with the canary.
async fn server(options: impl FnOnce(Builder) -> Builder) -> (Cluster, Client) {
    let (cluster, client) = server_with(options).await;
    client.batch_execute(EMPLOYEES).await.unwrap();
    Oracle::install(&client, &["public.employees"]).await;
    client
        .batch_execute("INSERT INTO employees (name) VALUES ('a')")
        .await
        .unwrap();
    (cluster, client)
}

/// The program refuses, both times alike: the exit code, one sentence with all these parts, and a remedy.
async fn refused(config: impl Fn(&str) -> String, exit: i32, sentence: &[&str], remedy: &str) {
    for format in ["json", "text"] {
        let mut daemon = Daemon::spawn(&config(format));
        let (status, output) = daemon.wait(Duration::from_secs(60)).await;
        judge(status.code(), &output, exit, sentence, remedy);
    }
}

#[track_caller]
fn judge(code: Option<i32>, output: &str, exit: i32, sentence: &[&str], remedy: &str) {
    assert_eq!(code, Some(exit), "{output}");
    let (error, hint) = ending(output);
    println!("{exit}: {error}\n    {hint}");
    for part in sentence {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    assert!(hint.contains(remedy), "{remedy} is not in: {hint}");
    // In the log it is one line too, with the remedy.
    let logged: Vec<&str> = output
        .lines()
        .filter(|line| line.contains("\"ERROR\"") || line.contains(" ERROR "))
        .collect();
    assert!(logged.len() <= 1, "{output}");
    for line in logged {
        assert!(
            line.contains("exit_code") && line.contains("remedy"),
            "{line}"
        );
    }
}

/// Nothing was made for replication.
async fn nothing_was_made(client: &Client) {
    let made = "SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots)";
    wait_for_value(client, made, 0_i64, Duration::ZERO).await;
}

/// The search for values that every other test here relies on.
#[tokio::test]
#[should_panic(expected = "a row value or a password")]
async fn a_value_in_the_output_fails_the_test() {
    let mut daemon = Daemon::spawn("[source]\ncanary = 1\n");
    daemon.wait(BOUND).await;
}

#[tokio::test]
async fn a_wrong_key_in_the_file_is_named_with_the_nearest_one() {
    let dsn = "host=127.0.0.1 port=1 user=u dbname=d";
    let with_typo = |format: &str| config(dsn, None, format, "[batch]\nmax_row = 5\n");
    refused(with_typo, 78, &["max_row"], "max_rows").await;
}

#[tokio::test]
async fn a_table_that_does_not_exist_is_named() {
    let (cluster, client) = server(|builder| builder).await;
    let dsn = cluster.dsn_tcp("postgres");
    let wrong = |format: &str| {
        config(&dsn, None, format, "").replace("'public.employees'", "'public.employes'")
    };
    refused(wrong, 78, &["public.employes"], "source").await;
    nothing_was_made(&client).await;
    let control = "SELECT to_regnamespace('waltrail') IS NULL";
    wait_for_value(&client, control, true, Duration::ZERO).await;
}

#[tokio::test]
async fn a_wrong_password_is_not_tried_again_and_not_shown() {
    let (cluster, client) =
        server(|builder| builder.hba("host all app 127.0.0.1/32 scram-sha-256")).await;
    client
        .batch_execute("CREATE ROLE app LOGIN REPLICATION PASSWORD 'right'")
        .await
        .unwrap();
    let dsn = format!("{} password=WrongCanary", cluster.dsn_tcp("postgres"))
        .replace("user=postgres", "user=app");
    refused(
        |format| config(&dsn, None, format, ""),
        77,
        &["app"],
        "password",
    )
    .await;
    let dsn = dsn.replace("password=WrongCanary", "");
    refused(
        |format| config(&dsn, None, format, ""),
        77,
        &["app"],
        "password",
    )
    .await;
    // The target may be the one that refuses.
    let target = format!("{} password=WrongCanary", cluster.dsn_tcp("postgres"))
        .replace("user=postgres", "user=app");
    let source = cluster.dsn_tcp("postgres");
    let wrong = |format: &str| config(&source, Some(&target), format, "");
    refused(wrong, 77, &["target", "app"], "target").await;
    nothing_was_made(&client).await;
}

#[tokio::test]
async fn a_role_without_the_replication_attribute_is_refused() {
    let (cluster, client) = server(|builder| builder).await;
    client
        .batch_execute("CREATE ROLE app LOGIN; GRANT ALL ON DATABASE postgres TO app")
        .await
        .unwrap();
    let dsn = cluster
        .dsn_tcp("postgres")
        .replace("user=postgres", "user=app");
    refused(
        |format| config(&dsn, None, format, ""),
        77,
        &["app", "REPLICATION"],
        "ALTER ROLE app REPLICATION",
    )
    .await;
    nothing_was_made(&client).await;
}

#[tokio::test]
async fn a_source_without_logical_wal_is_refused() {
    let (cluster, _client) = server(|builder| builder.setting("wal_level", "replica")).await;
    let dsn = cluster.dsn_tcp("postgres");
    refused(
        |format| config(&dsn, None, format, ""),
        78,
        &["wal_level = replica"],
        "wal_level = logical",
    )
    .await;
}

#[tokio::test]
async fn a_source_without_a_free_slot_is_refused_until_one_is_free() {
    let (cluster, client) = server(|builder| builder.setting("max_replication_slots", "1")).await;
    client
        .batch_execute("SELECT pg_create_physical_replication_slot('other')")
        .await
        .unwrap();
    let dsn = cluster.dsn_tcp("postgres");
    let config = |format: &str| config(&dsn, None, format, "");
    refused(config, 78, &["slot"], "max_replication_slots").await;
    client
        .batch_execute("SELECT pg_drop_replication_slot('other')")
        .await
        .unwrap();
    // What was prepared before the refusal is no obstacle.
    streaming(&mut Daemon::spawn(&config("json"))).await;
}

#[tokio::test]
async fn a_table_without_replica_identity_is_refused_and_its_updates_still_work() {
    let (cluster, client) = server(|builder| builder).await;
    client
        .batch_execute("ALTER TABLE employees DROP CONSTRAINT employees_pkey")
        .await
        .unwrap();
    let dsn = cluster.dsn_tcp("postgres");
    refused(
        |format| config(&dsn, None, format, ""),
        65,
        &["public.employees", "replica identity"],
        "REPLICA IDENTITY FULL",
    )
    .await;
    nothing_was_made(&client).await;
    client
        .batch_execute("UPDATE employees SET name = 'b'; DELETE FROM employees")
        .await
        .unwrap();
}

#[tokio::test]
async fn a_publication_that_holds_the_history_is_refused() {
    let (cluster, client) = server(|builder| builder).await;
    let dsn = cluster.dsn_tcp("postgres");
    let config = |format: &str| config(&dsn, None, format, "");
    client
        .batch_execute("CREATE PUBLICATION waltrail FOR ALL TABLES")
        .await
        .unwrap();
    refused(config, 65, &["public.employees_cdc"], "source.publication").await;
    client
        .batch_execute(
            "DROP PUBLICATION waltrail;
             CREATE PUBLICATION waltrail FOR TABLE employees, employees_cdc",
        )
        .await
        .unwrap();
    refused(
        config,
        65,
        &["public.employees_cdc"],
        "DROP TABLE public.employees_cdc",
    )
    .await;
    let slots = "SELECT count(*) FROM pg_replication_slots";
    wait_for_value(&client, slots, 0_i64, Duration::ZERO).await;
}

#[tokio::test]
async fn a_history_column_that_nobody_fills_is_refused() {
    let (cluster, client) = server(|builder| builder).await;
    client
        .batch_execute("ALTER TABLE employees_cdc ADD COLUMN \"Seen By\" text NOT NULL")
        .await
        .unwrap();
    let dsn = cluster.dsn_socket("postgres");
    let config = |format: &str| config(&dsn, None, format, "");
    refused(
        config,
        65,
        &["public.employees_cdc", "\"Seen By\""],
        "DROP NOT NULL",
    )
    .await;
    nothing_was_made(&client).await;
    client
        .batch_execute("ALTER TABLE employees_cdc ALTER \"Seen By\" SET DEFAULT 'nobody'")
        .await
        .unwrap();
    streaming(&mut Daemon::spawn(&config("json"))).await;
}

#[tokio::test]
async fn a_slot_of_another_plugin_is_refused_and_left_alone() {
    let (cluster, client) = server(|builder| builder).await;
    client
        .batch_execute("SELECT pg_create_logical_replication_slot('waltrail', 'test_decoding')")
        .await
        .unwrap();
    let dsn = cluster.dsn_tcp("postgres");
    let config = |format: &str| config(&dsn, None, format, "");
    refused(config, 78, &["waltrail", "test_decoding"], "source.slot").await;
    let left = "SELECT plugin = 'test_decoding' FROM pg_replication_slots";
    wait_for_value(&client, left, true, Duration::ZERO).await;
}

/// Streams from the slot and confirms nothing, until it is dropped.
async fn hold_slot(dsn: &str) -> Stream {
    let walsender = Replication::connect(&source(dsn)).await.unwrap();
    walsender
        .start(
            "waltrail",
            waltrail::lsn::Lsn::ZERO,
            "waltrail",
            StreamOptions::default(),
        )
        .await
        .unwrap()
}

#[tokio::test]
async fn a_slot_held_by_another_process_is_waited_for_and_the_process_is_named() {
    let mut scene = Scene::one(|builder| builder).await;
    let client = scene.session().await;
    scene.start().await;
    scene.stop().await;
    let holder = hold_slot(&scene.server.dsn_tcp("postgres")).await;
    let pid = wait_until("the slot is in use", BOUND, async || {
        client
            .query_one("SELECT active_pid FROM pg_replication_slots", &[])
            .await
            .unwrap()
            .get::<_, Option<i32>>(0)
    })
    .await;
    let line = scene
        .spawn()
        .wait_log(BOUND, |line| line.contains("in use by another process"))
        .await;
    assert!(line.contains(&pid.to_string()), "{pid} is not in {line}");
    client
        .batch_execute("INSERT INTO employees (name) VALUES ('while it waited')")
        .await
        .unwrap();
    assert!(!scene.daemon().output().contains("\"streaming\""));
    drop(holder);
    streaming(scene.daemon()).await;
    scene.finish(HELD_ELSEWHERE).await;
}

#[tokio::test]
async fn a_role_that_may_not_write_the_history_is_refused() {
    let (cluster, client) = server(|builder| builder).await;
    client
        .batch_execute(
            "CREATE ROLE app LOGIN REPLICATION; GRANT ALL ON DATABASE postgres TO app;
             ALTER TABLE employees OWNER TO app",
        )
        .await
        .unwrap();
    let dsn = cluster
        .dsn_tcp("postgres")
        .replace("user=postgres", "user=app");
    let config = |format: &str| config(&dsn, None, format, "");
    refused(
        config,
        77,
        &["app", "public.employees_cdc"],
        "GRANT SELECT, INSERT",
    )
    .await;
    nothing_was_made(&client).await;
    // With INSERT alone, the sequence would refuse the first row.
    client
        .batch_execute("GRANT SELECT, INSERT ON employees_cdc TO app")
        .await
        .unwrap();
    let sequence = "employees_cdc_cdc_id_seq";
    refused(config, 77, &[sequence], "GRANT USAGE ON SEQUENCE").await;
    nothing_was_made(&client).await;
    client
        .batch_execute("GRANT USAGE ON SEQUENCE employees_cdc_cdc_id_seq TO app")
        .await
        .unwrap();
    let mut daemon = Daemon::spawn(&config("json"));
    streaming(&mut daemon).await;
    client
        .batch_execute("INSERT INTO employees (name) VALUES ('b')")
        .await
        .unwrap();
    wait_for_value(&client, "SELECT count(*) FROM employees_cdc", 1_i64, BOUND).await;
}

#[tokio::test]
async fn a_target_database_that_does_not_exist_is_named() {
    let (cluster, client) = server(|builder| builder).await;
    let (dsn, target) = (cluster.dsn_tcp("postgres"), cluster.dsn_tcp("nowhere"));
    let config = |format: &str| config(&dsn, Some(&target), format, "");
    refused(config, 78, &["target", "nowhere"], "target.dsn").await;
    nothing_was_made(&client).await;
}

#[tokio::test]
async fn a_server_that_is_down_is_waited_for_unless_told_not_to() {
    let mut scene = Scene::two(|builder| builder, |builder| builder).await;
    let stop = throwaway::StopMode::Fast;
    for side in ["source", "target"] {
        let cluster = match side {
            "source" => &mut scene.server,
            _ => scene.target_server.as_mut().unwrap(),
        };
        cluster.stop(stop).unwrap();
        for format in ["json", "text"] {
            let _ = format;
            let mut daemon = Daemon::spawn_with(&scene.next_config(), &["run", "--no-retry"], &[]);
            let (status, output) = daemon.wait(BOUND).await;
            let remedy = format!("{side}.dsn");
            judge(
                status.code(),
                &output,
                75,
                &[side, "could not connect"],
                &remedy,
            );
        }
        let daemon = scene.spawn();
        let seen = &*daemon;
        wait_until("it has tried twice", BOUND, async || {
            (seen.output().matches("is started again").count() >= 2).then_some(())
        })
        .await;
        let line = daemon
            .wait_log(BOUND, |line| line.contains("is started again"))
            .await;
        assert!(
            line.contains("could not connect") && line.contains("remedy"),
            "{line}"
        );
        let cluster = match side {
            "source" => &mut scene.server,
            _ => scene.target_server.as_mut().unwrap(),
        };
        cluster.start_again().unwrap();
        streaming(scene.daemon()).await;
        assert_clean(&scene.stop_complaining().await, SERVER_GONE);
    }
}

/// The history refuses a row until `cure`: exit 65 with these parts, twice alike, and then nothing is lost.
/// Few rows and many take different ways into the target.
async fn a_history_that_refuses(disease: &str, cure: &str, sentence: &[&str], remedy: &str) {
    a_history_that_refuses_with(disease, cure, 65, sentence, remedy).await;
}

async fn a_history_that_refuses_with(
    disease: &str,
    cure: &str,
    exit: i32,
    sentence: &[&str],
    remedy: &str,
) {
    for rows in [1, 100] {
        let mut scene = Scene::one(|builder| builder).await;
        // Set-up would refuse a type that does not keep every value.
        let lossy = "source = 'public.employees'\nallow_lossy = ['department']";
        scene.config = scene.config.replace("source = 'public.employees'", lossy);
        let client = scene.session().await;
        client.batch_execute(disease).await.unwrap();
        scene.start().await;
        client
            .batch_execute(&format!(
                "INSERT INTO employees (name, department)
                 SELECT 'x' || n, 'CANARY_7f3a' FROM generate_series(1, {rows}) n"
            ))
            .await
            .unwrap();
        let (status, output) = scene.daemon().wait(BOUND).await;
        judge(status.code(), &output, exit, sentence, remedy);
        // Starting again changes nothing, and says the same.
        let (status, output) = scene.spawn().wait(BOUND).await;
        judge(status.code(), &output, exit, sentence, remedy);
        client.batch_execute(cure).await.unwrap();
        scene.spawn();
        scene.finish(HELD_ELSEWHERE).await;
    }
}

#[tokio::test]
async fn a_value_too_long_for_the_history_is_refused_until_there_is_room() {
    a_history_that_refuses(
        "ALTER TABLE employees_cdc ALTER department TYPE varchar(3)",
        "ALTER TABLE employees_cdc ALTER department TYPE varchar(100)",
        &["22001", "too long", "employees_cdc"],
        "change the history table",
    )
    .await;
}

#[tokio::test]
async fn a_value_of_another_type_is_refused() {
    a_history_that_refuses(
        "ALTER TABLE employees_cdc ALTER department TYPE integer USING NULL",
        "ALTER TABLE employees_cdc ALTER department TYPE text",
        &["22P02", "employees_cdc"],
        "change the history table",
    )
    .await;
}

#[tokio::test]
async fn a_unique_constraint_on_the_history_is_named() {
    a_history_that_refuses(
        "INSERT INTO employees_cdc (department) VALUES ('CANARY_7f3a');
         CREATE UNIQUE INDEX once ON employees_cdc (department)",
        "DROP INDEX once; TRUNCATE employees_cdc",
        &["23505", "employees_cdc", "once"],
        "change the history table",
    )
    .await;
}

/// A trigger on the history that runs this for every row.
fn trigger(body: &str) -> String {
    format!(
        "CREATE FUNCTION nosy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NEW; END $$;
         CREATE TRIGGER nosy AFTER INSERT ON employees_cdc FOR EACH ROW EXECUTE FUNCTION nosy();"
    )
}

const NO_TRIGGER: &str = "DROP TRIGGER nosy ON employees_cdc";

#[tokio::test]
async fn an_exception_of_a_trigger_is_told_without_its_words() {
    a_history_that_refuses(
        &trigger(
            "RAISE EXCEPTION 'no % here', NEW.name
                 USING DETAIL = NEW.department, HINT = NEW.name, COLUMN = NEW.name, ERRCODE = 'P0001';",
        ),
        NO_TRIGGER,
        &["P0001", "employees_cdc"],
        "trigger",
    )
    .await;
}

#[tokio::test]
async fn an_error_that_a_trigger_runs_into_is_told_without_its_words() {
    // Names made of values, as in partitioning by hand: no such table, no such column, bad syntax.
    for (body, code, exit) in [
        (
            "EXECUTE format('INSERT INTO %I VALUES (1)', 'of_' || NEW.name);",
            "42P01",
            78,
        ),
        ("EXECUTE 'SELECT ' || NEW.name;", "42703", 78),
        ("EXECUTE 'SELECT 1 1 ' || NEW.name;", "42601", 65),
    ] {
        a_history_that_refuses_with(&trigger(body), NO_TRIGGER, exit, &[code], "").await;
    }
}

#[tokio::test]
async fn a_trigger_that_only_talks_is_not_repeated() {
    let mut scene = Scene::one(|builder| builder).await;
    let client = scene.session().await;
    client
        .batch_execute(&trigger(
            "RAISE WARNING 'here is %', NEW.name; RAISE NOTICE 'here is %', NEW;",
        ))
        .await
        .unwrap();
    scene.start().await;
    for rows in [1, 100] {
        client
            .batch_execute(&format!(
                "INSERT INTO employees (name) SELECT 'x' FROM generate_series(1, {rows})"
            ))
            .await
            .unwrap();
    }
    scene.finish(&[]).await;
    assert!(scene.server.log_text().contains(CANARY));
}

#[tokio::test]
async fn an_address_that_somebody_else_listens_at_is_78() {
    let (cluster, _client) = server(|builder| builder).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("[http]\nlisten = \"{}\"\n", taken.local_addr().unwrap());
    let dsn = cluster.dsn_socket("postgres");
    refused(
        |format| config(&dsn, None, format, &listen),
        78,
        &["`http.listen`", "Address already in use"],
        "a free port",
    )
    .await;
}
