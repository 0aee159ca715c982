//! Where the values of rows from before a schema change stand (migration V9).

use std::collections::HashMap;

use tokio_postgres::{Client, Error};

use crate::fault::Result;
use crate::name::TableName;
use crate::schema::plan::literal;
use crate::server::Side;

/// What stands for one of them (`i`) in what was made from it: however far its rows go by now, where more could come.
const MARK: &str =
    "pg_catalog.md5(ROW(i.source_column, i.after_number, i.history_column, i.value)::text)";
/// The same where none could.
const MARK_CLOSED: &str = "pg_catalog.md5(ROW(i.source_column, i.after_number, i.history_column, i.value, i.until_number)::text)";

/// Whether a history has one of `columns`, a variable, that is not among these marks, as SQL: what was made from them is too old
/// to answer.
pub(crate) fn unknown(history: &TableName, marks: &[String]) -> String {
    let marks: Vec<String> = marks.iter().map(|mark| format!("'{mark}'")).collect();
    let known = format!("ANY (ARRAY[{}]::text[])", marks.join(", "));
    format!(
        "EXISTS (SELECT FROM waltrail.inherited i WHERE i.history = {} AND i.source_column = ANY (columns) AND NOT ({MARK} = {known} OR {MARK_CLOSED} = {known}))",
        literal(&history.to_string())
    )
}

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
    /// Whether that is known.
    pub known: bool,
    /// What stands for it in what is made from it.
    pub mark: String,
}

/// What rows from before a schema change have elsewhere, by history, for functions that are made: they take what is not known for
/// NULL, since looking for each such value would cost too much.
pub(crate) async fn read(
    target: &Client,
) -> std::result::Result<HashMap<String, Vec<Inherited>>, Error> {
    let mut all = all(target).await?;
    for former in all.values_mut().flatten() {
        former.known = true;
    }
    Ok(all)
}

/// Nothing where the control schema is older.
async fn all(target: &Client) -> std::result::Result<HashMap<String, Vec<Inherited>>, Error> {
    let known = "SELECT pg_catalog.to_regclass('waltrail.inherited') IS NOT NULL";
    if !target.query_one(known, &[]).await?.get::<_, bool>(0) {
        return Ok(HashMap::new());
    }
    let all = format!(
        "SELECT i.history, i.source_column, i.after_number, i.until_number, i.history_column, i.value, i.known, \
                CASE i.until_number WHEN {} THEN {MARK} ELSE {MARK_CLOSED} END \
           FROM waltrail.inherited i ORDER BY 1, 2, 3",
        i64::MAX
    );
    let mut found: HashMap<String, Vec<Inherited>> = HashMap::new();
    for row in target.query(&all, &[]).await? {
        found.entry(row.get(0)).or_default().push(Inherited {
            source_column: row.get(1),
            after_number: row.get(2),
            until_number: row.get(3),
            history_column: row.get(4),
            value: row.get(5),
            known: row.get(6),
            mark: row.get(7),
        });
    }
    Ok(found)
}

/// The same for one look at the rows that there are: none of them may come later.
///
/// # Errors
/// The target cannot be asked.
pub(crate) async fn now(target: &Client) -> Result<HashMap<String, Vec<Inherited>>> {
    let all = all(target).await;
    let mut all = all.map_err(Side::Target.failed("could not show where values stood before"))?;
    for former in all.values_mut().flatten() {
        former.until_number = former.until_number.min(i64::MAX - 1);
    }
    Ok(all)
}
