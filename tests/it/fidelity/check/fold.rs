//! The history folded into a table, and the table that the truth gives.

use std::collections::BTreeSet;

use super::super::truth::{Doc, Event, Op};
use super::verdict::{Checked, Sin, show, wrong};
use super::{Check, Fold, Known};

pub(super) fn visible(event: &Event, doc: &Doc) -> Doc {
    let mut doc = doc.clone();
    doc.retain(|column, _| !event.hidden.contains(column));
    doc
}

impl Check<'_> {
    pub(super) fn key_of(&self, event: Option<&Event>, doc: &Doc) -> Vec<Option<String>> {
        let key = event.filter(|event| event.has_key).map(|event| &event.key);
        doc.iter()
            .filter(|(column, _)| key.is_none_or(|key| key.contains(*column)))
            .map(|(_, value)| value.clone())
            .collect()
    }

    pub(super) fn put(&mut self, event: &Event, known: Known) {
        let key = self.key_of(Some(event), &visible(event, &event.new));
        self.fold.entry(key).or_default().push(known);
    }

    pub(super) fn take(&mut self, event: &Event, known: &Known) -> Checked<Known> {
        // What the history says of the old row finds it.
        let doc = visible(event, &event.old);
        let recorded =
            |column: &&String| event.key.contains(*column) && !self.homes(column, false).is_empty();
        for column in doc.keys().filter(recorded) {
            let says = known.get(column).cloned().flatten();
            if says.as_ref() != doc.get(column) && !self.truth.mixed {
                return wrong(
                    Sin::False,
                    format!("the history does not say which row it is: {column}"),
                );
            }
        }
        let key = self.key_of(Some(event), &doc);
        match self.fold.get_mut(&key).and_then(Vec::pop) {
            Some(known) => Ok(known),
            None => wrong(Sin::Missing, format!("the fold has no row {key:?}")),
        }
    }

    /// DDL changes rows of the fold as no history can say.
    pub(super) fn ddl(&mut self, event: &Event) -> Checked<()> {
        let mut fold: Fold = Fold::new();
        for (before, after) in &event.rows {
            let key = |doc: &Doc, key: &BTreeSet<String>| -> Vec<Option<String>> {
                doc.iter()
                    .filter(|(column, _)| !event.has_key || key.contains(*column))
                    .map(|(_, value)| value.clone())
                    .collect()
            };
            let (before, after) = (visible(event, before), visible(event, after));
            let old_key = key(&before, &event.was_key);
            let Some(known) = self.fold.get_mut(&old_key).and_then(Vec::pop) else {
                return wrong(
                    Sin::Missing,
                    format!("the fold has no row {old_key:?} before DDL"),
                );
            };
            let kept = after.iter().map(|(column, value)| {
                let same = before.get(column) == Some(value);
                let value = known.get(column).cloned().flatten().filter(|_| same);
                (column.clone(), value)
            });
            let kept: Known = kept.collect();
            fold.entry(key(&after, &event.key)).or_default().push(kept);
        }
        self.counts.ddl += 1;
        self.fold = fold;
        Ok(())
    }

    /// The truth's own rows.
    pub(super) fn apply(&mut self, event: &Event) -> Checked<()> {
        match event.op {
            Op::Truncate => self.table.clear(),
            Op::Ddl => self.table = event.rows.iter().map(|(_, after)| after.clone()).collect(),
            _ => {}
        }
        if matches!(event.op, Op::Update | Op::Delete) {
            let Some(place) = self.table.iter().position(|doc| *doc == event.old) else {
                return wrong(
                    Sin::False,
                    format!("the oracle itself has no row for {}", show(event)),
                );
            };
            self.table.swap_remove(place);
        }
        if matches!(event.op, Op::Update | Op::Insert) {
            self.table.push(event.new.clone());
        }
        Ok(())
    }

    pub(super) fn is_table(&mut self, now: &[Doc]) -> Checked<()> {
        let (mut ours, mut now) = (self.table.clone(), now.to_vec());
        ours.sort();
        now.sort();
        match ours == now {
            true => Ok(()),
            false => wrong(Sin::False, "the oracle itself does not give the table"),
        }
    }

    pub(super) fn folds(&self, now: &[Doc]) -> Checked<()> {
        let mut folded = self.fold.clone();
        let last = self.truth.events.last();
        let lists = self.history.columns.contains("unavailable_columns");
        for doc in now {
            let doc = last.map_or_else(|| doc.clone(), |event| visible(event, doc));
            let key = self.key_of(last, &doc);
            let Some(known) = folded.get_mut(&key).and_then(Vec::pop) else {
                return wrong(Sin::Missing, format!("the fold has no row {key:?}"));
            };
            for (column, value) in &known {
                let value = value.as_ref().filter(|value| lists || value.is_some());
                if value.is_some_and(|value| doc.get(column) != Some(value)) {
                    let text = format!(
                        "{column} of {key:?} folds into {:?}, not {:?}",
                        value,
                        doc.get(column)
                    );
                    return wrong(Sin::False, text);
                }
            }
        }
        match folded.values().map(Vec::len).sum() {
            0 => Ok(()),
            more => wrong(Sin::Doubled, format!("the fold has {more} rows too many")),
        }
    }
}
