//! Does the demonstration show what it promises, and leave nothing behind however it ends?

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::support::connect;
use crate::support::daemon::Daemon;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const BOUND: Duration = Duration::from_secs(60);

/// A folder for everything temporary, into which the server's account can look.
fn scratch() -> TempDir {
    tempfile::Builder::new()
        .prefix("demo-")
        .permissions(PermissionsExt::from_mode(0o755))
        .tempdir()
        .unwrap()
}

/// The command lines of all processes that mention `folder`.
fn processes_of(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        if let Ok(line) = std::fs::read(entry.path().join("cmdline")) {
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(folder.to_str().unwrap()) {
                found.push(line);
            }
        }
    }
    found
}

/// Whether there is no file and no process left. The daemon has its configuration in the folder too, so
/// all processes name it.
fn is_clean(folder: &Path) -> bool {
    folder.read_dir().unwrap().count() == 0 && processes_of(folder).is_empty()
}

fn assert_clean(folder: &Path, after: &str) {
    let files: Vec<_> = folder.read_dir().unwrap().flatten().collect();
    assert!(files.is_empty(), "after {after}: {files:?}");
    assert_eq!(processes_of(folder), [""; 0], "after {after}");
}

/// The interactive demonstration, its lines read as they come.
struct Interactive {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    scratch: TempDir,
}

impl Interactive {
    fn start() -> Self {
        let scratch = scratch();
        let mut child = Daemon::command()
            .arg("demo")
            .env("TMPDIR", scratch.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        // It ends, and closes its end of the pipe, when nobody wants further lines.
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            lines,
            seen: Vec::new(),
            scratch,
        }
    }

    /// The first line from now on for which `wanted` holds.
    fn wait_line(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + BOUND;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if wanted(&line) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("no such line: {:#?}", self.seen),
                Err(RecvTimeoutError::Disconnected) => panic!("it ended: {:#?}", self.seen),
            }
        }
    }

    /// The number of the first line of all for which `wanted` holds, whether it has come already or not.
    fn wait_seen(&mut self, wanted: impl Fn(&str) -> bool) -> usize {
        let seen = self.seen.iter().position(|line| wanted(line));
        seen.unwrap_or_else(|| {
            self.wait_line(wanted);
            self.seen.len() - 1
        })
    }

    fn dsn(&mut self) -> String {
        let line = self.wait_line(|line| line.contains("DSN: "));
        line.split_once("DSN: ").unwrap().1.to_owned()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits for the end: the exit code and the folder that must be empty now.
    fn end(&mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(start.elapsed() < BOUND, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Interactive {
    fn drop(&mut self) {
        // The server's watchdog then does what is left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn once_plays_its_script_finds_the_history_right_and_leaves_nothing() {
    let scratch = scratch();
    let output = Daemon::command()
        .args(["demo", "--once"])
        .env("TMPDIR", scratch.path())
        // None of these may reach the demonstration's daemon or its connections.
        .env("WALTRAIL_TABLE", "nonsense")
        .env("WALTRAIL_SOURCE__SLOT", "Other Slot!")
        .env("PGPORT", "1")
        .env("PGSSLMODE", "verify-full")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}{errors}");
    assert_eq!(errors, "");
    assert!(text.contains("exactly what it must be"), "{text}");
    let last = text.lines().last().unwrap();
    assert!(last.contains("the history is the table"), "{text}");
    // The table is there again.
    let again = text.rsplit_once("demo=> SELECT * FROM employees ").unwrap().1;
    assert_eq!(again.matches(" | Sales ").count(), 6, "{text}");
    assert!(
        text.contains("kill -9") && text.contains("SIGTERM"),
        "{text}"
    );
    assert!(
        !text.contains('\u{1b}'),
        "colours where there is no terminal"
    );
    assert_clean(scratch.path(), "--once");
}

#[test]
fn once_interrupted_is_no_success_and_leaves_nothing() {
    let scratch = scratch();
    let mut child = Daemon::command()
        .args(["demo", "--once"])
        .env("TMPDIR", scratch.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The signals are taken over before anything is made.
    let start = Instant::now();
    while scratch.path().read_dir().unwrap().count() == 0 {
        assert!(start.elapsed() < BOUND);
        std::thread::sleep(Duration::from_millis(1));
    }
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(75));
    assert_clean(scratch.path(), "SIGTERM at the start");
}

#[tokio::test]
async fn a_persons_own_sql_is_shown_with_its_rows_and_ctrl_c_ends_it_without_a_trace() {
    let mut demo = Interactive::start();
    let client = connect(&demo.dsn()).await;
    client
        .batch_execute("INSERT INTO employees (id, name) VALUES (700, 'Zora')")
        .await
        .unwrap();
    client
        .execute("DELETE FROM employees WHERE id = $1", &[&700])
        .await
        .unwrap();
    // The scripted statements come between them as it happens.
    for wanted in [
        ["INSERT INTO employees (id, name) VALUES", ""],
        [" INSERT ", " 700 Zora "],
        [" DELETE ", " 700 NULL "],
    ] {
        demo.wait_seen(|line| wanted.iter().all(|part| line.contains(part)));
    }
    assert!(!processes_of(demo.scratch.path()).is_empty());
    demo.signal(Signal::SIGINT);
    assert_eq!(demo.end(), Some(0));
    assert_clean(demo.scratch.path(), "SIGINT");
}

#[tokio::test]
async fn no_row_is_shown_before_its_statement() {
    let mut demo = Interactive::start();
    let dsn = demo.dsn();
    // Said again after the scripted statements, which have more lines than rows or fewer.
    demo.dsn();
    let client = connect(&dsn).await;
    // They go on over many looks at the history, and each is one line, as its row is.
    const STATEMENTS: usize = 2000;
    const STATEMENT: &str = "INSERT INTO employees (name) VALUES ('Zoe')";
    for _ in 0..STATEMENTS {
        client.batch_execute(STATEMENT).await.unwrap();
    }
    let (mut statements, mut rows) = (0, 0);
    while rows < STATEMENTS {
        let line = demo.wait_line(|line| line.contains("Zoe"));
        statements += usize::from(line.contains(STATEMENT));
        rows += usize::from(line.contains(" Zoe "));
        assert!(rows <= statements, "row {rows}: {line}");
    }
}

#[tokio::test]
async fn a_daemon_that_somebody_kills_is_started_again_and_misses_nothing() {
    let mut demo = Interactive::start();
    let line = demo.wait_line(|line| line.contains("(process "));
    let pid = line.split_once("(process ").unwrap().1;
    let pid = pid.trim_end_matches(')').parse().unwrap();
    let client = connect(&demo.dsn()).await;
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    client
        .batch_execute("INSERT INTO employees (id, name) VALUES (701, 'Zita')")
        .await
        .unwrap();
    demo.wait_line(|line| line.contains("started again"));
    demo.wait_line(|line| line.contains("INSERT") && line.contains("Zita"));
    // The terminal was closed.
    demo.signal(Signal::SIGHUP);
    assert_eq!(demo.end(), Some(0));
    assert_clean(demo.scratch.path(), "SIGHUP");
}

#[test]
fn a_closed_output_ends_it() {
    let mut demo = Interactive::start();
    demo.wait_line(|_| true);
    let (_, nobody) = channel();
    demo.lines = nobody;
    assert_eq!(demo.end(), Some(0));
    assert_clean(demo.scratch.path(), "a closed output");
}

#[test]
fn even_killed_it_leaves_nothing() {
    let mut demo = Interactive::start();
    demo.dsn();
    demo.signal(Signal::SIGKILL);
    assert_eq!(demo.end(), None);
    let start = Instant::now();
    while !is_clean(demo.scratch.path()) {
        if start.elapsed() > BOUND {
            assert_clean(demo.scratch.path(), "SIGKILL");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
