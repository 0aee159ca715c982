//! Do the documents tell the truth? What README.md and ARCHITECTURE.md say is compared with the program, and
//! their SQL is run.
//!
//! A comment before a block says what is done with it: `<!-- executed: name -->` a block that is run,
//! `<!-- checked: name -->` a table whose rows are compared.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::support::daemon::{Daemon, run};
use crate::support::{connect, server, server_with, wait_for_value};
use clap::CommandFactory;
use throwaway::Cluster;
use tokio_postgres::Client;
use waltrail::cli::Cli;
use waltrail::config::{Config, Environment, Flags, KEYS};
use waltrail::fault::Exit;
use waltrail::snapshot::TableSyncs;
use waltrail::telemetry::metrics;

const README: &str = include_str!("../../README.md");
const ARCHITECTURE: &str = include_str!("../../ARCHITECTURE.md");
const UNIT: &str = include_str!("../../config/waltrail.service");
const COMPOSE: &str = include_str!("../../docker/compose.yaml");

/// Everything that a reader may open.
const DOCUMENTS: [(&str, &str); 11] = [
    ("README.md", README),
    ("ARCHITECTURE.md", ARCHITECTURE),
    ("CHANGELOG.md", include_str!("../../CHANGELOG.md")),
    ("CONTRIBUTING.md", include_str!("../../CONTRIBUTING.md")),
    ("bench/README.md", include_str!("../../bench/README.md")),
    (
        "config/waltrail.toml",
        include_str!("../../config/waltrail.toml"),
    ),
    ("config/waltrail.service", UNIT),
    ("docker/Dockerfile", include_str!("../../docker/Dockerfile")),
    ("docker/compose.yaml", COMPOSE),
    (
        "docker/initdb/10-employees.sql",
        include_str!("../../docker/initdb/10-employees.sql"),
    ),
    (
        "docker/initdb/20-waltrail.sql",
        include_str!("../../docker/initdb/20-waltrail.sql"),
    ),
];

const PATIENCE: Duration = Duration::from_secs(30);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The fenced block behind `<!-- executed: name -->`.
fn block(name: &str) -> &'static str {
    let mark = format!("<!-- executed: {name} -->\n```");
    let (_, rest) = README.split_once(&mark).expect(&mark);
    let (_, rest) = rest.split_once('\n').unwrap();
    rest.split_once("```").unwrap().0
}

/// The rows of the table behind `<!-- checked: name -->`, without its head.
fn table(document: &'static str, name: &str) -> Vec<Vec<&'static str>> {
    let mark = format!("<!-- checked: {name} -->\n");
    let (_, rest) = document.split_once(&mark).expect(&mark);
    rest.lines()
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(str::trim).collect()
        })
        .collect()
}

/// What stands between backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

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

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.to_str().unwrap().ends_with(ending) {
            found.push(path);
        }
    }
    found
}

/// All of the program's text, with strings that are broken over lines put together again.
fn sources(folder: &str) -> String {
    let mut text = String::new();
    for file in files(&root().join(folder), ".rs") {
        let mut lines = fs::read_to_string(file).unwrap();
        while let Some(at) = lines.find("\\\n") {
            let rest = lines[at + 2..].trim_start().to_owned();
            lines.truncate(at);
            lines.push_str(&rest);
        }
        text.push_str(&lines);
    }
    text
}

fn read(toml: &str) -> Config {
    let environment = Environment::empty().with_os_user("os");
    Config::from_toml(toml, &Flags::default(), &environment)
        .unwrap_or_else(|fault| panic!("{fault}\n{toml}"))
}

#[test]
fn the_readme_has_every_key_and_no_other() {
    let documented: Vec<_> = table(README, "keys")
        .iter()
        .map(|row| code(row[0]).next().unwrap())
        .collect();
    assert_eq!(documented, KEYS);
}

#[test]
fn the_readmes_defaults_are_the_programs() {
    let (mut settings, mut of_table, mut without) = (String::new(), String::new(), Vec::new());
    for row in table(README, "keys") {
        let key = code(row[0]).next().unwrap();
        match (code(row[2]).next(), key.strip_prefix("table.")) {
            (None, _) => without.push(key),
            (Some(value), None) => settings.push_str(&format!("{key} = {value}\n")),
            (Some(value), Some(field)) => of_table.push_str(&format!("{field} = {value}\n")),
        }
    }
    let least = "source.dsn = 'host=db user=u dbname=d'\n";
    let one_table = "[[table]]\nsource = 'public.t'\n";
    let said = read(&format!("{least}{settings}{one_table}{of_table}"));
    let unsaid = read(&format!("{least}{one_table}"));
    assert_eq!(said, unsaid);
    assert_eq!(unsaid.tables[0].history.to_string(), "public.t_cdc");
    assert!(unsaid.target_is_source && unsaid.log.format.is_none());
    let optional = [
        "source.dsn",
        "source.password_file",
        "target.dsn",
        "target.password_file",
        "table.source",
        "table.history",
        "snapshot.workers",
        "log.format",
        "http.listen",
    ];
    assert_eq!(without, optional);
}

#[test]
fn every_variable_in_the_documents_is_a_setting() {
    for (name, document) in DOCUMENTS {
        for rest in document.split("WALTRAIL_").skip(1) {
            let end =
                rest.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
            let tail = &rest[..end.unwrap_or(rest.len())];
            let key = tail.to_ascii_lowercase().replace("__", ".");
            let key = key.replacen("table.0.", "table.", 1);
            let known = KEYS.contains(&key.as_str())
                || matches!(key.as_str(), "" | "*" | "table" | "config" | "pg_bin");
            assert!(known, "{name} names WALTRAIL_{tail}");
        }
    }
}

#[test]
fn every_toml_block_of_the_readme_holds() {
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    fs::write(&password, "word").unwrap();
    let blocks: Vec<_> = README.split("```toml\n").skip(1).collect();
    assert!(blocks.len() >= 2);
    for block in blocks {
        let block = block.split_once("```").unwrap().0;
        read(&block.replace("/etc/waltrail/source.password", password.to_str().unwrap()))
            .require_tables()
            .unwrap();
    }
}

/// A new exit code does not compile here until it is written down.
fn number(exit: Exit) -> u8 {
    match exit {
        Exit::Usage
        | Exit::HistoryWouldBeWrong
        | Exit::Bug
        | Exit::Unreachable
        | Exit::NoPermission
        | Exit::Config => exit as u8,
    }
}

#[test]
fn exit_codes_are_the_same_in_readme_unit_help_and_program() {
    let mut codes = vec![0];
    codes.extend(
        [
            Exit::Usage,
            Exit::HistoryWouldBeWrong,
            Exit::Bug,
            Exit::Unreachable,
            Exit::NoPermission,
            Exit::Config,
        ]
        .map(number),
    );
    let documented: Vec<u8> = table(README, "exits")
        .iter()
        .map(|row| row[0].parse().unwrap())
        .collect();
    assert_eq!(documented, codes);
    let help = Cli::command().get_after_help().unwrap().to_string();
    for code in &codes {
        assert!(help.contains(&code.to_string()), "{help}");
    }
    let prevented = |text: &'static str| -> Vec<u8> {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("RestartPreventExitStatus="));
        let list = line.expect("a line RestartPreventExitStatus=");
        list.split(' ').map(|code| code.parse().unwrap()).collect()
    };
    assert_eq!(prevented(README), prevented(UNIT));
    assert_eq!(
        prevented(UNIT),
        [
            Exit::Usage,
            Exit::HistoryWouldBeWrong,
            Exit::NoPermission,
            Exit::Config
        ]
        .map(number)
    );
}

#[test]
fn commands_and_flags_are_clap_s() {
    let mut known = BTreeSet::new();
    for command in Cli::command().get_subcommands() {
        known.insert(command.get_name().to_owned());
        for argument in command.get_arguments().filter_map(|a| a.get_long()) {
            known.insert(format!("{} --{argument}", command.get_name()));
        }
    }
    let documented: BTreeSet<_> = table(README, "commands")
        .iter()
        .map(|row| code(row[0]).next().unwrap().to_owned())
        .collect();
    assert_eq!(documented, known);

    let known: BTreeSet<_> = Cli::command()
        .get_arguments()
        .map(|argument| {
            let value = &argument.get_value_names().unwrap()[0];
            format!("--{} {value}", argument.get_long().unwrap())
        })
        .collect();
    let documented: BTreeSet<_> = table(README, "flags")
        .iter()
        .map(|row| code(row[0]).next().unwrap().to_owned())
        .collect();
    assert_eq!(documented, known);
}

#[test]
fn every_message_that_the_readme_explains_can_be_said() {
    let mut sources = sources("src");
    sources.push_str(&fs::read_to_string(root().join("migrations/V1__checkpoint.sql")).unwrap());
    let rows = table(README, "messages");
    assert!(rows.len() > 10);
    for row in rows {
        let message = code(row[0]).next().unwrap();
        assert!(sources.contains(message), "nothing says: {message}");
    }
}

#[test]
fn the_metrics_of_the_readme_are_those_that_are_served() {
    let (rounds, _faults) = TableSyncs::new(false);
    let registry = metrics::registry(metrics::Sources {
        log_lines_dropped: tracing_appender::non_blocking(std::io::sink())
            .0
            .error_counter(),
        progress: Arc::default(),
        snapshot: rounds.shared(),
    });
    let mut served = String::new();
    prometheus_client::encoding::text::encode(&mut served, &registry).unwrap();
    let served: Vec<String> = served
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| match line.split_once(' ').unwrap() {
            (name, "counter") => format!("{name}_total"),
            (name, _) => name.to_owned(),
        })
        .collect();
    let documented = table(README, "metrics");
    let documented: Vec<&str> = documented
        .iter()
        .map(|row| code(row[0]).next().unwrap())
        .collect();
    assert_eq!(served, documented);
}

#[test]
fn the_tests_named_in_architecture_exist_and_every_invariant_has_one() {
    let sources = sources("src") + &sources("crates") + &sources("tests");
    let rows = table(ARCHITECTURE, "invariants");
    for row in &rows {
        assert!(code(row[2]).next().is_some(), "{} has no test", row[0]);
    }
    let in_rows = rows.iter().flat_map(|row| code(row[2]));
    let elsewhere = ARCHITECTURE
        .split("```")
        .step_by(2)
        .flat_map(code)
        .filter(|word| {
            word.matches('_').count() >= 3 && !word.contains(|c: char| c.is_ascii_uppercase())
        });
    let missing: BTreeSet<_> = in_rows
        .chain(elsewhere)
        .filter(|name| !sources.contains(&format!("fn {name}(")))
        .collect();
    assert!(missing.is_empty(), "no such tests: {missing:?}");

    let names = |rows: Vec<Vec<&'static str>>| rows.iter().map(|row| row[0]).collect::<Vec<_>>();
    let all = ["I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9"];
    assert_eq!(names(rows), all);
    assert_eq!(names(table(README, "invariants")), all);
}

#[test]
fn the_code_map_is_the_code() {
    let map: BTreeSet<_> = table(ARCHITECTURE, "rooms")
        .iter()
        .flat_map(|row| code(row[0]))
        .map(str::to_owned)
        .collect();
    for name in &map {
        let path = root().join(name);
        let fits = if name.ends_with('/') {
            path.is_dir()
        } else {
            path.is_file()
        };
        assert!(fits, "the code map names {name}, which is not there");
    }
    for entry in fs::read_dir(root().join("src")).unwrap() {
        let entry = entry.unwrap();
        let slash = if entry.path().is_dir() { "/" } else { "" };
        let name = format!("src/{}{slash}", entry.file_name().to_str().unwrap());
        assert!(map.contains(&name), "the code map lacks {name}");
    }
}

#[test]
fn source_and_target_do_not_know_each_other_and_nobody_knows_the_daemon() {
    for (folder, stranger) in [
        ("src/source", "crate::history"),
        ("src/target", "crate::source"),
        ("src", "crate::daemon"),
    ] {
        assert!(
            !sources(folder).contains(stranger),
            "{folder} uses {stranger}"
        );
    }
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let slug = |heading: &str| -> String {
        let kept = heading
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    let has = |document: &str, anchor: &str| {
        let headings = document.lines().filter(|line| line.starts_with('#'));
        headings
            .map(|line| slug(line.trim_start_matches('#').trim()))
            .any(|heading| heading == anchor)
    };
    for (name, document) in DOCUMENTS.iter().filter(|(name, _)| name.ends_with(".md")) {
        let folder = root().join(name);
        let folder = folder.parent().unwrap();
        for rest in document.split("](").skip(1) {
            let link = rest.split_once(')').unwrap().0;
            if link.starts_with("https://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let there = match (file, anchor) {
                ("", anchor) => has(document, anchor),
                (file, "") => folder.join(file).exists(),
                (file, anchor) => {
                    fs::read_to_string(folder.join(file)).is_ok_and(|other| has(&other, anchor))
                }
            };
            assert!(there, "{name} links to {link}");
        }
    }
}

#[test]
fn no_document_names_a_place_of_one_machine() {
    for (name, document) in DOCUMENTS {
        for place in ["/work", "/root", "localhost:"] {
            assert!(!document.contains(place), "{name} contains {place}");
        }
    }
}

/// A server with the database `app`, in which `employees` belongs to `app_owner`, as the README supposes; and
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

/// The README's configuration, for this server.
fn config(cluster: &Cluster, folder: &Path) -> String {
    let password = folder.join("source.password");
    fs::write(&password, "choose your own\n").unwrap();
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

/// A command of the README: what it prints on standard output.
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
async fn the_set_up_of_the_readme_works_with_the_privileges_it_gives() {
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
    assert!(shown.contains("public.employees_cdc: 2 rows"), "{shown}");
    let output = stop(daemon).await;
    log_fields_are_documented(&output);

    // Going on after a gap.
    execute(&app, block("gap")).await;
    app.batch_execute("DELETE FROM employees").await.unwrap();
    let daemon = streaming(&config).await;
    app.batch_execute("INSERT INTO employees (name) VALUES ('canary Cid')")
        .await
        .unwrap();
    wait_for_value(&app, ROWS, 3i64, PATIENCE).await;
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
    wait_for_value(&app, ROWS, 3i64, PATIENCE).await;
}

fn log_fields_are_documented(output: &str) {
    let rows = table(README, "fields");
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
async fn the_example_of_the_readme_gives_the_rows_it_shows() {
    let (cluster, client) = server().await;
    execute(&client, block("example")).await;
    let daemon = streaming(&format!(
        "[source]\ndsn = '{}'\n[[table]]\nsource = 'employees'\n",
        cluster.dsn_socket("postgres")
    ))
    .await;
    let mut shown = Vec::new();
    for row in table(README, "example") {
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
        let line = COMPOSE
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
