//! What a history costs a database that lives: an application commits small transactions, at fixed rates and as fast as
//! it can, and each contender that keeps a history, or a copy, has its turn beside it.
//!
//! Every turn starts from databases made for it, so nothing of another contender is there: no slot, no trigger, no
//! publication. A first transaction shows that the contender follows; then the load warms up, then a window is measured,
//! and after a last transaction the contender must hold everything. `load.rs` is the application, `stage.rs` the turn,
//! `cpu.rs` counts the CPU time of every process of both servers and of the daemon, `check.rs` the rows.

mod chart;
mod check;
mod cpu;
mod load;
mod report;
mod stage;
mod verdict;

use std::path::Path;

use anyhow::{Context, Result};

pub use chart::draw;
pub use cpu::{Cpu, Kind};
pub use report::{Results, tables, write_csv};
pub use verdict::table as verdict;

use crate::server::Transport;
use stage::Stage;

/// Who keeps what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// No history: what the application itself costs.
    Nothing,
    /// An AFTER trigger in plpgsql that writes `employees_cdc` row by row, in the application's transaction.
    Trigger,
    /// PostgreSQL's own subscription in another cluster: a plain copy, no history.
    Subscription,
    /// waltrail with the history in the source database, which is its default.
    SameDatabase,
    /// waltrail with the history in another cluster.
    AnotherCluster,
    /// The same, with the triggers of `setup --context`: only where it is asked for.
    SaysWho,
}

impl Contender {
    /// All of them, in the order of their turns.
    pub const ALL: [Self; 6] = [
        Self::Nothing,
        Self::Trigger,
        Self::Subscription,
        Self::SameDatabase,
        Self::AnotherCluster,
        Self::SaysWho,
    ];

    /// As it stands in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Trigger => "trigger",
            Self::Subscription => "subscription",
            Self::SameDatabase => "waltrail, same database",
            Self::AnotherCluster => "waltrail, another cluster",
            Self::SaysWho => "waltrail, another cluster, with context",
        }
    }

    /// As the command line has it.
    #[must_use]
    pub fn keyword(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Trigger => "trigger",
            Self::Subscription => "subscription",
            Self::SameDatabase => "same",
            Self::AnotherCluster => "another",
            Self::SaysWho => "context",
        }
    }

    fn is_waltrail(self) -> bool {
        matches!(
            self,
            Self::SameDatabase | Self::AnotherCluster | Self::SaysWho
        )
    }

    /// Whether it reads the WAL.
    fn follows(self) -> bool {
        self.is_waltrail() || self == Self::Subscription
    }
}

/// How fast the application is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// Transactions a second, each at its moment.
    PerSecond(u32),
    /// The next transaction follows the answer to the last one.
    Full,
}

impl Rate {
    /// As it stands in tables.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::PerSecond(rate) => format!("{rate} tx/s"),
            Self::Full => "full speed".to_owned(),
        }
    }
}

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match (text, text.parse()) {
            ("full", _) => Ok(Self::Full),
            (_, Ok(rate)) if (1..=100_000).contains(&rate) => Ok(Self::PerSecond(rate)),
            _ => Err("is neither `full` nor a number from 1 to 100000".to_owned()),
        }
    }
}

/// How the application speaks to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Application {
    /// Each transaction is one call of a function in plpgsql.
    Function,
    /// BEGIN, each statement prepared before and executed by itself, COMMIT.
    Prepared,
    /// BEGIN, each statement as text, COMMIT.
    Plain,
}

/// One contender's turn.
#[derive(Clone, Debug)]
pub struct Turn {
    /// From 1.
    pub round: u32,
    /// How fast the application was to be.
    pub rate: Rate,
    /// Who.
    pub contender: Contender,
    /// The measured window.
    pub seconds: f64,
    /// What the application committed in the window.
    pub transactions: u64,
    /// CPU time in the window.
    pub cpu: Cpu,
    /// From commit to visible in the window; `None` for those who have no such delay.
    pub latency: Option<Latency>,
    /// The daemon's peak memory, in MB.
    pub peak_mb: Option<f64>,
    /// Rows that were compared after the turn.
    pub rows: i64,
}

/// From the source's commit to visible in the target, by the servers' own clocks.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// Milliseconds that half of the rows did not exceed.
    pub p50_ms: f64,
    /// Milliseconds that 99 of 100 rows did not exceed.
    pub p99_ms: f64,
}

impl Turn {
    /// Transactions a second, as they were.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.transactions as f64 / self.seconds
    }

    /// CPU time of this kind, in seconds in a window of ten seconds.
    #[must_use]
    pub fn in_ten_seconds(&self, kind: Kind) -> f64 {
        self.cpu.of(kind) / self.seconds * 10.0
    }

    /// CPU time of everything, in microseconds for each of the application's transactions.
    #[must_use]
    pub fn us_per_transaction(&self) -> f64 {
        self.cpu.all() / self.transactions as f64 * 1e6
    }
}

/// What is to be measured.
pub struct Plan<'a> {
    /// The daemon's program.
    pub program: &'a Path,
    /// Those left out are not measured.
    pub contenders: &'a [Contender],
    /// How fast the application is.
    pub rates: &'a [Rate],
    /// Turns of each contender at each rate.
    pub rounds: u32,
    /// Seconds that are measured in each turn.
    pub seconds: u32,
    /// Seconds of the same load before them.
    pub warm_up: u32,
    /// Whether the servers write to the disk what they commit.
    pub fsync: bool,
    /// How the application speaks.
    pub application: Application,
    /// How application and contenders are connected.
    pub transport: Transport,
    /// The daemon's settings from the environment, besides its addresses.
    pub settings: &'a [(&'a str, &'a str)],
}

/// Measures all turns: A B C A B C, for each rate of each round. `on_turn` hears of each as it ends.
///
/// # Errors
/// A contender failed, or lost a row.
pub fn all(plan: &Plan<'_>, mut on_turn: impl FnMut(&Turn)) -> Result<Vec<Turn>> {
    let stage = Stage::new(plan)?;
    let mut turns = Vec::new();
    for round in 1..=plan.rounds {
        for &rate in plan.rates {
            for &contender in plan.contenders {
                let turn = stage.turn(contender, rate, round).with_context(|| {
                    format!("{}, {}, round {round}", contender.name(), rate.name())
                })?;
                on_turn(&turn);
                turns.push(turn);
            }
        }
    }
    Ok(turns)
}
