//! How changes and history rows look, side by side.
//!
//! Pure: text in, text out. Nothing that a table holds reaches the terminal unfiltered: control characters
//! are shown as escapes.

use anstyle::{AnsiColor, Effects, Style};

use super::history::Row;

/// A screen of fewer columns has the statements above their rows instead of beside them.
const BESIDE_MIN: usize = 100;
/// Statements are wrapped at this width even where there is more room.
const LEFT_MAX: usize = 60;
const SEPARATOR: &str = " | ";

/// The columns of a history row: title, width, and whether it is a number.
const COLUMNS: [(&str, usize, bool); 7] = [
    ("cdc_id", 6, true),
    ("change_type", 11, false),
    ("id", 7, true),
    ("name", 10, false),
    ("department", 11, false),
    ("salary", 9, true),
    ("time (UTC)", 12, false),
];

/// What stands in the left column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// A statement.
    Statement(String),
    /// What the server refused.
    Error(String),
}

/// The look of the screen.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    left: usize,
    beside: bool,
    colours: bool,
}

impl View {
    /// For a screen of so many columns.
    pub(super) fn new(width: usize, colours: bool) -> Self {
        let beside = width >= BESIDE_MIN;
        let left = if beside {
            (width - rows_width() - SEPARATOR.len()).min(LEFT_MAX)
        } else {
            width.max(20)
        };
        Self {
            left,
            beside,
            colours,
        }
    }

    /// The head of the table.
    pub(super) fn head(&self) -> String {
        let titles = COLUMNS.map(|(title, width, number)| cell(title, width, number));
        let bold = Style::new().effects(Effects::BOLD);
        let head = |left: &str| {
            format!(
                "{}{SEPARATOR}{}",
                pad(left, self.left, false),
                titles.join(" ")
            )
        };
        if self.beside {
            let rule = format!("{}-+-{}", "-".repeat(self.left), "-".repeat(rows_width()));
            format!(
                "{}\n{}\n{rule}\n",
                pad("", self.left, false) + SEPARATOR + &self.paint(bold, "employees_cdc"),
                self.paint(bold, head("employees").trim_end())
            )
        } else {
            self.paint(bold, titles.join(" ").trim_end()) + "\n"
        }
    }

    /// What was done, and the rows that came of it.
    pub(super) fn block(&self, said: &[Said], rows: &[(i32, Row)]) -> String {
        let mut left: Vec<(String, Style)> = Vec::new();
        for said in said {
            let (text, style) = match said {
                Said::Statement(text) => (text.as_str(), Style::new()),
                Said::Error(text) => (text.as_str(), AnsiColor::Red.on_default()),
            };
            left.extend(wrap(text, self.left).into_iter().map(|line| (line, style)));
        }
        let right: Vec<String> = rows
            .iter()
            .map(|(cdc_id, row)| self.row(*cdc_id, row))
            .collect();
        let mut text = String::new();
        if !self.beside {
            for (line, style) in left {
                text.push_str(&self.paint(style, &line));
                text.push('\n');
            }
            for row in right {
                text.push_str(&row);
                text.push('\n');
            }
            return text;
        }
        for n in 0..left.len().max(right.len()) {
            let (line, style) = left.get(n).cloned().unwrap_or_default();
            let row = right.get(n).map_or("", String::as_str);
            let line = self.paint(style, &pad(&line, self.left, false));
            text.push_str(format!("{line}{SEPARATOR}{row}").trim_end());
            text.push('\n');
        }
        text
    }

    /// Something that happened to the daemon.
    pub(super) fn note(&self, text: &str) -> String {
        self.paint(AnsiColor::Cyan.on_default(), &format!("-- {text}")) + "\n"
    }

    fn row(&self, cdc_id: i32, row: &Row) -> String {
        let or_null = |value: &Option<String>| value.clone().unwrap_or_else(|| "NULL".to_owned());
        // Day and microseconds are left out.
        let time = or_null(&row.change_timestamp);
        let time = time.get(11..23).unwrap_or(&time).to_owned();
        let values = [
            cdc_id.to_string(),
            or_null(&row.change_type),
            row.id
                .map_or_else(|| "NULL".to_owned(), |id| id.to_string()),
            or_null(&row.name),
            or_null(&row.department),
            or_null(&row.salary),
            time,
        ];
        let cells: Vec<String> = values
            .iter()
            .zip(COLUMNS)
            .map(|(value, (_, width, number))| cell(&clean(value), width, number))
            .collect();
        let style = match row.change_type.as_deref() {
            Some("INSERT") => AnsiColor::Green.on_default(),
            Some("UPDATE") => AnsiColor::Yellow.on_default(),
            Some("DELETE") => AnsiColor::Red.on_default(),
            Some("TRUNCATE") => AnsiColor::Magenta.on_default(),
            _ => Style::new(),
        };
        self.paint(style, cells.join(" ").trim_end())
    }

    fn paint(&self, style: Style, text: &str) -> String {
        if self.colours && !style.is_plain() {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }
}

/// Whether colours are wanted: on a terminal that knows some, unless `NO_COLOR` holds anything.
pub(super) fn colours(terminal: bool, no_color: Option<&str>, term: Option<&str>) -> bool {
    terminal && no_color.is_none_or(str::is_empty) && term != Some("dumb")
}

fn rows_width() -> usize {
    COLUMNS.iter().map(|(_, width, _)| width + 1).sum::<usize>() - 1
}

/// A value in its column; one that is too long says so.
fn cell(text: &str, width: usize, number: bool) -> String {
    if text.chars().count() <= width {
        return pad(text, width, number);
    }
    let cut: String = text.chars().take(width - 2).collect();
    cut + ".."
}

fn pad(text: &str, width: usize, to_the_right: bool) -> String {
    if to_the_right {
        format!("{text:>width$}")
    } else {
        format!("{text:<width$}")
    }
}

/// The same text without control characters, which could do anything to a terminal.
fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    clean
}

/// Lines of at most `width` characters, broken between words where possible; further lines are indented.
fn wrap(text: &str, width: usize) -> Vec<String> {
    const LINES_MAX: usize = 12;
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let mut word: Vec<char> = clean(word).chars().collect();
        while !word.is_empty() {
            let used = line.chars().count();
            let gap = usize::from(!line.trim().is_empty());
            if used + gap + word.len() <= width {
                if gap == 1 {
                    line.push(' ');
                }
                line.extend(word.drain(..));
            } else if gap == 1 {
                lines.push(std::mem::replace(&mut line, "  ".to_owned()));
            } else {
                // The word alone is longer than a line.
                line.extend(word.drain(..width - used));
                lines.push(std::mem::replace(&mut line, "  ".to_owned()));
            }
            if lines.len() == LINES_MAX {
                lines.push("  ...".to_owned());
                return lines;
            }
        }
    }
    if !line.trim().is_empty() {
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(change_type: &str, name: &str) -> Row {
        Row {
            change_type: Some(change_type.to_owned()),
            id: Some(7),
            name: Some(name.to_owned()),
            department: Some("Research".to_owned()),
            salary: None,
            change_timestamp: Some("2025-01-02 03:04:05.678901".to_owned()),
        }
    }

    fn statement(text: &str) -> Said {
        Said::Statement(text.to_owned())
    }

    #[test]
    fn statements_stand_beside_their_rows_in_aligned_columns() {
        let view = View::new(120, false);
        let rows = [(1, row("INSERT", "Ada")), (2, row("UPDATE", "Grace"))];
        let text =
            view.head() + &view.block(&[statement("INSERT INTO employees VALUES (1)")], &rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        let column = lines[1].find("name").unwrap();
        assert_eq!(lines[3].find("Ada"), Some(column), "{text}");
        assert_eq!(lines[4].find("Grace"), Some(column), "{text}");
        assert!(lines[3].starts_with("INSERT INTO") && lines[4].starts_with("   "));
        assert!(lines[3].ends_with("NULL 03:04:05.678"), "{text}");
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn no_line_is_wider_than_the_screen() {
        let sql = format!(
            "INSERT INTO employees (name) VALUES ('{}')",
            "x y ".repeat(80)
        );
        for width in [80, 99, 100, 120, 200] {
            let view = View::new(width, false);
            let long = row("INSERT", &"very ".repeat(30));
            let blocks = [
                view.head(),
                view.block(
                    &[statement(&sql), statement(&"z".repeat(500))],
                    &[(1, long)],
                ),
            ];
            for line in blocks.concat().lines() {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn a_narrow_screen_has_statements_above_their_rows() {
        let text = View::new(80, false).block(&[statement("DELETE")], &[(1, row("DELETE", "Ada"))]);
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn each_kind_of_change_has_its_colour() {
        let view = View::new(120, true);
        let kinds = ["INSERT", "UPDATE", "DELETE", "TRUNCATE"];
        let painted: Vec<String> = kinds
            .iter()
            .map(|kind| view.block(&[], &[(1, row(kind, "Ada"))]).replace(kind, ""))
            .map(|text| text[text.find('\u{1b}').unwrap()..][..5].to_owned())
            .collect();
        let mut different = painted.clone();
        different.sort();
        different.dedup();
        assert_eq!(different.len(), kinds.len(), "{painted:?}");
        assert!(
            view.block(&[], &[(1, row("INSERT", "Ada"))])
                .trim_end()
                .ends_with("\u{1b}[0m")
        );
    }

    #[test]
    fn values_cannot_command_the_terminal() {
        let said = [
            statement("INSERT \u{1b}[2J"),
            Said::Error("no\u{7}".to_owned()),
        ];
        let text = View::new(120, false).block(&said, &[(1, row("INSERT", "\u{1b}]0;x\n"))]);
        assert!(
            text.chars().all(|c| c == '\n' || !c.is_control()),
            "{text:?}"
        );
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn colours_are_for_terminals_whose_owner_wants_them() {
        assert!(colours(true, None, Some("xterm")));
        assert!(colours(true, Some(""), None));
        assert!(!colours(true, Some("1"), Some("xterm")));
        assert!(!colours(true, None, Some("dumb")));
        assert!(!colours(false, None, Some("xterm")));
    }
}
