//! `waltrail teardown`: drops slot, publication and what `setup --context` made, keeps history tables and checkpoint.

use crate::config::Config;
use crate::fault::{Exit, Fault, Result};
use crate::name::Identifier;
use crate::server::{self, Side};
use crate::setup::context;
use crate::source::slot;

/// Drops what pins WAL on the source first. Idempotent. Returns what was dropped, for a person.
pub(crate) async fn run(config: &Config) -> Result<Vec<String>> {
    let source = server::sql(&config.source.connection, Side::Source).await?;
    let name = config.source.slot.as_str();
    let mut dropped = Vec::new();
    let found = slot::inspect(&source, name)
        .await
        .map_err(Side::Source.failed("could not show its replication slots"))?;
    match found {
        Some(slot::SlotState {
            active_pid: Some(pid),
            ..
        }) => {
            return Err(
                Fault::retry(format!("replication slot {name} is in use by pid {pid}"))
                    .remedy("stop the daemon first"),
            );
        }
        Some(slot::SlotState { plugin, .. }) if plugin.as_deref() != Some("pgoutput") => {
            return Err(Fault::halt(
                Exit::Config,
                format!(
                    "replication slot {name} is not waltrail's: it has another plugin than pgoutput"
                ),
            )
            .remedy("correct source.slot"));
        }
        Some(_) => {
            source
                .execute("SELECT pg_drop_replication_slot($1)", &[&name])
                .await
                .map_err(Side::Source.failed("could not drop the replication slot"))?;
            dropped.push(format!("replication slot {name}"));
        }
        None => {}
    }
    let publication = Identifier(&config.source.publication);
    let exists = source
        .query_opt(
            "SELECT FROM pg_catalog.pg_publication WHERE pubname = $1",
            &[&config.source.publication],
        )
        .await
        .map_err(Side::Source.failed("could not show its publications"))?
        .is_some();
    if exists {
        source
            .batch_execute(&format!("DROP PUBLICATION {publication}"))
            .await
            .map_err(Side::Source.failed("could not drop the publication"))?;
        dropped.push(format!("publication {publication}"));
    }
    dropped.extend(context::remove(&source).await?);
    Ok(dropped)
}
