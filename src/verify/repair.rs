//! `--repair`: rows of the kind REPAIR that make the history what the table was at the position.
//!
//! They are added while the writer waits for the history's lock, so that numbers still come in the order of commits, and only
//! for keys that have no row past the position: what is newer stays the last word. They say that they stand right after the
//! last transaction in the history: no commit record begins inside another one, so the byte before its end is between it and
//! the next.

use std::collections::HashMap;
use std::time::Duration;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, error::SqlState};

use super::difference::{Difference, Kind};
use super::form::Form;
use super::report::{Outcome, Table};
use super::table::{Cut, column, hold, release};
use crate::answers::fold;
use crate::answers::ledger::Ledger;
use crate::config::Config;
use crate::fault::{Exit, Fault, Result};
use crate::lsn::Lsn;
use crate::schema::plan::{change_type, literal};
use crate::schema::{Identifier, SourceTable};
use crate::server::{self, Side};

/// Keys in one transaction: the writer waits for it.
const AT_ONCE: usize = 500;
/// A lock that is waited for holds up the writer, too.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '1s'";
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(500);

pub(crate) struct Repair<'a> {
    pub(crate) config: &'a Config,
    /// Sees the snapshot.
    pub(crate) source: &'a Client,
    pub(crate) form: &'a Form,
    pub(crate) table: &'a SourceTable,
    pub(crate) cut: Cut,
}

/// A row to be added: the texts of the ledger's columns, none for one that has to be taken away.
struct Wanted<'a> {
    difference: &'a Difference,
    values: Option<Vec<Option<String>>>,
}

/// The values of one column in several rows.
type Texts = Vec<Option<String>>;

impl Repair<'_> {
    /// Repairs what it can, and counts it.
    pub(crate) async fn run(&self, differences: &[Difference], table: &mut Table) -> Result<()> {
        let target = server::sql(&self.config.target, Side::Target).await?;
        for some in differences.chunks(AT_ONCE) {
            let done = match self.form.ledger.key.is_empty() {
                true => self.repair_copies(&target, some).await?,
                false => self.repair_keys(&target, some).await?,
            };
            table.repaired += i64::try_from(done).unwrap_or_default();
            table.left += i64::try_from(some.len() - done).unwrap_or_default();
        }
        let counted = differences
            .iter()
            .filter(|found| found.kind != Kind::Unknown);
        let is_all = counted.map(|found| found.copies).sum::<i64>() == table.differences();
        if table.left == 0 && is_all {
            table.outcome = Outcome::Repaired;
            table.unknown_values = 0;
        }
        Ok(())
    }

    /// How many keys were put right.
    async fn repair_keys(&self, target: &Client, some: &[Difference]) -> Result<usize> {
        hold(self.source, self.table).await?;
        let wanted = self.wanted(some).await?;
        release(self.source).await?;
        self.lock(target).await?;
        let done = match self.is_cleared(target).await? {
            true => 0,
            false => self.write(target, &wanted).await?,
        };
        target.batch_execute("COMMIT").await.map_err(failed)?;
        Ok(done)
    }

    /// The same of a table without a key, whose rows are added or taken away one by one: what came past the position changes
    /// nothing in that, unless the table was emptied.
    async fn repair_copies(&self, target: &Client, some: &[Difference]) -> Result<usize> {
        let form = self.form;
        let hashes: Vec<i64> = some.iter().map(|found| found.hash).collect();
        hold(self.source, self.table).await?;
        let there = self.source.query(&form.source_copies(), &[&hashes]).await;
        let there = there.map_err(Side::Source.failed("could not read the rows to be repaired"))?;
        release(self.source).await?;
        let known = form.history_copies(self.cut.folded);
        let known = target.query(&known, &[&hashes]).await.map_err(failed)?;
        let rows = there.iter().chain(&known);
        let rows: HashMap<i64, Texts> = rows.map(|row| (row.get(0), row.get(1))).collect();
        self.lock(target).await?;
        if self.is_cleared(target).await? {
            target.batch_execute("ROLLBACK").await.map_err(failed)?;
            return Ok(0);
        }
        let ledger = &form.ledger;
        let (lsn, time) = self.place(target).await?;
        let mut number = self.next_tx_seq(target, self.cut.folded.upto, lsn).await?;
        let own = Own::new(ledger, lsn, &time);
        let all: Vec<usize> = (0..ledger.columns.len()).collect();
        for (kind, change, former) in [
            (Kind::Missing, change_type::REPAIR, false),
            (Kind::Extra, change_type::DELETE, true),
        ] {
            let mut columns = vec![Texts::new(); all.len()];
            for found in some.iter().filter(|found| found.kind == kind) {
                let values = rows.get(&found.hash);
                for (column, value) in columns.iter_mut().zip(values.into_iter().flatten()) {
                    column.extend((0..found.copies).map(|_| value.clone()));
                }
            }
            let insert = own.insert(ledger, (&all, former), change, number);
            add(target, &insert, &columns).await?;
            number += columns.first().map_or(0, Texts::len);
        }
        target.batch_execute("COMMIT").await.map_err(failed)?;
        Ok(hashes.iter().filter(|hash| rows.contains_key(hash)).count())
    }

    /// Whether every row of the table is gone, or not known, since.
    async fn is_cleared(&self, target: &Client) -> Result<bool> {
        let ledger = &self.form.ledger;
        let cleared = format!(
            "SELECT EXISTS (SELECT FROM {} h WHERE {} > {} AND {})",
            ledger.history,
            ledger.number(),
            self.cut.folded.upto,
            fold::clears(ledger)
        );
        let row = target.query_one(&cleared, &[]).await;
        Ok(row.map_err(failed)?.get(0))
    }

    /// The rows that the source has for these keys.
    async fn wanted<'d>(&self, some: &'d [Difference]) -> Result<Vec<Wanted<'d>>> {
        let mut wanted: Vec<Wanted<'d>> = some
            .iter()
            .map(|difference| Wanted {
                difference,
                values: None,
            })
            .collect();
        let kind = |name: &str| {
            let known = self.table.columns.iter().find(|column| column.name == name);
            let kind = known.and_then(|known| self.table.type_of(known.type_oid, known.modifier));
            kind.map_or_else(|| "text".to_owned(), |kind| kind.sql)
        };
        let ledger = &self.form.ledger;
        let kinds: Vec<String> = ledger
            .key_columns()
            .map(|column| kind(&column.name))
            .collect();
        let keys = self.keys(some.iter());
        let keys: Vec<&(dyn ToSql + Sync)> = keys.iter().map(|key| key as _).collect();
        let rows = self
            .source
            .query(&self.form.source_values(&kinds), &keys)
            .await;
        let rows = rows.map_err(Side::Source.failed("could not read the rows to be repaired"))?;
        for row in rows {
            let nth: i64 = row.get(0);
            let at = usize::try_from(nth - 1).unwrap_or_default();
            if let Some(wanted) = wanted.get_mut(at) {
                wanted.values = Some(row.get(1));
            }
        }
        Ok(wanted)
    }

    /// The values of each column of the key.
    fn keys<'d>(&self, some: impl Iterator<Item = &'d Difference> + Clone) -> Vec<Texts> {
        let columns = 0..self.form.ledger.key.len();
        let column = |at: usize| {
            some.clone()
                .map(move |found| found.key.get(at).cloned().flatten())
        };
        columns.map(|at| column(at).collect()).collect()
    }

    /// Begins a transaction in which the writer waits.
    async fn lock(&self, target: &Client) -> Result<()> {
        let lock = format!(
            "BEGIN; {LOCK_TIMEOUT}; LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE",
            self.form.ledger.history
        );
        for _ in 0..LOCK_TRIES {
            match target.batch_execute(&lock).await {
                Ok(()) => return Ok(()),
                Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                    target.batch_execute("ROLLBACK").await.map_err(failed)?;
                    tokio::time::sleep(LOCK_PAUSE).await;
                }
                Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                    return Err(self.may_not_lock());
                }
                Err(error) => return Err(failed(error)),
            }
        }
        let history = &self.form.ledger.history;
        Err(Fault::retry(format!(
            "another session keeps {history} locked, which is to be repaired"
        ))
        .remedy("look at pg_locks on the target, then run it again"))
    }

    fn may_not_lock(&self) -> Fault {
        let history = &self.form.ledger.history;
        let role = Identifier(self.config.target.user());
        Fault::halt(
            Exit::NoPermission,
            format!("role {role} may not lock {history}, which the repair has to"),
        )
        .remedy(format!(
            "as its owner: GRANT UPDATE ON {history} TO {role}; and afterwards: REVOKE UPDATE ON {history} FROM {role};"
        ))
    }

    /// Writes the rows of keys that have not changed since; how many keys that are.
    async fn write(&self, target: &Client, wanted: &[Wanted<'_>]) -> Result<usize> {
        let (form, after) = (self.form, self.cut.folded.upto);
        let ledger = &form.ledger;
        let hashes: Vec<i64> = wanted.iter().map(|wanted| wanted.difference.hash).collect();
        let touched = target.query(&form.touched_after(after), &[&hashes]).await;
        let touched: Vec<i64> = touched
            .map_err(failed)?
            .iter()
            .map(|row| row.get(0))
            .collect();
        let kept = wanted
            .iter()
            .filter(|wanted| !touched.contains(&wanted.difference.hash));
        let (there, gone): (Vec<&Wanted<'_>>, Vec<&Wanted<'_>>) =
            kept.partition(|wanted| wanted.values.is_some());
        // Read once: other transactions go on committing.
        let (lsn, time) = self.place(target).await?;
        let mut number = self.next_tx_seq(target, after, lsn).await?;
        let own = Own::new(ledger, lsn, &time);
        if !there.is_empty() {
            let columns = (0..ledger.columns.len()).map(|at| {
                let value = |wanted: &&Wanted<'_>| wanted.values.as_ref()?.get(at)?.clone();
                there.iter().map(value).collect::<Texts>()
            });
            let all: Vec<usize> = (0..ledger.columns.len()).collect();
            let insert = own.insert(ledger, (&all, false), change_type::REPAIR, number);
            add(target, &insert, &columns.collect::<Vec<_>>()).await?;
            number += there.len();
        }
        if !gone.is_empty() {
            let keys = self.keys(gone.iter().map(|wanted| wanted.difference));
            for kind in [change_type::REPAIR, change_type::DELETE] {
                let is_delete = kind == change_type::DELETE;
                let insert = own.insert(ledger, (&ledger.key, is_delete), kind, number);
                add(target, &insert, &keys).await?;
                number += gone.len();
            }
        }
        Ok(there.len() + gone.len())
    }

    /// Where the rows stand: between the last transaction in the history and the next, at the time of the last one.
    async fn place(&self, target: &Client) -> Result<(Lsn, String)> {
        let last = "SELECT end_lsn - 1, coalesce(commit_timestamp, pg_catalog.clock_timestamp())::text \
            FROM waltrail.checkpoint WHERE slot = $1";
        let row = target.query_one(last, &[&self.config.source.slot]).await;
        let row = row.map_err(failed)?;
        Ok((row.get(0), row.get(1)))
    }

    /// The number of the next row with this position.
    async fn next_tx_seq(&self, target: &Client, after: i64, lsn: Lsn) -> Result<usize> {
        let ledger = &self.form.ledger;
        let (Some(tx_seq), Some(commit_lsn)) = (&ledger.tx_seq, &ledger.commit_lsn) else {
            return Ok(1);
        };
        let last = format!(
            "SELECT coalesce(max({}), 0)::bigint + 1 FROM {} h WHERE {} > {after} AND {} = '{lsn}'",
            ledger.own(tx_seq),
            ledger.history,
            ledger.number(),
            ledger.own(commit_lsn)
        );
        let next: i64 = target.query_one(&last, &[]).await.map_err(failed)?.get(0);
        Ok(usize::try_from(next).unwrap_or(1))
    }
}

fn failed(error: tokio_postgres::Error) -> Fault {
    Side::Target.failed("could not repair the history")(error)
}

async fn add(target: &Client, insert: &str, columns: &[Texts]) -> Result<()> {
    let values: Vec<&(dyn ToSql + Sync)> = columns.iter().map(|texts| texts as _).collect();
    target.execute(insert, &values).await.map_err(failed)?;
    Ok(())
}

/// What waltrail itself says of the rows that it adds: columns and expressions.
struct Own {
    change_type: String,
    values: Vec<(String, String)>,
    tx_seq: Option<String>,
}

impl Own {
    fn new(ledger: &Ledger, lsn: Lsn, time: &str) -> Self {
        let time = format!("{}::timestamptz", literal(time));
        let time = match ledger.time_has_zone {
            true => time,
            false => format!("({time} AT TIME ZONE 'UTC')"),
        };
        let mut values = vec![(column(&ledger.time), time)];
        if let Some(commit_lsn) = &ledger.commit_lsn {
            values.push((column(commit_lsn), format!("'{lsn}'")));
        }
        if let Some(xid) = &ledger.xid {
            values.push((column(xid), "'0'".to_owned()));
        }
        Self {
            change_type: column(&ledger.change_type),
            values,
            tx_seq: ledger.tx_seq.as_deref().map(column),
        }
    }

    /// The statement that adds rows of these columns, numbered from `number`. With `former` they are the row's last values, too.
    /// What of a row is not given is named as not known.
    fn insert(
        &self,
        ledger: &Ledger,
        (given, former): (&[usize], bool),
        kind: &str,
        number: usize,
    ) -> String {
        let (mut names, mut values) = (Vec::new(), Vec::new());
        let mut set = |name: String, value: String| {
            names.push(name);
            values.push(value);
        };
        for (n, &at) in given.iter().enumerate() {
            let known = &ledger.columns[at];
            let value = format!("w.c{n}::{}", known.kind);
            if let (true, Some(old)) = (former, &known.old) {
                set(column(old), value.clone());
            }
            set(column(&known.home), value);
        }
        set(self.change_type.clone(), literal(kind));
        for (name, value) in &self.values {
            set(name.clone(), value.clone());
        }
        if let Some(tx_seq) = &self.tx_seq {
            set(
                tx_seq.clone(),
                format!("w.nth + {}", number.saturating_sub(1)),
            );
        }
        let lacking = ledger.columns.iter().enumerate();
        let lacking = lacking.filter(|(at, _)| !given.contains(at));
        let lacking: Vec<String> = lacking.map(|(_, known)| literal(&known.home)).collect();
        if let (Some(unavailable), false) = (&ledger.unavailable, lacking.is_empty()) {
            set(
                column(unavailable),
                format!("ARRAY[{}]::text[]", lacking.join(", ")),
            );
        }
        let arrays: Vec<String> = (1..=given.len()).map(|n| format!("${n}::text[]")).collect();
        let aliases: Vec<String> = (0..given.len()).map(|n| format!("c{n}")).collect();
        format!(
            "INSERT INTO {} ({}) SELECT {} FROM unnest({}) WITH ORDINALITY AS w ({}, nth) ORDER BY w.nth",
            ledger.history,
            names.join(", "),
            values.join(", "),
            arrays.join(", "),
            aliases.join(", ")
        )
    }
}
