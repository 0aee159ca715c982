//! The checkpoint row, as far as ordinary SQL touches it: it is read when a session starts, made with the slot,
//! and recorded how far the source has been confirmed. Only `waltrail.advance` (migration V1) moves its `end_lsn`.

use tokio_postgres::{Client, Error};

use super::disorder::Disorder;
use crate::checkpoint::Checkpoint;
use crate::lsn::Lsn;
use crate::pgoutput::Timestamp;

pub(crate) async fn read(client: &Client, slot: &str) -> Result<Option<Checkpoint>, Error> {
    let row = client
        .query_opt(
            "SELECT system_identifier, timeline, end_lsn, reported_lsn, \
                    (extract(epoch FROM commit_timestamp - '2000-01-01 00:00:00+00') * 1000000)::bigint \
               FROM waltrail.checkpoint WHERE slot = $1",
            &[&slot],
        )
        .await?;
    Ok(row.map(|row| Checkpoint {
        system_identifier: row.get::<_, i64>(0).cast_unsigned(),
        timeline: row.get::<_, i32>(1).cast_unsigned(),
        end_lsn: row.get(2),
        reported_lsn: row.get(3),
        commit_time: row.get::<_, Option<i64>>(4).map(Timestamp),
    }))
}

/// By how much commit times were out of order; none where that is not known.
pub(crate) async fn disorder(client: &Client, slot: &str) -> Result<Option<Disorder>, Error> {
    // After `waltrail adopt` the checkpoint has no commit time yet.
    let statement = "SELECT (extract(epoch FROM coalesce(commit_timestamp, \
                    (SELECT a.from_commit_timestamp FROM waltrail.adopted a WHERE a.slot = c.slot ORDER BY a.id DESC LIMIT 1)) \
                    - '2000-01-01 00:00:00+00') * 1000000)::bigint, \
                (extract(epoch FROM (to_jsonb(c) ->> 'disorder')::interval) * 1000000)::bigint \
           FROM waltrail.checkpoint c WHERE slot = $1";
    let row = client.query_opt(statement, &[&slot]).await?;
    Ok(row.and_then(|row| {
        let last = row.get::<_, Option<i64>>(0).map(Timestamp);
        Some(Disorder::new(last, row.get::<_, Option<i64>>(1)?))
    }))
}

/// Notes that the slot is about to be made: a slot that is found later with this row and no position was
/// made by us and has not been read.
pub(crate) async fn intend(
    client: &Client,
    slot: &str,
    system_identifier: u64,
    timeline: u32,
) -> Result<(), Error> {
    client
        .execute(
            "INSERT INTO waltrail.checkpoint (slot, system_identifier, timeline) VALUES ($1, $2, $3) \
             ON CONFLICT (slot) DO UPDATE SET system_identifier = $2, timeline = $3 \
             WHERE checkpoint.end_lsn IS NULL",
            &[&slot, &system_identifier.cast_signed(), &timeline.cast_signed()],
        )
        .await?;
    Ok(())
}

/// Sets the first position of a slot.
pub(crate) async fn begin_at(client: &Client, slot: &str, position: Lsn) -> Result<(), Error> {
    client
        .execute(
            "UPDATE waltrail.checkpoint SET end_lsn = $2, reported_lsn = $2, \
                    updated_at = clock_timestamp() \
              WHERE slot = $1 AND end_lsn IS NULL",
            &[&slot, &position],
        )
        .await?;
    Ok(())
}

/// Notes the timeline that the source is on now; returns whether it is another one. What was confirmed past `fork`, where it
/// left the former timeline, is another server's.
pub(crate) async fn set_timeline(
    client: &Client,
    slot: &str,
    timeline: u32,
    fork: Option<Lsn>,
) -> Result<bool, Error> {
    let updated = client
        .execute(
            "UPDATE waltrail.checkpoint \
                SET timeline = $2, reported_lsn = greatest(end_lsn, least(reported_lsn, $3)) \
              WHERE slot = $1 AND timeline <> $2",
            &[&slot, &timeline.cast_signed(), &fork],
        )
        .await?;
    Ok(updated > 0)
}

/// What the source was when the stream was last started; unknown where an older waltrail did that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Former {
    /// Its major version.
    pub major: Option<u32>,
    /// The slot was a failover slot.
    pub failover: Option<bool>,
}

pub(crate) async fn former(client: &Client, slot: &str) -> Result<Former, Error> {
    let row = client
        .query_opt(
            "SELECT (to_jsonb(c) ->> 'source_major')::int, (to_jsonb(c) ->> 'slot_failover')::bool \
               FROM waltrail.checkpoint c WHERE slot = $1",
            &[&slot],
        )
        .await?;
    Ok(row.map_or_else(Former::default, |row| Former {
        major: row.get::<_, Option<i32>>(0).map(i32::unsigned_abs),
        failover: row.get(1),
    }))
}

/// Notes what the source is.
pub(crate) async fn set_former(client: &Client, slot: &str, now: Former) -> Result<(), Error> {
    let major = now.major.map(u32::cast_signed);
    client
        .execute(
            "UPDATE waltrail.checkpoint SET source_major = $2, slot_failover = $3 \
              WHERE slot = $1 AND (source_major, slot_failover) IS DISTINCT FROM ($2::int, $3::bool)",
            &[&slot, &major, &now.failover],
        )
        .await?;
    Ok(())
}

/// Notes, durably, a position that is going to be confirmed although no history row covers it.
pub(crate) async fn report(client: &Client, slot: &str, position: Lsn) -> Result<(), Error> {
    client
        .execute(
            "UPDATE waltrail.checkpoint SET reported_lsn = greatest(reported_lsn, $2), \
                    updated_at = clock_timestamp() WHERE slot = $1",
            &[&slot, &position],
        )
        .await?;
    Ok(())
}
