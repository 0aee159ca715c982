//! Rows of `employees_cdc`, as the demonstration reads and compares them.
//!
//! All values are text: what is compared is what a person would see.

use tokio_postgres::{Client, Error};

/// `change_timestamp` and commit times as the demonstration writes them, in UTC.
pub(super) const TIME_FORMAT: &str = "YYYY-MM-DD HH24:MI:SS.US";

/// At most so many rows are read at once.
const ROWS_MAX: i64 = 500;

/// What a history row says, without its `cdc_id`, which gives the order and may have gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) change_type: Option<String>,
    pub(super) id: Option<i32>,
    pub(super) name: Option<String>,
    pub(super) department: Option<String>,
    pub(super) salary: Option<String>,
    /// As [`TIME_FORMAT`] has it.
    pub(super) change_timestamp: Option<String>,
}

/// The rows after `last`, in order, each with its `cdc_id`; at most 500.
pub(super) async fn after(client: &Client, last: i32) -> Result<Vec<(i32, Row)>, Error> {
    let query = format!(
        "SELECT cdc_id, change_type, id, name, department, salary::text, \
         to_char(change_timestamp, '{TIME_FORMAT}') \
         FROM public.employees_cdc WHERE cdc_id > $1 ORDER BY cdc_id LIMIT {ROWS_MAX}"
    );
    let rows = client.query(&query, &[&last]).await?;
    rows.iter()
        .map(|row| {
            Ok((
                row.try_get(0)?,
                Row {
                    change_type: row.try_get(1)?,
                    id: row.try_get(2)?,
                    name: row.try_get(3)?,
                    department: row.try_get(4)?,
                    salary: row.try_get(5)?,
                    change_timestamp: row.try_get(6)?,
                },
            ))
        })
        .collect()
}
