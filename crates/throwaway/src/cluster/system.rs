//! What a server needs from the system: its watchdog, a folder, a port, and signals to its processes.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::account::Account;
use crate::error::{Error, Result};

pub(super) const POLL: Duration = Duration::from_millis(5);

/// Starts the shell that cleans up after an owner who cannot, see the drawing in the parent module. It
/// takes the postmaster's id from the data directory, since that changes with every restart, and makes
/// sure that the process is the one that runs on this data directory.
pub(super) fn watchdog(folder: &Path, sockets: Option<&Path>) -> Result<Child> {
    const SCRIPT: &str = r#"
        read -r word && exit 0
        folder=$1 sockets=$2
        file=$folder/data/postmaster.pid
        { read -r pid; read -r _; read -r _; read -r _; read -r _; read -r _; read -r _ memory; } <"$file"
        ours() {
            kill -0 "$pid" || return 1
            [ ! -r "/proc/$pid/cmdline" ] || grep -qaF -- "$folder/data" "/proc/$pid/cmdline"
        }
        go_on() {
            for stat in /proc/[0-9]*/stat; do
                read -r line <"$stat" || continue
                parent=${line##*) ? } child=${stat#/proc/}
                [ "${parent%% *}" != "$pid" ] || kill -CONT "${child%/stat}"
            done
            kill -CONT "$pid"
        }
        if [ -n "$pid" ] && ours; then
            kill -QUIT "$pid"
            go_on
            tries=0
            while ours && [ "$tries" -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
            ours && kill -KILL "$pid"
        fi
        [ ! -e "$file" ] || [ -z "$memory" ] || ipcrm -m "$memory"
        rm -rf -- "$folder"
        [ -z "$sockets" ] || rm -rf -- "$sockets"
    "#;
    Command::new("/bin/sh")
        .args(["-c", SCRIPT, "waltrail-watchdog"])
        .arg(folder)
        .arg(sockets.unwrap_or(Path::new("")))
        .current_dir("/")
        // What kills the owner's group, or the terminal, must not take the watchdog along.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| Error::environment("could not run /bin/sh").caused_by(error))
}

pub(super) fn new_folder(parent: Option<&Path>, account: &Account) -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("waltrail-pg-");
    let folder = match parent {
        Some(parent) => builder.tempdir_in(parent),
        None => builder.tempdir(),
    }
    .map_err(|error| {
        Error::environment("could not make a folder for the server")
            .caused_by(error)
            .remedy("Set TMPDIR to a folder that can be written to.")
    })?;
    account.own(folder.path())?;
    Ok(folder)
}

pub(super) fn socket_path_len(folder: &Path) -> usize {
    // PostgreSQL adds ".lock" to the name for the file that guards the socket.
    folder.as_os_str().len() + "/.s.PGSQL.65535.lock".len()
}

/// A port that was free a moment ago, below the range from which the system takes the local ports of
/// outgoing connections: a client that calls a stopped server's port there can end up connected to
/// itself, and then the server cannot have its port back.
pub(super) fn free_port() -> Result<u16> {
    let lowest_outgoing: u16 = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(32_768);
    let range = 10_000..lowest_outgoing.clamp(10_001, 32_768);
    for _ in 0..100 {
        let port = fastrand::u16(range.clone());
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| Error::environment("found no free port on 127.0.0.1").caused_by(error))
}

/// Sends a signal to a child; that it has ended meanwhile is no failure.
pub(super) fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

pub(super) fn ended_within(child: &mut Child, bound: Duration) -> bool {
    let deadline = Instant::now() + bound;
    loop {
        match child.try_wait() {
            Ok(None) if Instant::now() < deadline => sleep(POLL),
            Ok(None) => return false,
            Ok(Some(_)) | Err(_) => return true,
        }
    }
}

/// The processes whose parent is `pid`. Empty where there is no `/proc`; PostgreSQL's processes then
/// notice by themselves that the postmaster has gone.
pub(super) fn children_of(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|child: &u32| {
            // The name in parentheses may hold anything; state and parent follow it.
            fs::read_to_string(format!("/proc/{child}/stat")).is_ok_and(|stat| {
                stat.rsplit_once(')')
                    .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok())
                    == Some(pid)
            })
        })
        .collect()
}

/// Whether the log tells of a wrong value for the parameter. Lines that tell of its new value, or that it
/// waits for a restart, are no complaints.
pub(super) fn complains_about(log: &str, name: &str) -> bool {
    let quoted = format!("parameter \"{name}\"");
    log.lines().any(|line| {
        line.contains(&quoted)
            && !line.contains("changed to")
            && !line.contains("cannot be changed without restarting")
    })
}

/// The last fatal line of a log, for a message.
pub(super) fn last_words(log: &str) -> String {
    log.lines()
        .rev()
        .find(|line| line.contains("FATAL:") || line.contains("PANIC:"))
        .map(|line| format!(": {line}"))
        .unwrap_or_default()
}
