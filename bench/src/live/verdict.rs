//! What was promised for life, and what was measured.

use super::report::{Results, ratio_of_costs, ratio_of_transactions, turns_of};
use super::{Contender, Kind, Rate, Turn};
use crate::report::{latency_places, latency_ratio};
use crate::table::median;
use crate::verdict::{Promise, render_promises};

/// The rate for which most is promised.
const STEADY: Rate = Rate::PerSecond(500);

/// The table of all promises for which something was measured. `interval_ms` is the daemon's `batch.interval`.
#[must_use]
pub fn table(results: &Results, interval_ms: f64) -> String {
    let turns = &results.turns;
    let mut promises = Vec::new();
    let mut add = |what: String, [must, aim]: [f64; 2], more: bool, measured: f64| {
        promises.push(Promise {
            what,
            must,
            aim,
            more,
            measured,
        });
    };
    for (ours, goals) in [
        (Contender::AnotherCluster, [0.9, 0.6]),
        (Contender::SameDatabase, [1.0, 0.7]),
    ] {
        add(
            format!("history's CPU at 500 tx/s: {} / trigger", ours.name()),
            goals,
            false,
            ratio_of_costs(turns, STEADY, ours, Contender::Trigger),
        );
    }
    add(
        "backends of ours + daemon at 500 tx/s, CPU s in 10 s".to_owned(),
        [0.5, 0.3],
        false,
        larger(turns, |turn| {
            Some(turn.in_ten_seconds(Kind::Backend) + turn.in_ten_seconds(Kind::Daemon))
        }),
    );
    for (ours, goals) in [
        (Contender::AnotherCluster, [1.0, 1.1]),
        (Contender::SameDatabase, [0.95, 1.05]),
    ] {
        add(
            format!("transactions at full speed: {} / trigger", ours.name()),
            goals,
            true,
            ratio_of_transactions(turns, Rate::Full, ours, Contender::Trigger),
        );
    }
    for transport in latency_places(&results.idle) {
        add(
            format!(
                "idle latency p50, {}: waltrail / subscription",
                transport.name()
            ),
            [1.6, 1.2],
            false,
            latency_ratio(&results.idle, transport, |turn| turn.p50_ms),
        );
    }
    add(
        format!("commit -> visible at 500 tx/s, p99, ms (interval {interval_ms} ms)"),
        [2.0 * interval_ms + 5.0, 1.2 * interval_ms],
        false,
        larger(turns, |turn| Some(turn.latency?.p99_ms)),
    );
    render_promises(&promises)
}

/// The larger median of both settings at the steady rate.
fn larger(turns: &[Turn], value: fn(&Turn) -> Option<f64>) -> f64 {
    [Contender::SameDatabase, Contender::AnotherCluster]
        .into_iter()
        .map(|ours| median(turns_of(turns, STEADY, ours).into_iter().filter_map(value)))
        .fold(f64::NAN, f64::max)
}
