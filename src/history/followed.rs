//! What is followed, as the source had it when it was last seen whole: kept in the target, beside the history that it is
//! about (migration V5).

use std::collections::HashMap;
use std::time::SystemTime;

use tokio_postgres::{Client, Error, Row};

use crate::fault::{self, Exit, Fault};
use crate::lsn::Lsn;
use crate::schema::TableName;
use crate::schema::sight::{Followed, Publication};
use crate::server::Side;

/// When everything was whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Whole {
    /// The source's WAL ended here.
    pub lsn: Lsn,
    /// By the source's clock, where it is known.
    pub time: Option<SystemTime>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub publication: Publication,
    pub whole: Whole,
    pub tables: Vec<Followed>,
}

/// The record of a slot; none when it was never seen whole.
///
/// # Errors
/// Exit 78 for a record that this program cannot read: to go on without it would pass over what it says.
pub(crate) async fn read(client: &Client, slot: &str) -> fault::Result<Option<Record>> {
    let rows = rows(client, slot).await;
    let rows = rows.map_err(Side::Target.failed("could not show what is followed"))?;
    let Some((watched, tables)) = rows else {
        return Ok(None);
    };
    match parse(&watched, &tables) {
        Some(record) => Ok(Some(record)),
        None => Err(Fault::halt(
            Exit::Config,
            format!("waltrail.followed has a record of slot {slot} that this program cannot read"),
        )
        .remedy("install the waltrail that wrote it, or a newer one")),
    }
}

async fn rows(client: &Client, slot: &str) -> Result<Option<(Row, Vec<Row>)>, Error> {
    let made = "SELECT pg_catalog.to_regclass('waltrail.watched') IS NOT NULL";
    if !client.query_one(made, &[]).await?.get::<_, bool>(0) {
        return Ok(None);
    }
    let watched = "SELECT publication::text, whole_lsn, (pg_catalog.to_jsonb(w) ->> 'whole_time')::timestamptz \
                     FROM waltrail.watched w WHERE slot = $1";
    let Some(watched) = client.query_opt(watched, &[&slot]).await? else {
        return Ok(None);
    };
    let tables =
        "SELECT history, source_oid, source, seen::text FROM waltrail.followed WHERE slot = $1";
    Ok(Some((watched, client.query(tables, &[&slot]).await?)))
}

fn parse(watched: &Row, tables: &[Row]) -> Option<Record> {
    let entry = |row: &Row| {
        Some(Followed {
            history: row.get::<_, &str>(0).parse().ok()?,
            oid: row.get(1),
            name: row.get::<_, &str>(2).parse().ok()?,
            seen: serde_json::from_str(row.get(3)).ok()?,
        })
    };
    Some(Record {
        publication: serde_json::from_str(watched.get(0)).ok()?,
        whole: Whole {
            lsn: watched.get(1),
            time: watched.get(2),
        },
        tables: tables.iter().map(entry).collect::<Option<_>>()?,
    })
}

/// Keeps a record in place of the one before; a table that has not changed is not written.
pub(crate) async fn write(client: &Client, slot: &str, record: &Record) -> Result<(), Error> {
    // Names and letters: nothing that JSON cannot hold.
    let publication = serde_json::to_string(&record.publication).unwrap_or_default();
    let (mut histories, mut oids, mut sources, mut seen) = (vec![], vec![], vec![], vec![]);
    for table in &record.tables {
        histories.push(table.history.to_string());
        oids.push(table.oid);
        sources.push(table.name.to_string());
        seen.push(serde_json::to_string(&table.seen).unwrap_or_default());
    }
    client
        .execute(
            "WITH gone AS (DELETE FROM waltrail.followed WHERE slot = $1 AND history <> ALL ($4)), \
             tables AS (INSERT INTO waltrail.followed (slot, history, source_oid, source, seen) \
                 SELECT $1, t.history, t.oid, t.source, t.seen::jsonb \
                   FROM unnest($4::text[], $5::oid[], $6::text[], $7::text[]) AS t (history, oid, source, seen) \
                 ON CONFLICT (slot, history) DO UPDATE \
                    SET source_oid = excluded.source_oid, source = excluded.source, seen = excluded.seen \
                  WHERE (followed.source_oid, followed.source, followed.seen) \
                        IS DISTINCT FROM (excluded.source_oid, excluded.source, excluded.seen)) \
             INSERT INTO waltrail.watched (slot, publication, whole_lsn, whole_time, whole_at) \
             VALUES ($1, $2::text::jsonb, $3, $8, pg_catalog.clock_timestamp()) \
             ON CONFLICT (slot) DO UPDATE SET publication = excluded.publication, whole_lsn = excluded.whole_lsn, \
                    whole_time = excluded.whole_time, whole_at = excluded.whole_at",
            &[
                &slot,
                &publication,
                &record.whole.lsn,
                &histories,
                &oids,
                &sources,
                &seen,
                &record.whole.time,
            ],
        )
        .await
        .map(|_| ())
}

/// Notes that everything was whole when the source's WAL ended here.
pub(crate) async fn whole(client: &Client, slot: &str, whole: Whole) -> Result<(), Error> {
    client
        .execute(
            "UPDATE waltrail.watched SET whole_lsn = $2, whole_time = $3, whole_at = pg_catalog.clock_timestamp() \
              WHERE slot = $1",
            &[&slot, &whole.lsn, &whole.time],
        )
        .await
        .map(|_| ())
}

/// Forgets where the stream described tables up to here: a look at the catalogs has found the same columns since.
pub(crate) async fn described_rightly(client: &Client, slot: &str, lsn: Lsn) -> Result<(), Error> {
    client
        .execute(
            "DELETE FROM waltrail.described d USING waltrail.followed f \
              WHERE f.slot = $1 AND f.history = d.history AND d.lsn <= $2",
            &[&slot, &lsn],
        )
        .await
        .map(|_| ())
}

/// Forgets tables that were dropped on the source.
pub(crate) async fn forget(
    client: &Client,
    slot: &str,
    histories: &[TableName],
) -> Result<(), Error> {
    if histories.is_empty() {
        return Ok(());
    }
    let histories: Vec<String> = histories.iter().map(ToString::to_string).collect();
    client
        .execute(
            "DELETE FROM waltrail.followed WHERE slot = $1 AND history = ANY ($2)",
            &[&slot, &histories],
        )
        .await
        .map(|_| ())
}

/// The publication is about to hold these tables anew, by our own doing: their membership is not compared any more.
pub(crate) async fn is_published_anew(
    client: &Client,
    slot: &str,
    histories: &[String],
) -> Result<(), Error> {
    if histories.is_empty() {
        return Ok(());
    }
    client
        .execute(
            "UPDATE waltrail.followed SET seen = pg_catalog.jsonb_set(seen, '{standing,member}', 'null') \
              WHERE slot = $1 AND history = ANY ($2)",
            &[&slot, &histories],
        )
        .await
        .map(|_| ())
}

impl Record {
    pub(crate) fn by_history(&self) -> HashMap<&TableName, &Followed> {
        let tables = self.tables.iter();
        tables.map(|table| (&table.history, table)).collect()
    }
}
