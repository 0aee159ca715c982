//! The WAL that contenders drain: made once, read by every one of them.

use anyhow::{Result, ensure};
use postgres::Client;
use throwaway::Cluster;

use crate::server::{self, PUBLICATION};

/// The slot made before the load; each run reads a copy of it.
pub const BASE_SLOT: &str = "base";
/// The key of the row inserted last of all: who shows it, shows everything.
pub const MARKER: i32 = 2_000_000_000;
/// Rows of `employees` before the load.
pub const BASE_ROWS: i64 = 100_000;

/// The table of both workloads, and its history, as the design gives them.
pub const EMPLOYEES: &str = "CREATE TABLE employees (
    id SERIAL PRIMARY KEY, name VARCHAR(100), department VARCHAR(100), salary NUMERIC)";
/// See [`EMPLOYEES`].
pub const EMPLOYEES_CDC: &str = "CREATE TABLE employees_cdc (
    cdc_id SERIAL PRIMARY KEY, change_type VARCHAR(10),
    id INTEGER, name VARCHAR(100), department VARCHAR(100), salary NUMERIC,
    change_timestamp TIMESTAMP DEFAULT CURRENT_TIMESTAMP)";
/// Fills [`EMPLOYEES`] with [`BASE_ROWS`] rows.
pub const FILL: &str = "INSERT INTO employees (name, department, salary)
    SELECT 'name ' || g, 'dept ' || g % 50, 1000 + g % 9000 FROM generate_series(1, 100000) g";

/// Every UPDATE and DELETE hits a row: the keys up to [`BASE_ROWS`] are never deleted, and what is deleted was inserted
/// five transactions before.
const OLTP: &str = "CREATE PROCEDURE oltp(transactions integer) LANGUAGE plpgsql AS $$
    BEGIN
        FOR i IN 1..transactions LOOP
            INSERT INTO employees (name, department, salary) VALUES ('new ' || i, 'dept ' || i % 50, 2000 + i % 5000);
            UPDATE employees SET salary = salary + 1 WHERE id = 1 + (i::bigint * 7919) % 100000;
            UPDATE employees SET department = 'moved ' || i % 77 WHERE id = 1 + (i::bigint * 104729) % 100000;
            IF i % 10 = 0 THEN
                DELETE FROM employees WHERE id = 100000 + i - 5;
            END IF;
            COMMIT;
        END LOOP;
    END $$";

/// What was done on the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// This many small transactions: one INSERT, two UPDATEs by key, and one time in ten a DELETE.
    Oltp(u32),
    /// One transaction that inserts this many rows.
    Bulk(u32),
}

impl Workload {
    /// As it stands in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Oltp(_) => "oltp",
            Self::Bulk(_) => "bulk",
        }
    }

    /// In words.
    #[must_use]
    pub fn describe(self) -> String {
        match self {
            Self::Oltp(transactions) => format!("oltp: {transactions} transactions"),
            Self::Bulk(rows) => format!("bulk: {rows} rows in one"),
        }
    }

    /// Inserted, updated and deleted rows, with the marker.
    #[must_use]
    pub fn changes(self) -> Changes {
        match self {
            Self::Oltp(transactions) => Changes {
                inserted: i64::from(transactions) + 1,
                updated: 2 * i64::from(transactions),
                deleted: i64::from(transactions / 10),
            },
            Self::Bulk(rows) => Changes {
                inserted: i64::from(rows) + 1,
                ..Changes::default()
            },
        }
    }
}

/// How many rows changed, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// INSERT
    pub inserted: i64,
    /// UPDATE
    pub updated: i64,
    /// DELETE
    pub deleted: i64,
}

impl Changes {
    /// Compares them with what `employees_cdc` holds; how many rows those are.
    ///
    /// # Errors
    /// The history holds others.
    pub fn are_in(self, history: &mut Client) -> Result<i64> {
        let row = history.query_one(
            "SELECT count(*) FILTER (WHERE change_type = 'INSERT'), count(*) FILTER (WHERE change_type = 'UPDATE'),
                    count(*) FILTER (WHERE change_type = 'DELETE'), count(*) FROM employees_cdc",
            &[],
        )?;
        let found = Self {
            inserted: row.get(0),
            updated: row.get(1),
            deleted: row.get(2),
        };
        ensure!(
            found == self && row.get::<_, i64>(3) == self.all(),
            "the history holds {found:?}, expected {self:?}"
        );
        Ok(self.all())
    }

    /// All of them: as many rows as the history gets.
    #[must_use]
    pub fn all(self) -> i64 {
        self.inserted + self.updated + self.deleted
    }
}

impl std::ops::Add for Changes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            inserted: self.inserted + other.inserted,
            updated: self.updated + other.updated,
            deleted: self.deleted + other.deleted,
        }
    }
}

/// What tells whether two copies of `employees` are equal: the number of rows and sums over their columns.
pub type Sums = (i64, String);

/// Looks at a copy of `employees`.
///
/// # Errors
/// The server fails.
pub fn sums(client: &mut Client) -> Result<Sums> {
    let row = client.query_one(
        "SELECT count(*), concat_ws(' ', sum(id), sum(salary), sum(hashtext(name)), sum(hashtext(department))) FROM employees",
        &[],
    )?;
    Ok((row.get(0), row.get(1)))
}

/// A source with its load done.
pub struct Source {
    /// The server.
    pub cluster: Cluster,
    /// What was done.
    pub workload: Workload,
    /// The end of its WAL: behind the marker's commit.
    pub end: String,
    /// What `employees` holds in the end.
    pub sums: Sums,
}

impl Source {
    /// Makes a server and does the load.
    ///
    /// # Errors
    /// The server fails, or the load is not what it claims to be.
    pub fn load(workload: Workload) -> Result<Self> {
        let cluster = server::start(false)?;
        let mut client = server::connect(&cluster, "postgres")?;
        client.batch_execute("SET synchronous_commit = off")?;
        client.batch_execute(EMPLOYEES)?;
        client.batch_execute(FILL)?;
        client.batch_execute("ANALYZE employees")?;
        client.batch_execute(&format!(
            "CREATE PUBLICATION {PUBLICATION} FOR TABLE employees WITH (publish_via_partition_root = true)"
        ))?;
        server::create_slot(&mut client, BASE_SLOT)?;
        match workload {
            Workload::Oltp(transactions) => {
                client.batch_execute(OLTP)?;
                client.batch_execute(&format!("CALL oltp({transactions})"))?;
            }
            Workload::Bulk(rows) => {
                client.batch_execute(&format!(
                    "INSERT INTO employees (name, department, salary)
                     SELECT 'bulk ' || g, 'dept ' || g % 50, g % 9000 FROM generate_series(1, {rows}) g"
                ))?;
            }
        }
        // Synchronously, so that all WAL is flushed: a walsender sends no more than that.
        client.batch_execute("SET synchronous_commit = on")?;
        client.execute(
            "INSERT INTO employees (id, name) VALUES ($1, 'the last one')",
            &[&MARKER],
        )?;
        let end = client
            .query_one("SELECT pg_current_wal_lsn()::text", &[])?
            .get(0);
        client.batch_execute("CHECKPOINT")?;
        let sums = sums(&mut client)?;
        let changes = workload.changes();
        ensure!(
            sums.0 == BASE_ROWS + changes.inserted - changes.deleted,
            "the load left {} rows",
            sums.0
        );
        Ok(Self {
            cluster,
            workload,
            end,
            sums,
        })
    }

    /// A session on the source.
    ///
    /// # Errors
    /// The server refuses.
    pub fn connect(&self) -> Result<Client> {
        server::connect(&self.cluster, "postgres")
    }
}
