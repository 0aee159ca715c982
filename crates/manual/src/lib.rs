//! The manual of waltrail, made when a package is: man pages and completions from the very command line of the program, `waltrail.toml(5)`
//! from the page of `docs/` that tests hold against the program. Nothing is written down a second time here.

mod markdown;

use std::fs;
use std::io::{Error, Result};
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use roff::{Roff, bold, italic, roman};
use waltrail::cli::Cli;

/// What stands at the foot of each page.
const SOURCE: &str = concat!("waltrail ", env!("CARGO_PKG_VERSION"));
const SETTINGS: &str = "/etc/waltrail/waltrail.toml";

/// Writes `waltrail.1`, a page for each command, as `waltrail-run.1`, and `waltrail.toml.5`.
///
/// # Errors
/// When the folder cannot be written to, or a page of `docs/` is not as expected.
pub fn write_pages(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let mut command = Cli::command();
    // Gives each command the flags that all have.
    command.build();
    fs::write(folder.join("waltrail.1"), program(&command)?)?;
    for command in command.get_subcommands() {
        let name = format!("waltrail-{}.1", command.get_name());
        fs::write(folder.join(name), one(command)?)?;
    }
    fs::write(folder.join("waltrail.toml.5"), settings()?)
}

/// Writes the completions for bash, zsh and fish, under the names that these look for.
///
/// # Errors
/// When the folder cannot be written to.
pub fn write_completions(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for (shell, name) in [
        (Shell::Bash, "waltrail"),
        (Shell::Zsh, "_waltrail"),
        (Shell::Fish, "waltrail.fish"),
    ] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "waltrail", &mut script);
        fs::write(folder.join(name), script)?;
    }
    Ok(())
}

/// A page up to its description.
fn begun(command: &Command) -> Result<(Man, Vec<u8>)> {
    let mut page = Vec::new();
    let man = man(command);
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    Ok((man, page))
}

/// `waltrail(1)`.
fn program(command: &Command) -> Result<Vec<u8>> {
    let (man, mut page) = begun(command)?;
    man.render_subcommands_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let commands = document("reference/commands.md")?;
    let exits = document("reference/exit-codes.md")?;
    let mut roff = Roff::new();
    roff.control("SH", ["SIGNALS"]);
    markdown::render(&mut roff, section(&commands, "Signals")?);
    roff.control("SH", ["EXIT STATUS"]);
    let (_, exits) = exits.split_once('\n').ok_or_else(|| lacks("a heading"))?;
    markdown::render(&mut roff, exits);
    roff.control("SH", ["FILES"]);
    roff.control("TP", []);
    roff.text([italic(SETTINGS)]);
    roff.text([
        roman("The settings where there is no "),
        italic("./waltrail.toml"),
        roman(" and none are named."),
    ]);
    roff.control("TP", []);
    roff.text([italic("/usr/share/doc/waltrail")]);
    roff.text([roman(
        "The documents: installation, every day, reference, guarantees.",
    )]);
    let pages = command
        .get_subcommands()
        .map(|command| (format!("waltrail-{}", command.get_name()), "1"));
    see_also(
        &mut roff,
        [("waltrail.toml".to_owned(), "5")].into_iter().chain(pages),
    );
    roff.to_writer(&mut page)?;
    finished(page)
}

/// The page of one command.
fn one(command: &Command) -> Result<Vec<u8>> {
    let (man, mut page) = begun(command)?;
    man.render_options_section(&mut page)?;
    let mut roff = Roff::new();
    let pages = [
        ("waltrail".to_owned(), "1"),
        ("waltrail.toml".to_owned(), "5"),
    ];
    see_also(&mut roff, pages);
    roff.to_writer(&mut page)?;
    finished(page)
}

/// Each part of a page comes with roff's preamble, and one is enough. What the command line marks as code is bold.
fn finished(page: Vec<u8>) -> Result<Vec<u8>> {
    let preamble = Roff::new().render();
    let page = String::from_utf8(page).map_err(Error::other)?;
    let page = preamble.clone() + &page.replace(&preamble, "");
    let mut bold = String::new();
    for (at, part) in page.split('`').enumerate() {
        match at % 2 {
            0 => bold.push_str(part),
            _ => bold.push_str(&format!("\\fB{part}\\fR")),
        }
    }
    Ok(bold.into_bytes())
}

fn man(command: &Command) -> Man {
    let name = command.get_display_name().unwrap_or("waltrail");
    Man::new(command.clone())
        .title(name.to_uppercase())
        .section("1")
        .date(waltrail::BUILD_DATE)
        .source(SOURCE)
        .manual("waltrail")
}

/// `waltrail.toml(5)`.
fn settings() -> Result<Vec<u8>> {
    let text = document("reference/configuration.md")?;
    let (_, text) = text.split_once('\n').ok_or_else(|| lacks("a heading"))?;
    let (before, keys) = text
        .split_once("<!-- checked: keys -->\n")
        .ok_or_else(|| lacks("the table of keys"))?;
    let mut roff = Roff::new();
    roff.control(
        "TH",
        [
            "WALTRAIL.TOML",
            "5",
            waltrail::BUILD_DATE,
            SOURCE,
            "waltrail",
        ],
    );
    roff.control("SH", ["NAME"]);
    roff.text([roman("waltrail.toml - the settings of waltrail(1)")]);
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([italic("./waltrail.toml")]);
    roff.control("br", []);
    roff.text([italic(SETTINGS)]);
    roff.control("SH", ["DESCRIPTION"]);
    markdown::render(&mut roff, before);
    roff.control("SH", ["KEYS"]);
    markdown::render(&mut roff, keys);
    see_also(&mut roff, [("waltrail".to_owned(), "1")]);
    let mut page = Vec::new();
    roff.to_writer(&mut page)?;
    Ok(page)
}

fn see_also(roff: &mut Roff, pages: impl IntoIterator<Item = (String, &'static str)>) {
    roff.control("SH", ["SEE ALSO"]);
    let mut line = Vec::new();
    for (name, section) in pages {
        if !line.is_empty() {
            line.push(roman(", "));
        }
        line.extend([bold(name), roman(format!("({section})"))]);
    }
    roff.text(line);
}

fn document(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(name);
    fs::read_to_string(&path).map_err(|error| Error::other(format!("{}: {error}", path.display())))
}

/// What stands under a heading of the second level.
fn section<'a>(text: &'a str, heading: &str) -> Result<&'a str> {
    let (_, rest) = text
        .split_once(&format!("\n## {heading}\n"))
        .ok_or_else(|| lacks(heading))?;
    Ok(rest
        .split_once("\n## ")
        .map_or(rest, |(section, _)| section))
}

fn lacks(what: &str) -> Error {
    Error::other(format!("a page of docs/reference lacks {what}"))
}
