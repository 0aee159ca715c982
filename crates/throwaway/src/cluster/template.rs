//! Data directories made by `initdb`, and ready-made ones to copy.
//!
//! `initdb` takes seconds, a copy of what it made takes a tenth of one. The copies share their *system
//! identifier*, which waltrail takes for the cluster's identity. The ready-made ones stay in the
//! temporary folder for later test runs, which is why using them is the caller's choice.

use std::fs::{self, DirBuilder, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::unistd::geteuid;

use super::account::Account;
use super::find::Binaries;
use crate::error::{Error, Result};

/// Older ones are made again: cleaners of temporary folders take files away one by one.
const OLDEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Runs `initdb` for `data`, a path whose parent belongs to the account.
pub(super) fn initdb(
    binaries: &Binaries,
    account: &Account,
    args: &[String],
    data: &Path,
) -> Result<()> {
    let output = account
        .command(&binaries.program("initdb"))
        .arg("-D")
        .arg(data)
        .args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
            "--no-instructions",
        ])
        .args(args)
        .current_dir(data.parent().unwrap_or(Path::new("/")))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error::environment("could not run initdb").caused_by(error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(
        Error::environment(format!("initdb failed: {}", said.trim())).remedy(
            "The folder for temporary files (TMPDIR) must have room and let the server's account in.",
        ),
    )
}

/// Puts a copy of the ready-made data directory for these options at `data`, making it when it is missing.
pub(super) fn copy(
    binaries: &Binaries,
    account: &Account,
    args: &[String],
    data: &Path,
) -> Result<()> {
    let store = store()?;
    let name = format!("{}-{:016x}", binaries.major(), key(binaries, account, args));
    let template = store.join(&name);
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(store.join(format!("{name}.lock")))
        .map_err(broken_store)?;
    // Readers share the lock, so that parallel tests copy at once and none copies what is being replaced.
    lock.lock_shared().map_err(broken_store)?;
    if !is_fresh(&template) {
        lock.unlock().map_err(broken_store)?;
        lock.lock().map_err(broken_store)?;
        if !is_fresh(&template) {
            make(binaries, account, args, &template)?;
        }
        // Between the two locks another process can only have made it again.
        lock.unlock().map_err(broken_store)?;
        lock.lock_shared().map_err(broken_store)?;
    }
    // `cp` of current systems shares blocks where the file system can, and -a keeps the owner.
    let status = Command::new("cp")
        .arg("-a")
        .arg(&template)
        .arg(data)
        .stdin(Stdio::null())
        .status()
        .map_err(|error| Error::environment("could not run cp").caused_by(error))?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::environment(format!(
            "could not copy {}",
            template.display()
        )))
    }
}

fn make(binaries: &Binaries, account: &Account, args: &[String], template: &Path) -> Result<()> {
    let scratch = tempfile::Builder::new()
        .prefix("waltrail-initdb-")
        .tempdir()
        .map_err(broken_store)?;
    account.own(scratch.path())?;
    let fresh = scratch.path().join("data");
    initdb(binaries, account, args, &fresh)?;
    if template.exists() {
        fs::remove_dir_all(template).map_err(broken_store)?;
    }
    fs::rename(&fresh, template).map_err(broken_store)
}

/// The folder of ready-made data directories; refused when it could belong to another user.
fn store() -> Result<PathBuf> {
    let uid = geteuid().as_raw();
    let store = std::env::temp_dir().join(format!("waltrail-initdb-cache-{uid}"));
    match DirBuilder::new().mode(0o700).create(&store) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(broken_store(error));
        }
        _ => {}
    }
    let found = fs::symlink_metadata(&store).map_err(broken_store)?;
    if found.is_dir() && found.uid() == uid && found.mode() & 0o077 == 0 {
        Ok(store)
    } else {
        Err(
            Error::environment(format!("{} is not ours alone", store.display()))
                .remedy("Remove it, or set TMPDIR to another folder."),
        )
    }
}

fn is_fresh(template: &Path) -> bool {
    fs::metadata(template.join("PG_VERSION"))
        .and_then(|found| found.modified())
        .is_ok_and(|made| made.elapsed().is_ok_and(|age| age < OLDEST))
}

fn key(binaries: &Binaries, account: &Account, args: &[String]) -> u64 {
    let mut hasher = DefaultHasher::new();
    binaries.version().hash(&mut hasher);
    binaries.folder().hash(&mut hasher);
    account.uid().hash(&mut hasher);
    args.hash(&mut hasher);
    hasher.finish()
}

fn broken_store(error: std::io::Error) -> Error {
    Error::environment("could not keep a ready-made data directory").caused_by(error)
}
