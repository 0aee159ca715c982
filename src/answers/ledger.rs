//! What a history table holds and where, for SQL that reads it. In that SQL a row of the history is called `h`.

use super::inherited::Inherited;
use crate::schema::home::{self, Homes};
use crate::schema::plan::{Own, literal};
use crate::schema::{HistoryColumn, HistoryTable, Identifier, Rules, SourceTable, TableName};

/// Why a history cannot be folded; a clause that fits after "the history ...".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoLedger {
    #[error("has no column {0} that numbers its rows")]
    NoNumber(String),
    #[error("has no column {0}")]
    NoColumn(String),
    #[error("has a column {0} that is not of a timestamp type")]
    NoTime(String),
    #[error("does not record {0}, a column of the key")]
    KeyNotRecorded(String),
}

/// A column of the source that the history records.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Column {
    pub name: String,
    /// The type of the history column where its values go now, as SQL writes it.
    pub kind: String,
    /// It is of a type of PostgreSQL's own.
    pub built_in: bool,
    /// Its value in a row `h` of the history, whatever it was called then.
    pub value: String,
    /// Whether the WAL did not carry that value: a condition over `h`, never NULL; none where the history cannot say.
    pub unavailable: Option<String>,
    /// The history column where its values go now.
    pub home: String,
    /// The history column of its value before a change.
    pub old: Option<String>,
}

/// A history table: its columns by meaning.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ledger {
    pub source: TableName,
    pub history: TableName,
    /// Numbers the rows in the order of the changes.
    pub number: String,
    pub change_type: String,
    pub time: String,
    /// The column of the time has a time zone; without one it is UTC.
    pub time_has_zone: bool,
    /// Of type `pg_lsn`.
    pub commit_lsn: Option<String>,
    pub tx_seq: Option<String>,
    pub xid: Option<String>,
    /// Of type `text[]`.
    pub unavailable: Option<String>,
    /// The source's columns that are recorded, in the source's order.
    pub columns: Vec<Column>,
    /// The rows of some schema change can be more than there are now.
    pub is_open: bool,
    /// Stand for the schema changes that it knows ([`inherited`](super::inherited)).
    pub marks: Vec<String>,
    /// The key's columns: positions in `columns`. Empty for a table without a key, whose rows differ only by their
    /// values.
    pub key: Vec<usize>,
}

/// OIDs of types.
const PG_LSN: u32 = 3220;
const TIMESTAMP: u32 = 1114;
const TIMESTAMPTZ: u32 = 1184;
const TEXT_ARRAY: u32 = 1009;
const INTEGERS: [u32; 3] = [21, 23, 20];

impl Ledger {
    /// What a history holds of a table as it is now.
    ///
    /// # Errors
    /// The history cannot be folded.
    pub fn of_source(
        source: &SourceTable,
        history: &HistoryTable,
        rules: &Rules,
        inherited: &[Inherited],
    ) -> Result<Self, NoLedger> {
        let names: Vec<&str> = source.columns.iter().map(|c| c.name.as_str()).collect();
        let kind = |column: &str| {
            let known = source.columns.iter().find(|known| known.name == column);
            known.and_then(|known| source.type_of(known.type_oid, known.modifier))
        };
        let fits = |column: &str, home: &HistoryColumn| {
            rules.is_lossy(column) || kind(column).is_none_or(|kind| home.kind.keeps(&kind))
        };
        let keyless = source.replica_identity == 'f' && source.key.len() == names.len();
        let key: &[String] = if keyless { &[] } else { &source.key };
        Self::new(
            &source.name,
            (&names, key),
            history,
            rules,
            inherited,
            &fits,
        )
    }

    /// The same from the target alone: each column that is not waltrail's and not a value before a change is one of the source.
    /// `is_full`: with this replica identity, a key of all columns stands for none.
    ///
    /// # Errors
    /// The history cannot be folded.
    pub fn of_target(
        source: &TableName,
        (key, is_full): (&[String], bool),
        history: &HistoryTable,
        rules: &Rules,
        inherited: &[Inherited],
    ) -> Result<Self, NoLedger> {
        let is_former = |column: &HistoryColumn| {
            let mut homes = history.homes.iter();
            match homes.find(|home| home.history_column == column.name) {
                Some(home) => home.former || home.source_column != column.name,
                None => column.name.strip_prefix("old_").is_some_and(|name| {
                    history.made || history.columns.iter().any(|other| other.name == name)
                }),
            }
        };
        let columns = history.columns.iter().filter(|column| !column.generated);
        let names: Vec<&str> = columns
            .filter(|column| !home::is_own(&column.name, &rules.prefix) && !is_former(column))
            .map(|column| column.name.as_str())
            .collect();
        let keyless = is_full && key.len() == names.len();
        let key = if keyless { &[] } else { key };
        // Of columns beside each other, the last one is in use.
        let in_use = |column: &str, home: &HistoryColumn| {
            let mut beside = history.homes.iter().rev();
            let last = beside.find(|home| home.source_column == column && !home.former);
            last.is_none_or(|last| last.history_column == home.name)
        };
        Self::new(source, (&names, key), history, rules, inherited, &in_use)
    }

    fn new(
        source: &TableName,
        (names, key): (&[&str], &[String]),
        history: &HistoryTable,
        rules: &Rules,
        inherited: &[Inherited],
        fits: &dyn Fn(&str, &HistoryColumn) -> bool,
    ) -> Result<Self, NoLedger> {
        let own = |name: &str| format!("{}{name}", rules.prefix);
        let find = |name: String| history.columns.iter().find(|known| known.name == name);
        let of_type = |own_: Own, type_oid: Option<u32>| {
            find(own(own_.name()))
                .filter(|known| type_oid.is_none_or(|oid| known.type_oid == oid))
                .map(|known| known.name.clone())
        };
        let must =
            |own_: Own| find(own(own_.name())).ok_or_else(|| NoLedger::NoColumn(own(own_.name())));
        let is_number =
            |known: &&HistoryColumn| INTEGERS.contains(&known.type_oid) && known.has_default;
        let number = find(own("cdc_id"))
            .filter(is_number)
            .ok_or_else(|| NoLedger::NoNumber(own("cdc_id")))?;
        let time = must(Own::ChangeTimestamp)?;
        if ![TIMESTAMP, TIMESTAMPTZ].contains(&time.type_oid) {
            return Err(NoLedger::NoTime(time.name.clone()));
        }
        let unavailable = of_type(Own::UnavailableColumns, Some(TEXT_ARRAY));
        let in_source = |name: &str| names.contains(&name);
        let find = Find {
            homes: Homes {
                history,
                rules,
                in_source: &in_source,
            },
            inherited,
            number: &number.name,
            unavailable: unavailable.as_deref(),
            fits,
        };
        let columns: Vec<Column> = names
            .iter()
            .filter(|name| !rules.excludes(name))
            .filter_map(|name| find.column(name))
            .collect();
        let key = key.iter().map(|name| {
            let at = columns.iter().position(|column| column.name == *name);
            at.ok_or_else(|| NoLedger::KeyNotRecorded(name.clone()))
        });
        Ok(Self {
            source: source.clone(),
            history: history.name.clone(),
            number: number.name.clone(),
            change_type: must(Own::ChangeType)?.name.clone(),
            time: time.name.clone(),
            time_has_zone: time.type_oid == TIMESTAMPTZ,
            commit_lsn: of_type(Own::CommitLsn, Some(PG_LSN)),
            tx_seq: of_type(Own::TxSeq, None),
            xid: of_type(Own::Xid, None),
            unavailable,
            is_open: inherited
                .iter()
                .any(|former| former.until_number == i64::MAX),
            marks: inherited.iter().map(|former| former.mark.clone()).collect(),
            key: key.collect::<Result<_, _>>()?,
            columns,
        })
    }

    /// A history with everything that the SQL of one can depend on.
    pub(super) fn sample(keyed: bool) -> Self {
        let name = |text: &str| text.to_owned();
        let column = |at: &str, built_in| Column {
            name: name(at),
            kind: name("text"),
            built_in,
            value: format!("h.{at}"),
            unavailable: keyed.then(|| name("false")),
            home: name(at),
            old: Some(format!("old_{at}")),
        };
        Self {
            source: TableName::new("s", "t"),
            history: TableName::new("s", "t_cdc"),
            number: name("cdc_id"),
            change_type: name("change_type"),
            time: name("change_timestamp"),
            time_has_zone: keyed,
            commit_lsn: keyed.then(|| name("commit_lsn")),
            tx_seq: None,
            xid: None,
            unavailable: keyed.then(|| name("unavailable_columns")),
            columns: vec![column("a", true), column("b", false), column("c", true)],
            is_open: keyed,
            marks: vec![name("mark")],
            key: if keyed { vec![0, 1] } else { Vec::new() },
        }
    }

    /// A column of the history in row `h`.
    pub fn own(&self, column: &str) -> String {
        format!("h.{}", Identifier(column))
    }

    /// The number of row `h`.
    pub fn number(&self) -> String {
        self.own(&self.number)
    }

    /// What row `h` is, as text.
    pub fn kind(&self) -> String {
        format!("{}::text", self.own(&self.change_type))
    }

    /// The commit time of row `h`, with its time zone.
    pub fn time(&self) -> String {
        match self.time_has_zone {
            true => self.own(&self.time),
            false => format!("({} AT TIME ZONE 'UTC'::text)", self.own(&self.time)),
        }
    }

    pub fn key_columns(&self) -> impl Iterator<Item = &Column> {
        self.key.iter().map(|&at| &self.columns[at])
    }

    /// Whether row `h` changed the key in one row; none where the history writes two rows for that.
    pub fn changes_key(&self) -> Option<String> {
        let mut differ = Vec::new();
        for column in self.key_columns() {
            let old = self.own(column.old.as_ref()?);
            let is_text = ["character", "bpchar", "name"]
                .iter()
                .any(|t| column.kind.starts_with(t));
            // What is not known has not changed: a key is never NULL. Of two values of these types the operator is
            // PostgreSQL's own, whatever the search path.
            differ.push(match (is_text, column.built_in) {
                (true, _) => format!("{old}::text <> {}::text", column.value),
                (false, true) => format!("{old} <> {}", column.value),
                (false, false) => format!(
                    "({old} IS NOT NULL AND pg_catalog.record_image_ne(ROW({old}), ROW({})))",
                    column.value
                ),
            });
        }
        let differ = differ.join(" OR ");
        (!self.key.is_empty()).then(|| format!("{} = 'UPDATE'::text AND ({differ})", self.kind()))
    }
}

/// What finds the columns of a source table.
struct Find<'a> {
    homes: Homes<'a>,
    inherited: &'a [Inherited],
    number: &'a str,
    unavailable: Option<&'a str>,
    fits: &'a dyn Fn(&str, &HistoryColumn) -> bool,
}

impl Find<'_> {
    fn column(&self, name: &str) -> Option<Column> {
        let history = self.homes.history;
        let home = self
            .homes
            .find(name, false, |known| (self.fits)(name, known))
            .ok()?;
        let old = self.homes.find(name, true, |_| true).ok();
        // Of columns beside each other, one is written in each row.
        let beside = history.homes.iter().filter(|other| {
            other.source_column == name && !other.former && other.history_column != home.name
        });
        let mut beside: Vec<&str> = beside.map(|other| other.history_column.as_str()).collect();
        if let Ok(first) = self.homes.find(name, false, |known| known.name == name)
            && first.name != home.name
        {
            beside.push(&first.name);
        }
        let kind = &home.kind.sql;
        let mut value = format!("h.{}", Identifier(&home.name));
        if !beside.is_empty() {
            let others = beside
                .iter()
                .map(|other| format!("h.{}::{kind}", Identifier(other)));
            let others: Vec<String> = others.collect();
            value = format!("coalesce({value}, {})", others.join(", "));
        }
        let mut names = vec![home.name.as_str()];
        names.extend(&beside);
        let mut missing = self.unavailable.map(|own| names_one_of(own, &names));
        for former in self
            .inherited
            .iter()
            .rev()
            .filter(|of| of.source_column == name)
        {
            let until = self.rows_of(former);
            let (was, lacks) = match (&former.history_column, &former.value) {
                (Some(column), _) => (
                    format!("h.{}::{kind}", Identifier(column)),
                    self.unavailable.map(|own| names_one_of(own, &[column])),
                ),
                (None, Some(value)) => (format!("{}::{kind}", literal(value)), None),
                (None, None) => {
                    let lacks = (!former.known).then(|| "true".to_owned());
                    (format!("NULL::{kind}"), lacks)
                }
            };
            value = format!("CASE WHEN {until} THEN {was} ELSE {value} END");
            missing = missing.map(|missing| {
                let lacks = lacks.unwrap_or_else(|| "false".to_owned());
                format!("CASE WHEN {until} THEN {lacks} ELSE {missing} END")
            });
        }
        Some(Column {
            name: name.to_owned(),
            kind: kind.clone(),
            built_in: home.kind.name.starts_with("pg_catalog."),
            value,
            unavailable: missing,
            home: home.name.clone(),
            old: old.map(|old| old.name.clone()),
        })
    }

    /// Whether row `h` is one of these. How far rows go of which more may come, a function says ([`objects`](super::objects)).
    fn rows_of(&self, former: &Inherited) -> String {
        let (number, after) = (Identifier(self.number), former.after_number);
        let until = match former.until_number {
            i64::MAX => format!(
                "(SELECT {}({}, {after}))",
                object(&self.homes.history.name, "_until"),
                literal(&former.source_column)
            ),
            until => until.to_string(),
        };
        match after {
            0 => format!("h.{number} <= {until}"),
            after => format!("h.{number} > {after} AND h.{number} <= {until}"),
        }
    }
}

/// The name of something beside a history: it begins as the history's, without `_cdc`.
pub fn object(history: &TableName, what: &str) -> TableName {
    let base = history.name.strip_suffix("_cdc");
    let base = base.filter(|base| !base.is_empty());
    let name = home::shortened(base.unwrap_or(&history.name), what);
    TableName::new(history.schema.clone(), name)
}

/// Whether the column that lists what is unavailable names one of these.
fn names_one_of(own: &str, names: &[&str]) -> String {
    let names: Vec<String> = names
        .iter()
        .map(|name| format!("{}::text", literal(name)))
        .collect();
    format!(
        "coalesce(h.{} && ARRAY[{}], false)",
        Identifier(own),
        names.join(", ")
    )
}
