//! The measurements as a Markdown document and as CSV.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::{Cost, Measured, Series};
use crate::report::Circumstances;
use crate::server::Transport;
use crate::table::render;

/// From this growth of the cost of a unit on, it is called worse than linear.
const WORSE: f64 = 1.15;
/// Seconds that a drain must have become longer for it: as long as the last batch may gather.
const NOISE: f64 = 0.05;

type Figure = fn(&Measured) -> f64;

/// The costs whose growth is judged, by whose they are.
const JUDGED: [(&str, Figure); 5] = [
    ("wall", |one| one.daemon.wall),
    ("waltrail", |one| one.daemon.cpu),
    ("walsender", |one| one.daemon.sender),
    ("target", |one| one.daemon.writer),
    ("pg_recvlogical", |one| one.reader.wall),
];

/// What one row has to say beside its own figures.
struct Growth {
    /// Of the daemon's wall and CPU time for a unit, against the row before.
    wall: f64,
    cpu: f64,
    /// Of its CPU time, against the first row.
    cpu_by_first: f64,
    /// Whose cost of a unit grew, and how much.
    worse: String,
}

impl Growth {
    fn of(one: &Measured, before: &Measured, first: &Measured) -> Self {
        let ratio = |cost: Figure, other: &Measured| {
            (cost(one) / one.case.units()) / (cost(other) / other.case.units())
        };
        let worse = JUDGED.iter().filter_map(|&(who, cost)| {
            let grown = ratio(cost, before);
            let linear = cost(before) / before.case.units() * one.case.units();
            (grown >= WORSE && cost(one) - linear >= NOISE).then(|| format!("{who} {grown:.2}"))
        });
        Self {
            wall: ratio(|one| one.daemon.wall, before),
            cpu: ratio(|one| one.daemon.cpu, before),
            cpu_by_first: ratio(|one| one.daemon.cpu, first),
            worse: worse.collect::<Vec<_>>().join(", "),
        }
    }
}

/// Each measurement with its growth; the first of a series has none.
fn grown(measured: &[Measured]) -> Vec<(&Measured, Option<Growth>)> {
    let mut rows = Vec::new();
    let (mut first, mut before): (Option<&Measured>, Option<&Measured>) = (None, None);
    for one in measured {
        if before.is_none_or(|before| before.case.series != one.case.series) {
            (first, before) = (Some(one), None);
        }
        let growth = before
            .zip(first)
            .map(|(before, first)| Growth::of(one, before, first));
        rows.push((one, growth));
        before = Some(one);
    }
    rows
}

/// The whole report.
#[must_use]
pub fn document(
    circumstances: &Circumstances,
    transport: Transport,
    measured: &[Measured],
) -> String {
    let [machine, versions] = circumstances.lines();
    let mut text = format!(
        "# Cost per change as everything else grows\n\n{machine}  \n{versions}; {}\n\n\
         Medians, in microseconds for each captured change, without the start of the program, which has a column of its \
         own. \"by the row before\" and \"by the first\" divide the cost of a unit, which is named above each table and stays \
         the same as long as growth is linear: 1.00 is linear, less is better. \"worse than linear\" names whose cost of a \
         unit grew by {WORSE} or more against the row before (and by more than {:.0} ms in all): the wall clock, the CPU time \
         of waltrail, of the walsender and of the target's process, or the wall time of `pg_recvlogical`, which reads the \
         same WAL and throws it away. What grew for it too is the server's.\n",
        transport.name(),
        NOISE * 1e3
    );
    for series in Series::ALL {
        let here: Vec<_> = grown(measured)
            .into_iter()
            .filter(|(one, _)| one.case.series == series)
            .collect();
        if !here.is_empty() {
            text += &format!(
                "\n## By {}\n\nUnit of growth: {}.\n\n{}\n",
                series.heading(),
                series.unit(),
                render(HEADER, 0, here.iter().map(row))
            );
        }
    }
    text
}

const HEADER: [&str; 16] = [
    "size",
    "changes",
    "MB",
    "wall µs",
    "CPU µs",
    "CPU ms / MB",
    "wall by the row before",
    "CPU by the row before",
    "CPU by the first",
    "peak MB",
    "walsender CPU µs",
    "target CPU µs",
    "pg_recvlogical wall µs",
    "start ms",
    "rows checked",
    "worse than linear",
];

fn row((one, growth): &(&Measured, Option<Growth>)) -> [String; 16] {
    let per_change = |seconds: f64| {
        let figure = seconds / f64::from(one.case.rows) * 1e6;
        match figure {
            figure if figure >= 100.0 => format!("{figure:.0}"),
            figure => format!("{figure:.2}"),
        }
    };
    let grown = |figure: fn(&Growth) -> f64| {
        growth
            .as_ref()
            .map_or_else(String::new, |growth| format!("{:.2}", figure(growth)))
    };
    let Cost {
        wall,
        cpu,
        peak_mb,
        sender,
        writer,
    } = one.daemon;
    [
        one.case.size.to_string(),
        one.case.rows.to_string(),
        format!("{:.0}", one.case.megabytes()),
        per_change(wall),
        per_change(cpu),
        format!("{:.2}", cpu / one.case.megabytes() * 1e3),
        grown(|growth| growth.wall),
        grown(|growth| growth.cpu),
        grown(|growth| growth.cpu_by_first),
        format!("{peak_mb:.1}"),
        per_change(sender),
        per_change(writer),
        per_change(one.reader.wall),
        format!("{:.0}", one.start.wall * 1e3),
        one.rows.to_string(),
        growth
            .as_ref()
            .map_or_else(String::new, |growth| growth.worse.clone()),
    ]
}

/// One line of the CSV. Times are of the whole drain, in seconds, without the start.
#[derive(Serialize)]
struct Line<'a> {
    series: &'a str,
    size: u32,
    transport: &'a str,
    changes: u32,
    rows_per_transaction: u32,
    bytes_per_row: u32,
    captured_tables: u32,
    uncaptured_per_change: u32,
    wall_seconds: f64,
    cpu_seconds: f64,
    wall_us_per_change: f64,
    cpu_us_per_change: f64,
    peak_mb: f64,
    walsender_cpu_seconds: f64,
    target_cpu_seconds: f64,
    recvlogical_wall_seconds: f64,
    recvlogical_cpu_seconds: f64,
    start_seconds: f64,
    shortest_with_start: f64,
    longest_with_start: f64,
    start_cpu_seconds: f64,
    unit: &'a str,
    units: f64,
    wall_by_before: Option<f64>,
    cpu_by_before: Option<f64>,
    cpu_by_first: Option<f64>,
    worse_than_linear: &'a str,
    rows_checked: i64,
    rounds: u32,
    date: &'a str,
    postgres: &'a str,
    waltrail: &'a str,
    machine: &'a str,
}

/// Writes one line for each load.
///
/// # Errors
/// The file cannot be written.
pub fn write_csv(
    path: &Path,
    circumstances: &Circumstances,
    transport: Transport,
    measured: &[Measured],
) -> Result<()> {
    let round = |value: f64| (value * 1e4).round() / 1e4;
    let mut writer = csv::Writer::from_path(path)?;
    for (one, growth) in grown(measured) {
        let Measured {
            case,
            daemon,
            wall_range,
            start,
            reader,
            rows,
        } = *one;
        let per_change = |seconds: f64| round(seconds / f64::from(case.rows) * 1e6);
        let of = |figure: fn(&Growth) -> f64| growth.as_ref().map(|growth| round(figure(growth)));
        writer.serialize(Line {
            series: case.series.name(),
            size: case.size,
            transport: transport.name(),
            changes: case.rows,
            rows_per_transaction: case.per_transaction,
            bytes_per_row: case.width,
            captured_tables: case.tables,
            uncaptured_per_change: case.beside,
            wall_seconds: round(daemon.wall),
            cpu_seconds: round(daemon.cpu),
            wall_us_per_change: per_change(daemon.wall),
            cpu_us_per_change: per_change(daemon.cpu),
            peak_mb: round(daemon.peak_mb),
            walsender_cpu_seconds: round(daemon.sender),
            target_cpu_seconds: round(daemon.writer),
            recvlogical_wall_seconds: round(reader.wall),
            recvlogical_cpu_seconds: round(reader.cpu),
            start_seconds: round(start.wall),
            shortest_with_start: round(wall_range.0),
            longest_with_start: round(wall_range.1),
            start_cpu_seconds: round(start.cpu),
            unit: case.series.unit(),
            units: round(case.units()),
            wall_by_before: of(|growth| growth.wall),
            cpu_by_before: of(|growth| growth.cpu),
            cpu_by_first: of(|growth| growth.cpu_by_first),
            worse_than_linear: growth.as_ref().map_or("", |growth| &growth.worse),
            rows_checked: rows,
            rounds: circumstances.rounds,
            date: &circumstances.date,
            postgres: &circumstances.postgres,
            waltrail: &circumstances.waltrail,
            machine: &circumstances.machine,
        })?;
    }
    Ok(writer.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loads of a series whose daemon took `seconds`.
    fn measured(series: Series, seconds: &[f64]) -> Vec<Measured> {
        let cases = series.cases(false).into_iter();
        let one = |(case, &seconds)| Measured {
            case,
            daemon: Cost {
                wall: seconds,
                cpu: seconds,
                ..Cost::default()
            },
            wall_range: (seconds, seconds),
            start: Cost::default(),
            reader: Cost::default(),
            rows: 0,
        };
        cases.zip(seconds).map(one).collect()
    }

    #[test]
    fn growth_is_told_against_the_row_before_and_only_within_a_series() {
        let mut all = measured(Series::Tables, &[1.0, 1.0, 2.0]);
        all.extend(measured(Series::Beside, &[8.0, 16.0]));
        let rows = grown(&all);
        let worse: Vec<_> = rows
            .iter()
            .map(|(_, growth)| growth.as_ref().map(|growth| growth.worse.as_str()))
            .collect();
        assert_eq!(
            worse,
            [
                None,
                Some(""),
                Some("wall 2.00, waltrail 2.00"),
                None,
                Some("")
            ]
        );
    }

    #[test]
    fn wide_rows_are_compared_by_the_megabyte() {
        let all = measured(Series::Width, &[1.0, 10.0]);
        let rows = grown(&all);
        let growth = rows[1].1.as_ref().unwrap();
        // 10 MB and 100 MB of payload.
        assert!((growth.cpu - 1.0).abs() < 0.01, "{}", growth.cpu);
        assert_eq!(growth.worse, "");
    }
}
