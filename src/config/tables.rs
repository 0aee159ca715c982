//! What `[[table]]` means: tables by name, and patterns.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;

use super::file::Reader;
use super::raw::{RawTable, Text};
use super::{Pattern, Table};
use crate::fault::Result;
use crate::name::{TableName, TablePattern};

impl Reader<'_> {
    /// Tables and patterns, each in the order in which it is written.
    pub(super) fn tables(&self, raw: &[RawTable]) -> Result<(Vec<Table>, Vec<Pattern>)> {
        let (mut tables, mut patterns) = (Vec::with_capacity(raw.len()), Vec::new());
        for (at, raw) in raw.iter().enumerate() {
            let source = raw.source.as_ref().map(|source| &source.0);
            let pattern = source.map(|text| self.pattern_of(at, "source", text));
            match pattern.transpose()?.flatten() {
                Some(source) => patterns.push(self.pattern(at, raw, source)?),
                None => tables.push((at, self.table(at, raw)?)),
            }
        }
        self.stand_once(&tables)?;
        Ok((
            tables.into_iter().map(|(_, table)| table).collect(),
            patterns,
        ))
    }

    /// No source and no history twice, and no history that is followed itself.
    fn stand_once(&self, tables: &[(usize, Table)]) -> Result<()> {
        let (mut sources, mut histories) = (HashSet::new(), HashMap::new());
        for (at, table) in tables {
            if !sources.insert(&table.source) {
                return Err(self.refuse(
                    &format!("table.{at}.source"),
                    format_args!("names {} a second time", table.source),
                    "list each table once",
                ));
            }
            if let Some(other) = histories.insert(&table.history, &table.source) {
                return Err(self.refuse(
                    &format!("table.{at}.history"),
                    format_args!(
                        "gives {} the history table of {other}, {}",
                        table.source, table.history
                    ),
                    "give each table a history table of its own",
                ));
            }
        }
        for (at, table) in tables {
            if sources.contains(&table.history) {
                return Err(self.refuse(
                    &format!("table.{at}.history"),
                    format_args!(
                        "writes the history of {} into {}, which is followed itself",
                        table.source, table.history
                    ),
                    "write the history into a table that is not followed: it would feed itself",
                ));
            }
        }
        Ok(())
    }

    fn pattern(&self, at: usize, raw: &RawTable, source: TablePattern) -> Result<Pattern> {
        self.own_schema(at, &source.schema, &source)?;
        let history = match &raw.history {
            None => TablePattern {
                schema: source.schema.clone(),
                name: "*_cdc".to_owned(),
            },
            Some(Text(text)) => match self.pattern_of(at, "history", text)? {
                Some(history) if history.name.matches('*').count() == 1 => history,
                _ => {
                    return Err(self.refuse(
                        &format!("table.{at}.history"),
                        format_args!("is one table for all that {source} means"),
                        "leave it out, or write one `*` for the table's name, for example \"audit.*\"",
                    ));
                }
            },
        };
        let mut except = Vec::new();
        for Text(text) in &raw.except {
            let pattern = self.pattern_of(at, "except", text)?;
            except.push(match pattern {
                Some(pattern) => pattern,
                None => self.exactly(at, text)?,
            });
        }
        let name = TableName::new(source.schema.clone(), source.name.clone());
        let settings = self.settings(at, raw, name.clone(), name)?;
        Ok(Pattern {
            source,
            except,
            history,
            settings: Table {
                by_pattern: true,
                ..settings
            },
        })
    }

    fn pattern_of(&self, at: usize, field: &str, text: &str) -> Result<Option<TablePattern>> {
        TablePattern::parse(text)
            .map_err(|error| self.wrong_name(&format!("table.{at}.{field}"), text, &error))
    }

    /// A name as a pattern that only it fits.
    fn exactly(&self, at: usize, text: &str) -> Result<TablePattern> {
        let name: TableName = text
            .parse()
            .map_err(|error| self.wrong_name(&format!("table.{at}.except"), text, &error))?;
        Ok(TablePattern {
            schema: name.schema,
            name: name.name,
        })
    }

    /// Tables of PostgreSQL and our own are not followed.
    pub(super) fn own_schema(&self, at: usize, schema: &str, name: &impl Display) -> Result<()> {
        if !matches!(schema, "waltrail" | "information_schema") && !schema.starts_with("pg_") {
            return Ok(());
        }
        Err(self.refuse(
            &format!("table.{at}.source"),
            format_args!("names {name}, which belongs to PostgreSQL or to waltrail itself"),
            "follow tables of your own",
        ))
    }
}
