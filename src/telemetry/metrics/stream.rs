//! What this process counts: the stream, its tables, and the recording of rows that exist already.

use std::fmt;

use super::Sources;
use super::out::Out;
use crate::clock;
use crate::history::tally::Kind;
use crate::snapshot::progress::TableCopy;
use crate::telemetry::progress::Counted;

/// A second, in microseconds.
const SECOND: f64 = 1e6;

pub(super) fn stream(sources: &Sources, out: &mut Out<'_, '_>) -> fmt::Result {
    let progress = &sources.progress;
    let now = progress.moment();
    let streaming = f64::from(u8::from(progress.is_streaming()));
    out.gauge("streaming", "1 while changes are followed", streaming)?;
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
        "session_failures",
        "Sessions that failed for a passing reason and were started again",
        now.failures,
    )?;
    let sides = ["source", "target"];
    out.counters(
        "reconnects",
        "Sessions that were started again because of a server",
        sides.map(|side| ([("side", side)], progress.reconnects(side))),
    )?;
    out.gauge(
        "lag_seconds",
        "Age of the oldest commit that is not recorded; 0 when there is none",
        progress.lag_seconds(clock::now()),
    )?;
    out.gauge(
        "lag_bytes",
        "WAL between what is recorded and the source's end",
        progress.lag_bytes() as f64,
    )?;
    let recorded = progress.last_recorded().map(clock::unix_seconds);
    out.gauge_if_known(
        "last_recorded_timestamp_seconds",
        "When the last recorded transaction committed, in seconds since 1970",
        recorded,
    )?;
    let positions = progress.positions();
    out.gauges(
        "wal_position_bytes",
        "WAL positions of the source: its end, received, recorded in the history, confirmed",
        "of",
        [
            ("source", positions.source),
            ("received", positions.received),
            ("applied", positions.applied),
            ("confirmed", positions.confirmed),
        ]
        .map(|(of, lsn)| (of, lsn.as_u64() as f64)),
    )
}

/// What is updated once a batch.
pub(super) fn flow(sources: &Sources, out: &mut Out<'_, '_>) -> fmt::Result {
    // Written down first: the stream does not wait for the encoding.
    let (tables, latency, batch_rows, commit) = sources.progress.flow(|flow| {
        let tables: Vec<Counted> = flow.tables.values().cloned().collect();
        let histograms = [&flow.latency, &flow.batch_rows, &flow.commit];
        let [latency, batch_rows, commit] = histograms.map(Clone::clone);
        (tables, latency, batch_rows, commit)
    });
    let changed = tables.iter().filter(|it| it.tally.all_rows() > 0);
    out.counters(
        "history_rows",
        "Rows of changes written, by kind of change",
        changed.flat_map(|Counted { table, tally }| {
            // The common kinds are there from a table's first change on, and a table without one has no series.
            let shown = |kind: Kind| tally.rows(kind) > 0 || kind < Kind::Truncate;
            let kinds = Kind::ALL.iter().filter(move |(kind, _)| shown(*kind));
            kinds.map(move |(kind, name)| {
                let labels = [("table", &**table), ("change_type", *name)];
                (labels, tally.rows(*kind))
            })
        }),
    )?;
    let lacking = tables.iter();
    out.counters(
        "unavailable_values",
        "Values that the WAL did not carry, recorded as NULL and named",
        lacking.map(|it| ([("table", &*it.table)], it.tally.unavailable)),
    )?;
    out.histogram(
        "latency_seconds",
        "From the commit on the source until the row can be seen in the history, each transaction",
        &latency,
        SECOND,
    )?;
    out.histogram(
        "batch_rows",
        "Rows of a target transaction",
        &batch_rows,
        1.0,
    )?;
    out.histogram(
        "batch_commit_seconds",
        "How long the target took for its last rows and its COMMIT",
        &commit,
        SECOND,
    )
}

pub(super) fn snapshot(sources: &Sources, out: &mut Out<'_, '_>) -> fmt::Result {
    let (copying, joining) = sources.snapshot.unjoined();
    out.gauges(
        "snapshot_tables",
        "Tables whose existing rows are still to be recorded, or recorded but not joined to their changes",
        "state",
        [("copying", copying as f64), ("joining", joining as f64)],
    )?;
    let moved = sources.snapshot.last_progress().map(clock::unix_seconds);
    out.gauge_if_known(
        "snapshot_last_progress_timestamp_seconds",
        "When the recording of existing rows last went on, in seconds since 1970",
        moved,
    )?;
    let lines: Vec<(String, TableCopy)> = sources
        .snapshot
        .tables()
        .into_iter()
        .map(|line| (line.source.to_string(), line))
        .collect();
    let mut each = |name: &str, help: &str, value: &dyn Fn(&TableCopy) -> Option<f64>| {
        let values = lines
            .iter()
            .filter_map(|(table, line)| Some((table.as_str(), value(line)?)));
        out.gauges(name, help, "table", values)
    };
    each(
        "snapshot_rows",
        "Existing rows recorded so far, of tables that are being copied",
        &|line| Some(line.counter.now().0 as f64),
    )?;
    each(
        "snapshot_bytes",
        "Bytes of those rows, as they were sent",
        &|line| Some(line.counter.now().1 as f64),
    )?;
    each(
        "snapshot_rows_expected",
        "Rows that the source's statistics expect",
        &|line| (line.rows_expected > 0).then_some(line.rows_expected as f64),
    )?;
    each(
        "snapshot_rows_per_second",
        "Rows a second since the copy began",
        &|line| Some(line.pace().0),
    )?;
    each(
        "snapshot_seconds_left",
        "Time left at that rate, by those statistics",
        &|line| line.pace().1,
    )
}
