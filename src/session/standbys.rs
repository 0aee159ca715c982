//! The source's standbys: what a fail-over needs of the slot, and what they make of our walsender.

use std::time::Duration;

use tokio_postgres::Client;

use super::compare::{inspect, read_checkpoint, server_of};
use crate::config::{Config, Setup, SnapshotMode};
use crate::fault::{Exit, Fault, Result};
use crate::finding::Severity;
use crate::history::checkpoint::{self, Former};
use crate::lsn::Lsn;
use crate::server::{Reminder, Side};
use crate::setup::requirements;
use crate::source;
use crate::source::failover;
use crate::source::replication::{Replication, SlotKind};
use crate::source::slot::{self, NotYet, Server, SlotState};

/// Refuses a standby in the target's place: it takes no history. One that has this history is the target's, and is waited for.
pub(super) async fn refuse_standby(config: &Config, target: &Client) -> Result<()> {
    let failed = Side::Target.failed("could not show whether it is a standby");
    let state = "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.to_regclass('waltrail.checkpoint') IS NOT NULL";
    let row = target.query_one(state, &[]).await.map_err(failed)?;
    let (in_recovery, has_history): (bool, bool) = (row.get(0), row.get(1));
    if !in_recovery {
        return Ok(());
    }
    let is_known = has_history
        && read_checkpoint(target, &config.source.slot)
            .await?
            .is_some();
    Err(match is_known {
        true => {
            Fault::reconnect("the target is a standby, which takes no history until it is promoted")
                .of(Side::Target)
        }
        false => Fault::halt(
            Exit::Config,
            "the target is a standby, which takes no history",
        )
        .remedy("set target.dsn to a primary; the history of a standby is kept on another server"),
    })
}

/// How often a standby is asked whether it was promoted, or how far it has replayed.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Waits until a standby's catalogs are no older than when they were last seen whole. A standby that was promoted before that
/// is compared as it is.
pub(super) async fn wait_for_replay(slot: &str, source: &Client, whole: Lsn) -> Result<()> {
    let mut reminder = Reminder::default();
    while server_of(source).await?.in_recovery {
        let replayed = slot::position(source)
            .await
            .map_err(Side::Source.failed("could not show the end of its WAL"))?;
        if replayed >= whole {
            break;
        }
        if reminder.is_due() {
            let what = NotYet::Receive(whole);
            tracing::warn!(slot, remedy = what.remedy(), "{what}");
            reminder.shows(&what.to_string());
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
    Ok(())
}

/// Waits until a standby is promoted; returns its new timeline. Cancel-safe.
pub(super) async fn promoted(source: &Client) -> Result<u32> {
    let timeline = "SELECT CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN \
        ('x' || pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::bit(32)::int END";
    loop {
        tokio::time::sleep(ASK_AGAIN).await;
        let row = source.query_one(timeline, &[]).await;
        let row = row.map_err(Side::Source.failed("could not show its timeline"))?;
        if let Some(timeline) = row.get::<_, Option<i32>>(0) {
            return Ok(timeline.cast_unsigned());
        }
    }
}

/// How a slot is made that does not exist; none: it is not made.
pub(super) fn slot_kind(config: &Config, server: Server) -> Option<SlotKind> {
    let failover = failover::is_wanted(config.source.failover, server);
    match (config.setup, config.snapshot.mode) {
        (Setup::Manual, _) => None,
        (Setup::Auto, SnapshotMode::Initial) => Some(SlotKind::Exporting { failover }),
        (Setup::Auto, SnapshotMode::Never) => Some(SlotKind::Plain { failover }),
    }
}

/// Has the slot survive a fail-over, or not, as it is configured; false while another process uses it.
pub(super) async fn is_altered(
    config: &Config,
    source: &Client,
    replication: &mut Replication,
    slot: Option<&SlotState>,
) -> Result<bool> {
    let (name, wanted) = (config.source.slot.as_str(), config.source.failover);
    let server = server_of(source).await?;
    let alteration = slot.and_then(|slot| failover::alteration(wanted, server, slot));
    let Some(failover) = alteration.filter(|_| config.setup == Setup::Auto) else {
        return Ok(true);
    };
    match replication.alter_slot(name, failover).await {
        Ok(()) => {
            tracing::info!(slot = name, failover, "altered the slot");
            Ok(true)
        }
        Err(error) => match error.server().map(|report| report.code.as_str()) {
            Some("55006") => Ok(false),
            Some(_) => {
                tracing::warn!(slot = name, %error, "the slot could not be altered");
                Ok(true)
            }
            None => Err(source::failed("could not alter the slot", error)),
        },
    }
}

/// Says when commits of the application wait for this stream, or wait no more; `waited_for`: what was said last.
pub(super) async fn log_waited_for(source: &Client, waited_for: &mut bool) -> Result<()> {
    let now = requirements::is_waited_for(source).await?;
    let before = std::mem::replace(waited_for, now);
    match (before, now) {
        (false, true) => tracing::warn!(
            remedy = "name the standbys in synchronous_standby_names on the source",
            "commits on the source wait for this history"
        ),
        (true, false) => tracing::info!("commits on the source wait for this history no more"),
        _ => {}
    }
    Ok(())
}

/// Logs what keeps the slot from surviving a fail-over, and notes what `waltrail adopt` compares.
pub(super) async fn log_failover(config: &Config, source: &Client, target: &Client) -> Result<()> {
    let failed = Side::Source.failed("could not show its standbys");
    let server = server_of(source).await?;
    let facts = failover::facts(source, server).await.map_err(failed)?;
    let slot = inspect(source, &config.source.slot).await?;
    let former = Former {
        major: Some(server.major),
        failover: slot.as_ref().and_then(|slot| slot.failover),
    };
    checkpoint::set_former(target, &config.source.slot, former)
        .await
        .map_err(Side::Target.failed("could not keep its checkpoint"))?;
    let found = failover::findings(
        (&config.source.slot, config.source.failover),
        server,
        slot.as_ref(),
        &facts,
    );
    for finding in found {
        let (text, remedy) = (finding.what, finding.remedy);
        match finding.severity {
            Severity::Note => tracing::info!(remedy, "{text}"),
            Severity::Warning | Severity::Error => tracing::warn!(remedy, "{text}"),
        }
    }
    Ok(())
}
