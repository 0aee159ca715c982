//! The table of log fields and the list of rooms, held against the program.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::LazyLock;

use waltrail::config::ROOMS;

use super::{code, files, root, table};

/// What every line has.
const EVERYWHERE: [&str; 3] = ["timestamp", "level", "message"];

/// The type of each field of the table.
static FIELDS: LazyLock<BTreeMap<&str, &str>> = LazyLock::new(|| {
    let rows = table("fields").into_iter();
    rows.map(|row| (code(row[0]).next().unwrap(), row[1]))
        .collect()
});

/// What a line of the log has that the table does not say, or says of another type.
pub fn undocumented(line: &str) -> Option<String> {
    // Without a priority, as the journal takes it off.
    let line = match line.as_bytes() {
        [b'<', _, b'>', ..] => &line[3..],
        _ => line,
    };
    let line: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).ok()?;
    if !EVERYWHERE.iter().all(|field| line.contains_key(*field)) {
        // What a command prints.
        return None;
    }
    line.iter().find_map(|(field, value)| {
        let fits = match FIELDS.get(field.as_str()) {
            Some(&"text") => value.is_string(),
            Some(&"integer") => value.is_i64() || value.is_u64(),
            Some(&"number") => value.is_number(),
            Some(&"true or false") => value.is_boolean(),
            _ => false,
        };
        (!fits).then(|| format!("{field} = {value}"))
    })
}

/// An event of the program's text: its fields, and whether its message is plain text.
#[derive(Debug, Default, PartialEq, Eq)]
struct Event {
    fields: Vec<String>,
    message: String,
}

/// The events of a file, but for those of its tests.
fn events(text: &str) -> Vec<Event> {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let levels = ["error", "warn", "info", "debug", "trace"];
    let macros = levels.map(|level| format!("tracing::{level}!("));
    let mut found = Vec::new();
    for start in macros.into_iter().chain(["log_each!(".to_owned()]) {
        for rest in text.split(&start).skip(1) {
            found.extend(event(rest, start == "log_each!("));
        }
    }
    found
}

/// Reads the arguments of one call.
fn event(rest: &str, is_each: bool) -> Option<Event> {
    let mut arguments = arguments(rest).into_iter();
    if is_each {
        arguments.next();
    }
    let mut event = Event::default();
    for argument in arguments {
        if let Some(message) = argument.strip_prefix('"') {
            event.message = message.trim_end_matches('"').to_owned();
            break;
        }
        if argument.starts_with("target:") {
            continue;
        }
        // The definition of a macro.
        if argument.starts_with('$') {
            return None;
        }
        let name = argument.split(" = ").next().unwrap();
        let name = name.trim_start_matches(['%', '?']);
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
        assert!(is_name, "cannot read the field {argument:?} in {rest:.200}");
        event.fields.push(name.to_owned());
    }
    Some(event)
}

/// What stands between commas, up to the closing parenthesis.
fn arguments(text: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut depth = 0;
    let mut chars = text.chars().peekable();
    let mut in_text = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_text => {
                found.last_mut().unwrap().push(c);
                found.last_mut().unwrap().extend(chars.next());
                continue;
            }
            '"' => in_text = !in_text,
            _ if in_text => {}
            '(' | '[' | '{' => depth += 1,
            '<' if found.last().unwrap().ends_with("::") => depth += 1,
            '>' if depth > 0 && !found.last().unwrap().ends_with(['=', '-', ' ']) => depth -= 1,
            ')' if depth == 0 => break,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(String::new());
                continue;
            }
            _ => {}
        }
        found.last_mut().unwrap().push(c);
    }
    let found = found.iter().map(|argument| argument.trim().to_owned());
    found.filter(|argument| !argument.is_empty()).collect()
}

/// All events of the program, by the room that they are in.
fn all_events() -> Vec<(String, Event)> {
    let src = root().join("src");
    let mut all = Vec::new();
    for file in files(&src, ".rs") {
        let path = file
            .strip_prefix(&src)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let room = path.split(['/', '.']).next().unwrap().to_owned();
        let events = events(&fs::read_to_string(&file).unwrap());
        all.extend(events.into_iter().map(|event| (room.clone(), event)));
    }
    all
}

#[test]
fn the_fields_of_the_log_are_those_of_the_table() {
    let events = all_events();
    assert!(events.len() > 100, "{} events were found", events.len());
    let mut said: BTreeSet<&str> = EVERYWHERE.into_iter().collect();
    said.extend(
        events
            .iter()
            .flat_map(|(_, event)| event.fields.iter().map(String::as_str)),
    );
    let documented: BTreeSet<&str> = FIELDS.keys().copied().collect();
    let lacks: Vec<_> = said.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(&said).collect();
    assert!(lacks.is_empty(), "the table lacks {lacks:?}");
    assert!(gone.is_empty(), "no line has {gone:?}");
    let known = ["text", "integer", "number", "true or false"];
    for (field, kind) in FIELDS.iter() {
        assert!(known.contains(kind), "{field} is {kind}");
    }
}

#[test]
fn each_room_that_logs_can_have_a_level_of_its_own() {
    let rooms: BTreeSet<String> = all_events().into_iter().map(|(room, _)| room).collect();
    let lacks: Vec<_> = rooms
        .iter()
        .filter(|room| !ROOMS.contains(&room.as_str()))
        .collect();
    assert!(lacks.is_empty(), "log.level knows no {lacks:?}");
    for room in ROOMS {
        let src = root().join("src");
        let is_there = src.join(room).is_dir() || src.join(format!("{room}.rs")).is_file();
        assert!(is_there, "there is no room {room}");
    }
    let documented: Vec<_> = code(super::after("The rooms are "))
        .take(ROOMS.len())
        .collect();
    assert_eq!(documented, ROOMS);
}

#[test]
fn the_scanner_reads_every_kind_of_field() {
    let text = r#"
        tracing::warn!(
            %side, pid, pids = list.join(", "), from = %gap.get::<_, Lsn>(1), kind = *kind,
            rows = if a >= b { 1 } else { 2 },
            "one, {more} (and \"more\")", tail.of(1, 2)
        );
        tracing::info!(target: "x", ?names, "{text}");
        log_each!(self.many(1, 2), table = %t, "two");
    "#;
    let found = events(text);
    let fields: Vec<_> = found.iter().map(|event| event.fields.join(" ")).collect();
    assert_eq!(fields, ["side pid pids from kind rows", "names", "table"]);
    assert_eq!(found[2].message, "two");
    assert!(undocumented(r#"{"timestamp":"t","level":"INFO","message":"m","pid":"7"}"#).is_some());
    assert!(undocumented(r#"<6>{"timestamp":"t","level":"INFO","message":"m","pid":7}"#).is_none());
}
