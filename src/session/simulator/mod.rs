//! Thousands of seeded schedules: production's reader, pipeline, applier, feedback, batches, watch of durability and
//! catching up, between a source and a target that fail in every way that they may.
//!
//! ```text
//!   log --> Source (bytes, cut anywhere) --> Session --> Store (commits that a crash forgets)
//!             ^------------- status updates ----'
//! ```
//!
//! One seed is one schedule: time is tokio's, paused, and every choice is the seed's. After each step the invariants I1 to I5
//! are checked; at the end of each schedule everything is in the history, once, in order.
//!
//! `SIMULATE`: how many schedules; `SIM_SEED`: one of them alone, with what happens in it.

mod daemon;
mod latency;
mod log;
mod schedule;
mod source;
mod store;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastrand::Rng;
use tokio::io::DuplexStream;

use crate::lsn::Lsn;
use schedule::Counts;
use source::{Confirmed, Source};
use store::Store;

type Shared = Arc<Mutex<World>>;

fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

struct World {
    source: Source,
    store: Store,
    /// The first thing that must not be.
    violation: Option<String>,
    /// Where the stream or the backlog that is read begins.
    began: Lsn,
    /// A session is on its way to there.
    opening: bool,
    /// What must be noticed.
    tampered: Option<Tampered>,
    tells: bool,
}

/// What a stranger has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tampered {
    /// Moved the slot past what was confirmed, or restored an older state of the target.
    Slot,
    /// Put an older copy in the source's place.
    Source,
}

impl World {
    fn new(begin: Lsn, skips_empty: bool, tells: bool) -> Self {
        Self {
            source: Source::new(begin, skips_empty),
            store: Store::new(begin),
            violation: None,
            began: begin,
            opening: false,
            tampered: None,
            tells,
        }
    }

    fn check(&mut self, result: Result<(), String>) {
        if let Err(what) = result {
            self.violation.get_or_insert(what);
        }
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if self.tells {
            println!("  {}", what());
        }
    }

    /// What the daemon confirmed is in the history, whatever crashes next (I3).
    fn check_confirmed(&mut self, confirmed: Confirmed) {
        let Confirmed { received, flushed } = confirmed;
        let durable = self.store.durable();
        self.tell(|| format!("confirmed {flushed}, received {received}, durable {durable:?}"));
        let mut before = self.source.log.iter().skip(durable.done);
        let missing = before.find(|tx| tx.is_ours() && tx.commit < flushed);
        let result = if let Some(missing) = missing {
            Err(format!(
                "I3: {flushed} was confirmed, and the transaction at {} is not durable",
                missing.commit
            ))
        } else if flushed > durable.checkpoint.max(durable.reported) {
            Err(format!(
                "I3: {flushed} was confirmed, and only {} and {} are durable",
                durable.checkpoint, durable.reported
            ))
        } else if flushed > received || received > self.source.end {
            Err(format!("I3: {flushed} confirmed, {received} received"))
        } else {
            Ok(())
        };
        if self.tampered.is_none() {
            self.check(result);
        }
    }

    /// The source takes what the daemon has sent.
    fn hear(&mut self) {
        match self.source.hear() {
            Ok(confirmed) => {
                for confirmed in confirmed {
                    self.check_confirmed(confirmed);
                }
            }
            Err(what) => self.check(Err(what)),
        }
    }

    /// A slot has one user: the one before has ended, and may have heard what was sent last.
    fn free_slot(&mut self, rng: &mut Rng) {
        if rng.bool() {
            self.source.deafen(std::time::Duration::ZERO);
            self.hear();
        }
        self.source.cut();
    }

    fn start(&mut self, rng: &mut Rng, asked: Lsn, pipe: DuplexStream) {
        self.free_slot(rng);
        self.began = self.source.start(asked, pipe);
        self.tell(|| format!("the stream begins at {}, asked for {asked}", self.began));
    }

    fn peek(&mut self, rng: &mut Rng, end: Lsn, pipe: DuplexStream) {
        self.free_slot(rng);
        self.began = self.source.confirmed;
        self.source.peek(rng, end, pipe);
        self.tell(|| format!("a backlog from {} to {end}", self.began));
    }

    /// A session goes on: nothing of what it has to read lies before (I4).
    fn begins(&mut self) {
        self.opening = false;
        match self.tampered {
            None => {}
            Some(Tampered::Slot) => {
                let what = "I4: a session begins although the slot is past what was confirmed";
                return self.check(Err(what.to_owned()));
            }
            Some(Tampered::Source) => return,
        }
        let (began, now) = (self.began, self.store.now());
        let mut left = self.source.log.iter().skip(now.done);
        let missed = left.find(|tx| tx.is_ours() && tx.commit < began);
        if let Some(missed) = missed {
            let what = format!(
                "I4: a session reads from {began}, and the transaction at {} is not in the history",
                missed.commit
            );
            self.check(Err(what));
        }
    }
}

/// So many schedules when nothing else is asked for.
const SCHEDULES: u64 = 500;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn no_schedule_loses_or_doubles_or_reorders_a_change() {
    if let Some(seed) = number("SIM_SEED") {
        schedule::run(seed, true).unwrap();
        return;
    }
    let schedules = number("SIMULATE").unwrap_or(SCHEDULES);
    let began = std::time::Instant::now();
    let mut counts = Counts::default();
    for seed in 0..schedules {
        match schedule::run(seed, false) {
            Ok(counted) => counts.add(&counted),
            Err(what) => panic!(
                "schedule {} of {schedules}: {what}\nto see it: SIM_SEED={seed} make simulate",
                seed + 1
            ),
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{schedules} schedules in {seconds:.1} s, {:.0} per second: {counts}",
        schedules as f64 / seconds
    );
}

#[test]
fn one_seed_is_one_schedule() {
    for seed in 0..20 {
        let (one, other) = (schedule::run(seed, false), schedule::run(seed, false));
        assert_eq!(one.unwrap().trace, other.unwrap().trace, "seed {seed}");
    }
}
