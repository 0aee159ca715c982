//! The history table that waltrail makes itself (docs/reference/history-tables.md).

use std::fmt::Write as _;

use tokio_postgres::Client;

use super::history::unfit;
use crate::config::Table;
use crate::fault::Result;
use crate::schema::exact::Type;
use crate::schema::home::{self, Home};
use crate::schema::plan::literal;
use crate::schema::{
    HistoryColumn, HistoryTable, Identifier, SourceColumn, SourceTable, TableName, recorded, types,
};
use crate::server::Side;

/// The columns that number a row and say what it is.
const HEAD: [(&str, &str); 6] = [
    ("cdc_id", "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"),
    ("change_type", "text NOT NULL"),
    ("change_timestamp", "timestamptz NOT NULL"),
    ("commit_lsn", "pg_lsn NOT NULL"),
    ("tx_seq", "bigint NOT NULL"),
    ("xid", "bigint NOT NULL"),
];

/// The types of waltrail's own columns that SQL asks for, by their OIDs.
const HEAD_TYPES: [(&str, u32); 4] = [
    ("cdc_id", 20),
    ("change_timestamp", 1184),
    ("commit_lsn", 3220),
    ("unavailable_columns", 1009),
];

pub(super) struct Definition<'a> {
    source: &'a TableName,
    history: &'a TableName,
    /// Name and type of each column.
    columns: Vec<(String, String)>,
    homes: Vec<Home>,
}

/// Name and SQL of each history that is missing, in this target; an error, exit 65, where a column name is needed twice.
/// With `context`, each has a column for what transactions say of themselves.
pub(super) async fn statements(
    target: &Client,
    missing: &[(&Table, &SourceTable)],
    context: bool,
) -> Result<Vec<Result<(String, String)>>> {
    let kinds: Vec<Vec<String>> = missing
        .iter()
        .map(|(table, source)| kinds(table, source))
        .collect();
    let mut all: Vec<String> = kinds.iter().flatten().cloned().collect();
    all.sort_unstable();
    all.dedup();
    let unknown = types::unknown(target, &all).await;
    let unknown = unknown.map_err(Side::Target.failed("could not show its types"))?;
    let names: Vec<String> = missing
        .iter()
        .map(|(table, _)| table.history.to_string())
        .collect();
    let outlived = recorded::forgotten(target, &names).await;
    let outlived =
        outlived.map_err(Side::Target.failed("could not show the columns of its histories"))?;
    let statement = |((table, source), mut kinds): (&(&Table, &SourceTable), Vec<String>)| {
        replace_unknown(table, source, &mut kinds, &unknown);
        let mut made = Definition::of(table, source, &kinds)?;
        if context {
            made.add_context(&table.prefix);
        }
        let mut sql = made.sql();
        let name = table.history.to_string();
        // The table that it was about was dropped.
        if let Some(forget) = outlived.get(&name) {
            sql = format!("{forget}{sql}");
        }
        Ok((format!("history table {name}"), sql))
    };
    Ok(std::iter::zip(missing, kinds).map(statement).collect())
}

/// The history of `source` as the statement would make it; of its columns, what SQL that reads it has to know.
pub(super) fn as_table(table: &Table, source: &SourceTable) -> Result<HistoryTable> {
    let made = Definition::of(table, source, &kinds(table, source))?;
    let column = |(name, kind): &(String, String)| {
        let own = name.strip_prefix(table.prefix.as_str());
        let type_oid = HEAD_TYPES.iter().find(|(head, _)| own == Some(*head));
        let of_source = source.columns.iter().find(|column| column.name == *name);
        let of_source =
            of_source.and_then(|column| source.type_of(column.type_oid, column.modifier));
        HistoryColumn {
            name: name.clone(),
            type_oid: type_oid.map_or(0, |(_, oid)| *oid),
            modifier: -1,
            kind: of_source.map_or_else(|| Type::named(kind, None), Type::home),
            not_null: false,
            has_default: own == Some("cdc_id"),
            generated: false,
        }
    };
    Ok(HistoryTable {
        name: table.history.clone(),
        columns: made.columns.iter().map(column).collect(),
        made: true,
        homes: made.homes,
    })
}

fn recorded_columns<'s>(table: &Table, source: &'s SourceTable) -> Vec<&'s SourceColumn> {
    let recorded = |column: &&SourceColumn| !table.exclude_columns.contains(&column.name);
    source.columns.iter().filter(recorded).collect()
}

/// The types of the recorded columns, as SQL writes them.
fn kinds(table: &Table, source: &SourceTable) -> Vec<String> {
    let columns = recorded_columns(table, source).into_iter();
    columns
        .map(|column| source.type_of(column.type_oid, column.modifier))
        .map(|kind| kind.map_or_else(Type::text, Type::home).sql)
        .collect()
}

impl<'a> Definition<'a> {
    fn of(table: &'a Table, source: &SourceTable, kinds: &[String]) -> Result<Self> {
        let columns = recorded_columns(table, source);
        let own = |name: &str| format!("{}{name}", table.prefix);
        let mut made = Self {
            source: &table.source,
            history: &table.history,
            columns: HEAD
                .map(|(name, kind)| (own(name), kind.to_owned()))
                .to_vec(),
            homes: Vec::new(),
        };
        for (column, kind) in std::iter::zip(&columns, kinds) {
            if home::is_own(&column.name, &table.prefix) {
                return Err(taken(table, &column.name));
            }
            // Unless it is recorded, such a column holds the value before a change of another.
            // And one that could be waltrail's own is not.
            if column.name.starts_with("old_") || column.name == home::context_name(&table.prefix) {
                made.record(&column.name, false, column.name.clone());
            }
            made.columns.push((column.name.clone(), kind.clone()));
        }
        for (column, kind) in std::iter::zip(&columns, kinds) {
            if source.key.contains(&column.name) {
                made.add_former(&column.name, kind.clone());
            }
        }
        made.columns
            .push((own("unavailable_columns"), "text[]".to_owned()));
        Ok(made)
    }

    /// A column for the value before the change of `column`, unless the source has a column of that name.
    fn add_former(&mut self, column: &str, kind: String) {
        let is_taken = |name: &str| self.columns.iter().any(|(taken, _)| taken == name);
        let name = match home::by_rule(column, true) {
            Some(name) if is_taken(&name) => {
                let history = self.history;
                tracing::warn!(
                    table = %self.source, history = %history, column, taken = name,
                    "the source has a column of that name itself: the history does not keep the former value of this key column"
                );
                return;
            }
            Some(name) => name,
            None => {
                let name = home::free_name(column, true, is_taken);
                self.record(column, true, name.clone());
                name
            }
        };
        self.columns.push((name, kind));
    }

    /// A column for what transactions say of themselves, unless the source has a column of that name.
    fn add_context(&mut self, prefix: &str) {
        let name = home::context_name(prefix);
        if self.columns.iter().all(|(taken, _)| *taken != name) {
            self.columns.push((name.clone(), "jsonb".to_owned()));
            self.homes.push(home::ours(name));
        }
    }

    fn record(&mut self, column: &str, former: bool, history_column: String) {
        self.homes.push(Home {
            source_column: column.to_owned(),
            former,
            history_column,
        });
    }

    /// The statements that make it.
    pub(super) fn sql(&self) -> String {
        let mut sql = format!("CREATE TABLE {} (", self.history);
        for (n, (name, kind)) in self.columns.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            // Writing to a String cannot fail.
            let _ = write!(sql, "{comma}\n    {} {kind}", Identifier(name));
        }
        let comment = literal(&home::comment(self.source));
        let _ = write!(sql, "\n);\nCOMMENT ON TABLE {} IS {comment}", self.history);
        if let Some(homes) = recorded::statement(self.history, &self.homes) {
            let _ = write!(sql, ";\n{homes}");
        }
        sql
    }
}

fn taken(table: &Table, column: &str) -> crate::fault::Fault {
    unfit(
        "a-column-name-is-taken",
        format!(
            "the history of {} cannot be created: column {column} of the source has a name that the history needs itself",
            table.source
        ),
    )
    .remedy(format!(
        "set prefix = \"_\" for {}, or add \"{column}\" to exclude_columns",
        table.source
    ))
}

/// Puts text in place of types that the target does not have.
fn replace_unknown(table: &Table, source: &SourceTable, kinds: &mut [String], unknown: &[String]) {
    for (column, kind) in std::iter::zip(recorded_columns(table, source), kinds) {
        if unknown.contains(kind) {
            tracing::warn!(
                table = %table.source, column = column.name, kind = *kind,
                "the target does not have this type: the history keeps its values as text"
            );
            "text".clone_into(kind);
        }
    }
}
