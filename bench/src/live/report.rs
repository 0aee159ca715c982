//! Life as tables and as CSV.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::{Contender, Kind, Latency, Rate, Turn};
use crate::latency;
use crate::report::{Circumstances, latencies};
use crate::table::{median, render_columns};

/// Everything that one call measured.
pub struct Results {
    /// Where and when.
    pub circumstances: Circumstances,
    /// Beside the application.
    pub turns: Vec<Turn>,
    /// While nothing else happens.
    pub idle: Vec<latency::Turn>,
}

/// The turns that belong together, in the order of their rounds.
pub(super) fn turns_of(turns: &[Turn], rate: Rate, contender: Contender) -> Vec<&Turn> {
    turns
        .iter()
        .filter(|turn| (turn.rate, turn.contender) == (rate, contender))
        .collect()
}

/// Turns of two contenders in the same rounds.
fn pairs(turns: &[Turn], rate: Rate, one: Contender, other: Contender) -> Vec<(&Turn, &Turn)> {
    let others = turns_of(turns, rate, other);
    let of = |round: u32| others.iter().find(|other| other.round == round).copied();
    turns_of(turns, rate, one)
        .into_iter()
        .filter_map(|one| Some((one, of(one.round)?)))
        .collect()
}

/// What a history costs in each round, in CPU microseconds for each transaction of the application: everything beside
/// it, less everything beside nothing.
pub(super) fn costs(turns: &[Turn], rate: Rate, contender: Contender) -> Vec<f64> {
    pairs(turns, rate, contender, Contender::Nothing)
        .into_iter()
        .map(|(with, without)| with.us_per_transaction() - without.us_per_transaction())
        .collect()
}

/// The same in CPU seconds in ten seconds.
fn costs_in_ten_seconds(turns: &[Turn], rate: Rate, contender: Contender) -> Vec<f64> {
    let in_ten = |turn: &Turn| turn.cpu.all() / turn.seconds * 10.0;
    pairs(turns, rate, contender, Contender::Nothing)
        .into_iter()
        .map(|(with, without)| in_ten(with) - in_ten(without))
        .collect()
}

/// What one history costs by what another costs, round by round: the median.
pub(super) fn ratio_of_costs(turns: &[Turn], rate: Rate, one: Contender, other: Contender) -> f64 {
    let ratio = |(one, other): (&Turn, &Turn)| {
        let nothing = turns_of(turns, rate, Contender::Nothing);
        let nothing = nothing.iter().find(|nothing| nothing.round == one.round)?;
        let cost = |turn: &Turn| turn.us_per_transaction() - nothing.us_per_transaction();
        Some(cost(one) / cost(other))
    };
    median(pairs(turns, rate, one, other).into_iter().filter_map(ratio))
}

/// Transactions beside one by those beside another, round by round: the median.
pub(super) fn ratio_of_transactions(
    turns: &[Turn],
    rate: Rate,
    one: Contender,
    other: Contender,
) -> f64 {
    median(
        pairs(turns, rate, one, other)
            .into_iter()
            .map(|(one, other)| one.per_second() / other.per_second()),
    )
}

/// The rates that were measured, in order.
pub(super) fn rates(turns: &[Turn]) -> Vec<Rate> {
    let mut rates = Vec::new();
    for turn in turns {
        if !rates.contains(&turn.rate) {
            rates.push(turn.rate);
        }
    }
    rates
}

/// One table a rate, and that of the idle latency.
#[must_use]
pub fn tables(results: &Results) -> String {
    let mut text = String::new();
    for rate in rates(&results.turns) {
        text += &format!(
            "\n{}, CPU s in 10 s:\n\n{}\n",
            rate.name(),
            of_rate(&results.turns, rate)
        );
    }
    if !results.idle.is_empty() {
        text += &format!("\nidle:\n\n{}\n", latencies(&results.idle));
    }
    text
}

/// A figure, or nothing where nothing was measured.
fn figure(value: f64, digits: usize) -> String {
    match value.is_nan() {
        true => String::new(),
        false => format!("{value:.digits$}"),
    }
}

fn of_rate(turns: &[Turn], rate: Rate) -> String {
    let full = rate == Rate::Full;
    let mut header = vec![
        "",
        "application's backends",
        "walsender",
        "backends of ours",
        "waltrail",
        "walwriter",
        "other server processes",
    ];
    // With fewer transactions a history is not cheaper: at full speed only the cost of each one compares.
    header.extend(match full {
        true => &[
            "history costs, µs/tx",
            "by trigger",
            "tx/s",
            "by nothing",
            "by trigger",
        ][..],
        false => &["history costs", "µs/tx", "by trigger", "tx/s"],
    });
    header.extend(["p50 ms", "p99 ms", "rows checked"]);
    let present = |contender: &Contender| !turns_of(turns, rate, *contender).is_empty();
    let rows = Contender::ALL
        .into_iter()
        .filter(present)
        .map(|contender| row(turns, rate, contender));
    render_columns(&header, 1, rows)
}

fn row(turns: &[Turn], rate: Rate, contender: Contender) -> Vec<String> {
    let here = turns_of(turns, rate, contender);
    let of = |value: &dyn Fn(&Turn) -> f64| median(here.iter().map(|turn| value(turn)));
    let beside = |value: f64| match contender {
        Contender::Nothing => String::new(),
        _ => figure(value, 2),
    };
    let transactions = |other| beside(ratio_of_transactions(turns, rate, contender, other));
    let latency = |value: fn(Latency) -> f64| {
        let values = here.iter().filter_map(|turn| turn.latency.map(value));
        figure(median(values), 2)
    };
    let mut row = vec![contender.name().to_owned()];
    row.extend(
        Kind::ALL.map(|kind| match of(&|turn| turn.in_ten_seconds(kind)) {
            value if value < 0.005 => String::new(),
            value => figure(value, 2),
        }),
    );
    if rate != Rate::Full {
        let costs = costs_in_ten_seconds(turns, rate, contender);
        row.push(figure(median(costs), 2));
    }
    row.push(figure(median(costs(turns, rate, contender)), 0));
    row.push(beside(ratio_of_costs(
        turns,
        rate,
        contender,
        Contender::Trigger,
    )));
    row.push(figure(of(&Turn::per_second), 0));
    if rate == Rate::Full {
        row.extend([Contender::Nothing, Contender::Trigger].map(transactions));
    }
    row.push(latency(|latency| latency.p50_ms));
    row.push(latency(|latency| latency.p99_ms));
    row.push(here.iter().map(|turn| turn.rows).sum::<i64>().to_string());
    row
}

/// One line of the CSV.
#[derive(Serialize)]
struct Line<'a> {
    test: &'a str,
    rate: String,
    transport: &'a str,
    contender: &'a str,
    round: u32,
    seconds: Option<f64>,
    transactions: Option<u64>,
    application_cpu_s: Option<f64>,
    walsender_cpu_s: Option<f64>,
    backends_cpu_s: Option<f64>,
    daemon_cpu_s: Option<f64>,
    walwriter_cpu_s: Option<f64>,
    other_cpu_s: Option<f64>,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    peak_mb: Option<f64>,
    rows_checked: Option<i64>,
    date: &'a str,
    postgres: &'a str,
    machine: &'a str,
}

/// Writes one line for each turn.
///
/// # Errors
/// The file cannot be written.
pub fn write_csv(path: &Path, transport: &str, results: &Results) -> Result<()> {
    let Circumstances {
        machine,
        postgres,
        date,
        ..
    } = &results.circumstances;
    let round = |value: f64| (value * 1e4).round() / 1e4;
    let mut writer = csv::Writer::from_path(path)?;
    for turn in &results.turns {
        let cpu = |kind| Some(round(turn.cpu.of(kind)));
        writer.serialize(Line {
            test: "live",
            rate: turn.rate.name(),
            transport,
            contender: turn.contender.name(),
            round: turn.round,
            seconds: Some(round(turn.seconds)),
            transactions: Some(turn.transactions),
            application_cpu_s: cpu(Kind::Application),
            walsender_cpu_s: cpu(Kind::Walsender),
            backends_cpu_s: cpu(Kind::Backend),
            daemon_cpu_s: cpu(Kind::Daemon),
            walwriter_cpu_s: cpu(Kind::Walwriter),
            other_cpu_s: cpu(Kind::Other),
            p50_ms: turn.latency.map(|latency| round(latency.p50_ms)),
            p99_ms: turn.latency.map(|latency| round(latency.p99_ms)),
            peak_mb: turn.peak_mb.map(round),
            rows_checked: Some(turn.rows),
            date,
            postgres,
            machine,
        })?;
    }
    for turn in &results.idle {
        writer.serialize(Line {
            test: "latency",
            rate: "idle".to_owned(),
            transport: turn.transport.name(),
            contender: turn.contender.name(),
            round: turn.round,
            seconds: None,
            transactions: None,
            application_cpu_s: None,
            walsender_cpu_s: None,
            backends_cpu_s: None,
            daemon_cpu_s: None,
            walwriter_cpu_s: None,
            other_cpu_s: None,
            p50_ms: Some(round(turn.p50_ms)),
            p99_ms: Some(round(turn.p99_ms)),
            peak_mb: Some(round(turn.usage.peak_mb)),
            rows_checked: None,
            date,
            postgres,
            machine,
        })?;
    }
    Ok(writer.flush()?)
}
