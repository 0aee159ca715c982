//! Tables to be followed: keys, identities, partitions, histories.

use fastrand::Rng;
use tokio_postgres::Client;

use super::kinds;

/// A table that is followed.
pub struct Table {
    /// As the truth calls it, whatever it is renamed to.
    pub name: String,
    pub oid: u32,
    pub history: String,
    /// waltrail makes the history.
    pub made: bool,
    pub partitioned: bool,
    /// Its identity may change to FULL and back.
    pub has_primary_key: bool,
}

/// A column as the catalog has it now.
pub struct Column {
    pub name: String,
    pub kind: String,
    pub key: bool,
    pub generated: bool,
}

/// What a table is made from.
pub struct Design {
    pub ddl: String,
    /// None: waltrail makes it.
    pub history: Option<String>,
    pub partitioned: bool,
    pub has_primary_key: bool,
}

pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

const NAMES: [&str; 6] = ["name", "Salary €", "order", "x", "user", "a_\"quoted\"_one"];

/// A table of this name with random columns.
pub fn design(rng: &mut Rng, table: &str) -> Design {
    let partitioned = rng.u8(..4) == 0;
    let (mut columns, key): (Vec<(String, String)>, &str) = match rng.u8(..6) {
        0 => (
            vec![
                ("id".into(), "bigint".into()),
                ("part".into(), "text".into()),
            ],
            "id, part",
        ),
        1 => (
            vec![
                ("part".into(), "uuid".into()),
                ("id".into(), "integer".into()),
            ],
            "id",
        ),
        2 => (vec![("id".into(), "numeric".into())], "id"),
        _ => (vec![("id".into(), "integer".into())], "id"),
    };
    for number in 0..rng.usize(1..8) {
        let odd = NAMES.get(number).filter(|_| rng.u8(..3) == 0);
        let name = odd.map_or_else(|| format!("c{number}"), |name| (*name).to_owned());
        columns.push((name, kinds::any(rng).to_owned()));
    }
    let keyed: Vec<&str> = key.split(", ").collect();
    let mut lines: Vec<String> = columns
        .iter()
        .map(|(name, kind)| {
            let nullable = if keyed.contains(&name.as_str()) {
                " NOT NULL"
            } else {
                ""
            };
            format!("{} {kind}{nullable}", quote(name))
        })
        .collect();
    let generated = rng.u8(..5) == 0;
    if generated {
        lines.push("g text GENERATED ALWAYS AS (id::text || '!') STORED".to_owned());
    }
    let mut has_primary_key = true;
    let mut after = String::new();
    match rng.u8(..8) {
        0 | 1 if !generated => {
            lines.push(format!("PRIMARY KEY ({key})"));
            after = format!("ALTER TABLE {table} REPLICA IDENTITY FULL;");
        }
        2 if !partitioned => {
            has_primary_key = false;
            after = format!(
                "CREATE UNIQUE INDEX {table}_i ON {table} ({key}); ALTER TABLE {table} REPLICA IDENTITY USING INDEX {table}_i;"
            );
        }
        3 if !partitioned && !generated => {
            has_primary_key = false;
            after = format!("ALTER TABLE {table} REPLICA IDENTITY FULL;");
        }
        _ => lines.push(format!("PRIMARY KEY ({key})")),
    }
    let by = if partitioned {
        " PARTITION BY RANGE (id)"
    } else {
        ""
    };
    let mut ddl = format!("CREATE TABLE {table} ({}){by}; {after}", lines.join(", "));
    if partitioned {
        ddl.push_str(&leaves(rng, table, after.contains("FULL")));
    }
    let history = (rng.u8(..3) == 0).then(|| history(rng, table, &columns, &keyed));
    Design {
        ddl,
        history,
        partitioned,
        has_primary_key,
    }
}

fn leaves(rng: &mut Rng, table: &str, full: bool) -> String {
    let bounds: &[&str] = match rng.bool() {
        true => &["MINVALUE", "25", "500"],
        false => &["MINVALUE", "15", "40", "500"],
    };
    let mut ddl = String::new();
    for (number, pair) in bounds.windows(2).enumerate() {
        ddl.push_str(&format!(
            "CREATE TABLE {table}_p{number} PARTITION OF {table} FOR VALUES FROM ({}) TO ({});",
            pair[0], pair[1]
        ));
        let own = match (full, rng.u8(..8)) {
            (true, 1..) | (false, 0) => "FULL",
            _ => "DEFAULT",
        };
        ddl.push_str(&format!(
            "ALTER TABLE {table}_p{number} REPLICA IDENTITY {own};"
        ));
    }
    ddl
}

/// A history made by hand, in no order that waltrail would choose.
fn history(rng: &mut Rng, table: &str, columns: &[(String, String)], key: &[&str]) -> String {
    let mut lines = vec![
        "change_timestamp timestamptz".to_owned(),
        "change_type varchar(10)".to_owned(),
    ];
    let old = rng.u8(..3);
    for (name, kind) in columns {
        let kind = kinds::base(kind);
        lines.push(format!("{} {kind}", quote(name)));
        if old == 0 || old == 1 && key.contains(&name.as_str()) {
            lines.push(format!("{} {kind}", quote(&format!("old_{name}"))));
        }
    }
    rng.shuffle(&mut lines);
    for own in [
        "commit_lsn pg_lsn",
        "tx_seq bigint",
        "xid bigint",
        "changed_columns text[]",
    ] {
        if rng.bool() {
            lines.push(own.to_owned());
        }
    }
    if rng.u8(..4) > 0 {
        lines.push("unavailable_columns text[]".to_owned());
    }
    format!(
        "CREATE TABLE {table}_cdc (cdc_id bigserial PRIMARY KEY, {})",
        lines.join(", ")
    )
}

/// The name that a table has now, and its columns.
pub async fn describe(
    client: &Client,
    oid: u32,
) -> Result<(String, Vec<Column>), tokio_postgres::Error> {
    let rows = client
        .query(
            "SELECT $1::oid::regclass::text, a.attname::text, format_type(a.atttypid, a.atttypmod),
                 EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND a.attnum = ANY (i.indkey)),
                 a.attgenerated <> ''
             FROM pg_attribute a WHERE attrelid = $1::oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            &[&oid],
        )
        .await?;
    let name = rows.first().map_or(String::new(), |row| row.get(0));
    let columns = rows.iter().map(|row| Column {
        name: row.get(1),
        kind: row.get(2),
        key: row.get::<_, bool>(3) || row.get::<_, &str>(1) == "id",
        generated: row.get(4),
    });
    Ok((name, columns.collect()))
}
