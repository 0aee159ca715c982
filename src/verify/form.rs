//! What of a table is compared, and the SQL that both servers are asked. Pure.
//!
//! A row is reduced to two numbers of 64 bits on the server that has it: the hash of its key, and the hash of its other
//! values, both of the text that the types' output functions write. That text is the same on both servers: all sessions have
//! the same settings ([`server`](crate::server)), and a history column keeps what the source's column writes. The hash is
//! PostgreSQL's own of bytes, which hash partitioning keeps the same from version to version.
//!
//! A *bucket* is the rows whose key's hash has the same last bits. Of each one, a count and a sum travel.

use crate::answers::fold;
use crate::answers::ledger::Ledger;
use crate::schema::exact::Type;
use crate::schema::{Identifier, Rules, SourceTable};
use crate::snapshot::point::lock_name;

/// A power of 2: so few numbers are sent and kept, and so small a part of a large table is read again for one difference.
pub(crate) const BUCKETS: i32 = 4096;

/// Types of keys whose equal values have equal texts.
const EXACT_KEYS: [&str; 13] = [
    "int2",
    "int4",
    "int8",
    "oid",
    "uuid",
    "text",
    "varchar",
    "bool",
    "date",
    "timestamp",
    "timestamptz",
    "bytea",
    "name",
];

/// How texts become bytes that are the same on both servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Bytes {
    /// Both databases have the same encoding.
    AsTheyAre,
    /// In UTF-8 where the encoding is not SQL_ASCII: what to convert to on the source and on the target.
    Converted { source: String, target: String },
}

impl Bytes {
    /// Of two databases with these encodings. One without an encoding passes bytes as they are.
    pub(crate) fn of(source: &str, target: &str) -> Self {
        if source == target {
            return Self::AsTheyAre;
        }
        let to = |own: &str| match own {
            "SQL_ASCII" => own.to_owned(),
            _ => "UTF8".to_owned(),
        };
        Self::Converted {
            source: to(source),
            target: to(target),
        }
    }

    fn hash(&self, text: &str, side: Where) -> String {
        let text = match (self, side) {
            (Self::AsTheyAre, _) => text.to_owned(),
            (
                Self::Converted {
                    source: encoding, ..
                },
                Where::Source,
            )
            | (
                Self::Converted {
                    target: encoding, ..
                },
                Where::History,
            ) => format!("encode(convert_to({text}, '{encoding}'), 'hex')"),
        };
        format!("hashtextextended(({text}) COLLATE \"C\", 0)")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    Source,
    History,
}

/// Rows of a history by number: past `after`, up to `upto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) after: i64,
    pub(crate) upto: i64,
}

/// How a table and its history are compared.
#[derive(Clone, Debug)]
pub(crate) struct Form {
    pub(crate) ledger: Ledger,
    /// The source table as FROM wants it.
    relation: String,
    /// What is compared beside the key: positions among the ledger's columns.
    pub(crate) compared: Vec<usize>,
    /// The source's columns that are not.
    pub(crate) left_out: Vec<String>,
    /// Equal keys have equal texts, so a hash stands for a key.
    exact_keys: bool,
    bytes: Bytes,
}

impl Form {
    /// # Errors
    /// The column of the key that cannot be compared.
    pub(crate) fn new(
        source: &SourceTable,
        ledger: Ledger,
        rules: &Rules,
        bytes: Bytes,
    ) -> Result<Self, String> {
        let kind = |name: &str| {
            let known = source.columns.iter().find(|column| column.name == name);
            known.and_then(|known| source.type_of(known.type_oid, known.modifier))
        };
        // The name of an object can be another by now.
        let is_comparable = |name: &str| {
            !rules.is_lossy(name) && !kind(name).is_some_and(|kind| kind.is_name_of_object())
        };
        for column in ledger.key_columns() {
            if !is_comparable(&column.name) {
                return Err(column.name.clone());
            }
        }
        let positions = ledger.columns.iter().enumerate();
        let compared: Vec<usize> = positions
            .filter(|(at, column)| !ledger.key.contains(at) && is_comparable(&column.name))
            .map(|(at, _)| at)
            .collect();
        let is_compared = |name: &str| {
            let at = ledger.columns.iter().position(|column| column.name == name);
            at.is_some_and(|at| compared.contains(&at) || ledger.key.contains(&at))
        };
        let names = source.columns.iter().map(|column| column.name.as_str());
        let left_out = names.filter(|name| !is_compared(name));
        let left_out = left_out.map(str::to_owned).collect();
        let is_exact = |kind: Type| {
            let name = kind.name.strip_prefix("pg_catalog.");
            !kind.array && name.is_some_and(|name| EXACT_KEYS.contains(&name))
        };
        let exact_keys = ledger
            .key_columns()
            .all(|column| kind(&column.name).is_some_and(is_exact));
        Ok(Self {
            relation: lock_name(source),
            exact_keys,
            compared,
            left_out,
            bytes,
            ledger,
        })
    }

    /// The names of the compared columns.
    pub(crate) fn names(&self) -> Vec<String> {
        let columns = self.compared.iter().map(|&at| &self.ledger.columns[at]);
        columns.map(|column| column.name.clone()).collect()
    }

    /// A source column, in the form that its history column has.
    fn of_source(&self, at: usize) -> String {
        let column = &self.ledger.columns[at];
        let name = format!("s.{}", Identifier(&column.name));
        match column.kind.as_str() {
            // It writes less than cidr does.
            "inet" | "inet[]" => format!("{name}::{}", column.kind),
            _ => name,
        }
    }

    /// The hash of several values.
    fn of_row(&self, values: &[String], side: Where) -> String {
        self.bytes
            .hash(&format!("ROW({})::text", values.join(", ")), side)
    }

    /// The hashes of the compared columns, one by one; NULL for NULL.
    fn each(&self, value: impl Fn(usize) -> String, side: Where) -> String {
        let hashes = self.compared.iter().map(|&at| {
            let value = value(at);
            // A composite with nothing but NULL in it is not NULL.
            format!(
                "CASE WHEN {value} IS DISTINCT FROM NULL THEN {} END",
                self.bytes.hash(&format!("concat({value})"), side)
            )
        });
        format!("ARRAY[{}]::bigint[]", hashes.collect::<Vec<_>>().join(", "))
    }

    fn is_keyless(&self) -> bool {
        self.ledger.key.is_empty()
    }

    /// The source's rows: `k`, and `v` unless the table has no key.
    fn source_hashes(&self, more: &str) -> String {
        let values = |of: &[usize]| of.iter().map(|&at| self.of_source(at)).collect::<Vec<_>>();
        let hash = |of: &[usize]| self.of_row(&values(of), Where::Source);
        match self.is_keyless() {
            true => format!(
                "SELECT {} AS k{more} FROM {} s",
                hash(&self.compared),
                self.relation
            ),
            false => format!(
                "SELECT {} AS k, {} AS v{more} FROM {} s",
                hash(&self.ledger.key),
                hash(&self.compared),
                self.relation
            ),
        }
    }

    /// Of each bucket of the source: its number, its rows, the sum of their hashes.
    pub(crate) fn source_buckets(&self) -> String {
        let sum = match self.is_keyless() {
            true => "sum(x.k)",
            false => "sum(hashint8extended(x.k, x.v))",
        };
        format!(
            "SELECT (x.k & {})::int4, count(*), ({sum})::text, 0::bigint FROM ({}) x GROUP BY 1",
            BUCKETS - 1,
            self.source_hashes("")
        )
    }

    /// The source's rows of the buckets `$1`, by the hash of their key: that, the key's values, the hashes of the compared
    /// columns, which of them are not known, and how often the row is there.
    pub(crate) fn source_rows(&self) -> String {
        let wanted = format!("(x.k & {})::int4 = ANY ($1)", BUCKETS - 1);
        if self.is_keyless() {
            let whole: Vec<String> = self.compared.iter().map(|&at| self.of_source(at)).collect();
            let whole = format!(", ROW({})::text AS t", whole.join(", "));
            return format!(
                "SELECT x.k, ARRAY[min(x.t)], '{{}}'::bigint[], '{{}}'::bool[], count(*) FROM ({}) x WHERE {wanted} \
                 GROUP BY x.k ORDER BY x.k",
                self.source_hashes(&whole)
            );
        }
        let key: Vec<String> = self
            .ledger
            .key
            .iter()
            .map(|&at| self.of_source(at))
            .collect();
        format!(
            "SELECT x.k, x.key, x.hashes, '{{}}'::bool[], 1::bigint FROM (SELECT {} AS k, {} AS key, {} AS hashes FROM {} s) x \
             WHERE {wanted} ORDER BY x.k",
            self.of_row(&key, Where::Source),
            texts(&key),
            self.each(|at| self.of_source(at), Where::Source),
            self.relation
        )
    }

    /// What happened to keys, with the hash of each: `n`, `gone`, `lacks`, `k`, `v0`, ...
    fn events(&self, numbers: Numbers) -> String {
        let events = fold::events(&self.ledger, &self.within(numbers));
        let key: Vec<String> = self
            .ledger
            .key
            .iter()
            .map(|at| format!("ev.v{at}"))
            .collect();
        format!(
            "SELECT ev.*, {} AS k FROM (\n{events}\n) ev",
            self.of_row(&key, Where::History)
        )
    }

    fn within(&self, Numbers { after, upto }: Numbers) -> String {
        let number = self.ledger.number();
        format!("{number} > {after} AND {number} <= {upto}")
    }

    /// What tells keys apart.
    fn distinct(&self) -> String {
        match self.exact_keys {
            true => "e.k".to_owned(),
            false => fold::key_list(&self.ledger, "e"),
        }
    }

    /// Whether rows of the history can lack values, and say so.
    pub(crate) fn can_lack(&self) -> bool {
        fold::carried(&self.ledger, "0").is_some()
    }

    /// The condition that a value of a row of `alias` is known.
    fn knows(&self, at: usize, alias: &str) -> String {
        match self.can_lack() {
            true => format!("(NOT {alias}.lacks OR c.known{at})"),
            false => "true".to_owned(),
        }
    }

    /// As [`Form::source_buckets`], of the history, with the number of rows of which something is not known. Only buckets of
    /// `range`, its end excluded.
    pub(crate) fn history_buckets(&self, numbers: Numbers, range: [i32; 2]) -> String {
        let bucket = |alias: &str| format!("({alias}.k & {})::int4", BUCKETS - 1);
        let within = |alias: &str| match range {
            [0, BUCKETS] => "true".to_owned(),
            [from, to] => format!(
                "{bucket} >= {from} AND {bucket} < {to}",
                bucket = bucket(alias)
            ),
        };
        if self.is_keyless() {
            return format!(
                "SELECT {}, sum(x.w)::bigint, \
                 (coalesce(sum(x.k) FILTER (WHERE x.w > 0), 0) - coalesce(sum(x.k) FILTER (WHERE x.w < 0), 0))::text, 0::bigint \
                 FROM ({}) x WHERE {} GROUP BY 1",
                bucket("x"),
                self.copies(numbers),
                within("x"),
            );
        }
        // A row that lacks nothing, as nearly all do, is reduced to its hashes before rows are sorted.
        let hash = |alias: &str| {
            let values = self.compared.iter().map(|at| format!("{alias}.v{at}"));
            self.of_row(&values.collect::<Vec<_>>(), Where::History)
        };
        let value = match fold::carried(&self.ledger, "l.n") {
            // Only for those that do: a join would begin it for each row.
            Some(carried) => {
                let known = self.compared.iter().map(|at| format!("c.known{at}"));
                let known: Vec<String> = known.chain(["true".to_owned()]).collect();
                format!(
                    "CASE WHEN l.lacks THEN (SELECT CASE WHEN {} THEN {} END FROM (\n{carried}\n) c) ELSE l.v END",
                    known.join(" AND "),
                    hash("c")
                )
            }
            None => "l.v".to_owned(),
        };
        let (key, before) = match self.exact_keys {
            true => (String::new(), within("e")),
            false => (
                format!(", {}", fold::key_list(&self.ledger, "e")),
                "true".to_owned(),
            ),
        };
        // OFFSET keeps a value from being computed twice.
        format!(
            "SELECT {bucket}, count(*), coalesce(sum(hashint8extended(x.k, x.v)), 0)::text, \
                    count(*) FILTER (WHERE x.v IS NULL) \
             FROM (SELECT l.k, {value} AS v FROM ( \
                       SELECT DISTINCT ON ({distinct}) e.n, e.gone, e.lacks, e.k{key}, \
                              CASE WHEN e.gone OR e.lacks THEN NULL ELSE {own} END AS v \
                         FROM ({events}) e WHERE {before} ORDER BY {distinct}, e.n DESC, e.gone) l \
                    WHERE NOT l.gone OFFSET 0) x WHERE {after} GROUP BY 1",
            bucket = bucket("x"),
            distinct = self.distinct(),
            own = hash("e"),
            events = self.events(numbers),
            after = within("x"),
        )
    }

    /// As [`Form::source_rows`], of the history.
    pub(crate) fn history_rows(&self, numbers: Numbers) -> String {
        let wanted = format!("(e.k & {})::int4 = ANY ($1)", BUCKETS - 1);
        if self.is_keyless() {
            return format!(
                "SELECT e.k, ARRAY[min(e.t)], '{{}}'::bigint[], '{{}}'::bool[], sum(e.w)::bigint FROM ({}) e WHERE {wanted} \
                 GROUP BY e.k HAVING sum(e.w) <> 0 ORDER BY e.k",
                self.copies(numbers)
            );
        }
        let distinct = self.distinct();
        let (before, after) = match self.exact_keys {
            true => (wanted.as_str(), "true".to_owned()),
            false => ("true", wanted.replace("e.k", "l.k")),
        };
        format!(
            "SELECT {} FROM (SELECT DISTINCT ON ({distinct}) e.* FROM ({}) e WHERE {before} \
             ORDER BY {distinct}, e.n DESC, e.gone) l{} WHERE NOT l.gone AND {after} ORDER BY l.k",
            self.row("l"),
            self.events(numbers),
            fold::carrying(&self.ledger, "l")
        )
    }

    /// What [`Form::source_rows`] gives, of a row of `alias`.
    fn row(&self, alias: &str) -> String {
        let key: Vec<String> = self
            .ledger
            .key
            .iter()
            .map(|at| format!("{alias}.v{at}"))
            .collect();
        let unknown = self
            .compared
            .iter()
            .map(|&at| format!("NOT {}", self.knows(at, alias)));
        format!(
            "{alias}.k, {}, {}, ARRAY[{}]::bool[], 1::bigint",
            texts(&key),
            self.each(|at| fold::value(&self.ledger, at, alias), Where::History),
            unknown.collect::<Vec<_>>().join(", ")
        )
    }

    /// All that happened to the keys with the hashes `$1`: as [`Form::source_rows`], and whether the key was then gone. Of a
    /// table without a key: the row's hash, and how often it was added and taken away.
    pub(crate) fn versions(&self, numbers: Numbers) -> String {
        if self.is_keyless() {
            return format!(
                "SELECT e.k, coalesce(sum(e.w) FILTER (WHERE e.w > 0), 0)::bigint, \
                        coalesce(-sum(e.w) FILTER (WHERE e.w < 0), 0)::bigint \
                 FROM ({}) e WHERE e.k = ANY ($1) GROUP BY e.k",
                self.copies(numbers)
            );
        }
        format!(
            "SELECT {}, l.gone FROM (SELECT e.* FROM ({}) e WHERE e.k = ANY ($1)) l{}",
            self.row("l"),
            self.events(numbers),
            fold::carrying(&self.ledger, "l")
        )
    }

    /// Of a table without a key: the hash `k` and the text `t` of each row that was added (`w` 1) or taken away (-1).
    fn copies(&self, numbers: Numbers) -> String {
        let (ledger, within) = (&self.ledger, self.within(numbers));
        let side = |values: Vec<String>| {
            let text = format!("ROW({})::text", values.join(", "));
            let hash = self.bytes.hash(&text, Where::History);
            format!("{hash} AS k, {text} AS t")
        };
        let columns = || self.compared.iter().map(|&at| &ledger.columns[at]);
        let new = columns().map(|column| column.value.clone()).collect();
        let mut sql = format!(
            "SELECT CASE {kind} WHEN 'DELETE'::text THEN -1 ELSE 1 END AS w, {} FROM {} h WHERE {within} AND NOT {}",
            side(new),
            ledger.history,
            fold::clears(ledger),
            kind = ledger.kind(),
        );
        // Without them, such an UPDATE is a DELETE and an INSERT.
        if ledger.columns.iter().all(|column| column.old.is_some()) {
            let old = columns().filter_map(|column| column.old.as_ref());
            let old = old.map(|old| ledger.own(old)).collect();
            sql.push_str(&format!(
                " UNION ALL SELECT -1, {} FROM {} h WHERE {within} AND {} = 'UPDATE'::text",
                side(old),
                ledger.history,
                ledger.kind(),
            ));
        }
        sql
    }

    /// Of a table without a key, one of the source's rows with each of the hashes `$1`: the texts of all columns that the history
    /// records.
    pub(crate) fn source_copies(&self) -> String {
        let all = (0..self.ledger.columns.len()).map(|at| self.of_source(at));
        let all = format!(", {} AS texts", texts(&all.collect::<Vec<_>>()));
        format!(
            "SELECT DISTINCT ON (x.k) x.k, x.texts FROM ({}) x WHERE x.k = ANY ($1)",
            self.source_hashes(&all)
        )
    }

    /// The same of the history.
    pub(crate) fn history_copies(&self, numbers: Numbers) -> String {
        let (ledger, within) = (&self.ledger, self.within(numbers));
        let value = |at: usize| ledger.columns[at].value.clone();
        let compared: Vec<String> = self.compared.iter().map(|&at| value(at)).collect();
        let all: Vec<String> = (0..ledger.columns.len()).map(value).collect();
        format!(
            "SELECT DISTINCT ON (x.k) x.k, x.texts FROM (SELECT {} AS k, {} AS texts FROM {} h WHERE {within} AND NOT {}) x \
             WHERE x.k = ANY ($1)",
            self.of_row(&compared, Where::History),
            texts(&all),
            ledger.history,
            fold::clears(ledger)
        )
    }

    /// The source's rows with the keys `$1`, `$2`, ... (an array each): the texts of all columns that the history records.
    pub(crate) fn source_values(&self, key_types: &[String]) -> String {
        let (list, joined) = self.keyed_by(key_types, |at| {
            format!("s.{}", Identifier(&self.ledger.columns[at].name))
        });
        let all: Vec<String> = (0..self.ledger.columns.len())
            .map(|at| self.of_source(at))
            .collect();
        format!(
            "SELECT w.nth, {} FROM {list} JOIN {} s ON {joined} ORDER BY w.nth",
            texts(&all),
            self.relation
        )
    }

    fn keyed_by(&self, types: &[String], column: impl Fn(usize) -> String) -> (String, String) {
        let key = &self.ledger.key;
        let arrays: Vec<String> = (1..=key.len()).map(|n| format!("${n}::text[]")).collect();
        let names: Vec<String> = (0..key.len()).map(|n| format!("k{n}")).collect();
        let joined = std::iter::zip(key, types).enumerate();
        let joined = joined.map(|(n, (&at, kind))| format!("{} = w.k{n}::{kind}", column(at)));
        (
            format!(
                "unnest({}) WITH ORDINALITY AS w ({}, nth)",
                arrays.join(", "),
                names.join(", ")
            ),
            joined.collect::<Vec<_>>().join(" AND "),
        )
    }

    /// The hashes, of these hashes of keys `$1`, that rows past this number are about.
    pub(crate) fn touched_after(&self, number: i64) -> String {
        let numbers = Numbers {
            after: number,
            upto: i64::MAX,
        };
        format!(
            "SELECT DISTINCT e.k FROM ({}) e WHERE e.k = ANY ($1)",
            self.events(numbers)
        )
    }
}

/// The texts of values, as an array; NULL for NULL.
fn texts(values: &[String]) -> String {
    let texts = values
        .iter()
        .map(|value| format!("CASE WHEN {value} IS DISTINCT FROM NULL THEN concat({value}) END"));
    format!("ARRAY[{}]::text[]", texts.collect::<Vec<_>>().join(", "))
}
