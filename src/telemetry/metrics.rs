//! What a scrape gets: the counters of the process as OpenMetrics text. The one place where a metric has its name.
//!
//! Labels are names of tables, never values of rows.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tracing_appender::non_blocking::ErrorCounter;

use super::progress::Progress;
use crate::clock;
use crate::snapshot::Shared;

/// What the metrics are taken from at each scrape; nothing is counted for their sake.
#[derive(Clone, Debug)]
pub struct Sources {
    pub progress: Arc<Progress>,
    /// The recording of rows that exist already.
    pub snapshot: Arc<Shared>,
    pub log_lines_dropped: ErrorCounter,
}

/// All metrics, under the prefix `waltrail_`.
pub fn registry(sources: Sources) -> Registry {
    let mut registry = Registry::with_prefix("waltrail");
    registry.register_collector(Box::new(sources));
    registry
}

impl Collector for Sources {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(&mut encoder);
        out.labelled(
            "build",
            "The version that runs; always 1",
            [(("version", env!("CARGO_PKG_VERSION").to_owned()), 1.0)],
        )?;
        out.counter(
            "log_lines_dropped",
            "Log lines lost because their reader was too slow",
            self.log_lines_dropped.dropped_lines() as u64,
        )?;
        self.stream(&mut out)?;
        self.snapshot(&mut out)
    }
}

impl Sources {
    fn stream(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let now = self.progress.moment();
        let lag = self.progress.lag_seconds(clock::now());
        let streaming = f64::from(u8::from(self.progress.is_streaming()));
        out.gauge("streaming", "1 while changes are followed", streaming)?;
        out.counter("history_rows", "History rows committed", now.rows)?;
        out.counter(
            "transactions",
            "Source transactions committed to the history",
            now.transactions,
        )?;
        out.counter(
            "batches",
            "Target transactions that wrote changes",
            now.batches,
        )?;
        out.counter(
            "unavailable_values",
            "Values that the WAL did not carry, recorded as NULL and named",
            now.unavailable,
        )?;
        out.counter(
            "session_failures",
            "Sessions that failed for a passing reason and were started again",
            now.failures,
        )?;
        out.gauge(
            "lag_seconds",
            "Age of the transaction received last, while rows wait to be committed",
            lag,
        )?;
        let positions = [
            ("received", now.received),
            ("applied", now.applied),
            ("confirmed", now.confirmed),
        ];
        out.labelled(
            "wal_position_bytes",
            "WAL positions of the source, as numbers: received, committed to the history, confirmed",
            positions.map(|(name, lsn)| (("of", name.to_owned()), lsn.as_u64() as f64)),
        )
    }

    fn snapshot(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let (copying, joining) = self.snapshot.unjoined();
        out.labelled(
            "snapshot_tables",
            "Tables whose existing rows are still to be recorded, or recorded but not joined to their changes",
            [("copying", copying), ("joining", joining)]
                .map(|(state, tables)| (("state", state.to_owned()), tables as f64)),
        )?;
        let lines = self.snapshot.tables();
        let each = |value: &dyn Fn(&crate::snapshot::progress::TableCopy) -> Option<f64>| {
            let values = lines.iter().filter_map(|line| {
                value(line).map(|value| (("table", line.source.to_string()), value))
            });
            values.collect::<Vec<_>>()
        };
        out.labelled(
            "snapshot_rows",
            "Existing rows recorded so far, of tables that are being copied",
            each(&|line| Some(line.counter.now().0 as f64)),
        )?;
        out.labelled(
            "snapshot_bytes",
            "Bytes of those rows, as they were sent",
            each(&|line| Some(line.counter.now().1 as f64)),
        )?;
        out.labelled(
            "snapshot_rows_expected",
            "Rows that the source's statistics expect",
            each(&|line| (line.rows_expected > 0).then_some(line.rows_expected as f64)),
        )?;
        out.labelled(
            "snapshot_rows_per_second",
            "Rows a second since the copy began",
            each(&|line| Some(line.pace().0)),
        )?;
        out.labelled(
            "snapshot_seconds_left",
            "Time left at that rate, by those statistics",
            each(&|line| line.pace().1),
        )
    }
}

struct Out<'a, 'e>(&'a mut DescriptorEncoder<'e>);

impl Out<'_, '_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = ConstCounter::new(value);
        let encoder = self
            .0
            .encode_descriptor(name, help, None, metric.metric_type())?;
        metric.encode(encoder)
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let metric = ConstGauge::new(value);
        let encoder = self
            .0
            .encode_descriptor(name, help, None, metric.metric_type())?;
        metric.encode(encoder)
    }

    fn labelled(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ((&'static str, String), f64)>,
    ) -> fmt::Result {
        let kind = ConstGauge::new(0.0).metric_type();
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (label, value) in values {
            ConstGauge::new(value).encode(family.encode_family(&[label])?)?;
        }
        Ok(())
    }
}
