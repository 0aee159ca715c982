//! The source of one case, with its load done, and the histories that take it.

use anyhow::{Result, ensure};
use postgres::Client;
use throwaway::Cluster;

use super::case::{Case, Series};
use crate::server::{self, PUBLICATION};
use crate::target;

/// The slot made before the load.
pub const ALL: &str = "all_of_it";
/// The slot made behind it: who reads that, has only started.
pub const NOTHING: &str = "nothing";
/// Captured like the others, and gets one row, last of all.
const MARKER: &str = "marker";
/// Random bytes that payloads are cut from; more than the widest row.
const POOL: usize = 2 << 20;
/// A server holds locks of so many tables at a time without thinking.
const TABLES_AT_ONCE: usize = 100;

/// The payload of row `$1` takes `$2` bytes.
const LOAD: &str = "
    CREATE FUNCTION payload(id integer, width integer, pool bytea) RETURNS bytea LANGUAGE sql IMMUTABLE
        RETURN int4send(id) || substr(pool, 1 + ((id::bigint * 7919) % (octet_length(pool) - width))::integer, width - 4);
    CREATE PROCEDURE load(total integer, per_transaction integer, width integer, tables integer, beside integer, apart boolean)
    LANGUAGE plpgsql AS $$
    DECLARE
        pool bytea; one bytea; done integer := 0; n integer;
    BEGIN
        SELECT bytes INTO pool FROM pool;
        WHILE done < total LOOP
            n := least(per_transaction, total - done);
            IF tables = 1 THEN
                INSERT INTO t0 SELECT g, payload(g, width, pool) FROM generate_series(done + 1, done + n) g;
            ELSE
                one := payload(done + 1, width, pool);
                EXECUTE 'INSERT INTO t' || done % tables || ' VALUES ($1, $2)' USING done + 1, one;
            END IF;
            IF NOT apart THEN
                INSERT INTO uncaptured SELECT g, payload(g, width, pool) FROM generate_series(1, n * beside) g;
            END IF;
            COMMIT;
            IF apart THEN
                FOR g IN 1 .. n * beside LOOP
                    INSERT INTO uncaptured VALUES (g, payload(g, width, pool));
                    COMMIT;
                END LOOP;
            END IF;
            done := done + n;
        END LOOP;
    END $$";

/// Number of rows, sum of their keys, bytes of their payloads.
type Content = (i64, i64, i64);

/// A source with its load done.
pub struct Load {
    /// The server.
    pub cluster: Cluster,
    /// What was done.
    pub case: Case,
    /// The end of its WAL: behind the marker's commit.
    pub end: String,
    contents: Vec<Content>,
}

impl Load {
    /// Makes a server and does the load.
    ///
    /// # Errors
    /// The server fails, or the load is not what it claims to be.
    pub fn make(case: Case) -> Result<Self> {
        let cluster = server::start(false)?;
        let mut client = server::connect(&cluster, "postgres")?;
        client.batch_execute(
            "SET synchronous_commit = off; SET plan_cache_mode = force_generic_plan",
        )?;
        client.batch_execute(LOAD)?;
        client.batch_execute("CREATE TABLE pool (bytes bytea)")?;
        client.execute("INSERT INTO pool VALUES ($1)", &[&random(POOL)])?;
        let captured = captured(case);
        for some in captured.chunks(TABLES_AT_ONCE) {
            client.batch_execute(&each(some, |table| {
                format!("CREATE TABLE {table} (id integer PRIMARY KEY, payload bytea);")
            }))?;
        }
        client.batch_execute("CREATE TABLE uncaptured (id integer, payload bytea)")?;
        client.batch_execute(&format!(
            "CREATE PUBLICATION {PUBLICATION} FOR TABLE {} WITH (publish_via_partition_root = true)",
            captured.join(", ")
        ))?;
        server::create_slot(&mut client, ALL)?;
        client.batch_execute(&format!(
            "CALL load({}, {}, {}, {}, {}, {})",
            case.rows,
            case.per_transaction,
            case.width,
            case.tables,
            case.beside,
            case.series == Series::Apart
        ))?;
        server::create_slot(&mut client, NOTHING)?;
        // Synchronously, so that all WAL is flushed: a walsender sends no more than that.
        client.batch_execute("SET synchronous_commit = on")?;
        client.batch_execute(&format!("INSERT INTO {MARKER} VALUES (1, '')"))?;
        let end = client
            .query_one("SELECT pg_current_wal_lsn()::text", &[])?
            .get(0);
        client.batch_execute("CHECKPOINT")?;
        let contents = captured
            .iter()
            .map(|table| content(&mut client, table, ""))
            .collect::<Result<Vec<_>>>()?;
        let rows: i64 = contents.iter().map(|content| content.0).sum();
        ensure!(
            rows == i64::from(case.rows) + 1,
            "the load left {rows} rows of {case:?}"
        );
        let beside = content(&mut client, "uncaptured", "")?.0;
        ensure!(
            beside == i64::from(case.rows) * i64::from(case.beside),
            "the load left {beside} uncaptured rows of {case:?}"
        );
        Ok(Self {
            cluster,
            case,
            end,
            contents,
        })
    }

    /// The captured tables, as the daemon is told them.
    #[must_use]
    pub fn captured(&self) -> Vec<String> {
        captured(self.case)
    }
}

/// The database of one case's histories.
pub struct Histories {
    /// Its name.
    pub name: String,
    client: Client,
    tables: Vec<String>,
}

impl Histories {
    /// Makes the database and its tables.
    ///
    /// # Errors
    /// The server fails.
    pub fn make(cluster: &Cluster, case: Case) -> Result<Self> {
        let name = format!("{}_{}", case.series.name(), case.size);
        target::create_database(cluster, &name)?;
        let mut client = server::connect(cluster, &name)?;
        let tables = captured(case);
        for some in tables.chunks(TABLES_AT_ONCE) {
            client.batch_execute(&each(some, |table| {
                format!(
                    "CREATE TABLE {table}_cdc (
                        cdc_id BIGSERIAL PRIMARY KEY, change_type VARCHAR(10), id integer, payload bytea,
                        change_timestamp TIMESTAMP DEFAULT CURRENT_TIMESTAMP);"
                )
            }))?;
        }
        Ok(Self {
            name,
            client,
            tables,
        })
    }

    /// Empties them, and forgets that there ever was anything.
    ///
    /// # Errors
    /// The server fails.
    pub fn reset(&mut self) -> Result<()> {
        for some in self.tables.chunks(TABLES_AT_ONCE) {
            self.client
                .batch_execute(&each(some, |table| format!("TRUNCATE {table}_cdc;")))?;
        }
        target::forget(&mut self.client)?;
        Ok(self.client.batch_execute("CHECKPOINT")?)
    }

    /// Whether the marker is there.
    ///
    /// # Errors
    /// The server fails.
    pub fn has_marker(&mut self) -> Result<bool> {
        let marker = format!("SELECT FROM {MARKER}_cdc");
        Ok(self.client.query_opt(&marker, &[])?.is_some())
    }

    /// The process that writes.
    ///
    /// # Errors
    /// The server fails.
    pub fn writer(&mut self) -> Result<Option<u32>> {
        let locked = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted";
        let row = self.client.query_opt(locked, &[])?;
        Ok(row.map(|row| row.get::<_, i32>(0).cast_unsigned()))
    }

    /// Compares them with the source's tables, `whole`, or with the marker alone; how many rows there are.
    ///
    /// # Errors
    /// A row is missing or too many.
    pub fn check(&mut self, load: &Load, whole: bool) -> Result<i64> {
        let mut rows = 0;
        for (table, expected) in self.tables.iter().zip(&load.contents) {
            let expected = match whole || table == MARKER {
                true => *expected,
                false => Content::default(),
            };
            let history = format!("{table}_cdc");
            let found = content(&mut self.client, &history, "WHERE change_type = 'INSERT'")?;
            let all = content(&mut self.client, &history, "")?.0;
            ensure!(
                found == expected && all == expected.0,
                "{history} holds {found:?} and {all} rows in all, expected {expected:?} (rows, keys, bytes)"
            );
            rows += all;
        }
        Ok(rows)
    }

    /// Removes the database.
    ///
    /// # Errors
    /// The server fails.
    pub fn remove(self, cluster: &Cluster) -> Result<()> {
        let Self { name, client, .. } = self;
        client.close()?;
        let mut client = server::connect(cluster, "postgres")?;
        Ok(client.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)"))?)
    }
}

fn captured(case: Case) -> Vec<String> {
    case.tables().chain([MARKER.to_owned()]).collect()
}

fn each(tables: &[String], statement: impl Fn(&String) -> String) -> String {
    tables.iter().map(statement).collect()
}

fn content(client: &mut Client, table: &str, condition: &str) -> Result<Content> {
    let row = client.query_one(
        &format!(
            "SELECT count(*), coalesce(sum(id), 0)::bigint, coalesce(sum(octet_length(payload)), 0)::bigint
             FROM {table} {condition}"
        ),
        &[],
    )?;
    Ok((row.get(0), row.get(1), row.get(2)))
}

/// Bytes that no compression makes fewer (SplitMix64).
fn random(count: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    });
    words.take(count / 8).flat_map(u64::to_le_bytes).collect()
}
