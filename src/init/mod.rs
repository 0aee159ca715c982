//! `waltrail init`: looks at a database, lets a person choose tables, and writes the configuration file.
//!
//! ```text
//!   flags, variables or questions -> connections -> tables, with what `check` says -> choice -> file -> what is left to do
//! ```
//!
//! **It only looks**: nothing is created on a server, and no privilege beyond the login is needed. With `--tables` nothing is
//! asked.

mod file;
mod list;
mod report;
mod sides;
mod tables;
mod terminal;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tokio_postgres::Client;

use crate::check;
use crate::cli::InitArgs;
use crate::config::{Environment, Flags, TableName};
use crate::fault::{Exit, Fault, Result};
use crate::finding::{Finding, refuse};
use crate::name::{Identifier, split_outside_quotes};
use crate::printable::{TEXT_MAX, printable};
use crate::server::Side;
use crate::setup;

use file::Block;
use list::List;
use report::Written;
use sides::Sides;
use tables::{Entry, Verdict};

/// What is to be followed.
struct Chosen {
    blocks: Vec<Block>,
    tables: Vec<(TableName, u64, Option<f64>)>,
    /// What a pattern means and cannot be followed.
    left_out: Vec<(TableName, String)>,
}

/// Writes the file, and returns what is left to do.
///
/// # Errors
/// Exit 64 for a file that exists or where there is no terminal to ask on; as `check` for tables that were named and cannot be
/// followed.
pub(crate) async fn run(
    flags: &Flags,
    args: &InitArgs,
    environment: &Environment,
) -> Result<String> {
    let path = path(flags, args);
    file::refuse_existing(&path, args.force)?;
    let named = named(flags, args)?;
    let asks = named.is_empty();
    if asks && !terminal::is_there() {
        let what = "init asks which tables to follow, and there is no terminal to ask on";
        return Err(Fault::halt(Exit::Usage, what)
            .remedy("name them: --tables public.orders,public.items, or --tables 'public.*'"));
    }
    let (mut sides, source) = Sides::source(flags, environment, asks).await?;
    sides.ask_for_target(asks).await?;
    let target = sides.connect(Side::Target, asks).await?;
    let clients = (&source, &target);
    let chosen = match asks {
        true => choose(&sides, clients).await?,
        false => take(&sides, clients, named).await?,
    };
    drop((source, target));
    let text = sides.text(&chosen.blocks)?;
    let config = sides.config(&text, Vec::new())?;
    file::save(&path, &text, args.force)?;
    let report = check::run(&config).await;
    let written = Written {
        path: &path,
        tables: chosen.tables,
        left_out: chosen.left_out,
        passwords: sides.passwords(),
        role: config.source.connection.user(),
    };
    Ok(report::text(&written, &report))
}

/// The file to write.
fn path(flags: &Flags, args: &InitArgs) -> PathBuf {
    let named = args.output.as_ref().or(flags.config.as_ref());
    named.map_or_else(|| Path::new("waltrail.toml").to_owned(), PathBuf::clone)
}

/// The tables of the command line.
fn named(flags: &Flags, args: &InitArgs) -> Result<Vec<String>> {
    let mut named = flags.tables.clone();
    if let Some(list) = &args.named {
        let list = split_outside_quotes(list, ',').into_iter().map(str::trim);
        named.extend(list.filter(|name| !name.is_empty()).map(str::to_owned));
        if named.is_empty() {
            return Err(Fault::halt(Exit::Usage, "--tables names no table")
                .remedy("leave it out to be asked, or write for example --tables 'public.*'"));
        }
    }
    Ok(named)
}

/// Takes what the command line names.
///
/// # Errors
/// As `run` would, for a table that cannot be followed.
async fn take(
    sides: &Sides,
    (source, target): (&Client, &Client),
    named: Vec<String>,
) -> Result<Chosen> {
    let config = sides.config("", named)?;
    let whole = setup::expand(&config, source, None).await;
    let whole = whole.map_err(of_left_out)?;
    let mut found = tables::judge(&whole, source, target).await?;
    let mut left_out: BTreeMap<TableName, String> = setup::left_out().into_iter().collect();
    let mut refused: Vec<Finding> = Vec::new();
    let mut followed = Vec::new();
    for table in whole.tables {
        let mut findings = found.remove(&table.source.to_string()).unwrap_or_default();
        findings.retain(Finding::is_error);
        match findings.first() {
            None => followed.push(table.source),
            Some(first) if table.by_pattern => {
                left_out.insert(table.source, first.what.clone());
            }
            Some(_) => refused.extend(findings),
        }
    }
    refuse(refused)?;
    let mut sizes: BTreeMap<TableName, (u64, Option<f64>)> = BTreeMap::new();
    for entry in tables::candidates(&config, source).await? {
        sizes.insert(entry.table, (entry.bytes, entry.rows));
    }
    let sized = |table: TableName| {
        let (bytes, rows) = sizes.get(&table).copied().unwrap_or_default();
        (table, bytes, rows)
    };
    let blocks = config.tables.iter().map(Block::of_table);
    let patterns = config.patterns.iter().map(Block::of_pattern);
    Ok(Chosen {
        blocks: blocks.chain(patterns).collect(),
        tables: followed.into_iter().map(sized).collect(),
        left_out: left_out.into_iter().collect(),
    })
}

/// Why patterns mean no table, where that is known of one.
fn of_left_out(fault: Fault) -> Fault {
    match setup::left_out().first() {
        None => fault,
        Some((table, why)) => Fault::halt(fault.exit(), format!("{fault}: {table}: {why}")).remedy(
            "name the tables one by one with --tables: then it says what each of them needs",
        ),
    }
}

/// Lets a person choose.
async fn choose(sides: &Sides, (source, target): (&Client, &Client)) -> Result<Chosen> {
    let config = sides.config("", Vec::new())?;
    let mut entries = tables::candidates(&config, source).await?;
    let every = entries.iter().map(block).collect::<Vec<_>>();
    let every = sides.config(&sides.text(&every)?, Vec::new())?;
    let mut found = tables::judge(&every, source, target).await?;
    for entry in &mut entries {
        let findings = found.remove(&entry.table.to_string());
        entry.verdict = Verdict::of(findings.unwrap_or_default());
    }
    let unfit = entries.iter().filter(|entry| !entry.fits()).count();
    if unfit == entries.len() {
        return Err(nothing_to_follow(
            &entries,
            &config.source.connection.to_string(),
        ));
    }
    let database = printable(&config.source.connection.to_string(), TEXT_MAX);
    let list = List::new(database, entries);
    let list = terminal::ask(move |terminal| terminal.choose(list)).await?;
    let (chosen, others) = list.into_chosen();
    let blocks = blocks(&chosen, &others).await?;
    let tables = chosen
        .into_iter()
        .map(|entry| (entry.table, entry.bytes, entry.rows));
    Ok(Chosen {
        blocks,
        tables: tables.collect(),
        left_out: Vec::new(),
    })
}

fn block(entry: &Entry) -> Block {
    Block::table(&entry.table, entry.history.as_ref())
}

fn nothing_to_follow(entries: &[Entry], database: &str) -> Fault {
    let what = format!("{database} has no table that can be followed");
    let fault = Fault::halt(Exit::Config, what);
    match entries.first().map(|entry| &entry.verdict) {
        Some(Verdict::Unfit { why, remedy }) => {
            let remedy = remedy.clone().unwrap_or_default();
            fault.remedy(format!("{why}: {remedy}"))
        }
        _ => fault.remedy("create a table, or name another database with --source"),
    }
}

/// The chosen tables as blocks. Where all of a schema are chosen, a pattern can stand for them.
async fn blocks(chosen: &[Entry], others: &[Entry]) -> Result<Vec<Block>> {
    let mut by_schema: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    for entry in chosen {
        by_schema
            .entry(&entry.table.schema)
            .or_default()
            .push(entry);
    }
    let mut blocks = Vec::new();
    for (schema, entries) in by_schema {
        let mut left = others.iter().filter(|entry| entry.table.schema == schema);
        let is_whole = entries.len() > 1 && !left.any(Entry::fits);
        if is_whole && follows_new(schema, entries.len()).await? {
            // A block with the table's own name wins over the pattern.
            let own = entries.iter().filter(|entry| entry.history.is_some());
            blocks.extend(own.map(|entry| block(entry)));
            blocks.push(Block::schema(schema));
        } else {
            blocks.extend(entries.iter().map(|entry| block(entry)));
        }
    }
    Ok(blocks)
}

async fn follows_new(schema: &str, tables: usize) -> Result<bool> {
    let schema = printable(&Identifier(schema).to_string(), TEXT_MAX);
    let question = format!(
        "All {tables} tables of {schema} are chosen. Also follow tables created there later? [y/N] "
    );
    let answer = terminal::ask(move |terminal| terminal.line(&question, false)).await?;
    Ok(matches!(answer.as_str(), "y" | "Y" | "yes"))
}
