//! Files that hold a password: who else may read them.
//!
//! The rule is libpq's for `~/.pgpass`: no access for the group and the world. But where libpq goes on without the password, it is
//! refused here, since what follows would only be a login without one. A secret that a service manager or an orchestrator hands
//! to this process is taken with the mode that it has there.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statfs::{FsType, TMPFS_MAGIC, fstatfs};
use nix::sys::statvfs::FsFlags;
use nix::unistd::geteuid;

use super::refused;
use crate::fault::{Fault, Result};

/// The most a side file may hold; more is some other file, named by mistake.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where systemd, Docker and Podman put secrets.
const FOLDERS: [&str; 3] = ["/run/credentials", "/run/secrets", "/var/run/secrets"];

/// The other file system in memory (`statfs(2)`), which systemd uses.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// Reads a password that stands alone in a file, without the newline at its end.
pub(super) fn alone(path: &Path, key: &str) -> Result<String> {
    let text = read(path)?.ok_or_else(|| {
        let remedy = match path.starts_with(FOLDERS[0]) {
            true => {
                let variable = key.to_ascii_uppercase().replace('.', "__");
                format!(
                    "systemd hands it to the service only while that runs; beside it, run the command as root with \
                     WALTRAIL_{variable} set to the file that LoadCredential= names, or with systemd-run: see \
                     docs/start/systemd.md"
                )
            }
            false => "create the file with the password in it, or correct the path".to_owned(),
        };
        refused(
            format!("{key} names {}, which does not exist", path.display()),
            remedy,
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

/// The text of a file that holds passwords; `None` where there is no such file.
///
/// # Errors
/// When it cannot be read, or others than its owner have access to it.
pub(super) fn read(path: &Path) -> Result<Option<String>> {
    let Some(file) = open(path)? else {
        return Ok(None);
    };
    let mode = file.metadata().map_err(|error| unreadable(path, error))?;
    let (owner, mode) = (mode.uid(), mode.mode() & 0o7777);
    let us = geteuid().as_raw();
    if mode & 0o077 != 0 && !is_handed_over(path, &file, owner == us) {
        let shown = path.display();
        let quoted = format!("'{}'", shown.to_string().replace('\'', r"'\''"));
        let chown = match owner == us || us == 0 {
            true => String::new(),
            false => format!("chown {us} {quoted} && "),
        };
        return Err(refused(
            format!("the password file {shown} has group or world access (mode {mode:04o})"),
            format!("run `{chown}chmod 0600 {quoted}`"),
        ));
    }
    text(path, file).map(Some)
}

fn is_handed_over(path: &Path, file: &File, is_ours: bool) -> bool {
    let path = fs::canonicalize(path);
    let at = fstatfs(file).map(|at| {
        let in_memory = matches!(at.filesystem_type(), TMPFS_MAGIC | RAMFS_MAGIC);
        (in_memory, at.flags().contains(FsFlags::ST_RDONLY))
    });
    match (path, at) {
        (Ok(path), Ok((in_memory, is_read_only))) => {
            may_have_any_mode(&path, in_memory, is_read_only, is_ours)
        }
        _ => false,
    }
}

/// Whether this process cannot choose the file's mode: in one of [`FOLDERS`], or, as in Kubernetes, on a file system in memory
/// that is read-only or where another user owns the file. `path` has no symbolic link in it.
fn may_have_any_mode(path: &Path, in_memory: bool, is_read_only: bool, is_ours: bool) -> bool {
    FOLDERS.iter().any(|folder| path.starts_with(folder)) || in_memory && (is_read_only || !is_ours)
}

/// Opens a file; `None` where there is none.
pub(super) fn open(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
            _ => Err(unreadable(path, error)),
        },
    }
}

/// A file's text.
pub(super) fn text(path: &Path, file: File) -> Result<String> {
    let mut text = String::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    match read {
        Ok(_) if text.len() as u64 > FILE_BYTES_MAX => Err(unreadable(
            path,
            io::Error::other("it is larger than 1 MiB"),
        )),
        Ok(_) => Ok(text),
        Err(error) => Err(unreadable(path, error)),
    }
}

fn unreadable(path: &Path, error: io::Error) -> Fault {
    refused(
        format!("could not read {}", path.display()),
        "let the user that runs waltrail read the file, or name another",
    )
    .caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_as_service_managers_and_orchestrators_make_them_have_any_mode() {
        let taken = |path: &str, in_memory, is_read_only, is_ours| {
            may_have_any_mode(Path::new(path), in_memory, is_read_only, is_ours)
        };
        // systemd's LoadCredential: root's, 0440 by its ACL.
        assert!(taken(
            "/run/credentials/waltrail.service/source",
            true,
            true,
            false
        ));
        // Docker Swarm in memory; Compose by a mount of the host's file, whose owner and file system are any.
        assert!(taken("/run/secrets/source", true, true, false));
        assert!(taken("/run/secrets/source", false, false, true));
        // Kubernetes, for a user of its own and for root: 0644, or 0440 with fsGroup.
        let kubernetes = "/etc/waltrail/secret/..2026_11_28_17_00_00.1/password";
        assert!(taken(kubernetes, true, true, false));
        assert!(taken(kubernetes, true, true, true));
        // A sidecar that writes into a volume in memory.
        assert!(taken("/vault/secrets/password", true, false, false));
    }

    #[test]
    fn a_file_that_anyone_could_have_made_has_no_mode_of_its_own() {
        let taken = |path: &str, in_memory, is_read_only, is_ours| {
            may_have_any_mode(Path::new(path), in_memory, is_read_only, is_ours)
        };
        assert!(!taken("/etc/waltrail/source.password", false, false, false));
        assert!(!taken("/etc/waltrail/source.password", false, true, true));
        assert!(!taken("/run/secrets.d/source", false, false, false));
        assert!(!taken("/dev/shm/source", true, false, true));
    }
}
