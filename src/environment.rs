//! The process environment, read once.
//!
//! Configuration is a function of the flags, one file and this snapshot, so that a test can give
//! any environment without touching the process's own. Values may be secrets: there is no `Debug`
//! that shows them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use nix::unistd::{User, geteuid};

/// Environment variables and who runs the process.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    os_user: Option<String>,
    os_home: Option<PathBuf>,
}

impl Environment {
    /// The environment of this process. Variables that are not UTF-8 are left out: none of the
    /// settings read from here can hold such a value.
    pub fn of_process() -> Self {
        let account = User::from_uid(geteuid()).ok().flatten();
        Self {
            variables: std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
            os_user: account.as_ref().map(|user| user.name.clone()),
            os_home: account.map(|user| user.dir),
        }
    }

    /// An environment without a variable, a user or a home.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The same environment with one more variable.
    pub fn with(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// The same environment without the variables that begin so.
    pub(crate) fn without(mut self, prefix: &str) -> Self {
        self.variables.retain(|name, _| !name.starts_with(prefix));
        self
    }

    /// The same environment run by this operating-system user.
    pub fn with_os_user(mut self, user: impl Into<String>) -> Self {
        self.os_user = Some(user.into());
        self
    }

    /// A variable's value; an empty one counts as not set, as in libpq.
    pub fn var(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    pub fn vars(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The operating-system user, where the system knows a name for it (a container's user often
    /// has none).
    pub fn os_user(&self) -> Option<&str> {
        self.os_user.as_deref()
    }

    /// `$HOME`, else the home folder of the operating-system user.
    pub fn home(&self) -> Option<PathBuf> {
        self.var("HOME")
            .map(PathBuf::from)
            .or_else(|| self.os_home.clone())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("variables", &self.variables.len())
            .finish_non_exhaustive()
    }
}
