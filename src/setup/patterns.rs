//! Patterns become tables: looked up in the source's catalog at the start of each session, and whenever it is asked.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};

use tokio_postgres::Client;

use super::requirements;
use crate::config::{Config, Table};
use crate::fault::{Exit, Fault, Result};
use crate::name::TableName;
use crate::schema::catalog;
use crate::server::Side;

/// Which tables were left out, and why, so that each reason is logged once.
static LEFT_OUT: Mutex<BTreeMap<TableName, String>> = Mutex::new(BTreeMap::new());

/// Tables of a schema that a pattern can mean: ordinary and partitioned ones that are not partitions or temporary.
/// Histories are known by their comment, and in one database also by what the control schema says.
const CANDIDATES: &str = "
    SELECT n.nspname, c.relname,
           coalesce(pg_catalog.obj_description(c.oid, 'pg_class') LIKE 'history of %, made by waltrail', false)
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = ANY ($1::name[]) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
       AND c.relpersistence <> 't'
     ORDER BY n.nspname, c.relname";

/// The configuration with the tables that its patterns mean now, as far as they can be followed. Each that cannot is
/// logged once, with the reason.
///
/// # Errors
/// The source failed, or no table is left.
pub(crate) async fn expand(config: &Config, source: &Client) -> Result<Config> {
    if config.patterns.is_empty() {
        return Ok(config.clone());
    }
    let mut meant = meant(config, source).await?;
    let names: Vec<&TableName> = meant.iter().map(|table| &table.source).collect();
    let found = catalog::source_tables(source, &config.source.publication, &names, &[]);
    let found = found
        .await
        .map_err(Side::Source.failed("could not describe its tables"))?;
    let version = requirements::version(source).await?;
    meant.retain(|table| {
        let Some((source, standing)) = found.named(&table.source) else {
            // Dropped a moment ago.
            return false;
        };
        let fits = requirements::can_be_followed(source, standing, version);
        fits.map_err(|fault| leave_out(&table.source, &fault.to_string()))
            .is_ok()
    });
    let mut expanded = config.clone();
    expanded.tables.extend(meant);
    if expanded.tables.is_empty() {
        return Err(no_table(config));
    }
    Ok(expanded)
}

fn no_table(config: &Config) -> Fault {
    let patterns = config.patterns.iter();
    let patterns: Vec<String> = patterns.map(|pattern| pattern.source.to_string()).collect();
    Fault::halt(
        Exit::Config,
        format!(
            "the source has no table that can be followed for {}",
            patterns.join(", ")
        ),
    )
    .remedy("correct [[table]] source, or create the first table")
}

/// The tables that patterns mean, each once; the first pattern that means a table counts.
async fn meant(config: &Config, source: &Client) -> Result<Vec<Table>> {
    let schemas: Vec<&str> = config
        .patterns
        .iter()
        .map(|pattern| pattern.source.schema.as_str())
        .collect();
    let rows = source
        .query(CANDIDATES, &[&schemas])
        .await
        .map_err(Side::Source.failed("could not list its tables"))?;
    let mut meant = Vec::new();
    let explicit: HashSet<&TableName> = config.tables.iter().map(|table| &table.source).collect();
    for row in &rows {
        let name = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let is_history: bool = row.get(2);
        if is_history || explicit.contains(&name) {
            continue;
        }
        let mut patterns = config.patterns.iter();
        match patterns.find_map(|pattern| pattern.table(&name)) {
            None => {}
            Some(Ok(table)) => meant.push(table),
            Some(Err(error)) => {
                let reason = format!("the name of its history {error}; name one in an entry of its own");
                leave_out(&name, &reason);
            }
        }
    }
    let mut histories = known_histories(source).await?;
    histories.extend(config.tables.iter().map(|table| table.history.clone()));
    histories.extend(meant.iter().map(|table| table.history.clone()));
    meant.retain(|table| !histories.contains(&table.source));
    // Two tables may have one history, where a pattern names its schema.
    let mut taken: HashSet<TableName> = config.tables.iter().map(|t| t.history.clone()).collect();
    meant.retain(|table| {
        let is_new = taken.insert(table.history.clone());
        if !is_new {
            let reason = format!("{} is the history of another table", table.history);
            leave_out(&table.source, &reason);
        }
        is_new
    });
    Ok(meant)
}

/// The histories that the control schema knows, where it is in the source database and may be read.
async fn known_histories(source: &Client) -> Result<HashSet<TableName>> {
    let failed = Side::Source.failed("could not show which histories there are");
    let known = source
        .query_one(
            "SELECT coalesce(has_schema_privilege(to_regnamespace('waltrail'), 'USAGE') \
                AND has_table_privilege(to_regclass('waltrail.snapshot'), 'SELECT'), false)",
            &[],
        )
        .await
        .map_err(failed)?;
    if !known.get::<_, bool>(0) {
        return Ok(HashSet::new());
    }
    let rows = source
        .query("SELECT DISTINCT history FROM waltrail.snapshot", &[])
        .await
        .map_err(failed)?;
    let names = rows.iter().map(|row| row.get::<_, &str>(0).parse());
    Ok(names.filter_map(std::result::Result::ok).collect())
}

/// Logs why a table that a pattern means is not followed, once for each reason.
pub(super) fn leave_out(table: &TableName, reason: &str) {
    let mut left_out = LEFT_OUT.lock().unwrap_or_else(PoisonError::into_inner);
    if left_out.get(table).is_none_or(|known| known != reason) {
        tracing::warn!(%table, reason, "this table is not followed");
        left_out.insert(table.clone(), reason.to_owned());
    }
}
