//! The daemon between servers under load, with a value in every row that nobody may ever see in a log.

use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio_postgres::Client;
use throwaway::{Builder, Cluster};

use super::compare::Summary;
use super::daemon::Daemon;
use super::load::{Load, Plan};
use super::oracle::Oracle;
use super::{EMPLOYEES, builder, connect};

/// Stands in every row of `employees`, and may stand in no line of the daemon.
pub const CANARY: &str = "CANARY_7f3a";

const CANARY_TRIGGER: &str = "
    CREATE FUNCTION canary() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        NEW.name := 'CANARY_7f3a' || replace(coalesce(NEW.name, ''), 'CANARY_7f3a', '');
        RETURN NEW;
    END $$;
    CREATE TRIGGER canary BEFORE INSERT OR UPDATE ON employees FOR EACH ROW EXECUTE FUNCTION canary();";

/// Long enough for anything that happens at all.
pub const BOUND: Duration = Duration::from_secs(90);

/// How many faults a test makes: FAULTS, by default few.
pub fn faults() -> usize {
    std::env::var("FAULTS").map_or(8, |text| text.parse().expect("FAULTS is a number"))
}

/// How many times a test stops a server.
pub fn stops() -> usize {
    (faults() / 10).max(3)
}

/// Whether the slow sizes are wanted.
pub fn long() -> bool {
    faults() >= 100
}

/// The moments of faults; FAULTS_SEED chooses others. They are the same, what they meet is not.
pub fn seeded() -> Rng {
    let seed = std::env::var("FAULTS_SEED").map_or(7, |text| text.parse().expect("a number"));
    println!("FAULTS={} FAULTS_SEED={seed}", faults());
    Rng::with_seed(seed)
}

/// Lets a random time pass, up to `max_ms`.
pub async fn random_moment(rng: &mut Rng, max_ms: u64) {
    tokio::time::sleep(Duration::from_millis(rng.u64(..=max_ms))).await;
}

/// The configuration of a daemon that records `employees` and logs all that it can.
pub fn config(source: &str, target: Option<&str>, format: &str, more: &str) -> String {
    let target = target.map_or(String::new(), |dsn| format!("[target]\ndsn = \"{dsn}\"\n"));
    format!(
        "[source]\ndsn = \"{source}\"\n{target}\
         [[table]]\nsource = \"public.employees\"\nhistory = \"public.employees_cdc\"\n\
         [snapshot]\nmode = \"never\"\n\
         [log]\nlevel = \"trace\"\nformat = \"{format}\"\n{more}"
    )
}

/// `employees` and its history, with the canary and the oracle.
pub async fn furnish(source: &Client) -> Oracle {
    source.batch_execute(EMPLOYEES).await.unwrap();
    source.batch_execute(CANARY_TRIGGER).await.unwrap();
    Oracle::install(source, &["public.employees"]).await
}

/// Servers, and how a daemon reaches them.
pub struct Rig {
    pub source: Cluster,
    /// None: the source database is the target too.
    pub target: Option<Cluster>,
    pub oracle: Oracle,
    /// Set these to put a proxy between.
    pub source_port: u16,
    pub target_port: u16,
    /// Further lines of the configuration.
    pub more: String,
    spawned: usize,
}

impl Rig {
    /// One server whose database is source and target.
    pub async fn one(options: impl FnOnce(Builder) -> Builder) -> Self {
        Self::furnished(options(builder()).start().unwrap(), None).await
    }

    /// A source, and a target of its own.
    pub async fn two(
        source: impl FnOnce(Builder) -> Builder,
        target: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let source = source(builder()).start().unwrap();
        let target = target(builder()).start().unwrap();
        Self::furnished(source, Some(target)).await
    }

    async fn furnished(source: Cluster, target: Option<Cluster>) -> Self {
        let client = connect(&source.dsn_socket("postgres")).await;
        let oracle = furnish(&client).await;
        if let Some(target) = &target {
            let client = connect(&target.dsn_socket("postgres")).await;
            client.batch_execute(EMPLOYEES).await.unwrap();
        }
        Self {
            source_port: source.port(),
            target_port: target.as_ref().map_or(0, Cluster::port),
            source,
            target,
            oracle,
            more: String::new(),
            spawned: 0,
        }
    }

    /// The configuration of the next daemon; every other one logs as text.
    pub fn config(&mut self) -> String {
        let dsn = |port| format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
        let target = self.target.as_ref().map(|_| dsn(self.target_port));
        let format = ["json", "text"][self.spawned % 2];
        self.spawned += 1;
        config(
            &dsn(self.source_port),
            target.as_deref(),
            format,
            &self.more,
        )
    }

    /// A daemon, just started.
    pub fn spawn(&mut self) -> Daemon {
        Daemon::spawn(&self.config())
    }

    /// A daemon that streams.
    pub async fn streaming(&mut self) -> Daemon {
        let mut daemon = self.spawn();
        streams(&mut daemon).await;
        daemon
    }

    /// A new connection to the source.
    pub async fn at_source(&self) -> Client {
        connect(&self.source.dsn_socket("postgres")).await
    }

    /// A new connection to the target.
    pub async fn at_target(&self) -> Client {
        let cluster = self.target.as_ref().unwrap_or(&self.source);
        connect(&cluster.dsn_socket("postgres")).await
    }

    /// Four clients, held back so far that the comparison at the end stays bearable.
    pub fn load(&self, seed: u64) -> Load {
        Plan::new(self.source.dsn_tcp("postgres"), seed)
            .pause(Duration::from_millis(8))
            .start()
    }

    /// Waits until the daemon has brought more rows into the history than there are now.
    pub async fn progress(&self, daemon: &mut Daemon) {
        let target = self.at_target().await;
        let rows = async || -> i64 {
            // Not the number of rows: a crash of the target may have taken some.
            let row = target
                .query_one("SELECT coalesce(max(cdc_id), 0) FROM employees_cdc", &[])
                .await
                .unwrap();
            i64::from(row.get::<_, i32>(0))
        };
        let before = rows().await;
        let start = Instant::now();
        while rows().await <= before {
            assert!(
                daemon.is_running() && start.elapsed() < BOUND,
                "no more rows come into the history:\n{}",
                daemon.output()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The source is at rest: the history becomes what it must be, the daemon ends well, and the history
    /// still is what it must be.
    pub async fn finish(&mut self, mut daemon: Daemon, allowed: &[&str]) -> Summary {
        let (source, target) = (self.at_source().await, self.at_target().await);
        let summary = self
            .oracle
            .assert_becomes(&source, "public.employees", &target, "employees_cdc", BOUND)
            .await;
        daemon.sigterm();
        let (status, output) = daemon.wait(Duration::from_secs(12)).await;
        assert_eq!(status.code(), Some(0), "{output}");
        assert_clean(&output, allowed);
        let after = self
            .oracle
            .compare(&source, "public.employees", &target, "employees_cdc")
            .await;
        assert_eq!(after.unwrap().rows, summary.rows);
        println!("{summary:?}");
        summary
    }
}

/// Waits until the daemon says that it streams.
pub async fn streams(daemon: &mut Daemon) {
    daemon
        .wait_log(BOUND, |line| line.contains("streaming"))
        .await;
}

/// What may be said where somebody else had the slot or the lock a moment ago.
pub const SOMEBODY_ELSE: &[&str] = &[
    "the slot is in use by another process",
    "another waltrail writes for this slot",
];

/// What may be said, too, where a server goes away.
pub const GONE: &[&str] = &[
    "the slot is in use by another process",
    "another waltrail writes for this slot",
    "the session failed and is started again",
];

/// No row value, no panic, and no warning or error but the allowed ones.
#[track_caller]
pub fn assert_clean(output: &str, allowed: &[&str]) {
    assert_silent(output);
    for line in output.lines() {
        let loud = ["WARN", "ERROR"].iter().any(|level| {
            line.contains(&format!(" {level} ")) || line.contains(&format!("\"{level}\""))
        });
        let known = allowed.iter().any(|part| line.contains(part));
        assert!(!loud || known, "not expected: {line}\nin:\n{output}");
    }
}

/// No row value and no panic.
#[track_caller]
pub fn assert_silent(output: &str) {
    let lower = output.to_lowercase();
    assert!(
        !lower.contains(&CANARY.to_lowercase()),
        "a row value is in the output:\n{output}"
    );
    assert!(!lower.contains("panicked"), "{output}");
    // Column values in hexadecimal, as a dump of a frame would show them.
    assert!(!lower.contains("43414e4152595f"), "{output}");
}
