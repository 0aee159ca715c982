//! The values of a row: what they were, or NULL and named.

use std::collections::BTreeSet;

use super::super::truth::{Doc, Event, Op, Recorded};
use super::verdict::{Checked, Sin, short, wrong};
use super::{Check, Known, OWN};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carried {
    Yes,
    No,
    Perhaps,
}

impl Check<'_> {
    /// The history columns that may hold a column's value.
    pub(super) fn homes(&self, column: &str, former: bool) -> Vec<&str> {
        let rule = if former {
            format!("old_{column}")
        } else {
            column.to_owned()
        };
        let recorded = |name: &String| match self.history.homes.get(name) {
            Some((of, was)) => of == column && *was == former,
            None => *name == rule && !OWN.contains(&name.as_str()),
        };
        self.history
            .columns
            .iter()
            .filter(|name| recorded(name))
            .map(String::as_str)
            .collect()
    }

    /// The value of a column, in the one of its homes that has one.
    pub(super) fn value(
        &self,
        row: &Recorded,
        column: &str,
        former: bool,
    ) -> Checked<Option<String>> {
        let homes = self.homes(column, former);
        let mut values = homes
            .iter()
            .filter_map(|home| row.values.get(*home).cloned().flatten());
        let value = values.next();
        match values.next() {
            Some(_) => wrong(Sin::False, format!("{column} has two values in {homes:?}")),
            None => Ok(value),
        }
    }

    /// One value: what it was, or NULL and named. `may_lack`: the WAL need not carry it; `must_lack`: it cannot.
    fn one(
        &mut self,
        row: &Recorded,
        column: &str,
        former: bool,
        truth: &Option<String>,
        carried: Carried,
    ) -> Checked<Option<Option<String>>> {
        let homes = self.homes(column, former);
        if homes.is_empty() {
            return match self.terms.made && !former {
                true => wrong(
                    Sin::Missing,
                    format!("the history has no column for {column}"),
                ),
                false => Ok(None),
            };
        }
        let named = homes.iter().any(|home| row.unavailable.contains(*home));
        let lists = self.history.columns.contains("unavailable_columns");
        let found = self.value(row, column, former)?;
        let what = if former {
            format!("old {column}")
        } else {
            column.to_owned()
        };
        if named && (carried == Carried::Yes || found.is_some()) {
            return wrong(
                Sin::False,
                format!("{what} is named as unavailable, with or though the value was in the WAL"),
            );
        }
        if named || carried == Carried::No {
            if found.is_some() || lists && !named {
                return wrong(
                    Sin::False,
                    format!("{what} was not in the WAL, and is not named"),
                );
            }
            self.counts.unavailable += 1;
            return Ok(None);
        }
        if found != *truth {
            if found.is_none() && carried == Carried::Perhaps && !lists {
                return Ok(None);
            }
            let text = format!("{what} is {}, not {}", short(&found), short(truth));
            return wrong(Sin::False, text);
        }
        Ok(Some(found))
    }

    /// The values after a change, as the history has them.
    pub(super) fn new_values(&mut self, event: &Event, row: &Recorded) -> Checked<Known> {
        let length = |value: &Option<String>| value.as_ref().map_or(0, String::len);
        let total: usize = event.new.values().map(length).sum();
        let mut known = Known::new();
        for (column, value) in event
            .new
            .iter()
            .filter(|(column, _)| !event.hidden.contains(*column))
        {
            let unchanged = event.op == Op::Update && event.old.get(column) == Some(value);
            // Rows below about 2 kB keep all values in line, and short values stay there in any row. Text can be shorter
            // than the value.
            let toasted = unchanged && total >= 700 && length(value) >= 32;
            let whole = event.identity == 'f' && !self.truth.mixed;
            let carried = if toasted && !whole {
                Carried::Perhaps
            } else {
                Carried::Yes
            };
            known.insert(
                column.clone(),
                self.one(row, column, false, value, carried)?,
            );
        }
        self.nothing_else(event, &event.new, row)?;
        Ok(known)
    }

    /// A column that the table does not have at this time has no value.
    pub(super) fn nothing_else(&self, event: &Event, doc: &Doc, row: &Recorded) -> Checked<()> {
        let homes: BTreeSet<&str> = doc
            .keys()
            .flat_map(|column| [false, true].map(|former| self.homes(column, former)))
            .flatten()
            .collect();
        for (name, value) in &row.values {
            let is_hidden = event.hidden.contains(name);
            if value.is_some()
                && !is_hidden
                && !OWN.contains(&name.as_str())
                && !homes.contains(name.as_str())
            {
                return wrong(
                    Sin::False,
                    format!("{name} has a value, though the table has no such column then"),
                );
            }
        }
        Ok(())
    }

    /// How much of an old row the WAL has.
    fn carried_of_old(&self, event: &Event, column: &str) -> Carried {
        match event.identity {
            _ if self.truth.mixed => Carried::Perhaps,
            'f' => Carried::Yes,
            _ if event.key.contains(column) => Carried::Yes,
            _ => Carried::No,
        }
    }

    pub(super) fn old_values(
        &mut self,
        event: &Event,
        row: &Recorded,
        former: bool,
    ) -> Checked<Known> {
        let mut known = Known::new();
        for (column, value) in event
            .old
            .iter()
            .filter(|(column, _)| !event.hidden.contains(*column))
        {
            let carried = self.carried_of_old(event, column);
            known.insert(
                column.clone(),
                self.one(row, column, former, value, carried)?,
            );
        }
        Ok(known)
    }

    pub(super) fn no_old_values(&self, event: &Event, row: &Recorded) -> Checked<()> {
        for column in event.new.keys() {
            if self.value(row, column, true)?.is_some() {
                return wrong(Sin::False, format!("an old value of {column} in an INSERT"));
            }
        }
        Ok(())
    }
}
