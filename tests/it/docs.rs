//! Do the documents tell the truth? What README.md, `docs/` and ARCHITECTURE.md say is compared with the program, and
//! their SQL is run.
//!
//! A comment before a block says what is done with it: `<!-- executed: name -->` a block that is run,
//! `<!-- checked: name -->` a table whose rows are compared. Each name stands in one file of README.md and `docs/`,
//! whichever that is.

mod answers;
mod life;
pub mod logs;
mod managed;
mod prose;
mod set_up;
mod verify;
mod who;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use clap::CommandFactory;
use waltrail::cli::Cli;
use waltrail::config::{Config, Environment, Flags, KEYS};
use waltrail::fault::Exit;
use waltrail::snapshot::TableSyncs;
use waltrail::telemetry::metrics;

/// Everything that a reader may open, by its path.
static DOCUMENTS: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    let named = [
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "bench/README.md",
        "bench/PROFILE.md",
        "config/waltrail.toml",
        "config/waltrail.service",
        "config/waltrail-verify.service",
        "config/waltrail-verify.timer",
        "docker/Dockerfile",
        "docker/compose.yaml",
        "docker/compose.watch.yaml",
        "docker/prometheus/alerts.yaml",
        "docker/prometheus/prometheus.yaml",
    ];
    let mut paths: Vec<_> = named.iter().map(|name| root().join(name)).collect();
    paths.extend(files(&root().join("docs"), ".md"));
    paths.extend(files(&root().join("docker/initdb"), ".sql"));
    paths.extend(files(&root().join("docker/kubernetes"), ".yaml"));
    let document = |path: &PathBuf| {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap();
        (name.to_owned(), fs::read_to_string(path).expect(name))
    };
    paths.iter().map(document).collect()
});

/// README.md and the pages of `docs/`: what a user reads.
fn pages() -> impl Iterator<Item = (&'static str, &'static str)> {
    DOCUMENTS
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .filter(|(name, _)| *name == "README.md" || name.starts_with("docs/"))
}

pub fn document(name: &str) -> &'static str {
    let found = DOCUMENTS.iter().find(|(known, _)| known == name);
    &found.expect(name).1
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What follows a mark, in the one page that has it.
fn after(mark: &str) -> &'static str {
    let mut found = pages().filter_map(|(_, text)| text.split_once(mark));
    let (_, rest) = found.next().unwrap_or_else(|| panic!("no page has {mark}"));
    assert!(found.next().is_none(), "two pages have {mark}");
    rest
}

/// The fenced block after `<!-- executed: name -->`.
fn block(name: &str) -> &'static str {
    let rest = after(&format!("<!-- executed: {name} -->\n```"));
    let (_, rest) = rest.split_once('\n').unwrap();
    rest.split_once("```").unwrap().0
}

fn checked(name: &str) -> String {
    format!("<!-- checked: {name} -->\n")
}

/// The rows of the table after `<!-- checked: name -->`, without its head.
fn table(name: &str) -> Vec<Vec<&'static str>> {
    rows(after(&checked(name)))
}

/// The same in ARCHITECTURE.md.
fn table_of_architecture(name: &str) -> Vec<Vec<&'static str>> {
    let mark = checked(name);
    rows(
        document("ARCHITECTURE.md")
            .split_once(&mark)
            .expect(&mark)
            .1,
    )
}

/// The rows that a text begins with.
fn rows(text: &'static str) -> Vec<Vec<&'static str>> {
    text.lines()
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
    found.sort();
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
fn the_documents_have_every_key_and_no_other() {
    let documented: Vec<_> = table("keys")
        .iter()
        .map(|row| code(row[0]).next().unwrap())
        .collect();
    assert_eq!(documented, KEYS);
}

#[test]
fn the_documented_defaults_are_the_programs() {
    let (mut settings, mut of_table, mut without) = (String::new(), String::new(), Vec::new());
    for row in table("keys") {
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
        "schema_changes",
        "source.dsn",
        "source.password_file",
        "source.password_command",
        "target.dsn",
        "target.password_file",
        "target.password_command",
        "target.durable",
        "table.source",
        "table.history",
        "context.settings",
        "snapshot.workers",
        "log.format",
        "http.listen",
        "http.token_file",
        "http.tls_cert",
        "http.tls_key",
    ];
    assert_eq!(without, optional);
}

#[test]
fn every_variable_in_the_documents_is_a_setting() {
    for (name, document) in DOCUMENTS.iter() {
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
fn every_toml_block_of_the_documents_holds() {
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    fs::write(&password, "word").unwrap();
    let mut blocks = 0;
    for (name, text) in pages() {
        for block in text.split("```toml\n").skip(1) {
            let block = block.split_once("```").unwrap().0;
            read(&whole(block, password.to_str().unwrap()))
                .require_tables()
                .unwrap_or_else(|fault| panic!("{name}: {fault}"));
            blocks += 1;
        }
    }
    assert!(blocks >= 2);
}

/// A block of settings with what it leaves out: a source, a table, a password that is there.
fn whole(block: &str, password: &str) -> String {
    let mut whole = String::new();
    if !block.contains("dsn = ") {
        whole.push_str("source.dsn = 'host=db user=u dbname=d'\n");
    }
    for line in block.lines() {
        match line.trim_start_matches("# ").split_once("password_file = ") {
            Some((before, _)) => whole.push_str(&format!("{before}password_file = '{password}'\n")),
            None => whole.push_str(&format!("{line}\n")),
        }
    }
    if !block.contains("[[table]]") {
        whole.push_str("[[table]]\nsource = 'public.t'\n");
    }
    whole
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
fn exit_codes_are_the_same_in_documents_unit_help_and_program() {
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
    let documented: Vec<u8> = table("exits")
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
    let unit = document("config/waltrail.service");
    let documented = document("docs/reference/exit-codes.md");
    assert_eq!(prevented(documented), prevented(unit));
    assert_eq!(
        prevented(unit),
        [
            Exit::Usage,
            Exit::HistoryWouldBeWrong,
            Exit::NoPermission,
            Exit::Config
        ]
        .map(number)
    );
}

/// The codes of the findings of `check`, in their order.
pub fn codes_of_check() -> Vec<&'static str> {
    let rows = table("findings");
    rows.iter().filter_map(|row| code(row[0]).next()).collect()
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
    let documented: BTreeSet<_> = table("commands")
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
    let documented: BTreeSet<_> = table("flags")
        .iter()
        .map(|row| code(row[0]).next().unwrap().to_owned())
        .collect();
    assert_eq!(documented, known);
}

#[test]
fn every_message_that_the_documents_explain_can_be_said() {
    let mut sources = sources("src");
    for migration in files(&root().join("migrations"), ".sql") {
        sources.push_str(&fs::read_to_string(migration).unwrap());
    }
    let rows = table("messages");
    assert!(rows.len() > 10);
    for row in rows {
        let message = code(row[0]).next().unwrap();
        assert!(sources.contains(message), "nothing says: {message}");
    }
}

#[test]
fn the_documented_metrics_are_those_that_are_served() {
    let (rounds, _faults) = TableSyncs::new(false);
    let lines = tracing_appender::non_blocking(std::io::sink()).0;
    let sources = metrics::Sources::new(Arc::default(), rounds.shared(), lines.error_counter());
    let served = metrics::Format::Text.encode(&metrics::registry(sources));
    let served: BTreeSet<String> = served
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| line.split_once(' ').unwrap().0.to_owned())
        .collect();
    assert_eq!(served, documented_metrics());
}

/// Their names, as a scrape has them.
pub fn documented_metrics() -> BTreeSet<String> {
    let rows = table("metrics");
    let documented = rows.iter().flat_map(|row| code(row[0]));
    documented.map(str::to_owned).collect()
}

#[test]
fn the_invariants_are_the_same_everywhere_and_each_has_tests_that_exist() {
    let sources = sources("src") + &sources("crates") + &sources("tests");
    let is_test = |name: &str| sources.contains(&format!("fn {name}("));
    let rows = table_of_architecture("invariants");
    for row in &rows {
        assert!(code(row[2]).next().is_some(), "{} has no test", row[1]);
    }
    let named: BTreeSet<_> = rows.iter().flat_map(|row| code(row[2])).collect();
    let missing: Vec<_> = named.iter().filter(|name| !is_test(name)).collect();
    assert!(missing.is_empty(), "no such tests: {missing:?}");

    // What is not numbered is promised in words elsewhere.
    let numbers = |rows: &[Vec<&'static str>]| {
        let numbers = rows.iter().map(|row| row[0]);
        numbers
            .filter(|number| !number.is_empty())
            .collect::<Vec<_>>()
    };
    let all = [
        "I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9", "I10", "I11",
    ];
    assert_eq!(numbers(&rows), all);
    assert_eq!(numbers(&table("invariants")), all);
}

/// A name that changes need be looked for in one place only.
#[test]
fn tests_are_named_in_the_table_of_invariants_and_nowhere_else() {
    let sources = sources("src") + &sources("crates") + &sources("tests");
    let in_table = checked("invariants");
    for (name, text) in DOCUMENTS.iter().filter(|(name, _)| name.ends_with(".md")) {
        let prose = text.split("```").step_by(2).flat_map(str::lines);
        let mut inside = false;
        for line in prose {
            inside = line == in_table.trim_end() || inside && line.starts_with('|');
            let named = code(line).find(|word| {
                word.matches('_').count() >= 3 && sources.contains(&format!("fn {word}("))
            });
            assert!(inside || named.is_none(), "{name} names {named:?}");
        }
    }
}

#[test]
fn the_code_map_is_the_code() {
    let map: BTreeSet<_> = table_of_architecture("rooms")
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
fn source_and_history_do_not_know_each_other_and_only_commands_know_the_daemon() {
    for (folder, stranger) in [
        ("src/source", "crate::history"),
        ("src/history", "crate::source"),
    ] {
        assert!(
            !sources(folder).contains(stranger),
            "{folder} uses {stranger}"
        );
    }
    for file in files(&root().join("src"), ".rs") {
        let known = file.ends_with("commands.rs");
        let text = fs::read_to_string(&file).unwrap();
        assert!(known || !text.contains("crate::daemon"), "{file:?} uses it");
    }
}

#[test]
fn no_document_names_a_place_of_one_machine() {
    for (name, document) in DOCUMENTS.iter() {
        for place in ["/work", "/root/", "localhost:"] {
            assert!(!document.contains(place), "{name} contains {place}");
        }
    }
}
