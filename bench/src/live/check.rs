//! What a contender holds after its turn: every row, and how late each came.

use anyhow::{Result, ensure};
use postgres::Client;

use super::{Contender, Latency};
use crate::workload::{Changes, sums};

/// Whether the history has the row of this key.
pub(super) const INSERTED: &str =
    "SELECT FROM employees_cdc WHERE id = $1 AND change_type = 'INSERT'";

/// What the last change of every row in the history left.
const FOLDED: &str = "SELECT count(*), concat_ws(' ', sum(id), sum(salary), sum(hashtext(name)), sum(hashtext(department)))
    FROM (SELECT DISTINCT ON (id) * FROM employees_cdc ORDER BY id, cdc_id DESC) AS last
    WHERE change_type <> 'DELETE'";
/// The same of the rows that the application has inserted or updated: an UPDATE adds to the salary or moves.
const CHANGED: &str = "SELECT count(*), concat_ws(' ', sum(id), sum(salary), sum(hashtext(name)), sum(hashtext(department)))
    FROM employees
    WHERE id > 100000 OR salary <> 1000 + id % 9000 OR department NOT LIKE 'dept %'";

/// What a contender must hold.
pub(super) struct Copy {
    /// Who.
    pub contender: Contender,
    /// What the application did since the contender followed.
    pub changes: Changes,
}

/// Compares a history, or a copy, with what the application did and what it left. The number of rows compared.
pub(super) fn rows(copy: &Copy, lives: &mut Client, kept: &mut Client) -> Result<i64> {
    let left = sums(lives)?;
    let expected = 100_000 + copy.changes.inserted - copy.changes.deleted;
    ensure!(
        left.0 == expected,
        "the application left {} rows, expected {expected}",
        left.0
    );
    if copy.contender == Contender::Nothing {
        return Ok(left.0);
    }
    if copy.contender == Contender::Subscription {
        let found = sums(kept)?;
        ensure!(
            found == left,
            "the copy holds {found:?}, the source {left:?}"
        );
        return Ok(found.0);
    }
    let changed = pair(lives, CHANGED)?;
    let history = match copy.contender {
        Contender::AnotherCluster | Contender::SaysWho => kept,
        _ => lives,
    };
    let checked = copy.changes.are_in(history)?;
    let folded = pair(history, FOLDED)?;
    ensure!(
        folded == changed,
        "the history folds to {folded:?}, the table holds {changed:?}"
    );
    Ok(checked)
}

fn pair(client: &mut Client, query: &str) -> Result<(i64, String)> {
    let row = client.query_one(query, &[])?;
    Ok((row.get(0), row.get(1)))
}

/// From the source's commit to visible, over the rows that the application inserted between two moments.
///
/// The history has the time of the source's commit in each row, and the commit that made the row visible has its own.
/// For a row that the subscription's worker applied the server keeps the source's commit time; the row itself says when
/// it was written, which is a little before that transaction's commit.
pub(super) fn latency(
    contender: Contender,
    lives: &mut Client,
    kept: &mut Client,
    from: &str,
    to: &str,
) -> Result<Option<Latency>> {
    const IN_HISTORY: &str = "SELECT change_timestamp AT TIME ZONE 'UTC' AS committed,
        pg_xact_commit_timestamp(xmin) AS visible FROM employees_cdc WHERE change_type = 'INSERT'";
    const IN_COPY: &str = "SELECT pg_xact_commit_timestamp(xmin) AS committed,
        visible_at AS visible FROM employees WHERE id > 100000";
    let (client, rows) = match contender {
        Contender::Nothing | Contender::Trigger => return Ok(None),
        Contender::Subscription => (kept, IN_COPY),
        Contender::AnotherCluster | Contender::SaysWho => (kept, IN_HISTORY),
        Contender::SameDatabase => (lives, IN_HISTORY),
    };
    let row = client.query_one(
        &format!(
            "SELECT percentile_disc(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY ms)
             FROM (SELECT extract(epoch FROM visible - committed)::float8 * 1000 AS ms FROM ({rows}) AS each
                   WHERE committed BETWEEN $1::text::timestamptz AND $2::text::timestamptz) AS late"
        ),
        &[&from, &to],
    )?;
    let percentiles: Option<Vec<f64>> = row.get(0);
    let Some([p50_ms, p99_ms]) = percentiles.as_deref().and_then(|p| p.first_chunk()) else {
        anyhow::bail!("no row was inserted in the window");
    };
    Ok(Some(Latency {
        p50_ms: *p50_ms,
        p99_ms: *p99_ms,
    }))
}
