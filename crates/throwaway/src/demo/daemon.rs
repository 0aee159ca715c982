//! The daemon of the demonstration: a process of its own, so that it can really be killed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::error::{Error, Result};

/// How long the daemon may take to end; its own grace is ten seconds.
const STOP_MAX: Duration = Duration::from_secs(15);
/// So much of its log is shown when something went wrong.
const LOG_LINES_MAX: usize = 20;

/// How to start the daemon.
#[derive(Clone, Debug)]
pub(super) struct Launcher {
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
}

impl Launcher {
    /// For this database; `folder` gets the configuration file and the log, and has to be removed by the
    /// caller.
    pub(super) fn new(folder: &Path, dsn: &str) -> Result<Self> {
        let failed = |error| Error::defect("could not prepare the daemon").caused_by(error);
        let config = folder.join("waltrail.toml");
        // Naming a file also keeps the daemon from finding one of the person's own.
        let text = format!(
            "[source]\ndsn = \"{dsn}\"\n[[table]]\nsource = \"public.employees\"\n[log]\nformat = \"text\"\n"
        );
        fs::write(&config, text).map_err(failed)?;
        Ok(Self {
            program: std::env::current_exe().map_err(failed)?,
            config,
            log: folder.join("waltrail.log"),
        })
    }

    /// Starts it. It ends by itself when the server has gone, even if the demonstration was killed.
    pub(super) fn start(&self) -> Result<Daemon> {
        let failed = |error| Error::defect("could not start the daemon").caused_by(error);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(failed)?;
        let child = self
            .program()
            .args(["run", "--no-retry"])
            // Ctrl-C is for the demonstration, which then ends the daemon in its turn.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        Ok(Daemon { child })
    }

    /// The program with the demonstration's configuration, and nothing of the person's own.
    fn program(&self) -> Command {
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("WALTRAIL_") || text.starts_with("PG") {
                command.env_remove(&name);
            }
        }
        command
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .arg("--config")
            .arg(&self.config)
            .current_dir("/");
        command
    }

    /// Runs a command to its end: what it prints.
    ///
    /// # Errors
    /// It ends with another code than 0.
    pub(super) async fn command(&self, arguments: &[&str]) -> Result<String> {
        let failed = |error| Error::defect("could not run a command").caused_by(error);
        let output = self
            .program()
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(failed)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(Error::defect(format!(
                "waltrail {} ended with {}: {}{}",
                arguments.join(" "),
                output.status,
                text(&output.stdout),
                text(&output.stderr)
            ))),
        }
    }

    /// The end of what the daemon logged, over all its starts.
    pub(super) fn end_of_log(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_MAX)..].join("\n")
    }
}

/// The running daemon; killed when dropped.
#[derive(Debug)]
pub(super) struct Daemon {
    child: Child,
}

impl Daemon {
    /// Its process id; zero when it has ended.
    pub(super) fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Waits for its end. Cancel-safe.
    pub(super) async fn ended(&mut self) -> Result<ExitStatus> {
        let ended = self.child.wait().await;
        ended.map_err(|error| Error::defect("lost sight of the daemon").caused_by(error))
    }

    /// `kill -9`, and the end of the process.
    pub(super) async fn kill9(mut self) -> Result<()> {
        self.signal(Signal::SIGKILL);
        self.ended().await.map(|_| ())
    }

    /// SIGTERM, and the end of the process; it is killed when it takes too long.
    pub(super) async fn terminate(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM);
        match timeout(STOP_MAX, self.ended()).await {
            Ok(ended) => ended,
            Err(_) => {
                self.signal(Signal::SIGKILL);
                self.ended().await
            }
        }
    }

    fn signal(&self, signal: Signal) {
        // The child is ours and not yet reaped, so its id is not used again.
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}
