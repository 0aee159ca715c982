//! The publication: made for the configured tables only, and checked when it was made by others.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Client;

use super::{LINES_MAX, Mode};
use crate::config::Config;
use crate::fault::{Exit, Fault, Result};
use crate::name::{Identifier, TableName};
use crate::server::Side;

/// Tables that one statement adds or drops: each is locked until it ends.
const PUBLISHED_AT_ONCE: usize = 1_000;
/// How a publication of ours is known again.
const COMMENT: &str = "made by waltrail for the tables that it follows";

/// Creates the publication, or brings ours up to date, or checks another's.
///
/// # Errors
/// Exit 65 for one that holds a history table (invariant I9), 78 for one that hides changes.
pub(super) async fn prepare(
    source: &Client,
    config: &Config,
    one_database: bool,
    mode: &mut Mode,
) -> Result<()> {
    let name = &config.source.publication;
    let quoted = Identifier(name);
    let failed = Side::Source.failed("could not show its publications");
    let found = source
        .query_opt(
            "SELECT oid, puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot, \
                    coalesce(obj_description(oid, 'pg_publication') = $2, false) \
               FROM pg_catalog.pg_publication WHERE pubname = $1",
            &[name, &COMMENT],
        )
        .await
        .map_err(failed)?;
    let Some(found) = found else {
        return create(source, config, mode).await;
    };
    let (all_tables, every_kind, via_root, ours): (bool, bool, bool, bool) =
        (found.get(1), found.get(2), found.get(3), found.get(4));
    let members = members(source, name).await?;
    if one_database {
        refuse_history(config, name, &members, all_tables)?;
    }
    if !every_kind {
        return Err(Fault::halt(
            Exit::Config,
            format!(
                "publication {quoted} does not publish all of insert, update, delete and truncate"
            ),
        )
        .remedy(format!(
            "ALTER PUBLICATION {quoted} SET (publish = 'insert, update, delete, truncate')"
        )));
    }
    let known: HashMap<&TableName, &Member> = members.iter().map(|m| (&m.name, m)).collect();
    let mut missing = Vec::new();
    for table in &config.tables {
        match known.get(&table.source) {
            Some(member) => check_member(member, via_root, &quoted)?,
            None => missing.push(&table.source),
        }
    }
    add(source, &quoted, &missing, mode).await?;
    if ours && !matches!(mode, Mode::Refuse) {
        let wanted: HashSet<&TableName> = config.tables.iter().map(|table| &table.source).collect();
        let dropped = members.iter().map(|member| &member.name);
        let dropped: Vec<&TableName> = dropped.filter(|name| !wanted.contains(name)).collect();
        alter(source, &quoted, ("DROP TABLE", "without"), &dropped, mode).await?;
    }
    Ok(())
}

/// Adds tables to the publication.
async fn add(
    source: &Client,
    quoted: &Identifier<'_>,
    missing: &[&TableName],
    mode: &mut Mode,
) -> Result<()> {
    // ONLY: rows of inheritance children would come under the child's name.
    alter(source, quoted, ("ADD TABLE ONLY", "with"), missing, mode).await
}

/// Adds or drops tables; few of them with a line of the log for each.
async fn alter(
    source: &Client,
    quoted: &Identifier<'_>,
    (verb, preposition): (&str, &str),
    tables: &[&TableName],
    mode: &mut Mode,
) -> Result<()> {
    for some in tables.chunks(PUBLISHED_AT_ONCE) {
        let names: Vec<String> = some.iter().map(ToString::to_string).collect();
        let separator = match verb {
            "ADD TABLE ONLY" => ", ONLY ",
            _ => ", ",
        };
        let list = names.join(separator);
        let statement = format!("ALTER PUBLICATION {quoted} {verb} {list}");
        let what = match names.len() > LINES_MAX {
            true => format!("publication {quoted} {preposition} {} tables", names.len()),
            false => format!("publication {quoted} {preposition} {}", names.join(", ")),
        };
        mode.create(source, Side::Source, &what, &statement).await?;
    }
    Ok(())
}

/// Creates the publication for the configured tables only.
async fn create(source: &Client, config: &Config, mode: &mut Mode) -> Result<()> {
    let quoted = Identifier(&config.source.publication);
    let tables: Vec<&TableName> = config.tables.iter().map(|table| &table.source).collect();
    let (first, others) = tables.split_at(tables.len().min(PUBLISHED_AT_ONCE));
    let list: Vec<String> = first.iter().map(|table| format!("ONLY {table}")).collect();
    let statement = format!(
        "CREATE PUBLICATION {quoted} FOR TABLE {} WITH (publish_via_partition_root = true);\n\
         COMMENT ON PUBLICATION {quoted} IS '{COMMENT}'",
        list.join(", ")
    );
    let missing = format!("publication {quoted}");
    mode.create(source, Side::Source, &missing, &statement)
        .await?;
    add(source, &quoted, others, mode).await
}

/// Refuses a published table whose changes would not all come under its own name.
fn check_member(member: &Member, via_root: bool, quoted: &Identifier<'_>) -> Result<()> {
    let name = &member.name;
    if member.limited {
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
    /// It has a row filter or a column list.
    limited: bool,
}

async fn members(source: &Client, publication: &str) -> Result<Vec<Member>> {
    // prqual and prattrs came with 15.
    let rows = source
        .query(
            "SELECT n.nspname, c.relname, c.relkind = 'p', \
                    coalesce((SELECT to_jsonb(r) ->> 'prqual' IS NOT NULL OR to_jsonb(r) ->> 'prattrs' IS NOT NULL \
                                FROM pg_catalog.pg_publication_rel r \
                               WHERE r.prpubid = p.oid AND r.prrelid = c.oid), false) \
               FROM pg_catalog.pg_publication p \
               JOIN pg_catalog.pg_publication_tables t ON t.pubname = p.pubname \
               JOIN pg_catalog.pg_namespace n ON n.nspname = t.schemaname \
               JOIN pg_catalog.pg_class c ON c.relname = t.tablename AND c.relnamespace = n.oid \
              WHERE p.pubname = $1 \
             UNION \
             SELECT n.nspname, c.relname, c.relkind = 'p', \
                    coalesce(to_jsonb(r) ->> 'prqual' IS NOT NULL OR to_jsonb(r) ->> 'prattrs' IS NOT NULL, false) \
               FROM pg_catalog.pg_publication p \
               JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid \
               JOIN pg_catalog.pg_class c ON c.oid = r.prrelid \
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
              WHERE p.pubname = $1",
            &[&publication],
        )
        .await
        .map_err(Side::Source.failed("could not show what its publication holds"))?;
    Ok(rows
        .iter()
        .map(|row| Member {
            name: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
            partitioned: row.get(2),
            limited: row.get(3),
        })
        .collect())
}

/// Each row written into a published history table would be a change to be recorded: without end.
fn refuse_history(config: &Config, name: &str, members: &[Member], all_tables: bool) -> Result<()> {
    let quoted = Identifier(name);
    let members: HashSet<&TableName> = members.iter().map(|member| &member.name).collect();
    let fed = config
        .tables
        .iter()
        .find(|table| all_tables || members.contains(&table.history));
    let Some(table) = fed else { return Ok(()) };
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
