//! The drains: the same WAL, each contender in turn, round after round.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::contender::Contender;
use crate::server::Transport;
use crate::target::Target;
use crate::usage::Usage;
use crate::workload::Source;

/// How often is looked whether a contender is done: the error of every time. Looking takes from whoever fills both cores.
const POLL: Duration = Duration::from_millis(20);
/// Who takes longer has hung up.
const RUN_MAX: Duration = Duration::from_secs(300);

/// One contender's drain of one workload.
#[derive(Clone, Debug)]
pub struct Run {
    /// From 1.
    pub round: u32,
    /// The workload's name.
    pub workload: &'static str,
    /// How it was connected.
    pub transport: Transport,
    /// Who.
    pub contender: Contender,
    /// From its start until the marker had gone all the way.
    pub seconds: f64,
    /// What the process took.
    pub usage: Usage,
    /// Changes in the WAL.
    pub changes: i64,
    /// Rows that were counted in its target.
    pub rows: Option<i64>,
}

impl Run {
    /// CPU seconds for a million changes.
    #[must_use]
    pub fn cpu_per_million(&self) -> f64 {
        self.usage.cpu_seconds / self.changes as f64 * 1e6
    }
}

/// What is to be drained, and how often.
pub struct Plan<'a> {
    /// The daemon's program.
    pub program: &'a Path,
    /// Each with its load done.
    pub sources: &'a [Source],
    /// Whoever is left out is not measured.
    pub contenders: &'a [Contender],
    /// How they are connected.
    pub transports: &'a [Transport],
    /// Turns of each.
    pub rounds: u32,
}

/// Drains: A B C A B C for each workload and transport. `on_run` hears of each run as it ends.
///
/// # Errors
/// A contender failed, or its target does not hold every row.
pub fn all(plan: &Plan<'_>, target: &mut Target, mut on_run: impl FnMut(&Run)) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for source in plan.sources {
        for &transport in plan.transports {
            for round in 1..=plan.rounds {
                for &contender in plan.contenders {
                    let mut run = one(plan.program, source, target, transport, contender)
                        .with_context(|| {
                            format!(
                                "{}, {}, {}, round {round}",
                                contender.name(),
                                source.workload.name(),
                                transport.name()
                            )
                        })?;
                    run.round = round;
                    on_run(&run);
                    runs.push(run);
                }
            }
        }
    }
    Ok(runs)
}

fn one(
    program: &Path,
    source: &Source,
    target: &mut Target,
    transport: Transport,
    contender: Contender,
) -> Result<Run> {
    let mut attempt = contender.prepare(program, source, target, transport)?;
    let began = Instant::now();
    attempt.start()?;
    while !attempt.is_done()? {
        if began.elapsed() > RUN_MAX {
            bail!("not done after {} s", RUN_MAX.as_secs());
        }
        sleep(POLL);
    }
    let seconds = began.elapsed().as_secs_f64();
    let rows = attempt.finish()?;
    Ok(Run {
        round: 0,
        workload: source.workload.name(),
        transport,
        contender,
        seconds,
        usage: attempt.usage(),
        changes: source.workload.changes().all(),
        rows,
    })
}
