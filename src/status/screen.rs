//! The picture as one screen of text, 80 columns or as many as there are. Pure.
//!
//! ```text
//!   verdict and state                     when, version
//!   facts (two columns where there is room)
//!   reasons, each with what to do
//!   tables: those in which something goes on first, where not all of them fit
//! ```
//!
//! What others chose (names, applications, a server's words) cannot act on the terminal.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use bytesize::ByteSize;
use unicode_width::UnicodeWidthStr;

use super::verdict::SLOT_LEFT_MIN;
use super::{
    GapStatus, Level, SlotStatus, SnapshotHeld, SnapshotStatus, Status, TableStatus, span,
};
use crate::printable::printable;

/// Characters of one fact that are shown.
const FACT_MAX: usize = 600;
/// Columns of a fact's name, with the space behind it.
const LABEL: usize = 13;
/// From so many columns on, facts stand in two.
const WIDE: usize = 120;
/// Columns of the number of rows, and of a table's state.
const ROWS: usize = 16;
const STATE: usize = 11;
/// So many tables are shown, however low the terminal is.
const TABLES_MIN: usize = 3;

const DIM: Style = Style::new().dimmed();
const BOLD: Style = Style::new().bold();
const GREEN: Style = AnsiColor::Green.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
const RED: Style = AnsiColor::Red.on_default().bold();

/// Columns, and lines where not more than a screen is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) width: usize,
    pub(super) height: Option<usize>,
}

/// Lines of text with colours.
struct Page {
    out: String,
    lines: usize,
    width: usize,
}

impl Page {
    fn line(&mut self, text: &str) {
        self.out.push_str(text.trim_end());
        self.out.push('\n');
        self.lines += 1;
    }

    /// Text in lines that fit, after `indent` columns of which the first line has `head`.
    fn wrapped(&mut self, (head, shown): (&str, &str), indent: usize, text: &str, style: Style) {
        let mut before = format!("{shown}{}", " ".repeat(indent.saturating_sub(head.width())));
        for part in wrap(text, self.width.saturating_sub(indent)) {
            self.line(&format!("{before}{style}{part}{style:#}"));
            before = " ".repeat(indent);
        }
    }
}

/// Lines of at most `width` columns. A word that is longer is cut.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(10);
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut word = word;
        loop {
            let Some(line) = lines.last_mut() else { break };
            let space = usize::from(!line.is_empty());
            if line.width() + space + word.width() <= width {
                if space == 1 {
                    line.push(' ');
                }
                line.push_str(word);
                break;
            }
            if line.is_empty() {
                let (first, rest) = word.split_at(fitting(word, width));
                line.push_str(first);
                word = rest;
            }
            lines.push(String::new());
        }
    }
    lines
}

/// How many bytes of it fit into so many columns; at least one character.
fn fitting(text: &str, width: usize) -> usize {
    let mut end = 0;
    for (at, c) in text.char_indices() {
        let next = at + c.len_utf8();
        if end > 0 && text[..next].width() > width {
            break;
        }
        end = next;
    }
    end
}

/// A name that is too long, without its middle.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let keep = width.saturating_sub(3);
    let head = &text[..fitting(text, keep / 2)];
    let mut from = text.len();
    for (at, _) in text.char_indices().rev() {
        if text[at..].width() > keep - head.width().min(keep) {
            break;
        }
        from = at;
    }
    format!("{head}...{}", &text[from..])
}

/// The screen.
pub(super) fn text(status: &Status, size: Size) -> String {
    let mut page = Page {
        out: String::new(),
        lines: 0,
        width: size.width.max(40),
    };
    title(status, &mut page);
    page.line("");
    facts(status, &mut page);
    reasons(status, &mut page);
    tables(status, size.height, &mut page);
    page.out
}

fn style(level: Level) -> Style {
    match level {
        Level::Good => GREEN,
        Level::Warning => YELLOW,
        Level::Broken => RED,
    }
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Good => "GOOD",
        Level::Warning => "WARNING",
        Level::Broken => "BROKEN",
    }
}

fn title(status: &Status, page: &mut Page) {
    let (level, state) = (word(status.verdict.level), status.verdict.state);
    let badge = style(status.verdict.level).invert();
    let right = format!("waltrail {}, {}", status.version, status.at);
    let left = level.len() + 3 + state.width();
    let mut line = format!("{badge} {level} {badge:#} {BOLD}{state}{BOLD:#}");
    let space = page.width.saturating_sub(left + right.width());
    if space >= 2 {
        let _ = write!(line, "{}{DIM}{right}{DIM:#}", " ".repeat(space));
    }
    page.line(&line);
}

/// A fact: its name, what is to be said of it, and how loudly.
type Fact = (&'static str, String, Style);

fn facts(status: &Status, page: &mut Page) {
    let facts = all_facts(status);
    if page.width < WIDE {
        for (name, text, style) in &facts {
            let label = format!("{DIM}{name}{DIM:#}");
            page.wrapped((name, &label), LABEL, text, *style);
        }
        return;
    }
    let column = (page.width - 2) / 2;
    let (left, right) = facts.split_at(facts.len().div_ceil(2));
    let lines = |facts: &[Fact]| {
        let mut lines: Vec<(String, usize)> = Vec::new();
        for (name, text, style) in facts {
            let mut name = *name;
            for part in wrap(text, column - LABEL) {
                let used = LABEL + part.width();
                let line = format!("{DIM}{name:<LABEL$}{DIM:#}{style}{part}{style:#}");
                lines.push((line, used));
                name = "";
            }
        }
        lines
    };
    let (left, right) = (lines(left), lines(right));
    for n in 0..left.len().max(right.len()) {
        let (first, used) = left.get(n).cloned().unwrap_or_default();
        let second = right.get(n).map_or("", |(line, _)| line);
        let space = " ".repeat((column + 2).saturating_sub(used));
        page.line(&format!("{first}{space}{second}"));
    }
}

fn all_facts(status: &Status) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut fact = |name: &'static str, text: String, style: Style| {
        facts.push((name, printable(&text, FACT_MAX), style));
    };
    fact("lag", lag(status), Style::new());
    fact("last commit", last_commit(status), Style::new());
    fact("throughput", throughput(status), Style::new());
    match (&status.source, &status.servers.source_version) {
        (Some(slot), _) => {
            fact("slot", named(&status.slot, slot), Style::new());
            if let Some(text) = failover(slot) {
                fact("failover", text.to_owned(), Style::new());
            }
            fact("WAL kept", kept(slot), Style::new());
            fact("limit", limit(slot), Style::new());
            let (text, style) = time_left(status, slot);
            fact("time left", text, style);
            if let Some(bytes) = slot.temp_bytes.filter(|bytes| *bytes > 0) {
                fact("temp files", size(Some(bytes)), Style::new());
            }
        }
        (None, Some(_)) => fact("slot", format!("{} (does not exist)", status.slot), RED),
        (None, None) => fact("slot", format!("{} (not known)", status.slot), Style::new()),
    }
    if let Some(held) = &status.source_snapshot {
        fact("held", snapshot_held(held), Style::new());
    }
    let (text, style) = daemon(status);
    fact("daemon", text, style);
    fact("servers", servers(status), Style::new());
    facts
}

fn lag(status: &Status) -> String {
    match (status.lag_bytes, status.lag_seconds) {
        (None, _) => "-".to_owned(),
        (bytes, None) => size(bytes),
        (bytes, Some(seconds)) => format!("{}, {}", span(seconds), size(bytes)),
    }
}

fn last_commit(status: &Status) -> String {
    let Some(checkpoint) = &status.checkpoint else {
        return match status.target_error {
            None => "none is recorded: there is no checkpoint".to_owned(),
            Some(_) => "-".to_owned(),
        };
    };
    let end = or_dash(&checkpoint.end_lsn);
    match (&checkpoint.commit_timestamp, checkpoint.commit_age_seconds) {
        (Some(time), Some(age)) => {
            format!("{} ago: {time}, checkpoint {end}", span(age))
        }
        _ => format!("none is recorded, checkpoint {end}"),
    }
}

fn throughput(status: &Status) -> String {
    let Some(rate) = status.rate else {
        return "-".to_owned();
    };
    let wal = size(Some(rate.wal_bytes_per_second as i64));
    match rate.rows_per_second {
        Some(rows) if rows < 10.0 => format!("{rows:.1} rows/s, WAL {wal}/s (last minute)"),
        Some(rows) => format!("{rows:.0} rows/s, WAL {wal}/s (last minute)"),
        None => format!("WAL {wal}/s on average"),
    }
}

fn named(name: &str, slot: &SlotStatus) -> String {
    let user = match slot.active_pid {
        Some(pid) if slot.confirmed_flush_lsn.is_none() => format!("being created by pid {pid}"),
        Some(pid) => format!("in use by pid {pid}"),
        None => "not in use".to_owned(),
    };
    let confirmed = or_dash(&slot.confirmed_flush_lsn);
    let wal_status = or_dash(&slot.wal_status);
    format!("{name} ({user}, {wal_status}), confirmed {confirmed}")
}

fn failover(slot: &SlotStatus) -> Option<&'static str> {
    match slot.failover {
        _ if slot.synced => Some("a copy of the primary's slot"),
        Some(true) => Some("yes: standbys may keep a copy"),
        Some(false) => Some("no: it is lost at a promotion"),
        None => None,
    }
}

fn kept(slot: &SlotStatus) -> String {
    let (kept, since) = (size(slot.retained_bytes), or_dash(&slot.restart_lsn));
    format!("{kept}, from {since} to {}", slot.current_wal_lsn)
}

fn limit(slot: &SlotStatus) -> String {
    match slot.max_slot_wal_keep_size.as_str() {
        "-1" => "no limit: max_slot_wal_keep_size = -1".to_owned(),
        limit => format!(
            "max_slot_wal_keep_size = {limit}, {} left",
            size(slot.safe_wal_size)
        ),
    }
}

fn time_left(status: &Status, slot: &SlotStatus) -> (String, Style) {
    let left = status.rate.and_then(|rate| rate.seconds_left);
    match (left, slot.max_slot_wal_keep_size.as_str()) {
        _ if slot.wal_status.as_deref() == Some("lost") => ("none: it is lost".to_owned(), RED),
        (_, "-1") => ("until the source's disk is full".to_owned(), Style::new()),
        (Some(left), _) => {
            let style = if left < SLOT_LEFT_MIN {
                RED
            } else {
                Style::new()
            };
            (
                format!("{} until the slot is lost, at the present rate", span(left)),
                style,
            )
        }
        (None, _) if status.rate.is_some() => {
            ("what the slot keeps does not grow".to_owned(), Style::new())
        }
        (None, _) => ("-".to_owned(), Style::new()),
    }
}

fn snapshot_held(held: &SnapshotHeld) -> String {
    let SnapshotHeld {
        sessions,
        seconds,
        xmin_age,
    } = held;
    let age = span(*seconds);
    format!("a snapshot of the source for {age}, {xmin_age} transactions ({sessions} sessions)")
}

fn daemon(status: &Status) -> (String, Style) {
    let Some(daemon) = &status.daemon else {
        return match status.servers.target_version {
            Some(_) => ("none runs".to_owned(), RED),
            None => ("-".to_owned(), Style::new()),
        };
    };
    let mut text = format!("runs: pid {} in the target", daemon.pid);
    if let Some(host) = &daemon.host {
        let _ = write!(text, ", from {host}");
    }
    if let Some(since) = &daemon.since {
        let _ = write!(text, ", since {since}");
    }
    (text, Style::new())
}

fn servers(status: &Status) -> String {
    let servers = &status.servers;
    let source = match (&servers.source_version, servers.source_role) {
        (Some(version), Some(role)) => format!("source {version}, {role}"),
        _ => "source does not answer".to_owned(),
    };
    match &servers.target_version {
        Some(version) => format!("{source}; target {version}"),
        None => format!("{source}; target does not answer"),
    }
}

fn reasons(status: &Status, page: &mut Page) {
    if status.verdict.reasons.is_empty() {
        return;
    }
    page.line("");
    for reason in &status.verdict.reasons {
        let style = style(reason.level);
        let shown = format!("{style}{}{style:#}", reason.code);
        // A server's words can have several lines.
        let text = printable(&reason.text.replace('\n', " "), FACT_MAX);
        page.wrapped(
            (reason.code, &shown),
            reason.code.width() + 2,
            &text,
            Style::new(),
        );
        if !reason.remedy.is_empty() {
            let remedy = printable(&reason.remedy.replace('\n', " "), FACT_MAX);
            page.wrapped(("  ->", "  ->"), 5, &remedy, DIM);
        }
    }
}

fn tables(status: &Status, height: Option<usize>, page: &mut Page) {
    if status.tables.is_empty() {
        return;
    }
    page.line("");
    let name = page.width.saturating_sub(ROWS + STATE + 2);
    let head = format!(
        "{:<name$} {:>ROWS$} {:<STATE$}",
        "table -> history", "rows", "state"
    );
    page.line(&format!("{DIM}{}{DIM:#}", head.trim_end()));
    let mut shown: Vec<&TableStatus> = status.tables.iter().collect();
    let room = height.map_or(usize::MAX, |height| {
        // The last line of a terminal stays free.
        height.saturating_sub(page.lines + 1).max(TABLES_MIN)
    });
    let lines: usize = shown.iter().map(|table| 1 + details(table).len()).sum();
    if lines > room {
        shown.sort_by_key(|table| is_quiet(table));
    }
    let mut used = 0;
    for (n, table) in shown.iter().enumerate() {
        let details = details(table);
        let is_last = n + 1 == shown.len();
        if n > 0 && used + 1 + details.len() + usize::from(!is_last) > room {
            let rest = &shown[n..];
            let quiet = rest.iter().all(|table| is_quiet(table));
            let all = if quiet { ", all following" } else { "" };
            page.line(&format!("{DIM}and {} more{all}{DIM:#}", rest.len()));
            return;
        }
        used += 1 + details.len();
        row(table, status.exact, name, page);
        for (text, style) in details {
            page.wrapped(("", ""), 4, &printable(&text, FACT_MAX), style);
        }
    }
}

fn row(table: &TableStatus, exact: bool, width: usize, page: &mut Page) {
    let name = format!("{} -> {}", table.source, table.history);
    let name = cut(&printable(&name, FACT_MAX), width);
    let space = " ".repeat(width.saturating_sub(name.width()));
    let rows = match table.rows {
        None => "-".to_owned(),
        Some(rows) if exact => rows.to_string(),
        Some(rows) => format!("about {rows}"),
    };
    let (state, style) = state(table);
    page.line(&format!(
        "{name}{space} {rows:>ROWS$} {style}{state}{style:#}"
    ));
}

fn state(table: &TableStatus) -> (&'static str, Style) {
    let snapshot = table
        .snapshot
        .as_ref()
        .map(|snapshot| snapshot.state.as_str());
    let is_open = |gap: &GapStatus| gap.accepted_at.is_none();
    match snapshot {
        _ if table.gap.as_ref().is_some_and(is_open) => ("gap", RED),
        _ if table.rows.is_none() && table.rows_error.is_none() => ("not made", YELLOW),
        Some("waiting") => ("waiting", YELLOW),
        Some("copying") => ("copying", YELLOW),
        Some("copied") => ("joining", YELLOW),
        _ => ("following", Style::new()),
    }
}

/// Nothing of it needs to be seen.
fn is_quiet(table: &TableStatus) -> bool {
    state(table).0 == "following" && table.rows_error.is_none()
}

/// What is said below the line of a table.
fn details(table: &TableStatus) -> Vec<(String, Style)> {
    let mut details = Vec::new();
    let snapshot = table.snapshot.as_ref();
    if let Some(snapshot) = snapshot.filter(|snapshot| snapshot.state != "done") {
        details.push((progress(snapshot), Style::new()));
    }
    if let Some(error) = &table.rows_error {
        details.push((format!("not counted: {error}"), YELLOW));
    }
    if let Some(gap) = &table.gap {
        let (from, to) = (gap.from_lsn, gap.to_lsn);
        details.push(match &gap.accepted_at {
            Some(at) => (format!("last gap {from} to {to}, accepted {at}"), DIM),
            None => (
                format!("last gap {from} to {to}, not accepted: waltrail accept-gap"),
                RED,
            ),
        });
    }
    details
}

fn progress(snapshot: &SnapshotStatus) -> String {
    let what = match snapshot.state.as_str() {
        "waiting" => "existing rows: to be recorded",
        "copying" => "existing rows:",
        _ => "existing rows: recorded,",
    };
    if snapshot.state == "waiting" {
        return what.to_owned();
    }
    let mut text = format!("{what} {}", snapshot.rows);
    if let Some(estimated) = snapshot.rows_estimated {
        let _ = write!(text, " of about {estimated}");
    }
    let _ = write!(text, ", {}", size(Some(snapshot.bytes)));
    if let Some(rate) = snapshot.rows_per_second {
        let _ = write!(text, ", {rate:.0} rows/s");
    }
    if let Some(left) = snapshot.seconds_left {
        let _ = write!(text, ", {} left", span(left));
    }
    if snapshot.held_bytes > 0 {
        let _ = write!(text, ", {} held", size(Some(snapshot.held_bytes)));
    }
    text
}

fn or_dash(value: &Option<impl ToString>) -> String {
    let text = value.as_ref().map(ToString::to_string);
    text.unwrap_or_else(|| "-".to_owned())
}

fn size(bytes: Option<i64>) -> String {
    or_dash(&bytes.map(|bytes| ByteSize::b(bytes.max(0).unsigned_abs())))
}

#[cfg(test)]
mod tests;
