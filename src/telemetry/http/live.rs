//! What the page asks for every two seconds, as one JSON object: the picture of the servers, this process's counters, the
//! series of its charts and the last events of the log.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::series::Series;
use crate::snapshot::progress::TableCopy;
use crate::status::Status;
use crate::telemetry::board::LogEvent;

/// Tables that the page is given; those that need attention come first.
const TABLES_MAX: usize = 200;

/// The answer of `/api/live`. It is for this page alone: its fields may change with each version.
#[derive(Serialize)]
pub(super) struct Live<'a> {
    /// This machine's clock now, and when the process began: milliseconds since 1970-01-01 00:00:00 UTC.
    pub(super) at: u64,
    pub(super) started: u64,
    pub(super) version: &'static str,
    /// This process follows the stream.
    pub(super) streaming: bool,
    /// Rows and transactions committed by this process.
    pub(super) rows: u64,
    pub(super) transactions: u64,
    /// As `/api/status` has it, but for its tables; none: the servers have not been asked yet.
    pub(super) status: Option<&'a RawValue>,
    /// How many tables there are in all.
    pub(super) tables: usize,
    /// Tables whose existing rows are being recorded, as counted by this process.
    pub(super) copies: Vec<Copy>,
    pub(super) series: &'a Series,
    pub(super) events: Vec<LogEvent>,
}

#[derive(Serialize)]
pub(super) struct Copy {
    table: String,
    rows: u64,
    /// What the source's statistics expect; none where they know nothing.
    expected: Option<u64>,
    rows_per_second: f64,
    seconds_left: Option<f64>,
}

impl From<&TableCopy> for Copy {
    fn from(table: &TableCopy) -> Self {
        let (rows, _) = table.counter.now();
        let (rows_per_second, seconds_left) = table.pace();
        Self {
            table: table.source.to_string(),
            rows,
            expected: (table.rows_expected > 0).then_some(table.rows_expected),
            rows_per_second,
            seconds_left,
        }
    }
}

/// Copies for the page, at most as many as it shows tables.
pub(super) fn copies(tables: &[TableCopy]) -> Vec<Copy> {
    tables.iter().take(TABLES_MAX).map(Copy::from).collect()
}

/// A picture written as JSON once, however many pages ask for it.
#[derive(Default)]
pub(super) struct Cached(Option<(Arc<Status>, Arc<RawValue>)>);

impl Cached {
    pub(super) fn json(&mut self, status: &Arc<Status>) -> Option<Arc<RawValue>> {
        match &self.0 {
            Some((known, json)) if Arc::ptr_eq(known, status) => Some(Arc::clone(json)),
            _ => {
                let json: Arc<RawValue> = short(status).ok()?.into();
                self.0 = Some((Arc::clone(status), Arc::clone(&json)));
                Some(json)
            }
        }
    }
}

/// With the tables that the page shows.
fn short(status: &Status) -> serde_json::Result<Box<RawValue>> {
    let mut json = serde_json::to_value(status)?;
    if let Some(Value::Array(tables)) = json.get_mut("tables") {
        // Those of one urgency stay in their order.
        tables.sort_by_key(urgency);
        tables.truncate(TABLES_MAX);
    }
    serde_json::value::to_raw_value(&json)
}

/// 0: something must be done; 1: existing rows are being recorded; 2: all is well.
fn urgency(table: &Value) -> u8 {
    let gap = &table["gap"];
    if gap.is_object() && gap["accepted_at"].is_null() || table["rows"].is_null() {
        return 0;
    }
    match table["snapshot"]["state"].as_str() {
        None | Some("done") => 2,
        Some(_) => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tables_that_need_attention_come_first() {
        let well = json!({"rows": 7, "gap": null, "snapshot": {"state": "done"}});
        let accepted = json!({"rows": 7, "gap": {"accepted_at": "now"}, "snapshot": null});
        let copying = json!({"rows": 7, "gap": null, "snapshot": {"state": "copying"}});
        let gap = json!({"rows": 7, "gap": {"accepted_at": null}, "snapshot": null});
        let missing = json!({"rows": null, "gap": null, "snapshot": null});
        let of = [&well, &accepted, &copying, &gap, &missing].map(urgency);
        assert_eq!(of, [2, 2, 1, 0, 0]);
    }
}
