//! The tables of the source: how large they are, and what `check` says of each.
//!
//! The number of statements does not depend on the number of tables. Nothing is created, and no lock is waited for.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio_postgres::{Client, Error, Row};

use crate::check;
use crate::config::{Config, NAME_BYTES_MAX, TableName};
use crate::fault::Result;
use crate::finding::{Finding, Severity, refuse};
use crate::schema::home;
use crate::server::Side;
use crate::setup;

/// Tables that can be followed: ordinary and partitioned ones that are not partitions or temporary.
const CANDIDATES: &str = "
    WITH published AS MATERIALIZED (
        SELECT schemaname, tablename FROM pg_catalog.pg_publication_tables WHERE pubname = $1)
    SELECT c.oid, n.nspname, c.relname, pg_catalog.obj_description(c.oid, 'pg_class'), p.tablename IS NOT NULL,
           EXISTS (SELECT FROM pg_catalog.pg_attribute a
                    WHERE a.attrelid = c.oid AND a.attname = 'change_type' AND NOT a.attisdropped)
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN published p ON p.schemaname = n.nspname AND p.tablename = c.relname
     WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
       AND n.nspname NOT IN ('waltrail', 'information_schema') AND NOT pg_catalog.starts_with(n.nspname::text, 'pg_')
     ORDER BY n.nspname, c.relname";

/// Bytes, estimated rows and number of partitions of each table, these included. No rows are known where one was never analyzed.
const SIZES: &str = "
    WITH RECURSIVE tree AS (
        SELECT r.oid AS root, r.oid FROM unnest($1::oid[]) AS r (oid)
        UNION ALL SELECT t.root, i.inhrelid FROM tree t
          JOIN pg_catalog.pg_class p ON p.oid = t.oid AND p.relkind = 'p'
          JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
    )
    SELECT t.root, coalesce(sum({SIZE}), 0)::int8,
           CASE WHEN min(c.reltuples) FILTER (WHERE c.relkind <> 'p') >= 0
                THEN sum(c.reltuples) FILTER (WHERE c.relkind <> 'p') END::float8,
           count(*) FILTER (WHERE c.relkind <> 'p' AND t.oid <> t.root)
      FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid GROUP BY t.root";

/// Opens the table, and so waits while another session has it locked exclusively.
const MEASURED: &str = "pg_catalog.pg_total_relation_size(c.oid)";
/// As the last VACUUM or ANALYZE has found it.
const ESTIMATED: &str = "c.relpages::int8 * pg_catalog.current_setting('block_size')::int8";
/// So long a locked table may delay the sizes; then they are estimated.
const LOCK_MAX: &str = "SET lock_timeout = '1s'";
const NO_LOCK_MAX: &str = "SET lock_timeout = 0";

/// A table of the source.
pub(super) struct Entry {
    pub(super) table: TableName,
    /// Its history, where that has another name than the one by default.
    pub(super) history: Option<TableName>,
    pub(super) bytes: u64,
    /// Estimated.
    pub(super) rows: Option<f64>,
    pub(super) partitions: u64,
    /// It is in the publication already.
    pub(super) followed: bool,
    pub(super) verdict: Verdict,
}

/// What `check` says of a table.
pub(super) enum Verdict {
    /// Warnings and notes, the weightier first: the code and the sentence of each.
    Fits(Vec<(&'static str, String)>),
    /// `run` would refuse it: why, and what to do about it.
    Unfit { why: String, remedy: Option<String> },
}

/// What is said of nearly every table, and by its size or the title already.
const USUAL: [&str; 2] = ["something-is-missing", "old-values-are-missing"];

impl Entry {
    pub(super) fn fits(&self) -> bool {
        matches!(self.verdict, Verdict::Fits(_))
    }

    /// What stands beside its name.
    pub(super) fn remark(&self) -> String {
        let codes = match &self.verdict {
            Verdict::Unfit { .. } => return "cannot be followed".to_owned(),
            Verdict::Fits(said) => said.iter().map(|(code, _)| *code),
        };
        let mut remarks = Vec::new();
        if self.followed {
            remarks.push("followed already".to_owned());
        }
        if self.partitions > 0 {
            remarks.push(format!("{} partitions", self.partitions));
        }
        let mut codes: Vec<&str> = codes.filter(|code| !USUAL.contains(code)).collect();
        codes.dedup();
        remarks.extend(codes.iter().map(|code| code.replace('-', " ")));
        remarks.join(", ")
    }

    /// All that is said of it.
    pub(super) fn said(&self) -> Vec<String> {
        match &self.verdict {
            Verdict::Unfit { why, remedy } => {
                let why = format!("cannot be followed: {why}");
                std::iter::once(why).chain(remedy.clone()).collect()
            }
            Verdict::Fits(said) => {
                let history = self.history.as_ref();
                let history = history.map(|history| format!("its history is {history}"));
                let said = said
                    .iter()
                    .filter(|(code, _)| *code != USUAL[0])
                    .map(|(_, said)| said.clone());
                history.into_iter().chain(said).collect()
            }
        }
    }
}

/// The tables of the source that can be offered: no history, nothing of PostgreSQL's, nothing of waltrail's. With what
/// `check` would say is only known once [`judge`] was asked.
///
/// # Errors
/// The source did not answer.
pub(super) async fn candidates(config: &Config, source: &Client) -> Result<Vec<Entry>> {
    let failed = Side::Source.failed("could not list its tables");
    let known = setup::known_histories(source).await?;
    let rows = source
        .query(CANDIDATES, &[&config.source.publication])
        .await
        .map_err(failed)?;
    let name = |row: &Row| TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
    let all: BTreeSet<TableName> = rows.iter().map(name).collect();
    let is_history = |row: &Row, name: &TableName| {
        let of_another = || {
            let table = name.name.strip_suffix("_cdc");
            table.is_some_and(|table| all.contains(&TableName::new(name.schema.clone(), table)))
        };
        home::is_made(row.get(3)) || known.contains(name) || row.get::<_, bool>(5) && of_another()
    };
    let rows = rows.iter().map(|row| (row, name(row)));
    let rows: Vec<(&Row, TableName)> = rows.filter(|(row, name)| !is_history(row, name)).collect();
    let oids: Vec<u32> = rows.iter().map(|(row, _)| row.get(0)).collect();
    let sizes = sizes(source, &oids).await.map_err(failed)?;
    let mut taken: BTreeSet<TableName> = rows.iter().map(|(_, name)| name.clone()).collect();
    let entry = |(row, table): (&Row, TableName)| {
        let (bytes, rows, partitions) = sizes.get(&row.get(0)).copied().unwrap_or_default();
        Entry {
            history: history_name(&table, &mut taken),
            table,
            bytes,
            rows,
            partitions,
            followed: row.get(4),
            verdict: Verdict::Fits(Vec::new()),
        }
    };
    let mut entries: Vec<Entry> = rows.into_iter().map(entry).collect();
    entries.sort_by(|one, other| one.table.cmp(&other.table));
    Ok(entries)
}

/// Bytes, rows and partitions by OID.
type Sizes = HashMap<u32, (u64, Option<f64>, u64)>;

async fn sizes(source: &Client, oids: &[u32]) -> Result<Sizes, Error> {
    source.batch_execute(LOCK_MAX).await?;
    let measured = source
        .query(&SIZES.replace("{SIZE}", MEASURED), &[&oids])
        .await;
    source.batch_execute(NO_LOCK_MAX).await?;
    let rows = match measured {
        Ok(rows) => rows,
        Err(error) if error.as_db_error().is_some() => {
            source
                .query(&SIZES.replace("{SIZE}", ESTIMATED), &[&oids])
                .await?
        }
        Err(error) => return Err(error),
    };
    let size = |row: &Row| {
        let (bytes, partitions): (i64, i64) = (row.get(1), row.get(3));
        let size = (bytes.unsigned_abs(), row.get(2), partitions.unsigned_abs());
        (row.get(0), size)
    };
    Ok(rows.iter().map(size).collect())
}

/// The history of a table, where it cannot have the name by default: that is too long, or another table has it.
fn history_name(table: &TableName, taken: &mut BTreeSet<TableName>) -> Option<TableName> {
    let by_default = table.default_history().ok();
    if let Some(name) = &by_default
        && taken.insert(name.clone())
    {
        return None;
    }
    let mut endings = (1..).map(|nth| match nth {
        1 => "_cdc".to_owned(),
        nth => format!("_cdc{nth}"),
    });
    endings.find_map(|ending| {
        let most = NAME_BYTES_MAX - ending.len();
        let end = table.name.floor_char_boundary(most.min(table.name.len()));
        let name = TableName::new(
            table.schema.clone(),
            format!("{}{ending}", &table.name[..end]),
        );
        taken.insert(name.clone()).then_some(name)
    })
}

/// What `check` says of the tables of a configuration, by their names. What it says of the servers is left out.
///
/// # Errors
/// The source did not answer.
pub(super) async fn judge(
    config: &Config,
    source: &Client,
    target: &Client,
) -> Result<BTreeMap<String, Vec<Finding>>> {
    let mut found = check::of_tables(config, source, target).await?;
    let of_source = |finding: &Finding| {
        finding.code == "could-not-be-checked" && finding.place == Side::Source.to_string()
    };
    if let Some(at) = found.iter().position(of_source) {
        refuse(vec![found.swap_remove(at)])?;
    }
    let tables = config.tables.iter();
    let names = tables.flat_map(|table| {
        let source = table.source.to_string();
        [
            (table.history.to_string(), source.clone()),
            (source.clone(), source),
        ]
    });
    let names: HashMap<String, String> = names.collect();
    let mut of_tables: BTreeMap<String, Vec<Finding>> = BTreeMap::new();
    for finding in found {
        if let Some(table) = names.get(&finding.place) {
            of_tables.entry(table.clone()).or_default().push(finding);
        }
    }
    Ok(of_tables)
}

impl Verdict {
    pub(super) fn of(mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| match finding.severity {
            Severity::Error => 0,
            Severity::Warning => 1,
            Severity::Note => 2,
        });
        match findings.first() {
            Some(first) if first.is_error() => Self::Unfit {
                why: first.what.clone(),
                remedy: first.remedy.clone(),
            },
            _ => Self::Fits(
                findings
                    .into_iter()
                    .map(|finding| (finding.code, finding.what))
                    .collect(),
            ),
        }
    }
}

/// A size as a person reads it.
pub(super) fn size(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).to_string()
}

/// An estimated number of rows, with as many digits as it deserves.
pub(super) fn count(rows: Option<f64>) -> String {
    let Some(rows) = rows else {
        return "-".to_owned();
    };
    match rows {
        1e9.. => format!("{:.1} G", rows / 1e9),
        1e6.. => format!("{:.1} M", rows / 1e6),
        1e4.. => format!("{:.0} k", rows / 1e3),
        _ => format!("{rows:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_has_a_name_of_its_own() {
        let name = |text: &str| TableName::new("public", text);
        let long = format!("{}é", "x".repeat(58));
        let longer = format!("{long}y");
        let all = ["a", "a_cdc", long.as_str(), longer.as_str()].map(name);
        let mut taken: BTreeSet<TableName> = all.iter().cloned().collect();
        let mut history = |text: &str| history_name(&name(text), &mut taken);
        assert_eq!(history("b"), None);
        assert_eq!(history("a"), Some(name("a_cdc2")));
        assert_eq!(history("a_cdc"), None);
        let (first, second) = (history(&long).unwrap(), history(&longer).unwrap());
        assert_eq!(first, name(&format!("{}_cdc", "x".repeat(58))));
        assert_eq!(second, name(&format!("{}_cdc2", "x".repeat(58))));
    }

    #[test]
    fn rows_are_told_as_roughly_as_they_are_known() {
        let told = |rows: f64| count(Some(rows));
        assert_eq!(count(None), "-");
        assert_eq!(told(0.0), "0");
        assert_eq!(told(9_999.0), "9999");
        assert_eq!(told(12_345.0), "12 k");
        assert_eq!(told(1_234_567.0), "1.2 M");
        assert_eq!(told(2.5e9), "2.5 G");
    }
}
