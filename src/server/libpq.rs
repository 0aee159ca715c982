//! libpq's two side files: connection services and passwords.
//!
//! Both formats are the manual's (sections 34.16 and 34.17). Written here because the published
//! crate for them loses what libpq keeps: a password that holds a colon or a backslash, a port
//! that was not written, the name `localhost` for a Unix socket. Errors name a file and a line, never
//! what stands in it.

use std::path::{Path, PathBuf};

use super::dsn::{self, Settings};
use super::settings::SOCKET_FOLDERS;
use super::{Host, refused, secret};
use crate::environment::Environment;
use crate::fault::Result;

/// Where a packaged PostgreSQL on Debian and Red Hat looks for the system's service file.
const SERVICE_FOLDERS: [&str; 2] = ["/etc/postgresql-common", "/etc"];

/// Reads the settings of one service, from the user's file or else the system's.
///
/// # Errors
/// When no file holds the service, or the one that does cannot be used.
pub(super) fn service(
    name: &str,
    named_file: Option<&str>,
    environment: &Environment,
) -> Result<(Settings, PathBuf)> {
    let mut files = Vec::new();
    match named_file.or_else(|| environment.var("PGSERVICEFILE")) {
        Some(file) => files.push(PathBuf::from(file)),
        None => files.extend(environment.home().map(|home| home.join(".pg_service.conf"))),
    }
    match environment.var("PGSYSCONFDIR") {
        Some(folder) => files.push(Path::new(folder).join("pg_service.conf")),
        None => files.extend(SERVICE_FOLDERS.map(|f| Path::new(f).join("pg_service.conf"))),
    }
    for file in files {
        let Some(opened) = secret::open(&file)? else {
            continue;
        };
        let text = secret::text(&file, opened)?;
        if let Some(settings) = service_section(&text, name, &file)? {
            return Ok((settings, file));
        }
    }
    Err(refused(
        format!("no connection service file defines the service `{name}`"),
        "define it in ~/.pg_service.conf or in the file that PGSERVICEFILE names, or correct the name",
    ))
}

fn service_section(text: &str, name: &str, file: &Path) -> Result<Option<Settings>> {
    let mut found: Option<Settings> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(section) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            if section.strip_suffix(']') == Some(name) {
                found = Some(Settings::new());
            }
            continue;
        }
        let Some(settings) = &mut found else { continue };
        let wrong = |what: &str| {
            refused(
                format!("line {number} of {} {what}", file.display()),
                "write each setting of a service as `keyword=value`, without blanks around the `=`",
            )
        };
        let pair = line.split_once('=');
        let (keyword, value) = pair.ok_or_else(|| wrong("is not `keyword=value`"))?;
        if keyword.starts_with("ldap") {
            return Err(wrong(
                "looks a service up by LDAP, which waltrail does not do",
            ));
        }
        let known = dsn::keyword(keyword).map_err(|error| wrong(&error.to_string()))?;
        if matches!(known, "service" | "servicefile") {
            return Err(wrong(
                "names another service, which libpq does not follow either",
            ));
        }
        // The first of two equal keywords counts in a service file.
        settings.entry(known).or_insert_with(|| value.to_owned());
    }
    Ok(found)
}

pub(super) struct PasswordFile(String);

impl PasswordFile {
    /// The file that `named`, `PGPASSFILE` or libpq's default names.
    pub(super) fn path(named: Option<&str>, environment: &Environment) -> Option<PathBuf> {
        named
            .or_else(|| environment.var("PGPASSFILE"))
            .map(PathBuf::from)
            .or_else(|| environment.home().map(|home| home.join(".pgpass")))
    }

    /// Reads the file; `None` where it does not exist.
    ///
    /// # Errors
    /// When it cannot be read, or others than its owner may read it.
    pub(super) fn open(path: &Path) -> Result<Option<Self>> {
        Ok(secret::read(path)?.map(Self))
    }

    /// The password for a host; the default Unix socket is called `localhost`.
    pub(super) fn password(&self, host: &Host, dbname: &str, user: &str) -> Option<String> {
        let is_default = SOCKET_FOLDERS.contains(&host.name.as_str()) && host.address.is_none();
        let name = if is_default { "localhost" } else { &host.name };
        let port = host.port.to_string();
        let by = |name: &str| self.find([name, &port, dbname, user]);
        // A default folder that was written out is looked up as it is written, too.
        by(name).or_else(|| by(&host.name))
    }

    /// The password of the first line that fits this host, port, database and role.
    fn find(&self, sought: [&str; 4]) -> Option<String> {
        self.0
            .lines()
            .filter(|line| !line.starts_with('#'))
            .find_map(|line| {
                let mut rest = line;
                for value in sought {
                    let (field, tail) = field(rest)?;
                    if field != "*" && unescaped(field) != value {
                        return None;
                    }
                    rest = tail;
                }
                // What stands after the fourth colon is the password, further colons included.
                Some(unescaped(rest)).filter(|password| !password.is_empty())
            })
    }
}

/// The text up to the next colon that no backslash protects, and what follows that colon.
fn field(text: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    let end = text.find(|c| {
        let here = c == ':' && !escaped;
        escaped = c == '\\' && !escaped;
        here
    })?;
    Some((&text[..end], &text[end + 1..]))
}

fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        let literal = if c == '\\' { characters.next() } else { None };
        plain.push(literal.unwrap_or(c));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, host: &str, port: &str) -> Option<String> {
        PasswordFile(file.to_owned()).find([host, port, "app", "bob"])
    }

    #[test]
    fn the_first_line_that_fits_gives_the_password() {
        let file = "# note\n\nother:*:*:*:no\ndb:5432:app:bob:first\n*:*:*:*:last\n";
        assert_eq!(found(file, "db", "5432").as_deref(), Some("first"));
        assert_eq!(found(file, "db", "5433").as_deref(), Some("last"));
    }

    #[test]
    fn colons_and_backslashes_of_a_password_are_kept() {
        assert_eq!(
            found(r"*:*:*:*:a\:b\\c:d ", "db", "1").as_deref(),
            Some(r"a:b\c:d ")
        );
        assert_eq!(found(r"\:\:1:*:*:bob:x", "::1", "1").as_deref(), Some("x"));
    }

    #[test]
    fn a_line_with_too_few_fields_fits_nothing() {
        assert_eq!(found("*:*:*:*\nsecret\n", "db", "1"), None);
    }
}
