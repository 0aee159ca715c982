//! The statements that insert one row, each prepared once a session, and how they move the checkpoint with it.
//!
//! The slot stands in them as a literal: it is the same for all that a session writes, and a parameter has to be read
//! for each row.

use std::collections::HashMap;

use bytes::BytesMut;
use postgres_protocol::message::frontend;

use crate::schema::plan::{self, Plan};
use crate::wire::Error;

/// The types of the parameters that move the checkpoint, after the row's: from where and to where, and when that was
/// committed. `pg_lsn` twice, `timestamptz`.
pub(super) const ADVANCE_TYPES: [u32; 3] = [3220, 3220, 1184];

/// Which row of a batch a statement takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowStatement {
    Row,
    /// The last one: it moves the checkpoint, and fails where that does not stand as expected.
    Last,
}

#[derive(Debug)]
pub(super) struct Statements {
    slot: String,
    /// By the numbers in their names: which row of a batch, and the INSERT that it is made of.
    known: Vec<(RowStatement, String)>,
    /// Their numbers, by INSERT and [`RowStatement`].
    numbers: HashMap<String, [Option<usize>; 2]>,
    /// The number that was asked for last, which is found without hashing the text.
    last: usize,
}

impl Statements {
    /// `slot`: whose checkpoint is moved.
    pub(super) fn new(slot: &str) -> Self {
        Self {
            slot: plan::literal(slot),
            known: Vec::new(),
            numbers: HashMap::new(),
            last: 0,
        }
    }

    /// The number of the statement that takes a row of `plan`; where it is new, it is parsed before what follows in `out`.
    pub(super) fn number(
        &mut self,
        kind: RowStatement,
        plan: &Plan,
        out: &mut BytesMut,
    ) -> Result<usize, Error> {
        let insert = &plan.insert;
        if matches!(self.known.get(self.last), Some((of, text)) if *of == kind && text == insert) {
            return Ok(self.last);
        }
        let before = self.numbers.get(insert).and_then(|of| of[kind as usize]);
        self.last = match before {
            Some(number) => number,
            None => {
                let number = self.known.len();
                let moved: &[u32] = match kind {
                    RowStatement::Row => &[],
                    RowStatement::Last => &ADVANCE_TYPES,
                };
                // With the types that the rows were made for, whatever the columns become.
                let types = plan.parameters.iter().chain(moved).copied();
                frontend::parse(&format!("i{number}"), &self.text(kind, plan), types, out)?;
                self.known.push((kind, insert.clone()));
                self.numbers.entry(insert.clone()).or_default()[kind as usize] = Some(number);
                number
            }
        };
        Ok(self.last)
    }

    fn text(&self, kind: RowStatement, plan: &Plan) -> String {
        let insert = &plan.insert;
        let slot = &self.slot;
        let [seen, reached, committed] =
            [1, 2, 3].map(|n| format!("${}", plan.parameters.len() + n));
        let moved = format!(
            "UPDATE waltrail.checkpoint SET end_lsn = {reached}, reported_lsn = greatest(reported_lsn, {reached}), \
             commit_timestamp = {committed}, updated_at = pg_catalog.clock_timestamp() \
             WHERE slot = {slot} AND end_lsn = {seen} RETURNING true"
        );
        match kind {
            RowStatement::Row => insert.clone(),
            // `waltrail.advance` (migration V1) is called only where the checkpoint does not stand as expected, to fail
            // as it always does: calling it each time would cost a third of the statement, and a place in FROM, which
            // is made ready for each execution, would still cost a little.
            RowStatement::Last => format!(
                "WITH moved AS ({moved}) \
                 {insert} WHERE CASE WHEN EXISTS (SELECT FROM moved) THEN true \
                 ELSE (waltrail.advance({slot}, {seen}, {reached}, {committed}) IS NULL) IS NOT NULL END"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::history::batch::tests::plan;

    #[test]
    fn each_statement_is_parsed_once() {
        let mut statements = Statements::new("s");
        let plans = ["a", "b"].map(|table| Plan {
            insert: format!("INSERT INTO {table} SELECT $1"),
            ..(*plan(table)).clone()
        });
        let mut numbers = BTreeSet::new();
        for again in [false, true, true] {
            for plan in &plans {
                for kind in [RowStatement::Row, RowStatement::Last] {
                    let mut out = BytesMut::new();
                    let number = statements.number(kind, plan, &mut out).unwrap();
                    assert_eq!(out.is_empty(), again, "{kind:?}");
                    assert_eq!(numbers.insert(number), !again, "{kind:?}");
                }
            }
        }
    }
}
