//! The benchmark's command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use time::OffsetDateTime;
use time::macros::format_description;
use waltrail_bench::contender::Contender;
use waltrail_bench::live::{self, Application, Rate};
use waltrail_bench::report::{self, Circumstances, Results};
use waltrail_bench::scaling::{self, Series};
use waltrail_bench::server::{self, Transport};
use waltrail_bench::target::Target;
use waltrail_bench::workload::{Source, Workload};
use waltrail_bench::{answers, chart, drain, latency, micro, snapshot, usage, verdict};

/// Measures waltrail beside others that read the same WAL.
#[derive(Parser)]
struct Cli {
    /// The program to measure
    #[arg(long, global = true, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/waltrail"))]
    program: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Drains and latency, all contenders in turn
    Compare(Compare),
    /// Cost per change as rows, widths, tables and uncaptured changes grow
    Scaling(Scaling),
    /// Rows that exist already, beside a pipe of two psql
    Snapshot(Snapshot),
    /// What a history costs a database that lives
    Live(Live),
    /// What a history answers, beside queries by hand and trigger tools
    Answers(Answers),
}

#[derive(Args)]
struct Answers {
    /// Rows of each history
    #[arg(long, default_value_t = 10_000_000)]
    rows: u32,
    /// 200,000 rows
    #[arg(long)]
    quick: bool,
    /// Times that each large question is asked
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Only single rows, beside the indexes, and without other tools (some minutes)
    #[arg(long)]
    keys_only: bool,
    /// Where answers.csv goes
    #[arg(long)]
    out: PathBuf,
}

#[derive(Args)]
struct Live {
    /// One round of three seconds, at 500 transactions a second and at full speed
    #[arg(long)]
    quick: bool,
    /// Turns of each contender at each rate
    #[arg(long)]
    rounds: Option<u32>,
    /// Transactions a second, or `full`
    #[arg(long, value_delimiter = ',')]
    rates: Vec<Rate>,
    /// Only these contenders
    #[arg(long, value_delimiter = ',', value_parser = live::Contender::ALL.map(live::Contender::keyword))]
    only: Vec<String>,
    /// Seconds that are measured in each turn
    #[arg(long)]
    seconds: Option<u32>,
    /// Without `fsync` and `full_page_writes`
    #[arg(long)]
    no_fsync: bool,
    /// How the application speaks: one call of a function, prepared statements, or plain text
    #[arg(long, value_parser = ["function", "prepared", "plain"], default_value = "plain")]
    application: String,
    /// How application and contenders are connected
    #[arg(long, value_parser = ["tcp", "unix"], default_value = "unix")]
    transport: String,
    /// Where live.csv and live.svg go
    #[arg(long)]
    out: PathBuf,
    /// The daemon's `batch.interval`, for the verdict
    #[arg(long, default_value_t = 25.0)]
    interval_ms: f64,
    /// A setting of the daemon, e.g. WALTRAIL_BATCH__INTERVAL=50ms
    #[arg(long = "set", value_name = "NAME=VALUE")]
    settings: Vec<String>,
    /// Without the idle latency, or with nothing else
    #[arg(long, value_parser = ["without", "only"])]
    idle: Option<String>,
}

#[derive(Args)]
struct Snapshot {
    /// Rows of the table
    #[arg(long, default_value_t = 10_000_000)]
    rows: u32,
    /// Turns of each
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Sessions that the daemon copies with
    #[arg(long, default_value_t = 2)]
    workers: u32,
    /// How the servers are reached
    #[arg(long, value_parser = ["tcp", "unix"], default_value = "unix")]
    transport: String,
}

#[derive(Args)]
struct Scaling {
    /// A quarter of the load, and once
    #[arg(long)]
    quick: bool,
    /// Drains of each load
    #[arg(long)]
    rounds: Option<u32>,
    /// Where scaling.md and scaling.csv go: by default here, or to target/scaling when it is not all of it
    #[arg(long)]
    out: Option<PathBuf>,
    /// Only this table
    #[arg(long, value_parser = Series::ALL.map(Series::name))]
    only: Option<String>,
    /// Only the row of this size
    #[arg(long)]
    size: Option<u32>,
    /// How the servers are reached
    #[arg(long, value_parser = ["tcp", "unix"], default_value = "tcp")]
    transport: String,
}

#[derive(Args)]
struct Compare {
    /// Smaller workloads and fewer rounds: under two minutes
    #[arg(long)]
    quick: bool,
    /// Turns of each contender
    #[arg(long)]
    rounds: Option<u32>,
    /// Where results.csv and results.svg go
    #[arg(long)]
    out: PathBuf,
    /// Only this workload
    #[arg(long, value_parser = ["oltp", "bulk"])]
    workload: Option<String>,
    /// Only this transport; TLS is measured only when it is asked for
    #[arg(long, value_parser = Transport::ALL.map(Transport::keyword))]
    transport: Option<String>,
    /// Only waltrail
    #[arg(long)]
    alone: bool,
    /// Without the latency test, or with nothing else
    #[arg(long, value_parser = ["without", "only"])]
    latency: Option<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match &cli.command {
        Command::Compare(options) => compare(&cli.program, options),
        Command::Scaling(options) => scale(&cli.program, options),
        Command::Snapshot(options) => record(&cli.program, options),
        Command::Live(options) => live(&cli.program, options),
        Command::Answers(options) => ask(&cli.program, options),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn record(program: &Path, options: &Snapshot) -> Result<()> {
    is_built(program)?;
    let plan = snapshot::Plan {
        program,
        transport: transport_of(&options.transport),
        rows: options.rows,
        rounds: options.rounds,
        workers: options.workers,
    };
    println!("{}", snapshot::compare(&plan, progress)?);
    Ok(())
}

fn ask(program: &Path, options: &Answers) -> Result<()> {
    prepare(program, &options.out)?;
    let rows = if options.quick { 200_000 } else { options.rows };
    ensure!(
        rows >= 200_000 && rows.is_multiple_of(1_000),
        "at least 200,000 rows, in thousands"
    );
    let plan = answers::Plan {
        program,
        size: answers::Size { rows },
        rounds: options.rounds,
        keys_only: options.keys_only,
    };
    let (results, postgres) = answers::all(&plan, progress)?;
    let circumstances = Circumstances {
        machine: usage::machine(),
        postgres,
        waltrail: version_of(program)?,
        date: today()?,
        rounds: plan.rounds,
        workloads: format!("{rows} changes"),
    };
    println!("{}", answers::document(&circumstances, &results));
    answers::write_csv(&options.out.join("answers.csv"), &results)
}

fn transport_of(name: &str) -> Transport {
    match name {
        "tcp" => Transport::Tcp,
        "tls" => Transport::Tls,
        _ => Transport::Unix,
    }
}

fn is_built(program: &Path) -> Result<()> {
    ensure!(
        program.is_file(),
        "there is no {}: build it first",
        program.display()
    );
    Ok(())
}

/// Looks whether there is something to measure and a place for what comes of it.
fn prepare(program: &Path, out: &Path) -> Result<()> {
    is_built(program)?;
    std::fs::create_dir_all(out).with_context(|| format!("could not make {}", out.display()))
}

fn scale(program: &Path, options: &Scaling) -> Result<()> {
    let partly = options.quick || options.only.is_some() || options.size.is_some();
    let default = Path::new(if partly { "target/scaling" } else { "." });
    let out = options.out.as_deref().unwrap_or(default);
    prepare(program, out)?;
    let series: Vec<Series> = Series::ALL
        .into_iter()
        .filter(|series| {
            options
                .only
                .as_deref()
                .is_none_or(|only| only == series.name())
        })
        .collect();
    let plan = scaling::Plan {
        program,
        series: &series,
        size: options.size,
        quick: options.quick,
        transport: transport_of(&options.transport),
        rounds: options.rounds.unwrap_or(if options.quick { 1 } else { 3 }),
    };
    let target = server::start(false)?;
    let measured = scaling::all(&plan, &target, |one| {
        progress(&format!(
            "{}, {}: {:.2} s ({:.2} to {:.2} with the start), CPU {:.2} s, {:.1} MB; pg_recvlogical {:.2} s",
            one.case.series.name(),
            one.case.size,
            one.daemon.wall,
            one.wall_range.0,
            one.wall_range.1,
            one.daemon.cpu,
            one.daemon.peak_mb,
            one.reader.wall
        ));
    })?;
    let circumstances = Circumstances {
        machine: usage::machine(),
        postgres: server::version(&target),
        waltrail: version_of(program)?,
        date: today()?,
        rounds: plan.rounds,
        workloads: "INSERTs of random bytes".to_owned(),
    };
    let document = scaling::document(&circumstances, plan.transport, &measured);
    println!("{document}");
    let markdown = out.join("scaling.md");
    std::fs::write(&markdown, document)
        .with_context(|| format!("could not write {}", markdown.display()))?;
    let csv = out.join("scaling.csv");
    scaling::write_csv(&csv, &circumstances, plan.transport, &measured)
}

fn compare(program: &Path, options: &Compare) -> Result<()> {
    prepare(program, &options.out)?;
    let (rounds, workloads, samples) = match options.quick {
        true => (3, [Workload::Oltp(60_000), Workload::Bulk(200_000)], 40),
        false => (5, [Workload::Oltp(320_000), Workload::Bulk(1_000_000)], 101),
    };
    let rounds = options.rounds.unwrap_or(rounds);
    let transports: Vec<Transport> = Transport::ALL
        .into_iter()
        .filter(|transport| match options.transport.as_deref() {
            Some(only) => transport.keyword() == only,
            None => *transport != Transport::Tls,
        })
        .collect();
    let mut target = Target::start()?;
    let mut write_ns = micro::write_ns();
    let mut runs = Vec::new();
    if options.latency.as_deref() != Some("only") {
        let mut sources = Vec::new();
        for workload in workloads {
            if options
                .workload
                .as_deref()
                .is_none_or(|only| only == workload.name())
            {
                progress(&format!("loading {workload:?}"));
                sources.push(Source::load(workload)?);
            }
        }
        let contenders = match options.alone {
            true => &[Contender::Waltrail, Contender::Streaming][..],
            false => &Contender::ALL,
        };
        let plan = drain::Plan {
            program,
            sources: &sources,
            contenders,
            transports: &transports,
            rounds,
        };
        runs = drain::all(&plan, &mut target, |run| {
            progress(&format!(
                "{}, {}, round {}, {}: {:.2} s, CPU {:.2} s, {:.1} MB",
                run.workload,
                run.transport.name(),
                run.round,
                run.contender.name(),
                run.seconds,
                run.usage.cpu_seconds,
                run.usage.peak_mb
            ));
            write_ns = write_ns.min(micro::write_ns());
        })?;
    }
    let mut turns = Vec::new();
    if options.latency.as_deref() != Some("without") {
        let plan = latency::Plan {
            program,
            transports: &transports,
            rounds,
            samples,
        };
        turns = latency::all(&plan, &target, on_latency)?;
        write_ns = write_ns.min(micro::write_ns());
    }
    let results = Results {
        circumstances: Circumstances {
            machine: usage::machine(),
            postgres: server::version(&target.cluster),
            waltrail: version_of(program)?,
            date: today()?,
            rounds,
            workloads: workloads.map(|workload| workload.describe()).join(", "),
        },
        runs,
        turns,
        write_ns,
    };
    print(&results);
    report::write_csv(&options.out.join("results.csv"), &results)?;
    chart::draw(&options.out.join("results.svg"), &results)
}

fn on_latency(turn: &latency::Turn) {
    progress(&format!(
        "idle latency, {}, round {}, {}: p50 {:.3} ms, p99 {:.3} ms",
        turn.transport.name(),
        turn.round,
        turn.contender.name(),
        turn.p50_ms,
        turn.p99_ms
    ));
}

/// Samples of a turn, and turns, of the idle latency by one transport.
const IDLE: (u32, u32) = (101, 5);
const IDLE_QUICK: (u32, u32) = (40, 2);

/// The rates and the contenders that are asked for.
fn chosen(options: &Live) -> (Vec<Rate>, Vec<live::Contender>) {
    let default: &[u32] = match options.quick {
        true => &[500],
        false => &[100, 500, 1_000],
    };
    let default = default.iter().copied().map(Rate::PerSecond);
    let rates = match options.rates.as_slice() {
        [] => default.chain([Rate::Full]).collect(),
        chosen => chosen.to_vec(),
    };
    let mut contenders = live::Contender::ALL.to_vec();
    contenders.retain(|contender| {
        let named = |name: &String| name == contender.keyword();
        match options.only.is_empty() {
            true => *contender != live::Contender::SaysWho,
            false => options.only.iter().any(named),
        }
    });
    (rates, contenders)
}

fn live(program: &Path, options: &Live) -> Result<()> {
    prepare(program, &options.out)?;
    let rounds = options.rounds.unwrap_or(if options.quick { 1 } else { 3 });
    let (rates, contenders) = chosen(options);
    let settings = options.settings.iter().map(|setting| {
        let pair = setting.split_once('=');
        pair.with_context(|| format!("--set {setting}: has no `=`"))
    });
    let settings = settings.collect::<Result<Vec<_>>>()?;
    let transport = transport_of(&options.transport);
    let plan = live::Plan {
        program,
        contenders: &contenders,
        rates: &rates,
        rounds,
        seconds: options
            .seconds
            .unwrap_or(if options.quick { 3 } else { 10 }),
        warm_up: if options.quick { 1 } else { 2 },
        fsync: !options.no_fsync,
        application: match options.application.as_str() {
            "prepared" => Application::Prepared,
            "function" => Application::Function,
            _ => Application::Plain,
        },
        transport,
        settings: &settings,
    };
    let target = Target::start()?;
    let postgres = server::version(&target.cluster);
    let idle = match options.idle.as_deref() {
        Some("without") => Vec::new(),
        _ => idle(&plan, &target, options.quick)?,
    };
    // Nothing else lives meanwhile.
    drop(target);
    let turns = match options.idle.as_deref() {
        Some("only") => Vec::new(),
        _ => live::all(&plan, on_life)?,
    };
    let speaks = &options.application;
    let workloads = format!("{} s, {}, {speaks}", plan.seconds, transport.name());
    let results = live::Results {
        circumstances: Circumstances {
            machine: usage::machine(),
            postgres,
            waltrail: version_of(program)?,
            date: today()?,
            rounds,
            workloads,
        },
        turns,
        idle,
    };
    for line in results.circumstances.lines() {
        println!("{line}");
    }
    println!("{}", live::tables(&results));
    println!("{}", live::verdict(&results, options.interval_ms));
    live::write_csv(&options.out.join("live.csv"), transport.name(), &results)?;
    live::draw(&options.out.join("live.svg"), &results)
}

fn idle(plan: &live::Plan<'_>, target: &Target, quick: bool) -> Result<Vec<latency::Turn>> {
    let (samples, rounds) = if quick { IDLE_QUICK } else { IDLE };
    let plan = latency::Plan {
        program: plan.program,
        transports: &[plan.transport],
        rounds,
        samples,
    };
    latency::all(&plan, target, on_latency)
}

fn on_life(turn: &live::Turn) {
    let late = turn.latency.map_or_else(String::new, |latency| {
        format!(
            ", p50 {:.2} ms, p99 {:.2} ms",
            latency.p50_ms, latency.p99_ms
        )
    });
    progress(&format!(
        "{}, round {}, {}: {:.0} tx/s, CPU {:.2} s in {:.1} s{late}",
        turn.rate.name(),
        turn.round,
        turn.contender.name(),
        turn.per_second(),
        turn.cpu.all(),
        turn.seconds
    ));
}

fn print(results: &Results) {
    for line in results.circumstances.lines() {
        println!("{line}");
    }
    if !results.runs.is_empty() {
        println!("\n{}", report::drains(&results.runs));
    }
    if !results.turns.is_empty() {
        println!("\n{}", report::latencies(&results.turns));
    }
    println!("\n{}", verdict::table(results));
}

fn version_of(program: &Path) -> Result<String> {
    let output = std::process::Command::new(program)
        .arg("--version")
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn today() -> Result<String> {
    Ok(OffsetDateTime::now_utc().format(format_description!("[year]-[month]-[day]"))?)
}

fn progress(text: &str) {
    eprintln!("{text}");
}
