//! The histories that are asked for, as SQL can read them.

use tokio_postgres::Client;

use crate::answers::inherited::{self, Inherited};
use crate::answers::ledger::{Ledger, NoLedger};
use crate::config::{Config, Table};
use crate::fault::{Exit, Fault, Result};
use crate::history::followed::{self, Record};
use crate::schema::{HistoryTable, Identifier, Rules, SourceTable, TableName, catalog};
use crate::server::{self, Side};

/// The type OIDs of `json`, `jsonb` and `text`.
const CONTEXT_TYPES: [u32; 3] = [114, 3802, 25];

/// A history and what else is known of it.
#[derive(Clone, Debug)]
pub(crate) struct Book {
    pub ledger: Ledger,
    /// The column that says who changed the row.
    pub context: Option<String>,
    /// An index begins with the key.
    pub indexed: bool,
    /// The settings of its table.
    pub rules: Rules,
}

/// A table that is followed, by its history.
struct Wanted {
    source: TableName,
    history: TableName,
    key: Vec<String>,
    /// Its replica identity is FULL: without a key, all columns stand for one.
    full: bool,
    rules: Rules,
}

/// The histories of the tables named in `chosen`, of all where it is empty. The source is asked only for tables that the
/// target does not know, so that a source that is down is no hindrance.
///
/// # Errors
/// 64 for a name that is none of a table that is followed, 78 for a history that does not exist or cannot be folded.
pub(crate) async fn of_target(
    config: &Config,
    target: &Client,
    chosen: &[String],
) -> Result<Vec<Book>> {
    let record = followed::read(target, &config.source.slot).await?;
    let mut wanted = known(config, record.as_ref());
    let is_known = |table: &&Table| !wanted.iter().any(|known| known.history == table.history);
    let unknown: Vec<&Table> = config.tables.iter().filter(is_known).collect();
    let asked = |table: &&Table| is_chosen(chosen, &table.source, &table.history);
    let unknown: Vec<&Table> = unknown.into_iter().filter(asked).collect();
    if !unknown.is_empty() {
        wanted.extend(of_catalog(config, &unknown).await?);
    }
    choose(chosen, &mut wanted)?;
    let histories = histories(target, &wanted).await?;
    let mut books = Vec::with_capacity(wanted.len());
    for (table, (history, inherited)) in std::iter::zip(&wanted, &histories) {
        let key = (table.key.as_slice(), table.full);
        let ledger = Ledger::of_target(&table.source, key, history, &table.rules, inherited);
        books.push(book(target, ledger, history, &table.rules).await?);
    }
    Ok(books)
}

/// The same with the source's catalogs.
///
/// # Errors
/// As [`of_target`].
pub(crate) async fn of_source(
    config: &Config,
    (source, target): (&Client, &Client),
    chosen: &[String],
) -> Result<Vec<(Book, SourceTable)>> {
    let mut wanted: Vec<Wanted> = config
        .tables
        .iter()
        .map(|table| Wanted {
            source: table.source.clone(),
            history: table.history.clone(),
            key: Vec::new(),
            full: false,
            rules: table.rules(),
        })
        .collect();
    choose(chosen, &mut wanted)?;
    let names: Vec<&TableName> = wanted.iter().map(|table| &table.source).collect();
    let found = catalog::source_tables(source, &config.source.publication, &names, &[]);
    let found = found
        .await
        .map_err(Side::Source.failed("could not describe its tables"))?;
    let histories = histories(target, &wanted).await?;
    let mut books = Vec::with_capacity(wanted.len());
    for (table, (history, inherited)) in std::iter::zip(&wanted, &histories) {
        let Some((source, _)) = found.named(&table.source) else {
            let gone = format!("the source has no table {}", table.source);
            return Err(Fault::halt(Exit::Config, gone)
                .remedy("name the tables that it still has with --table"));
        };
        let ledger = Ledger::of_source(source, history, &table.rules, inherited);
        let book = book(target, ledger, history, &table.rules).await?;
        books.push((book, source.clone()));
    }
    Ok(books)
}

/// What the target knows of the tables that are followed.
fn known(config: &Config, record: Option<&Record>) -> Vec<Wanted> {
    let tables = record.map(|record| record.tables.as_slice());
    let rules = |history: &TableName| {
        let mut tables = config.tables.iter();
        let table = tables.find(|table| table.history == *history);
        let mut patterns = config.patterns.iter();
        let pattern = patterns.find(|pattern| pattern.has_history(history));
        table
            .or(pattern.map(|pattern| &pattern.settings))
            .map(Table::rules)
    };
    let known = tables.unwrap_or_default().iter().filter_map(|followed| {
        Some(Wanted {
            source: followed.name.clone(),
            history: followed.history.clone(),
            key: followed.seen.key.clone(),
            full: followed.seen.standing.identity == 'f',
            rules: rules(&followed.history)?,
        })
    });
    known.collect()
}

async fn of_catalog(config: &Config, tables: &[&Table]) -> Result<Vec<Wanted>> {
    let source = server::sql(&config.source.connection, Side::Source).await?;
    let names: Vec<&TableName> = tables.iter().map(|table| &table.source).collect();
    let found = catalog::source_tables(&source, &config.source.publication, &names, &[]);
    let found = found
        .await
        .map_err(Side::Source.failed("could not describe its tables"))?;
    let wanted = tables.iter().filter_map(|table| {
        let (known, _) = found.named(&table.source)?;
        Some(Wanted {
            source: table.source.clone(),
            history: table.history.clone(),
            key: known.key.clone(),
            full: known.replica_identity == 'f',
            rules: table.rules(),
        })
    });
    Ok(wanted.collect())
}

fn is_chosen(chosen: &[String], source: &TableName, history: &TableName) -> bool {
    let names = |text: &String| {
        text.parse::<TableName>()
            .is_ok_and(|name| name == *source || name == *history)
    };
    chosen.is_empty() || chosen.iter().any(names)
}

/// Leaves the tables that were chosen.
fn choose(chosen: &[String], wanted: &mut Vec<Wanted>) -> Result<()> {
    for text in chosen {
        let one = std::slice::from_ref(text);
        if !wanted
            .iter()
            .any(|table| is_chosen(one, &table.source, &table.history))
        {
            return Err(Fault::halt(
                Exit::Usage,
                format!("{text} is not a table that is followed"),
            )
            .remedy("waltrail status shows the tables that are"));
        }
    }
    wanted.retain(|table| is_chosen(chosen, &table.source, &table.history));
    match wanted.is_empty() {
        true => Err(Fault::halt(Exit::Config, "no table is followed yet")
            .remedy("add a [[table]] to the configuration, then waltrail run")),
        false => Ok(()),
    }
}

/// The history of each table, and where values of it stood before changes of the schema.
async fn histories(
    target: &Client,
    wanted: &[Wanted],
) -> Result<Vec<(HistoryTable, Vec<Inherited>)>> {
    let names: Vec<&TableName> = wanted.iter().map(|table| &table.history).collect();
    let found = catalog::history_tables(target, &names, &[])
        .await
        .map_err(Side::Target.failed("could not describe the history tables"))?;
    let mut inherited = inherited::now(target).await?;
    let mut histories = Vec::with_capacity(wanted.len());
    for table in wanted {
        let Some((history, _)) = found.named(&table.history) else {
            return Err(Fault::halt(
                Exit::Config,
                format!("the history {} does not exist", table.history),
            )
            .remedy("waltrail setup, or waltrail run"));
        };
        let of_it = inherited.remove(&table.history.to_string());
        histories.push((history.clone(), of_it.unwrap_or_default()));
    }
    Ok(histories)
}

async fn book(
    target: &Client,
    ledger: Result<Ledger, NoLedger>,
    history: &HistoryTable,
    rules: &Rules,
) -> Result<Book> {
    let ledger = ledger.map_err(|reason| {
        Fault::halt(
            Exit::Config,
            format!("the history {} {reason}", history.name),
        )
        .remedy("the page \"History tables\" says which columns it needs")
    })?;
    let name = format!("{}context", rules.prefix);
    let is_context = |column: &&crate::schema::HistoryColumn| {
        column.name == name
            && CONTEXT_TYPES.contains(&column.type_oid)
            && !ledger.columns.iter().any(|known| known.home == name)
    };
    let context = history.columns.iter().find(is_context);
    let context = context.map(|column| column.name.clone());
    let first = ledger.key_columns().next().map(|column| &column.home);
    let indexed = "SELECT EXISTS (SELECT FROM pg_catalog.pg_index i \
          JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
         WHERE i.indrelid = pg_catalog.to_regclass($1) AND i.indisvalid AND i.indpred IS NULL AND a.attname = $2)";
    let indexed = match first {
        Some(home) => target
            .query_one(indexed, &[&ledger.history.to_string(), home])
            .await
            .map_err(Side::Target.failed("could not show its indexes"))?
            .get(0),
        None => false,
    };
    Ok(Book {
        ledger,
        context,
        indexed,
        rules: rules.clone(),
    })
}

impl Book {
    /// A condition on row `h`: it is of the row with this key.
    pub(crate) fn has_key(&self, key: &[String]) -> String {
        let columns = self.ledger.key_columns();
        let pairs = std::iter::zip(columns, key)
            .map(|(column, value)| format!("{} = {}", column.value, of_kind(&column.kind, value)));
        pairs.collect::<Vec<_>>().join(" AND ")
    }

    /// A condition on row `h`: it changed the key, which was this one. None where the history has two rows for that.
    pub(crate) fn had_key(&self, key: &[String]) -> Option<String> {
        let changes_key = self.ledger.changes_key()?;
        let columns = self.ledger.key_columns();
        let pairs = std::iter::zip(columns, key).filter_map(|(column, value)| {
            let old = self.ledger.own(column.old.as_ref()?);
            Some(format!("{old} = {}", of_kind(&column.kind, value)))
        });
        let pairs: Vec<String> = pairs.collect();
        Some(format!("({changes_key}) AND {}", pairs.join(" AND ")))
    }

    /// The key's columns, as messages name them.
    pub(crate) fn key_names(&self) -> String {
        let columns = self.ledger.key_columns();
        let names = columns.map(|column| Identifier(&column.name).to_string());
        names.collect::<Vec<_>>().join(", ")
    }
}

/// A value of a type, as SQL.
pub(crate) fn of_kind(kind: &str, value: &str) -> String {
    format!("{}::{kind}", crate::schema::plan::literal(value))
}
