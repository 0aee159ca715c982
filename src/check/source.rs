//! Settings and limits of the source, which a start does not refuse.

use tokio_postgres::{Client, Row};

use super::unanswered;
use crate::config::Config;
use crate::fault::Result;
use crate::finding::Finding;
use crate::schema::plan::literal;
use crate::server::{Service, Side};
use crate::setup::requirements::{self, Server};
use crate::source::failover;
use crate::source::slot::{self, Waited};

/// A limit for the WAL of slots below this, in MB, is passed in an ordinary pause.
const LIMIT_MIN_MB: i64 = 1024;
/// What is proposed instead.
const LIMIT: &str = "20GB";
/// A transaction that has been open for longer holds the stream and its WAL up.
const OPEN_SECONDS_MAX: i32 = 300;

const LIMITS: &str = "
    SELECT (SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'),
           (SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'idle_replication_slot_timeout'),
           current_setting('idle_replication_slot_timeout', true),
           current_setting('max_replication_slots')::bigint - (SELECT count(*) FROM pg_catalog.pg_replication_slots),
           current_setting('max_wal_senders')::bigint - (SELECT count(*) FROM pg_catalog.pg_stat_replication WHERE pid IS DISTINCT FROM $2),
           current_setting('max_replication_slots')::bigint, current_setting('max_wal_senders')::bigint,
           s.slot_name IS NOT NULL, coalesce(s.active, false), s.wal_status, s.safe_wal_size
      FROM (SELECT) AS one LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = $1";

/// Looks at the source; none where it does not answer. `ours` is the walsender of this check.
pub(super) async fn look(
    config: &Config,
    source: &Client,
    ours: Option<i32>,
    found: &mut Vec<Finding>,
) -> Option<Server> {
    let mut server = match requirements::server(source, &config.source.slot).await {
        Ok(server) => server,
        Err(fault) => {
            found.push(unanswered(Side::Source, fault));
            return None;
        }
    };
    found.append(&mut server.findings);
    let settings = settings(config, source, &server, ours).await;
    found.extend(settings.unwrap_or_else(|fault| vec![unanswered(Side::Source, fault)]));
    let standbys = standbys(config, source).await;
    found.extend(standbys.unwrap_or_else(|fault| vec![unanswered(Side::Source, fault)]));
    if let Some((bug, fixed)) = known_bug(server.version) {
        let what = format!(
            "the source is PostgreSQL {}: {bug}",
            written(server.version)
        );
        let remedy = format!(
            "-- update the source to PostgreSQL {} or later",
            written(fixed)
        );
        found.push(Finding::warning(Side::Source, "known-bugs", what).remedy(remedy));
    }
    if server.in_recovery
        && !found
            .iter()
            .any(|known| known.code == "the-source-is-a-standby")
    {
        let what = "the source is a standby: the publication is made on its primary, and the slot is lost with the standby";
        let remedy = "ALTER SYSTEM SET hot_standby_feedback = on; SELECT pg_reload_conf();";
        found.push(Finding::note(Side::Source, "the-source-is-a-standby", what).remedy(remedy));
    }
    Some(server)
}

/// Whether the slot survives a fail-over.
async fn standbys(config: &Config, source: &Client) -> Result<Vec<Finding>> {
    let failed = Side::Source.failed("could not show its standbys");
    let (name, wanted) = (config.source.slot.as_str(), config.source.failover);
    let server = slot::server(source).await.map_err(failed)?;
    let facts = failover::facts(source, server).await.map_err(failed)?;
    let made = slot::inspect(source, name).await.map_err(failed)?;
    Ok(failover::findings(
        (name, wanted),
        server,
        made.as_ref(),
        &facts,
    ))
}

async fn settings(
    config: &Config,
    source: &Client,
    server: &Server,
    ours: Option<i32>,
) -> Result<Vec<Finding>> {
    let failed = Side::Source.failed("could not show its limits");
    let row = source
        .query_one(LIMITS, &[&config.source.slot, &ours])
        .await
        .map_err(failed)?;
    let service = server.service;
    let mut found = Vec::new();
    found.extend(limit(&row, service));
    found.extend(room(&row, service));
    if row
        .get::<_, Option<i64>>(1)
        .is_some_and(|seconds| seconds > 0)
    {
        let timeout: &str = row.get(2);
        let what = format!(
            "idle_replication_slot_timeout = {timeout}: the slot is dropped when waltrail is away for so long, and changes are missing"
        );
        let remedy = service.set("idle_replication_slot_timeout", "0", false);
        found.push(Finding::warning(Side::Source, "an-idle-slot-is-dropped", what).remedy(remedy));
    }
    if requirements::is_waited_for(source).await? {
        let what = "commits on the source wait for this history: synchronous_standby_names names waltrail, or everything";
        let remedy = match service {
            Service::Own => "ALTER SYSTEM SET synchronous_standby_names = ''; SELECT pg_reload_conf(); -- or name the standbys".to_owned(),
            other => other.set("synchronous_standby_names", "", false),
        };
        found.push(
            Finding::warning(Side::Source, "commits-wait-for-the-history", what).remedy(remedy),
        );
    }
    let exists: bool = row.get(7);
    found.extend(transactions(source, exists).await?);
    Ok(found)
}

/// What limits the WAL that is kept for the slot, and how near the slot is to it.
fn limit(row: &Row, service: Service) -> Vec<Finding> {
    let name = "max_slot_wal_keep_size";
    let mut found = Vec::new();
    match row.get::<_, Option<i64>>(0) {
        Some(..0) => {
            let what = "max_slot_wal_keep_size = -1: a waltrail that stays away fills the disk of the source";
            let remedy = match service {
                Service::Azure => "-- Azure fixes it at -1: watch the storage, and drop the slot of a waltrail that is given up".to_owned(),
                service => service.set(name, LIMIT, false),
            };
            found
                .push(Finding::warning(Side::Source, "no-limit-for-the-slot", what).remedy(remedy));
        }
        Some(megabytes @ ..LIMIT_MIN_MB) => {
            let what = format!(
                "max_slot_wal_keep_size = {megabytes} MB: a short pause of waltrail loses the slot, and changes are missing"
            );
            let remedy = service.set(name, LIMIT, false);
            found.push(
                Finding::warning(Side::Source, "a-small-limit-for-the-slot", what).remedy(remedy),
            );
        }
        _ => {}
    }
    let limit = row
        .get::<_, Option<i64>>(0)
        .map_or(0, |megabytes| megabytes << 20);
    let (status, left): (Option<&str>, Option<i64>) = (row.get(9), row.get(10));
    let is_near = left.is_some_and(|left| limit > 0 && left < limit / 4);
    if status == Some("unreserved") || is_near {
        let left = bytesize::ByteSize::b(left.unwrap_or_default().max(0).unsigned_abs());
        let what =
            format!("the slot is near its end: it is lost when the source has written {left} more");
        let more = format!("{}MB", (limit >> 20).max(LIMIT_MIN_MB) * 4);
        let remedy = service.set(name, &more, false);
        found.push(Finding::warning(Side::Source, "a-slot-near-its-limit", what).remedy(remedy));
    }
    found
}

/// Whether there is room for the slot, for the one of a snapshot beside it, and for their walsenders.
fn room(row: &Row, service: Service) -> Vec<Finding> {
    let (slots, senders): (i64, i64) = (row.get(3), row.get(4));
    let (slots_max, senders_max): (i64, i64) = (row.get(5), row.get(6));
    let (exists, active): (bool, bool) = (row.get(7), row.get(8));
    let (slots_needed, senders_needed) = (2 - i64::from(exists), 2 - i64::from(active));
    let mut found = Vec::new();
    let mut few = |name: &str, free: i64, max: i64, needed: i64| {
        if free < needed {
            let what = format!(
                "{free} of {name} = {max} are free, and waltrail needs two, one of them for snapshots"
            );
            let remedy = service.set(name, &(max + 10).to_string(), true);
            found.push(Finding::warning(Side::Source, "few-slots-or-senders", what).remedy(remedy));
        }
    };
    // None at all is an error already.
    if slots > 0 || exists {
        few("max_replication_slots", slots, slots_max, slots_needed);
    }
    few("max_wal_senders", senders, senders_max, senders_needed);
    found
}

/// Transactions that making the slot waits for; or, where it is made, those that have long held the stream up.
async fn transactions(source: &Client, exists: bool) -> Result<Vec<Finding>> {
    let waited = slot::waited_for(source).await;
    let waited = waited.map_err(Side::Source.failed("could not show its transactions"))?;
    let is_long = |waited: &&Waited| {
        !exists
            || waited
                .seconds
                .is_none_or(|seconds| seconds > OPEN_SECONDS_MAX)
    };
    let finding = |waited: &Waited| {
        let delays = match exists {
            true => "the source keeps its WAL, and its changes come when it ends",
            false => "the slot is made when it has ended",
        };
        let what = format!("a transaction is open ({waited}): {delays}");
        let remedy = match (waited.pid, &waited.gid) {
            (Some(pid), _) => format!("SELECT pg_terminate_backend({pid});"),
            (None, gid) => format!(
                "ROLLBACK PREPARED {}; -- or COMMIT PREPARED",
                literal(gid.as_deref().unwrap_or_default())
            ),
        };
        Finding::warning(Side::Source, "a-transaction-delays-the-slot", what).remedy(remedy)
    };
    Ok(waited.iter().filter(is_long).map(finding).collect())
}

/// A bug of this version that loses or changes what is decoded, and the version that has it no more (release notes).
fn known_bug(version: i32) -> Option<(&'static str, i32)> {
    // A minor version of each branch, from 14 to 17.
    let first = |minors: [i32; 4]| {
        let major = version / 10_000;
        let at = usize::try_from(major - 14).ok()?;
        let fixed = major * 10_000 + minors.get(at)?;
        (version < fixed).then_some(fixed)
    };
    let loses = "changes can be lost while a table is added to a publication";
    let grows = "decoding can use memory without bound while there are many schema changes";
    if first([18, 13, 9, 5]).is_some() {
        return Some((loses, first([19, 14, 10, 6])?));
    }
    Some((grows, first([19, 14, 10, 6])?))
}

/// A version as it is written.
fn written(version: i32) -> String {
    format!("{}.{}", version / 10_000, version % 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minor_version_with_a_known_bug_names_the_one_without() {
        let fixed = |version| known_bug(version).map(|(_, fixed)| written(fixed));
        assert_eq!(fixed(14_0017).as_deref(), Some("14.19"));
        assert_eq!(fixed(15_0003).as_deref(), Some("15.14"));
        assert!(known_bug(16_0008).unwrap().0.contains("lost"));
        assert!(known_bug(16_0009).unwrap().0.contains("memory"));
        assert_eq!(fixed(17_0005).as_deref(), Some("17.6"));
        for good in [14_0019, 15_0014, 16_0010, 17_0006, 18_0000, 19_0000] {
            assert_eq!(fixed(good), None, "{good}");
        }
    }
}
