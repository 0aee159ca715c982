//! CPU time by kind of process, as the kernel counts it.
//!
//! Every child of either postmaster and the daemon are read at both ends of a window. `pg_stat_activity` says what each
//! child is; the benchmark's own sessions are left out. A child that ended in between is part of what the postmaster
//! has reaped, and counts as another server process.

use std::collections::HashMap;
use std::time::Instant;

use anyhow::{Context, Result};
use postgres::Client;
use procfs::process::{Process, Stat, all_processes};

use crate::server::{APPLICATION, BENCHMARK};

/// What a process is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Serves the application, its triggers included.
    Application,
    /// Decodes and sends WAL.
    Walsender,
    /// Another backend of the contender, in either server: the daemon's, or the subscription's worker.
    Backend,
    /// The daemon.
    Daemon,
    /// Writes WAL, in either server.
    Walwriter,
    /// Everything else of both servers.
    Other,
}

impl Kind {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 6] = [
        Self::Application,
        Self::Walsender,
        Self::Backend,
        Self::Daemon,
        Self::Walwriter,
        Self::Other,
    ];
}

/// CPU seconds of each kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu([f64; Kind::ALL.len()]);

impl Cpu {
    /// Of one kind.
    #[must_use]
    pub fn of(&self, kind: Kind) -> f64 {
        self.0[kind as usize]
    }

    /// Of all.
    #[must_use]
    pub fn all(&self) -> f64 {
        self.0.iter().sum()
    }
}

/// Knows which processes count.
pub(super) struct Observer<'a> {
    /// A session on each server, and its postmaster.
    pub servers: Vec<(u32, &'a mut Client)>,
    /// The daemon, if there is one.
    pub daemon: Option<u32>,
}

/// What the kernel said at one moment.
pub(super) struct Reading {
    /// When.
    pub at: Instant,
    processes: HashMap<i32, Ran>,
    /// What the postmasters have reaped, in ticks.
    reaped: u64,
}

/// How long one process ran.
struct Ran {
    /// In ticks, threads that ended included.
    ticks: u64,
    /// Each thread in nanoseconds, where the kernel has statistics of its scheduler.
    threads: HashMap<i32, u64>,
}

/// What a server says of its processes; `None` for the benchmark's own.
pub(super) type Names = HashMap<i32, Option<Kind>>;

impl Observer<'_> {
    /// Asks the servers what their processes are. Before the first reading and after the last.
    pub fn names(&mut self, names: &mut Names) -> Result<()> {
        for (_, client) in &mut self.servers {
            let ask = "SELECT pid, backend_type, application_name FROM pg_stat_activity";
            for row in client.query(ask, &[])? {
                let (kind, application): (Option<String>, String) = (row.get(1), row.get(2));
                let kind = match (kind.as_deref().unwrap_or_default(), application.as_str()) {
                    ("walsender", _) => Some(Kind::Walsender),
                    ("walwriter", _) => Some(Kind::Walwriter),
                    ("client backend", APPLICATION) => Some(Kind::Application),
                    ("client backend", BENCHMARK) => None,
                    ("client backend", _) => Some(Kind::Backend),
                    ("logical replication worker" | "logical replication apply worker", _) => {
                        Some(Kind::Backend)
                    }
                    _ => Some(Kind::Other),
                };
                names.insert(row.get(0), kind);
            }
        }
        Ok(())
    }

    /// Reads all processes.
    pub fn read(&self) -> Result<Reading> {
        let is_postmaster = |pid: i32| {
            self.servers
                .iter()
                .any(|(server, _)| *server == pid.cast_unsigned())
        };
        let is_daemon = |pid: i32| self.daemon == Some(pid.cast_unsigned());
        let at = Instant::now();
        let mut reading = Reading {
            at,
            processes: HashMap::new(),
            reaped: 0,
        };
        for process in all_processes()?.flatten() {
            // A process may end meanwhile.
            let Ok(stat) = process.stat() else { continue };
            let pid = stat.pid;
            if is_postmaster(pid) {
                reading.reaped += (stat.cutime + stat.cstime).cast_unsigned();
            } else if !is_postmaster(stat.ppid) && !is_daemon(pid) {
                continue;
            }
            reading.processes.insert(pid, Ran::of(&process, &stat));
        }
        if let Some(daemon) = self.daemon {
            let found = reading.processes.contains_key(&daemon.cast_signed());
            found.then_some(()).context("the daemon is gone")?;
        }
        Ok(reading)
    }

    /// What was taken between two readings.
    pub fn between(&self, start: &Reading, end: &Reading, names: &Names) -> Cpu {
        let mut cpu = Cpu::default();
        for (&pid, ran) in &end.processes {
            let kind = match self.daemon == Some(pid.cast_unsigned()) {
                true => Some(Kind::Daemon),
                false => names.get(&pid).copied().unwrap_or(Some(Kind::Other)),
            };
            if let Some(kind) = kind {
                cpu.0[kind as usize] += ran.since(start.processes.get(&pid));
            }
        }
        let gone = |(pid, ran): (&i32, &Ran)| {
            let there = end.processes.contains_key(pid);
            if there { 0 } else { ran.ticks }
        };
        let known: u64 = start.processes.iter().map(gone).sum();
        let reaped = (end.reaped - start.reaped).saturating_sub(known);
        cpu.0[Kind::Other as usize] += seconds_of(reaped);
        cpu
    }
}

impl Ran {
    fn of(process: &Process, stat: &Stat) -> Self {
        let threads = process.tasks().into_iter().flatten().flatten();
        Self {
            ticks: stat.utime + stat.stime,
            threads: threads
                .filter_map(|thread| {
                    let ran = thread.schedstat().ok()?.sum_exec_runtime;
                    Some((thread.tid, ran))
                })
                .collect(),
        }
    }

    /// Seconds since an earlier reading of the same process, or of its life.
    fn since(&self, earlier: Option<&Self>) -> f64 {
        let none = HashMap::new();
        let threads = earlier.map_or(&none, |earlier| &earlier.threads);
        let ended = threads
            .keys()
            .any(|thread| !self.threads.contains_key(thread));
        let ran: u64 = self.threads.values().sum();
        // What a thread did that has ended is only in the ticks.
        if ended || ran == 0 {
            let ticks = earlier.map_or(0, |earlier| earlier.ticks);
            return seconds_of(self.ticks.saturating_sub(ticks));
        }
        ran.saturating_sub(threads.values().sum()) as f64 / 1e9
    }
}

fn seconds_of(ticks: u64) -> f64 {
    ticks as f64 / procfs::ticks_per_second() as f64
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::Ran;

    fn ran(ticks: u64, threads: &[(i32, u64)]) -> Ran {
        Ran {
            ticks,
            threads: threads.iter().copied().collect::<HashMap<_, _>>(),
        }
    }

    #[test]
    fn threads_count_in_nanoseconds_and_in_ticks_once_one_has_ended() {
        let start = ran(10, &[(1, 100_000_000), (2, 7_000_000)]);
        let later = ran(20, &[(1, 150_000_000), (2, 8_000_000), (3, 4_000_000)]);
        assert!((later.since(Some(&start)) - 0.055).abs() < 1e-9);
        assert!((later.since(None) - 0.162).abs() < 1e-9);
        let ended = ran(20, &[(1, 150_000_000)]);
        let hundredths = 10.0 / procfs::ticks_per_second() as f64;
        assert!((ended.since(Some(&start)) - hundredths).abs() < 1e-9);
    }
}
