//! Looking at both servers, by connections that may be kept, and what is seen as one picture.

use std::time::Duration;

use tokio_postgres::Client;

use super::lag::{Known, Micros, seconds};
use super::source::{self, SourceSeen};
use super::target::{self, Recorded, TargetSeen};
use super::verdict::{self, Beside};
use super::{Daemon, Level, Rate, Servers, Status, Verdict, rate, rfc3339};
use crate::clock;
use crate::config::{Config, TableName};
use crate::fault::{Exit, Fault, Result};
use crate::lsn::Lsn;
use crate::server::{self, Side};
use crate::setup;

/// A statement lasts no longer, and waits for no lock for longer.
const STATEMENT_MAX: Duration = Duration::from_secs(3);
/// A server that has not answered for so long does not answer.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(5);
/// A look that took longer says little of the clocks.
const CLOCK_LOOK_MAX: Micros = 1_000_000;

/// For a person, who waits for the end of the command: see `server::limit`.
pub(super) const PERSON: &str = "status";

/// Two connections, or one where source and target are one database.
#[derive(Debug)]
pub(crate) struct Looks {
    /// What follows the name of the sessions.
    who: &'static str,
    source: Option<Client>,
    target: Option<Client>,
    /// The tables that patterns mean, where nothing is recorded of it.
    meant: Vec<(TableName, TableName)>,
}

/// What was seen.
#[derive(Debug)]
pub(crate) struct Seen {
    at: Micros,
    /// The source's clock minus this machine's.
    offset: Option<f64>,
    pub(crate) source: Result<SourceSeen>,
    pub(crate) target: Result<TargetSeen>,
}

/// What a daemon knows of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inside {
    /// Up to here everything is recorded, or nothing of it is to be.
    pub(crate) recorded: Lsn,
    /// It has nothing left to write.
    pub(crate) is_idle: bool,
    /// Everything that committed before is recorded: see `lag.rs`.
    pub(crate) complete: Option<Micros>,
    pub(crate) rate: Option<Rate>,
    /// For how many seconds each history's existing rows have not moved.
    pub(crate) still: Vec<(String, f64)>,
}

impl Looks {
    pub(crate) fn new(who: &'static str) -> Self {
        Self {
            who,
            source: None,
            target: None,
            meant: Vec::new(),
        }
    }

    /// Ends the sessions.
    pub(crate) fn leave(&mut self) {
        (self.source, self.target) = (None, None);
    }

    /// Looks at both servers; a server that fails is connected to anew the next time.
    pub(crate) async fn look(&mut self, config: &Config) -> Seen {
        let at = clock::unix_now();
        let tables = target::Tables {
            config,
            meant: &self.meant,
        };
        let who = self.who;
        let ((offset, source), target) = if config.source.connection == config.target {
            let (offset, source) = of_source(&mut self.source, config, who).await;
            let target = match &source {
                Ok(_) => of_target(&mut self.source, &tables, who).await,
                // It is the same server, which would be asked twice.
                Err(fault) => Err(copy(fault)),
            };
            ((offset, source), target)
        } else {
            tokio::join!(
                of_source(&mut self.source, config, who),
                of_target(&mut self.target, &tables, who)
            )
        };
        Seen {
            at,
            offset,
            source,
            target,
        }
    }

    /// As [`Looks::look`], for a person: with what patterns mean before the first start, and, with `exact`, with rows that are
    /// counted, however long that takes.
    pub(super) async fn look_once(&mut self, config: &Config, exact: bool) -> Seen {
        let mut seen = self.look(config).await;
        let nothing = |target: &TargetSeen| {
            let recorded = target.recorded.as_ref();
            recorded.is_ok_and(|recorded| recorded.tables.len() <= config.tables.len())
        };
        if !config.patterns.is_empty()
            && seen.target.as_ref().is_ok_and(nothing)
            && let Some(client) = &self.source
            && let Ok(meant) = setup::expand(config, client, None).await
        {
            let meant = meant.tables.into_iter().filter(|table| table.by_pattern);
            self.meant = meant.map(|table| (table.source, table.history)).collect();
            seen = self.look(config).await;
        }
        let client = self.target.as_ref().or(self.source.as_ref());
        if exact
            && let Ok(target) = &mut seen.target
            && let Ok(recorded) = &mut target.recorded
            && let Some(client) = client
        {
            target::count(client, &mut recorded.tables).await;
        }
        seen
    }

    /// Leaves a note in the target; it is only a help, so it may fail.
    pub(crate) async fn leave_note(&mut self, config: &Config, statement: &str) {
        let client = match config.source.connection == config.target {
            true => &mut self.source,
            false => &mut self.target,
        };
        let Some(known) = client.as_ref() else {
            return;
        };
        let left = async {
            let left = known.simple_query(statement).await;
            left.map_err(Side::Target.failed("could not take a note"))
        };
        if within(Side::Target, left).await.is_err() {
            *client = None;
        }
    }
}

/// Looks, and says by how much the source's clock is ahead.
async fn of_source(
    client: &mut Option<Client>,
    config: &Config,
    who: &str,
) -> (Option<f64>, Result<SourceSeen>) {
    let known = match connect(client, config, Side::Source, who).await {
        Ok(known) => known,
        Err(fault) => return (None, Err(fault)),
    };
    let before = clock::unix_now();
    let seen = within(Side::Source, source::see(known, config)).await;
    let after = clock::unix_now();
    match &seen {
        Err(_) => {
            *client = None;
            (None, seen)
        }
        Ok(_) if after - before > CLOCK_LOOK_MAX => (None, seen),
        Ok(source) => (Some(seconds(source.now - (before + after) / 2)), seen),
    }
}

async fn of_target(
    client: &mut Option<Client>,
    tables: &target::Tables<'_>,
    who: &str,
) -> Result<TargetSeen> {
    let known = connect(client, tables.config, Side::Target, who).await?;
    let seen = within(Side::Target, target::see(known, tables)).await;
    if seen.is_err() {
        *client = None;
    }
    seen
}

async fn connect<'a>(
    client: &'a mut Option<Client>,
    config: &Config,
    side: Side,
    who: &str,
) -> Result<&'a Client> {
    if client.as_ref().is_none_or(Client::is_closed) {
        *client = None;
        let connection = match side {
            Side::Source => &config.source.connection,
            Side::Target => &config.target,
        };
        let watched = who == PERSON;
        *client = Some(server::looking(connection, side, (who, watched), STATEMENT_MAX).await?);
    }
    client.as_ref().ok_or_else(|| silent(side))
}

/// Asks a server that has to answer soon.
async fn within<T>(side: Side, ask: impl Future<Output = Result<T>>) -> Result<T> {
    let answer = tokio::time::timeout(ANSWER_MAX, ask).await;
    answer.unwrap_or_else(|_| Err(silent(side)))
}

fn silent(side: Side) -> Fault {
    let seconds = ANSWER_MAX.as_secs();
    Fault::reconnect(format!("the {side} has not answered for {seconds} s"))
        .remedy("see whether the server is paused, or the network drops packets")
}

fn copy(fault: &Fault) -> Fault {
    let copy = Fault::new(fault.disposition(), fault.to_string());
    match fault.remedy_alone() {
        Some(remedy) => copy.remedy(remedy),
        None => copy,
    }
}

impl Seen {
    /// The fault of a configuration that neither server accepts: of the history it says nothing.
    pub(super) fn refusal(&mut self) -> Option<Fault> {
        let is_ours = |fault: &Fault| {
            matches!(fault.exit(), Exit::Config | Exit::NoPermission) && !fault.may_pass()
        };
        match (&self.source, &self.target) {
            (Err(source), Err(target)) if is_ours(source) && is_ours(target) => {}
            _ => return None,
        }
        let fault = std::mem::replace(&mut self.source, Err(Fault::retry("")));
        fault.err()
    }

    /// The picture; with what the daemon knows of itself, where it is the daemon that asks.
    pub(crate) fn status(&self, config: &Config, inside: Option<&Inside>) -> Status {
        let (source, target) = (self.source.as_ref().ok(), self.target.as_ref().ok());
        let unread = target.and_then(|target| target.recorded.as_ref().err());
        let recorded = target.and_then(|target| target.recorded.as_ref().ok());
        let lag = self.lag(inside);
        let error = |fault: Option<&Fault>| fault.map(ToString::to_string);
        let mut status = Status {
            verdict: Verdict {
                level: Level::Good,
                state: "",
                reasons: Vec::new(),
            },
            at: rfc3339(self.at),
            version: env!("CARGO_PKG_VERSION"),
            slot: config.source.slot.clone(),
            source: source.and_then(|source| source.slot.clone()),
            source_error: error(self.source.as_ref().err()),
            target_error: match unread {
                Some(unread) => Some(unread.text.clone()),
                None => error(self.target.as_ref().err()),
            },
            publication: source.map(|source| source.publication.clone()),
            checkpoint: recorded.and_then(|recorded| recorded.checkpoint.clone()),
            source_snapshot: source.and_then(|source| source.held.clone()),
            lag_bytes: lag.map(|(bytes, _)| bytes),
            lag_seconds: lag.and_then(|(_, seconds)| seconds),
            rate: match inside {
                Some(inside) => inside.rate,
                None => self.rate(),
            },
            servers: Servers {
                source_version: source.map(|source| source.version.clone()),
                source_role: source.map(|source| source.role),
                target_version: target.map(|target| target.version.clone()),
            },
            daemon: target.and_then(daemon),
            waits: target.and_then(|target| target.waits.clone()),
            clock_offset_seconds: self.offset,
            oldest_transaction: source.and_then(|source| source.oldest_transaction.clone()),
            spill: source.and_then(|source| source.spill),
            exact: false,
            tables: recorded
                .map(|recorded| recorded.tables.clone())
                .unwrap_or_default(),
        };
        self.add_ages(&mut status, inside);
        let remedy = |fault: Option<&Fault>| fault.and_then(Fault::remedy_text);
        let beside = Beside {
            inside: inside.is_some(),
            source_remedy: remedy(self.source.as_ref().err()),
            target_remedy: remedy(self.target.as_ref().err()),
            locked: unread.is_some_and(|unread| unread.locked),
        };
        status.verdict = verdict::of(&status, &beside);
        status
    }

    /// Ages by the source's clock, and those that only a daemon knows.
    fn add_ages(&self, status: &mut Status, inside: Option<&Inside>) {
        let (source, target) = (self.source.as_ref().ok(), self.target.as_ref().ok());
        let commit = target.and_then(|target| target.recorded.as_ref().ok()?.commit);
        if let (Some(source), Some(commit), Some(checkpoint)) =
            (source, commit, &mut status.checkpoint)
        {
            checkpoint.commit_age_seconds = Some(seconds(source.now - commit).max(0.0));
        }
        let note = target.and_then(|target| target.note.as_ref());
        let now = source.map_or(self.at, |source| source.now);
        let noted = note.filter(|note| note.is_fresh(now));
        let still = match inside {
            Some(inside) => inside.still.clone(),
            None => noted
                .and_then(|note| note.still.clone())
                .into_iter()
                .collect(),
        };
        for table in &mut status.tables {
            if let Some(snapshot) = table.snapshot.as_mut().filter(|s| s.state != "done") {
                let mut still = still
                    .iter()
                    .filter(|(history, _)| *history == table.history);
                snapshot.still_seconds = still.next().map(|(_, seconds)| *seconds);
            }
        }
    }

    /// None without a checkpoint: there is no history yet.
    fn lag(&self, inside: Option<&Inside>) -> Option<(i64, Option<f64>)> {
        let (source, target) = (self.source.as_ref().ok()?, self.target.as_ref().ok()?);
        let recorded = target.recorded.as_ref().ok()?;
        let checkpoint = recorded.checkpoint.as_ref()?;
        let end = checkpoint.end_lsn?;
        let position = checkpoint
            .reported_lsn
            .map_or(end, |reported| reported.max(end));
        let position = inside.map_or(position, |inside| inside.recorded.max(position));
        let is_level = match (inside, &target.writer) {
            (Some(inside), _) => source.has_sent_all && inside.is_idle,
            (None, Some(writer)) => {
                let silent = writer.daemon.silent_seconds;
                source.has_sent_all
                    && writer.is_idle
                    && silent.is_none_or(|silent| silent <= verdict::SILENT_MAX)
            }
            (None, None) => false,
        };
        let noted = target.note.as_ref().and_then(|note| note.complete);
        let complete = [
            recorded.commit,
            whole(recorded, position).map(|(_, at)| at),
            noted,
            inside.and_then(|inside| inside.complete),
        ];
        let known = Known {
            now: source.now,
            end: source.end,
            recorded: position,
            is_level,
            complete: complete.into_iter().flatten().max(),
        };
        Some(known.lag())
    }

    /// What the daemon has noted; without one, since a moment of which the position is known.
    fn rate(&self) -> Option<Rate> {
        let (source, target) = (self.source.as_ref().ok()?, self.target.as_ref().ok()?);
        let note = target.note.as_ref();
        if let Some(rate) = note.and_then(|note| note.rate(source.now)) {
            return Some(rate);
        }
        let recorded = target.recorded.as_ref().ok()?;
        let checkpoint = recorded.checkpoint.as_ref()?;
        let known = [
            Option::zip(checkpoint.end_lsn, recorded.commit),
            recorded.whole,
        ];
        let wal_bytes_per_second = rate::since(&known, (source.end, source.now))?;
        let slot = source.slot.as_ref();
        // One that is read moves.
        let held = slot.filter(|slot| !slot.active);
        let safe = held.and_then(|slot| slot.safe_wal_size);
        Some(Rate {
            wal_bytes_per_second,
            rows_per_second: None,
            seconds_left: rate::left(safe, Some(wal_bytes_per_second)),
        })
    }
}

fn daemon(target: &TargetSeen) -> Option<Daemon> {
    target.writer.as_ref().map(|writer| writer.daemon.clone())
}

/// Where everything was whole, if all of it is recorded.
fn whole(recorded: &Recorded, position: Lsn) -> Option<(Lsn, Micros)> {
    recorded.whole.filter(|(lsn, _)| *lsn <= position)
}
