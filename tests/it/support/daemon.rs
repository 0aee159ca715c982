//! The built program as a process of its own, as an operator runs it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const POLL: Duration = Duration::from_millis(10);

/// Row values and passwords hold this word, or its first six letters in capitals or not. The program may
/// write it nowhere: whatever a test gets from the program here is searched for it.
pub const CANARY: &str = "CANARY_7f3a";

/// No row value, no password and no panic.
#[track_caller]
pub fn assert_silent(output: &str) {
    let lower = output.to_lowercase();
    // In hexadecimal, as a dump of a frame would show it, in capitals and in small letters.
    for word in ["canary", "43414e415259", "63616e617279"] {
        assert!(
            !lower.contains(word),
            "a row value or a password:\n{output}"
        );
    }
    assert!(!lower.contains("panicked"), "{output}");
}

/// The sentence and the remedy of the fault that ended a program, in either form.
#[track_caller]
pub fn ending(output: &str) -> (String, String) {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let objects = output.lines().rev();
    let mut objects =
        objects.filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    if let Some(last) = objects.find(|line| line["exit_code"].is_u64()) {
        return (text(&last["error"]), text(&last["remedy"]));
    }
    let after = |start: &str| output.lines().find_map(|line| line.strip_prefix(start));
    let error = after("error: ").unwrap_or_else(|| panic!("no fault in:\n{output}"));
    (
        error.to_owned(),
        after("hint: ").unwrap_or_default().to_owned(),
    )
}

/// A running program; killed when dropped. Standard output and error go, in their order, to one file.
pub struct Daemon {
    child: Child,
    status: Option<ExitStatus>,
    /// Keeps what comes out of the terminal; ends when no process has it open.
    terminal: Option<JoinHandle<io::Result<u64>>>,
    /// What is written here is typed on the terminal.
    typed: Option<File>,
    folder: TempDir,
}

impl Daemon {
    /// `waltrail run` with this configuration.
    pub fn spawn(config: &str) -> Self {
        Self::spawn_with(config, &["run"], &[])
    }

    /// Any command, with this configuration and these variables. Of the test's own environment, what
    /// configures waltrail or libpq is left out.
    pub fn spawn_with(config: &str, args: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::spawn_by(Self::command(), config, args, variables)
    }

    /// `waltrail run` by a program that runs others, such as `ip netns exec`.
    pub fn spawn_in(runs: &[&str], config: &str) -> Self {
        let mut command = Self::command_of(runs[0]);
        command.args(&runs[1..]).arg(env!("CARGO_BIN_EXE_waltrail"));
        Self::spawn_by(command, config, &["run"], &[])
    }

    fn spawn_by(
        mut command: Command,
        config: &str,
        args: &[&str],
        variables: &[(&str, &str)],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("waltrail.toml");
        std::fs::write(&file, config).unwrap();
        let log = File::create(folder.path().join("output")).unwrap();
        let child = command
            .arg("--config")
            .arg(file)
            .args(args)
            .envs(variables.iter().copied())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("the program should start");
        Self {
            child,
            status: None,
            terminal: None,
            typed: None,
            folder,
        }
    }

    /// `waltrail run` with its output on a terminal of 120 columns.
    pub fn spawn_on_terminal(config: &str) -> Self {
        Self::spawn_on_terminal_with(config, &["run"], 120, &[])
    }

    /// Any command on a terminal of so many columns, which it also reads from.
    pub fn spawn_on_terminal_with(
        config: &str,
        args: &[&str],
        columns: u16,
        variables: &[(&str, &str)],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("waltrail.toml");
        std::fs::write(&file, config).unwrap();
        let mut log = File::create(folder.path().join("output")).unwrap();
        let size = Winsize {
            ws_row: 40,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let terminal = openpty(&size, None).unwrap();
        let child = Self::command()
            .arg("--config")
            .arg(file)
            .args(args)
            .env_remove("NO_COLOR")
            .env_remove("CLICOLOR")
            .env_remove("CLICOLOR_FORCE")
            // What says that continuous integration runs is taken as a terminal with colours.
            .env_remove("CI")
            .env("TERM", "xterm")
            .envs(variables.iter().copied())
            .stdin(terminal.slave.try_clone().unwrap())
            .stdout(terminal.slave.try_clone().unwrap())
            .stderr(terminal.slave)
            .spawn()
            .expect("the program should start");
        let mut master = File::from(terminal.master);
        let typed = master.try_clone().unwrap();
        Self {
            child,
            status: None,
            terminal: Some(thread::spawn(move || io::copy(&mut master, &mut log))),
            typed: Some(typed),
            folder,
        }
    }

    /// The program without arguments, in a clean environment.
    pub fn command() -> Command {
        Self::command_of(env!("CARGO_BIN_EXE_waltrail"))
    }

    fn command_of(program: &str) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("WALTRAIL_") && text != "WALTRAIL_PG_BIN" || text.starts_with("PG")
            {
                command.env_remove(&name);
            }
        }
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    /// Types on the terminal.
    pub fn answer(&mut self, text: &str) {
        let terminal = self.typed.as_mut().expect("it is on a terminal");
        terminal.write_all(text.as_bytes()).unwrap();
    }

    /// The configuration file, to be changed before a SIGHUP.
    pub fn config_file(&self) -> std::path::PathBuf {
        self.folder.path().join("waltrail.toml")
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and the end of the process.
    pub fn kill9(&mut self) {
        self.signal(Signal::SIGKILL);
        if self.status.is_none() {
            self.status = Some(self.child.wait().unwrap());
        }
    }

    /// SIGTERM; see [`Daemon::wait`].
    pub fn sigterm(&mut self) {
        self.signal(Signal::SIGTERM);
    }

    /// Sends a signal, unless the process has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
        }
    }

    /// Whether the process is still there.
    pub fn is_running(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap();
        }
        if self.status.is_some()
            && let Some(terminal) = self.terminal.take()
        {
            // Reading from a terminal that no process has open is an error.
            let _ = terminal.join();
        }
        self.status.is_none()
    }

    /// Waits for the end of the process: its status and all that it wrote.
    ///
    /// # Panics
    /// When it still runs after `timeout`.
    pub async fn wait(&mut self, timeout: Duration) -> (ExitStatus, String) {
        let start = Instant::now();
        while self.is_running() {
            assert!(
                start.elapsed() < timeout,
                "the program still runs after {timeout:?}; it wrote:\n{}",
                self.output()
            );
            tokio::time::sleep(POLL).await;
        }
        (self.status.unwrap(), self.output())
    }

    /// Waits for a whole line of output for which `wanted` holds, also among those already written, and
    /// returns it.
    ///
    /// # Panics
    /// When there is none after `timeout`, or the process ended without it.
    pub async fn wait_log(&mut self, timeout: Duration, wanted: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            // Asked first: what it wrote before it ended is then surely read.
            let running = self.is_running();
            let output = self.output();
            let whole = output.rfind('\n').map_or("", |end| &output[..end]);
            if let Some(line) = whole.lines().find(|line| wanted(line)) {
                return line.to_owned();
            }
            assert!(
                running,
                "the program ended ({:?}) before the line that was waited for:\n{output}",
                self.status
            );
            assert!(
                start.elapsed() < timeout,
                "no such line after {timeout:?} in:\n{output}"
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// All that the process has written so far.
    #[track_caller]
    pub fn output(&self) -> String {
        let output = self.written();
        assert_silent(&output);
        output
    }

    fn written(&self) -> String {
        let bytes = std::fs::read(self.folder.path().join("output")).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Takes what is left in a terminal.
        self.is_running();
        if std::thread::panicking() {
            eprintln!("the program wrote:\n{}", self.written());
        } else {
            let written = self.written();
            assert_silent(&written);
            // Each line that any test brings about is held against the table of fields.
            for line in written.lines() {
                let unknown = crate::docs::logs::undocumented(line);
                assert_eq!(unknown, None, "not in docs/reference/log-fields.md: {line}");
            }
        }
    }
}

/// Runs one command of the program to its end: its status and what it wrote, standard output first.
pub fn run<S: AsRef<OsStr>>(
    folder: &Path,
    args: &[S],
    variables: &[(&str, &str)],
) -> (ExitStatus, String, String) {
    run_as(env!("CARGO_BIN_EXE_waltrail"), folder, args, variables)
}

/// As [`run`], by another program, such as a shell.
pub fn run_as<S: AsRef<OsStr>>(
    program: &str,
    folder: &Path,
    args: &[S],
    variables: &[(&str, &str)],
) -> (ExitStatus, String, String) {
    let output = Daemon::command_of(program)
        .args(args)
        .current_dir(folder)
        .envs(variables.iter().copied())
        .output()
        .expect("the program should start");
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert_silent(&text);
        text
    });
    (output.status, stdout, stderr)
}
