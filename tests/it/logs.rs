//! What an operator reads and what wakes him: levels, form, priorities, the line for `systemctl status`.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use throwaway::StopMode;

use crate::support::daemon::{Daemon, run};
use crate::support::scene::{Scene, config, streaming};
use crate::support::{BOUND, each, value};

/// Nothing listens there.
const AWAY: &str = "host=127.0.0.1 port=1 user=u dbname=d";
const INSERT: &str = "INSERT INTO employees (name) VALUES ('a')";

/// The lines of a JSON log.
#[track_caller]
fn lines(output: &str) -> Vec<Value> {
    let line = |line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
    output.lines().map(line).collect()
}

fn of_level<'a>(lines: &'a [Value], level: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["level"] == level).collect()
}

#[tokio::test]
async fn a_restarted_server_is_a_warning_and_when_it_is_back_the_log_says_after_how_long() {
    let mut scene = Scene::two(|builder| builder, |builder| builder).await;
    for side in ["target", "source"] {
        scene.spawned_as_json();
        scene.start().await;
        let server = match side {
            "source" => &mut scene.server,
            _ => scene.target_server.as_mut().unwrap(),
        };
        server.stop(StopMode::Immediate).unwrap();
        let failed = |line: &str| line.contains("the session failed and is started again");
        scene.daemon().wait_log(BOUND, failed).await;
        let server = match side {
            "source" => &mut scene.server,
            _ => scene.target_server.as_mut().unwrap(),
        };
        server.start_again().unwrap();
        let again = |line: &str| line.contains("connected again");
        let line = scene.daemon().wait_log(BOUND, again).await;
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (line["level"].as_str(), line["side"].as_str()),
            (Some("INFO"), Some(side))
        );
        assert!(line["seconds"].as_f64().unwrap() > 0.0, "{line}");
        assert!(line["failures"].as_u64().unwrap() >= 1, "{line}");
        scene.reconnect().await;
        each(&scene.source, &[INSERT]).await;
        scene.check().await;
        let output = scene.stop_complaining().await;
        let lines = lines(&output);
        assert!(of_level(&lines, "ERROR").is_empty(), "{output}");
        assert_eq!(output.matches("connected again").count(), 1, "{output}");
    }
}

#[tokio::test]
async fn two_processes_do_not_pause_alike() {
    let text = config(AWAY, None, &["public.t"], "level = \"debug\"\n");
    let mut daemons = [(); 2].map(|()| Daemon::spawn(&text));
    let mut pauses = Vec::new();
    for daemon in &mut daemons {
        let fourth = |line: &str| line.contains("\"failures\":4");
        daemon.wait_log(BOUND, fourth).await;
        let lines = lines(&daemon.output());
        let of = lines.iter().filter_map(|line| line["retry_in_ms"].as_u64());
        pauses.push(of.take(4).collect::<Vec<_>>());
    }
    println!("{pauses:?}");
    assert_eq!(pauses[0].len(), 4);
    assert_ne!(pauses[0], pauses[1]);
}

#[tokio::test]
#[ignore = "takes more than two minutes"]
async fn a_server_that_is_away_for_two_minutes_is_one_error() {
    let text = config(AWAY, None, &["public.t"], "");
    let mut daemon = Daemon::spawn(&text);
    let start = Instant::now();
    let wait = Duration::from_secs(150);
    daemon
        .wait_log(wait, |line| line.contains("\"ERROR\""))
        .await;
    let took = start.elapsed();
    println!("an error after {took:?}");
    assert!(took >= Duration::from_secs(120), "{took:?}");
    tokio::time::sleep(Duration::from_secs(10)).await;
    let lines = lines(&daemon.output());
    assert_eq!(of_level(&lines, "ERROR").len(), 1, "{lines:?}");
    assert_eq!(of_level(&lines, "WARN").len(), 1, "{lines:?}");
}

/// Arguments, variables, and the exit code.
type Failing = (
    &'static [&'static str],
    &'static [(&'static str, &'static str)],
    i32,
);

const FAILURES: [Failing; 7] = [
    (&["run", "--fast"], &[], 64),
    (&["run"], &[("WALTRAIL_SOURCE__DNS", "x")], 78),
    (
        &["run", "--source", AWAY, "--table", "t", "--no-retry"],
        &[],
        75,
    ),
    (&["setup", "--source", AWAY, "--table", "t"], &[], 75),
    (
        &[
            "teardown",
            "--yes",
            "--source",
            AWAY,
            "--log-format",
            "json",
        ],
        &[],
        75,
    ),
    (
        &["check", "--fast"],
        &[("WALTRAIL_LOG__FORMAT", "json")],
        64,
    ),
    (
        &["check", "--config-only"],
        &[("WALTRAIL_LOG__FORMAT", "json")],
        78,
    ),
];

#[test]
fn a_process_that_fails_writes_nothing_but_json_where_its_log_is_json() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, variables, code) in FAILURES {
        let (status, stdout, stderr) = run(folder.path(), arguments, variables);
        assert_eq!(status.code(), Some(code), "{arguments:?}: {stderr}");
        assert_eq!(stdout, "", "{arguments:?}");
        let lines = lines(&stderr);
        let last = lines.last().unwrap();
        assert_eq!(last["message"], "stopped", "{arguments:?}");
        assert_eq!(last["exit_code"], code, "{last}");
        assert_ne!(last["error"], "", "{last}");
        assert_ne!(last["remedy"], "", "{last}");
        let ends = lines.iter().filter(|line| line["exit_code"].is_u64());
        assert_eq!(ends.count(), 1, "{stderr}");
    }
}

#[test]
fn the_words_of_a_command_without_a_log_are_for_a_person() {
    let folder = tempfile::tempdir().unwrap();
    let commands: [&[&str]; 3] = [
        &["teardown", "--yes", "--source", AWAY],
        &["check", "--config-only"],
        &["run", "--log-format", "text", "--source", "nonsense=1"],
    ];
    for arguments in commands {
        let (_, _, stderr) = run(folder.path(), arguments, &[]);
        let starts: Vec<&str> = stderr.lines().filter_map(|l| l.split(' ').next()).collect();
        assert_eq!(starts, ["error:", "hint:"], "{stderr}");
    }
}

/// As systemd runs it: standard error is a socket or a pipe of the journal, which a variable names.
fn under_the_journal(arguments: &[&str]) -> String {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let end = File::from(OwnedFd::from(writer.try_clone().unwrap()));
    let stat = end.metadata().unwrap();
    let mut child = Daemon::command()
        .args(arguments)
        .env("JOURNAL_STREAM", format!("{}:{}", stat.dev(), stat.ino()))
        .stderr(Stdio::from(OwnedFd::from(writer)))
        .spawn()
        .unwrap();
    drop(end);
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    child.wait().unwrap();
    said
}

#[test]
fn under_the_journal_an_error_is_an_error() {
    let failing = [
        "run",
        "--source",
        AWAY,
        "--table",
        "t",
        "--no-retry",
        "--log-format",
    ];
    for format in ["json", "text"] {
        let said = under_the_journal(&[&failing[..], &[format]].concat());
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 2, "one of the start, one of the end: {said}");
        assert!(
            lines[0].starts_with("<6>") && lines[0].contains("started"),
            "{said}"
        );
        assert!(
            lines[1].starts_with("<3>") && lines[1].contains("stopped"),
            "{said}"
        );
        if format == "json" {
            let end: Value = serde_json::from_str(&lines[1][3..]).unwrap();
            assert_eq!(end["exit_code"], 75);
        }
    }
    // What is said without a log has its priority, too.
    let said = under_the_journal(&["teardown", "--yes", "--source", AWAY]);
    assert!(said.starts_with("<3>error: "), "{said}");
    assert!(said.lines().all(|line| line.starts_with("<3>")), "{said}");
    // Another stream is not the journal.
    let folder = tempfile::tempdir().unwrap();
    let named = [("JOURNAL_STREAM", "8:12345")];
    let (_, _, stderr) = run(
        folder.path(),
        &["teardown", "--yes", "--source", AWAY],
        &named,
    );
    assert!(stderr.starts_with("error: "), "{stderr}");
}

/// Receives what a service manager is sent.
struct Manager {
    socket: UnixDatagram,
    folder: TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, folder }
    }

    fn spawn(&self, config: &str) -> Daemon {
        let socket = self.folder.path().join("notify");
        let variables = [("NOTIFY_SOCKET", socket.to_str().unwrap())];
        Daemon::spawn_with(config, &["run"], &variables)
    }

    /// Waits until the line for `systemctl status` is such a line.
    async fn status(&self, wanted: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        let mut last = String::new();
        let mut buffer = [0; 4096];
        while start.elapsed() < BOUND {
            let Ok(length) = self.socket.recv(&mut buffer) else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            let told = String::from_utf8_lossy(&buffer[..length]).into_owned();
            for line in told.lines().filter_map(|line| line.strip_prefix("STATUS=")) {
                line.clone_into(&mut last);
                if wanted(line) {
                    return last;
                }
            }
        }
        panic!("no such status; the last one was {last:?}");
    }
}

#[tokio::test]
async fn what_is_waited_for_is_the_status_of_the_service_until_it_is_over() {
    let mut scene = Scene::two(|builder| builder, |builder| builder).await;
    let manager = Manager::new();
    let mut daemon = manager.spawn(&scene.config);
    manager.status(|line| line == "streaming").await;
    let locker = scene.target_session().await;
    let statements = [
        "SET application_name = 'report'",
        "BEGIN",
        "LOCK TABLE employees_cdc IN ACCESS EXCLUSIVE MODE",
        "/* of no daemon */ SELECT 'CANARY_7f3a'",
        "UPDATE employees SET name = 'CANARY_7f3a' WHERE false",
    ];
    let pid: i32 = value(&locker, "SELECT pg_backend_pid()").await;
    for statement in statements {
        locker.batch_execute(statement).await.unwrap();
    }
    each(&scene.source, &[INSERT]).await;
    let held = format!(
        "waiting for a lock on public.employees_cdc, held by pid {pid} (report), idle in transaction after UPDATE"
    );
    let start = Instant::now();
    let status = manager.status(|line| line.starts_with(&held)).await;
    println!("{status:?} after {:?}", start.elapsed());
    assert!(status.starts_with(&format!("{held}, since ")), "{status}");
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    let line = daemon.wait_log(BOUND, |line| line.contains(&held)).await;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["level"], "WARN");
    assert_eq!(line["pids"], pid.to_string());
    assert!(
        line["pid"].is_i64() && line["statement"].is_string(),
        "{line}"
    );
    locker.batch_execute("COMMIT").await.unwrap();
    manager.status(|line| line.starts_with("streaming")).await;
    let over = |line: &str| line.contains("the target answers again");
    daemon.wait_log(BOUND, over).await;

    scene.target_server.as_mut().unwrap().pause();
    each(&scene.source, &[INSERT]).await;
    let silent = "the target does not answer, since ";
    manager.status(|line| line.starts_with(silent)).await;
    scene.target_server.as_mut().unwrap().resume();
    manager.status(|line| line.starts_with("streaming")).await;
    scene.check().await;
    daemon.sigterm();
    let (_, output) = daemon.wait(BOUND).await;
    let lines = lines(&output);
    let about = ["waiting for a lock on", "has not answered for"];
    for line in of_level(&lines, "WARN") {
        let message = line["message"].as_str().unwrap();
        assert!(about.iter().any(|part| message.contains(part)), "{line}");
    }
    assert!(of_level(&lines, "ERROR").is_empty(), "{output}");
}

#[tokio::test]
async fn a_second_instance_shows_that_it_waits_for_the_first() {
    let mut scene = Scene::one(|builder| builder).await;
    scene.start().await;
    let manager = Manager::new();
    let _second = manager.spawn(&scene.config);
    let waits = "another waltrail writes for this slot; waiting until it is gone, since ";
    manager.status(|line| line.starts_with(waits)).await;
    scene.daemon().kill9();
    manager.status(|line| line == "streaming").await;
}

#[tokio::test]
async fn a_reload_changes_the_form_and_the_levels_and_a_refused_one_is_in_the_status() {
    let scene = Scene::one(|builder| builder).await;
    let text = scene.config.replace("\"trace\"", "\"info\"");
    let manager = Manager::new();
    let mut daemon = manager.spawn(&text);
    streaming(&mut daemon).await;
    let change = |daemon: &mut Daemon, text: &str| {
        std::fs::write(daemon.config_file(), text).unwrap();
        daemon.signal(Signal::SIGHUP);
    };
    change(&mut daemon, &text.replace("\"json\"", "\"text\""));
    let as_text = |line: &str| line.contains(" INFO configuration read again restart=false");
    daemon.wait_log(BOUND, as_text).await;
    change(
        &mut daemon,
        &text.replace("\"info\"", "\"error,daemon=info\""),
    );
    let as_json = |line: &str| line.starts_with('{') && line.contains("configuration read again");
    daemon.wait_log(BOUND, as_json).await;

    change(
        &mut daemon,
        &text.replace("\"info\"", "\"info,rooms=debug\""),
    );
    let refused = "; the new configuration is refused, the old one stays";
    manager.status(|line| line.ends_with(refused)).await;
    let line = |line: &str| line.contains("has the room \\\"rooms\\\"");
    daemon.wait_log(BOUND, line).await;
    // What `systemctl reload` asks before it sends the signal.
    let check = |text: &str| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("waltrail.toml"), text).unwrap();
        let (status, stdout, stderr) = run(folder.path(), &["check", "--config-only"], &[]);
        println!("{stdout}{stderr}");
        status.code()
    };
    assert_eq!(check(&text.replace("\"info\"", "\"loud\"")), Some(78));
    assert_eq!(check(&text), Some(0));
    change(&mut daemon, &text);
    manager.status(|line| !line.ends_with(refused)).await;
    daemon.sigterm();
    daemon.wait(BOUND).await;
}

#[tokio::test]
async fn no_color_is_honoured_on_a_terminal() {
    let text = config(AWAY, None, &["public.t"], "").replace("\"json\"", "\"text\"");
    for (variables, colours) in [
        (&[][..], true),
        (&[("NO_COLOR", "1")], false),
        (&[("NO_COLOR", "")], true),
        (&[("CLICOLOR", "0")], false),
        (&[("TERM", "dumb")], false),
    ] {
        let mut daemon = Daemon::spawn_on_terminal_with(&text, &["run"], 120, variables);
        let failed = |line: &str| line.contains("the session failed");
        daemon.wait_log(BOUND, failed).await;
        let output = daemon.output();
        assert_eq!(
            output.contains("\u{1b}["),
            colours,
            "{variables:?}: {output:?}"
        );
    }
}
