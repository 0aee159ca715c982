//! The statements that write history and move the checkpoint, each prepared once a session.
//!
//! The slot stands in them as a literal: it is the same for all that a session writes.

use std::collections::HashMap;

use bytes::BytesMut;
use postgres_protocol::message::frontend;

use super::outgoing::Outgoing;
use crate::schema::TableName;
use crate::schema::plan::{self, Plan};
use crate::wire::Error;

/// The types of the parameters that move the checkpoint: from where and to where, and when that was committed. `pg_lsn`
/// twice, `timestamptz`.
const ADVANCE_TYPES: [u32; 3] = [3220, 3220, 1184];

/// The page in which this session last wrote the checkpoint, as the beginning of a `ctid`.
const PAGE: &str = "nullif(pg_catalog.current_setting('waltrail.checkpoint_page', true), '')";

#[derive(Debug)]
pub(super) struct Statements {
    slot: String,
    /// Their names, by what they are made of.
    names: HashMap<String, String>,
    /// The opening that was run last for each history.
    opened: HashMap<TableName, String>,
}

impl Statements {
    /// `slot`: whose checkpoint is moved.
    pub(super) fn new(slot: &str) -> Self {
        Self {
            slot: plan::literal(slot),
            names: HashMap::new(),
            opened: HashMap::new(),
        }
    }

    /// The name of a statement without parameters; where it is new, it is parsed before what follows in `out`.
    pub(super) fn plain(&mut self, sql: &str, out: &mut BytesMut) -> Result<&str, Error> {
        self.name(sql, out, |_| (sql.to_owned(), Vec::new()))
    }

    /// The name of the statement that takes one row of `plan`.
    pub(super) fn row(&mut self, plan: &Plan, out: &mut BytesMut) -> Result<&str, Error> {
        // With the types that the rows were made for, whatever the columns become.
        self.name(&plan.insert, out, |_| {
            (plan.insert.clone(), plan.parameters.clone())
        })
    }

    /// Appends the check that the history still has the columns that rows of `plan` were made for, which the table's lock then
    /// keeps till the end of the transaction. The first time the catalogs say so, and the server remembers the columns'
    /// types and modifiers; later it compares them itself, by the rule that a prepared statement never changes the type of
    /// its result.
    pub(super) fn check(&mut self, plan: &Plan, out: &mut Outgoing<'_>) -> Result<(), Error> {
        let is_new = !self.names.contains_key(&plan.guard);
        let name = self.name(&plan.guard, &mut out.own, |_| {
            (plan.check.clone(), Vec::new())
        })?;
        if is_new {
            out.execute_once(&plan.guard)?;
        }
        out.execute(name)
    }

    /// Appends what says where the values of `plan` stand, before the first row of it.
    pub(super) fn open(&mut self, plan: &Plan, out: &mut Outgoing<'_>) -> Result<(), Error> {
        if plan.opening.is_empty() || self.opened.get(&plan.history) == Some(&plan.opening) {
            return Ok(());
        }
        let (history, opening) = (plan.history.clone(), plan.opening.clone());
        self.opened.insert(history, opening);
        out.execute_once(&plan.opening)
    }

    /// The name of the statement that moves the checkpoint by the parameters of [`ADVANCE_TYPES`]. `waltrail.advance`
    /// (migration V1) is called only where the checkpoint does not stand as expected, to fail as it always does: calling it
    /// each time would cost several times the UPDATE.
    ///
    /// While a snapshot is held in the target, no version of the row can go. To find the last one by its key would mean to look
    /// at each, and soon take longer than all the rest; so it is first looked for in the page where this session has written
    /// it. A scan of the page, unlike a look at a `ctid`, also prunes it.
    pub(super) fn advance(&mut self, out: &mut BytesMut) -> Result<&str, Error> {
        self.name("advance", out, |slot| {
            let update = |place: &str| {
                format!(
                    "UPDATE waltrail.checkpoint \
                     SET end_lsn = $2, reported_lsn = greatest(reported_lsn, $2), commit_timestamp = $3, \
                     updated_at = pg_catalog.clock_timestamp() WHERE slot = {slot} AND end_lsn = $1 AND {place} \
                     RETURNING pg_catalog.set_config('waltrail.checkpoint_page', \
                     pg_catalog.split_part(ctid::text, ',', 1), false)"
                )
            };
            // Sub-selects: the planner would take the page of today for that of ever.
            let here = format!(
                "ctid >= (SELECT ({PAGE} || ',0)')::pg_catalog.tid) \
                 AND ctid <= (SELECT ({PAGE} || ',65535)')::pg_catalog.tid)"
            );
            let text = format!(
                "WITH here AS ({}), moved AS ({}) SELECT waltrail.advance({slot}, $1, $2, $3) \
                 WHERE NOT EXISTS (SELECT FROM here) AND NOT EXISTS (SELECT FROM moved)",
                update(&here),
                update("NOT EXISTS (SELECT FROM here)"),
            );
            (text, ADVANCE_TYPES.to_vec())
        })
    }

    /// `make`: text and types of parameters, for a slot.
    fn name(
        &mut self,
        of: &str,
        out: &mut BytesMut,
        make: impl FnOnce(&str) -> (String, Vec<u32>),
    ) -> Result<&str, Error> {
        if !self.names.contains_key(of) {
            let name = format!("s{}", self.names.len());
            let (text, types) = make(&self.slot);
            frontend::parse(&name, &text, types, out)?;
            self.names.insert(of.to_owned(), name);
        }
        Ok(&self.names[of])
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
            copy: format!("COPY {table} FROM STDIN"),
            ..(*plan(table)).clone()
        });
        let mut names = BTreeSet::new();
        for again in [false, true, true] {
            for plan in &plans {
                for copied in [true, false] {
                    let mut out = BytesMut::new();
                    let name = match copied {
                        true => statements.plain(&plan.copy, &mut out),
                        false => statements.row(plan, &mut out),
                    };
                    assert_eq!(names.insert(name.unwrap().to_owned()), !again);
                    assert_eq!(out.is_empty(), again);
                }
            }
        }
    }
}
