//! A server with tables that are full already, and what their histories must hold.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_postgres::Client;
use throwaway::{Builder, Cluster};

use crate::support::compare::{ExpectedTx, HistoryRow, Row, compare, fold};
use crate::support::daemon::Daemon;
use crate::support::oracle::{Oracle, read_history, read_table};
use crate::support::{connect, server_with, wait_until};

/// How long anything may take on a machine that is busy with other tests.
pub const BOUND: Duration = Duration::from_secs(45);

/// The daemon is first, so that it goes before the server it speaks to.
pub struct Scene {
    pub daemon: Option<Daemon>,
    pub oracle: Oracle,
    pub source: Client,
    pub config: String,
    pub cluster: Cluster,
    /// Source, history, and the key to fold by.
    pub tables: Vec<(String, String, Vec<String>)>,
}

/// The configuration for these tables, named as `source` or `source=history`.
pub fn config(dsn: &str, tables: &[&str], more: &str) -> String {
    let mut text = format!("[source]\ndsn = '{dsn}'\n");
    for table in tables {
        match table.split_once('=') {
            Some((source, history)) => {
                text.push_str(&format!(
                    "[[table]]\nsource = '{source}'\nhistory = '{history}'\n"
                ));
            }
            None => text.push_str(&format!("[[table]]\nsource = '{table}'\n")),
        }
    }
    text.push_str("[log]\nformat = \"json\"\nlevel = \"debug\"\n");
    text.push_str("[snapshot]\nchange_type = \"SNAPSHOT\"\n");
    text + more
}

impl Scene {
    /// A server with the tables of `ddl`, and no daemon yet. A table is `source(key, key)` or
    /// `source=history(key)`. `more` follows the section `[snapshot]`.
    pub async fn new(
        server: impl FnOnce(Builder) -> Builder,
        ddl: &str,
        tables: &[&str],
        more: &str,
    ) -> Self {
        let (cluster, source) = server_with(server).await;
        source.batch_execute(ddl).await.unwrap();
        let mut entries = Vec::new();
        let mut known = Vec::new();
        for table in tables {
            let (entry, key) = table.strip_suffix(')').unwrap().split_once('(').unwrap();
            let (table, history) = entry.split_once('=').map_or_else(
                || (entry.to_owned(), format!("{entry}_cdc")),
                |(table, history)| (table.to_owned(), history.to_owned()),
            );
            let key = key.split(", ").map(str::to_owned).collect();
            entries.push(entry);
            known.push((table, history, key));
        }
        let sources: Vec<&str> = known.iter().map(|(source, ..)| source.as_str()).collect();
        let oracle = Oracle::install(&source, &sources).await;
        let config = config(&cluster.dsn_socket("postgres"), &entries, more);
        Self {
            daemon: None,
            oracle,
            source,
            config,
            cluster,
            tables: known,
        }
    }

    pub async fn session(&self) -> Client {
        connect(&self.cluster.dsn_socket("postgres")).await
    }

    pub fn start(&mut self) -> &mut Daemon {
        self.daemon.insert(Daemon::spawn(&self.config))
    }

    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().unwrap()
    }

    /// `waltrail setup`.
    pub async fn set_up(&self) {
        let mut setup = Daemon::spawn_with(&self.config, &["setup"], &[]);
        let (status, output) = setup.wait(BOUND).await;
        assert_eq!(status.code(), Some(0), "{output}");
    }

    /// Waits until rows are being copied.
    pub async fn copying(&mut self) {
        let begun = |line: &str| line.contains("recording the rows that exist already");
        self.daemon().wait_log(BOUND, begun).await;
    }

    /// Waits until every table is joined.
    pub async fn joined(&self) {
        let client = self.session().await;
        let wanted = self.tables.len() as i64;
        wait_until("every table is joined", BOUND, async || {
            // The control schema comes with the daemon.
            let rows = client
                .query(
                    "SELECT count(*) FILTER (WHERE state = 'done') FROM waltrail.snapshot",
                    &[],
                )
                .await;
            rows.is_ok_and(|rows| rows[0].get::<_, i64>(0) == wanted)
                .then_some(())
        })
        .await;
    }

    /// The source is at rest: waits until the history has everything, and checks that it is exact. Returns the
    /// number of existing rows and of changes in all.
    pub async fn check(&self) -> (usize, usize) {
        self.caught_up().await;
        let mut sum = (0, 0);
        for (table, history, key) in &self.tables {
            let (rows, changes) = self.check_table(table, history, key).await;
            println!("{table}: {rows} existing rows, {changes} changes");
            sum = (sum.0 + rows, sum.1 + changes);
        }
        sum
    }

    /// Waits until a change made now is in the history, and with it every one before.
    async fn caught_up(&self) {
        self.joined().await;
        let client = self.session().await;
        let end: String = client
            .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])
            .await
            .unwrap()
            .get(0);
        // Something must move the checkpoint when nothing is left to be recorded.
        let reached = format!(
            "SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = 'waltrail'"
        );
        client
            .batch_execute("CREATE TABLE IF NOT EXISTS nudge (n int); INSERT INTO nudge VALUES (1)")
            .await
            .unwrap();
        wait_until("the slot is at the end", BOUND, async || {
            let row = client.query_opt(&reached, &[]).await.unwrap();
            let _ = client
                .batch_execute("SELECT pg_logical_emit_message(true, 'nudge', repeat('x', 200000))")
                .await;
            row.is_some_and(|row| row.get::<_, Option<bool>>(0) == Some(true))
                .then_some(())
        })
        .await;
    }

    async fn check_table(&self, table: &str, history: &str, key: &[String]) -> (usize, usize) {
        let client = self.session().await;
        let columns: Vec<String> = client
            .query(
                "SELECT attname::text FROM pg_attribute WHERE attrelid = $1::text::regclass
                   AND attnum > 0 AND NOT attisdropped",
                &[&table],
            )
            .await
            .unwrap()
            .iter()
            .map(|row| row.get(0))
            .collect();
        let rows = read_history(&client, history, &columns).await;
        let (existing, changes): (Vec<HistoryRow>, Vec<HistoryRow>) = rows
            .iter()
            .cloned()
            .partition(|row| row.change_type == "SNAPSHOT");
        if let (Some(last), Some(first)) = (existing.last(), changes.first()) {
            assert!(
                last.cdc_id < first.cdc_id,
                "{history}: a change before an existing row"
            );
        }
        // The fold, which is strict.
        let key: Vec<&str> = key.iter().map(String::as_str).collect();
        let mut folded: Vec<Row> = fold(&rows, &key).into_values().collect();
        let mut now: Vec<Row> = read_table(&client, table).await;
        folded.sort();
        now.sort();
        assert_eq!(folded.len(), now.len(), "{history} folded, and {table}");
        for (folded, now) in folded.iter().zip(&now) {
            assert_eq!(folded, now, "{history} folded, and {table}");
        }
        // Every transaction that is there is there whole, once, in order; those that are not committed before.
        let expected = self.oracle.expected(&client, table, &client, history).await;
        let recorded: BTreeSet<i64> = changes
            .iter()
            .filter_map(|row| row.change_timestamp)
            .collect();
        let expected = expected.into_iter().filter(|tx| !tx.rows.is_empty());
        let (there, before): (Vec<ExpectedTx>, Vec<ExpectedTx>) =
            expected.partition(|tx| recorded.contains(&tx.commit_time));
        for tx in &before {
            let after = there
                .iter()
                .find(|there| there.xid < tx.saw.xmax && !tx.saw.running.contains(&there.xid));
            assert!(
                after.is_none(),
                "{history} lacks transaction {}, which saw {after:?}",
                tx.xid
            );
        }
        if let Err(difference) = compare(&there, &changes) {
            panic!("{history}: {difference}");
        }
        (existing.len(), changes.len())
    }

    /// Stops the daemon in good order; gives what it wrote.
    pub async fn stop(&mut self) -> String {
        let daemon = self.daemon();
        daemon.sigterm();
        let (status, output) = daemon.wait(BOUND).await;
        assert_eq!(status.code(), Some(0), "{output}");
        output
    }

    /// Stops the daemon, after which nobody may have complained.
    pub async fn stop_silent(&mut self) {
        let output = self.stop().await;
        assert_eq!(complaints(&output), Vec::<&str>::new());
    }
}

/// Lines that say that something is wrong.
pub fn complaints(output: &str) -> Vec<&str> {
    output
        .lines()
        .filter(|line| {
            line.contains("\"WARN\"") || line.contains("\"ERROR\"") || !line.starts_with('{')
        })
        .collect()
}
