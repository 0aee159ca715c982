//! waltrail, as its release build runs by default.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::Statement;
use tempfile::TempDir;

use super::Attempt;
use crate::server::{self, Transport};
use crate::target::{HISTORY, Target};
use crate::usage::{Usage, Watch};
use crate::workload::{BASE_SLOT, Source};

/// The slot that it follows by default.
pub const SLOT: &str = "waltrail";
/// What was there before the slot is not recorded.
pub const NO_BASELINE: (&str, &str) = ("WALTRAIL_SNAPSHOT__MODE", "never");
/// Nothing is read in one piece.
pub const STREAMING: (&str, &str) = ("WALTRAIL_SOURCE__CATCH_UP_WAL", "0");
/// Its own grace is ten seconds.
const STOP_MAX: Duration = Duration::from_secs(20);

/// A running `waltrail run`. Dropping it kills it.
pub struct Daemon {
    process: Child,
    watch: Watch,
    folder: TempDir,
}

impl Daemon {
    /// Starts it with nothing but its addresses and tables set, and without a baseline: what was there before the slot
    /// is not recorded.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn start<S: AsRef<OsStr>>(
        program: &Path,
        source: &str,
        target: &str,
        tables: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        Self::start_with(program, source, target, tables, &[NO_BASELINE])
    }

    /// The same with these settings from the environment and no other.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn start_with<S: AsRef<OsStr>>(
        program: &Path,
        source: &str,
        target: &str,
        tables: impl IntoIterator<Item = S>,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        // Empty, so that no waltrail.toml is found.
        let folder = tempfile::tempdir()?;
        let mut command = command(program, &["run"], (source, target), tables, settings)?;
        let process = command
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(log_of(&folder))?)
            .spawn()
            .with_context(|| format!("could not run {}", program.display()))?;
        let watch = Watch::of(process.id())?;
        Ok(Self {
            process,
            watch,
            folder,
        })
    }

    /// Has `waltrail setup --context` make its triggers.
    ///
    /// # Errors
    /// It cannot be run, or it refuses.
    pub fn set_up<S: AsRef<OsStr>>(
        program: &Path,
        source: &str,
        target: &str,
        tables: impl IntoIterator<Item = S>,
        settings: &[(&str, &str)],
    ) -> Result<()> {
        let verbs = &["setup", "--context"];
        let folder = tempfile::tempdir()?;
        let mut command = command(program, verbs, (source, target), tables, settings)?;
        let output = command.current_dir(folder.path()).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "waltrail setup --context: {said}");
        Ok(())
    }

    /// Looks at the process.
    ///
    /// # Errors
    /// It ended, or it had to start its session again: then it is not what was to be measured.
    pub fn look(&mut self) -> Result<()> {
        if !self.watch.look()? {
            bail!("waltrail ended by itself:\n{}", self.log());
        }
        Ok(())
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(log_of(&self.folder)).unwrap_or_default()
    }

    /// What it took.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.watch.usage()
    }

    /// Asks it to end, and waits.
    ///
    /// # Errors
    /// It ends late or not well.
    pub fn stop(&mut self) -> Result<()> {
        // Not waited for yet, so the id cannot be somebody else's.
        kill(
            Pid::from_raw(self.process.id().cast_signed()),
            Signal::SIGTERM,
        )?;
        let deadline = Instant::now() + STOP_MAX;
        let status = loop {
            if let Some(status) = self.process.try_wait()? {
                break status;
            }
            ensure!(Instant::now() < deadline, "waltrail does not end");
            sleep(Duration::from_millis(5));
        };
        let log = self.log();
        ensure!(status.success(), "waltrail ended with {status}:\n{log}");
        let failed = log
            .lines()
            .find(|line| line.to_ascii_lowercase().contains("\"level\":\"error\""));
        if let Some(line) = failed {
            bail!("waltrail had an error: {line}");
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A command of waltrail with nothing but these settings.
fn command<S: AsRef<OsStr>>(
    program: &Path,
    verbs: &[&str],
    (source, target): (&str, &str),
    tables: impl IntoIterator<Item = S>,
    settings: &[(&str, &str)],
) -> Result<Command> {
    // It does not run where we do.
    let program = program.canonicalize().context("no program")?;
    let mut command = Command::new(&program);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("PG") || name.starts_with("WALTRAIL_") {
            command.env_remove(&*name);
        }
    }
    command.args(verbs);
    command.args(["--source", source, "--target", target]);
    for table in tables {
        command.arg("--table").arg(table);
    }
    command.envs(settings.iter().copied());
    Ok(command)
}

fn log_of(folder: &TempDir) -> PathBuf {
    folder.path().join("log")
}

/// One drain into `employees_cdc`.
pub(super) struct Drain<'a> {
    program: PathBuf,
    source: &'a Source,
    target: &'a mut Target,
    transport: Transport,
    streaming: bool,
    daemon: Option<Daemon>,
    /// Whether the last row is there: prepared, since it is asked all the time.
    done: Statement,
}

impl<'a> Drain<'a> {
    pub(super) fn prepare(
        program: &Path,
        source: &'a Source,
        target: &'a mut Target,
        transport: Transport,
        streaming: bool,
    ) -> Result<Self> {
        target.reset_history()?;
        server::copy_slot(&mut source.connect()?, BASE_SLOT, SLOT)?;
        let done = "SELECT 1 FROM employees_cdc WHERE cdc_id = $1";
        Ok(Self {
            program: program.to_owned(),
            source,
            done: target.history.prepare(done)?,
            target,
            transport,
            streaming,
            daemon: None,
        })
    }
}

impl Attempt for Drain<'_> {
    fn start(&mut self) -> Result<()> {
        let settings: &[_] = match self.streaming {
            true => &[NO_BASELINE, STREAMING],
            false => &[NO_BASELINE],
        };
        self.daemon = Some(Daemon::start_with(
            &self.program,
            &self.transport.dsn(&self.source.cluster, "postgres"),
            &self.transport.dsn(&self.target.cluster, HISTORY),
            ["public.employees"],
            settings,
        )?);
        Ok(())
    }

    fn is_done(&mut self) -> Result<bool> {
        if let Some(daemon) = &mut self.daemon {
            daemon.look()?;
        }
        // The history was emptied with RESTART IDENTITY: the last of n rows has number n.
        let last = i32::try_from(self.source.workload.changes().all())?;
        let found = self.target.history.query_opt(&self.done, &[&last])?;
        Ok(found.is_some())
    }

    fn finish(&mut self) -> Result<Option<i64>> {
        if let Some(daemon) = &mut self.daemon {
            daemon.stop()?;
        }
        let expected = self.source.workload.changes();
        Ok(Some(expected.are_in(&mut self.target.history)?))
    }

    fn usage(&self) -> Usage {
        self.daemon.as_ref().map(Daemon::usage).unwrap_or_default()
    }
}
