//! The server's configuration: `postgresql.conf` and `pg_hba.conf`.

use std::fs::{self, File};
use std::io::Write as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::Cluster;
use crate::cluster::system::{POLL, complains_about, signal};
use crate::error::{Error, Result};

/// How long a running server may take to read its configuration again.
const RELOAD_MAX: Duration = Duration::from_secs(10);

impl Cluster {
    /// Sets a parameter of `postgresql.conf`. When the server runs, it reads the file again and new
    /// sessions see the new value on return; sessions that are open take it up at their next command.
    /// A parameter that needs a restart takes effect at the next start.
    ///
    /// # Errors
    /// When the server refuses the value.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let conf = self.data_dir().join("postgresql.conf");
        let before = fs::metadata(&conf).map(|found| found.len());
        // The server applies the file in its order, and logs each value that differs from the last: the
        // counter behind the new value shows that the server is past both.
        self.generation += 1;
        let generation = self.generation.to_string();
        self.append_settings(&[
            (name.to_owned(), value.to_owned()),
            ("waltrail.generation".to_owned(), generation.clone()),
        ])?;
        let Some(server) = &self.server else {
            return Ok(());
        };
        let seen = self.log_text().len();
        signal(server.id(), Signal::SIGHUP);
        let done = format!("parameter \"waltrail.generation\" changed to \"{generation}\"");
        let deadline = Instant::now() + RELOAD_MAX;
        loop {
            let log = self.log_text();
            let new = log.get(seen..).unwrap_or_default();
            let refused = new.contains("no changes were applied") || complains_about(new, name);
            if refused {
                // A server that starts with this line would not come up.
                if let Ok(length) = before {
                    File::options()
                        .write(true)
                        .open(&conf)
                        .and_then(|file| file.set_len(length))
                        .map_err(|error| {
                            Error::environment("could not write postgresql.conf").caused_by(error)
                        })?;
                }
                return Err(Error::environment(format!(
                    "the server refused {name} = {value}"
                )));
            }
            if new.contains(&done) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::environment(
                    "the server did not read its configuration again",
                ));
            }
            sleep(POLL);
        }
    }

    pub(super) fn write_hba(&self, lines: &[String]) -> Result<()> {
        let mut text = lines.join("\n");
        text.push_str(
            "\nlocal all all trust\nlocal replication all trust\
             \nhost all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n",
        );
        fs::write(self.data_dir().join("pg_hba.conf"), text)
            .map_err(|error| Error::environment("could not write pg_hba.conf").caused_by(error))
    }

    pub(super) fn write_settings(&self, fsync: bool, chosen: &[(String, String)]) -> Result<()> {
        let on_off = if fsync { "on" } else { "off" };
        let sockets = self.socket_dir().display().to_string();
        let defaults = [
            ("listen_addresses", "127.0.0.1"),
            ("unix_socket_directories", &sockets),
            ("wal_level", "logical"),
            ("max_wal_senders", "20"),
            ("max_replication_slots", "20"),
            ("shared_buffers", "32MB"),
            // Files in the data directory: what a killed server leaves behind goes with the folder.
            ("dynamic_shared_memory_type", "mmap"),
            ("logging_collector", "off"),
            ("log_destination", "stderr"),
            ("fsync", on_off),
            ("full_page_writes", on_off),
        ];
        let mut settings: Vec<(String, String)> = defaults
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        settings.extend_from_slice(chosen);
        self.append_settings(&settings)
    }

    fn append_settings(&self, settings: &[(String, String)]) -> Result<()> {
        let mut text = String::new();
        for (name, value) in settings {
            let value = value.replace('\\', "\\\\").replace('\'', "''");
            text.push_str(&format!("{name} = '{value}'\n"));
        }
        File::options()
            .append(true)
            .open(self.data_dir().join("postgresql.conf"))
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| Error::environment("could not write postgresql.conf").caused_by(error))
    }
}
