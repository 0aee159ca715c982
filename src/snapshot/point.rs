//! The moment that a snapshot is of, and who keeps it alive.
//!
//! A snapshot that fits the stream exists only where a logical slot is made: what committed before the slot's
//! *consistent point* is visible in it, what commits after is streamed (manual, section 49.2.5, "Exported Snapshots").
//! The slot of the stream has its own; every later one is that of a temporary slot, made for nothing else. The
//! exported snapshot lives until the next command on the slot's connection, so a session of ordinary SQL, the
//! *holder*, imports it and exports it once more: from then on that connection, and with it the temporary slot and
//! the WAL that it keeps, can go.
//!
//! The holder's locks, too, hold as long as it lives. Should it die, a table could be truncated under a worker
//! that has not read it yet, which would then read nothing: so it is asked before rows are committed.

use std::sync::Arc;

use tokio_postgres::Client;

use crate::config::Config;
use crate::fault::{Disposition, Fault, Result};
use crate::lsn::Lsn;
use crate::schema::SourceTable;
use crate::schema::plan::literal;
use crate::server::{self, Side};
use crate::source::replication::{Replication, SlotKind, create_slot};
use crate::wire::Channel;

/// One read takes at most this much off the source's socket, and it is what one worker holds in memory.
const GULP: usize = 256 * 1024;

const PINNED: [(&str, &str); 3] = [
    ("row_security", "off"),
    // A part is a plain scan; anything that the planner might add only costs.
    ("max_parallel_workers_per_gather", "0"),
    ("jit", "off"),
];

/// A consistent point, with the snapshot of it.
pub struct Point {
    /// What committed before it is in the snapshot.
    pub lsn: Lsn,
    pub holder: Arc<SnapshotHolder>,
    /// A first session for the copy, with the locks it needs.
    pub reader: Option<Channel>,
}

impl Point {
    /// Takes a point by making a temporary slot. Waits for every transaction that has written something. `instance`: see
    /// [`TableSync`](super::table_sync::TableSync).
    ///
    /// # Errors
    /// The source failed, or has no room for one more slot or walsender.
    pub async fn take(config: &Config, instance: u32) -> Result<Self> {
        let source = server::sql(&config.source.connection, Side::Source).await?;
        let (kin, ours) = slot_names(&config.source.slot, instance);
        end_forgotten(&source, &kin, &ours).await?;
        let name = format!("{ours}{:04x}", fastrand::u16(..));
        Self::of_slot(config, &source, &name).await
    }

    /// Takes a point by making a temporary slot of this name.
    pub(crate) async fn at(config: &Config, name: &str) -> Result<Self> {
        let source = server::sql(&config.source.connection, Side::Source).await?;
        Self::of_slot(config, &source, name).await
    }

    async fn of_slot(config: &Config, source: &Client, name: &str) -> Result<Self> {
        let mut replication = Replication::connect(&config.source).await?;
        let made = create_slot(source, &mut replication, name, SlotKind::Temporary).await;
        // The slots there are may be free again in a moment, and the stream needs none of them.
        let made = made.map_err(|fault| match fault.disposition() {
            Disposition::Halt(crate::fault::Exit::Config) => {
                let remedy = fault.remedy_text().unwrap_or_default().to_owned();
                Fault::retry("the source has no slot left for the snapshot")
                    .remedy(remedy)
                    .caused_by(fault)
            }
            _ => fault,
        })?;
        let Some(snapshot) = &made.snapshot else {
            return Err(Fault::bug(
                "the source made a slot without the snapshot that was asked for",
            ));
        };
        let holder = SnapshotHolder::import(config, snapshot).await?;
        Ok(Self {
            lsn: made.position,
            holder: Arc::new(holder),
            reader: None,
        })
    }
}

/// How the names of all temporary slots for this slot begin, and of those whose makers may still be at work.
fn slot_names(slot: &str, instance: u32) -> (String, String) {
    // FNV-1a: the same in every process.
    let hash = slot.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let kin = format!("waltrail_{hash:08x}_");
    let ours = format!("{kin}{instance:08x}_");
    (kin, ours)
}

/// Ends walsenders that still make a slot whose client has gone: while they wait for a transaction they do not notice,
/// and each start would add one, until there is none left for the stream.
async fn end_forgotten(source: &Client, kin: &str, ours: &str) -> Result<()> {
    let ended = source
        .query(
            "SELECT active_pid, pg_terminate_backend(active_pid) FROM pg_catalog.pg_replication_slots \
              WHERE temporary AND active_pid IS NOT NULL AND starts_with(slot_name::text, $1) \
                AND NOT starts_with(slot_name::text, $2)",
            &[&kin, &ours],
        )
        .await
        .map_err(Side::Source.failed("could not terminate an orphaned walsender"))?;
    for row in ended {
        let pid: i32 = row.get(0);
        tracing::info!(pid, "terminated an orphaned walsender");
    }
    Ok(())
}

/// A table as LOCK TABLE wants it.
pub(crate) fn lock_name(table: &SourceTable) -> String {
    match table.kind {
        'p' => table.name.to_string(),
        // Inheritance children are not part of the table that is published.
        _ => format!("ONLY {}", table.name),
    }
}

pub struct SnapshotHolder {
    /// In a transaction that sees the snapshot.
    pub client: Client,
    pub snapshot: String,
    /// The source's clock when the snapshot was imported, in UTC with its offset.
    pub time: String,
}

impl SnapshotHolder {
    /// Imports a snapshot and exports it once more.
    pub async fn import(config: &Config, snapshot: &str) -> Result<Self> {
        let failed = |error: tokio_postgres::Error| {
            // "Invalid snapshot identifier" has a class that else speaks of values.
            let fault = Fault::retry("the source could not keep the snapshot");
            match error.as_db_error() {
                Some(_) => fault.caused_by(Side::Source.failed("refused")(error)),
                None => fault.caused_by(error),
            }
        };
        let client = server::sql(&config.source.connection, Side::Source).await?;
        for statement in [
            "SET row_security = off",
            // Each by itself: what runs before it in one message counts as a query.
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            &format!("SET TRANSACTION SNAPSHOT {}", literal(snapshot)),
        ] {
            client.batch_execute(statement).await.map_err(failed)?;
        }
        let row = client
            .query_one(
                "SELECT pg_catalog.pg_export_snapshot(), \
                        to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'",
                &[],
            )
            .await
            .map_err(failed)?;
        Ok(Self {
            snapshot: row.get(0),
            time: row.get(1),
            client,
        })
    }

    /// Locks tables right away where no other lock is in the way, for itself and a first reader, so that what comes between
    /// the snapshot and the lock is as good as nothing; what is not locked here is waited for later (`tables.rs`).
    pub async fn lock_now(
        &self,
        config: &Config,
        tables: &[&SourceTable],
    ) -> Result<Option<Channel>> {
        let names: Vec<String> = tables.iter().map(|table| lock_name(table)).collect();
        let lock = format!(
            "SAVEPOINT lock; LOCK TABLE {} IN ACCESS SHARE MODE NOWAIT",
            names.join(", ")
        );
        let locked = self.client.batch_execute(&lock).await.is_ok();
        let reader = match locked {
            // What is denied is named later.
            true => self.reader(config, &names).await?,
            false => None,
        };
        let end = match reader {
            Some(_) => "RELEASE lock",
            None => "ROLLBACK TO lock",
        };
        self.client.batch_execute(end).await.map_err(|error| {
            Fault::retry("the session that kept the snapshot ended").caused_by(error)
        })?;
        Ok(reader)
    }

    /// A session that sees the snapshot and has these tables locked; none when another lock is in the way.
    pub async fn reader(&self, config: &Config, names: &[String]) -> Result<Option<Channel>> {
        let connection = &config.source.connection;
        let (mut reader, _) = server::channel(connection, Side::Source, &PINNED, GULP).await?;
        for statement in [
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            &format!("SET TRANSACTION SNAPSHOT {}", literal(&self.snapshot)),
        ] {
            reader.simple_query(statement).await.map_err(|error| {
                Fault::retry("the source did not let a worker see the snapshot").caused_by(error)
            })?;
        }
        let lock = format!(
            "LOCK TABLE {} IN ACCESS SHARE MODE NOWAIT",
            names.join(", ")
        );
        match reader.simple_query(&lock).await {
            Ok(_) => Ok(Some(reader)),
            Err(error) if error.server().is_some_and(|report| report.code == "55P03") => Ok(None),
            Err(error) => Err(
                Fault::retry("the source did not let a worker lock its tables").caused_by(error),
            ),
        }
    }

    /// Whether everything that it kept was kept until now.
    pub async fn check(&self) -> Result<()> {
        self.client
            .batch_execute("SELECT 1")
            .await
            .map_err(|error| {
                Fault::retry("the session that kept the snapshot ended").caused_by(error)
            })
    }
}
