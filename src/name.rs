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
