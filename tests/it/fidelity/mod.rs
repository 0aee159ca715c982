//! A standing proof: random tables, statements and DDL, with the daemon live, away, behind, in its snapshot, killed and
//! started again. After each schedule every history is compared with what triggers saw, value by value, and folded into its
//! table.
//!
//! `make fidelity` runs 1,000 schedules (`FIDELITY`). A seed that fails is printed with what it did; `FIDELITY_SEED=17 make
//! fidelity` runs it alone. The seed fixes what the clients do, not when the daemon sees it.

mod check;
mod kinds;
mod schedule;
mod statements;
mod tables;
mod truth;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use throwaway::Cluster;

use crate::support::{builder, connect, each};
use check::Counts;
use schedule::Schedule;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

/// Without `FIDELITY`, as many as take some seconds.
const FEW: u64 = 6;
/// Servers that work at once.
const SERVERS: u64 = 2;

/// A server with a database that others are made from.
async fn server() -> Cluster {
    let cluster = builder()
        .setting("max_replication_slots", "20")
        .setting("max_prepared_transactions", "10")
        .setting("autovacuum", "off")
        .start()
        .unwrap();
    let admin = connect(&cluster.dsn_socket("postgres")).await;
    each(&admin, &["CREATE DATABASE fidelity"]).await;
    let template = connect(&cluster.dsn_socket("fidelity")).await;
    each(&template, &[kinds::TYPES, &truth::objects()]).await;
    cluster
}

/// One schedule. On failure it says what was done, and what is wrong.
async fn one(cluster: &Cluster, seed: u64) -> Result<Counts, String> {
    let mut schedule = Schedule::new(cluster, seed).await;
    let outcome = schedule.run().await;
    let outcome = outcome.map_err(|error| {
        format!(
            "{}\nFIDELITY_SEED={seed}: {error}\n",
            schedule.log.join("\n")
        )
    });
    schedule.remove().await;
    outcome
}

/// Runs the seeds from `first` on, each `step`th. Gives the sums and the seeds that failed.
fn some(first: u64, last: u64, step: u64) -> (Counts, BTreeSet<u64>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let cluster = runtime.block_on(server());
    let (mut sum, mut failed) = (Counts::default(), BTreeSet::new());
    for seed in (first..=last).step_by(usize::try_from(step).unwrap()) {
        // Panics say where by themselves.
        let outcome = catch_unwind(AssertUnwindSafe(|| runtime.block_on(one(&cluster, seed))));
        match outcome.unwrap_or_else(|_| Err(format!("FIDELITY_SEED={seed}: panicked"))) {
            Ok(counts) => sum.add(&counts),
            Err(report) => {
                println!("{report}");
                sum.schedules += 1;
                sum.missing += usize::from(report.contains(": Missing: "));
                sum.doubled += usize::from(report.contains(": Doubled: "));
                sum.r#false += usize::from(report.contains(": False: "));
                failed.insert(seed);
            }
        }
    }
    (sum, failed)
}

#[test]
fn every_history_is_the_truth_and_folds_into_its_table() {
    let start = Instant::now();
    let (first, last) = match number("FIDELITY_SEED") {
        Some(seed) => (seed, seed),
        None => (1, number("FIDELITY").unwrap_or(FEW)),
    };
    let workers: Vec<_> = (first..(first + SERVERS).min(last + 1))
        .map(|first| std::thread::spawn(move || some(first, last, SERVERS)))
        .collect();
    let (mut sum, mut failed) = (Counts::default(), BTreeSet::new());
    for worker in workers {
        let (counts, seeds) = worker.join().expect("a worker should not panic");
        sum.add(&counts);
        failed.extend(seeds);
    }
    println!(
        "fidelity: {} schedules, {} transactions, {} changes checked ({} existing rows, {} DDL statements, {} values not in \
         the WAL, {} gaps, {} backlogs, {} kills), {} false, {} missing, {} doubled, in {:?}",
        sum.schedules,
        sum.transactions,
        sum.changes,
        sum.existing,
        sum.ddl,
        sum.unavailable,
        sum.gaps,
        sum.backlogs,
        sum.kills,
        sum.r#false,
        sum.missing,
        sum.doubled,
        start.elapsed()
    );
    assert!(failed.is_empty(), "failed: {failed:?}");
}
