//! What keeps a history from answering, or from answering quickly.

use tokio_postgres::{Client, Error};

use crate::answers::fold::{self, Index};
use crate::answers::inherited;
use crate::answers::ledger::{Ledger, NoLedger};
use crate::answers::objects::Objects;
use crate::config::{Config, Setup, Table};
use crate::finding::Finding;
use crate::schema::exact::Type;
use crate::schema::{HistoryTable, Identifier, SourceTable, TableName};
use crate::server::Side;
use crate::setup::{Tables, answers};

/// A smaller history is read as a whole in less time than a person notices.
const ROWS_MIN: f32 = 100_000.0;

/// Estimated rows of a history, with those of its partitions, and whether it has partitions.
const SIZE: &str = "
    WITH RECURSIVE tree AS (
        SELECT pg_catalog.to_regclass($1)::oid AS oid
        UNION ALL SELECT i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
    )
    SELECT coalesce(sum(greatest(c.reltuples, 0)) FILTER (WHERE c.relkind <> 'p'), 0)::float4, bool_or(c.relkind = 'p')
      FROM tree t JOIN pg_catalog.pg_class c USING (oid)";

/// The columns and the predicate of each index of a history.
const INDEXES: &str = "
    SELECT ARRAY(SELECT coalesce(a.attname::text, '') FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k (attnum, nth)
                   LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum ORDER BY k.nth),
           pg_catalog.pg_get_expr(i.indpred, i.indrelid)
      FROM pg_catalog.pg_index i
      JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
      JOIN pg_catalog.pg_am m ON m.oid = c.relam AND m.amname = 'btree'
     WHERE i.indrelid = pg_catalog.to_regclass($1) AND i.indisvalid";

/// A table whose history is to answer.
type Wanted<'a> = (&'a Table, &'a SourceTable, &'a HistoryTable);

/// Looks at every history of which answers are wanted.
pub(super) async fn look(config: &Config, target: &Client, looked: &Tables) -> Vec<Finding> {
    let wanted: Vec<Wanted<'_>> = config
        .tables
        .iter()
        .filter(|table| table.functions)
        .filter_map(|table| {
            let (source, _) = looked.sources.named(&table.source)?;
            let (history, _) = looked.histories.named(&table.history)?;
            Some((table, source, history))
        })
        .collect();
    let found = of_all(config, target, &wanted).await;
    let failed = Side::Target.failed("could not show the functions beside its histories");
    found.unwrap_or_else(|error| vec![super::unanswered(Side::Target, failed(error))])
}

async fn of_all(
    config: &Config,
    target: &Client,
    wanted: &[Wanted<'_>],
) -> Result<Vec<Finding>, Error> {
    let mut found = Vec::new();
    let mut ledgers = Vec::new();
    let inherited = inherited::read(target).await?;
    for &(table, source, history) in wanted {
        let none = Vec::new();
        let of_history = inherited.get(&history.name.to_string()).unwrap_or(&none);
        match Ledger::of_source(source, history, &table.rules(), of_history) {
            Ok(ledger) => ledgers.push(ledger),
            Err(reason) => {
                found.push(cannot_be_folded(target, (table, source, history), &reason).await);
            }
        }
    }
    let objects: Vec<Objects<'_>> = ledgers.iter().map(Objects::of).collect();
    let known = answers::known(target, &ledgers, &objects).await?;
    let role: String = target
        .query_one("SELECT current_user::text", &[])
        .await?
        .get(0);
    for ((ledger, objects), (comment, may_create)) in std::iter::zip(&ledgers, &objects).zip(known)
    {
        if comment.as_deref() != Some(&objects.comment()) {
            let missing = cannot_be_made(config, target, objects, (&role, may_create));
            found.extend(missing.await?);
        }
        found.extend(indexes(target, ledger).await?);
    }
    Ok(found)
}

fn missing(history: &TableName, why: &str) -> Finding {
    let what = format!("no functions answer from {history}: {why}");
    Finding::note(history, "answers-are-missing", what)
}

/// A history that does not say which change came after which, or of which row.
async fn cannot_be_folded(
    target: &Client,
    (table, source, history): Wanted<'_>,
    reason: &NoLedger,
) -> Finding {
    let name = &history.name;
    let finding = missing(name, &format!("it {reason}"));
    let kind = match reason {
        NoLedger::NoNumber(_) => "bigint GENERATED ALWAYS AS IDENTITY".to_owned(),
        NoLedger::NoTime(_) => return finding,
        NoLedger::NoColumn(column) if column.ends_with("change_timestamp") => {
            "timestamptz".to_owned()
        }
        NoLedger::NoColumn(_) => "text".to_owned(),
        NoLedger::KeyNotRecorded(column) if table.exclude_columns.contains(column) => {
            let remedy = format!("take {} out of exclude_columns", Identifier(column));
            return finding.remedy(remedy);
        }
        NoLedger::KeyNotRecorded(column) => {
            let known = source.columns.iter().find(|known| known.name == *column);
            let kind = known.and_then(|known| source.type_of(known.type_oid, known.modifier));
            kind.map_or_else(Type::text, Type::home).sql
        }
    };
    let (NoLedger::NoNumber(column)
    | NoLedger::NoTime(column)
    | NoLedger::NoColumn(column)
    | NoLedger::KeyNotRecorded(column)) = reason;
    let is_there = history.columns.iter().any(|known| known.name == *column);
    let any = format!("SELECT EXISTS (SELECT FROM {name})");
    // What may not be read is another finding.
    let has_rows = target.query_one(&any, &[]).await;
    let has_rows = has_rows.map_or(true, |row| row.get(0));
    match (is_there, has_rows) {
        (true, _) => finding.and(" (one of an integer type, with a default)"),
        (false, true) => finding.and("; the rows that are there cannot be given one afterwards"),
        (false, false) => finding.remedy(format!(
            "ALTER TABLE {name} ADD COLUMN {} {kind};",
            Identifier(column)
        )),
    }
}

/// Why the functions are not there, or are of a former definition; none where the next start makes them.
async fn cannot_be_made(
    config: &Config,
    target: &Client,
    objects: &Objects<'_>,
    (role, may_create): (&str, bool),
) -> Result<Option<Finding>, Error> {
    let history = objects.history();
    let taken = answers::taken(target, &[objects]).await?;
    if let Some(other) = taken.values().flatten().find(|taken| !taken.is_ours) {
        let finding = missing(history, "one of their names is taken");
        let remedy = format!("{}; -- or functions = false in [[table]]", other.rename);
        return Ok(Some(finding.remedy(remedy)));
    }
    let (role, schema) = (Identifier(role), Identifier(&history.schema));
    Ok(match config.setup {
        Setup::Manual => Some(
            missing(history, "they are missing, or older than its columns")
                .remedy("waltrail setup"),
        ),
        Setup::Auto if !may_create => {
            let why = format!("the role {role} may not make them in the schema {schema}");
            let remedy = format!("GRANT CREATE ON SCHEMA {schema} TO {role};");
            Some(missing(history, &why).remedy(remedy))
        }
        Setup::Auto => None,
    })
}

/// The indexes that a large history lacks.
async fn indexes(target: &Client, ledger: &Ledger) -> Result<Option<Finding>, Error> {
    let name = ledger.history.to_string();
    let row = target.query_one(SIZE, &[&name]).await?;
    let (rows, is_partitioned): (f32, Option<bool>) = (row.get(0), row.get(1));
    if rows <= ROWS_MIN {
        return Ok(None);
    }
    let known = target.query(INDEXES, &[&name]).await?;
    let known: Vec<(Vec<String>, Option<String>)> =
        known.iter().map(|row| (row.get(0), row.get(1))).collect();
    let mut lacking = fold::indexes(ledger);
    lacking.retain(|wanted: &Index| {
        let mut known = known.iter();
        !known.any(|(columns, predicate)| wanted.is_served_by(columns, predicate.as_deref()))
    });
    if lacking.is_empty() {
        return Ok(None);
    }
    let lists = lacking
        .iter()
        .map(|index| format!("({})", index.columns.join(", ")));
    let lists: Vec<String> = lists.collect();
    let concurrently = is_partitioned != Some(true);
    let statements = lacking
        .iter()
        .map(|index| index.sql(&ledger.history, concurrently) + ";");
    let statements: Vec<String> = statements.collect();
    let what = format!(
        "{name} has about {rows:.0} rows and lacks indexes that its functions use: {}",
        lists.join(", ")
    );
    let finding = Finding::note(&name, "indexes-for-answers", what);
    Ok(Some(finding.remedy(statements.join("\n"))))
}
