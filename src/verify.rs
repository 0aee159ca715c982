//! `waltrail verify`: is this history true? The history folded up to a position, beside the table at the same position.
//!
//! A temporary slot gives the position and a snapshot of the source at it ([`passage`]). Both servers reduce their rows to
//! hashes; only where those differ are rows read, and never more than one of each side is kept ([`table`]). Nothing that it
//! reads is locked against writers, and no value leaves a server but the keys that differ.

mod difference;
mod form;
mod passage;
mod progress;
mod repair;
mod report;
mod rows;
mod table;

use std::time::{Duration, Instant};

use tokio::sync::OnceCell;
use tokio_postgres::Client;

use crate::answers::inherited;
use crate::answers::ledger::Ledger;
use crate::config::{self, Config};
use crate::fault::{Exit, Fault, Result};
use crate::schema::{Identifier, SourceTable, TableName, catalog};
use crate::server::{self, Side};
use crate::setup;
use crate::snapshot::point::Point;
use crate::snapshot::tables;
use form::{Bytes, Form};
use passage::{Around, Numbered, Passage};
use progress::Progress;
pub(crate) use report::Report;
use report::{Outcome, Table};
use table::{Found, Sides};

/// A snapshot keeps the source's VACUUM back. The next table gets a new one when it is older.
const POINT_AGE_MAX: Duration = Duration::from_secs(600);
/// So often a table is begun again that was rewritten just then.
const TRIES_MAX: usize = 5;
/// What each sort of the target may use; the rest goes to its disk.
const WORK_MEM: &str = "SET work_mem = '64MB'";

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// The tables; all where there are none.
    pub(crate) tables: Vec<String>,
    pub(crate) show_keys: bool,
    pub(crate) repair: bool,
}

/// Compares histories with their tables.
///
/// # Errors
/// A server failed; no waltrail writes; a table of `options` is not configured.
pub(crate) async fn run(config: &Config, options: &Options) -> Result<Report> {
    let source = server::sql(&config.source.connection, Side::Source).await?;
    let target = server::sql(&config.target, Side::Target).await?;
    let config = &setup::effective(config, &source, &target).await?;
    let known = "SELECT pg_catalog.to_regclass('waltrail.snapshot') IS NOT NULL";
    let known = target.query_one(known, &[]).await;
    let known = known.map_err(Side::Target.failed("could not show its checkpoint"))?;
    if !known.get::<_, bool>(0) {
        return Err(
            Fault::halt(Exit::Config, "the target has no history yet").remedy("waltrail run")
        );
    }
    let run = Run {
        bytes: bytes(&source, &target).await?,
        progress: Progress::new(),
        config,
        options,
        source,
        target,
    };
    let wanted = chosen(config, &options.tables)?;
    let mut found = Vec::with_capacity(wanted.len());
    let mut tries = 0;
    while found.len() < wanted.len() {
        let before = found.len();
        match run.at_a_point(&wanted, &mut found).await {
            Err(fault) if fault.may_pass() && found.len() == before && tries < TRIES_MAX => {
                tracing::info!(reason = %fault, "verifying again");
                tries += 1;
            }
            Err(fault) if !(fault.may_pass() && found.len() > before) => return Err(fault),
            _ => tries = 0,
        }
    }
    Ok(Report::of(found))
}

/// The tables that are named.
fn chosen<'a>(config: &'a Config, names: &[String]) -> Result<Vec<&'a config::Table>> {
    if names.is_empty() {
        return Ok(config.tables.iter().collect());
    }
    let one = |text: &String| {
        let name = text.parse::<TableName>().ok();
        let mut tables = config.tables.iter();
        let named = |table: &&config::Table| {
            let name = name.as_ref();
            name.is_some_and(|name| [&table.source, &table.history].contains(&name))
        };
        tables.find(named).ok_or_else(|| {
            let problem = format!("{text} is not a table of the configuration");
            Fault::halt(Exit::Usage, problem)
        })
    };
    names.iter().map(one).collect()
}

/// How texts are made to bytes on both sides, where both make the same number of them.
async fn bytes(source: &Client, target: &Client) -> Result<Bytes> {
    let query = "SELECT current_setting('server_encoding'), \
        hashtextextended(repeat('waltrail ', 11) COLLATE \"C\", 0)";
    let failed = "could not show its encoding";
    let source = source.query_one(query, &[]).await;
    let source = source.map_err(Side::Source.failed(failed))?;
    let target = target.query_one(query, &[]).await;
    let target = target.map_err(Side::Target.failed(failed))?;
    if source.get::<_, i64>(1) != target.get::<_, i64>(1) {
        return Err(Fault::halt(
            Exit::Config,
            "source and target run on machines of another byte order, which hash the same text to another number",
        )
        .remedy("verify compares servers of one byte order only"));
    }
    Ok(Bytes::of(source.get(0), target.get(0)))
}

struct Run<'a> {
    config: &'a Config,
    options: &'a Options,
    source: Client,
    target: Client,
    bytes: Bytes,
    progress: Progress,
}

impl Run<'_> {
    /// Compares tables that are not in `found` yet, with one snapshot, until it is old.
    async fn at_a_point(&self, wanted: &[&config::Table], found: &mut Vec<Table>) -> Result<()> {
        let left = &wanted[found.len()..];
        let mut numbered = Vec::with_capacity(left.len());
        for table in left {
            // As it is now; what counts is what the snapshot has.
            let source = self.source_table(&self.source, table).await?;
            let form = self.form(&source, &self.target, table).await?;
            let ledger = form.ok().map(|form| form.ledger);
            numbered.push(Numbered {
                history: table.history.clone(),
                has_lsn: ledger
                    .as_ref()
                    .is_some_and(|ledger| ledger.commit_lsn.is_some()),
                number: ledger.map(|ledger| ledger.number).unwrap_or_default(),
            });
        }
        let mut passage = Passage::new(self.config, (&self.source, &self.target), numbered);
        let began = Instant::now();
        let point = passage.take().await?;
        tracing::debug!(position = %point.lsn, seconds = began.elapsed().as_secs_f64(), "a position is taken");
        let passage = tokio::sync::Mutex::new(Some(passage));
        let passed: OnceCell<Vec<Around>> = OnceCell::new();
        let pass = || async {
            match passage.lock().await.take() {
                Some(passage) => passage.pass(point.lsn, &self.progress).await,
                None => Err(Fault::bug("a position was waited for twice")),
            }
        };
        for (at, table) in left.iter().enumerate() {
            if at > 0 && began.elapsed() > POINT_AGE_MAX {
                return Ok(());
            }
            let around = || async {
                let all = passed.get_or_try_init(pass).await?;
                all.get(at)
                    .copied()
                    .ok_or_else(|| Fault::bug("a table was not looked at"))
            };
            let one = self.one(table, &point, around).await?;
            found.push(one);
        }
        Ok(())
    }

    /// The source table as a session sees it.
    async fn source_table(&self, source: &Client, table: &config::Table) -> Result<SourceTable> {
        let sources = tables::sources(self.config, source, &self.target, &[table]).await?;
        let source = sources.into_iter().next();
        source.ok_or_else(|| Fault::bug("a table was not described"))
    }

    /// How its history is compared as a session sees it; or why it cannot be.
    async fn form(
        &self,
        source: &SourceTable,
        target: &Client,
        table: &config::Table,
    ) -> Result<std::result::Result<Form, String>> {
        let failed = Side::Target.failed("could not describe the history tables");
        let histories = catalog::history_tables(target, &[&table.history], &[]).await;
        let histories = histories.map_err(failed)?;
        let Some((history, _)) = histories.named(&table.history) else {
            return Ok(Err(format!("there is no {}", table.history)));
        };
        let mut inherited = inherited::now(target).await?;
        let inherited = inherited.remove(&table.history.to_string());
        let inherited = inherited.unwrap_or_default();
        let rules = table.rules();
        let ledger = match Ledger::of_source(source, history, &rules, &inherited) {
            Ok(ledger) => ledger,
            Err(why) => return Ok(Err(format!("it {why}"))),
        };
        Ok(
            Form::new(source, ledger, &rules, self.bytes.clone()).map_err(|column| {
                format!(
                    "the history column of {column}, which belongs to the key, can change values"
                )
            }),
        )
    }

    fn may_not_read(&self, fault: Fault, table: &TableName) -> Fault {
        if fault.exit() != Exit::NoPermission {
            return fault;
        }
        let role = Identifier(self.config.source.connection.user());
        let problem = format!("role {role} may not read all rows of {table}");
        Fault::halt(Exit::NoPermission, problem).remedy(format!(
            "GRANT SELECT ON {table} TO {role}; or, where row security hides rows: ALTER ROLE {role} BYPASSRLS;"
        ))
    }

    async fn one<F: Future<Output = Result<Around>>>(
        &self,
        table: &config::Table,
        point: &Point,
        around: impl Fn() -> F,
    ) -> Result<Table> {
        let mut compared = self.compare(table, point, around).await?;
        compared.table = table.source.to_string();
        compared.history = table.history.to_string();
        compared.position = point.lsn;
        Ok(compared)
    }

    async fn compare<F: Future<Output = Result<Around>>>(
        &self,
        table: &config::Table,
        point: &Point,
        around: impl Fn() -> F,
    ) -> Result<Table> {
        let holder = &point.holder.client;
        self.progress.step(&table.source, 0, 2);
        let source = self.source_table(holder, table).await?;
        let form = match self.form(&source, &self.target, table).await? {
            Ok(form) => form,
            Err(why) => return Ok(Table::incomplete(why)),
        };
        let alone = std::slice::from_ref(&source);
        let read = tables::may_read(holder, alone).await;
        read.map_err(|fault| self.may_not_read(fault, &source.name))?;
        let read = async {
            table::hold(holder, &source).await?;
            let buckets = table::source_buckets(holder, &form).await?;
            table::release(holder).await?;
            self.progress.step(&table.source, 1, 2);
            Ok(buckets)
        };
        let (buckets, around) = tokio::try_join!(read, around())?;
        let reader = server::sql(&self.config.target, Side::Target).await?;
        for statement in [WORK_MEM, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"] {
            let done = reader.batch_execute(statement).await;
            done.map_err(rows::failed(Side::Target))?;
        }
        // Rows of a new shape may have come since, and with them what is said of the ones before.
        let query = form.source_buckets();
        let form = match self.form(&source, &reader, table).await? {
            Ok(form) if form.source_buckets() == query => form,
            _ => return Err(Fault::retry(format!("{} was altered", table.history))),
        };
        let cut = table::cut(&reader, &form, around, point.lsn).await?;
        let of_slot = (self.config.source.slot.as_str(), point.lsn);
        let reason = table::incomplete(&reader, &form, of_slot, cut.folded.upto).await?;
        let sides = Sides {
            source: holder,
            table: &source,
            target: &reader,
            beside: &self.target,
        };
        let Found {
            mut table,
            differences,
        } = table::find(
            &sides,
            &form,
            cut,
            (buckets, reason),
            (&self.progress, &table.source),
            self.options.show_keys,
        )
        .await?;
        drop(reader);
        if self.options.repair && !differences.is_empty() && table.outcome != Outcome::Incomplete {
            let repair = repair::Repair {
                config: self.config,
                source: holder,
                form: &form,
                table: &source,
                cut,
            };
            repair.run(&differences, &mut table).await?;
        }
        Ok(table)
    }
}
