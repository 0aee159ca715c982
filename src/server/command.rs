//! `password_command`: a password or a token that a command prints.
//!
//! **Neither the command nor anything that it prints is logged**: its arguments and its standard error may hold a token, too.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use super::refused;
use crate::fault::{Fault, Result};

/// How long it may take.
const TIME_MAX: Duration = Duration::from_secs(10);

/// More than a server takes as a password.
const OUTPUT_BYTES_MAX: u64 = 64 * 1024;

/// What a shell answers when there is no such command, or it may not be run.
const NOT_RUN: [i32; 2] = [126, 127];

/// Runs `line` by a shell; the first line that it prints. When this is dropped, all that it started is killed.
///
/// # Errors
/// With the name of `key`: exit 78 for what the configuration has wrong; what fails or takes too long may pass.
pub(super) async fn output(line: &str, key: &str) -> Result<String> {
    let mut running = Running::start(line, key)?;
    let ended = tokio::time::timeout(TIME_MAX, running.end()).await;
    let (output, status) = ended
        .map_err(|_| {
            let limit = TIME_MAX.as_secs();
            Fault::retry(format!("{key} took longer than {limit} s and was killed"))
                .remedy("let it print the password and end in less time; what it leaves running has to close its standard output")
        })?
        .map_err(|error| Fault::retry(format!("{key} could not be read")).caused_by(error))?;
    if output.len() as u64 > OUTPUT_BYTES_MAX {
        let problem = format!("printed more than {} KiB", OUTPUT_BYTES_MAX / 1024);
        return Err(no_password(key, &problem));
    }
    if let Some(status) = status.filter(|status| !status.success()) {
        return Err(failed(key, status));
    }
    first_line(&output).map_err(|problem| no_password(key, problem))
}

fn failed(key: &str, status: ExitStatus) -> Fault {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit status {code}"),
        (None, signal) => format!("was ended by signal {}", signal.unwrap_or_default()),
    };
    let problem = format!("{key} {how}");
    let fault = match status.code() {
        Some(code) if NOT_RUN.contains(&code) => refused(problem, ""),
        _ => Fault::retry(problem),
    };
    fault.remedy(
        "run it as the user that runs waltrail; what it writes to standard error may hold a token and is not logged",
    )
}

fn no_password(key: &str, problem: &str) -> Fault {
    let remedy = "let it print the password on one line to standard output, and nothing else";
    refused(format!("{key} {problem}"), remedy)
}

/// The password in what was printed, or what is wrong with it.
fn first_line(output: &[u8]) -> Result<String, &'static str> {
    let line = output.split(|byte| *byte == b'\n').next();
    let line = line.unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return Err("printed no password");
    }
    if line.iter().any(u8::is_ascii_control) {
        return Err("printed a control character");
    }
    let line = String::from_utf8(line.to_vec());
    line.map_err(|_| "printed something that is not UTF-8")
}

/// The shell and all that it started.
struct Running {
    /// Its process group has its id, until it is reaped.
    child: Child,
    group: Option<Pid>,
}

impl Running {
    fn start(line: &str, key: &str) -> Result<Self> {
        let child = Command::new("/bin/sh")
            .args(["-c", line])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                let remedy =
                    "it is run by /bin/sh -c: is there a shell, and may this user start processes?";
                refused(format!("{key} could not be run"), remedy).caused_by(error)
            })?;
        let group = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .map(Pid::from_raw);
        Ok(Self { child, group })
    }

    /// What it prints until it ends, up to one byte too many; `None`: it was not waited for, since it prints too much.
    async fn end(&mut self) -> std::io::Result<(Vec<u8>, Option<ExitStatus>)> {
        let mut output = Vec::new();
        if let Some(stdout) = &mut self.child.stdout {
            let mut some = stdout.take(OUTPUT_BYTES_MAX + 1);
            some.read_to_end(&mut output).await?;
        }
        if output.len() as u64 > OUTPUT_BYTES_MAX {
            return Ok((output, None));
        }
        let status = self.child.wait().await?;
        // What it left running, it left on purpose.
        self.group = None;
        Ok((output, Some(status)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            // One that has ended by now needs no signal.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_the_password() {
        for output in ["a b", "a b\n", "a b\r\n", "a b\nlogin: app\n"] {
            assert_eq!(first_line(output.as_bytes()).as_deref(), Ok("a b"));
        }
    }

    #[test]
    fn what_is_no_password_is_refused() {
        for output in [
            &b""[..],
            b"\n",
            b"\npassword\n",
            b"\xff\xfe",
            b"a\0b",
            b"\x1b[1mred",
        ] {
            assert!(first_line(output).is_err(), "{output:?}");
        }
    }
}
