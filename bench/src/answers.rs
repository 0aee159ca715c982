//! What a history answers: the table as it was, one row of it, the versions of a row, the net changes of a short time.
//!
//! Two histories of the same changes, the one that waltrail makes and the one of the README, are asked through the functions
//! that `setup` made beside them. In the same run the same is asked of each history by hand, and of trigger tools in their own
//! way. Each answer is compared with the others.

mod fill;
mod peers;
mod question;
mod report;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use postgres::error::SqlState;
use postgres::{Client, SimpleQueryMessage};
use throwaway::Cluster;

use crate::server::{self, Transport};
use crate::target;
use peers::Peer;
use question::{Asked, Moment, Question};

pub use report::{document, write_csv};

/// The database of everything.
const DATABASE: &str = "answers";
/// Keys that are asked for.
const KEYS: u32 = 25;
/// Seconds of which the net changes are asked for; each has ten changes.
const CHANGED_S: u32 = 100;

/// How long one answer may take.
const SECONDS_MAX: u32 = 300;
/// What is read of one row, and of a whole table.
const VALUES: &str = "id, name, department, salary";
const SUMS: &str =
    "count(*), sum(salary), sum(hashtext(name)), sum(hashtext(department)), sum(id::bigint)";

/// How many changes there were.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Of the history that waltrail makes: one for each change.
    pub rows: u32,
}

impl Size {
    /// Rows that existed.
    fn keys(self) -> u32 {
        self.rows / 10
    }
}

/// What is measured.
pub struct Plan<'a> {
    /// The daemon's program.
    pub program: &'a Path,
    /// How many changes.
    pub size: Size,
    /// Times that each large question is asked.
    pub rounds: u32,
    /// Only of single rows, beside the indexes, and without other tools.
    pub keys_only: bool,
}

/// Where the moments are.
#[derive(Debug)]
struct Moments {
    middle: Place,
    end: Place,
}

/// A moment as a time and as a position past it, as SQL writes them.
#[derive(Debug)]
struct Place {
    time: String,
    position: String,
}

impl Place {
    fn of(client: &mut Client, tx: u32) -> Result<Self> {
        let row = client.query_one(
            &format!(
                "SELECT ({} + ({tx} + 1) * interval '1 s')::text, ({} + ({tx} + 1)::bigint * 1000 + 1)::text",
                fill::BEGIN,
                fill::POINT
            ),
            &[],
        )?;
        Ok(Self {
            time: format!("'{}'::timestamptz", row.get::<_, String>(0)),
            position: format!("'{}'::pg_lsn", row.get::<_, String>(1)),
        })
    }
}

impl Moments {
    fn of(client: &mut Client, size: Size) -> Result<Self> {
        let transactions = (size.rows - size.keys()) / 10;
        Ok(Self {
            middle: Place::of(client, transactions / 2)?,
            end: Place::of(client, transactions)?,
        })
    }

    fn of_question(&self, question: Question) -> &Place {
        match question.moment() {
            Some(Moment::End) => &self.end,
            _ => &self.middle,
        }
    }
}

/// One question to one of them.
struct Measured {
    question: Question,
    asked: Asked,
    is_indexed: bool,
    /// Medians.
    ms: f64,
    times: usize,
}

/// All that was measured.
pub struct Results {
    measured: Vec<Measured>,
    size: Size,
    /// Why a tool is not there.
    left_out: Vec<String>,
    indexes: Vec<Index>,
}

/// An index of a history that was made between the two parts.
struct Index {
    statement: String,
    seconds: f64,
    megabytes: f64,
}

/// Measures everything.
///
/// # Errors
/// A server or the daemon failed, or an answer is another one than the others'.
pub fn all(plan: &Plan<'_>, mut on_step: impl FnMut(&str)) -> Result<(Results, String)> {
    let settings = [("shared_buffers", "2GB"), ("maintenance_work_mem", "512MB")];
    let cluster = server::start_with(false, &settings)?;
    target::create_database(&cluster, DATABASE)?;
    let mut client = server::connect(&cluster, DATABASE)?;
    fill::follow(&mut client, &cluster, DATABASE, plan.program)?;
    on_step(&format!("making two histories of {} rows", plan.size.rows));
    fill::histories(&mut client, plan.size)?;
    let mut results = Results {
        measured: Vec::new(),
        size: plan.size,
        left_out: Vec::new(),
        indexes: Vec::new(),
    };
    let mut there = Vec::new();
    let peers: &[Peer] = if plan.keys_only { &[] } else { &Peer::ALL };
    for &peer in peers {
        if !peer.is_there(&mut client)? {
            let why = format!("{} is not installed for this PostgreSQL", peer.name());
            on_step(&why);
            results.left_out.push(why);
            continue;
        }
        on_step(&format!("filling {}", peer.name()));
        peer.fill(&mut client, plan.size)
            .with_context(|| format!("could not fill {}", peer.name()))?;
        there.push(Asked::Peer(peer));
    }
    let moments = Moments::of(&mut client, plan.size)?;
    // As a session finds it that comes later.
    client = server::connect(&cluster, DATABASE)?;
    client.batch_execute(&format!("SET statement_timeout = '{SECONDS_MAX}s'"))?;
    let mut bench = Bench {
        plan,
        client,
        moments,
        on_step: &mut on_step,
    };
    for asked in Asked::OURS.into_iter().filter(|_| !plan.keys_only) {
        bench.ask_all(asked, false, &mut results.measured)?;
    }
    for statement in bench.advised(&cluster)? {
        results.indexes.push(bench.index(&statement)?);
    }
    for peer in Peer::ALL
        .into_iter()
        .filter(|peer| there.contains(&Asked::Peer(*peer)))
    {
        for statement in peer.indexes() {
            bench.client.batch_execute(statement)?;
        }
    }
    bench.client.batch_execute("ANALYZE")?;
    let limit = format!("SET statement_timeout = '{SECONDS_MAX}s'");
    bench.client.batch_execute(&limit)?;
    for asked in Asked::OURS.into_iter().chain(there) {
        bench.ask_all(asked, true, &mut results.measured)?;
    }
    Ok((results, server::version(&cluster)))
}

struct Bench<'a, 'p> {
    plan: &'a Plan<'p>,
    client: Client,
    moments: Moments,
    on_step: &'a mut dyn FnMut(&str),
}

impl Bench<'_, '_> {
    fn ask_all(
        &mut self,
        asked: Asked,
        is_indexed: bool,
        measured: &mut Vec<Measured>,
    ) -> Result<()> {
        for question in Question::ALL {
            let queries = self.queries(question, asked);
            if queries.is_empty() || self.plan.keys_only && !question.is_of_a_key() {
                continue;
            }
            let (ms, times) = self.time(question, asked, is_indexed, &queries)?;
            let with = if is_indexed { "with" } else { "without" };
            (self.on_step)(&format!(
                "{with} indexes, {}, {}: {ms:.3} ms",
                asked.name(),
                question.name()
            ));
            measured.push(Measured {
                question,
                asked,
                is_indexed,
                ms,
                times,
            });
        }
        Ok(())
    }

    /// The median of some times, in milliseconds, once everything is warm, and of how many.
    fn time(
        &mut self,
        question: Question,
        asked: Asked,
        is_indexed: bool,
        queries: &[String],
    ) -> Result<(f64, usize)> {
        let is_slow = asked == Asked::Peer(Peer::TableLog) && question != Question::Versions;
        let of_a_key = question.is_of_a_key();
        let (queries, rounds) = match (of_a_key, is_indexed && !is_slow) {
            (true, true) => (queries, self.plan.rounds),
            // Each of them reads the whole history.
            (true, false) => (&queries[..3], 1),
            (false, _) => (queries, if is_slow { 1 } else { self.plan.rounds }),
        };
        let mut times = Vec::new();
        let is_warmed = !is_slow || of_a_key;
        for round in u32::from(!is_warmed)..=rounds {
            for (nth, query) in queries.iter().enumerate() {
                let began = Instant::now();
                let Some(rows) = ask(&mut self.client, query)? else {
                    return Ok((f64::INFINITY, 1));
                };
                if round > 0 {
                    times.push(began.elapsed().as_secs_f64() * 1_000.0);
                }
                let rows = self.restored(question, asked)?.unwrap_or(rows);
                if round == 1 {
                    self.compare(question, asked, nth, &rows)?;
                }
            }
        }
        let ms = crate::table::median(times.iter().copied());
        Ok((ms, times.len()))
    }

    /// What table_log's answer is: a table.
    fn restored(&mut self, question: Question, asked: Asked) -> Result<Option<Vec<String>>> {
        if asked != Asked::Peer(Peer::TableLog) || question == Question::Versions {
            return Ok(None);
        }
        let values = if question.is_whole() { SUMS } else { VALUES };
        let rows = ask(&mut self.client, &format!("SELECT {values} FROM restored"))?;
        let rows = rows.context("the restored table is not read in time")?;
        self.client.batch_execute("DROP TABLE restored")?;
        Ok(Some(rows))
    }

    /// Compares an answer with that of the README's history by hand.
    fn compare(
        &mut self,
        question: Question,
        asked: Asked,
        nth: usize,
        rows: &[String],
    ) -> Result<()> {
        match asked {
            // The simple query does not know of changes of the key that are one row.
            Asked::MadeByHand | Asked::PlainByHand => return Ok(()),
            _ if question == Question::Changes => {
                let expected = 10 * CHANGED_S as usize;
                ensure!(
                    rows.len() == expected,
                    "{} says {} net changes instead of {expected}",
                    asked.name(),
                    rows.len()
                );
                return Ok(());
            }
            _ => {}
        }
        let by_hand = self.queries(question.by_time(), Asked::PlainByHand);
        let query = by_hand.get(nth).context("nothing to compare with")?;
        let expected = ask(&mut self.client, query)?.context("nothing by hand in time")?;
        ensure!(
            rows == expected,
            "{}, {}: {rows:.200?} instead of {expected:.200?}",
            asked.name(),
            question.name()
        );
        Ok(())
    }

    /// The SQL of a question: one query, or one for each of some keys. Empty: it cannot be asked.
    fn queries(&self, question: Question, asked: Asked) -> Vec<String> {
        let keys = self.plan.size.keys();
        let key = |nth: u32| 1 + nth * (keys / (KEYS + 1));
        if question.is_of_a_key() {
            let queries = (1..=KEYS).map(|nth| self.query(question, asked, Some(key(nth))));
            return queries.flatten().collect();
        }
        self.query(question, asked, None).into_iter().collect()
    }

    fn query(&self, question: Question, asked: Asked, key: Option<u32>) -> Option<String> {
        let table = asked.table();
        let place = self.moments.of_question(question);
        let moment = match question.is_by_position() {
            true if asked == Asked::Made => &place.position,
            true => return None,
            false => &place.time,
        };
        let condition = key.map_or_else(String::new, |key| format!(" WHERE id = {key}"));
        if question == Question::Changes {
            let changes = format!(
                "SELECT * FROM {table}_changes({moment}, {moment} + interval '{CHANGED_S} s')"
            );
            return matches!(asked, Asked::Made | Asked::Plain).then_some(changes);
        }
        if matches!(question, Question::Versions | Question::AllVersions) {
            return versions(asked, key);
        }
        let source = match asked {
            Asked::Made | Asked::Plain => format!("{table}_as_of({moment}){condition}"),
            Asked::MadeByHand | Asked::PlainByHand => {
                by_hand(table, &own_time(asked, moment), &condition)
            }
            Asked::Peer(Peer::Periods) => format!("people__as_of({moment}){condition}"),
            Asked::Peer(Peer::TableLog) => {
                let key = key.map_or_else(|| "NULL".to_owned(), |key| format!("'{key}'"));
                return Some(format!(
                    "SELECT table_log_restore_table('roster', 'id', 'roster_log', 'trigger_id', 'restored', {moment}, {key}, 0)"
                ));
            }
        };
        let values = if key.is_some() { VALUES } else { SUMS };
        Some(format!("SELECT {values} FROM {source}"))
    }

    /// The statements that `waltrail check` advises.
    fn advised(&self, cluster: &Cluster) -> Result<Vec<String>> {
        let dsn = Transport::Unix.dsn(cluster, DATABASE);
        let output = Command::new(self.plan.program)
            .args(["--source", &dsn, "--target", &dsn])
            .args([
                "--table",
                "public.employees",
                "--table",
                "public.staff",
                "check",
            ])
            .output()
            .context("could not run waltrail check")?;
        let printed = String::from_utf8_lossy(&output.stdout);
        let lines = printed.lines().map(str::trim);
        let found: Vec<String> = lines
            .filter(|line| line.starts_with("CREATE INDEX"))
            .map(str::to_owned)
            .collect();
        ensure!(
            found.len() == 5,
            "waltrail check advises other indexes:\n{printed}"
        );
        Ok(found)
    }

    fn index(&mut self, statement: &str) -> Result<Index> {
        self.client.batch_execute("SET statement_timeout = 0")?;
        let began = Instant::now();
        self.client.batch_execute(statement)?;
        let seconds = began.elapsed().as_secs_f64();
        let newest = "SELECT pg_relation_size(max(indexrelid::oid::bigint)::oid::regclass)::float8 / 1000000 FROM pg_index";
        Ok(Index {
            statement: statement.to_owned(),
            seconds,
            megabytes: self.client.query_one(newest, &[])?.get(0),
        })
    }
}

/// A moment as the history's own column has it.
fn own_time(asked: Asked, moment: &str) -> String {
    match asked {
        Asked::PlainByHand => format!("({moment} AT TIME ZONE 'UTC')"),
        _ => moment.to_owned(),
    }
}

fn by_hand(table: &str, moment: &str, condition: &str) -> String {
    let and = condition.replace(" WHERE", " AND");
    format!(
        "(SELECT DISTINCT ON (id) id, name, department, salary, change_type FROM {table}_cdc
           WHERE change_timestamp <= {moment}{and} ORDER BY id, cdc_id DESC) AS h WHERE change_type <> 'DELETE'"
    )
}

/// The values of each version of a row, in order; or the number of all versions.
fn versions(asked: Asked, key: Option<u32>) -> Option<String> {
    let table = asked.table();
    let (source, order, whose) = match asked {
        Asked::Made | Asked::Plain => (format!("{table}_versions"), "valid_from", "true"),
        Asked::MadeByHand | Asked::PlainByHand => {
            (format!("{table}_cdc"), "cdc_id", "change_type <> 'DELETE'")
        }
        Asked::Peer(Peer::Periods) => {
            (format!("{table}_with_history"), "system_time_start", "true")
        }
        Asked::Peer(Peer::TableLog) => (
            format!("{table}_log"),
            "trigger_id",
            "trigger_tuple = 'new'",
        ),
    };
    Some(match key {
        Some(key) => format!(
            "SELECT id, name, department, salary FROM {source} WHERE id = {key} AND {whose} ORDER BY {order}"
        ),
        // With each version's end, which the others have as a column.
        None if matches!(asked, Asked::MadeByHand | Asked::PlainByHand) => format!(
            "SELECT count(*) FROM (SELECT *, lead(change_timestamp) OVER (PARTITION BY id ORDER BY cdc_id) AS valid_to
               FROM {source}) AS v WHERE {whose} AND (valid_to IS NULL OR valid_to > change_timestamp)"
        ),
        None if matches!(asked, Asked::Made | Asked::Plain) => {
            format!("SELECT count(*) FROM {source}")
        }
        None => return None,
    })
}

/// The rows of a query in one message and back, as text; none where it takes longer than [`SECONDS_MAX`].
fn ask(client: &mut Client, query: &str) -> Result<Option<Vec<String>>> {
    let messages = match client.simple_query(query) {
        Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => return Ok(None),
        answered => answered.with_context(|| format!("could not ask: {query}"))?,
    };
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let text = |row: &postgres::SimpleQueryRow| {
        let cells: Vec<&str> = (0..row.len()).map(|n| row.get(n).unwrap_or("")).collect();
        cells.join("|")
    };
    Ok(Some(rows.map(text).collect()))
}
