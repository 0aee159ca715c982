//! Life as a picture.

use std::path::Path;

use anyhow::Result;
use plotters::style::RGBColor;

use super::report::{Results, costs, rates, ratio_of_costs, ratio_of_transactions, turns_of};
use super::{Contender, Rate, Turn};
use crate::chart::{Bar, Group, Panel, draw_panels};
use crate::table::median;

fn color(contender: Contender) -> RGBColor {
    match contender {
        Contender::Nothing => RGBColor(206, 212, 218),
        Contender::Trigger => RGBColor(173, 123, 167),
        Contender::Subscription => RGBColor(232, 142, 50),
        Contender::SameDatabase => RGBColor(116, 178, 190),
        Contender::AnotherCluster => RGBColor(11, 114, 133),
        Contender::SaysWho => RGBColor(54, 79, 107),
    }
}

/// Draws what a history costs, what the application keeps, and how late a row is visible.
///
/// # Errors
/// The file cannot be written.
pub fn draw(path: &Path, results: &Results) -> Result<()> {
    let turns = &results.turns;
    let panels = [cost(turns), transactions(turns), latencies(turns)];
    let title = "What a history costs a database that lives";
    draw_panels(path, title, &results.circumstances.lines(), &panels)
}

fn bar(contender: Contender, values: &[f64], note: String) -> Option<Bar> {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    (!values.is_empty()).then(|| Bar {
        name: contender.name(),
        color: color(contender),
        value: median(values.iter().copied()).max(0.0),
        whisker: [least.max(0.0), most],
        note,
    })
}

fn groups(turns: &[Turn], bar: impl Fn(Rate, Contender) -> Option<Bar>) -> Vec<Group> {
    let group = |rate: Rate| Group {
        name: rate.name(),
        bars: Contender::ALL
            .into_iter()
            .filter_map(|c| bar(rate, c))
            .collect(),
    };
    let groups = rates(turns).into_iter().map(group);
    groups.filter(|group| !group.bars.is_empty()).collect()
}

fn cost(turns: &[Turn]) -> Panel {
    let of = |rate, contender| {
        if contender == Contender::Nothing {
            return None;
        }
        let values = costs(turns, rate, contender);
        let by_trigger = ratio_of_costs(turns, rate, contender, Contender::Trigger);
        let mut note = format!("{:.0} µs", median(values.iter().copied()));
        if contender != Contender::Trigger && !by_trigger.is_nan() {
            note += &format!("  (×{by_trigger:.2})");
        }
        bar(contender, &values, note)
    };
    Panel {
        title: "CPU that a history costs, everything counted, for each transaction: median and range (× trigger)"
            .to_owned(),
        unit: "µs",
        groups: groups(turns, of),
    }
}

fn transactions(turns: &[Turn]) -> Panel {
    let of = |rate, contender| {
        if rate != Rate::Full {
            return None;
        }
        let here = turns_of(turns, rate, contender);
        let values: Vec<f64> = here.into_iter().map(Turn::per_second).collect();
        let by_nothing = ratio_of_transactions(turns, rate, contender, Contender::Nothing);
        let mut note = format!("{:.0}", median(values.iter().copied()));
        if contender != Contender::Nothing && !by_nothing.is_nan() {
            note += &format!("  (×{by_nothing:.2})");
        }
        bar(contender, &values, note)
    };
    Panel {
        title: "The application's transactions a second, four clients: median and range (× without a history)"
            .to_owned(),
        unit: "",
        groups: groups(turns, of),
    }
}

fn latencies(turns: &[Turn]) -> Panel {
    let of = |rate, contender| {
        let here = turns_of(turns, rate, contender);
        let latencies: Vec<_> = here.iter().filter_map(|turn| turn.latency).collect();
        let p50 = median(latencies.iter().map(|latency| latency.p50_ms));
        let p99 = median(latencies.iter().map(|latency| latency.p99_ms));
        let note = format!("{p50:.2} / {p99:.2} ms");
        (!latencies.is_empty()).then(|| Bar {
            name: contender.name(),
            color: color(contender),
            value: p50,
            whisker: [p50, p99],
            note,
        })
    };
    let fixed = |rate, contender| match rate {
        Rate::Full => None,
        Rate::PerSecond(_) => of(rate, contender),
    };
    Panel {
        title: "From COMMIT to visible in the target: p50 (bar) and p99 (whisker)".to_owned(),
        unit: "ms",
        groups: groups(turns, fixed),
    }
}
