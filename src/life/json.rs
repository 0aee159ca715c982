//! A change as one JSON object; its field names are stable. Pure.

use serde_json::{Map, Value, json};

use super::row::{Cell, Entry, Key, Version};
use crate::answers::ledger::{Column, Ledger};

/// One line. A field that is missing is not known; NULL is `null`.
pub(super) fn json(ledger: &Ledger, entry: &Entry) -> String {
    let mut object = Map::new();
    let mut add = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            object.insert(name.to_owned(), value);
        }
    };
    add("table", Some(json!(ledger.source.to_string())));
    add("number", Some(json!(entry.number)));
    add("change", Some(json!(entry.change_type)));
    add("time", entry.utc.as_ref().map(|time| json!(time)));
    add(
        "commit_lsn",
        entry.commit_lsn.as_ref().map(|lsn| json!(lsn)),
    );
    add("tx_seq", entry.tx_seq.map(|number| json!(number)));
    let xid = entry.xid.as_deref().and_then(|xid| xid.parse::<u64>().ok());
    add("xid", xid.map(|xid| json!(xid)));
    let context = entry.context.as_deref().map(serde_json::from_str::<Value>);
    add("context", context.and_then(Result::ok));
    add("key", entry.key.as_ref().map(|values| key(ledger, values)));
    add(
        "former_key",
        entry.former_key.as_ref().map(|values| key(ledger, values)),
    );
    if entry.before.is_some() || entry.after.is_some() {
        add("columns", Some(columns(ledger, entry)));
    }
    if !entry.lacking.is_empty() {
        let names = entry
            .lacking
            .iter()
            .map(|&at| json!(ledger.columns[at].name));
        add("unavailable", Some(Value::Array(names.collect())));
    }
    Value::Object(object).to_string()
}

fn key(ledger: &Ledger, key: &Key) -> Value {
    let columns = std::iter::zip(ledger.key_columns(), key);
    let values = columns.map(|(column, value)| (column.name.clone(), typed(column, value)));
    Value::Object(values.collect())
}

/// What changed, or for a row that came or went all of it: `from` and `to` of each column.
fn columns(ledger: &Ledger, entry: &Entry) -> Value {
    let cell = |version: &Option<Version>, at: usize| {
        version
            .as_ref()
            .and_then(|version| version.get(at).cloned())
    };
    let mut columns = Map::new();
    for (at, column) in ledger.columns.iter().enumerate() {
        let (before, after) = (cell(&entry.before, at), cell(&entry.after, at));
        let mut change = Map::new();
        for (name, cell) in [("from", &before), ("to", &after)] {
            match cell {
                Some(Cell::Known(Some(text))) => {
                    change.insert(name.to_owned(), typed(column, text));
                }
                Some(Cell::Known(None)) => {
                    change.insert(name.to_owned(), Value::Null);
                }
                Some(Cell::Unknown) | None => {}
            }
        }
        if before != after {
            columns.insert(column.name.clone(), Value::Object(change));
        }
    }
    Value::Object(columns)
}

/// Integers and booleans as what they are; everything else as PostgreSQL writes it.
fn typed(column: &Column, text: &str) -> Value {
    let read = match column.kind.as_str() {
        "smallint" | "integer" | "bigint" => text.parse::<i64>().ok().map(Value::from),
        "boolean" => Some(Value::from(text == "true")),
        _ => None,
    };
    read.unwrap_or_else(|| Value::from(text))
}
