//! What changes did to each key, all in all: the row before them, after them, and as the history has it now.
//!
//! One query gives these three versions of every key that the changes touched. Whatever happened in between does not matter:
//! rows that were added and removed again need nothing, and the order of the changes is of no account.

use std::collections::{HashMap, HashSet};

use tokio_postgres::{Client, Row};

use super::versions::{fulfils, touched, versions};
use crate::answers::fold;
use crate::fault::Result;
use crate::life::book::Book;
use crate::life::reader::over;
use crate::life::row::{Cell, Key, Kind, Version};
use crate::life::{number, number_at, transaction, usage};
use crate::server::Side;
use crate::wire::ServerError;

/// Changes of keys that are kept in memory.
const MOVES_MAX: usize = 1_000_000;

/// Changes that stand together in a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// The numbers of the first and the last of them.
    pub first: i64,
    pub last: i64,
    /// The number of the history's last row.
    pub end: i64,
    /// A TRUNCATE is among them.
    pub truncates: bool,
    /// The last row that clears the table, of those before, up to the last change, and of all.
    pub cleared: [i64; 3],
}

/// A row of the table: its key, and the values that are known.
pub(super) type Found = (Key, Version);

/// What a key needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// The row is to be as `then`; it is as `now`.
    Put {
        now: Option<Found>,
        then: Option<Found>,
    },
    /// It was changed since.
    ChangedSince(Key),
}

/// A key that the changes touched.
#[derive(Clone, Debug)]
struct Touched {
    key: Key,
    before: Option<Version>,
    after: Option<Version>,
    now: Option<Version>,
}

/// Which changes are undone.
#[derive(Clone, Debug)]
pub(super) enum Which {
    Transaction(u32),
    /// What committed after this time, a literal.
    Since(String),
}

fn failed(error: tokio_postgres::Error) -> crate::fault::Fault {
    Side::Target.failed("could not show the versions of its rows")(error)
}

/// The changes in one history; None where there are none.
///
/// # Errors
/// 64 where changes between them are missing.
pub(super) async fn block(target: &Client, book: &Book, which: &Which) -> Result<Option<Block>> {
    let (ledger, number_) = (&book.ledger, book.ledger.number());
    let end = format!("SELECT max({number_})::int8 FROM {} h", ledger.history);
    let end = number(target, &end).await?;
    let (first, last) = match which {
        Which::Transaction(xid) => match transaction(target, book, *xid).await? {
            Some(found) => found,
            None => return Ok(None),
        },
        Which::Since(time) => (number_at(target, book, time).await? + 1, end),
    };
    if first > last {
        return Ok(None);
    }
    if let Which::Since(_) = which {
        refuse_beginning(target, book, first).await?;
    }
    let truncates = refuse_breaks(target, book, (first, last)).await?;
    let mut cleared = [0; 3];
    for (cleared, upto) in std::iter::zip(&mut cleared, [first - 1, last, end]) {
        let upto = upto.to_string();
        *cleared = number(
            target,
            &format!("SELECT {}::int8", fold::after(ledger, &upto)),
        )
        .await?;
    }
    Ok(Some(Block {
        first,
        last,
        end,
        truncates,
        cleared,
    }))
}

/// Refuses changes that begin before the history knows the whole table: existing rows would be taken for new ones.
async fn refuse_beginning(target: &Client, book: &Book, first: i64) -> Result<()> {
    let ledger = &book.ledger;
    let known = "SELECT pg_catalog.to_regclass('waltrail.baseline') IS NOT NULL";
    if !target
        .query_one(known, &[])
        .await
        .map_err(failed)?
        .get::<_, bool>(0)
    {
        return Ok(());
    }
    let begins = "SELECT to_char(max(taken_at), 'YYYY-MM-DD HH24:MI:SS.USTZH:TZM') FROM waltrail.baseline \
        WHERE history = $1 AND last_number >= $2";
    let history = ledger.history.to_string();
    let begins = target.query_one(begins, &[&history, &first]).await;
    match begins.map_err(failed)?.get::<_, Option<&str>>(0) {
        None => Ok(()),
        Some(begins) => Err(usage(
            format!(
                "the existing rows of {} were recorded at {begins}, after that time",
                ledger.source
            ),
            "choose a later time, or other tables with --table",
        )),
    }
}

/// Refuses changes among which others are missing, or rows of the history were repaired. Returns whether a TRUNCATE is among
/// them.
async fn refuse_breaks(target: &Client, book: &Book, (first, last): (i64, i64)) -> Result<bool> {
    let ledger = &book.ledger;
    let kinds = format!(
        "SELECT coalesce(bool_or({kind} = 'GAP'), false), coalesce(bool_or({kind} = 'REPAIR'), false), \
                coalesce(bool_or({kind} = 'TRUNCATE'), false) FROM {} h WHERE {} BETWEEN {first} AND {last}",
        ledger.history,
        ledger.number(),
        kind = ledger.kind(),
    );
    let kinds = target.query_one(&kinds, &[]).await.map_err(failed)?;
    let what = match (kinds.get(0), kinds.get(1)) {
        (true, _) => "changes are missing, as its GAP row says",
        (_, true) => "its history was repaired",
        _ => return Ok(kinds.get(2)),
    };
    let source = &ledger.source;
    Err(usage(
        format!("among these changes of {source}, {what}"),
        format!(
            "waltrail log {source} shows it; choose changes that begin after it, or other tables with --table"
        ),
    ))
}

/// Reads what each key needs, page by page.
pub(super) struct Needs<'a> {
    book: &'a Book,
    target: &'a Client,
    block: Block,
    condition: Option<&'a str>,
    force: bool,
    /// For a row that is there under another key: that key, and the one before.
    moved: HashMap<Key, Key>,
    /// The same the other way round.
    moved_to: HashMap<Key, Key>,
    is_open: bool,
}

/// Keys that are read at once.
const PAGE_KEYS: usize = 1_000;

impl<'a> Needs<'a> {
    /// `condition`: SQL over the table's columns, which the row before the changes has to fulfil, or where there was none, the
    /// one after them.
    pub(super) async fn of(
        (target, book): (&'a Client, &'a Book),
        block: Block,
        condition: Option<&'a str>,
        force: bool,
    ) -> Result<Self> {
        let mut needs = Self {
            book,
            target,
            block,
            condition,
            force,
            moved: HashMap::new(),
            moved_to: HashMap::new(),
            is_open: false,
        };
        needs.read_moves().await?;
        Ok(needs)
    }

    /// What the next keys need; None when there are no more.
    pub(super) async fn page(&mut self) -> Result<Option<Vec<Need>>> {
        if !self.is_open {
            let sql = versions(
                &self.book.ledger,
                &touched(&self.book.ledger, &self.block),
                &self.block,
            );
            // All of it is read.
            let open = format!(
                "SET LOCAL cursor_tuple_fraction = 1; DECLARE needs NO SCROLL CURSOR FOR {sql}"
            );
            self.target.batch_execute(&open).await.map_err(failed)?;
            self.is_open = true;
        }
        let fetch = format!("FETCH {PAGE_KEYS} FROM needs");
        let rows = self.target.query(&fetch, &[]).await.map_err(failed)?;
        if rows.is_empty() {
            self.target
                .batch_execute("CLOSE needs")
                .await
                .map_err(failed)?;
            self.is_open = false;
            return Ok(None);
        }
        let touched: Vec<Touched> = rows.iter().map(|row| self.touched(row)).collect();
        let partners = self.partners(&touched).await?;
        let mut pairs: Vec<(Touched, Option<Found>)> = Vec::with_capacity(touched.len());
        for key in touched {
            pairs.extend(self.paired(key, &partners));
        }
        let kept = self.fulfilling(&pairs).await?;
        let pairs = pairs.into_iter().enumerate();
        let kept = pairs.filter(|(at, _)| kept.as_ref().is_none_or(|kept| kept.contains(at)));
        Ok(Some(
            kept.filter_map(|(_, (key, then))| self.need(key, then))
                .collect(),
        ))
    }

    /// The changes of keys among the changes.
    async fn read_moves(&mut self) -> Result<()> {
        let ledger = &self.book.ledger;
        let Some(changes_key) = ledger.changes_key() else {
            return Ok(());
        };
        let list = |old: bool| {
            let columns = ledger.key_columns().map(|column| match (&column.old, old) {
                (Some(old), true) => format!("{}::text", ledger.own(old)),
                _ => format!("{}::text", column.value),
            });
            columns.collect::<Vec<_>>().join(", ")
        };
        let number = ledger.number();
        let sql = format!(
            "SELECT ARRAY[{}]::text[], ARRAY[{}]::text[] FROM {} h WHERE {number} BETWEEN {} AND {} AND {changes_key} \
              ORDER BY {number} LIMIT {}",
            list(true),
            list(false),
            ledger.history,
            self.block.first,
            self.block.last,
            MOVES_MAX + 1
        );
        let rows = self.target.query(&sql, &[]).await.map_err(failed)?;
        if rows.len() > MOVES_MAX {
            return Err(usage(
                format!(
                    "the key of more than {MOVES_MAX} rows of {} changed",
                    ledger.source
                ),
                "undo a smaller part, with --xid or --since",
            ));
        }
        for row in &rows {
            let (old, new): (Key, Key) = (row.get(0), row.get(1));
            let origin = self.moved.remove(&old).unwrap_or(old);
            if origin != new {
                self.moved.insert(new, origin);
            }
        }
        let turned = self
            .moved
            .iter()
            .map(|(to, from)| (from.clone(), to.clone()));
        self.moved_to = turned.collect();
        Ok(())
    }

    fn touched(&self, row: &Row) -> Touched {
        let mut before = cells_of(row, 1);
        let first = row.get::<_, Option<&str>>(7).map(Kind::of);
        let known = cells_of(row, 8);
        if let (Some(Kind::Update | Kind::Delete), Some(known)) = (first, known) {
            // The change itself says that the row was there, and perhaps what it was.
            let was = before.unwrap_or_else(|| vec![Cell::Unknown; known.len()]);
            before = Some(over(known, was));
        }
        let after = cells_of(row, 3);
        let now = match self.block.last == self.block.end {
            true => after.clone(),
            false => cells_of(row, 5),
        };
        Touched {
            key: row.get(0),
            before,
            after,
            now,
        }
    }

    /// The versions of the keys that rows of these keys had before, or have now.
    async fn partners(&self, touched: &[Touched]) -> Result<HashMap<Key, Touched>> {
        let mut found = HashMap::new();
        let keys = touched.iter().flat_map(|key| {
            let from = self.moved.get(&key.key);
            let before = from.and_then(|from| self.moved.get(from));
            let others = [from, before, self.moved_to.get(&key.key)];
            others.into_iter().flatten()
        });
        let keys: Vec<&Key> = keys.collect();
        if keys.is_empty() {
            return Ok(found);
        }
        let ledger = &self.book.ledger;
        let columns: Vec<Vec<&str>> = (0..ledger.key.len())
            .map(|n| keys.iter().map(|key| key[n].as_str()).collect())
            .collect();
        let numbered = ledger.key_columns().enumerate();
        let names =
            numbered.map(|(n, column)| format!("w.k{n}::{kind} AS k{n}", kind = column.kind));
        let names: Vec<String> = names.collect();
        let lists: Vec<String> = (1..=columns.len())
            .map(|n| format!("${n}::text[]"))
            .collect();
        let bare: Vec<String> = (0..columns.len()).map(|n| format!("k{n}")).collect();
        let wanted = format!(
            "SELECT DISTINCT {} FROM unnest({}) w ({})",
            names.join(", "),
            lists.join(", "),
            bare.join(", ")
        );
        let parameters = columns.iter().map(|column| column as _);
        let parameters: Vec<&(dyn postgres_types::ToSql + Sync)> = parameters.collect();
        let sql = versions(ledger, &wanted, &self.block);
        for row in self.target.query(&sql, &parameters).await.map_err(failed)? {
            let key = self.touched(&row);
            found.insert(key.key.clone(), key);
        }
        Ok(found)
    }

    /// A key and the row that it is to become; under another key where its row had that before. None where the row has another
    /// key now, which takes care of it.
    fn paired(
        &self,
        key: Touched,
        partners: &HashMap<Key, Touched>,
    ) -> Option<(Touched, Option<Found>)> {
        let is_new = |key: &Touched| {
            let from = self.moved.get(&key.key);
            key.after.is_none()
                || from
                    .is_none_or(|from| partners.get(from).is_some_and(|from| from.before.is_none()))
        };
        let is_move = |from: &Touched, to: &Touched| {
            from.before.is_some() && is_new(from) && to.before.is_none() && to.after.is_some()
        };
        let to = self.moved_to.get(&key.key).and_then(|to| partners.get(to));
        if to.is_some_and(|to| is_move(&key, to)) {
            // Another row has this key, which it is to give back.
            return key.after.is_some().then_some((key, None));
        }
        let from = self.moved.get(&key.key).and_then(|from| partners.get(from));
        let then = match from {
            Some(from) if is_move(from, &key) => {
                from.before.clone().map(|before| (from.key.clone(), before))
            }
            _ => key.before.clone().map(|before| (key.key.clone(), before)),
        };
        Some((key, then))
    }

    /// The positions of those that fulfil the condition; None for all.
    async fn fulfilling(
        &self,
        pairs: &[(Touched, Option<Found>)],
    ) -> Result<Option<HashSet<usize>>> {
        let Some(condition) = self.condition else {
            return Ok(None);
        };
        let ledger = &self.book.ledger;
        let columns: Vec<Vec<Option<&str>>> = (0..ledger.columns.len())
            .map(|at| {
                let rows = pairs.iter().map(|(key, then)| {
                    let then = then.as_ref().map(|(_, version)| version);
                    then.or(key.after.as_ref())?.get(at)?.text()
                });
                rows.collect()
            })
            .collect();
        let sql = fulfils(ledger, condition);
        let parameters = columns.iter().map(|column| column as _);
        let parameters: Vec<&(dyn postgres_types::ToSql + Sync)> = parameters.collect();
        let rows = self.target.query(&sql, &parameters).await;
        let rows = rows.map_err(|error| match error.as_db_error() {
            Some(report) => usage(
                format!(
                    "the target refuses the condition of --where for {}",
                    ledger.source
                ),
                "it is SQL over the columns of the table; objects of your own need their schema",
            )
            .caused_by(ServerError::from_db_error(report)),
            None => failed(error),
        })?;
        let at = |row: &Row| usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or(usize::MAX);
        Ok(Some(rows.iter().map(at).collect()))
    }

    fn need(&self, key: Touched, then: Option<Found>) -> Option<Need> {
        let stays = then.as_ref().is_none_or(|(then, _)| *then == key.key);
        let version = |found: &Option<Found>| found.as_ref().map(|(_, version)| version.clone());
        let is_known = then.as_ref().is_none_or(|(_, then)| {
            // Of a column that every change lacks, the value is the same.
            let after = key.after.iter().flatten();
            !std::iter::zip(then, after).any(|(was, is)| !was.is_known() && is.is_known())
        });
        if stays && is_known && is_same(&version(&then), &key.after) {
            return None;
        }
        let is_changed = !is_same(&key.after, &key.now);
        if is_changed && !self.force {
            return Some(Need::ChangedSince(key.key));
        }
        let now = if is_changed { key.now } else { key.after };
        if now.is_none() && then.is_none() || stays && is_changed && is_same(&version(&then), &now)
        {
            return None;
        }
        let now = now.map(|now| (key.key, now));
        Some(Need::Put { now, then })
    }
}

/// Whether two versions are the same, as far as both are known.
fn is_same(one: &Option<Version>, other: &Option<Version>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => std::iter::zip(one, other)
            .all(|(one, other)| !one.is_known() || !other.is_known() || one == other),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

fn cells_of(row: &Row, at: usize) -> Option<Version> {
    let values: Option<Vec<Option<String>>> = row.get(at);
    let known: Option<Vec<bool>> = row.get(at + 1);
    let cells = std::iter::zip(values?, known?);
    Some(cells.map(|(value, known)| Cell::of(value, known)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_differs_from_nothing() {
        let known = |text: &str| Cell::Known(Some(text.to_owned()));
        let is = |a: Cell, b: Cell| is_same(&Some(vec![a]), &Some(vec![b]));
        assert!(is(known("a"), known("a")) && is(known("a"), Cell::Unknown));
        assert!(!is(known("a"), known("b")) && !is(known(""), Cell::Known(None)));
        assert!(!is_same(&None, &Some(vec![])) && is_same(&None, &None));
    }
}
