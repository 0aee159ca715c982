//! What set-up would refuse, all at once, and with nothing changed: for `waltrail check`.
//!
//! Each rule is the function that a start asks, too. A question that cannot be answered is a finding, and the others are
//! still asked.

use tokio_postgres::Client;

use super::requirements::Server;
use super::{control, history, privileges, publication, requirements, same_database};
use crate::config::{Config, Setup, Table};
use crate::fault::{Fault, Result};
use crate::finding::Finding;
use crate::schema::catalog::{self, Found, HistoryStanding, Standing};
use crate::schema::{HistoryTable, SourceTable, TableName};
use crate::server::Side;

/// The tables of both servers, as far as they could be looked at.
#[derive(Default)]
pub(crate) struct Tables {
    pub(crate) sources: Found<(SourceTable, Standing)>,
    pub(crate) histories: Found<(HistoryTable, HistoryStanding)>,
}

/// What could not be looked at.
pub(crate) fn unanswered(side: Side, fault: Fault) -> Finding {
    Finding::error(side, "could-not-be-checked", fault)
}

/// The value, or a finding.
fn answered<T>(side: Side, result: Result<T>, found: &mut Vec<Finding>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(fault) => {
            found.push(unanswered(side, fault));
            None
        }
    }
}

/// Looks at what is followed. `server` is the source, where it answers.
pub(crate) async fn look(
    config: &Config,
    source: Option<(&Client, &Server)>,
    target: Option<&Client>,
    found: &mut Vec<Finding>,
) -> Tables {
    let mut tables = Tables::default();
    if let Some((source, server)) = source {
        let looked = requirements::look_up(source, config).await;
        tables.sources = answered(Side::Source, looked, found).unwrap_or_default();
        for table in &config.tables {
            found.extend(requirements::of_table(
                table,
                &tables.sources,
                server.version,
            ));
        }
    }
    let pairs: Vec<(&Table, Option<&SourceTable>)> = config
        .tables
        .iter()
        .map(|table| {
            (
                table,
                tables.sources.named(&table.source).map(|(table, _)| table),
            )
        })
        .collect();
    let whole: Vec<(&Table, &SourceTable)> = pairs
        .iter()
        .filter_map(|(table, source)| Some((*table, (*source)?)))
        .collect();
    if let Some((source, _)) = source {
        let missing = privileges::of_source(config, source, &whole).await;
        let more = answered(Side::Source, missing, found);
        found.extend(more.unwrap_or_default());
    }
    if let Some(target) = target {
        let missing = privileges::of_target(config, target, &pairs).await;
        let more = answered(Side::Target, missing, found);
        found.extend(more.unwrap_or_default());
        let schema = control::findings(config, target).await;
        let more = answered(Side::Target, schema, found);
        found.extend(more.unwrap_or_default());
        let names: Vec<&TableName> = config.tables.iter().map(|table| &table.history).collect();
        let looked = catalog::history_tables(target, &names, &[]).await;
        let looked = looked.map_err(Side::Target.failed("could not describe the history tables"));
        tables.histories = answered(Side::Target, looked, found).unwrap_or_default();
        for (table, source) in &pairs {
            let known = tables.histories.named(&table.history);
            found.extend(of_history(config, target, (table, *source), known).await);
        }
    }
    if let Some((source, server)) = source {
        let published = of_publication(config, (source, server), target, &whole).await;
        let more = answered(Side::Source, published, found);
        found.extend(more.unwrap_or_default());
    }
    tables
}

async fn of_history(
    config: &Config,
    target: &Client,
    (table, source): (&Table, Option<&SourceTable>),
    known: Option<&(HistoryTable, HistoryStanding)>,
) -> Vec<Finding> {
    let name = &table.history;
    match (known, source) {
        (None, _) => vec![super::missing(
            config,
            name,
            &format!("the history table {name}"),
        )],
        (Some((history, standing)), Some(source)) => {
            history::findings(config, target, (table, source), (history, standing)).await
        }
        (Some((_, standing)), None) => history::loses_rows(name, standing),
    }
}

async fn of_publication(
    config: &Config,
    (source, server): (&Client, &Server),
    target: Option<&Client>,
    tables: &[(&Table, &SourceTable)],
) -> Result<Vec<Finding>> {
    let name = &config.source.publication;
    let Some(known) = publication::look(source, name).await? else {
        let what = format!("publication {name}");
        return Ok(vec![super::missing(config, &Side::Source, &what)]);
    };
    let one_database = match target {
        Some(target) => same_database(source, target)
            .await
            .unwrap_or(config.target_is_source),
        None => config.target_is_source,
    };
    let may_alter = known.is_ours() && config.setup == Setup::Auto;
    let mut found = known.findings(tables, (server.version, one_database), may_alter);
    let names = known.names();
    for (_, source) in tables {
        if !names.contains(&source.name) {
            let what = format!("{} in publication {name}", source.name);
            found.push(super::missing(config, &source.name, &what));
        }
    }
    Ok(found)
}
