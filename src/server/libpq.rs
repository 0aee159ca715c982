//! libpq's two side files: connection services and passwords.
//!
//! Both formats are the manual's (sections 34.16 and 34.17). Written here because the published
//! crate for them loses what libpq keeps: a password that holds a colon or a backslash, a port
//! that was not written, the name `localhost` for a Unix socket. Errors name a file and a line, never
//! what stands in it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::dsn::{self, Settings};
use super::refused;
use crate::environment::Environment;
use crate::fault::Result;

/// Where a packaged PostgreSQL on Debian and Red Hat looks for the system's service file.
const SERVICE_FOLDERS: [&str; 2] = ["/etc/postgresql-common", "/etc"];

/// The most a side file may hold; more is some other file, named by mistake.
const FILE_BYTES_MAX: u64 = 1 << 20;

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
        let Some(text) = read(&file)? else { continue };
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
    /// Reads the file that `named`, `PGPASSFILE` or libpq's default names; `None` where it does not
    /// exist.
    ///
    /// # Errors
    /// When it cannot be read, or others than its owner may read it.
    pub(super) fn open(named: Option<&str>, environment: &Environment) -> Result<Option<Self>> {
        let Some(path) = named
            .or_else(|| environment.var("PGPASSFILE"))
            .map(PathBuf::from)
            .or_else(|| environment.home().map(|home| home.join(".pgpass")))
        else {
            return Ok(None);
        };
        let Some(text) = read(&path)? else {
            return Ok(None);
        };
        let mode = std::fs::metadata(&path).map(|m| m.mode()).unwrap_or(0o600);
        if mode & 0o077 != 0 {
            let path = path.display();
            return Err(refused(
                format!("the password file {path} may be read by others"),
                format!("run `chmod 600 {path}`"),
            ));
        }
        Ok(Some(Self(text)))
    }

    /// The password of the first line that fits this host (`localhost` for the default Unix socket), port, database and role.
    pub(super) fn password(&self, sought: [&str; 4]) -> Option<String> {
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

/// Reads a secret that stands alone in a file, without the newline at its end.
pub(super) fn secret(path: &Path, key: &str) -> Result<String> {
    let text = read(path)?.ok_or_else(|| {
        refused(
            format!("{key} names {}, which does not exist", path.display()),
            "create the file with the password in it, or correct the path",
        )
    })?;
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    if secret.is_empty() || secret.contains(['\n', '\0']) {
        return Err(refused(
            format!("{} does not hold one line with a password", path.display()),
            "write the password, and nothing else, into the file",
        ));
    }
    Ok(secret.to_owned())
}

/// A file's text; `None` where there is no such file.
fn read(path: &Path) -> Result<Option<String>> {
    let text = File::open(path).and_then(|file| {
        let mut text = String::new();
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(io::Error::other("it is larger than 1 MiB"));
        }
        Ok(text)
    });
    match text.map_err(|error| (error.kind(), error)) {
        Ok(text) => Ok(Some(text)),
        Err((io::ErrorKind::NotFound | io::ErrorKind::NotADirectory, _)) => Ok(None),
        Err((_, error)) => Err(refused(
            format!("could not read {}", path.display()),
            "let the user that runs waltrail read the file, or name another",
        )
        .caused_by(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, host: &str, port: &str) -> Option<String> {
        PasswordFile(file.to_owned()).password([host, port, "app", "bob"])
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
