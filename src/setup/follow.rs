//! Schema changes: a history gets the columns that it lacks for the shapes of its source, before a row of them is written.

use tokio_postgres::Client;

use super::Mode;
use super::history::unfit;
use crate::config::{Config, SchemaChanges, Table};
use crate::fault::{Fault, Result};
use crate::pipeline::Altered;
use crate::schema::addition::{self, Addition};
use crate::schema::plan::Shape;
use crate::schema::{HistoryTable, Rules, SourceTable, TableName, catalog, types};
use crate::server::Side;

/// What is done about columns that a history lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lacking {
    Add,
    /// With what the configuration says.
    Refuse(&'static str),
    /// They are not recorded, and an inexact one is refused where its first value comes.
    Leave,
}

impl Lacking {
    fn of(config: &Config, history: &HistoryTable, mode: &Mode) -> Self {
        match (config.schema_changes, mode) {
            (Some(SchemaChanges::Halt), _) => Self::Refuse("schema_changes = \"halt\""),
            (None, _) if !history.made => Self::Leave,
            (_, Mode::Refuse) => Self::Refuse("setup = \"manual\""),
            (_, Mode::Create | Mode::DryRun(_)) => Self::Add,
        }
    }
}

/// Adds the columns that `history` lacks for the present shape of `source` and for those of it that the stream has described.
/// Returns the history as it is then, and whether a column was probably renamed to what the present shape has.
///
/// # Errors
/// Exit 65 where the configuration does not want columns to be added.
pub(crate) async fn follow(
    config: &Config,
    target: &Client,
    (table, source): (&Table, &SourceTable),
    history: HistoryTable,
    altered: &[Altered],
    mode: &mut Mode,
) -> Result<(HistoryTable, bool)> {
    let lacking = Lacking::of(config, &history, mode);
    if lacking == Lacking::Leave {
        return Ok((history, false));
    }
    let rules = table.rules();
    let described = altered.iter().filter(|altered| altered.oid == source.oid);
    let mut shapes: Vec<Shape> = described.map(|altered| altered.shape.clone()).collect();
    shapes.push(Shape::of_table(source));
    let mut wanted = history.clone();
    let additions = additions(target, source, &mut wanted, &rules, &shapes).await?;
    if additions.is_empty() {
        return Ok((history, false));
    }
    let statement = addition::statements(&history, &additions);
    if let Lacking::Refuse(why) = lacking {
        return Err(refusal(
            &source.name,
            &history.name,
            &additions,
            why,
            &statement,
        ));
    }
    if let Mode::DryRun(statements) = mode {
        statements.push(format!("-- target\n{statement};"));
        return Ok((wanted, false));
    }
    let is_known = |now: &str| {
        let mut renamed = altered
            .iter()
            .filter_map(|altered| altered.renamed.as_ref());
        renamed.any(|(_, known)| known == now)
    };
    let gone = replaced(source, &history, &rules, &additions);
    let gone = gone.filter(|_| !is_known(&additions[0].column));
    let added = target.batch_execute(&statement).await;
    added.map_err(Side::Target.failed("could not add columns to a history table"))?;
    log(&source.name, &history.name, &additions, gone);
    let described = catalog::history_tables(target, &[&history.name], &[]).await;
    let described =
        described.map_err(Side::Target.failed("could not describe the history tables"))?;
    match described.named(&history.name) {
        Some((history, _)) => Ok((history.clone(), gone.is_some())),
        None => Err(Fault::retry(format!(
            "the history table {} is gone",
            history.name
        ))),
    }
}

async fn additions(
    target: &Client,
    source: &SourceTable,
    history: &mut HistoryTable,
    rules: &Rules,
    shapes: &[Shape],
) -> Result<Vec<Addition>> {
    let kinds = |shape| addition::lacking_kinds(shape, source, history, rules);
    let kinds: Vec<String> = shapes.iter().flat_map(kinds).collect();
    let unknown = match kinds.is_empty() {
        true => Vec::new(),
        false => {
            let unknown = types::unknown(target, &kinds).await;
            unknown.map_err(Side::Target.failed("could not show its types"))?
        }
    };
    let mut additions = Vec::new();
    for shape in shapes {
        additions.extend(addition::additions(shape, source, history, rules, &unknown));
    }
    Ok(additions)
}

fn refusal(
    source: &TableName,
    history: &TableName,
    additions: &[Addition],
    why: &str,
    statement: &str,
) -> Fault {
    let columns: Vec<String> = additions
        .iter()
        .map(|addition| match addition.former {
            true => format!("{}.{} before a change", source, addition.column),
            false => format!(
                "{}.{} of type {}",
                source, addition.column, addition.kind.sql
            ),
        })
        .collect();
    unfit(
        "a-schema-change-is-not-followed",
        format!(
            "{history} has no column that keeps {}, and {why}",
            columns.join(", ")
        ),
    )
    .remedy(format!("{statement}; -- on the target; then start again"))
}

/// A history column that has lost its source column, where the only new one is of its type: probably it was renamed.
fn replaced<'h>(
    source: &SourceTable,
    history: &'h HistoryTable,
    rules: &Rules,
    additions: &[Addition],
) -> Option<&'h str> {
    let mut new = additions.iter().filter(|addition| !addition.former);
    let (Some(new), None) = (new.next(), new.next()) else {
        return None;
    };
    if new.beside.is_some() || !source.has(&new.column) {
        return None;
    }
    let is_other = |name: &str| {
        source.has(name)
            || name.starts_with("old_")
            || crate::schema::home::is_own(name, &rules.prefix)
            || history.homes.iter().any(|home| home.history_column == name)
    };
    let columns = history.columns.iter();
    let mut gone = columns.filter(|known| known.kind == new.kind && !is_other(&known.name));
    match (gone.next(), gone.next()) {
        (Some(gone), None) => Some(&gone.name),
        _ => None,
    }
}

fn log(source: &TableName, history: &TableName, additions: &[Addition], gone: Option<&str>) {
    for addition in additions {
        let (column, history_column) = (&addition.column, &addition.history_column);
        let kind = &addition.kind.sql;
        if let Some(kind) = &addition.lacking {
            tracing::warn!(
                table = %source, %history, column, kind,
                "the target does not have this type: the history keeps its values as text"
            );
        }
        match &addition.beside {
            Some(beside) => tracing::warn!(
                table = %source, %history, column, kind, history_column, beside,
                "schema change followed: the column has another type, its values go to a new history column"
            ),
            None => tracing::info!(
                table = %source, %history, column, kind, history_column, former = addition.former,
                note = "a DEFAULT shows in rows that existed without a change row",
                "schema change followed: the history has a new column"
            ),
        }
    }
    if let Some(gone) = gone {
        tracing::warn!(
            table = %source, %history, was = gone,
            "a column is gone and another of its type has come, perhaps by a rename: the history goes on under the new name"
        );
    }
}
