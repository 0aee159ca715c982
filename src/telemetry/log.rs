//! Log lines.
//!
//! ```text
//! event -> level filter -> one line -> bounded queue -> a thread -> standard error
//!                    -> the last ten, for the page (`board.rs`)
//! ```
//!
//! Levels and form change while it runs. Under systemd each line begins with its priority (`line.rs`); what is said beside the
//! log, of a process that ends, has the same form (`ending.rs`).
//!
//! Lines go to standard error, so that standard output belongs to what a command prints. The queue
//! is what keeps a stalled reader from stalling the stream: when it is full, lines are dropped and
//! counted, and no caller ever waits. **No row value ever gets here**: our own events carry none,
//! and the PostgreSQL client's events, which may repeat what a server said, are off at every level.
//! Names and words of others are in the lines as [`printable`] shows them: one event is one line.

mod ending;
mod line;

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tracing::Subscriber;
use tracing::field::Field;
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::{Layered, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use super::board::{Events, Keep};
use crate::config::{self, Format, Level, Levels};
use crate::fault::{Fault, Result};
use crate::printable::{TEXT_MAX, printable};
use crate::snapshot::progress::beside_bars;

pub(crate) use ending::{Ending, hear_panics, log_end};
use line::{Form, Lines, Stderr};

/// Lines that may wait for a slow reader; some hundred bytes each.
const QUEUE_LINES_MAX: usize = 8_192;

/// How long the end of the program waits for a reader to take the last lines.
const FLUSH_MAX: Duration = Duration::from_millis(1_500);

/// The PostgreSQL client's own events, which may hold what a server's NOTICE or ERROR repeats of a
/// row. A target's prefix covers its modules, and `postgres` covers `postgres_protocol`.
const NEVER: [&str; 2] = ["tokio_postgres", "postgres"];

/// What events have passed before they become lines.
type Filtered = Layered<reload::Layer<Targets, Registry>, Registry>;
type BoxedLines = Box<dyn Layer<Filtered> + Send + Sync>;

const CRATE: &str = env!("CARGO_CRATE_NAME");

pub(crate) struct Log;

/// Keeps the log running; when it is dropped, waiting lines are written out first.
#[must_use = "the log stops when this is dropped"]
pub(crate) struct LogGuard {
    filter: reload::Handle<Targets, Registry>,
    lines: reload::Handle<BoxedLines, Filtered>,
    writer: NonBlocking,
    stderr: Stderr,
    dropped: ErrorCounter,
    events: Arc<Events>,
    worker: Option<WorkerGuard>,
}

impl Log {
    /// Starts the log of this process on standard error.
    pub(crate) fn init(config: &config::Log) -> Result<LogGuard> {
        let (subscriber, guard) = pipeline(BesideBars, Stderr::look(), config);
        subscriber
            .try_init()
            .map_err(|error| Fault::bug("the log was started twice").caused_by(error))?;
        Ok(guard)
    }
}

impl LogGuard {
    /// Goes on with other levels, and in another form.
    pub(crate) fn set(&self, config: &config::Log) {
        // It fails only when the subscriber is gone, and then nothing is shown anyway.
        let _ = self.filter.reload(targets(&config.level));
        let form = self.stderr.form(config.format);
        ending::note_form(form);
        let _ = self.lines.reload(lines(self.writer.clone(), form));
    }

    /// Counts the lines lost because their reader was too slow.
    pub(crate) fn lines_dropped(&self) -> ErrorCounter {
        self.dropped.clone()
    }

    /// The last events, for the page.
    pub(crate) fn events(&self) -> Arc<Events> {
        Arc::clone(&self.events)
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

/// Which events are shown: ours by the level of their room, everybody else's warnings and errors at most.
fn targets(levels: &Levels) -> Targets {
    let ours = filter_of(levels.all);
    let rooms = levels.rooms.iter();
    let rooms = rooms.map(|(room, level)| (format!("{CRATE}::{room}"), filter_of(*level)));
    Targets::new()
        .with_default(ours.min(LevelFilter::WARN))
        .with_target(CRATE, ours)
        .with_targets(rooms)
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

fn pipeline<W: Write + Send + 'static>(
    sink: W,
    stderr: Stderr,
    config: &config::Log,
) -> (impl Subscriber + Send + Sync + use<W>, LogGuard) {
    let (writer, worker) = NonBlockingBuilder::default()
        .buffered_lines_limit(QUEUE_LINES_MAX)
        .lossy(true)
        .thread_name("log")
        .finish(sink);
    let dropped = writer.error_counter();
    let form = stderr.form(config.format);
    ending::note_form(form);
    let (layer, filter) = reload::Layer::new(targets(&config.level));
    let events = Arc::new(Events::default());
    let filtered = tracing_subscriber::registry().with(layer);
    let (layer, handle) = reload::Layer::new(lines(writer.clone(), form));
    let subscriber = filtered.with(layer).with(Keep(Arc::clone(&events)));
    let guard = LogGuard {
        filter,
        lines: handle,
        writer,
        stderr,
        dropped,
        events,
        worker: Some(worker),
    };
    (subscriber, guard)
}

/// Each event as one line: `timestamp` (RFC 3339, UTC), `level`, `message` and the event's fields,
/// which must not be called like these three.
fn lines<S, W>(writer: W, form: Form) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer()
        .with_target(false)
        .with_writer(Lines { form, writer });
    match form.format {
        Format::Json => layer
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .boxed(),
        Format::Text => layer
            .with_ansi(form.colours)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::TableSyncs;
    use crate::telemetry::metrics;
    use std::sync::Mutex;

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

    const NO_TERMINAL: Stderr = Stderr {
        is_terminal: false,
        colours: false,
        is_journal: false,
    };

    fn config(format: Format, level: impl Into<Levels>) -> config::Log {
        config::Log {
            format: Some(format),
            level: level.into(),
        }
    }

    fn logged(
        format: Format,
        level: impl Into<Levels>,
        events: impl FnOnce(&LogGuard),
    ) -> Vec<String> {
        logged_to(NO_TERMINAL, &config(format, level), events)
    }

    fn logged_to(
        stderr: Stderr,
        config: &config::Log,
        events: impl FnOnce(&LogGuard),
    ) -> Vec<String> {
        let sink = Sink::default();
        let (subscriber, guard) = pipeline(sink.clone(), stderr, config);
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
        let config = config(Format::Json, Level::Trace);
        let (subscriber, guard) = pipeline(sink.clone(), NO_TERMINAL, &config);
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
            guard.set(&config(Format::Text, Level::Debug));
            tracing::debug!(lag_bytes = 7, "after");
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("after") && lines[0].contains("lag_bytes=7"));
    }

    #[test]
    fn the_form_changes_while_it_runs() {
        let lines = logged(Format::Json, Level::Info, |guard| {
            tracing::info!(rows = 1, "before");
            guard.set(&config(Format::Text, Level::Info));
            tracing::info!(rows = 2, "between");
            guard.set(&config(Format::Json, Level::Info));
            tracing::info!(rows = 3, "after");
        });
        let is_json = |line: &String| serde_json::from_str::<serde_json::Value>(line).is_ok();
        let forms: Vec<bool> = lines.iter().map(is_json).collect();
        assert_eq!(forms, [true, false, true], "{lines:?}");
        assert!(lines[1].ends_with(" INFO between rows=2"), "{lines:?}");
    }

    #[test]
    fn a_room_has_a_level_of_its_own() {
        let levels = Levels {
            all: Level::Warn,
            rooms: vec![("wire", Level::Debug), ("session", Level::Error)],
        };
        let lines = logged(Format::Text, levels, |_| {
            tracing::debug!(target: "waltrail::wire::dial", "shown");
            tracing::trace!(target: "waltrail::wire::dial", "hidden");
            tracing::warn!(target: "waltrail::session", "hidden");
            tracing::error!(target: "waltrail::session::start", "shown");
            tracing::warn!(target: "waltrail::history", "shown");
            tracing::info!(target: "waltrail::history", "hidden");
            tracing::error!(target: "tokio_postgres", "hidden");
        });
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(
            lines.iter().all(|line| line.ends_with("shown")),
            "{lines:?}"
        );
    }

    #[test]
    fn under_the_journal_each_line_begins_with_its_priority() {
        let journal = Stderr {
            is_journal: true,
            ..NO_TERMINAL
        };
        for format in [Format::Json, Format::Text] {
            let lines = logged_to(journal, &config(format, Level::Trace), |_| {
                tracing::error!("of an error");
                tracing::warn!("of a warning");
                tracing::info!(table = "a\nb", "of information");
                tracing::debug!("of a developer");
            });
            let starts: Vec<&str> = lines.iter().map(|line| &line[..3]).collect();
            assert_eq!(starts, ["<3>", "<4>", "<6>", "<7>"], "{lines:?}");
            if format == Format::Json {
                let line = serde_json::from_str::<serde_json::Value>(&lines[2][3..]);
                assert_eq!(line.unwrap()["table"], "a\nb");
            }
        }
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
        let config = config(Format::Json, Level::Info);
        let (subscriber, guard) = pipeline(Stalled(held), NO_TERMINAL, &config);
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
