//! What a process has taken of the machine: CPU time and memory, as the kernel counts them.

use std::fs;

use anyhow::Result;
use procfs::process::Process;

/// CPU time and memory of one process over its life.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time, in seconds: in hundredths, and finer where the kernel has statistics of its scheduler.
    pub cpu_seconds: f64,
    /// `VmHWM`, the peak of all resident memory, in MB. A backend's holds the shared buffers that it touched.
    pub peak_mb: f64,
    /// The peak of `RssAnon` where it was looked at, in MB: memory that is the process's own.
    pub own_mb: f64,
}

/// Watches a process. It has to be looked at while the process lives.
#[derive(Debug)]
pub struct Watch {
    process: Process,
    usage: Usage,
}

impl Watch {
    /// Watches this process.
    ///
    /// # Errors
    /// There is none.
    pub fn of(pid: u32) -> Result<Self> {
        Ok(Self {
            process: Process::new(pid.cast_signed())?,
            usage: Usage::default(),
        })
    }

    /// Looks at the process; false when it has ended. It must not have been waited for: its CPU time can be read
    /// until then.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn look(&mut self) -> Result<bool> {
        let stat = self.process.stat()?;
        let ticks = stat.utime + stat.stime;
        let ticked = ticks as f64 / procfs::ticks_per_second() as f64;
        // Neither is too much: hundredths are cut off, and a thread that has ended is in no list.
        self.usage.cpu_seconds = ticked.max(self.scheduled()).max(self.usage.cpu_seconds);
        if stat.state == 'Z' {
            return Ok(false);
        }
        let status = self.process.status()?;
        let mb = |kb: Option<u64>| kb.unwrap_or_default() as f64 / 1024.0;
        self.usage.peak_mb = self.usage.peak_mb.max(mb(status.vmhwm));
        self.usage.own_mb = self.usage.own_mb.max(mb(status.rssanon));
        Ok(true)
    }

    /// Seconds that its living threads ran.
    fn scheduled(&self) -> f64 {
        let of_threads = self.process.tasks().into_iter().flatten().flatten();
        let nanoseconds: u64 = of_threads
            .filter_map(|thread| Some(thread.schedstat().ok()?.sum_exec_runtime))
            .sum();
        nanoseconds as f64 / 1e9
    }

    /// What was seen so far.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.usage
    }
}

/// The machine in one line: processor, number of processors that may be used, memory, kernel.
#[must_use]
pub fn machine() -> String {
    let of = |file: &str, key: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.trim() == key)
            .map(|(_, value)| value.trim().to_owned())
    };
    let model =
        of("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = of("/proc/meminfo", "MemTotal")
        .and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok())
        .map_or_else(String::new, |kb| {
            format!(", {:.0} GB", kb / 1024.0 / 1024.0)
        });
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{model}, {cores} cores{memory}, Linux {}", kernel.trim())
}
