//! What the settings mean: what leaves this file is a [`Config`] in which every rule holds. Each
//! refusal is one sentence that names the key and the place it was read from, and a remedy. Values
//! are repeated only where a key cannot hold a secret.

use std::path::PathBuf;
use std::time::Duration;

use figment::error::{Actual, Kind};

use super::layers::{Layers, shown};
use super::raw::{Number, Raw, RawBatch, RawSource, RawTable, RawTarget, Switch, Text};
use super::{
    Batch, CATCH_UP_WAL_MIN, Config, Connection, Durable, Format, Levels, Log, SchemaChanges,
    Setup, Shutdown, Snapshot, SnapshotMode, Source, Table,
};
use crate::environment::Environment;
use crate::fault::{Exit, Fault, Result};
use crate::name::{NAME_BYTES_MAX, ParseNameError, TableName, parse_identifier};
use crate::server::{Place, Side};

/// Fewest and most rows of a batch.
const MAX_ROWS: std::ops::RangeInclusive<usize> = 1..=10_000_000;
const WORKERS: std::ops::RangeInclusive<usize> = 1..=64;
const WORKERS_DEFAULT_MAX: usize = 4;
/// With it, the longest name of a column of our own is still far from too long.
const PREFIX_BYTES_MAX: usize = 16;
/// Smallest and largest batch in bytes.
const MAX_BYTES: std::ops::RangeInclusive<u64> = 64 * 1024..=256 * 1024 * 1024;
/// PostgreSQL's own range of `logical_decoding_work_mem`, in kB.
const WORK_MEM_KB: std::ops::RangeInclusive<u64> = 64..=2_147_483_647;
/// Smallest and largest backlog that is read in one piece, in bytes.
const CATCH_UP_WAL: std::ops::RangeInclusive<u64> = CATCH_UP_WAL_MIN..=64 * 1024 * 1024 * 1024;
/// While it lasts, nothing is read, and a source that shuts down waits.
const INTERVAL_MAX: Duration = Duration::from_secs(1);
/// More than an hour is a mistyped unit, not a grace.
const GRACE_MAX: Duration = Duration::from_secs(3600);

/// Reads the merged layers as a [`Config`].
pub(super) fn meaning(layers: Layers, environment: &Environment) -> Result<Config> {
    let raw: Raw = layers
        .figment
        .extract()
        .map_err(|error| wrong_type(&layers, &error))?;
    let reader = Reader {
        layers: &layers,
        environment,
    };
    let (tables, patterns) = reader.tables(&raw.table)?;
    let config = Config {
        setup: reader.one_of(
            "setup",
            &raw.setup,
            &[("auto", Setup::Auto), ("manual", Setup::Manual)],
        )?,
        schema_changes: reader.schema_changes(raw.schema_changes.as_ref())?,
        tables,
        patterns,
        batch: reader.batch(&raw.batch)?,
        context: reader.context(&raw.context)?,
        snapshot: Snapshot {
            mode: reader.one_of(
                "snapshot.mode",
                &raw.snapshot.mode,
                &[
                    ("initial", SnapshotMode::Initial),
                    ("never", SnapshotMode::Never),
                ],
            )?,
            change_type: reader.short_text("snapshot.change_type", raw.snapshot.change_type)?,
            workers: reader.workers(raw.snapshot.workers.as_ref())?,
        },
        log: Log {
            format: reader.maybe_one_of("log.format", raw.log.format.as_ref(), &Format::KNOWN)?,
            level: Levels::parse(&raw.log.level.0)
                .map_err(|(problem, remedy)| reader.refuse("log.level", problem, remedy))?,
        },
        http: reader.http(&raw.http)?,
        shutdown: Shutdown {
            grace: reader.grace(&raw.shutdown.grace)?,
        },
        target_is_source: raw.target.dsn.is_none(),
        durable: reader.maybe_one_of(
            "target.durable",
            raw.target.durable.as_ref(),
            &[("local", Durable::Local), ("server", Durable::Server)],
        )?,
        target: reader.target(&raw.target, &raw.source)?,
        source: reader.source(raw.source)?,
        file: None,
    };
    Ok(Config {
        file: layers.file,
        ..config
    })
}

pub(super) struct Reader<'a> {
    layers: &'a Layers,
    environment: &'a Environment,
}

fn bytes(number: &Number) -> Option<u64> {
    let plain = number.0.replace('_', "");
    let size = plain.parse::<bytesize::ByteSize>().ok()?;
    Some(size.as_u64())
}

impl Reader<'_> {
    pub(super) fn refuse(
        &self,
        key: &str,
        problem: impl std::fmt::Display,
        remedy: impl Into<String>,
    ) -> Fault {
        let place = self.layers.place(key);
        Fault::halt(Exit::Config, format!("{place} {problem}")).remedy(remedy)
    }

    fn one_of<T: Copy>(&self, key: &str, text: &Text, known: &[(&str, T)]) -> Result<T> {
        known
            .iter()
            .find(|(name, _)| *name == text.0)
            .map(|(_, meaning)| *meaning)
            .ok_or_else(|| {
                let names: Vec<_> = known
                    .iter()
                    .map(|(name, _)| format!("\"{name}\""))
                    .collect();
                let near = known
                    .iter()
                    .min_by_key(|(name, _)| strsim::damerau_levenshtein(name, &text.0))
                    .map_or("", |(name, _)| name);
                self.refuse(
                    key,
                    format_args!("is {:?}, which is not one of {}", text.0, names.join(", ")),
                    format!("did you mean \"{near}\"?"),
                )
            })
    }

    fn maybe_one_of<T: Copy>(
        &self,
        key: &str,
        text: Option<&Text>,
        known: &[(&str, T)],
    ) -> Result<Option<T>> {
        text.map(|text| self.one_of(key, text, known)).transpose()
    }

    fn switch(&self, key: &str, switch: &Switch) -> Result<bool> {
        let text = Text(switch.0.clone());
        self.one_of(key, &text, &[("true", true), ("false", false)])
    }

    fn schema_changes(&self, text: Option<&Text>) -> Result<Option<SchemaChanges>> {
        let known = [
            ("follow", SchemaChanges::Follow),
            ("halt", SchemaChanges::Halt),
        ];
        self.maybe_one_of("schema_changes", text, &known)
    }

    fn batch(&self, raw: &RawBatch) -> Result<Batch> {
        Ok(Batch {
            max_rows: self.max_rows(&raw.max_rows)?,
            max_bytes: self.max_bytes(&raw.max_bytes)?,
            interval: self.interval(&raw.interval)?,
        })
    }

    fn source(&self, raw: RawSource) -> Result<Source> {
        Ok(Source {
            connection: self.source_connection(&raw)?,
            slot: self.slot(raw.slot.0)?,
            publication: self.short_text("source.publication", raw.publication)?,
            decoding_work_mem: self.work_mem(raw.decoding_work_mem.0)?,
            catch_up_wal: self.catch_up_wal(&raw.catch_up_wal)?,
            failover: self.switch("source.failover", &raw.failover)?,
        })
    }

    fn source_connection(&self, raw: &RawSource) -> Result<Connection> {
        let said = is_named(self.environment);
        let dsn = match &raw.dsn {
            Some(dsn) => dsn.0.as_str(),
            None if said => "",
            None => {
                return Err(Fault::halt(Exit::Config, "no source database is named").remedy(
                    "set source.dsn in waltrail.toml, WALTRAIL_SOURCE__DSN, --source, or libpq's \
                     PGHOST and PGDATABASE",
                ));
            }
        };
        let (file, command) = (raw.password_file.as_ref(), raw.password_command.as_ref());
        self.connection(Side::Source, dsn, file, command)
    }

    fn target(&self, raw: &RawTarget, source: &RawSource) -> Result<Connection> {
        let (file, command) = (raw.password_file.as_ref(), raw.password_command.as_ref());
        let lonely = match (&raw.dsn, file, command) {
            (Some(dsn), ..) => return self.connection(Side::Target, &dsn.0, file, command),
            (None, None, None) => return self.source_connection(source),
            (None, Some(_), _) => "target.password_file",
            (None, None, Some(_)) => "target.password_command",
        };
        Err(self.refuse(
            lonely,
            "is set without target.dsn",
            "set target.dsn too, or leave the whole target out to write into the source database",
        ))
    }

    fn connection(
        &self,
        side: Side,
        dsn: &str,
        file: Option<&Text>,
        command: Option<&Text>,
    ) -> Result<Connection> {
        let key = |name: &str| format!("{side}.{name}");
        let own = match (file, command) {
            (None, None) => None,
            (Some(file), None) if file.0.is_empty() => {
                let remedy = "name a file, or leave the key out";
                return Err(self.refuse(&key("password_file"), "is empty", remedy));
            }
            (Some(file), None) => Some(Place::File(PathBuf::from(&file.0))),
            (None, Some(command)) if command.0.trim().is_empty() || command.0.contains('\0') => {
                let remedy = "write a command that prints the password, or leave the key out";
                return Err(self.refuse(&key("password_command"), "is no command", remedy));
            }
            (None, Some(command)) => Some(Place::Command(command.0.clone())),
            (Some(_), Some(_)) => {
                return Err(self.refuse(
                    &key("password_command"),
                    format_args!("is set beside {}", key("password_file")),
                    "keep one of the two",
                ));
            }
        };
        Connection::resolve(side, dsn, own, self.environment)
    }

    fn slot(&self, slot: String) -> Result<String> {
        let fits = (1..=NAME_BYTES_MAX).contains(&slot.len())
            && slot
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if fits {
            return Ok(slot);
        }
        Err(self.refuse(
            "source.slot",
            format_args!("is {slot:?}, which PostgreSQL does not take as a slot's name"),
            "use 1 to 63 of the characters a to z, 0 to 9 and _",
        ))
    }

    fn short_text(&self, key: &str, text: Text) -> Result<String> {
        if (1..=NAME_BYTES_MAX).contains(&text.0.len()) && !text.0.contains('\0') {
            return Ok(text.0);
        }
        let problem = if text.0.is_empty() {
            "is empty"
        } else {
            "is too long"
        };
        Err(self.refuse(
            key,
            problem,
            format!("write 1 to {NAME_BYTES_MAX} bytes of text"),
        ))
    }

    fn work_mem(&self, text: String) -> Result<String> {
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let factor = match &text[digits..] {
            "kB" => Some(1),
            "MB" => Some(1024),
            "GB" => Some(1024 * 1024),
            _ => None,
        };
        let kilobytes = factor
            .zip(text[..digits].parse::<u64>().ok())
            .and_then(|(factor, number)| number.checked_mul(factor));
        if kilobytes.is_some_and(|kilobytes| WORK_MEM_KB.contains(&kilobytes)) {
            return Ok(text);
        }
        Err(self.refuse(
            "source.decoding_work_mem",
            format_args!("is {text:?}, which is not a size PostgreSQL takes here"),
            "write a whole number with kB, MB or GB and no blank, at least 64kB, for example \"256MB\"",
        ))
    }

    /// A value that was read from `text`, or the refusal that says what it is not.
    pub(super) fn valid<T>(
        &self,
        key: &str,
        text: &str,
        value: Option<T>,
        problem: &str,
        remedy: &str,
    ) -> Result<T> {
        value.ok_or_else(|| {
            self.refuse(key, format_args!("is {text:?}, which is {problem}"), remedy)
        })
    }

    fn max_rows(&self, number: &Number) -> Result<usize> {
        let rows = number.0.replace('_', "").parse().ok();
        self.valid(
            "batch.max_rows",
            &number.0,
            rows.filter(|rows| MAX_ROWS.contains(rows)),
            "not a number from 1 to 10000000",
            "write a whole number, for example 50_000",
        )
    }

    /// As many as the machine has processors, but a few connections are enough for one disk.
    fn workers(&self, number: Option<&Number>) -> Result<usize> {
        let Some(Number(text)) = number else {
            let available = std::thread::available_parallelism();
            return Ok(available.map_or(1, usize::from).min(WORKERS_DEFAULT_MAX));
        };
        let workers = text.parse().ok();
        self.valid(
            "snapshot.workers",
            text,
            workers.filter(|workers| WORKERS.contains(workers)),
            "not a number from 1 to 64",
            "write a whole number, for example 2",
        )
    }

    fn catch_up_wal(&self, number: &Number) -> Result<u64> {
        self.valid(
            "source.catch_up_wal",
            &number.0,
            bytes(number).filter(|bytes| *bytes == 0 || CATCH_UP_WAL.contains(bytes)),
            "neither 0 nor a size from 16MiB to 64GiB",
            "write a size with its unit, for example \"512MiB\", or 0 to stream everything",
        )
    }

    fn max_bytes(&self, number: &Number) -> Result<usize> {
        let bytes = bytes(number).filter(|bytes| MAX_BYTES.contains(bytes));
        self.valid(
            "batch.max_bytes",
            &number.0,
            bytes.and_then(|bytes| usize::try_from(bytes).ok()),
            "not a size from 64KiB to 256MiB",
            "write a size with its unit, for example \"8MiB\"",
        )
    }

    fn interval(&self, number: &Number) -> Result<Duration> {
        let interval = humantime::parse_duration(&number.0).ok();
        self.valid(
            "batch.interval",
            &number.0,
            interval.filter(|interval| *interval <= INTERVAL_MAX),
            "not a duration of at most a second",
            "write a number with its unit, for example \"20ms\", or 0 to write as soon as the target is free",
        )
    }

    fn grace(&self, text: &Text) -> Result<Duration> {
        let grace = humantime::parse_duration(&text.0).ok();
        self.valid(
            "shutdown.grace",
            &text.0,
            grace.filter(|grace| *grace <= GRACE_MAX),
            "not a duration of at most an hour",
            "write a number with its unit, for example \"10s\" or \"1m 30s\"",
        )
    }

    pub(super) fn table(&self, at: usize, raw: &RawTable) -> Result<Table> {
        let key = |field: &str| format!("table.{at}.{field}");
        let name = |field: &str, text: &str| {
            text.parse::<TableName>()
                .map_err(|error| self.wrong_name(&key(field), text, &error))
        };
        let Some(source) = &raw.source else {
            return Err(Fault::halt(
                Exit::Config,
                format!("{} is missing", shown(&key("source"))),
            )
            .remedy("name the table to follow, for example source = \"public.employees\""));
        };
        let source = name("source", &source.0)?;
        self.own_schema(at, &source.schema, &source)?;
        if !raw.except.is_empty() {
            return Err(self.refuse(
                &key("except"),
                format_args!("stands beside {source}, which is one table"),
                "name several tables with a `*` in source, or leave except out",
            ));
        }
        let history = match &raw.history {
            Some(history) => name("history", &history.0)?,
            None => source.default_history().map_err(|_| {
                self.refuse(
                    &key("source"),
                    format_args!(
                        "names {source}, whose name with `_cdc` is too long for PostgreSQL"
                    ),
                    "name its history table with the key history",
                )
            })?,
        };
        self.settings(at, raw, source, history)
    }

    /// What is set for a table, or for each that a pattern means.
    pub(super) fn settings(
        &self,
        at: usize,
        raw: &RawTable,
        source: TableName,
        history: TableName,
    ) -> Result<Table> {
        let key = |field: &str| format!("table.{at}.{field}");
        Ok(Table {
            source,
            history,
            exclude_columns: self.columns(&key("exclude_columns"), &raw.exclude_columns)?,
            allow_lossy: self.columns(&key("allow_lossy"), &raw.allow_lossy)?,
            prefix: self.prefix(&key("prefix"), raw.prefix.as_ref())?,
            functions: match &raw.functions {
                Some(switch) => self.switch(&key("functions"), switch)?,
                None => true,
            },
            by_pattern: false,
            followed: false,
        })
    }

    /// A list of columns, each named once.
    fn columns(&self, key: &str, list: &[Text]) -> Result<Vec<String>> {
        let mut columns = Vec::with_capacity(list.len());
        for column in list {
            let name = parse_identifier(&column.0)
                .map_err(|error| self.wrong_name(key, &column.0, &error))?;
            if columns.contains(&name) {
                return Err(self.refuse(
                    key,
                    format_args!("names the column {name:?} a second time"),
                    "list each column once",
                ));
            }
            columns.push(name);
        }
        Ok(columns)
    }

    fn prefix(&self, key: &str, prefix: Option<&Text>) -> Result<String> {
        let prefix = prefix.map_or("", |prefix| prefix.0.as_str());
        let fits = prefix.len() <= PREFIX_BYTES_MAX
            && !prefix.starts_with("old_")
            && prefix
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        self.valid(
            key,
            prefix,
            fits.then(|| prefix.to_owned()),
            "not a prefix of column names",
            "write up to 16 of the characters a to z, 0 to 9 and _, for example \"_\"",
        )
    }

    pub(super) fn wrong_name(&self, key: &str, text: &str, error: &ParseNameError) -> Fault {
        let problem = format!("is {:?}, which {error}", text.trim());
        let remedy = match error {
            ParseNameError::Character(_) => {
                "put the name into double quotes, in TOML for example '\"My Schema\".\"T\"'"
            }
            ParseNameError::Unclosed => "close the quote; a quote within a name is written twice",
            ParseNameError::TooLong => "write the name as it stands in the database",
            ParseNameError::Empty | ParseNameError::Parts => {
                "write schema.table, for example public.employees"
            }
        };
        self.refuse(key, problem, remedy)
    }
}

/// Whether libpq's variables name a database. They may say it all; with nothing at all said, a guess would only give a puzzling
/// refusal from whatever server listens here.
pub(crate) fn is_named(environment: &Environment) -> bool {
    ["PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE", "PGUSER"]
        .iter()
        .any(|variable| environment.var(variable).is_some())
}

/// A value of the wrong type, told without the value.
fn wrong_type(layers: &Layers, error: &figment::Error) -> Fault {
    let key = error.path.join(".");
    let place = layers.place(&key);
    let (problem, remedy) = match &error.kind {
        Kind::InvalidType(actual, expected) | Kind::InvalidValue(actual, expected) => {
            let expected = match expected.as_str() {
                expected if expected.starts_with("struct ") => "a table of settings",
                "a sequence" => "a list",
                expected => expected,
            };
            (
                format!("is {}, not {expected}", kind_of(actual)),
                format!("write {expected}"),
            )
        }
        _ => (
            "cannot be read".to_owned(),
            "compare it with the example configuration".to_owned(),
        ),
    };
    Fault::halt(Exit::Config, format!("{place} {problem}")).remedy(remedy)
}

fn kind_of(actual: &Actual) -> &'static str {
    match actual {
        Actual::Bool(_) => "a truth value",
        Actual::Unsigned(_) | Actual::Signed(_) => "a number",
        Actual::Float(_) => "a number with a fraction",
        Actual::Char(_) | Actual::Str(_) => "a text",
        Actual::Seq => "a list",
        Actual::Map | Actual::StructVariant => "a table",
        _ => "something else",
    }
}
