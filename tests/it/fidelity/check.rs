//! Whether a history is the truth, and folds into the table. Pure.
//!
//! Every change of the truth must be in the history once, in the order of commits, and nothing else. A value is what it was,
//! or it is NULL, named in `unavailable_columns`, and one that the WAL need not carry. The history is folded beside that:
//! from its own values alone, it must give the table.

mod fold;
mod values;
mod verdict;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use super::truth::{Doc, Event, History, Op, Recorded, Truth};
use fold::visible;
pub use verdict::Counts;
use verdict::{Checked, Sin, Wrong, show, show_doc, show_row, wrong};

/// How a table is followed.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// waltrail made the history, and adds columns to it.
    pub made: bool,
    /// When changes were first hidden, in microseconds since 1970: only later ones can be lost in a gap.
    pub altered: Option<i64>,
    /// When the daemon was started again after that.
    pub repaired: Option<i64>,
}

/// A value as the fold knows it: `None` where the history cannot say it, for a DDL statement made it.
type Known = BTreeMap<String, Option<Option<String>>>;

/// Rows by key.
type Fold = HashMap<Vec<Option<String>>, Vec<Known>>;

const OWN: [&str; 8] = [
    "cdc_id",
    "change_type",
    "change_timestamp",
    "commit_lsn",
    "tx_seq",
    "xid",
    "changed_columns",
    "unavailable_columns",
];

struct Check<'a> {
    history: &'a History,
    truth: &'a Truth,
    terms: Terms,
    counts: Counts,
    fold: Fold,
    /// The rows of the table.
    table: Vec<Doc>,
    last_lsn: Option<(u64, u64)>,
}

/// Compares a whole history with the truth, and its fold with `now`, the table's rows.
pub fn check(truth: &Truth, history: &History, now: &[Doc], terms: Terms) -> Checked<Counts> {
    let mut check = Check {
        history,
        truth,
        terms,
        counts: Counts::default(),
        fold: Fold::new(),
        table: Vec::new(),
        last_lsn: None,
    };
    let (mut at, mut next) = (0, 0);
    loop {
        next = check.baseline(&mut at, next)?;
        (at, next) = check.changes(at, next)?;
        match history.rows.get(at) {
            Some(row) if row.change_type == "GAP" => {
                check.counts.gaps += 1;
                // A history without a row claims nothing yet.
                let is_before = |event: &&Event| {
                    at > 0
                        && event.op != Op::Ddl
                        && terms.altered.is_none_or(|time| event.commit_time < time)
                };
                if let Some(lost) = truth.events[next..].iter().find(is_before) {
                    let text = format!("from before the gap: {}", show(lost));
                    return wrong(Sin::Missing, text);
                }
                check.fold.clear();
                at += 1;
            }
            Some(row) => return check.unexpected(row, at),
            None => break,
        }
    }
    if let Some(lost) = truth.events[next..]
        .iter()
        .find(|event| event.op != Op::Ddl)
    {
        return wrong(
            Sin::Missing,
            format!("the end of the history; expected {}", show(lost)),
        );
    }
    // DDL after the last change.
    for event in &truth.events[next..] {
        check.ddl(event)?;
    }
    check.is_table(now)?;
    check.folds(now)?;
    Ok(check.counts)
}

impl Check<'_> {
    /// The existing rows at `at`, recorded as of some position in the truth, at or after `next`: gives it.
    fn baseline(&mut self, at: &mut usize, next: usize) -> Checked<usize> {
        let rows = &self.history.rows;
        let after_gap = *at > 0;
        let end = rows[*at..]
            .iter()
            .position(|row| row.change_type != "SNAPSHOT");
        let end = end.map_or(rows.len(), |length| *at + length);
        if end == *at && !after_gap && self.skips_nothing(*at) {
            return Ok(next);
        }
        // The cut is where the first change after it stands; DDL directly before that may have come after the snapshot.
        let events = &self.truth.events;
        let (from, cut) = match rows.get(end) {
            Some(row) if row.change_type != "GAP" => {
                let mut later = events[next..].iter();
                match later.position(|event| Some(event.commit_time) == row.commit_time) {
                    // Others can be hidden before it.
                    Some(length) if self.is_hidden(&events[next + length], end) => {
                        (next, next + length)
                    }
                    Some(length) => (
                        before_ddl(&events[next..next + length]) + next,
                        next + length,
                    ),
                    None => return self.unexpected(row, end),
                }
            }
            // A gap follows: anywhere.
            Some(_) => (next, events.len()),
            None => (before_ddl(&events[next..]) + next, events.len()),
        };
        for event in &events[next..from] {
            self.apply(event)?;
        }
        // The last place that fits, since an empty table fits at its beginning, too; before a gap the last one that is
        // not covered by it.
        let hidden = |event: &&Event| {
            self.terms
                .altered
                .is_some_and(|time| event.commit_time >= time)
        };
        let last = match rows.get(end) {
            Some(row) if row.change_type == "GAP" => cut - events.iter().filter(hidden).count(),
            _ => cut,
        };
        let mut verdict = Ok(());
        let mut best = None;
        for place in from..=cut {
            match self.existing(*at..end, place) {
                Ok(fold) if best.is_none() || place <= last => {
                    best = Some((place, fold, self.table.clone()));
                }
                Ok(_) => {}
                Err(wrong) => verdict = Err(wrong),
            }
            if let Some(event) = events[..cut].get(place) {
                self.apply(event)?;
            }
        }
        let Some((place, fold, table)) = best else {
            return verdict.map(|()| cut);
        };
        (self.fold, self.table) = (fold, table);
        self.counts.existing += end - *at;
        *at = end;
        Ok(place)
    }

    /// Compares existing rows with those of the table as it is before the event at `place`.
    fn existing(&self, rows: Range<usize>, place: usize) -> Checked<Fold> {
        let events = &self.truth.events;
        // The event before knows the columns as they were then.
        let near = place
            .checked_sub(1)
            .and_then(|last| events.get(last))
            .or(events.get(place));
        let mut wanted: Vec<Doc> = self.table.clone();
        let mut fold: Fold = Fold::new();
        for row in &self.history.rows[rows] {
            let shape = wanted.first().cloned().unwrap_or_default();
            let shape = near.map_or(shape.clone(), |event| visible(event, &shape));
            let found: Doc = shape
                .keys()
                .filter(|column| self.terms.made || !self.homes(column, false).is_empty())
                .map(|column| Ok((column.clone(), self.value(row, column, false)?)))
                .collect::<Checked<_>>()?;
            let same = |doc: &Doc| {
                found
                    .iter()
                    .all(|(column, value)| doc.get(column) == Some(value))
            };
            let Some(found_at) = wanted.iter().position(same) else {
                let text = format!(
                    "an existing row is not in the table then: {}\nat event {place}: {:?}",
                    show_row(row),
                    self.table.iter().map(show_doc).collect::<Vec<_>>()
                );
                return wrong(Sin::False, text);
            };
            let doc = wanted.swap_remove(found_at);
            let known = found
                .into_iter()
                .map(|(column, value)| (column, Some(value)))
                .collect();
            let doc = near.map_or(doc.clone(), |event| visible(event, &doc));
            fold.entry(self.key_of(near, &doc)).or_default().push(known);
        }
        if let Some(doc) = wanted.first() {
            let text = format!("{} existing rows, such as {}", wanted.len(), show_doc(doc));
            return wrong(Sin::Missing, text);
        }
        Ok(fold)
    }

    /// Whether the history begins with the truth's first change.
    fn skips_nothing(&self, at: usize) -> bool {
        let first = self.truth.events.iter().find(|event| event.op != Op::Ddl);
        match (self.history.rows.get(at), first) {
            (Some(row), Some(event)) => row.commit_time == Some(event.commit_time),
            (_, None) => true,
            (None, Some(_)) => false,
        }
    }

    /// Changes from `at` on, until one does not fit or a gap comes.
    fn changes(&mut self, mut at: usize, mut next: usize) -> Checked<(usize, usize)> {
        let (history, truth) = (self.history, self.truth);
        while let Some(event) = truth.events.get(next) {
            // What came before the next baseline, and what after it, is for the baseline to find.
            let is_gap = |row: &Recorded| row.change_type == "GAP";
            if history.rows.get(at).is_some_and(is_gap) {
                break;
            }
            if event.op == Op::Ddl {
                self.apply(event)?;
                self.ddl(event)?;
                next += 1;
                continue;
            }
            match history.rows.get(at) {
                None => break,
                Some(_) if self.is_hidden(event, at) => return self.up_to_gap(at, next),
                Some(_) => {}
            }
            let used = self.event(event, at)?;
            self.apply(event)?;
            let new_tx = next == 0 || truth.events[next - 1].xid != event.xid;
            self.counts.transactions += usize::from(new_tx);
            self.counts.changes += 1;
            at += used;
            next += 1;
        }
        Ok((at, next))
    }

    /// Whether a gap that is still to come covers this change.
    fn is_hidden(&self, event: &Event, at: usize) -> bool {
        let altered = self.terms.altered;
        let mut later = self.history.rows[at..].iter();
        altered.is_some_and(|time| event.commit_time >= time)
            && later.any(|row| row.change_type == "GAP")
    }

    /// Of changes that a gap covers some can be there, such as those of a kind that is still published.
    fn up_to_gap(&self, mut at: usize, next: usize) -> Checked<(usize, usize)> {
        let events = &self.truth.events[next..];
        while self.history.rows[at].change_type != "GAP" {
            let row = &self.history.rows[at];
            let of = |event: &Event| Some(event.commit_time) == row.commit_time;
            if !events.iter().any(of) {
                return self.unexpected(row, at);
            }
            at += 1;
        }
        Ok((at, next))
    }

    fn unexpected<T>(&self, row: &Recorded, at: usize) -> Checked<T> {
        let before = &self.history.rows[..at];
        let again = before.iter().any(|known| {
            known.commit_time == row.commit_time
                && known.values.get("tx_seq") == row.values.get("tx_seq")
        });
        let sin = if again { Sin::Doubled } else { Sin::False };
        wrong(
            sin,
            format!("not expected: history row {at}: {}", show_row(row)),
        )
    }

    /// Compares a change with its row, or its two rows. Gives their number.
    fn event(&mut self, event: &Event, at: usize) -> Checked<usize> {
        let row = &self.history.rows[at];
        if row.commit_time != Some(event.commit_time) {
            let later = self.history.rows[at..]
                .iter()
                .any(|row| row.commit_time == Some(event.commit_time));
            if later
                || self
                    .truth
                    .events
                    .iter()
                    .all(|event| Some(event.commit_time) != row.commit_time)
            {
                return self.unexpected(row, at);
            }
            let text = format!("expected {}\nfound {}", show(event), show_row(row));
            return wrong(Sin::Missing, text);
        }
        let context = |error: Wrong| Wrong {
            text: format!(
                "{}\nin history row {at}: {}\nwhich should be {}\nthe transaction: {:?}\nrecorded: {:?}",
                error.text,
                show_row(row),
                show(event),
                self.truth.of(event.xid),
                self.history.of(event.commit_time),
            ),
            ..error
        };
        self.position(event, row).map_err(context)?;
        let key_changed = event.op == Op::Update
            && event
                .key
                .iter()
                .any(|c| event.old.get(c) != event.new.get(c));
        let used = match (event.op, row.change_type.as_str()) {
            (Op::Insert, "INSERT") => self.insert(event, row).map(|()| 1),
            (Op::Delete, "DELETE") => self.delete(event, row).map(|()| 1),
            (Op::Truncate, "TRUNCATE") => self.truncate(row).map(|()| 1),
            (Op::Update, "UPDATE") => self.update(event, row).map(|()| 1),
            (Op::Update, "DELETE") if key_changed => {
                self.delete(event, row).map_err(context)?;
                match self.history.rows.get(at + 1) {
                    Some(second) if second.change_type == "INSERT" => {
                        self.position(event, second)?;
                        self.new_values(event, second)
                            .map(|known| self.put(event, known))
                            .map(|()| 2)
                    }
                    _ => wrong(Sin::Missing, "the second half of a key's change"),
                }
            }
            (op, kind) => wrong(Sin::Missing, format!("{op:?} was to come, {kind} is there")),
        };
        used.map_err(context)
    }

    /// Transaction, ordinal and position, where the history has them.
    fn position(&mut self, event: &Event, row: &Recorded) -> Checked<()> {
        let own = |name: &str| row.values.get(name).cloned().flatten();
        let xid = (event.xid & 0xffff_ffff).to_string();
        if own("xid").is_some_and(|found| found != xid) {
            return wrong(Sin::False, "xid");
        }
        // A table that is out of the publication does not count.
        let counts = self
            .terms
            .altered
            .is_none_or(|time| event.commit_time < time)
            || self
                .terms
                .repaired
                .is_some_and(|time| event.commit_time > time);
        if counts && own("tx_seq").is_some_and(|found| found != event.tx_seq.to_string()) {
            return wrong(Sin::False, format!("tx_seq, not {}", event.tx_seq));
        }
        if let Some(lsn) = own("commit_lsn") {
            let (high, low) = lsn.split_once('/').unwrap();
            let part = |text: &str| u64::from_str_radix(text, 16).unwrap();
            let lsn = part(high) << 32 | part(low);
            let fits = match self.last_lsn {
                Some((xid, last)) if xid == event.xid => lsn == last,
                Some((_, last)) => lsn > last,
                None => true,
            };
            if !fits {
                return wrong(Sin::False, "commit_lsn does not rise");
            }
            self.last_lsn = Some((event.xid, lsn));
        }
        Ok(())
    }

    fn insert(&mut self, event: &Event, row: &Recorded) -> Checked<()> {
        self.no_old_values(event, row)?;
        let known = self.new_values(event, row)?;
        self.put(event, known);
        Ok(())
    }

    fn delete(&mut self, event: &Event, row: &Recorded) -> Checked<()> {
        let known = self.old_values(event, row, false)?;
        self.old_values(event, row, true)?;
        self.nothing_else(event, &event.old, row)?;
        self.take(event, &known).map(|_| ())
    }

    fn update(&mut self, event: &Event, row: &Recorded) -> Checked<()> {
        let former = self.old_values(event, row, true)?;
        let mut known = self.new_values(event, row)?;
        if let Some(changed) = &row.changed {
            let differs = |column: &&String| {
                event.old.get(*column) != event.new.get(*column)
                    && !self.homes(column, false).is_empty()
            };
            let wanted: BTreeSet<String> = event.new.keys().filter(differs).cloned().collect();
            let wanted: BTreeSet<String> = wanted.difference(&event.hidden).cloned().collect();
            if *changed != wanted {
                return wrong(
                    Sin::False,
                    format!("changed_columns is {changed:?}, not {wanted:?}"),
                );
            }
        } else if event.identity == 'f'
            && !self.truth.mixed
            && self.history.columns.contains("changed_columns")
        {
            return wrong(Sin::False, "changed_columns is not there");
        }
        // Without `old_` columns for the key, the key did not change: it is that of the new values.
        // A column that the history does not have at all identifies nothing in it.
        let olds = event
            .key
            .iter()
            .filter(|column| !self.homes(column, false).is_empty())
            .all(|column| !self.homes(column, true).is_empty());
        let says = if olds { &former } else { &known };
        let says = says.clone();
        let before = self.take(event, &says)?;
        for (column, value) in &mut known {
            if value.is_none() {
                *value = before.get(column).cloned().flatten();
            }
        }
        self.put(event, known);
        Ok(())
    }

    fn truncate(&mut self, row: &Recorded) -> Checked<()> {
        let value = row
            .values
            .iter()
            .find(|(name, value)| value.is_some() && !OWN.contains(&name.as_str()));
        if let Some((name, _)) = value {
            return wrong(Sin::False, format!("{name} has a value in a TRUNCATE"));
        }
        self.fold.clear();
        Ok(())
    }
}

/// Where the DDL at the end begins.
fn before_ddl(events: &[Event]) -> usize {
    let ddl = events.iter().rev().take_while(|event| event.op == Op::Ddl);
    events.len() - ddl.count()
}
