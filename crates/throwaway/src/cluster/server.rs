//! One throw-away server: made, started, stopped in every way a server can end, and removed.
//!
//! The postmaster is our own child process, so its end is seen and reaped here. Every wait is for a
//! condition (a line of `postmaster.pid`, the end of the child, a line of the log) and has a bound.

mod settings;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::account::Account;
use super::find::Binaries;
use super::system::{
    POLL, children_of, ended_within, free_port, last_words, new_folder, signal, socket_path_len,
    watchdog,
};
use super::template;
use crate::error::{Error, Result};

/// How long a server may take to accept connections; crash recovery is part of it.
const START_MAX: Duration = Duration::from_secs(60);
/// How long an orderly stop may take.
const STOP_MAX: Duration = Duration::from_secs(60);
/// PostgreSQL itself kills its children five seconds after an immediate stop.
const ABORT_MAX: Duration = Duration::from_secs(15);
/// Longer socket paths do not fit into `sockaddr_un` on any system.
const SOCKET_PATH_MAX: usize = 103;

/// How a server is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// SIGTERM: waits until every client has gone by itself.
    Smart,
    /// SIGINT: ends sessions and writes a checkpoint; walsenders are first drained.
    Fast,
    /// SIGQUIT: as in a crash, the next start recovers from the WAL.
    Immediate,
}

impl StopMode {
    fn signal(self) -> Signal {
        match self {
            Self::Smart => Signal::SIGTERM,
            Self::Fast => Signal::SIGINT,
            Self::Immediate => Signal::SIGQUIT,
        }
    }

    fn bound(self) -> Duration {
        match self {
            Self::Smart | Self::Fast => STOP_MAX,
            Self::Immediate => ABORT_MAX,
        }
    }
}

/// What a [`Cluster`] is to be like.
#[derive(Clone, Debug)]
pub struct Builder {
    binaries: Option<Binaries>,
    parent: Option<PathBuf>,
    settings: Vec<(String, String)>,
    hba: Vec<String>,
    initdb: Vec<String>,
    port: Option<u16>,
    fsync: bool,
    template: bool,
}

impl Builder {
    /// Uses these programs instead of the ones that [`Binaries::find`] finds.
    #[must_use]
    pub fn binaries(mut self, binaries: Binaries) -> Self {
        self.binaries = Some(binaries);
        self
    }

    /// Puts the server's folder into this one instead of the system's folder for temporary files.
    #[must_use]
    pub fn parent(mut self, folder: impl Into<PathBuf>) -> Self {
        self.parent = Some(folder.into());
        self
    }

    /// Sets a parameter of `postgresql.conf`; the last one of a name wins, over the defaults here too.
    #[must_use]
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Adds a line to `pg_hba.conf`, before the lines that trust everybody on this machine.
    #[must_use]
    pub fn hba(mut self, line: impl Into<String>) -> Self {
        self.hba.push(line.into());
        self
    }

    /// Replaces the arguments of `initdb`, by default `-E UTF8 --locale=C`.
    #[must_use]
    pub fn initdb_args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.initdb = args.into_iter().map(Into::into).collect();
        self
    }

    /// Listens on this TCP port instead of a free one.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Whether the server flushes to disk; off by default. Crashes of the server alone, which are all
    /// that [`Cluster::kill9`] and [`StopMode::Immediate`] make, lose nothing without it.
    #[must_use]
    pub fn fsync(mut self, fsync: bool) -> Self {
        self.fsync = fsync;
        self
    }

    /// Starts from a copy of a ready-made data directory, which is kept in the temporary folder for the
    /// next time. Much faster, but all such clusters have **one and the same system identifier**.
    #[must_use]
    pub fn from_template(mut self) -> Self {
        self.template = true;
        self
    }

    /// Runs `initdb` for this very cluster, so that it has a system identifier of its own. The default.
    #[must_use]
    pub fn fresh_initdb(mut self) -> Self {
        self.template = false;
        self
    }

    /// Makes the server and waits until it accepts connections. What was made is removed on failure.
    ///
    /// # Errors
    /// [`Kind::Environment`](crate::Kind::Environment), with what the server said, when it cannot be made or started here.
    pub fn start(self) -> Result<Cluster> {
        let binaries = match self.binaries {
            Some(binaries) => binaries,
            None => Binaries::find()?,
        };
        let account = Account::choose()?;
        let folder = new_folder(self.parent.as_deref(), &account)?;
        let sockets = if socket_path_len(folder.path()) > SOCKET_PATH_MAX {
            Some(new_folder(Some(Path::new("/tmp")), &account)?)
        } else {
            None
        };
        let watchdog = watchdog(folder.path(), sockets.as_ref().map(TempDir::path))?;
        let mut cluster = Cluster {
            binaries,
            account,
            folder,
            sockets,
            watchdog,
            server: None,
            port: self.port.unwrap_or_default(),
            generation: 0,
        };
        let data = cluster.data_dir();
        if self.template {
            template::copy(&cluster.binaries, &cluster.account, &self.initdb, &data)?;
        } else {
            template::initdb(&cluster.binaries, &cluster.account, &self.initdb, &data)?;
        }
        cluster.write_hba(&self.hba)?;
        cluster.write_settings(self.fsync, &self.settings)?;
        if self.port.is_some() {
            cluster.launch()?;
        } else {
            cluster.launch_on_free_port()?;
        }
        Ok(cluster)
    }
}

/// A throw-away PostgreSQL server. Dropping it stops the server at once and removes all that it left.
#[derive(Debug)]
pub struct Cluster {
    binaries: Binaries,
    account: Account,
    folder: TempDir,
    sockets: Option<TempDir>,
    watchdog: Child,
    server: Option<Child>,
    port: u16,
    /// Counts the reloads, see [`Cluster::set`].
    generation: u32,
}

impl Cluster {
    /// A cluster with logical replication on, no fsync, trust for everybody on this machine, the
    /// superuser `postgres`, and small memory.
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            binaries: None,
            parent: None,
            settings: Vec::new(),
            hba: Vec::new(),
            initdb: ["-E", "UTF8", "--locale=C"].map(String::from).to_vec(),
            port: None,
            fsync: false,
            template: false,
        }
    }

    /// The TCP port on 127.0.0.1; the same after every restart.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the Unix socket.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        self.sockets.as_ref().unwrap_or(&self.folder).path()
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The folder that holds all of the cluster and goes away with it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The programs that this server runs.
    #[must_use]
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// A connection string (libpq keyword/value) for the superuser over TCP.
    #[must_use]
    pub fn dsn_tcp(&self, database: &str) -> String {
        format!(
            "host=127.0.0.1 port={} user=postgres dbname={database}",
            self.port
        )
    }

    /// A connection string (libpq keyword/value) for the superuser over the Unix socket.
    #[must_use]
    pub fn dsn_socket(&self, database: &str) -> String {
        format!(
            "host={} port={} user=postgres dbname={database}",
            self.socket_dir().display(),
            self.port
        )
    }

    /// The postmaster's process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Child::id)
    }

    /// All that the server has logged, over all its starts.
    #[must_use]
    pub fn log_text(&self) -> String {
        fs::read(self.log_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Stops the server and waits for its end. Nothing happens when it does not run.
    ///
    /// [`StopMode::Smart`] waits for clients: on a runtime with one thread, the caller's own clients
    /// cannot leave while this call waits.
    ///
    /// # Errors
    /// When the server is still there after a minute (15 s for [`StopMode::Immediate`]); it runs on.
    pub fn stop(&mut self, mode: StopMode) -> Result<()> {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        // The child is ours and not yet reaped, so its id is not used again.
        signal(server.id(), mode.signal());
        if !ended_within(server, mode.bound()) {
            return Err(Error::environment(format!(
                "the server did not stop ({mode:?})"
            )));
        }
        self.server = None;
        Ok(())
    }

    /// Kills the postmaster and all its children with SIGKILL, as a machine that goes down would.
    pub fn kill9(&mut self) {
        let Some(mut server) = self.server.take() else {
            return;
        };
        // A stopped postmaster starts no child between the list and the kill.
        signal(server.id(), Signal::SIGSTOP);
        let children = children_of(server.id());
        signal(server.id(), Signal::SIGKILL);
        for child in children {
            signal(child, Signal::SIGKILL);
        }
        // Nothing survives SIGKILL, so this returns.
        let _ = server.wait();
    }

    /// Stops the postmaster and all its children where they are, as a machine that is paused would. The kernel goes on: it
    /// acknowledges what is sent to them, and takes their connections.
    pub fn pause(&mut self) {
        if let Some(server) = &self.server {
            // First, so that it starts no child.
            signal(server.id(), Signal::SIGSTOP);
            let children = children_of(server.id());
            children
                .into_iter()
                .for_each(|child| signal(child, Signal::SIGSTOP));
        }
    }

    /// Lets them go on.
    pub fn resume(&mut self) {
        if let Some(server) = &self.server {
            let children = children_of(server.id());
            children
                .into_iter()
                .for_each(|child| signal(child, Signal::SIGCONT));
            signal(server.id(), Signal::SIGCONT);
        }
    }

    /// Starts the server again on the same data and port and waits until it accepts connections.
    ///
    /// # Errors
    /// [`Kind::Environment`](crate::Kind::Environment), with what the server said, when it does not come up within a minute.
    pub fn start_again(&mut self) -> Result<()> {
        if self.server.is_some() {
            return Err(Error::environment("the server runs already"));
        }
        self.launch()
    }

    /// Stops the server and starts it again.
    ///
    /// # Errors
    /// As [`Cluster::stop`] and [`Cluster::start_again`].
    pub fn restart(&mut self, mode: StopMode) -> Result<()> {
        self.stop(mode)?;
        self.start_again()
    }

    /// Waits until the server accepts connections.
    ///
    /// # Errors
    /// When it ended instead, with what it said, or when `bound` is over.
    pub fn wait_ready(&mut self, bound: Duration) -> Result<()> {
        let file = self.data_dir().join("postmaster.pid");
        let deadline = Instant::now() + bound;
        loop {
            let Some(server) = &mut self.server else {
                return Err(Error::environment("the server is not started"));
            };
            if let Ok(Some(status)) = server.try_wait() {
                self.server = None;
                return Err(Error::environment(format!(
                    "the server ended while it started ({status}){}",
                    last_words(&self.log_text())
                )));
            }
            // The first line tells whether the file is this server's or that of one that crashed.
            let text = fs::read_to_string(&file).unwrap_or_default();
            let mut lines = text.lines();
            if lines.next().and_then(|line| line.trim().parse().ok()) == Some(server.id())
                && lines.nth(6).is_some_and(|line| line.trim() == "ready")
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::environment(format!(
                    "the server does not accept connections after {} s{}",
                    bound.as_secs(),
                    last_words(&self.log_text())
                )));
            }
            sleep(POLL);
        }
    }

    /// Takes free ports until the server got one: another process may be faster with each.
    fn launch_on_free_port(&mut self) -> Result<()> {
        const ATTEMPTS: usize = 20;
        for _ in 1..ATTEMPTS {
            self.port = free_port()?;
            let seen = self.log_text().len();
            match self.launch_once() {
                Err(_) if self.port_was_taken(seen) => {}
                outcome => return outcome,
            }
        }
        self.port = free_port()?;
        self.launch_once()
    }

    /// Starts the server on its port; what a crashed predecessor or a passing client holds is waited for.
    fn launch(&mut self) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.log_text().len();
            match self.launch_once() {
                Err(_)
                    if Instant::now() < deadline
                        && (self.port_was_taken(seen) || self.memory_was_in_use(seen)) =>
                {
                    sleep(Duration::from_millis(50));
                }
                outcome => return outcome,
            }
        }
    }

    fn launch_once(&mut self) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(self.log_path())
            .map_err(|error| {
                Error::environment("could not open the server's log").caused_by(error)
            })?;
        let errors = log.try_clone().map_err(|error| {
            Error::environment("could not open the server's log").caused_by(error)
        })?;
        let server = self
            .account
            .command(&self.binaries.program("postgres"))
            .arg("-D")
            .arg(self.data_dir())
            .arg("-p")
            .arg(self.port.to_string())
            .current_dir(self.folder.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|error| Error::environment("could not run postgres").caused_by(error))?;
        self.server = Some(server);
        self.wait_ready(START_MAX)
    }

    fn port_was_taken(&self, seen: usize) -> bool {
        self.logged_since(seen, &["could not bind", "could not create any TCP/IP"])
    }

    fn memory_was_in_use(&self, seen: usize) -> bool {
        self.logged_since(seen, &["pre-existing shared memory block"])
    }

    fn logged_since(&self, seen: usize, any_of: &[&str]) -> bool {
        let log = self.log_text();
        let new = log.get(seen..).unwrap_or_default();
        any_of.iter().any(|text| new.contains(text))
    }

    /// The file of [`Cluster::log_text`].
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }

    /// Gives back the System V segment by which PostgreSQL guards a data directory. A server that was
    /// killed cannot do it, and the next start, which would, never comes. Any other end removes the file.
    fn free_shared_memory(&self) {
        let text = fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap_or_default();
        // The seventh line holds the segment's key and id.
        let id = text
            .lines()
            .nth(6)
            .and_then(|line| line.split_whitespace().nth(1));
        if let Some(id) = id {
            let _ = Command::new("ipcrm")
                .args(["-m", id])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
}

impl Drop for Cluster {
    /// Cleans up as far as it can; a failure cannot be reported from here.
    fn drop(&mut self) {
        self.resume();
        if self.stop(StopMode::Immediate).is_err() {
            self.kill9();
        }
        self.free_shared_memory();
        let _ = fs::remove_dir_all(self.folder.path());
        if let Some(sockets) = &self.sockets {
            let _ = fs::remove_dir_all(sockets.path());
        }
        // Now the watchdog has nothing to guard: a word on its pipe sends it away.
        if let Some(mut pipe) = self.watchdog.stdin.take() {
            let _ = pipe.write_all(b"done\n");
        }
        let _ = self.watchdog.wait();
    }
}
