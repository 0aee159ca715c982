//! Faults on schedule: real servers, clients at work, and in each schedule one to four faults of the network, of the daemon,
//! of a server, of a disk or of memory. After each the history is what triggers saw, in order; meanwhile the slot is never
//! past what the target has, and the daemon says nothing that the fault does not announce.
//!
//! `make chaos` runs 200 schedules (`CHAOS`). A seed that fails is printed; `CHAOS_SEED=17 make chaos` runs it alone, and
//! `target/chaos/17` keeps what it did and what the daemons wrote.

mod commits;
mod kind;
mod login;
mod machine;
mod network;
mod rig;
mod sampler;
mod schedule;
mod strike;
mod verdict;
mod words;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::small_disk::{Mounts, mounts};
use kind::{KINDS, Kind};
use rig::Rig;
use schedule::{Report, Schedule};
use verdict::Counts;

/// Without `CHAOS`, these seeds: an answer lost, a kill, a take-over, a target's machine that goes down.
const FEW: [u64; 4] = [4, 10, 13, 20];

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

/// What the schedules of one kind came to.
#[derive(Default)]
struct Row {
    schedules: usize,
    counts: Counts,
    slowest: Duration,
}

#[derive(Default)]
struct Sum {
    rows: BTreeMap<Kind, Row>,
    counts: Counts,
    schedules: usize,
    samples: usize,
    failed: Vec<u64>,
}

impl Sum {
    fn note(&mut self, kinds: &[Kind], report: &Report) {
        let mut kinds = kinds.to_vec();
        kinds.sort();
        kinds.dedup();
        for kind in kinds {
            let row = self.rows.entry(kind).or_default();
            row.schedules += 1;
            row.counts.add(&report.counts);
            row.slowest = row.slowest.max(report.recovery);
        }
        self.counts.add(&report.counts);
        self.schedules += 1;
        self.samples += report.samples;
    }

    fn add(&mut self, other: Self) {
        for (kind, row) in other.rows {
            let into = self.rows.entry(kind).or_default();
            into.schedules += row.schedules;
            into.counts.add(&row.counts);
            into.slowest = into.slowest.max(row.slowest);
        }
        self.counts.add(&other.counts);
        self.schedules += other.schedules;
        self.samples += other.samples;
        self.failed.extend(other.failed);
    }

    fn print(&self) {
        println!(
            "| fault | schedules | changes checked | lost / doubled / reordered | back within |"
        );
        println!("| --- | --- | --- | --- | --- |");
        for kind in KINDS {
            let Some(row) = self.rows.get(&kind) else {
                println!("| {} | 0 | | | |", kind.name());
                continue;
            };
            let counts = &row.counts;
            println!(
                "| {} | {} | {} | {} / {} / {} | {:.1} s |",
                kind.name(),
                row.schedules,
                counts.checked,
                counts.lost,
                counts.doubled,
                counts.reordered,
                row.slowest.as_secs_f64()
            );
        }
    }
}

/// One schedule. Prints what was done when something is wrong.
async fn one(rig: &mut Rig, seed: u64, sum: &mut Sum) {
    let start = Instant::now();
    let (mut schedule, load) = Schedule::begin(rig, seed).await;
    let mut report = schedule.run(load).await;
    sum.note(&schedule.draw.kinds, &report);
    if !report.wrong.is_empty() {
        let folder = schedule.keep(seed, &report.wrong);
        println!(
            "{}\n{}kept in {}\nCHAOS_SEED={seed} make chaos\n",
            schedule.log.join("\n"),
            std::mem::take(&mut report.wrong),
            folder.display()
        );
        sum.failed.push(seed);
    }
    println!("seed {seed}: {:?}, {:?}", schedule.draw, start.elapsed());
    if number("CHAOS_SEED").is_some() {
        println!("{}", schedule.log.join("\n"));
    }
    schedule.end().await;
}

/// Runs seeds until there are no more.
fn some(next: &AtomicUsize, seeds: &[u64], may_mount: bool) -> Sum {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut rig = runtime.block_on(Rig::new(may_mount));
    let mut sum = Sum::default();
    while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
        // Panics say where by themselves.
        let run = || runtime.block_on(one(&mut rig, seed, &mut sum));
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            println!("panicked\nCHAOS_SEED={seed} make chaos\n");
            sum.failed.push(seed);
        }
    }
    sum
}

#[test]
fn no_schedule_of_faults_loses_doubles_or_reorders_a_change() {
    let may_mount = match mounts("chaos::no_schedule_of_faults_loses_doubles_or_reorders_a_change")
    {
        Mounts::Elsewhere => return,
        mounts => mounts == Mounts::Here,
    };
    let start = Instant::now();
    let seeds: Vec<u64> = match (number("CHAOS_SEED"), number("CHAOS")) {
        (Some(seed), _) => vec![seed],
        (None, Some(last)) => (1..=last).collect(),
        (None, None) => FEW.to_vec(),
    };
    let workers = number("CHAOS_WORKERS").unwrap_or(4).min(seeds.len() as u64);
    let next = AtomicUsize::new(0);
    let mut sum = Sum::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers)
            .map(|_| scope.spawn(|| some(&next, &seeds, may_mount)))
            .collect();
        for worker in workers {
            sum.add(worker.join().expect("a worker should not panic"));
        }
    });
    sum.print();
    println!(
        "chaos: {} schedules, {} changes checked, {} samples of the slot, {} lost, {} doubled, {} reordered, {} other, in {:?}",
        sum.schedules,
        sum.counts.checked,
        sum.samples,
        sum.counts.lost,
        sum.counts.doubled,
        sum.counts.reordered,
        sum.counts.other,
        start.elapsed()
    );
    assert!(sum.failed.is_empty(), "failed: {:?}", sum.failed);
}

#[test]
fn the_page_of_guarantees_has_a_row_for_every_fault_and_only_zeros() {
    let page = include_str!("../../../docs/why/guarantees.md");
    let table = page.split_once("<!-- checked: faults -->\n").unwrap().1;
    let rows: Vec<&str> = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    assert_eq!(rows.len(), KINDS.len());
    for (row, kind) in rows.into_iter().zip(KINDS) {
        assert!(row.starts_with(&format!("| {} |", kind.name())), "{row}");
        assert!(row.ends_with("| 0 / 0 / 0 |"), "{row}");
    }
}
