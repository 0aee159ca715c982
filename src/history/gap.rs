//! Ranges of which changes can be missing: found, refused at every start, and accepted by a person (migration V5).

use tokio_postgres::{Client, Error};

use crate::fault::{Exit, Fault, Gap, Result};
use crate::lsn::Lsn;
use crate::schema::TableName;
use crate::server::Side;

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
    client
        .execute(
            "INSERT INTO waltrail.gap (slot, history, reason, from_lsn, to_lsn) \
             SELECT $1, h, $3, $4, $5 FROM pg_catalog.unnest($2::text[]) AS h \
              WHERE NOT EXISTS (SELECT FROM waltrail.gap g \
                                 WHERE g.slot = $1 AND g.history = h AND g.accepted_at IS NULL)",
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
