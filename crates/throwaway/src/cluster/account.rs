//! The account that a server runs as: PostgreSQL refuses root, so root steps down to an account without privileges.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::{User, geteuid};

use crate::error::{Error, Result};

/// The account to step down to; nothing when the process is not root and stays who it is.
#[derive(Clone, Debug)]
pub(super) struct Account(Option<User>);

impl Account {
    /// `postgres` where it exists, else `nobody`; ourselves unless we are root.
    pub(super) fn choose() -> Result<Self> {
        if !geteuid().is_root() {
            return Ok(Self(None));
        }
        for name in ["postgres", "nobody"] {
            if let Ok(Some(user)) = User::from_name(name)
                && !user.uid.is_root()
            {
                return Ok(Self(Some(user)));
            }
        }
        Err(Error::environment(
            "PostgreSQL refuses to run as root, and there is no account to step down to",
        )
        .remedy("run as an ordinary user, or create an account named \"postgres\""))
    }

    /// The uid that the server will have.
    pub(super) fn uid(&self) -> u32 {
        self.0
            .as_ref()
            .map_or_else(|| geteuid().as_raw(), |user| user.uid.as_raw())
    }

    /// Gives `path` to the account.
    pub(super) fn own(&self, path: &Path) -> Result<()> {
        let Some(user) = &self.0 else { return Ok(()) };
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).map_err(|error| {
            Error::environment(format!(
                "could not give {} to {}",
                path.display(),
                user.name
            ))
            .caused_by(error)
        })
    }

    /// A command that runs as the account, knows no `PG*` variable and speaks English: what servers log
    /// is read again here.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command.env("LC_ALL", "C");
        if let Some(user) = &self.0 {
            // As root, std also clears the supplementary groups.
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }
}
