//! The server that contenders write into: one database for the history, one for the subscription's plain copy.

use anyhow::Result;
use postgres::Client;
use throwaway::Cluster;

use crate::server;
use crate::workload::{EMPLOYEES, EMPLOYEES_CDC, FILL};

/// waltrail's database.
pub const HISTORY: &str = "history";
/// The subscription's database.
pub const PLAIN: &str = "plain";

/// The target server, with a session in each database.
pub struct Target {
    /// The server.
    pub cluster: Cluster,
    /// A session in [`HISTORY`].
    pub history: Client,
    /// A session in [`PLAIN`].
    pub plain: Client,
}

impl Target {
    /// Makes the server and the tables of the drains.
    ///
    /// # Errors
    /// The server fails.
    pub fn start() -> Result<Self> {
        let cluster = server::start(true)?;
        create_database(&cluster, HISTORY)?;
        create_database(&cluster, PLAIN)?;
        let mut history = server::connect(&cluster, HISTORY)?;
        history.batch_execute(EMPLOYEES_CDC)?;
        let mut plain = server::connect(&cluster, PLAIN)?;
        plain.batch_execute(EMPLOYEES)?;
        plain.batch_execute(FILL)?;
        plain.batch_execute("CREATE TABLE base AS SELECT * FROM employees")?;
        Ok(Self {
            cluster,
            history,
            plain,
        })
    }

    /// Empties the history, and forgets that there ever was one.
    ///
    /// # Errors
    /// The server fails.
    pub fn reset_history(&mut self) -> Result<()> {
        self.history
            .batch_execute("TRUNCATE employees_cdc RESTART IDENTITY")?;
        forget(&mut self.history)?;
        Ok(self.history.batch_execute("CHECKPOINT")?)
    }

    /// Gives the plain copy the rows that the source had before the load.
    ///
    /// # Errors
    /// The server fails.
    pub fn reset_plain(&mut self) -> Result<()> {
        self.plain.batch_execute("TRUNCATE employees")?;
        self.plain
            .batch_execute("INSERT INTO employees SELECT * FROM base")?;
        Ok(self.plain.batch_execute("ANALYZE employees; CHECKPOINT")?)
    }
}

/// Makes a database.
///
/// # Errors
/// The server refuses.
pub fn create_database(cluster: &Cluster, name: &str) -> Result<()> {
    let mut client = server::connect(cluster, "postgres")?;
    Ok(client.batch_execute(&format!("CREATE DATABASE {name}"))?)
}

/// Removes waltrail's checkpoint, if there is one: with an empty history it then adopts the slot that it finds.
///
/// # Errors
/// The server fails.
pub fn forget(history: &mut Client) -> Result<()> {
    Ok(history.batch_execute(
        "DO $$ BEGIN
             IF to_regclass('waltrail.snapshot') IS NOT NULL THEN
                 TRUNCATE waltrail.checkpoint, waltrail.snapshot, waltrail.snapshot_part, waltrail.held;
             END IF;
         END $$",
    )?)
}
