//! Tables as the catalogs have them.

use tokio_postgres::{Client, Error};

use super::exact::Type;
use super::{HistoryColumn, HistoryTable, SourceColumn, SourceTable, TableName, recorded, types};

/// The columns of a table.
const COLUMNS: &str = "
    SELECT a.attname, a.atttypid, a.atttypmod, a.attnotnull, a.atthasdef OR a.attidentity <> '', a.attgenerated <> ''
      FROM pg_catalog.pg_attribute a
     WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
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
    client.query(COLUMNS, &[&oid]).await
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
        .filter(|row| !row.get::<_, bool>(5))
        .map(|row| SourceColumn {
            name: row.get(0),
            type_oid: row.get(1),
            modifier: row.get(2),
        })
        .collect();
    let keys = columns
        .iter()
        .map(|column| (column.type_oid, column.modifier));
    let types = types::types(client, keys).await?;
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
        types,
    };
    Ok(Some((table, standing)))
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
    let rows = columns(client, row.get(0)).await?;
    let key = |row: &tokio_postgres::Row| (row.get(1), row.get(2));
    let types = types::types(client, rows.iter().map(key)).await?;
    let columns = rows
        .iter()
        .map(|row| HistoryColumn {
            name: row.get(0),
            type_oid: row.get(1),
            kind: types
                .get(&key(row))
                .cloned()
                .flatten()
                .unwrap_or_else(Type::dropped),
            not_null: row.get(3),
            has_default: row.get(4),
            generated: row.get(5),
        })
        .collect();
    let mut table = HistoryTable {
        name: name.clone(),
        columns,
        made: false,
        homes: Vec::new(),
    };
    recorded::read(client, std::slice::from_mut(&mut table)).await?;
    Ok(Some((table, letter(row.get(1)))))
}

/// A value of PostgreSQL's one-byte type "char".
fn letter(value: i8) -> char {
    char::from(value.cast_unsigned())
}
