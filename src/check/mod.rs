//! `waltrail check`: reads both servers, changes nothing, and says everything that is wrong at once.
//!
//! What a start refuses is found by the functions that a start asks (`setup`, `session`), and is an error here. What only
//! can go wrong is found here: settings, limits, what a history will lack. A side that does not answer is a finding, and the
//! other one is still looked at.

mod answers;
mod connections;
mod source;
mod tables;
mod target;

use std::fmt::Write as _;

use serde::Serialize;
use tokio_postgres::Client;

use crate::config::Config;
use crate::fault::Result;
use crate::finding::{Finding, Severity};
use crate::printable::{TEXT_MAX, printable, printable_lines};
use crate::server::Side;
use crate::session;
use crate::setup::{self, requirements};
use crate::source::replication::Replication;

use connections::Connections;

/// What is said of the tables alone, for `init`. A constant number of statements, but for histories that exist and do not fit.
///
/// # Errors
/// The source did not answer.
pub(crate) async fn of_tables(
    config: &Config,
    source: &Client,
    target: &Client,
) -> Result<Vec<Finding>> {
    let server = requirements::server(source, &config.source.slot).await?;
    let mut found = Vec::new();
    let looked = setup::look(config, Some((source, &server)), Some(target), &mut found).await;
    found.extend(tables::notes(config, &looked));
    Ok(found)
}

/// All that was found, in the order of its weight.
#[derive(Debug)]
pub(crate) struct Report(Vec<Finding>);

/// Looks at everything.
pub(crate) async fn run(config: &Config) -> Report {
    let mut found = Vec::new();
    let Connections {
        source,
        target,
        replication,
    } = connections::open(config, &mut found).await;
    let ours = replication.as_ref().map(Replication::backend_pid);
    let mut config = config.clone();
    if let (Some(source), Some(target)) = (&source, &target) {
        let (with_tables, refused) = session::look(&config, source, target, replication).await;
        config = with_tables;
        found.extend(refused);
        found.extend(target::encodings(source, target).await);
    }
    let server = match &source {
        Some(client) => source::look(&config, client, ours, &mut found).await,
        None => None,
    };
    if let Some(target) = &target {
        found.extend(target::look(&config, source.as_ref(), target).await);
    }
    let known: Option<(&Client, &requirements::Server)> = source.as_ref().zip(server.as_ref());
    let looked = setup::look(&config, known, target.as_ref(), &mut found).await;
    found.extend(tables::notes(&config, &looked));
    if let Some(source) = &source {
        found.extend(tables::context(&config, source).await);
    }
    if let Some(target) = &target {
        found.extend(tables::triggers(&config, target).await);
        found.extend(answers::look(&config, target, &looked).await);
    }
    found.extend(setup::left_out().into_iter().map(|(table, why)| {
        let what = format!("{table} is not followed: {why}");
        Finding::warning(&table, "a-table-is-left-out", what)
    }));
    found.sort_by_key(|finding| match finding.severity {
        Severity::Error => 0,
        Severity::Warning => 1,
        Severity::Note => 2,
    });
    Report(found)
}

/// As `--json` prints it: stable names.
#[derive(Serialize)]
struct Json<'a> {
    findings: Vec<JsonFinding<'a>>,
}

#[derive(Serialize)]
struct JsonFinding<'a> {
    severity: &'static str,
    r#where: &'a str,
    what: &'a str,
    /// None where there is nothing to do.
    remedy: Option<&'a str>,
    code: &'static str,
}

impl<'a> JsonFinding<'a> {
    fn of(finding: &'a Finding) -> Self {
        Self {
            severity: finding.severity.name(),
            r#where: &finding.place,
            what: &finding.what,
            remedy: finding.remedy.as_deref(),
            code: finding.code,
        }
    }
}

impl Report {
    pub(crate) fn findings(&self) -> &[Finding] {
        &self.0
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.0.iter().any(Finding::is_error)
    }

    pub(crate) fn json(&self) -> Result<String, serde_json::Error> {
        let findings = self.0.iter().map(JsonFinding::of).collect();
        Ok(serde_json::to_string(&Json { findings })? + "\n")
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for finding in &self.0 {
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{:<8}{}: {} [{}]",
                finding.severity.name(),
                printable(&finding.place, TEXT_MAX),
                printable(&finding.what, TEXT_MAX),
                finding.code
            );
            if let Some(remedy) = &finding.remedy {
                let remedy = printable_lines(remedy, usize::MAX);
                let _ = writeln!(text, "        {}", remedy.replace('\n', "\n        "));
            }
        }
        let count = |severity: Severity, name: &str| {
            let count = self.0.iter().filter(|finding| finding.severity == severity);
            match count.count() {
                1 => format!("1 {name}"),
                count => format!("{count} {name}s"),
            }
        };
        let _ = writeln!(
            text,
            "{}, {}, {}",
            count(Severity::Error, "error"),
            count(Severity::Warning, "warning"),
            count(Severity::Note, "note")
        );
        text
    }
}

/// What could not be asked.
fn unanswered(side: Side, fault: crate::fault::Fault) -> Finding {
    setup::unanswered(side, fault)
}
