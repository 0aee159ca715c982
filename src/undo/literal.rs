//! Values as SQL, and text as comments of SQL. Pure.
//!
//! **Nothing that others wrote ends a literal or a line of comment**, whatever `standard_conforming_strings` says.

use std::fmt::Write as _;

use crate::life::row::Cell;
use crate::printable::{acts, printable};

/// Characters of a comment.
const COMMENT_MAX: usize = 2_000;

/// Types whose values are written without quotes.
const NUMBERS: [&str; 4] = ["smallint", "integer", "bigint", "numeric"];

/// A value; NULL for one that is not known.
pub(super) fn value(cell: &Cell, kind: &str) -> String {
    let Some(text) = cell.text() else {
        return "NULL".to_owned();
    };
    let is_number = NUMBERS.iter().any(|number| {
        kind.strip_prefix(number)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('(') && rest.ends_with(')'))
    });
    // NaN and the infinities are written as text.
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_plain = digits.starts_with(|c: char| c.is_ascii_digit())
        && digits.chars().all(|c| c.is_ascii_digit() || c == '.');
    match is_number && is_plain {
        true => text.to_owned(),
        false => text_literal(text),
    }
}

/// A text. Characters that act on a terminal are escapes.
pub(super) fn text_literal(text: &str) -> String {
    let escaped = |c: char| c == '\\' || acts(c);
    if !text.contains(escaped) {
        return format!("'{}'", text.replace('\'', "''"));
    }
    let mut literal = String::with_capacity(text.len() + 8);
    literal.push_str("E'");
    for c in text.chars() {
        match c {
            '\\' => literal.push_str(r"\\"),
            '\'' => literal.push_str("''"),
            '\n' => literal.push_str(r"\n"),
            c if escaped(c) => {
                // Writing to a String cannot fail.
                let _ = write!(literal, r"\u{:04X}", u32::from(c));
            }
            c => literal.push(c),
        }
    }
    literal.push('\'');
    literal
}

/// A line of comment.
pub(super) fn comment(text: &str) -> String {
    format!("-- {}\n", printable(text, COMMENT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(text: &str) -> Cell {
        Cell::Known(Some(text.to_owned()))
    }

    #[test]
    fn a_value_is_written_so_that_nothing_of_it_is_sql() {
        for (text, kind, sql) in [
            ("7", "integer", "7"),
            ("-1.50", "numeric(10,2)", "-1.50"),
            ("NaN", "numeric", "'NaN'"),
            ("{1}", "integer[]", "'{1}'"),
            ("it's", "text", "'it''s'"),
            (r"a\'b", "text", r"E'a\\''b'"),
            ("a\n-- b", "text", r"E'a\n-- b'"),
            ("\u{1b}[2J", "text", r"E'\u001B[2J'"),
            ("", "text", "''"),
            ("1", "text", "'1'"),
        ] {
            assert_eq!(value(&known(text), kind), sql);
        }
        assert_eq!(value(&Cell::Known(None), "text"), "NULL");
    }

    #[test]
    fn a_comment_is_one_line() {
        assert_eq!(comment("a\nDROP TABLE b;"), "-- a\\nDROP TABLE b;\n");
    }
}
