//! PostgreSQL's own subscription: one apply worker that keeps a plain copy.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postgres::{Client, Statement};

use super::Attempt;
use crate::server::{self, PUBLICATION, Transport};
use crate::target::Target;
use crate::usage::{Usage, Watch};
use crate::workload::{self, BASE_SLOT, MARKER, Source};

const SLOT: &str = "subscription";
/// A subscription belongs to a database, but its name to the whole server.
const NAME: &str = "bench";
const STOP_MAX: Duration = Duration::from_secs(20);

/// A subscription, disabled when it is made.
pub struct Subscription {
    watch: Option<Watch>,
}

impl Subscription {
    /// Makes it for a slot that exists, in binary; it copies no rows. The server looks for no certificate in our home. `synchronous_commit` is off for a subscription by
    /// default.
    ///
    /// # Errors
    /// The server refuses.
    pub fn create(client: &mut Client, source: &str, slot: &str) -> Result<Self> {
        Self::remove(client)?;
        client.batch_execute(&format!(
            "CREATE SUBSCRIPTION {NAME} CONNECTION '{source} sslcert=/none' PUBLICATION {PUBLICATION}
             WITH (create_slot = false, copy_data = false, enabled = false, binary = true, slot_name = '{slot}')"
        ))?;
        Ok(Self { watch: None })
    }

    /// Lets it go.
    ///
    /// # Errors
    /// The server refuses.
    pub fn enable(&mut self, client: &mut Client) -> Result<()> {
        Ok(client.batch_execute(&format!("ALTER SUBSCRIPTION {NAME} ENABLE"))?)
    }

    /// Looks at the worker.
    ///
    /// # Errors
    /// It gave up.
    pub fn look(&mut self, client: &mut Client) -> Result<()> {
        match &mut self.watch {
            Some(watch) => ensure!(watch.look()?, "the subscription's worker ended"),
            None => self.watch = worker(client)?.map(Watch::of).transpose()?,
        }
        Ok(())
    }

    /// What the worker took.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.watch.as_ref().map(Watch::usage).unwrap_or_default()
    }

    /// Removes what an earlier run left, and waits for the worker's end. The slot stays.
    ///
    /// # Errors
    /// The server refuses, or the worker does not end.
    pub fn remove(client: &mut Client) -> Result<()> {
        let exists = "SELECT FROM pg_subscription WHERE subname = $1";
        if client.query_opt(exists, &[&NAME])?.is_none() {
            return Ok(());
        }
        client.batch_execute(&format!("ALTER SUBSCRIPTION {NAME} DISABLE"))?;
        let deadline = Instant::now() + STOP_MAX;
        while worker(client)?.is_some() {
            ensure!(
                Instant::now() < deadline,
                "the subscription's worker does not end"
            );
            sleep(Duration::from_millis(10));
        }
        client.batch_execute(&format!("ALTER SUBSCRIPTION {NAME} SET (slot_name = NONE)"))?;
        Ok(client.batch_execute(&format!("DROP SUBSCRIPTION {NAME}"))?)
    }
}

fn worker(client: &mut Client) -> Result<Option<u32>> {
    let row = client.query_opt(
        "SELECT pid FROM pg_stat_subscription WHERE subname = $1 AND pid IS NOT NULL",
        &[&NAME],
    )?;
    Ok(row.map(|row| row.get::<_, i32>(0).cast_unsigned()))
}

/// One drain into a plain copy.
pub(super) struct Drain<'a> {
    source: &'a Source,
    target: &'a mut Target,
    subscription: Subscription,
    /// Whether the marker is there: prepared, since it is asked all the time.
    done: Statement,
}

impl<'a> Drain<'a> {
    pub(super) fn prepare(
        source: &'a Source,
        target: &'a mut Target,
        transport: Transport,
    ) -> Result<Self> {
        Subscription::remove(&mut target.plain)?;
        target.reset_plain()?;
        server::copy_slot(&mut source.connect()?, BASE_SLOT, SLOT)?;
        let dsn = transport.dsn(&source.cluster, "postgres");
        let subscription = Subscription::create(&mut target.plain, &dsn, SLOT)?;
        let done = "SELECT 1 FROM employees WHERE id = $1";
        Ok(Self {
            source,
            done: target.plain.prepare(done)?,
            target,
            subscription,
        })
    }
}

impl Attempt for Drain<'_> {
    fn start(&mut self) -> Result<()> {
        self.subscription.enable(&mut self.target.plain)
    }

    fn is_done(&mut self) -> Result<bool> {
        self.subscription.look(&mut self.target.plain)?;
        let found = self.target.plain.query_opt(&self.done, &[&MARKER])?;
        Ok(found.is_some())
    }

    fn finish(&mut self) -> Result<Option<i64>> {
        Subscription::remove(&mut self.target.plain)?;
        let found = workload::sums(&mut self.target.plain)?;
        ensure!(
            found == self.source.sums,
            "the copy holds {found:?}, the source {:?}",
            self.source.sums
        );
        Ok(Some(found.0))
    }

    fn usage(&self) -> Usage {
        self.subscription.usage()
    }
}
