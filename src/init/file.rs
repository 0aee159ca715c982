//! The configuration file: its text, and how it is put in place.
//!
//! **No password is ever part of the text**, and a file that exists stays as it is unless it is to be replaced. It appears
//! whole or not at all.

use std::fmt::Write as _;
use std::fs::Permissions;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::config::{Config, Pattern, Setup, Table, TableName, TablePattern};
use crate::fault::{Exit, Fault, Result};

/// One `[[table]]`: names as SQL writes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    source: String,
    history: Option<String>,
}

impl Block {
    /// A table, whose history is named where it does not have the name by default.
    pub(super) fn table(source: &TableName, history: Option<&TableName>) -> Self {
        Self {
            source: source.to_string(),
            history: history.map(ToString::to_string),
        }
    }

    /// Every table of a schema.
    pub(super) fn schema(schema: &str) -> Self {
        let name = "*".to_owned();
        let schema = schema.to_owned();
        Self {
            source: TablePattern { schema, name }.to_string(),
            history: None,
        }
    }

    pub(super) fn of_table(table: &Table) -> Self {
        let by_default = table.source.default_history();
        let is_default = by_default.is_ok_and(|name| name == table.history);
        Self::table(&table.source, (!is_default).then_some(&table.history))
    }

    pub(super) fn of_pattern(pattern: &Pattern) -> Self {
        let by_default = TablePattern {
            schema: pattern.source.schema.clone(),
            name: "*_cdc".to_owned(),
        };
        let history = (pattern.history != by_default).then(|| pattern.history.to_string());
        Self {
            source: pattern.source.to_string(),
            history,
        }
    }
}

/// How a side is reached, as the file says it.
pub(super) struct Way<'a> {
    pub(super) dsn: &'a str,
    /// `password_file` or `password_command`, where the environment has one.
    pub(super) password: Option<(&'static str, &'a str)>,
}

const HEAD: &str = "\
# What waltrail follows, and where the history goes. Written by `waltrail init`.
#
# Here is what has to be said, and what is often changed. Every other setting has a default; the page
# docs/reference/configuration.md has them all. A setting after a `#` is off.
# `waltrail check` says what is still wrong.

# \"auto\": `run` makes the control schema, the publication, the history tables and the slot where they are missing.
# \"manual\": it makes nothing. An administrator runs `waltrail setup` once, and again when tables or columns are added.
";

const SLOT: &str = "\
# While waltrail is away, the slot keeps WAL on the source. It is unique in the cluster: another waltrail has another one.
";

const NO_TARGET: &str = "
# The history goes into the source database. For another database, take the `#` away:
#[target]
#dsn = \"host=history.internal dbname=history user=waltrail\"
#password_file = \"/etc/waltrail/target.password\"
";

const TAIL: &str = "
[http]
# Metrics and health are served here, for Prometheus and `waltrail health`. Left out: nowhere.
#listen = \"127.0.0.1:9464\"

# The tables. The history of schema.table is schema.table_cdc unless `history` names it. Rows that exist already are
# recorded once, at the first start. A name with a `*` means every such table, also those that are created later.
";

/// The whole file. `target` is none where the history goes into the source database.
pub(super) fn text(
    config: &Config,
    source: &Way<'_>,
    target: Option<&Way<'_>>,
    blocks: &[Block],
) -> String {
    let mut text = HEAD.to_owned();
    // Writing to a String cannot fail.
    let mut line = |args: std::fmt::Arguments<'_>| {
        let _ = text.write_fmt(args);
    };
    let setup = match config.setup {
        Setup::Auto => "auto",
        Setup::Manual => "manual",
    };
    line(format_args!("setup = \"{setup}\"\n"));
    line(format_args!(
        "\n[source]\n# The database that is followed.\n"
    ));
    way(&mut line, "source", source);
    line(format_args!(
        "{SLOT}slot = {}\n",
        quoted(&config.source.slot)
    ));
    line(format_args!(
        "publication = {}\n",
        quoted(&config.source.publication)
    ));
    match target {
        None => line(format_args!("{NO_TARGET}")),
        Some(target) => {
            line(format_args!(
                "\n[target]\n# The database that keeps the history.\n"
            ));
            way(&mut line, "target", target);
        }
    }
    line(format_args!("{TAIL}"));
    for (at, block) in blocks.iter().enumerate() {
        let gap = if at == 0 { "" } else { "\n" };
        line(format_args!(
            "{gap}[[table]]\nsource = {}\n",
            quoted(&block.source)
        ));
        if let Some(history) = &block.history {
            line(format_args!("history = {}\n", quoted(history)));
        }
    }
    text
}

fn way(line: &mut impl FnMut(std::fmt::Arguments<'_>), side: &str, way: &Way<'_>) {
    line(format_args!("dsn = {}\n", quoted(way.dsn)));
    line(format_args!(
        "# The password stands alone in a file of mode 0600, which is read at each connect. Without this: PGPASSWORD, ~/.pgpass.\n"
    ));
    match way.password {
        Some((key, value)) => line(format_args!("{key} = {}\n", quoted(value))),
        None => line(format_args!(
            "#password_file = \"/etc/waltrail/{side}.password\"\n"
        )),
    }
}

/// A text as TOML has it.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// Refuses a file that exists.
///
/// # Errors
/// Exit 64.
pub(super) fn refuse_existing(path: &Path, force: bool) -> Result<()> {
    match !force && path.symlink_metadata().is_ok() {
        true => Err(exists(path)),
        false => Ok(()),
    }
}

fn exists(path: &Path) -> Fault {
    Fault::halt(Exit::Usage, format!("{} exists already", path.display()))
        .remedy("name another file with --output, or add --force to replace this one")
}

/// Puts the file in place.
///
/// # Errors
/// Exit 64 where one has come meanwhile, 78 where it cannot be written.
pub(super) fn save(path: &Path, text: &str, force: bool) -> Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let failed = |error: io::Error| {
        Fault::halt(Exit::Config, format!("could not write {}", path.display()))
            .remedy("name a file in a folder that you may write to, with --output")
            .caused_by(error)
    };
    let mut file = tempfile::Builder::new()
        .prefix(".waltrail-")
        // As any new file: the umask says what others may do.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    let put = match force {
        true => file.persist(path),
        false => file.persist_noclobber(path),
    };
    match put {
        Ok(_) => Ok(()),
        Err(error) if !force && error.error.kind() == io::ErrorKind::AlreadyExists => {
            Err(exists(path))
        }
        Err(error) => Err(failed(error.error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Flags};

    fn read(text: &str) -> Config {
        let environment = Environment::empty().with_os_user("os");
        Config::from_toml(text, &Flags::default(), &environment)
            .unwrap_or_else(|fault| panic!("{fault}\n{text}"))
    }

    #[test]
    fn any_name_comes_back_from_the_file_as_it_was() {
        let names = [
            ("public", "employees"),
            ("My Schema", "T\"o'x\\\t\u{7f}"),
            ("straße", "日本.x"),
            ("public", "user"),
        ];
        let tables = names.map(|(schema, name)| TableName::new(schema, name));
        let mut blocks: Vec<Block> = tables.iter().map(|name| Block::table(name, None)).collect();
        let history = TableName::new("audit", "It's \"here\"");
        blocks.push(Block::table(&TableName::new("a", "b"), Some(&history)));
        blocks.push(Block::schema("My Schema"));
        let dsn = r"host=db user=u dbname='it\'s \\'";
        let way = Way {
            dsn,
            password: None,
        };
        let target = Way {
            dsn: "host=other user=u dbname=h",
            password: Some(("password_file", "/run/secrets/target")),
        };
        let plain = read("source.dsn = 'host=db'");
        let config = read(&text(&plain, &way, Some(&target), &blocks));
        let sources: Vec<&TableName> = config.tables.iter().map(|table| &table.source).collect();
        assert_eq!(sources[..4], tables.each_ref());
        assert_eq!(config.tables[4].history, history);
        assert_eq!(config.patterns[0].source.to_string(), "\"My Schema\".*");
        assert_eq!(config.source.connection.dbname(), "it's \\");
        assert_eq!(config.target.host(), "other");
        // What was read is written again as it was.
        let again = config.tables.iter().map(Block::of_table);
        let again: Vec<Block> = again
            .chain(config.patterns.iter().map(Block::of_pattern))
            .collect();
        assert_eq!(again, blocks);
    }

    #[test]
    fn a_file_is_replaced_only_by_force_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("waltrail.toml");
        save(&path, "one", false).unwrap();
        assert_eq!(
            refuse_existing(&path, false).unwrap_err().exit(),
            Exit::Usage
        );
        assert_eq!(save(&path, "two", false).unwrap_err().exit(), Exit::Usage);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one");
        refuse_existing(&path, true).unwrap();
        save(&path, "two", true).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        let missing = folder.path().join("none/waltrail.toml");
        assert_eq!(
            save(&missing, "one", false).unwrap_err().exit(),
            Exit::Config
        );
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }
}
