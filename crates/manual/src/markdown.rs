//! As much of Markdown as `docs/` uses, as roff: headings, paragraphs, lists, tables, fenced blocks, code, emphasis, links.

use roff::{Inline, Roff, bold, italic, roman};

/// Adds what follows a heading to a page. A heading of the second level is a section, one of the third a sub-section.
pub(crate) fn render(roff: &mut Roff, text: &str) {
    let mut lines = text.lines().peekable();
    // A paragraph begins by itself after a heading.
    let mut at_heading = true;
    while let Some(line) = lines.next() {
        let line = line.trim();
        if line.is_empty() || line.starts_with("<!--") {
            continue;
        }
        let after_heading = std::mem::replace(&mut at_heading, line.starts_with('#'));
        if line.starts_with("```") {
            let block = lines.by_ref().take_while(|line| line.trim() != "```");
            fenced(roff, block);
        } else if let Some(heading) = line.strip_prefix("### ") {
            roff.control("SS", [plain(heading).as_str()]);
        } else if let Some(heading) = line.strip_prefix("## ") {
            roff.control("SH", [plain(heading).to_uppercase().as_str()]);
        } else if line.starts_with('|') {
            let heads = cells(line);
            // The line under the heads.
            lines.next();
            while let Some(row) = lines.next_if(|line| line.starts_with('|')) {
                entry(roff, &heads, &cells(row));
            }
        } else {
            let mut paragraph = line.to_owned();
            while let Some(next) = lines.next_if(|next| goes_on(next)) {
                paragraph.push(' ');
                paragraph.push_str(next.trim());
            }
            match paragraph.strip_prefix("- ") {
                Some(item) => {
                    roff.control("IP", ["\\(bu", "2"]);
                    roff.text(inline(item));
                }
                None => {
                    if !after_heading {
                        roff.control("PP", []);
                    }
                    roff.text(inline(&paragraph));
                }
            }
        }
    }
}

/// Whether a line belongs to the paragraph before it.
fn goes_on(line: &str) -> bool {
    let line = line.trim();
    let other = ["- ", "|", "#", "```", "<!--"];
    !line.is_empty() && !other.iter().any(|start| line.starts_with(start))
}

fn fenced<'a>(roff: &mut Roff, block: impl Iterator<Item = &'a str>) {
    roff.control("sp", []);
    roff.control("RS", ["4"]);
    roff.control("EX", []);
    for line in block {
        roff.text([roman(line)]);
    }
    roff.control("EE", []);
    roff.control("RE", []);
}

fn cells(row: &str) -> Vec<&str> {
    let row = row.trim().trim_start_matches('|');
    let row = row.strip_suffix('|').unwrap_or(row);
    row.split('|').map(str::trim).collect()
}

/// A row as an entry of a list: the first cell is its name, the last one says what it is, those between are named.
fn entry(roff: &mut Roff, heads: &[&str], row: &[&str]) {
    let Some((name, rest)) = row.split_first() else {
        return;
    };
    roff.control("TP", []);
    let name = inline(name).into_iter().map(|part| match part {
        Inline::Roman(text) => bold(text),
        other => other,
    });
    roff.text(name.collect::<Vec<_>>());
    let Some((last, between)) = rest.split_last() else {
        return;
    };
    let mut body = inline(last);
    for (head, cell) in heads.iter().skip(1).zip(between) {
        if !body.is_empty() {
            body.push(roman("; "));
        }
        body.push(italic(format!("{head}: ")));
        body.extend(inline(cell));
    }
    roff.text(body);
}

/// The text without its marks.
fn plain(text: &str) -> String {
    let parts = inline(text).into_iter().map(|part| match part {
        Inline::Roman(text) | Inline::Italic(text) | Inline::Bold(text) => text,
        Inline::LineBreak => " ".to_owned(),
    });
    parts.collect()
}

/// Code and strong words are bold, emphasis is italic; of a link its text is left, and its address where that leads outside.
fn inline(text: &str) -> Vec<Inline> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['`', '*', '[']) {
        let (before, marked) = rest.split_at(at);
        parts.push(roman(before));
        rest = if let Some((code, after)) = between(marked, "`", "`") {
            parts.push(bold(code));
            after
        } else if let Some((strong, after)) = between(marked, "**", "**") {
            parts.push(bold(plain(strong)));
            after
        } else if let Some((stressed, after)) = between(marked, "*", "*") {
            parts.push(italic(plain(stressed)));
            after
        } else if let Some((link, (address, after))) = between(marked, "[", "](")
            .and_then(|(link, after)| Some((link, after.split_once(')')?)))
        {
            parts.extend(inline(link));
            if address.starts_with("https://") {
                parts.push(roman(format!(" ({address})")));
            }
            after
        } else {
            let (mark, after) = marked.split_at(1);
            parts.push(roman(mark));
            after
        };
    }
    parts.push(roman(rest));
    parts.retain(|part| !matches!(part, Inline::Roman(text) if text.is_empty()));
    parts
}

/// What stands between two marks that a text begins with, and what follows.
fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<(&'a str, &'a str)> {
    let (inside, after) = text.strip_prefix(open)?.split_once(close)?;
    let is_one = !inside.is_empty() && !inside.starts_with(char::is_whitespace);
    is_one.then_some((inside, after))
}
