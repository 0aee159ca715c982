//! One schedule: what happens next is the seed's choice, until everything that was committed is in the history.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::daemon::{self, Start};
use super::{Shared, Tampered, World, lock};
use crate::config::{Config, Flags};
use crate::environment::Environment;
use crate::fault::Result as Ran;
use crate::lsn::Lsn;
use crate::session::{Ended, Order, Phase};

/// A schedule that needs more steps hangs.
const STEPS_MAX: u64 = 20_000;

#[derive(Default)]
pub(super) struct Counts {
    steps: u64,
    sessions: u64,
    backlogs: u64,
    transactions: u64,
    daemon: u64,
    store: u64,
    forgotten: u64,
    source: u64,
    cuts: u64,
    drains: u64,
    refused: u64,
    simulated: Duration,
    /// Everything that has happened, in short.
    pub(super) trace: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.sessions += other.sessions;
        self.backlogs += other.backlogs;
        self.transactions += other.transactions;
        self.daemon += other.daemon;
        self.store += other.store;
        self.forgotten += other.forgotten;
        self.source += other.source;
        self.cuts += other.cuts;
        self.drains += other.drains;
        self.refused += other.refused;
        self.simulated += other.simulated;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} steps and {} minutes of simulated time; {} transactions in {} sessions and {} backlogs; crashes: {} of the \
             daemon, {} of the target ({} commits forgotten), {} of the source, {} connections cut; {} orderly ends; {} \
             changes by a stranger noticed",
            self.steps,
            self.simulated.as_secs() / 60,
            self.transactions,
            self.sessions,
            self.backlogs,
            self.daemon,
            self.store,
            self.forgotten,
            self.source,
            self.cuts,
            self.drains,
            self.refused
        )
    }
}

/// What this schedule is inclined to: each a chance in 1000 for a step.
struct Inclinations {
    daemon: u32,
    store: u32,
    source: u32,
    cut: u32,
    drain: u32,
    stall: u32,
    deaf: u32,
    flush: u32,
    persist: u32,
    other_wal: u32,
    /// Of 100 steps, so many in which the target does nothing; of 20, so many in which the source asks for an answer.
    idle: u32,
    pings: u32,
    tamper: u32,
    /// A step's simulated time, in milliseconds.
    longest: u64,
    transactions: usize,
    large: usize,
    /// By the source's clock, in microseconds.
    lag: i64,
}

impl Inclinations {
    fn any(rng: &mut Rng) -> Self {
        let mut chance = |often: u32| match rng.u32(..3) {
            0 => 0,
            1 => often / 8,
            _ => often,
        };
        Self {
            daemon: chance(24),
            store: chance(24),
            source: chance(16),
            cut: chance(24),
            drain: chance(10),
            stall: chance(10),
            deaf: chance(10),
            flush: chance(300),
            persist: chance(200),
            other_wal: chance(100),
            idle: [0, 50, 90, 97][rng.usize(..4)],
            pings: [1, 6][rng.usize(..2)],
            tamper: [0, 0, 0, 30][rng.usize(..4)],
            longest: [1, 20, 300, 3000][rng.usize(..4)],
            transactions: rng.usize(5..40),
            large: [8, 30, 80][rng.usize(..3)],
            lag: [0, 200_000][rng.usize(..2)],
        }
    }
}

pub(super) fn config(rng: &mut Rng) -> Config {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    let text = "table = [{ source = \"public.t0\" }]\n[source]\ndsn = \"host=/nowhere dbname=app user=app\"\n";
    let config = CONFIG.get_or_init(|| {
        Config::from_toml(text, &Flags::default(), &Environment::default()).unwrap()
    });
    let mut config = config.clone();
    config.batch.max_rows = [1, 3, 10, 100][rng.usize(..4)];
    config.batch.max_bytes = [100, 1000, 100_000][rng.usize(..3)];
    config.batch.interval = Duration::from_millis([0, 1, 20][rng.usize(..3)]);
    config
}

/// Runs a schedule; what must not be is an error.
pub(super) fn run(seed: u64, tells: bool) -> Result<Counts, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut schedule = Schedule::new(seed, tells);
        let ended = schedule.run().await;
        ended.map(|()| schedule.counts)
    })
}

struct Schedule {
    rng: Rng,
    world: Shared,
    config: Config,
    inclined: Inclinations,
    wal_sender_timeout: Duration,
    daemon: Option<(JoinHandle<Ran<Ended>>, watch::Sender<Order>)>,
    /// It was ordered to end.
    drains: bool,
    down_until: u64,
    calm: bool,
    /// What a stranger did was noticed.
    refused: bool,
    counts: Counts,
    trace: DefaultHasher,
}

impl Schedule {
    fn new(seed: u64, tells: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let begin = Lsn::from_u64(rng.u64(1 << 24..1 << 40));
        let world = World::new(begin, rng.bool(), tells);
        Self {
            world: Shared::new(world.into()),
            config: config(&mut rng),
            inclined: Inclinations::any(&mut rng),
            wal_sender_timeout: Duration::from_secs([0, 1, 5, 60][rng.usize(..4)]),
            daemon: None,
            drains: false,
            down_until: 0,
            calm: false,
            refused: false,
            counts: Counts::default(),
            trace: DefaultHasher::new(),
            rng,
        }
    }

    async fn run(&mut self) -> Result<(), String> {
        let began = tokio::time::Instant::now();
        let rough = self.rng.u64(30..400);
        while self.counts.steps < rough && lock(&self.world).tampered.is_none() {
            self.step().await?;
        }
        self.calm = true;
        lock(&self.world).store.stalled = false;
        lock(&self.world).source.deafen(Duration::ZERO);
        while !self.is_done() {
            self.step().await?;
            if self.counts.steps > STEPS_MAX {
                return Err("everything should have been in the history by now".to_owned());
            }
        }
        if !self.refused {
            self.end_in_order().await?;
        }
        self.counts.simulated = began.elapsed();
        self.counts.trace = self.trace.finish();
        Ok(())
    }

    fn chance(&mut self, of_1000: u32) -> bool {
        !self.calm && self.rng.u32(..1000) < of_1000
    }

    async fn step(&mut self) -> Result<(), String> {
        self.counts.steps += 1;
        self.work();
        self.fail();
        self.pass_time().await;
        lock(&self.world).hear();
        self.look_after_daemon().await?;
        self.check()
    }

    /// Source, network and target go on.
    fn work(&mut self) {
        let (rng, inclined) = (&mut self.rng, &self.inclined);
        let world = &mut *lock(&self.world);
        let time = self.counts.steps as i64 * 1000;
        let all = self.calm || rng.u32(..4) == 0;
        if world.source.log.len() < inclined.transactions && (self.calm || rng.u32(..8) == 0) {
            world.source.commit(rng, time, inclined.large);
            self.counts.transactions += 1;
        }
        if rng.u32(..1000) < inclined.other_wal && !self.calm {
            world.source.write_other(rng);
        }
        match rng.u32(..20) {
            _ if self.calm => world.source.read_on(rng, inclined.lag),
            0..8 => world.source.read_on(rng, inclined.lag),
            n if n < 8 + inclined.pings => world.source.ping(rng),
            _ => {}
        }
        let most = if all { usize::MAX } else { rng.usize(..200) };
        world.source.send(most);
        if rng.u32(..1000) < inclined.persist {
            world.source.persist();
        }
        let commits = rng.usize(..4);
        if rng.u32(..1000) < inclined.flush {
            world.store.flush(commits);
        }
        let idle = !self.calm && rng.u32(..100) < inclined.idle;
        let steps = match (idle, all) {
            (true, _) => 0,
            (_, true) => 4,
            _ => rng.usize(..3),
        };
        for _ in 0..steps {
            let asked = world.store.is_asked();
            if asked > 0 && !world.store.stalled {
                let at = rng.usize(..asked);
                let done = world.store.step(at, &world.source.log);
                world.check(done);
            }
        }
    }

    /// Something fails, perhaps.
    fn fail(&mut self) {
        if self.chance(self.inclined.store) {
            let kept = [0, 0, 1, 2][self.rng.usize(..4)];
            let mut world = lock(&self.world);
            let forgotten = world.store.crash(kept);
            world.tell(|| format!("the target crashes: {forgotten} commits are gone"));
            self.counts.store += 1;
            self.counts.forgotten += forgotten as u64;
        }
        if self.chance(self.inclined.source) {
            self.counts.source += 1;
            let mut world = lock(&self.world);
            world.source.crash();
            world.tell(|| {
                format!(
                    "the source crashes: its slot is at {}",
                    world.source.confirmed
                )
            });
        }
        if self.chance(self.inclined.cut) {
            self.counts.cuts += 1;
            let mut world = lock(&self.world);
            world.source.cut();
            world.tell(|| "the connection to the source is cut".to_owned());
        }
        if self.chance(self.inclined.deaf) {
            let pause = Duration::from_millis(self.rng.u64(1..20_000));
            lock(&self.world).source.deafen(pause);
        }
        if self.chance(self.inclined.stall) {
            let mut world = lock(&self.world);
            world.store.stalled ^= true;
        }
        if self.chance(self.inclined.drain)
            && let Some((_, orders)) = &self.daemon
        {
            self.drains = true;
            orders.send_replace(Order::Drain);
        }
        if self.chance(self.inclined.tamper) {
            self.tamper();
        }
    }

    /// A stranger changes what only waltrail may, or restores something.
    fn tamper(&mut self) {
        let (rng, runs) = (&mut self.rng, self.daemon.is_some());
        let world = &mut *lock(&self.world);
        let now = world.store.now();
        let tampered = match rng.u32(..3) {
            // Also while a session is being opened.
            0 if !runs || world.opening && !world.source.is_streaming() => {
                let (end, most) = (world.source.end, now.checkpoint.max(now.reported));
                if end > most {
                    world.source.move_slot(end);
                }
                (end > most).then_some(Tampered::Slot)
            }
            1 if !runs => {
                let restored = world.store.restore(world.source.confirmed);
                restored.then_some(Tampered::Slot)
            }
            2 if !runs && now.done > 0 => {
                let time = -i64::from(rng.u8(1..));
                world.source.restore(rng, now.checkpoint, time);
                Some(Tampered::Source)
            }
            _ => None,
        };
        world.store.frozen = tampered.is_some();
        world.tampered = tampered;
        world.tell(|| format!("a stranger: {tampered:?}"));
    }

    /// Everything else goes on, for no time or some.
    async fn pass_time(&mut self) {
        if self.rng.bool() {
            for _ in 0..self.rng.u32(..6) {
                tokio::task::yield_now().await;
            }
            return;
        }
        let longest = match self.wal_sender_timeout {
            Duration::ZERO => 500,
            timeout => timeout.as_millis() as u64 / 20,
        };
        let longest = match self.calm {
            true => longest,
            false => longest.min(self.inclined.longest),
        };
        let pause = match self.rng.u32(..4) {
            0 => self.rng.u64(1..=longest),
            1 => longest,
            _ => 1,
        };
        sleep(Duration::from_millis(pause)).await;
    }

    /// Starts a daemon where none runs, kills one, or looks how a session has ended.
    async fn look_after_daemon(&mut self) -> Result<(), String> {
        if self.chance(self.inclined.daemon) {
            self.kill().await;
        }
        let Some((task, _)) = &self.daemon else {
            if self.counts.steps >= self.down_until || self.calm {
                self.start();
            }
            return Ok(());
        };
        if !task.is_finished() {
            return Ok(());
        }
        let Some((task, _)) = self.daemon.take() else {
            return Ok(());
        };
        self.down_until = self.counts.steps + self.rng.u64(..10);
        let ended = task.await.map_err(|error| error.to_string())?;
        lock(&self.world).tell(|| format!("the session ended: {ended:?}"));
        self.abandon();
        match ended {
            Ok(Ended::Drained) if self.drains => self.counts.drains += 1,
            Ok(Ended::CaughtUp { .. }) => self.counts.backlogs += 1,
            Ok(Ended::Abandoned) => {}
            Ok(other) => return Err(format!("a session ended with {other:?}")),
            Err(fault) if fault.may_pass() => {}
            Err(_) if lock(&self.world).tampered.is_some() => {
                self.refused = true;
                self.counts.refused += 1;
            }
            Err(fault) => return Err(format!("a session ended with: {fault:?}")),
        }
        Ok(())
    }

    /// The daemon's connections to the target end. What it had sent may still happen.
    fn abandon(&mut self) {
        let world = &mut *lock(&self.world);
        let rng = &mut self.rng;
        let ended = world.store.abandoned(&world.source.log, || rng.bool());
        world.check(ended);
    }

    async fn kill(&mut self) {
        let Some((task, _)) = self.daemon.take() else {
            return;
        };
        task.abort();
        // The tasks that it has started end with it.
        let _ = task.await;
        tokio::task::yield_now().await;
        self.abandon();
        self.counts.daemon += 1;
        self.down_until = self.counts.steps + self.rng.u64(..10);
        lock(&self.world).tell(|| "the daemon is killed".to_owned());
    }

    fn start(&mut self) {
        let rng = &mut self.rng;
        let (orders, ordered) = watch::channel(Order::Run);
        let phase = match rng.bool() {
            true => Phase::CatchUp,
            false => Phase::Stream,
        };
        let checkpoint = lock(&self.world).store.now().checkpoint;
        let ahead = rng.u64(..100_000);
        let one_by_one = match rng.u32(..5) {
            0 => Lsn::from_u64(checkpoint.as_u64() + ahead),
            _ => Lsn::ZERO,
        };
        let start = Start {
            config: self.config.clone(),
            rng: rng.fork(),
            orders: ordered,
            phase,
            one_by_one,
            wal_sender_timeout: self.wal_sender_timeout,
            socket: [40, 200, 4000, 65_536][rng.usize(..4)],
            gulp: [64, 1000, 16_384][rng.usize(..3)],
        };
        self.drains = false;
        lock(&self.world).opening = true;
        self.counts.sessions += 1;
        let task = tokio::spawn(daemon::run(Shared::clone(&self.world), start));
        self.daemon = Some((task, orders));
    }

    /// What must hold at every moment.
    fn check(&mut self) -> Result<(), String> {
        let world = lock(&self.world);
        let (now, durable) = (world.store.now(), world.store.durable());
        let state = (now.done, now.checkpoint, durable.done, durable.reported);
        (state, world.source.confirmed, self.counts.sessions).hash(&mut self.trace);
        if let Some(violation) = &world.violation {
            return Err(violation.clone());
        }
        let silence = world.source.silence();
        let timeout = match self.wal_sender_timeout {
            Duration::ZERO => Duration::from_secs(11),
            timeout => timeout,
        };
        // Until a session begins, the walsender is that of the one before.
        let listens = self.daemon.is_some() && !world.opening && !self.drains;
        if listens && silence > timeout {
            return Err(format!(
                "I5: no status for {silence:?}, and wal_sender_timeout is {:?}",
                self.wal_sender_timeout
            ));
        }
        Ok(())
    }

    /// Whether everything is in the history.
    fn is_done(&self) -> bool {
        let world = lock(&self.world);
        if world.tampered.is_some() {
            return self.refused;
        }
        let (log, now) = (&world.source.log, world.store.now());
        let missing = log
            .iter()
            .skip(now.done)
            .any(super::log::Transaction::is_ours);
        log.len() == self.inclined.transactions && !missing && world.store.is_durable()
    }

    /// The last daemon is ordered to end, and what it leaves is compared.
    async fn end_in_order(&mut self) -> Result<(), String> {
        let ended = self.counts.drains;
        while self.counts.drains == ended {
            if let Some((_, orders)) = &self.daemon {
                orders.send_replace(Order::Drain);
                self.drains = true;
            }
            self.step().await?;
            if self.counts.steps > STEPS_MAX {
                return Err("the daemon should have ended by now".to_owned());
            }
        }
        let world = lock(&self.world);
        world.store.check_all(&world.source.log)
    }
}
