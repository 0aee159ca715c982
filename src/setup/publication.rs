//! The publication: made for the configured tables only, and checked when it was made by others.

use std::collections::{HashMap, HashSet};
use std::fmt;

use tokio_postgres::Client;

use super::{LINES_MAX, Mode};
use crate::config::{Source, Table};
use crate::fault::{Exit, Fault, Result};
use crate::finding::{Finding, refuse};
use crate::history::followed;
use crate::name::{Identifier, TableName};
use crate::schema::SourceTable;
use crate::server::Side;

/// Tables that one statement adds or drops: each is locked until it ends.
const PUBLISHED_AT_ONCE: usize = 1_000;
/// How a publication of ours is known again.
const COMMENT: &str = "made by waltrail for the tables that it follows";

/// The code of a publication that keeps changes from the stream.
const HIDES: &str = "the-publication-hides-changes";

/// Column lists came with 15.
const COLUMN_LISTS: i32 = 150_000;

/// A table to be published, and the columns of it; none: all.
struct Entry<'a> {
    name: &'a TableName,
    columns: Option<Vec<&'a str>>,
}

impl<'a> Entry<'a> {
    /// Excluded columns stay on the source: the others are listed. Those of the replica identity have to be; with FULL,
    /// these are all (manual, CREATE PUBLICATION). What is sent nevertheless is dropped on arrival.
    fn new((table, source): &(&'a Table, &'a SourceTable), version: i32) -> Self {
        let is_listed =
            |name: &String| !table.exclude_columns.contains(name) || source.key.contains(name);
        let columns = source.columns.iter().map(|column| &column.name);
        let listed: Vec<&str> = columns
            .filter(|name| is_listed(name))
            .map(String::as_str)
            .collect();
        let lists = version >= COLUMN_LISTS
            && source.replica_identity != 'f'
            && listed.len() < source.columns.len();
        Self {
            name: &source.name,
            columns: lists.then_some(listed),
        }
    }

    fn whole(self) -> Self {
        Self {
            columns: None,
            ..self
        }
    }

    fn is_as(&self, member: &Member) -> bool {
        match (&self.columns, &member.columns) {
            (None, None) => true,
            (Some(wanted), Some(columns)) => {
                let (wanted, columns): (HashSet<&str>, HashSet<&str>) = (
                    wanted.iter().copied().collect(),
                    columns.iter().map(String::as_str).collect(),
                );
                wanted == columns
            }
            _ => false,
        }
    }
}

impl fmt::Display for Entry<'_> {
    /// ONLY: rows of inheritance children would come under the child's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ONLY {}", self.name)?;
        let Some(columns) = &self.columns else {
            return Ok(());
        };
        let columns: Vec<String> = columns
            .iter()
            .map(|name| Identifier(name).to_string())
            .collect();
        write!(f, " ({})", columns.join(", "))
    }
}

/// Creates the publication, or brings ours up to date, or checks another's. Returns the tables that have a column list.
///
/// # Errors
/// Exit 65 for one that holds a history table (invariant I9), 78 for one that hides changes.
pub(super) async fn prepare(
    (source, target): (&Client, &Client),
    config: &Source,
    tables: &[(&Table, &SourceTable)],
    (version, one_database): (i32, bool),
    mode: &mut Mode,
) -> Result<HashSet<TableName>> {
    let name = config.publication.as_str();
    let quoted = Identifier(name);
    let entries = tables.iter().map(|table| Entry::new(table, version));
    let Some(found) = look(source, name).await? else {
        let entries: Vec<Entry<'_>> = entries.collect();
        create(source, &quoted, &entries, mode).await?;
        return Ok(listed(&entries).cloned().collect());
    };
    let may_alter = found.ours && !matches!(mode, Mode::Refuse);
    refuse(found.findings(tables, (version, one_database), may_alter))?;
    let members = &found.members;
    let known: HashMap<&TableName, &Member> = members.iter().map(|m| (&m.name, m)).collect();
    let (missing, stale, mut has_list) = found.sort(entries, &known, may_alter);
    has_list.extend(listed(&missing).cloned());
    add(source, &quoted, &missing, mode).await?;
    if !matches!(mode, Mode::DryRun(_)) {
        let is_stale = |name| stale.iter().any(|entry| entry.name == name);
        let altered = tables.iter().filter(|(_, source)| is_stale(&source.name));
        let altered: Vec<String> = altered
            .map(|(table, _)| table.history.to_string())
            .collect();
        // Without this, a start after a kill takes it for a change that another has made.
        followed::is_published_anew(target, &config.slot, &altered)
            .await
            .map_err(Side::Target.failed("could not keep what is followed"))?;
    }
    list_anew(source, &quoted, &stale, mode).await?;
    if may_alter {
        let wanted: HashSet<&TableName> = tables.iter().map(|(_, source)| &source.name).collect();
        let dropped = members.iter().map(|member| &member.name);
        let dropped: Vec<&TableName> = dropped.filter(|name| !wanted.contains(name)).collect();
        drop_tables(source, &quoted, &dropped, mode).await?;
    }
    Ok(has_list)
}

/// The publication as it is.
pub(super) struct Publication {
    name: String,
    all_tables: bool,
    /// It publishes insert, update, delete and truncate.
    every_kind: bool,
    via_root: bool,
    /// waltrail made it.
    ours: bool,
    members: Vec<Member>,
}

/// Looks the publication up; none when it does not exist.
pub(super) async fn look(source: &Client, name: &str) -> Result<Option<Publication>> {
    let found = source
        .query_opt(
            "SELECT puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot, \
                    coalesce(obj_description(oid, 'pg_publication') = $2, false) \
               FROM pg_catalog.pg_publication WHERE pubname = $1",
            &[&name, &COMMENT],
        )
        .await
        .map_err(Side::Source.failed("could not show its publications"))?;
    let Some(found) = found else { return Ok(None) };
    Ok(Some(Publication {
        name: name.to_owned(),
        all_tables: found.get(0),
        every_kind: found.get(1),
        via_root: found.get(2),
        ours: found.get(3),
        members: members(source, name).await?,
    }))
}

/// Tables that are missing, those that have another column list than they should, and the names of those that have one.
type Sorted<'a> = (Vec<Entry<'a>>, Vec<Entry<'a>>, HashSet<TableName>);

impl Publication {
    /// Whether waltrail made it.
    pub(super) fn is_ours(&self) -> bool {
        self.ours
    }

    /// The tables that it has.
    pub(super) fn names(&self) -> HashSet<&TableName> {
        self.members.iter().map(|member| &member.name).collect()
    }

    /// Why changes would be hidden, or come under another name, or feed a history.
    pub(super) fn findings(
        &self,
        tables: &[(&Table, &SourceTable)],
        (version, one_database): (i32, bool),
        may_alter: bool,
    ) -> Vec<Finding> {
        let quoted = Identifier(&self.name);
        let mut findings = Vec::new();
        if one_database {
            findings.extend(self.feeds_itself(tables));
        }
        if !self.every_kind {
            let what = format!(
                "publication {quoted} does not publish all of insert, update, delete and truncate"
            );
            let fault = Fault::halt(Exit::Config, what).remedy(format!(
                "ALTER PUBLICATION {quoted} SET (publish = 'insert, update, delete, truncate');"
            ));
            findings.push(Finding::error(Side::Source, HIDES, fault));
        }
        let known: HashMap<&TableName, &Member> =
            self.members.iter().map(|m| (&m.name, m)).collect();
        for entry in tables.iter().map(|table| Entry::new(table, version)) {
            let Some(member) = known.get(entry.name) else {
                continue;
            };
            // A list that waltrail made is its own to change; the whole table is as right.
            let fits = entry.is_as(member) || member.columns.is_none() || may_alter;
            findings.extend(self.hides(member, fits));
        }
        findings
    }

    fn sort<'a>(
        &self,
        entries: impl Iterator<Item = Entry<'a>>,
        known: &HashMap<&TableName, &Member>,
        may_alter: bool,
    ) -> Sorted<'a> {
        let (mut missing, mut stale) = (Vec::new(), Vec::new());
        let mut has_list = HashSet::new();
        for entry in entries {
            let Some(member) = known.get(entry.name) else {
                missing.push(if self.ours { entry } else { entry.whole() });
                continue;
            };
            let is_stale = !entry.is_as(member);
            if entry.columns.is_some() && (!is_stale || may_alter) {
                has_list.insert(entry.name.clone());
            }
            if is_stale && may_alter {
                stale.push(entry);
            }
        }
        (missing, stale, has_list)
    }

    /// Why not all changes of a published table would come under its own name.
    fn hides(&self, member: &Member, columns_fit: bool) -> Vec<Finding> {
        let (name, quoted) = (&member.name, Identifier(&self.name));
        let mut findings = Vec::new();
        let mut halt = |what: String, remedy: String| {
            let fault = Fault::halt(Exit::Config, what).remedy(remedy);
            findings.push(Finding::error(name, HIDES, fault));
        };
        if member.filtered || !columns_fit {
            halt(
                format!(
                    "publication {quoted} has a row filter or a column list for {name}, which would hide changes"
                ),
                format!(
                    "ALTER PUBLICATION {quoted} DROP TABLE {name}; ALTER PUBLICATION {quoted} ADD TABLE ONLY {name}; -- the whole \
                     table; columns are left out with exclude_columns"
                ),
            );
        }
        if member.partitioned && !self.via_root {
            halt(
                format!(
                    "publication {quoted} publishes the partitions of {name} each under its own name"
                ),
                format!("ALTER PUBLICATION {quoted} SET (publish_via_partition_root = true);"),
            );
        }
        findings
    }

    /// Each row written into a published history table would be a change to be recorded: without end.
    fn feeds_itself(&self, tables: &[(&Table, &SourceTable)]) -> Option<Finding> {
        let quoted = Identifier(&self.name);
        let members = self.names();
        let fed = tables
            .iter()
            .find(|(table, _)| self.all_tables || members.contains(&table.history));
        let (table, _) = fed?;
        let what = format!(
            "publication {quoted} holds the history table {} itself: every row written there would be one more \
             change to record",
            table.history
        );
        let remedy = match self.all_tables {
            true => format!(
                "{quoted} is FOR ALL TABLES: name another publication with source.publication, and waltrail makes it \
                 for the captured tables only"
            ),
            false => format!("ALTER PUBLICATION {quoted} DROP TABLE {};", table.history),
        };
        let anchor = "the-publication-holds-a-history-table";
        let fault = Fault::halt(Exit::HistoryWouldBeWrong, what)
            .remedy(remedy)
            .see(anchor);
        Some(Finding::error(&table.history, anchor, fault))
    }
}

async fn drop_tables(
    source: &Client,
    quoted: &Identifier<'_>,
    dropped: &[&TableName],
    mode: &mut Mode,
) -> Result<()> {
    for some in dropped.chunks(PUBLISHED_AT_ONCE) {
        let statement = format!("ALTER PUBLICATION {quoted} DROP TABLE {}", list(some));
        let what = format!("publication {quoted} without {}", names(some));
        mode.create(source, Side::Source, &what, &statement).await?;
    }
    Ok(())
}

fn listed<'a>(entries: &[Entry<'a>]) -> impl Iterator<Item = &'a TableName> {
    let listed = entries.iter().filter(|entry| entry.columns.is_some());
    listed.map(|entry| entry.name)
}

fn list(things: &[impl ToString]) -> String {
    let things: Vec<String> = things.iter().map(ToString::to_string).collect();
    things.join(", ")
}

/// Tables in a line of the log: by name, or, when they are many, their number.
fn names(tables: &[&TableName]) -> String {
    match tables.len() > LINES_MAX {
        true => format!("{} tables", tables.len()),
        false => list(tables),
    }
}

fn names_of(entries: &[Entry<'_>]) -> String {
    names(&entries.iter().map(|entry| entry.name).collect::<Vec<_>>())
}

async fn add(
    source: &Client,
    quoted: &Identifier<'_>,
    missing: &[Entry<'_>],
    mode: &mut Mode,
) -> Result<()> {
    for some in missing.chunks(PUBLISHED_AT_ONCE) {
        let statement = format!("ALTER PUBLICATION {quoted} ADD TABLE {}", list(some));
        let what = format!("publication {quoted} with {}", names_of(some));
        mode.create(source, Side::Source, &what, &statement).await?;
    }
    Ok(())
}

/// Gives tables another column list. In one transaction, so that no change is left out.
async fn list_anew(
    source: &Client,
    quoted: &Identifier<'_>,
    stale: &[Entry<'_>],
    mode: &mut Mode,
) -> Result<()> {
    for some in stale.chunks(PUBLISHED_AT_ONCE) {
        let tables: Vec<&TableName> = some.iter().map(|entry| entry.name).collect();
        let statement = format!(
            "BEGIN;\nALTER PUBLICATION {quoted} DROP TABLE {};\nALTER PUBLICATION {quoted} ADD TABLE {};\nCOMMIT",
            list(&tables),
            list(some)
        );
        let what = format!(
            "publication {quoted} with the columns of {}",
            names_of(some)
        );
        mode.create(source, Side::Source, &what, &statement).await?;
    }
    Ok(())
}

/// Creates the publication for the configured tables only.
async fn create(
    source: &Client,
    quoted: &Identifier<'_>,
    entries: &[Entry<'_>],
    mode: &mut Mode,
) -> Result<()> {
    let (first, others) = entries.split_at(entries.len().min(PUBLISHED_AT_ONCE));
    let statement = format!(
        "CREATE PUBLICATION {quoted} FOR TABLE {} WITH (publish_via_partition_root = true);\n\
         COMMENT ON PUBLICATION {quoted} IS '{COMMENT}'",
        list(first)
    );
    let missing = format!("publication {quoted}");
    mode.create(source, Side::Source, &missing, &statement)
        .await?;
    add(source, quoted, others, mode).await
}

struct Member {
    name: TableName,
    partitioned: bool,
    /// It has a row filter.
    filtered: bool,
    /// Its column list, if it has one.
    columns: Option<Vec<String>>,
}

async fn members(source: &Client, publication: &str) -> Result<Vec<Member>> {
    // prqual and prattrs came with 15.
    let rows = source
        .query(
            "WITH members AS ( \
                 SELECT c.oid FROM pg_catalog.pg_publication_tables t \
                   JOIN pg_catalog.pg_namespace n ON n.nspname = t.schemaname \
                   JOIN pg_catalog.pg_class c ON c.relname = t.tablename AND c.relnamespace = n.oid \
                  WHERE t.pubname = $1 \
                 UNION \
                 SELECT r.prrelid FROM pg_catalog.pg_publication p \
                   JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid WHERE p.pubname = $1), \
             own AS ( \
                 SELECT r.prrelid, to_jsonb(r) ->> 'prqual' IS NOT NULL AS filtered, \
                        btrim(to_jsonb(r) ->> 'prattrs', '[]') AS attributes \
                   FROM pg_catalog.pg_publication p \
                   JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid WHERE p.pubname = $1) \
             SELECT n.nspname, c.relname, c.relkind = 'p', coalesce(o.filtered, false), \
                    CASE WHEN o.attributes IS NOT NULL THEN ARRAY( \
                        SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid \
                           AND a.attnum::text = ANY (regexp_split_to_array(o.attributes, '[, ]+'))) END \
               FROM members m JOIN pg_catalog.pg_class c ON c.oid = m.oid \
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
               LEFT JOIN own o ON o.prrelid = c.oid",
            &[&publication],
        )
        .await
        .map_err(Side::Source.failed("could not show what its publication holds"))?;
    Ok(rows
        .iter()
        .map(|row| Member {
            name: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
            partitioned: row.get(2),
            filtered: row.get(3),
            columns: row.get(4),
        })
        .collect())
}
