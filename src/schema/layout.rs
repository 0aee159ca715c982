//! Which attribute of its table each column of a row is. A name does not say so: a column can be renamed, or dropped and made
//! again under the same name. The stream gives names alone, in the order of `pg_attribute.attnum`; the attributes' numbers are
//! known from the catalogs, and from the rows that the history has. A number is used once: what is dropped does not come back.
//!
//! ```text
//!   attributes of the last rows   1 id   2 n   3 b
//!   a row of the stream           id     c     b        -> 2 was renamed, and 4 has not come yet
//!   attributes in the catalogs    1 id   2 d   4 b
//! ```
//!
//! What is found is kept in the target (migration V9), in the transaction of the first row that has these columns. Pure.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::lsn::Lsn;
use crate::transaction::Open;

use super::TableName;
use super::plan::{Shape, ShapeColumn, literal};

/// An attribute as rows have it that are in the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    pub attnum: i16,
    pub name: String,
    pub type_oid: u32,
    pub modifier: i32,
}

/// An attribute as the catalogs have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    pub attnum: i16,
    pub name: String,
    #[serde(rename = "type")]
    pub type_oid: u32,
    pub modifier: i32,
    /// The history column of its value after a change; none where it is not recorded.
    pub column: Option<String>,
    /// What rows have that were there when it was added, as text.
    pub value: Option<String>,
    /// Whether that is known.
    pub known: bool,
}

impl Column {
    pub fn attribute(&self) -> Attribute {
        Attribute {
            attnum: self.attnum,
            name: self.name.clone(),
            type_oid: self.type_oid,
            modifier: self.modifier,
        }
    }
}

/// An attribute that was dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    pub attnum: i16,
    /// The id of the transaction that did it.
    pub by: u32,
    /// The byte after its commit record, where it was looked for.
    pub end: Option<Lsn>,
}

/// A transaction whose rows a description is for.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    pub commit_lsn: Lsn,
    pub xid: u32,
    /// The catalogs are known to be older.
    pub is_news: bool,
}

/// The attributes of a table that is followed; empty where they are not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Those of the last rows in the history.
    pub before: Vec<Attribute>,
    /// Those in the catalogs.
    pub now: Vec<Column>,
    /// Those that were dropped.
    pub gone: Vec<Dropped>,
    /// All that the catalogs have, in short, as [`super::sight::Standing::attributes`].
    pub in_short: String,
}

/// The attributes of a row's columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    pub attributes: Vec<Attribute>,
    /// A column has a name that its attribute has neither in the rows before nor in the catalogs.
    pub renamed: bool,
}

/// Name, type and modifier of a column.
type Named<'a> = (&'a str, u32, i32);

/// An attribute of which a row may have a column.
#[derive(Default)]
struct Candidate<'a> {
    before: Option<Named<'a>>,
    now: Option<Named<'a>>,
}

impl Candidate<'_> {
    /// It has come since the rows before, and is in the catalogs.
    fn is_new(&self) -> bool {
        self.before.is_none() && self.now.is_some()
    }

    /// How unlikely it is that a column of this name and type is this attribute.
    /// `is_gone`: it is sure, or likely, to be dropped by then.
    fn cost(&self, column: &ShapeColumn, is_gone: bool) -> u64 {
        let of_side = |side: Option<Named<'_>>| {
            let (name, type_oid, modifier) = side?;
            let is_same_type = (type_oid, modifier) == (column.type_oid, column.modifier);
            (name == column.name).then_some(if is_same_type { 0 } else { OTHER_TYPE })
        };
        let sides = [self.before, self.now].into_iter().filter_map(of_side);
        let less_likely = match (self.before, self.now) {
            // It came and was dropped, and its name is not known any more. A later attribute cannot be there without it.
            (None, None) => return LESS_LIKELY,
            (Some(_), None) if is_gone => 4 * LESS_LIKELY,
            (None, _) => 2 * LESS_LIKELY,
            _ => 0,
        };
        sides.min().unwrap_or(RENAMED) + less_likely
    }
}

/// A new attribute without a column though a later one has one: it is there by then, unless it is not sent.
const PASSED_OVER: u64 = 1 << 45;
/// A column under a name that is not known of its attribute; an attribute without a column, though it was there before and is in
/// the catalogs: it is not sent, or is gone by now; a column of another type; and the less likely of two attributes of one name.
const RENAMED: u64 = 1 << 40;
const LEFT_OUT: u64 = 1 << 20;
const OTHER_TYPE: u64 = 8;
const LESS_LIKELY: u64 = 1;

impl Layout {
    /// The attributes of these columns, between the rows `before` and the catalogs; of two attributes of one name the later one,
    /// where the other `is_gone`. `is_ahead`: the catalogs are older than the columns, so that what `before` lacks is gone. `None`: two
    /// answers are as likely, or there is none.
    pub fn assign(
        &self,
        before: &[Attribute],
        columns: &[ShapeColumn],
        is_gone: impl Fn(i16) -> bool,
        is_ahead: bool,
    ) -> Option<Assigned> {
        let mut candidates: BTreeMap<i16, Candidate<'_>> = BTreeMap::new();
        for known in before {
            let named = (known.name.as_str(), known.type_oid, known.modifier);
            candidates.entry(known.attnum).or_default().before = Some(named);
        }
        for known in &self.now {
            if is_ahead && !candidates.contains_key(&known.attnum) {
                continue;
            }
            let named = (known.name.as_str(), known.type_oid, known.modifier);
            candidates.entry(known.attnum).or_default().now = Some(named);
        }
        if !is_ahead {
            let gone = self.gone.iter().map(|gone| gone.attnum);
            for attnum in gone.filter(|attnum| !is_gone(*attnum)) {
                candidates.entry(attnum).or_default();
            }
        }
        let cost = |(attnum, candidate): &(i16, Candidate<'_>), column: &ShapeColumn| {
            candidate.cost(column, is_gone(*attnum))
        };
        let candidates: Vec<(i16, Candidate<'_>)> = candidates.into_iter().collect();
        let new: Vec<i16> = candidates
            .iter()
            .filter(|(_, candidate)| candidate.is_new())
            .map(|(attnum, _)| *attnum)
            .collect();
        // Attributes come in the order of their numbers: as many of the new ones as it takes.
        let mut best: Option<(u64, Option<Vec<i16>>)> = None;
        for come in 0..=new.len() {
            let some = candidates
                .iter()
                .filter(|(attnum, _)| !new[come..].contains(attnum));
            let Some((cost, one, chosen)) = cheapest(&some.collect::<Vec<_>>(), columns, cost)
            else {
                continue;
            };
            match &mut best {
                Some((least, _)) if *least < cost => {}
                Some((least, known)) if *least == cost => *known = None,
                _ => best = Some((cost, one.then_some(chosen))),
            }
        }
        let (cost, chosen) = best?;
        let renamed = cost >= RENAMED;
        let attributes = std::iter::zip(chosen?, columns).map(|(attnum, column)| Attribute {
            attnum,
            name: column.name.clone(),
            type_oid: column.type_oid,
            modifier: column.modifier,
        });
        Some(Assigned {
            attributes: attributes.collect(),
            renamed,
        })
    }

    /// Whether an attribute was dropped before the rows of this transaction: each transaction that has changed the table either
    /// ended before the other one locked it, or changed it after that had ended. Where that is not known, the ids tell it less
    /// surely, of transactions that were under way together. What the dropping transaction itself has changed came after, as in a
    /// migration that fills what it has added.
    pub fn was_dropped_by(&self, attnum: i16, tx: Described) -> bool {
        let mut gone = self.gone.iter().filter(|gone| gone.attnum == attnum);
        gone.any(
            |gone| match (tx.xid.wrapping_sub(gone.by).cast_signed(), gone.end) {
                (0, _) => true,
                (_, Some(end)) => tx.commit_lsn >= end,
                (later, None) => tx.is_news || later > 0,
            },
        )
    }

    /// Those that were dropped and can have been made again with the name and the type that they had, with what was made and
    /// dropped again in between: the stream does not tell them apart.
    pub fn to_be_told_apart(&self) -> impl Iterator<Item = &Dropped> {
        let is_before = |attnum| self.before.iter().any(|before| before.attnum == attnum);
        let is_like = |now: &Column, was: &Attribute| {
            (&now.name, now.type_oid, now.modifier) == (&was.name, was.type_oid, was.modifier)
        };
        let is_now = |attnum| self.now.iter().any(|now| now.attnum == attnum);
        let mut again = self.before.iter().filter(move |was| {
            let mut others = self.now.iter().filter(|now| !is_before(now.attnum));
            !is_now(was.attnum) && others.any(|now| is_like(now, was))
        });
        let first = again.next().map(|first| first.attnum);
        self.gone
            .iter()
            .filter(move |gone| first.is_some_and(|first| gone.attnum >= first))
    }

    /// Whether the catalogs have just these columns, and the rows `before` have not.
    pub fn is_only_now(&self, before: &[Attribute], shape: &Shape) -> bool {
        let columns = &shape.columns;
        let is_alike = |(column, name): (&ShapeColumn, &String)| column.name == *name;
        let are = |names: Vec<&String>| {
            names.len() == columns.len() && std::iter::zip(columns, names).all(is_alike)
        };
        are(self.now.iter().map(|now| &now.name).collect())
            && !are(before.iter().map(|before| &before.name).collect())
    }

    /// The attributes of the rows before with those replaced that were made again under the name and type of one that `is_gone`;
    /// none where there are none.
    pub fn made_again(&self, is_gone: impl Fn(i16) -> bool) -> Option<Vec<Attribute>> {
        let is_before = |attnum| self.before.iter().any(|before| before.attnum == attnum);
        let is_like = |now: &Column, was: &Attribute| {
            (&now.name, now.type_oid, now.modifier) == (&was.name, was.type_oid, was.modifier)
        };
        let mut again = Vec::new();
        for was in self.before.iter().filter(|was| is_gone(was.attnum)) {
            let is_free = |attnum| {
                attnum > was.attnum
                    && !is_before(attnum)
                    && !again.iter().any(|(_, new)| *new == attnum)
            };
            let now = self.now.iter().filter(|now| is_like(now, was));
            let now = now
                .map(|now| now.attnum)
                .filter(|attnum| is_free(*attnum))
                .min();
            // What was made and dropped again comes first: a later attribute was not there without it.
            let gone = self.gone.iter().map(|gone| gone.attnum);
            let gone = gone
                .filter(|attnum| is_free(*attnum) && !is_gone(*attnum))
                .min();
            if let Some(now) = now {
                again.push((was.attnum, gone.map_or(now, |gone| gone.min(now))));
            }
        }
        if again.is_empty() {
            return None;
        }
        let renumbered = |was: &Attribute| {
            let new = again.iter().find(|(former, _)| *former == was.attnum);
            Attribute {
                attnum: new.map_or(was.attnum, |(_, new)| *new),
                ..was.clone()
            }
        };
        let mut attributes: Vec<Attribute> = self.before.iter().map(renumbered).collect();
        attributes.sort_by_key(|attribute| attribute.attnum);
        Some(attributes)
    }

    /// These attributes, with the history column that each has in `homes`, or else in the catalogs.
    pub fn recorded_as(
        &self,
        attributes: &[Attribute],
        homes: &HashMap<i16, Option<String>>,
    ) -> Vec<Column> {
        let column = |attribute: &Attribute| {
            let attnum = attribute.attnum;
            // One that was dropped again had the history column of its name, too.
            let now = self.now.iter().find(|now| now.name == attribute.name);
            let home = || now.and_then(|now| now.column.clone());
            let home = homes.get(&attnum).cloned().unwrap_or_else(home);
            self.column(attribute, home)
        };
        attributes.iter().map(column).collect()
    }

    fn column(&self, attribute: &Attribute, home: Option<String>) -> Column {
        let Attribute {
            attnum,
            name,
            type_oid,
            modifier,
        } = attribute.clone();
        let known = self.now.iter().find(|now| now.attnum == attnum);
        Column {
            attnum,
            name,
            type_oid,
            modifier,
            column: home,
            value: known.and_then(|known| known.value.clone()),
            known: known.is_some_and(|known| known.known),
        }
    }

    /// The statement that says where the values of these attributes stand from now on: each in the history column beside it,
    /// which is empty where there is none.
    pub fn opening<'a>(
        &self,
        history: &TableName,
        attributes: impl IntoIterator<Item = (&'a Attribute, &'a str)>,
    ) -> String {
        let column = |(attribute, home): (&Attribute, &str)| {
            self.column(attribute, (!home.is_empty()).then(|| home.to_owned()))
        };
        let mut columns: Vec<Column> = attributes.into_iter().map(column).collect();
        // What was there and still is, and is not sent: a column list can leave it out.
        let is_sent = |attnum| columns.iter().any(|sent| sent.attnum == attnum);
        let is_there = |attnum| self.now.iter().any(|now| now.attnum == attnum);
        let before = self.before.iter();
        let unsent = before.filter(|was| is_there(was.attnum) && !is_sent(was.attnum));
        let unsent: Vec<Column> = unsent.map(|was| self.column(was, None)).collect();
        columns.extend(unsent);
        statement(history, &columns)
    }
}

/// The same, which also notes that the table was described in this transaction: the catalogs may be newer than they are known.
pub fn noted(opening: &str, history: &TableName, tx: &Open) -> String {
    let (history, lsn, xid) = (literal(&history.to_string()), tx.commit_lsn, tx.xid);
    format!("{opening}, waltrail.noted({history}, '{lsn}', {xid})")
}

/// As [`statement`], for the rows after the one of this number.
pub fn statement_after(history: &TableName, columns: &[Column], number: i64) -> String {
    let statement = statement(history, columns);
    let open = statement.strip_suffix(')').unwrap_or(&statement);
    format!("{open}, {number})")
}

/// The statement of [`Layout::opening`].
pub fn statement(history: &TableName, columns: &[Column]) -> String {
    // Names, numbers and text: nothing that JSON cannot hold.
    let columns = serde_json::to_string(columns).unwrap_or_default();
    format!(
        "SELECT waltrail.arrived({}, {})",
        literal(&history.to_string()),
        literal(&columns)
    )
}

/// What it costs at least to give each column a candidate, in order, whether there is one such way alone, and the attributes of
/// it. `None`: there is no way.
fn cheapest(
    candidates: &[&(i16, Candidate<'_>)],
    columns: &[ShapeColumn],
    cost: impl Fn(&(i16, Candidate<'_>), &ShapeColumn) -> u64,
) -> Option<(u64, bool, Vec<i16>)> {
    let width = columns.len() + 1;
    // For the candidates from each on and the columns from each on: the least cost, whether there is one way only, and whether
    // it takes the candidate.
    let mut best: Vec<Option<(u64, bool, bool)>> = vec![None; (candidates.len() + 1) * width];
    best[candidates.len() * width + columns.len()] = Some((0, true, false));
    for at in (0..candidates.len()).rev() {
        let candidate = &candidates[at].1;
        // What was there before and is in the catalogs was there between.
        let left_out = match (candidate.before.is_some(), candidate.now.is_some()) {
            (true, true) => LEFT_OUT,
            (false, true) => PASSED_OVER,
            (_, false) => 0,
        };
        for from in 0..width {
            let next = (at + 1) * width + from;
            let left = best[next].map(|(rest, one, _)| (rest.saturating_add(left_out), one));
            let taken = columns.get(from).and_then(|column| {
                let (rest, one, _) = best[next + 1]?;
                Some((rest.saturating_add(cost(candidates[at], column)), one))
            });
            best[at * width + from] = match (left, taken) {
                (None, None) => None,
                (Some((left, one)), Some((taken, _))) if left < taken => Some((left, one, false)),
                (Some((left, ..)), Some((taken, _))) if left == taken => Some((taken, false, true)),
                (Some((left, one)), None) => Some((left, one, false)),
                (_, Some((taken, one))) => Some((taken, one, true)),
            };
        }
    }
    let (cost, one, _) = best[0]?;
    let mut chosen = Vec::with_capacity(columns.len());
    for (at, (attnum, _)) in candidates.iter().enumerate() {
        if let Some((_, _, true)) = best[at * width + chosen.len()] {
            chosen.push(*attnum);
        }
    }
    Some((cost, one, chosen))
}

#[cfg(test)]
mod tests;
