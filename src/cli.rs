//! The command line: the commands and their flags.
//!
//! Nothing here opens a file or a connection, and nothing here ends the process. A refused command
//! line is shown without its values, because `--source` may hold a password.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

use crate::config::Flags;
use crate::fault::Exit;
use crate::lsn::Lsn;

/// The whole command line. It may hold a password, hence no `Debug`.
#[derive(Parser)]
#[command(
    name = "waltrail",
    version = crate::VERSION,
    about = "Writes every committed change of chosen PostgreSQL tables into history tables, \
             exactly once, in commit order",
    after_help = "Exit codes: 0 done, 1 check has found an error, verify a difference, status a warning, or health that it is not ready, \
                  2 status shows that history is not recorded, 64 usage, 65 going on would make the history wrong, 70 a bug, \
                  75 a server cannot be reached, 77 a privilege is missing, 78 configuration.",
    arg_required_else_help = true,
    subcommand_required = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    global: Global,
}

#[derive(Args)]
struct Global {
    /// The configuration file [default: $WALTRAIL_CONFIG, else ./waltrail.toml, else
    /// /etc/waltrail/waltrail.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The database to follow (keyword/value or URI); other users of this machine can read a command
    /// line, so give passwords otherwise
    #[arg(long, global = true, value_name = "DSN", alias = "dsn")]
    source: Option<String>,
    /// The database that keeps the history [default: the source]
    #[arg(long, global = true, value_name = "DSN", alias = "target-dsn")]
    target: Option<String>,
    /// A table to follow, instead of those in the file; may be given several times
    #[arg(
        long = "table",
        global = true,
        value_name = "SCHEMA.TABLE[=SCHEMA.HISTORY]"
    )]
    tables: Vec<String>,
    /// How the log is written: json or text [default: text on a terminal, json elsewhere]
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<String>,
    /// What is logged: a level, and perhaps others for some rooms ("info,session=debug")
    #[arg(long, global = true, value_name = "LEVEL[,ROOM=LEVEL]")]
    log_level: Option<String>,
}

/// The commands.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Follow the source and write the history, until a signal ends it
    Run {
        /// Stop with exit code 75 instead of trying again when a server cannot be reached
        #[arg(long)]
        no_retry: bool,
        /// Leave out the one transaction that commits at this position, and write a GAP row into each history that it changes: the
        /// last resort against a transaction that cannot be recorded. Once it is passed, this does nothing
        #[arg(long, value_name = "LSN")]
        skip_transaction: Option<Lsn>,
    },
    /// Look at a database, choose tables, and write a configuration file; no database is changed
    Init(InitArgs),
    /// Create what is missing (control schema, publication, history tables, slot) and stop
    Setup {
        /// Print the SQL instead of running it
        #[arg(long)]
        dry_run: bool,
        /// Also make triggers on the source that say who makes a change: the history gets a column `context`
        #[arg(long)]
        context: bool,
        /// Also grant this role what `run` needs, on both servers: setup = "manual" is then enough for it
        #[arg(long, value_name = "ROLE")]
        grant_to: Option<String>,
    },
    /// Look at both servers, change nothing, and show everything that is wrong with its remedy; exit code 1 if `run` would refuse
    Check {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        /// Only read the configuration: exit code 78 if it would be refused
        #[arg(long, conflicts_with = "json")]
        config_only: bool,
    },
    /// Show whether history is complete and recorded: verdict, lag, WAL kept on the source and the time left, tables; exit code
    /// 0 good, 1 warning, 2 broken
    Status {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        /// Show it anew every 2 s, until a signal ends it
        #[arg(long)]
        watch: bool,
        /// Count the rows of each history instead of estimating them
        #[arg(long)]
        exact: bool,
    },
    /// Ask the daemon that runs whether it is ready: one line, exit code 0 if it is, else 1
    Health {
        /// Where it listens, for example http://127.0.0.1:9464 [default: http.listen of the configuration]
        #[arg(long, value_name = "URL")]
        url: Option<String>,
        /// Ask whether its process moves, which is true while a server is away, too
        #[arg(long)]
        live: bool,
    },
    /// Accept that changes are missing: write a GAP row into each history concerned, and let its existing rows be recorded
    /// again
    AcceptGap {
        /// Print the SQL instead of running it
        #[arg(long)]
        dry_run: bool,
        /// The source is another cluster that takes the place of the one that was followed
        #[arg(long)]
        source_replaced: bool,
    },
    /// Go on after pg_upgrade of the source, where that provably lost nothing (PostgreSQL 17 and later)
    Adopt {
        /// Print the SQL instead of running it
        #[arg(long)]
        dry_run: bool,
    },
    /// Show the life of a row, of a table or of a transaction: time, who, what changed from what to what
    Log(LogArgs),
    /// Print an SQL script that puts rows back as they were before some changes; it runs nothing
    Undo(UndoArgs),
    /// Compare each history with its table, row by row, at one position, while everything writes; exit code 1 if one differs
    Verify {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        /// Show the keys of rows that differ, not only their hashes
        #[arg(long)]
        show_keys: bool,
        /// Add REPAIR rows to the histories that differ, after asking
        #[arg(long)]
        repair: bool,
        /// Do not ask
        #[arg(long, requires = "repair")]
        yes: bool,
    },
    /// Drop slot, publication and what `setup --context` made; history tables and the checkpoint stay
    Teardown {
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Run everything against a throw-away PostgreSQL and show the history as it grows
    Demo {
        /// Run a short scripted workload, check the history and stop
        #[arg(long)]
        once: bool,
    },
}

impl Command {
    /// Whether it does nothing without a table in the configuration.
    pub fn needs_tables(&self) -> bool {
        !matches!(
            self,
            Self::Status { .. }
                | Self::Health { .. }
                | Self::Teardown { .. }
                | Self::Demo { .. }
                | Self::Init(_)
        )
    }

    /// Whether all is done once the configuration is read.
    pub fn is_done_without_servers(&self) -> bool {
        matches!(
            self,
            Self::Check {
                config_only: true,
                ..
            }
        )
    }

    /// Whether it has a log, beside what it prints.
    pub fn logs(&self) -> bool {
        matches!(
            self,
            Self::Run { .. }
                | Self::Setup { dry_run: false, .. }
                | Self::Adopt { .. }
                | Self::Verify { .. }
        )
    }

    /// Whether `--table` says which of the tables are meant, not what is followed.
    pub fn chooses_tables(&self) -> bool {
        matches!(
            self,
            Self::AcceptGap { .. } | Self::Log(_) | Self::Undo(_) | Self::Verify { .. }
        )
    }
}

/// What `waltrail init` was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct InitArgs {
    /// The tables to follow, with commas between them, also patterns such as 'public.*'; nothing is asked then
    #[arg(long = "tables", value_name = "SCHEMA.TABLE[=SCHEMA.HISTORY],...")]
    pub named: Option<String>,
    /// The file to write [default: that of --config, else waltrail.toml]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Replace a file that exists
    #[arg(long)]
    pub force: bool,
}

/// What `waltrail log` was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct LogArgs {
    /// The table, or its history; all tables where --xid is given and it is not
    pub table: Option<String>,
    /// The row with this key: its value, or column=value[,column=value] (changes of the key are followed)
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// What this transaction did
    #[arg(long, value_name = "XID", value_parser = xid)]
    pub xid: Option<u32>,
    /// Changes that committed after this: a time as PostgreSQL reads it, or how long ago ("2h", "3days 4h")
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Changes that committed at this time or before, written likewise
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// The newest rows, at most so many [default: 50 where no key, transaction or start is given]
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Go on with what comes, until a signal ends it
    #[arg(long, conflicts_with_all = ["xid", "until"])]
    pub follow: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// The number of a transaction, also as `pg_current_xact_id()` gives it: the log has its lower half.
fn xid(text: &str) -> Result<u32, String> {
    let whole: u64 = text
        .parse()
        .map_err(|_| "a transaction has a number".to_owned())?;
    match whole as u32 {
        0 => Err("no transaction has this number".to_owned()),
        xid => Ok(xid),
    }
}

/// What `waltrail undo` was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct UndoArgs {
    #[command(flatten)]
    pub which: Which,
    /// Only rows that fulfilled this condition before; SQL over the columns of the table
    #[arg(long = "where", value_name = "SQL")]
    pub condition: Option<String>,
    /// Also rows that were changed since
    #[arg(long)]
    pub force: bool,
}

/// The changes that are undone.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// Undo what this transaction did
    #[arg(long, value_name = "XID", value_parser = xid)]
    pub xid: Option<u32>,
    /// Undo all that committed after this: a time as PostgreSQL reads it, or how long ago ("2h")
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
}

impl Cli {
    /// Reads a command line; the first argument is the program's name.
    ///
    /// # Errors
    /// [`Usage`] when the line is wrong, and also when it asks for help or the version.
    pub fn read<I, T>(arguments: I) -> Result<Self, Usage>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString> + Clone,
    {
        let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
        Self::try_parse_from(&arguments).map_err(|error| Usage::new(&error, &arguments))
    }

    /// What the line says about the configuration.
    pub fn flags(&self) -> Flags {
        Flags {
            config: self.global.config.clone(),
            source: self.global.source.clone(),
            target: self.global.target.clone(),
            tables: self.global.tables.clone(),
            log_format: self.global.log_format.clone(),
            log_level: self.global.log_level.clone(),
        }
    }
}

/// Why there is nothing to run: help was asked for, or the line was wrong.
#[derive(Debug)]
pub struct Usage {
    text: String,
    asked: bool,
}

impl Usage {
    fn new(error: &clap::Error, arguments: &[OsString]) -> Self {
        let asked = matches!(
            error.kind(),
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
        );
        let mut text = error.to_string();
        if !asked {
            // Whatever looks like a connection string is taken out of what clap repeats.
            for argument in arguments.iter().skip(1).map(|a| a.to_string_lossy()) {
                let value = match argument.split_once('=') {
                    Some((flag, value)) if flag.starts_with("--") => value,
                    _ => argument.as_ref(),
                };
                if value.contains("://") || value.contains('=') {
                    text = text.replace(value, "(not shown)");
                }
            }
        }
        Self { text, asked }
    }

    /// What to print.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether this is the answer to `--help` or `--version`: standard output, exit code 0.
    pub fn was_asked_for(&self) -> bool {
        self.asked
    }

    /// The exit code: 0 for help and version, else 64.
    pub fn exit_code(&self) -> ExitCode {
        if self.asked {
            ExitCode::SUCCESS
        } else {
            Exit::Usage.into()
        }
    }
}
