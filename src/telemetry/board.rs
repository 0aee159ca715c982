//! What the page shows beside the counters: the picture of the two servers as the observer saw it last, and the last events of
//! the log.
//!
//! A layer of the log keeps the events; what the log does not show is not here either. **As in the log, no event holds a row
//! value.** Who logs waits for no reader: the ring is copied under its lock, and written out after.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::observer::Observed;
use crate::printable::printable;

/// How many events are kept.
const EVENTS_MAX: usize = 10;
/// Characters of one text of an event.
const TEXT_MAX: usize = 1_000;
/// The line that comes every ten seconds while rows flow: the charts show the same.
const SUMMARY: &str = "summary";

/// What the HTTP listener reads.
#[derive(Clone, Debug)]
pub(crate) struct Board {
    pub(crate) observed: Observed,
    pub(crate) events: Arc<Events>,
}

/// The last events of the log, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Events(Mutex<VecDeque<LogEvent>>);

#[derive(Clone, Debug, Serialize)]
pub(crate) struct LogEvent {
    /// Milliseconds since 1970-01-01 00:00:00 UTC.
    pub(crate) at: u64,
    /// `ERROR`, `WARN` or `INFO`.
    pub(crate) level: &'static str,
    pub(crate) message: String,
    pub(crate) table: Option<String>,
    pub(crate) error: Option<String>,
    /// How often it was said in a row; `at` is the last time.
    pub(crate) times: u64,
}

impl LogEvent {
    fn is_again(&self, known: &Self) -> bool {
        let of = |event: &Self| (event.level, event.table.clone(), event.error.clone());
        self.message == known.message && of(self) == of(known)
    }
}

impl Events {
    pub(crate) fn last(&self) -> Vec<LogEvent> {
        self.ring(|ring| ring.iter().cloned().collect())
    }

    fn add(&self, event: LogEvent) {
        self.ring(|ring| {
            if let Some(last) = ring.back_mut()
                && event.is_again(last)
            {
                (last.at, last.times) = (event.at, last.times + 1);
                return;
            }
            ring.push_back(event);
            if ring.len() > EVENTS_MAX {
                ring.pop_front();
            }
        });
    }

    fn ring<T>(&self, act: impl FnOnce(&mut VecDeque<LogEvent>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Milliseconds since 1970-01-01 00:00:00 UTC.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// The layer of the log that keeps its last events.
#[derive(Debug)]
pub(crate) struct Keep(pub(crate) Arc<Events>);

impl<S: Subscriber> Layer<S> for Keep {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        if level > Level::INFO {
            return;
        }
        let mut said = Said::default();
        event.record(&mut said);
        if said.message == SUMMARY {
            return;
        }
        self.0.add(LogEvent {
            at: unix_ms(),
            level: level.as_str(),
            message: said.message,
            table: said.table,
            error: said.error,
            times: 1,
        });
    }
}

#[derive(Default)]
struct Said {
    message: String,
    table: Option<String>,
    error: Option<String>,
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        let value = || printable(value, TEXT_MAX);
        match field.name() {
            "message" => self.message = value(),
            "table" => self.table = Some(value()),
            "error" => self.error = Some(value()),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if matches!(field.name(), "message" | "table" | "error") {
            self.record_str(field, &format!("{value:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt as _;

    #[test]
    fn the_last_ten_events_are_kept_without_their_other_fields() {
        let events = Arc::new(Events::default());
        let subscriber = tracing_subscriber::registry().with(Keep(Arc::clone(&events)));
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..9 {
                tracing::info!(n, "event {n}");
            }
            tracing::debug!("not kept");
            tracing::info!(rows = 7, "summary");
            tracing::warn!(table = %"public.t", pid = 7, "waiting for a lock");
            tracing::error!(error = %"line\nline", remedy = "do it", "stopped");
            tracing::error!(error = %"line\nline", remedy = "do it", "stopped");
        });
        let kept = events.last();
        assert_eq!(kept.len(), EVENTS_MAX);
        assert_eq!(kept[0].message, "event 1");
        let last = &kept[EVENTS_MAX - 2..];
        assert_eq!(
            (last[0].level, last[0].table.as_deref()),
            ("WARN", Some("public.t"))
        );
        assert_eq!(last[1].error.as_deref(), Some(r"line\nline"));
        assert_eq!((last[0].times, last[1].times), (1, 2));
        let json = serde_json::to_string(&kept).unwrap();
        assert!(!json.contains("do it") && !json.contains("pid"), "{json}");
    }
}
