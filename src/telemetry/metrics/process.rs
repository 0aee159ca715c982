//! The process itself, under the names that Prometheus' own clients use.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use procfs::process::{LimitValue, Process};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::out::Out;

#[derive(Debug)]
pub(super) struct ProcessMetrics;

/// What `/proc/self` says. What it does not say has no sample: a unit may hide it.
#[derive(Debug, Default)]
struct Seen {
    cpu_seconds: Option<f64>,
    resident_bytes: Option<f64>,
    virtual_bytes: Option<f64>,
    open_fds: Option<f64>,
    max_fds: Option<f64>,
    start_time: Option<f64>,
}

impl Seen {
    fn now() -> Self {
        let Ok(process) = Process::myself() else {
            return Self::default();
        };
        let ticks = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        let stat = process.stat().ok();
        let stat = stat.as_ref();
        let limits = process.limits().ok();
        Self {
            cpu_seconds: stat.map(|stat| ticks(stat.utime + stat.stime)),
            resident_bytes: stat.map(|stat| (stat.rss * procfs::page_size()) as f64),
            virtual_bytes: stat.map(|stat| stat.vsize as f64),
            open_fds: process.fd_count().ok().map(|fds| fds as f64),
            max_fds: limits.and_then(|limits| match limits.max_open_files.soft_limit {
                LimitValue::Value(limit) => Some(limit as f64),
                LimitValue::Unlimited => None,
            }),
            start_time: stat.and_then(|stat| started(ticks(stat.starttime))),
        }
    }
}

/// When a process began that did so this many seconds after the machine. `/proc/stat`, which has the machine's start, is hidden
/// by `ProcSubset=pid`.
fn started(after_boot: f64) -> Option<f64> {
    let up = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(now.as_secs_f64() - up.as_secs_f64() + after_boot)
}

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(&mut encoder);
        let seen = Seen::now();
        if let Some(seconds) = seen.cpu_seconds {
            out.seconds_counter(
                "process_cpu_seconds",
                "CPU time of the process, user and system",
                seconds,
            )?;
        }
        for (name, help, value) in [
            (
                "process_resident_memory_bytes",
                "Memory of the process that is in use",
                seen.resident_bytes,
            ),
            (
                "process_virtual_memory_bytes",
                "Address space of the process",
                seen.virtual_bytes,
            ),
            (
                "process_open_fds",
                "Open file descriptors of the process",
                seen.open_fds,
            ),
            (
                "process_max_fds",
                "How many of them it may open",
                seen.max_fds,
            ),
            (
                "process_start_time_seconds",
                "When the process began, in seconds since 1970",
                seen.start_time,
            ),
        ] {
            out.gauge_if_known(name, help, value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_as_old_as_it_is() {
        let seen = Seen::now();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let age = now.as_secs_f64() - seen.start_time.unwrap();
        // A test's process has just begun; the kernel counts in hundredths.
        assert!((-0.1..600.0).contains(&age), "{age}");
        assert!(seen.cpu_seconds.unwrap() < 600.0);
        assert!(seen.open_fds.unwrap() >= 3.0);
        let (resident, whole) = (seen.resident_bytes.unwrap(), seen.virtual_bytes.unwrap());
        assert!(
            resident > 100_000.0 && resident < whole,
            "{resident} {whole}"
        );
    }
}
