//! Rows of a server, one after the other, as [`Form`](super::form::Form) asks for them. No more than one is kept.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;

use futures_core::Stream as _;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, RowStream};

use crate::fault::{Fault, Result};
use crate::server::Side;

/// What is said of a bucket: rows, the sum of their hashes, and how many of them are not known in full.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bucket {
    pub(crate) rows: i64,
    pub(crate) sum: String,
    pub(crate) unknown: i64,
}

pub(crate) type Buckets = HashMap<i32, Bucket>;

/// Adds what a query of buckets gives.
pub(crate) async fn buckets(
    client: &Client,
    side: Side,
    query: &str,
    into: &mut Buckets,
) -> Result<()> {
    let rows = client.query(query, &[]).await.map_err(failed(side))?;
    for row in rows {
        let bucket = Bucket {
            rows: row.get(1),
            sum: row.get(2),
            unknown: row.get(3),
        };
        // What was added and taken away again.
        if bucket.rows != 0 || bucket.sum != "0" {
            into.insert(row.get(0), bucket);
        }
    }
    Ok(())
}

/// The buckets in which the two sides differ, or are not known.
pub(crate) fn differing(source: &Buckets, history: &Buckets) -> Vec<i32> {
    let is_same = |at: &i32| source.get(at) == history.get(at);
    let mut all: Vec<i32> = source.keys().chain(history.keys()).copied().collect();
    all.sort_unstable();
    all.dedup();
    all.retain(|at| !is_same(at));
    all
}

pub(crate) fn count(buckets: &Buckets) -> i64 {
    buckets.values().map(|bucket| bucket.rows).sum()
}

pub(crate) fn failed(side: Side) -> impl Fn(tokio_postgres::Error) -> Fault + Copy {
    side.failed("could not read the rows to be compared")
}

/// A row, reduced to hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hashed {
    /// Of its key; of a table without a key, of all of it.
    pub(crate) hash: i64,
    /// The key's values as text.
    pub(crate) key: Vec<Option<String>>,
    /// Of each compared column; none for NULL.
    pub(crate) values: Vec<Option<i64>>,
    /// Which of them the history does not know. Of a source, empty.
    pub(crate) unknown: Vec<bool>,
    /// How often the row is there.
    pub(crate) copies: i64,
}

impl Hashed {
    pub(crate) fn of(row: &Row) -> Self {
        Self {
            hash: row.get(0),
            key: row.get(1),
            values: row.get(2),
            unknown: row.get(3),
            copies: row.get(4),
        }
    }
}

/// Rows by the hash of their key.
pub(crate) struct Rows {
    stream: Pin<Box<RowStream>>,
    side: Side,
}

impl Rows {
    pub(crate) async fn open(
        client: &Client,
        side: Side,
        query: &str,
        buckets: &[i32],
    ) -> Result<Self> {
        let wanted: [&(dyn ToSql + Sync); 1] = [&buckets];
        let stream = client
            .query_raw(query, wanted)
            .await
            .map_err(failed(side))?;
        Ok(Self {
            stream: Box::pin(stream),
            side,
        })
    }

    /// The next one. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<Hashed>> {
        let next = poll_fn(|cx| self.stream.as_mut().poll_next(cx)).await;
        match next {
            Some(row) => Ok(Some(Hashed::of(&row.map_err(failed(self.side))?))),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(rows: i64, sum: &str, unknown: i64) -> Bucket {
        Bucket {
            rows,
            sum: sum.to_owned(),
            unknown,
        }
    }

    #[test]
    fn a_bucket_differs_by_its_rows_its_sum_or_what_is_unknown() {
        let source = Buckets::from([
            (1, bucket(1, "5", 0)),
            (2, bucket(1, "5", 0)),
            (3, bucket(1, "5", 0)),
            (4, bucket(1, "5", 0)),
            (5, bucket(1, "5", 0)),
        ]);
        let history = Buckets::from([
            (1, bucket(1, "5", 0)),
            (2, bucket(2, "5", 0)),
            (3, bucket(1, "6", 0)),
            (4, bucket(1, "5", 1)),
            (6, bucket(1, "5", 0)),
        ]);
        assert_eq!(differing(&source, &history), [2, 3, 4, 5, 6]);
        assert_eq!(count(&history), 6);
    }
}
