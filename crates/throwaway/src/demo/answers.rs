//! What the history answers, shown: the table as it was before the last mistake, the life of a row, the way back, and the proof.

use tokio_postgres::Client;

use super::{Stage, refused};
use crate::error::{Error, Result};

/// Just before the last time that rows went away.
const MOMENT: &str = "SELECT to_char(max(change_timestamp) - interval '1 us', 'YYYY-MM-DD HH24:MI:SS.US') || '+00' \
    FROM public.employees_cdc WHERE change_type IN ('DELETE', 'TRUNCATE')";

/// Lines of a script that are shown.
const LINES_MAX: usize = 24;

impl Stage<'_> {
    /// Asks the history, puts back what was lost, and compares both.
    pub(super) async fn answers(&mut self, reader: &Client) -> Result<()> {
        let Some(moment) = one(reader, MOMENT).await? else {
            return Ok(());
        };
        self.say("the table as it was before the last rows went away")
            .await;
        let as_of = format!("SELECT * FROM employees_as_of('{moment}') ORDER BY id");
        self.prompt(&as_of).await;
        let was = rows(reader, &as_of).await?;
        self.print(was.clone()).await;

        let edgar = format!(
            "SELECT id::text FROM employees_as_of('{moment}') ORDER BY name <> 'Edgar', id LIMIT 1"
        );
        if let Some(id) = one(reader, &edgar).await? {
            self.say("the life of a row").await;
            self.command(&["log", "employees", "--key", &id]).await?;
        }

        self.say("the way back: a script, which is read and then run")
            .await;
        let script = self.command(&["undo", "--since", &moment]).await?;
        reader.batch_execute(&script).await.map_err(refused)?;
        let now = "SELECT * FROM employees ORDER BY id";
        self.prompt(now).await;
        let is = rows(reader, now).await?;
        self.print(is.clone()).await;
        if is != was {
            return Err(Error::defect("the table is not what it was"));
        }

        self.say("the proof: the history replayed is the table")
            .await;
        self.command(&["verify"]).await.map(drop)
    }

    async fn say(&self, text: &str) {
        self.print(format!("\n{}", self.view.note(text))).await;
    }

    async fn prompt(&self, sql: &str) {
        self.print(format!("demo=> {sql};\n")).await;
    }

    /// Runs waltrail and shows what it prints, which is returned.
    async fn command(&self, arguments: &[&str]) -> Result<String> {
        let line: Vec<String> = arguments
            .iter()
            .map(|argument| match argument.contains(' ') {
                true => format!("'{argument}'"),
                false => (*argument).to_owned(),
            })
            .collect();
        self.print(format!("$ waltrail {}\n", line.join(" "))).await;
        let output = self.launcher.command(arguments).await?;
        // Settings are no news.
        let lines = || output.lines().filter(|line| !line.starts_with("SET "));
        let shown: Vec<&str> = lines().take(LINES_MAX).collect();
        let more = lines().count().saturating_sub(LINES_MAX);
        let mut shown = shown.join("\n") + "\n";
        if more > 0 {
            shown.push_str(&format!("... ({more} more lines)\n"));
        }
        self.print(shown).await;
        Ok(output)
    }
}

async fn one(reader: &Client, query: &str) -> Result<Option<String>> {
    let row = reader.query_one(query, &[]).await;
    row.and_then(|row| row.try_get(0)).map_err(refused)
}

/// Rows of employees, a line each.
async fn rows(reader: &Client, query: &str) -> Result<String> {
    let query = format!(
        "SELECT e.id::text, e.name::text, e.department::text, e.salary::text FROM ({query}) e"
    );
    let mut text = line(["id", "name", "department", "salary"]);
    for row in reader.query(&query, &[]).await.map_err(refused)? {
        let mut values = [const { String::new() }; 4];
        for (at, value) in values.iter_mut().enumerate() {
            let found: Option<String> = row.try_get(at).map_err(refused)?;
            // What a table holds does not command a terminal.
            *value = found.unwrap_or_default().escape_debug().to_string();
        }
        text.push_str(&line(values.each_ref().map(String::as_str)));
    }
    Ok(text)
}

fn line([id, name, department, salary]: [&str; 4]) -> String {
    format!(" {id:>7} | {name:<10} | {department:<12} | {salary:>8}\n")
}
