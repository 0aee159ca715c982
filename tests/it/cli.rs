//! The command line through the built program: exit codes and what is printed where.

use std::path::Path;
use std::process::{Command, Output};

fn waltrail(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_waltrail"))
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .env("HOME", folder)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_wrong_command_line_exits_with_64() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &[][..],
        &["fly"],
        &["run", "--fast"],
        &["check", "--fast"],
        &["run", "--source"],
        &["status", "extra"],
    ] {
        let output = waltrail(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
        assert!(text(&output.stderr).contains("--help"), "{arguments:?}");
    }
}

#[test]
fn help_and_version_exit_with_0_on_standard_output() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["--help"][..], &["--version"], &["run", "--help"]] {
        let output = waltrail(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(text(&output.stdout).contains("waltrail"), "{arguments:?}");
        assert_eq!(text(&output.stderr), "", "{arguments:?}");
    }
}

#[test]
fn a_wrong_configuration_exits_with_78_in_one_line_and_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("waltrail.toml");
    for (toml, error, hint) in [
        (
            "[source]\ndns = 'password=canary'\n",
            "error: unknown key `source.dns` in waltrail.toml",
            "hint: did you mean `source.dsn`?",
        ),
        (
            "[source]\ndsn = 'host=db user=u password=canary'\n",
            "error: no table is configured",
            "hint: add a [[table]]",
        ),
        (
            "[source]\ndsn = 'host=db user=u password=canary gssencmode=require'\n",
            "error: `gssencmode` in source.dsn has a value that is not supported",
            "hint: write disable or prefer",
        ),
    ] {
        std::fs::write(&file, toml).unwrap();
        for command in ["run", "setup"] {
            let output = waltrail(folder.path(), &[command, "--log-format", "text"]);
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(78), "{said}");
            let lines: Vec<_> = said.lines().collect();
            assert_eq!(lines.len(), 2, "{said}");
            assert_eq!(lines[0], error);
            assert!(lines[1].starts_with(hint), "{said}");
            assert!(!said.contains("canary"));
            assert_eq!(text(&output.stdout), "");
        }
    }
}

#[test]
fn a_connection_string_in_the_wrong_place_is_not_repeated() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["postgres://u:canary@h/d"][..],
        &["run", "--sorce=postgres://u:canary@h/d"],
        &["run", "--source", "postgres://u:canary@x@h/d"],
        &[
            "run",
            "--table",
            "t",
            "--source",
            "host=h password=canary nope=1",
        ],
    ] {
        let output = waltrail(folder.path(), arguments);
        assert!(
            matches!(output.status.code(), Some(64 | 78)),
            "{arguments:?}"
        );
        assert!(!text(&output.stderr).contains("canary"), "{arguments:?}");
    }
}
