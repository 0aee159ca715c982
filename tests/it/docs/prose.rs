//! How the documents are written: their length, their links, their sentences.

use std::fs;

use super::{DOCUMENTS, document, pages, root, sources};

/// A sentence that is longer is two sentences.
const WORDS_MAX: usize = 30;

#[test]
fn the_readme_is_short() {
    let lines = document("README.md").lines().count();
    assert!(lines <= 150, "README.md has {lines} lines");
}

#[test]
fn architecture_is_read_in_ten_minutes() {
    let words = words(document("ARCHITECTURE.md"));
    // 250 a minute.
    assert!(words <= 2_500, "ARCHITECTURE.md has {words} words");
}

fn words(text: &str) -> usize {
    let words = text.split_whitespace();
    words
        .filter(|word| word.contains(char::is_alphanumeric))
        .count()
}

/// The text without its fenced blocks.
fn unfenced(text: &str) -> String {
    let mut fenced = false;
    let mut kept = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            // What comes after is another paragraph.
            kept.push('\n');
        } else if !fenced {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// Each piece of code as one word, each link as its text.
fn without_code_and_links(text: &str) -> String {
    let mut plain = String::new();
    for (at, piece) in text.split('`').enumerate() {
        plain.push_str(if at % 2 == 0 { piece } else { "code" });
    }
    while let Some(at) = plain.find("](") {
        let end = plain[at..]
            .find(')')
            .map_or(plain.len(), |end| at + end + 1);
        plain.replace_range(at..end, "");
    }
    plain.replace(['*', '[', ']'], "")
}

/// The paragraphs and list items, without tables, headings and comments.
fn paragraphs(text: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    for line in unfenced(text).lines().map(str::trim) {
        let numbered = line
            .split_once(". ")
            .is_some_and(|(n, _)| n.parse::<u32>().is_ok());
        let apart = line.is_empty() || line.starts_with(['|', '#', '<', '!', '>']);
        if apart || numbered || line.starts_with("- ") || line.starts_with("* ") {
            found.push(String::new());
        }
        if !apart && let Some(last) = found.last_mut() {
            last.push_str(line);
            last.push(' ');
        }
    }
    found
        .iter()
        .map(|text| without_code_and_links(text))
        .collect()
}

#[test]
fn no_sentence_is_longer_than_thirty_words() {
    let mut long = Vec::new();
    for (name, text) in pages() {
        for paragraph in paragraphs(text) {
            let sentences = paragraph.split_inclusive(['.', '?', '!']);
            let mut sentence = String::new();
            for piece in sentences.chain([" "]) {
                // A point inside a word, a version or a file's name, ends nothing.
                if piece.starts_with(char::is_whitespace) {
                    if words(&sentence) > WORDS_MAX {
                        long.push(format!("{name} ({}): {sentence}", words(&sentence)));
                    }
                    sentence.clear();
                }
                sentence.push_str(piece);
            }
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn the_words_are_plain() {
    let mut found = Vec::new();
    for (name, text) in pages() {
        let text = without_code_and_links(&unfenced(text)).to_lowercase();
        for word in text.split(|c: char| !c.is_alphanumeric()) {
            if ["whoever", "whom", "nobody", "somebody"].contains(&word) {
                found.push(format!("{name}: {word}"));
            }
        }
    }
    assert!(found.is_empty(), "{found:?}");
}

fn slug(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// Whether a document has an anchor: a heading, or `<a id="...">`.
fn has(document: &str, anchor: &str) -> bool {
    let headings = unfenced(document);
    let mut headings = headings.lines().filter(|line| line.starts_with('#'));
    headings.any(|line| slug(line.trim_start_matches('#').trim()) == anchor)
        || document.contains(&format!("<a id=\"{anchor}\">"))
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let mut broken = Vec::new();
    for (name, document) in DOCUMENTS.iter().filter(|(name, _)| name.ends_with(".md")) {
        let path = root().join(name);
        let folder = path.parent().unwrap();
        for rest in unfenced(document).split("](").skip(1) {
            let link = rest.split_once(')').unwrap().0;
            if link.starts_with("https://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let there = match (file, anchor) {
                ("", anchor) => has(document, anchor),
                (file, "") => folder.join(file).exists(),
                (file, anchor) => {
                    fs::read_to_string(folder.join(file)).is_ok_and(|other| has(&other, anchor))
                }
            };
            if !there {
                broken.push(format!("{name}: {link}"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// A hint of a stop with 65 names a heading, see `fault.rs`.
#[test]
fn every_heading_that_a_hint_names_exists() {
    let page = document("docs/operate/when-it-stops-with-65.md");
    let sources = sources("src");
    let named = ["wrong(", ".see("].map(|call| sources.split(call).skip(1));
    let named = named.into_iter().flatten().filter_map(|rest| {
        let (anchor, _) = rest.trim_start().strip_prefix('"')?.split_once('"')?;
        (anchor.contains('-') && !anchor.contains(' ')).then_some(anchor)
    });
    let named: Vec<_> = named.collect();
    assert!(named.len() >= 8, "{named:?}");
    let missing: Vec<_> = named.iter().filter(|anchor| !has(page, anchor)).collect();
    assert!(
        missing.is_empty(),
        "the page has no heading for {missing:?}"
    );
}
