//! How the statement of another session begins, without any value in it. Pure.

/// Characters of it that are shown.
const LENGTH_MAX: usize = 60;

/// The words of a statement up to the first character that can begin a value: a quote, a digit, a bracket, an operator. Words and
/// names in double quotes are no values in SQL. None where nothing is left.
pub(super) fn shown(statement: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = statement.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            'a'..='z' | 'A'..='Z' | '_' => rest
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .unwrap_or(rest.len()),
            '"' => match rest[1..].find('"') {
                Some(end) => end + 2,
                None => break,
            },
            '.' | ',' | '*' => 1,
            c if c.is_ascii_whitespace() => {
                rest = rest.trim_start();
                if !rest.is_empty() {
                    out.push(' ');
                }
                continue;
            }
            _ => break,
        };
        // `E'...'`, `X'...'`: a letter before a quote is a part of the value.
        if rest[length..].starts_with('\'') {
            break;
        }
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    let out = out.trim_end();
    if out.is_empty() {
        return None;
    }
    match out.char_indices().nth(LENGTH_MAX) {
        Some((cut, _)) => Some(format!("{} ...", out[..cut].trim_end())),
        None if rest.is_empty() || rest.trim() == ";" => Some(out.to_owned()),
        None => Some(format!("{out} ...")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_shown_up_to_its_first_value() {
        for (statement, says) in [
            (
                "LOCK TABLE employees_cdc IN ACCESS EXCLUSIVE MODE",
                Some("LOCK TABLE employees_cdc IN ACCESS EXCLUSIVE MODE"),
            ),
            (
                "VACUUM  FULL\n app.\"Odd name\";",
                Some("VACUUM FULL app.\"Odd name\""),
            ),
            (
                "UPDATE e SET name = 'canary'",
                Some("UPDATE e SET name ..."),
            ),
            ("UPDATE e SET name=true", Some("UPDATE e SET name ...")),
            (
                "INSERT INTO e VALUES ('canary')",
                Some("INSERT INTO e VALUES ..."),
            ),
            (
                "DELETE FROM e WHERE salary>5000",
                Some("DELETE FROM e WHERE salary ..."),
            ),
            ("SELECT E'canary'", Some("SELECT ...")),
            ("SELECT $$canary$$", Some("SELECT ...")),
            ("SELECT 5 canary", Some("SELECT ...")),
            ("-- canary\nSELECT 1", None),
            ("/* canary */ SELECT 1", None),
            ("<insufficient privilege>", None),
            ("", None),
            ("\"canary", None),
            ("SELECT é, canary", Some("SELECT ...")),
        ] {
            assert_eq!(shown(statement).as_deref(), says, "{statement}");
        }
        let long = shown(&"word ".repeat(100)).unwrap();
        assert!(
            long.len() <= LENGTH_MAX + 4 && long.ends_with(" ..."),
            "{long}"
        );
    }
}
