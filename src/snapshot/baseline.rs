//! How the existing rows of a table become rows of its history: a SELECT at the source whose output is, byte for
//! byte, the input of a COPY at the target. Pure.
//!
//! Values pass as they do in the stream, in binary where both ends have the same form, else as text. What
//! waltrail itself knows of a row is the same for all of them and stands in the SELECT as constants, but for
//! `tx_seq`, which the source counts.

use crate::lsn::Lsn;
use crate::schema::plan::{Own, OwnForm, Plan, PlanError, Shape, copy_in, guard, literal};
use crate::schema::{HistoryColumn, HistoryTable, Identifier, Rules, SourceTable};

/// What is recorded of every existing row.
#[derive(Clone, Debug)]
pub(crate) struct Constants<'a> {
    pub change_type: &'a str,
    /// `change_timestamp`: a time with its offset from UTC.
    pub time: &'a str,
    pub point: Lsn,
}

/// How a table's existing rows are read and written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Baseline {
    /// What is selected; [`NUMBER`] stands for the row's number.
    select: String,
    binary: bool,
    pub copy: String,
    pub guard: String,
    /// How rows are numbered, if they are.
    pub numbers: Option<OwnForm>,
}

/// Stands in a select list for the row's number. No column can be called so.
const NUMBER: &str = "\0";

impl Baseline {
    /// Maps a table onto its history as the stream does (see [`Plan::new`]).
    pub(crate) fn new(
        source: &SourceTable,
        history: &HistoryTable,
        rules: &Rules,
        constants: &Constants<'_>,
    ) -> Result<Self, PlanError> {
        let shape = Shape::of_table(source);
        let plan = match Plan::new(&shape, source, history, rules, true) {
            Err(PlanError::NeedsText { .. }) => Plan::new(&shape, source, history, rules, false),
            other => other,
        }?;
        let mut names = Vec::new();
        let mut values = Vec::new();
        let mut nulls = Vec::new();
        for (column, [new, old]) in std::iter::zip(&plan.columns, &plan.homes) {
            if column.recorded {
                names.push(new.clone());
                values.push(Identifier(&column.name).to_string());
            }
            if column.recorded_old {
                nulls.push(old.clone());
            }
        }
        let mut numbers = None;
        for &(own, form) in &plan.own {
            let name = format!("{}{}", rules.prefix, own.name());
            let Some(value) = constant(own, form, plan.binary, constants) else {
                nulls.push(name);
                continue;
            };
            if own == Own::TxSeq {
                numbers = Some(form);
            }
            names.push(name);
            values.push(value);
        }
        // What is left out is NULL, where no default says otherwise.
        for name in nulls {
            let column = history.columns.iter().find(|column| column.name == name);
            if column.is_some_and(|column| column.has_default) {
                names.push(name);
                values.push("NULL".to_owned());
            }
        }
        let list: Vec<String> = names
            .iter()
            .map(|name| Identifier(name).to_string())
            .collect();
        let written = names
            .iter()
            .filter_map(|name| history.columns.iter().find(|column| column.name == *name));
        let written: Vec<&HistoryColumn> = written.collect();
        Ok(Self {
            select: values.join(", "),
            binary: plan.binary,
            copy: copy_in(&history.name, &list.join(", "), plan.binary),
            guard: guard(&history.name, &written),
            numbers,
        })
    }

    /// The COPY statement of the source for rows of `relation` (as SQL writes it), numbered from `first`; `within`
    /// limits them to these blocks.
    pub(crate) fn copy_out(
        &self,
        relation: &str,
        first: u64,
        within: Option<(u32, Option<u32>)>,
    ) -> String {
        let number = format!("(row_number() OVER () + {})", first.saturating_sub(1));
        let select = self.select.replace(NUMBER, &number);
        let within = match within {
            None => String::new(),
            Some((from, None)) => format!(" WHERE ctid >= '({from},0)'::pg_catalog.tid"),
            Some((from, Some(to))) => format!(
                " WHERE ctid >= '({from},0)'::pg_catalog.tid AND ctid < '({to},0)'::pg_catalog.tid"
            ),
        };
        let format = if self.binary { "binary" } else { "text" };
        format!("COPY (SELECT {select} FROM {relation}{within}) TO STDOUT (FORMAT {format})")
    }
}

/// The SQL of an own value; none stands for NULL.
fn constant(own: Own, form: OwnForm, binary: bool, constants: &Constants<'_>) -> Option<String> {
    // In binary the form counts, not the type: a timestamp in UTC is that number of microseconds with or
    // without a zone. As text, the value is what the column's type reads.
    let of_form = |value: &str| match form {
        _ if !binary => format!("({value})::pg_catalog.text"),
        OwnForm::Int4 => format!("({value})::pg_catalog.int4"),
        OwnForm::Int8 => format!("({value})::pg_catalog.int8"),
        OwnForm::Text | OwnForm::TextArray | OwnForm::Jsonb => value.to_owned(),
    };
    match own {
        Own::ChangeType => Some(format!(
            "{}::pg_catalog.text",
            literal(constants.change_type)
        )),
        Own::ChangeTimestamp if binary => Some(format!(
            "{}::pg_catalog.timestamptz",
            literal(constants.time)
        )),
        Own::ChangeTimestamp => Some(format!("{}::pg_catalog.text", literal(constants.time))),
        Own::CommitLsn if binary => Some(format!(
            "{}::pg_catalog.pg_lsn",
            literal(&constants.point.to_string())
        )),
        Own::CommitLsn => Some(format!(
            "{}::pg_catalog.text",
            literal(&constants.point.to_string())
        )),
        Own::TxSeq => Some(of_form(NUMBER)),
        // No transaction: PostgreSQL's own word for it, since the column may be NOT NULL.
        Own::Xid => Some(of_form("0")),
        Own::ChangedColumns | Own::UnavailableColumns | Own::Context => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::exact::Type;
    use crate::schema::types::Types;
    use crate::schema::{HistoryColumn, SourceColumn, TableName};

    fn kind(oid: u32) -> Type {
        let name = match oid {
            20 => "int8",
            23 => "int4",
            25 => return Type::text(),
            _ => "other",
        };
        Type::named(&format!("pg_catalog.{name}"), Some(oid.to_string()))
    }

    fn tables(history: &[(&str, u32)]) -> (SourceTable, HistoryTable) {
        let source = SourceTable {
            oid: 1,
            name: TableName::new("public", "t"),
            replica_identity: 'd',
            kind: 'r',
            columns: [("id", 23), ("Note", 1082)]
                .map(|(name, oid)| SourceColumn {
                    name: name.to_owned(),
                    type_oid: oid,
                    modifier: -1,
                })
                .to_vec(),
            key: vec!["id".to_owned()],
            types: Types::new([23, 1082].map(|oid| ((oid, -1), Some(kind(oid)))).into()),
        };
        let history = HistoryTable {
            name: TableName::new("public", "t_cdc"),
            columns: history
                .iter()
                .map(|&(name, oid)| HistoryColumn {
                    name: name.to_owned(),
                    type_oid: oid,
                    modifier: -1,
                    kind: kind(oid),
                    not_null: false,
                    has_default: false,
                    generated: false,
                })
                .collect(),
            made: false,
            homes: Vec::new(),
        };
        (source, history)
    }

    const CONSTANTS: Constants<'_> = Constants {
        change_type: "INSERT",
        time: "2026-01-02 03:04:05.6+00",
        point: Lsn::ZERO,
    };

    #[test]
    fn values_pass_as_they_are_and_the_rest_is_the_same_for_every_row() {
        let (source, history) = tables(&[
            ("change_type", 25),
            ("id", 23),
            ("Note", 1082),
            ("old_id", 23),
            ("tx_seq", 20),
            ("unavailable_columns", 1009),
        ]);
        let baseline = Baseline::new(&source, &history, &Rules::default(), &CONSTANTS).unwrap();
        assert_eq!(
            baseline.copy,
            "COPY public.t_cdc (id, \"Note\", change_type, tx_seq) FROM STDIN (FORMAT binary)"
        );
        assert_eq!(
            baseline.copy_out("ONLY public.t", 1, Some((8, Some(16)))),
            "COPY (SELECT id, \"Note\", E'INSERT'::pg_catalog.text, \
             ((row_number() OVER () + 0))::pg_catalog.int8 FROM ONLY public.t \
             WHERE ctid >= '(8,0)'::pg_catalog.tid AND ctid < '(16,0)'::pg_catalog.tid) \
             TO STDOUT (FORMAT binary)"
        );
    }

    #[test]
    fn where_the_forms_differ_both_ends_speak_text() {
        let (source, history) = tables(&[("id", 20), ("commit_lsn", 3220), ("xid", 28)]);
        let baseline = Baseline::new(&source, &history, &Rules::default(), &CONSTANTS).unwrap();
        assert_eq!(
            baseline.copy_out("ONLY public.t", 1, None),
            "COPY (SELECT id, E'0/0'::pg_catalog.text, (0)::pg_catalog.text FROM ONLY public.t) \
             TO STDOUT (FORMAT text)"
        );
    }
}
