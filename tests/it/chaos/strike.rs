//! How each fault is made, and how it ends.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use throwaway::StopMode;
use tokio_postgres::Client;

use super::kind::Kind;
use super::machine;
use super::network::{End, Network, State, Trap};
use super::sampler::{confirmed_query, known_query, position};
use super::schedule::{Mode, Schedule};
use super::words::OUT_OF_MEMORY;
use crate::support::small_disk::fill;
use crate::support::value;

/// A trap that has not sprung by then never will.
const TRAP_MAX: Duration = Duration::from_secs(4);
/// Positions are confirmed once a second.
const CONFIRMATION_MAX: Duration = Duration::from_secs(2);
/// What holds up the stop of a server for longer is a fault of ours.
const STOP_MAX: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Source,
    Target,
}

impl Schedule<'_> {
    /// Makes one fault, and ends it.
    pub async fn strike(&mut self, kind: Kind) -> Result<(), String> {
        match kind {
            Kind::CutAtByte | Kind::CutBeforeCommit | Kind::CutAfterCommit | Kind::AnswerLost => {
                self.cut(kind).await
            }
            Kind::HalfOpen | Kind::BlackHole | Kind::BlackHoleRst | Kind::Stall | Kind::Drip => {
                self.disturb_network(kind).await;
            }
            Kind::Kill => {
                self.daemon().kill9();
                self.moment(300).await;
                self.spawn();
            }
            Kind::Freeze => {
                self.daemon().signal(Signal::SIGSTOP);
                self.moment(3_000).await;
                self.daemon().signal(Signal::SIGCONT);
            }
            Kind::Restart => {
                self.stop().await?;
                self.spawn();
            }
            Kind::TakeOver => self.take_over().await,
            Kind::SourceFast => self.stop_server(Side::Source, Stop::Fast).await?,
            Kind::SourceSmart => self.stop_server(Side::Source, Stop::Smart).await?,
            Kind::SourceCrash => self.stop_server(Side::Source, Stop::Crash).await?,
            Kind::TargetFast => self.stop_server(Side::Target, Stop::Fast).await?,
            Kind::TargetSmart => self.stop_server(Side::Target, Stop::Smart).await?,
            Kind::TargetCrash => self.stop_server(Side::Target, Stop::Crash).await?,
            Kind::TargetMachine => self.crash_machine().await?,
            Kind::Terminate => self.ask_backend("pg_terminate_backend").await,
            Kind::Cancel => self.ask_backend("pg_cancel_backend").await,
            Kind::FreezeBackend => {
                if let Some(pid) = self.backend().await {
                    let _ = kill(pid, Signal::SIGSTOP);
                    self.moment(2_500).await;
                    let _ = kill(pid, Signal::SIGCONT);
                }
            }
            Kind::TargetDisk | Kind::SourceDisk => self.fill_disk(kind).await,
            Kind::Memory => self.starve().await?,
            Kind::BackendMemory => self.starve_backend().await,
            Kind::Clock => {
                let seconds = self.rng.i64(-10_000_000..10_000_000);
                self.set_clock_off(seconds);
                self.moment(2_000).await;
                self.set_clock_off(0);
            }
        }
        Ok(())
    }

    fn side(&mut self) -> Side {
        [Side::Source, Side::Target][self.rng.usize(..2)]
    }

    fn network(&self, side: Side) -> &Network {
        match (side, &self.to_target) {
            (Side::Target, Some(network)) => network,
            _ => &self.to_source,
        }
    }

    fn end_of_connection(&mut self) -> End {
        [End::Fin, End::Rst][self.rng.usize(..2)]
    }

    async fn cut(&mut self, kind: Kind) {
        let end = self.end_of_connection();
        let (side, trap) = match kind {
            Kind::CutBeforeCommit => (Side::Target, Trap::BeforeCommit(end)),
            Kind::CutAfterCommit => (Side::Target, Trap::AfterCommit(end)),
            Kind::AnswerLost => (Side::Target, Trap::AnswerLost(end)),
            _ => {
                let (side, to_server) = (self.side(), self.rng.bool());
                let left = self.rng.usize(..8_000);
                let bytes = Trap::Bytes {
                    to_server,
                    left,
                    end,
                };
                (side, bytes)
            }
        };
        self.note(&format!("{side:?} {trap:?}"));
        let network = self.network(side);
        let before = network.sprung();
        network.lay(Some(trap));
        let start = Instant::now();
        while self.network(side).sprung() == before && start.elapsed() < TRAP_MAX {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.network(side).lay(None);
        if self.network(side).sprung() > before {
            self.note("sprung");
        }
    }

    async fn disturb_network(&mut self, kind: Kind) {
        let (side, end) = (self.side(), self.end_of_connection());
        let (state, longest) = match kind {
            Kind::HalfOpen => {
                let to_server = self.rng.bool();
                (State::HalfClosed { to_server }, 1_500)
            }
            Kind::Stall => (State::Stall, 3_000),
            Kind::Drip => (State::Drip(self.rng.usize(200..20_000)), 3_000),
            _ => (State::BlackHole, 2_000),
        };
        self.note(&format!("{side:?} {state:?}"));
        self.network(side).set(state);
        self.moment(longest).await;
        let network = self.network(side);
        match kind {
            Kind::HalfOpen => network.cut(end),
            Kind::BlackHoleRst => network.cut(End::Rst),
            Kind::BlackHole => network.servers_give_up(),
            _ => {}
        }
        network.set(State::Forward);
    }

    /// A second instance waits; the first one is killed, perhaps after it has stood still.
    async fn take_over(&mut self) {
        let second = self.another();
        self.moment(1_500).await;
        if self.rng.bool() {
            self.daemon().signal(Signal::SIGSTOP);
            self.moment(1_000).await;
        }
        // Kills the first.
        self.replace(second);
    }

    async fn stop_server(&mut self, side: Side, how: Stop) -> Result<(), String> {
        let two = self.draw.mode == Mode::TwoClusters;
        if how == Stop::Crash && self.rng.u8(..3) > 0 {
            self.confirmation().await;
        }
        // While it stands still it can neither confirm nor write, so that the two positions are comparable.
        let compares = how == Stop::Crash && self.rng.bool();
        let (smart, rest) = (self.rng.u64(..2_000), self.rng.u64(..1_000));
        let server = match side {
            Side::Target if two => &mut self.rig.target,
            _ => &mut self.rig.source,
        };
        let start = Instant::now();
        if how == Stop::Smart {
            // Sessions of the load do not end by themselves: then it is stopped faster, as an operator would.
            let pid = server.pid().unwrap();
            kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).unwrap();
            tokio::time::sleep(Duration::from_millis(smart)).await;
        }
        let mode = match how {
            Stop::Fast | Stop::Smart => StopMode::Fast,
            Stop::Crash => StopMode::Immediate,
        };
        server.stop(mode).map_err(|error| error.to_string())?;
        if start.elapsed() > STOP_MAX {
            return Err(format!("{side:?} was held up for {:?}", start.elapsed()));
        }
        tokio::time::sleep(Duration::from_millis(rest)).await;
        if compares {
            self.daemon().signal(Signal::SIGSTOP);
        }
        let server = match side {
            Side::Target if two => &mut self.rig.target,
            _ => &mut self.rig.source,
        };
        server.start_again().map_err(|error| error.to_string())?;
        let compared = match compares {
            true => self.compare().await,
            false => Ok(()),
        };
        self.daemon().signal(Signal::SIGCONT);
        compared
    }

    /// The target's machine goes down with all that it had not flushed, at a moment when the daemon stands still.
    async fn crash_machine(&mut self) -> Result<(), String> {
        if self.rng.u8(..3) > 0 {
            self.confirmation().await;
        }
        self.daemon().signal(Signal::SIGSTOP);
        let client = self.target().await;
        let lost = machine::crash(&mut self.rig.target, &client).await?;
        self.note(&lost);
        let started = self.rig.target.start_again();
        started.map_err(|error| error.to_string())?;
        let compared = self.compare().await;
        self.daemon().signal(Signal::SIGCONT);
        compared
    }

    /// Waits until the slot moves: what was just confirmed must survive what comes now.
    async fn confirmation(&mut self) {
        let source = self.source().await;
        let query = confirmed_query(&self.name);
        let before = position(&source, &query).await.ok().flatten();
        let start = Instant::now();
        while start.elapsed() < CONFIRMATION_MAX {
            let now = position(&source, &query).await.ok().flatten();
            if now > before {
                self.note(&format!("confirmed {now:?}"));
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// After a crash, what was confirmed is there.
    async fn compare(&mut self) -> Result<(), String> {
        let (source, target) = (self.source().await, self.target().await);
        let confirmed = position(&source, &confirmed_query(&self.name)).await;
        let known = position(&target, &known_query(&self.name)).await;
        self.note(&format!("slot {confirmed:?}, target {known:?}"));
        match (confirmed, known) {
            (Ok(Some(confirmed)), Ok(Some(known))) if confirmed > known => Err(format!(
                "after a crash the slot is at {confirmed}, the target at {known}"
            )),
            _ => Ok(()),
        }
    }

    /// A backend of ours, on either side. Waits a moment for one.
    async fn backend(&mut self) -> Option<Pid> {
        let side = self.side();
        let client = self.admin(side).await;
        let start = Instant::now();
        let all = format!(
            "SELECT pid, concat(backend_type, ', ', state) FROM pg_stat_activity
             WHERE application_name = 'waltrail' AND datname = '{}' ORDER BY pid",
            self.name
        );
        while start.elapsed() < Duration::from_secs(1) {
            let rows = client.query(&all, &[]).await.unwrap_or_default();
            if !rows.is_empty() {
                let row = &rows[self.rng.usize(..rows.len())];
                let (pid, what): (i32, String) = (row.get(0), row.get(1));
                self.note(&format!("{side:?} {what}"));
                return Some(Pid::from_raw(pid));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        None
    }

    async fn admin(&self, side: Side) -> Client {
        match side {
            Side::Source => self.source().await,
            Side::Target => self.target().await,
        }
    }

    async fn ask_backend(&mut self, function: &str) {
        let Some(pid) = self.backend().await else {
            return;
        };
        for side in [Side::Source, Side::Target] {
            // The process belongs to one of the two servers.
            let ask = format!(
                "SELECT coalesce(bool_or({function}(pid)), false) FROM pg_stat_activity WHERE pid = {pid}"
            );
            let _: bool = value(&self.admin(side).await, &ask).await;
        }
    }

    async fn fill_disk(&mut self, kind: Kind) {
        let two = self.draw.mode == Mode::TwoClusters;
        let Some(disks) = &self.rig.disks else {
            return;
        };
        let filler = match kind {
            Kind::SourceDisk => disks.slots.clone(),
            _ => disks.histories[usize::from(two)].clone(),
        };
        fill(&filler);
        self.moment(2_500).await;
        std::fs::remove_file(&filler).unwrap();
    }

    /// No memory is left for the daemon: it goes on with what it has, or it ends and is started again.
    async fn starve(&mut self) -> Result<(), String> {
        // Without a thread for its log, a daemon ends as it begins.
        self.begun().await;
        let pid = self.daemon().pid();
        let some = self.rng.u64(..400_000);
        limit_memory(pid, some);
        self.moment(2_000).await;
        if self.daemon().is_running() {
            lift_limit(pid);
            return Ok(());
        }
        let (status, output) = self.daemon().wait(Duration::ZERO).await;
        self.note(&format!("ended with {status}"));
        if !output.contains(OUT_OF_MEMORY) {
            return Err(format!("without memory it ended with {status}"));
        }
        self.spawn();
        Ok(())
    }

    async fn starve_backend(&mut self) {
        let Some(pid) = self.backend().await else {
            return;
        };
        let (pid, some) = (pid.as_raw().cast_unsigned(), self.rng.u64(..100_000));
        limit_memory(pid, some);
        self.moment(2_000).await;
        lift_limit(pid);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Fast,
    Smart,
    Crash,
}

/// Leaves a process what it has, and `some` bytes.
fn limit_memory(pid: u32, some: u64) {
    let pages = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("statm"));
    let pages = pages.unwrap_or_default();
    let Some(pages) = pages
        .split(' ')
        .next()
        .and_then(|word| word.parse::<u64>().ok())
    else {
        return;
    };
    prlimit(pid, &(pages * 4096 + some).to_string());
}

fn lift_limit(pid: u32) {
    prlimit(pid, "unlimited");
}

fn prlimit(pid: u32, bytes: &str) {
    // Only the limit that counts, so that it can be lifted again. The process may be gone.
    let _ = Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &format!("--as={bytes}:")])
        .stderr(std::process::Stdio::null())
        .status();
}
