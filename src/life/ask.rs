//! What is asked for, made into rows of histories: a key and its life, a transaction, a range of time.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::book::Book;
use super::reader::Reader;
use super::row::Key;
use crate::answers::fold;
use crate::cli::LogArgs;
use crate::fault::{Exit, Fault, Result};
use crate::name::parse_identifier;
use crate::schema::plan::literal;
use crate::server::Side;

/// Rows that are shown where nothing limits them.
const ROWS_SHOWN: u64 = 50;
/// Changes of a key that a life is followed through.
const MOVES_MAX: usize = 1_000;

/// A mistake of the command line.
pub(crate) fn usage(what: impl Into<String>, remedy: impl Into<String>) -> Fault {
    Fault::halt(Exit::Usage, what).remedy(remedy)
}

fn failed(error: tokio_postgres::Error) -> Fault {
    Side::Target.failed("could not show its history")(error)
}

/// The first number of a query; 0 for none.
pub(crate) async fn number(target: &Client, sql: &str) -> Result<i64> {
    let row = target.query_opt(sql, &[]).await.map_err(failed)?;
    let number = row.and_then(|row| row.get::<_, Option<i64>>(0));
    Ok(number.unwrap_or_default())
}

/// A time of the command line as a literal of PostgreSQL, read in the session's time zone.
///
/// # Errors
/// 64 for what is no time.
pub(crate) async fn time(target: &Client, text: &str) -> Result<String> {
    let (sql, text) = match humantime::parse_duration(text) {
        Ok(ago) => (
            "SELECT (now() - make_interval(secs => $1::text::float8))::text",
            ago.as_secs_f64().to_string(),
        ),
        Err(_) => ("SELECT ($1::text::timestamptz)::text", text.to_owned()),
    };
    let read = target.query_one(sql, &[&text]).await;
    let read = read.map_err(|error| match is_refused_value(&error) {
        true => usage(
            format!("\"{text}\" is not a time"),
            "write it like \"2026-11-29 14:00\", \"yesterday\" or \"2h\"",
        ),
        false => failed(error),
    })?;
    Ok(literal(read.get(0)))
}

/// Whether a server has refused a value (class 22), and not a statement.
fn is_refused_value(error: &tokio_postgres::Error) -> bool {
    error
        .code()
        .is_some_and(|code| code.code().starts_with("22"))
}

/// The number of the last row that committed at or before a time, a literal; 0 where there is none. What follows it
/// committed later, whatever clocks say.
pub(crate) async fn number_at(target: &Client, book: &Book, time: &str) -> Result<i64> {
    let (ledger, number_) = (&book.ledger, book.ledger.number());
    let sql = format!(
        "SELECT {number_}::int8 FROM {} h WHERE {} <= {time}::timestamptz ORDER BY {number_} DESC LIMIT 1",
        ledger.history,
        ledger.time()
    );
    number(target, &sql).await
}

/// The first and the last row of a transaction, which stand together; None where the history has none. Of transactions with
/// the same number, which comes again after four thousand million, it is the newest.
///
/// # Errors
/// 64 for a history without a column for it.
pub(crate) async fn transaction(
    target: &Client,
    book: &Book,
    xid: u32,
) -> Result<Option<(i64, i64)>> {
    let (ledger, number_) = (&book.ledger, book.ledger.number());
    let Some(column) = &ledger.xid else {
        return Err(usage(
            format!("the history {} has no column xid", ledger.history),
            "choose its changes with --since",
        ));
    };
    let column = ledger.own(column);
    let newest = |rows: &str| {
        format!(
            "SELECT {number_}::int8 FROM {} h WHERE {rows} ORDER BY {number_} DESC LIMIT 1",
            ledger.history
        )
    };
    let last = number(target, &newest(&format!("{column} = '{xid}'"))).await?;
    if last == 0 {
        return Ok(None);
    }
    let others = format!("{column} IS DISTINCT FROM '{xid}' AND {number_} < {last}");
    let before = number(target, &newest(&others)).await?;
    Ok(Some((before + 1, last)))
}

/// The key that a text means, as the target writes it.
///
/// # Errors
/// 64 for a table without a key, and for what is not a value of it.
pub(super) async fn key(target: &Client, book: &Book, text: &str) -> Result<Key> {
    let (ledger, names) = (&book.ledger, book.key_names());
    let columns: Vec<_> = ledger.key_columns().collect();
    let write = format!("write --key {}", names.replace(", ", "=...,") + "=...");
    let given = match columns.as_slice() {
        [] => {
            return Err(usage(
                format!("{} has no key", ledger.source),
                "leave out --key",
            ));
        }
        [only] => match named(text, &[&only.name]) {
            Some(values) => values,
            None => vec![text.to_owned()],
        },
        several => {
            let several: Vec<&str> = several.iter().map(|column| column.name.as_str()).collect();
            named(text, &several).ok_or_else(|| {
                usage(
                    format!("the key of {} is ({names})", ledger.source),
                    write.clone(),
                )
            })?
        }
    };
    let mut key = Vec::with_capacity(given.len());
    for (column, value) in std::iter::zip(columns, given) {
        let read = format!("SELECT ($1::text)::{}::text", column.kind);
        let refused = || {
            usage(
                format!(
                    "what is given for {} is not a value of type {}",
                    column.name, column.kind
                ),
                write.clone(),
            )
        };
        let read = target.query_one(&read, &[&value]).await;
        let read: String = match read {
            Ok(row) => row.get(0),
            Err(error) if is_refused_value(&error) => return Err(refused()),
            Err(error) if error.code() == Some(&SqlState::CHECK_VIOLATION) => return Err(refused()),
            Err(error) => return Err(failed(error)),
        };
        // A cast cuts in silence.
        if column.kind.starts_with("character varying") && read != value {
            return Err(refused());
        }
        key.push(read);
    }
    Ok(key)
}

/// The values of `column=value[,column=value]`, in the order of `columns`, each of which it names once. A comma in a value is
/// one unless a column follows.
fn named(text: &str, columns: &[&str]) -> Option<Vec<String>> {
    let begins = |at: usize| {
        let (name, _) = text[at..].split_once('=')?;
        let name = parse_identifier(name).ok()?;
        let column = columns.iter().position(|column| *column == name)?;
        Some((column, at + text[at..].find('=')? + 1))
    };
    let commas = text.match_indices(',').map(|(at, _)| at + 1);
    let starts: Vec<(usize, usize, usize)> = std::iter::once(0)
        .chain(commas)
        .filter_map(|at| begins(at).map(|(column, value)| (at, column, value)))
        .collect();
    if starts.first()?.0 != 0 || starts.len() != columns.len() {
        return None;
    }
    let mut values = vec![None; columns.len()];
    for (n, &(_, column, value)) in starts.iter().enumerate() {
        let end = starts.get(n + 1).map_or(text.len(), |(next, ..)| next - 1);
        values[column] = Some(text[value..end].to_owned());
    }
    values.into_iter().collect()
}

/// Rows under one key, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    key: Key,
    from: i64,
    upto: i64,
}

/// Everything under a key; before it was another row's key, and after, what that row was and became under other ones.
async fn life(target: &Client, book: &Book, key: &Key) -> Result<Vec<Segment>> {
    let mut segments = vec![Segment {
        key: key.clone(),
        from: 0,
        upto: i64::MAX,
    }];
    let changes_key = book.ledger.changes_key();
    if let (Some(changes_key), Some(went)) = (changes_key, book.had_key(key)) {
        let came = format!("{} AND {changes_key}", book.has_key(key));
        for came in moves(target, book, &came, "").await? {
            before(target, book, came, &mut segments).await?;
        }
        for went in moves(target, book, &went, "").await? {
            after(target, book, went, &mut segments).await?;
        }
    }
    Ok(apart(segments))
}

/// The life of a row before it came to a key.
async fn before(
    target: &Client,
    book: &Book,
    came: Move,
    segments: &mut Vec<Segment>,
) -> Result<()> {
    let mut came = Some(came);
    while let Some(Move { at, old, .. }) = came.take_if(|_| segments.len() < MOVES_MAX) {
        let begins = format!(
            "{} AND {} < {at} AND ({} <> 'UPDATE' OR {})",
            book.has_key(&old),
            book.ledger.number(),
            book.ledger.kind(),
            book.ledger.changes_key().unwrap_or_default()
        );
        let first = moves(target, book, &begins, "DESC LIMIT 1").await?.pop();
        segments.push(Segment {
            key: old,
            from: first.as_ref().map_or(0, |first| first.at),
            upto: at - 1,
        });
        came = first.filter(|first| first.moved);
    }
    Ok(())
}

/// The life of a row after it left a key.
async fn after(
    target: &Client,
    book: &Book,
    went: Move,
    segments: &mut Vec<Segment>,
) -> Result<()> {
    let mut went = Some(went);
    while let Some(Move { at, new, .. }) = went.take_if(|_| segments.len() < MOVES_MAX) {
        let ends = format!(
            "{} > {at} AND (({} AND {} = 'DELETE') OR ({}))",
            book.ledger.number(),
            book.has_key(&new),
            book.ledger.kind(),
            book.had_key(&new).unwrap_or_default()
        );
        let last = moves(target, book, &ends, "LIMIT 1").await?.pop();
        segments.push(Segment {
            key: new,
            from: at,
            upto: match &last {
                Some(last) if last.moved => last.at - 1,
                Some(last) => last.at,
                None => i64::MAX,
            },
        });
        went = last.filter(|last| last.moved);
    }
    Ok(())
}

/// Segments of one key that meet are one: a row can come back to a key that it had.
fn apart(mut segments: Vec<Segment>) -> Vec<Segment> {
    segments.sort_by(|a, b| (&a.key, a.from).cmp(&(&b.key, b.from)));
    segments.dedup_by(|next, before| {
        let meet = next.key == before.key && next.from <= before.upto;
        if meet {
            before.upto = before.upto.max(next.upto);
        }
        meet
    });
    segments
}

/// A row of a history that begins or ends the life under a key.
struct Move {
    at: i64,
    /// It changed the key.
    moved: bool,
    old: Key,
    new: Key,
}

async fn moves(target: &Client, book: &Book, rows: &str, order: &str) -> Result<Vec<Move>> {
    let (ledger, number) = (&book.ledger, book.ledger.number());
    let list = |old: bool| {
        let columns = ledger.key_columns().map(|column| match (&column.old, old) {
            (Some(old), true) => format!("{}::text", ledger.own(old)),
            _ => format!("{}::text", column.value),
        });
        columns.collect::<Vec<_>>().join(", ")
    };
    let sql = format!(
        "SELECT {number}::int8, coalesce({}, false), ARRAY[{}]::text[], ARRAY[{}]::text[] FROM {} h \
          WHERE {rows} ORDER BY {number} {order}",
        ledger.changes_key().unwrap_or_else(|| "false".to_owned()),
        list(true),
        list(false),
        ledger.history
    );
    let rows = target.query(&sql, &[]).await.map_err(failed)?;
    let whole = |values: Vec<Option<String>>| -> Key { values.into_iter().flatten().collect() };
    Ok(rows
        .iter()
        .map(|row| Move {
            at: row.get(0),
            moved: row.get(1),
            old: whole(row.get(2)),
            new: whole(row.get(3)),
        })
        .collect())
}

/// What is read of one history: SQL with the alias `h`, and the number past which.
struct Range {
    from: String,
    after: i64,
}

/// The rows of one history that are asked for, the times as literals; none where a transaction has none there.
pub(super) async fn reader<'a>(
    target: &'a Client,
    book: &'a Book,
    ask: &LogArgs,
    key: Option<&Key>,
) -> Result<Option<Reader<'a>>> {
    let (ledger, number_) = (&book.ledger, book.ledger.number());
    let mut after = match &ask.since {
        Some(since) => number_at(target, book, since).await?,
        None => 0,
    };
    let mut upto = match &ask.until {
        Some(until) => number_at(target, book, until).await?,
        None => i64::MAX,
    };
    let mut more = String::new();
    if let Some(xid) = ask.xid {
        let Some((first, last)) = transaction(target, book, xid).await? else {
            return Ok(None);
        };
        (after, upto) = (after.max(first - 1), upto.min(last));
        if let Some(column) = &ledger.xid {
            more = format!(" AND {} = '{xid}'", ledger.own(column));
        }
    }
    let within = format!("{number_} <= {upto}{more}");
    let mut range = match key {
        Some(key) => of_life(target, book, key, (after, &within)).await?,
        None => Range {
            from: format!("(SELECT h.* FROM {} h WHERE {within}) h", ledger.history),
            after,
        },
    };
    let is_open = key.is_none() && ask.xid.is_none() && ask.since.is_none();
    if let Some(limit) = ask.limit.or(is_open.then_some(ROWS_SHOWN)) {
        let sql = format!(
            "SELECT {number_}::int8 FROM {} ORDER BY {number_} DESC OFFSET {limit} LIMIT 1",
            range.from
        );
        range.after = range.after.max(number(target, &sql).await?);
    }
    let cleared = cleared(target, book, range.after).await?;
    Ok(Some(Reader::new(
        book,
        target,
        range.from,
        range.after,
        cleared,
    )))
}

/// The life of a key, with the rows that say that every row is gone, or not known.
async fn of_life(
    target: &Client,
    book: &Book,
    key: &Key,
    (after, within): (i64, &str),
) -> Result<Range> {
    let (ledger, number_) = (&book.ledger, book.ledger.number());
    let mut parts: Vec<String> = Vec::new();
    for segment in life(target, book, key).await? {
        parts.push(format!(
            "SELECT h.* FROM {} h WHERE {} AND {number_} BETWEEN {} AND {} AND {within}",
            ledger.history,
            book.has_key(&segment.key),
            segment.from,
            segment.upto
        ));
    }
    let rows = parts.join("\nUNION ALL\n");
    let first = format!("SELECT min({number_})::int8 FROM ({rows}) h");
    let first = number(target, &first).await?;
    let clears = format!(
        "SELECT h.* FROM {} h WHERE {} AND {number_} > {first} AND {within}",
        ledger.history,
        fold::clears(ledger)
    );
    Ok(Range {
        from: format!("({rows}\nUNION ALL\n{clears}) h"),
        after,
    })
}

/// What is read of the rows past the last one, while the log of a key goes on.
pub(super) fn following(book: &Book, key: &Key) -> String {
    let ledger = &book.ledger;
    let had = match book.had_key(key) {
        Some(had) => format!(" OR ({had})"),
        None => String::new(),
    };
    format!(
        "(SELECT h.* FROM {} h WHERE ({}){had} OR {}) h",
        ledger.history,
        book.has_key(key),
        fold::clears(ledger)
    )
}

/// The number of the last row up to `upto` that clears the table, where the history has gaps: after a TRUNCATE no row is
/// changed that was there before.
async fn cleared(target: &Client, book: &Book, upto: i64) -> Result<i64> {
    let made = "SELECT pg_catalog.to_regclass('waltrail.gap') IS NOT NULL";
    let made = target.query_one(made, &[]).await.map_err(failed)?;
    if !made.get::<_, bool>(0) {
        return Ok(0);
    }
    let gaps = "SELECT EXISTS (SELECT FROM waltrail.gap WHERE history = $1)";
    let history = book.ledger.history.to_string();
    let gaps = target.query_one(gaps, &[&history]).await.map_err(failed)?;
    match gaps.get(0) {
        true => {
            let upto = upto.to_string();
            number(
                target,
                &format!("SELECT {}::int8", fold::after(&book.ledger, &upto)),
            )
            .await
        }
        false => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::named;

    #[test]
    fn a_key_of_several_columns_is_read_in_any_order() {
        let two = |text: &str| named(text, &["a", "B"]);
        let is = |a: &str, b: &str| Some(vec![a.to_owned(), b.to_owned()]);
        assert_eq!(two("a=1,\"B\"=2"), is("1", "2"));
        assert_eq!(two("\"B\"=x,y=z,a="), is("", "x,y=z"));
        for refused in ["1,2", "a=1", "a=1,b=2", "a=1,a=2", "x,a=1,\"B\"=2", ""] {
            assert_eq!(two(refused), None, "{refused}");
        }
        assert_eq!(named("id=7", &["id"]), Some(vec!["7".to_owned()]));
        assert_eq!(named("x=7", &["id"]), None);
    }
}
