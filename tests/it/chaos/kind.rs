//! The faults that there are.

use std::path::PathBuf;
use std::process::Command;

/// One kind of fault, with its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    CutAtByte,
    CutBeforeCommit,
    CutAfterCommit,
    AnswerLost,
    HalfOpen,
    BlackHole,
    BlackHoleRst,
    Stall,
    Drip,
    Kill,
    Freeze,
    Restart,
    TakeOver,
    SourceFast,
    SourceSmart,
    SourceCrash,
    TargetFast,
    TargetSmart,
    TargetCrash,
    TargetMachine,
    Terminate,
    Cancel,
    FreezeBackend,
    TargetDisk,
    SourceDisk,
    Memory,
    BackendMemory,
    Clock,
}

use Kind::*;

pub const KINDS: [Kind; 28] = [
    CutAtByte,
    CutBeforeCommit,
    CutAfterCommit,
    AnswerLost,
    HalfOpen,
    BlackHole,
    BlackHoleRst,
    Stall,
    Drip,
    Kill,
    Freeze,
    Restart,
    TakeOver,
    SourceFast,
    SourceSmart,
    SourceCrash,
    TargetFast,
    TargetSmart,
    TargetCrash,
    TargetMachine,
    Terminate,
    Cancel,
    FreezeBackend,
    TargetDisk,
    SourceDisk,
    Memory,
    BackendMemory,
    Clock,
];

impl Kind {
    /// As the table names it.
    pub fn name(self) -> &'static str {
        match self {
            CutAtByte => "connection cut at a random byte",
            CutBeforeCommit => "connection cut just before the target's COMMIT",
            CutAfterCommit => "connection cut just after the target's COMMIT",
            AnswerLost => "answer to the COMMIT lost",
            HalfOpen => "one direction closed",
            BlackHole => "black hole, no RST",
            BlackHoleRst => "black hole, then RST",
            Stall => "stall, then on",
            Drip => "some bytes a second",
            Kill => "waltrail killed by SIGKILL",
            Freeze => "waltrail stopped by SIGSTOP, then on",
            Restart => "waltrail restarted by SIGTERM",
            TakeOver => "taken over by a waiting instance",
            SourceFast => "source: fast stop",
            SourceSmart => "source: smart stop",
            SourceCrash => "source: immediate stop",
            TargetFast => "target: fast stop",
            TargetSmart => "target: smart stop",
            TargetCrash => "target: immediate stop",
            TargetMachine => "target: unflushed WAL lost",
            Terminate => "pg_terminate_backend",
            Cancel => "pg_cancel_backend",
            FreezeBackend => "one backend stopped by SIGSTOP, then on",
            TargetDisk => "target: disk full",
            SourceDisk => "source: disk full under the slots",
            Memory => "waltrail out of memory",
            BackendMemory => "one backend out of memory",
            Clock => "waltrail's clock set off",
        }
    }

    /// Whether it can be made here.
    pub fn is_possible(self, mounts: bool) -> bool {
        match self {
            TargetDisk | SourceDisk => mounts,
            Memory | BackendMemory => has("prlimit"),
            Clock => faketime().is_some(),
            _ => true,
        }
    }
}

fn has(program: &str) -> bool {
    let version = Command::new(program).arg("--version").output();
    version.is_ok_and(|output| output.status.success())
}

/// The library of the package `libfaketime`, or the one that `CHAOS_FAKETIME` names.
pub fn faketime() -> Option<PathBuf> {
    if let Some(file) = std::env::var_os("CHAOS_FAKETIME") {
        return Some(file.into());
    }
    let machine = std::env::consts::ARCH;
    let file = format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1");
    Some(PathBuf::from(file)).filter(|file| file.exists())
}
