//! `manual FOLDER` writes the man pages to `FOLDER/man` and the completions to `FOLDER/completions`.

use std::io::{Error, Result};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    match write() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("manual: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    match (arguments.next(), arguments.next()) {
        (Some(folder), None) => {
            manual::write_pages(&Path::new(&folder).join("man"))?;
            manual::write_completions(&Path::new(&folder).join("completions"))
        }
        _ => Err(Error::other("give one folder to write to")),
    }
}
