//! The publication: made for the configured tables only, and checked when it was made by others.

use std::collections::{HashMap, HashSet};
use std::fmt;

use tokio_postgres::Client;

use super::{LINES_MAX, Mode};
use crate::config::{Source, Table};
use crate::fault::{Exit, Fault, Result};
use crate::history::followed;
use crate::name::{Identifier, TableName};
use crate::schema::SourceTable;
use crate::server::Side;

/// Tables that one statement adds or drops: each is locked until it ends.
const PUBLISHED_AT_ONCE: usize = 1_000;
/// How a publication of ours is known again.
const COMMENT: &str = "made by waltrail for the tables that it follows";

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
    let failed = Side::Source.failed("could not show its publications");
    let found = source
        .query_opt(
            "SELECT oid, puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot, \
                    coalesce(obj_description(oid, 'pg_publication') = $2, false) \
               FROM pg_catalog.pg_publication WHERE pubname = $1",
            &[&name, &COMMENT],
        )
        .await
        .map_err(failed)?;
    let Some(found) = found else {
        let entries: Vec<Entry<'_>> = entries.collect();
        create(source, &quoted, &entries, mode).await?;
        return Ok(listed(&entries).cloned().collect());
    };
    let (all_tables, every_kind, via_root, ours): (bool, bool, bool, bool) =
        (found.get(1), found.get(2), found.get(3), found.get(4));
    let members = members(source, name).await?;
    if one_database {
        refuse_history(tables, name, &members, all_tables)?;
    }
    if !every_kind {
        return Err(hides_kinds(&quoted));
    }
    let known: HashMap<&TableName, &Member> = members.iter().map(|m| (&m.name, m)).collect();
    let may_alter = ours && !matches!(mode, Mode::Refuse);
    let check = Check {
        quoted,
        via_root,
        ours,
        may_alter,
    };
    let (missing, stale, mut has_list) = check.sort(entries, &known)?;
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

fn hides_kinds(quoted: &Identifier<'_>) -> Fault {
    let what =
        format!("publication {quoted} does not publish all of insert, update, delete and truncate");
    Fault::halt(Exit::Config, what).remedy(format!(
        "ALTER PUBLICATION {quoted} SET (publish = 'insert, update, delete, truncate')"
    ))
}

/// How the publication is.
struct Check<'a> {
    quoted: Identifier<'a>,
    via_root: bool,
    /// waltrail made it.
    ours: bool,
    may_alter: bool,
}

/// Tables that are missing, those that have another column list than they should, and the names of those that have one.
type Sorted<'a> = (Vec<Entry<'a>>, Vec<Entry<'a>>, HashSet<TableName>);

impl Check<'_> {
    fn sort<'a>(
        &self,
        entries: impl Iterator<Item = Entry<'a>>,
        known: &HashMap<&TableName, &Member>,
    ) -> Result<Sorted<'a>> {
        let (mut missing, mut stale) = (Vec::new(), Vec::new());
        let mut has_list = HashSet::new();
        for entry in entries {
            let Some(member) = known.get(entry.name) else {
                missing.push(if self.ours { entry } else { entry.whole() });
                continue;
            };
            let is_stale = !entry.is_as(member);
            // A list that waltrail made is its own to change; the whole table is as right.
            let fits = !is_stale || member.columns.is_none() || self.may_alter;
            check_member(member, fits, self.via_root, &self.quoted)?;
            if entry.columns.is_some() && (!is_stale || self.may_alter) {
                has_list.insert(entry.name.clone());
            }
            if is_stale && self.may_alter {
                stale.push(entry);
            }
        }
        Ok((missing, stale, has_list))
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

/// Refuses a published table whose changes would not all come under its own name.
fn check_member(
    member: &Member,
    columns_fit: bool,
    via_root: bool,
    quoted: &Identifier<'_>,
) -> Result<()> {
    let name = &member.name;
    if member.filtered || !columns_fit {
        return Err(Fault::halt(
            Exit::Config,
            format!("publication {quoted} has a row filter or a column list for {name}, which would hide changes"),
        )
        .remedy("publish the whole table; columns are left out with exclude_columns"));
    }
    if member.partitioned && !via_root {
        return Err(Fault::halt(
            Exit::Config,
            format!(
                "publication {quoted} publishes the partitions of {name} each under its own name"
            ),
        )
        .remedy(format!(
            "ALTER PUBLICATION {quoted} SET (publish_via_partition_root = true)"
        )));
    }
    Ok(())
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

/// Each row written into a published history table would be a change to be recorded: without end.
fn refuse_history(
    tables: &[(&Table, &SourceTable)],
    name: &str,
    members: &[Member],
    all_tables: bool,
) -> Result<()> {
    let quoted = Identifier(name);
    let members: HashSet<&TableName> = members.iter().map(|member| &member.name).collect();
    let fed = tables
        .iter()
        .find(|(table, _)| all_tables || members.contains(&table.history));
    let Some((table, _)) = fed else { return Ok(()) };
    Err(Fault::halt(
        Exit::HistoryWouldBeWrong,
        format!(
            "publication {quoted} holds the history table {} itself: every row written there would be one more \
             change to record",
            table.history
        ),
    )
    .remedy(match all_tables {
        true => format!(
            "{quoted} is FOR ALL TABLES: name another publication with source.publication, and waltrail makes it \
             for the captured tables only"
        ),
        false => format!("ALTER PUBLICATION {quoted} DROP TABLE {}", table.history),
    })
    .see("the-publication-holds-a-history-table"))
}
