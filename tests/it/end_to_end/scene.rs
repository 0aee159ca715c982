//! A server, the oracle on its tables, and a daemon that follows them.

use std::time::Duration;

use tokio_postgres::Client;
use throwaway::{Builder, Cluster};

use crate::support::compare::{Row, Summary, fold};
use crate::support::daemon::Daemon;
use crate::support::oracle::{Oracle, read_history, read_table};
use crate::support::{connect, server_with};

/// How long anything may take on a machine that is busy with other tests.
pub const BOUND: Duration = Duration::from_secs(30);

/// A configuration. Tables are `source` or `source=history`.
pub fn config(source: &str, target: Option<&str>, tables: &[&str], more: &str) -> String {
    let mut text = format!("[source]\ndsn = '{source}'\n");
    if let Some(target) = target {
        text.push_str(&format!("[target]\ndsn = '{target}'\n"));
    }
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
    text.push_str("[snapshot]\nmode = \"never\"\n[log]\nformat = \"json\"\n");
    text.push_str(more);
    text
}

/// The source's name and the history's, of an entry as [`config`] takes it.
pub fn names(table: &str) -> (String, String) {
    match table.split_once('=') {
        Some((source, history)) => (source.to_owned(), history.to_owned()),
        None => {
            let history = match table.strip_suffix('"') {
                Some(open) => format!("{open}_cdc\""),
                None => format!("{table}_cdc"),
            };
            (table.to_owned(), history)
        }
    }
}

/// Waits until the daemon streams.
pub async fn streaming(daemon: &mut Daemon) {
    daemon
        .wait_log(BOUND, |line| line.contains("\"streaming\""))
        .await;
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

/// Runs the statements one by one, each in a transaction of its own unless it begins one.
pub async fn each(client: &Client, statements: &[&str]) {
    for statement in statements {
        if let Err(error) = client.batch_execute(statement).await {
            panic!("{statement}: {error:?}");
        }
    }
}

/// The first column of the one row that a query gives.
pub async fn value<T>(client: &Client, query: &str) -> T
where
    T: for<'a> tokio_postgres::types::FromSql<'a>,
{
    match client.query_one(query, &[]).await {
        Ok(row) => row.get(0),
        Err(error) => panic!("{query}: {error:?}"),
    }
}

/// All rows of a query that gives one text column.
pub async fn texts(client: &Client, query: &str) -> Vec<Option<String>> {
    match client.query(query, &[]).await {
        Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
        Err(error) => panic!("{query}: {error:?}"),
    }
}

/// The daemon is first, so that it goes before the server it speaks to.
pub struct Scene {
    pub daemon: Daemon,
    pub oracle: Oracle,
    pub source: Client,
    pub target: Client,
    pub config: String,
    pub cluster: Cluster,
    pub tables: Vec<String>,
}

impl Scene {
    /// Makes a server with the tables of `ddl`, and follows those named.
    pub async fn new(ddl: &str, tables: &[&str]) -> Self {
        Self::with(|builder| builder, ddl, tables, "").await
    }

    /// As [`Scene::new`], with a server and a configuration of one's own.
    pub async fn with(
        server: impl FnOnce(Builder) -> Builder,
        ddl: &str,
        tables: &[&str],
        more: &str,
    ) -> Self {
        let (cluster, source) = server_with(server).await;
        each(&source, &[ddl]).await;
        let sources: Vec<String> = tables.iter().map(|table| names(table).0).collect();
        let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
        let oracle = Oracle::install(&source, &sources).await;
        let config = config(&cluster.dsn_socket("postgres"), None, tables, more);
        let mut daemon = Daemon::spawn(&config);
        streaming(&mut daemon).await;
        let target = connect(&cluster.dsn_socket("postgres")).await;
        Self {
            daemon,
            oracle,
            source,
            target,
            config,
            cluster,
            tables: tables.iter().map(|&table| table.to_owned()).collect(),
        }
    }

    /// One more session in the source.
    pub async fn session(&self) -> Client {
        connect(&self.cluster.dsn_socket("postgres")).await
    }

    /// Waits until every history is what it must be. The source must be at rest.
    pub async fn check(&self) -> Summary {
        let mut sum = Summary::default();
        for table in &self.tables {
            let (table, history) = names(table);
            let summary = self
                .oracle
                .assert_becomes(&self.source, &table, &self.target, &history, BOUND)
                .await;
            sum.transactions += summary.transactions;
            sum.rows += summary.rows;
            sum.unavailable += summary.unavailable;
        }
        sum
    }

    /// Whether the history of `table` can be folded into the table.
    pub async fn check_fold(&self, table: &str, key: &[&str]) {
        let (table, history) = names(table);
        let mut now: Vec<Row> = read_table(&self.source, &table).await;
        let columns: Vec<String> = texts(
            &self.source,
            &format!(
                "SELECT attname::text FROM pg_attribute WHERE attrelid = '{table}'::regclass
                     AND attnum > 0 AND NOT attisdropped"
            ),
        )
        .await
        .into_iter()
        .flatten()
        .collect();
        let rows = read_history(&self.target, &history, &columns).await;
        let mut folded: Vec<Row> = fold(&rows, key).into_values().collect();
        now.sort();
        folded.sort();
        assert_eq!(folded, now, "the history of {table} folded, and the table");
    }

    /// Stops the daemon in good order, after which nobody may have complained.
    pub async fn stop(&mut self) {
        let output = self.stop_complaining().await;
        assert_eq!(complaints(&output), Vec::<&str>::new());
    }

    /// Stops the daemon in good order; gives what it wrote.
    pub async fn stop_complaining(&mut self) -> String {
        self.daemon.sigterm();
        let (status, output) = self.daemon.wait(BOUND).await;
        assert_eq!(status.code(), Some(0), "{output}");
        output
    }

    /// Starts the daemon again and waits until it streams.
    pub async fn start(&mut self) {
        self.daemon = Daemon::spawn(&self.config);
        streaming(&mut self.daemon).await;
    }

    /// Starts the daemon again, to see it refuse: its exit code and what it wrote.
    pub async fn refused(&mut self) -> (i32, String) {
        self.daemon = Daemon::spawn(&self.config);
        let (status, output) = self.daemon.wait(BOUND).await;
        (status.code().unwrap_or(-1), output)
    }

    /// Checks every history, stops the daemon, and checks again that nothing came after.
    pub async fn end(mut self) -> Summary {
        self.check().await;
        self.stop().await;
        self.check().await
    }
}
