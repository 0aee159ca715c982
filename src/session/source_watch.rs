//! The watch of the source: does the stream still carry every change of every table?
//!
//! ```text
//!   waltrail.followed (as last seen whole) --+
//!                                            +--> differences --> the stream ends at the position of the look, 65
//!   catalogs of the source, every 10 s ------+
//! ```
//!
//! A difference does not end the stream at once: what was written before it is still sent, so everything up to the look is
//! read, written and confirmed first. What can be missing then lies between the last look that was whole and this one.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_postgres::Client;

use super::standbys;
use crate::config::{Config, Setup, Table};
use crate::fault::{Exit, Fault, Gap, Result};
use crate::history::checkpoint;
use crate::history::followed::{self, Record, Whole};
use crate::lsn::Lsn;
use crate::pipeline::Captured;
use crate::schema::TableName;
use crate::schema::sight::{
    self, Difference, Followed, Look, Partition, Seen, Standing, Wanted, What,
};
use crate::server::Side;
use crate::setup::{self, requirements};
use crate::source::feedback::{REPORT_BYTES, REPORT_INTERVAL};
use crate::source::slot;

/// The source is looked at at least this often.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// And at most this often, however often the stream describes a table.
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// After so many looks, what the stream described before the first of them is written in the target.
const DESCRIBED_LOOKS: u32 = 3;

/// Where the stream has to end.
#[derive(Clone, Debug)]
pub(super) struct Until {
    pub(super) lsn: Lsn,
    reason: Reason,
}

#[derive(Clone, Debug)]
enum Reason {
    /// Changes after it can be missing.
    Missing { refusal: String, gap: Gap },
    /// Set-up has something to do: patterns mean other tables, or column lists lack a column. These histories get no change
    /// after it, since their tables were dropped.
    News { dropped: Vec<TableName> },
}

impl Until {
    fn news(lsn: Lsn, dropped: Vec<TableName>) -> Self {
        Self {
            lsn,
            reason: Reason::News { dropped },
        }
    }

    fn log(&self) {
        match &self.reason {
            Reason::Missing { refusal, .. } => tracing::warn!(
                until = %self.lsn,
                "{refusal}; what was written before is still read"
            ),
            Reason::News { dropped } if dropped.is_empty() => {
                tracing::info!(until = %self.lsn, "what is followed has changed: setting up again");
            }
            Reason::News { dropped } => {
                for history in dropped {
                    tracing::info!(%history, "the table was dropped; its history is kept");
                }
            }
        }
    }

    /// Why nothing can follow; none: another session does.
    pub(super) fn fault(&self) -> Option<Fault> {
        let Reason::Missing { refusal, gap } = &self.reason else {
            return None;
        };
        let fault = Fault::halt(Exit::HistoryWouldBeWrong, refusal.clone())
            .remedy("put right on the source what is still wrong, then: waltrail accept-gap")
            .see("the-source-was-changed")
            .missing(gap.clone());
        Some(fault)
    }

    /// The histories whose tables were dropped; everything of them is read where the stream ends.
    pub(super) fn dropped(&self) -> &[TableName] {
        match &self.reason {
            Reason::Missing { .. } => &[],
            Reason::News { dropped } => dropped,
        }
    }
}

/// A look, between two positions of the source's WAL.
struct Seeing {
    /// What is whole in the look was whole here.
    before: Whole,
    look: Look,
    /// Everything that the look saw lies before.
    after: Lsn,
}

async fn see(source: &Client, publication: &str, wanted: &[Wanted<'_>]) -> Result<Seeing> {
    let at = async || {
        let position = slot::position(source).await;
        position.map_err(Side::Source.failed("could not show the end of its WAL"))
    };
    let before = slot::position_and_time(source).await;
    let (lsn, time) = before.map_err(Side::Source.failed("could not show the end of its WAL"))?;
    let look = sight::look(source, publication, wanted)
        .await
        .map_err(Side::Source.failed("could not show its publication"))?;
    Ok(Seeing {
        before: Whole { lsn, time },
        look,
        after: at().await?,
    })
}

/// The configured tables of a record, each with the name that it has in the configuration.
fn wanted<'a>(config: &'a Config, record: &'a Record) -> (Vec<&'a Followed>, Vec<Wanted<'a>>) {
    let entries = record.by_history();
    let followed = config.tables.iter().filter_map(|table| {
        let entry = *entries.get(&table.history)?;
        Some((entry, (entry.oid, &table.source)))
    });
    followed.unzip()
}

/// Compares the source with what was last seen whole. `None`: nothing can be missing; tables that were renamed since then get
/// their present names in `config`.
pub(super) async fn compare(
    config: &mut Config,
    source: &Client,
    record: &Record,
) -> Result<Option<Until>> {
    let (followed, seeing, until) = look(config, source, record).await?;
    if until.is_none() {
        take_names(config, &followed, &seeing.look);
    }
    Ok(until)
}

/// Looks at the configured tables of a record, and compares.
async fn look(
    config: &Config,
    source: &Client,
    record: &Record,
) -> Result<(Vec<Followed>, Seeing, Option<Until>)> {
    let (followed, wanted) = wanted(config, record);
    let seeing = see(source, &config.source.publication, &wanted).await?;
    let followed: Vec<Followed> = followed.into_iter().cloned().collect();
    let found = sight::differences(&record.publication, &followed, &seeing.look);
    let until = refusal(config, &found, record.whole.lsn, seeing.after);
    Ok((followed, seeing, until))
}

fn take_names(config: &mut Config, followed: &[Followed], look: &Look) {
    let found = followed.iter().zip(&look.tables);
    let names: HashMap<&TableName, &TableName> = found
        .filter_map(|(was, found)| Some((&was.history, &found.table.as_ref()?.0)))
        .collect();
    for table in &mut config.tables {
        let Some(&name) = names.get(&table.history) else {
            continue;
        };
        if *name != table.source {
            tracing::warn!(
                table = %table.source,
                now = %name,
                history = %table.history,
                remedy = "change [[table]] source, and keep its history",
                "a table was renamed and is followed under its new name"
            );
            table.source = name.clone();
        }
    }
}

fn refusal(config: &Config, found: &[Difference], from: Lsn, to: Lsn) -> Option<Until> {
    if found.is_empty() {
        return None;
    }
    // A pattern lets go of what is dropped, once everything before that is read.
    let by_pattern = |history: &TableName| {
        let mut tables = config.tables.iter();
        tables.any(|table| table.history == *history && table.by_pattern)
    };
    let is_let_go = |difference: &Difference| {
        matches!(difference.what, What::Dropped(_))
            && difference.history.as_ref().is_some_and(by_pattern)
    };
    if found.iter().all(is_let_go) {
        let dropped = found.iter().filter_map(|found| found.history.clone());
        return Some(Until::news(to, dropped.collect()));
    }
    let whats: Vec<String> = found.iter().take(5).map(|d| d.what.to_string()).collect();
    let more = match found.len() {
        0..=5 => String::new(),
        all => format!(", and {} more", all - 5),
    };
    let reason = Reason::Missing {
        refusal: format!(
            "publication {}: {}{more}. Changes between {from} and {to} can be missing",
            config.source.publication,
            whats.join(", "),
        ),
        gap: Gap {
            from,
            to: Some(to),
            histories: found.iter().filter_map(|d| d.history.clone()).collect(),
        },
    };
    Some(Until { lsn: to, reason })
}

/// What is followed from now on, as the source has it.
///
/// # Errors
/// The source was changed since it was compared.
pub(super) async fn record(
    config: &Config,
    source: &Client,
    captured: &[Captured],
    before: Option<&Record>,
) -> Result<Record> {
    let changed = || Fault::retry("the source was changed while the session was started");
    let wanted: Vec<Wanted<'_>> = captured
        .iter()
        .map(|table| (table.source.oid, &table.source.name))
        .collect();
    let seeing = see(source, &config.source.publication, &wanted).await?;
    let publication = seeing.look.publication.ok_or_else(changed)?;
    if before.is_some_and(|before| before.publication != publication) {
        return Err(changed());
    }
    let followed = before.map(Record::by_history).unwrap_or_default();
    let mut tables = Vec::with_capacity(captured.len());
    for (table, found) in captured.iter().zip(seeing.look.tables) {
        // Set-up took its time, and what was altered meanwhile was not compared.
        let was = followed.get(&table.history.name);
        if was.is_some_and(|was| sight::is_other(was, table.source.oid, &found)) {
            return Err(changed());
        }
        let (name, standing) = found.table.ok_or_else(changed)?;
        if standing.member.is_none() || standing.filtered || standing.published_as.is_some() {
            return Err(changed());
        }
        let in_short = &table.layout.in_short;
        if !in_short.is_empty() && *in_short != standing.attributes {
            return Err(changed());
        }
        if let Some(was) = was {
            log_news(&name, &was.seen.standing, &standing);
        }
        tables.push(Followed {
            history: table.history.name.clone(),
            oid: table.source.oid,
            name,
            seen: Seen {
                key: table.source.key.clone(),
                standing,
            },
        });
    }
    Ok(Record {
        publication,
        whole: seeing.before,
        tables,
    })
}

/// Looks at the source while a session streams.
pub(super) struct SourceWatch {
    pub(super) config: Config,
    pub(super) source: Arc<Client>,
    /// Where what was seen whole is kept.
    pub(super) target: Arc<Client>,
    pub(super) record: Record,
    /// The stream has just described a table.
    pub(super) hints: mpsc::Receiver<()>,
    pub(super) until: watch::Sender<Option<Until>>,
    /// The position at which everything was last seen whole.
    pub(super) whole: watch::Sender<Whole>,
    /// When patterns were last looked up.
    pub(super) expanded: Instant,
    /// The source is a standby, as far as is known.
    pub(super) may_be_promoted: bool,
}

impl SourceWatch {
    /// Looks until something is found; the stream then ends at that position by itself.
    pub(super) async fn run(mut self) -> Result<Infallible> {
        let mut noted = (self.record.whole.lsn, Instant::now());
        let mut described = 0;
        let mut waited_for = requirements::is_waited_for(&self.source).await?;
        loop {
            let next = Instant::now() + LOOK_EVERY;
            tokio::select! {
                () = sleep_until(next) => {}
                Some(()) = self.hints.recv() => {
                    described = DESCRIBED_LOOKS;
                    sleep_until(Instant::now() + LOOK_PAUSE).await;
                }
                timeline = standbys::promoted(&self.source), if self.may_be_promoted => {
                    self.follow_timeline(timeline?).await?;
                    continue;
                }
            }
            // What the stream said meanwhile is covered by this look.
            while self.hints.try_recv().is_ok() {}
            standbys::log_waited_for(&self.source, &mut waited_for).await?;
            let (followed, seeing, until) = look(&self.config, &self.source, &self.record).await?;
            if let Some(until) = until {
                return self.end_at(until).await;
            }
            // Not whole at this look: which rows have which attributes is found from the one before.
            if has_other_columns(&followed, &seeing.look) {
                return self.end_at(Until::news(seeing.after, Vec::new())).await;
            }
            if described > 0 {
                described -= 1;
                let slot = &self.config.source.slot;
                followed::described_rightly(&self.target, slot, seeing.before.lsn)
                    .await
                    .map_err(Side::Target.failed("could not keep what is followed"))?;
            }
            self.record.whole = seeing.before;
            self.whole.send_replace(seeing.before);
            let news = self.take_news(&followed, &seeing.look);
            if self
                .has_to_set_up(&followed, &seeing.look, seeing.after)
                .await?
            {
                if news {
                    self.keep(&mut noted).await?;
                }
                return self.end_at(Until::news(seeing.after, Vec::new())).await;
            }
            if news {
                self.keep(&mut noted).await?;
            } else if seeing.before.lsn.bytes_since(noted.0) >= REPORT_BYTES
                && noted.1.elapsed() >= REPORT_INTERVAL
            {
                // Its own WAL must not ask for the next one.
                note(&self.target, &self.config.source.slot, seeing.before).await?;
                noted = (seeing.before.lsn, Instant::now());
            }
        }
    }

    /// Where the source was promoted while it was read, this stream goes on on its new timeline.
    async fn follow_timeline(&mut self, timeline: u32) -> Result<()> {
        self.may_be_promoted = false;
        let slot = &self.config.source.slot;
        let is_new = checkpoint::set_timeline(&self.target, slot, timeline, None)
            .await
            .map_err(Side::Target.failed("could not keep its checkpoint"))?;
        if is_new {
            tracing::info!(slot, timeline, "the source was promoted");
        }
        Ok(())
    }

    /// Has the stream end there, and with it this watch.
    async fn end_at(&self, until: Until) -> Result<Infallible> {
        until.log();
        self.until.send_replace(Some(until));
        std::future::pending().await
    }

    /// Whether patterns mean other tables now, or a column list lacks a column.
    async fn has_to_set_up(
        &mut self,
        followed: &[Followed],
        look: &Look,
        look_end: Lsn,
    ) -> Result<bool> {
        let tables = self.config.tables.iter();
        let tables: HashMap<&TableName, &Table> =
            tables.map(|table| (&table.history, table)).collect();
        let mut lacks_column = false;
        for (was, found) in std::iter::zip(followed, &look.tables) {
            let (Some(table), Some((_, now))) = (tables.get(&was.history), &found.table) else {
                continue;
            };
            let missing = unsent(table, &now.unlisted);
            lacks_column |= !missing.is_empty();
            if missing != unsent(table, &was.seen.standing.unlisted) {
                tracing::warn!(
                    table = %table.source,
                    columns = missing.join(", "),
                    until = %look_end,
                    "the publication lists columns and these are new: their values until here are not in the history"
                );
            }
        }
        if lacks_column && self.config.setup == Setup::Auto {
            return Ok(true);
        }
        if self.config.patterns.is_empty() || self.expanded.elapsed() < LOOK_EVERY {
            return Ok(false);
        }
        self.expanded = Instant::now();
        let now = setup::expand(&self.config, &self.source, Some(&self.record)).await?;
        let names = now.tables.iter().map(|table| &table.history);
        let now: HashSet<&TableName> = names.collect();
        Ok(now.len() != tables.len() || tables.keys().any(|history| !now.contains(history)))
    }

    async fn keep(&self, noted: &mut (Lsn, Instant)) -> Result<()> {
        *noted = (self.record.whole.lsn, Instant::now());
        followed::write(&self.target, &self.config.source.slot, &self.record)
            .await
            .map_err(Side::Target.failed("could not keep what is followed"))
    }

    /// Takes over what has changed without hiding a change, and logs what the history cannot show; true when anything has.
    fn take_news(&mut self, followed: &[Followed], look: &Look) -> bool {
        let mut news = false;
        for (was, found) in followed.iter().zip(&look.tables) {
            let Some((name, standing)) = &found.table else {
                continue;
            };
            if was.name == *name && was.seen.standing == *standing {
                continue;
            }
            news = true;
            log_news(name, &was.seen.standing, standing);
            let entry = self
                .record
                .tables
                .iter_mut()
                .find(|t| t.history == was.history);
            if let Some(entry) = entry {
                entry.name = name.clone();
                entry.seen.standing = standing.clone();
            }
        }
        news
    }
}

/// Whether columns of a table were added, renamed or dropped.
fn has_other_columns(followed: &[Followed], look: &Look) -> bool {
    std::iter::zip(followed, &look.tables).any(|(was, found)| {
        let now = found.table.as_ref().map(|(_, now)| &now.attributes);
        let was = &was.seen.standing.attributes;
        now.is_some_and(|now| !was.is_empty() && now != was)
    })
}

/// Columns that the publication leaves out and the history does not.
fn unsent<'a>(table: &Table, unlisted: &'a [String]) -> Vec<&'a str> {
    let unlisted = unlisted.iter().map(String::as_str);
    unlisted
        .filter(|name| !table.exclude_columns.iter().any(|other| other == name))
        .collect()
}

/// Logs what the history of a table cannot show: rows that were moved or removed without a change of any row, and what may have
/// been.
fn log_news(table: &TableName, was: &Standing, now: &Standing) {
    log_partitions(table, &was.partitions, &now.partitions);
    log_rewritten(table, &was.partitions, &now.partitions);
    let is_rewritten = was.file != 0 && now.file != 0 && was.file != now.file;
    // Nothing in the catalogs tells this apart from a TRUNCATE or VACUUM FULL, which hide nothing.
    if is_rewritten && !now.is_published_by_name() {
        tracing::warn!(
            table = %table,
            "the table was rewritten; if it was unlogged meanwhile, its changes of that time are not in the history"
        );
    }
}

/// Attaching and detaching move rows without a change of any row.
fn log_partitions(table: &TableName, was: &[Partition], now: &[Partition]) {
    let known = |among: &[Partition], oid| among.iter().any(|p| p.oid == oid);
    for partition in now.iter().filter(|p| !known(was, p.oid)) {
        tracing::info!(
            table = %table,
            partition = partition.name,
            "a partition was created or attached; rows that it held before are not in the history"
        );
    }
    for partition in was.iter().filter(|p| !known(now, p.oid)) {
        tracing::info!(
            table = %table,
            partition = partition.name,
            "a partition was dropped or detached; the history has no DELETE for its rows"
        );
    }
}

fn log_rewritten(table: &TableName, was: &[Partition], now: &[Partition]) {
    let files: HashMap<u32, u32> = was.iter().map(|p| (p.oid, p.file)).collect();
    let former = |p: &Partition| files.get(&p.oid).copied().filter(|&file| file != 0);
    let known = now.iter().filter(|p| former(p).is_some());
    let (kept, rewritten): (Vec<&Partition>, Vec<&Partition>) =
        known.partition(|p| former(p) == Some(p.file));
    if rewritten.is_empty() {
        return;
    }
    if kept.is_empty() {
        tracing::info!(
            table = %table,
            "every partition was rewritten; a TRUNCATE of the table is in the history, one of each partition is not"
        );
        return;
    }
    for partition in rewritten {
        tracing::warn!(
            table = %table,
            partition = partition.name,
            "a partition was rewritten; if it alone was truncated, or unlogged meanwhile, the history does not show it"
        );
    }
}

/// Notes the position at which everything was last seen whole.
pub(super) async fn note(target: &Client, slot: &str, whole: Whole) -> Result<()> {
    followed::whole(target, slot, whole)
        .await
        .map_err(Side::Target.failed("could not keep what is followed"))
}
