//! How much of a table was written: rows by the kind of change, and values that the WAL did not carry. Pure.

use std::ops::AddAssign;

use crate::schema::plan::change_type;

/// The kinds of change that a stream brings, in the order of [`Kind::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Insert,
    Update,
    Delete,
    Truncate,
    Gap,
}

impl Kind {
    /// Each with its `change_type`.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Insert, change_type::INSERT),
        (Self::Update, change_type::UPDATE),
        (Self::Delete, change_type::DELETE),
        (Self::Truncate, change_type::TRUNCATE),
        (Self::Gap, change_type::GAP),
    ];
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    rows: [u64; Kind::ALL.len()],
    /// Values that the WAL did not carry.
    pub unavailable: u64,
}

impl Tally {
    /// Counts the rows of one change. An UPDATE that is recorded as two rows is a DELETE and an INSERT.
    #[inline(always)]
    pub fn add(&mut self, kind: Kind, rows: usize) {
        if rows == 2 {
            self.rows[Kind::Delete as usize] += 1;
            self.rows[Kind::Insert as usize] += 1;
        } else {
            self.rows[kind as usize] += rows as u64;
        }
    }

    pub fn rows(&self, kind: Kind) -> u64 {
        self.rows[kind as usize]
    }

    pub fn all_rows(&self) -> u64 {
        self.rows.iter().sum()
    }

    /// What came since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let mut since = *self;
        for (rows, before) in since.rows.iter_mut().zip(before.rows) {
            *rows -= before;
        }
        since.unavailable -= before.unavailable;
        since
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        for (rows, more) in self.rows.iter_mut().zip(more.rows) {
            *rows += more;
        }
        self.unavailable += more.unavailable;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_stands_at_its_place() {
        for (at, (kind, _)) in Kind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, at);
        }
    }

    #[test]
    fn an_update_of_the_key_counts_as_the_two_rows_that_it_is() {
        let mut tally = Tally::default();
        tally.add(Kind::Update, 1);
        let before = tally;
        tally.add(Kind::Update, 2);
        tally.unavailable += 3;
        let more = tally.since(&before);
        let rows = Kind::ALL.map(|(kind, _)| more.rows(kind));
        assert_eq!((rows, more.unavailable), ([1, 0, 1, 0, 0], 3));
        let mut sum = before;
        sum += more;
        assert_eq!((sum, sum.all_rows()), (tally, 3));
    }
}
