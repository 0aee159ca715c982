//! Types as a server's catalogs have them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::exact::Type;

/// A type and its modifier, as a column or a Relation message names them.
pub type TypeKey = (u32, i32);

/// The types of a server, by what names them there; None for one that was looked for and is gone.
pub type Types = Arc<BTreeMap<TypeKey, Option<Type>>>;

/// Names a type's binary form, so that equal names on two servers mean equal bytes; NULL for types whose
/// values are sent as text. Built-in types have the same OID everywhere. `text` and `varchar` have one
/// form; an enum travels as its label. Domains travel as their base type. The `interval` of 17 and later has 'infinity',
/// which before is some other value. Left out: types without a send function (and arrays of such), `reg*` types (their OIDs
/// mean something else on another server), `tsquery`, `int2vector` and `oidvector` (an empty one is sent, but not
/// received), extension types, composites, and arrays and ranges of anything that is not built in, whose values hold
/// OIDs.
const WIRE_TYPE: &str = "
    CASE WHEN b.oid IN (25, 1043) OR b.typtype = 'e' THEN 'text'
         WHEN b.oid = 1042 THEN 'bpchar'
         WHEN b.oid < 10000 AND b.typsend <> 0 AND b.typtype IN ('b', 'r', 'm') AND b.typname NOT LIKE 'reg%'
              AND b.oid NOT IN (3615, 3645, 22, 30, 1006, 1013)
              AND (e.oid IS NULL OR (e.oid < 10000 AND e.typsend <> 0 AND e.typname NOT LIKE 'reg%'))
         THEN b.oid::text || CASE WHEN b.oid IN (1186, 1187)
              AND pg_catalog.current_setting('server_version_num')::int4 >= 170000 THEN ' with infinity' ELSE '' END
    END";

/// Whether a type is an enum or a composite, or made of one.
const ALTERABLE: &str = "
    WITH RECURSIVE parts (oid) AS (
        SELECT l.oid
        UNION SELECT part FROM parts JOIN pg_catalog.pg_type t USING (oid)
          LEFT JOIN pg_catalog.pg_range r ON t.oid IN (r.rngtypid, r.rngmultitypid)
          CROSS JOIN LATERAL unnest(ARRAY[t.typbasetype, t.typelem, r.rngsubtype]) AS of (part) WHERE part <> 0
    )
    SELECT pg_catalog.bool_or(t.typtype IN ('e', 'c')) FROM parts JOIN pg_catalog.pg_type t USING (oid)";

/// Each type is followed through domains to its base type (`b`), and through arrays to the base type of the elements
/// (`l`). A domain's modifier counts where what is built on it has none. Arrays of domains over arrays have no base type of
/// their own: they are written as text. A type of an extension is the same type in every schema.
const TYPES: &str = "
    WITH RECURSIVE chain AS (
        SELECT w.n, w.oid, w.modifier, 0 AS arrays FROM unnest($1::oid[], $2::int4[]) WITH ORDINALITY w (oid, modifier, n)
        UNION ALL
        SELECT c.n, CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.typelem END,
               CASE WHEN t.typtype = 'd' AND c.modifier < 0 THEN t.typtypmod ELSE c.modifier END,
               c.arrays + (t.typtype <> 'd')::int
          FROM chain c JOIN pg_catalog.pg_type t ON t.oid = c.oid
          LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND e.typarray = t.oid
         WHERE t.typtype = 'd' OR e.oid IS NOT NULL
    )
    SELECT c.n - 1,
           CASE WHEN c.arrays > 1 THEN 'array of ' ELSE '' END || CASE WHEN x.oid IS NULL
                THEN m.nspname || '.' || l.typname
                ELSE 'extension ' || x.extname || '.' || l.typname END,
           c.modifier, c.arrays > 0,
           CASE c.arrays WHEN 0 THEN pg_catalog.format_type(l.oid, c.modifier)
                         WHEN 1 THEN pg_catalog.format_type(l.typarray, c.modifier)
                         ELSE 'text' END,
           ({WIRE_TYPE}),
           ({ALTERABLE})
      FROM chain c
      JOIN pg_catalog.pg_type l ON l.oid = c.oid AND l.typtype <> 'd'
      JOIN pg_catalog.pg_namespace m ON m.oid = l.typnamespace
      LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_type'::regclass AND d.objid = l.oid
       AND d.deptype = 'e' AND d.refclassid = 'pg_catalog.pg_extension'::regclass
      LEFT JOIN pg_catalog.pg_extension x ON x.oid = d.refobjid
      JOIN chain f ON f.n = c.n AND f.arrays = 0
      JOIN pg_catalog.pg_type b ON b.oid = f.oid AND b.typtype <> 'd'
      JOIN pg_catalog.pg_namespace n ON n.oid = b.typnamespace
      LEFT JOIN pg_catalog.pg_type e ON e.oid = b.typelem AND b.typcategory = 'A'
     WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_type a WHERE a.typarray = l.oid AND a.oid = l.typelem)";

/// Describes types, in one query.
pub async fn types(
    client: &Client,
    keys: impl IntoIterator<Item = TypeKey>,
) -> Result<Types, Error> {
    let mut types: BTreeMap<TypeKey, Option<Type>> =
        keys.into_iter().map(|key| (key, None)).collect();
    if types.is_empty() {
        return Ok(Types::default());
    }
    let keys: Vec<TypeKey> = types.keys().copied().collect();
    let (oids, modifiers): (Vec<u32>, Vec<i32>) = keys.iter().copied().unzip();
    let sql = TYPES
        .replace("{WIRE_TYPE}", WIRE_TYPE)
        .replace("{ALTERABLE}", ALTERABLE);
    for row in client.query(&sql, &[&oids, &modifiers]).await? {
        let at: i64 = row.get(0);
        let Some(key) = usize::try_from(at).ok().and_then(|at| keys.get(at)) else {
            continue;
        };
        let described = Type {
            name: row.get(1),
            modifier: row.get(2),
            array: row.get(3),
            sql: row.get(4),
            wire: row.get(5),
            alterable: row.get(6),
        };
        types.insert(*key, Some(described));
    }
    Ok(Types::new(types))
}

/// Those of these types, as SQL writes them, that a server does not have.
pub async fn unknown(client: &Client, names: &[String]) -> Result<Vec<String>, Error> {
    let missing =
        "SELECT name FROM unnest($1::text[]) name WHERE pg_catalog.to_regtype(name) IS NULL";
    let is_modifier = |error: &Error| error.code() == Some(&SqlState::INVALID_PARAMETER_VALUE);
    match client.query(missing, &[&names]).await {
        Ok(rows) => return Ok(rows.iter().map(|row| row.get(0)).collect()),
        // Some type is known and its modifier is not: numeric(3,-2) before 15.
        Err(error) if is_modifier(&error) => {}
        Err(error) => return Err(error),
    }
    let mut unknown = Vec::new();
    for name in names {
        match client.query(missing, &[&std::slice::from_ref(name)]).await {
            Ok(rows) => unknown.extend(rows.iter().map(|row| row.get::<_, String>(0))),
            Err(error) if is_modifier(&error) => unknown.push(name.clone()),
            Err(error) => return Err(error),
        }
    }
    Ok(unknown)
}
