//! Rows that exist already: waltrail's initial snapshot beside a pipe of two `psql`.
//!
//! Both copy the whole of `employees` into an empty `employees_cdc`, in turn, A B A B: the pipe by
//! `COPY employees TO STDOUT (FORMAT binary)` into `COPY employees_cdc (id, name, department, salary) FROM STDIN (FORMAT
//! binary)`, waltrail by `run`, from its start until the table is joined to the stream: with all its set-up, the slot, and
//! `change_type` and `change_timestamp` in every row. Rows and sums are compared after each turn.
//!
//! Before the first turn the pipe runs once and is not counted: whoever is first on a fresh target takes a third more,
//! whichever contender it is, presumably for the files of the WAL and of the table, which all others find made.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postgres::Client;
use throwaway::Cluster;

use crate::contender::{Daemon, SLOT};
use crate::server::{self, PUBLICATION, Transport};
use crate::table::{median, render};
use crate::target::{self, HISTORY, Target};
use crate::usage::Usage;

const SUMS: &str = "count(*), coalesce(sum(id), 0)::text || ' ' || coalesce(sum(salary), 0)::text";
/// How often it is asked whether the table is joined.
const POLL: Duration = Duration::from_millis(20);

/// What is measured.
pub struct Plan<'a> {
    /// The daemon's program.
    pub program: &'a Path,
    /// How both are connected.
    pub transport: Transport,
    /// Rows of the table.
    pub rows: u32,
    /// Turns of each.
    pub rounds: u32,
    /// Sessions that the daemon copies with.
    pub workers: u32,
}

/// One turn.
#[derive(Clone, Copy, Debug)]
struct Turn {
    seconds: f64,
    usage: Usage,
}

/// Measures; the table that tells of it.
///
/// # Errors
/// A contender failed, or its target does not hold every row.
pub fn compare(plan: &Plan<'_>, mut on_turn: impl FnMut(&str)) -> Result<String> {
    let source = server::start(false)?;
    let mut client = server::connect(&source, "postgres")?;
    on_turn(&format!("making {} rows", plan.rows));
    client.batch_execute(crate::workload::EMPLOYEES)?;
    client.batch_execute(&format!(
        "INSERT INTO employees (name, department, salary)
            SELECT 'name ' || g, 'dept ' || g % 50, 1000 + g % 9000 FROM generate_series(1, {}) g",
        plan.rows
    ))?;
    // Each by itself: VACUUM stands in no transaction.
    for statement in [
        "VACUUM ANALYZE employees",
        "CHECKPOINT",
        &format!("CREATE PUBLICATION {PUBLICATION} FOR TABLE employees"),
    ] {
        client.batch_execute(statement)?;
    }
    let mut target = Target::start()?;
    let expected = sums(&mut client, "employees")?;
    target.reset_history()?;
    let seconds = pipe(plan, &source, &target)?;
    on_turn(&format!("not counted, psql | psql: {seconds:.2} s"));
    let (mut ours, mut pipes) = (Vec::new(), Vec::new());
    for round in 1..=plan.rounds {
        let turn = waltrail(plan, &source, &mut client, &mut target)?;
        ensure!(
            sums(&mut target.history, "employees_cdc")? == expected,
            "waltrail copied other rows"
        );
        on_turn(&format!(
            "round {round}, waltrail: {:.2} s, CPU {:.2} s, {:.1} MB",
            turn.seconds, turn.usage.cpu_seconds, turn.usage.peak_mb
        ));
        ours.push(turn);
        target.reset_history()?;
        let seconds = pipe(plan, &source, &target)?;
        ensure!(
            sums(&mut target.history, "employees_cdc")? == expected,
            "the pipe copied other rows"
        );
        on_turn(&format!("round {round}, psql | psql: {seconds:.2} s"));
        pipes.push(seconds);
    }
    Ok(report(plan, &ours, &pipes))
}

fn sums(client: &mut Client, table: &str) -> Result<(i64, String)> {
    let row = client.query_one(&format!("SELECT {SUMS} FROM {table}"), &[])?;
    Ok((row.get(0), row.get(1)))
}

fn waltrail(
    plan: &Plan<'_>,
    source: &Cluster,
    client: &mut Client,
    target: &mut Target,
) -> Result<Turn> {
    server::drop_slot(client, SLOT)?;
    target.reset_history()?;
    target::forget(&mut target.history)?;
    let workers = plan.workers.to_string();
    let began = Instant::now();
    let mut daemon = Daemon::start_with(
        plan.program,
        &plan.transport.dsn(source, "postgres"),
        &plan.transport.dsn(&target.cluster, HISTORY),
        ["public.employees"],
        &[("WALTRAIL_SNAPSHOT__WORKERS", &workers)],
    )?;
    let known = "SELECT to_regclass('waltrail.snapshot') IS NOT NULL";
    let done = "SELECT count(*) FROM waltrail.snapshot WHERE state = 'done'";
    loop {
        daemon.look()?;
        if target.history.query_one(known, &[])?.get(0)
            && target.history.query_one(done, &[])?.get::<_, i64>(0) == 1
        {
            break;
        }
        sleep(POLL);
    }
    let seconds = began.elapsed().as_secs_f64();
    daemon.look()?;
    daemon.stop()?;
    Ok(Turn {
        seconds,
        usage: daemon.usage(),
    })
}

fn psql(cluster: &Cluster, transport: Transport, database: &str, statement: &str) -> Command {
    let mut command = Command::new(server::program(cluster, "psql"));
    command
        .arg("-h")
        .arg(transport.host(cluster))
        .args(["-p", &cluster.port().to_string()])
        .args([
            "-U", "postgres", "-d", database, "-X", "-q", "-c", statement,
        ]);
    command
}

fn pipe(plan: &Plan<'_>, source: &Cluster, target: &Target) -> Result<f64> {
    let began = Instant::now();
    let mut from = psql(
        source,
        plan.transport,
        "postgres",
        "COPY employees TO STDOUT (FORMAT binary)",
    )
    .stdout(Stdio::piped())
    .spawn()
    .context("could not run psql")?;
    let rows = from.stdout.take().context("psql has no output")?;
    let into = psql(
        &target.cluster,
        plan.transport,
        HISTORY,
        "COPY employees_cdc (id, name, department, salary) FROM STDIN (FORMAT binary)",
    )
    .stdin(rows)
    .status()?;
    ensure!(from.wait()?.success() && into.success(), "psql failed");
    Ok(began.elapsed().as_secs_f64())
}

fn report(plan: &Plan<'_>, ours: &[Turn], pipes: &[f64]) -> String {
    let pipe = median(pipes.iter().copied());
    let seconds: Vec<f64> = ours.iter().map(|turn| turn.seconds).collect();
    let cpu = median(ours.iter().map(|turn| turn.usage.cpu_seconds));
    let peak = ours
        .iter()
        .map(|turn| turn.usage.peak_mb)
        .fold(0.0, f64::max);
    let row = |name: String, seconds: &[f64], cpu: String, peak: String| {
        let middle = median(seconds.iter().copied());
        [
            name,
            format!("{middle:.2}"),
            format!(
                "{:.2}",
                seconds.iter().copied().fold(f64::INFINITY, f64::min)
            ),
            format!("{:.2}", seconds.iter().copied().fold(0.0, f64::max)),
            format!("{:.0}", f64::from(plan.rows) / middle),
            format!("{:.2}", middle / pipe),
            cpu,
            peak,
        ]
    };
    let name = format!("waltrail, {} workers", plan.workers);
    render(
        [
            "contender",
            "median s",
            "min s",
            "max s",
            "rows/s",
            "by the pipe",
            "CPU s",
            "peak MB",
        ],
        1,
        [
            row(name, &seconds, format!("{cpu:.2}"), format!("{peak:.1}")),
            row(
                "psql | psql".to_owned(),
                pipes,
                String::new(),
                String::new(),
            ),
        ],
    )
}
