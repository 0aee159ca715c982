//! The configuration: read once, checked, and then only read.
//!
//! What is written (file, variables, flags) becomes a [`Config`] here, in which every rule already
//! holds; no other room checks a setting again. Nothing here opens a connection. **A setting is
//! never silently ignored**: it is used, or it is refused with [`Exit::Config`].

mod context;
mod file;
mod http;
mod layers;
mod log;
mod raw;
mod tables;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::log::{Format, Level, Levels, Log, ROOMS};
pub use crate::environment::Environment;
pub use crate::name::{NAME_BYTES_MAX, ParseNameError, TableName, TablePattern};
pub use crate::server::Connection;

pub(crate) use file::is_named;

use crate::fault::{Exit, Fault, Result};
use crate::schema::Rules;
use layers::Layers;

/// Less WAL than this, in bytes, is streamed.
pub const CATCH_UP_WAL_MIN: u64 = 16 * 1024 * 1024;

/// Every key there is. `table` is a list, the other first parts are tables of their own.
pub const KEYS: &[&str] = &[
    "setup",
    "schema_changes",
    "source.dsn",
    "source.password_file",
    "source.password_command",
    "source.slot",
    "source.publication",
    "source.decoding_work_mem",
    "source.catch_up_wal",
    "source.failover",
    "target.dsn",
    "target.password_file",
    "target.password_command",
    "target.durable",
    "table.source",
    "table.history",
    "table.except",
    "table.exclude_columns",
    "table.allow_lossy",
    "table.prefix",
    "table.functions",
    "batch.max_rows",
    "batch.max_bytes",
    "batch.interval",
    "context.settings",
    "snapshot.mode",
    "snapshot.change_type",
    "snapshot.workers",
    "log.format",
    "log.level",
    "http.listen",
    "http.token_file",
    "http.tls_cert",
    "http.tls_key",
    "shutdown.grace",
];

/// What the command line says about the configuration. It may hold a password, hence no `Debug`.
#[derive(Clone, Default)]
pub struct Flags {
    /// `--config`: the file to read instead of the usual places.
    pub config: Option<PathBuf>,
    pub source: Option<String>,
    pub target: Option<String>,
    /// `--table`: when any is given they replace every `[[table]]`; each is `schema.table` or
    /// `schema.table=schema.history`.
    pub tables: Vec<String>,
    pub log_format: Option<String>,
    pub log_level: Option<String>,
}

/// All settings, checked. `Debug` shows no password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub setup: Setup,
    /// What becomes of new columns and types; `None`: [`SchemaChanges::Follow`] for histories that waltrail made.
    pub schema_changes: Option<SchemaChanges>,
    pub source: Source,
    /// The database that keeps the history; the source's where none is named.
    pub target: Connection,
    /// Whether no target is named, so that source and target are one database.
    pub target_is_source: bool,
    /// When history is durable; `None`: [`Durable::Local`] where the target's server is the source's own, else
    /// [`Durable::Server`].
    pub durable: Option<Durable>,
    /// What is followed by name, in the order it is written. No source and no history stands twice, and no
    /// history is a source. May be empty: see [`Config::require_tables`].
    pub tables: Vec<Table>,
    /// What is followed by pattern; a table that is named itself is not meant.
    pub patterns: Vec<Pattern>,
    pub batch: Batch,
    /// Histories that waltrail makes record what transactions say of themselves.
    pub context: Option<Context>,
    /// What happens to rows that exist already.
    pub snapshot: Snapshot,
    pub log: Log,
    /// Where the page, metrics and health are served; nowhere when left out.
    pub http: Option<Http>,
    pub shutdown: Shutdown,
    /// The file that was read, where there was one.
    pub file: Option<PathBuf>,
}

/// Who creates the control schema, the publication, the history tables and the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    /// `run` creates what is missing.
    Auto,
    /// `run` creates nothing and stops when something is missing.
    Manual,
}

/// What is done when the columns of a source table change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaChanges {
    /// The history gets the columns that it lacks.
    Follow,
    /// Nothing of the new shape is written: it ends with 65.
    Halt,
}

/// When a commit in the target is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// Its WAL is on the target's own disk.
    Local,
    /// As the target promises: by its `synchronous_commit` also on its synchronous standbys.
    Server,
}

/// The database that is followed, and by what names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub connection: Connection,
    /// The replication slot: 1 to 63 of `[a-z0-9_]`.
    pub slot: String,
    /// The publication, as it stands in the catalog: 1 to 63 bytes.
    pub publication: String,
    /// `logical_decoding_work_mem` of our walsender in PostgreSQL's own units, for example `256MB`.
    pub decoding_work_mem: String,
    /// So much WAL, in bytes, is read in one piece at a start that is behind: 0, or 16 MiB to 64 GiB.
    pub catch_up_wal: u64,
    /// The slot is to survive a fail-over (17 and later).
    pub failover: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub source: TableName,
    pub history: TableName,
    /// Columns that are never recorded, as they stand in the catalog.
    pub exclude_columns: Vec<String>,
    /// Columns whose history column may round or cut their values, as they stand in the catalog.
    pub allow_lossy: Vec<String>,
    /// What the names of waltrail's own columns in the history begin with.
    pub prefix: String,
    /// Functions that answer from the history are made beside it.
    pub functions: bool,
    /// A pattern means it.
    pub by_pattern: bool,
    /// It is followed already, and not for the first time now.
    pub followed: bool,
}

impl Table {
    /// Whether it may be left out where it cannot be followed, since nothing of it is expected yet.
    pub fn is_optional(&self) -> bool {
        self.by_pattern && !self.followed
    }

    /// What it says of the columns.
    pub fn rules(&self) -> Rules {
        Rules {
            exclude: self.exclude_columns.clone(),
            lossy: self.allow_lossy.clone(),
            prefix: self.prefix.clone(),
        }
    }
}

/// Tables that are looked up in the source's catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    pub source: TablePattern,
    /// What it does not mean.
    pub except: Vec<TablePattern>,
    /// `*` stands for the table's name.
    pub history: TablePattern,
    /// The other settings of each.
    pub settings: Table,
}

impl Pattern {
    /// Whether this is the history of some table of the pattern, whatever that table is called by now.
    pub fn has_history(&self, history: &TableName) -> bool {
        let named = self
            .history
            .name
            .split_once('*')
            .and_then(|(before, after)| {
                let rest = history.name.strip_prefix(before)?;
                rest.strip_suffix(after)
            });
        let source = named.map(|name| TableName::new(self.source.schema.clone(), name));
        let table = source.and_then(|source| self.table(&source));
        matches!(table, Some(Ok(table)) if table.history == *history)
    }

    /// The table of this name, if the pattern means it; an error where the history's name would be too long.
    pub fn table(&self, source: &TableName) -> Option<Result<Table, ParseNameError>> {
        let excepted = self.except.iter().any(|except| except.matches(source));
        if excepted || !self.source.matches(source) {
            return None;
        }
        let history = self.history.with(&source.name);
        Some(match history.name.len() {
            1..=NAME_BYTES_MAX => Ok(Table {
                source: source.clone(),
                history,
                ..self.settings.clone()
            }),
            _ => Err(ParseNameError::TooLong),
        })
    }
}

/// How much one target transaction gathers before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    pub max_rows: usize,
    /// Bytes: 64 KiB to 256 MiB.
    pub max_bytes: usize,
    /// The least time between two target transactions while changes keep coming; at most a second.
    pub interval: Duration,
}

/// Who made a change: what the trigger of `waltrail setup --context` says of each transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Settings of the application's sessions, by their names: `role`, or one with a dot.
    pub settings: Vec<String>,
}

/// What happens to rows that exist before the stream begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub mode: SnapshotMode,
    /// What they are recorded as: 1 to 63 bytes.
    pub change_type: String,
    /// How many connections copy at once: 1 to 64.
    pub workers: usize,
}

/// Whether rows that exist already are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotMode {
    /// Once, when a table is followed for the first time.
    Initial,
    Never,
}

/// The HTTP listener; it is read at the start only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    pub listen: std::net::SocketAddr,
    /// The file with the bearer token that metrics and status need; none: they need none.
    pub token_file: Option<PathBuf>,
    /// None: what is served is not encrypted.
    pub tls: Option<HttpTls>,
}

/// The listener's certificate, with the chain that leads to its authority, and its private key: files in PEM form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpTls {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// How long a first signal may take to finish what is at hand.
    pub grace: Duration,
}

impl Config {
    /// Reads the file (`--config`, else `$WALTRAIL_CONFIG`, else `./waltrail.toml`, else
    /// `/etc/waltrail/waltrail.toml`, else none) and lays environment and flags over it.
    ///
    /// # Errors
    /// [`Exit::Config`] for the first thing that does not hold, with its place and a remedy.
    pub fn load(flags: &Flags, environment: &Environment) -> Result<Self> {
        file::meaning(Layers::gather(flags, environment)?, environment)
    }

    /// `log.format` alone, as far as it can be read: for what is said of a configuration that is refused.
    pub fn log_format(flags: &Flags, environment: &Environment) -> Option<Format> {
        let name = layers::log_format(flags, environment)?;
        let known = Format::KNOWN.iter().find(|(known, _)| *known == name);
        known.map(|(_, format)| *format)
    }

    /// The same from a text that stands for the file; no file is looked for.
    pub fn from_toml(text: &str, flags: &Flags, environment: &Environment) -> Result<Self> {
        let file = Some((Path::new("the configuration"), text));
        file::meaning(Layers::of(file, flags, environment)?, environment)
    }

    /// Refuses a configuration without a table, for the commands that need one.
    ///
    /// # Errors
    /// [`Exit::Config`] when there is none.
    pub fn require_tables(&self) -> Result<()> {
        if self.tables.is_empty() && self.patterns.is_empty() {
            return Err(Fault::halt(Exit::Config, "no table is configured").remedy(
                "add a [[table]] with source = \"schema.table\", set WALTRAIL_TABLE, or give \
                 --table schema.table",
            ));
        }
        Ok(())
    }
}
