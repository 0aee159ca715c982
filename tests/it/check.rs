//! Does `waltrail check` find what is wrong, and does what it advises put it right?
//!
//! A case arranges something wrong, asks, does literally what the finding's remedy says, and asks again.

mod answers;
mod codes;
mod connections;
mod servers;
mod tables;

use serde_json::Value;
use throwaway::{Cluster, StopMode};
use tokio_postgres::Client;

use crate::support::daemon::Daemon;
use crate::support::{BOUND, connect, each};

/// One finding, as `--json` gives it.
#[derive(Clone, Debug)]
struct Found {
    severity: String,
    place: String,
    what: String,
    remedy: String,
    code: String,
}

/// All findings of a configuration; the exit code is what they say.
async fn check(config: &str) -> Vec<Found> {
    let (status, output) = Daemon::spawn_with(config, &["check", "--json"], &[])
        .wait(BOUND)
        .await;
    let json: Value =
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let found = json["findings"].as_array().unwrap().iter().map(|finding| {
        let finding = finding.as_object().unwrap();
        let keys: Vec<&str> = finding.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            ["code", "remedy", "severity", "what", "where"],
            "{output}"
        );
        Found {
            severity: text(&finding["severity"]),
            place: text(&finding["where"]),
            what: text(&finding["what"]),
            remedy: text(&finding["remedy"]),
            code: text(&finding["code"]),
        }
    });
    let found: Vec<Found> = found.collect();
    let errors = found.iter().any(|finding| finding.severity == "error");
    assert_eq!(status.code(), Some(i32::from(errors)), "{output}");
    for finding in &found {
        let known = waltrail::finding::CODES.contains(&finding.code.as_str());
        assert!(known, "{finding:?}");
    }
    found
}

/// The finding with this code, where there is one.
fn with<'a>(found: &'a [Found], code: &str) -> Option<&'a Found> {
    found.iter().find(|finding| finding.code == code)
}

#[track_caller]
fn the<'a>(found: &'a [Found], code: &str, severity: &str) -> &'a Found {
    let finding = with(found, code).unwrap_or_else(|| panic!("{code} is not in {found:#?}"));
    assert_eq!(finding.severity, severity, "{finding:?}");
    println!("{}: {}\n    {}", finding.code, finding.what, finding.remedy);
    finding
}

#[track_caller]
fn gone(found: &[Found], code: &str) {
    assert!(with(found, code).is_none(), "{code} is still in {found:#?}");
}

/// Runs SQL as psql does: statement by statement, without the comments.
async fn paste(client: &Client, remedy: &str) {
    let lines = remedy.lines().map(|line| match line.find("--") {
        Some(at) => &line[..at],
        None => line,
    });
    let sql: Vec<&str> = lines.collect();
    let sql = sql.join("\n");
    let statements: Vec<&str> = sql
        .split(';')
        .map(str::trim)
        .filter(|s| !s.is_empty())
        .collect();
    assert!(!statements.is_empty(), "nothing to paste: {remedy}");
    each(client, &statements).await;
}

/// A server of its own, and the way in as its superuser.
struct Server {
    cluster: Cluster,
    client: Client,
}

impl Server {
    async fn start(options: impl FnOnce(throwaway::Builder) -> throwaway::Builder) -> Self {
        let cluster = options(crate::support::builder()).start().unwrap();
        let client = connect(&cluster.dsn_socket("postgres")).await;
        // Also where commits wait for a standby.
        each(&client, &["SET synchronous_commit = local"]).await;
        Self { cluster, client }
    }

    async fn restart(&mut self) {
        self.cluster.restart(StopMode::Fast).unwrap();
        self.client = connect(&self.cluster.dsn_socket("postgres")).await;
        each(&self.client, &["SET synchronous_commit = local"]).await;
    }

    /// Arranges, asks, pastes, and asks again. The remedy says whether the server is to be restarted.
    async fn heals(&mut self, config: &str, arrange: &[&str], code: &str, severity: &str) {
        each(&self.client, arrange).await;
        self.heals_as_it_is(config, code, severity).await;
    }

    async fn heals_as_it_is(&mut self, config: &str, code: &str, severity: &str) {
        let found = check(config).await;
        the(&found, code, severity);
        let all: Vec<&Found> = found
            .iter()
            .filter(|finding| finding.code == code)
            .collect();
        for finding in &all {
            paste(&self.client, &finding.remedy).await;
        }
        if all
            .iter()
            .any(|finding| finding.remedy.contains("restart the server"))
        {
            self.restart().await;
        }
        gone(&check(config).await, code);
    }
}
