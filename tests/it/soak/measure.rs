//! What is measured of a daemon and of the server that it writes to, and how much of it may grow.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use throwaway::Cluster;
use tokio_postgres::Client;

use crate::support::{BOUND, connect, value, wait_until};

/// How much a figure may grow between the start and the end.
#[derive(Clone, Copy, PartialEq)]
enum Limit {
    /// It is shown, no more.
    Shown,
    /// So much an hour, and so much in a shorter run, too.
    Growth(f64),
    /// The same, between half time and the end: sessions that begin anew make a new start.
    SinceHalf(f64),
    /// At most so much an hour, of what is counted from the beginning.
    Rate(f64),
}
use Limit::{Growth, Rate, Shown, SinceHalf};

struct Measure {
    name: &'static str,
    loaded: Limit,
    idle: Limit,
}

const fn measure(name: &'static str, loaded: Limit, idle: Limit) -> Measure {
    Measure { name, loaded, idle }
}

const COUNT: usize = 18;
/// In the order in which [`Watched::sample`] reads them.
const MEASURES: [Measure; COUNT] = [
    measure("memory (RSS), KiB", Growth(2048.0), Growth(512.0)),
    measure("memory's peak (HWM), KiB", Shown, Growth(512.0)),
    measure("file descriptors", Growth(0.0), Growth(0.0)),
    // One more works now and then, and stays for ten seconds.
    measure("threads", Growth(1.0), Growth(1.0)),
    // Less than two thousandths of a core, in a build for development on a machine at work: a release build takes half as much.
    measure("CPU, ms", Shown, Rate(7200.0)),
    measure("context switches", Shown, Shown),
    measure("sessions", Growth(0.0), Growth(0.0)),
    measure("locks of idle sessions", Growth(0.0), Growth(0.0)),
    measure(
        "sessions' memory (RssAnon), KiB",
        SinceHalf(2048.0),
        Growth(512.0),
    ),
    // A vacuum makes two maps of 32 KiB in all; another session's snapshot, some pages.
    measure("waltrail.checkpoint, KiB", Growth(128.0), Growth(0.0)),
    measure("waltrail.barrier, KiB", Growth(128.0), Growth(0.0)),
    measure("waltrail.watched, KiB", Growth(128.0), Growth(0.0)),
    measure("waltrail.held, KiB", Shown, Growth(0.0)),
    measure("other control tables, KiB", Shown, Growth(0.0)),
    measure("dead control rows", Shown, Shown),
    measure("control rows updated", Shown, Shown),
    measure("of them not HOT", Shown, Shown),
    measure("spilled to files, KiB", Growth(0.0), Growth(0.0)),
];
/// What may come together by chance, in a short run above all.
const RATE_NOISE: f64 = 100.0;
const UPDATED: usize = 15;
const NOT_HOT: usize = 16;
/// Of a thousand updates of the control schema.
const NOT_HOT_MAX: f64 = 10.0;

/// Memory contexts that sessions may have more at the end: catalog entries come and go by dozens. A prepared statement is one or two,
/// and one a batch would be hundreds.
const CONTEXTS_MAX: usize = 64;

const SIZES: &str = "SELECT c.relname::text, pg_total_relation_size(c.oid) FROM pg_class c
    WHERE c.relnamespace = 'waltrail'::regnamespace AND c.relkind = 'r'";
const SESSIONS: &str = "SELECT pid FROM pg_stat_activity
    WHERE application_name = 'waltrail' AND backend_type IN ('client backend', 'walsender')";
/// Locks that a session keeps while it waits for its client.
const LOCKS: &str = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE a.application_name = 'waltrail' AND a.state = 'idle'";
const ROWS: &str =
    "SELECT coalesce(sum(n_dead_tup), 0)::bigint, coalesce(sum(n_tup_upd), 0)::bigint,
        coalesce(sum(n_tup_upd - n_tup_hot_upd), 0)::bigint
    FROM pg_stat_user_tables WHERE schemaname = 'waltrail'";
const SPILLED: &str = "SELECT ((SELECT sum(temp_bytes) FROM pg_stat_database)
    + (SELECT coalesce(sum(spill_bytes), 0) FROM pg_stat_replication_slots))::bigint";

type Sample = [f64; COUNT];

/// The sum over a process's sessions of what PostgreSQL itself says of their memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Contexts {
    /// Each prepared statement has one or more.
    pub contexts: usize,
    pub bytes: u64,
}

/// One daemon and its server.
pub struct Watched {
    name: &'static str,
    is_loaded: bool,
    pid: u32,
    client: Client,
    samples: Vec<(Instant, Sample)>,
    /// How many samples precede the start, and half time.
    start: usize,
    half: usize,
    contexts: Vec<Contexts>,
}

impl Watched {
    pub async fn new(name: &'static str, is_loaded: bool, pid: u32, cluster: &Cluster) -> Self {
        Self {
            name,
            is_loaded,
            pid,
            client: connect(&cluster.dsn_socket("postgres")).await,
            samples: Vec::new(),
            start: 0,
            half: 0,
            contexts: Vec::new(),
        }
    }

    /// What comes before was warming up.
    pub async fn starts(&mut self, cluster: &Cluster) {
        self.start = self.samples.len();
        self.contexts.push(self.contexts(cluster).await);
    }

    pub async fn is_at_half_time(&mut self, cluster: &Cluster) {
        self.half = self.samples.len();
        self.contexts.push(self.contexts(cluster).await);
    }

    pub async fn sample(&mut self) {
        let mut sample = [0.0; COUNT];
        let [rss, peak, threads] = fields(self.pid, ["VmRSS:", "VmHWM:", "Threads:"]);
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap();
        sample[0] = rss;
        sample[1] = peak;
        sample[2] = descriptors.count() as f64;
        sample[3] = threads;
        sample[4] = cpu_ms(self.pid);
        sample[5] = switches(self.pid);
        let sessions = self.client.query(SESSIONS, &[]).await.unwrap();
        sample[6] = sessions.len() as f64;
        sample[7] = value::<i64>(&self.client, LOCKS).await as f64;
        for session in &sessions {
            // A session may have ended meanwhile.
            sample[8] += fields(session.get::<_, i32>(0).cast_unsigned(), ["RssAnon:"])[0];
        }
        for row in self.client.query(SIZES, &[]).await.unwrap() {
            let at = match row.get(0) {
                "checkpoint" => 9,
                "barrier" => 10,
                "watched" => 11,
                "held" => 12,
                _ => 13,
            };
            sample[at] += row.get::<_, i64>(1) as f64 / 1024.0;
        }
        let rows = self.client.query_one(ROWS, &[]).await.unwrap();
        for (offset, at) in [14, UPDATED, NOT_HOT].into_iter().enumerate() {
            sample[at] = rows.get::<_, i64>(offset) as f64;
        }
        sample[17] = value::<i64>(&self.client, SPILLED).await as f64 / 1024.0;
        self.samples.push((Instant::now(), sample));
    }

    /// One line: the figures that matter most, as they are.
    pub fn line(&self) -> String {
        let Some((_, now)) = self.samples.last() else {
            return String::new();
        };
        format!(
            "{}: {:.1} MiB, {} descriptors, {} sessions of {:.1} MiB, control schema {:.0} KiB, CPU {:.1} s",
            self.name,
            now[0] / 1024.0,
            now[2],
            now[6],
            now[8] / 1024.0,
            now[9..=13].iter().sum::<f64>(),
            now[4] / 1000.0,
        )
    }

    /// The table, and what has grown by more than its limit.
    pub async fn end(mut self, cluster: &Cluster) -> (String, Vec<String>) {
        self.contexts.push(self.contexts(cluster).await);
        let measured = &self.samples[self.start..];
        let half = &self.samples[self.half..];
        let hours = (measured[measured.len() - 1].0 - measured[0].0).as_secs_f64() / 3600.0;
        let mut table = format!(
            "\n{:<34}{:>12}{:>12}{:>12}{:>14}\n",
            self.name, "start", "half time", "end", "slope/hour"
        );
        let mut failed = Vec::new();
        for (at, measure) in MEASURES.iter().enumerate() {
            let limit = if self.is_loaded {
                measure.loaded
            } else {
                measure.idle
            };
            let (first, middle, last) = (early(measured, at), early(half, at), late(measured, at));
            let slope = slope(
                if matches!(limit, SinceHalf(_)) {
                    half
                } else {
                    measured
                },
                at,
            );
            let _ = writeln!(
                table,
                "{:<34}{first:>12.0}{middle:>12.0}{last:>12.0}{slope:>14.1}",
                measure.name
            );
            let (grown, allowed) = match limit {
                Shown => continue,
                Growth(allowed) => (last - first, allowed * hours.max(1.0)),
                SinceHalf(allowed) => (last - middle, allowed * hours.max(1.0)),
                Rate(allowed) => (last - first, allowed * hours + RATE_NOISE),
            };
            if grown > allowed {
                failed.push(format!(
                    "{}: {} grew by {grown:.0}, more than {allowed:.0}",
                    self.name, measure.name
                ));
            }
        }
        let [updated, not_hot] =
            [UPDATED, NOT_HOT].map(|at| late(measured, at) - early(measured, at));
        if self.is_loaded && not_hot * 1000.0 > NOT_HOT_MAX * updated {
            failed.push(format!("{not_hot} of {updated} updates were not HOT"));
        }
        let _ = writeln!(table, "memory contexts of sessions: {:?}", self.contexts);
        let before = self.contexts[usize::from(self.is_loaded)].contexts;
        let after = self.contexts[self.contexts.len() - 1].contexts;
        if after > before + CONTEXTS_MAX {
            failed.push(format!(
                "sessions keep {after} memory contexts instead of {before}"
            ));
        }
        (table, failed)
    }

    /// Prepared statements can be seen by their own session only; what memory they take, in the server's log.
    async fn contexts(&self, cluster: &Cluster) -> Contexts {
        let seen = cluster.log_text().len();
        let ask = format!("SELECT pid, pg_log_backend_memory_contexts(pid) FROM ({SESSIONS}) s");
        let asked = self.client.query(&ask, &[]).await.unwrap();
        let pids: Vec<String> = asked
            .iter()
            .map(|row| format!("[{}]", row.get::<_, i32>(0)))
            .collect();
        wait_until("every session has said what it keeps", BOUND, async || {
            let log = cluster.log_text().split_off(seen);
            let mut sum = Contexts::default();
            let mut totals = 0;
            for line in log
                .lines()
                .filter(|line| pids.iter().any(|pid| line.contains(pid)))
            {
                if let Some((_, total)) = line.split_once("Grand total: ") {
                    totals += 1;
                    sum.bytes += first_number(total);
                } else if let Some((_, level)) = line.split_once("level: ") {
                    let more = level
                        .split_once("; ")
                        .filter(|(_, what)| what.contains("more child contexts"));
                    sum.contexts += more.map_or(1, |(_, what)| first_number(what) as usize);
                }
            }
            (totals == pids.len()).then_some(sum)
        })
        .await
    }
}

fn first_number(text: &str) -> u64 {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(1)
}

/// Fields of `/proc/<pid>/status`; nothing where the process has ended.
fn fields<const N: usize>(pid: u32, names: [&str; N]) -> [f64; N] {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    names.map(|name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.map_or(0.0, |number| number.parse().unwrap())
    })
}

/// User and system time. The kernel counts in hundredths of a second.
fn cpu_ms(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit_once(") ").unwrap().1;
    let ticks = |at: usize| -> f64 { after_name.split(' ').nth(at).unwrap().parse().unwrap() };
    (ticks(11) + ticks(12)) * 10.0
}

/// Of all threads: each wake-up is one.
fn switches(pid: u32) -> f64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |thread: u32| fields(thread, ["voluntary_ctxt_switches:"])[0];
    threads
        .map(|thread| {
            of(thread
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .parse()
                .unwrap())
        })
        .sum()
}

/// The medians of the first and the last tenth of the samples.
fn early(samples: &[(Instant, Sample)], at: usize) -> f64 {
    median(
        &samples[..samples.len().div_ceil(10).max(3).min(samples.len())],
        at,
    )
}

fn late(samples: &[(Instant, Sample)], at: usize) -> f64 {
    let some = samples.len().div_ceil(10).max(3).min(samples.len());
    median(&samples[samples.len() - some..], at)
}

fn median(samples: &[(Instant, Sample)], at: usize) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(|(_, sample)| sample[at]).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Per hour, by least squares.
fn slope(samples: &[(Instant, Sample)], at: usize) -> f64 {
    let hours = |time: Instant| -> f64 {
        let passed: Duration = time - samples[0].0;
        passed.as_secs_f64() / 3600.0
    };
    let count = samples.len() as f64;
    let x = samples.iter().map(|(time, _)| hours(*time)).sum::<f64>() / count;
    let y = samples.iter().map(|(_, sample)| sample[at]).sum::<f64>() / count;
    let (mut over, mut under) = (0.0, f64::MIN_POSITIVE);
    for (time, sample) in samples {
        over += (hours(*time) - x) * (sample[at] - y);
        under += (hours(*time) - x).powi(2);
    }
    over / under
}
