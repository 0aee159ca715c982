//! Where PostgreSQL's server programs are on this machine.
//!
//! A place that a person named is taken at its word: when it is wrong, that is an error, and no other
//! place is tried.

use std::cmp::Reverse;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};

const VARIABLE: &str = "WALTRAIL_PG_BIN";
/// The oldest server that waltrail follows.
const OLDEST: u32 = 14;

/// A folder that holds `initdb` and `postgres`, and their version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    folder: PathBuf,
    version: String,
    major: u32,
}

impl Binaries {
    /// The first usable set of programs of: `$WALTRAIL_PG_BIN`, `PATH`, Debian's places (the highest
    /// version first), what `pg_config` says, Homebrew's places, the RPM places.
    ///
    /// # Errors
    /// [`Kind::Environment`](crate::Kind::Environment), with a remedy, when there is none, or when `$WALTRAIL_PG_BIN` is set and wrong.
    pub fn find() -> Result<Self> {
        Self::search(std::env::var_os(VARIABLE), std::env::var_os("PATH"))
    }

    /// The programs in this very folder.
    ///
    /// # Errors
    /// [`Kind::Environment`](crate::Kind::Environment) when `initdb` or `postgres` is not there, does not run, or is older than 14.
    pub fn at(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        for program in ["initdb", "postgres"] {
            if !folder.join(program).is_file() {
                return Err(Error::environment(format!(
                    "there is no {program} in {}",
                    folder.display()
                )));
            }
        }
        let output = Command::new(folder.join("postgres"))
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| {
                Error::environment(format!("could not run {}/postgres", folder.display()))
                    .caused_by(error)
            })?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match major_version(&version) {
            Some(major) if major >= OLDEST => Ok(Self {
                folder,
                version,
                major,
            }),
            Some(major) => Err(Error::environment(format!(
                "PostgreSQL {major} in {} is too old, {OLDEST} is the first that will do",
                folder.display()
            ))),
            None => Err(Error::environment(format!(
                "{}/postgres does not tell its version",
                folder.display()
            ))),
        }
    }

    /// The folder of the programs.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What `postgres --version` prints.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The major version, such as 15.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.major
    }

    /// One of the programs.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn search(named: Option<OsString>, path: Option<OsString>) -> Result<Self> {
        if let Some(folder) = named.filter(|folder| !folder.is_empty()) {
            return Self::at(&folder).map_err(|error| {
                let folder = folder.display();
                error.after(&format!("{VARIABLE} is set to {folder}, but")).remedy(format!(
                    "Set {VARIABLE} to the folder that holds initdb and postgres, or unset it to have them found."
                ))
            });
        }
        let mut unfit = None;
        for folder in places(path.as_deref()) {
            if !folder.join("initdb").is_file() {
                continue;
            }
            match Self::at(folder) {
                Ok(found) => return Ok(found),
                Err(error) => unfit = unfit.or(Some(error)),
            }
        }
        let error = Error::environment("found no PostgreSQL server programs on this machine",
        )
        .remedy(format!(
            "Install them (Debian, Ubuntu: apt install postgresql; Fedora: dnf install postgresql-server; \
             macOS: brew install postgresql@17), or set {VARIABLE} to the folder that holds initdb and postgres."
        ));
        Err(match unfit {
            Some(cause) => error.caused_by(cause),
            None => error,
        })
    }
}

/// All folders worth a look, best first. Later ones are only computed when earlier ones did not do.
fn places(path: Option<&OsStr>) -> impl Iterator<Item = PathBuf> {
    let path: Vec<PathBuf> = path
        .map(|path| std::env::split_paths(path).collect())
        .unwrap_or_default();
    let versioned = [
        ("/usr/lib/postgresql", "", "bin"),
        ("/opt/homebrew/opt", "postgresql@", "bin"),
        ("/usr/local/opt", "postgresql@", "bin"),
        ("/usr", "pgsql-", "bin"),
    ];
    let debian = versioned.into_iter().take(1).flat_map(newest_first);
    let others = versioned.into_iter().skip(1).flat_map(newest_first);
    path.into_iter()
        .chain(debian)
        .chain(std::iter::once_with(asked_of_pg_config).flatten())
        .chain(others)
}

/// `parent/<prefix><version>/<leaf>` for every version there, the highest first.
fn newest_first((parent, prefix, leaf): (&str, &str, &str)) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return Vec::new();
    };
    let mut found: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let version = name.to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((version, entry.path().join(leaf)))
        })
        .collect();
    found.sort_by_key(|(version, _)| Reverse(*version));
    found.into_iter().map(|(_, folder)| folder).collect()
}

fn asked_of_pg_config() -> Option<PathBuf> {
    let output = Command::new("pg_config")
        .arg("--bindir")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let folder = String::from_utf8(output.stdout).ok()?;
    let folder = folder.trim();
    (!folder.is_empty()).then(|| PathBuf::from(folder))
}

/// The major version in `postgres (PostgreSQL) 15.14 (Debian ...)`; also `18beta1` and `19devel`.
fn major_version(text: &str) -> Option<u32> {
    let number = text.strip_prefix("postgres (PostgreSQL) ")?;
    let end = number
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(number.len());
    number.get(..end)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::os::unix::fs::PermissionsExt;

    fn fake(version: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for program in ["initdb", "postgres"] {
            let path = folder.path().join(program);
            std::fs::write(&path, format!("#!/bin/sh\necho '{version}'\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        folder
    }

    #[test]
    fn the_major_version_is_read_from_releases_betas_and_development() {
        let major = |text: &str| major_version(&format!("postgres (PostgreSQL) {text}"));
        assert_eq!(major("15.14 (Debian 15.14-0+deb12u1)"), Some(15));
        assert_eq!(major("18beta1"), Some(18));
        assert_eq!(major("19devel"), Some(19));
        assert_eq!(major("unknown"), None);
        assert_eq!(major_version("EDB 15.1"), None);
    }

    #[test]
    fn a_wrong_named_folder_is_an_error_even_when_there_are_others() {
        let good = fake("postgres (PostgreSQL) 16.1");
        let error = Binaries::search(
            Some("/nonexistent/bin".into()),
            Some(good.path().as_os_str().to_owned()),
        )
        .unwrap_err();
        assert_eq!(error.kind(), Kind::Environment);
        assert!(error.to_string().contains("WALTRAIL_PG_BIN"), "{error}");
        assert!(error.remedy_text().is_some());
    }

    #[test]
    fn a_named_folder_comes_before_the_path() {
        let named = fake("postgres (PostgreSQL) 14.3");
        let on_path = fake("postgres (PostgreSQL) 16.1");
        let path = Some(on_path.path().as_os_str().to_owned());
        let found = Binaries::search(Some(named.path().into()), path.clone()).unwrap();
        assert_eq!((found.major(), found.folder()), (14, named.path()));
        assert_eq!(Binaries::search(None, path).unwrap().major(), 16);
    }

    #[test]
    fn a_server_that_is_too_old_is_refused() {
        let old = fake("postgres (PostgreSQL) 12.4");
        let error = Binaries::at(old.path()).unwrap_err();
        assert!(error.to_string().contains("too old"), "{error}");
    }
}
