//! `waltrail adopt`: the history goes on after `pg_upgrade` of the source, which provably lost nothing.
//!
//! From 17 on, `pg_upgrade` keeps a logical slot only when everything that can be decoded was confirmed by its reader (manual,
//! "pg_upgrade", step "Prepare for publisher upgrades"). Only waltrail confirms what is in the history, so nothing of the
//! former cluster is missing. It makes the slot anew before the new cluster takes a connection, at a position past the former
//! cluster's WAL, so nothing of the new cluster is missing either.
//!
//! What can be checked is whether this cluster and this slot are what `pg_upgrade` left: `case.rs`, pure. A slot
//! that a person has made later in its place is known by rows that were written before it; not by rows that were only
//! deleted, and docs/operate/failover.md says so.

mod case;

use std::fmt::Write as _;

use tokio_postgres::Client;

use case::Case;

use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::fault::{Exit, Fault, Result};
use crate::history::followed::{self, Record};
use crate::history::{checkpoint, gap};
use crate::lsn::Lsn;
use crate::schema::TableName;
use crate::schema::sight::{self, Look};
use crate::server::{self, Side};
use crate::session;
use crate::setup;
use crate::snapshot::state;
use crate::source::slot::{self, Identity, Server};

/// Adopts the upgraded source, or says what would be done.
///
/// # Errors
/// Exit 65 for a source of which something can be missing, with every reason; a daemon runs; a server failed.
pub(crate) async fn run(config: &Config, dry_run: bool) -> Result<String> {
    let source = server::sql(&config.source.connection, Side::Source).await?;
    let target = server::sql(&config.target, Side::Target).await?;
    let config = &setup::effective(config, &source, &target).await?;
    let name = config.source.slot.as_str();
    let _lock = crate::accept_gap::refuse_running(config, name, "adopt").await?;
    gap::refuse_standing(&target, name).await?;
    let (known, identity) = session::known_and_identity(config, &target).await?;
    let Some(known) = known.filter(|known| known.end_lsn.is_some()) else {
        return Ok("the target has no history of this slot: nothing to adopt\n".to_owned());
    };
    if known.system_identifier == identity.system_identifier {
        return Ok("the source is the cluster that is followed: nothing to adopt\n".to_owned());
    }
    let adoption = examine(config, &source, &target, known, identity).await?;
    let statements = adoption.statements(name);
    if dry_run {
        return Ok(format!(
            "-- target\nBEGIN;\n{};\n-- what is followed is recorded as it is now\nCOMMIT;\n",
            statements.join(";\n")
        ));
    }
    adoption.keep(&target, name, &statements).await?;
    tracing::info!(
        slot = name,
        from_system_identifier = known.system_identifier,
        to_system_identifier = identity.system_identifier,
        from = %adoption.end_lsn,
        to = %adoption.position,
        "adopted the upgraded source; the history goes on there"
    );
    Ok(adoption.text(name))
}

/// A change of cluster that passed every check.
struct Adoption {
    known: Checkpoint,
    former_major: u32,
    end_lsn: Lsn,
    identity: Identity,
    server: Server,
    slot_failover: Option<bool>,
    /// The slot's in the new cluster.
    position: Lsn,
    record: Record,
}

async fn examine(
    config: &Config,
    source: &Client,
    target: &Client,
    known: Checkpoint,
    identity: Identity,
) -> Result<Adoption> {
    let name = config.source.slot.as_str();
    let end_lsn = known.end_lsn.unwrap_or_default();
    let failed = Side::Source.failed("could not show its replication slots");
    let server = slot::server(source).await.map_err(failed)?;
    let found = slot::inspect(source, name).await.map_err(failed)?;
    let Some(slot) = found else {
        return Err(refused(&[format!(
            "replication slot \"{name}\" does not exist: pg_upgrade did not keep it"
        )]));
    };
    let record = followed::read(target, name).await?;
    let Some(record) = record else {
        return Err(refused(&["what was followed is not recorded".to_owned()]));
    };
    let before = slot::position(source)
        .await
        .map_err(Side::Source.failed("could not show the end of its WAL"))?;
    let wanted: Vec<_> = record.tables.iter().map(|t| (t.oid, &t.name)).collect();
    let failed = Side::Source.failed("could not show its publication");
    let look = sight::look(source, &record.publication.name, &wanted)
        .await
        .map_err(failed)?;
    let older = publication_is_older(source, name, &record.publication.name);
    let reported = known.reported_lsn.unwrap_or_default();
    let rows_of = state::latest_point(target, name).await?;
    let case = Case {
        database: config.source.connection.dbname(),
        was: checkpoint::former(target, name)
            .await
            .map_err(Side::Target.failed("could not show its checkpoint"))?,
        seen: end_lsn.max(reported).max(rows_of.unwrap_or_default()),
        server,
        slot: &slot,
        record: &record,
        look: &look,
        publication_is_older: older.await.map_err(failed)?,
        written_before: written_before(source, name, &record, &look).await?,
    };
    let objections = case.objections();
    let (Some(position), Some(former_major), []) =
        (slot.confirmed_flush, case.was.major, objections.as_slice())
    else {
        return Err(refused(&objections));
    };
    Ok(Adoption {
        known,
        former_major,
        end_lsn,
        identity,
        server,
        slot_failover: slot.failover,
        position,
        record: case.seen_now(before),
    })
}

/// Whether the publication and its members were written before the slot was made. The slot was not read, so its
/// `catalog_xmin` is the one that it was made with.
async fn publication_is_older(
    source: &Client,
    slot: &str,
    publication: &str,
) -> Result<bool, tokio_postgres::Error> {
    let older = "SELECT coalesce(bool_and(pg_catalog.age(v.xmin) > pg_catalog.age(s.catalog_xmin)), false) \
          FROM pg_catalog.pg_replication_slots s, \
               (SELECT p.xmin FROM pg_catalog.pg_publication p WHERE p.pubname = $2 \
                UNION ALL SELECT r.xmin FROM pg_catalog.pg_publication_rel r \
                    JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE p.pubname = $2 \
                UNION ALL SELECT n.xmin FROM pg_catalog.pg_publication_namespace n \
                    JOIN pg_catalog.pg_publication p ON p.oid = n.pnpubid WHERE p.pubname = $2) v \
         WHERE s.slot_name = $1";
    let has_schemas =
        "SELECT pg_catalog.to_regclass('pg_catalog.pg_publication_namespace') IS NOT NULL";
    // From 15 on; what is older is refused for its version.
    if !source.query_one(has_schemas, &[]).await?.get::<_, bool>(0) {
        return Ok(false);
    }
    Ok(source
        .query_one(older, &[&slot, &publication])
        .await?
        .get(0))
}

/// The tables with rows from between `pg_upgrade`'s restore of the publication, in the new cluster, and the making of the slot.
/// Reads every followed table once.
async fn written_before(
    source: &Client,
    slot: &str,
    record: &Record,
    look: &Look,
) -> Result<Vec<TableName>> {
    let mut found = Vec::new();
    for (name, standing) in look.tables.iter().filter_map(|found| found.table.as_ref()) {
        let only = if standing.kind == 'p' { "" } else { "ONLY " };
        let query = format!(
            "SELECT EXISTS (SELECT FROM {only}{} t WHERE pg_catalog.age(t.xmin) < b.restored AND pg_catalog.age(t.xmin) > b.made) \
               FROM (SELECT pg_catalog.age(s.catalog_xmin) AS made, pg_catalog.age(p.xmin) AS restored \
                       FROM pg_catalog.pg_replication_slots s, pg_catalog.pg_publication p \
                      WHERE s.slot_name = $1 AND p.pubname = $2) b",
            name
        );
        let failed = format!("could not read {name}");
        let row = source
            .query_opt(&query, &[&slot, &record.publication.name])
            .await
            .map_err(Side::Source.failed(&failed))?;
        if row.is_some_and(|row| row.get(0)) {
            found.push(name.clone());
        }
    }
    Ok(found)
}

fn refused(objections: &[String]) -> Fault {
    Fault::halt(
        Exit::HistoryWouldBeWrong,
        format!(
            "the source cannot be adopted, because changes can be missing: {}",
            objections.join("; ")
        ),
    )
    .remedy(
        "correct source.dsn; or, if this source takes the place of the former one for good: waltrail accept-gap \
         --source-replaced",
    )
    .see("the-source-cannot-be-adopted")
}

impl Adoption {
    fn statements(&self, slot: &str) -> [String; 2] {
        let Self {
            known,
            former_major,
            end_lsn,
            identity,
            server,
            position,
            ..
        } = self;
        let (was, now) = (
            known.system_identifier.cast_signed(),
            identity.system_identifier.cast_signed(),
        );
        let failover = self
            .slot_failover
            .map_or("NULL".to_owned(), |is| is.to_string());
        [
            format!(
                "INSERT INTO waltrail.adopted (slot, from_system_identifier, from_timeline, from_major, from_end_lsn, \
                     from_reported_lsn, from_commit_timestamp, to_system_identifier, to_timeline, to_major, to_lsn)\n\
                 SELECT slot, system_identifier, timeline, {former_major}, end_lsn, reported_lsn, commit_timestamp, {now}, \
                     {timeline}, {major}, '{position}'\n  FROM waltrail.checkpoint \
                 WHERE slot = '{slot}' AND system_identifier = {was} AND end_lsn = '{end_lsn}'",
                timeline = identity.timeline,
                major = server.major,
            ),
            // The transaction that ends there is in the former cluster's WAL: none is expected.
            format!(
                "UPDATE waltrail.checkpoint SET system_identifier = {now}, timeline = {timeline}, end_lsn = '{position}', \
                     reported_lsn = '{position}', commit_timestamp = NULL, source_major = {major}, \
                     slot_failover = {failover}, updated_at = pg_catalog.clock_timestamp()\n\
                 WHERE slot = '{slot}' AND system_identifier = {was} AND end_lsn = '{end_lsn}'",
                timeline = identity.timeline,
                major = server.major,
            ),
        ]
    }

    /// One transaction of the target.
    async fn keep(&self, target: &Client, slot: &str, statements: &[String]) -> Result<()> {
        let failed = Side::Target.failed("could not record the adoption");
        target.batch_execute("BEGIN").await.map_err(&failed)?;
        for statement in statements {
            let rows = target.execute(statement, &[]).await.map_err(&failed)?;
            if rows != 1 {
                return Err(Fault::retry("the checkpoint was moved meanwhile"));
            }
        }
        followed::write(target, slot, &self.record)
            .await
            .map_err(&failed)?;
        target.batch_execute("COMMIT").await.map_err(failed)
    }

    fn text(&self, slot: &str) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "slot {slot}: the history ends at {} of the former cluster and goes on at {} of the new one; start waltrail run",
            self.end_lsn, self.position
        );
        text
    }
}
