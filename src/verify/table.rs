//! One table: the source's rows under the snapshot, beside the history's up to the same position.
//!
//! ```text
//!   source   one scan --> buckets --+                    +--> rows of those, by hash --+
//!                                   +--> which differ ---+                             +--> differences
//!   history  fold ------> buckets --+                    +--> rows of those, by hash --+
//! ```

use std::time::Instant;

use tokio_postgres::Client;

use super::difference::{Difference, Kind, Version, compare};
use super::form::{BUCKETS, Form, Numbers};
use super::passage::Around;
use super::progress::Progress;
use super::report::{Outcome, Table};
use super::rows::{self, Buckets, Hashed, Rows};
use crate::answers::fold;
use crate::fault::{Fault, Result};
use crate::lsn::Lsn;
use crate::schema::{Identifier, SourceTable, TableName};
use crate::server::Side;
use crate::snapshot::tables;

/// A history is folded in pieces of so many bytes, so that what the target sorts at once has a limit.
const FOLD_BYTES_MAX: i64 = 4 << 30;
const PIECES_MAX: i64 = 256;
/// So many rows of a history without an index may lack values before that is worth a warning.
const LACKING_FEW: i64 = 1000;
/// Differences that are looked at again together.
const SETTLED_AT_ONCE: usize = 1000;
/// Keys that one run repairs of a table.
pub(crate) const REPAIRED_MAX: usize = 100_000;

/// Sessions on the two servers.
pub(crate) struct Sides<'a> {
    /// Sees the snapshot.
    pub(crate) source: &'a Client,
    /// The table as that has it.
    pub(crate) table: &'a SourceTable,
    /// In a transaction that sees the history as it was past the position.
    pub(crate) target: &'a Client,
    /// In no transaction.
    pub(crate) beside: &'a Client,
}

/// What of a history is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// The rows that are folded.
    pub(crate) folded: Numbers,
    /// The last row that may have committed before the position.
    pub(crate) upto: i64,
}

/// What was found in a table.
pub(crate) struct Found {
    pub(crate) table: Table,
    /// What is to be repaired.
    pub(crate) differences: Vec<Difference>,
}

/// Locks the table, so that the snapshot sees its rows: TRUNCATE and the like would take them away.
///
/// # Errors
/// Something of the kind has happened since the snapshot: a new one is needed.
pub(crate) async fn hold(source: &Client, table: &SourceTable) -> Result<()> {
    let savepoint = source.batch_execute("SAVEPOINT verify").await;
    savepoint.map_err(rows::failed(Side::Source))?;
    tables::lock(source, std::slice::from_ref(table)).await
}

/// Gives the lock back. An error ends the session, and the lock with it.
pub(crate) async fn release(source: &Client) -> Result<()> {
    let ended = "ROLLBACK TO verify; RELEASE verify";
    source
        .batch_execute(ended)
        .await
        .map_err(rows::failed(Side::Source))
}

/// The buckets of the source.
pub(crate) async fn source_buckets(source: &Client, form: &Form) -> Result<Buckets> {
    let (mut buckets, began) = (Buckets::new(), Instant::now());
    rows::buckets(source, Side::Source, &form.source_buckets(), &mut buckets).await?;
    let (table, seconds) = (&form.ledger.source, began.elapsed().as_secs_f64());
    tracing::debug!(%table, seconds, "the table is read");
    Ok(buckets)
}

/// Where the history is cut for a position.
pub(crate) async fn cut(target: &Client, form: &Form, around: Around, point: Lsn) -> Result<Cut> {
    let ledger = &form.ledger;
    let number = ledger.number();
    let Around {
        mut before,
        mut upto,
    } = around;
    if let Some(commit_lsn) = &ledger.commit_lsn {
        let commit_lsn = ledger.own(commit_lsn);
        let last = format!(
            "SELECT coalesce(max({number}) FILTER (WHERE {commit_lsn} < '{point}'), {before})::bigint, \
                    count(*) FILTER (WHERE {commit_lsn} IS NULL) \
               FROM {} h WHERE {number} > {before} AND {number} <= {upto}",
            ledger.history
        );
        let row = target.query_one(&last, &[]).await.map_err(failed)?;
        // The column can be younger than the writer's look at the table.
        if row.get::<_, i64>(1) == 0 {
            (before, upto) = (row.get(0), row.get(0));
        }
    }
    let after = format!(
        "SELECT {}::bigint",
        fold::after(ledger, &before.to_string())
    );
    let after = target.query_one(&after, &[]).await.map_err(failed)?;
    Ok(Cut {
        folded: Numbers {
            after: after.get(0),
            upto: before,
        },
        upto,
    })
}

fn failed(error: tokio_postgres::Error) -> Fault {
    rows::failed(Side::Target)(error)
}

/// Compares a table with its history. `reason`: why the history may lack rows, if it may.
pub(crate) async fn find(
    sides: &Sides<'_>,
    form: &Form,
    cut: Cut,
    (source, reason): (Buckets, Option<String>),
    (progress, name): (&Progress, &TableName),
    show_keys: bool,
) -> Result<Found> {
    let history = history_buckets(sides.target, form, cut, (progress, name)).await?;
    let differing = rows::differing(&source, &history);
    let mut table = Table {
        rows: rows::count(&source),
        not_compared: form.left_out.clone(),
        ..Table::default()
    };
    if differing.is_empty() {
        table.outcome = Outcome::Same;
        return Ok(Found {
            table,
            differences: Vec::new(),
        });
    }
    // Most rows are missing: their keys say nothing.
    if reason.is_some() && differing.len() > BUCKETS.unsigned_abs() as usize / 8 {
        table.outcome = Outcome::Incomplete;
        table.reason = reason;
        return Ok(Found {
            table,
            differences: Vec::new(),
        });
    }
    let mut finding = Finding {
        sides,
        form,
        cut,
        names: form.names(),
        show_keys,
        table,
        open: Vec::new(),
        kept: Vec::new(),
        is_cleared: is_cleared(sides.target, form, cut).await?,
    };
    hold(sides.source, sides.table).await?;
    finding.merge(&differing).await?;
    release(sides.source).await?;
    finding.settle().await?;
    let Finding {
        mut table, kept, ..
    } = finding;
    table.outcome = match (table.differences(), reason) {
        (0, _) => Outcome::Same,
        (_, Some(reason)) => {
            table.reason = Some(reason);
            Outcome::Incomplete
        }
        (_, None) => Outcome::Different,
    };
    Ok(Found {
        table,
        differences: kept,
    })
}

/// Says so where each row that lacks a value is searched for through the whole history.
async fn warn_without_index(target: &Client, form: &Form) -> Result<()> {
    let ledger = &form.ledger;
    let Some(first) = ledger.key_columns().next() else {
        return Ok(());
    };
    let indexed = "SELECT EXISTS (SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a \
            ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
         WHERE i.indrelid = pg_catalog.to_regclass($1) AND a.attname = $2 AND i.indisvalid)";
    let history = ledger.history.to_string();
    let row = target.query_one(indexed, &[&history, &first.home]).await;
    if row.map_err(failed)?.get(0) {
        return Ok(());
    }
    let lacking = format!(
        "SELECT count(*) FROM (SELECT FROM {history} h WHERE {} LIMIT {LACKING_FEW}) l",
        fold::lacks(ledger)
    );
    let row = target.query_one(&lacking, &[]).await.map_err(failed)?;
    if row.get::<_, i64>(0) == LACKING_FEW {
        let mut indexes = fold::indexes(ledger).into_iter();
        let by_key = indexes.find(|index| index.columns.first() == Some(&first.home));
        let remedy = by_key.map(|index| index.sql(&ledger.history, true));
        tracing::warn!(
            history,
            remedy,
            "the history has no index on the key: what rows lack is searched for through all of it"
        );
    }
    Ok(())
}

/// The buckets of the folded history, piece by piece.
async fn history_buckets(
    target: &Client,
    form: &Form,
    cut: Cut,
    (progress, name): (&Progress, &TableName),
) -> Result<Buckets> {
    if form.can_lack() {
        warn_without_index(target, form).await?;
    }
    let size = "SELECT coalesce(sum(pg_catalog.pg_relation_size(t.relid)), 0)::bigint \
        FROM pg_catalog.pg_partition_tree(pg_catalog.to_regclass($1)) t";
    let history = form.ledger.history.to_string();
    let size = target.query_one(size, &[&history]).await.map_err(failed)?;
    let size: i64 = size.get(0);
    let pieces = (size / FOLD_BYTES_MAX + 1).min(PIECES_MAX);
    // Both are small.
    let pieces = i32::try_from(pieces).unwrap_or(1);
    let edge = |piece: i32| piece * BUCKETS / pieces;
    let mut buckets = Buckets::new();
    for piece in 0..pieces {
        let (done, all) = (
            u64::from(piece.unsigned_abs()),
            u64::from(pieces.unsigned_abs()),
        );
        progress.step(name, done + 1, all + 1);
        let query = form.history_buckets(cut.folded, [edge(piece), edge(piece + 1)]);
        let began = Instant::now();
        rows::buckets(target, Side::Target, &query, &mut buckets).await?;
        let seconds = began.elapsed().as_secs_f64();
        tracing::debug!(%history, piece, pieces, seconds, "the history is folded");
        progress.step(name, done + 2, all + 1);
    }
    Ok(buckets)
}

/// Whether the table may have been emptied before the position.
async fn is_cleared(target: &Client, form: &Form, cut: Cut) -> Result<bool> {
    let (ledger, number) = (&form.ledger, form.ledger.number());
    let query = format!(
        "SELECT EXISTS (SELECT FROM {} h WHERE {number} > {} AND {number} <= {} AND {})",
        ledger.history,
        cut.folded.upto,
        cut.upto,
        fold::clears(ledger)
    );
    Ok(target.query_one(&query, &[]).await.map_err(failed)?.get(0))
}

/// What is being found in a table.
struct Finding<'a> {
    sides: &'a Sides<'a>,
    form: &'a Form,
    cut: Cut,
    names: Vec<String>,
    show_keys: bool,
    table: Table,
    /// Differences that may be none.
    open: Vec<Difference>,
    /// To be repaired.
    kept: Vec<Difference>,
    is_cleared: bool,
}

impl Finding<'_> {
    /// Reads the rows of these buckets on both sides, in the order of their hashes.
    async fn merge(&mut self, buckets: &[i32]) -> Result<()> {
        let Sides { source, target, .. } = self.sides;
        let (of_source, of_history) = (
            self.form.source_rows(),
            self.form.history_rows(self.cut.folded),
        );
        let (mut source, mut history) = tokio::try_join!(
            Rows::open(source, Side::Source, &of_source, buckets),
            Rows::open(target, Side::Target, &of_history, buckets)
        )?;
        let (mut left, mut right) = tokio::try_join!(source.next(), history.next())?;
        loop {
            let of = |row: &Option<Hashed>| row.as_ref().map(|row| row.hash);
            let (here, there) = match (of(&left), of(&right)) {
                (None, None) => return Ok(()),
                (Some(a), Some(b)) if a == b => (left.take(), right.take()),
                (Some(a), Some(b)) if a > b => (None, right.take()),
                (None, Some(_)) => (None, right.take()),
                (Some(_), _) => (left.take(), None),
            };
            if left.is_none() && here.is_some() {
                left = source.next().await?;
            }
            if right.is_none() && there.is_some() {
                right = history.next().await?;
            }
            if let Some(difference) = compare(here, there) {
                self.add(difference).await?;
            }
        }
    }

    async fn add(&mut self, difference: Difference) -> Result<()> {
        if self.cut.folded.upto == self.cut.upto {
            self.count(difference);
            return Ok(());
        }
        self.open.push(difference);
        match self.open.len() {
            SETTLED_AT_ONCE.. => self.settle().await,
            _ => Ok(()),
        }
    }

    fn count(&mut self, difference: Difference) {
        self.table.add(&difference, &self.names, self.show_keys);
        if self.kept.len() < REPAIRED_MAX {
            self.kept.push(difference);
        }
    }

    /// Of keys that changed when it cannot be said what committed first: the source has one of their versions.
    async fn settle(&mut self) -> Result<()> {
        let open = std::mem::take(&mut self.open);
        if open.is_empty() {
            return Ok(());
        }
        let hashes: Vec<i64> = open.iter().map(|difference| difference.hash).collect();
        let numbers = Numbers {
            after: self.cut.folded.upto,
            upto: self.cut.upto,
        };
        let query = self.form.versions(numbers);
        let versions = self.sides.beside.query(&query, &[&hashes]).await;
        let versions = versions.map_err(failed)?;
        let is_keyless = self.form.ledger.key.is_empty();
        for difference in open {
            let mut of_key = versions
                .iter()
                .filter(|row| row.get::<_, i64>(0) == difference.hash);
            let is_emptied = self.is_cleared && difference.source.is_none();
            let settled = match is_keyless {
                true => of_key.next().is_some_and(|row| {
                    let added: i64 = row.get(1);
                    let taken: i64 = row.get(2);
                    match difference.kind {
                        Kind::Missing => difference.copies <= added,
                        _ => difference.copies <= taken,
                    }
                }),
                false => of_key.any(|row| {
                    difference.is(&Version {
                        row: Hashed::of(row),
                        gone: row.get(5),
                    })
                }),
            };
            match settled || is_emptied {
                true => self.table.changing += 1,
                false => self.count(difference),
            }
        }
        Ok(())
    }
}

/// Why a history may lack rows of its table as of number `upto`, if it may.
pub(crate) async fn incomplete(
    target: &Client,
    form: &Form,
    (slot, point): (&str, Lsn),
    upto: i64,
) -> Result<Option<String>> {
    let ledger = &form.ledger;
    let history = ledger.history.to_string();
    let state = "SELECT state, coalesce(consistent_point, '0/0'), pg_catalog.to_regclass('waltrail.baseline') IS NOT NULL \
        FROM waltrail.snapshot WHERE slot = $1 AND history = $2";
    let row = target.query_opt(state, &[&slot, &history]).await;
    let row = row.map_err(failed)?;
    let Some(row) = row else {
        return Ok(Some("the table is not followed yet".to_owned()));
    };
    let recorded: Lsn = row.get(1);
    if row.get::<_, &str>(0) != "done" || recorded > point {
        return Ok(Some("its existing rows are being recorded".to_owned()));
    }
    let last = |kind: &str| {
        format!(
            "coalesce(max({}) FILTER (WHERE {} = '{kind}'::text), 0)::bigint",
            ledger.number(),
            ledger.kind()
        )
    };
    let clears = format!(
        "SELECT {}, {} FROM {} h WHERE {} AND {} <= {upto}",
        last("TRUNCATE"),
        last("GAP"),
        ledger.history,
        fold::clears(ledger),
        ledger.number(),
    );
    let clears = target.query_one(&clears, &[]).await.map_err(failed)?;
    let (truncated, gap): (i64, i64) = (clears.get(0), clears.get(1));
    if truncated > gap {
        return Ok(None);
    }
    let is_whole = match row.get(2) {
        true => {
            let baseline = "SELECT EXISTS (SELECT FROM waltrail.baseline \
                WHERE history = $1 AND last_number >= $2 AND last_number <= $3)";
            let known = target.query_one(baseline, &[&history, &gap, &upto]).await;
            known.map_err(failed)?.get(0)
        }
        false => recorded != Lsn::ZERO,
    };
    Ok(match (is_whole, gap) {
        (true, _) => None,
        (false, 0) => Some("the existing rows were never recorded".to_owned()),
        (false, _) => Some("changes are missing before its last GAP row, and the existing rows were not recorded since".to_owned()),
    })
}

/// A column of the ledger as SQL writes its name.
pub(crate) fn column(name: &str) -> String {
    Identifier(name).to_string()
}
