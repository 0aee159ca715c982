//! What is logged, and in which form. Pure.
//!
//! ```text
//!   log.level = level [, room=level ...]      "info"   "info, session=debug"   "warn,wire=trace,server=debug"
//! ```
//!
//! A room is a part of the program, as ARCHITECTURE.md lists them. Its level counts for the room, the first one for all others.

/// How the log is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The form; `None` is text on a terminal and JSON elsewhere.
    pub format: Option<Format>,
    /// The least important events that are shown.
    pub level: Levels,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Text,
}

impl Format {
    /// The formats by their names.
    pub(super) const KNOWN: [(&str, Self); 2] = [("json", Self::Json), ("text", Self::Text)];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// The rooms that have a level of their own.
pub const ROOMS: [&str; 14] = [
    "adopt",
    "commands",
    "daemon",
    "fault",
    "history",
    "server",
    "session",
    "setup",
    "snapshot",
    "source",
    "status",
    "telemetry",
    "verify",
    "wire",
];

const LEVELS: [(&str, Level); 5] = [
    ("error", Level::Error),
    ("warn", Level::Warn),
    ("info", Level::Info),
    ("debug", Level::Debug),
    ("trace", Level::Trace),
];

/// The level of all rooms, and of some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Levels {
    pub all: Level,
    pub rooms: Vec<(&'static str, Level)>,
}

impl From<Level> for Levels {
    fn from(all: Level) -> Self {
        let rooms = Vec::new();
        Self { all, rooms }
    }
}

/// What is wrong with levels: a sentence without its subject, and a remedy.
pub(super) type Wrong = (String, String);

impl Levels {
    pub(super) fn parse(text: &str) -> Result<Self, Wrong> {
        let mut all = None;
        let mut rooms: Vec<(&'static str, Level)> = Vec::new();
        for part in text.split(',').map(str::trim) {
            let twice = match part.split_once('=') {
                None => all.replace(level(part)?).is_some(),
                Some((name, part)) => {
                    let room = room(name.trim())?;
                    let twice = rooms.iter().any(|(known, _)| *known == room);
                    rooms.push((room, level(part.trim())?));
                    twice
                }
            };
            if twice {
                let remedy = "write one level, and then room=level, each room once";
                return Err((
                    format!("has {part:?} beside another level for the same"),
                    remedy.to_owned(),
                ));
            }
        }
        let all = all.unwrap_or(Level::Info);
        Ok(Self { all, rooms })
    }
}

fn level(text: &str) -> Result<Level, Wrong> {
    let found = LEVELS.iter().find(|(name, _)| *name == text);
    let names = LEVELS.map(|(name, _)| name);
    found
        .map(|(_, level)| *level)
        .ok_or_else(|| unknown("level", text, &names))
}

fn room(text: &str) -> Result<&'static str, Wrong> {
    let found = ROOMS.iter().find(|name| **name == text).copied();
    found.ok_or_else(|| unknown("room", text, &ROOMS))
}

fn unknown(what: &str, text: &str, known: &[&str]) -> Wrong {
    let near = known
        .iter()
        .min_by_key(|name| strsim::damerau_levenshtein(name, &text.to_lowercase()));
    let names: Vec<String> = known.iter().map(|name| format!("\"{name}\"")).collect();
    (
        format!(
            "has the {what} {text:?}, which is not one of {}",
            names.join(", ")
        ),
        format!("did you mean \"{}\"?", near.unwrap_or(&"")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_for_all_rooms_or_for_one() {
        let levels = Levels::parse(" warn , wire=debug,session = trace ").unwrap();
        let rooms = vec![("wire", Level::Debug), ("session", Level::Trace)];
        assert_eq!((levels.all, levels.rooms), (Level::Warn, rooms));
        assert_eq!(Levels::parse("debug").unwrap(), Level::Debug.into());
        assert_eq!(Levels::parse("wire=error").unwrap().all, Level::Info);
    }

    #[test]
    fn what_is_no_level_and_no_room_is_refused_with_what_there_is() {
        for (text, problem, remedy) in [
            ("verbose", "the level \"verbose\"", "did you mean"),
            ("INFO", "the level \"INFO\"", "\"info\""),
            ("", "the level \"\"", ""),
            ("info,", "the level \"\"", ""),
            ("wire", "the level \"wire\"", ""),
            ("info,wires=debug", "the room \"wires\"", "\"wire\""),
            ("info,wire=loud", "the level \"loud\"", ""),
            ("info,=debug", "the room \"\"", ""),
            ("info,debug", "beside another level", "each room once"),
            ("wire=info,wire=debug", "beside another level", ""),
            ("info,waltrail::wire=debug", "the room", ""),
        ] {
            let (said, hint) = Levels::parse(text).unwrap_err();
            assert!(said.contains(problem), "{text}: {said}");
            assert!(hint.contains(remedy), "{text}: {hint}");
        }
    }
}
