//! One line of the log, as standard error takes it.
//!
//! Where standard error is the journal's (`JOURNAL_STREAM` names its device and inode, systemd.exec(5)), a line begins with its
//! priority in angle brackets, sd-daemon(3): the journal takes it off, and `journalctl -p err` finds our errors.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

use anstream::{AutoStream, ColorChoice};
use nix::sys::stat::fstat;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use crate::config::Format;
use crate::printable::{TEXT_MAX, printable, printable_json};

/// A line that is longer has at least one value that is too long: as much as a few of them.
const LINE_MAX: usize = 4 * TEXT_MAX;

/// What standard error is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stderr {
    pub(super) is_terminal: bool,
    /// Colours are wanted there: it is a terminal that shows them, and neither `NO_COLOR` nor `CLICOLOR` is against it.
    pub(super) colours: bool,
    pub(super) is_journal: bool,
}

impl Stderr {
    pub(crate) fn look() -> Self {
        let stderr = io::stderr();
        let is_terminal = stderr.is_terminal();
        Self {
            is_terminal,
            colours: is_terminal && AutoStream::choice(&stderr) != ColorChoice::Never,
            is_journal: is_journal(stderr, std::env::var("JOURNAL_STREAM").ok()),
        }
    }

    /// The form of a log there.
    pub(super) fn form(self, format: Option<Format>) -> Form {
        let by_default = match self.is_terminal {
            true => Format::Text,
            false => Format::Json,
        };
        Form {
            format: format.unwrap_or(by_default),
            colours: self.colours,
            priorities: self.is_journal,
        }
    }
}

/// Whether a stream is the one that `journal_stream` names, as `device:inode`.
fn is_journal(stream: impl AsFd, journal_stream: Option<String>) -> bool {
    let Some(named) = journal_stream else {
        return false;
    };
    fstat(stream).is_ok_and(|stat| format!("{}:{}", stat.st_dev, stat.st_ino) == named)
}

/// How lines are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    pub(super) format: Format,
    pub(super) colours: bool,
    /// Each line begins with its priority.
    pub(super) priorities: bool,
}

/// What the journal calls a level (syslog(3)).
pub(super) fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        Level::DEBUG | Level::TRACE => "<7>",
    }
}

/// Takes whole lines.
pub(super) struct Lines<W> {
    pub(super) form: Form,
    pub(super) writer: W,
}

pub(super) struct Line<W> {
    form: Form,
    level: Level,
    writer: W,
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for Lines<W> {
    type Writer = Line<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        self.line(Level::INFO, self.writer.make_writer())
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        self.line(*metadata.level(), self.writer.make_writer_for(metadata))
    }
}

impl<W> Lines<W> {
    fn line<T>(&self, level: Level, writer: T) -> Line<T> {
        Line {
            form: self.form,
            level,
            writer,
        }
    }
}

impl<W: Write> Write for Line<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut line = String::from_utf8_lossy(bytes);
        if self.form.format == Format::Json {
            if line.len() > LINE_MAX {
                line = Cow::Owned(shorter(&line));
            }
            line = Cow::Owned(printable_json(&line).into_owned());
        }
        if self.form.priorities {
            line = Cow::Owned(format!("{}{line}", priority(self.level)));
        }
        // All at once: the queue takes whole lines.
        self.writer.write_all(line.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// The same line of JSON with its texts cut.
fn shorter(line: &str) -> String {
    let Ok(mut fields) = serde_json::from_str::<serde_json::Map<_, _>>(line) else {
        return printable(line, LINE_MAX) + "\n";
    };
    for value in fields.values_mut() {
        if let serde_json::Value::String(text) = value {
            *text = printable(text, TEXT_MAX);
        }
    }
    serde_json::Value::Object(fields).to_string() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_known_by_its_device_and_inode() {
        let (ours, _writer) = nix::unistd::pipe().unwrap();
        let (other, _writer) = nix::unistd::pipe().unwrap();
        let stat = fstat(&ours).unwrap();
        let named = || Some(format!("{}:{}", stat.st_dev, stat.st_ino));
        assert!(is_journal(&ours, named()));
        assert!(!is_journal(&other, named()));
        assert!(!is_journal(&ours, None));
        assert!(!is_journal(&ours, Some("8:x".to_owned())));
    }
}
