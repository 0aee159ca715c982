//! What the target knows beside what the source is now: slot and checkpoint, what was seen whole, gaps that a person has not
//! accepted.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_postgres::Client;

use super::source_watch::{self, Until};
use super::standbys;
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::fault::{Exit, Fault, Result};
use crate::finding::Finding;
use crate::history::followed::{self, Record};
use crate::history::{checkpoint, gap};
use crate::lsn::Lsn;
use crate::pipeline::Captured;
use crate::schema::{TableName, catalog};
use crate::server::{self, Side};
use crate::setup;
use crate::snapshot::state;
use crate::source;
use crate::source::replication::Replication;
use crate::source::slot::{self, Decision, Situation, SlotState};

/// Refuses a gap that is not accepted, and compares the source with what was last seen whole. Returns the configuration with
/// the tables that its patterns mean, and with the present names of all.
pub(super) async fn compared(
    config: &Config,
    source: &Client,
    target: &Client,
) -> Result<(Config, Option<Record>, Option<Until>)> {
    let slot = &config.source.slot;
    gap::refuse_standing(target, slot).await?;
    let known = followed::read(target, slot).await?;
    if let Some(record) = &known {
        standbys::wait_for_replay(slot, source, record.whole.lsn).await?;
    }
    let mut config = setup::expand(config, source, known.as_ref()).await?;
    let Some(record) = &known else {
        return Ok((config, None, None));
    };
    let followed: BTreeSet<&TableName> = record.tables.iter().map(|table| &table.history).collect();
    for table in &mut config.tables {
        table.followed = followed.contains(&table.history);
    }
    let (was, now) = (&record.publication.name, &config.source.publication);
    if was != now {
        return Err(Fault::halt(
            Exit::HistoryWouldBeWrong,
            format!(
                "the history was read through publication \"{was}\", and source.publication is \"{now}\": changes that \
                 it did not publish would be missing"
            ),
        )
        .remedy(format!(
            "set source.publication = \"{was}\"; or, for a new baseline after the gap: waltrail accept-gap"
        ))
        .see("the-publication-is-another-one"));
    }
    let until = source_watch::compare(&mut config, source, record).await?;
    Ok((config, known, until))
}

/// Why set-up failed: a table that was renamed or replaced meanwhile is looked up anew.
pub(super) async fn while_changed(
    fault: Fault,
    config: &Config,
    source: &Client,
    target: &Client,
) -> Fault {
    match compared(config, source, target).await {
        Ok((now, Some(_), until)) if until.is_some() || now != *config => {
            Fault::retry("the source was changed while the session was started").caused_by(fault)
        }
        _ => fault,
    }
}

/// Keeps what is followed from now on.
pub(super) async fn keep(
    config: &Config,
    source: &Client,
    target: &Client,
    captured: &[Captured],
) -> Result<Record> {
    // With what set-up has noted of its own doing.
    let before = followed::read(target, &config.source.slot).await?;
    let record = source_watch::record(config, source, captured, before.as_ref()).await?;
    followed::write(target, &config.source.slot, &record)
        .await
        .map_err(Side::Target.failed("could not keep what is followed"))?;
    Ok(record)
}

/// So long the end of the process waits for the target.
const KEEP_MAX: Duration = Duration::from_secs(30);

/// Keeps the gap that a daemon stops for, so that every later start refuses it too.
pub(crate) async fn remember(config: &Config, fault: &Fault) {
    let Some(missing) = fault.gap() else {
        return;
    };
    let slot = &config.source.slot;
    let kept = async {
        let target = server::sql(&config.target, Side::Target).await?;
        let known = followed::read(&target, slot).await?;
        // Those that patterns mean are in the record alone.
        let recorded = known.iter().flat_map(|known| &known.tables);
        let histories: BTreeSet<&TableName> = config
            .tables
            .iter()
            .map(|table| &table.history)
            .chain(recorded.map(|table| &table.history))
            .collect();
        let histories: Vec<&TableName> = histories.into_iter().collect();
        gap::remember(&target, slot, missing, &fault.to_string(), &histories)
            .await
            .map_err(Side::Target.failed("could not keep the gap"))
    };
    let kept = tokio::time::timeout(KEEP_MAX, kept).await;
    let in_vain = |_| Err(Fault::retry("the target did not answer in time"));
    if let Err(error) = kept.unwrap_or_else(in_vain) {
        tracing::error!(%error, "the gap is not kept in the target: accept it before the next start");
    }
}

/// What a start would refuse of slot, checkpoint and record: for `waltrail check`. Also returns the configuration with the
/// tables that are meant now.
pub(crate) async fn look(
    config: &Config,
    source: &Client,
    target: &Client,
    replication: Option<Replication>,
) -> (Config, Vec<Finding>) {
    let mut found = Vec::new();
    let config = match compared(config, source, target).await {
        Ok((config, _, until)) => {
            let fault = until.and_then(|until| until.fault());
            found.extend(fault.map(|fault| Finding::error(Side::Source, UNANSWERED, fault)));
            config
        }
        Err(fault) => {
            found.push(Finding::error(Side::Target, UNANSWERED, fault));
            let meant = setup::effective(config, source, target).await;
            meant.unwrap_or_else(|_| config.clone())
        }
    };
    if let Some(mut replication) = replication {
        let looked = look_at_slot(&config, source, target, &mut replication).await;
        found.extend(looked.unwrap_or_else(|fault| {
            let code = match fault.exit() {
                Exit::Config => "the-slot-is-not-ours",
                _ => UNANSWERED,
            };
            Some(Finding::error(Side::Source, code, fault))
        }));
    }
    (config, found)
}

const UNANSWERED: &str = "could-not-be-checked";

async fn look_at_slot(
    config: &Config,
    source: &Client,
    target: &Client,
    replication: &mut Replication,
) -> Result<Option<Finding>> {
    let made = "SELECT to_regclass('waltrail.checkpoint') IS NOT NULL";
    let made = target.query_one(made, &[]).await;
    let made = made.map_err(Side::Target.failed("could not show its checkpoint"))?;
    let made: bool = made.get(0);
    let known = match made {
        true => read_checkpoint(target, &config.source.slot).await?,
        false => None,
    };
    let names: Vec<&TableName> = config.tables.iter().map(|table| &table.history).collect();
    let histories = catalog::history_tables(target, &names, &[]).await;
    let histories =
        histories.map_err(Side::Target.failed("could not describe the history tables"))?;
    let names = names
        .into_iter()
        .filter(|name| histories.named(name).is_some());
    let names: Vec<TableName> = names.cloned().collect();
    if made {
        let histories: Vec<String> = names.iter().map(ToString::to_string).collect();
        state::refuse_others(target, &config.source.slot, &histories).await?;
    }
    let servers = (source, target);
    let compared = compare_with(config, servers, (known, &names), replication).await?;
    match compared.decision {
        Decision::Create => Ok(Some(setup::missing(
            config,
            &Side::Source,
            &format!("replication slot {}", config.source.slot),
        ))),
        Decision::Resume(_)
        | Decision::Adopt(_)
        | Decision::BeingMade { .. }
        | Decision::NotYet(_) => Ok(None),
    }
}

/// Why the stream may not start from the checkpoint, if it may not; and where the source stands.
///
/// # Errors
/// A server failed, or the slot is not for this program.
pub(crate) async fn misfit(
    config: &Config,
    source: &Client,
    target: &Client,
) -> Result<(Option<Fault>, slot::Identity)> {
    let mut replication = Replication::connect(&config.source).await?;
    let identity = identify(&mut replication).await?;
    let histories: Vec<_> = config.tables.iter().map(|t| t.history.clone()).collect();
    match compare(config, (source, target), &histories, &mut replication).await {
        Ok(_) => Ok((None, identity)),
        Err(fault) if fault.exit() == Exit::HistoryWouldBeWrong => Ok((Some(fault), identity)),
        Err(fault) => Err(fault),
    }
}

/// The checkpoint, and what the source is.
pub(crate) async fn known_and_identity(
    config: &Config,
    target: &Client,
) -> Result<(Option<Checkpoint>, slot::Identity)> {
    let mut replication = Replication::connect(&config.source).await?;
    let identity = identify(&mut replication).await?;
    let known = read_checkpoint(target, &config.source.slot).await?;
    Ok((known, identity))
}

pub(super) async fn identify(replication: &mut Replication) -> Result<slot::Identity> {
    replication
        .identify_system()
        .await
        .map_err(|error| source::failed("could not name its cluster", error))
}

/// What was decided, of which source.
pub(super) struct Compared {
    pub(super) decision: Decision,
    pub(super) identity: slot::Identity,
    /// Where the source left the checkpoint's timeline, when it is on another one.
    pub(super) fork: Option<Lsn>,
}

/// Compares slot, checkpoint and server as they are now.
pub(super) async fn compare(
    config: &Config,
    (source, target): (&Client, &Client),
    histories: &[TableName],
    replication: &mut Replication,
) -> Result<Compared> {
    let servers = (source, target);
    let mut known = read_checkpoint(target, &config.source.slot).await?;
    loop {
        let compared = compare_with(config, servers, (known, histories), replication).await;
        if compared.is_ok() {
            return compared;
        }
        // A predecessor that is just ending may have noted a position, and then confirmed it, between the two looks.
        let now = read_checkpoint(target, &config.source.slot).await?;
        if now == known {
            return compared;
        }
        known = now;
    }
}

/// The same with a checkpoint as it was read.
async fn compare_with(
    config: &Config,
    (source, target): (&Client, &Client),
    (known, histories): (Option<Checkpoint>, &[TableName]),
    replication: &mut Replication,
) -> Result<Compared> {
    let name = config.source.slot.as_str();
    // Before its timeline: a standby may be promoted between the two.
    let server = server_of(source).await?;
    let identity = identify(replication).await?;
    let found = inspect(source, name).await?;
    let fork = match known {
        // A timeline descends from lower ones alone.
        Some(known) if known.timeline < identity.timeline => replication
            .left_timeline_at(identity.timeline, known.timeline)
            .await
            .map_err(|error| source::failed("could not show the history of its timeline", error))?,
        _ => None,
    };
    let history_is_empty = match (&found, known) {
        (Some(_), None) => setup::history_is_empty(target, histories).await?,
        _ => true,
    };
    let rows_of = match known {
        Some(_) => state::latest_point(target, name).await?,
        None => None,
    };
    let decision = slot::decide(&Situation {
        name,
        database: config.source.connection.dbname(),
        slot: found.as_ref(),
        known,
        identity,
        server,
        fork,
        history_is_empty,
        rows_of,
        histories,
    })?;
    Ok(Compared {
        decision,
        identity,
        fork,
    })
}

pub(super) async fn server_of(source: &Client) -> Result<slot::Server> {
    slot::server(source)
        .await
        .map_err(Side::Source.failed("could not show its version"))
}

pub(super) async fn read_checkpoint(target: &Client, slot: &str) -> Result<Option<Checkpoint>> {
    checkpoint::read(target, slot)
        .await
        .map_err(Side::Target.failed("could not show its checkpoint"))
}

pub(super) async fn inspect(source: &Client, name: &str) -> Result<Option<SlotState>> {
    slot::inspect(source, name)
        .await
        .map_err(Side::Source.failed("could not show its replication slots"))
}

/// The slot must not have moved since it was compared. With `user` it is ours now, and cannot. Returns where it is.
pub(super) async fn still_fits(
    source: &Client,
    name: &str,
    user: Option<i32>,
    reported: Lsn,
) -> Result<Lsn> {
    let slot = inspect(source, name).await?;
    // A walsender that has ended already has sent why.
    let is_ours = |slot: &SlotState| {
        user.is_none_or(|pid| slot.active_pid.is_none_or(|active| active == pid))
    };
    slot.filter(is_ours)
        .and_then(|slot| slot.confirmed_flush)
        .filter(|at| *at <= reported)
        .ok_or_else(|| Fault::retry("the slot was changed while the stream was started"))
}
