//! Command line in, exit code out; the only place that ends the process.

use std::io::Write;
use std::process::ExitCode;

use waltrail::cli::{Cli, Command};
use waltrail::config::{Config, Environment};
use waltrail::report::{Fault, Result};

fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(usage) => {
            // Nobody is left to tell when the output is closed.
            let _ = if usage.was_asked_for() {
                write!(std::io::stdout(), "{}", usage.text())
            } else {
                write!(std::io::stderr(), "{}", usage.text())
            };
            return usage.exit_code();
        }
    };
    match start(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            let mut text = format!("error: {fault}\n");
            if let Some(remedy) = fault.remedy_text() {
                text.push_str(&format!("hint: {remedy}\n"));
            }
            let _ = std::io::stderr().write_all(text.as_bytes());
            fault.exit().into()
        }
    }
}

fn start(cli: &Cli) -> Result<()> {
    if let Command::Demo { .. } = cli.command {
        // The demonstration brings its own server and configuration.
        return Err(Fault::bug("the demonstration is not wired yet"));
    }
    let config = Config::load(&cli.flags(), &Environment::of_process())?;
    if let Command::Run { .. } | Command::Setup { .. } = cli.command {
        config.require_tables()?;
    }
    Err(Fault::bug("the commands are not wired yet"))
}
