//! Where the rows of a table go while its initial snapshot is on its way. Pure.
//!
//! ```text
//!   Waiting ------> Holding(point) ------> Synced(point) ------> no gate
//!   no point yet    held from the point    written from the      the checkpoint is
//!                                          point on              past the point
//! ```
//!
//! A transaction that committed before the point is in the snapshot already. The stream can be anywhere
//! when a point is taken, before it or past it: so what is held names the commit it begins with, and what lies
//! before the point is left out wherever it turns up.

use std::collections::HashMap;

use crate::lsn::Lsn;
use crate::schema::TableName;

/// What happens to the changes of one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// The point is not known: held, each transaction by itself.
    Waiting,
    Holding(Lsn),
    Synced(Lsn),
}

/// The tables that have one, by history.
pub(crate) type Gates = HashMap<TableName, Gate>;

/// The rows of one table in a batch, as a gate lets them through: `(first commit, from, to)` in bytes.
pub(crate) type Piece = (Lsn, usize, usize);

/// What to do with the rows of one table in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Into the history, from this byte on.
    Write(usize),
    Hold(Vec<Piece>),
}

/// `marks`: where the rows of each transaction begin, by commit position; `end`: where the last one ends.
pub(crate) fn route(gate: Option<Gate>, marks: &[(Lsn, usize)], end: usize) -> Route {
    let from = |point: Lsn| {
        let first = marks.partition_point(|&(lsn, _)| lsn < point);
        marks.get(first).copied()
    };
    match gate {
        None => Route::Write(0),
        Some(Gate::Synced(point)) => Route::Write(from(point).map_or(end, |(_, start)| start)),
        Some(Gate::Holding(point)) => {
            Route::Hold(from(point).map_or(Vec::new(), |(lsn, start)| vec![(lsn, start, end)]))
        }
        Some(Gate::Waiting) => {
            let ends = marks.iter().skip(1).map(|&(_, start)| start).chain([end]);
            let pieces = std::iter::zip(marks, ends).map(|(&(lsn, start), end)| (lsn, start, end));
            Route::Hold(pieces.collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsn(raw: u64) -> Lsn {
        Lsn::from_u64(raw)
    }

    #[test]
    fn what_committed_before_the_point_is_left_out_and_the_rest_is_kept() {
        let marks = [(lsn(10), 0), (lsn(20), 5), (lsn(30), 9)];
        let held = |gate| match route(Some(gate), &marks, 12) {
            Route::Hold(pieces) => pieces,
            Route::Write(_) => panic!("not held"),
        };
        assert_eq!(
            held(Gate::Waiting),
            [(lsn(10), 0, 5), (lsn(20), 5, 9), (lsn(30), 9, 12)]
        );
        assert_eq!(held(Gate::Holding(lsn(20))), [(lsn(20), 5, 12)]);
        assert_eq!(held(Gate::Holding(lsn(21))), [(lsn(30), 9, 12)]);
        assert_eq!(held(Gate::Holding(lsn(31))), []);
        let written = |gate| route(gate, &marks, 12);
        assert_eq!(written(None), Route::Write(0));
        assert_eq!(written(Some(Gate::Synced(lsn(10)))), Route::Write(0));
        assert_eq!(written(Some(Gate::Synced(lsn(11)))), Route::Write(5));
        assert_eq!(written(Some(Gate::Synced(lsn(31)))), Route::Write(12));
    }
}
