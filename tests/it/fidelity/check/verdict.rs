//! What was checked and what is wrong, for a reader.

use super::super::truth::{Doc, Event, Recorded};

/// What was checked, or what is wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub schedules: usize,
    pub transactions: usize,
    pub changes: usize,
    pub existing: usize,
    pub unavailable: usize,
    pub ddl: usize,
    pub gaps: usize,
    pub backlogs: usize,
    pub kills: usize,
    pub r#false: usize,
    pub missing: usize,
    pub doubled: usize,
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        self.schedules += other.schedules;
        self.transactions += other.transactions;
        self.changes += other.changes;
        self.existing += other.existing;
        self.unavailable += other.unavailable;
        self.ddl += other.ddl;
        self.gaps += other.gaps;
        self.backlogs += other.backlogs;
        self.kills += other.kills;
        self.r#false += other.r#false;
        self.missing += other.missing;
        self.doubled += other.doubled;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sin {
    False,
    Missing,
    Doubled,
}

/// The first thing that is wrong.
#[derive(Clone, Debug)]
pub struct Wrong {
    pub sin: Sin,
    pub text: String,
}

pub(super) type Checked<T> = Result<T, Wrong>;

pub(super) fn wrong<T>(sin: Sin, text: impl Into<String>) -> Checked<T> {
    let text = text.into();
    Err(Wrong { sin, text })
}

pub(super) fn short(value: &Option<String>) -> String {
    match value {
        None => "NULL".to_owned(),
        Some(text) if text.len() > 60 => {
            let start: String = text.chars().take(60).collect();
            format!("{start:?}... of {}", text.len())
        }
        Some(text) => format!("{text:?}"),
    }
}

pub(super) fn show_doc(doc: &Doc) -> String {
    let values = doc.iter().filter(|(_, value)| value.is_some());
    let values: Vec<String> = values
        .map(|(column, value)| format!("{column}={}", short(value)))
        .collect();
    values.join(" ")
}

pub(super) fn show(event: &Event) -> String {
    format!(
        "{:?} by {} (number {}, identity {}, key {:?})\n  from {}\n  to   {}",
        event.op,
        event.xid,
        event.tx_seq,
        event.identity,
        event.key,
        show_doc(&event.old),
        show_doc(&event.new)
    )
}

pub(super) fn show_row(row: &Recorded) -> String {
    format!(
        "{} lacking {:?}\n  {}",
        row.change_type,
        row.unavailable,
        show_doc(&row.values)
    )
}
