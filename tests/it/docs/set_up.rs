//! The documents' SQL, files and commands, followed as the role that they describe.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use throwaway::Cluster;
use tokio_postgres::Client;

use super::{DOCUMENTS, block, code, document, table};
use crate::support::daemon::{Daemon, run, run_as};
use crate::support::{connect, server, server_with, wait_for_value};

pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Statement by statement, as psql does it: some may not run inside a transaction.
pub(super) async fn execute(client: &Client, sql: &str) {
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
pub(super) async fn app() -> (Cluster, Client) {
    let (cluster, postgres) = server_with(|mut builder| {
        for line in block("hba").lines() {
            builder = builder.hba(line);
        }
        builder
    })
    .await;
    postgres.batch_execute("CREATE DATABASE app").await.unwrap();
    let app = connect(&cluster.dsn_socket("app")).await;
    app.batch_execute("CREATE ROLE app_owner").await.unwrap();
    employees(&app).await;
    (cluster, app)
}

/// The documents' table, which belongs to `app_owner`.
pub(super) async fn employees(client: &Client) {
    let (employees, _) = block("example").split_once(";\n").unwrap();
    execute(
        client,
        &format!("{employees};\nALTER TABLE employees OWNER TO app_owner;\n"),
    )
    .await;
}

/// A folder in which the documents' configuration and commands find what they name; `address` is the source's.
pub(super) struct Place {
    pub folder: TempDir,
    address: String,
}

impl Place {
    pub(super) fn new(address: String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, password) in [
            ("source", "choose your own"),
            ("target", "choose your own"),
            ("setup", "choose another"),
        ] {
            let file = folder.path().join(format!("{name}.password"));
            fs::write(&file, format!("{password}\n")).unwrap();
            let private = fs::Permissions::from_mode(0o600);
            fs::set_permissions(&file, private).unwrap();
        }
        Self { folder, address }
    }

    pub(super) fn of(cluster: &Cluster) -> Self {
        let folder = cluster.socket_dir().display();
        Self::new(format!("host={folder} port={}", cluster.port()))
    }

    /// A block, with the addresses and folders of this place.
    fn here(&self, text: &str) -> String {
        text.replace("/etc/waltrail", self.folder.path().to_str().unwrap())
            .replace("host=/var/run/postgresql", &self.address)
    }

    /// The documents' configuration, `more` after it. Saved, too.
    pub(super) fn config(&self, more: &str) -> String {
        let config = self.here(&format!("{}{more}", block("config")));
        fs::write(self.folder.path().join("waltrail.toml"), &config).unwrap();
        config
    }

    /// Where a shell finds the program.
    pub(super) fn path() -> String {
        let program = Path::new(env!("CARGO_BIN_EXE_waltrail")).parent().unwrap();
        let others = std::env::var("PATH").unwrap_or_default();
        format!("{}:{others}", program.display())
    }

    /// What a block of commands prints on standard output, in a shell.
    #[track_caller]
    pub(super) fn sh(&self, commands: &str, variables: &[(&str, &str)]) -> String {
        let path = Self::path();
        let (status, out, err) = run_as(
            "sh",
            self.folder.path(),
            &["-ec", &self.here(commands)],
            &[variables, &[("PATH", &path)]].concat(),
        );
        assert!(status.success(), "{commands}: {status}\n{err}");
        out
    }

    /// Step 5: what it prints.
    #[track_caller]
    pub(super) fn set_up(&self) -> String {
        self.sh(block("set-up"), &[])
    }
}

/// A command of the documents: what it prints on standard output.
#[track_caller]
pub(super) fn waltrail(folder: &Path, line: &str) -> String {
    let arguments: Vec<_> = line.split_whitespace().skip(1).collect();
    let (status, out, err) = run(folder, &arguments, &[]);
    assert!(status.success(), "{line}: {status}\n{err}");
    out
}

/// Starts the daemon and waits until it streams.
pub(super) async fn streaming(config: &str) -> Daemon {
    let mut daemon = Daemon::spawn(config);
    daemon
        .wait_log(PATIENCE, |line| line.contains("\"streaming\""))
        .await;
    daemon
}

pub(super) async fn stop(mut daemon: Daemon) -> String {
    daemon.sigterm();
    let (status, output) = daemon.wait(PATIENCE).await;
    assert!(status.success(), "{status}\n{output}");
    output
}

/// Tables whose existing rows are recorded.
pub(super) const JOINED: &str = "SELECT count(*) FROM waltrail.snapshot WHERE state = 'done'";
pub(super) const ROWS: &str = "SELECT count(*) FROM employees_cdc";

/// What is in the two lines of step 6.
fn commands() -> [&'static str; 2] {
    let commands: Vec<_> = block("commands")
        .lines()
        .map(|line| line.split('#').next().unwrap().trim())
        .collect();
    let [follow, status] = commands[..] else {
        panic!("{commands:?}");
    };
    assert!(follow.ends_with(" run"), "{follow}");
    [follow, status]
}

#[tokio::test]
async fn two_roles_set_up_and_run_with_the_privileges_they_are_given() {
    let (cluster, app) = app().await;
    let place = Place::of(&cluster);
    execute(&app, block("server")).await;
    execute(&app, block("roles")).await;
    let config = place.config("");
    let [_, status] = commands();

    // Nothing is made by `run`.
    let mut daemon = Daemon::spawn(&config);
    let (refused, output) = daemon.wait(PATIENCE).await;
    assert_eq!(refused.code(), Some(78), "{output}");

    let printed = place.set_up();
    assert!(printed.contains("CREATE PUBLICATION"), "{printed}");
    assert!(printed.ends_with("-- nothing is missing\n"), "{printed}");
    let daemon = streaming(&config).await;
    app.batch_execute("INSERT INTO employees (name) VALUES ('canary Ada'), ('canary Bob')")
        .await
        .unwrap();
    wait_for_value(&app, ROWS, 2i64, PATIENCE).await;
    let shown = waltrail(place.folder.path(), status);
    assert!(shown.contains(" GOOD "), "{shown}");
    assert!(shown.contains("public.employees_cdc"), "{shown}");
    log_fields_are_documented(&stop(daemon).await);
    only_reads_and_adds(&app).await;

    // A new column, a new table: step 5 again.
    app.batch_execute(
        "ALTER TABLE employees ADD COLUMN phone text; INSERT INTO employees (name, phone) VALUES ('canary Cid', '1'); \
         CREATE TABLE orders (id int PRIMARY KEY); ALTER TABLE orders OWNER TO app_owner",
    )
    .await
    .unwrap();
    let mut daemon = Daemon::spawn(&config);
    let (refused, output) = daemon.wait(PATIENCE).await;
    assert_eq!(refused.code(), Some(65), "{output}");
    let config = place.config("\n[[table]]\nsource = \"public.orders\"\n");
    place.set_up();
    let daemon = streaming(&config).await;
    app.batch_execute("INSERT INTO orders VALUES (1)")
        .await
        .unwrap();
    wait_for_value(&app, "SELECT count(*) FROM orders_cdc", 1i64, PATIENCE).await;
    wait_for_value(
        &app,
        "SELECT count(*) FROM employees_cdc WHERE phone = '1'",
        1i64,
        PATIENCE,
    )
    .await;
    stop(daemon).await;

    // The daemon's role can accept a gap; it goes on with the existing rows.
    app.batch_execute("SELECT pg_drop_replication_slot('waltrail')")
        .await
        .unwrap();
    waltrail(place.folder.path(), block("gap"));
    place.set_up();
    let daemon = streaming(&config).await;
    let last = "SELECT count(*) FROM employees_cdc WHERE change_type = 'GAP'";
    wait_for_value(&app, last, 1i64, PATIENCE).await;
    wait_for_value(&app, ROWS, 7i64, PATIENCE).await;
    log_fields_are_documented(&stop(daemon).await);

    // And away with it.
    execute(&app, block("removal")).await;
    let left: bool = app
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_replication_slots) OR EXISTS (SELECT FROM pg_publication) \
                 OR to_regnamespace('waltrail') IS NOT NULL OR to_regrole('waltrail') IS NOT NULL \
                 OR to_regrole('waltrail_setup') IS NOT NULL",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert!(!left);
    wait_for_value(&app, ROWS, 7i64, PATIENCE).await;
}

/// As the documents say of the daemon's role.
async fn only_reads_and_adds(superuser: &Client) {
    let more: Vec<String> = superuser
        .query_one(
            "SELECT coalesce(array_agg(c.oid::regclass || ' ' || p), '{}') FROM pg_class c \
               JOIN pg_namespace n ON n.oid = c.relnamespace \
               CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p \
              WHERE n.nspname IN ('public', 'waltrail') AND c.relkind IN ('r', 'p') \
                AND has_table_privilege('waltrail', c.oid, p) AND NOT CASE \
                    WHEN c.relname = 'employees' OR c.relname = 'schema_history' THEN p = 'SELECT' \
                    WHEN c.relname = 'employees_cdc' THEN p IN ('SELECT', 'INSERT') \
                    ELSE n.nspname = 'waltrail' AND p IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE') END",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(more, [""; 0]);
    let owns =
        "SELECT count(*) FROM pg_shdepend WHERE deptype = 'o' AND refobjid = 'waltrail'::regrole";
    wait_for_value(superuser, owns, 0i64, PATIENCE).await;
}

#[tokio::test]
async fn one_role_with_the_privileges_it_is_given_does_everything() {
    let (cluster, app) = app().await;
    let place = Place::of(&cluster);
    execute(&app, block("role")).await;
    let config = place
        .config("")
        .replace("setup = \"manual\"", "setup = \"auto\"");
    let daemon = streaming(&config).await;
    app.batch_execute("INSERT INTO employees (name) VALUES ('canary Ada'), ('canary Bob')")
        .await
        .unwrap();
    wait_for_value(&app, ROWS, 2i64, PATIENCE).await;
    log_fields_are_documented(&stop(daemon).await);
}

#[tokio::test]
async fn two_roles_keep_the_history_in_another_database() {
    let (cluster, app) = app().await;
    let place = Place::of(&cluster);
    execute(&app, block("roles")).await;
    let (other, postgres) = server_with(|builder| {
        let socket = "local  history  waltrail,waltrail_setup  scram-sha-256";
        builder.hba(block("target-hba").trim()).hba(socket)
    })
    .await;
    postgres
        .batch_execute("CREATE DATABASE history")
        .await
        .unwrap();
    let history = connect(&other.dsn_socket("history")).await;
    execute(&history, block("target-roles")).await;
    let address = format!(
        "host={} port={}",
        other.socket_dir().display(),
        other.port()
    );
    let target = block("target-config").replace("host=history.internal", &address);
    let config = place.config(&format!("\n{target}"));
    let password = place.folder.path().join("setup.password");
    let dsn = format!("{address} dbname=history user=waltrail_setup");
    let printed = place.sh(
        block("set-up"),
        &[
            ("WALTRAIL_TARGET__DSN", &dsn),
            ("WALTRAIL_TARGET__PASSWORD_FILE", password.to_str().unwrap()),
        ],
    );
    assert!(printed.ends_with("-- nothing is missing\n"), "{printed}");
    app.batch_execute("INSERT INTO employees (name) VALUES ('canary Ada')")
        .await
        .unwrap();
    let daemon = streaming(&config).await;
    wait_for_value(&history, ROWS, 1i64, PATIENCE).await;
    stop(daemon).await;
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
async fn the_printed_sql_sets_up_as_well() {
    let (cluster, app) = app().await;
    let place = Place::of(&cluster);
    execute(&app, block("roles")).await;
    // A history that the table's owner has made, with a sequence.
    let (_, history) = block("example").split_once(";\n").unwrap();
    execute(
        &app,
        &format!("{history}ALTER TABLE employees_cdc OWNER TO app_owner;\n"),
    )
    .await;
    let config = place.config("");
    let (before, _) = block("set-up").split_once("\nwaltrail ").unwrap();
    let look = format!("{before}\nwaltrail setup --dry-run --grant-to waltrail");
    let sql = place.sh(&look, &[]);
    let dsn = format!("{} password='choose another'", cluster.dsn_socket("app"));
    let setup = connect(&dsn.replace("user=postgres", "user=waltrail_setup")).await;
    for statements in sql.split("\n\n-- ") {
        let done = setup.batch_execute(&format!("-- {statements}")).await;
        done.unwrap_or_else(|error| panic!("{statements}: {error:?}"));
    }
    assert_eq!(place.sh(&look, &[]), "-- nothing is missing\n");
    // Changes count from the moment the slot was made.
    app.batch_execute("INSERT INTO employees (name) VALUES ('canary Ada')")
        .await
        .unwrap();
    let daemon = streaming(&config).await;
    wait_for_value(&app, ROWS, 1i64, PATIENCE).await;
    stop(daemon).await;
    // The library that keeps the migrations finds them in its book.
    let superuser = cluster.dsn_socket("app");
    let (status, _, err) = run(
        place.folder.path(),
        &["setup"],
        &[
            ("WALTRAIL_SETUP", "auto"),
            ("WALTRAIL_CONFIG", "/dev/null"),
            ("WALTRAIL_SOURCE__DSN", &superuser),
            ("WALTRAIL_TABLE", "employees"),
        ],
    );
    assert_eq!(status.code(), Some(78), "{err}");
    assert!(
        err.contains("run `waltrail setup` as waltrail_setup"),
        "{err}"
    );
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
        server_with(|builder| builder.hba("local app waltrail,waltrail_setup scram-sha-256")).await;
    postgres.batch_execute("CREATE DATABASE app").await.unwrap();
    let app = connect(&cluster.dsn_socket("app")).await;
    for (_, script) in DOCUMENTS.iter().filter(|(name, _)| name.ends_with(".sql")) {
        app.batch_execute(script).await.unwrap();
    }
    let address = Place::of(&cluster).address;
    let (_, services) = document("docker/compose.yaml")
        .split_once("\n  setup:\n")
        .unwrap();
    let (setup, daemon) = services.split_once("\n  waltrail:\n").unwrap();
    let variables = |service: &str| -> Vec<(&'static str, String)> {
        let names = ["WALTRAIL_SETUP", "WALTRAIL_SOURCE__DSN", "WALTRAIL_TABLE"];
        let value = |name: &str| {
            let mut lines = service.lines().map(str::trim);
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            value.map(|value| value.replace("host=db", &address))
        };
        names
            .iter()
            .filter_map(|name| Some((*name, value(name)?)))
            .collect()
    };
    let spawn = |arguments: &[&str], service: &str| {
        let variables = variables(service);
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        Daemon::spawn_with("", arguments, &variables)
    };
    assert!(
        setup.contains(r#"command: ["setup", "--grant-to", "waltrail"]"#),
        "{setup}"
    );
    let (status, output) = spawn(&["setup", "--grant-to", "waltrail"], setup)
        .wait(PATIENCE)
        .await;
    assert!(status.success(), "{output}");
    assert!(daemon.contains("WALTRAIL_SETUP: manual"), "{daemon}");
    let mut daemon = spawn(&["run"], daemon);
    daemon
        .wait_log(PATIENCE, |line| line.contains("\"streaming\""))
        .await;
    app.batch_execute("INSERT INTO employees (name) VALUES ('canary Ada')")
        .await
        .unwrap();
    wait_for_value(&app, ROWS, 1i64, PATIENCE).await;
    stop(daemon).await;
}
