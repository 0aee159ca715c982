//! `waltrail accept-gap`: a person decides that changes are missing. Each history concerned gets a row that says so, and its
//! existing rows are recorded again at the next start, so that from there on the history can be folded into the table.
//!
//! Where every history is concerned, the slot is made anew: what it still holds lies before the gap, or cannot be read.

use std::fmt::Write as _;

use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::config::{Config, SnapshotMode};
use crate::fault::{Exit, Fault, Result};
use crate::history::checkpoint;
use crate::history::followed;
use crate::history::gap::{self, Standing};
use crate::history::writer::Writer;
use crate::lsn::Lsn;
use crate::schema::plan::literal;
use crate::schema::{TableName, catalog};
use crate::server::{self, Side};
use crate::session;
use crate::setup;
use crate::snapshot::state;
use crate::source::slot::{self, Identity};
use crate::wire;

/// What is accepted, and how.
struct Decision {
    histories: Vec<TableName>,
    from: Lsn,
    /// The source's position now: until then changes are missing.
    to: Lsn,
    reason: String,
    /// The slot begins anew.
    anew: bool,
    /// Slots that wrote these histories before.
    others: Vec<String>,
}

/// Accepts the gaps of the tables that are `chosen` (all, when none is), and returns what was done, for a person; or the SQL
/// that does it.
///
/// # Errors
/// A daemon runs; the source is another cluster and `source_replaced` is not given; the target refuses.
pub(crate) async fn run(
    config: &Config,
    chosen: &[String],
    dry_run: bool,
    source_replaced: bool,
) -> Result<String> {
    let source = server::sql(&config.source.connection, Side::Source).await?;
    let target = server::sql(&config.target, Side::Target).await?;
    let config = &setup::effective(config, &source, &target).await?;
    let slot = config.source.slot.as_str();
    let _lock = refuse_running(config, slot, "accept-gap").await?;
    let others = others(config, &target).await?;
    let mut locks = Vec::new();
    for other in &others {
        locks.push(refuse_running(config, other, "accept-gap").await?);
    }
    let (misfit, identity) = session::misfit(config, &source, &target).await?;
    let is_another = |fault: &Fault| fault.anchor() == Some("the-source-is-another-cluster");
    let misfit = match misfit {
        Some(fault) if is_another(&fault) && !source_replaced => return Err(fault),
        misfit => misfit,
    };
    let to = slot::position(&source)
        .await
        .map_err(Side::Source.failed("could not show the end of its WAL"))?
        .max(identity.flushed);
    let known = followed::read(&target, slot).await?;
    let publication = known.map(|known| known.publication.name);
    let publication = publication.filter(|was| *was != config.source.publication);
    let reason = reason(config, &others, misfit, publication, source_replaced);
    let decision = match reason {
        Some(reason) => Some(of_all(config, &target, others, reason, to).await?),
        None => standing(config, &target, chosen, to).await?,
    };
    let Some(decision) = decision else {
        return Ok("no gap is open: nothing to accept\n".to_owned());
    };
    let on_source = on_source(config, &source, &decision).await?;
    let on_target = on_target(config, &target, &decision, identity).await?;
    if dry_run {
        return Ok(printed(on_source, &on_target));
    }
    let failed = Side::Target.failed("could not record the gap");
    target
        .batch_execute(&on_target.join("; "))
        .await
        .map_err(&failed)?;
    // Once the target has refused nothing, and before it commits: the checkpoint that goes is what says that the slot is not
    // to be read.
    if let Some(statement) = on_source {
        source
            .batch_execute(&statement)
            .await
            .map_err(Side::Source.failed("could not drop the replication slot"))?;
    }
    target.batch_execute("COMMIT").await.map_err(failed)?;
    Ok(told(config, &decision))
}

/// The SQL of it.
fn printed(on_source: Option<String>, on_target: &[String]) -> String {
    let on_source = on_source.map(|statement| format!("-- source\n{statement};\n\n"));
    let on_target = on_target.join(";\n");
    format!(
        "{}-- target\n{on_target};\nCOMMIT;\n",
        on_source.unwrap_or_default()
    )
}

/// Takes the writer's lock of a slot, which is held as long as what is returned. `command`: the one that needs it.
pub(crate) async fn refuse_running(
    config: &Config,
    slot: &str,
    command: &str,
) -> Result<JoinSet<wire::Error>> {
    let mut writer = Writer::connect(&config.target, slot).await?;
    let locked = writer.try_lock().await.map_err(|error| {
        Fault::retry("the target could not give out the writer's lock").caused_by(error)
    })?;
    if !locked {
        let running = format!("a waltrail writes for slot {slot}");
        return Err(Fault::halt(Exit::Unreachable, running)
            .remedy(format!("stop it first, then run {command} again")));
    }
    Ok(writer.hold())
}

/// The slots that wrote the configured histories before.
async fn others(config: &Config, target: &Client) -> Result<Vec<String>> {
    let histories = config.tables.iter().map(|table| table.history.to_string());
    let histories: Vec<String> = histories.collect();
    let found = state::other_slots(target, &config.source.slot, &histories).await?;
    let mut others: Vec<String> = found.into_iter().map(|(other, _)| other).collect();
    others.dedup();
    Ok(others)
}

/// Why changes of every history are missing, if they are.
fn reason(
    config: &Config,
    others: &[String],
    misfit: Option<Fault>,
    publication: Option<String>,
    source_replaced: bool,
) -> Option<String> {
    let (slot, now) = (&config.source.slot, &config.source.publication);
    match (others.first(), misfit, publication) {
        (Some(other), ..) => Some(format!(
            "slot \"{slot}\" takes the place of slot \"{other}\""
        )),
        (None, Some(fault), _) => Some(fault.to_string()),
        (None, None, Some(was)) => Some(format!(
            "publication \"{now}\" takes the place of publication \"{was}\""
        )),
        // Of a copy of the same cluster, only its log says that it is another one.
        (None, None, None) => source_replaced
            .then(|| "another copy takes the place of the source that was followed".to_owned()),
    }
}

/// A gap of every history.
async fn of_all(
    config: &Config,
    target: &Client,
    others: Vec<String>,
    reason: String,
    to: Lsn,
) -> Result<Decision> {
    let ends = others.first().unwrap_or(&config.source.slot);
    let known = checkpoint::read(target, ends)
        .await
        .map_err(Side::Target.failed("could not show its checkpoint"))?;
    Ok(Decision {
        histories: config.tables.iter().map(|t| t.history.clone()).collect(),
        from: known.and_then(|known| known.end_lsn).unwrap_or_default(),
        to,
        reason,
        anew: true,
        others,
    })
}

/// The gaps that were found and stand, of the tables that are chosen; those of tables that are not configured any more, too.
async fn standing(
    config: &Config,
    target: &Client,
    chosen: &[String],
    to: Lsn,
) -> Result<Option<Decision>> {
    let standing: Vec<Standing> = gap::standing(target, &config.source.slot)
        .await
        .map_err(Side::Target.failed("could not show the gaps of the history"))?;
    let named = |text: &str| text.parse::<TableName>();
    let mut open = Vec::with_capacity(standing.len());
    for gap in &standing {
        let history = named(&gap.history);
        open.push((
            history.map_err(|_| Fault::bug("a history with an impossible name"))?,
            gap,
        ));
    }
    let mut wanted = Vec::with_capacity(chosen.len());
    for text in chosen {
        let name = named(text).ok();
        let table = config.tables.iter().find(|table| {
            name.as_ref()
                .is_some_and(|name| [&table.source, &table.history].contains(&name))
        });
        let of_gap = open
            .iter()
            .find(|(history, _)| name.as_ref() == Some(history));
        match (table, of_gap) {
            (Some(table), _) => wanted.push(table.history.clone()),
            (None, Some((history, _))) => wanted.push(history.clone()),
            (None, None) => {
                return Err(Fault::halt(
                    Exit::Usage,
                    format!("{text} is not a table of the configuration"),
                ));
            }
        }
    }
    let all = config.tables.iter().map(|table| &table.history);
    let is_open = |history: &TableName| open.iter().any(|(of, _)| of == history);
    if !wanted.is_empty() && all.clone().all(is_open) && !all.clone().all(|h| wanted.contains(h)) {
        return Err(Fault::halt(
            Exit::Usage,
            "every history has this gap, which one slot and one publication have made",
        )
        .remedy("waltrail accept-gap, without --table"));
    }
    open.retain(|(history, _)| wanted.is_empty() || wanted.contains(history));
    let Some((_, first)) = open.first() else {
        return Ok(None);
    };
    Ok(Some(Decision {
        from: open
            .iter()
            .map(|(_, gap)| gap.from)
            .min()
            .unwrap_or(first.from),
        to,
        reason: first.reason.clone(),
        anew: all
            .clone()
            .all(|history| open.iter().any(|(of, _)| of == history)),
        histories: open.iter().map(|(history, _)| history.clone()).collect(),
        others: Vec::new(),
    }))
}

/// The statement for the source, if there is one.
async fn on_source(
    config: &Config,
    source: &Client,
    decision: &Decision,
) -> Result<Option<String>> {
    let slot = config.source.slot.as_str();
    let found = slot::inspect(source, slot)
        .await
        .map_err(Side::Source.failed("could not show its replication slots"))?;
    Ok(match found {
        Some(_) if decision.anew => Some(format!(
            "SELECT pg_catalog.pg_drop_replication_slot('{slot}')"
        )),
        _ => None,
    })
}

/// The one transaction of the target, but for its COMMIT.
async fn on_target(
    config: &Config,
    target: &Client,
    decision: &Decision,
    identity: Identity,
) -> Result<Vec<String>> {
    let (from, to) = (decision.from, decision.to);
    let names: Vec<String> = decision
        .histories
        .iter()
        .map(|history| literal(&history.to_string()))
        .collect();
    // As printed, it is for a session of another: there, objects of any schema could stand in for the server's.
    let mut statements = vec!["BEGIN".to_owned(), "SET LOCAL search_path = ''".to_owned()];
    let wanted: Vec<&TableName> = decision.histories.iter().collect();
    let found = catalog::history_tables(target, &wanted, &[])
        .await
        .map_err(Side::Target.failed("could not describe the history tables"))?;
    for name in &decision.histories {
        let table = config.tables.iter().find(|table| table.history == *name);
        let prefix = table.map_or("", |table| &table.prefix);
        if let Some((history, _)) = found.named(name) {
            statements.push(gap::row(history, prefix, from, to));
        }
    }
    for other in &decision.others {
        let of = format!(
            "slot = {} AND history IN ({})",
            literal(other),
            names.join(", ")
        );
        for table in ["snapshot", "snapshot_part", "held", "followed"] {
            statements.push(format!("DELETE FROM waltrail.{table} WHERE {of}"));
        }
    }
    let whole = gap::knows_whole(target).await;
    let whole = whole.map_err(Side::Target.failed("could not show the gaps of the history"))?;
    statements.extend(of_control_schema(config, decision, identity, &names, whole));
    Ok(statements)
}

/// What the control schema has to know of it. `names`: of the histories, as literals. `whole`: it keeps until when they were
/// whole.
fn of_control_schema(
    config: &Config,
    decision: &Decision,
    identity: Identity,
    names: &[String],
    whole: bool,
) -> Vec<String> {
    let slot = config.source.slot.as_str();
    let (from, to) = (decision.from, decision.to);
    let of = format!("slot = '{slot}' AND history IN ({})", names.join(", "));
    let state = match (config.snapshot.mode, decision.anew) {
        (SnapshotMode::Initial, _) => "'waiting', consistent_point = NULL".to_owned(),
        // What comes from before the gap's end is left out.
        (SnapshotMode::Never, false) => format!("'done', consistent_point = '{to}'"),
        (SnapshotMode::Never, true) => "'done', consistent_point = '0/0'".to_owned(),
    };
    let ended = literal(decision.others.first().unwrap_or(&config.source.slot));
    let (column, value, is_set) = match whole {
        true => (
            ", whole_at",
            format!(", waltrail.whole_until({ended}, h, '{from}')"),
            format!(
                ", whole_at = coalesce(whole_at, waltrail.whole_until({ended}, history, from_lsn))"
            ),
        ),
        false => ("", String::new(), String::new()),
    };
    let mut statements = vec![
        format!(
            "UPDATE waltrail.snapshot SET state = {state}, attempt = attempt + 1, rows = 0, bytes = 0 WHERE {of}"
        ),
        format!("DELETE FROM waltrail.held WHERE {of}"),
        format!("DELETE FROM waltrail.followed WHERE {of}"),
        format!(
            "UPDATE waltrail.gap SET accepted_at = pg_catalog.clock_timestamp(), to_lsn = '{to}'{is_set} \
              WHERE {of} AND accepted_at IS NULL"
        ),
        format!(
            "INSERT INTO waltrail.gap (slot, history, reason, from_lsn, to_lsn, accepted_at{column}) \
             SELECT '{slot}', h, {}, '{from}', '{to}', pg_catalog.clock_timestamp(){value} \
               FROM pg_catalog.unnest(ARRAY[{}]) AS h \
              WHERE NOT EXISTS (SELECT FROM waltrail.gap g WHERE g.slot = '{slot}' AND g.history = h AND g.to_lsn = '{to}')",
            literal(&decision.reason),
            names.join(", ")
        ),
    ];
    if decision.anew {
        statements.extend([
            format!("DELETE FROM waltrail.watched WHERE slot = '{slot}'"),
            format!(
                "INSERT INTO waltrail.checkpoint (slot, system_identifier, timeline) VALUES ('{slot}', {system}, {timeline}) \
                 ON CONFLICT (slot) DO UPDATE SET system_identifier = {system}, timeline = {timeline}, end_lsn = NULL, \
                 reported_lsn = NULL, commit_timestamp = NULL",
                system = identity.system_identifier.cast_signed(),
                timeline = identity.timeline,
            ),
        ]);
    }
    statements
}

fn told(config: &Config, decision: &Decision) -> String {
    let mut text = String::new();
    for history in &decision.histories {
        let _ = writeln!(
            text,
            "{history}: changes between {} and {} are missing; a GAP row says so",
            decision.from, decision.to
        );
    }
    for other in &decision.others {
        let _ = writeln!(
            text,
            "slot {other} keeps WAL on its source as long as it is there; it is removed there by: \
             SELECT pg_catalog.pg_drop_replication_slot('{other}')"
        );
    }
    text.push_str(match config.snapshot.mode {
        SnapshotMode::Initial => "the next start records the existing rows again\n",
        SnapshotMode::Never => {
            "snapshot.mode is \"never\": the existing rows are not recorded again\n"
        }
    });
    text
}
