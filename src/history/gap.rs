//! Ranges of which changes can be missing: found, refused at every start, and accepted by a person (migration V5).

use tokio_postgres::{Client, Error};

use crate::fault::{Exit, Fault, Gap, Result};
use crate::lsn::Lsn;
use crate::name::Identifier;
use crate::schema::plan::{Own, change_type, literal};
use crate::schema::{HistoryTable, TableName};
use crate::server::Side;

/// A table was taken out of the configuration, which accepts that its changes are missing from then on.
const TAKEN_OUT: &str = "the table was not in the configuration";
/// The end of a gap that lasts: the table is still not followed.
const STILL_OUT: Lsn = Lsn::MAX;

/// A gap of one history that no person has accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub history: String,
    pub reason: String,
    pub from: Lsn,
    pub to: Lsn,
}

/// The gaps of a slot that are not accepted; none where the control schema is older.
pub(crate) async fn standing(client: &Client, slot: &str) -> Result<Vec<Standing>, Error> {
    let known = "SELECT pg_catalog.to_regclass('waltrail.gap') IS NOT NULL";
    if !client.query_one(known, &[]).await?.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    let statement = "SELECT history, reason, from_lsn, to_lsn FROM waltrail.gap \
        WHERE slot = $1 AND accepted_at IS NULL ORDER BY id";
    let rows = client.query(statement, &[&slot]).await?;
    let standing = |row: &tokio_postgres::Row| Standing {
        history: row.get(0),
        reason: row.get(1),
        from: row.get(2),
        to: row.get(3),
    };
    Ok(rows.iter().map(standing).collect())
}

/// Refuses to start while a gap stands.
///
/// # Errors
/// Exit 65, in the words of the refusal that found it.
pub(crate) async fn refuse_standing(client: &Client, slot: &str) -> Result<()> {
    let found = standing(client, slot)
        .await
        .map_err(Side::Target.failed("could not show the gaps of the history"))?;
    let Some(first) = found.first() else {
        return Ok(());
    };
    let mut histories: Vec<&str> = found.iter().map(|gap| gap.history.as_str()).collect();
    histories.dedup();
    let listed = match histories.len() {
        0..=5 => histories.join(", "),
        more => format!("{more} histories"),
    };
    Err(Fault::halt(
        Exit::HistoryWouldBeWrong,
        format!("a gap in {listed} is not accepted: {}", first.reason),
    )
    .remedy("waltrail accept-gap")
    .see("a-gap-is-not-accepted"))
}

/// Whether the control schema keeps until when a history was whole (migration V9).
pub(crate) async fn knows_whole(client: &Client) -> Result<bool, Error> {
    let known =
        "SELECT pg_catalog.to_regprocedure('waltrail.whole_until(text, text, pg_lsn)') IS NOT NULL";
    Ok(client.query_one(known, &[]).await?.get(0))
}

/// Remembers a gap, so that every later start refuses it too. `histories`: all that the configuration has.
pub(crate) async fn remember(
    client: &Client,
    slot: &str,
    gap: &Gap,
    reason: &str,
    histories: &[&TableName],
) -> Result<(), Error> {
    let concerned: Vec<String> = match gap.histories.as_slice() {
        [] => histories.iter().map(ToString::to_string).collect(),
        some => some.iter().map(ToString::to_string).collect(),
    };
    // A start that stops before it has set up leaves the control schema as it was.
    let (column, value) = match knows_whole(client).await? {
        true => (", whole_at", ", waltrail.whole_until($1, h, $4)"),
        false => ("", ""),
    };
    let statement = format!(
        "INSERT INTO waltrail.gap (slot, history, reason, from_lsn, to_lsn{column}) \
         SELECT $1, h, $3, $4, $5{value} FROM pg_catalog.unnest($2::text[]) AS h \
          WHERE NOT EXISTS (SELECT FROM waltrail.gap g \
                             WHERE g.slot = $1 AND g.history = h AND g.accepted_at IS NULL)"
    );
    client
        .execute(
            &statement,
            &[
                &slot,
                &concerned,
                &reason,
                &gap.from,
                &gap.to.unwrap_or(gap.from),
            ],
        )
        .await
        .map(|_| ())
}

/// The row that says in the history that changes are missing before it.
pub(crate) fn row(history: &HistoryTable, prefix: &str, from: Lsn, to: Lsn) -> String {
    let value = |name: &str| match (Own::named(name, prefix), name) {
        (Some(Own::ChangeType), _) => Some(format!("'{}'", change_type::GAP)),
        (Some(Own::ChangeTimestamp), _) => Some("pg_catalog.clock_timestamp()".to_owned()),
        (Some(Own::CommitLsn), _) => Some(format!("'{to}'")),
        (Some(Own::TxSeq | Own::Xid), _) => Some("'0'".to_owned()),
        (None, "old_commit_lsn") => Some(format!("'{from}'")),
        _ => None,
    };
    let columns = history.columns.iter().filter(|column| !column.generated);
    let (names, values): (Vec<String>, Vec<String>) = columns
        .filter_map(|column| Some((Identifier(&column.name).to_string(), value(&column.name)?)))
        .unzip();
    format!(
        "INSERT INTO {} ({}) VALUES ({})",
        history.name,
        names.join(", "),
        values.join(", ")
    )
}

/// Notes that tables are not followed any more: from the checkpoint on, or where changes were still held, from the existing
/// rows on. Where nothing was recorded, nothing will be missing.
pub(crate) async fn take_out(
    client: &Client,
    slot: &str,
    histories: &[String],
) -> Result<(), Error> {
    client
        .execute(
            "INSERT INTO waltrail.gap (slot, history, reason, from_lsn, to_lsn, accepted_at, whole_at) \
             SELECT $1, s.history, $3, f.from_lsn, \
                    $4, pg_catalog.clock_timestamp(), waltrail.whole_until($1, s.history, f.from_lsn) \
               FROM waltrail.snapshot s JOIN waltrail.checkpoint c USING (slot), \
                    LATERAL (SELECT coalesce(CASE s.state WHEN 'copied' THEN s.consistent_point ELSE c.end_lsn END, \
                                             '0/0') AS from_lsn) AS f \
              WHERE slot = $1 AND s.history = ANY ($2) AND s.state IN ('copied', 'done') \
                AND NOT EXISTS (SELECT FROM waltrail.gap g \
                                 WHERE g.slot = $1 AND g.history = s.history AND g.to_lsn = $4)",
            &[&slot, &histories, &TAKEN_OUT, &STILL_OUT],
        )
        .await
        .map(|_| ())
}

/// Ends the gaps of tables that are followed again, `to` being the end of the source's WAL: a row in each of these histories
/// says from where to where changes are missing.
pub(crate) async fn put_back(
    client: &Client,
    slot: &str,
    histories: &[(&HistoryTable, &str)],
    to: Lsn,
) -> Result<(), Error> {
    let open = "SELECT history, from_lsn FROM waltrail.gap WHERE slot = $1 AND to_lsn = $2 AND accepted_at IS NOT NULL";
    for gap in client.query(open, &[&slot, &STILL_OUT]).await? {
        let name: &str = gap.get(0);
        let mut with_name = histories
            .iter()
            .filter(|(table, _)| table.name.to_string() == name);
        let Some((history, prefix)) = with_name.next() else {
            continue;
        };
        let told = row(history, prefix, gap.get(1), to);
        client
            .batch_execute(&format!(
                "BEGIN; {told}; UPDATE waltrail.gap SET to_lsn = '{to}' \
                  WHERE slot = '{slot}' AND history = {} AND to_lsn = '{STILL_OUT}'; COMMIT",
                literal(name)
            ))
            .await?;
        tracing::info!(history = name, from = %gap.get::<_, Lsn>(1), %to, "the table is followed again; a GAP row says what is missing");
    }
    Ok(())
}
