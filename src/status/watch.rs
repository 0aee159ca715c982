//! `waltrail status`: once, or again and again on one screen, until a signal ends it.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use terminal_size::{Height, Width, terminal_size};

use super::look::{Looks, PERSON};
use super::screen::{self, Size};
use super::{Level, Status};
use crate::config::Config;
use crate::fault::{Fault, Result};
use crate::printable::printable_json;
use crate::shutdown::{Signal, Signals};

/// How often the screen of `--watch` is drawn.
const EVERY: Duration = Duration::from_secs(2);
/// Columns where the output is no terminal.
const WIDTH: usize = 80;

/// The other screen of the terminal without a cursor, and back.
const ENTER: &str = "\u{1b}[?1049h\u{1b}[?25l";
const LEAVE: &str = "\u{1b}[?25h\u{1b}[?1049l";
/// To the first line; what is left of a line; what is left of the screen.
const HOME: &str = "\u{1b}[H";
const REST_OF_LINE: &str = "\u{1b}[K";
const REST: &str = "\u{1b}[J";

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Show {
    pub(crate) json: bool,
    pub(crate) exact: bool,
    pub(crate) watch: bool,
}

/// Shows it. Returns the verdict as an exit code; after a signal, 0.
///
/// # Errors
/// Neither server takes what the configuration says.
pub(crate) async fn show(config: &Config, show: Show) -> Result<ExitCode> {
    let mut looks = Looks::new(PERSON);
    if show.watch {
        return watch(config, show, &mut looks).await;
    }
    let status = read(config, show, &mut looks).await?;
    print(&text(&status, show)?);
    Ok(ExitCode::from(match status.verdict.level {
        Level::Good => 0,
        Level::Warning => 1,
        Level::Broken => 2,
    }))
}

async fn read(config: &Config, show: Show, looks: &mut Looks) -> Result<Status> {
    let mut seen = looks.look_once(config, show.exact).await;
    if let Some(fault) = seen.refusal() {
        return Err(fault);
    }
    let mut status = seen.status(config, None);
    status.exact = show.exact;
    Ok(status)
}

async fn watch(config: &Config, show: Show, looks: &mut Looks) -> Result<ExitCode> {
    let mut signals = Signals::install()
        .map_err(|error| Fault::bug("signals cannot be handled").caused_by(error))?;
    let is_screen = std::io::stdout().is_terminal() && !show.json;
    let _screen = is_screen.then(Screen::enter);
    let mut next = tokio::time::interval(EVERY);
    next.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let drawn = async {
            next.tick().await;
            let status = read(config, show, looks).await?;
            text(&status, show)
        };
        let text = tokio::select! {
            drawn = drawn => drawn?,
            signal = signals.next() => match signal {
                Signal::Stop | Signal::StopNow => return Ok(ExitCode::SUCCESS),
                Signal::Reload | Signal::Status => continue,
            },
        };
        match is_screen {
            true => {
                let lines = coloured(&text).replace('\n', &format!("{REST_OF_LINE}\n"));
                write(&format!("{HOME}{lines}{REST}"));
            }
            false if show.json => print(&text),
            false => print(&format!("{text}\n")),
        }
    }
}

/// The other screen of the terminal, for as long as this lives.
struct Screen;

impl Screen {
    fn enter() -> Self {
        write(ENTER);
        Self
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        write(LEAVE);
    }
}

fn text(status: &Status, show: Show) -> Result<String> {
    if show.json {
        let json = serde_json::to_string(status);
        let json = json.map_err(|error| Fault::bug("status").caused_by(error))?;
        return Ok(printable_json(&json).into_owned() + "\n");
    }
    let size = match terminal_size().filter(|_| std::io::stdout().is_terminal()) {
        Some((Width(width), Height(height))) => Size {
            width: width.into(),
            height: Some(height.into()),
        },
        None => Size {
            width: WIDTH,
            height: None,
        },
    };
    Ok(screen::text(status, size))
}

fn print(text: &str) {
    write(&coloured(text));
}

/// Colours are left out where the output is no terminal, or NO_COLOR is set.
fn coloured(text: &str) -> Cow<'_, str> {
    match anstream::AutoStream::choice(&std::io::stdout()) {
        anstream::ColorChoice::Never => Cow::Owned(anstream::adapter::strip_str(text).to_string()),
        _ => Cow::Borrowed(text),
    }
}

/// A closed output is no fault.
fn write(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
