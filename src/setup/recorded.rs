//! The tables as they are recorded: what is still in the WAL of them can be read after the source was changed, without
//! preparing anything anew.

use tokio_postgres::Client;

use super::follow::follow;
use super::{Mode, captured, layout, learn_types};
use crate::config::{Config, Table};
use crate::fault::Result;
use crate::history::followed::Record;
use crate::pipeline::{Altered, Captured};
use crate::schema::sight::Followed;
use crate::schema::{SourceTable, TableName, catalog};
use crate::server::Side;

/// The configured tables that the record has, known by their OIDs. One that was dropped is as the record has it.
pub(crate) async fn tables(
    config: &Config,
    source: &Client,
    target: &Client,
    record: &Record,
    altered: &[Altered],
) -> Result<Vec<Captured>> {
    let entries = record.by_history();
    let known: Vec<(&Table, &Followed)> = config
        .tables
        .iter()
        .filter_map(|table| Some((table, *entries.get(&table.history)?)))
        .collect();
    let oids: Vec<u32> = known.iter().map(|(_, followed)| followed.oid).collect();
    let found = catalog::source_tables(source, &config.source.publication, &[], &oids)
        .await
        .map_err(Side::Source.failed("could not describe the tables"))?;
    let mut sources: Vec<SourceTable> = known
        .iter()
        .map(|(_, followed)| match found.with_oid(followed.oid) {
            Some((table, _)) => table.clone(),
            None => dropped(followed),
        })
        .collect();
    learn_types(source, &mut sources, altered).await?;
    let names: Vec<&TableName> = known.iter().map(|(table, _)| &table.history).collect();
    let histories = catalog::history_tables(target, &names, &[])
        .await
        .map_err(Side::Target.failed("could not describe the history tables"))?;
    let mut tables = Vec::with_capacity(known.len());
    let mut mode = Mode::of(config);
    for ((table, _), source) in std::iter::zip(known, sources) {
        let Some((history, _)) = histories.named(&table.history) else {
            continue;
        };
        // What is still in the WAL may need columns.
        let (pair, history) = ((table, &source), history.clone());
        let (history, _) = follow(config, target, pair, history, altered, &mut mode).await?;
        let mut captured = captured(table, source, history, altered);
        // A column list can have hidden values.
        captured.absent_unknown = true;
        tables.push(captured);
    }
    layout::keep((source, &config.source.slot), target, &mut tables).await?;
    Ok(tables)
}

/// What is known of a table that is gone; the stream describes its columns.
fn dropped(followed: &Followed) -> SourceTable {
    SourceTable {
        oid: followed.oid,
        name: followed.name.clone(),
        replica_identity: followed.seen.standing.identity,
        kind: followed.seen.standing.kind,
        columns: Vec::new(),
        key: followed.seen.key.clone(),
        types: Default::default(),
    }
}
