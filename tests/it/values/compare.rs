//! The samples and the history, value by value: the text of each and, where both types have one binary form, the bytes.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::{Column, Ends, WAYS};
use crate::support::texts;

/// A column's type below all domains, and its send function.
#[derive(PartialEq, Eq)]
struct Sent {
    name: String,
    oid: u32,
    function: Option<String>,
}

async fn sent(client: &Client, table: &str) -> BTreeMap<String, Sent> {
    let query = format!(
        "WITH RECURSIVE base AS (
             SELECT attname, atttypid AS oid FROM pg_attribute
              WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped
             UNION ALL
             SELECT attname, typbasetype FROM base JOIN pg_type USING (oid) WHERE typtype = 'd')
         SELECT b.attname::text, t.typnamespace::regnamespace || '.' || t.typname, t.oid,
                CASE WHEN t.typsend <> 0 AND coalesce(e.typsend, 1) <> 0 THEN t.typsend::regproc::text END
           FROM base b JOIN pg_type t USING (oid) LEFT JOIN pg_type e ON e.oid = t.typelem AND e.typarray = t.oid
          WHERE t.typtype <> 'd'"
    );
    let rows = client.query(&query, &[]).await.unwrap();
    let entry = |row: &tokio_postgres::Row| {
        let sent = Sent {
            name: row.get(1),
            oid: row.get(2),
            function: row.get(3),
        };
        (row.get(0), sent)
    };
    rows.iter().map(entry).collect()
}

/// What both ends hold of a column, as this expression has it: the samples, and the history's rows way by way.
async fn both(ends: &Ends, expression: &str) -> (Vec<Option<String>>, Vec<Option<String>>) {
    let wanted = format!("SELECT {expression} FROM public.samples ORDER BY id");
    let found =
        format!("SELECT {expression} FROM public.v_cdc ORDER BY change_type = 'DELETE', id");
    tokio::join!(texts(&ends.source, &wanted), texts(&ends.target, &found))
}

pub async fn compare(ends: &Ends, columns: &[Column], rows: usize) {
    let from = sent(&ends.source, "public.v").await;
    let to = sent(&ends.target, "public.v_cdc").await;
    let encoding = match ends.encoding {
        "SQL_ASCII" => "SQL_ASCII",
        _ => "UTF8",
    };
    let (mut differences, mut by_bytes) = (Vec::new(), 0);
    for column in columns {
        let name = &column.name;
        // The output function, as in COPY: a cast to text makes other text of a boolean, and trims.
        let text = format!(
            "CASE WHEN {name} IS DISTINCT FROM NULL THEN encode(convert_to(format('%s', {name}), '{encoding}'), 'hex') END"
        );
        let mut expressions = vec![text];
        let is_same = from[name] == to[name] && (from[name].oid < 10000 || ends.other.is_none());
        if let (true, Some(function)) = (is_same, &from[name].function) {
            let name = match function.as_str() {
                // For several types, each of which is one with text.
                "textsend" => format!("{name}::text"),
                _ => name.clone(),
            };
            expressions.push(format!("encode({function}({name}), 'hex')"));
            by_bytes += 1;
        }
        for expression in expressions {
            let (wanted, found) = both(ends, &expression).await;
            assert_eq!((wanted.len(), found.len()), (rows, rows * WAYS.len()));
            for (way, found) in WAYS.iter().zip(found.chunks(rows)) {
                for (wanted, found) in wanted
                    .iter()
                    .zip(found)
                    .filter(|(wanted, found)| wanted != found)
                {
                    differences.push(format!(
                        "{} by {way}: {} became {}",
                        column.kind,
                        shown(wanted.as_deref()),
                        shown(found.as_deref())
                    ));
                }
            }
        }
    }
    println!(
        "{} columns of {rows} rows, {by_bytes} compared by their bytes as well",
        columns.len()
    );
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(!ends.alike || by_bytes > 100, "{by_bytes}");
}

/// The beginning of a value whose bytes are given in hexadecimal.
fn shown(hex: Option<&str>) -> String {
    let Some(hex) = hex else {
        return "NULL".to_owned();
    };
    let bytes = hex.as_bytes().chunks(2).take(120);
    let bytes =
        bytes.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap());
    format!("{:?}", String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()))
}
