//! What was promised, and what was measured.

use crate::contender::Contender;
use crate::drain::Run;
use crate::micro::WRITE_NS_MAX;
use crate::report::{Results, latency_places, latency_ratio, ratio};
use crate::server::Transport;
use crate::table::{median, render};

/// One promise.
pub(crate) struct Promise {
    pub what: String,
    pub must: f64,
    pub aim: f64,
    /// More is better, and `must` is the least.
    pub more: bool,
    pub measured: f64,
}

impl Promise {
    fn met(&self) -> &'static str {
        let reaches = |goal: f64| match self.more {
            true => self.measured >= goal,
            false => self.measured <= goal,
        };
        match (reaches(self.must), reaches(self.aim)) {
            (_, true) => "yes, aim",
            (true, false) => "yes",
            (false, false) => "NO",
        }
    }
}

/// The table of all promises for which something was measured.
#[must_use]
pub fn table(results: &Results) -> String {
    render_promises(&promises(results))
}

/// The table of those for which something was measured.
pub(crate) fn render_promises(promises: &[Promise]) -> String {
    let rows = promises
        .iter()
        .filter(|promise| !promise.measured.is_nan())
        .map(|promise| {
            let bound = if promise.more { "≥" } else { "≤" };
            [
                promise.what.clone(),
                format!("{bound} {}", promise.must),
                format!("{bound} {}", promise.aim),
                format!("{:.2}", promise.measured),
                promise.met().to_owned(),
            ]
        });
    render(["target", "must", "aim", "measured", "met"], 1, rows)
}

fn promises(results: &Results) -> Vec<Promise> {
    let mut promises = Vec::new();
    let mut add = |what: String, must: f64, aim: f64, more: bool, measured: f64| {
        promises.push(Promise {
            what,
            must,
            aim,
            more,
            measured,
        });
    };
    let runs = &results.runs;
    for (ours, workload, transport, must, aim) in [
        (Contender::Waltrail, "oltp", Transport::Tcp, 0.4, 0.3),
        (Contender::Waltrail, "oltp", Transport::Unix, 0.75, 0.65),
        (Contender::Waltrail, "bulk", Transport::Tcp, 0.4, 0.3),
        (Contender::Waltrail, "bulk", Transport::Unix, 0.7, 0.55),
        (Contender::Streaming, "oltp", Transport::Tcp, 0.55, 0.45),
        (Contender::Streaming, "oltp", Transport::Unix, 1.15, 1.0),
        (Contender::Streaming, "bulk", Transport::Tcp, 0.55, 0.45),
        (Contender::Streaming, "bulk", Transport::Unix, 1.15, 1.0),
    ] {
        let what = format!(
            "drain {workload}, {}: {} / pg_recvlogical",
            transport.name(),
            ours.name()
        );
        let theirs = Contender::Recvlogical;
        add(
            what,
            must,
            aim,
            false,
            ratio(runs, workload, transport, ours, theirs),
        );
    }
    for (workload, must, aim) in [("oltp", 2.6, 3.2), ("bulk", 1.7, 2.0)] {
        for transport in Transport::ALL {
            let what = format!(
                "drain {workload}, {}: subscription / waltrail",
                transport.name()
            );
            let (theirs, ours) = (Contender::Subscription, Contender::Waltrail);
            add(
                what,
                must,
                aim,
                true,
                ratio(runs, workload, transport, theirs, ours),
            );
        }
    }
    for workload in ["oltp", "bulk"] {
        let cpu = runs
            .iter()
            .filter(|run| {
                (run.workload, run.transport, run.contender)
                    == (workload, Transport::Tcp, Contender::Waltrail)
            })
            .map(Run::cpu_per_million);
        let what = format!("CPU seconds of waltrail per million changes, {workload}, TCP");
        add(what, 0.2, 0.12, false, median(cpu));
    }
    let ours = runs.iter().map(|run| (run.contender, run.usage)).chain(
        results
            .turns
            .iter()
            .map(|turn| (turn.contender, turn.usage)),
    );
    let peak = ours
        .filter(|(contender, _)| matches!(contender, Contender::Waltrail | Contender::Streaming))
        .map(|(_, usage)| usage.peak_mb)
        .fold(f64::NAN, f64::max);
    add(
        "peak memory of waltrail, every case, MB".into(),
        24.0,
        18.0,
        false,
        peak,
    );
    let turns = &results.turns;
    for transport in latency_places(turns) {
        let what = |p: &str| {
            format!(
                "idle latency {p}, {}: waltrail / subscription",
                transport.name()
            )
        };
        let (p50, p99) = ([1.6, 1.2], [2.0, 1.2]);
        let measured = latency_ratio(turns, transport, |turn| turn.p50_ms);
        add(what("p50"), p50[0], p50[1], false, measured);
        let measured = latency_ratio(turns, transport, |turn| turn.p99_ms);
        add(what("p99"), p99[0], p99[1], false, measured);
    }
    add(
        "decode and write a change of about 60 bytes, ns".into(),
        WRITE_NS_MAX,
        20.0,
        false,
        results.write_ns,
    );
    promises
}
