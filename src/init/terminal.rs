//! The terminal while a person is asked: keys as they are pressed, one screen for the list.
//!
//! Its modes are restored however the question ends. Ctrl-C ends the process as it does between the questions, by SIGINT.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};

use console::{Key, Term};
use nix::sys::signal::{Signal, raise};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use super::list::{List, Press};
use crate::fault::{Exit, Fault, Result};
use crate::server::answers;

/// To the first line of the list; the cursor is on the second.
const UP: &str = "\x1b[1A\r";
const WIPE: &str = "\x1b[1A\r\x1b[J";

/// Whether a person can be asked.
pub(super) fn is_there() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks; meanwhile the connections are served.
///
/// # Errors
/// The terminal is gone.
pub(super) async fn ask<T: Send + 'static>(
    question: impl FnOnce(&mut Terminal) -> Result<T> + Send + 'static,
) -> Result<T> {
    let asked = tokio::task::spawn_blocking(|| {
        let mut terminal = Terminal::open()?;
        question(&mut terminal)
    });
    let answer = asked.await;
    answer.unwrap_or_else(|error| Err(answers::of_task("a question", error)))
}

/// The terminal, without echo and with every key passed on.
pub(super) struct Terminal {
    term: Term,
    before: Termios,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.before);
    }
}

fn gone(error: impl Into<io::Error>) -> Fault {
    Fault::halt(Exit::Usage, "the terminal cannot be read")
        .remedy("name the tables with --tables")
        .caused_by(error.into())
}

impl Terminal {
    fn open() -> Result<Self> {
        let before = tcgetattr(io::stdin()).map_err(gone)?;
        let mut modes = before.clone();
        cfmakeraw(&mut modes);
        // Lines end as they did.
        modes.output_flags = before.output_flags;
        tcsetattr(io::stdin(), SetArg::TCSADRAIN, &modes).map_err(gone)?;
        Ok(Self {
            term: Term::stderr(),
            before,
        })
    }

    /// The next key; `wipe` clears what was asked away, where Ctrl-C is the answer.
    fn key(&self, wipe: &str) -> Result<Key> {
        match self.term.read_key_raw().map_err(gone)? {
            Key::CtrlC | Key::Char('\u{4}') => Err(self.interrupted(wipe)),
            key => Ok(key),
        }
    }

    /// Ends the process, unless it ignores the signal.
    fn interrupted(&self, wipe: &str) -> Fault {
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.before);
        let _ = self.term.write_str(&format!("{wipe}nothing was written\n"));
        let _ = raise(Signal::SIGINT);
        Fault::halt(Exit::Usage, "interrupted")
    }

    /// One line of an answer, without blanks around it. A secret is not shown, and kept as it is.
    pub(super) fn line(&mut self, question: &str, is_secret: bool) -> Result<String> {
        let show = |text: &str| self.term.write_str(text).map_err(gone);
        show(question)?;
        let mut answer = String::new();
        loop {
            match self.key("\n")? {
                Key::Enter => break,
                Key::Backspace => {
                    if let Some(c) = answer.pop()
                        && !is_secret
                    {
                        let width = console::measure_text_width(c.encode_utf8(&mut [0; 4]));
                        show(&"\u{8} \u{8}".repeat(width))?;
                    }
                }
                Key::Char(c) if !c.is_control() => {
                    answer.push(c);
                    if !is_secret {
                        show(c.encode_utf8(&mut [0; 4]))?;
                    }
                }
                _ => {}
            }
        }
        show("\n")?;
        Ok(match is_secret {
            true => answer,
            false => answer.trim().to_owned(),
        })
    }

    /// Lets a person choose from the list, which is gone from the screen afterwards.
    pub(super) fn choose(&mut self, mut list: List) -> Result<List> {
        let mut size = self.term.size();
        let mut begin = "\r".to_owned();
        loop {
            let (height, width) = (usize::from(size.0), usize::from(size.1));
            let lines = list.lines(height, width);
            self.draw(&begin, &lines, list.cursor().min(width.saturating_sub(1)))?;
            let press = press(&self.key(WIPE)?);
            let now = self.term.size();
            begin = match now == size {
                true => UP.to_owned(),
                // Lines may have been broken anew.
                false => "\x1b[H\x1b[2J".to_owned(),
            };
            size = now;
            if list.press(press, usize::from(size.0)) {
                self.term
                    .write_str(&format!("{begin}\x1b[J"))
                    .map_err(gone)?;
                return Ok(list);
            }
        }
    }

    /// In one write, so that nothing flickers.
    fn draw(&self, begin: &str, lines: &[String], column: usize) -> Result<()> {
        let mut screen = begin.to_owned();
        for (at, line) in lines.iter().enumerate() {
            let end = if at == 0 { "" } else { "\n" };
            // Writing to a String cannot fail.
            let _ = write!(screen, "{end}{line}\x1b[K");
        }
        let up = lines.len().saturating_sub(2);
        let _ = write!(screen, "\x1b[J\x1b[{up}A\r\x1b[{column}C");
        self.term.write_str(&screen).map_err(gone)
    }
}

fn press(key: &Key) -> Press {
    match key {
        Key::ArrowUp => Press::Up,
        Key::ArrowDown => Press::Down,
        Key::PageUp => Press::PageUp,
        Key::PageDown => Press::PageDown,
        Key::Home => Press::First,
        Key::End => Press::Last,
        Key::Tab => Press::All,
        Key::Enter => Press::Done,
        Key::Backspace => Press::Erase,
        // Ctrl-U, as a shell has it.
        Key::Escape | Key::Char('\u{15}') => Press::Clear,
        Key::Char(' ') => Press::Toggle,
        Key::Char(c) if !c.is_control() => Press::Type(*c),
        _ => Press::Other,
    }
}
