//! What a process says beside its log when it ends: of a fault, of a wrong command line, of a panic.
//!
//! Where the log is JSON, these are lines of it and nothing else is on standard error; elsewhere a person reads `error:` and
//! `hint:`. **The words of a panic can hold a row value**, for example the text that was cut in the middle of a character: only
//! those that cannot are shown.

use std::any::Any;
use std::io::Write;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU8, Ordering};

use tracing::Level;
use tracing_subscriber::layer::SubscriberExt;

use super::line::{Form, Stderr, priority};
use super::{BesideBars, LogGuard, lines, pipeline};
use crate::config::{self, Format};
use crate::fault::{Exit, Fault};
use crate::printable::{TEXT_MAX, printable_lines};

/// How a process ends that may not have come to its log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    stderr: Stderr,
    form: Form,
}

impl Ending {
    /// `format`: what is configured, as far as that is known. `logs`: whether the command has a log, which is JSON where
    /// standard error is no terminal. The words of other commands are for a person, unless JSON is asked for.
    pub(crate) fn of(format: Option<Format>, logs: bool) -> Self {
        let stderr = Stderr::look();
        let format = match format {
            Some(Format::Json) if !logs && stderr.is_terminal => Format::Text,
            None if !logs => Format::Text,
            Some(format) => format,
            None => stderr.form(None).format,
        };
        let form = stderr.form(Some(format));
        Self { stderr, form }
    }

    /// Says why it ends.
    pub(crate) fn say(self, fault: &Fault) {
        let remedy = fault.remedy_text();
        if self.form.format == Format::Json {
            let config = config::Log {
                format: Some(Format::Json),
                level: config::Level::Info.into(),
            };
            let (subscriber, guard) = pipeline(BesideBars, self.stderr, &config);
            tracing::subscriber::with_default(subscriber, || log_end(fault));
            // Waits for the line to be written, and not for ever.
            drop::<LogGuard>(guard);
            return;
        }
        let mut text = format!("error: {fault}\n");
        if let Some(remedy) = remedy {
            // A line of it is not to look like one of its own.
            let remedy = printable_lines(&remedy, TEXT_MAX).replace('\n', "\n      ");
            text.push_str(&format!("hint: {remedy}\n"));
        }
        self.write(&text);
    }

    /// As [`Ending::say`], where the log has said it: a person at a terminal reads it once more, and so does what has read
    /// the text of a command until now. The journal has it once.
    pub(crate) fn say_again(self, fault: &Fault) {
        if self.form.format == Format::Text && !self.form.priorities {
            self.say(fault);
        }
    }

    /// Says that the command line is wrong, in the words of its parser.
    pub(crate) fn say_usage(self, text: &str) {
        match self.form.format {
            Format::Text => self.write(text),
            Format::Json => {
                let sentence = text.split("\n\n").next().unwrap_or(text);
                let sentence = sentence.trim_start_matches("error: ");
                let sentence: Vec<&str> = sentence.split_whitespace().collect();
                let fault = Fault::halt(Exit::Usage, sentence.join(" "));
                self.say(&fault.remedy("see waltrail --help"));
            }
        }
    }

    fn write(self, text: &str) {
        let mut lines = text.to_owned();
        if self.form.priorities {
            let start = priority(Level::ERROR);
            lines = text
                .lines()
                .map(|line| format!("{start}{line}\n"))
                .collect();
        }
        // A closed output is no fault.
        let _ = std::io::stderr().write_all(lines.as_bytes());
    }
}

/// Logs the fault that ends the process.
pub(crate) fn log_end(fault: &Fault) {
    let remedy = fault.remedy_text().unwrap_or_default();
    let exit_code = fault.exit() as u8;
    tracing::error!(error = %fault, remedy, exit_code, "stopped");
}

/// How the log is written now: its first bit says JSON, the second one priorities. Text, until there is a log.
static FORM: AtomicU8 = AtomicU8::new(0);

pub(super) fn note_form(form: Form) {
    let json = u8::from(form.format == Format::Json);
    FORM.store(json | u8::from(form.priorities) << 1, Ordering::Relaxed);
}

/// Lets panics be said in the form of the log. To be called once, before anything can panic.
pub(crate) fn hear_panics(ending: Ending) {
    note_form(ending.form);
    std::panic::set_hook(Box::new(|info| {
        let noted = FORM.load(Ordering::Relaxed);
        let form = Form {
            format: match noted & 1 {
                1 => Format::Json,
                _ => Format::Text,
            },
            colours: false,
            priorities: noted & 2 != 0,
        };
        // Not by the log's thread, which may be the one that panics.
        let lines = lines(std::io::stderr, form);
        let subscriber = tracing_subscriber::registry().with(lines);
        tracing::subscriber::with_default(subscriber, || log_panic(info));
    }));
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let error = words(info.payload());
    let location = info.location().map(ToString::to_string);
    let location = location.as_deref();
    let thread = std::thread::current();
    let thread = thread.name();
    let remedy = "this is a defect of waltrail: please report it with the log around this line";
    tracing::error!(error, location, thread, remedy, "waltrail panicked");
}

/// The words of a panic, where they hold nothing but our own text and numbers.
fn words(payload: &(dyn Any + Send)) -> &str {
    const SAFE: [&str; 3] = [
        "index out of bounds: ",
        "range end index ",
        "range start index ",
    ];
    if let Some(words) = payload.downcast_ref::<&'static str>() {
        return words;
    }
    let words = payload.downcast_ref::<String>().map_or("", String::as_str);
    match SAFE.iter().any(|safe| words.starts_with(safe)) {
        true => words,
        false => "its words are not shown, since they can hold a value",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_panic_are_shown_only_where_they_hold_no_value() {
        let of = |panics: fn()| {
            let panic = std::panic::catch_unwind(panics).unwrap_err();
            words(&*panic).to_owned()
        };
        assert_eq!(of(|| panic!("at rest")), "at rest");
        let cut = of(|| {
            let text = String::from("canary é");
            let _ = &text[..std::hint::black_box(8)];
        });
        assert!(!cut.contains("canary"), "{cut}");
        let numbers = of(|| {
            let none: Vec<u8> = Vec::new();
            let _ = none[std::hint::black_box(3)];
        });
        assert!(numbers.contains("index out of bounds"), "{numbers}");
    }

    /// Says to this program, run by a test, that it is to panic in this form.
    const PANICS: &str = "PANICS_IN_A_LOG";

    /// Runs [`panics_where_a_test_asks_for_it`] in a process of its own; returns what that wrote on standard error.
    fn panics_in(form: &str) -> String {
        let test = "telemetry::log::ending::tests::panics_where_a_test_asks_for_it";
        let program = std::env::current_exe().unwrap();
        let output = std::process::Command::new(program)
            .args([test, "--exact", "--nocapture"])
            .env(PANICS, form)
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    }

    #[test]
    fn panics_where_a_test_asks_for_it() {
        let Ok(form) = std::env::var(PANICS) else {
            return;
        };
        let format = match form.as_str() {
            "text" => Format::Text,
            _ => Format::Json,
        };
        hear_panics(Ending::of(Some(format), true));
        let words = std::hint::black_box("canary").to_owned();
        let thread = std::thread::Builder::new().name("worker".to_owned());
        let panics = thread.spawn(move || panic!("{words} in its words"));
        let _ = panics.unwrap().join();
    }

    #[test]
    fn a_panic_is_one_line_in_the_form_of_the_log_without_a_value() {
        let said = panics_in("json");
        let line: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(line["level"], "ERROR");
        assert_eq!(line["message"], "waltrail panicked");
        assert_eq!(line["thread"], "worker");
        assert!(line["location"].as_str().unwrap().contains("ending.rs:"));
        assert!(!said.contains("canary"), "{said}");
        let said = panics_in("text");
        assert!(said.contains("ERROR waltrail panicked"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}
