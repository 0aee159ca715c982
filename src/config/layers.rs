//! Where settings come from, and which of them wins.
//!
//! ```text
//! defaults  <  one TOML file  <  WALTRAIL_* variables  <  flags
//! ```
//!
//! Each layer is checked by itself for keys that do not exist, so that the refusal can name the
//! file or the variable; what passes is merged by key. A list of tables is one value: a later layer
//! replaces the whole of it. **No message made here holds a value.**

use std::io;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::{Flags, KEYS};
use crate::environment::Environment;
use crate::fault::{Exit, Fault, Result};
use crate::name::split_outside_quotes;

/// What every variable of ours starts with.
const PREFIX: &str = "WALTRAIL_";

/// Variables that start like ours and are no setting.
const NO_SETTINGS: [&str; 2] = ["WALTRAIL_CONFIG", "WALTRAIL_PG_BIN"];

/// The most a configuration file may hold; more is some other file, named by mistake.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The file names tried when none is given.
const FILES: [&str; 2] = ["waltrail.toml", "/etc/waltrail/waltrail.toml"];

const BY_DEFAULT: &str = "by default";
const IN_ENVIRONMENT: &str = "in the environment";
const BY_FLAG: &str = "on the command line";

pub(super) struct Layers {
    pub(super) figment: Figment,
    pub(super) file: Option<PathBuf>,
}

impl Layers {
    /// Finds and reads the file, and merges all layers.
    pub(super) fn gather(flags: &Flags, environment: &Environment) -> Result<Self> {
        let file = find_file(flags, environment)?;
        let text = file
            .as_ref()
            .map(|(path, text)| (path.as_path(), text.as_str()));
        let layers = Self::of(text, flags, environment)?;
        Ok(Self {
            file: file.map(|(path, _)| path),
            ..layers
        })
    }

    /// Merges all layers over a file's text that is at hand.
    pub(super) fn of(
        file: Option<(&Path, &str)>,
        flags: &Flags,
        environment: &Environment,
    ) -> Result<Self> {
        let mut figment = Figment::from(Layer::new(BY_DEFAULT, defaults()));
        if let Some((path, text)) = file {
            let dict = parse_file(path, text)?;
            refuse_unknown(&dict, &format!("in {}", path.display()))?;
            figment = figment.merge(Layer::new(format!("in {}", path.display()), dict));
        }
        let figment = figment
            .merge(Layer::new(IN_ENVIRONMENT, from_environment(environment)?))
            .merge(Layer::new(BY_FLAG, from_flags(flags)));
        Ok(Self {
            figment,
            file: None,
        })
    }

    /// How the operator knows a key: its variable, its flag, or its name in a file.
    pub(super) fn place(&self, key: &str) -> String {
        let (_, index) = without_index(key);
        // The merge knows where a list comes from, and not each of its entries.
        let top = key.split('.').next().unwrap_or(key);
        let metadata = self.figment.find_metadata(key);
        let metadata = metadata.or_else(|| self.figment.find_metadata(top));
        let place = metadata.map_or(BY_DEFAULT, |metadata| metadata.name.as_ref());
        match (place, index) {
            (BY_DEFAULT, _) => shown(key),
            (IN_ENVIRONMENT, Some(at)) => format!("WALTRAIL_TABLE {place} (table {})", at + 1),
            (IN_ENVIRONMENT, None) => format!("{} {place}", variable(key)),
            (BY_FLAG, _) if top == "log" => format!("--{}", key.replace('.', "-")),
            (BY_FLAG, _) => format!("--{top}"),
            _ => format!("{} {place}", shown(key)),
        }
    }
}

/// One layer for figment, with the words that say where it comes from.
struct Layer {
    place: String,
    dict: Dict,
}

impl Layer {
    fn new(place: impl Into<String>, dict: Dict) -> Self {
        Self {
            place: place.into(),
            dict,
        }
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.place.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

/// `log.format` as the first place says that has it, whatever else is wrong.
pub(super) fn log_format(flags: &Flags, environment: &Environment) -> Option<String> {
    let said = flags.log_format.as_deref();
    if let Some(said) = said.or_else(|| environment.var("WALTRAIL_LOG__FORMAT")) {
        return Some(said.to_owned());
    }
    let (_, text) = find_file(flags, environment).ok()??;
    let file: toml::Table = toml::from_str(&text).ok()?;
    Some(file.get("log")?.get("format")?.as_str()?.to_owned())
}

fn defaults() -> Dict {
    let mut dict = Dict::new();
    for (key, value) in [
        ("setup", "auto"),
        ("source.slot", "waltrail"),
        ("source.publication", "waltrail"),
        ("source.decoding_work_mem", "256MB"),
        ("source.catch_up_wal", "512MiB"),
        ("source.failover", "true"),
        ("batch.max_rows", "50000"),
        ("batch.max_bytes", "8MiB"),
        ("batch.interval", "25ms"),
        ("snapshot.mode", "initial"),
        ("snapshot.change_type", "INSERT"),
        ("log.level", "info"),
        ("shutdown.grace", "10s"),
    ] {
        insert(&mut dict, key, Value::from(value));
    }
    dict
}

fn insert(dict: &mut Dict, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            dict.insert(key.to_owned(), value);
        }
        Some((section, rest)) => {
            let entry = dict
                .entry(section.to_owned())
                .or_insert_with(|| Value::from(Dict::new()));
            if let Value::Dict(_, inner) = entry {
                insert(inner, rest, value);
            }
        }
    }
}

fn find_file(flags: &Flags, environment: &Environment) -> Result<Option<(PathBuf, String)>> {
    let named = flags
        .config
        .clone()
        .or_else(|| environment.var("WALTRAIL_CONFIG").map(PathBuf::from));
    if let Some(path) = named {
        let text = read(&path)?.ok_or_else(|| {
            Fault::halt(
                Exit::Config,
                format!("the configuration file {} does not exist", path.display()),
            )
            .remedy("correct the path in --config or WALTRAIL_CONFIG")
        })?;
        return Ok(Some((path, text)));
    }
    for path in FILES.map(PathBuf::from) {
        if let Some(text) = read(&path)? {
            return Ok(Some((path, text)));
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<Option<String>> {
    let text = std::fs::File::open(path).and_then(|file| {
        let mut text = String::new();
        io::Read::read_to_string(&mut io::Read::take(file, FILE_BYTES_MAX + 1), &mut text)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(io::Error::other("it is larger than 1 MiB"));
        }
        Ok(text)
    });
    match text {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Fault::halt(
            Exit::Config,
            format!("could not read the configuration file {}", path.display()),
        )
        .caused_by(error)
        .remedy("let the user that runs waltrail read the file, or name another with --config")),
    }
}

fn parse_file(path: &Path, text: &str) -> Result<Dict> {
    let table: toml::Table = toml::from_str(text).map_err(|error: toml::de::Error| {
        // The parser's own display quotes the line, and the line may hold a password.
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(1, |before| before.matches('\n').count() + 1);
        Fault::halt(
            Exit::Config,
            format!(
                "line {line} of {} is not TOML: {}",
                path.display(),
                error.message().replace('\n', ", ")
            ),
        )
        .remedy("correct the line; a text value stands in double quotes")
    })?;
    let value = Value::serialize(table)
        .map_err(|_| Fault::bug("a TOML document does not fit the configuration's data model"))?;
    Ok(value.into_dict().unwrap_or_default())
}

fn from_flags(flags: &Flags) -> Dict {
    let mut dict = Dict::new();
    for (key, value) in [
        ("source.dsn", &flags.source),
        ("target.dsn", &flags.target),
        ("log.format", &flags.log_format),
        ("log.level", &flags.log_level),
    ] {
        if let Some(value) = value {
            insert(&mut dict, key, Value::from(value.as_str()));
        }
    }
    if !flags.tables.is_empty() {
        let tables = flags.tables.iter().map(|text| short_table(text));
        dict.insert("table".to_owned(), tables.collect::<Vec<_>>().into());
    }
    dict
}

/// `schema.table` or `schema.table=schema.history`, as a flag and a variable write it.
fn short_table(text: &str) -> Value {
    let mut parts = split_outside_quotes(text, '=').into_iter();
    let mut table = Dict::new();
    table.insert(
        "source".to_owned(),
        Value::from(parts.next().unwrap_or_default()),
    );
    let history = parts.collect::<Vec<_>>();
    if !history.is_empty() {
        table.insert("history".to_owned(), Value::from(history.join("=")));
    }
    Value::from(table)
}

/// Every value is a text here; what is meant by it is decided with the file's values.
fn from_environment(environment: &Environment) -> Result<Dict> {
    let mut dict = Dict::new();
    let mut tables: Vec<(usize, Dict)> = Vec::new();
    let refuse = |name: &str, problem: &str, remedy: String| {
        Fault::halt(Exit::Config, format!("{name} {IN_ENVIRONMENT} {problem}")).remedy(remedy)
    };
    for (name, value) in environment.vars() {
        let Some(tail) = name.strip_prefix(PREFIX) else {
            continue;
        };
        if NO_SETTINGS.contains(&name) || is_service_link(tail) {
            continue;
        }
        let key = tail.to_ascii_lowercase().replace("__", ".");
        if key == "table" {
            let list = split_outside_quotes(value, ',');
            let list = list.into_iter().filter(|text| !text.trim().is_empty());
            dict.insert(
                "table".to_owned(),
                list.map(short_table).collect::<Vec<_>>().into(),
            );
            continue;
        }
        let (plain, index) = without_index(&key);
        let known =
            KEYS.contains(&plain.as_str()) && plain.starts_with("table.") == index.is_some();
        if !known || tail.chars().any(|c| c.is_ascii_lowercase()) {
            let near = nearest(&plain);
            return Err(refuse(
                name,
                "is no setting",
                format!("did you mean {}?", variable(&numbered(near))),
            ));
        }
        match index {
            None if plain == "context.settings" => insert(&mut dict, &plain, list(value)),
            None => insert(&mut dict, &plain, Value::from(value)),
            Some(index) => table_setting(&mut tables, index, &plain, value),
        }
    }
    if !tables.is_empty() {
        if dict.contains_key("table") {
            return Err(refuse(
                "WALTRAIL_TABLE",
                "is set together with WALTRAIL_TABLE__0__SOURCE and its like",
                "keep one of the two forms".to_owned(),
            ));
        }
        tables.sort_by_key(|(index, _)| *index);
        if let Some((at, _)) = (0..).zip(&tables).find(|(at, (index, _))| at != index) {
            return Err(refuse(
                &format!("WALTRAIL_TABLE__{at}__SOURCE"),
                "is missing between its neighbours",
                "number the tables from 0 without a gap".to_owned(),
            ));
        }
        let tables: Vec<Value> = tables.into_iter().map(|(_, t)| Value::from(t)).collect();
        dict.insert("table".to_owned(), tables.into());
    }
    Ok(dict)
}

/// What stands between commas.
fn list(value: &str) -> Value {
    let list = split_outside_quotes(value, ',').into_iter();
    let list = list.filter(|text| !text.trim().is_empty());
    Value::from(list.collect::<Vec<_>>())
}

/// Sets a key of the table that stands at `index`.
fn table_setting(tables: &mut Vec<(usize, Dict)>, index: usize, key: &str, value: &str) {
    let field = key.trim_start_matches("table.");
    let value = match field {
        "except" | "exclude_columns" | "allow_lossy" => list(value),
        _ => Value::from(value),
    };
    if let Some((_, table)) = tables.iter_mut().find(|(at, _)| *at == index) {
        table.insert(field.to_owned(), value);
    } else {
        tables.push((index, Dict::from([(field.to_owned(), value)])));
    }
}

/// Kubernetes gives every pod such variables for a service that happens to have our name; they
/// cannot be meant as settings, because no setting has these names.
fn is_service_link(tail: &str) -> bool {
    tail == "SERVICE_HOST"
        || tail == "PORT"
        || tail.starts_with("SERVICE_PORT")
        || tail.starts_with("PORT_")
}

/// `table.3.source` as `table.source` and 3.
fn without_index(key: &str) -> (String, Option<usize>) {
    let indexed = key.strip_prefix("table.").and_then(|rest| {
        let (index, field) = rest.split_once('.')?;
        Some((format!("table.{field}"), index.parse().ok()?))
    });
    indexed.map_or_else(|| (key.to_owned(), None), |(plain, at)| (plain, Some(at)))
}

fn numbered(key: &str) -> String {
    key.strip_prefix("table.")
        .map_or_else(|| key.to_owned(), |field| format!("table.0.{field}"))
}

fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_ascii_uppercase().replace('.', "__"))
}

/// A key as a person counts: `table.0.source` is that of the first table.
pub(super) fn shown(key: &str) -> String {
    let (plain, index) = without_index(key);
    index.map_or_else(
        || format!("`{plain}`"),
        |at| format!("`{plain}` of table {}", at + 1),
    )
}

/// Refuses the first key of a file that does not exist.
fn refuse_unknown(dict: &Dict, place: &str) -> Result<()> {
    for (name, value) in dict {
        let prefix = format!("{name}.");
        let is_section = KEYS.iter().any(|key| key.starts_with(&prefix));
        if !is_section && !KEYS.contains(&name.as_str()) {
            return Err(unknown(name, place));
        }
        let inner: Vec<&Dict> = match value {
            Value::Dict(_, inner) => vec![inner],
            Value::Array(_, list) => list.iter().filter_map(Value::as_dict).collect(),
            _ => continue,
        };
        for field in inner.iter().flat_map(|dict| dict.keys()) {
            let key = format!("{prefix}{field}");
            if is_section && !KEYS.contains(&key.as_str()) {
                return Err(unknown(&key, place));
            }
        }
    }
    Ok(())
}

fn unknown(key: &str, place: &str) -> Fault {
    // A key may be quoted text of any kind; only what looks like a key is repeated.
    let plain = key.len() <= 64
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    let name = if plain { key } else { "(not shown)" };
    let near = nearest(key);
    let near = if key.contains('.') {
        near
    } else {
        // A section that does not exist is compared with sections.
        let known = KEYS.iter().filter_map(|key| key.split_once('.'));
        known
            .map(|(section, _)| section)
            .chain([near])
            .min_by_key(|candidate| distance(key, candidate))
            .unwrap_or(near)
    };
    Fault::halt(Exit::Config, format!("unknown key `{name}` {place}"))
        .remedy(format!("did you mean `{near}`?"))
}

/// The known key that is most like this one; the same last part in another section is closest.
fn nearest(key: &str) -> &'static str {
    KEYS.iter()
        .copied()
        .min_by_key(|known| distance(key, known))
        .unwrap_or_default()
}

fn distance(key: &str, known: &str) -> usize {
    let last = |text: &str| text.rsplit('.').next().unwrap_or_default().to_owned();
    let whole = strsim::damerau_levenshtein(key, known);
    // Half steps, so that a misplaced key beats a misspelt one and a tie goes to the likelier place.
    if last(key) == last(known) {
        return whole.min(1);
    }
    whole * 2
}
