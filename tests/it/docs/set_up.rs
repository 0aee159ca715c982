//! The documents' SQL, files and commands, followed as the role that they describe.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use throwaway::Cluster;
use tokio_postgres::Client;

use super::{DOCUMENTS, block, code, document, table};
use crate::support::daemon::{Daemon, run};
use crate::support::{connect, server, server_with, wait_for_value};

const PATIENCE: Duration = Duration::from_secs(30);

/// Statement by statement, as psql does it: some may not run inside a transaction.
async fn execute(client: &Client, sql: &str) {
    for statement in sql
        .split(";\n")
        .filter(|statement| !statement.trim().is_empty())
    {
        let done = client.batch_execute(statement).await;
        done.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
}

/// A server with the database `app`, in which `employees` belongs to `app_owner`, as the documents suppose; and
/// a superuser's connection to it.
async fn app() -> (Cluster, Client) {
    let (cluster, postgres) = server_with(|mut builder| {
        for line in block("hba").lines() {
            builder = builder.hba(line);
        }
        builder
    })
    .await;
    postgres.batch_execute("CREATE DATABASE app").await.unwrap();
    let app = connect(&cluster.dsn_socket("app")).await;
    let (employees, _) = block("example").split_once(";\n").unwrap();
    execute(
        &app,
        &format!(
            "CREATE ROLE app_owner;\n{employees};\nALTER TABLE employees OWNER TO app_owner;\n"
        ),
    )
    .await;
    (cluster, app)
}

/// The documents' configuration, for this server.
fn config(cluster: &Cluster, folder: &Path) -> String {
    let password = folder.join("source.password");
    fs::write(&password, "choose your own\n").unwrap();
    fs::set_permissions(&password, PermissionsExt::from_mode(0o600)).unwrap();
    let host = format!(
        "host={} port={}",
        cluster.socket_dir().display(),
        cluster.port()
    );
    let config = block("config")
        .replace("/etc/waltrail/source.password", password.to_str().unwrap())
        .replace("host=/var/run/postgresql", &host);
    fs::write(folder.join("waltrail.toml"), &config).unwrap();
    config
}

/// A command of the documents: what it prints on standard output.
#[track_caller]
fn waltrail(folder: &Path, line: &str) -> String {
    let arguments: Vec<_> = line.split_whitespace().skip(1).collect();
    let (status, out, err) = run(folder, &arguments, &[]);
    assert!(status.success(), "{line}: {status}\n{err}");
    out
}

/// Starts the daemon and waits until it streams.
async fn streaming(config: &str) -> Daemon {
    let mut daemon = Daemon::spawn(config);
    daemon
        .wait_log(PATIENCE, |line| line.contains("\"streaming\""))
        .await;
    daemon
}

async fn stop(mut daemon: Daemon) -> String {
    daemon.sigterm();
    let (status, output) = daemon.wait(PATIENCE).await;
    assert!(status.success(), "{status}\n{output}");
    output
}

const ROWS: &str = "SELECT count(*) FROM employees_cdc";

#[tokio::test]
async fn the_set_up_works_with_the_privileges_it_gives() {
    let (cluster, app) = app().await;
    let folder = tempfile::tempdir().unwrap();
    execute(&app, block("server")).await;
    execute(&app, block("role")).await;
    let config = config(&cluster, folder.path());

    let commands: Vec<_> = block("commands")
        .lines()
        .map(|line| line.split('#').next().unwrap().trim())
        .collect();
    let [look, set_up, follow, status] = commands[..] else {
        panic!("{commands:?}");
    };
    assert!(waltrail(folder.path(), look).contains("CREATE PUBLICATION"));
    waltrail(folder.path(), set_up);
    assert_eq!(waltrail(folder.path(), look), "-- nothing is missing\n");
    assert!(follow.ends_with(" run"), "{follow}");
    let daemon = streaming(&config).await;
    app.batch_execute("INSERT INTO employees (name) VALUES ('canary Ada'), ('canary Bob')")
        .await
        .unwrap();
    wait_for_value(&app, ROWS, 2i64, PATIENCE).await;
    let shown = waltrail(folder.path(), status);
    assert!(shown.contains("public.employees_cdc: "), "{shown}");
    let output = stop(daemon).await;
    log_fields_are_documented(&output);

    // Going on after a gap: its row, then the existing rows again.
    app.batch_execute(
        "SELECT pg_drop_replication_slot('waltrail'); DELETE FROM employees WHERE id = 1",
    )
    .await
    .unwrap();
    waltrail(folder.path(), block("gap"));
    let daemon = streaming(&config).await;
    wait_for_value(&app, ROWS, 4i64, PATIENCE).await;
    app.batch_execute("INSERT INTO employees (name) VALUES ('canary Cid')")
        .await
        .unwrap();
    wait_for_value(&app, ROWS, 5i64, PATIENCE).await;
    log_fields_are_documented(&stop(daemon).await);

    // And away with it.
    execute(&app, block("removal")).await;
    let left: bool = app
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_replication_slots) OR EXISTS (SELECT FROM pg_publication) \
                 OR to_regnamespace('waltrail') IS NOT NULL OR to_regrole('waltrail') IS NOT NULL",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert!(!left);
    wait_for_value(&app, ROWS, 5i64, PATIENCE).await;
}

fn log_fields_are_documented(output: &str) {
    let rows = table("fields");
    let documented: BTreeSet<_> = rows.iter().flat_map(|row| code(row[0])).collect();
    for line in output.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        for field in line.as_object().unwrap().keys() {
            assert!(documented.contains(field.as_str()), "{field} in {line}");
        }
    }
}

#[tokio::test]
async fn the_set_up_by_hand_needs_no_privilege_but_those_it_grants() {
    let (cluster, app) = app().await;
    let folder = tempfile::tempdir().unwrap();
    let (role, _) = block("role").split_once(";\n").unwrap();
    execute(&app, role).await;
    let config = format!("setup = \"manual\"\n{}", config(&cluster, folder.path()));
    fs::write(folder.path().join("waltrail.toml"), &config).unwrap();

    let mut daemon = Daemon::spawn(&config);
    let (status, output) = daemon.wait(PATIENCE).await;
    assert_eq!(status.code(), Some(78), "{output}");

    let sql = waltrail(folder.path(), "waltrail setup --dry-run");
    for statements in sql.split("\n\n-- ") {
        let done = app.batch_execute(&format!("-- {statements}")).await;
        done.unwrap_or_else(|error| panic!("{statements}: {error:?}"));
    }
    execute(&app, block("manual")).await;
    assert_eq!(
        waltrail(folder.path(), "waltrail setup --dry-run"),
        "-- nothing is missing\n"
    );
    // Changes count from the moment the slot was made.
    app.batch_execute("INSERT INTO employees (name) VALUES ('canary Ada')")
        .await
        .unwrap();
    let daemon = streaming(&config).await;
    wait_for_value(&app, ROWS, 1i64, PATIENCE).await;
    waltrail(folder.path(), "waltrail status");
    stop(daemon).await;
    // The library that keeps the migrations finds them in its book.
    let superuser = cluster.dsn_socket("app");
    let (status, _, err) = run(
        folder.path(),
        &["setup"],
        &[
            ("WALTRAIL_SETUP", "auto"),
            ("WALTRAIL_CONFIG", "/dev/null"),
            ("WALTRAIL_SOURCE__DSN", &superuser),
            ("WALTRAIL_TABLE", "employees"),
        ],
    );
    assert!(status.success(), "{err}");
}

#[tokio::test]
async fn the_example_gives_the_rows_it_shows() {
    let (cluster, client) = server().await;
    execute(&client, block("example")).await;
    let daemon = streaming(&format!(
        "[source]\ndsn = '{}'\n[[table]]\nsource = 'employees'\n",
        cluster.dsn_socket("postgres")
    ))
    .await;
    let mut shown = Vec::new();
    for row in table("example") {
        if let Some(sql) = code(row[0]).next() {
            client.batch_execute(sql).await.unwrap();
        }
        if !row[1].is_empty() {
            shown.push(row[1..].join("|"));
        }
    }
    wait_for_value(&client, ROWS, shown.len() as i64, PATIENCE).await;
    stop(daemon).await;
    let recorded = client
        .query_one(
            "SELECT array_agg(concat_ws('|', cdc_id, change_type, coalesce(id::text, ''), coalesce(name, ''), \
                    coalesce(department, ''), coalesce(salary::text, '')) ORDER BY cdc_id) FROM employees_cdc",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(recorded.get::<_, Vec<String>>(0), shown);
}

#[tokio::test]
async fn the_container_demo_s_database_and_sidecar_fit_together() {
    let (cluster, postgres) =
        server_with(|builder| builder.hba("local app waltrail scram-sha-256")).await;
    postgres.batch_execute("CREATE DATABASE app").await.unwrap();
    let app = connect(&cluster.dsn_socket("app")).await;
    for (_, script) in DOCUMENTS.iter().filter(|(name, _)| name.ends_with(".sql")) {
        app.batch_execute(script).await.unwrap();
    }
    let setting = |name: &str| {
        let line = document("docker/compose.yaml")
            .lines()
            .find_map(|line| line.trim().strip_prefix(name))
            .unwrap();
        line.trim_start_matches(':').trim().to_owned()
    };
    let host = format!(
        "host={} port={}",
        cluster.socket_dir().display(),
        cluster.port()
    );
    let dsn = setting("WALTRAIL_SOURCE__DSN").replace("host=db", &host);
    let mut daemon = Daemon::spawn_with(
        "",
        &["run"],
        &[
            ("WALTRAIL_SOURCE__DSN", &dsn),
            ("WALTRAIL_TABLE", &setting("WALTRAIL_TABLE")),
        ],
    );
    daemon
        .wait_log(PATIENCE, |line| line.contains("\"streaming\""))
        .await;
    app.batch_execute("INSERT INTO employees (name) VALUES ('canary Ada')")
        .await
        .unwrap();
    wait_for_value(&app, ROWS, 1i64, PATIENCE).await;
    stop(daemon).await;
}
