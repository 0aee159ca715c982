//! Tells the program which commit it was built from, and the date: `BUILD_COMMIT` and `BUILD_DATE`.
//!
//! Equal sources give equal answers, so that a build can be repeated byte by byte. The commit is `SOURCE_COMMIT`, else git's, else what
//! `git archive` wrote below; the date is `SOURCE_DATE_EPOCH`, else the commit's, and only without both the day of the build.
//! Nothing here can fail a build.

use std::env;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// The commit and its time in seconds, in a tarball that `git archive` made (see .gitattributes).
const ARCHIVED: &str = "$Format:%H %ct$";

/// As many as a person compares.
const COMMIT_DIGITS: usize = 7;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=SOURCE_COMMIT");
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let (mut commit, mut seconds) = of_git().or_else(|| parse(ARCHIVED)).unzip();
    if let Ok(said) = env::var("SOURCE_COMMIT") {
        commit = Some(said).filter(|said| is_commit(said)).or(commit);
    }
    if let Ok(said) = env::var("SOURCE_DATE_EPOCH") {
        seconds = said.parse().ok().or(seconds);
    }
    let commit = commit.as_deref().unwrap_or("unknown");
    let commit = &commit[..COMMIT_DIGITS.min(commit.len())];
    println!("cargo:rustc-env=BUILD_COMMIT={commit}");
    println!(
        "cargo:rustc-env=BUILD_DATE={}",
        date(seconds.unwrap_or_else(now))
    );
}

/// Asks git, if these sources are a checkout themselves and do not only lie inside one.
fn of_git() -> Option<(String, u64)> {
    if !Path::new(".git").exists() {
        return None;
    }
    // The log of HEAD gets a line with each commit and each checkout.
    for name in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", name])?;
        if Path::new(&path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    parse(&git(&["log", "-1", "--format=%H %ct"])?)
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn parse(text: &str) -> Option<(String, u64)> {
    let (commit, seconds) = text.split_once(' ')?;
    let commit = Some(commit).filter(|commit| is_commit(commit))?;
    Some((commit.to_owned(), seconds.parse().ok()?))
}

fn is_commit(text: &str) -> bool {
    text.len() >= COMMIT_DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// The day in UTC, as `2026-11-29`: days since 0000-03-01, counted in eras of 400 years.
fn date(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // March is 0.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}
