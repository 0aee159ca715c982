//! Reads a history in pages, in the order of its numbers, and finds the version before each change.
//!
//! A row's version before is, in this order: what its `old_` columns say, the last row of the same key that was read, the
//! last row of that key in the history. Memory is bounded: versions are kept for some rows and looked up again for others.

use std::collections::{HashMap, HashSet};

use tokio_postgres::{Client, Row};

use super::book::Book;
use super::row::{Cell, Entry, Key, Kind, Version};
use crate::answers::fold;
use crate::answers::ledger::{Column, Ledger};
use crate::fault::Result;
use crate::server::Side;

/// Rows that are read at once.
const PAGE_ROWS: i64 = 200;
/// Versions that are kept between pages.
const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The rows of one history that a condition holds for.
pub(super) struct Reader<'a> {
    pub book: &'a Book,
    target: &'a Client,
    /// What is read, as `h`.
    pub from: String,
    /// The number of the last row that was read.
    pub last: i64,
    /// Rows that are read at once.
    pub rows_max: i64,
    /// The number of the last row that says that every row is gone, or not known.
    cleared: i64,
    kept: HashMap<Key, Version>,
    kept_bytes: usize,
}

/// A row as it is recorded.
struct Recorded {
    entry: Entry,
    values: Version,
    olds: Version,
    /// The key before the change.
    held: Option<Key>,
}

impl<'a> Reader<'a> {
    /// Rows of `from` (SQL, with the alias `h`) with a number past `after`. `cleared`: what stands before that row is not
    /// counted on.
    pub(super) fn new(
        book: &'a Book,
        target: &'a Client,
        from: String,
        after: i64,
        cleared: i64,
    ) -> Self {
        Self {
            book,
            target,
            from,
            last: after,
            rows_max: PAGE_ROWS,
            cleared,
            kept: HashMap::new(),
            kept_bytes: 0,
        }
    }

    /// The next rows; none when there are no more now.
    pub(super) async fn page(&mut self) -> Result<Vec<Entry>> {
        let ledger = &self.book.ledger;
        let number = ledger.number();
        let sql = format!(
            "SELECT {} FROM {} WHERE {number} > {} ORDER BY {number} LIMIT {}",
            selected(self.book),
            self.from,
            self.last,
            self.rows_max
        );
        // Not within a page, whose rows count on it.
        if self.kept_bytes > KEPT_BYTES_MAX {
            self.kept.clear();
            self.kept_bytes = 0;
        }
        let rows = self.target.query(&sql, &[]).await;
        let rows = rows.map_err(Side::Target.failed("could not show its history"))?;
        let mut rows: Vec<Recorded> = rows.iter().map(|row| recorded(ledger, row)).collect();
        if let Some(last) = rows.last() {
            self.last = last.entry.number;
        }
        if !ledger.key.is_empty() {
            self.look_up(&rows).await?;
        }
        for row in &mut rows {
            self.complete(row);
        }
        Ok(rows.into_iter().map(|row| row.entry).collect())
    }

    /// Looks for the versions before these rows that neither they themselves nor rows before them will give.
    async fn look_up(&mut self, rows: &[Recorded]) -> Result<()> {
        let mut seen: HashSet<&Key> = HashSet::new();
        let mut cleared = false;
        let (mut numbers, mut keys) = (Vec::new(), Vec::<&Key>::new());
        for row in rows {
            let needs = match row.entry.kind {
                Kind::Update | Kind::Delete => !row.olds.iter().all(Cell::is_known),
                // The second row of a change of the key.
                Kind::Put => !row.entry.lacking.is_empty(),
                Kind::Truncate | Kind::Gap => {
                    (cleared, seen) = (true, HashSet::new());
                    continue;
                }
            };
            let held = match row.entry.kind {
                Kind::Put => row.entry.key.as_ref(),
                _ => row.held.as_ref(),
            };
            if let Some(held) = held
                && needs
                && !cleared
                && !seen.contains(held)
                && !self.kept.contains_key(held)
            {
                // The version of a row that lacks values itself is looked for as a whole.
                numbers.push(match row.entry.kind {
                    Kind::Put => row.entry.number + 1,
                    _ => row.entry.number,
                });
                keys.push(held);
            }
            seen.extend([&row.held, &row.entry.key].into_iter().flatten());
        }
        if numbers.is_empty() {
            return Ok(());
        }
        let found = versions_before(self.book, self.target, &numbers, &keys, self.cleared);
        let found = found
            .await
            .map_err(Side::Target.failed("could not show the versions of its rows"))?;
        for (at, version) in found {
            if let Some(key) = keys.get(at) {
                self.keep((*key).clone(), version);
            }
        }
        Ok(())
    }

    fn keep(&mut self, key: Key, version: Version) {
        let size: usize = version.iter().map(Cell::size).sum();
        self.kept_bytes += size;
        self.kept.insert(key, version);
    }

    /// Adds what the rows before it say, and remembers what it says.
    fn complete(&mut self, row: &mut Recorded) {
        let entry = &mut row.entry;
        let values = std::mem::take(&mut row.values);
        let known = |found: Option<&Version>| match found {
            Some(version) => version.clone(),
            None => vec![Cell::Unknown; values.len()],
        };
        match entry.kind {
            Kind::Put => {
                // Only a version that was looked for has what the row lacks.
                let whole = match entry.lacking.is_empty() {
                    true => values,
                    false => over(known(self.kept_of(entry.key.as_ref())), values),
                };
                entry.after = Some(whole);
            }
            Kind::Update => {
                let held = self.kept_of(row.held.as_ref());
                let before = over(known(held), std::mem::take(&mut row.olds));
                // What the WAL did not carry did not change.
                entry.after = Some(over(before.clone(), values));
                entry.before = Some(before);
            }
            Kind::Delete => {
                let held = self.kept_of(row.held.as_ref());
                entry.before = Some(over(known(held), values));
            }
            Kind::Truncate | Kind::Gap => {
                self.cleared = entry.number;
                self.kept.clear();
                self.kept_bytes = 0;
            }
        }
        if let Some(held) = &row.held {
            self.kept.remove(held);
        }
        if let (Some(key), Some(after)) = (&entry.key, &entry.after) {
            self.keep(key.clone(), after.clone());
        }
    }

    fn kept_of(&self, key: Option<&Key>) -> Option<&Version> {
        key.and_then(|key| self.kept.get(key))
    }
}

/// `version`, and what is known of `values` over it.
pub(crate) fn over(version: Version, values: Version) -> Version {
    let pairs = std::iter::zip(version, values);
    pairs
        .map(|(was, is)| if is.is_known() { is } else { was })
        .collect()
}

/// The columns of the query that [`recorded`] reads.
fn selected(book: &Book) -> String {
    let ledger = &book.ledger;
    let own = |column: &Option<String>, kind: &str| match column {
        Some(column) => format!("{}::{kind}", ledger.own(column)),
        None => format!("NULL::{kind}"),
    };
    let (time, commit_lsn) = (ledger.time(), own(&ledger.commit_lsn, "text"));
    let commit_number = match &ledger.commit_lsn {
        Some(column) => format!("({} - '0/0'::pg_lsn)::text", ledger.own(column)),
        None => "NULL::text".to_owned(),
    };
    let list = |each: &dyn Fn(&Column) -> String| {
        let all: Vec<String> = ledger.columns.iter().map(each).collect();
        all.join(", ")
    };
    let changes_key = ledger.changes_key().unwrap_or_else(|| "false".to_owned());
    format!(
        "{}::int8, {}, to_char({time}, 'YYYY-MM-DD HH24:MI:SS.USTZH:TZM'), \
         to_char({time} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), {commit_lsn}, {commit_number}, \
         {}, {}, {}, coalesce({changes_key}, false), \
         ARRAY[{}]::text[], ARRAY[{}]::bool[], ARRAY[{}]::text[], ARRAY[{}]::bool[]",
        ledger.number(),
        ledger.kind(),
        own(&ledger.tx_seq, "text"),
        own(&ledger.xid, "text"),
        own(&book.context, "text"),
        list(&|column| format!("{}::text", column.value)),
        list(&|column| lacks(column).to_owned()),
        list(&|column| own(&column.old, "text")),
        list(&|column| knows_old(ledger, column)),
    )
}

fn lacks(column: &Column) -> &str {
    column.unavailable.as_deref().unwrap_or("false")
}

/// Whether row `h` has the value of a column before the change.
pub(crate) fn knows_old(ledger: &Ledger, column: &Column) -> String {
    match (&column.old, &ledger.unavailable) {
        (None, _) => "false".to_owned(),
        // A NULL could be a value that the WAL did not carry.
        (Some(old), None) => format!("{} IS NOT NULL", ledger.own(old)),
        (Some(old), Some(unavailable)) => format!(
            "NOT coalesce({} && ARRAY[{}], false)",
            ledger.own(unavailable),
            fold::text(old)
        ),
    }
}

fn recorded(ledger: &Ledger, row: &Row) -> Recorded {
    let change_type: Option<String> = row.get(1);
    let change_type = change_type.unwrap_or_default();
    let kind = Kind::of(&change_type);
    let number = |at: usize| {
        row.get::<_, Option<&str>>(at)
            .and_then(|text| text.parse().ok())
    };
    let moved: bool = row.get(9);
    let (values, lacks): (Vec<Option<String>>, Vec<bool>) = (row.get(10), row.get(11));
    let (olds, knows): (Vec<Option<String>>, Vec<bool>) = (row.get(12), row.get(13));
    let key_of = |values: &[Option<String>]| -> Option<Key> {
        let key = ledger.key.iter().map(|&at| values.get(at)?.clone());
        key.collect::<Option<Key>>().filter(|key| !key.is_empty())
    };
    let (key, old_key) = (key_of(&values), key_of(&olds));
    let former_key = old_key.filter(|_| moved);
    let held = match kind {
        Kind::Update => former_key.clone().or_else(|| key.clone()),
        Kind::Delete => key.clone(),
        Kind::Put | Kind::Truncate | Kind::Gap => None,
    };
    let lacking = lacks.iter().enumerate().filter(|(_, lacks)| **lacks);
    let lacking = lacking.map(|(at, _)| at).collect();
    // Without that column, NULL in a DELETE is mostly what the WAL did not carry.
    let says_nothing = kind == Kind::Delete && ledger.unavailable.is_none();
    let cell = |value: &Option<String>, lacks: bool| {
        let is_lacking = lacks || says_nothing && value.is_none();
        Cell::of(value.clone(), !is_lacking)
    };
    // A key that did not change is known before the change too.
    let is_update = kind == Kind::Update;
    let same_key = |at: usize| !moved && ledger.key.contains(&at);
    let olds: Version = std::iter::zip(olds, knows)
        .enumerate()
        .map(|(at, (old, known))| match is_update {
            true if same_key(at) => Cell::Known(values[at].clone()),
            true => Cell::of(old, known),
            false => Cell::Unknown,
        })
        .collect();
    Recorded {
        entry: Entry {
            number: row.get(0),
            change_type,
            kind,
            time: row.get(2),
            utc: row.get(3),
            commit_lsn: row.get(4),
            commit_number: number(5),
            tx_seq: number(6),
            xid: row.get(7),
            context: row.get(8),
            key,
            former_key,
            before: None,
            after: None,
            lacking,
        },
        values: std::iter::zip(&values, lacks)
            .map(|(value, lacks)| cell(value, lacks))
            .collect(),
        olds,
        held,
    }
}

/// The versions of rows before these numbers: positions in `keys`, and the values. Those that are not there are left out.
async fn versions_before(
    book: &Book,
    target: &Client,
    numbers: &[i64],
    keys: &[&Key],
    cleared: i64,
) -> Result<Vec<(usize, Version)>, tokio_postgres::Error> {
    let ledger = &book.ledger;
    let columns: Vec<Vec<&str>> = (0..ledger.key.len())
        .map(|n| keys.iter().map(|key| key[n].as_str()).collect())
        .collect();
    let mut parameters: Vec<&(dyn postgres_types::ToSql + Sync)> = vec![&numbers];
    for column in &columns {
        parameters.push(column);
    }
    let rows = target.query(&before(book, cleared), &parameters).await?;
    let version = |row: &Row| {
        let at: i64 = row.get(0);
        let (values, known): (Vec<Option<String>>, Vec<bool>) = (row.get(1), row.get(2));
        let cells = std::iter::zip(values, known).map(|(value, known)| Cell::of(value, known));
        (
            usize::try_from(at - 1).unwrap_or(usize::MAX),
            cells.collect(),
        )
    };
    Ok(rows.iter().map(version).collect())
}

/// The query for them: with an index on the key a look for each, else one for all.
fn before(book: &Book, cleared: i64) -> String {
    let ledger = &book.ledger;
    let lists: Vec<String> = (0..ledger.key.len())
        .map(|n| format!("${}::text[]", n + 2))
        .collect();
    let names: Vec<String> = (0..ledger.key.len()).map(|n| format!("k{n}")).collect();
    let wanted = format!(
        "unnest($1::int8[], {}) WITH ORDINALITY w (n, {}, at)",
        lists.join(", "),
        names.join(", ")
    );
    let same = ledger
        .key
        .iter()
        .zip(&names)
        .map(|(at, name)| format!("e.v{at} = w.{name}::{}", ledger.columns[*at].kind));
    let same: Vec<String> = same.collect();
    let same = same.join(" AND ");
    // A row that left this key would not be changed under it.
    let mut stays = ledger.clone();
    for column in &mut stays.columns {
        column.old = None;
    }
    let events = fold::events(&stays, &format!("{} > {cleared}", ledger.number()));
    let found = match book.indexed {
        true => format!(
            "SELECT w.at, l.* FROM {wanted} CROSS JOIN LATERAL (\n\
             SELECT e.* FROM (\n{events}\n) e WHERE {same} AND e.n < w.n ORDER BY e.n DESC LIMIT 1) l"
        ),
        false => format!(
            "SELECT DISTINCT ON (w.at) w.at, e.* FROM {wanted} JOIN (\n{events}\n) e ON {same} AND e.n < w.n\n\
             ORDER BY w.at, e.n DESC"
        ),
    };
    let (values, known) = cells(ledger, "l");
    let carrying = fold::carrying(ledger, "l");
    format!("SELECT l.at, {values}, {known} FROM ({found}) l{carrying} WHERE NOT l.gone")
}

/// The values of `alias`, and which of them are known: two arrays.
pub(crate) fn cells(ledger: &Ledger, alias: &str) -> (String, String) {
    let is_carried = fold::carried(ledger, "0").is_some();
    let all = 0..ledger.columns.len();
    let values = all.clone().map(|at| match is_carried {
        true => format!("({})::text", fold::value(ledger, at, alias)),
        false => format!("{alias}.v{at}::text"),
    });
    let known = all.map(|at| {
        let can_lack = ledger.columns[at].unavailable.is_some() && !ledger.key.contains(&at);
        match is_carried && can_lack {
            true => format!("NOT {alias}.lacks OR coalesce(c.known{at}, false)"),
            false => "true".to_owned(),
        }
    });
    let (values, known): (Vec<String>, Vec<String>) = (values.collect(), known.collect());
    (
        format!("ARRAY[{}]::text[]", values.join(", ")),
        format!("ARRAY[{}]::bool[]", known.join(", ")),
    )
}
