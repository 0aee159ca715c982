//! Small file systems, which get full. Only root can mount them, in a process whose mounts vanish with it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Set in the test's second process, which has mounts of its own.
const OWN_MOUNTS: &str = "TEST_OWN_MOUNTS";

/// Whether this process can mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mounts {
    Here,
    /// The test was run again where it can, and has passed.
    Elsewhere,
    No,
}

/// Runs this very test, named by its path, again where it can mount. Says why where that is nowhere.
pub fn mounts(test: &str) -> Mounts {
    if std::env::var_os(OWN_MOUNTS).is_some() {
        return Mounts::Here;
    }
    if !nix::unistd::geteuid().is_root() {
        println!(
            "SKIPPED: only root can mount a small file system that PostgreSQL's account may use"
        );
        return Mounts::No;
    }
    let allowed = Command::new("unshare").args(["-m", "true"]).status();
    if !allowed.is_ok_and(|status| status.success()) {
        println!("SKIPPED: unshare -m does not work here, so nothing can be mounted");
        return Mounts::No;
    }
    let status = Command::new("unshare")
        .args(["-m", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(OWN_MOUNTS, "1")
        .status()
        .unwrap();
    assert!(status.success());
    Mounts::Elsewhere
}

/// A file system of its own, as long as this lives: a folder that is one could not be removed.
#[derive(Debug)]
pub struct SmallFileSystem(PathBuf);

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        // Its server may still hold files there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Mounts one on `folder`, with these options of tmpfs.
#[must_use]
pub fn small_file_system(folder: &Path, options: &str) -> SmallFileSystem {
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "-o", options, "none"])
        .arg(folder)
        .status()
        .unwrap();
    assert!(status.success());
    SmallFileSystem(folder.to_owned())
}

/// A file that takes all the room there is.
pub fn fill(file: &Path) {
    use std::io::Write as _;
    let mut out = std::fs::File::create(file).unwrap();
    let block = vec![0; 4096];
    while out.write_all(&block).is_ok() {}
}
