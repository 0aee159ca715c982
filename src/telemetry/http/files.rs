//! What was made of files, and is made again when they change: a token or a certificate is renewed without a restart.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::fault::Result;

/// Two files are seldom written at once: what cannot be used is looked at once more before it is said.
const SAY_AFTER: u32 = 2;

/// What tells a file from one that has taken its place: its inode, its size, and when it was changed.
type Stamp = Option<(u64, u64, i64, i64)>;

/// See the module.
pub(super) struct Made<T> {
    files: Vec<PathBuf>,
    make: fn(&[PathBuf]) -> Result<T>,
    now: Mutex<Now<T>>,
}

struct Now<T> {
    made: Arc<T>,
    stamps: Vec<Stamp>,
    failures: u32,
}

impl<T> Made<T> {
    pub(super) fn new(files: Vec<PathBuf>, make: fn(&[PathBuf]) -> Result<T>) -> Result<Self> {
        let stamps = stamps(&files);
        let made = Arc::new(make(&files)?);
        Ok(Self {
            files,
            make,
            now: Mutex::new(Now {
                made,
                stamps,
                failures: 0,
            }),
        })
    }

    pub(super) fn current(&self) -> Arc<T> {
        self.now(|now| Arc::clone(&now.made))
    }

    /// Makes it again if a file has changed. What cannot be used leaves it as it is, and is logged once.
    pub(super) fn look(&self) {
        let stamps = stamps(&self.files);
        if self.now(|now| now.stamps == stamps) {
            return;
        }
        let files: Vec<String> = self.files.iter().map(|f| f.display().to_string()).collect();
        let files = files.join(", ");
        match (self.make)(&self.files) {
            Ok(made) => {
                self.now(|now| {
                    *now = Now {
                        made: Arc::new(made),
                        stamps,
                        failures: 0,
                    };
                });
                tracing::info!(files, "files of the HTTP listener were read again");
            }
            Err(fault) => {
                let failures = self.now(|now| {
                    now.failures = now.failures.saturating_add(1);
                    now.failures
                });
                if failures == SAY_AFTER {
                    let remedy = fault.remedy_text().unwrap_or_default();
                    tracing::warn!(files, error = %fault, remedy, "changed files of the HTTP listener cannot be used; the old ones stay");
                }
            }
        }
    }

    fn now<R>(&self, act: impl FnOnce(&mut Now<T>) -> R) -> R {
        act(&mut self.now.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Shows no content of a file.
impl<T> fmt::Debug for Made<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    files.iter().map(|file| stamp(file)).collect()
}

fn stamp(file: &Path) -> Stamp {
    let file = fs::metadata(file).ok()?;
    Some((file.ino(), file.size(), file.ctime(), file.ctime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Fault;

    #[test]
    fn what_was_made_of_a_file_stays_until_the_file_changes_to_something_that_can_be_used() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("number");
        let write = |text: &str| {
            let new = folder.path().join("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, &file).unwrap();
        };
        let make = |files: &[PathBuf]| {
            let text = fs::read_to_string(&files[0]).unwrap_or_default();
            text.parse::<u32>().map_err(|_| Fault::bug("no number"))
        };
        assert!(Made::new(vec![file.clone()], make).is_err());
        write("1");
        let made = Made::new(vec![file.clone()], make).unwrap();
        made.look();
        assert_eq!(*made.current(), 1);
        write("none");
        made.look();
        assert_eq!(*made.current(), 1);
        fs::remove_file(&file).unwrap();
        made.look();
        assert_eq!(*made.current(), 1);
        write("2");
        made.look();
        assert_eq!(*made.current(), 2);
    }
}
