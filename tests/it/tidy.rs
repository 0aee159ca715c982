//! What the source must look like: rooms without circles, pure rooms without tokio, short functions and files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 600;

/// Text by its path under `src/`.
type Files = BTreeMap<String, String>;

/// The first part of a path: a folder, or a file at the top.
fn room(path: &str) -> &str {
    let first = path.split('/').next().unwrap();
    first.strip_suffix(".rs").unwrap_or(first)
}

/// Lines of code with their number, without `#[cfg(test)]` items and comments.
fn code(text: &str) -> Vec<(usize, &str)> {
    let mut kept = Vec::new();
    let mut lines = (1..).zip(text.lines());
    while let Some((number, line)) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept.push((number, line.split("//").next().unwrap()));
            continue;
        }
        let close = line.replace("#[cfg(test)]", "}");
        lines.by_ref().find(|(_, line)| {
            *line == close || line.ends_with(';') && indent(line) == indent(&close)
        });
    }
    kept
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The rooms named by `crate::`, and the line of each. rustfmt never writes `use crate::{`.
fn named(text: &str) -> Vec<(usize, String)> {
    let lines = code(text).into_iter();
    let parts = lines.flat_map(|(number, line)| {
        let after = line.split("crate::").skip(1);
        after.map(move |rest| (number, rest))
    });
    let word = |rest: &str| {
        rest.split(|c: char| !c.is_alphanumeric() && c != '_')
            .next()
            .unwrap()
            .to_owned()
    };
    parts.map(|(number, rest)| (number, word(rest))).collect()
}

/// Every way by which a room leads back to itself, as the lines that take the steps.
fn circles(files: &Files) -> Vec<String> {
    let rooms: BTreeSet<&str> = files.keys().map(|path| room(path)).collect();
    let mut steps: BTreeMap<&str, BTreeMap<String, String>> = BTreeMap::new();
    for (path, text) in files {
        for (number, to) in named(text) {
            if rooms.contains(to.as_str()) && to != room(path) {
                let line = format!("{path}:{number} ({} -> {to})", room(path));
                steps
                    .entry(room(path))
                    .or_default()
                    .entry(to)
                    .or_insert(line);
            }
        }
    }
    let mut reached: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for room in &rooms {
        let mut open = vec![(*room).to_owned()];
        while let Some(from) = open.pop() {
            for to in steps
                .get(from.as_str())
                .into_iter()
                .flat_map(BTreeMap::keys)
            {
                if reached.entry(room).or_default().insert(to.clone()) {
                    open.push(to.clone());
                }
            }
        }
    }
    let leads = |from: &str, to: &str| reached.get(from).is_some_and(|rooms| rooms.contains(to));
    let all = steps
        .iter()
        .flat_map(|(from, to)| to.iter().map(move |(to, line)| (*from, to, line)));
    all.filter(|(from, to, _)| leads(to, from))
        .map(|(_, _, line)| format!("{line}: part of a circle of rooms"))
        .collect()
}

/// A header says "Pure" of its file, and in `mod.rs` of its folder.
fn impure(files: &Files) -> Vec<String> {
    let says = |text: &str| {
        let header: Vec<&str> = text
            .lines()
            .map_while(|line| line.strip_prefix("//!"))
            .collect();
        let header = header.join("\n");
        let sentences = header.split(['\n', '.']).map(str::trim);
        sentences
            .map(|text| text.trim_start_matches("**"))
            .any(|text| {
                text == "Pure"
                    || text.starts_with("Pure:")
                    || text.starts_with("Pure,")
                    || text.starts_with("Pure ")
            })
    };
    let pure: Vec<&str> = files
        .iter()
        .filter(|(_, text)| says(text))
        .map(|(path, _)| path.strip_suffix("mod.rs").unwrap_or(path))
        .collect();
    let mut found = Vec::new();
    for (path, text) in files
        .iter()
        .filter(|(path, _)| pure.iter().any(|pure| path.starts_with(pure)))
    {
        for (number, line) in code(text) {
            if line.contains("tokio::") || line.trim_start().starts_with("use tokio") {
                found.push(format!("{path}:{number}: marked pure, and uses tokio"));
            }
        }
    }
    found
}

/// From the line with `fn` to the brace at its indent.
fn long(files: &Files) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in files {
        let count = text.lines().count();
        if count > FILE_LINES_MAX {
            found.push(format!("{path}:{count}: a file of {count} lines"));
        }
        let lines = code(text);
        for (at, (number, line)) in lines.iter().enumerate() {
            let head = line.trim_start();
            let is_fn = head.starts_with("fn ")
                || head.contains(" fn ")
                    && ["pub", "async", "const", "unsafe", "extern"]
                        .iter()
                        .any(|word| head.starts_with(word));
            let close = format!("{}}}", " ".repeat(indent(line)));
            let end = |(_, line): &&(usize, &str)| {
                *line == close || indent(line) == close.len() - 1 && line.ends_with(['}', ';'])
            };
            if let Some((end, _)) = lines[at..].iter().find(end).filter(|_| is_fn) {
                let length = end - number + 1;
                if length > FUNCTION_LINES_MAX {
                    found.push(format!("{path}:{number}: a function of {length} lines"));
                }
            }
        }
    }
    found
}

fn read(folder: &Path, root: &Path, files: &mut Files) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(&path, root, files);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            let name = path.strip_prefix(root).unwrap().display().to_string();
            files.insert(name, std::fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn the_source_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Files::new();
    read(&root, &root, &mut files);
    let found = [circles(&files), impure(&files), long(&files)].concat();
    assert!(found.is_empty(), "src/ is not tidy:\n{}", found.join("\n"));
}

fn inline<const N: usize>(files: [(&str, &str); N]) -> Files {
    files
        .map(|(path, text)| (path.to_owned(), text.to_owned()))
        .into()
}

#[test]
fn a_circle_of_rooms_is_found_and_one_only_in_tests_is_none() {
    let tests = "#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n";
    let first = ("a/mod.rs", "use crate::b::B;\n");
    let second = ("b.rs", "use crate::c::{C, D};\n");
    assert!(circles(&inline([first, second, ("c.rs", tests)])).is_empty());
    let found = circles(&inline([
        first,
        second,
        ("c.rs", "\nfn f(a: crate::a::A) {}\n"),
    ]));
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[2].starts_with("c.rs:2 (c -> a)"), "{found:?}");
}

#[test]
fn tokio_in_a_pure_room_is_found() {
    let uses = "//! Reads.\n\nuse tokio::time::Instant;\n";
    let header = "//! Decodes. Pure: bytes in,\n//! values out.\n";
    assert!(impure(&inline([("a/mod.rs", "//! Impure.\n"), ("a/b.rs", uses)])).is_empty());
    let found = impure(&inline([("a/mod.rs", header), ("a/b.rs", uses)]));
    assert_eq!(found, ["a/b.rs:3: marked pure, and uses tokio"]);
}

#[test]
fn a_function_of_71_lines_is_found_and_one_of_70_is_not() {
    let of = |lines: usize| {
        format!(
            "impl A {{\n    pub fn f() {{\n{}    }}\n}}\n",
            "        g();\n".repeat(lines - 2)
        )
    };
    assert!(long(&inline([("a.rs", &of(70))])).is_empty());
    assert_eq!(
        long(&inline([("a.rs", &of(71))])),
        ["a.rs:2: a function of 71 lines"]
    );
    assert_eq!(long(&inline([("a.rs", &"\n".repeat(601))])).len(), 1);
}
