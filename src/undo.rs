//! `waltrail undo`: prints one SQL script that puts rows back as they were before some changes. It runs nothing.
//!
//! ```text
//!   changes chosen -> keys touched -> of each the row before, after, now (net) -> rows of temporary tables -> statements
//! ```
//!
//! **A row is changed or removed only while it is exactly as the history has it**: the script compares all of its values,
//! under a row lock. What cannot be known is said in a comment and left as it is.

mod literal;
mod net;
mod order;
mod script;
mod statements;
mod table;
mod versions;

use std::io::{self, Write};

use tokio_postgres::Client;

use crate::config::Config;
use crate::fault::Result;
use crate::life::book::{self, Book};
use crate::life::{time, usage, use_zone};
use crate::schema::SourceTable;
use crate::server::{self, Side};
use crate::setup;
use net::{Block, Needs, Which};
use script::Rows;

/// What `waltrail undo` was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Ask<'a> {
    pub xid: Option<u32>,
    pub since: Option<&'a str>,
    pub condition: Option<&'a str>,
    pub force: bool,
    /// Tables; all, where there are none.
    pub tables: &'a [String],
    /// The time zone in which `since` is read.
    pub zone: Option<&'a str>,
}

/// Prints the script. Returns what a person has to know at once, line by line.
///
/// # Errors
/// 64 for changes that cannot be chosen so, 78 for a history that cannot be read, and what servers say.
pub(crate) async fn run(
    config: &Config,
    ask: &Ask<'_>,
    out: &mut dyn Write,
) -> Result<Vec<String>> {
    let source = server::sql(&config.source.connection, Side::Source).await?;
    let target = server::sql(&config.target, Side::Target).await?;
    let config = &setup::effective(config, &source, &target).await?;
    let mut books = book::of_source(config, (&source, &target), ask.tables).await?;
    if ask.xid.is_some() && ask.tables.is_empty() {
        books.retain(|(book, _)| book.ledger.xid.is_some());
    }
    let which = which(&target, ask).await?;
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    let begun = target.batch_execute(begin).await;
    begun.map_err(Side::Target.failed("could not begin a transaction"))?;
    let mut changed: Vec<(Book, SourceTable, Block)> = Vec::new();
    for (book, table) in books {
        if let Some(block) = net::block(&target, &book, &which).await? {
            changed.push((book, table, block));
        }
    }
    if let (true, Which::Transaction(xid)) = (changed.is_empty(), &which) {
        return Err(usage(
            format!("no history has a row of transaction {xid}"),
            "waltrail log TABLE shows the transactions of a table",
        ));
    }
    let oids: Vec<u32> = changed.iter().map(|(_, table, _)| table.oid).collect();
    let (tables, keys) = table::read(&source, &oids)
        .await
        .map_err(Side::Source.failed("could not show its constraints"))?;
    let mut rows: Vec<Rows<'_>> = std::iter::zip(&changed, &tables)
        .enumerate()
        .map(|(n, ((book, ..), table))| Rows::new(n + 1, book, table))
        .collect();
    if let Some(rows) = rows.iter().find(|rows| !rows.has_key()) {
        return Err(usage(
            format!(
                "{} has no key, by which a row could be found again",
                rows.source
            ),
            "name the other tables with --table",
        ));
    }
    let order = order::order(&oids, &keys);
    // A closed output is no fault.
    let written =
        head(&which, out).is_ok() && write(&target, &changed, ask, &mut rows, out).await?;
    if written {
        let _ = match rows.iter().any(Rows::is_needed) {
            true => script::end(&rows, &order, &keys, out),
            false => out.write_all(b"-- Nothing is to be put back.\nCOMMIT;\n"),
        };
        let _ = out.flush();
    }
    Ok(rows.iter().flat_map(told).collect())
}

async fn which(target: &Client, ask: &Ask<'_>) -> Result<Which> {
    use_zone(target, ask.zone).await?;
    let which = match (ask.xid, ask.since) {
        (Some(xid), _) => Which::Transaction(xid),
        (None, since) => Which::Since(time(target, since.unwrap_or_default()).await?),
    };
    // Values are written in UTC.
    use_zone(target, Some("UTC")).await?;
    Ok(which)
}

fn head(which: &Which, out: &mut dyn Write) -> io::Result<()> {
    let what = match which {
        Which::Transaction(xid) => format!("transaction {xid} did"),
        Which::Since(time) => format!("was done after {}", time.trim_start_matches('E')),
    };
    script::write_comment(
        out,
        &format!(
            "Puts back what {what}. Made by waltrail {}, which ran nothing of it.",
            env!("CARGO_PKG_VERSION")
        ),
    )?;
    script::write_comment(
        out,
        "Run it on the source. To see what it would do, write ROLLBACK in place of COMMIT at the end.",
    )?;
    script::begin(out)
}

/// Writes the rows of all tables. False where nothing reads them any more.
async fn write(
    target: &Client,
    changed: &[(Book, SourceTable, Block)],
    ask: &Ask<'_>,
    rows: &mut [Rows<'_>],
    out: &mut dyn Write,
) -> Result<bool> {
    for ((book, _, block), rows) in std::iter::zip(changed, rows) {
        let mut needs = Needs::of((target, book), *block, ask.condition, ask.force).await?;
        while let Some(page) = needs.page().await? {
            for need in page {
                if rows.write(&need, out).is_err() {
                    return Ok(false);
                }
            }
        }
        if rows.flush(out).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What happens to the rows of a table, in a line.
fn told(rows: &Rows<'_>) -> Vec<String> {
    let [inserts, updates, deletes] = rows.count;
    let mut lines = vec![format!(
        "{}: {inserts} to INSERT, {updates} to UPDATE, {deletes} to DELETE",
        rows.source
    )];
    if rows.left_out > 0 {
        lines.push(format!(
            "{}: {} left out, which the script lists; --force takes those that were changed since",
            rows.source, rows.left_out
        ));
    }
    lines
}
