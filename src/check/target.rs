//! What keeps the target from keeping history.

use tokio_postgres::Client;

use super::unanswered;
use crate::config::{Config, Durable};
use crate::fault::Result;
use crate::finding::Finding;
use crate::server::{Service, Side};
use crate::setup;

const SETTINGS: &str = "
    SELECT ARRAY(SELECT name::text FROM pg_catalog.pg_settings
                  WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off' ORDER BY name),
           current_setting('synchronous_standby_names'),
           (SELECT count(*) FROM pg_catalog.pg_stat_replication WHERE sync_state IN ('sync', 'quorum')),
           (SELECT count(*) FROM pg_catalog.pg_stat_replication WHERE sync_state IS NULL)";

/// Looks at the target. `source` tells whether it is the same server.
pub(super) async fn look(
    config: &Config,
    source: Option<&Client>,
    target: &Client,
) -> Vec<Finding> {
    let looked = settings(config, source, target).await;
    looked.unwrap_or_else(|fault| vec![unanswered(Side::Target, fault)])
}

async fn settings(
    config: &Config,
    source: Option<&Client>,
    target: &Client,
) -> Result<Vec<Finding>> {
    let mut found: Vec<Finding> = setup::read_only(target).await?.into_iter().collect();
    let failed = Side::Target.failed("could not show its settings");
    let row = target.query_one(SETTINGS, &[]).await.map_err(failed)?;
    let service = Service::of(target).await;
    let off: Vec<String> = row.get(0);
    if !off.is_empty() {
        let names = off.join(" and ");
        let what = format!(
            "{names} = off: a crash of the target's machine loses history that was confirmed to the source"
        );
        let remedies: Vec<String> = off
            .iter()
            .map(|name| service.set(name, "on", false))
            .collect();
        let finding = Finding::warning(Side::Target, "the-target-does-not-flush", what);
        found.push(finding.remedy(remedies.join(" ")));
    }
    let names: &str = row.get(1);
    let (synchronous, hidden): (i64, i64) = (row.get(2), row.get(3));
    let one_server = match source {
        Some(source) => setup::same_cluster(source, target).await?,
        None => config.target_is_source,
    };
    let waits = match config.durable {
        Some(durable) => durable == Durable::Server,
        None => !one_server,
    };
    if waits && !names.is_empty() && synchronous + hidden == 0 {
        let what = format!(
            "no standby of synchronous_standby_names = '{names}' is connected to the target: nothing is confirmed to the source"
        );
        let remedy = match service {
            Service::Own => "ALTER SYSTEM SET synchronous_standby_names = ''; SELECT pg_reload_conf(); -- or start the standby".to_owned(),
            other => other.set("synchronous_standby_names", "", false),
        };
        found.push(Finding::warning(Side::Target, "a-standby-is-missing", what).remedy(remedy));
    }
    Ok(found)
}

/// Whether values of the source can be refused for their encoding.
pub(super) async fn encodings(source: &Client, target: &Client) -> Option<Finding> {
    let ask = async |client: &Client| -> Option<String> {
        let row = client
            .query_one("SELECT current_setting('server_encoding')", &[])
            .await;
        Some(row.ok()?.get(0))
    };
    let (of, to) = (ask(source).await?, ask(target).await?);
    let reason = match (of.as_str(), to.as_str()) {
        (of, to) if of == to => return None,
        (_, "SQL_ASCII") => return None,
        ("SQL_ASCII", _) => "bytes that are not valid there are refused",
        (_, "UTF8") => return None,
        _ => "characters that it does not have are refused",
    };
    let what = format!(
        "the source has the encoding {of}, the target {to}: {reason}, and waltrail stops with 65"
    );
    let best = if of == "SQL_ASCII" {
        "SQL_ASCII"
    } else {
        "UTF8"
    };
    Some(Finding::warning(Side::Target, "encodings-differ", what).remedy(format!(
        "CREATE DATABASE history ENCODING '{best}' LOCALE 'C' TEMPLATE template0; -- and name it in target.dsn"
    )))
}
