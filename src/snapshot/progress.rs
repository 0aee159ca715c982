//! How far the copy is: counted by the workers, shown in the log, on a terminal and by `status`.
//!
//! On a terminal each table has a bar; log lines are written above the bars, by the log's own thread, through
//! [`beside_bars`]. Elsewhere there is a log line now and then.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{
    FormattedDuration, HumanBytes, HumanCount, MultiProgress, ProgressBar, ProgressDrawTarget,
    ProgressStyle,
};
use tokio_postgres::Client;

use super::state;
use crate::clock;
use crate::schema::TableName;

/// How often the numbers are noted for `status`.
const NOTE_EVERY: Duration = Duration::from_secs(5);
/// At most one log line a table in this time.
const LOG_EVERY: Duration = Duration::from_secs(10);
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// All bars of this process, on standard error.
static BARS: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(5)));

/// Lets `write` write to standard error without tearing the bars.
pub fn beside_bars<T>(write: impl FnOnce() -> T) -> T {
    BARS.suspend(write)
}

/// A bar for a command that waits, on a terminal.
pub(crate) fn spinner() -> Option<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos} of {len} {elapsed} {msg}");
    let bar = BARS.add(
        ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())),
    );
    bar.enable_steady_tick(DRAW_EVERY);
    Some(bar)
}

/// Takes such a bar away.
pub(crate) fn clear(bar: &ProgressBar) {
    bar.finish_and_clear();
    BARS.remove(bar);
}

/// The rows and bytes of one table.
#[derive(Debug, Default)]
pub struct Counter {
    rows: AtomicU64,
    bytes: AtomicU64,
    /// When some were last added, in microseconds since 2000-01-01; 0: none were.
    moved: AtomicI64,
}

impl Counter {
    pub fn add(&self, rows: u64, bytes: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.moved.store(clock::now(), Ordering::Relaxed);
    }

    /// When some were last added, in microseconds since 2000-01-01; 0: none were.
    pub fn moved(&self) -> i64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// So many of those were no rows.
    pub fn correct(&self, rows: u64) {
        self.rows.fetch_sub(rows, Ordering::Relaxed);
    }

    /// Rows and bytes until now.
    pub fn now(&self) -> (u64, u64) {
        (
            self.rows.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
        )
    }
}

#[derive(Clone, Debug)]
pub struct TableCopy {
    pub source: TableName,
    pub history: TableName,
    /// Rows that the statistics of the source expect; 0 when they know none.
    pub rows_expected: u64,
    pub counter: Arc<Counter>,
    began: Instant,
    bar: Bar,
}

/// A bar that goes away with the last who has it.
#[derive(Clone, Debug)]
struct Bar(Arc<Drawn>);

#[derive(Debug)]
struct Drawn(Option<ProgressBar>);

impl Bar {
    fn new(table: &TableName, rows_expected: u64) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(Arc::new(Drawn(None)));
        }
        let (length, template) = match rows_expected {
            0 => (None, "{prefix} {human_pos} rows{msg}"),
            rows => (
                Some(rows),
                "{prefix} {wide_bar} {human_pos} of about {human_len} rows{msg}",
            ),
        };
        let style = ProgressStyle::with_template(template);
        let bar = BARS.add(
            ProgressBar::no_length()
                .with_prefix(table.to_string())
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())),
        );
        if let Some(length) = length {
            bar.set_length(length);
        }
        Self(Arc::new(Drawn(Some(bar))))
    }

    /// `pace`: see [`TableCopy::pace`]. The rate is the one that the log and the metrics show.
    fn draw(&self, rows: u64, bytes: u64, (rate, left): (f64, Option<f64>)) {
        if let Some(bar) = &self.0.0 {
            // Statistics are not always right.
            if bar.length().is_some_and(|length| length < rows) {
                bar.set_length(rows);
            }
            bar.set_position(rows);
            let mut message = format!(", {}", HumanBytes(bytes));
            if rows > 0 {
                message.push_str(&format!(", {}/s", HumanCount(rate as u64)));
            }
            if let Some(Ok(left)) = left.map(Duration::try_from_secs_f64) {
                message.push_str(&format!(", {} left", FormattedDuration(left)));
            }
            bar.set_message(message);
        }
    }
}

impl Drop for Drawn {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
            BARS.remove(bar);
        }
    }
}

impl TableCopy {
    pub fn new(
        source: TableName,
        history: TableName,
        rows_expected: u64,
        counter: Arc<Counter>,
    ) -> Self {
        let bar = Bar::new(&source, rows_expected);
        Self {
            source,
            history,
            rows_expected,
            counter,
            began: Instant::now(),
            bar,
        }
    }

    /// Rows a second, and the seconds left at that rate, where the source's statistics let that be said.
    pub fn pace(&self) -> (f64, Option<f64>) {
        let (rows, _) = self.counter.now();
        let rate = rows as f64 / self.began.elapsed().as_secs_f64().max(0.001);
        let left = self.rows_expected.checked_sub(rows).filter(|_| rows > 0);
        (rate, left.map(|left| left as f64 / rate))
    }
}

/// The tables of one attempt that are not recorded yet.
#[derive(Debug, Default)]
pub struct CopyProgress(Mutex<Vec<TableCopy>>);

impl CopyProgress {
    pub fn add(&self, line: TableCopy) {
        self.tables_mut(|lines| lines.push(line));
    }

    /// A table is recorded: its numbers, if it was there.
    pub fn remove(&self, history: &TableName) -> Option<TableCopy> {
        self.tables_mut(|lines| {
            let at = lines.iter().position(|line| line.history == *history)?;
            Some(lines.remove(at))
        })
    }

    pub fn tables(&self) -> Vec<TableCopy> {
        self.tables_mut(|lines| lines.clone())
    }

    fn tables_mut<T>(&self, act: impl FnOnce(&mut Vec<TableCopy>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Logs, draws and notes, until it is dropped. A note that fails is only a number that is old.
pub async fn report(progress: &CopyProgress, target: &Client, slot: &str) {
    let terminal = std::io::stderr().is_terminal();
    let (mut logged, mut noted) = (Instant::now(), Instant::now());
    loop {
        tokio::time::sleep(if terminal { DRAW_EVERY } else { NOTE_EVERY }).await;
        let mut lines = progress.tables();
        for line in &lines {
            let (rows, bytes) = line.counter.now();
            line.bar.draw(rows, bytes, line.pace());
        }
        lines.retain(|line| line.counter.now().0 > 0);
        if noted.elapsed() >= NOTE_EVERY {
            noted = Instant::now();
            for line in &lines {
                let (rows, bytes) = line.counter.now();
                if let Err(error) = state::note(target, slot, &line.history, rows, bytes).await {
                    tracing::debug!(%error, "the progress of the snapshot was not noted");
                }
            }
        }
        if !terminal && logged.elapsed() >= LOG_EVERY {
            logged = Instant::now();
            for line in &lines {
                let (rows, bytes) = line.counter.now();
                let (rows_per_second, seconds_left) = line.pace();
                tracing::info!(
                    table = %line.source,
                    rows,
                    rows_expected = line.rows_expected,
                    bytes,
                    rows_per_second,
                    seconds_left,
                    "recording the existing rows"
                );
            }
        }
    }
}
