//! A change as a person reads it. Pure.
//!
//! NULL, an empty text and a value that is not known look different; what others wrote cannot act on the terminal.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use super::row::{Cell, Entry, Kind, Version};
use crate::answers::ledger::Ledger;
use crate::printable::printable;
use crate::schema::Identifier;

/// Characters of one value that are shown.
const VALUE_MAX: usize = 1_000;
/// Characters of what says who made a change.
const WHO_MAX: usize = 200;

const DIM: Style = Style::new().dimmed();
const BOLD: Style = Style::new().bold();
const GREEN: Style = AnsiColor::Green.on_default();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const RED: Style = AnsiColor::Red.on_default();
const LOUD: Style = AnsiColor::Red.on_default().bold().invert();

/// Types whose values are written without quotes.
const PLAIN: [&str; 7] = [
    "smallint",
    "integer",
    "bigint",
    "numeric",
    "real",
    "double precision",
    "boolean",
];

/// Settings that say less about a person than those that an application sets.
const OF_SESSION: [&str; 3] = ["session_user", "application_name", "client_addr"];

/// Lines of one change.
pub(super) fn text(ledger: &Ledger, entry: &Entry) -> String {
    let mut out = String::new();
    head(ledger, entry, &mut out);
    if let Some(who) = entry.context.as_deref().and_then(who) {
        line(
            &mut out,
            format_args!("  by {BOLD}{}{BOLD:#}", printable(&who, 4 * WHO_MAX)),
        );
    }
    match (&entry.before, &entry.after) {
        (Some(before), Some(after)) => update(ledger, entry, (before, after), &mut out),
        (None, Some(row)) | (Some(row), None) => whole(ledger, row, &mut out),
        (None, None) if entry.kind == Kind::Gap => line(
            &mut out,
            format_args!(
                "  {LOUD}changes are missing before this row; what each row was is not known{LOUD:#}"
            ),
        ),
        (None, None) => line(&mut out, format_args!("  every row is gone")),
    }
    out
}

/// Writing to a String cannot fail.
fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(text);
    out.push('\n');
}

fn head(ledger: &Ledger, entry: &Entry, out: &mut String) {
    let style = match entry.kind {
        Kind::Put => GREEN,
        Kind::Update => YELLOW,
        Kind::Delete | Kind::Truncate => RED,
        Kind::Gap => LOUD,
    };
    let time = entry.time.as_deref().unwrap_or("(no time)");
    let change = printable(&entry.change_type, WHO_MAX);
    let table = printable(&ledger.source.to_string(), WHO_MAX);
    let _ = write!(out, "{DIM}{time}{DIM:#}  {style}{change}{style:#}  {table}");
    if let Some(key) = &entry.key {
        let former = entry.former_key.as_ref().unwrap_or(key);
        for (n, column) in ledger.key_columns().enumerate() {
            let _ = write!(
                out,
                "{}{}=",
                if n == 0 { "  " } else { ", " },
                name(&column.name)
            );
            if let (Some(was), Some(is)) = (former.get(n), key.get(n)) {
                if was != is {
                    let _ = write!(out, "{} -> ", quoted(&column.kind, was));
                }
                let _ = write!(out, "{BOLD}{}{BOLD:#}", quoted(&column.kind, is));
            }
        }
    }
    if let Some(xid) = entry.xid.as_deref().filter(|xid| *xid != "0") {
        let _ = write!(out, "  {DIM}xid {xid}{DIM:#}");
    }
    out.push('\n');
}

fn name(column: &str) -> String {
    printable(&Identifier(column).to_string(), WHO_MAX)
}

/// The most telling first. None for what is no JSON object, or an empty one.
fn who(context: &str) -> Option<String> {
    let context: serde_json::Map<String, serde_json::Value> = serde_json::from_str(context).ok()?;
    let shown = |(key, value): (&String, &serde_json::Value)| {
        let value = match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        format!("{key}={}", printable(&value, WHO_MAX))
    };
    let is_of_session = |key: &String| OF_SESSION.contains(&key.as_str());
    let mut parts: Vec<String> = context
        .iter()
        .filter(|(key, _)| !is_of_session(key))
        .map(shown)
        .collect();
    let of_session = OF_SESSION
        .iter()
        .filter_map(|key| context.get_key_value(*key));
    parts.extend(of_session.map(shown));
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// The columns that an UPDATE changed.
fn update(ledger: &Ledger, entry: &Entry, rows: (&Version, &Version), out: &mut String) {
    let (mut changed, mut unknown) = (false, Vec::new());
    let cells = std::iter::zip(rows.0, rows.1).enumerate();
    for (at, (before, after)) in cells {
        let column = &ledger.columns[at];
        let moved = entry.former_key.is_some() && ledger.key.contains(&at);
        match (before, after) {
            // The line above has it.
            _ if moved => changed = true,
            (_, Cell::Unknown) => unknown.push(name(&column.name)),
            (before, after) if before != after => {
                changed = true;
                line(
                    out,
                    format_args!(
                        "  {}: {} -> {}",
                        name(&column.name),
                        shown(&column.kind, before),
                        shown(&column.kind, after)
                    ),
                );
            }
            _ => {}
        }
    }
    if !unknown.is_empty() {
        line(
            out,
            format_args!(
                "  {DIM}not changed, and not recorded: {}{DIM:#}",
                unknown.join(", ")
            ),
        );
    }
    if !changed {
        line(out, format_args!("  {DIM}no column changed{DIM:#}"));
    }
}

/// All columns of a row that came or went.
fn whole(ledger: &Ledger, row: &Version, out: &mut String) {
    for (at, (column, cell)) in std::iter::zip(&ledger.columns, row).enumerate() {
        if !ledger.key.contains(&at) {
            line(
                out,
                format_args!("  {}: {}", name(&column.name), shown(&column.kind, cell)),
            );
        }
    }
}

fn shown(kind: &str, cell: &Cell) -> String {
    match cell {
        Cell::Unknown => format!("{DIM}(not known){DIM:#}"),
        Cell::Known(None) => format!("{DIM}NULL{DIM:#}"),
        Cell::Known(Some(text)) => quoted(kind, text),
    }
}

fn quoted(kind: &str, text: &str) -> String {
    let is_plain = PLAIN.iter().any(|plain| {
        kind.strip_prefix(plain)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('(') && !rest.ends_with(']'))
    });
    let shown = printable(text, VALUE_MAX);
    match is_plain {
        true => shown,
        false => format!("'{}'", shown.replace('\'', "''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_telling_of_a_context_comes_first() {
        let context = r#"{"session_user": "app", "client_addr": null, "app.user": "42", "n": 1}"#;
        assert_eq!(
            who(context).unwrap(),
            "app.user=42, n=1, session_user=app, client_addr=null"
        );
        assert_eq!(who("{}"), None);
        assert_eq!(who("[1]"), None);
    }

    #[test]
    fn null_and_empty_and_unknown_look_different() {
        let plain = |cell| anstream::adapter::strip_str(&shown("text", &cell)).to_string();
        assert_eq!(plain(Cell::Unknown), "(not known)");
        assert_eq!(plain(Cell::Known(None)), "NULL");
        assert_eq!(plain(Cell::Known(Some(String::new()))), "''");
        assert_eq!(plain(Cell::Known(Some("NULL".to_owned()))), "'NULL'");
        assert_eq!(plain(Cell::Known(Some("it's\n".to_owned()))), r"'it''s\n'");
        assert_eq!(quoted("numeric(10,2)", "1.50"), "1.50");
        assert_eq!(quoted("integer[]", "{1}"), "'{1}'");
    }
}
