//! What the history must be, known without logical decoding: a trigger in the source writes each change
//! into `oracle.change`, in the transaction that makes it.
//!
//! The trigger knows no commit; its time comes from `track_commit_timestamp`, and the order of commits
//! from what each transaction saw (see [`super::compare`]).
//!
//! What it cannot know: the order of changes *within* one statement when other triggers change captured
//! tables too (foreign keys with CASCADE), since each trigger runs its changes to the end.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::compare::{
    Difference, ExpectedRow, ExpectedTx, HistoryRow, Row, Snapshot, Summary, compare,
};

/// Sessions that read values as text agree on how values are written.
const PINNED: &str = "SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO, YMD'; \
    SET LOCAL intervalstyle = 'postgres'; SET LOCAL extra_float_digits = 1; \
    SET LOCAL bytea_output = 'hex';";

const OBJECTS: &str = "
    CREATE SCHEMA oracle;
    CREATE TABLE oracle.change (
        seq bigserial PRIMARY KEY, xid bigint NOT NULL, saw pg_snapshot NOT NULL,
        op text NOT NULL, tbl text NOT NULL, old jsonb, new jsonb);
    CREATE FUNCTION oracle.record() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = pg_catalog SET timezone = 'UTC' SET datestyle = 'ISO, YMD'
        SET intervalstyle = 'postgres' SET extra_float_digits = 1 SET bytea_output = 'hex'
    AS $$ BEGIN
        INSERT INTO oracle.change (xid, saw, op, tbl, old, new) VALUES (
            pg_current_xact_id()::text::bigint, pg_current_snapshot(), TG_OP, TG_ARGV[0],
            to_jsonb(OLD), to_jsonb(NEW));
        RETURN NULL;
    END $$;";

/// The oracle of one source database.
#[derive(Clone, Copy, Debug)]
pub struct Oracle;

impl Oracle {
    /// Records every change of these tables from now on. They must be all the tables that are captured,
    /// or `tx_seq`, which counts over all of them, is not what the history says.
    pub async fn install(source: &Client, tables: &[&str]) -> Self {
        source.batch_execute(OBJECTS).await.unwrap();
        for table in tables {
            Self::add(source, table).await;
        }
        Self
    }

    /// Records one more table.
    pub async fn add(source: &Client, table: &str) {
        // Triggers run in the order of their names; foreign keys begin with "RI_". ALWAYS: also for
        // sessions that replay somebody's replication.
        let quoted = table.replace('\'', "''");
        let sql = format!(
            "CREATE TRIGGER \"00_oracle_row\" AFTER INSERT OR UPDATE OR DELETE ON {table}
                 FOR EACH ROW EXECUTE FUNCTION oracle.record('{quoted}');
             CREATE TRIGGER \"00_oracle_truncate\" AFTER TRUNCATE ON {table}
                 FOR EACH STATEMENT EXECUTE FUNCTION oracle.record('{quoted}');
             ALTER TABLE {table} ENABLE ALWAYS TRIGGER \"00_oracle_row\";
             ALTER TABLE {table} ENABLE ALWAYS TRIGGER \"00_oracle_truncate\";"
        );
        source.batch_execute(&sql).await.unwrap();
    }

    /// Forgets all changes so far, for histories that begin later.
    pub async fn forget(&self, source: &Client) {
        source
            .batch_execute("TRUNCATE oracle.change")
            .await
            .unwrap();
    }

    /// What `history`, in the database of `target`, must hold of `table`, named as it was installed.
    pub async fn expected(
        &self,
        source: &Client,
        table: &str,
        target: &Client,
        history: &str,
    ) -> Vec<ExpectedTx> {
        let columns = TableColumns::read(source, table).await;
        self.expected_of(source, table, &columns, target, history)
            .await
    }

    async fn expected_of(
        &self,
        source: &Client,
        table: &str,
        table_columns: &TableColumns,
        target: &Client,
        history: &str,
    ) -> Vec<ExpectedTx> {
        let published: i64 = source
            .query_one(
                "SELECT count(*) FROM pg_publication_tables WHERE schemaname = 'oracle'",
                &[],
            )
            .await
            .unwrap()
            .get(0);
        assert_eq!(
            published, 0,
            "the oracle is published: it would record itself"
        );
        let history_columns = columns_of(target, history).await;
        // Numbered over all tables; sequences leave gaps where savepoints were rolled back.
        let rows = source
            .query(
                "SELECT xid, tbl, op, row_number() OVER (PARTITION BY xid ORDER BY seq),
                     saw::text,
                     (SELECT jsonb_object_agg(key, value) FROM jsonb_each_text(old))::text,
                     (SELECT jsonb_object_agg(key, value) FROM jsonb_each_text(new))::text,
                     (extract(epoch FROM pg_xact_commit_timestamp(
                         (xid % 4294967296)::text::xid)) * 1000000)::bigint
                 FROM oracle.change ORDER BY xid, seq",
                &[],
            )
            .await
            .unwrap();
        let mut transactions: Vec<ExpectedTx> = Vec::new();
        for row in rows {
            let xid = row.get::<_, i64>(0).cast_unsigned();
            if transactions.last().is_none_or(|tx| tx.xid != xid) {
                transactions.push(ExpectedTx {
                    xid,
                    commit_time: row.get(7),
                    ..ExpectedTx::default()
                });
            }
            let tx = transactions.last_mut().unwrap();
            tx.saw = Snapshot::parse(row.get(4));
            if row.get::<_, &str>(1) == table {
                let change = Change {
                    op: row.get(2),
                    tx_seq: row.get(3),
                    old: row.get::<_, Option<&str>>(5).map(parse),
                    new: row.get::<_, Option<&str>>(6).map(parse),
                };
                tx.rows.extend(change.rows(table_columns, &history_columns));
            }
        }
        transactions
    }

    /// Compares a history with what it must be, at this moment.
    pub async fn compare(
        &self,
        source: &Client,
        table: &str,
        target: &Client,
        history: &str,
    ) -> Result<Summary, Difference> {
        let expected = self.expected(source, table, target, history).await;
        let columns = TableColumns::read(source, table).await.all;
        compare(&expected, &read_history(target, history, &columns).await)
    }

    /// Compares a history with the truth, at this moment, whatever the replica identities log: every value is what it was, or
    /// it is NULL and named.
    pub async fn compare_with_truth(
        &self,
        source: &Client,
        table: &str,
        target: &Client,
        history: &str,
    ) -> Result<Summary, Difference> {
        let mut columns = TableColumns::read(source, table).await;
        columns.full = true;
        let mut expected = self
            .expected_of(source, table, &columns, target, history)
            .await;
        for row in expected.iter_mut().flat_map(|tx| &mut tx.rows) {
            if row.change_type != "INSERT" {
                row.or_null.clear();
                row.maybe_unavailable = row.values.keys().cloned().collect();
            }
        }
        compare(
            &expected,
            &read_history(target, history, &columns.all).await,
        )
    }

    /// Waits until the history is what it must be. Call it when the source is at rest.
    ///
    /// # Panics
    /// With the last difference, when `timeout` is over.
    pub async fn assert_becomes(
        &self,
        source: &Client,
        table: &str,
        target: &Client,
        history: &str,
        timeout: Duration,
    ) -> Summary {
        let expected = self.expected(source, table, target, history).await;
        let columns = TableColumns::read(source, table).await.all;
        let wanted: usize = expected.iter().map(|tx| tx.rows.len()).sum();
        let start = Instant::now();
        loop {
            // Counting is cheap; rows are read when there are enough.
            let count: i64 = target
                .query_one(&format!("SELECT count(*) FROM {history}"), &[])
                .await
                .unwrap()
                .get(0);
            let over = start.elapsed() > timeout;
            if over || usize::try_from(count).unwrap() >= wanted {
                let rows = read_history(target, history, &columns).await;
                match compare(&expected, &rows) {
                    Ok(summary) => return summary,
                    // More rows do not make a difference in earlier ones go away.
                    Err(difference) => panic!("after {:?}: {difference}", start.elapsed()),
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Reads a history in the order of `cdc_id`: of its columns the given ones, their `old_` companions, and
/// those of the design.
pub async fn read_history(target: &Client, history: &str, columns: &[String]) -> Vec<HistoryRow> {
    let present = columns_of(target, history).await;
    let if_present = |name: &str, expression: &str| {
        if present.contains(name) {
            expression.to_owned()
        } else {
            "NULL".to_owned()
        }
    };
    let sql = format!(
        "SELECT cdc_id::bigint, change_type::text,
             (extract(epoch FROM change_timestamp) * 1000000)::bigint,
             (SELECT jsonb_object_agg(key, value) FROM jsonb_each_text(to_jsonb(h)))::text,
             ({})::bigint, ({})::bigint, ({})::bigint, ({})::text[]
         FROM {history} h ORDER BY cdc_id",
        if_present("commit_lsn", "commit_lsn - '0/0'::pg_lsn"),
        if_present("tx_seq", "tx_seq"),
        if_present("xid", "xid::text"),
        // NULL and an empty list both say that nothing is missing.
        if_present(
            "unavailable_columns",
            "coalesce(unavailable_columns::text[], '{}')"
        ),
    );
    target
        .batch_execute(&format!("BEGIN READ ONLY; {PINNED}"))
        .await
        .unwrap();
    let rows = target.query(&sql, &[]).await.unwrap();
    target.batch_execute("COMMIT").await.unwrap();
    rows.iter()
        .map(|row| {
            let mut values = parse(row.get(3));
            values.retain(|name, _| {
                let bare = name.strip_prefix("old_").unwrap_or(name);
                columns.contains(name) || columns.iter().any(|column| column == bare)
            });
            HistoryRow {
                cdc_id: row.get(0),
                change_type: row.get(1),
                change_timestamp: row.get(2),
                values,
                commit_lsn: row.get(4),
                tx_seq: row.get(5),
                xid: row.get(6),
                unavailable: row
                    .get::<_, Option<Vec<String>>>(7)
                    .map(|names| names.into_iter().collect()),
            }
        })
        .collect()
}

/// The rows of a table as [`super::compare::fold`] gives them, without key.
pub async fn read_table(source: &Client, table: &str) -> Vec<Row> {
    let sql = format!(
        "SELECT (SELECT jsonb_object_agg(key, value) FROM jsonb_each_text(to_jsonb(t)))::text
         FROM {table} t"
    );
    source
        .batch_execute(&format!("BEGIN READ ONLY; {PINNED}"))
        .await
        .unwrap();
    let rows = source.query(&sql, &[]).await.unwrap();
    source.batch_execute("COMMIT").await.unwrap();
    rows.iter().map(|row| parse(row.get(0))).collect()
}

fn parse(text: &str) -> Row {
    serde_json::from_str(text).unwrap()
}

/// The columns of a table.
pub async fn columns_of(client: &Client, table: &str) -> BTreeSet<String> {
    let rows = client
        .query(
            "SELECT attname::text FROM pg_attribute
             WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped",
            &[&table],
        )
        .await
        .unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// What of a table decides how its changes are written to the WAL.
struct TableColumns {
    all: Vec<String>,
    key: Vec<String>,
    /// REPLICA IDENTITY FULL.
    full: bool,
}

impl TableColumns {
    async fn read(source: &Client, table: &str) -> Self {
        let key = source
            .query(
                "SELECT a.attname::text FROM pg_class c
                 JOIN pg_index i ON i.indrelid = c.oid
                     AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END
                 JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
                 WHERE c.oid = $1::text::regclass ORDER BY a.attnum",
                &[&table],
            )
            .await
            .unwrap();
        let full: bool = source
            .query_one(
                "SELECT relreplident = 'f' FROM pg_class WHERE oid = $1::text::regclass",
                &[&table],
            )
            .await
            .unwrap()
            .get(0);
        Self {
            all: columns_of(source, table).await.into_iter().collect(),
            key: key.iter().map(|row| row.get(0)).collect(),
            full,
        }
    }
}

/// One change as the trigger saw it.
struct Change<'a> {
    op: &'a str,
    tx_seq: i64,
    old: Option<Row>,
    new: Option<Row>,
}

impl Change<'_> {
    /// The rows that the design asks for in a history with these columns.
    fn rows(&self, table: &TableColumns, history: &BTreeSet<String>) -> Vec<ExpectedRow> {
        match (self.op, &self.old, &self.new) {
            ("TRUNCATE", None, None) => vec![self.row("TRUNCATE", table, history, |_| None)],
            ("INSERT", None, Some(new)) => vec![self.after("INSERT", None, new, table, history)],
            ("DELETE", Some(old), None) => vec![self.before(old, table, history)],
            ("UPDATE", Some(old), Some(new)) => {
                let changed = table.key.iter().any(|column| old[column] != new[column]);
                let keeps_old = table
                    .key
                    .iter()
                    .all(|column| history.contains(&format!("old_{column}")));
                if changed && !keeps_old {
                    let mut second = self.after("INSERT", None, new, table, history);
                    second.second_half = true;
                    self.mark_large(&mut second, old, new, table);
                    vec![self.before(old, table, history), second]
                } else {
                    let mut row = self.after("UPDATE", Some(old), new, table, history);
                    self.mark_large(&mut row, old, new, table);
                    vec![row]
                }
            }
            (op, ..) => panic!("the oracle holds a change that cannot be: {op}"),
        }
    }

    fn row(
        &self,
        change_type: &str,
        table: &TableColumns,
        history: &BTreeSet<String>,
        value: impl Fn(&String) -> Option<String>,
    ) -> ExpectedRow {
        let mut row = ExpectedRow {
            change_type: change_type.to_owned(),
            tx_seq: self.tx_seq,
            ..ExpectedRow::default()
        };
        for column in table.all.iter().filter(|&column| history.contains(column)) {
            row.values.insert(column.clone(), value(column));
        }
        for old in old_columns(table, history) {
            row.values.insert(old.1, None);
        }
        row
    }

    /// The values after the change; of the values before it, what the WAL has.
    fn after(
        &self,
        change_type: &str,
        old: Option<&Row>,
        new: &Row,
        table: &TableColumns,
        history: &BTreeSet<String>,
    ) -> ExpectedRow {
        let mut row = self.row(change_type, table, history, |column| new[column].clone());
        if let Some(old) = old {
            for (column, name) in old_columns(table, history) {
                if table.full || table.key.contains(&column) {
                    row.values.insert(name, old[&column].clone());
                } else {
                    row.or_null.insert(name);
                }
            }
        }
        row
    }

    /// The values before a DELETE, as far as the replica identity has them.
    fn before(&self, old: &Row, table: &TableColumns, history: &BTreeSet<String>) -> ExpectedRow {
        let has = |column: &String| table.full || table.key.contains(column);
        let mut row = self.row("DELETE", table, history, |column| {
            has(column).then(|| old[column].clone()).flatten()
        });
        for column in table.all.iter().filter(|&column| !has(column)) {
            if history.contains(column) {
                row.unavailable.insert(column.clone());
            } else {
                row.or_null.insert(column.clone());
            }
        }
        // The design is silent on `old_` columns of a DELETE: the value before it, or nothing.
        for (column, name) in old_columns(table, history) {
            let value = has(&column).then(|| old[&column].clone()).flatten();
            row.values.insert(name.clone(), value);
            row.or_null.insert(name);
        }
        row
    }

    /// Unchanged values that may be stored out of line: the WAL carries them only in a full old row.
    fn mark_large(&self, row: &mut ExpectedRow, old: &Row, new: &Row, table: &TableColumns) {
        // Rows below about 2 kB keep all values in line, and short values stay there in any row.
        const ROW_MIN: usize = 1_900;
        const VALUE_MIN: usize = 32;
        let length = |value: &Option<String>| value.as_ref().map_or(0, String::len);
        let total: usize = new.values().map(length).sum();
        if table.full || total < ROW_MIN {
            return;
        }
        for column in &table.all {
            if old[column] == new[column] && length(&new[column]) >= VALUE_MIN {
                row.maybe_unavailable.insert(column.clone());
            }
        }
    }
}

/// Columns of the table that the history keeps the old value of, with the name of that.
fn old_columns(table: &TableColumns, history: &BTreeSet<String>) -> Vec<(String, String)> {
    table
        .all
        .iter()
        .map(|column| (column.clone(), format!("old_{column}")))
        .filter(|(_, old)| history.contains(old) && !table.all.contains(old))
        .collect()
}
