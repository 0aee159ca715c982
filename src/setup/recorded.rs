//! The tables as they are recorded: what is still in the WAL of them can be read after the source was changed, without
//! preparing anything anew.

use tokio_postgres::Client;

use crate::config::Config;
use crate::fault::Result;
use crate::history::followed::Record;
use crate::pipeline::Captured;
use crate::schema::sight::Followed;
use crate::schema::{SourceTable, catalog};
use crate::server::Side;

/// The configured tables that the record has, known by their OIDs. One that was dropped is as the record has it.
pub(crate) async fn captured(
    config: &Config,
    source: &Client,
    target: &Client,
    record: &Record,
) -> Result<Vec<Captured>> {
    let mut captured = Vec::new();
    for table in &config.tables {
        let Some(followed) = record.of(&table.history) else {
            continue;
        };
        let history = catalog::history_table(target, &table.history)
            .await
            .map_err(Side::Target.failed("could not describe a history table"))?;
        let Some((history, _)) = history else {
            continue;
        };
        captured.push(Captured {
            source: source_table(source, followed).await?,
            history,
            exclude: table.exclude_columns.clone(),
            gated: false,
            // A column list can have hidden values.
            absent_unknown: true,
        });
    }
    Ok(captured)
}

async fn source_table(source: &Client, followed: &Followed) -> Result<SourceTable> {
    let named = catalog::name_of(source, followed.oid)
        .await
        .map_err(Side::Source.failed("could not describe a table"))?;
    let found = match named {
        Some(name) => catalog::source_table(source, &name)
            .await
            .map_err(Side::Source.failed("could not describe a table"))?,
        None => None,
    };
    Ok(match found {
        Some((found, _)) if found.oid == followed.oid => found,
        _ => SourceTable {
            oid: followed.oid,
            name: followed.name.clone(),
            replica_identity: followed.seen.standing.identity,
            kind: followed.seen.standing.kind,
            columns: Vec::new(),
            key: followed.seen.key.clone(),
        },
    })
}
