//! `waltrail demo`: everything at work on a throw-away PostgreSQL.
//!
//! ```text
//!  scripted SQL, or a person with psql ----> employees      employees_cdc ----> shown beside it
//!                                                |                ^
//!                                                +--- waltrail ---+   a process of its own: it gets killed
//! ```
//!
//! The demonstration sees what any client would see: rows of tables and the server's log, nothing of the
//! daemon's inside. Its invariant: **it leaves nothing behind**, whether it comes to its end, is interrupted
//! or loses its terminal or its reader. The daemon is ended first, then the server with its folder, which
//! holds every file there is. Should the demonstration itself be killed, the server's watchdog does the same,
//! and a daemon without its server ends by itself.

mod answers;
mod daemon;
mod history;
mod output;
mod script;
mod statements;
mod view;

use std::io::{IsTerminal, Write};
use std::time::Duration;

use tokio::signal::unix::{self, SignalKind};
use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, NoTls};

use crate::cluster::Cluster;
use crate::error::{Error, Kind, Result};
use daemon::{Daemon, Launcher};
use history::{Row, TIME_FORMAT};
use output::Output;
use script::{Step, Transaction};
use statements::Statements;
use view::{Said, View};

/// The two tables, as the design has them.
const TABLES: &str = "\
CREATE TABLE employees (
    id SERIAL PRIMARY KEY, name VARCHAR(100), department VARCHAR(100), salary NUMERIC);
CREATE TABLE employees_cdc (
    cdc_id SERIAL PRIMARY KEY,
    change_type VARCHAR(10),
    id INTEGER, name VARCHAR(100), department VARCHAR(100), salary NUMERIC,
    change_timestamp TIMESTAMP DEFAULT CURRENT_TIMESTAMP);";

/// The database.
const DATABASE: &str = "demo";

/// How often the history is looked at.
const POLL: Duration = Duration::from_millis(50);
/// How long a statement waits for its rows, to be shown beside them.
const BESIDE_MAX: Duration = Duration::from_millis(250);
/// How long the daemon may take to start, or to bring the rows of a statement.
const PATIENCE: Duration = Duration::from_secs(30);
/// The pause before a daemon that ended is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(500);
/// Exit codes of the daemon.
const UNREACHABLE: i32 = 75;
const HISTORY_WOULD_BE_WRONG: i32 = 65;
/// The width where there is no terminal to ask.
const PLAIN_WIDTH: usize = 120;

/// What is done at the start of the interactive demonstration. The changed key is one that the sequence of a
/// person's own rows does not come to.
const EXAMPLES: [&str; 7] = [
    "INSERT INTO employees (name, department, salary) VALUES \
     ('Ada', 'Engineering', 5200), ('Grace', 'Research', 5400), ('Edgar', 'Research', 4800)",
    "UPDATE employees SET salary = salary + 100 WHERE department = 'Research'",
    "BEGIN",
    "DELETE FROM employees",
    "ROLLBACK",
    "UPDATE employees SET id = 1000003 WHERE name = 'Edgar'",
    "DELETE FROM employees WHERE name = 'Grace'",
];
/// The pause after each of them.
const EXAMPLE_PAUSE: Duration = Duration::from_millis(500);

/// Runs the demonstration: with `once` the scripted one, which checks the history and ends, else until
/// SIGINT, SIGTERM, SIGHUP or the end of standard output.
///
/// # Errors
/// [`Kind::Environment`] when there is no PostgreSQL here or it does not start; [`Kind::Defect`] when the history
/// is not what it must be; [`Kind::Interrupted`] when a signal came before `once` had its result.
pub async fn run(once: bool) -> Result<()> {
    let system = |error| Error::defect("the demonstration cannot be set up").caused_by(error);
    let mut signals = Signals::install().map_err(system)?;
    let output = Output::start().map_err(system)?;
    let ended = {
        let interrupted = interrupted(&mut signals, &output, once);
        tokio::pin!(interrupted);
        let mut starting = tokio::task::spawn_blocking(start_server);
        let started = tokio::select! {
            started = &mut starting => Some(started),
            () = &mut interrupted => {
                // What has been made by then is removed with what this returns.
                drop(starting.await);
                None
            }
        };
        match started {
            None => None,
            Some(started) => {
                let cluster = started.map_err(|error| {
                    Error::defect("the server's start broke").caused_by(error)
                })??;
                let mut stage = Stage::new(cluster, &output)?;
                let played = tokio::select! {
                    biased;
                    () = &mut interrupted => None,
                    played = stage.play(once) => Some(played),
                };
                stage.clear(played).await
            }
        }
    };
    output.finish().await;
    match ended {
        Some(result) => result,
        None if once => Err(Error::new(
            Kind::Interrupted,
            "interrupted before the history could be checked",
        )),
        None => Ok(()),
    }
}

/// The signals that end the demonstration.
struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    /// The terminal was closed.
    hangup: unix::Signal,
    /// Asks a daemon for a status line; the demonstration ignores it.
    _user: unix::Signal,
}

impl Signals {
    fn install() -> std::io::Result<Self> {
        Ok(Self {
            terminate: unix::signal(SignalKind::terminate())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
            hangup: unix::signal(SignalKind::hangup())?,
            _user: unix::signal(SignalKind::user_defined1())?,
        })
    }
}

/// Waits for a signal, or for the reader of the output to go away. With `once` that reader does not matter:
/// the exit code is the result.
async fn interrupted(signals: &mut Signals, output: &Output, once: bool) {
    tokio::select! {
        _ = signals.terminate.recv() => {}
        _ = signals.interrupt.recv() => {}
        _ = signals.hangup.recv() => {}
        () = output.closed(), if !once => {}
    }
}

fn start_server() -> Result<Cluster> {
    Cluster::builder()
        .setting("track_commit_timestamp", "on")
        .setting("log_line_prefix", statements::LINE_PREFIX)
        .setting("log_min_error_statement", "panic")
        .start()
}

/// What the demonstration needs while it runs.
struct Stage<'a> {
    cluster: Cluster,
    launcher: Launcher,
    daemon: Option<Daemon>,
    output: &'a Output,
    view: View,
    started: Instant,
    /// The `cdc_id` up to which the history was read.
    last: i32,
}

impl<'a> Stage<'a> {
    fn new(cluster: Cluster, output: &'a Output) -> Result<Self> {
        let launcher = Launcher::new(cluster.folder(), &cluster.dsn_tcp(DATABASE))?;
        let terminal = std::io::stdout().is_terminal();
        let width = match terminal_size::terminal_size() {
            Some((width, _)) if terminal => usize::from(width.0),
            _ => PLAIN_WIDTH,
        };
        let variable = |name| std::env::var(name).ok();
        let colours = view::colours(
            terminal,
            variable("NO_COLOR").as_deref(),
            variable("TERM").as_deref(),
        );
        Ok(Self {
            cluster,
            launcher,
            daemon: None,
            output,
            view: View::new(width, colours),
            started: Instant::now(),
            last: 0,
        })
    }

    async fn play(&mut self, once: bool) -> Result<()> {
        let admin = connect(&self.cluster.dsn_tcp("postgres")).await?;
        for statement in [
            format!("CREATE DATABASE {DATABASE}"),
            format!("CREATE ROLE {} LOGIN SUPERUSER", statements::ROLE),
            format!("ALTER ROLE {} SET log_statement = 'all'", statements::ROLE),
        ] {
            admin.batch_execute(&statement).await.map_err(refused)?;
        }
        drop(admin);
        let reader = connect(&self.cluster.dsn_tcp(DATABASE)).await?;
        reader.batch_execute(TABLES).await.map_err(refused)?;
        let daemon = self.launcher.start()?;
        let pid = daemon.pid();
        self.daemon = Some(daemon);
        self.wait_streaming(&reader).await?;
        let version = self.cluster.binaries().version();
        let version = version
            .strip_prefix("postgres (PostgreSQL) ")
            .unwrap_or(version);
        self.print(
            self.view.note(&format!(
                "a throw-away PostgreSQL {version} runs in {}",
                self.cluster.folder().display()
            )) + &self
                .view
                .note(&format!("waltrail follows employees (process {pid})")),
        )
        .await;
        if once {
            self.once(&reader).await
        } else {
            self.interactive(&reader).await
        }
    }

    /// Ends the daemon and the server and removes everything. `played` is nothing when it was interrupted.
    async fn clear(mut self, played: Option<Result<()>>) -> Option<Result<()>> {
        let ended = match self.daemon.take() {
            Some(daemon) => daemon.terminate().await,
            None => Ok(Default::default()),
        };
        if let Some(Err(_)) = &played {
            // Standard error may be closed.
            let _ = writeln!(
                std::io::stderr(),
                "the end of the daemon's log:\n{}",
                self.launcher.end_of_log()
            );
        }
        drop(self.cluster);
        match (played, ended) {
            (Some(Ok(())), Err(error)) => Some(Err(error)),
            (played, _) => played,
        }
    }

    async fn print(&self, text: String) {
        self.output.write(text).await;
    }

    /// Waits until the daemon follows: what is done before that may be before its time.
    async fn wait_streaming(&mut self, reader: &Client) -> Result<()> {
        const STREAMING: &str = "SELECT count(*) > 0 FROM pg_replication_slots \
            JOIN pg_stat_replication ON pid = active_pid WHERE state = 'streaming'";
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let row = reader.query_one(STREAMING, &[]).await.map_err(refused)?;
            if row.get(0) {
                return Ok(());
            }
            self.watch_daemon(POLL / 2).await?;
        }
        Err(Error::defect("the daemon does not begin to stream"))
    }

    /// Lets time pass; an error when the daemon ends meanwhile.
    async fn watch_daemon(&mut self, time: Duration) -> Result<()> {
        let Some(daemon) = &mut self.daemon else {
            sleep(time).await;
            return Ok(());
        };
        tokio::select! {
            ended = daemon.ended() => {
                Err(Error::defect(format!("the daemon ended by itself ({})", ended?)))
            }
            () = sleep(time) => Ok(()),
        }
    }

    /// The rows that have come since the last call.
    async fn new_rows(&mut self, reader: &Client) -> Result<Vec<(i32, Row)>> {
        let rows = history::after(reader, self.last).await.map_err(|error| {
            Error::environment("employees_cdc cannot be read any more").caused_by(error)
        })?;
        if let Some((cdc_id, _)) = rows.last() {
            self.last = *cdc_id;
        }
        Ok(rows)
    }

    /// As [`Stage::new_rows`], until there are `wanted` of them or patience is over.
    async fn rows(&mut self, reader: &Client, wanted: usize) -> Result<Vec<(i32, Row)>> {
        let deadline = Instant::now() + PATIENCE;
        let mut rows = self.new_rows(reader).await?;
        while rows.len() < wanted && Instant::now() < deadline {
            self.watch_daemon(POLL / 5).await?;
            rows.extend(self.new_rows(reader).await?);
        }
        Ok(rows)
    }

    /// Plays the script and compares the history with what it must be.
    async fn once(&mut self, reader: &Client) -> Result<()> {
        let writer = connect(&self.cluster.dsn_tcp(DATABASE)).await?;
        self.print(self.view.head()).await;
        let mut committed: Vec<(Transaction, String)> = Vec::new();
        let mut missing = 0;
        // While it does not wait, the script neither shows anything nor reads the history: between the last
        // statement and a kill there must be no time for the daemon to come to rest.
        let mut said: Vec<Said> = Vec::new();
        for step in script::script() {
            let mut rows = Vec::new();
            let mut note = None;
            match step {
                Step::Run(transaction) => {
                    said.extend(transaction.text().into_iter().map(Said::Statement));
                    missing += transaction.expected(None).len();
                    let xid = execute(&writer, &transaction).await?;
                    committed.extend(xid.map(|xid| (transaction, xid)));
                    continue;
                }
                Step::Wait => {
                    rows = self.rows(reader, missing).await?;
                    if rows.len() < missing {
                        break;
                    }
                }
                Step::Kill => {
                    if let Some(daemon) = self.daemon.take() {
                        let pid = daemon.pid();
                        daemon.kill9().await?;
                        note = Some(format!("kill -9 {pid}: waltrail is dead"));
                    }
                    rows = self.new_rows(reader).await?;
                }
                Step::Terminate => {
                    self.terminate().await?;
                    note =
                        Some("SIGTERM: waltrail wrote what it had received and ended".to_owned());
                    rows = self.new_rows(reader).await?;
                }
                Step::Start => {
                    let daemon = self.launcher.start()?;
                    let pid = daemon.pid();
                    note = Some(format!("waltrail is started again (process {pid})"));
                    self.daemon = Some(daemon);
                }
            }
            missing = missing.saturating_sub(rows.len());
            self.print(self.view.block(&said, &rows)).await;
            said.clear();
            if let Some(note) = note {
                self.print(self.view.note(&note)).await;
            }
        }
        // After an orderly end nothing more can come.
        self.terminate().await?;
        self.check(reader, &committed).await?;
        self.daemon = Some(self.launcher.start()?);
        self.wait_streaming(reader).await?;
        self.answers(reader).await?;
        self.terminate().await
    }

    /// Compares the whole history with what these transactions must leave, in the order of their commits.
    async fn check(&self, reader: &Client, committed: &[(Transaction, String)]) -> Result<()> {
        let query = format!(
            "SELECT to_char(pg_xact_commit_timestamp($1::text::xid) AT TIME ZONE 'UTC', '{TIME_FORMAT}')"
        );
        let mut expected = Vec::new();
        for (transaction, xid) in committed {
            let row = reader.query_one(&query, &[xid]).await.map_err(refused)?;
            let time: Option<String> = row.try_get(0).map_err(refused)?;
            if time.is_none() {
                return Err(Error::defect(
                    "the server does not know when a transaction committed",
                ));
            }
            expected.extend(transaction.expected(time.as_deref()));
        }
        let found: Vec<Row> = history::after(reader, 0)
            .await
            .map_err(refused)?
            .into_iter()
            .map(|(_, row)| row)
            .collect();
        let seconds = self.started.elapsed().as_secs_f64();
        if let Some(difference) = script::difference(&expected, &found) {
            self.print(format!(
                "\nmissing rows are marked -, rows that should not be there +\n{difference}"
            ))
            .await;
            return Err(Error::defect("the history is not what it must be"));
        }
        self.print(self.view.note(&format!(
            "the history is exactly what it must be: {} rows, each once, in commit order, with the time of its \
             commit ({seconds:.1} s)",
            found.len()
        )))
        .await;
        Ok(())
    }

    /// Ends the daemon, which must say that all is well.
    async fn terminate(&mut self) -> Result<()> {
        let Some(daemon) = self.daemon.take() else {
            return Ok(());
        };
        let ended = daemon.terminate().await?;
        if ended.success() {
            Ok(())
        } else {
            Err(Error::defect(format!("the daemon ended with {ended}")))
        }
    }

    /// Shows what others do, until the daemon cannot go on.
    async fn interactive(&mut self, reader: &Client) -> Result<()> {
        let mut statements = Statements::follow(&self.cluster.log_path()).map_err(unreadable)?;
        let dsn = format!(
            "host=127.0.0.1 port={} user={} dbname={DATABASE}",
            self.cluster.port(),
            statements::ROLE
        );
        let invitation = self.invitation(&dsn);
        self.print(invitation.clone() + &self.view.head()).await;
        let person = connect(&dsn).await?;
        // Dropping the set ends the examples.
        let mut examples = tokio::task::JoinSet::new();
        examples.spawn(play_examples(person));
        let mut said: Vec<Said> = Vec::new();
        let mut said_at = Instant::now();
        loop {
            self.keep_daemon().await?;
            // In this order: a statement is in the log before it has a row, so no row is shown before its
            // statement.
            let rows = self.new_rows(reader).await?;
            let news = statements.next().map_err(unreadable)?;
            if said.is_empty() {
                said_at = Instant::now();
            }
            said.extend(news);
            if !rows.is_empty() || !said.is_empty() && said_at.elapsed() >= BESIDE_MAX {
                self.print(self.view.block(&said, &rows)).await;
                said.clear();
            }
            if let Some(ended) = examples.try_join_next() {
                ended.map_err(|error| Error::defect("the examples broke").caused_by(error))??;
                self.answers(reader).await?;
                self.print(invitation.clone()).await;
            }
        }
    }

    /// How to take part.
    fn invitation(&self, dsn: &str) -> String {
        let on_path = std::env::var_os("PATH").is_some_and(|path| {
            std::env::split_paths(&path).any(|folder| folder.join("psql").is_file())
        });
        let in_place = self.cluster.binaries().program("psql");
        let psql = match !on_path && in_place.is_file() {
            true => in_place.display().to_string(),
            false => "psql".to_owned(),
        };
        let port = self.cluster.port();
        let role = statements::ROLE;
        [
            "change employees yourself, from another terminal; Ctrl-C here ends it all and removes it".to_owned(),
            format!("  {psql} -h 127.0.0.1 -p {port} -U {role} {DATABASE}"),
            format!("  DSN: {dsn}"),
        ]
        .map(|line| self.view.note(&line))
        .concat()
    }

    /// Lets time pass; starts the daemon again when it ended in a way after which it can go on, such as a
    /// `kill -9` from another terminal.
    async fn keep_daemon(&mut self) -> Result<()> {
        let Some(daemon) = &mut self.daemon else {
            sleep(RESTART_PAUSE).await;
            let daemon = self.launcher.start()?;
            let note = format!("waltrail is started again (process {})", daemon.pid());
            self.daemon = Some(daemon);
            self.print(self.view.note(&note)).await;
            return Ok(());
        };
        let ended = tokio::select! {
            ended = daemon.ended() => ended?,
            () = sleep(POLL) => return Ok(()),
        };
        match ended.code() {
            None | Some(0 | UNREACHABLE) => {
                self.daemon = None;
                self.print(self.view.note(&format!("waltrail ended ({ended})")))
                    .await;
                Ok(())
            }
            Some(code) => {
                let kind = match code {
                    HISTORY_WOULD_BE_WRONG => Kind::HistoryWouldBeWrong,
                    _ => Kind::Environment,
                };
                let message = format!("the daemon cannot go on ({ended})");
                Err(Error::new(kind, message).remedy("the end of its log above says why"))
            }
        }
    }
}

/// Runs a transaction; its number, if it committed.
async fn execute(writer: &Client, transaction: &Transaction) -> Result<Option<String>> {
    writer.batch_execute("BEGIN").await.map_err(refused)?;
    for statement in &transaction.statements {
        writer.batch_execute(statement).await.map_err(refused)?;
    }
    if !transaction.commits {
        writer.batch_execute("ROLLBACK").await.map_err(refused)?;
        return Ok(None);
    }
    let row = writer
        .query_one("SELECT pg_current_xact_id()::text", &[])
        .await
        .map_err(refused)?;
    writer.batch_execute("COMMIT").await.map_err(refused)?;
    Ok(Some(row.try_get(0).map_err(refused)?))
}

async fn play_examples(person: Client) -> Result<()> {
    for example in EXAMPLES {
        person.batch_execute(example).await.map_err(refused)?;
        sleep(EXAMPLE_PAUSE).await;
    }
    Ok(())
}

/// A connection whose other half runs by itself until the client is dropped.
async fn connect(dsn: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await.map_err(|error| {
        Error::defect("the demonstration's server cannot be reached").caused_by(error)
    })?;
    tokio::spawn(async move {
        // The client sees the same failure in its next call.
        let _ = connection.await;
    });
    Ok(client)
}

fn refused(error: tokio_postgres::Error) -> Error {
    Error::defect("the demonstration's server refused a statement").caused_by(error)
}

fn unreadable(error: std::io::Error) -> Error {
    Error::defect("the server's log cannot be read").caused_by(error)
}
