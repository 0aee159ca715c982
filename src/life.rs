//! `waltrail log`: the life of a row, of a table or of a transaction, as a person reads it. Reads the target only.
//!
//! Values appear because they were asked for, on standard output and nowhere else.

mod ask;
pub(crate) mod book;
mod json;
pub(crate) mod reader;
pub(crate) mod row;
mod text;

use std::io::Write;
use std::time::Duration;

use tokio_postgres::Client;

pub(crate) use ask::{number, number_at, time, transaction, usage};

use crate::answers::ledger::Ledger;
use crate::cli::LogArgs;
use crate::config::Config;
use crate::fault::Result;
use crate::printable::printable_json;
use crate::server::{self, Side};
use crate::shutdown::{Signal, Signals};
use book::Book;
use reader::Reader;
use row::{Entry, Key};

/// Between two looks for what is new.
const LOOK: Duration = Duration::from_millis(500);

/// Prints what was asked for; with `--follow`, until a signal comes. `chosen`: tables of `--table`; `zone`: the time zone in
/// which times are read and shown. False where nothing was there to be printed.
///
/// # Errors
/// 64 for what cannot be asked, 78 for a history that cannot be read, and what servers say.
pub(crate) async fn run(
    config: &Config,
    ask: &LogArgs,
    (chosen, zone): (&[String], Option<&str>),
    out: &mut dyn Write,
) -> Result<bool> {
    let mut chosen = chosen.to_vec();
    chosen.extend(ask.table.clone());
    if chosen.is_empty() && ask.xid.is_none() || ask.table.is_some() && chosen.len() > 1 {
        return Err(usage(
            "one table is to be named",
            "waltrail log TABLE, or --xid N",
        ));
    }
    let mut signals = None;
    if ask.follow {
        let installed = Signals::install();
        signals =
            Some(installed.map_err(|error| crate::fault::Fault::bug("signals").caused_by(error))?);
    }
    let target = server::sql(&config.target, Side::Target).await?;
    use_zone(&target, zone).await?;
    let mut books = book::of_target(config, &target, &chosen).await?;
    if ask.xid.is_some() && chosen.is_empty() {
        books.retain(|book| book.ledger.xid.is_some());
    }
    let mut ask = ask.clone();
    for moment in [&mut ask.since, &mut ask.until].into_iter().flatten() {
        *moment = time(&target, moment).await?;
    }
    let key = match (&ask.key, books.first()) {
        (Some(key), Some(book)) => Some(ask::key(&target, book, key).await?),
        _ => None,
    };
    let mut readers = Vec::new();
    for book in &books {
        readers.extend(ask::reader(&target, book, &ask, key.as_ref()).await?);
    }
    if readers.is_empty() && ask.xid.is_some() {
        return Err(usage(
            "no history has a row of this transaction",
            "a transaction that wrote to no table that is followed has none",
        ));
    }
    let mut shown = Shown {
        out,
        json: ask.json,
        any: false,
    };
    if merged(&mut readers, &mut shown).await?
        && let (Some(reader), Some(signals)) = (readers.pop(), signals)
    {
        follow(&target, reader, key, signals, &mut shown).await?;
    }
    Ok(shown.any)
}

/// Lets the session read and write times in this zone, where the target knows it; else in UTC.
pub(crate) async fn use_zone(target: &Client, zone: Option<&str>) -> Result<()> {
    let Some(zone) = zone.map(|zone| zone.trim_start_matches(':')) else {
        return Ok(());
    };
    let set = "SELECT pg_catalog.set_config('TimeZone', $1, false)";
    match target.query_one(set, &[&zone]).await {
        Err(error) if !error.is_closed() => Ok(()),
        set => set
            .map(|_| ())
            .map_err(Side::Target.failed("could not set the time zone")),
    }
}

/// Where changes are printed.
struct Shown<'a> {
    out: &'a mut dyn Write,
    json: bool,
    any: bool,
}

impl Shown<'_> {
    /// False where nothing reads it any more, which is no fault.
    fn print(&mut self, ledger: &Ledger, entry: &Entry) -> bool {
        let text = match self.json {
            true => printable_json(&json::json(ledger, entry)).into_owned() + "\n",
            false => text::text(ledger, entry),
        };
        self.any = true;
        self.out.write_all(text.as_bytes()).is_ok()
    }

    fn flush(&mut self) -> bool {
        self.out.flush().is_ok()
    }
}

/// Prints the rows of all histories in the order of their changes. False where nothing reads it any more.
async fn merged(readers: &mut [Reader<'_>], shown: &mut Shown<'_>) -> Result<bool> {
    let mut pages: Vec<std::collections::VecDeque<Entry>> = Vec::with_capacity(readers.len());
    for reader in readers.iter_mut() {
        pages.push(reader.page().await?.into());
    }
    loop {
        let fronts = pages.iter().enumerate();
        let fronts = fronts.filter_map(|(at, page)| page.front().map(|entry| (at, entry)));
        let first = fronts.min_by_key(|(at, entry)| (entry.commit_number, entry.tx_seq, *at));
        let Some((at, _)) = first else {
            return Ok(shown.flush());
        };
        if let Some(entry) = pages[at].pop_front()
            && !shown.print(&readers[at].book.ledger, &entry)
        {
            return Ok(false);
        }
        if pages[at].is_empty() {
            pages[at] = readers[at].page().await?.into();
        }
    }
}

/// Prints what comes, until a signal.
async fn follow(
    target: &Client,
    mut reader: Reader<'_>,
    mut key: Option<Key>,
    mut signals: Signals,
    shown: &mut Shown<'_>,
) -> Result<()> {
    let book: &Book = reader.book;
    reader.from = format!("{} h", book.ledger.history);
    loop {
        if let Some(key) = &key {
            reader.from = ask::following(book, key);
            // After a change of the key, other rows are read.
            reader.rows_max = 1;
        }
        let page = settled_page(target, &mut reader).await?;
        for entry in &page {
            if entry.former_key.is_some() && entry.former_key == key {
                key.clone_from(&entry.key);
            }
            if !shown.print(&book.ledger, entry) {
                return Ok(());
            }
        }
        if !shown.flush() {
            return Ok(());
        }
        // What is there is printed first.
        let pause = if page.is_empty() {
            LOOK
        } else {
            Duration::ZERO
        };
        tokio::select! {
            signal = signals.next() => {
                if matches!(signal, Signal::Stop | Signal::StopNow) {
                    return Ok(());
                }
            }
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The next rows; none while existing rows are recorded: several workers then write rows, and one with a lower number can
/// come later.
async fn settled_page(target: &Client, reader: &mut Reader<'_>) -> Result<Vec<Entry>> {
    let failed = Side::Target.failed("could not show the state of its snapshot");
    // Both see the same state.
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    target.batch_execute(begin).await.map_err(failed)?;
    let filled = "SELECT EXISTS (SELECT FROM waltrail.snapshot WHERE history = $1 AND state IN ('waiting', 'copying'))";
    let history = reader.book.ledger.history.to_string();
    let row = target
        .query_one(filled, &[&history])
        .await
        .map_err(failed)?;
    let page = match row.get(0) {
        true => Vec::new(),
        false => reader.page().await?,
    };
    target.batch_execute("COMMIT").await.map_err(failed)?;
    Ok(page)
}
