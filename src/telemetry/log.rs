//! Log lines.
//!
//! ```text
//! event -> level filter (reloadable) -> one line -> bounded queue -> a thread -> standard error
//! ```
//!
//! Lines go to standard error, so that standard output belongs to what a command prints. The queue
//! is what keeps a stalled reader from stalling the stream: when it is full, lines are dropped and
//! counted, and no caller ever waits. **No row value ever gets here**: our own events carry none,
//! and the PostgreSQL client's events, which may repeat what a server said, are off at every level.
//! Names and words of others are in the lines as [`printable`] shows them: one event is one line.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::mpsc;
use std::time::Duration;

use tracing::Subscriber;
use tracing::field::Field;
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Format, Level};
use crate::fault::{Fault, Result};
use crate::printable::{TEXT_MAX, printable, printable_json};
use crate::snapshot::progress::beside_bars;

/// Lines that may wait for a slow reader; some hundred bytes each.
const QUEUE_LINES_MAX: usize = 8_192;

/// A line that is longer has at least one value that is too long: as much as a few of them.
const LINE_MAX: usize = 4 * TEXT_MAX;

/// How long the end of the program waits for a reader to take the last lines.
const FLUSH_MAX: Duration = Duration::from_millis(1_500);

/// The PostgreSQL client's own events, which may hold what a server's NOTICE or ERROR repeats of a
/// row. A target's prefix covers its modules, and `postgres` covers `postgres_protocol`.
const NEVER: [&str; 2] = ["tokio_postgres", "postgres"];

pub(crate) struct Log;

/// Keeps the log running; when it is dropped, waiting lines are written out first.
#[must_use = "the log stops when this is dropped"]
pub(crate) struct LogGuard {
    filter: reload::Handle<Targets, Registry>,
    dropped: ErrorCounter,
    worker: Option<WorkerGuard>,
}

impl Log {
    /// Starts the log of this process on standard error. `None` as format is text on a terminal and
    /// JSON elsewhere.
    pub(crate) fn init(format: Option<Format>, level: Level) -> Result<LogGuard> {
        let terminal = io::stderr().is_terminal();
        let format = format.unwrap_or(if terminal { Format::Text } else { Format::Json });
        let (subscriber, guard) = pipeline(BesideBars, format, terminal, level);
        subscriber
            .try_init()
            .map_err(|error| Fault::bug("the log was started twice").caused_by(error))?;
        Ok(guard)
    }
}

impl LogGuard {
    /// Shows events from `level` on, from now.
    pub(crate) fn set_level(&self, level: Level) {
        // It fails only when the subscriber is gone, and then nothing is shown anyway.
        let _ = self.filter.reload(targets(level));
    }

    /// Counts the lines lost because their reader was too slow.
    pub(crate) fn lines_dropped(&self) -> ErrorCounter {
        self.dropped.clone()
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let Some(worker) = self.worker.take() else {
            return;
        };
        // The appender's own guard may print to standard output when its thread hangs in a write;
        // where both outputs share one stalled pipe that would hold the process for ever. A thread
        // that is not joined cannot.
        let (done, flushed) = mpsc::channel();
        let flusher = std::thread::Builder::new().name("log-flush".to_owned());
        let spawned = flusher.spawn(move || {
            drop(worker);
            let _ = done.send(());
        });
        if spawned.is_ok() {
            let _ = flushed.recv_timeout(FLUSH_MAX);
        }
    }
}

/// Standard error, which bars may be drawn on.
struct BesideBars;

impl Write for BesideBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        beside_bars(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Which events are shown: ours from `level` on, everybody else's warnings and errors at most.
fn targets(level: Level) -> Targets {
    let ours = filter_of(level);
    Targets::new()
        .with_default(ours.min(LevelFilter::WARN))
        .with_target(env!("CARGO_CRATE_NAME"), ours)
        .with_targets(NEVER.map(|target| (target, LevelFilter::OFF)))
}

fn filter_of(level: Level) -> LevelFilter {
    match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    }
}

fn pipeline(
    sink: impl Write + Send + 'static,
    format: Format,
    colours: bool,
    level: Level,
) -> (impl Subscriber + Send + Sync, LogGuard) {
    let (writer, worker) = NonBlockingBuilder::default()
        .buffered_lines_limit(QUEUE_LINES_MAX)
        .lossy(true)
        .thread_name("log")
        .finish(sink);
    let dropped = writer.error_counter();
    let (filter, handle) = reload::Layer::new(targets(level));
    let subscriber = tracing_subscriber::registry()
        .with(filter)
        .with(lines(writer, format, colours));
    let guard = LogGuard {
        filter: handle,
        dropped,
        worker: Some(worker),
    };
    (subscriber, guard)
}

/// Each event as one line: `timestamp` (RFC 3339, UTC), `level`, `message` and the event's fields,
/// which must not be called like these three.
fn lines<S, W>(writer: W, format: Format, colours: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_target(false);
    match format {
        Format::Json => layer
            .with_writer(JsonLines(writer))
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .boxed(),
        Format::Text => layer
            .with_writer(writer)
            .with_ansi(colours)
            .fmt_fields(debug_fn(write_field).delimited(" "))
            .boxed(),
    }
}

/// As the library writes it, and in one line.
fn write_field(out: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let value = printable(&format!("{value:?}"), TEXT_MAX);
    match (field.name(), out.has_ansi_escapes()) {
        // The older log interface says here where a line comes from.
        (name, _) if name.starts_with("log.") => Ok(()),
        ("message", _) => out.write_str(&value),
        (name, true) => write!(out, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{value}"),
        (name, false) => write!(out, "{name}={value}"),
    }
}

/// Takes whole lines of JSON.
struct JsonLines<W>(W);

struct JsonLine<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for JsonLines<W> {
    type Writer = JsonLine<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        JsonLine(self.0.make_writer())
    }
}

impl<W: Write> Write for JsonLine<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8_lossy(bytes);
        let line = match line.len() > LINE_MAX {
            true => Cow::Owned(shorter(&line)),
            false => line,
        };
        self.0.write_all(printable_json(&line).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The same line with its texts cut.
fn shorter(line: &str) -> String {
    let Ok(mut fields) = serde_json::from_str::<serde_json::Map<_, _>>(line) else {
        return printable(line, LINE_MAX) + "\n";
    };
    for value in fields.values_mut() {
        if let serde_json::Value::String(text) = value {
            *text = printable(text, TEXT_MAX);
        }
    }
    serde_json::Value::Object(fields).to_string() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::TableSyncs;
    use crate::telemetry::metrics;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, level: Level, events: impl FnOnce(&LogGuard)) -> Vec<String> {
        let sink = Sink::default();
        let (subscriber, guard) = pipeline(sink.clone(), format, false, level);
        tracing::subscriber::with_default(subscriber, || events(&guard));
        drop(guard);
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_json_line_has_time_level_message_and_the_fields_beside_them() {
        let lines = logged(Format::Json, Level::Info, |_| {
            tracing::info!(slot = "s", rows = 3, "streaming");
        });
        let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(lines.len(), 1);
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["message"], "streaming");
        assert_eq!(line["slot"], "s");
        assert_eq!(line["rows"], 3);
        let time = line["timestamp"].as_str().unwrap();
        assert!(time.contains('T') && time.ends_with('Z'), "{time}");
        assert_eq!(line.as_object().unwrap().len(), 5, "{line}");
    }

    #[test]
    fn the_postgresql_client_is_silent_at_every_level() {
        let lines = logged(Format::Json, Level::Trace, |_| {
            tracing::error!(target: "tokio_postgres::connection", "canary");
            tracing::error!(target: "postgres_protocol", "canary");
            tracing::error!(target: "postgres", "canary");
            tracing::info!(target: "refinery_core", "canary");
            tracing::warn!(target: "refinery_core", "kept");
            tracing::trace!("kept");
        });
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(!lines.concat().contains("canary"));
    }

    #[test]
    fn the_older_log_interface_obeys_the_same_filter() {
        let sink = Sink::default();
        let (subscriber, guard) = pipeline(sink.clone(), Format::Json, false, Level::Trace);
        // The bridge is global, so this is the one test that may start the log for the process.
        subscriber.try_init().unwrap();
        ::log::error!(target: "tokio_postgres::connection", "canary");
        ::log::info!(target: "refinery_core", "canary");
        ::log::warn!(target: "refinery_core", "kept");
        drop(guard);
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("kept") && !text.contains("canary"), "{text}");
    }

    #[test]
    fn an_event_is_one_line_whatever_the_names_in_it() {
        const EVIL: &str =
            "t\u{1b}[2J\u{9b}1A\r\n2026-01-01T00:00:00Z  INFO streaming\u{202e}\u{2028}";
        let events = |_: &LogGuard| {
            tracing::warn!(table = EVIL, "{EVIL}");
            tracing::warn!(error = %Fault::bug(EVIL), names = ?[EVIL], slot = %EVIL, "said");
            tracing::warn!(table = "x".repeat(1_000_000), "long");
        };
        for format in [Format::Json, Format::Text] {
            let lines = logged(format, Level::Info, events);
            assert_eq!(lines.len(), 3, "{lines:?}");
            for line in &lines {
                let acts = |c: char| c.is_control() || "\u{202e}\u{2028}".contains(c);
                assert!(!line.contains(acts), "{line:?}");
                assert!(line.len() < 2 * TEXT_MAX, "{}", line.len());
            }
            if format == Format::Json {
                let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
                assert_eq!(line["table"], EVIL);
                assert!(lines[2].contains("1000000 bytes in all"));
            }
        }
    }

    #[test]
    fn the_level_changes_while_it_runs() {
        let lines = logged(Format::Text, Level::Error, |guard| {
            tracing::info!("before");
            guard.set_level(Level::Debug);
            tracing::debug!(lag_bytes = 7, "after");
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("after") && lines[0].contains("lag_bytes=7"));
    }

    #[test]
    fn a_reader_that_takes_nothing_stops_nobody() {
        struct Stalled(mpsc::Receiver<()>);
        impl Write for Stalled {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (release, held) = mpsc::channel();
        let started = std::time::Instant::now();
        let (subscriber, guard) = pipeline(Stalled(held), Format::Json, false, Level::Info);
        tracing::subscriber::with_default(subscriber, || {
            for line in 0..2 * QUEUE_LINES_MAX {
                tracing::info!(line, "more");
            }
        });
        let lost = guard.lines_dropped();
        assert!(lost.dropped_lines() >= QUEUE_LINES_MAX - 1);
        let snapshot = TableSyncs::new(false).0.shared();
        let sources = metrics::Sources::new(Arc::default(), snapshot, lost.clone());
        let metrics = metrics::registry(sources);
        let served = metrics::Format::Text.encode(&metrics).unwrap();
        let line = format!(
            "waltrail_log_lines_dropped_total {}\n",
            lost.dropped_lines()
        );
        assert!(served.contains(&line), "{served}");
        drop(guard);
        assert!(started.elapsed() < Duration::from_secs(10));
        drop(release);
    }
}
