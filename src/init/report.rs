//! What is left to do when the file is written: statements to paste, and the next commands.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::tables::{count, size};
use crate::check::Report;
use crate::finding::{Finding, Severity};
use crate::name::TableName;
use crate::printable::{TEXT_MAX, printable, printable_lines};

/// Tables, and findings of one code, that are listed one by one.
const TOLD_MAX: usize = 8;

/// What was written, and of what.
pub(super) struct Written<'a> {
    pub(super) path: &'a Path,
    /// What will be followed, with bytes and estimated rows.
    pub(super) tables: Vec<(TableName, u64, Option<f64>)>,
    /// What a pattern means and cannot be followed, with the reason.
    pub(super) left_out: Vec<(TableName, String)>,
    /// Keys beside which the password has to be told, for example `source.password_file`.
    pub(super) passwords: Vec<String>,
    pub(super) role: &'a str,
}

/// The text of the end.
pub(super) fn text(written: &Written<'_>, report: &Report) -> String {
    let mut text = String::new();
    head(written, &mut text);
    let (errors, warnings) = (of(report, Severity::Error), of(report, Severity::Warning));
    if !errors.is_empty() {
        line(
            &mut text,
            format_args!("\nBefore `waltrail run`, an administrator has to do this:\n"),
        );
        findings(&errors, &mut text);
    }
    let lacks = |finding: &&Finding| finding.code == "privilege-missing";
    if errors.iter().any(lacks) {
        line(
            &mut text,
            format_args!(
                "\nOr these privileges stay away: write setup = \"manual\" into the file, and a role that has them runs\n\
                 `waltrail setup --grant-to {}` once. With --dry-run it prints its SQL.",
                crate::name::Identifier(written.role)
            ),
        );
    }
    if !warnings.is_empty() {
        line(&mut text, format_args!("\nWorth doing as well:\n"));
        findings(&warnings, &mut text);
    }
    if !written.passwords.is_empty() {
        let keys = written.passwords.join(" and ");
        line(
            &mut text,
            format_args!(
                "\nThe password is not in the file. Write it into a file of its own with mode 0600, and name that in\n{keys}; or set \
                 PGPASSWORD, or keep it in ~/.pgpass."
            ),
        );
    }
    next(written, &mut text);
    text
}

/// Writing to a String cannot fail.
fn line(text: &mut String, args: std::fmt::Arguments<'_>) {
    let _ = text.write_fmt(args);
    text.push('\n');
}

fn head(written: &Written<'_>, text: &mut String) {
    let path = printable(&written.path.display().to_string(), TEXT_MAX);
    let bytes = written.tables.iter().map(|(_, bytes, _)| bytes).sum();
    let rows = written.tables.iter().filter_map(|(_, _, rows)| *rows);
    let rows = match written.tables.iter().any(|(_, _, rows)| rows.is_none()) {
        true => String::new(),
        false => format!(" and about {} rows", count(Some(rows.sum()))),
    };
    let what = match written.tables.len() {
        1 => "1 table".to_owned(),
        tables => format!("{tables} tables"),
    };
    line(
        text,
        format_args!("{path} is written: {what} with {}{rows}.", size(bytes)),
    );
    for (table, bytes, _) in written.tables.iter().take(TOLD_MAX) {
        let table = printable(&table.to_string(), TEXT_MAX);
        line(text, format_args!("  {table} ({})", size(*bytes)));
    }
    if written.tables.len() > TOLD_MAX {
        let more = written.tables.len() - TOLD_MAX;
        line(text, format_args!("  and {more} more"));
    }
    if written.left_out.is_empty() {
        return;
    }
    line(
        text,
        format_args!("\nNot followed, although a pattern means them:"),
    );
    for (table, why) in &written.left_out {
        let (table, why) = (
            printable(&table.to_string(), TEXT_MAX),
            printable(why, TEXT_MAX),
        );
        line(text, format_args!("  {table}: {why}"));
    }
}

fn of(report: &Report, severity: Severity) -> Vec<&Finding> {
    let findings = report.findings().iter();
    findings
        .filter(|finding| finding.severity == severity)
        .collect()
}

/// Each finding as a comment, with its remedy below, so that the whole can be pasted.
fn findings(findings: &[&Finding], text: &mut String) {
    let mut told: BTreeMap<&str, usize> = BTreeMap::new();
    let mut more = 0;
    for finding in findings {
        let told = told.entry(finding.code).or_default();
        *told += 1;
        if *told > TOLD_MAX {
            more += 1;
            continue;
        }
        let (place, what) = (
            printable(&finding.place, TEXT_MAX),
            printable(&finding.what, TEXT_MAX),
        );
        line(text, format_args!("-- {place}: {what}"));
        if let Some(remedy) = &finding.remedy {
            line(
                text,
                format_args!("{}", printable_lines(remedy, usize::MAX)),
            );
        }
    }
    if more > 0 {
        line(
            text,
            format_args!("-- and {more} more: `waltrail check` shows them"),
        );
    }
}

fn next(written: &Written<'_>, text: &mut String) {
    let path = printable(&written.path.display().to_string(), TEXT_MAX);
    let path = match path
        .chars()
        .all(|c| c.is_alphanumeric() || "/._-".contains(c))
    {
        true => path,
        false => format!("'{}'", path.replace('\'', r"'\''")),
    };
    let command = |command: &str| format!("waltrail --config {path} {command}");
    line(text, format_args!("\nNext:"));
    for (it, says) in [
        ("check", "says what is still wrong"),
        ("setup --dry-run", "prints the SQL of what `run` makes"),
        ("run", "follows the tables"),
    ] {
        let command = command(it);
        line(text, format_args!("  {command:<50}  # {says}"));
    }
}
