//! From the source's COMMIT until the row is visible in the target, while nothing else happens.
//!
//! One client inserts a row into `probe` on the source and commits; from the moment that it has the answer, it asks the
//! target for the row by a prepared statement, again and again without a pause, until the row is there. That time is one
//! sample. Then it pauses for 60 to 80 ms, longer than any interval by which commits are grouped, so that each sample is
//! the first change after a pause. The target is asked for `probe_cdc` or, under the subscription, for `probe` by the
//! primary key of either, so that both have one index to keep: the history numbers its rows from 1, and the row of that
//! number must be the one that was committed. The first samples of a turn are thrown away.
//!
//! The prober and the process that answers it keep to one core: while they ask they never pause, and where they ran on
//! both, it was chance whether the change found a core.
//!
//! Both contenders have turns, A B A B; while one is measured the other is not connected and has no slot. What commits
//! that follow each other closely see is measured by [`crate::live`].

use std::path::Path;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use postgres::Client;
use throwaway::Cluster;

use crate::contender::{Contender, Daemon, Subscription};
use crate::server::{self, PUBLICATION, Transport};
use crate::target::{self, Target};
use crate::usage::Usage;

const SLOT: &str = "waltrail";
const HISTORY: &str = "latency_history";
const PLAIN: &str = "latency_plain";
const TABLE: &str = "CREATE TABLE probe (id bigint PRIMARY KEY, payload text)";
const HISTORY_TABLE: &str =
    "CREATE TABLE probe_cdc (cdc_id serial PRIMARY KEY, change_type varchar(10), id bigint,
    payload text, change_timestamp timestamp)";

const WARM_UP: u32 = 5;
/// The least pause between two samples, and how much longer it can be.
const PAUSE: Duration = Duration::from_millis(60);
const PAUSE_SPREAD_US: u64 = 20_000;
/// A row that takes longer is lost.
const SAMPLE_MAX: Duration = Duration::from_secs(30);

/// One contender's turn.
#[derive(Clone, Debug)]
pub struct Turn {
    /// From 1.
    pub round: u32,
    /// How contender and prober were connected.
    pub transport: Transport,
    /// Who.
    pub contender: Contender,
    /// Milliseconds that half of the samples did not exceed.
    pub p50_ms: f64,
    /// Milliseconds that 99 of 100 samples did not exceed.
    pub p99_ms: f64,
    /// What the contender took, warm-up included.
    pub usage: Usage,
}

/// What is to be measured.
pub struct Plan<'a> {
    /// The daemon's program.
    pub program: &'a Path,
    /// How they are connected.
    pub transports: &'a [Transport],
    /// Turns of each.
    pub rounds: u32,
    /// Samples in a turn.
    pub samples: u32,
}

/// Measures all turns. `on_turn` hears of each as it ends.
///
/// # Errors
/// A contender failed, or lost a row.
pub fn all(plan: &Plan<'_>, target: &Target, mut on_turn: impl FnMut(&Turn)) -> Result<Vec<Turn>> {
    let source = server::start(false)?;
    let mut client = server::connect(&source, "postgres")?;
    client.batch_execute(TABLE)?;
    client.batch_execute(&format!(
        "CREATE PUBLICATION {PUBLICATION} FOR TABLE probe WITH (publish_via_partition_root = true)"
    ))?;
    for (database, table) in [(HISTORY, HISTORY_TABLE), (PLAIN, TABLE)] {
        target::create_database(&target.cluster, database)?;
        server::connect(&target.cluster, database)?.batch_execute(table)?;
    }
    let mut turns = Vec::new();
    let mut next_id = 1;
    for &transport in plan.transports {
        for round in 1..=plan.rounds {
            for contender in [Contender::Waltrail, Contender::Subscription] {
                let mut stage = Stage {
                    plan,
                    source: &source,
                    target: &target.cluster,
                    transport,
                    next_id: &mut next_id,
                };
                let turn = stage.turn(contender, round).with_context(|| {
                    format!("latency of {}, {}", contender.name(), transport.name())
                })?;
                on_turn(&turn);
                turns.push(turn);
            }
        }
    }
    Ok(turns)
}

/// Where a row shows.
struct View {
    database: &'static str,
    /// Takes the key, answers the row's `id`.
    select: &'static str,
    /// The key is the number of the row in its turn, from 1.
    numbered: bool,
}

const IN_HISTORY: View = View {
    database: HISTORY,
    select: "SELECT id FROM probe_cdc WHERE cdc_id = $1::bigint",
    numbered: true,
};
const IN_COPY: View = View {
    database: PLAIN,
    select: "SELECT id FROM probe WHERE id = $1",
    numbered: false,
};

struct Stage<'a> {
    plan: &'a Plan<'a>,
    source: &'a Cluster,
    target: &'a Cluster,
    transport: Transport,
    /// Keys are never used again.
    next_id: &'a mut i64,
}

impl Stage<'_> {
    fn turn(&mut self, contender: Contender, round: u32) -> Result<Turn> {
        let mut admin = server::connect(self.source, "postgres")?;
        admin.batch_execute("TRUNCATE probe")?;
        server::create_slot(&mut admin, SLOT)?;
        let sampled = match contender {
            Contender::Subscription => self.under_subscription()?,
            _ => self.under_daemon()?,
        };
        server::drop_slot(&mut admin, SLOT)?;
        Ok(Turn {
            round,
            transport: self.transport,
            contender,
            p50_ms: sampled.p50_ms,
            p99_ms: sampled.p99_ms,
            usage: sampled.usage,
        })
    }

    fn under_daemon(&mut self) -> Result<Sampled> {
        let mut history = server::connect(self.target, HISTORY)?;
        history.batch_execute("TRUNCATE probe_cdc RESTART IDENTITY")?;
        target::forget(&mut history)?;
        let mut daemon = Daemon::start(
            self.plan.program,
            &self.transport.dsn(self.source, "postgres"),
            &self.transport.dsn(self.target, HISTORY),
            ["public.probe"],
        )?;
        let sampled = self.probe(&IN_HISTORY, || {
            daemon.look()?;
            Ok(daemon.usage())
        })?;
        daemon.stop()?;
        Ok(sampled)
    }

    fn under_subscription(&mut self) -> Result<Sampled> {
        let mut plain = server::connect(self.target, PLAIN)?;
        Subscription::remove(&mut plain)?;
        plain.batch_execute("TRUNCATE probe")?;
        let source = self.transport.dsn(self.source, "postgres");
        let mut subscription = Subscription::create(&mut plain, &source, SLOT)?;
        subscription.enable(&mut plain)?;
        let sampled = self.probe(&IN_COPY, || {
            subscription.look(&mut plain)?;
            Ok(subscription.usage())
        })?;
        Subscription::remove(&mut plain)?;
        Ok(sampled)
    }

    /// All samples of a turn. `look` is called now and then. In a thread of its own, since a thread keeps the core that
    /// it was bound to.
    fn probe(
        &mut self,
        view: &View,
        look: impl FnMut() -> Result<Usage> + Send,
    ) -> Result<Sampled> {
        thread::scope(|scope| {
            let probe = scope.spawn(|| self.probe_here(view, look));
            match probe.join() {
                Ok(sampled) => sampled,
                Err(_) => bail!("the prober panicked"),
            }
        })
    }

    fn probe_here(
        &mut self,
        view: &View,
        mut look: impl FnMut() -> Result<Usage>,
    ) -> Result<Sampled> {
        let mut source = server::connect_by(self.transport, self.source, "postgres")?;
        let mut target = server::connect_by(self.transport, self.target, view.database)?;
        keep_to_one_core(&mut target)?;
        let insert =
            source.prepare("INSERT INTO probe VALUES ($1, 'the same few bytes each time')")?;
        let select = target.prepare(view.select)?;
        // Without statistics, and while there are few rows, the server might prefer to scan.
        target.batch_execute("SET enable_seqscan = off")?;
        let mut usage = Usage::default();
        let mut samples = Vec::with_capacity(self.plan.samples as usize);
        for n in 0..WARM_UP + self.plan.samples {
            let id = *self.next_id;
            *self.next_id += 1;
            source.execute(&insert, &[&id])?;
            let committed = Instant::now();
            let key = if view.numbered { i64::from(n) + 1 } else { id };
            let found: i64 = loop {
                if let Some(row) = target.query_opt(&select, &[&key])? {
                    break row.get(0);
                }
                if committed.elapsed() > SAMPLE_MAX {
                    look()?;
                    bail!("row {id} does not arrive");
                }
            };
            ensure!(id == found, "row {found} arrived instead of {id}");
            if n >= WARM_UP {
                samples.push(committed.elapsed().as_secs_f64() * 1e3);
            }
            if n % 10 == 9 {
                usage = look()?;
            }
            sleep(PAUSE + Duration::from_micros(id.cast_unsigned() * 7_919 % PAUSE_SPREAD_US));
        }
        Ok(Sampled {
            p50_ms: percentile(&mut samples, 0.5),
            p99_ms: percentile(&mut samples, 0.99),
            usage,
        })
    }
}

/// Binds this thread and the process that answers it to one core, where there are several: who asks without a pause must
/// not run on whichever core the change would have.
fn keep_to_one_core(client: &mut Client) -> Result<()> {
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let cores: Vec<usize> = (0..CpuSet::count())
        .filter(|&core| allowed.is_set(core) == Ok(true))
        .collect();
    if let [first, _, ..] = cores[..] {
        let mut one = CpuSet::new();
        one.set(first)?;
        sched_setaffinity(this, &one)?;
        sched_setaffinity(Pid::from_raw(pid), &one)?;
    }
    Ok(())
}

/// What one turn showed.
struct Sampled {
    p50_ms: f64,
    p99_ms: f64,
    usage: Usage,
}

/// The smallest sample that a share `p` of them does not exceed.
fn percentile(samples: &mut [f64], p: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let rank = (samples.len() as f64 * p).ceil() as usize;
    samples
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_samples() {
        let mut samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(&mut samples, 0.5), 100.0);
        assert_eq!(percentile(&mut samples, 0.99), 198.0);
        assert_eq!(percentile(&mut [7.0], 0.99), 7.0);
    }
}
