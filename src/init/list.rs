//! The list of tables on the terminal: what a key does to it, and its lines. Pure.
//!
//! Ours, since of the prompts that crates have, none filters, chooses all that match without forgetting what was chosen before,
//! and shows entries that cannot be chosen together with the reason.

use std::ops::Range;

use console::{Style, measure_text_width, pad_str, truncate_str};

use super::tables::{Entry, count, size};
use crate::printable::printable;

/// Lines beside those of the tables: title, filter and head above, the keys below.
const FRAME: usize = 4;
/// Lines that say more of the table at the cursor, on a screen of at least [`TALL`] lines.
const DETAIL: usize = 4;
const DETAIL_LOW: usize = 2;
const TALL: usize = 20;
/// A name may take so much more than what stands beside it.
const REMARK_MIN: usize = 18;
/// A narrower screen has no room for remarks.
const WIDE: usize = 60;
const SIZE: usize = 10;
const ROWS: usize = 8;
/// Characters of a name that are shown; PostgreSQL's longest two have 131 with their quotes.
const NAME_MAX: usize = 200;

/// What a key means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Press {
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
    Toggle,
    /// Every table that matches the filter, or none of them where all are chosen.
    All,
    Type(char),
    Erase,
    Clear,
    Done,
    Other,
}

/// The tables, what is typed, and where the cursor is.
pub(super) struct List {
    title: String,
    rows: Vec<Row>,
    filter: String,
    /// The row at the cursor, among those that match.
    at: usize,
    /// The first row that is shown, among those that match.
    top: usize,
    message: Option<&'static str>,
}

struct Row {
    entry: Entry,
    name: String,
    /// As the filter looks for it.
    sought: String,
    chosen: bool,
}

impl Row {
    fn may_be_chosen(&self) -> bool {
        self.entry.fits()
    }
}

impl List {
    /// Tables that are followed already are chosen.
    pub(super) fn new(title: String, entries: Vec<Entry>) -> Self {
        let row = |entry: Entry| {
            let name = printable(&entry.table.to_string(), NAME_MAX);
            Row {
                sought: name.to_lowercase(),
                name,
                chosen: entry.followed && entry.fits(),
                entry,
            }
        };
        Self {
            title,
            rows: entries.into_iter().map(row).collect(),
            filter: String::new(),
            at: 0,
            top: 0,
            message: None,
        }
    }

    /// What was chosen, and the others.
    pub(super) fn into_chosen(self) -> (Vec<Entry>, Vec<Entry>) {
        let (chosen, others): (Vec<Row>, Vec<Row>) =
            self.rows.into_iter().partition(|row| row.chosen);
        let entries = |rows: Vec<Row>| rows.into_iter().map(|row| row.entry).collect();
        (entries(chosen), entries(others))
    }

    /// The rows that match the filter.
    fn matching(&self) -> Vec<usize> {
        let sought = self.filter.to_lowercase();
        let rows = self.rows.iter().enumerate();
        rows.filter(|(_, row)| row.sought.contains(&sought))
            .map(|(at, _)| at)
            .collect()
    }

    /// Takes a key on a screen of so many lines; true: the choice is made.
    pub(super) fn press(&mut self, press: Press, height: usize) -> bool {
        self.message = None;
        let matching = self.matching();
        let last = matching.len().saturating_sub(1);
        let page = page(height, self.rows.len());
        match press {
            Press::Up => self.at = self.at.saturating_sub(1),
            Press::Down => self.at = (self.at + 1).min(last),
            Press::PageUp => self.at = self.at.saturating_sub(page),
            Press::PageDown => self.at = (self.at + page).min(last),
            Press::First => self.at = 0,
            Press::Last => self.at = last,
            Press::Toggle => self.toggle(&matching),
            Press::All => self.toggle_all(&matching),
            Press::Type(typed) => {
                self.filter.push(typed);
                (self.at, self.top) = (0, 0);
            }
            Press::Erase => {
                self.filter.pop();
                (self.at, self.top) = (0, 0);
            }
            Press::Clear => {
                self.filter.clear();
                (self.at, self.top) = (0, 0);
            }
            Press::Done if self.rows.iter().any(|row| row.chosen) => return true,
            Press::Done => self.message = Some("choose a table first, with the space bar"),
            Press::Other => {}
        }
        false
    }

    fn toggle(&mut self, matching: &[usize]) {
        let Some(row) = matching.get(self.at).and_then(|at| self.rows.get_mut(*at)) else {
            return;
        };
        match row.may_be_chosen() {
            true => row.chosen = !row.chosen,
            false => self.message = Some("this table cannot be followed as it is"),
        }
    }

    fn toggle_all(&mut self, matching: &[usize]) {
        let matching = matching
            .iter()
            .copied()
            .filter(|at| self.rows[*at].may_be_chosen());
        let matching: Vec<usize> = matching.collect();
        let choose = matching.iter().any(|at| !self.rows[*at].chosen);
        for at in matching {
            self.rows[at].chosen = choose;
        }
    }

    /// The column of the filter's end, on the second line.
    pub(super) fn cursor(&self) -> usize {
        measure_text_width(FILTER) + measure_text_width(&self.filter)
    }

    /// The lines for a screen of this height and width; one less of each is used.
    pub(super) fn lines(&mut self, height: usize, width: usize) -> Vec<String> {
        let width = width.saturating_sub(1).max(20);
        let matching = self.matching();
        let page = page(height, self.rows.len());
        self.top = self.top.min(self.at);
        if self.at >= self.top + page {
            self.top = self.at + 1 - page;
        }
        let shown = self.top..(self.top + page).min(matching.len());
        let mut lines = vec![
            self.title_line(width),
            self.filter_line(&matching, &shown, width),
        ];
        let columns = self.columns(width);
        lines.push(
            Style::new()
                .for_stderr()
                .dim()
                .apply_to(columns.line("", "table", ("size", "rows"), ""))
                .to_string(),
        );
        for (nth, at) in shown.clone().zip(&matching[shown.clone()]) {
            lines.push(self.row(*at, nth == self.at, &columns));
        }
        let blank = page - shown.len();
        lines.extend(std::iter::repeat_n(String::new(), blank));
        lines.extend(self.detail(matching.get(self.at), detail(height), width));
        let keys = "type: filter  space: choose  tab: all that match  enter: done  ctrl-c: leave";
        let keys = self.message.unwrap_or(keys);
        let style = match self.message {
            Some(_) => Style::new().for_stderr().yellow(),
            None => Style::new().for_stderr().dim(),
        };
        lines.push(style.apply_to(truncate_str(keys, width, "…")).to_string());
        lines
    }

    fn title_line(&self, width: usize) -> String {
        let chosen = self.rows.iter().filter(|row| row.chosen);
        let bytes: u64 = chosen.clone().map(|row| row.entry.bytes).sum();
        let right = format!(
            "{} of {} chosen, {}",
            chosen.count(),
            self.rows.len(),
            size(bytes)
        );
        let bold = Style::new().for_stderr().bold();
        both(&self.title, &right, width, &bold)
    }

    fn filter_line(&self, matching: &[usize], shown: &Range<usize>, width: usize) -> String {
        let unfit = matching
            .iter()
            .filter(|at| !self.rows[**at].may_be_chosen());
        let unfit = match unfit.count() {
            _ if width < WIDE => String::new(),
            0 => String::new(),
            unfit => format!(", {unfit} cannot be followed"),
        };
        let right = match matching.len() {
            0 => "no table matches".to_owned(),
            all => format!("{}-{} of {all}{unfit}", shown.start + 1, shown.end),
        };
        let filter = format!("{FILTER}{}", self.filter);
        both(&filter, &right, width, &Style::new())
    }

    fn columns(&self, width: usize) -> Columns {
        let names = self.rows.iter().map(|row| measure_text_width(&row.name));
        let longest = names.max().unwrap_or_default();
        let beside = MARK + SIZE + ROWS + 2;
        let remark = if width < WIDE { 0 } else { REMARK_MIN };
        let most = width.saturating_sub(beside + remark);
        let name = longest.clamp(5, most.max(10));
        Columns {
            name,
            remark: width.saturating_sub(beside + name),
        }
    }

    fn row(&self, at: usize, is_here: bool, columns: &Columns) -> String {
        let row = &self.rows[at];
        let mark = match (row.may_be_chosen(), row.chosen) {
            (false, _) => "  - ",
            (true, true) => " [x]",
            (true, false) => " [ ]",
        };
        let mark = format!("{}{mark}", if is_here { '>' } else { ' ' });
        let numbers = (size(row.entry.bytes), count(row.entry.rows));
        let numbers = (numbers.0.as_str(), numbers.1.as_str());
        let line = columns.line(&mark, &row.name, numbers, &row.entry.remark());
        let style = Style::new().for_stderr();
        let style = match (is_here, row.may_be_chosen(), row.chosen) {
            (true, ..) => style.bold(),
            (_, false, _) => style.dim(),
            (_, _, true) => style.green(),
            _ => style,
        };
        style.apply_to(line).to_string()
    }

    /// What is known of the table at the cursor, in exactly so many lines.
    fn detail(&self, at: Option<&usize>, lines: usize, width: usize) -> Vec<String> {
        let said = at.map(|at| self.rows[*at].entry.said()).unwrap_or_default();
        let mut found: Vec<String> = Vec::new();
        for text in said {
            found.extend(wrapped(&printable(&text, usize::MAX), width));
        }
        if found.len() > lines {
            found.truncate(lines);
            if let Some(last) = found.last_mut() {
                *last = truncate_str(last, width.saturating_sub(1), "").into_owned() + "…";
            }
        }
        found.resize(lines, String::new());
        found
    }
}

const FILTER: &str = "filter: ";
/// What stands before a name: the cursor, and whether it is chosen.
const MARK: usize = 6;

/// How wide the columns are.
struct Columns {
    name: usize,
    remark: usize,
}

impl Columns {
    fn line(&self, mark: &str, name: &str, (size, rows): (&str, &str), remark: &str) -> String {
        let right = |text: &str, width: usize| {
            pad_str(text, width, console::Alignment::Right, None).into_owned()
        };
        let left = |text: &str, width: usize| {
            pad_str(text, width, console::Alignment::Left, Some("…")).into_owned()
        };
        let line = format!(
            "{}{}{}{}  {}",
            left(mark, MARK),
            left(name, self.name),
            right(size, SIZE),
            right(rows, ROWS),
            truncate_str(remark, self.remark, "…")
        );
        line.trim_end().to_owned()
    }
}

/// Lines for tables, where there are so many of them.
fn page(height: usize, rows: usize) -> usize {
    let most = height.saturating_sub(1 + FRAME + detail(height)).max(1);
    most.min(rows.max(1))
}

fn detail(height: usize) -> usize {
    match height < TALL {
        true => DETAIL_LOW,
        false => DETAIL,
    }
}

/// One text at each end of a line; the left one gives way.
fn both(left: &str, right: &str, width: usize, style: &Style) -> String {
    let right_width = measure_text_width(right);
    let room = width.saturating_sub(right_width + 2);
    let left = pad_str(left, room, console::Alignment::Left, Some("…"));
    format!("{}  {right}", style.apply_to(left))
}

/// Text broken between words; a longer word is cut.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if measure_text_width(line) + 1 + measure_text_width(word) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(truncate_str(word, width, "…").into_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TableName;
    use crate::init::tables::Verdict;

    const HEIGHT: usize = 24;

    fn entry(name: &str, fits: bool) -> Entry {
        let why = "it has no replica identity".to_owned();
        Entry {
            table: TableName::new("public", name),
            history: None,
            bytes: 1024,
            rows: Some(5.0),
            partitions: 0,
            followed: name == "followed",
            verdict: match fits {
                true => Verdict::Fits(Vec::new()),
                false => Verdict::Unfit { why, remedy: None },
            },
        }
    }

    fn tables() -> List {
        let names = (0..30).map(|n| format!("table_{n:02}"));
        let mut entries: Vec<Entry> = names.map(|name| entry(&name, true)).collect();
        entries.push(entry("keyless", false));
        entries.push(entry("followed", true));
        List::new("tables".to_owned(), entries)
    }

    fn chosen(list: List) -> Vec<String> {
        let (chosen, _) = list.into_chosen();
        chosen.into_iter().map(|entry| entry.table.name).collect()
    }

    fn presses(list: &mut List, presses: &[Press]) {
        for press in presses {
            assert!(!list.press(*press, HEIGHT));
            // The cursor is always among the lines.
            let lines = list.lines(HEIGHT, 80);
            assert!(lines.len() < HEIGHT);
            assert!(
                lines.iter().all(|line| measure_text_width(line) < 80),
                "{lines:#?}"
            );
        }
    }

    fn types(list: &mut List, text: &str) {
        presses(list, &text.chars().map(Press::Type).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_followed_is_chosen_and_what_cannot_be_is_never() {
        let mut list = tables();
        presses(&mut list, &[Press::All]);
        assert!(list.title_line(79).contains("31 of 32 chosen"));
        presses(&mut list, &[Press::All]);
        types(&mut list, "key");
        presses(&mut list, &[Press::Toggle]);
        assert_eq!(list.message, Some("this table cannot be followed as it is"));
        let screen = list.lines(HEIGHT, 80).join("\n");
        assert!(screen.contains("  -  public.keyless"), "{screen}");
        presses(&mut list, &[Press::All, Press::Clear]);
        assert!(!list.press(Press::Done, HEIGHT));
        assert!(list.message.is_some());
        assert_eq!(chosen(list), [""; 0]);
        assert_eq!(chosen(tables()), ["followed"]);
    }

    #[test]
    fn all_that_match_are_added_to_what_was_chosen_before() {
        let mut list = tables();
        types(&mut list, "_1");
        presses(&mut list, &[Press::All, Press::Clear]);
        types(&mut list, "TABLE_2");
        presses(
            &mut list,
            &[Press::Down, Press::Toggle, Press::Erase, Press::Erase],
        );
        assert!(list.press(Press::Done, HEIGHT));
        let chosen = chosen(list);
        assert_eq!(chosen.len(), 12, "{chosen:?}");
        assert!(chosen.contains(&"table_21".to_owned()));
    }

    #[test]
    fn the_cursor_stays_inside_the_list_on_every_screen() {
        for (height, width) in [(24, 80), (6, 30), (1, 1), (60, 200)] {
            let mut list = tables();
            let keys = [
                Press::Up,
                Press::PageUp,
                Press::Last,
                Press::Down,
                Press::PageDown,
                Press::Toggle,
                Press::First,
                Press::PageDown,
                Press::Type('z'),
                Press::Toggle,
                Press::Down,
                Press::Last,
                Press::Erase,
            ];
            for press in keys {
                list.press(press, height);
                let lines = list.lines(height, width);
                let here = lines.iter().filter(|line| line.starts_with('>'));
                let matches = usize::from(!list.matching().is_empty());
                assert_eq!(here.count(), matches, "{press:?} {height} {lines:#?}");
            }
        }
    }

    #[test]
    fn long_text_is_broken_between_words() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("abcdefghij k", 5), ["abcd…", "k"]);
    }
}
