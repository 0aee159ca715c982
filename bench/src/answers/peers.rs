//! Trigger tools that keep versions of a row: `periods` (system versioning as in the SQL standard) and `table_log`.
//!
//! They are filled with what their triggers would have written, from [`fill::events`]. That it is the same is tried on a small
//! scale: the events are run as statements under the triggers, one a transaction, and the rows are compared with filled ones.

use anyhow::{Result, ensure};
use postgres::Client;

use super::Size;
use super::fill;

/// A tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Periods,
    TableLog,
}

/// Of the small scale.
const TRIED: Size = Size { rows: 1_000 };

impl Peer {
    pub(super) const ALL: [Self; 2] = [Self::Periods, Self::TableLog];

    /// The extension's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Periods => "periods",
            Self::TableLog => "table_log",
        }
    }

    /// The table that it watches.
    pub(super) fn table(self) -> &'static str {
        match self {
            Self::Periods => "people",
            Self::TableLog => "roster",
        }
    }

    /// Whether it is installed here.
    pub(super) fn is_there(self, client: &mut Client) -> Result<bool> {
        let known = "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = $1)";
        Ok(client.query_one(known, &[&self.name()])?.get(0))
    }

    /// Makes its tables and fills them.
    pub(super) fn fill(self, client: &mut Client, size: Size) -> Result<()> {
        let name = self.name();
        client.batch_execute(&format!("CREATE EXTENSION IF NOT EXISTS {name} CASCADE"))?;
        let (tried, filled) = (format!("{name}_tried"), format!("{name}_filled"));
        self.watch(client, &tried)?;
        replay(client, &tried, TRIED)?;
        self.watch(client, &filled)?;
        self.write(client, &filled, TRIED)?;
        let (by_triggers, by_us) = (
            self.versions(client, &tried)?,
            self.versions(client, &filled)?,
        );
        ensure!(
            by_triggers == by_us && !by_us.is_empty(),
            "{name} keeps other rows under its triggers than were filled: {by_triggers:.300} and {by_us:.300}"
        );
        self.watch(client, self.table())?;
        self.write(client, self.table(), size)?;
        let (history, table) = (self.history(self.table()), self.table());
        for table in [history.as_str(), table] {
            client.batch_execute(&format!("VACUUM ANALYZE {table}"))?;
        }
        Ok(())
    }

    /// Where it keeps what was, for a table.
    fn history(self, table: &str) -> String {
        match self {
            Self::Periods => format!("{table}_history"),
            Self::TableLog => format!("{table}_log"),
        }
    }

    fn watch(self, client: &mut Client, table: &str) -> Result<()> {
        client.batch_execute(&format!(
            "CREATE TABLE {table} (id SERIAL PRIMARY KEY, name VARCHAR(100), department VARCHAR(100), salary NUMERIC)"
        ))?;
        let statements = match self {
            Self::Periods => format!(
                "SELECT periods.add_system_time_period('{table}'); SELECT periods.add_system_versioning('{table}')"
            ),
            Self::TableLog => {
                format!("SELECT table_log_init(5, 'public', '{table}', 'public', '{table}_log')")
            }
        };
        Ok(client.batch_execute(&statements)?)
    }

    /// What its triggers would have written.
    fn write(self, client: &mut Client, table: &str, size: Size) -> Result<()> {
        let (events, time) = (fill::events(size), fill::time());
        let versions = format!(
            "SELECT *, {time} AS since, lead({time}) OVER (PARTITION BY k ORDER BY r) AS until FROM ({events}) AS e"
        );
        let statements = match self {
            Self::Periods => format!(
                "SET session_replication_role = replica;
                 INSERT INTO {table} (id, name, department, salary, system_time_start, system_time_end)
                 SELECT id, name, department, salary, since, 'infinity' FROM ({versions}) AS v
                  WHERE until IS NULL AND kind <> 'DELETE';
                 INSERT INTO {table}_history (id, name, department, salary, system_time_start, system_time_end)
                 SELECT id, name, department, salary, since, until FROM ({versions}) AS v
                  WHERE until IS NOT NULL AND kind <> 'DELETE' ORDER BY until, g;
                 RESET session_replication_role"
            ),
            Self::TableLog => format!(
                "SET session_replication_role = replica;
                 INSERT INTO {table} (id, name, department, salary)
                 SELECT id, name, department, salary FROM ({versions}) AS v WHERE until IS NULL AND kind <> 'DELETE';
                 INSERT INTO {table}_log (id, name, department, salary, trigger_mode, trigger_tuple, trigger_changed, trigger_user)
                 SELECT w.id, name, w.department, w.salary, kind, w.tuple, {time}, 'postgres'
                   FROM ({events}) AS e CROSS JOIN LATERAL (
                        SELECT e.old_id, 'old', 'dept ' || (k + r - 1) % 50, (1000 + (k * 31 + (r - 1) * 7) % 9000)::numeric
                         WHERE kind <> 'INSERT'
                        UNION ALL
                        SELECT e.id, 'new', e.department, e.salary WHERE kind <> 'DELETE') AS w (id, tuple, department, salary);
                 RESET session_replication_role"
            ),
        };
        // In pieces: each statement is a transaction, as the triggers' were.
        for statement in statements.split(";\n") {
            client.batch_execute(statement)?;
        }
        Ok(())
    }

    /// All that it keeps, without the times, which are other ones under the triggers.
    fn versions(self, client: &mut Client, table: &str) -> Result<String> {
        let query = match self {
            Self::Periods => format!(
                "SELECT string_agg(concat_ws(' ', id, name, department, salary, nth, last), ',' ORDER BY id, nth) FROM (
                     SELECT *, row_number() OVER (PARTITION BY id ORDER BY system_time_start) AS nth,
                            system_time_end = 'infinity' AS last FROM {table}_with_history) AS v"
            ),
            Self::TableLog => format!(
                "SELECT string_agg(concat_ws(' ', id, name, department, salary, trigger_mode, trigger_tuple, trigger_id), ','
                        ORDER BY trigger_id) FROM {table}_log"
            ),
        };
        let rows: Option<String> = client.query_one(&query, &[])?.get(0);
        Ok(rows.unwrap_or_default())
    }

    /// The statements that make the indexes that its questions want.
    pub(super) fn indexes(self) -> &'static [&'static str] {
        match self {
            Self::Periods => &["CREATE INDEX ON people_history (id, system_time_start)"],
            Self::TableLog => &["CREATE INDEX ON roster_log (id, trigger_id)"],
        }
    }
}

/// Runs the events as an application would, each in a transaction.
fn replay(client: &mut Client, table: &str, size: Size) -> Result<()> {
    client.batch_execute(&format!(
        "CREATE PROCEDURE {table}_replay() LANGUAGE plpgsql AS $$
         DECLARE e record;
         BEGIN
             FOR e IN {} ORDER BY g LOOP
                 IF e.kind = 'INSERT' THEN
                     INSERT INTO {table} (id, name, department, salary) VALUES (e.id, e.name, e.department, e.salary);
                 ELSIF e.kind = 'DELETE' THEN
                     DELETE FROM {table} WHERE id = e.id;
                 ELSE
                     UPDATE {table} SET id = e.id, department = e.department, salary = e.salary WHERE id = e.old_id;
                 END IF;
                 COMMIT;
             END LOOP;
         END $$",
        fill::events(size)
    ))?;
    Ok(client.batch_execute(&format!("CALL {table}_replay()"))?)
}
