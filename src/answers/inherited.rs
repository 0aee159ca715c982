//! Where the values of rows from before a schema change stand (migration V9).

use std::collections::HashMap;

use tokio_postgres::{Client, Error};

use crate::fault::Result;
use crate::name::TableName;
use crate::server::Side;

/// What stands for all of them that a history has (`i`), however far the rows go by now; empty where there are none. What was
/// made from others is too old to answer.
pub(crate) const FINGERPRINT: &str = "coalesce(pg_catalog.md5(pg_catalog.string_agg(pg_catalog.concat_ws('|', i.source_column, \
    i.after_number, i.history_column, i.value), ',' ORDER BY i.source_column, i.after_number)), '')";

/// Rows in which the value of a column stands elsewhere than now (`waltrail.inherited`, migration V9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inherited {
    pub source_column: String,
    /// They come past this row.
    pub after_number: i64,
    /// The last of them; [`i64::MAX`]: more may come.
    pub until_number: i64,
    /// The history column that holds the value; without one, it is `value` in each of these rows.
    pub history_column: Option<String>,
    /// As the source's text.
    pub value: Option<String>,
    /// Of all of them that the history has: see [`FINGERPRINT`].
    pub fingerprint: String,
}

/// What rows from before a schema change have elsewhere, by history; nothing where the control schema is older.
pub(crate) async fn read(
    target: &Client,
) -> std::result::Result<HashMap<String, Vec<Inherited>>, Error> {
    let known = "SELECT pg_catalog.to_regclass('waltrail.inherited') IS NOT NULL";
    if !target.query_one(known, &[]).await?.get::<_, bool>(0) {
        return Ok(HashMap::new());
    }
    let all = format!(
        "SELECT i.history, i.source_column, i.after_number, i.until_number, i.history_column, i.value, f.fingerprint \
           FROM waltrail.inherited i \
           JOIN (SELECT i.history, {FINGERPRINT} AS fingerprint FROM waltrail.inherited i GROUP BY i.history) f USING (history) \
          ORDER BY 1, 2, 3"
    );
    let mut found: HashMap<String, Vec<Inherited>> = HashMap::new();
    for row in target.query(&all, &[]).await? {
        found.entry(row.get(0)).or_default().push(Inherited {
            source_column: row.get(1),
            after_number: row.get(2),
            until_number: row.get(3),
            history_column: row.get(4),
            value: row.get(5),
            fingerprint: row.get(6),
        });
    }
    Ok(found)
}

/// The same of one history, for one look at the rows that there are: none of them may come later.
///
/// # Errors
/// The target cannot be asked.
pub(crate) async fn of(target: &Client, history: &TableName) -> Result<Vec<Inherited>> {
    let all = read(target).await;
    let mut all = all.map_err(Side::Target.failed("could not show where values stood before"))?;
    let mut found = all.remove(&history.to_string()).unwrap_or_default();
    for former in &mut found {
        former.until_number = former.until_number.min(i64::MAX - 1);
    }
    Ok(found)
}
