//! Does every value of every type arrive as it was, whichever way it takes?
//!
//! ```text
//! samples --+--> rows before the first start ---> snapshot
//!           +--> one transaction ---------------> COPY
//!           +--> a transaction for each row ----> INSERT (as text: COPY)
//!           +--> a backlog ---------------------> catching up
//!           +--> DELETE ------------------------> old tuples
//! ```
//!
//! The truth is the table of samples. It is compared with the history by the text of each value and, where both types have
//! one binary form, by its bytes.

mod compare;
mod pairs;
mod renamed;
mod samples;

use std::collections::BTreeSet;
use std::rc::Rc;

use throwaway::{Builder, Cluster};
use tokio_postgres::Client;

use crate::support::daemon::Daemon;
use crate::support::scene::{HELD_ELSEWHERE, assert_clean, config, streaming};
use crate::support::{BOUND, builder, connect, each, server, texts, value, wait_for_value};
use compare::compare;
use samples::{
    BYTES, EXCEPTIONS, EXTENSION_SAMPLES, EXTENSIONS, Form, LATER_SAMPLES, SAMPLES, Sample,
    USER_SAMPLES, USER_TYPES,
};

/// How values are written where they are compared, and where they are made.
const PINNED: &str = "SET DateStyle = 'ISO, MDY'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC';
    SET extra_float_digits = 3; SET bytea_output = 'hex'; SET lc_monetary = 'C'; SET search_path = ''; SET jit = off";

const WAYS: [&str; 5] = ["snapshot", "COPY", "single rows", "catching up", "DELETE"];

const LACKING: &str = "the target does not have this type";

/// A column of the samples: a type, or an array of it.
struct Column {
    name: String,
    kind: String,
    binary: bool,
    values: Vec<String>,
    nullable: bool,
}

impl Column {
    fn of(n: usize, sample: &Sample) -> [Self; 2] {
        let cast = |value: &str| format!("({value})::{}", sample.kind);
        let cells: Vec<String> = sample.values.iter().map(|value| cast(value)).collect();
        let nullable = sample.kind != "public.needed";
        let (first, last) = (&cells[0], &cells[cells.len() - 1]);
        let null = if nullable { ", NULL" } else { "" };
        let arrays = vec![
            format!("ARRAY[{first}{null}, {last}]::{}[]", sample.kind),
            format!("'{{}}'::{}[]", sample.kind),
            format!("array_fill({last}, ARRAY[2, 1], ARRAY[-1, 3])"),
        ];
        let column = |letter, kind, binary, values, nullable| Self {
            name: format!("{letter}{n}"),
            kind,
            binary,
            values,
            nullable,
        };
        let (kind, form) = (sample.kind, sample.form);
        [
            column("v", kind.to_owned(), form != Form::Text, cells, nullable),
            column("a", format!("{kind}[]"), form == Form::Binary, arrays, true),
        ]
    }

    /// The expression of a row, counted from 0.
    fn cell(&self, row: usize, encoding: &str) -> &str {
        let cell = match self.values.get(row) {
            Some(cell) => cell,
            None if self.nullable => "NULL",
            None => &self.values[0],
        };
        let is_latin = cell.chars().all(|letter| letter <= '\u{ff}');
        // A server without an encoding knows no letter by its number.
        let is_escaped = cell.contains(r"\u00");
        match encoding {
            "LATIN1" if !is_latin => "NULL",
            "SQL_ASCII" if is_escaped => "NULL",
            _ => cell,
        }
    }
}

/// Which columns there are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    /// Only types with a binary form.
    Binary,
    /// All of them: the session speaks text.
    Text,
}

/// Source and target, each with its database.
struct Ends {
    source: Client,
    target: Client,
    server: Rc<Cluster>,
    /// None: the history is in the source database.
    other: Option<Rc<Cluster>>,
    source_dsn: String,
    target_dsn: String,
    encoding: &'static str,
    /// The target has the types of the source.
    alike: bool,
}

/// The encodings of source and target.
type Encodings = [&'static str; 2];
const UTF8: Encodings = ["UTF8", "UTF8"];

fn logging(builder: Builder) -> Builder {
    builder
        .setting("log_replication_commands", "on")
        .setting("log_statement", "mod")
        .setting("log_parameter_max_length", "0")
}

impl Ends {
    async fn one(builder: Builder) -> Self {
        let server = Rc::new(logging(builder).start().unwrap());
        let dsn = server.dsn_socket("postgres");
        Self::made(server, None, [dsn.clone(), dsn], UTF8, true).await
    }

    async fn two(source: Builder, target: Builder, encodings: Encodings, alike: bool) -> Self {
        let servers = [source, target].map(|builder| Rc::new(logging(builder).start().unwrap()));
        Self::between(&servers, "samples", encodings, alike).await
    }

    /// A database of this name on each of the two.
    async fn between(
        servers: &[Rc<Cluster>; 2],
        name: &str,
        encodings: Encodings,
        alike: bool,
    ) -> Self {
        for (server, encoding) in servers.iter().zip(encodings) {
            let client = connect(&server.dsn_socket("postgres")).await;
            let create = format!(
                "CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
            );
            each(&client, &[&create]).await;
        }
        let dsns = servers.each_ref().map(|server| server.dsn_socket(name));
        let [server, other] = servers.clone();
        Self::made(server, Some(other), dsns, encodings, alike).await
    }

    async fn made(
        server: Rc<Cluster>,
        other: Option<Rc<Cluster>>,
        [source_dsn, target_dsn]: [String; 2],
        encodings: Encodings,
        alike: bool,
    ) -> Self {
        let ends = Self {
            source: connect(&source_dsn).await,
            target: connect(&target_dsn).await,
            server,
            other,
            source_dsn,
            target_dsn,
            encoding: encodings[0],
            alike,
        };
        for client in [&ends.source, &ends.target] {
            each(client, &[PINNED]).await;
            if encodings[0] == "SQL_ASCII" {
                each(client, &["SET client_encoding = 'SQL_ASCII'"]).await;
            }
        }
        let has_both = ends.other.is_some() && alike;
        ends.prepare(&ends.source).await;
        if has_both {
            ends.prepare(&ends.target).await;
            // What a regclass names.
            each(&ends.target, &["CREATE TABLE public.samples ()"]).await;
        }
        ends
    }

    /// User types and extensions.
    async fn prepare(&self, client: &Client) {
        each(
            client,
            &[
                "SET search_path = public",
                USER_TYPES,
                "SET search_path = ''",
            ],
        )
        .await;
        for extension in self.extensions() {
            each(
                client,
                &[&format!("CREATE EXTENSION {extension} SCHEMA public")],
            )
            .await;
        }
    }

    fn servers(&self) -> impl Iterator<Item = &Cluster> {
        let other = self.other.as_deref();
        std::iter::once(&*self.server).chain(other)
    }

    /// Those that both servers have.
    fn extensions(&self) -> Vec<&'static str> {
        let has = |extension: &str| {
            self.servers().all(|server| {
                let bin = server.binaries().folder();
                let file = format!("extension/{extension}.control");
                let near = bin.join("../share/postgresql").join(&file);
                let debian = format!("/usr/share/postgresql/{}", server.binaries().major());
                near.is_file() || std::path::Path::new(&debian).join(&file).is_file()
            })
        };
        let (there, missing): (Vec<_>, Vec<_>) = EXTENSIONS.into_iter().partition(|name| has(name));
        if !missing.is_empty() {
            println!("not tried, the servers do not have them: {missing:?}");
        }
        there
    }

    /// The samples that both ends can hold.
    async fn columns(&self, format: Format) -> Vec<Column> {
        let majors = self.servers().map(|server| server.binaries().major());
        let majors: Vec<u32> = majors.collect();
        let oldest = majors.iter().min().unwrap();
        // 17 gave the interval another binary form.
        let intervals_differ = majors.iter().any(|major| (*major >= 17) != (*oldest >= 17));
        let mut samples: Vec<&Sample> = Vec::new();
        if self.alike {
            samples.extend(SAMPLES);
            let later = LATER_SAMPLES.iter().filter(|(since, _)| since <= oldest);
            samples.extend(later.map(|(_, sample)| sample));
        }
        samples.extend((self.encoding == "SQL_ASCII").then_some(&BYTES));
        samples.extend(USER_SAMPLES);
        let extensions = self.extensions();
        let theirs = EXTENSION_SAMPLES.iter();
        let theirs = theirs.filter(|(extension, _)| extensions.contains(extension));
        samples.extend(theirs.map(|(_, sample)| sample));
        let mut without_xml = false;
        for client in [&self.source, &self.target] {
            without_xml |= client.batch_execute("SELECT '<a/>'::xml").await.is_err();
        }
        if without_xml {
            println!("not tried, a server is built without it: xml");
            samples.retain(|sample| sample.kind != "xml");
        }
        let columns = samples.iter().enumerate();
        let columns = columns.flat_map(|(n, sample)| Column::of(n, sample));
        let is_wanted = |column: &Column| {
            format == Format::Text
                || column.binary && !(intervals_differ && column.kind.starts_with("interval"))
        };
        columns.filter(is_wanted).collect()
    }

    /// Makes the table of samples and the table that is followed; the number of rows.
    async fn fill(&self, columns: &[Column]) -> usize {
        let list: Vec<String> = columns
            .iter()
            .map(|column| format!(", {} {}", column.name, column.kind))
            .collect();
        let list = list.concat();
        each(
            &self.source,
            &[
                &format!("CREATE TABLE public.samples (id integer PRIMARY KEY{list})"),
                &format!("CREATE TABLE public.v (id integer PRIMARY KEY{list})"),
                "ALTER TABLE public.v REPLICA IDENTITY FULL",
            ],
        )
        .await;
        let rows = 1 + columns
            .iter()
            .map(|column| column.values.len())
            .max()
            .unwrap();
        for row in 0..rows {
            let cells: Vec<String> = columns
                .iter()
                .map(|column| format!(", {}", column.cell(row, self.encoding)))
                .collect();
            let insert = format!(
                "INSERT INTO public.samples VALUES ({}{})",
                row + 1,
                cells.concat()
            );
            each(&self.source, &[&insert]).await;
        }
        rows
    }

    /// Puts rows of the samples into the table, numbered for their way.
    async fn insert(&self, columns: &[Column], way: usize, filter: &str) {
        let list: Vec<String> = columns
            .iter()
            .map(|column| format!(", {}", column.name))
            .collect();
        let list = list.concat();
        let insert = format!(
            "INSERT INTO public.v (id{list}) SELECT id + {}{list} FROM public.samples {filter}",
            way * 100
        );
        each(&self.source, &[&insert]).await;
    }

    /// How many statements of this kind have written the history.
    fn written(&self, statement: &str) -> usize {
        let log = self.servers().last().unwrap().log_text();
        let lines = log.lines();
        lines
            .filter(|line| line.contains(statement) && line.contains("v_cdc"))
            .count()
    }

    async fn recorded(&self, rows: usize) {
        let count = "SELECT count(*) FROM public.v_cdc";
        wait_for_value(&self.target, count, rows as i64, BOUND).await;
    }
}

/// Follows the samples as text, and in binary between two more databases of the same servers.
async fn follow_both(source: Builder, target: Builder, encodings: Encodings) {
    let servers = [source, target].map(|builder| Rc::new(logging(builder).start().unwrap()));
    for (name, format) in [("samples", Format::Text), ("in_binary", Format::Binary)] {
        let ends = Ends::between(&servers, name, encodings, true).await;
        follow(&ends, format).await;
    }
}

/// Sends the samples all ways, and compares.
async fn follow(ends: &Ends, format: Format) {
    const COPY: &str = " FROM STDIN (FORMAT ";
    const INSERT: &str = "OVERRIDING SYSTEM VALUE SELECT $1";
    let columns = ends.columns(format).await;
    let rows = ends.fill(&columns).await;
    let target = ends.other.is_some().then_some(ends.target_dsn.as_str());
    let config = config(&ends.source_dsn, target, &["public.v"], "").replace(
        "mode = \"never\"",
        "mode = \"initial\"\nchange_type = \"SNAPSHOT\"",
    );
    let slot = match format {
        Format::Binary => "[source]\nslot = 'in_binary'\n",
        Format::Text => "[source]\n",
    };
    let config = config.replacen("[source]\n", slot, 1);
    ends.insert(&columns, 0, "").await;
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    let joined = "SELECT count(*) FROM waltrail.snapshot WHERE state = 'done'";
    wait_for_value(&ends.target, joined, 1_i64, BOUND).await;
    ends.recorded(rows).await;

    let copies = ends.written(COPY);
    ends.insert(&columns, 1, "").await;
    ends.recorded(2 * rows).await;
    assert_eq!(ends.written(COPY), copies + 1);
    assert_eq!(ends.written(INSERT), 0);

    for row in 1..=rows {
        ends.insert(&columns, 2, &format!("WHERE id = {row}")).await;
        ends.recorded(2 * rows + row).await;
    }
    // As text a single row is a COPY, too; in binary a large one is, whose text is longer still.
    let is_large = "SELECT count(*) FROM public.v WHERE octet_length(v::text) > 64 * 1024";
    let large = value::<i64>(&ends.source, is_large).await as usize;
    let most = match format {
        Format::Binary => large,
        Format::Text => rows,
    };
    let more_copies = ends.written(COPY) - copies - 1;
    assert!(more_copies <= most, "{more_copies} of {most}");
    assert_eq!(ends.written(INSERT), rows - more_copies);
    assert!(format == Format::Binary || more_copies == rows);
    let mut allowed = vec![];
    if !ends.alike {
        allowed.push(LACKING);
    }
    stop(daemon, &allowed).await;

    // The session that catches up may still be ending on the server when the next one begins.
    allowed.extend(HELD_ELSEWHERE);
    ends.insert(&columns, 3, "").await;
    let filler = "SELECT pg_logical_emit_message(false, 'filler', repeat('x', 1000000)) FROM generate_series(1, 20)";
    each(&ends.source, &[filler]).await;
    let mut daemon = Daemon::spawn(&config);
    ends.recorded(4 * rows).await;
    let catching_up = |line: &str| line.contains("\"catching up\"");
    daemon.wait_log(BOUND, catching_up).await;
    each(&ends.source, &["DELETE FROM public.v WHERE id > 300"]).await;
    ends.recorded(5 * rows).await;
    stop(daemon, &allowed).await;

    let binary = ends.server.log_text().contains("binary 'true'");
    assert_eq!(binary, format == Format::Binary, "asked for binary");
    compare(ends, &columns, rows).await;
}

async fn stop(mut daemon: Daemon, allowed: &[&str]) {
    daemon.sigterm();
    let (status, output) = daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(0), "{output}");
    assert_clean(&output, allowed);
}

#[tokio::test]
async fn values_with_a_binary_form_arrive_in_their_own_database() {
    follow(&Ends::one(builder()).await, Format::Binary).await;
}

#[tokio::test]
async fn every_value_arrives_in_its_own_database() {
    follow(&Ends::one(builder()).await, Format::Text).await;
}

#[tokio::test]
async fn every_value_arrives_in_another_cluster() {
    follow(
        &Ends::two(builder(), builder(), UTF8, true).await,
        Format::Text,
    )
    .await;
}

#[tokio::test]
async fn values_of_types_that_the_target_lacks_arrive_as_text() {
    follow(
        &Ends::two(builder(), builder(), UTF8, false).await,
        Format::Text,
    )
    .await;
}

#[tokio::test]
async fn every_value_arrives_from_latin1_in_utf8() {
    follow_both(builder(), builder(), ["LATIN1", "UTF8"]).await;
}

#[tokio::test]
async fn every_value_arrives_between_databases_without_an_encoding() {
    let encodings = ["SQL_ASCII", "SQL_ASCII"];
    follow(
        &Ends::two(builder(), builder(), encodings, true).await,
        Format::Text,
    )
    .await;
}

/// The types of the exceptions: a value can be made, and none can be read.
#[tokio::test]
async fn a_value_that_no_server_reads_is_refused_until_the_history_has_text() {
    let (server, client) = server().await;
    each(
        &client,
        &[
            "CREATE TABLE d (n integer DEFAULT 5)",
            "CREATE TABLE t (id int PRIMARY KEY, v pg_node_tree)",
        ],
    )
    .await;
    let config = config(&server.dsn_socket("postgres"), None, &["public.t"], "");
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    each(
        &client,
        &["INSERT INTO t SELECT 1, adbin FROM pg_attrdef WHERE adrelid = 'd'::regclass"],
    )
    .await;
    let (status, output) = daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(65), "{output}");
    let stored: i64 = value(&client, "SELECT count(*) FROM t_cdc").await;
    assert_eq!(stored, 0, "{output}");
    each(&client, &["ALTER TABLE t_cdc ALTER v TYPE text"]).await;
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    let same = "SELECT count(*) FROM t JOIN t_cdc USING (id) WHERE t.v::text = t_cdc.v";
    wait_for_value(&client, same, 1_i64, BOUND).await;
    stop(daemon, &[]).await;
}

/// The list of samples must have every type that a column can have.
#[tokio::test]
async fn every_built_in_type_is_a_sample_or_a_named_exception() {
    let (_server, client) = server().await;
    each(&client, &["SET search_path = ''"]).await;
    let all = "SELECT format_type(oid, NULL) FROM pg_type
        WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm') AND oid < 10000 ORDER BY 1";
    let all: BTreeSet<String> = texts(&client, all).await.into_iter().flatten().collect();
    let mut known = BTreeSet::new();
    for sample in SAMPLES {
        for kind in [sample.kind.to_owned(), format!("{}[]", sample.kind)] {
            let name = format!("SELECT format_type('{kind}'::regtype, NULL)");
            known.insert(value::<String>(&client, &name).await);
        }
    }
    for (exception, _) in EXCEPTIONS {
        assert!(
            known.insert((*exception).to_owned()),
            "{exception} is a sample"
        );
    }
    let missing: Vec<&String> = all.difference(&known).collect();
    assert!(
        missing.is_empty(),
        "no sample and no exception: {missing:?}"
    );
}
