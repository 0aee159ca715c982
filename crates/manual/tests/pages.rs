//! Is everything in the manual, and can those who read it?

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot do its own work must stop, and say where"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clap::CommandFactory;
use tempfile::TempDir;
use waltrail::cli::Cli;
use waltrail::config::KEYS;

/// The folder of the pages, as long as it is wanted.
fn pages() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    manual::write_pages(folder.path()).unwrap();
    folder
}

fn completions() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    manual::write_completions(folder.path()).unwrap();
    folder
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap();
    files.map(|file| file.unwrap().path()).collect()
}

/// A page without the marks of roff.
fn read(folder: &TempDir, name: &str) -> String {
    let page = fs::read_to_string(folder.path().join(name)).expect(name);
    ["\\fB", "\\fI", "\\fR"]
        .iter()
        .fold(page, |page, font| page.replace(font, ""))
        .replace("\\-", "-")
}

/// Each command with its flags, those of every command included.
fn commands() -> Vec<(String, Vec<String>)> {
    let mut command = Cli::command();
    command.build();
    let flags = |command: &clap::Command| {
        let flags = command.get_arguments().filter_map(|flag| flag.get_long());
        flags.map(str::to_owned).collect()
    };
    let commands = command.get_subcommands();
    let commands: Vec<_> = commands
        .map(|command| (command.get_name().to_owned(), flags(command)))
        .collect();
    assert!(commands.len() > 5, "{commands:?}");
    commands
}

/// What a program said; none where it is not installed.
fn said(command: &mut Command) -> Option<Output> {
    let output = command.output().ok();
    if output.is_none() {
        println!("not tried: there is no {:?}", command.get_program());
    }
    output
}

#[test]
fn every_command_and_every_flag_has_its_place_in_the_man_pages() {
    let folder = pages();
    let program = read(&folder, "waltrail.1");
    for (command, flags) in commands() {
        let page = read(&folder, &format!("waltrail-{command}.1"));
        assert!(program.contains(&format!("waltrail-{command}(1)")));
        for flag in flags {
            assert!(page.contains(&format!("--{flag}")), "{command} --{flag}");
        }
    }
    for heading in ["SIGNALS", "EXIT STATUS", "FILES"] {
        assert!(program.contains(heading), "{heading}");
    }
}

#[test]
fn every_key_is_an_entry_of_its_man_page() {
    let page = read(&pages(), "waltrail.toml.5");
    let missing: Vec<_> = KEYS
        .iter()
        .filter(|key| !page.lines().any(|line| line == **key))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn man_and_mandoc_read_the_pages_without_a_complaint() {
    let folder = pages();
    for page in files(folder.path()) {
        let mut man = Command::new("man");
        man.args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"])
            .env("LC_ALL", "C.UTF-8")
            .env("MANWIDTH", "80");
        if let Some(output) = said(man.arg(&page)) {
            let complaints = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{page:?}: {complaints}");
            assert_eq!(complaints, "", "{page:?}");
        }
        let mut mandoc = Command::new("mandoc");
        mandoc.args(["-T", "lint", "-W", "warning"]);
        if let Some(output) = said(mandoc.arg(&page)) {
            let complaints = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{page:?}: {complaints}");
        }
    }
}

#[test]
fn what_markdown_marks_is_not_left_in_the_pages() {
    let folder = pages();
    for page in files(folder.path()) {
        let page = read(&folder, page.file_name().unwrap().to_str().unwrap());
        for mark in ["](", "`", "**", "<!--", "| "] {
            assert!(!page.contains(mark), "{mark} in {page}");
        }
    }
}

#[test]
fn the_completions_know_every_command_and_every_flag() {
    let folder = completions();
    for (file, flag_of) in [
        ("waltrail", "--"),
        ("_waltrail", "--"),
        ("waltrail.fish", "-l "),
    ] {
        let script = fs::read_to_string(folder.path().join(file)).unwrap();
        for (command, flags) in commands() {
            assert!(script.contains(&command), "{file}: {command}");
            for flag in flags {
                let flag = format!("{flag_of}{flag}");
                assert!(script.contains(&flag), "{file}: {command} {flag}");
            }
        }
    }
}

#[test]
fn the_shells_can_read_their_completions() {
    let folder = completions();
    for (shell, option, file) in [
        ("bash", "-n", "waltrail"),
        ("zsh", "-n", "_waltrail"),
        ("fish", "--no-execute", "waltrail.fish"),
    ] {
        let file = folder.path().join(file);
        if let Some(output) = said(Command::new(shell).arg(option).arg(file)) {
            let complaints = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success() && complaints.is_empty(),
                "{shell}: {complaints}"
            );
        }
    }
}

#[test]
fn bash_completes_a_command_and_its_flags() {
    let folder = completions();
    let script = folder.path().join("waltrail");
    for (words, whole) in [
        ("waltrail stat", "status"),
        ("waltrail setup --dry", "--dry-run"),
    ] {
        let ask = format!(
            "source '{}'; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _waltrail waltrail \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD - 1]}}\"; \
             echo \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let Some(output) = said(Command::new("bash").args(["--norc", "-c", &ask])) else {
            return;
        };
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            String::from_utf8_lossy(&output.stdout).trim(),
            whole,
            "{complaints}"
        );
    }
}
