//! Which columns a history needs for a shape of its source, and what they are called. Pure.

use super::exact::Type;
use super::home::{self, Home, Homeless, Homes};
use super::plan::{Shape, ShapeColumn};
use super::{HistoryColumn, HistoryTable, Identifier, Rules, SourceTable, recorded};

/// A column that a history is to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addition {
    pub column: String,
    /// It is for values before a change.
    pub former: bool,
    pub kind: Type,
    /// The type that it would have, which the target does not have or the source does not have any more.
    pub lacking: Option<String>,
    pub history_column: String,
    /// The history column that does not keep every value of the type that the column has now.
    pub beside: Option<String>,
    /// Its name does not follow from the rule.
    pub home: Option<Home>,
}

/// The values of a shape that a history has no column for.
struct Lack {
    column: String,
    former: bool,
    kind: Type,
    beside: Option<String>,
}

/// What `history` lacks for `shape`. A type that the target does not have (`unknown`) is kept as text. Afterwards `history`
/// is as if it had the columns; their OIDs are not known.
pub fn additions(
    shape: &Shape,
    source: &SourceTable,
    history: &mut HistoryTable,
    rules: &Rules,
    unknown: &[String],
) -> Vec<Addition> {
    let mut additions = Vec::new();
    for lack in lacks(shape, source, history, rules) {
        let is_lacking = unknown.contains(&lack.kind.sql) || lack.kind == Type::dropped();
        let lacking = is_lacking.then(|| lack.kind.sql.clone());
        let kind = match is_lacking {
            true => Type::text(),
            false => lack.kind,
        };
        let name = name(&lack.column, lack.former, (shape, source, history, rules));
        let by_rule = home::by_rule(&lack.column, lack.former);
        // Without a record `old_x` means the value of x before a change.
        let ruled = by_rule.as_ref() == Some(&name) && (lack.former || !name.starts_with("old_"));
        // And a column of this name could become waltrail's own.
        let ruled = ruled && name != home::context_name(&rules.prefix);
        let home = (!ruled).then(|| Home {
            source_column: lack.column.clone(),
            former: lack.former,
            history_column: name.clone(),
        });
        history.homes.extend(home.clone());
        history.columns.push(HistoryColumn {
            name: name.clone(),
            type_oid: 0,
            modifier: -1,
            kind: kind.clone(),
            not_null: false,
            has_default: false,
            generated: false,
        });
        additions.push(Addition {
            column: lack.column,
            former: lack.former,
            kind,
            lacking,
            history_column: name,
            beside: lack.beside,
            home,
        });
    }
    additions
}

/// The types of the values that a history has no column for, as SQL writes them; of those that exist.
pub fn lacking_kinds(
    shape: &Shape,
    source: &SourceTable,
    history: &HistoryTable,
    rules: &Rules,
) -> Vec<String> {
    let lacks = lacks(shape, source, history, rules).into_iter();
    lacks
        .filter(|lack| lack.kind != Type::dropped())
        .map(|lack| lack.kind.sql)
        .collect()
}

fn lacks(shape: &Shape, source: &SourceTable, history: &HistoryTable, rules: &Rules) -> Vec<Lack> {
    let in_source = |name: &str| shape.has(name) || source.has(name);
    let homes = Homes {
        history,
        rules,
        in_source: &in_source,
    };
    let mut lacks = Vec::new();
    for former in [false, true] {
        for column in &shape.columns {
            lacks.extend(lack(&homes, shape, source, column, former));
        }
    }
    lacks
}

fn lack(
    homes: &Homes<'_>,
    shape: &Shape,
    source: &SourceTable,
    column: &ShapeColumn,
    former: bool,
) -> Option<Lack> {
    let Homes { history, rules, .. } = *homes;
    if rules.excludes(&column.name) {
        return None;
    }
    let kind = source.type_of(column.type_oid, column.modifier);
    let kind = kind.unwrap_or_else(Type::dropped);
    let lossy = rules.is_lossy(&column.name);
    let fits = |known: &HistoryColumn| lossy || known.kind.keeps(&kind);
    let beside = match homes.find(&column.name, former, fits) {
        Ok(_) => return None,
        Err(Homeless::Inexact(known)) => Some(known.name.clone()),
        // Values before a change are kept of the key, unless the source has a column of that name.
        Err(Homeless::Absent)
            if former
                && !(history.made
                    && shape.is_key(column, source)
                    && !homes.is_won(&column.name)) =>
        {
            return None;
        }
        Err(Homeless::Absent) => None,
    };
    Some(Lack {
        column: column.name.clone(),
        former,
        kind: kind.home(),
        beside,
    })
}

/// The name that the rule gives, if it is free for good; else one that is.
fn name(
    column: &str,
    former: bool,
    (shape, source, history, rules): (&Shape, &SourceTable, &HistoryTable, &Rules),
) -> String {
    let is_there = |name: &str| {
        history.columns.iter().any(|known| known.name == name) || home::is_own(name, &rules.prefix)
    };
    let rule = home::by_rule(column, former);
    match rule.filter(|name| !is_there(name)) {
        Some(name) => name,
        None => home::free_name(column, former, |name| {
            is_there(name) || shape.has(name) || source.has(name)
        }),
    }
}

/// The statements that add these columns to a history, and record what does not follow from the rule.
pub fn statements(history: &HistoryTable, additions: &[Addition]) -> String {
    let columns: Vec<String> = additions
        .iter()
        .map(|addition| {
            let name = Identifier(&addition.history_column);
            format!("ADD COLUMN IF NOT EXISTS {name} {}", addition.kind.sql)
        })
        .collect();
    let homes: Vec<Home> = additions
        .iter()
        .filter_map(|addition| addition.home.clone())
        .collect();
    let alter = format!("ALTER TABLE {} {}", history.name, columns.join(", "));
    match recorded::statement(&history.name, &homes) {
        Some(record) => format!("{alter}; {record}"),
        None => alter,
    }
}
