//! The one scene of these tests: a source with an oracle on its tables, a target, and a daemon between them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use throwaway::{Builder, Cluster};
use tokio_postgres::Client;

use super::compare::{ExpectedTx, HistoryRow, Row, Summary, compare, fold};
use super::daemon::Daemon;
use super::load::{Load, Plan};
use super::oracle::{Oracle, columns_of, read_history, read_table};
use super::proxy::Proxy;
use super::{BOUND, EMPLOYEES, builder, connect, wait_until};

/// The daemon's own grace is ten seconds.
const STOP_MAX: Duration = Duration::from_secs(15);

const CHANGES: &str = "[snapshot]\nmode = \"never\"\n[log]\nformat = \"json\"\n";
/// Existing rows can be told from changes. `[snapshot]` is last, so that more of it can follow.
const EXISTING: &str =
    "[log]\nformat = \"json\"\nlevel = \"debug\"\n[snapshot]\nchange_type = \"SNAPSHOT\"\n";

/// Warnings where another process had the slot or the lock a moment ago.
pub const HELD_ELSEWHERE: &[&str] = &[
    "the slot is in use by another process",
    "another waltrail writes for this slot",
];

/// Warnings where a server goes away, too.
pub const SERVER_GONE: &[&str] = &[
    "the slot is in use by another process",
    "another waltrail writes for this slot",
    "the session failed and is started again",
    "the target does not make the history durable",
    "has not answered for",
];

/// The warning where a session has a lock that waltrail waits for.
pub const LOCKED: &[&str] = &["waiting for a lock on"];

/// A configuration that records changes and logs JSON; `more` follows the section `[log]`. Tables are
/// `source` or `source=history`.
pub fn config(source: &str, target: Option<&str>, tables: &[&str], more: &str) -> String {
    head(source, target, tables) + CHANGES + more
}

/// The same with all that can be logged, as `json` or `text`.
pub fn traced(config: &str, format: &str) -> String {
    let log = format!("format = \"{format}\"\nlevel = \"trace\"");
    config.replace("format = \"json\"", &log)
}

fn head(source: &str, target: Option<&str>, tables: &[&str]) -> String {
    let mut text = format!("[source]\ndsn = '{source}'\n");
    if let Some(target) = target {
        text.push_str(&format!("[target]\ndsn = '{target}'\n"));
    }
    for table in tables {
        let (source, history) = table.split_once('=').unwrap_or((table, ""));
        text.push_str(&format!("[[table]]\nsource = '{source}'\n"));
        if !history.is_empty() {
            text.push_str(&format!("history = '{history}'\n"));
        }
    }
    text
}

/// The source's name and the history's, of an entry as [`config`] takes it.
pub fn names(table: &str) -> (String, String) {
    match (table.split_once('='), table.strip_suffix('"')) {
        (Some((source, history)), _) => (source.to_owned(), history.to_owned()),
        (None, Some(open)) => (table.to_owned(), format!("{open}_cdc\"")),
        (None, None) => (table.to_owned(), format!("{table}_cdc")),
    }
}

/// Waits until the daemon streams.
pub async fn streaming(daemon: &mut Daemon) {
    daemon
        .wait_log(BOUND, |line| line.contains("streaming"))
        .await;
}

/// Lines that say that something is wrong, in either log format.
pub fn complaints(output: &str) -> Vec<&str> {
    let complains = |line: &&str| {
        ["WARN", "ERROR"].iter().any(|level| {
            line.contains(&format!(" {level} ")) || line.contains(&format!("\"{level}\""))
        }) || !line.starts_with(|c: char| c == '{' || c.is_ascii_digit())
    };
    output.lines().filter(complains).collect()
}

/// No complaint but those with one of these parts.
#[track_caller]
pub fn assert_clean(output: &str, allowed: &[&str]) {
    for line in complaints(output) {
        let known = allowed.iter().any(|part| line.contains(part));
        assert!(known, "not expected: {line}\nin:\n{output}");
    }
}

/// A table that is followed.
struct Table {
    source: String,
    history: String,
    /// By which existing rows and changes are folded.
    key: Vec<String>,
}

/// The daemon is first, so that it ends before the servers it speaks to.
pub struct Scene {
    daemon: Option<Daemon>,
    pub oracle: Oracle,
    pub source: Client,
    pub target: Client,
    pub config: String,
    pub server: Cluster,
    /// None: the source database is the target too.
    pub target_server: Option<Cluster>,
    tables: Vec<Table>,
    /// Every other daemon logs as text; the third and fourth of each four write each change at once.
    varied: bool,
    spawned: usize,
}

impl Scene {
    /// A server with the tables of `ddl`, and a daemon that streams the changes of those named.
    pub async fn new(ddl: &str, tables: &[&str]) -> Self {
        Self::with(|builder| builder, ddl, tables, "").await
    }

    /// As [`Scene::new`], with options of the server and more lines of the configuration.
    pub async fn with(
        server: impl FnOnce(Builder) -> Builder,
        ddl: &str,
        tables: &[&str],
        more: &str,
    ) -> Self {
        let server = server(builder());
        let settings = format!("{CHANGES}{more}");
        let mut scene = Self::make(server, None, ddl, tables, &settings, Cluster::dsn_socket).await;
        scene.start().await;
        scene
    }

    /// A server whose tables hold rows already, and no daemon yet. A table is `source(key, key)` or
    /// `source=history(key)`. `more` follows the section `[snapshot]`.
    pub async fn existing(
        server: impl FnOnce(Builder) -> Builder,
        ddl: &str,
        tables: &[&str],
        more: &str,
    ) -> Self {
        let server = server(builder());
        let settings = format!("{EXISTING}{more}");
        Self::make(server, None, ddl, tables, &settings, Cluster::dsn_socket).await
    }

    /// `employees` and its history in one database, and no daemon yet. Daemons connect over TCP and log
    /// all that they can, in both formats and with and without an interval in turn.
    pub async fn one(options: impl FnOnce(Builder) -> Builder) -> Self {
        Self::traced(options(builder()), None).await
    }

    /// As [`Scene::one`], with a target of its own.
    pub async fn two(
        source: impl FnOnce(Builder) -> Builder,
        target: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        Self::traced(source(builder()), Some(target(builder()))).await
    }

    async fn traced(source: Builder, target: Option<Builder>) -> Self {
        let (tables, settings) = (["public.employees"], traced(CHANGES, "json"));
        let dsn = Cluster::dsn_tcp;
        let made = Self::make(source, target, EMPLOYEES, &tables, &settings, dsn).await;
        Self {
            varied: true,
            ..made
        }
    }

    async fn make(
        source: Builder,
        target: Option<Builder>,
        ddl: &str,
        tables: &[&str],
        settings: &str,
        dsn: fn(&Cluster, &str) -> String,
    ) -> Self {
        let server = source.start().unwrap();
        let target_server = target.map(|target| target.start().unwrap());
        let source = connect(&server.dsn_socket("postgres")).await;
        super::each(&source, &[ddl]).await;
        let history = target_server.as_ref().unwrap_or(&server);
        let target = connect(&history.dsn_socket("postgres")).await;
        if target_server.is_some() {
            super::each(&target, &[ddl]).await;
        }
        let (mut entries, mut followed, mut sources) = (Vec::new(), Vec::new(), Vec::new());
        for table in tables {
            let keyed = table
                .strip_suffix(')')
                .and_then(|open| open.split_once('('));
            let (entry, key) = keyed.unwrap_or((table, ""));
            let (source, history) = names(entry);
            let key = key.split(", ").map(str::to_owned).collect();
            entries.push(entry);
            sources.push(source.clone());
            followed.push(Table {
                source,
                history,
                key,
            });
        }
        let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
        let oracle = Oracle::install(&source, &sources).await;
        let target_dsn = target_server.as_ref().map(|server| dsn(server, "postgres"));
        let config = head(&dsn(&server, "postgres"), target_dsn.as_deref(), &entries) + settings;
        Self {
            daemon: None,
            oracle,
            source,
            target,
            config,
            server,
            target_server,
            tables: followed,
            varied: false,
            spawned: 0,
        }
    }

    /// Puts a network that can be disturbed before each of the two servers.
    pub fn behind_proxies(&mut self) -> (Proxy, Proxy) {
        let mut proxy = |port: u16| {
            let proxy = Proxy::start(port);
            let (direct, through) = (format!("port={port} "), format!("port={} ", proxy.port()));
            self.config = self.config.replace(&direct, &through);
            proxy
        };
        let source = proxy(self.server.port());
        let target = proxy(self.target_server.as_ref().unwrap().port());
        (source, target)
    }

    /// Puts a network before the source alone; it can lead to another server later.
    pub fn source_behind_proxy(&mut self) -> Proxy {
        let port = self.server.port();
        let proxy = Proxy::start(port);
        let (direct, through) = (format!("port={port} "), format!("port={} ", proxy.port()));
        self.config = self.config.replace(&direct, &through);
        proxy
    }

    /// One more session in the source.
    pub async fn session(&self) -> Client {
        connect(&self.server.dsn_socket("postgres")).await
    }

    /// One more session in the target.
    pub async fn target_session(&self) -> Client {
        let server = self.target_server.as_ref().unwrap_or(&self.server);
        connect(&server.dsn_socket("postgres")).await
    }

    /// Makes new sessions where a server has ended the old ones.
    pub async fn reconnect(&mut self) {
        self.source = self.session().await;
        self.target = self.target_session().await;
    }

    /// The configuration of the next daemon.
    pub fn next_config(&mut self) -> String {
        let spawned = self.spawned;
        self.spawned += 1;
        let mut config = self.config.clone();
        if self.varied && spawned % 2 == 1 {
            config = config.replace("\"json\"", "\"text\"");
        }
        if self.varied && spawned % 4 >= 2 {
            config.push_str("[batch]\ninterval = \"0\"\n");
        }
        config
    }

    /// The next daemon logs JSON.
    pub fn spawned_as_json(&mut self) {
        self.spawned = 0;
    }

    /// A daemon, just started; the one before is killed.
    pub fn spawn(&mut self) -> &mut Daemon {
        let daemon = Daemon::spawn(&self.next_config());
        self.daemon.insert(daemon)
    }

    /// As [`Scene::spawn`], with the output on a terminal.
    pub fn spawn_on_terminal(&mut self) -> &mut Daemon {
        let daemon = Daemon::spawn_on_terminal(&self.next_config());
        self.daemon.insert(daemon)
    }

    /// A daemon that streams.
    pub async fn start(&mut self) -> &mut Daemon {
        streaming(self.spawn()).await;
        self.daemon()
    }

    /// The daemon that was started last.
    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("a daemon was started")
    }

    /// Starts a daemon to see it refuse: its exit code and what it wrote.
    pub async fn refused(&mut self) -> (i32, String) {
        let (status, output) = self.spawn().wait(BOUND).await;
        (status.code().unwrap_or(-1), output)
    }

    /// `waltrail setup`.
    pub async fn set_up(&self) {
        let mut setup = Daemon::spawn_with(&self.config, &["setup"], &[]);
        let (status, output) = setup.wait(BOUND).await;
        assert_eq!(status.code(), Some(0), "{output}");
    }

    /// Four clients, slow enough for the comparison at the end.
    pub fn load(&self, seed: u64) -> Load {
        Plan::new(self.server.dsn_tcp("postgres"), seed)
            .pause(Duration::from_millis(8))
            .start()
    }

    /// Waits until the daemon has brought more rows into `employees_cdc` than there are now.
    pub async fn progress(&mut self) {
        let target = self.target_session().await;
        // Not the number of rows: a crash of the target may have taken some.
        let last = "SELECT coalesce(max(cdc_id), 0)::bigint FROM employees_cdc";
        let before: i64 = super::value(&target, last).await;
        let start = Instant::now();
        while super::value::<i64>(&target, last).await <= before {
            let daemon = self.daemon();
            assert!(
                daemon.is_running() && start.elapsed() < BOUND,
                "no more rows come into the history:\n{}",
                daemon.output()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until every history is what it must be. The source must be at rest.
    pub async fn check(&self) -> Summary {
        let mut sum = Summary::default();
        for table in &self.tables {
            let (source, history) = (&table.source, &table.history);
            let summary = self
                .oracle
                .assert_becomes(&self.source, source, &self.target, history, BOUND)
                .await;
            sum.transactions += summary.transactions;
            sum.rows += summary.rows;
            sum.unavailable += summary.unavailable;
        }
        sum
    }

    /// Whether the history of `table` can be folded into the table.
    pub async fn check_fold(&self, table: &str, key: &[&str]) -> Vec<HistoryRow> {
        let (table, history) = names(table);
        let columns = columns_of(&self.source, &table).await;
        let columns: Vec<String> = columns.into_iter().collect();
        let rows = read_history(&self.target, &history, &columns).await;
        let mut folded: Vec<Row> = fold(&rows, key).into_values().collect();
        let mut now: Vec<Row> = read_table(&self.source, &table).await;
        folded.sort();
        now.sort();
        assert_eq!(folded.len(), now.len(), "{history} folded, and {table}");
        for (folded, now) in folded.iter().zip(&now) {
            assert_eq!(folded, now, "{history} folded, and {table}");
        }
        rows
    }

    /// Stops the daemon in good order, without a complaint.
    pub async fn stop(&mut self) {
        assert_clean(&self.stop_complaining().await, &[]);
    }

    /// Stops the daemon in good order; gives what it wrote.
    pub async fn stop_complaining(&mut self) -> String {
        self.daemon().sigterm();
        let (status, output) = self.daemon().wait(STOP_MAX).await;
        assert_eq!(status.code(), Some(0), "{output}");
        output
    }

    /// Checks every history, stops the daemon, and checks again that nothing came after.
    pub async fn end(mut self) -> Summary {
        self.finish(&[]).await
    }

    /// As [`Scene::end`], after faults: with new sessions, and these complaints allowed.
    pub async fn finish(&mut self, allowed: &[&str]) -> Summary {
        self.reconnect().await;
        self.check().await;
        assert_clean(&self.stop_complaining().await, allowed);
        let summary = self.check().await;
        println!("{summary:?}");
        summary
    }

    /// Waits until rows are being copied.
    pub async fn copying(&mut self) {
        let begun = |line: &str| line.contains("recording the rows that exist already");
        self.daemon().wait_log(BOUND, begun).await;
    }

    /// Waits until every table is joined.
    pub async fn joined(&self) {
        let client = self.session().await;
        let done = "SELECT count(*) FROM waltrail.snapshot WHERE state = 'done'";
        let wanted = self.tables.len() as i64;
        wait_until("every table is joined", BOUND, async || {
            // The control schema comes with the daemon.
            let row = client.query_one(done, &[]).await;
            row.is_ok_and(|row| row.get::<_, i64>(0) == wanted)
                .then_some(())
        })
        .await;
    }

    /// The source is at rest: waits until the history has everything, and checks that it is exact. Returns the
    /// number of existing rows and of changes in all.
    pub async fn check_existing(&self) -> (usize, usize) {
        self.caught_up().await;
        let mut sum = (0, 0);
        for table in &self.tables {
            let (rows, changes) = self.check_table(table).await;
            println!("{}: {rows} existing rows, {changes} changes", table.source);
            sum = (sum.0 + rows, sum.1 + changes);
        }
        sum
    }

    /// Waits until a change made now is in the history, and with it every one before.
    async fn caught_up(&self) {
        self.joined().await;
        let client = self.session().await;
        let end: String = super::value(&client, "SELECT pg_current_wal_insert_lsn()::text").await;
        // Something must move the checkpoint when nothing is left to be recorded.
        let reached = format!(
            "SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = 'waltrail'"
        );
        let nudge = "CREATE TABLE IF NOT EXISTS nudge (n int); INSERT INTO nudge VALUES (1)";
        client.batch_execute(nudge).await.unwrap();
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

    async fn check_table(&self, table: &Table) -> (usize, usize) {
        let history = &table.history;
        let key: Vec<&str> = table.key.iter().map(String::as_str).collect();
        // The fold is strict: no row comes twice, and none is changed that is not there.
        let rows = self
            .check_fold(&format!("{}={history}", table.source), &key)
            .await;
        let (existing, changes): (Vec<HistoryRow>, Vec<HistoryRow>) = rows
            .into_iter()
            .partition(|row| row.change_type == "SNAPSHOT");
        if let (Some(last), Some(first)) = (existing.last(), changes.first()) {
            assert!(
                last.cdc_id < first.cdc_id,
                "{history}: a change before an existing row"
            );
        }
        // Every transaction that is there is there whole, once, in order; those that are not committed before.
        let expected = self
            .oracle
            .expected(&self.source, &table.source, &self.target, history)
            .await;
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
}
