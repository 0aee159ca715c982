//! One schedule: a daemon, its load, and one to four faults, all from one seed.
//!
//! The seed fixes what is done. When it meets what the daemon does, only the run decides.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use fastrand::Rng;
use tempfile::NamedTempFile;
use tokio_postgres::Client;

use super::kind::{KINDS, Kind, faketime};
use super::network::Network;
use super::rig::Rig;
use super::sampler::{Place, Sampler};
use super::verdict::{Counts, judge};
use super::words::{Struck, unannounced};
use crate::support::daemon::Daemon;
use crate::support::load::{self, Load, Plan};
use crate::support::{connect, each, value};

/// So long the daemon may take, after the last fault, to be up to date again.
const BACK_MAX: Duration = Duration::from_secs(60);
/// Longer than the daemon's own grace.
const STOP_MAX: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    OneDatabase,
    TwoClusters,
}

/// What the daemon does when the first fault comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It records rows that exist already.
    Existing,
    /// It catches up a backlog.
    Backlog,
    Live,
}

/// What a seed means.
#[derive(Clone, Debug)]
pub struct Draw {
    pub mode: Mode,
    pub phase: Phase,
    pub kinds: Vec<Kind>,
    /// The history is the one of the design, not one that the daemon makes.
    plain_history: bool,
    batch: &'static str,
}

impl Draw {
    /// Seeds one after the other begin with one kind after the other.
    pub fn new(rng: &mut Rng, seed: u64, kinds: &[Kind]) -> Self {
        let mode = [Mode::OneDatabase, Mode::TwoClusters, Mode::TwoClusters][rng.usize(..3)];
        let mut chosen = vec![KINDS[(seed as usize).wrapping_sub(1) % KINDS.len()]];
        for _ in 0..rng.usize(0..4) {
            chosen.push(KINDS[rng.usize(..KINDS.len())]);
        }
        // What cannot be made here is left out; the seed means the same otherwise.
        chosen.retain(|kind| kinds.contains(kind));
        // Where the source is the target, the load's commits are as durable as ours.
        chosen.retain(|&kind| mode == Mode::TwoClusters || kind != Kind::TargetMachine);
        Self {
            mode,
            phase: [Phase::Existing, Phase::Backlog, Phase::Live, Phase::Live][rng.usize(..4)],
            kinds: chosen,
            plain_history: rng.bool(),
            batch: [
                "",
                "[batch]\ninterval = \"0\"\n",
                "[batch]\nmax_rows = 40\n",
            ][rng.usize(..3)],
        }
    }
}

/// What came of a schedule.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub counts: Counts,
    pub samples: usize,
    pub recovery: Duration,
    /// What is wrong, in words; empty: nothing.
    pub wrong: String,
}

pub struct Schedule<'a> {
    pub rng: Rng,
    pub draw: Draw,
    pub rig: &'a mut Rig,
    pub name: String,
    pub to_source: Network,
    pub to_target: Option<Network>,
    /// None until the schedule has begun.
    daemon: Option<Daemon>,
    pub config: String,
    /// What daemons that are gone wrote.
    pub written: Vec<String>,
    struck: Vec<Struck>,
    /// Sets the daemons' clock off, where that is possible.
    clock: NamedTempFile,
    /// What was done, for a reader.
    pub log: Vec<String>,
    began: Instant,
}

/// Small changes, and now and then some hundred rows at once.
fn statement(rng: &mut Rng) -> String {
    let rows = rng.usize(200..1_500);
    match rng.u8(..120) {
        0 => format!(
            "INSERT INTO employees (name, salary) SELECT 'x' || n, n FROM generate_series(1, {rows}) n"
        ),
        1 => format!(
            "UPDATE employees SET department = 'moved' WHERE id IN (SELECT id FROM employees ORDER BY id DESC LIMIT {rows})"
        ),
        _ => load::statement(rng),
    }
}

impl<'a> Schedule<'a> {
    /// Databases, tables, networks and a daemon in its phase.
    pub async fn begin(rig: &'a mut Rig, seed: u64) -> (Schedule<'a>, Load) {
        let mut rng = Rng::with_seed(seed);
        let draw = Draw::new(&mut rng, seed, &rig.kinds);
        rig.repair();
        let name = format!("chaos{seed}");
        rig.make_databases(&name).await;
        let to_source = Network::start(rig.source.port());
        let two = draw.mode == Mode::TwoClusters;
        let to_target = two.then(|| Network::start(rig.target.port()));
        let config = config(&draw, &name, &to_source, to_target.as_ref());
        let dsn = rig.source.dsn_tcp(&name);
        let log = vec![format!("{draw:?}")];
        let mut schedule = Self {
            rng,
            draw,
            rig,
            name,
            to_source,
            to_target,
            daemon: None,
            config,
            written: Vec::new(),
            struck: Vec::new(),
            clock: NamedTempFile::new().unwrap(),
            log,
            began: Instant::now(),
        };
        schedule.set_clock_off(0);
        schedule.make_tables().await;
        let plan = Plan::new(dsn, schedule.rng.u64(..))
            .statements(statement)
            .pause(Duration::from_millis(8));
        let load = schedule.begin_phase(plan).await;
        (schedule, load)
    }

    async fn make_tables(&mut self) {
        let (source, target) = (self.source().await, self.target().await);
        if !self.draw.plain_history {
            each(&target, &["DROP TABLE employees_cdc"]).await;
        }
        if self.rig.disks.is_some() && self.draw.kinds.contains(&Kind::TargetDisk) {
            let small = format!(
                "ALTER DATABASE {} SET default_tablespace = 'small'",
                self.name
            );
            each(&target, &[&small]).await;
            if self.draw.plain_history {
                each(&target, &["ALTER TABLE employees_cdc SET TABLESPACE small"]).await;
            }
        }
        if self.draw.phase == Phase::Existing {
            let rows = "INSERT INTO employees (name, department)
                SELECT n, repeat('d', 90) FROM generate_series(1, 12000) n";
            each(&source, &[rows, "TRUNCATE oracle.change"]).await;
        }
    }

    async fn begin_phase(&mut self, plan: Plan) -> Load {
        match self.draw.phase {
            Phase::Existing => {
                let load = plan.start();
                self.spawn();
                load
            }
            Phase::Live => {
                self.spawn();
                self.streaming().await;
                plan.start()
            }
            Phase::Backlog => {
                self.spawn();
                self.streaming().await;
                self.stop().await.unwrap();
                let load = plan.start();
                load.more(60).await;
                let source = self.source().await;
                // Above what is worth to be read by SQL.
                let padding =
                    "SELECT pg_logical_emit_message(true, 'padding', repeat('x', 9000000))";
                each(&source, &[padding]).await;
                load.more(60).await;
                each(&source, &[padding]).await;
                self.spawn();
                load
            }
        }
    }

    /// A session in the source's database, past the network.
    pub async fn source(&self) -> Client {
        connect(&self.rig.source.dsn_socket(&self.name)).await
    }

    /// A session in the target's database, past the network.
    pub async fn target(&self) -> Client {
        connect(&self.target_dsn()).await
    }

    fn target_dsn(&self) -> String {
        match self.draw.mode {
            Mode::OneDatabase => self.rig.source.dsn_socket(&self.name),
            Mode::TwoClusters => self.rig.target.dsn_socket(&self.name),
        }
    }

    /// Notes what is done.
    pub fn note(&mut self, what: &str) {
        let line = format!("{:>9.3} s {what}", self.began.elapsed().as_secs_f64());
        self.log.push(line);
    }

    /// Puts a new daemon in the place of the last one, which is killed if it still runs.
    pub fn spawn(&mut self) {
        let daemon = self.another();
        self.replace(daemon);
    }

    /// A new daemon.
    pub fn another(&self) -> Daemon {
        let Some(library) = faketime().filter(|_| self.draw.kinds.contains(&Kind::Clock)) else {
            return Daemon::spawn(&self.config);
        };
        let variables = [
            ("LD_PRELOAD", library.to_str().unwrap()),
            (
                "FAKETIME_TIMESTAMP_FILE",
                self.clock.path().to_str().unwrap(),
            ),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        Daemon::spawn_with(&self.config, &["run"], &variables)
    }

    /// Sets the daemon's clock off by so many seconds, or right again.
    pub fn set_clock_off(&self, seconds: i64) {
        std::fs::write(self.clock.path(), format!("{seconds:+}s\n")).unwrap();
    }

    pub fn replace(&mut self, daemon: Daemon) {
        if let Some(mut last) = self.daemon.replace(daemon) {
            last.kill9();
            self.written.push(last.output());
        }
        self.note("a daemon was started");
    }

    /// The daemon that was started last.
    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("a daemon was started")
    }

    async fn streaming(&mut self) {
        crate::support::scene::streaming(self.daemon()).await;
    }

    /// Waits until the daemon has a log, and thereby its handlers of signals, or has ended.
    pub async fn begun(&mut self) {
        while self.daemon().output().is_empty() && self.daemon().is_running() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// SIGTERM, and an orderly end.
    pub async fn stop(&mut self) -> Result<(), String> {
        self.begun().await;
        self.daemon().sigterm();
        let start = Instant::now();
        while self.daemon().is_running() {
            if start.elapsed() > STOP_MAX {
                return Err(format!("it does not end within {STOP_MAX:?} of SIGTERM"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let (status, _) = self.daemon().wait(STOP_MAX).await;
        match status.code() {
            Some(0) => Ok(()),
            _ => Err(format!("after SIGTERM it ended with {status}")),
        }
    }

    /// All of it.
    pub async fn run(&mut self, load: Load) -> Report {
        let sampler = Sampler::start(Place {
            source: self.rig.source.dsn_socket(&self.name),
            target: self.target_dsn(),
            slot: self.name.clone(),
        });
        let mut report = Report::default();
        if let Err(wrong) = self.suffer(load, &mut report).await {
            report.wrong.push_str(&wrong);
            report.wrong.push('\n');
        }
        let sampled = sampler.stop();
        report.samples = sampled.samples;
        if sampled.samples == 0 {
            report.wrong.push_str("the slot was never sampled\n");
        }
        for ahead in sampled.ahead {
            report.wrong.push_str(&format!("{ahead}\n"));
        }
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill9();
            self.written.push(daemon.output());
        }
        let words = unannounced(&self.written, &self.struck);
        report.wrong.push_str(&words);
        report
    }

    async fn suffer(&mut self, load: Load, report: &mut Report) -> Result<(), String> {
        for kind in self.draw.kinds.clone() {
            self.moment(700).await;
            self.note(kind.name());
            let written = self.daemon().output().len();
            self.struck.push(Struck {
                kind,
                daemon: self.written.len(),
                bytes: written,
            });
            self.strike(kind).await?;
            self.note("its end");
        }
        report.recovery = self.back().await?;
        load.stop();
        let (source, target) = (self.source().await, self.target().await);
        self.arrived(&source, &target).await?;
        self.stop().await?;
        let (counts, words) = judge(&source, &target).await;
        report.counts = counts;
        match counts.is_exact() {
            true => Ok(()),
            false => Err(words),
        }
    }

    /// Lets a random time pass.
    pub async fn moment(&mut self, max_ms: u64) {
        let moment = Duration::from_millis(self.rng.u64(..=max_ms));
        tokio::time::sleep(moment).await;
    }

    /// Waits until a change made now is in the history, and the daemon streams.
    async fn back(&mut self) -> Result<Duration, String> {
        let start = Instant::now();
        let (source, target) = (self.source().await, self.target().await);
        self.arrived(&source, &target).await?;
        loop {
            let output = self.daemon().output();
            let last = |part: &str| output.rfind(part).map_or(0, |at| at + 1);
            let streams = last("\"message\":\"streaming\"") > last("the session failed");
            if streams {
                break;
            }
            self.still_running(start)?;
        }
        self.note("streaming again");
        Ok(start.elapsed())
    }

    /// Waits until a change made now is in the history.
    async fn arrived(&mut self, source: &Client, target: &Client) -> Result<(), String> {
        let insert = "INSERT INTO employees (name) VALUES ('marker') RETURNING id";
        let id: i32 = value(source, insert).await;
        let seen = format!("SELECT count(*) > 0 FROM employees_cdc WHERE id = {id}");
        let start = Instant::now();
        loop {
            // The daemon may have to make the table first.
            let row = target.query_one(&seen, &[]).await;
            if row.is_ok_and(|row| row.get(0)) {
                return Ok(());
            }
            self.still_running(start)?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn still_running(&mut self, since: Instant) -> Result<(), String> {
        if !self.daemon().is_running() {
            return Err("the daemon ended by itself".to_owned());
        }
        match since.elapsed() < BACK_MAX {
            true => Ok(()),
            false => Err(format!("not up to date within {BACK_MAX:?}")),
        }
    }

    /// Keeps what the daemons wrote and what was done; gives the folder.
    pub fn keep(&self, seed: u64, wrong: &str) -> PathBuf {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("target/chaos/{seed}"));
        std::fs::create_dir_all(&folder).unwrap();
        for (number, text) in self.written.iter().enumerate() {
            std::fs::write(folder.join(format!("waltrail-{number}.log")), text).unwrap();
        }
        for (server, name) in [(&self.rig.source, "source"), (&self.rig.target, "target")] {
            let file = folder.join(format!("{name}.log"));
            std::fs::write(file, server.log_text()).unwrap();
        }
        let done = format!("{}\n{wrong}", self.log.join("\n"));
        std::fs::write(folder.join("schedule.txt"), done).unwrap();
        folder
    }

    /// Removes the databases.
    pub async fn end(self) {
        let Self {
            rig,
            name,
            daemon,
            to_source,
            to_target,
            ..
        } = self;
        drop((daemon, to_source, to_target));
        rig.repair();
        rig.drop_databases(&name).await;
    }
}

/// The daemon's configuration. In a black hole its own time limits decide: they are short here.
fn config(draw: &Draw, name: &str, to_source: &Network, to_target: Option<&Network>) -> String {
    let dsn = |network: &Network| {
        format!(
            "host=127.0.0.1 port={} user=postgres dbname={name} connect_timeout=3 \
             keepalives_idle=1 keepalives_interval=1 keepalives_count=2 tcp_user_timeout=3000",
            network.port()
        )
    };
    let mut config = format!("[source]\ndsn = '{}'\nslot = '{name}'\n", dsn(to_source));
    if let Some(network) = to_target {
        config.push_str(&format!("[target]\ndsn = '{}'\n", dsn(network)));
    }
    let mode = if draw.phase == Phase::Existing {
        "initial"
    } else {
        "never"
    };
    config.push_str("[[table]]\nsource = 'public.employees'\n");
    config.push_str("[log]\nformat = \"json\"\n");
    config.push_str(&format!(
        "[snapshot]\nmode = \"{mode}\"\nchange_type = \"SNAPSHOT\"\n"
    ));
    config.push_str(draw.batch);
    config
}
