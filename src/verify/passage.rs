//! The position at which both sides are compared, and where the history has it.
//!
//! A temporary slot gives the position P: a snapshot of the source has what committed before P. The history's rows are looked at
//! together with the checkpoint, from before the slot is made until they have all that committed before P:
//!
//! ```text
//!   rows up to `before`: all of them committed before P      (the checkpoint was at P or before)
//!   rows up to `upto`:   all that committed before P is there (the checkpoint, or what was reported, is at P or past it)
//! ```
//!
//! With `commit_lsn` the last row before P is found between the two. Without it the rows between them stay open: with one
//! look every few milliseconds they are those of a batch.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::config::Config;
use crate::fault::{Exit, Fault, Result};
use crate::history::lock;
use crate::lsn::Lsn;
use crate::schema::plan::literal;
use crate::schema::{Identifier, TableName};
use crate::server::{Reminder, Side};
use crate::snapshot::point::Point;

use super::progress::Progress;

/// How often the target is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// Looks that are kept while the slot is being made.
const LOOKS_MAX: usize = 1024;
/// A source that rests says how far its WAL is only when that has grown by 1 MiB (`source/feedback.rs`).
const NUDGE: [(u32, u32); 2] = [(9, 128 * 1024), (1, 8 * 1024)];
const NUDGE_EVERY: Duration = Duration::from_secs(1);
/// A slot may be without a writer for so long: one instance takes over from another.
const UNWRITTEN_MAX: Duration = Duration::from_secs(5);

/// A history, and the column that numbers its rows.
#[derive(Clone, Debug)]
pub(crate) struct Numbered {
    pub(crate) history: TableName,
    /// Empty where it has none that can be used.
    pub(crate) number: String,
    /// Its rows say at which position they committed.
    pub(crate) has_lsn: bool,
}

/// The numbers of a history's last rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Around {
    pub(crate) before: i64,
    pub(crate) upto: i64,
}

/// One look at the target.
#[derive(Clone, Debug)]
struct Seen {
    end: Lsn,
    reported: Lsn,
    numbers: Vec<i64>,
}

impl Seen {
    /// Whether the history has all that committed before `point`.
    fn has(&self, point: Lsn) -> bool {
        self.end >= point || self.reported >= point
    }
}

/// Looks at histories while a point is made and until they have passed it.
pub(crate) struct Passage<'a> {
    config: &'a Config,
    source: &'a Client,
    target: &'a Client,
    tables: Vec<Numbered>,
    looks: VecDeque<Seen>,
}

impl<'a> Passage<'a> {
    pub(crate) fn new(
        config: &'a Config,
        (source, target): (&'a Client, &'a Client),
        tables: Vec<Numbered>,
    ) -> Self {
        Self {
            config,
            source,
            target,
            tables,
            looks: VecDeque::new(),
        }
    }

    /// Makes a point.
    pub(crate) async fn take(&mut self) -> Result<Point> {
        self.look(|_| true).await?;
        let name = format!("waltrail_verify_{:016x}", fastrand::u64(..));
        let config = self.config;
        let mut taken = pin!(Point::at(config, &name));
        loop {
            tokio::select! {
                point = &mut taken => return point,
                () = tokio::time::sleep(LOOK) => self.look(|table| !table.has_lsn).await?,
            }
        }
    }

    /// Waits until the histories have all that committed before `point`. Around what rows that is, in the order of the tables.
    ///
    /// # Errors
    /// Exit 75 where no waltrail writes.
    pub(crate) async fn pass(mut self, point: Lsn, progress: &Progress) -> Result<Vec<Around>> {
        let started = Instant::now();
        let mut reminder = Reminder::default();
        let mut unwritten: Option<Instant> = None;
        let mut nudged: Option<Instant> = None;
        while !self.looks.back().is_some_and(|seen| seen.has(point)) {
            tokio::time::sleep(LOOK).await;
            self.look(|table| !table.has_lsn).await?;
            let seen = self.looks.back().map(|seen| seen.end.max(seen.reported));
            let behind = point.bytes_since(seen.unwrap_or_default());
            progress.waits(behind);
            if nudged.is_none_or(|at| at.elapsed() >= NUDGE_EVERY) {
                let is_written = self.is_written().await?;
                let since = *unwritten.get_or_insert_with(Instant::now);
                match is_written {
                    true => unwritten = None,
                    false if since.elapsed() >= UNWRITTEN_MAX => return Err(self.not_written()),
                    false => {}
                }
                let (times, bytes) = NUDGE[usize::from(nudged.is_some())];
                self.nudge(times, bytes).await?;
                nudged = Some(Instant::now());
            }
            if started.elapsed() >= NUDGE_EVERY && reminder.is_due() && !progress.is_drawn() {
                tracing::info!(%point, bytes = behind, "waiting until the history has everything up to this position");
            }
        }
        progress.waits(0);
        let seconds = started.elapsed().as_secs_f64();
        tracing::debug!(%point, seconds, "the history has everything up to this position");
        self.around(point).await
    }

    async fn around(mut self, point: Lsn) -> Result<Vec<Around>> {
        let at = self.looks.iter().position(|seen| seen.has(point));
        let passed = at.and_then(|at| self.looks.get(at)).cloned();
        let before = self.looks.iter().rev().find(|seen| seen.end <= point);
        let before = before.or(self.looks.front()).cloned();
        // A history whose rows say where they committed was not looked at in between.
        self.look(|_| true).await?;
        let last = self.looks.back().cloned();
        let number = |seen: &Option<Seen>, at: usize| {
            let seen = seen.as_ref();
            seen.and_then(|seen| seen.numbers.get(at).copied())
                .unwrap_or_default()
        };
        let tables = self.tables.iter().enumerate();
        let around = tables.map(|(at, table)| Around {
            before: number(&before, at),
            upto: number(if table.has_lsn { &last } else { &passed }, at),
        });
        Ok(around.collect())
    }

    /// One look, at the tables that are `wanted`; the others stay what they were.
    async fn look(&mut self, wanted: impl Fn(&Numbered) -> bool) -> Result<()> {
        let numbers: Vec<String> = self
            .tables
            .iter()
            .enumerate()
            .map(
                |(at, table)| match wanted(table) && !table.number.is_empty() {
                    true => format!(
                        "(SELECT coalesce(max(h.{}), 0)::bigint FROM {} h)",
                        Identifier(&table.number),
                        table.history
                    ),
                    false => {
                        let last = self.looks.back();
                        let last = last.and_then(|seen| seen.numbers.get(at).copied());
                        last.unwrap_or_default().to_string()
                    }
                },
            )
            .collect();
        let query = format!(
            "SELECT coalesce(end_lsn, '0/0'), coalesce(reported_lsn, '0/0'), ARRAY[{}]::bigint[] \
               FROM waltrail.checkpoint WHERE slot = {}",
            numbers.join(", "),
            literal(&self.config.source.slot)
        );
        let row = self.target.query_opt(&query, &[]).await;
        let row = row.map_err(Side::Target.failed("could not show how far the history is"))?;
        let Some(row) = row else {
            return Err(Fault::halt(
                Exit::Config,
                format!(
                    "slot {} has no checkpoint on the target",
                    self.config.source.slot
                ),
            )
            .remedy("waltrail run"));
        };
        let seen = Seen {
            end: row.get(0),
            reported: row.get(1),
            numbers: row.get(2),
        };
        // Only the last look at each position counts for what is before it, and the first one for what is after.
        let moves = |last: &Seen| {
            (last.end, last.reported, &last.numbers) != (seen.end, seen.reported, &seen.numbers)
        };
        if self.looks.back().is_none_or(moves) {
            self.looks.push_back(seen);
            if self.looks.len() > LOOKS_MAX {
                self.looks.pop_front();
            }
        }
        Ok(())
    }

    async fn is_written(&self) -> Result<bool> {
        lock::is_held(self.target, &self.config.source.slot)
            .await
            .map_err(Side::Target.failed("could not show its locks"))
    }

    fn not_written(&self) -> Fault {
        let slot = &self.config.source.slot;
        Fault::halt(
            Exit::Unreachable,
            format!("no waltrail writes for slot {slot}, and the history does not have all that committed"),
        )
        .remedy("start it (systemctl start waltrail), then run verify again")
    }

    /// Has a source that rests show how far its WAL is.
    async fn nudge(&self, times: u32, bytes: u32) -> Result<()> {
        let messages = format!(
            "SELECT count(pg_catalog.pg_logical_emit_message(false, 'waltrail.verify', repeat('x', {bytes}))) \
               FROM generate_series(1, {times}) WHERE NOT pg_catalog.pg_is_in_recovery()"
        );
        self.source
            .query(&messages, &[])
            .await
            .map(|_| ())
            .map_err(Side::Source.failed("could not write to its WAL"))
    }
}
