//! Tables as the catalogs have them: all that are asked for by a constant number of queries, however many they are.

use std::collections::HashMap;

use tokio_postgres::{Client, Error, Row};

use super::exact::Type;
use super::types::{TypeKey, Types};
use super::{HistoryColumn, HistoryTable, SourceColumn, SourceTable, TableName, recorded, types};

/// The relations that are asked for: those of these names (schemas `$1`, names `$2`) and those of these OIDs (`$3`).
const WANTED: &str = "
    wanted AS (
        SELECT c.oid FROM unnest($1::name[], $2::name[]) AS w (schema, name)
          JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
          JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
        UNION SELECT unnest($3::oid[])
    )";

/// The columns of tables. Whether a domain anywhere on the way to the base type is NOT NULL; a domain or type with a
/// default gives it to a column that has none.
const COLUMNS: &str = "
    WITH RECURSIVE cols AS MATERIALIZED (
        SELECT a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull,
               a.atthasdef OR a.attidentity <> '' AS has_default, a.attgenerated
          FROM pg_catalog.pg_attribute a
         WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped
    ), chain AS (
        SELECT t.oid AS declared, t.oid, t.typtype, t.typbasetype, t.typnotnull, t.typdefault IS NOT NULL AS has_default
          FROM pg_catalog.pg_type t WHERE t.oid IN (SELECT atttypid FROM cols)
        UNION ALL
        SELECT c.declared, t.oid, t.typtype, t.typbasetype, c.typnotnull OR t.typnotnull, c.has_default
          FROM chain c JOIN pg_catalog.pg_type t ON t.oid = c.typbasetype AND c.typtype = 'd'
    )
    SELECT a.attrelid, a.attname, a.atttypid, a.atttypmod,
           a.attnotnull OR c.typnotnull, a.has_default OR c.has_default, a.attgenerated
      FROM cols a
      JOIN chain c ON c.declared = a.atttypid AND c.typtype <> 'd'
     ORDER BY a.attrelid, a.attnum";

/// The columns of the replica identity's index, or of the primary key for DEFAULT and FULL. A deferrable key is no
/// replica identity (manual, ALTER TABLE, "REPLICA IDENTITY"), and within a transaction it does not tell rows apart.
const KEYS: &str = "
    SELECT i.indrelid, a.attname FROM pg_catalog.pg_index i
      JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
      JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid
       AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
     WHERE i.indrelid = ANY ($1) AND i.indisvalid AND i.indimmediate
       AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END
     ORDER BY i.indrelid, a.attnum";

/// Source tables. A publication can send stored generated columns since 18.
const SOURCES: &str = "
    WITH {WANTED}
    SELECT c.oid, n.nspname, c.relname, c.relkind, c.relreplident, c.relpersistence,
           CASE WHEN c.relispartition THEN (
               SELECT r.relid::regclass::text
                 FROM pg_catalog.pg_partition_ancestors(c.oid) WITH ORDINALITY AS r (relid, nth)
                WHERE r.relid <> c.oid ORDER BY r.nth DESC LIMIT 1) END,
           EXISTS (SELECT FROM pg_catalog.pg_publication p
                    WHERE p.pubname = $4 AND to_jsonb(p) ->> 'pubgencols' = 's')
      FROM wanted JOIN pg_catalog.pg_class c USING (oid)
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace";

/// The partitions that hold rows of partitioned tables, at any depth. Without the functions for it, which lock.
const PARTITIONS: &str = "
    WITH RECURSIVE tree AS (
        SELECT r.oid AS root, r.oid FROM unnest($1::oid[]) AS r (oid)
        UNION ALL SELECT t.root, i.inhrelid FROM tree t
          JOIN pg_catalog.pg_class p ON p.oid = t.oid AND p.relkind = 'p'
          JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid AND NOT i.inhdetachpending
    )
    SELECT t.root, c.oid, n.nspname, c.relname, c.relkind, c.relreplident, c.relpersistence
      FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid AND c.relkind <> 'p'
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     ORDER BY c.oid";

/// History tables. A trigger, a rule or a policy could keep rows that are to be removed, or refuse.
const HISTORIES: &str = "
    WITH RECURSIVE {WANTED}, tree AS (
        SELECT oid AS root, oid FROM wanted
        UNION ALL SELECT t.root, i.inhrelid FROM tree t
          JOIN pg_catalog.pg_class p ON p.oid = t.oid AND p.relkind = 'p'
          JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
    ), members AS (
        SELECT t.root, array_agg(format('%I.%I', n.nspname, c.relname))
                         FILTER (WHERE c.relkind <> 'p' AND c.relpersistence <> 'p') AS unlogged,
               array_agg(format('%I.%I', n.nspname, c.relname)) FILTER (WHERE c.relkind = 'f') AS elsewhere
          FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace GROUP BY t.root
    ), before AS (
        SELECT t.root, min(format('trigger %I', g.tgname)) AS name FROM tree t
          JOIN pg_catalog.pg_trigger g ON g.tgrelid = t.oid AND NOT g.tgisinternal AND g.tgenabled <> 'D'
           AND g.tgtype & 7 = 7 GROUP BY t.root
    ), instead AS (
        SELECT r.ev_class, min(format('rule %I', r.rulename)) AS name FROM pg_catalog.pg_rewrite r
          JOIN wanted ON wanted.oid = r.ev_class WHERE r.ev_type = '3' AND r.ev_enabled <> 'D' GROUP BY r.ev_class
    )
    SELECT c.oid, n.nspname, c.relname, c.relkind, coalesce(m.unlogged, '{}'), coalesce(m.elsewhere, '{}'),
           coalesce(b.name, r.name),
           coalesce(has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'SELECT'), false),
           coalesce(has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'DELETE')
                AND NOT c.relhasrules AND NOT row_security_active(c.oid)
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid = c.oid
                                   AND NOT g.tgisinternal AND g.tgtype & 8 <> 0), false),
           to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL
      FROM wanted JOIN pg_catalog.pg_class c USING (oid)
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN members m ON m.root = c.oid
      LEFT JOIN before b ON b.root = c.oid
      LEFT JOIN instead r ON r.ev_class = c.oid";

/// What was found, by OID and by name.
#[derive(Debug)]
pub struct Found<T> {
    relations: HashMap<u32, T>,
    oids: HashMap<TableName, u32>,
}

impl<T> Default for Found<T> {
    fn default() -> Self {
        Self {
            relations: HashMap::new(),
            oids: HashMap::new(),
        }
    }
}

impl<T> Found<T> {
    pub fn named(&self, name: &TableName) -> Option<&T> {
        self.with_oid(*self.oids.get(name)?)
    }

    pub fn with_oid(&self, oid: u32) -> Option<&T> {
        self.relations.get(&oid)
    }

    fn add(&mut self, oid: u32, name: TableName, relation: T) {
        self.oids.insert(name, oid);
        self.relations.insert(oid, relation);
    }

    fn oids(&self) -> Vec<u32> {
        self.relations.keys().copied().collect()
    }
}

/// What else must be known of a source table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// `p` permanent, `u` unlogged, `t` temporary.
    pub persistence: char,
    /// The partitions that hold its rows, at any depth.
    pub partitions: Vec<Partition>,
    /// Its topmost partitioned ancestor, if it is a partition.
    pub partition_of: Option<String>,
    /// Generated columns that are not sent.
    pub generated: Vec<String>,
    /// The columns of its replica identity, or of its primary key where that is FULL, sent or not.
    pub identity: Vec<String>,
}

/// A partition that holds rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    pub oid: u32,
    pub name: TableName,
    /// `r` for a table, `f` for a foreign one.
    pub kind: char,
    pub replica_identity: char,
    pub persistence: char,
    /// As [`Standing::identity`].
    pub identity: Vec<String>,
}

/// What else must be known of a history table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistoryStanding {
    pub kind: char,
    /// What is not in the WAL: itself, or partitions of it.
    pub unlogged: Vec<String>,
    /// Partitions that another server keeps.
    pub foreign: Vec<String>,
    /// Citus keeps its rows on other servers.
    pub distributed: bool,
    /// A trigger or a rule that can leave rows out, or change them.
    pub filter: Option<String>,
    /// Rows can be written, and their columns be checked, which takes SELECT.
    pub may_insert: bool,
    /// Rows can be removed again.
    pub removable: bool,
}

/// Schemas and names, as [`WANTED`] takes them.
fn split<'a>(names: &[&'a TableName]) -> (Vec<&'a str>, Vec<&'a str>) {
    let schemas = names.iter().map(|name| name.schema.as_str()).collect();
    (
        schemas,
        names.iter().map(|name| name.name.as_str()).collect(),
    )
}

/// The columns of each table, in their order, and their types.
async fn columns(client: &Client, oids: &[u32]) -> Result<(HashMap<u32, Vec<Row>>, Types), Error> {
    let rows = client.query(COLUMNS, &[&oids]).await?;
    let types = types::types(client, rows.iter().map(type_key)).await?;
    let mut found: HashMap<u32, Vec<Row>> = HashMap::new();
    for row in rows {
        found.entry(row.get(0)).or_default().push(row);
    }
    Ok((found, types))
}

/// The type of a row of [`COLUMNS`].
fn type_key(row: &Row) -> TypeKey {
    (row.get(2), row.get(3))
}

/// The source tables of these names and these OIDs, as far as they exist; four queries, and one more where some are
/// partitioned. What `publication` sends of generated columns, it says itself.
pub async fn source_tables(
    client: &Client,
    publication: &str,
    names: &[&TableName],
    oids: &[u32],
) -> Result<Found<(SourceTable, Standing)>, Error> {
    let (schemas, tables) = split(names);
    let query = SOURCES.replace("{WANTED}", WANTED);
    let rows = client
        .query(&query, &[&schemas, &tables, &oids, &publication])
        .await?;
    let all: Vec<u32> = rows.iter().map(|row| row.get(0)).collect();
    let roots = rows.iter().filter(|row| letter(row.get(3)) == 'p');
    let roots: Vec<u32> = roots.map(|row| row.get(0)).collect();
    let mut partitions = partitions(client, &roots).await?;
    let leaves = partitions.values().flatten().map(|leaf| leaf.oid);
    let with_key: Vec<u32> = all.iter().copied().chain(leaves).collect();
    let mut keys: HashMap<u32, Vec<String>> = HashMap::new();
    for row in client.query(KEYS, &[&with_key]).await? {
        keys.entry(row.get(0)).or_default().push(row.get(1));
    }
    for leaf in partitions.values_mut().flatten() {
        leaf.identity = keys.remove(&leaf.oid).unwrap_or_default();
    }
    let (mut columns, types) = columns(client, &all).await?;
    let mut found = Found::default();
    for row in &rows {
        let oid = row.get(0);
        let columns = columns.remove(&oid).unwrap_or_default();
        let key = keys.remove(&oid).unwrap_or_default();
        let mut table = source_table(row, &columns, key);
        table.0.types = Types::clone(&types);
        let leaves = partitions.remove(&oid).unwrap_or_default();
        let standing = Standing {
            partitions: leaves,
            ..table.1
        };
        found.add(oid, table.0.name.clone(), (table.0, standing));
    }
    Ok(found)
}

/// Puts together what a row of [`SOURCES`], its columns and its key say.
fn source_table(row: &Row, columns: &[Row], identity: Vec<String>) -> (SourceTable, Standing) {
    let sends_stored: bool = row.get(7);
    let is_sent = |row: &&Row| match letter(row.get(6)) {
        's' => sends_stored,
        generated => generated == '\0',
    };
    let generated = columns.iter().filter(|row| !is_sent(row));
    let generated = generated.map(|row| row.get(1)).collect();
    let columns: Vec<SourceColumn> = columns
        .iter()
        .filter(is_sent)
        .map(|row| SourceColumn {
            name: row.get(1),
            type_oid: row.get(2),
            modifier: row.get(3),
        })
        .collect();
    let replica_identity = letter(row.get(4));
    let is_known = |name: &String| columns.iter().any(|column| column.name == *name);
    let key = match replica_identity {
        'f' if identity.is_empty() || !identity.iter().all(is_known) => {
            columns.iter().map(|column| column.name.clone()).collect()
        }
        _ => identity.clone(),
    };
    let standing = Standing {
        persistence: letter(row.get(5)),
        partitions: Vec::new(),
        partition_of: row.get(6),
        generated,
        identity,
    };
    let table = SourceTable {
        oid: row.get(0),
        name: name(row, 1),
        replica_identity,
        kind: letter(row.get(3)),
        columns,
        key,
        types: Types::default(),
    };
    (table, standing)
}

/// The partitions of each partitioned table, without their keys.
async fn partitions(client: &Client, roots: &[u32]) -> Result<HashMap<u32, Vec<Partition>>, Error> {
    let mut found: HashMap<u32, Vec<Partition>> = HashMap::new();
    if roots.is_empty() {
        return Ok(found);
    }
    for row in client.query(PARTITIONS, &[&roots]).await? {
        found.entry(row.get(0)).or_default().push(Partition {
            oid: row.get(1),
            name: name(&row, 2),
            kind: letter(row.get(4)),
            replica_identity: letter(row.get(5)),
            persistence: letter(row.get(6)),
            identity: Vec::new(),
        });
    }
    Ok(found)
}

/// The history tables of these names and these OIDs, as far as they exist; six queries, and one more where Citus is
/// there. A view or another relation is recognized by its kind.
pub async fn history_tables(
    client: &Client,
    names: &[&TableName],
    oids: &[u32],
) -> Result<Found<(HistoryTable, HistoryStanding)>, Error> {
    let (schemas, tables) = split(names);
    let query = HISTORIES.replace("{WANTED}", WANTED);
    let rows = client.query(&query, &[&schemas, &tables, &oids]).await?;
    let mut found = Found::default();
    let all: Vec<u32> = rows.iter().map(|row| row.get(0)).collect();
    let (mut columns, types) = columns(client, &all).await?;
    for row in &rows {
        let oid: u32 = row.get(0);
        let name = name(row, 1);
        let table = HistoryTable {
            name: name.clone(),
            columns: columns
                .remove(&oid)
                .unwrap_or_default()
                .iter()
                .map(|row| history_column(row, &types))
                .collect(),
            made: false,
            homes: Vec::new(),
        };
        let standing = HistoryStanding {
            kind: letter(row.get(3)),
            unlogged: row.get(4),
            foreign: row.get(5),
            distributed: false,
            filter: row.get(6),
            may_insert: row.get(7),
            removable: row.get(8),
        };
        found.add(oid, name, (table, standing));
    }
    let tables = found.relations.values_mut().map(|(table, _)| table);
    recorded::read(client, tables.collect()).await?;
    if rows.iter().any(|row| row.get(9)) {
        mark_distributed(client, &mut found).await?;
    }
    Ok(found)
}

/// Citus lists its tables in `pg_dist_partition`.
async fn mark_distributed(
    client: &Client,
    found: &mut Found<(HistoryTable, HistoryStanding)>,
) -> Result<(), Error> {
    let rows = client
        .query(
            "SELECT logicalrelid::oid FROM pg_catalog.pg_dist_partition WHERE logicalrelid::oid = ANY ($1)",
            &[&found.oids()],
        )
        .await?;
    for row in rows {
        if let Some((_, standing)) = found.relations.get_mut(&row.get(0)) {
            standing.distributed = true;
        }
    }
    Ok(())
}

fn history_column(row: &Row, types: &Types) -> HistoryColumn {
    let kind = types.get(&type_key(row)).cloned().flatten();
    HistoryColumn {
        name: row.get(1),
        type_oid: row.get(2),
        modifier: row.get(3),
        kind: kind.unwrap_or_else(Type::dropped),
        not_null: row.get(4),
        has_default: row.get(5) || letter(row.get(6)) != '\0',
        generated: letter(row.get(6)) != '\0',
    }
}

/// A schema and a name, in this column and the next one.
fn name(row: &Row, at: usize) -> TableName {
    TableName::new(row.get::<_, String>(at), row.get::<_, String>(at + 1))
}

/// A value of PostgreSQL's one-byte type "char"; an empty one is a zero byte.
fn letter(value: i8) -> char {
    char::from(value.cast_unsigned())
}
