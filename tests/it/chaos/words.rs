//! What the daemons wrote: nothing but what faults announce, and not before they come.
//!
//! A fault allows causes, not steps: which step of the daemon it meets is chance. A step that fails for another cause is
//! not announced.

use super::kind::Kind;

const SESSION: &str = "the session failed and is started again";
const SNAPSHOT: &str = "the snapshot failed and is begun again";
/// At a SIGTERM, when the fault is not over.
const STOPPED_EARLY: &str =
    "stopped before everything received was written; it comes again at the next start";
const ROWS_LEFT: &str = "the existing rows of these tables were still being recorded: the next start begins with them again";
/// What an allocation that fails writes before the process aborts.
pub const OUT_OF_MEMORY: &str = "memory allocation of ";

/// An administrator ended the session: the words can name a table, or are not kept.
const ENDED: &str = "[SQLSTATE 57P01]";
/// A connection is gone.
const GONE: [&str; 4] = [
    "connection closed",
    "the server closed the connection",
    "Connection reset by peer (os error 104)",
    "Broken pipe (os error 32)",
];
/// A connection is gone, and only time shows it.
const SILENT: [&str; 3] = [
    "Connection timed out (os error 110)",
    "no answer within 3 s",
    "the source did not answer",
];
/// A server ends, or begins.
const STOPPED: [&str; 5] = [
    "the database system is shutting down [SQLSTATE 57P03]",
    "the database system is starting up [SQLSTATE 57P03]",
    "the source ended the stream: it is shutting down",
    ENDED,
    "Connection refused (os error 111)",
];
/// A server ends without a word.
const CRASHED: [&str; 3] = [
    "the database system is not yet accepting connections [SQLSTATE 57P03]",
    "terminating connection because of crash of another server process [SQLSTATE 57P02]",
    "the database system is in recovery mode [SQLSTATE 57P03]",
];
const HELD_ELSEWHERE: [&str; 2] = [
    "another waltrail writes for this slot; waiting until it is gone",
    "the slot is in use by another process; waiting until it is free",
];

/// A fault, and where its daemon's output stood when it came.
#[derive(Clone, Copy, Debug)]
pub struct Struck {
    pub kind: Kind,
    /// Counts the daemons.
    pub daemon: usize,
    pub bytes: usize,
}

/// What may be the cause of a failure.
fn causes(kind: Kind) -> Vec<&'static [&'static str]> {
    match kind {
        Kind::CutAtByte
        | Kind::CutBeforeCommit
        | Kind::CutAfterCommit
        | Kind::AnswerLost
        | Kind::HalfOpen
        | Kind::BlackHoleRst => vec![&GONE],
        Kind::BlackHole => vec![&GONE, &SILENT],
        // Only where it meets a connection that is being made.
        Kind::Stall | Kind::Drip => vec![&["no answer within 3 s"]],
        Kind::Kill | Kind::Freeze | Kind::Restart | Kind::TakeOver | Kind::FreezeBackend => vec![],
        Kind::SourceFast | Kind::SourceSmart | Kind::TargetFast | Kind::TargetSmart => {
            vec![&GONE, &STOPPED]
        }
        Kind::SourceCrash | Kind::TargetCrash | Kind::TargetMachine => {
            vec![&GONE, &STOPPED, &CRASHED]
        }
        Kind::Terminate => vec![&GONE, &[ENDED]],
        Kind::Cancel => vec![&["canceling statement due to user request [SQLSTATE 57014]"]],
        Kind::TargetDisk | Kind::SourceDisk => vec![&["No space left on device"]],
        Kind::Memory | Kind::Clock => vec![],
        Kind::BackendMemory => vec![&["out of memory [SQLSTATE 53200]"]],
    }
}

/// Whether another process can have the slot or the lock for a while: the server does not know yet that the daemon is gone.
fn leaves_backends(kind: Kind) -> bool {
    match kind {
        Kind::CutAtByte
        | Kind::CutBeforeCommit
        | Kind::CutAfterCommit
        | Kind::AnswerLost
        | Kind::HalfOpen
        | Kind::BlackHole
        | Kind::BlackHoleRst
        | Kind::Kill
        | Kind::TakeOver
        | Kind::FreezeBackend
        | Kind::Memory => true,
        Kind::Stall
        | Kind::Drip
        | Kind::Freeze
        | Kind::Restart
        | Kind::SourceFast
        | Kind::SourceSmart
        | Kind::SourceCrash
        | Kind::TargetFast
        | Kind::TargetSmart
        | Kind::TargetCrash
        | Kind::TargetMachine
        | Kind::Terminate
        | Kind::Cancel
        | Kind::TargetDisk
        | Kind::SourceDisk
        | Kind::BackendMemory
        | Kind::Clock => false,
    }
}

/// Whether answers stay away for a while, although the session is there.
fn hides_answers(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::AnswerLost
            | Kind::HalfOpen
            | Kind::BlackHole
            | Kind::BlackHoleRst
            | Kind::Stall
            | Kind::Drip
            | Kind::FreezeBackend
    )
}

/// What was not announced, line by line.
pub fn unannounced(written: &[String], struck: &[Struck]) -> String {
    let mut found = String::new();
    for (daemon, text) in written.iter().enumerate() {
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            let before = |fault: &&Struck| (fault.daemon, fault.bytes) <= (daemon, at);
            let faults: Vec<Kind> = struck.iter().filter(before).map(|it| it.kind).collect();
            if line.starts_with(OUT_OF_MEMORY) && faults.contains(&Kind::Memory) {
                // What follows is of the abort.
                break;
            }
            if !is_announced(line, &faults) {
                found.push_str(&format!("not announced: {line}"));
            }
            at += line.len();
        }
    }
    found
}

fn is_announced(line: &str, faults: &[Kind]) -> bool {
    let Ok(entry) = serde_json::from_str::<serde_json::Value>(line) else {
        return false;
    };
    let word = |field: &str| entry[field].as_str().unwrap_or_default();
    let restarted = faults.contains(&Kind::Restart);
    let is_caused = || {
        let mut allowed = faults.iter().flat_map(|&kind| causes(kind)).flatten();
        allowed.any(|cause| word("error").contains(cause))
    };
    match (word("level"), word("message")) {
        ("WARN" | "ERROR", SESSION | SNAPSHOT) => is_caused(),
        ("WARN", STOPPED_EARLY) => restarted && is_caused(),
        ("WARN", ROWS_LEFT) => restarted,
        ("WARN", message) if HELD_ELSEWHERE.contains(&message) => {
            faults.iter().any(|&kind| leaves_backends(kind))
        }
        ("WARN", message) if message.contains(" has not answered for ") => {
            faults.iter().any(|&kind| hides_answers(kind))
        }
        ("WARN", _) if word("code") == "clocks-apart" => faults.contains(&Kind::Clock),
        // What is held up lags.
        ("WARN", _) if word("code") == "lagging" => !faults.is_empty(),
        ("WARN" | "ERROR", _) => false,
        _ => true,
    }
}
