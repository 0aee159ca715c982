//! What there is to copy: the tables as they stand in the snapshot, locked, and cut into parts.
//!
//! A lock in ACCESS SHARE mode lets everybody read and write; what it keeps out for the time of the copy is what a
//! snapshot does not see through: TRUNCATE and statements that rewrite or drop a table. They can have come between the
//! snapshot and the lock. Then the file that the snapshot's catalog names is not the table's any more, and the whole
//! begins again with a new point.

use std::collections::HashMap;

use tokio_postgres::Client;

use super::baseline::{Baseline, Constants};
use super::point::{Point, lock_name};
use crate::config::{self, Config};
use crate::fault::{Exit, Fault, Result};
use crate::history::followed::{self, Record};
use crate::schema::layout::Layout;
use crate::schema::plan::OwnForm;
use crate::schema::{HistoryTable, SourceTable, TableName, catalog};
use crate::server::Side;
use crate::setup::follow::follow;
use crate::setup::{self, Mode};

/// A table with more bytes than this is copied in parts, each by one worker, and none of them has more.
const PART_MAX: u64 = 64 * 1024 * 1024;
/// Into so many parts it is cut, within limits: the workers end together, as far as one part lets them, and a table of
/// terabytes is still a list of thousands.
const PARTS: u64 = 64;
const PART_MIN: u64 = 4 * 1024 * 1024;

pub(crate) struct Work {
    /// Its name in the source, for messages.
    pub source: TableName,
    pub history: TableName,
    /// The source table as LOCK TABLE wants it.
    pub lock: String,
    pub copy_in: String,
    /// The statement that fails when the history was altered meanwhile.
    pub guard: String,
    /// COPY statements of the source, which together give all rows, each once.
    pub parts: Vec<String>,
    /// Rows and bytes that are expected.
    pub estimates: (i64, i64),
    /// The attributes of its rows.
    pub layout: Layout,
    /// The target lets rows of a part be removed again, so that parts may be committed one by one.
    pub removable: bool,
}

/// A relation that holds rows: the table itself, or one of its partitions.
struct Leaf {
    name: String,
    heap: bool,
    readable: bool,
    rows: i64,
    bytes: i64,
}

fn failed(error: tokio_postgres::Error) -> Fault {
    let fault = Side::Source.failed("could not describe the tables to be copied")(error);
    // The tables were there when the stream began: they change, and the next look is at others.
    match fault.disposition() {
        crate::fault::Disposition::Halt(Exit::Config) => {
            Fault::retry("the tables to be copied have just been changed").caused_by(fault)
        }
        _ => fault,
    }
}

/// Locks the tables and says how they are copied.
///
/// # Errors
/// Exit 77 naming every table that may not be read, 78 for one that is no longer there.
pub(crate) async fn plan(
    config: &Config,
    point: &Point,
    target: &Client,
    tables: &[&config::Table],
) -> Result<Vec<Work>> {
    let holder = &point.holder.client;
    let sources = sources(config, holder, target, tables).await?;
    may_read(holder, &sources).await?;
    lock(holder, &sources).await?;
    let mut leaves = leaves(holder, &sources).await?;
    let block: i32 = holder
        .query_one("SELECT current_setting('block_size')::int", &[])
        .await
        .map_err(failed)?
        .get(0);
    let names: Vec<&TableName> = tables.iter().map(|table| &table.history).collect();
    let histories = catalog::history_tables(target, &names, &[])
        .await
        .map_err(Side::Target.failed("could not describe the history tables"))?;
    let mut works = Vec::with_capacity(tables.len());
    let mut mode = Mode::of(config);
    let mut prepared = Vec::with_capacity(tables.len());
    for (table, source) in tables.iter().zip(&sources) {
        let Some((history, standing)) = histories.named(&table.history) else {
            return Err(
                Fault::retry(format!("the history table {} is gone", table.history))
                    .remedy("create it again, or start waltrail again, which does"),
            );
        };
        // The table may have got a column since the session began.
        let (pair, history) = ((*table, source), history.clone());
        let (history, _) = follow(config, target, pair, history, &[], &mut mode).await?;
        let leaves = leaves.remove(&source.oid).unwrap_or_default();
        let baseline = baseline(config, point, table, (source, &history))?;
        let work = work((source, &table.history), baseline, &leaves, block);
        works.push(Work {
            removable: standing.removable,
            ..work
        });
        prepared.push((source, history, table.rules()));
    }
    let prepared = prepared
        .iter()
        .map(|(source, history, rules)| (*source, history, rules));
    let prepared: Vec<_> = prepared.collect();
    let layouts = setup::layout::layouts(holder, target, &prepared).await?;
    for (work, layout) in std::iter::zip(&mut works, layouts) {
        work.layout = layout;
    }
    Ok(works)
}

/// The tables as the snapshot has them, by the OIDs that are followed: one may have been renamed since the session began.
pub(crate) async fn sources(
    config: &Config,
    holder: &Client,
    target: &Client,
    tables: &[&config::Table],
) -> Result<Vec<SourceTable>> {
    let record = followed::read(target, &config.source.slot).await?;
    let known = record.as_ref().map(Record::by_history).unwrap_or_default();
    let oid_of = |table: &config::Table| known.get(&table.history).map(|followed| followed.oid);
    let oids: Vec<u32> = tables.iter().filter_map(|table| oid_of(table)).collect();
    let names: Vec<&TableName> = tables.iter().map(|table| &table.source).collect();
    let found = catalog::source_tables(holder, &config.source.publication, &names, &oids);
    let found = found.await.map_err(failed)?;
    let one = |table: &&config::Table| {
        let source = match oid_of(table) {
            Some(oid) => found.with_oid(oid),
            None => found.named(&table.source),
        };
        // Whether changes can be missing is the watch's to say.
        let gone = || Fault::retry(format!("the source has no table {} any more", table.source));
        source.map(|(source, _)| source.clone()).ok_or_else(gone)
    };
    tables.iter().map(one).collect()
}

/// Names all tables that may not be read, not only the first.
pub(crate) async fn may_read(holder: &Client, sources: &[SourceTable]) -> Result<()> {
    let oids: Vec<u32> = sources.iter().map(|source| source.oid).collect();
    let rows = holder
        .query(
            "SELECT t.oid::regclass::text, coalesce(has_table_privilege(t.oid, 'SELECT'), true), \
                    current_user::text \
               FROM unnest($1::oid[]) AS t (oid) \
              WHERE coalesce(NOT has_table_privilege(t.oid, 'SELECT') OR row_security_active(t.oid), false)",
            &[&oids],
        )
        .await
        .map_err(failed)?;
    let Some(first) = rows.first() else {
        return Ok(());
    };
    let role: &str = first.get(2);
    let named = |readable: bool| -> Vec<String> {
        let rows = rows.iter().filter(|row| row.get::<_, bool>(1) == readable);
        rows.map(|row| row.get(0)).collect()
    };
    let (hidden, denied) = (named(true), named(false));
    let list = denied.join(", ");
    Err(match denied.is_empty() {
        false => Fault::halt(
            Exit::NoPermission,
            format!("the role {role} may not read {list}, whose existing rows are to be recorded"),
        )
        .remedy(format!(
            "GRANT SELECT ON {list} TO {role}; or set snapshot.mode = \"never\""
        )),
        true => Fault::halt(
            Exit::NoPermission,
            format!(
                "row security hides rows of {} from the role {role}",
                hidden.join(", ")
            ),
        )
        .remedy(format!(
            "ALTER ROLE {role} BYPASSRLS; or set snapshot.mode = \"never\""
        )),
    })
}

/// Locks every table with its partitions, and finds out whether anything happened to them since the snapshot.
pub(crate) async fn lock(holder: &Client, sources: &[SourceTable]) -> Result<()> {
    let names: Vec<String> = sources.iter().map(lock_name).collect();
    let statement = format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "));
    holder.batch_execute(&statement).await.map_err(failed)?;
    // The catalog as the snapshot sees it, and the functions, which know it as it is now. A partition is what was
    // one then: attaching and detaching take no lock that ours keeps out.
    let oids: Vec<u32> = sources.iter().map(|source| source.oid).collect();
    let changed = holder
        .query(
            "WITH RECURSIVE tree AS ( \
                 SELECT unnest($1::oid[]) AS oid \
                 UNION ALL SELECT i.inhrelid FROM tree t \
                   JOIN pg_catalog.pg_class p ON p.oid = t.oid AND p.relkind = 'p' \
                   JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid AND NOT i.inhdetachpending), \
             locked AS MATERIALIZED ( \
                 SELECT DISTINCT l.relation FROM pg_catalog.pg_locks l \
                  WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND l.mode = 'AccessShareLock' \
                    AND l.granted) \
             SELECT format('%I.%I', n.nspname, c.relname) FROM tree t \
               JOIN pg_catalog.pg_class c ON c.oid = t.oid \
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
               LEFT JOIN locked ON locked.relation = c.oid \
              WHERE pg_relation_filenode(c.oid) IS DISTINCT FROM nullif(c.relfilenode, 0) \
                 OR to_regclass(format('%I.%I', n.nspname, c.relname)) IS DISTINCT FROM c.oid::regclass \
                 OR locked.relation IS NULL",
            &[&oids],
        )
        .await
        .map_err(failed)?;
    match changed.first() {
        None => Ok(()),
        Some(row) => Err(Fault::retry(format!(
            "{} was changed between the snapshot and its lock; a new snapshot is needed",
            row.get::<_, &str>(0)
        ))),
    }
}

/// The relations that hold the rows of each table.
async fn leaves(holder: &Client, sources: &[SourceTable]) -> Result<HashMap<u32, Vec<Leaf>>> {
    let oids: Vec<u32> = sources.iter().map(|source| source.oid).collect();
    let rows = holder
        .query(
            "WITH RECURSIVE tree AS ( \
                 SELECT r.oid AS root, r.oid FROM unnest($1::oid[]) AS r (oid) \
                 UNION ALL SELECT t.root, i.inhrelid FROM tree t \
                   JOIN pg_catalog.pg_class p ON p.oid = t.oid AND p.relkind = 'p' \
                   JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid AND NOT i.inhdetachpending) \
             SELECT t.root, format('%I.%I', n.nspname, c.relname), coalesce(a.amname = 'heap', false), \
                    has_table_privilege(c.oid, 'SELECT'), greatest(c.reltuples, 0)::bigint, \
                    pg_relation_size(c.oid) \
               FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid AND c.relkind = 'r' \
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
               LEFT JOIN pg_catalog.pg_am a ON a.oid = c.relam \
              ORDER BY c.oid",
            &[&oids],
        )
        .await
        .map_err(failed)?;
    let mut leaves: HashMap<u32, Vec<Leaf>> = HashMap::new();
    for row in rows {
        leaves.entry(row.get(0)).or_default().push(Leaf {
            name: row.get(1),
            heap: row.get(2),
            readable: row.get(3),
            rows: row.get(4),
            bytes: row.get(5),
        });
    }
    Ok(leaves)
}

fn baseline(
    config: &Config,
    point: &Point,
    table: &config::Table,
    (source, history): (&SourceTable, &HistoryTable),
) -> Result<Baseline> {
    let constants = Constants {
        change_type: &config.snapshot.change_type,
        time: &point.holder.time,
        point: point.lsn,
    };
    Baseline::new(source, history, &table.rules(), &constants)
        .map_err(|error| Fault::halt(Exit::HistoryWouldBeWrong, error.to_string()))
}

fn work(
    (source, history): (&SourceTable, &TableName),
    baseline: Baseline,
    leaves: &[Leaf],
    block: i32,
) -> Work {
    let rows = leaves.iter().map(|leaf| leaf.rows).sum();
    let bytes = leaves.iter().map(|leaf| leaf.bytes).sum();
    // A role that may read the table may read its rows, through the table.
    let readable = leaves.iter().all(|leaf| leaf.readable);
    let parts = cut(&baseline, leaves, block.unsigned_abs())
        .filter(|_| readable)
        .unwrap_or_else(|| vec![baseline.copy_out(&lock_name(source), 1, None)]);
    Work {
        source: source.name.clone(),
        history: history.clone(),
        lock: lock_name(source),
        copy_in: baseline.copy,
        guard: baseline.guard,
        parts,
        estimates: (rows, bytes),
        layout: Layout::default(),
        removable: false,
    }
}

/// Cuts leaves into parts. Rows are numbered from 1 where there is one part; else each part begins where the ones
/// before it would end if their blocks were full, so that numbers rise, and leave gaps. None where such numbers would
/// not fit their column: then the table is read as a whole.
fn cut(baseline: &Baseline, leaves: &[Leaf], block: u32) -> Option<Vec<String>> {
    let block = u64::from(block.max(1));
    // MaxHeapTuplesPerPage (manual, section 73.6): a header of 24 bytes, and of each row 4 and 24 at least.
    let rows_per_block = block.saturating_sub(24) / 28;
    let blocks = |leaf: &Leaf| leaf.bytes.unsigned_abs().div_ceil(block);
    let all: u64 = leaves.iter().map(blocks).sum();
    let part = match all.saturating_mul(block) {
        whole if whole <= PART_MAX => PART_MAX,
        large => (large / PARTS).clamp(PART_MIN, PART_MAX),
    };
    let step = (part / block).max(1);
    let narrow = baseline.numbers.is_some_and(|form| form != OwnForm::Int8)
        && all.saturating_mul(rows_per_block) > i32::MAX.unsigned_abs().into();
    if narrow {
        return None;
    }
    let mut parts = Vec::new();
    let mut before = 0;
    for leaf in leaves {
        let relation = format!("ONLY {}", leaf.name);
        let blocks = blocks(leaf);
        let first = before * rows_per_block + 1;
        // Rows of the snapshot stand in blocks that are there by now; the last part has no end, to be sure.
        if !leaf.heap || blocks <= step {
            parts.push(baseline.copy_out(&relation, first, None));
        } else {
            for from in (0..blocks).step_by(step as usize) {
                let to = Some(from + step).filter(|&to| to < blocks);
                // A block number has 32 bits.
                let within = (from as u32, to.map(|to| to as u32));
                let first = (before + from) * rows_per_block + 1;
                parts.push(baseline.copy_out(&relation, first, Some(within)));
            }
        }
        before += blocks;
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;
    use crate::schema::exact::Type;
    use crate::schema::types::Types;
    use crate::schema::{HistoryColumn, Rules, SourceColumn};

    fn baseline(tx_seq: u32) -> Baseline {
        let column = |name: &str, type_oid: u32| HistoryColumn {
            name: name.to_owned(),
            type_oid,
            modifier: -1,
            kind: Type::named("pg_catalog.int4", Some(type_oid.to_string())),
            not_null: false,
            has_default: false,
            generated: false,
        };
        let source = SourceTable {
            oid: 1,
            name: TableName::new("public", "t"),
            replica_identity: 'd',
            kind: 'r',
            columns: vec![SourceColumn {
                name: "id".to_owned(),
                type_oid: 23,
                modifier: -1,
            }],
            key: vec!["id".to_owned()],
            types: Types::new([((23, -1), Some(column("id", 23).kind))].into()),
        };
        let history = HistoryTable {
            name: TableName::new("public", "t_cdc"),
            columns: vec![column("id", 23), column("tx_seq", tx_seq)],
            made: false,
            homes: Vec::new(),
        };
        let constants = Constants {
            change_type: "INSERT",
            time: "",
            point: Lsn::ZERO,
        };
        Baseline::new(&source, &history, &Rules::default(), &constants).unwrap()
    }

    fn leaf(name: &str, blocks: i64) -> Leaf {
        Leaf {
            name: name.to_owned(),
            heap: true,
            readable: true,
            rows: 0,
            bytes: blocks * 8192,
        }
    }

    #[test]
    fn a_large_table_is_cut_without_a_gap_and_its_numbers_rise() {
        // A little more than 64 MB, in the smallest parts: the last one full, of one block, of all but two.
        for (blocks, last) in [(8704, 16), (8193, 16), (8190, 15)] {
            let parts = cut(&baseline(20), &[leaf("a", blocks), leaf("b", 3)], 8192).unwrap();
            assert_eq!(parts.len(), last + 2);
            for (n, part) in parts[..=last].iter().enumerate() {
                let (first, next) = (n * 512, (n + 1) * 512);
                let from = format!("FROM ONLY a WHERE ctid >= '({first},0)'");
                let to = format!(" AND ctid < '({next},0)'");
                let number = format!("row_number() OVER () + {})", first * 291);
                assert!(part.contains(&from) && part.contains(&number), "{part}");
                // The last one has no end.
                assert_eq!(part.contains(&to), n < last, "{part}");
                assert_eq!(part.contains('<'), n < last, "{part}");
            }
            let number = format!("row_number() OVER () + {})", blocks * 291);
            let beside = &parts[last + 1];
            assert!(beside.contains("FROM ONLY b) ") && beside.contains(&number));
        }
    }

    #[test]
    fn parts_are_many_enough_to_end_together_and_not_more() {
        let count = |blocks| {
            let parts = cut(&baseline(20), &[leaf("a", blocks)], 8192);
            parts.unwrap().len()
        };
        assert_eq!(count(8192), 1);
        assert_eq!(count(80_000), 64);
        // A terabyte, in parts of 64 MB.
        assert_eq!(count(1 << 27), 1 << 14);
    }

    #[test]
    fn a_table_whose_numbers_would_not_fit_is_not_cut() {
        let blocks = i64::from(i32::MAX) / 291 + 10;
        let halves = [leaf("a", blocks / 2), leaf("b", blocks / 2 + 1)];
        assert_eq!(cut(&baseline(23), &halves, 8192), None);
        assert!(cut(&baseline(20), &halves, 8192).unwrap().len() > 100);
    }
}
