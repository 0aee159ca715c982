//! One schedule: tables, clients and a daemon, all from one seed.
//!
//! The driver does one thing after the other, so that the seed fixes what the clients do; what the daemon does meanwhile is
//! its own. A statement that fails (a lock, a value that does not fit) ends its transaction: the truth knows.

mod life;

use std::time::{Duration, Instant};

use fastrand::Rng;
use tempfile::NamedTempFile;
use throwaway::Cluster;
use tokio_postgres::{Client, Error};

use super::check::{Counts, Terms, check};
use super::statements::{Ddl, FOLLOWED, Maker, UNRECORDED};
use super::tables::{Column, Table, describe, design, quote};
use super::truth;
use crate::support::daemon::Daemon;
use crate::support::{BOUND, connect, value};

/// How the daemon lives while the clients work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Live,
    /// Stopped, then there again.
    Away,
    /// Away until the WAL is long enough to be read by SQL.
    Behind,
    Killed,
}

/// A client, perhaps in a transaction.
struct Session {
    client: Client,
    /// How many more statements come before the end of its transaction.
    open: Option<usize>,
    savepoint: bool,
}

pub struct Schedule<'a> {
    rng: Rng,
    server: &'a Cluster,
    database: String,
    config: String,
    tables: Vec<Table>,
    sessions: Vec<Session>,
    source: Client,
    target: Client,
    daemon: Option<Daemon>,
    /// What a COPY reads.
    file: NamedTempFile,
    life: Life,
    last_id: i64,
    made: usize,
    /// When the publication was altered, in microseconds since 1970.
    altered: Option<i64>,
    /// When a daemon was started after it was repaired.
    repaired: Option<i64>,
    /// Whether it may still be.
    may_alter: bool,
    counts: Counts,
    /// What was done, for a reader.
    pub log: Vec<String>,
}

/// The daemon's configuration, without tables. A second connection string is the target's.
fn settings(rng: &mut Rng, slot: &str, dsns: Vec<String>, existing: bool) -> String {
    let mut config = format!("[source]\ndsn = '{}'\nslot = '{slot}'\n", dsns[0]);
    if let Some(target) = dsns.get(1) {
        config.push_str(&format!("[target]\ndsn = '{target}'\n"));
    }
    if rng.u8(..3) == 0 {
        config.push_str("[batch]\nmax_rows = 3\ninterval = \"0\"\n");
    }
    let mode = if existing { "initial" } else { "never" };
    config.push_str(&format!(
        "[log]\nformat = \"json\"\n[snapshot]\nmode = \"{mode}\"\nchange_type = \"SNAPSHOT\"\n"
    ));
    config
}

/// The server has another user, perhaps.
fn readable_file() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    let all = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(file.path(), all).unwrap();
    file
}

const TIMEOUTS: &str = "SET lock_timeout = '30ms'";

impl<'a> Schedule<'a> {
    /// Makes databases and tables.
    pub async fn new(server: &'a Cluster, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let database = format!("fid{seed}");
        let admin = connect(&server.dsn_socket("postgres")).await;
        let apart = rng.u8(..5) == 0;
        let mut names = vec![database.clone()];
        names.extend(apart.then(|| format!("{database}_t")));
        for name in &names {
            admin
                .batch_execute(&format!("CREATE DATABASE {name} TEMPLATE fidelity"))
                .await
                .unwrap();
        }
        let dsn = |name: &String| server.dsn_socket(name);
        let source = connect(&dsn(&names[0])).await;
        let target = connect(&dsn(&names[names.len() - 1])).await;
        let existing = rng.u8(..5) < 2;
        let dsns = names.iter().map(|name| server.dsn_socket(name));
        let config = settings(&mut rng, &database, dsns.collect(), existing);
        let life = [Life::Live, Life::Away, Life::Behind, Life::Killed][rng.usize(..4)];
        let rng_alter = rng.bool();
        let mut schedule = Self {
            rng,
            server,
            database,
            config,
            tables: Vec::new(),
            sessions: Vec::new(),
            source,
            target,
            daemon: None,
            file: readable_file(),
            life,
            last_id: 0,
            made: 0,
            altered: None,
            repaired: None,
            may_alter: existing && rng_alter,
            counts: Counts {
                schedules: 1,
                ..Counts::default()
            },
            log: vec![format!(
                "-- {life:?}, existing rows: {existing}, target apart: {apart}"
            )],
        };
        schedule.make_tables().await;
        for _ in 0..schedule.rng.usize(1..=3) {
            let client = connect(&server.dsn_socket(&schedule.database)).await;
            client.batch_execute(TIMEOUTS).await.unwrap();
            schedule.sessions.push(Session {
                client,
                open: None,
                savepoint: false,
            });
        }
        if existing {
            for _ in 0..schedule.rng.usize(1..12) {
                schedule.step().await;
            }
            schedule.finish_transactions().await;
        }
        schedule
    }

    async fn make_tables(&mut self) {
        let number = self.rng.usize(1..=4);
        for n in 1..=number {
            let name = format!("t{n}");
            let design = design(&mut self.rng, &name);
            let batch = format!("{}; SELECT fid.follow('{name}', '{name}')", design.ddl);
            self.note("source", &design.ddl);
            self.source
                .batch_execute(&batch)
                .await
                .unwrap_or_else(|error| panic!("{batch}: {error:?}"));
            if let Some(history) = &design.history {
                self.note("target", history);
                self.target
                    .batch_execute(history)
                    .await
                    .unwrap_or_else(|error| panic!("{history}: {error:?}"));
            }
            let oid: u32 = value(&self.source, &format!("SELECT '{name}'::regclass::oid")).await;
            self.config
                .push_str(&format!("[[table]]\nsource = 'public.{name}'\n"));
            self.tables.push(Table {
                oid,
                history: format!("public.{name}_cdc"),
                made: design.history.is_none(),
                partitioned: design.partitioned,
                has_primary_key: design.has_primary_key,
                name,
            });
        }
        // The last change of all is one of this table.
        self.source
            .batch_execute(
                "CREATE TABLE marker (id int PRIMARY KEY); SELECT fid.follow('marker', 'marker')",
            )
            .await
            .unwrap();
        self.config
            .push_str("[[table]]\nsource = 'public.marker'\n");
    }

    fn note(&mut self, by: &str, what: &str) {
        let mut short: String = what.chars().take(2_000).collect();
        if short.len() < what.len() {
            short.push_str("...");
        }
        self.log.push(format!("{by}: {short}"));
    }

    /// The whole of it.
    pub async fn run(&mut self) -> Result<Counts, String> {
        self.start(true).await?;
        let steps = self.rng.usize(30..90);
        // Some work while the daemon starts and copies; it is there then, or it is what its life wants.
        let early = self.rng.usize(..40);
        for step in 0..steps {
            if step == early {
                self.recorded().await?;
            }
            self.step().await;
            if self.rng.u8(..12) == 0 {
                self.disturb().await?;
            }
            if self.may_alter && self.rng.u8(..10) == 0 {
                self.alter_publication().await?;
            }
        }
        self.finish_transactions().await;
        self.end().await
    }

    /// One statement of one client, or the begin or end of its transaction.
    async fn step(&mut self) {
        let at = self.rng.usize(..self.sessions.len());
        let outcome = match self.sessions[at].open {
            None if self.rng.u8(..3) == 0 => self.work(at).await,
            None => {
                self.sessions[at].open = Some(self.rng.usize(1..6));
                self.say(at, "BEGIN").await
            }
            Some(0) => match self.rng.u8(..16) {
                0 | 1 => self.end_transaction(at, "ROLLBACK").await,
                2 => self.prepare(at).await,
                _ => self.end_transaction(at, "COMMIT").await,
            },
            Some(left) => {
                self.sessions[at].open = Some(left - 1);
                match self.rng.u8(..10) {
                    0 => self.savepoint(at).await,
                    _ => self.work(at).await,
                }
            }
        };
        if let Err(error) = outcome {
            let reason = error
                .as_db_error()
                .map_or_else(|| error.to_string(), |error| error.message().to_owned());
            self.note("-- failed", &reason);
            let _ = self.end_transaction(at, "ROLLBACK").await;
        }
    }

    async fn say(&mut self, at: usize, sql: &str) -> Result<(), Error> {
        self.note(&format!("client {at}"), sql);
        self.sessions[at].client.batch_execute(sql).await
    }

    async fn savepoint(&mut self, at: usize) -> Result<(), Error> {
        let sql = match self.sessions[at].savepoint {
            false => "SAVEPOINT s",
            true if self.rng.bool() => "ROLLBACK TO s",
            true => "RELEASE s",
        };
        self.sessions[at].savepoint = sql != "RELEASE s";
        self.say(at, sql).await
    }

    async fn end_transaction(&mut self, at: usize, how: &str) -> Result<(), Error> {
        self.sessions[at].open = None;
        self.sessions[at].savepoint = false;
        self.say(at, how).await
    }

    async fn prepare(&mut self, at: usize) -> Result<(), Error> {
        self.made += 1;
        let made = format!("{} {}", self.database, self.made);
        self.end_transaction(at, &format!("PREPARE TRANSACTION '{made}'"))
            .await?;
        self.say(at, &format!("COMMIT PREPARED '{made}'")).await
    }

    async fn finish_transactions(&mut self) {
        for at in 0..self.sessions.len() {
            if self.sessions[at].open.is_some() {
                let _ = self.end_transaction(at, "COMMIT").await;
            }
        }
    }

    /// One statement on some table.
    async fn work(&mut self, at: usize) -> Result<(), Error> {
        let chosen = self.rng.usize(..self.tables.len());
        let (name, columns) = describe(&self.sessions[at].client, self.tables[chosen].oid).await?;
        if self.rng.u8(..6) == 0 {
            return self.shape(at, chosen, &name, &columns).await;
        }
        let mut maker = Maker {
            rng: &mut self.rng,
            last_id: &mut self.last_id,
            name: &name,
            columns: &columns,
        };
        let sql = match maker.rng.u8(..20) {
            0..8 => maker.insert(),
            8..15 => maker.update(),
            15..17 => maker.delete(),
            17 if maker.rng.bool() => format!("TRUNCATE {name}"),
            17 => {
                let other = self.rng.usize(..self.tables.len());
                let (other, _) =
                    describe(&self.sessions[at].client, self.tables[other].oid).await?;
                match other == name {
                    true => format!("TRUNCATE {name}"),
                    false => format!("TRUNCATE {name}, {other}"),
                }
            }
            _ => {
                let path = self.file.path().to_str().expect("a path of letters");
                let (sql, data) = maker.copy(path);
                std::fs::write(path, &data).unwrap();
                self.note("file", &data);
                sql
            }
        };
        self.say(at, &sql).await
    }

    /// One DDL statement, with the rows before and after it.
    async fn shape(
        &mut self,
        at: usize,
        chosen: usize,
        name: &str,
        columns: &[Column],
    ) -> Result<(), Error> {
        let table = &self.tables[chosen];
        let kinds = if table.made { FOLLOWED } else { UNRECORDED };
        let kind = kinds[self.rng.usize(..kinds.len())];
        // A table is known by its name until it is followed, and again once a gap of it is accepted.
        let renames = kind == Ddl::RenameTable;
        if renames && (self.altered.is_some() || !self.all_followed().await) {
            return Ok(());
        }
        // With a gap, the configuration would have to name it anew.
        self.may_alter &= !renames;
        let table = &self.tables[chosen];
        let mut maker = Maker {
            rng: &mut self.rng,
            last_id: &mut self.last_id,
            name,
            columns,
        };
        let Some(ddl) = maker.ddl(kind, table, &mut self.made) else {
            return Ok(());
        };
        let (oid, logical) = (table.oid, table.name.clone());
        let state =
            |function: &str| format!("SELECT fid.{function}({oid}::oid::regclass, '{logical}')");
        let batch = format!("{}; {ddl}; {}", state("before"), state("after"));
        self.note(&format!("client {at}"), &ddl);
        // One string is one transaction, where none is open.
        self.sessions[at].client.batch_execute(&batch).await
    }

    async fn all_followed(&self) -> bool {
        let known = "SELECT count(*) FROM waltrail.followed JOIN waltrail.checkpoint USING (slot) WHERE end_lsn IS NOT NULL";
        let known = self.target.query_one(known, &[]).await;
        known.is_ok_and(|row| row.get::<_, i64>(0) > self.tables.len() as i64)
    }

    /// Waits until everything until now is recorded.
    async fn recorded(&mut self) -> Result<(), String> {
        self.finish_transactions().await;
        if self.daemon.is_none() {
            self.start(false).await?;
        }
        self.made += 1;
        let mark = format!("INSERT INTO marker VALUES ({})", self.made);
        self.note("source", &mark);
        self.source.batch_execute(&mark).await.unwrap();
        self.all_there(self.made).await
    }

    /// Waits for everything, and checks it.
    async fn end(&mut self) -> Result<Counts, String> {
        if self.daemon.is_none() && self.life == Life::Behind {
            self.fall_behind().await;
        }
        self.recorded().await?;
        let truths = truth::read(&self.source).await;
        let nothing = truth::Truth::default();
        let mut sums = std::mem::take(&mut self.counts);
        for table in &self.tables {
            let truth = truths.get(&table.name).unwrap_or(&nothing);
            let history = truth::history(&self.target, &table.history).await;
            let now = truth::rows(&self.source, table.oid).await;
            let terms = Terms {
                made: table.made,
                altered: self.altered,
                repaired: self.repaired,
            };
            match check(truth, &history, &now, terms) {
                Ok(counts) => sums.add(&counts),
                Err(wrong) => {
                    return Err(format!(
                        "{:?}: {}: {}",
                        wrong.sin, table.history, wrong.text
                    ));
                }
            }
        }
        self.counts = sums;
        self.stop().await?;
        Ok(self.counts)
    }

    async fn all_there(&mut self, mark: usize) -> Result<(), String> {
        let there = format!(
            "SELECT EXISTS (SELECT FROM public.marker_cdc WHERE id = {mark})
                AND NOT EXISTS (SELECT FROM waltrail.snapshot WHERE state <> 'done')"
        );
        let start = Instant::now();
        loop {
            if let Ok(row) = self.target.query_one(&there, &[]).await
                && row.get(0)
            {
                return Ok(());
            }
            let daemon = self.daemon.as_mut().expect("it was started");
            if !daemon.is_running() || start.elapsed() > BOUND / 3 {
                let output = daemon.output();
                return Err(format!("the daemon does not finish:\n{output}"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Removes what it made.
    pub async fn remove(mut self) {
        drop(self.daemon.take());
        self.sessions.clear();
        let admin = connect(&self.server.dsn_socket("postgres")).await;
        let slot = format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database LIKE '{0}%' AND active;
             SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database LIKE '{0}%'",
            self.database
        );
        let start = Instant::now();
        while admin.batch_execute(&slot).await.is_err() && start.elapsed() < BOUND {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for name in [self.database.clone(), format!("{}_t", self.database)] {
            let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote(&name));
            let _ = admin.batch_execute(&drop).await;
        }
    }
}
