//! What is different between a row of the source and the history's row of the same key. Pure.

use super::rows::Hashed;

/// How a history differs from its table in one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The table has the row, the history does not.
    Missing,
    /// The history has a row that is not in the table.
    Extra,
    /// Both have it, with other values in these of the compared columns.
    Values(Vec<usize>),
    /// Nothing differs, and of some columns the history does not know the value.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) kind: Kind,
    pub(crate) hash: i64,
    pub(crate) key: Vec<Option<String>>,
    /// The hashes of the source's values; none where it has no row.
    pub(crate) source: Option<Vec<Option<i64>>>,
    /// How many of the row's values are not known.
    pub(crate) unknown: usize,
    /// How many copies of the row that is, of a table without a key; else 1.
    pub(crate) copies: i64,
    /// How often the source has it.
    pub(crate) there: i64,
}

/// Compares what the two sides have of one key; none where it is the same.
pub(crate) fn compare(source: Option<Hashed>, history: Option<Hashed>) -> Option<Difference> {
    match (source, history) {
        (None, None) => None,
        (Some(source), None) => Some(Difference {
            kind: Kind::Missing,
            hash: source.hash,
            copies: source.copies,
            there: source.copies,
            key: source.key,
            source: Some(source.values),
            unknown: 0,
        }),
        (None, Some(history)) => Some(Difference {
            kind: match history.copies < 0 {
                // More was taken away than added.
                true => Kind::Missing,
                false => Kind::Extra,
            },
            hash: history.hash,
            copies: history.copies.abs(),
            there: 0,
            key: history.key,
            source: None,
            unknown: 0,
        }),
        (Some(source), Some(history)) => both(source, &history),
    }
}

fn both(source: Hashed, history: &Hashed) -> Option<Difference> {
    let differ = |at: &usize| {
        !history.unknown.get(*at).is_some_and(|unknown| *unknown)
            && source.values.get(*at) != history.values.get(*at)
    };
    let columns: Vec<usize> = (0..source.values.len()).filter(differ).collect();
    let unknown = history.unknown.iter().filter(|unknown| **unknown).count();
    let kind = match source.copies - history.copies {
        0 if !columns.is_empty() => Kind::Values(columns),
        0 if unknown > 0 => Kind::Unknown,
        0 => return None,
        1.. => Kind::Missing,
        _ => Kind::Extra,
    };
    Some(Difference {
        copies: (source.copies - history.copies).abs().max(1),
        there: source.copies,
        kind,
        hash: source.hash,
        key: source.key,
        source: Some(source.values),
        unknown,
    })
}

/// One of the versions that a key had while it could not be said which one committed before the position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) row: Hashed,
    pub(crate) gone: bool,
}

impl Difference {
    /// Whether the source has what the history says in this version.
    pub(crate) fn is(&self, version: &Version) -> bool {
        match (&self.source, version.gone) {
            (None, gone) => gone,
            (Some(_), true) => false,
            (Some(source), false) => {
                let is_same = |at: usize| {
                    version.row.unknown.get(at) == Some(&true)
                        || version.row.values.get(at) == source.get(at)
                };
                (0..source.len()).all(is_same)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[Option<i64>], unknown: &[bool], copies: i64) -> Hashed {
        Hashed {
            hash: 7,
            key: vec![Some("1".to_owned())],
            values: values.to_vec(),
            unknown: unknown.to_vec(),
            copies,
        }
    }

    fn kind(source: Option<Hashed>, history: Option<Hashed>) -> Option<Kind> {
        compare(source, history).map(|difference| difference.kind)
    }

    #[test]
    fn a_row_is_missing_extra_different_or_the_same() {
        let one = || Some(row(&[Some(1), None], &[], 1));
        let same = || Some(row(&[Some(1), None], &[false, false], 1));
        assert_eq!(kind(one(), same()), None);
        assert_eq!(kind(one(), None), Some(Kind::Missing));
        assert_eq!(kind(None, same()), Some(Kind::Extra));
        let other = Some(row(&[Some(2), Some(3)], &[false, false], 1));
        assert_eq!(kind(one(), other), Some(Kind::Values(vec![0, 1])));
    }

    #[test]
    fn what_is_not_known_is_not_compared() {
        let one = || Some(row(&[Some(1), Some(2)], &[], 1));
        let lacks = Some(row(&[Some(1), None], &[false, true], 1));
        assert_eq!(kind(one(), lacks), Some(Kind::Unknown));
        let differs = Some(row(&[Some(9), None], &[false, true], 1));
        assert_eq!(kind(one(), differs), Some(Kind::Values(vec![0])));
    }

    #[test]
    fn copies_are_counted() {
        let copies = |n| Some(row(&[], &[], n));
        assert_eq!(kind(copies(2), copies(2)), None);
        let missing = compare(copies(3), copies(1)).unwrap();
        assert_eq!((missing.kind, missing.copies), (Kind::Missing, 2));
        let extra = compare(copies(1), copies(3)).unwrap();
        assert_eq!((extra.kind, extra.copies), (Kind::Extra, 2));
        let negative = compare(None, copies(-1)).unwrap();
        assert_eq!((negative.kind, negative.copies), (Kind::Missing, 1));
    }

    #[test]
    fn a_version_that_the_source_has_settles_a_difference() {
        let differs = compare(
            Some(row(&[Some(1)], &[], 1)),
            Some(row(&[Some(2)], &[false], 1)),
        );
        let differs = differs.unwrap();
        let version = |row, gone| Version { row, gone };
        assert!(differs.is(&version(row(&[Some(1)], &[false], 1), false)));
        assert!(differs.is(&version(row(&[None], &[true], 1), false)));
        assert!(!differs.is(&version(row(&[Some(3)], &[false], 1), false)));
        assert!(!differs.is(&version(row(&[Some(1)], &[false], 1), true)));
        let extra = compare(None, Some(row(&[Some(2)], &[false], 1))).unwrap();
        assert!(extra.is(&version(row(&[None], &[false], 1), true)));
    }
}
