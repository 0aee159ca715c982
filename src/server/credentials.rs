//! The password of a connection, asked for at each connect: it may have been changed since the last one.
//!
//! A process that has just started and is refused ends (77, or 78 where the password cannot be read): its configuration is
//! wrong. Once a session has been up, the configuration was right, and the password is being changed: see
//! [`Credentials::note_up`].

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::libpq::PasswordFile;
use super::{Host, Side, command, secret};
use crate::fault::{Fault, Result};

/// So long the file may take; more is a file system of the network that does not answer.
const READ_MAX: Duration = Duration::from_secs(10);

/// Where a password is.
#[derive(Clone, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: the server has to let the role in without one.
    Nowhere,
    /// In a setting that was read with the configuration.
    Setting {
        password: String,
        /// The setting, and what to do once it is corrected.
        remedy: String,
    },
    /// Alone in a file: `password_file`.
    File(PathBuf),
    /// In libpq's password file, on the line for a host, a port, a database and a role.
    Passfile {
        path: PathBuf,
        dbname: String,
        user: String,
    },
    /// What a command prints: `password_command`.
    Command(String),
}

/// Where the password comes from. **`Debug` shows none.**
pub struct Credentials {
    /// Whose keys name the place.
    side: Side,
    place: Place,
    /// See [`Credentials::note_up`].
    up: AtomicBool,
}

impl Credentials {
    pub(super) fn new(side: Side, place: Place) -> Self {
        Self {
            side,
            place,
            up: AtomicBool::new(false),
        }
    }

    /// Notes that a session has been up: from now on a refused login, or a password that cannot be read, may pass.
    pub fn note_up(&self) {
        self.up.store(true, Ordering::Relaxed);
    }

    /// The password for a server on `host`; `None` where none is configured. Never log it.
    ///
    /// # Errors
    /// When its place cannot be read, or others may read it, or the command gives none.
    pub async fn password(&self, host: &Host) -> Result<Option<Vec<u8>>> {
        let found = self.look(host).await;
        found.map_err(|fault| match self.up.load(Ordering::Relaxed) {
            false => fault,
            true => fault
                .until_put_right("the password cannot be read; it is read again at each attempt"),
        })
    }

    async fn look(&self, host: &Host) -> Result<Option<Vec<u8>>> {
        let found = match &self.place {
            Place::Nowhere => None,
            Place::Setting { password, .. } => Some(password.clone()),
            Place::File(path) => {
                let key = format!("{}.password_file", self.side);
                Some(off_thread(path, move |path| secret::alone(path, &key)).await?)
            }
            Place::Passfile { path, dbname, user } => {
                let file = off_thread(path, PasswordFile::open).await?;
                file.and_then(|file| file.password(host, dbname, user))
            }
            Place::Command(line) => {
                let key = format!("{}.password_command", self.side);
                Some(command::output(line, &key).await?)
            }
        };
        Ok(found.map(String::into_bytes))
    }

    /// Whether a password in the connection string would win over this place, instead of being refused beside it.
    pub(crate) fn may_be_replaced(&self) -> bool {
        !matches!(self.place, Place::File(_) | Place::Command(_))
    }

    /// What to do about a password that the server refuses.
    pub(super) fn remedy(&self) -> String {
        let side = self.side;
        match &self.place {
            Place::Nowhere => {
                format!(
                    "set the password in {side}.password_file, {side}.dsn, PGPASSWORD or ~/.pgpass"
                )
            }
            Place::Setting { remedy, .. } => remedy.clone(),
            Place::File(path) => format!(
                "write the password of the role into {} ({side}.password_file)",
                path.display()
            ),
            Place::Passfile { path, .. } => format!(
                "correct the line of this host, port, database and role in {}, or set {side}.password_file",
                path.display()
            ),
            Place::Command(_) => format!(
                "run {side}.password_command as the user that runs waltrail, and log in with what it prints"
            ),
        }
    }

    /// A login that the server refused.
    pub(super) fn refused(&self, fault: Fault) -> Fault {
        if !self.up.load(Ordering::Relaxed) {
            return fault;
        }
        fault.until_put_right(match self.place {
            Place::Nowhere | Place::Setting { .. } => {
                "the server refuses the login; it is tried again"
            }
            Place::File(_) | Place::Passfile { .. } | Place::Command(_) => {
                "the server refuses the login; the password is read again at each attempt"
            }
        })
    }

    /// A server that does not keep to the protocol before the login is through. A proxy can stand in its place for a while.
    pub(super) fn foreign(&self, fault: Fault) -> Fault {
        match self.up.load(Ordering::Relaxed) {
            true => fault.until_put_right(
                "the server does not log in as PostgreSQL does; it is tried again",
            ),
            false => fault,
        }
    }

    /// A server whose certificate was refused, or which refused ours: it can be renewed while the process runs.
    pub(super) fn untrusted(&self, fault: Fault) -> Fault {
        match self.up.load(Ordering::Relaxed) {
            true => fault.until_put_right(
                "TLS with the server fails; it is tried again, and its files are read again",
            ),
            false => fault,
        }
    }
}

impl PartialEq for Credentials {
    /// Whether the place is the same: what is in it may change.
    fn eq(&self, other: &Self) -> bool {
        self.side == other.side && self.place == other.place
    }
}

impl Eq for Credentials {}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

/// Reads a file without keeping everything else waiting: it may lie on another machine, or be a pipe.
async fn off_thread<T: Send + 'static>(
    path: &Path,
    read: impl FnOnce(&Path) -> Result<T> + Send + 'static,
) -> Result<T> {
    let owned = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || read(&owned));
    match tokio::time::timeout(READ_MAX, reading).await {
        Ok(Ok(found)) => found,
        Ok(Err(panic)) => Err(Fault::bug("reading the password panicked").caused_by(panic)),
        Err(_) => Err(Fault::retry(format!(
            "could not read {} within {} s",
            path.display(),
            READ_MAX.as_secs()
        ))),
    }
}
