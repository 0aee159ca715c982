//! Unit tests of `cli`.

use waltrail::cli::*;

fn read(line: &str) -> Result<Cli, Usage> {
    Cli::read(std::iter::once("waltrail").chain(line.split_whitespace()))
}

#[test]
fn clap_finds_no_contradiction() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn each_command_has_its_switch() {
    for (line, command) in [
        (
            "run",
            Command::Run {
                no_retry: false,
                skip_transaction: None,
            },
        ),
        (
            "run --no-retry",
            Command::Run {
                no_retry: true,
                skip_transaction: None,
            },
        ),
        (
            "run --skip-transaction 0/1A2B",
            Command::Run {
                no_retry: false,
                skip_transaction: Some("0/1A2B".parse().unwrap()),
            },
        ),
        (
            "setup --dry-run",
            Command::Setup {
                dry_run: true,
                context: false,
                grant_to: None,
            },
        ),
        (
            "status --json",
            Command::Status {
                json: true,
                watch: false,
                exact: false,
            },
        ),
        (
            "status --watch",
            Command::Status {
                json: false,
                watch: true,
                exact: false,
            },
        ),
        (
            "status --exact",
            Command::Status {
                json: false,
                watch: false,
                exact: true,
            },
        ),
        (
            "health --live",
            Command::Health {
                url: None,
                live: true,
            },
        ),
        ("teardown --yes", Command::Teardown { yes: true }),
        ("demo --once", Command::Demo { once: true }),
    ] {
        assert_eq!(read(line).unwrap().command, command, "{line}");
    }
}

#[test]
fn global_flags_stand_before_or_after_the_command() {
    for line in [
        "--config f --source s --target t --table a --table b=c run",
        "run --config f --source s --target t --table a --table b=c",
    ] {
        let flags = read(line).unwrap().flags();
        assert_eq!(flags.config.unwrap().to_str(), Some("f"));
        assert_eq!(flags.source.as_deref(), Some("s"));
        assert_eq!(flags.target.as_deref(), Some("t"));
        assert_eq!(flags.tables, ["a", "b=c"]);
    }
}

#[test]
fn a_wrong_line_does_not_repeat_a_connection_string() {
    for line in [
        "run --sorce postgres://u:canary@h/d",
        "run --sorce=postgres://u:canary@h/d",
        "postgres://u:canary@h/d",
        "run password=canary",
        "--source password=canary --source password=canary run",
        "--json=password=canary status",
    ] {
        let usage = read(line).err().expect(line);
        assert!(!usage.text().contains("canary"), "{}", usage.text());
        assert!(!usage.was_asked_for());
    }
}
