//! SQL names: as people write them, as catalogs hold them, as SQL needs them.
//!
//! The rules are PostgreSQL's own (manual, section 4.1.1): a plain identifier is folded to lower
//! case, a quoted one is taken as it stands with `""` for a quote. Pure.

use std::fmt;
use std::str::FromStr;

/// The longest identifier a server keeps whole: `NAMEDATALEN` less one, in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// Why a text is not a name; a clause that fits after "the name ...".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseNameError {
    /// Nothing was written where a name has to be.
    #[error("is empty where a name is expected")]
    Empty,
    #[error("has a double quote that is never closed")]
    Unclosed,
    /// A character that only a quoted identifier may hold.
    #[error("holds {0:?}, which only a double-quoted name may hold")]
    Character(char),
    #[error("is longer than {NAME_BYTES_MAX} bytes, which is what PostgreSQL keeps of a name")]
    TooLong,
    #[error("has more than two parts; write schema.table")]
    Parts,
}

/// A table's schema and name, without quotes and exactly as in the server's catalog.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    pub schema: String,
    pub name: String,
}

impl TableName {
    /// A name from two identifiers that stand in the catalog so.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            schema: schema.into(),
            name: name.into(),
        }
    }

    /// The history table used when none is named: the same schema, `_cdc` appended.
    pub fn default_history(&self) -> Result<Self, ParseNameError> {
        let name = format!("{}_cdc", self.name);
        if name.len() > NAME_BYTES_MAX {
            return Err(ParseNameError::TooLong);
        }
        Ok(Self::new(self.schema.clone(), name))
    }
}

impl FromStr for TableName {
    type Err = ParseNameError;

    /// Reads `table` (in schema `public`), `schema.table` or either part quoted.
    fn from_str(text: &str) -> Result<Self, ParseNameError> {
        let text = text.trim();
        let (first, rest) = identifier(text)?;
        let Some(rest) = rest.strip_prefix('.') else {
            return end(rest).map(|()| Self::new("public", first));
        };
        let (second, rest) = identifier(rest)?;
        if rest.starts_with('.') {
            return Err(ParseNameError::Parts);
        }
        end(rest).map(|()| Self::new(first, second))
    }
}

impl fmt::Display for TableName {
    /// As SQL needs it: quoted where a plain identifier would mean something else.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", Identifier(&self.schema), Identifier(&self.name))
    }
}

/// The names of tables of one schema: `*` stands for any characters, none included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePattern {
    pub schema: String,
    /// As it is written, in lower case.
    pub name: String,
}

impl TablePattern {
    /// Reads a name with a `*` outside quotes; `None` for a name without one, which is a [`TableName`].
    ///
    /// # Errors
    /// As [`TableName`]; a `*` in the schema.
    pub fn parse(text: &str) -> Result<Option<Self>, ParseNameError> {
        let text = text.trim();
        if split_outside_quotes(text, '*').len() == 1 {
            return Ok(None);
        }
        let (schema, name) = match split_outside_quotes(text, '.')[..] {
            [name] => ("public".to_owned(), name),
            [schema, name] => (parse_identifier(schema)?, name),
            _ => return Err(ParseNameError::Parts),
        };
        // What is between the stars is as in a plain name, but may begin with a digit.
        for part in name.split('*').filter(|part| !part.is_empty()) {
            plain_identifier(&format!("_{part}"))?;
        }
        match name.len() {
            1..=NAME_BYTES_MAX => Ok(Some(Self {
                schema,
                name: name.to_ascii_lowercase(),
            })),
            _ => Err(ParseNameError::TooLong),
        }
    }

    pub fn matches(&self, table: &TableName) -> bool {
        self.schema == table.schema && matches(&self.name, &table.name)
    }

    /// The table of which `name` stands for the `*`.
    pub fn with(&self, name: &str) -> TableName {
        TableName::new(self.schema.clone(), self.name.replace('*', name))
    }
}

impl fmt::Display for TablePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", Identifier(&self.schema), self.name)
    }
}

/// Whether a name is one that a pattern stands for.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut name) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    // The leftmost place of each part leaves most for the following ones.
    for part in parts {
        match name.find(part) {
            Some(at) => name = &name[at + part.len()..],
            None => return false,
        }
    }
    name.ends_with(last)
}

/// One identifier, for example a column's name.
pub(crate) fn parse_identifier(text: &str) -> Result<String, ParseNameError> {
    let (name, rest) = identifier(text.trim())?;
    end(rest).map(|()| name)
}

/// Splits at `separator` where it is not inside double quotes.
pub(crate) fn split_outside_quotes(text: &str, separator: char) -> Vec<&str> {
    let mut quoted = false;
    text.split(|c: char| {
        quoted ^= c == '"';
        c == separator && !quoted
    })
    .collect()
}

/// An identifier as SQL writes it: quoted only where it has to be.
#[derive(Clone, Copy, Debug)]
pub struct Identifier<'a>(pub &'a str);

impl fmt::Display for Identifier<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = self
            .0
            .starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
            && self
                .0
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            && !RESERVED.split_ascii_whitespace().any(|word| word == self.0);
        if plain {
            f.write_str(self.0)
        } else {
            write!(f, "\"{}\"", self.0.replace('"', "\"\""))
        }
    }
}

fn end(rest: &str) -> Result<(), ParseNameError> {
    rest.chars()
        .next()
        .map_or(Ok(()), |c| Err(ParseNameError::Character(c)))
}

/// The identifier at the start of `text`, and what follows it.
fn identifier(text: &str) -> Result<(String, &str), ParseNameError> {
    let (name, rest) = match text.strip_prefix('"') {
        Some(quoted) => quoted_identifier(quoted)?,
        None => plain_identifier(text)?,
    };
    match name.len() {
        0 => Err(ParseNameError::Empty),
        1..=NAME_BYTES_MAX => Ok((name, rest)),
        _ => Err(ParseNameError::TooLong),
    }
}

fn quoted_identifier(text: &str) -> Result<(String, &str), ParseNameError> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let at = rest.find('"').ok_or(ParseNameError::Unclosed)?;
        name.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.strip_prefix('"') {
            Some(after) => {
                name.push('"');
                rest = after;
            }
            None if name.contains('\0') => return Err(ParseNameError::Character('\0')),
            None => return Ok((name, rest)),
        }
    }
}

fn plain_identifier(text: &str) -> Result<(String, &str), ParseNameError> {
    let length = text.find('.').unwrap_or(text.len());
    let (name, rest) = text.split_at(length);
    for (at, c) in name.char_indices() {
        let fits = c.is_ascii_alphabetic()
            || c == '_'
            || (!c.is_ascii() && c.is_alphanumeric())
            || (at > 0 && (c.is_ascii_digit() || c == '$'));
        if !fits {
            return Err(ParseNameError::Character(c));
        }
    }
    Ok((name.to_ascii_lowercase(), rest))
}

/// Key words that cannot stand as a table's or schema's name without quotes (manual, appendix C:
/// "reserved" and "reserved (can be function or type)").
const RESERVED: &str = "\
    all analyse analyze and any array as asc asymmetric authorization binary both case cast \
    check collate collation column concurrently constraint create cross current_catalog \
    current_date current_role current_schema current_time current_timestamp current_user default \
    deferrable desc distinct do else end except false fetch for foreign freeze from full grant \
    group having ilike in initially inner intersect into is isnull join lateral leading left \
    like limit localtime localtimestamp natural not notnull null offset on only or order outer \
    overlaps placing primary references returning right select session_user similar some \
    symmetric system_user table tablesample then to trailing true union unique user using \
    variadic verbose when where window with";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Result<(String, String), ParseNameError> {
        text.parse::<TableName>().map(|t| (t.schema, t.name))
    }

    #[test]
    fn plain_names_fold_and_quoted_names_do_not() {
        for (text, schema, name) in [
            ("employees", "public", "employees"),
            ("Public.Employees", "public", "employees"),
            (r#""My Schema"."T""#, "My Schema", "T"),
            (r#"app."a.b""c""#, "app", "a.b\"c"),
            (" app.t$1 ", "app", "t$1"),
        ] {
            assert_eq!(parsed(text), Ok((schema.into(), name.into())), "{text}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused_with_its_reason() {
        let long = "x".repeat(64);
        for (text, reason) in [
            ("", ParseNameError::Empty),
            ("a.", ParseNameError::Empty),
            (".a", ParseNameError::Empty),
            (r#""""#, ParseNameError::Empty),
            (r#""a"#, ParseNameError::Unclosed),
            ("a b", ParseNameError::Character(' ')),
            ("a-b", ParseNameError::Character('-')),
            ("1a", ParseNameError::Character('1')),
            (r#""a"b"#, ParseNameError::Character('b')),
            ("a.b.c", ParseNameError::Parts),
            (&long, ParseNameError::TooLong),
        ] {
            assert_eq!(parsed(text), Err(reason), "{text}");
        }
    }

    #[test]
    fn quotes_are_shown_only_where_they_matter() {
        for (schema, name, shown) in [
            ("public", "employees", "public.employees"),
            ("public", "user", r#"public."user""#),
            ("My", "a\"b", r#""My"."a""b""#),
        ] {
            assert_eq!(TableName::new(schema, name).to_string(), shown);
        }
    }

    #[test]
    fn separators_inside_quotes_do_not_split() {
        assert_eq!(
            split_outside_quotes(r#"a,"b,c",d"#, ','),
            ["a", r#""b,c""#, "d"]
        );
    }

    #[test]
    fn a_star_stands_for_any_part_of_a_name() {
        for (pattern, name, fits) in [
            ("public.*", "public.t", true),
            ("*", "public.t", true),
            ("public.*", "other.t", false),
            ("billing.inv_*", "billing.inv_", true),
            ("billing.inv_*", "billing.inv_2026", true),
            ("billing.inv_*", "billing.in", false),
            ("billing.*_2026", "billing.inv_2026", true),
            ("billing.*a*b*", "billing.xxaybz", true),
            ("billing.*a*b", "billing.bab", true),
            ("billing.*ab*ab", "billing.ab", false),
            ("Billing.INV_*", "billing.inv_1", true),
            (r#""My Schema".*"#, r#""My Schema"."T""#, true),
        ] {
            let read = TablePattern::parse(pattern).unwrap().unwrap();
            assert_eq!(
                read.matches(&name.parse().unwrap()),
                fits,
                "{pattern} {name}"
            );
        }
        for name in ["public.t", r#"public."a*b""#, r#""a*".t"#] {
            assert_eq!(TablePattern::parse(name), Ok(None), "{name}");
        }
        for (text, reason) in [
            ("*.t", ParseNameError::Character('*')),
            ("a.b.*", ParseNameError::Parts),
            ("a.b-*", ParseNameError::Character('-')),
            (r#"a."B"*"#, ParseNameError::Character('"')),
        ] {
            assert_eq!(TablePattern::parse(text), Err(reason), "{text}");
        }
        let history = TablePattern::parse("audit.*_history").unwrap().unwrap();
        assert_eq!(history.with("T").to_string(), r#"audit."T_history""#);
    }

    proptest! {
        #[test]
        fn a_shown_name_reads_back_as_itself(schema in "[^\0]{1,12}", name in "[^\0]{1,12}") {
            let table = TableName::new(schema, name);
            prop_assert_eq!(table.to_string().parse::<TableName>(), Ok(table));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<TableName>();
        }
    }
}
