//! The attributes of each followed table, as the catalogs have them: kept in the target beside what its rows have
//! (migration V9, `schema/layout.rs`).

use std::collections::HashMap;

use tokio_postgres::{Client, Row};

use crate::fault::{Fault, Result};
use crate::pipeline::Captured;
use crate::schema::layout::{self, Attribute, Column, Described, Dropped, Layout};
use crate::schema::plan::{Plan, Shape, literal};
use crate::schema::{HistoryTable, Rules, SourceTable, TableName};
use crate::server::Side;
use crate::source::commits::{self, End};

/// The attributes of the tables `$1`, in order; whether rows that were there when one was added can have a value that the
/// catalogs do not name; the files of the rows; and all attributes in short.
const ATTRIBUTES: &str = "
    WITH RECURSIVE tree AS (
        SELECT r.oid AS root, r.oid FROM unnest($1::oid[]) AS r (oid)
        UNION ALL SELECT t.root, i.inhrelid FROM tree t
          JOIN pg_catalog.pg_class p ON p.oid = t.oid AND p.relkind = 'p'
          JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
    ), files AS (
        SELECT t.root, md5(string_agg(c.oid || ' ' || c.relfilenode, ',' ORDER BY c.oid)) AS files
          FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid GROUP BY t.root
    )
    SELECT a.attrelid, a.attnum, CASE WHEN NOT a.attisdropped THEN a.attname::text END, f.files,
           a.atthasdef OR a.attidentity <> '' OR a.attnotnull OR coalesce(t.typtype = 'd', false) OR t.typdefault IS NOT NULL,
           a.atttypid, a.atttypmod,
           md5(string_agg(a.attnum || ' ' || a.attname, ',') FILTER (WHERE NOT a.attisdropped) OVER (PARTITION BY a.attrelid
               ORDER BY a.attnum ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)),
           a.xmin::text::bigint
      FROM pg_catalog.pg_attribute a JOIN files f ON f.root = a.attrelid
      LEFT JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
     WHERE a.attnum > 0 ORDER BY a.attrelid, a.attnum";

/// What rows have that were there when these attributes were added, as far as they have not been rewritten since. A partitioned
/// table has no rows of its own.
const VALUES: &str = "
    WITH RECURSIVE tree AS (
        SELECT DISTINCT r.oid AS root, r.oid FROM unnest($1::oid[]) AS r (oid)
        UNION ALL SELECT t.root, i.inhrelid FROM tree t
          JOIN pg_catalog.pg_class p ON p.oid = t.oid AND p.relkind = 'p'
          JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
    )
    SELECT DISTINCT ON (w.root, w.attnum) w.root, w.attnum, (a.attmissingval::text::text[])[1]
      FROM unnest($1::oid[], $2::int2[]) AS w (root, attnum)
      JOIN pg_catalog.pg_attribute o ON o.attrelid = w.root AND o.attnum = w.attnum
      JOIN tree t ON t.root = w.root
      JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attname = o.attname AND a.atthasmissing
     ORDER BY w.root, w.attnum, a.attrelid";

/// Tables in one transaction.
const AT_ONCE: usize = 500;

/// A table, its history, and the rules of both.
pub(crate) type Table<'a> = (&'a SourceTable, &'a HistoryTable, &'a Rules);

/// What is known of a table's attributes from the last time.
struct Former {
    oid: u32,
    files: String,
    columns: Vec<Column>,
}

/// A table's attributes now.
#[derive(Default)]
struct Present {
    files: String,
    columns: Vec<Column>,
    /// Rows that were there when it was added can have a value that is not known.
    filled: Vec<bool>,
    gone: Vec<Dropped>,
    in_short: String,
}

fn of_source(error: tokio_postgres::Error) -> Fault {
    Side::Source.failed("could not describe the columns of its tables")(error)
}

fn of_target(error: tokio_postgres::Error) -> Fault {
    Side::Target.failed("could not keep the columns of the tables")(error)
}

/// Keeps the attributes of what is captured, and says them to it.
pub(crate) async fn keep(
    (source, slot): (&Client, &str),
    target: &Client,
    captured: &mut [Captured],
) -> Result<()> {
    let tables: Vec<Table<'_>> = captured
        .iter()
        .map(|table| (&table.source, &table.history, &table.rules))
        .collect();
    let mut layouts = layouts(source, target, &tables).await?;
    place(source, slot, &tables, &mut layouts).await;
    take_marks(target, &tables, &mut layouts).await?;
    for (table, layout) in std::iter::zip(captured, layouts) {
        table.layout = layout;
    }
    Ok(())
}

/// The attributes of these tables, which are kept in the target.
pub(crate) async fn layouts(
    source: &Client,
    target: &Client,
    tables: &[Table<'_>],
) -> Result<Vec<Layout>> {
    let names: Vec<String> = tables
        .iter()
        .map(|(_, history, _)| history.name.to_string())
        .collect();
    let former = former(target, &names).await?;
    let mut present = present(source, tables).await?;
    take_values(source, (tables, &names), &former, &mut present).await?;
    write(target, (tables, &names), &former, &present).await?;
    let mut open = open(target, &names).await?;
    let layout = |(name, now): (&String, Present)| Layout {
        before: open.remove(name).unwrap_or_default(),
        now: now.columns,
        gone: now.gone,
        in_short: now.in_short,
    };
    let mut layouts: Vec<Layout> = std::iter::zip(&names, present).map(layout).collect();
    // Without a range, all rows of the history are taken to have these columns.
    let mut anew = Vec::new();
    for ((_, history, _), layout) in std::iter::zip(tables, &mut layouts) {
        if layout.before.is_empty() {
            layout.before = layout.now.iter().map(Column::attribute).collect();
            anew.push((&history.name, layout.clone()));
        }
    }
    arrive(target, &anew).await.map_err(of_target)?;
    Ok(layouts)
}

/// Finds where columns were dropped that can have been made again with the same name and type: the WAL says it, while the slot
/// keeps it.
async fn place(source: &Client, slot: &str, tables: &[Table<'_>], layouts: &mut [Layout]) {
    let wanted = layouts.iter().flat_map(Layout::to_be_told_apart);
    let mut xids: Vec<u32> = wanted.map(|gone| gone.by).collect();
    xids.sort_unstable();
    xids.dedup();
    if xids.is_empty() {
        return;
    }
    let ends = match commits::ends(source, slot, &xids).await {
        Ok(ends) => ends,
        Err(error) => {
            let reason = Side::Source.failed("could not say where transactions ended")(error);
            tracing::debug!(%reason, "the ids of transactions say which came first");
            Vec::new()
        }
    };
    let ends: HashMap<u32, End> = std::iter::zip(xids, ends).collect();
    for ((table, history, _), layout) in std::iter::zip(tables, layouts) {
        let attnums: Vec<i16> = layout.to_be_told_apart().map(|gone| gone.attnum).collect();
        let mut is_sure = true;
        for gone in &mut layout.gone {
            if !attnums.contains(&gone.attnum) {
                continue;
            }
            let end = ends.get(&gone.by);
            is_sure &= end.is_some_and(|end| end.is_sure);
            if let Some(end) = end {
                (gone.by, gone.end) = (end.xid, Some(end.lsn));
            }
        }
        if !is_sure {
            tracing::warn!(
                table = %table.name, history = %history.name, remedy = "waltrail verify --repair",
                "a column was dropped and made again: which changes of that moment belong to it is not certain"
            );
        }
    }
}

/// Where the stream described these tables since the source was last looked at: from there on, rows may have a column that was
/// made again under the name of one before. Whether they have, the catalogs say.
const MARKS: &str = "
    SELECT history, xid, lsn, number FROM waltrail.described WHERE history = ANY ($1) ORDER BY history, lsn";

async fn take_marks(target: &Client, tables: &[Table<'_>], layouts: &mut [Layout]) -> Result<()> {
    let names = tables
        .iter()
        .map(|(_, history, _)| history.name.to_string());
    let names: Vec<String> = names.collect();
    let marks = target.query(MARKS, &[&names]).await.map_err(of_target)?;
    for ((_, history, _), (name, layout)) in std::iter::zip(tables, std::iter::zip(&names, layouts))
    {
        for mark in marks.iter().filter(|mark| mark.get::<_, &str>(0) == name) {
            let tx = Described {
                commit_lsn: mark.get(2),
                xid: mark.get::<_, i64>(1) as u32,
                is_news: false,
            };
            let homes = open_columns(target, name).await?;
            let is_gone = |attnum| {
                // Of one that is not recorded, the stream may have sent nothing.
                homes.get(&attnum).is_none_or(Option::is_some) && layout.was_dropped_by(attnum, tx)
            };
            let Some(before) = layout.made_again(is_gone) else {
                continue;
            };
            let columns = layout.recorded_as(&before, &homes);
            let arrived = layout::statement_after(&history.name, &columns, mark.get(3));
            target.batch_execute(&arrived).await.map_err(of_target)?;
            layout.before = before;
        }
    }
    let forget = "DELETE FROM waltrail.described WHERE history = ANY ($1)";
    let forgotten = target.execute(forget, &[&names]).await;
    forgotten.map(|_| ()).map_err(of_target)
}

/// The history column of each attribute of the last rows.
async fn open_columns(target: &Client, name: &str) -> Result<HashMap<i16, Option<String>>> {
    let statement = "SELECT attnum, history_column FROM waltrail.column_range \
        WHERE history = $1 AND until_number IS NULL";
    let rows = target.query(statement, &[&name]).await.map_err(of_target)?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

async fn former(target: &Client, names: &[String]) -> Result<HashMap<String, Former>> {
    let statement = "SELECT history, source_oid, files, columns::text FROM waltrail.layout WHERE history = ANY ($1)";
    let rows = target.query(statement, &[&names]).await;
    let former = |row: &Row| {
        let columns = serde_json::from_str(row.get(3));
        let columns = columns.map_err(|_| Fault::bug("waltrail.layout has columns of no form"))?;
        let former = Former {
            oid: row.get(1),
            files: row.get(2),
            columns,
        };
        Ok((row.get(0), former))
    };
    rows.map_err(of_target)?.iter().map(former).collect()
}

/// The open ranges of each history, in the order of the attributes.
async fn open(target: &Client, names: &[String]) -> Result<HashMap<String, Vec<Attribute>>> {
    let statement = "SELECT history, attnum, source_column, source_type, source_modifier FROM waltrail.column_range \
        WHERE history = ANY ($1) AND until_number IS NULL ORDER BY history, attnum";
    let mut open: HashMap<String, Vec<Attribute>> = HashMap::new();
    for row in target
        .query(statement, &[&names])
        .await
        .map_err(of_target)?
    {
        open.entry(row.get(0)).or_default().push(Attribute {
            attnum: row.get(1),
            name: row.get(2),
            type_oid: row.get(3),
            modifier: row.get(4),
        });
    }
    Ok(open)
}

/// The attributes that are sent, with the history columns of the present shape.
async fn present(source: &Client, tables: &[Table<'_>]) -> Result<Vec<Present>> {
    let oids: Vec<u32> = tables.iter().map(|(source, ..)| source.oid).collect();
    let rows = source
        .query(ATTRIBUTES, &[&oids])
        .await
        .map_err(of_source)?;
    let mut of_table: HashMap<u32, Vec<&Row>> = HashMap::new();
    for row in &rows {
        of_table.entry(row.get(0)).or_default().push(row);
    }
    let present = |&(source, history, rules): &Table<'_>| {
        let shape = Shape::of_table(source);
        let plan = Plan::new(&shape, source, history, rules, false);
        let homes = plan.map(|plan| plan.homes).unwrap_or_default();
        let home = |name: &str| {
            let at = source.columns.iter().position(|known| known.name == name);
            let home = homes.get(at?).map(|[home, _]| home.clone());
            home.filter(|home| !home.is_empty())
        };
        let mut present = Present::default();
        for row in of_table.get(&source.oid).into_iter().flatten() {
            let Some(name) = row.get::<_, Option<String>>(2) else {
                let dropped_by: i64 = row.get(8);
                present.gone.push(Dropped {
                    attnum: row.get(1),
                    by: dropped_by as u32,
                    end: None,
                });
                continue;
            };
            if !source.has(&name) {
                continue;
            }
            present.files = row.get(3);
            present.in_short = row.get(7);
            present.filled.push(row.get(4));
            present.columns.push(Column {
                attnum: row.get(1),
                column: home(&name),
                name,
                type_oid: row.get(5),
                modifier: row.get(6),
                value: None,
                known: true,
            });
        }
        present
    };
    Ok(tables.iter().map(present).collect())
}

/// Adds what rows have that were there before an attribute: found when it is first seen, and kept.
async fn take_values(
    source: &Client,
    (tables, names): (&[Table<'_>], &[String]),
    former: &HashMap<String, Former>,
    present: &mut [Present],
) -> Result<()> {
    let (mut oids, mut attnums) = (Vec::new(), Vec::new());
    for ((name, (source, ..)), now) in std::iter::zip(names, tables).zip(&mut *present) {
        let Some(former) = former.get(name).filter(|former| former.oid == source.oid) else {
            continue;
        };
        let is_rewritten = former.files != now.files;
        for (column, &filled) in std::iter::zip(&mut now.columns, &now.filled) {
            let mut known = former.columns.iter();
            if let Some(known) = known.find(|known| known.attnum == column.attnum) {
                column.value.clone_from(&known.value);
                column.known = known.known;
                continue;
            }
            column.known = !(filled && is_rewritten);
            oids.push(source.oid);
            attnums.push(column.attnum);
        }
    }
    if oids.is_empty() {
        return Ok(());
    }
    let rows = source.query(VALUES, &[&oids, &attnums]).await;
    let rows = rows.map_err(of_source)?;
    let mut values: HashMap<(u32, i16), String> = rows
        .iter()
        .map(|row| ((row.get(0), row.get(1)), row.get(2)))
        .collect();
    for ((source, history, _), now) in std::iter::zip(tables, present) {
        for column in &mut now.columns {
            if let Some(value) = values.remove(&(source.oid, column.attnum)) {
                (column.value, column.known) = (Some(value), true);
            } else if !column.known && attnums.contains(&column.attnum) && column.column.is_some() {
                tracing::warn!(
                    table = %source.name, history = %history.name, column = column.name,
                    remedy = "waltrail verify --repair",
                    "the table was rewritten for a new column: what its rows have in it is not in the history"
                );
            }
        }
    }
    Ok(())
}

/// Writes what is other than before.
async fn write(
    target: &Client,
    (tables, names): (&[Table<'_>], &[String]),
    former: &HashMap<String, Former>,
    present: &[Present],
) -> Result<()> {
    let (mut histories, mut oids, mut files, mut columns) = (vec![], vec![], vec![], vec![]);
    let mut statements = Vec::new();
    for ((name, (source, ..)), now) in std::iter::zip(names, tables).zip(present) {
        let former = former.get(name);
        let is_same = |former: &Former| {
            (former.oid, &former.files, &former.columns) == (source.oid, &now.files, &now.columns)
        };
        // A table that was dropped is as it was.
        if now.columns.is_empty() || former.is_some_and(is_same) {
            continue;
        }
        // Names, numbers and text: nothing that JSON cannot hold.
        let json = serde_json::to_string(&now.columns).unwrap_or_default();
        if former.is_some_and(|former| former.oid != source.oid) {
            let (name, json) = (literal(name), literal(&json));
            statements.push(format!("SELECT waltrail.renumbered({name}, {json})"));
        }
        histories.push(name);
        oids.push(source.oid);
        files.push(&now.files);
        columns.push(json);
    }
    if histories.is_empty() {
        return Ok(());
    }
    if !statements.is_empty() {
        let all = statements.join("; ");
        target.batch_execute(&all).await.map_err(of_target)?;
    }
    target
        .execute(
            "INSERT INTO waltrail.layout (history, source_oid, files, columns) \
             SELECT t.history, t.oid, t.files, t.columns::jsonb \
               FROM unnest($1::text[], $2::oid[], $3::text[], $4::text[]) AS t (history, oid, files, columns) \
             ON CONFLICT (history) DO UPDATE \
                SET source_oid = excluded.source_oid, files = excluded.files, columns = excluded.columns",
            &[&histories, &oids, &files, &columns],
        )
        .await
        .map(|_| ())
        .map_err(of_target)
}

/// Says of the rows that follow that they have the columns of the catalogs: existing rows do.
pub(crate) async fn arrive(
    target: &Client,
    tables: &[(&TableName, Layout)],
) -> std::result::Result<(), tokio_postgres::Error> {
    let known = tables.iter().filter(|(_, layout)| !layout.now.is_empty());
    let statements: Vec<String> = known
        .map(|(history, layout)| layout::statement(history, &layout.now))
        .collect();
    for some in statements.chunks(AT_ONCE) {
        target.batch_execute(&some.join("; ")).await?;
    }
    Ok(())
}
