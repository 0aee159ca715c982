//! Which history column a value goes to.
//!
//! The rule: the value after a change goes to the column of the source column's name, the value before it to
//! `old_<name>`. A column that the source has itself wins over the value before a change of another. What does not
//! follow from the rule is recorded in `waltrail.home`, so that it is the same at every start: a shortened name, and a
//! column beside the first one, made when a type changed. **A history column is never used for two things.** Pure.

use super::plan::Own;
use super::{HistoryColumn, HistoryTable, Rules, TableName};
use crate::name::NAME_BYTES_MAX;

/// What a transaction says of itself goes to the history column of this name.
const CONTEXT: &str = "context";
/// The types that it can have, by their OIDs, which are the same everywhere: `text`, `json`, `varchar`, `jsonb`.
const TAKES_CONTEXT: [u32; 4] = [25, 114, 1043, 3802];
/// The source column of a history column that waltrail fills although a source could have one of that name. No column is
/// called so.
const OURS: &str = "";

/// A history column that does not follow from the rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Home {
    pub source_column: String,
    /// It holds the value before the change.
    pub former: bool,
    pub history_column: String,
}

/// Why a value has no history column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Homeless<'h> {
    Absent,
    /// There is one, which would change some values.
    Inexact(&'h HistoryColumn),
}

/// The name that the rule gives; `None` for one that is too long.
pub fn by_rule(column: &str, former: bool) -> Option<String> {
    let name = match former {
        true => format!("old_{column}"),
        false => column.to_owned(),
    };
    (name.len() <= NAME_BYTES_MAX).then_some(name)
}

/// Whether waltrail fills a column of this name itself, or leaves it to number the rows.
pub fn is_own(name: &str, prefix: &str) -> bool {
    Own::named(name, prefix).is_some() || name.strip_prefix(prefix) == Some("cdc_id")
}

/// The name of the history column for what a transaction says of itself.
pub fn context_name(prefix: &str) -> String {
    format!("{prefix}{CONTEXT}")
}

/// The record of a history column that waltrail itself fills.
pub fn ours(history_column: String) -> Home {
    Home {
        source_column: OURS.to_owned(),
        former: false,
        history_column,
    }
}

/// Whether a history column takes every context, and none.
fn takes_context(column: &HistoryColumn) -> bool {
    TAKES_CONTEXT.contains(&column.type_oid)
        && column.modifier < 0
        && !column.not_null
        && !column.generated
}

/// The history columns of one table.
pub struct Homes<'a> {
    pub history: &'a HistoryTable,
    pub rules: &'a Rules,
    /// Whether the source has, or had in the rows that are written, a column of this name.
    pub in_source: &'a dyn Fn(&str) -> bool,
}

impl<'a> Homes<'a> {
    /// The column for a value of `column`: the first one that `fits`.
    pub fn find(
        &self,
        column: &str,
        former: bool,
        fits: impl Fn(&HistoryColumn) -> bool,
    ) -> Result<&'a HistoryColumn, Homeless<'a>> {
        let rule = by_rule(column, former);
        let is_ruled = |name: &str| rule.as_deref() == Some(name);
        let first = self.history.columns.iter().filter(|known| {
            is_ruled(&known.name) && self.follows_the_rule(&known.name, column, former)
        });
        let beside = self.history.columns.iter().filter(|known| {
            let home = self.recorded(&known.name);
            home.is_some_and(|home| home.source_column == column && home.former == former)
        });
        let mut homeless = Homeless::Absent;
        for known in first.chain(beside).filter(|known| !known.generated) {
            if fits(known) {
                return Ok(known);
            }
            homeless = Homeless::Inexact(known);
        }
        Err(homeless)
    }

    /// The history column for what a transaction says of itself. A source column of that name wins, and whichever of the two
    /// had the history column first keeps it: [`Homes::claim`]. A column that cannot take every context is left to its default.
    pub fn context(&self) -> Option<&'a HistoryColumn> {
        let name = context_name(&self.rules.prefix);
        let mut columns = self.history.columns.iter();
        let column = columns.find(|known| known.name == name)?;
        let is_ours = match self.recorded(&name) {
            Some(home) => home.source_column == OURS,
            None => !self.is_recorded_source(&name),
        };
        (is_ours && takes_context(column)).then_some(column)
    }

    /// What is to be recorded of the column that [`Homes::context`] may mean, so that it keeps its meaning when the source gets
    /// or loses a column of its name.
    pub fn claim(&self) -> Option<Home> {
        let name = context_name(&self.rules.prefix);
        let mut columns = self.history.columns.iter();
        let is_there = columns.any(|known| known.name == name);
        if !is_there || self.recorded(&name).is_some() {
            return None;
        }
        if self.is_recorded_source(&name) {
            return Some(Home {
                source_column: name.clone(),
                former: false,
                history_column: name,
            });
        }
        self.context().map(|_| ours(name))
    }

    fn recorded(&self, history_column: &str) -> Option<&Home> {
        let mut homes = self.history.homes.iter();
        homes.find(|home| home.history_column == history_column)
    }

    /// Whether the history column that the rule names is not used for something else.
    fn follows_the_rule(&self, name: &str, column: &str, former: bool) -> bool {
        if self.recorded(name).is_some() || is_own(name, &self.rules.prefix) {
            return false;
        }
        // In a history that waltrail made, `old_x` is the value of x before a change, unless it is recorded.
        match (self.history.made, former) {
            (true, former) => former || !column.starts_with("old_"),
            (false, true) => !self.is_recorded_source(name),
            (false, false) => true,
        }
    }

    /// Whether a column of the source's own has the name that the value of `column` before a change would have.
    pub fn is_won(&self, column: &str) -> bool {
        by_rule(column, true).is_some_and(|name| match self.history.made {
            true => self.recorded(&name).is_some_and(|home| !home.former),
            false => self.is_recorded_source(&name),
        })
    }

    fn is_recorded_source(&self, column: &str) -> bool {
        (self.in_source)(column) && !self.rules.excludes(column)
    }
}

/// A name for a history column that is not taken: the rule's, a shortened one, or one with a number.
pub fn free_name(column: &str, former: bool, is_taken: impl Fn(&str) -> bool) -> String {
    let wanted = match former {
        true => format!("old_{column}"),
        false => column.to_owned(),
    };
    let mut name = shortened(&wanted, "");
    for n in 2_u32.. {
        if !is_taken(&name) {
            break;
        }
        name = shortened(&wanted, &format!("_{n}"));
    }
    name
}

/// `name` with `end`, cut at a character where it is too long; a hash then keeps it apart from others.
pub(crate) fn shortened(name: &str, end: &str) -> String {
    if name.len() + end.len() <= NAME_BYTES_MAX {
        return format!("{name}{end}");
    }
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        // FNV-1a, which is the same on every machine.
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let end = format!("_{:04x}{end}", hash >> 16 ^ hash & 0xffff);
    let mut cut = NAME_BYTES_MAX - end.len();
    while !name.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("{}{end}", &name[..cut])
}

/// The words of a history's comment that say that waltrail made it.
const MADE: &str = "made by waltrail";

/// The comment of a history that waltrail makes.
pub fn comment(source: &TableName) -> String {
    format!("history of {source}, {MADE}")
}

/// Whether a history has the comment of those that waltrail makes.
pub fn is_made(comment: Option<&str>) -> bool {
    comment.is_some_and(|comment| comment.ends_with(MADE))
}
