//! What the source's catalogs say of a table that rows are put back into.

use std::collections::HashMap;

use tokio_postgres::{Client, Error};

use crate::schema::TableName;

/// The columns of tables. A domain is taken for its base type: a column that holds no value must take NULL. `alike`: two
/// values can be compared by the type's own operator of PostgreSQL; others are compared as text.
const COLUMNS: &str = "
    WITH RECURSIVE base AS (
        SELECT a.attrelid, a.attnum, a.atttypid AS type, a.atttypmod AS modifier, a.attnotnull AS not_null
          FROM pg_catalog.pg_attribute a WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL
        SELECT b.attrelid, b.attnum, t.typbasetype, CASE WHEN b.modifier < 0 THEN t.typtypmod ELSE b.modifier END,
               b.not_null OR t.typnotnull
          FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.type AND t.typtype = 'd'
    )
    SELECT b.attrelid, a.attname, pg_catalog.format_type(b.type, b.modifier), b.not_null,
           a.atthasdef OR a.attidentity <> '', a.attidentity = 'a', a.attgenerated <> '',
           t.typtype = 'e' OR b.type IN (16, 17, 18, 19, 20, 21, 23, 25, 26, 700, 701, 1042, 1043, 1082, 1083, 1114, 1184, 1700, 2950),
           a.attidentity <> ''
      FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.type AND t.typtype <> 'd'
      JOIN pg_catalog.pg_attribute a USING (attrelid, attnum)
     ORDER BY b.attrelid, b.attnum";

/// Unique indexes beside the key, and those that are checked late, which ON CONFLICT does not take.
const INDEXES: &str = "
    SELECT c.oid,
           (SELECT count(*) > 1 FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND (i.indisunique OR i.indisexclusion)),
           EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND NOT i.indimmediate),
           ARRAY(SELECT g.tgname::text FROM pg_catalog.pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal
                    AND g.tgenabled IN ('O', 'A') ORDER BY g.tgname)
      FROM pg_catalog.pg_class c WHERE c.oid = ANY ($1)";

/// Foreign keys of these tables and to them.
const FOREIGN_KEYS: &str = "
    SELECT k.conname, k.conrelid, k.confrelid, n.nspname, c.relname, k.confupdtype = 'c', k.condeferrable,
           ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS u (attnum, n)
                   JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.attnum ORDER BY u.n),
           ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY AS u (attnum, n)
                   JOIN pg_catalog.pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.attnum ORDER BY u.n),
           m.nspname, p.relname
      FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_catalog.pg_class p ON p.oid = k.confrelid
      JOIN pg_catalog.pg_namespace m ON m.oid = p.relnamespace
     WHERE k.contype = 'f' AND k.conparentid = 0 AND (k.conrelid = ANY ($1) OR k.confrelid = ANY ($1))
     ORDER BY k.conrelid, k.conname";

/// A table on the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub oid: u32,
    pub columns: Vec<Column>,
    /// It has more unique indexes than that of the key.
    pub has_more_unique: bool,
    /// A constraint of it can be checked late.
    pub is_checked_late: bool,
    /// Those that fire.
    pub triggers: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Column {
    pub name: String,
    /// Its type, as SQL writes it; of a domain the base type.
    pub kind: String,
    pub not_null: bool,
    /// It has a default, an identity or an expression of its own.
    pub has_default: bool,
    pub is_identity: bool,
    /// UPDATE may not give it a value.
    pub is_always: bool,
    pub is_generated: bool,
    /// Two values are compared by `=`; else as text.
    pub has_equality: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ForeignKey {
    pub name: String,
    pub child: u32,
    pub parent: u32,
    /// The table that refers, and the one that it refers to: schema and name.
    pub child_name: (String, String),
    pub parent_name: (String, String),
    /// A changed key of the parent changes the child too.
    pub cascades: bool,
    pub is_deferrable: bool,
    pub child_columns: Vec<String>,
    pub parent_columns: Vec<String>,
}

impl ForeignKey {
    pub(super) fn child_table(&self) -> TableName {
        TableName::new(self.child_name.0.clone(), self.child_name.1.clone())
    }

    pub(super) fn parent_table(&self) -> TableName {
        TableName::new(self.parent_name.0.clone(), self.parent_name.1.clone())
    }
}

/// Tables, in the order of their OIDs, and the foreign keys between them and with others.
pub(super) async fn read(
    source: &Client,
    oids: &[u32],
) -> Result<(Vec<Table>, Vec<ForeignKey>), Error> {
    let mut columns: HashMap<u32, Vec<Column>> = HashMap::new();
    for row in source.query(COLUMNS, &[&oids]).await? {
        columns.entry(row.get(0)).or_default().push(Column {
            name: row.get(1),
            kind: row.get(2),
            not_null: row.get(3),
            has_default: row.get(4),
            is_always: row.get(5),
            is_generated: row.get(6),
            has_equality: row.get(7),
            is_identity: row.get(8),
        });
    }
    let mut tables: HashMap<u32, Table> = HashMap::new();
    for row in source.query(INDEXES, &[&oids]).await? {
        let oid = row.get(0);
        let table = Table {
            oid,
            columns: columns.remove(&oid).unwrap_or_default(),
            has_more_unique: row.get(1),
            is_checked_late: row.get(2),
            triggers: row.get(3),
        };
        tables.insert(oid, table);
    }
    let keys = source.query(FOREIGN_KEYS, &[&oids]).await?;
    let keys = keys.iter().map(|row| ForeignKey {
        name: row.get(0),
        child: row.get(1),
        parent: row.get(2),
        child_name: (row.get(3), row.get(4)),
        cascades: row.get(5),
        is_deferrable: row.get(6),
        child_columns: row.get(7),
        parent_columns: row.get(8),
        parent_name: (row.get(9), row.get(10)),
    });
    let tables = oids
        .iter()
        .map(|oid| tables.remove(oid).unwrap_or_default());
    Ok((tables.collect(), keys.collect()))
}
