//! A transaction that was left out (`run --skip-transaction`) is a gap: kept as one in the target transaction that writes the GAP
//! rows. Pure.

use crate::clock;
use crate::lsn::Lsn;
use crate::pgoutput::Timestamp;
use crate::schema::TableName;
use crate::schema::plan::literal;

const REASON: &str = "a transaction was left out";

/// The statement that keeps that a transaction was left out, accepted by the person who asked for it. `commit_time`: by the
/// source's clock, microseconds since 2000-01-01 UTC.
pub(crate) fn statement(
    slot: &str,
    history: &TableName,
    commit_lsn: Lsn,
    commit_time: Timestamp,
) -> String {
    let mut before = String::new();
    clock::write_utc(&mut before, commit_time.0.saturating_sub(1));
    format!(
        "INSERT INTO waltrail.gap (slot, history, reason, from_lsn, to_lsn, accepted_at, whole_at) \
         VALUES ({}, {}, {}, '{commit_lsn}', '{commit_lsn}', pg_catalog.clock_timestamp(), '{before}')",
        literal(slot),
        literal(&history.to_string()),
        literal(REASON),
    )
}
