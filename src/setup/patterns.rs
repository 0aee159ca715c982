//! Patterns become tables: looked up in the source's catalog at the start of each session, and while it runs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use tokio_postgres::{Client, Row};

use super::requirements;
use crate::config::{Config, Setup, Table};
use crate::fault::{Exit, Fault, Result};
use crate::history::followed::{self, Record};
use crate::name::TableName;
use crate::schema::sight::Followed;
use crate::schema::{catalog, home};
use crate::server::Side;

/// Which tables were left out, and why, so that each reason is logged once.
static LEFT_OUT: Mutex<BTreeMap<TableName, String>> = Mutex::new(BTreeMap::new());

/// Tables that a pattern can mean: ordinary and partitioned ones that are not partitions or temporary.
const CANDIDATES: &str = "
    WITH published AS MATERIALIZED (
        SELECT schemaname, tablename FROM pg_catalog.pg_publication_tables WHERE pubname = $2)
    SELECT c.oid, n.nspname, c.relname, pg_catalog.obj_description(c.oid, 'pg_class'),
           p.tablename IS NOT NULL, pg_catalog.pg_has_role(c.relowner, 'USAGE')
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN published p ON p.schemaname = n.nspname AND p.tablename = c.relname
     WHERE n.nspname = ANY ($1::name[]) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
       AND c.relpersistence <> 't'
     ORDER BY n.nspname, c.relname";

/// As [`expand`], with what the target has recorded.
pub(crate) async fn effective(config: &Config, source: &Client, target: &Client) -> Result<Config> {
    if config.patterns.is_empty() {
        return Ok(config.clone());
    }
    let record = followed::read(target, &config.source.slot).await?;
    expand(config, source, record.as_ref()).await
}

/// The configuration with the tables that its patterns mean now, in place of those that they meant before. A table that
/// is not followed yet and cannot be is left out, which is logged once. One that the record has stays, with its history,
/// whatever became of it.
///
/// # Errors
/// The source failed, or no table is left.
pub(crate) async fn expand(
    config: &Config,
    source: &Client,
    record: Option<&Record>,
) -> Result<Config> {
    let mut config = config.clone();
    if config.patterns.is_empty() {
        return Ok(config);
    }
    config.tables.retain(|table| !table.by_pattern);
    let mut meant = meant(&config, source, record).await?;
    let new = meant.iter().filter(|table| table.is_optional());
    let names: Vec<&TableName> = new.map(|table| &table.source).collect();
    if !names.is_empty() {
        let found = catalog::source_tables(source, &config.source.publication, &names, &[]);
        let found = found
            .await
            .map_err(Side::Source.failed("could not describe its tables"))?;
        let version = requirements::version(source).await?;
        meant.retain(|table| {
            if !table.is_optional() {
                return true;
            }
            let Some((source, standing)) = found.named(&table.source) else {
                // Dropped a moment ago.
                return false;
            };
            let fits = requirements::can_be_followed(source, standing, version);
            fits.map_err(|fault| leave_out(&table.source, &fault))
                .is_ok()
        });
    }
    config.tables.extend(meant);
    if config.tables.is_empty() {
        return Err(no_table(&config));
    }
    Ok(config)
}

pub(super) fn no_table(config: &Config) -> Fault {
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
async fn meant(config: &Config, source: &Client, record: Option<&Record>) -> Result<Vec<Table>> {
    let schemas = config.patterns.iter();
    let schemas: Vec<&str> = schemas
        .map(|pattern| pattern.source.schema.as_str())
        .collect();
    let rows = source
        .query(CANDIDATES, &[&schemas, &config.source.publication])
        .await
        .map_err(Side::Source.failed("could not list its tables"))?;
    let recorded = recorded(config, record);
    let mut meant: Vec<Table> = Vec::new();
    let mut here = HashSet::new();
    let explicit: HashSet<&TableName> = config.tables.iter().map(|table| &table.source).collect();
    for row in &rows {
        let name = name(row);
        match recorded.get(&row.get(0)) {
            _ if explicit.contains(&name) => {}
            // Whatever it is called now.
            Some((table, _)) => {
                here.insert(row.get::<_, u32>(0));
                meant.push(Table {
                    source: name,
                    ..table.clone()
                });
            }
            None if home::is_made(row.get(3)) => {}
            None => {
                meant.extend(new_table(config, &name).filter(|_| is_published(config, &name, row)))
            }
        }
    }
    leave_histories_out(config, &mut meant, known_histories(source).await?);
    // What is gone is still followed, until everything that was written before that is read.
    for (oid, (table, followed)) in recorded {
        if !here.contains(&oid) && !meant.iter().any(|new| new.history == table.history) {
            meant.push(Table {
                source: followed.name.clone(),
                ..table
            });
        }
    }
    Ok(meant)
}

/// Tables that patterns meant when they were recorded, by OID, as they are configured.
fn recorded<'a>(
    config: &Config,
    record: Option<&'a Record>,
) -> BTreeMap<u32, (Table, &'a Followed)> {
    let histories: HashSet<&TableName> = config.tables.iter().map(|table| &table.history).collect();
    let entries = record.into_iter().flat_map(|record| &record.tables);
    let entries = entries.filter(|entry| !histories.contains(&entry.history));
    let of_pattern = |entry: &'a Followed| {
        let mut patterns = config.patterns.iter();
        let settings = patterns.find(|pattern| pattern.has_history(&entry.history))?;
        let table = Table {
            source: entry.name.clone(),
            history: entry.history.clone(),
            followed: true,
            ..settings.settings.clone()
        };
        Some((entry.oid, (table, entry)))
    };
    entries.filter_map(of_pattern).collect()
}

fn name(row: &Row) -> TableName {
    TableName::new(row.get::<_, String>(1), row.get::<_, String>(2))
}

/// The table of this name as the first pattern that means it says.
fn new_table(config: &Config, name: &TableName) -> Option<Table> {
    let mut patterns = config.patterns.iter();
    match patterns.find_map(|pattern| pattern.table(name))? {
        Ok(table) => Some(table),
        Err(error) => {
            let reason =
                format!("the name of its history {error}; name one in an entry of its own");
            leave_out(name, &reason);
            None
        }
    }
}

/// Whether a new table is in the publication, or can be put there.
fn is_published(config: &Config, name: &TableName, row: &Row) -> bool {
    let (published, owned): (bool, bool) = (row.get(4), row.get(5));
    let reason = match config.setup {
        _ if published => return true,
        Setup::Auto if owned => return true,
        Setup::Auto => "only its owner can put it into the publication",
        Setup::Manual => {
            "it is not in the publication, and setup = \"manual\": run `waltrail setup`"
        }
    };
    leave_out(name, &reason);
    false
}

/// A history is not followed, and no history gets the changes of two tables.
fn leave_histories_out(config: &Config, meant: &mut Vec<Table>, known: HashSet<TableName>) {
    let all = config.tables.iter().chain(meant.iter());
    let histories: HashSet<TableName> = all
        .map(|table| table.history.clone())
        .chain(known)
        .collect();
    meant.retain(|table| !histories.contains(&table.source));
    // First those that are followed: a new table does not take over a history.
    meant.sort_by_key(|table| table.is_optional());
    let mut taken: HashMap<TableName, TableName> = HashMap::new();
    for table in &config.tables {
        taken.insert(table.history.clone(), table.source.clone());
    }
    meant.retain(|table| match taken.get(&table.history) {
        Some(other) => {
            let reason = format!("{} is the history of {other}", table.history);
            leave_out(&table.source, &reason);
            false
        }
        None => {
            taken.insert(table.history.clone(), table.source.clone());
            true
        }
    });
}

/// The histories that the control schema knows, where it is in the source database and may be read.
pub(crate) async fn known_histories(source: &Client) -> Result<HashSet<TableName>> {
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
pub(super) fn leave_out(table: &TableName, reason: &impl ToString) {
    let reason = reason.to_string();
    let mut left_out = LEFT_OUT.lock().unwrap_or_else(PoisonError::into_inner);
    if left_out.get(table) != Some(&reason) {
        tracing::warn!(%table, reason, "this table is not followed");
        left_out.insert(table.clone(), reason);
    }
}

/// The tables that were left out, and why.
pub(crate) fn left_out() -> Vec<(TableName, String)> {
    let left_out = LEFT_OUT.lock().unwrap_or_else(PoisonError::into_inner);
    let entries = left_out.iter();
    entries
        .map(|(table, why)| (table.clone(), why.clone()))
        .collect()
}
