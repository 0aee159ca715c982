//! The application: transactions of one INSERT, two UPDATEs by key and, one time in ten, a DELETE.
//!
//! Each is one call of a function, so one round trip. Every stream of them has keys of its own, so that no two wait for
//! each other: of the rows that were there before, those up to [`UPDATED_TO`] are updated, the later ones are deleted,
//! each once. Rows that were inserted are never touched again, so that their commit tells when they came.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use postgres::{Client, SimpleQueryMessage, Statement};

use super::{Application, Rate};
use crate::workload::Changes;

/// Connections of the application at a fixed rate, a pool as applications have it: each is at work now and then.
const POOL: u32 = 20;
/// Connections at full speed, which are always at work.
const BUSY: u32 = 4;
/// The clients, and the benchmark's own first and last transaction.
const STREAMS: u32 = POOL + 1;
/// The stream that is none of the clients'.
pub(super) const OWN_STREAM: u32 = POOL;
/// Keys that are updated: 1 to this.
const UPDATED_TO: u32 = 50_000;
/// Keys that each stream updates, and as many that it deletes.
const KEYS: u32 = UPDATED_TO / STREAMS;

/// Makes the application's transaction. Beside its table, before the load.
pub(super) const TRANSACTION: &str =
    "CREATE FUNCTION app_transaction(n integer, raised integer, moved integer, gone integer) RETURNS integer
    LANGUAGE plpgsql AS $$
    DECLARE
        added integer;
    BEGIN
        INSERT INTO employees (name, department, salary)
            VALUES ('new ' || n, 'dept ' || n % 50, 2000 + n % 5000) RETURNING id INTO added;
        UPDATE employees SET salary = salary + 1 WHERE id = raised;
        UPDATE employees SET department = 'moved ' || n % 77 WHERE id = moved;
        IF gone IS NOT NULL THEN
            DELETE FROM employees WHERE id = gone;
        END IF;
        RETURN added;
    END $$";

/// One connection that commits transactions.
pub(super) struct Stream {
    client: Client,
    application: Application,
    statements: Vec<Statement>,
    number: u32,
    made: u32,
    /// What it has done.
    pub changes: Changes,
}

/// One transaction.
struct Next {
    n: i32,
    raised: i32,
    moved: i32,
    gone: Option<i32>,
}

impl Stream {
    /// `number` tells it from the others.
    pub fn new(mut client: Client, application: Application, number: u32) -> Result<Self> {
        let texts: &[&str] = match application {
            Application::Function => &["SELECT app_transaction($1, $2, $3, $4)"],
            Application::Prepared => &[
                "INSERT INTO employees (name, department, salary)
                 VALUES ('new ' || $1::int, 'dept ' || $1::int % 50, 2000 + $1::int % 5000) RETURNING id",
                "UPDATE employees SET salary = salary + 1 WHERE id = $1",
                "UPDATE employees SET department = 'moved ' || $1::int % 77 WHERE id = $2",
                "DELETE FROM employees WHERE id = $1",
            ],
            Application::Plain => &[],
        };
        let prepare = |text: &&str| Ok(client.prepare(text)?);
        let statements = texts.iter().map(prepare).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            client,
            application,
            statements,
            number,
            made: 0,
            changes: Changes::default(),
        })
    }

    /// Commits one transaction; the key of the row that it inserted.
    pub fn transact(&mut self) -> Result<i32> {
        let n = self.made;
        self.made += 1;
        let key = |k: u32| (1 + STREAMS * (k % KEYS) + self.number).cast_signed();
        let next = Next {
            n: n.cast_signed(),
            raised: key(n.wrapping_mul(7_919)),
            moved: key(n.wrapping_mul(104_729)),
            gone: (n % 10 == 9 && n / 10 < KEYS).then(|| key(n / 10) + UPDATED_TO.cast_signed()),
        };
        let added = match self.application {
            Application::Function => self.call(&next)?,
            Application::Prepared => self.execute(&next)?,
            Application::Plain => self.say(&next)?,
        };
        self.changes.inserted += 1;
        self.changes.updated += 2;
        self.changes.deleted += i64::from(next.gone.is_some());
        Ok(added)
    }

    fn call(&mut self, next: &Next) -> Result<i32> {
        let Next {
            n,
            raised,
            moved,
            gone,
        } = next;
        let row = self
            .client
            .query_one(&self.statements[0], &[n, raised, moved, gone])?;
        Ok(row.get(0))
    }

    fn execute(&mut self, next: &Next) -> Result<i32> {
        let mut transaction = self.client.transaction()?;
        let statements = &self.statements;
        let added = transaction.query_one(&statements[0], &[&next.n])?.get(0);
        transaction.execute(&statements[1], &[&next.raised])?;
        transaction.execute(&statements[2], &[&next.n, &next.moved])?;
        if let Some(gone) = &next.gone {
            transaction.execute(&statements[3], &[gone])?;
        }
        transaction.commit()?;
        Ok(added)
    }

    fn say(&mut self, next: &Next) -> Result<i32> {
        let Next {
            n,
            raised,
            moved,
            gone,
        } = next;
        let mut transaction = self.client.transaction()?;
        let added = transaction.simple_query(&format!(
            "INSERT INTO employees (name, department, salary)
             VALUES ('new {n}', 'dept {}', {}) RETURNING id",
            n % 50,
            2_000 + n % 5_000
        ))?;
        transaction.simple_query(&format!(
            "UPDATE employees SET salary = salary + 1 WHERE id = {raised}"
        ))?;
        transaction.simple_query(&format!(
            "UPDATE employees SET department = 'moved {}' WHERE id = {moved}",
            n % 77
        ))?;
        if let Some(gone) = gone {
            transaction.simple_query(&format!("DELETE FROM employees WHERE id = {gone}"))?;
        }
        transaction.commit()?;
        added
            .iter()
            .find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
                _ => None,
            })
            .context("no key was returned")
    }
}

/// How many connections the application has.
pub(super) fn clients(rate: Rate) -> u32 {
    match rate {
        Rate::PerSecond(_) => POOL,
        Rate::Full => BUSY,
    }
}

/// All clients at work. Dropping it lets them end.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Result<Changes>>>,
}

impl Load {
    /// Lets the clients go.
    pub fn start(streams: Vec<Stream>, rate: Rate) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let committed = Arc::new(AtomicU64::new(0));
        let began = Instant::now();
        let clients = streams
            .into_iter()
            .map(|stream| {
                let (stop, committed) = (Arc::clone(&stop), Arc::clone(&committed));
                thread::spawn(move || work(stream, rate, began, &stop, &committed))
            })
            .collect();
        Self {
            stop,
            committed,
            clients,
        }
    }

    /// Transactions so far.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Ends the load; what it did.
    pub fn stop(mut self) -> Result<Changes> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Changes::default();
        for client in self.clients.drain(..) {
            let done = client
                .join()
                .map_err(|_| anyhow!("a client of the application panicked"))??;
            all = all + done;
        }
        Ok(all)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// At a fixed rate each transaction has its moment, in turn with the other clients'; one that comes late does not move
/// the next.
fn work(
    mut stream: Stream,
    rate: Rate,
    began: Instant,
    stop: &AtomicBool,
    committed: &AtomicU64,
) -> Result<Changes> {
    let between = match rate {
        Rate::PerSecond(rate) => Duration::from_secs(1) / rate,
        Rate::Full => Duration::ZERO,
    };
    let mut due = began + between * stream.number;
    while !stop.load(Ordering::Relaxed) {
        let pause = due.saturating_duration_since(Instant::now());
        if !pause.is_zero() {
            thread::sleep(pause);
        }
        stream.transact()?;
        committed.fetch_add(1, Ordering::Relaxed);
        due += between * clients(rate);
    }
    Ok(stream.changes)
}
