//! Does the cost of a change stay what it is when everything else grows?
//!
//! WAL is made, then drained from a copied slot by the daemon and, beside it, by `pg_recvlogical`; the CPU time of the two
//! server processes that the daemon talks to is taken as well, so that growth can be told from whose it is. A drain of
//! nothing, from a slot behind the load, is taken off: what remains is the cost of changes, without that of a start.

mod case;
mod load;
mod table;

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use throwaway::Cluster;

pub use case::{Case, Series};
use load::{ALL, Histories, Load, NOTHING};
pub use table::{document, write_csv};

use crate::contender::{Attempt, Daemon, NO_BASELINE, Reader, SLOT, STREAMING};
use crate::server::{self, Transport};
use crate::table::median;
use crate::usage::Watch;

/// How often is looked whether a drain is done: the error of every time.
const POLL: Duration = Duration::from_millis(2);
/// What takes longer has hung up.
const RUN_MAX: Duration = Duration::from_secs(300);

/// What is to be measured.
pub struct Plan<'a> {
    /// The daemon's program.
    pub program: &'a Path,
    /// What grows.
    pub series: &'a [Series],
    /// Only loads of this size.
    pub size: Option<u32>,
    /// Smaller loads.
    pub quick: bool,
    /// How contenders are connected.
    pub transport: Transport,
    /// Drains of each load.
    pub rounds: u32,
}

/// What a drain took, in seconds and MB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// From the start of the program until the marker was there.
    pub wall: f64,
    /// CPU time of the program.
    pub cpu: f64,
    /// Its peak of memory.
    pub peak_mb: f64,
    /// CPU time of the source's process that sent.
    pub sender: f64,
    /// CPU time of the target's process that wrote.
    pub writer: f64,
}

impl Cost {
    /// The median of each figure.
    fn of(costs: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| median(costs.iter().map(figure));
        Self {
            wall: of(|cost| cost.wall),
            cpu: of(|cost| cost.cpu),
            peak_mb: of(|cost| cost.peak_mb),
            sender: of(|cost| cost.sender),
            writer: of(|cost| cost.writer),
        }
    }

    /// Without what a start takes.
    fn without(self, start: Self) -> Self {
        Self {
            wall: (self.wall - start.wall).max(0.0),
            cpu: (self.cpu - start.cpu).max(0.0),
            peak_mb: self.peak_mb,
            sender: (self.sender - start.sender).max(0.0),
            writer: (self.writer - start.writer).max(0.0),
        }
    }
}

/// What was measured of one load.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// The load.
    pub case: Case,
    /// The daemon's drain, without its start.
    pub daemon: Cost,
    /// The shortest and the longest of those drains, with their start.
    pub wall_range: (f64, f64),
    /// The daemon's start.
    pub start: Cost,
    /// The drain by `pg_recvlogical`, without its start.
    pub reader: Cost,
    /// Rows that were checked after each drain.
    pub rows: i64,
}

/// Measures every load of every series. `on_case` hears of each as it is done.
///
/// # Errors
/// A drain failed, or the histories do not hold every row.
pub fn all(
    plan: &Plan<'_>,
    target: &Cluster,
    mut on_case: impl FnMut(&Measured),
) -> Result<Vec<Measured>> {
    let mut measured = Vec::new();
    let cases = plan
        .series
        .iter()
        .flat_map(|series| series.cases(plan.quick))
        .filter(|case| plan.size.is_none_or(|size| size == case.size));
    for case in cases {
        let one = measure(plan, target, case)
            .with_context(|| format!("{}, {}", case.series.name(), case.size))?;
        on_case(&one);
        measured.push(one);
    }
    Ok(measured)
}

fn measure(plan: &Plan<'_>, target: &Cluster, case: Case) -> Result<Measured> {
    let load = Load::make(case)?;
    let mut histories = Histories::make(target, case)?;
    let (mut daemon, mut start, mut reader, mut reader_start) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut rows = 0;
    // The first one makes what has to be made in the target.
    by_daemon(plan, &load, target, &mut histories, NOTHING)?;
    for _ in 0..plan.rounds {
        start.push(by_daemon(plan, &load, target, &mut histories, NOTHING)?.0);
        let (cost, checked) = by_daemon(plan, &load, target, &mut histories, ALL)?;
        daemon.push(cost);
        rows = checked;
        reader_start.push(by_reader(plan, &load, NOTHING)?);
        reader.push(by_reader(plan, &load, ALL)?);
    }
    histories.remove(target)?;
    let start = Cost::of(&start);
    let walls = daemon.iter().map(|cost| cost.wall);
    let wall_range = (
        walls.clone().fold(f64::INFINITY, f64::min),
        walls.fold(0.0, f64::max),
    );
    Ok(Measured {
        case,
        daemon: Cost::of(&daemon).without(start),
        wall_range,
        start,
        reader: Cost::of(&reader).without(Cost::of(&reader_start)),
        rows,
    })
}

fn by_daemon(
    plan: &Plan<'_>,
    load: &Load,
    target: &Cluster,
    histories: &mut Histories,
    base: &str,
) -> Result<(Cost, i64)> {
    histories.reset()?;
    let mut source = server::connect(&load.cluster, "postgres")?;
    server::copy_slot(&mut source, base, SLOT)?;
    let (mut sender, mut writer) = (None, None);
    let began = Instant::now();
    let mut daemon = Daemon::start_with(
        plan.program,
        &plan.transport.dsn(&load.cluster, "postgres"),
        &plan.transport.dsn(target, &histories.name),
        load.captured(),
        &[NO_BASELINE, STREAMING],
    )?;
    loop {
        if sender.is_none() {
            let active = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1";
            let pid: Option<i32> = source.query_one(active, &[&SLOT])?.get(0);
            sender = pid.map(|pid| Watch::of(pid.cast_unsigned())).transpose()?;
        }
        if writer.is_none() {
            writer = histories.writer()?.map(Watch::of).transpose()?;
        }
        daemon.look()?;
        if histories.has_marker()? {
            break;
        }
        ensure!(
            began.elapsed() < RUN_MAX,
            "waltrail is not done after {} s",
            RUN_MAX.as_secs()
        );
        sleep(POLL);
    }
    let wall = began.elapsed().as_secs_f64();
    daemon.look()?;
    let look = |watch: Option<Watch>| {
        watch.map_or(Ok(0.0), |mut watch| {
            watch.look()?;
            Ok::<_, anyhow::Error>(watch.usage().cpu_seconds)
        })
    };
    let cost = Cost {
        wall,
        cpu: daemon.usage().cpu_seconds,
        peak_mb: daemon.usage().peak_mb,
        sender: look(sender)?,
        writer: look(writer)?,
    };
    daemon.stop()?;
    Ok((cost, histories.check(load, base == ALL)?))
}

fn by_reader(plan: &Plan<'_>, load: &Load, base: &str) -> Result<Cost> {
    let mut reader = Reader::prepare(&load.cluster, base, &load.end, plan.transport)?;
    let began = Instant::now();
    reader.start()?;
    while !reader.is_done()? {
        ensure!(
            began.elapsed() < RUN_MAX,
            "pg_recvlogical is not done after {} s",
            RUN_MAX.as_secs()
        );
        sleep(POLL);
    }
    let wall = began.elapsed().as_secs_f64();
    reader.finish()?;
    let usage = reader.usage();
    Ok(Cost {
        wall,
        cpu: usage.cpu_seconds,
        peak_mb: usage.peak_mb,
        ..Cost::default()
    })
}
