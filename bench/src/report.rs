//! What was measured, as tables and as CSV.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::contender::Contender;
use crate::drain::Run;
use crate::latency::Turn;
use crate::server::Transport;
use crate::table::{median, render};

/// Everything that one call measured.
pub struct Results {
    /// Where and when.
    pub circumstances: Circumstances,
    /// The drains.
    pub runs: Vec<Run>,
    /// The latency test.
    pub turns: Vec<Turn>,
    /// Decoding and writing a change, in nanoseconds.
    pub write_ns: f64,
}

/// Where and when.
pub struct Circumstances {
    /// The machine.
    pub machine: String,
    /// PostgreSQL and its version.
    pub postgres: String,
    /// What `waltrail --version` says.
    pub waltrail: String,
    /// The day.
    pub date: String,
    /// Turns of each contender.
    pub rounds: u32,
    /// The workloads, in words.
    pub workloads: String,
}

impl Circumstances {
    /// In one line each.
    #[must_use]
    pub fn lines(&self) -> [String; 2] {
        [
            self.machine.clone(),
            format!(
                "{}; {}; {}; {}, {} rounds",
                self.postgres, self.waltrail, self.date, self.workloads, self.rounds
            ),
        ]
    }
}

/// All runs of one contender in one place.
pub struct Summary {
    /// The workload's name.
    pub workload: &'static str,
    /// How it was connected.
    pub transport: Transport,
    /// Who.
    pub contender: Contender,
    /// Seconds: median, least and most.
    pub seconds: [f64; 3],
    /// Its seconds by waltrail's of the same round: the median of the rounds.
    pub by_waltrail: f64,
    /// Medians.
    pub cpu_seconds: f64,
    /// See [`Run::cpu_per_million`].
    pub cpu_per_million: f64,
    /// The most of any run.
    pub peak_mb: f64,
    /// See [`crate::usage::Usage::own_mb`].
    pub own_mb: f64,
    /// Rows counted after each run.
    pub rows: Option<i64>,
}

/// The runs, one line for each workload, transport and contender, in the order in which they were made.
#[must_use]
pub fn summaries(runs: &[Run]) -> Vec<Summary> {
    let mut places: Vec<(&'static str, Transport, Contender)> = Vec::new();
    for run in runs {
        let place = (run.workload, run.transport, run.contender);
        if !places.contains(&place) {
            places.push(place);
        }
    }
    let summary = |&(workload, transport, contender): &(&'static str, Transport, Contender)| {
        let here: Vec<&Run> = runs
            .iter()
            .filter(|run| {
                (run.workload, run.transport, run.contender) == (workload, transport, contender)
            })
            .collect();
        let of = |value: fn(&Run) -> f64| here.iter().map(move |run| value(run));
        let seconds = |run: &Run| run.seconds;
        Summary {
            workload,
            transport,
            contender,
            seconds: [
                median(of(seconds)),
                of(seconds).fold(f64::INFINITY, f64::min),
                of(seconds).fold(0.0, f64::max),
            ],
            by_waltrail: ratio(runs, workload, transport, contender, Contender::Waltrail),
            cpu_seconds: median(of(|run| run.usage.cpu_seconds)),
            cpu_per_million: median(of(Run::cpu_per_million)),
            peak_mb: of(|run| run.usage.peak_mb).fold(0.0, f64::max),
            own_mb: of(|run| run.usage.own_mb).fold(0.0, f64::max),
            rows: here.first().and_then(|run| run.rows),
        }
    };
    places.iter().map(summary).collect()
}

/// The seconds of one contender by those of another, pair by pair: the median of the rounds.
#[must_use]
pub fn ratio(
    runs: &[Run],
    workload: &str,
    transport: Transport,
    one: Contender,
    other: Contender,
) -> f64 {
    let of = |contender: Contender, round: u32| {
        runs.iter().find(|run| {
            (run.workload, run.transport, run.contender, run.round)
                == (workload, transport, contender, round)
        })
    };
    let rounds = runs.iter().map(|run| run.round).max().unwrap_or_default();
    median(
        (1..=rounds).filter_map(|round| Some(of(one, round)?.seconds / of(other, round)?.seconds)),
    )
}

/// The table of the drains.
#[must_use]
pub fn drains(runs: &[Run]) -> String {
    let rows = summaries(runs).into_iter().map(|line| {
        let memory = match line.contender {
            Contender::Subscription => format!("{:.1} (own)", line.own_mb),
            _ => format!("{:.1}", line.peak_mb),
        };
        [
            line.workload.to_owned(),
            line.transport.name().to_owned(),
            line.contender.name().to_owned(),
            format!("{:.2}", line.seconds[0]),
            format!("{:.2}", line.seconds[1]),
            format!("{:.2}", line.seconds[2]),
            format!("{:.2}", line.by_waltrail),
            format!("{:.2}", line.cpu_seconds),
            format!("{:.2}", line.cpu_per_million),
            memory,
            line.rows
                .map_or_else(|| "keeps none".to_owned(), |rows| rows.to_string()),
        ]
    });
    let header = [
        "workload",
        "transport",
        "contender",
        "median s",
        "min s",
        "max s",
        "by waltrail",
        "CPU s",
        "CPU s / million",
        "peak MB",
        "rows checked",
    ];
    render(header, 3, rows)
}

/// The turns that belong together.
#[must_use]
pub fn turns_of(turns: &[Turn], transport: Transport, contender: Contender) -> Vec<&Turn> {
    turns
        .iter()
        .filter(|turn| (turn.transport, turn.contender) == (transport, contender))
        .collect()
}

/// A percentile of waltrail by that of the subscription: the median over each turn of the one by each turn of the
/// other. Neighbours have nothing in common here: what makes a turn slow is how its processes came to lie on the cores.
#[must_use]
pub fn latency_ratio(turns: &[Turn], transport: Transport, value: fn(&Turn) -> f64) -> f64 {
    let ours = turns_of(turns, transport, Contender::Waltrail);
    let theirs = turns_of(turns, transport, Contender::Subscription);
    median(
        ours.iter()
            .flat_map(|ours| theirs.iter().map(|theirs| value(ours) / value(theirs))),
    )
}

/// How the contenders of the latency test were connected, in order.
pub fn latency_places(turns: &[Turn]) -> impl Iterator<Item = Transport> {
    let measured = |transport: &Transport| turns.iter().any(|turn| turn.transport == *transport);
    Transport::ALL.into_iter().filter(measured)
}

/// The table of the latency test.
#[must_use]
pub fn latencies(turns: &[Turn]) -> String {
    let mut rows = Vec::new();
    for transport in latency_places(turns) {
        for contender in [Contender::Waltrail, Contender::Subscription] {
            let here = turns_of(turns, transport, contender);
            let of = |value: fn(&Turn) -> f64| median(here.iter().map(|turn| value(turn)));
            let ours = contender == Contender::Waltrail;
            let ratio = |value| match ours {
                true => format!("{:.2}", latency_ratio(turns, transport, value)),
                false => String::new(),
            };
            rows.push([
                transport.name().to_owned(),
                contender.name().to_owned(),
                format!("{:.3}", of(|turn| turn.p50_ms)),
                format!("{:.3}", of(|turn| turn.p99_ms)),
                ratio(|turn| turn.p50_ms),
                ratio(|turn| turn.p99_ms),
            ]);
        }
    }
    let header = [
        "transport",
        "contender",
        "p50 ms",
        "p99 ms",
        "p50 by subscription",
        "p99 by subscription",
    ];
    render(header, 2, rows)
}

/// One line of the CSV: a drain or a turn of the latency test.
#[derive(Serialize)]
struct Line<'a> {
    test: &'a str,
    workload: &'a str,
    transport: &'a str,
    contender: &'a str,
    round: u32,
    seconds: Option<f64>,
    cpu_seconds: f64,
    cpu_seconds_per_million: Option<f64>,
    peak_mb: f64,
    own_mb: f64,
    changes: Option<i64>,
    rows_checked: Option<i64>,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    date: &'a str,
    postgres: &'a str,
    machine: &'a str,
}

/// Writes one line for each run and each turn.
///
/// # Errors
/// The file cannot be written.
pub fn write_csv(path: &Path, results: &Results) -> Result<()> {
    let Circumstances {
        machine,
        postgres,
        date,
        ..
    } = &results.circumstances;
    let round = |value: f64| (value * 1e4).round() / 1e4;
    let mut writer = csv::Writer::from_path(path)?;
    for run in &results.runs {
        writer.serialize(Line {
            test: "drain",
            workload: run.workload,
            transport: run.transport.name(),
            contender: run.contender.name(),
            round: run.round,
            seconds: Some(round(run.seconds)),
            cpu_seconds: run.usage.cpu_seconds,
            cpu_seconds_per_million: Some(round(run.cpu_per_million())),
            peak_mb: round(run.usage.peak_mb),
            own_mb: round(run.usage.own_mb),
            changes: Some(run.changes),
            rows_checked: run.rows,
            p50_ms: None,
            p99_ms: None,
            date,
            postgres,
            machine,
        })?;
    }
    for turn in &results.turns {
        writer.serialize(Line {
            test: "latency",
            workload: "idle",
            transport: turn.transport.name(),
            contender: turn.contender.name(),
            round: turn.round,
            seconds: None,
            cpu_seconds: turn.usage.cpu_seconds,
            cpu_seconds_per_million: None,
            peak_mb: round(turn.usage.peak_mb),
            own_mb: round(turn.usage.own_mb),
            changes: None,
            rows_checked: None,
            p50_ms: Some(round(turn.p50_ms)),
            p99_ms: Some(round(turn.p99_ms)),
            date,
            postgres,
            machine,
        })?;
    }
    Ok(writer.flush()?)
}
