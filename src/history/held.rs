//! Changes of tables whose existing rows are not recorded yet: how they are put aside, and added to the history
//! when those are.
//!
//! What is put aside is the data of a COPY just as it would have gone to the history, and the statement that
//! takes it: nothing is looked at, and what was held before the shape of a table changed stays as it was. It is written in
//! the transaction that moves the checkpoint over it, and taken away in the one that adds it to the history (invariant
//! I1), so that it is exactly once somewhere at every moment.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio_postgres::Client;

use super::gate::Gate;
use super::outgoing::Outgoing;
use super::writer::{Writer, WriterError};
use crate::fault::{Fault, Result};
use crate::lsn::Lsn;
use crate::schema::TableName;
use crate::schema::plan::{literal, takes_binary};
use crate::server::Side;
use crate::wire::Error;

/// What the applier is asked to do between two batches.
#[derive(Debug)]
pub enum Request {
    /// Hold these tables' changes like this from now on.
    Hold {
        histories: Vec<TableName>,
        gate: Gate,
        done: oneshot::Sender<()>,
    },
    /// Add what is held to the histories, and hold nothing from now on.
    Join {
        /// What is held is read on it.
        client: Arc<Client>,
        /// Each with the point of its existing rows.
        histories: Vec<(TableName, Lsn)>,
        done: oneshot::Sender<()>,
    },
}

/// As much as one transaction adds at most, but for a row that is larger by itself.
const REPLAY_BYTES_MAX: i64 = 4 * 1024 * 1024;
const REPLAY_PIECES_MAX: i64 = 2_000;

struct Held {
    seq: i64,
    copy: String,
    guard: Option<String>,
    opening: Option<String>,
    rows: Vec<u8>,
}

/// How much of what is held was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Added {
    Nothing,
    /// As much as one transaction takes; more may be left.
    Some,
    /// All that was held when it was looked.
    All,
}

/// Adds the first of what is held of a table to its history, in one transaction. `client` reads, `session` writes.
///
/// # Errors
/// A value that the history does not take, as for the stream; the target failed.
pub(crate) async fn replay(
    session: &mut Writer,
    client: &Client,
    history: &TableName,
    point: Lsn,
) -> Result<Added> {
    // The sizes are known without reading the rows, so that only those that are wanted are read.
    let held: Vec<Held> = client
        .query(
            "SELECT seq, copy, guard, opening, rows FROM ( \
                 SELECT seq, copy, guard, opening, rows, \
                        sum(octet_length(rows)) OVER (ORDER BY seq) - octet_length(rows) AS before \
                   FROM (SELECT * FROM waltrail.held \
                          WHERE slot = $1 AND history = $2 AND lsn >= $3 \
                          ORDER BY seq LIMIT $4) AS first) AS summed \
              WHERE before < $5 ORDER BY seq",
            &[
                &session.slot(),
                &history.to_string(),
                &point,
                &REPLAY_PIECES_MAX,
                &REPLAY_BYTES_MAX,
            ],
        )
        .await
        .map_err(Side::Target.failed("could not read the changes that are held"))?
        .into_iter()
        .map(|row| Held {
            seq: row.get(0),
            copy: row.get(1),
            guard: row.get(2),
            opening: row.get(3),
            rows: row.get(4),
        })
        .collect();
    if held.is_empty() {
        return Ok(Added::Nothing);
    }
    add(session, history, &held).await.map_err(Fault::from)?;
    let bytes: usize = held.iter().map(|held| held.rows.len()).sum();
    let full = held.len() as i64 >= REPLAY_PIECES_MAX || bytes as i64 >= REPLAY_BYTES_MAX;
    Ok(if full { Added::Some } else { Added::All })
}

async fn add(
    session: &mut Writer,
    history: &TableName,
    held: &[Held],
) -> std::result::Result<(), WriterError> {
    let taken: Vec<String> = held.iter().map(|held| held.seq.to_string()).collect();
    let take = format!(
        "SELECT waltrail.take_held('{}', {}, '{{{}}}')",
        session.slot(),
        literal(&history.to_string()),
        taken.join(",")
    );
    let mut out = Outgoing::default();
    out.execute_once(&take)?;
    let mut guards: Vec<&String> = Vec::new();
    let is_alike =
        |a: &Held, b: &Held| (&a.copy, &a.guard, &a.opening) == (&b.copy, &b.guard, &b.opening);
    for alike in held.chunk_by(is_alike) {
        let opening = alike[0].opening.as_deref().unwrap_or_default();
        if !opening.is_empty() {
            out.execute_once(opening)?;
        }
        let rows = alike.iter().map(|held| held.rows.as_slice());
        let copy = session.statements.plain(&alike[0].copy, &mut out.own)?;
        // An earlier release gave rows of text no guard.
        out.copy(copy, takes_binary(&alike[0].copy), rows)?;
        if let Some(guard) = &alike[0].guard
            && !guards.contains(&guard)
        {
            guards.push(guard);
        }
    }
    for guard in guards {
        let guard = session.statements.plain(guard, &mut out.own)?;
        out.execute(guard)?;
    }
    let answers = session.send(&mut out).await?;
    answers.done(None).map_err(|mut failure| {
        // Of a value that does not fit the server names no table.
        if let Error::Server(report) = &mut failure
            && !report.code.starts_with("WTR")
        {
            let subject = || format!("table {history}, from waltrail.held");
            report.subject.get_or_insert_with(subject);
        }
        failure
    })?;
    Ok(())
}

/// Does what is asked between two batches.
pub(crate) async fn serve(session: &mut Writer, request: Request) -> Result<()> {
    // Who asked may have gone; what was done is done.
    match request {
        Request::Hold {
            histories,
            gate,
            done,
        } => {
            for history in histories {
                session.set_gate(history, gate);
            }
            let _ = done.send(());
        }
        Request::Join {
            client,
            histories,
            done,
        } => {
            join(session, &client, &histories).await?;
            let _ = done.send(());
        }
    }
    Ok(())
}

/// Joins tables whose existing rows are recorded, each with its point.
async fn join(session: &mut Writer, client: &Client, histories: &[(TableName, Lsn)]) -> Result<()> {
    let names: Vec<&TableName> = histories.iter().map(|(history, _)| history).collect();
    let holding = holding(client, session.slot(), &names).await?;
    for (history, point) in histories {
        if holding.contains(history) {
            while replay(session, client, history, *point).await? != Added::Nothing {}
        }
    }
    let names: Vec<String> = names
        .iter()
        .map(|history| literal(&history.to_string()))
        .collect();
    let joined = format!(
        "SELECT waltrail.joined('{}', j.history) FROM unnest(ARRAY[{}]) AS j (history)",
        session.slot(),
        names.join(", ")
    );
    let answer = session.channel().simple_query(&joined).await;
    answer.map_err(|error| Fault::from(WriterError::from(error)))?;
    for (history, point) in histories {
        session.set_gate(history.clone(), Gate::Synced(*point));
    }
    Ok(())
}

/// Which of these histories have changes that are held.
pub(crate) async fn holding(
    client: &Client,
    slot: &str,
    histories: &[&TableName],
) -> Result<HashSet<TableName>> {
    let names: Vec<String> = histories.iter().map(ToString::to_string).collect();
    let rows = client
        .query(
            "SELECT w.history FROM unnest($2::text[]) AS w (history) \
              WHERE EXISTS (SELECT FROM waltrail.held h WHERE h.slot = $1 AND h.history = w.history)",
            &[&slot, &names],
        )
        .await
        .map_err(Side::Target.failed("could not read the changes that are held"))?;
    let holding: HashSet<String> = rows.iter().map(|row| row.get(0)).collect();
    let with_names = std::iter::zip(histories, names);
    Ok(with_names
        .filter(|(_, name)| holding.contains(name))
        .map(|(history, _)| (*history).clone())
        .collect())
}
