//! Tables as the catalogs have them.

use tokio_postgres::{Client, Error};

use super::{HistoryColumn, HistoryTable, SourceColumn, SourceTable, TableName};

/// Names a type's binary form, so that equal names on two servers mean equal bytes; NULL for types whose
/// values are sent as text. Built-in types have the same OID everywhere. `text` and `varchar` have one
/// form. An enum travels as its label. Domains travel as their base type. The `interval` of 17 and later has 'infinity',
/// which before is some other value. Left out: types without a send function (and arrays of such), `reg*` types (their OIDs
/// mean something else on another server), `tsquery`, `int2vector` and `oidvector` (an empty one is sent, but not
/// received), extension types, composites, and arrays and ranges of anything that is not built in, whose values hold
/// OIDs.
const WIRE_TYPE: &str = "
    CASE WHEN b.oid IN (25, 1043) THEN 'text'
         WHEN b.oid = 1042 THEN 'bpchar'
         WHEN b.typtype = 'e' THEN 'enum ' || quote_ident(n.nspname) || '.' || quote_ident(b.typname)
         WHEN b.oid < 10000 AND b.typsend <> 0 AND b.typtype IN ('b', 'r', 'm') AND b.typname NOT LIKE 'reg%'
              AND b.oid NOT IN (3615, 3645, 22, 30, 1006, 1013)
              AND (e.oid IS NULL OR (e.oid < 10000 AND e.typsend <> 0 AND e.typname NOT LIKE 'reg%'))
         THEN b.oid::text || CASE WHEN b.oid IN (1186, 1187)
              AND pg_catalog.current_setting('server_version_num')::int4 >= 170000 THEN ' with infinity' ELSE '' END
    END";

/// The columns of a table, with the base type of each.
const COLUMNS: &str = "
    WITH RECURSIVE chain AS (
        SELECT a.attnum, a.atttypid AS oid FROM pg_catalog.pg_attribute a
         WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL
        SELECT c.attnum, t.typbasetype FROM chain c
          JOIN pg_catalog.pg_type t ON t.oid = c.oid AND t.typtype = 'd'
    )
    SELECT a.attname, a.atttypid, pg_catalog.format_type(a.atttypid, a.atttypmod), ({WIRE_TYPE}),
           a.attnotnull, a.atthasdef OR a.attidentity <> '', a.attgenerated <> ''
      FROM pg_catalog.pg_attribute a
      JOIN chain c ON c.attnum = a.attnum
      JOIN pg_catalog.pg_type b ON b.oid = c.oid AND b.typtype <> 'd'
      JOIN pg_catalog.pg_namespace n ON n.oid = b.typnamespace
      LEFT JOIN pg_catalog.pg_type e ON e.oid = b.typelem AND b.typcategory = 'A'
     WHERE a.attrelid = $1 AND NOT a.attisdropped
     ORDER BY a.attnum";

/// The columns of the replica identity's index, or of the primary key for DEFAULT and FULL.
const KEY: &str = "
    SELECT a.attname FROM pg_catalog.pg_index i
      JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
      JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid
       AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
     WHERE i.indrelid = $1 AND i.indisvalid
       AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END
     ORDER BY a.attnum";

/// What else setup must know of a source table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// `p` permanent, `u` unlogged, `t` temporary.
    pub persistence: char,
    /// Partitions whose replica identity differs from this table's, or that have none.
    pub odd_partitions: Vec<String>,
    /// Its topmost partitioned ancestor, if it is a partition.
    pub partition_of: Option<String>,
}

async fn columns(client: &Client, oid: u32) -> Result<Vec<tokio_postgres::Row>, Error> {
    client
        .query(&COLUMNS.replace("{WIRE_TYPE}", WIRE_TYPE), &[&oid])
        .await
}

/// The source table of this name; `None` when there is none.
pub async fn source_table(
    client: &Client,
    name: &TableName,
) -> Result<Option<(SourceTable, Standing)>, Error> {
    let found = client
        .query_opt(
            "SELECT c.oid, c.relkind, c.relreplident, c.relpersistence, \
                    (SELECT r.relid::regclass::text FROM pg_catalog.pg_partition_ancestors(c.oid) r \
                      WHERE r.relid <> c.oid ORDER BY r.relid DESC LIMIT 1), \
                    ARRAY(SELECT p.relid::regclass::text FROM pg_catalog.pg_partition_tree(c.oid) p \
                            JOIN pg_catalog.pg_class l ON l.oid = p.relid \
                           WHERE p.isleaf AND p.relid <> c.oid AND ( \
                                 l.relreplident <> c.relreplident OR l.relreplident IN ('n') OR \
                                 (l.relreplident = 'd' AND NOT EXISTS (SELECT FROM pg_catalog.pg_index i \
                                      WHERE i.indrelid = l.oid AND i.indisprimary)))) \
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
              WHERE n.nspname = $1 AND c.relname = $2",
            &[&name.schema, &name.name],
        )
        .await?;
    let Some(row) = found else { return Ok(None) };
    let oid: u32 = row.get(0);
    let standing = Standing {
        persistence: letter(row.get(3)),
        partition_of: row.get(4),
        odd_partitions: row.get(5),
    };
    let replica_identity = letter(row.get(2));
    let columns: Vec<SourceColumn> = columns(client, oid)
        .await?
        .iter()
        .filter(|row| !row.get::<_, bool>(6))
        .map(|row| SourceColumn {
            name: row.get(0),
            type_oid: row.get(1),
            type_sql: row.get(2),
            wire_type: row.get(3),
        })
        .collect();
    let mut key: Vec<String> = client
        .query(KEY, &[&oid])
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect();
    if replica_identity == 'f' && key.is_empty() {
        key = columns.iter().map(|column| column.name.clone()).collect();
    }
    let kind = letter(row.get(1));
    let table = SourceTable {
        oid,
        name: name.clone(),
        replica_identity,
        kind,
        columns,
        key,
    };
    Ok(Some((table, standing)))
}

/// The name of the table with this OID; `None` when there is none.
pub async fn name_of(client: &Client, oid: u32) -> Result<Option<TableName>, Error> {
    let found = client
        .query_opt(
            "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c \
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1",
            &[&oid],
        )
        .await?;
    Ok(found.map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))))
}

/// The history table of this name; `None` when there is none. A view or another relation is recognized by its
/// kind.
pub async fn history_table(
    client: &Client,
    name: &TableName,
) -> Result<Option<(HistoryTable, char)>, Error> {
    let found = client
        .query_opt(
            "SELECT c.oid, c.relkind FROM pg_catalog.pg_class c \
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
              WHERE n.nspname = $1 AND c.relname = $2",
            &[&name.schema, &name.name],
        )
        .await?;
    let Some(row) = found else { return Ok(None) };
    let columns = columns(client, row.get(0))
        .await?
        .iter()
        .map(|row| HistoryColumn {
            name: row.get(0),
            type_oid: row.get(1),
            wire_type: row.get(3),
            not_null: row.get(4),
            has_default: row.get(5),
            generated: row.get(6),
        })
        .collect();
    Ok(Some((
        HistoryTable {
            name: name.clone(),
            columns,
        },
        letter(row.get(1)),
    )))
}

/// A value of PostgreSQL's one-byte type "char".
fn letter(value: i8) -> char {
    char::from(value.cast_unsigned())
}
