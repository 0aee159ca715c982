//! What of the source decides whether the stream carries every change: the publication, and the tables as they stand in it.
//!
//! A stream does not say that it leaves something out. So what was seen is kept, and compared with the next look
//! ([`differences`], pure). A publication that was altered and put back is known by its row's version, a table that was
//! taken out and put back by the identity of its membership.

use std::fmt;

use serde::{Deserialize, Serialize};
use tokio_postgres::{Client, Error};

use super::TableName;

/// The publication's row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    pub name: String,
    pub oid: u32,
    /// The transaction that wrote this version of the row: every ALTER PUBLICATION that changes what it publishes makes
    /// another one.
    pub version: String,
    /// It publishes INSERT, UPDATE, DELETE and TRUNCATE.
    pub every_kind: bool,
    pub via_root: bool,
}

/// How a table stands in the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// `pg_class.relreplident`, `relpersistence` and `relkind`.
    pub identity: char,
    pub persistence: char,
    pub kind: char,
    /// What makes the publication hold it: its own membership, its schema's, or all tables; none when nothing does.
    pub member: Option<String>,
    pub filtered: bool,
    pub column_list: bool,
    /// Columns that a column list leaves out.
    #[serde(default)]
    pub unlisted: Vec<String>,
    /// The table that it is a partition of and that its changes are published as.
    #[serde(default)]
    pub published_as: Option<String>,
    /// As [`Partition::file`].
    #[serde(default)]
    pub file: u32,
    /// Numbers and names of its attributes, in short; empty: not known.
    #[serde(default)]
    pub attributes: String,
    pub partitions: Vec<Partition>,
}

impl Standing {
    /// Whether the publication names the table itself. PostgreSQL then refuses to make it unlogged.
    pub fn is_published_by_name(&self) -> bool {
        let member = self.member.as_deref();
        member.is_some_and(|member| member.starts_with("table "))
    }
}

/// A partition that holds rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    pub oid: u32,
    /// Its file (`pg_class.relfilenode`): TRUNCATE gives it another one, as do VACUUM FULL, CLUSTER and rewriting forms of
    /// ALTER TABLE. Zero: not known.
    #[serde(default)]
    pub file: u32,
    pub name: String,
    pub identity: char,
    pub persistence: char,
}

/// A table that is followed, as it was when it was last seen whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    pub history: TableName,
    pub oid: u32,
    pub name: TableName,
    pub seen: Seen,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The columns of its key.
    pub key: Vec<String>,
    pub standing: Standing,
}

/// A followed table as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its present name and standing; none when no table has the OID any more.
    pub table: Option<(TableName, Standing)>,
    /// The table that has the configured name now; a view, for example, has no changes of its own.
    pub named: Option<u32>,
}

/// One look at the source.
#[derive(Clone, Debug)]
pub struct Look {
    pub publication: Option<Publication>,
    /// In the order of the tables that were asked for.
    pub tables: Vec<Found>,
}

/// What was asked for: a table's OID, and the name in the configuration.
pub type Wanted<'a> = (u32, &'a TableName);

/// Looks at the source. Takes no lock.
pub async fn look(
    client: &Client,
    publication: &str,
    wanted: &[Wanted<'_>],
) -> Result<Look, Error> {
    let row = client.query_opt(PUBLICATION, &[&publication]).await?;
    let seen = row.map(|row| Publication {
        name: publication.to_owned(),
        oid: row.get(0),
        version: row.get(1),
        every_kind: row.get(2),
        via_root: row.get(3),
    });
    let oids: Vec<u32> = wanted.iter().map(|(oid, _)| *oid).collect();
    let names: Vec<String> = wanted.iter().map(|(_, name)| name.to_string()).collect();
    let by_schema: bool = client.query_one(HAS_SCHEMAS, &[]).await?.get(0);
    let statement = match by_schema {
        true => TABLES
            .replace("{SCHEMA}", MEMBER_BY_SCHEMA)
            .replace("{ROOT_BY_SCHEMA}", ROOT_BY_SCHEMA),
        false => TABLES
            .replace("{SCHEMA}", "NULL")
            .replace("{ROOT_BY_SCHEMA}", "false"),
    };
    let rows = client
        .query(&statement, &[&oids, &names, &publication])
        .await?;
    Ok(Look {
        publication: seen,
        tables: rows.iter().map(found).collect(),
    })
}

const PUBLICATION: &str = "SELECT oid, xmin::text, pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot \
    FROM pg_catalog.pg_publication WHERE pubname = $1";
/// Publications of schemas came with 15.
const HAS_SCHEMAS: &str =
    "SELECT pg_catalog.to_regclass('pg_catalog.pg_publication_namespace') IS NOT NULL";
const MEMBER_BY_SCHEMA: &str = "(SELECT 'schema ' || s.oid FROM pg_catalog.pg_publication_namespace s \
    WHERE s.pnpubid = p.oid AND s.pnnspid = c.relnamespace)";
const ROOT_BY_SCHEMA: &str = "EXISTS (SELECT FROM pg_catalog.pg_publication_namespace s \
    WHERE s.pnpubid = p.oid AND s.pnnspid = u.relnamespace)";
/// prqual and prattrs came with 15. `pg_partition_tree` would lock the partitions.
const TABLES: &str = "
    SELECT n.nspname, c.relname, c.relreplident, c.relpersistence, c.relkind,
           coalesce('table ' || r.oid, {SCHEMA}, CASE WHEN p.puballtables THEN 'all' END),
           coalesce(pg_catalog.to_jsonb(r) ->> 'prqual' IS NOT NULL, false),
           coalesce(pg_catalog.to_jsonb(r) ->> 'prattrs' IS NOT NULL, false),
           CASE WHEN c.relkind = 'p' THEN (
               WITH RECURSIVE tree AS (
                   SELECT c.oid AS oid
                   UNION ALL SELECT i.inhrelid FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.oid)
               SELECT pg_catalog.string_agg(pg_catalog.format('%s %s %s %s %I.%I', l.oid, l.relreplident, l.relpersistence,
                                                              l.relfilenode, ln.nspname, l.relname), E'\\n' ORDER BY l.oid)
                 FROM tree JOIN pg_catalog.pg_class l ON l.oid = tree.oid AND l.relkind <> 'p'
                 JOIN pg_catalog.pg_namespace ln ON ln.oid = l.relnamespace) END,
           (SELECT o.oid FROM pg_catalog.pg_class o
             WHERE o.oid = pg_catalog.to_regclass(t.name) AND o.relkind IN ('r', 'p')),
           CASE WHEN pg_catalog.to_jsonb(r) ->> 'prattrs' IS NOT NULL THEN ARRAY(
               SELECT a.attname::text FROM pg_catalog.pg_attribute a
                WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
                  AND a.attnum::text <> ALL (pg_catalog.regexp_split_to_array(
                      pg_catalog.btrim(pg_catalog.to_jsonb(r) ->> 'prattrs', '[]'), '[, ]+'))
                ORDER BY a.attnum) ELSE '{}' END,
           CASE WHEN c.relispartition AND p.pubviaroot THEN (
               WITH RECURSIVE up AS (
                   SELECT i.inhparent AS oid FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid
                   UNION ALL SELECT i.inhparent FROM up JOIN pg_catalog.pg_inherits i ON i.inhrelid = up.oid)
               SELECT pg_catalog.format('%I.%I', un.nspname, u.relname)
                 FROM up JOIN pg_catalog.pg_class u ON u.oid = up.oid
                 JOIN pg_catalog.pg_namespace un ON un.oid = u.relnamespace
                WHERE p.puballtables OR {ROOT_BY_SCHEMA} OR EXISTS (
                    SELECT FROM pg_catalog.pg_publication_rel a WHERE a.prpubid = p.oid AND a.prrelid = u.oid)
                LIMIT 1) END,
           c.relfilenode,
           (SELECT pg_catalog.md5(pg_catalog.string_agg(a.attnum || ' ' || a.attname, ',' ORDER BY a.attnum))
              FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
      FROM unnest($1::oid[], $2::text[]) WITH ORDINALITY AS t (oid, name, n)
      LEFT JOIN pg_catalog.pg_class c ON c.oid = t.oid
      LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN pg_catalog.pg_publication p ON p.pubname = $3
      LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid
     ORDER BY t.n";

fn found(row: &tokio_postgres::Row) -> Found {
    let letter = |at: usize| char::from(row.get::<_, i8>(at).cast_unsigned());
    let table = row.get::<_, Option<String>>(0).map(|schema| {
        let partitions: Option<&str> = row.get(8);
        let standing = Standing {
            identity: letter(2),
            persistence: letter(3),
            kind: letter(4),
            member: row.get(5),
            filtered: row.get(6),
            column_list: row.get(7),
            unlisted: row.get(10),
            published_as: row.get(11),
            file: row.get(12),
            attributes: row.get::<_, Option<String>>(13).unwrap_or_default(),
            partitions: partitions
                .unwrap_or_default()
                .lines()
                .filter_map(partition)
                .collect(),
        };
        (TableName::new(schema, row.get::<_, String>(1)), standing)
    });
    Found {
        table,
        named: row.get(9),
    }
}

fn partition(line: &str) -> Option<Partition> {
    let mut words = line.splitn(5, ' ');
    Some(Partition {
        oid: words.next()?.parse().ok()?,
        identity: words.next()?.chars().next()?,
        persistence: words.next()?.chars().next()?,
        file: words.next()?.parse().ok()?,
        name: words.next()?.to_owned(),
    })
}

/// What can have kept changes out of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The history that may lack changes; none: all of them.
    pub history: Option<TableName>,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    PublicationDropped,
    PublicationMadeAnew,
    PublicationAltered,
    Dropped(TableName),
    /// Another table has the name now.
    Replaced(TableName),
    Unpublished(TableName),
    PublishedAnew(TableName),
    /// As another table, of which it is a partition.
    PublishedAs(TableName, String),
    Filtered(TableName),
    ColumnList(TableName),
    /// Of the table, or of the partition that is named.
    Unlogged(TableName, Option<String>),
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PublicationDropped => f.write_str("the publication was dropped"),
            Self::PublicationMadeAnew => {
                f.write_str("the publication was dropped and created again")
            }
            Self::PublicationAltered => f.write_str("the publication was altered"),
            Self::Dropped(table) => write!(f, "{table} was dropped"),
            Self::Replaced(table) => write!(f, "{table} is another table now"),
            Self::Unpublished(table) => write!(f, "{table} was taken out of the publication"),
            Self::PublishedAnew(table) => {
                write!(
                    f,
                    "{table} was taken out of the publication and added again"
                )
            }
            Self::PublishedAs(table, root) => write!(
                f,
                "{table} is a partition of {root} now, and its changes are published as those of {root}"
            ),
            Self::Filtered(table) => write!(f, "the publication has a row filter for {table}"),
            Self::ColumnList(table) => write!(f, "the publication has a column list for {table}"),
            Self::Unlogged(table, None) => write!(f, "{table} is unlogged"),
            Self::Unlogged(table, Some(partition)) => {
                write!(f, "partition {partition} of {table} is unlogged")
            }
        }
    }
}

/// Compares what was seen whole with a look at the same tables, through the same publication. Empty: nothing can be missing.
pub fn differences(
    publication: &Publication,
    followed: &[Followed],
    look: &Look,
) -> Vec<Difference> {
    let of_publication = match &look.publication {
        None => Some(What::PublicationDropped),
        Some(now) if now.oid != publication.oid => Some(What::PublicationMadeAnew),
        Some(now) if now != publication => Some(What::PublicationAltered),
        Some(_) => None,
    };
    if let Some(what) = of_publication {
        let history = None;
        return vec![Difference { history, what }];
    }
    std::iter::zip(followed, &look.tables)
        .filter_map(|(table, found)| {
            let what = difference(table, found)?;
            let history = Some(table.history.clone());
            Some(Difference { history, what })
        })
        .collect()
}

/// Whether the table with this OID is not as it was seen, so that changes can be missing.
pub fn is_other(was: &Followed, oid: u32, found: &Found) -> bool {
    was.oid != oid || difference(was, found).is_some()
}

fn difference(was: &Followed, found: &Found) -> Option<What> {
    let name = || was.name.clone();
    if found.named.is_some_and(|oid| oid != was.oid) {
        return Some(What::Replaced(name()));
    }
    let Some((_, now)) = &found.table else {
        return Some(What::Dropped(name()));
    };
    let unlogged = |partition: &&Partition| partition.persistence != 'p';
    if now.persistence != 'p' {
        return Some(What::Unlogged(name(), None));
    }
    if let Some(partition) = now.partitions.iter().find(unlogged) {
        return Some(What::Unlogged(name(), Some(partition.name.clone())));
    }
    if let Some(root) = &now.published_as {
        return Some(What::PublishedAs(name(), root.clone()));
    }
    match (&now.member, &was.seen.standing.member) {
        (None, _) => Some(What::Unpublished(name())),
        // We were about to add it anew.
        (_, None) => None,
        _ if now.filtered && !was.seen.standing.filtered => Some(What::Filtered(name())),
        _ if now.column_list && !was.seen.standing.column_list => Some(What::ColumnList(name())),
        (now, was) if now != was => Some(What::PublishedAnew(name())),
        _ => None,
    }
}
