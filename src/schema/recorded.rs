//! What the target knows of its history tables beside their columns: whether waltrail made them, and which columns do
//! not follow from the rule (`home.rs`).

use std::collections::BTreeMap;

use tokio_postgres::{Client, Error};

use super::home::{self, Home};
use super::plan::literal;
use super::{HistoryTable, TableName};

/// Adds it to these tables. A target without the control schema knows nothing.
pub async fn read(client: &Client, mut tables: Vec<&mut HistoryTable>) -> Result<(), Error> {
    let names: Vec<String> = tables.iter().map(|table| table.name.to_string()).collect();
    let comments = "SELECT pg_catalog.obj_description(pg_catalog.to_regclass(name), 'pg_class') \
        FROM unnest($1::text[]) WITH ORDINALITY AS t (name, n) ORDER BY n";
    let comments = client.query(comments, &[&names]).await?;
    for (table, row) in std::iter::zip(&mut tables, &comments) {
        table.made = home::is_made(row.get(0));
    }
    let known = "SELECT pg_catalog.to_regclass('waltrail.home') IS NOT NULL";
    if !client.query_one(known, &[]).await?.get::<_, bool>(0) {
        return Ok(());
    }
    let homes = "SELECT history, source_column, former, history_column FROM waltrail.home WHERE history = ANY ($1)";
    let mut found: BTreeMap<String, Vec<Home>> = BTreeMap::new();
    for row in client.query(homes, &[&names]).await? {
        found.entry(row.get(0)).or_default().push(Home {
            source_column: row.get(1),
            former: row.get(2),
            history_column: row.get(3),
        });
    }
    for (table, name) in std::iter::zip(tables, &names) {
        table.homes = found.remove(name).unwrap_or_default();
    }
    Ok(())
}

/// What the control schema keeps of a history that its rows are needed for.
const OF_ROWS: [&str; 5] = ["home", "layout", "column_range", "described", "baseline"];

/// The statements that forget what is recorded of each of these histories.
pub async fn forgotten(
    client: &Client,
    names: &[String],
) -> Result<BTreeMap<String, String>, Error> {
    let mut statements: BTreeMap<String, String> = BTreeMap::new();
    for table in OF_ROWS {
        let known = "SELECT pg_catalog.to_regclass('waltrail.' || $1::text) IS NOT NULL";
        if !client.query_one(known, &[&table]).await?.get::<_, bool>(0) {
            continue;
        }
        let histories =
            format!("SELECT DISTINCT history FROM waltrail.{table} WHERE history = ANY ($1)");
        for row in client.query(&histories, &[&names]).await? {
            let history: String = row.get(0);
            let forget = format!(
                "DELETE FROM waltrail.{table} WHERE history = {};\n",
                literal(&history)
            );
            statements.entry(history).or_default().push_str(&forget);
        }
    }
    Ok(statements)
}

/// The statement that records columns of a history; none where there is nothing to record.
pub fn statement(history: &TableName, homes: &[Home]) -> Option<String> {
    let history = literal(&history.to_string());
    let rows: Vec<String> = homes
        .iter()
        .map(|home| {
            let (source, column) = (literal(&home.source_column), literal(&home.history_column));
            format!("({history}, {source}, {}, {column})", home.former)
        })
        .collect();
    (!rows.is_empty()).then(|| {
        format!(
            "INSERT INTO waltrail.home (history, source_column, former, history_column) VALUES {} \
             ON CONFLICT DO NOTHING",
            rows.join(", ")
        )
    })
}
