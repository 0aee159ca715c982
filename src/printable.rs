//! Text that others chose, made fit for a terminal and for one line of a log.
//!
//! Names of tables, columns, slots and roles can hold any character, and a server says what it likes. Printed as it is,
//! such text can move the cursor, hide what stands beside it, or look like lines of ours. Pure.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Characters of one sentence, or of one field of a log line.
pub(crate) const TEXT_MAX: usize = 16_000;

/// Whether a character does something else than to be seen: controls (C0, DEL, C1), ends of lines, and what turns the
/// direction of writing.
pub(crate) fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// As a part of one line: such characters as escapes, and at most `max` characters.
pub(crate) fn printable(text: &str, max: usize) -> String {
    escaped(text, max, |_| false)
}

/// The same for text of several lines.
pub(crate) fn printable_lines(text: &str, max: usize) -> String {
    escaped(text, max, |c| c == '\n')
}

fn escaped(text: &str, max: usize, kept: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len().min(max));
    for (n, c) in text.chars().enumerate() {
        if n == max {
            // Writing to a String cannot fail.
            let _ = write!(out, "... ({} bytes in all)", text.len());
            break;
        }
        match acts(c) && !kept(c) {
            true => out.extend(c.escape_debug()),
            false => out.push(c),
        }
    }
    out
}

/// JSON with such characters as escapes; JSON has them in strings only.
pub(crate) fn printable_json(json: &str) -> Cow<'_, str> {
    let acts = |c: char| c != '\n' && acts(c);
    if !json.contains(acts) {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        match acts(c) {
            true => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVIL: &str = "a\u{1b}[2Jb\r\nc\u{9b}d\u{7f}\u{202e}e\u{2028}\u{0}é";

    #[test]
    fn what_acts_is_shown_instead() {
        assert_eq!(
            printable(EVIL, 100),
            r"a\u{1b}[2Jb\r\nc\u{9b}d\u{7f}\u{202e}e\u{2028}\0é"
        );
        let lines = printable_lines("a\nb\u{1b}", 100);
        assert_eq!(lines, "a\nb\\u{1b}");
    }

    #[test]
    fn long_text_is_cut_and_says_how_long_it_was() {
        assert_eq!(printable("äöü", 3), "äöü");
        assert_eq!(printable("äöü", 2), "äö... (6 bytes in all)");
    }

    #[test]
    fn json_stays_the_same_json() {
        let json = serde_json::to_string(EVIL).unwrap() + "\n";
        let shown = printable_json(&json);
        assert!(!shown.trim_end().contains(acts), "{shown}");
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), EVIL);
    }
}
