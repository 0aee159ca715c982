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

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::TableName;
use super::plan::literal;

/// An attribute as rows have it that are in the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    pub attnum: i16,
    pub name: String,
}

/// An attribute as the catalogs have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    pub attnum: i16,
    pub name: String,
    /// The history column of its value after a change; none where it is not recorded.
    pub column: Option<String>,
    /// What rows have that were there when it was added, as text.
    pub value: Option<String>,
    /// Whether that is known.
    pub known: bool,
}

/// The attributes of a table that is followed; empty where they are not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Those of the last rows in the history.
    pub before: Vec<Attribute>,
    /// Those in the catalogs.
    pub now: Vec<Column>,
}

/// The attributes of a row's columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    pub attributes: Vec<Attribute>,
    /// A column has a name that its attribute has neither in the rows before nor in the catalogs.
    pub renamed: bool,
}

/// An attribute of which a row may have a column.
#[derive(Default)]
struct Candidate<'a> {
    before: Option<&'a str>,
    now: Option<&'a str>,
}

/// A column under a name that is not known of its attribute; an attribute without a column, though it was there before and is in
/// the catalogs: it is not sent, or is gone by now; and the less likely of two attributes of one name.
const RENAMED: u64 = 1 << 40;
const LEFT_OUT: u64 = 1 << 20;
const LESS_LIKELY: u64 = 1;

impl Layout {
    /// The attributes of columns of these names, between the rows `before` and the catalogs; of two attributes of one name the
    /// later one, with `prefers_now`. `None`: two answers are as likely, or there is none.
    pub fn assign(
        &self,
        before: &[Attribute],
        names: &[&str],
        prefers_now: bool,
    ) -> Option<Assigned> {
        let mut candidates: BTreeMap<i16, Candidate<'_>> = BTreeMap::new();
        for attribute in before {
            candidates.entry(attribute.attnum).or_default().before = Some(&attribute.name);
        }
        for column in &self.now {
            candidates.entry(column.attnum).or_default().now = Some(&column.name);
        }
        let candidates: Vec<(i16, Candidate<'_>)> = candidates.into_iter().collect();
        let cost = |candidate: &Candidate<'_>, name: &str| match candidate {
            Candidate { before, now } if *before != Some(name) && *now != Some(name) => RENAMED,
            Candidate { now: None, .. } if prefers_now => LESS_LIKELY,
            Candidate { before: None, .. } if !prefers_now => LESS_LIKELY,
            _ => 0,
        };
        let (chosen, renamed) = cheapest(&candidates, names, cost)?;
        let attributes = std::iter::zip(chosen, names).map(|(at, name)| Attribute {
            attnum: candidates[at].0,
            name: (*name).to_owned(),
        });
        Some(Assigned {
            attributes: attributes.collect(),
            renamed,
        })
    }

    /// The statement that says where the values of these attributes stand from now on: each in the history column beside it,
    /// which is empty where there is none.
    pub fn opening<'a>(
        &self,
        history: &TableName,
        attributes: impl IntoIterator<Item = (&'a Attribute, &'a str)>,
    ) -> String {
        let column = |(attribute, home): (&Attribute, &str)| {
            let known = self.now.iter().find(|now| now.attnum == attribute.attnum);
            Column {
                attnum: attribute.attnum,
                name: attribute.name.clone(),
                column: (!home.is_empty()).then(|| home.to_owned()),
                value: known.and_then(|known| known.value.clone()),
                known: known.is_some_and(|known| known.known),
            }
        };
        let columns: Vec<Column> = attributes.into_iter().map(column).collect();
        statement(history, &columns)
    }
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

/// The cheapest way to give each name a candidate, in order, and whether a name is new in it. `None`: there is none, or several
/// are as cheap.
fn cheapest(
    candidates: &[(i16, Candidate<'_>)],
    names: &[&str],
    cost: impl Fn(&Candidate<'_>, &str) -> u64,
) -> Option<(Vec<usize>, bool)> {
    let width = names.len() + 1;
    // For the candidates from each on and the names from each on: the least cost, whether there is one way only, and whether
    // it takes the candidate.
    let mut best: Vec<Option<(u64, bool, bool)>> = vec![None; (candidates.len() + 1) * width];
    best[candidates.len() * width + names.len()] = Some((0, true, false));
    for at in (0..candidates.len()).rev() {
        let candidate = &candidates[at].1;
        // What was there before and is in the catalogs was there between.
        let left_out = match candidate.before.is_some() && candidate.now.is_some() {
            true => LEFT_OUT,
            false => 0,
        };
        for name in 0..width {
            let next = (at + 1) * width + name;
            let left = best[next].map(|(rest, one, _)| (rest.saturating_add(left_out), one));
            let taken = names.get(name).and_then(|text| {
                let (rest, one, _) = best[next + 1]?;
                Some((rest.saturating_add(cost(candidate, text)), one))
            });
            best[at * width + name] = match (left, taken) {
                (None, None) => None,
                (Some((left, one)), Some((taken, _))) if left < taken => Some((left, one, false)),
                (Some((left, ..)), Some((taken, _))) if left == taken => Some((taken, false, true)),
                (Some((left, one)), None) => Some((left, one, false)),
                (_, Some((taken, one))) => Some((taken, one, true)),
            };
        }
    }
    let (cost, one, _) = best[0]?;
    let mut chosen = Vec::with_capacity(names.len());
    for at in 0..candidates.len() {
        if let Some((_, _, true)) = best[at * width + chosen.len()] {
            chosen.push(at);
        }
    }
    one.then_some((chosen, cost >= RENAMED))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(known: &[(i16, &str)]) -> Vec<Attribute> {
        let attribute = |&(attnum, name): &(i16, &str)| Attribute {
            attnum,
            name: name.to_owned(),
        };
        known.iter().map(attribute).collect()
    }

    fn assigned(
        before: &[(i16, &str)],
        names: &[&str],
        now: &[(i16, &str)],
        prefers_now: bool,
    ) -> Option<(Vec<i16>, bool)> {
        let column = |&(attnum, name): &(i16, &str)| Column {
            attnum,
            name: name.to_owned(),
            column: None,
            value: None,
            known: true,
        };
        let layout = Layout {
            before: attributes(before),
            now: now.iter().map(column).collect(),
        };
        let found = layout.assign(&layout.before, names, prefers_now)?;
        let attnums = found.attributes.iter().map(|one| one.attnum).collect();
        Some((attnums, found.renamed))
    }

    #[test]
    fn a_column_that_was_added_comes_when_it_comes() {
        let (before, now) = ([(1, "id"), (2, "a")], [(1, "id"), (2, "a"), (3, "b")]);
        for prefers_now in [false, true] {
            let of = |names| assigned(&before, names, &now, prefers_now);
            assert_eq!(of(&["id", "a"]), Some((vec![1, 2], false)));
            assert_eq!(of(&["id", "a", "b"]), Some((vec![1, 2, 3], false)));
            // It had another name first.
            assert_eq!(of(&["id", "a", "x"]), Some((vec![1, 2, 3], true)));
            assert_eq!(of(&["id", "a", "b", "c"]), None);
        }
    }

    #[test]
    fn a_column_that_is_gone_or_not_sent_is_left_out() {
        let known = [(1, "id"), (2, "a"), (3, "b")];
        let of = |names| assigned(&known, names, &known, true);
        assert_eq!(of(&["id", "b"]), Some((vec![1, 3], false)));
        assert_eq!(of(&["id"]), Some((vec![1], false)));
        // Either was renamed, and the other dropped.
        assert_eq!(of(&["id", "x"]), None);
    }

    #[test]
    fn a_name_between_two_others_is_the_same_attribute() {
        let (before, now) = ([(1, "id"), (2, "n")], [(1, "id"), (2, "d")]);
        assert_eq!(
            assigned(&before, &["id", "c"], &now, true),
            Some((vec![1, 2], true))
        );
    }

    #[test]
    fn a_new_column_under_the_former_name_is_another_attribute() {
        let (before, now) = ([(1, "id"), (2, "n")], [(1, "id"), (2, "c"), (3, "n")]);
        for prefers_now in [false, true] {
            let of = |names| assigned(&before, names, &now, prefers_now);
            assert_eq!(of(&["id", "n"]), Some((vec![1, 2], false)));
            assert_eq!(of(&["id", "c"]), Some((vec![1, 2], false)));
            assert_eq!(of(&["id", "c", "n"]), Some((vec![1, 2, 3], false)));
        }
    }

    #[test]
    fn names_that_change_places_are_known_by_the_order() {
        let (before, now) = ([(1, "a"), (2, "b")], [(1, "b"), (2, "a")]);
        let of = |names| assigned(&before, names, &now, true);
        assert_eq!(of(&["a", "b"]), Some((vec![1, 2], false)));
        assert_eq!(of(&["b", "a"]), Some((vec![1, 2], false)));
        assert_eq!(of(&["x", "a"]), Some((vec![1, 2], true)));
    }

    #[test]
    fn a_column_made_again_under_its_name_is_told_by_what_is_preferred() {
        let (before, now) = ([(1, "id"), (2, "b")], [(1, "id"), (3, "b")]);
        let of = |names, prefers_now| assigned(&before, names, &now, prefers_now);
        assert_eq!(of(&["id", "b"], false), Some((vec![1, 2], false)));
        assert_eq!(of(&["id", "b"], true), Some((vec![1, 3], false)));
        assert_eq!(of(&["id"], true), Some((vec![1], false)));
        // Neither is more likely.
        assert_eq!(of(&["id", "x"], true), None);
    }

    #[test]
    fn columns_of_a_table_of_which_nothing_is_known_are_not_assigned() {
        assert_eq!(assigned(&[], &["id"], &[], true), None);
        assert_eq!(
            assigned(&[], &["id"], &[(4, "id")], false),
            Some((vec![4], false))
        );
    }

    #[test]
    fn the_opening_names_what_is_recorded_and_what_rows_had_before() {
        let layout = Layout {
            before: Vec::new(),
            now: vec![Column {
                attnum: 2,
                name: "b".to_owned(),
                column: Some("b".to_owned()),
                value: Some("it's".to_owned()),
                known: true,
            }],
        };
        let both = attributes(&[(2, "b"), (3, "gone")]);
        let history = TableName::new("public", "t_cdc");
        let opening = layout.opening(&history, std::iter::zip(&both, ["b", ""]));
        let expected = "SELECT waltrail.arrived(E'public.t_cdc', E'\
             [{\"attnum\":2,\"name\":\"b\",\"column\":\"b\",\"value\":\"it''s\",\"known\":true},\
             {\"attnum\":3,\"name\":\"gone\",\"column\":null,\"value\":null,\"known\":false}]')";
        assert_eq!(opening, expected);
    }
}
