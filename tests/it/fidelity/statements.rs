//! Random statements on a table as it is now.

use fastrand::Rng;

use super::kinds;
use super::tables::{Column, quote};

/// Statements that change the shape of a table. The list has what the program follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ddl {
    AddColumn,
    AddColumnWithDefault,
    DropColumn,
    RenameColumn,
    /// Of the key.
    RenameKey,
    /// With the values kept, where there is a way.
    AlterType,
    /// To any type, all values NULL.
    AlterTypeToAny,
    AddPartition,
    Identity,
    RenameTable,
}

/// What the program follows in a history that it made.
pub const FOLLOWED: &[Ddl] = &[
    Ddl::AddColumn,
    Ddl::AddColumnWithDefault,
    Ddl::DropColumn,
    Ddl::RenameColumn,
    Ddl::RenameKey,
    Ddl::AlterType,
    Ddl::AlterTypeToAny,
    Ddl::AddPartition,
    Ddl::Identity,
    Ddl::RenameTable,
];

/// And in one that was made by hand, where new columns are not recorded.
pub const UNRECORDED: &[Ddl] = &[
    Ddl::AddColumn,
    Ddl::AddColumnWithDefault,
    Ddl::DropColumn,
    Ddl::RenameColumn,
    Ddl::AddPartition,
    Ddl::Identity,
];

fn literal(value: Option<&str>) -> String {
    value.map_or_else(
        || "NULL".to_owned(),
        |text| format!("'{}'", text.replace('\'', "''")),
    )
}

/// What statements are made from.
pub struct Maker<'a> {
    pub rng: &'a mut Rng,
    /// The last number that was given to a row.
    pub last_id: &'a mut i64,
    pub name: &'a str,
    pub columns: &'a [Column],
}

impl Maker<'_> {
    /// A number that no row has had, in some order.
    fn fresh_id(&mut self) -> i64 {
        *self.last_id += 1;
        *self.last_id / 61 * 61 + *self.last_id * 37 % 61
    }

    fn value(&mut self, column: &Column) -> Option<String> {
        if column.name == "id" {
            return Some(self.fresh_id().to_string());
        }
        let value = kinds::value(self.rng, &column.kind);
        match column.key && value.is_none() {
            true => Some("00000000000000000000000000000000".to_owned()),
            // A key must fit into a page.
            false if column.key => value.map(|text| text.chars().take(200).collect()),
            false => value,
        }
    }

    fn rows(&mut self, number: usize) -> (String, Vec<Vec<Option<String>>>) {
        let all = self.columns;
        let columns: Vec<&Column> = all.iter().filter(|column| !column.generated).collect();
        let names: Vec<String> = columns.iter().map(|column| quote(&column.name)).collect();
        let mut row = || columns.iter().map(|column| self.value(column)).collect();
        (names.join(", "), (0..number).map(|_| row()).collect())
    }

    pub fn insert(&mut self) -> String {
        let number = self.rng.usize(1..4);
        let (names, rows) = self.rows(number);
        let rows: Vec<String> = rows
            .iter()
            .map(|row| {
                let row: Vec<String> = row.iter().map(|value| literal(value.as_deref())).collect();
                format!("({})", row.join(", "))
            })
            .collect();
        format!(
            "INSERT INTO {} ({names}) VALUES {}",
            self.name,
            rows.join(", ")
        )
    }

    /// A COPY statement from a file, and what is in the file.
    pub fn copy(&mut self, file: &str) -> (String, String) {
        let number = self.rng.usize(2..12);
        let (names, rows) = self.rows(number);
        let mut data = String::new();
        for row in rows {
            let field = |value: &Option<String>| match value {
                Some(text) => format!("\"{}\"", text.replace('"', "\"\"")),
                None => String::new(),
            };
            let row: Vec<String> = row.iter().map(field).collect();
            data.push_str(&row.join(","));
            data.push('\n');
        }
        (
            format!("COPY {} ({names}) FROM '{file}' (FORMAT csv)", self.name),
            data,
        )
    }

    fn some_rows(&mut self, most: usize) -> String {
        format!(
            "(tableoid, ctid) IN (SELECT tableoid, ctid FROM {} ORDER BY id OFFSET {} LIMIT {})",
            self.name,
            self.rng.usize(..6),
            self.rng.usize(1..=most)
        )
    }

    pub fn update(&mut self) -> String {
        let all = self.columns;
        let writable = || all.iter().filter(|column| !column.generated);
        let keys: Vec<&Column> = writable().filter(|column| column.key).collect();
        let mut sets = Vec::new();
        let mut most = 4;
        if self.rng.u8(..5) == 0 {
            let key = keys[self.rng.usize(..keys.len())];
            let value = self.value(key);
            sets.push(format!(
                "{} = {}",
                quote(&key.name),
                literal(value.as_deref())
            ));
            most = 1;
        }
        for column in writable().filter(|column| !column.key) {
            let name = quote(&column.name);
            match self.rng.u8(..6) {
                0 | 1 => {
                    let value = kinds::value(self.rng, &column.kind);
                    sets.push(format!("{name} = {}", literal(value.as_deref())));
                }
                2 => sets.push(format!("{name} = {name}")),
                _ => {}
            }
        }
        if sets.is_empty() {
            sets.push("id = id".to_owned());
        }
        let rows = self.some_rows(most);
        format!("UPDATE {} SET {} WHERE {rows}", self.name, sets.join(", "))
    }

    pub fn delete(&mut self) -> String {
        let rows = self.some_rows(2);
        format!("DELETE FROM {} WHERE {rows}", self.name)
    }

    /// A statement that changes the shape, and works in most cases.
    pub fn ddl(
        &mut self,
        kind: Ddl,
        table: &super::tables::Table,
        made: &mut usize,
    ) -> Option<String> {
        *made += 1;
        let plain: Vec<&Column> = self
            .columns
            .iter()
            .filter(|column| !column.key && !column.generated)
            .collect();
        let some = (!plain.is_empty()).then(|| plain[self.rng.usize(..plain.len())]);
        // Sometimes a name that was there before.
        let fresh = match self.rng.u8(..3) {
            0 if table.made => format!("c{}", self.rng.usize(..7)),
            _ => format!("n{made}"),
        };
        let any = kinds::any(self.rng);
        let name = self.name;
        let alter = |what: String| Some(format!("ALTER TABLE {name} {what}"));
        match kind {
            Ddl::AddColumn => alter(format!("ADD COLUMN {fresh} {any}")),
            Ddl::AddColumnWithDefault => {
                let value = kinds::value(self.rng, any);
                alter(format!(
                    "ADD COLUMN {fresh} {any} DEFAULT {}",
                    literal(value.as_deref())
                ))
            }
            Ddl::DropColumn => alter(format!("DROP COLUMN {}", quote(&some?.name))),
            Ddl::RenameColumn => alter(format!("RENAME COLUMN {} TO {fresh}", quote(&some?.name))),
            Ddl::RenameKey => {
                let column = self
                    .columns
                    .iter()
                    .find(|column| column.key && column.name != "id")?;
                alter(format!("RENAME COLUMN {} TO k{made}", quote(&column.name)))
            }
            Ddl::AlterType => {
                let of = |column: &&&Column| {
                    kinds::CONVERSIONS
                        .iter()
                        .any(|(from, _)| *from == column.kind)
                };
                let columns: Vec<&Column> = self
                    .columns
                    .iter()
                    .filter(|column| !column.generated)
                    .collect();
                let column = columns.iter().find(of)?;
                let ways: Vec<_> = kinds::CONVERSIONS
                    .iter()
                    .filter(|(from, _)| *from == column.kind)
                    .collect();
                let (_, to) = ways[self.rng.usize(..ways.len())];
                alter(format!(
                    "ALTER COLUMN {0} TYPE {to} USING {0}::{to}",
                    quote(&column.name)
                ))
            }
            Ddl::AlterTypeToAny => alter(format!(
                "ALTER COLUMN {} TYPE {any} USING NULL",
                quote(&some?.name)
            )),
            Ddl::AddPartition if table.partitioned => {
                let from = 500 + *made * 20;
                Some(format!(
                    "CREATE TABLE {}_n{made} PARTITION OF {name} FOR VALUES FROM ({from}) TO ({})",
                    table.name,
                    from + 20
                ))
            }
            Ddl::Identity if table.has_primary_key => {
                let generated = self.columns.iter().any(|column| column.generated);
                match self.rng.bool() && !generated {
                    true => alter("REPLICA IDENTITY FULL".to_owned()),
                    false => alter("REPLICA IDENTITY DEFAULT".to_owned()),
                }
            }
            Ddl::RenameTable => alter(format!("RENAME TO {}_r{made}", table.name)),
            _ => None,
        }
    }
}
