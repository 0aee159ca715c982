//! The hosts of a connection string, and which of them is the right one.

use std::net::IpAddr;
use std::path::Path;

use super::attributes::{Attributes, Wanted};
use super::settings::{Gathered, SOCKET_FOLDERS};
use super::{Host, Side};
use crate::fault::Result;

const DEFAULT_PORT: u16 = 5432;

impl Gathered {
    /// With several hosts and nothing else asked for, each side looks for the server that it needs after a switch-over.
    pub(super) fn attributes(&self, hosts: &[Host]) -> Result<Attributes> {
        let default = match (hosts.len(), self.side) {
            (1, _) => Wanted::Any,
            (_, Side::Source) => Wanted::Primary,
            (_, Side::Target) => Wanted::ReadWrite,
        };
        let default = Attributes::Only(default);
        self.one_of("target_session_attrs", default, &Attributes::WORDS)
    }

    pub(super) fn hosts(&self) -> Result<Vec<Host>> {
        let list = |keyword: &str| -> Vec<&str> {
            self.value(keyword)
                .map(|value| value.split(',').map(str::trim).collect())
                .unwrap_or_default()
        };
        let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
        let count = names.len().max(addresses.len()).max(1);
        for (keyword, given, free) in [
            ("host", names.len(), 0),
            ("hostaddr", addresses.len(), 0),
            ("port", ports.len(), 1),
        ] {
            if given != count && given != 0 && given != free {
                let problem = "does not have one entry for each host";
                let remedy = "give as many entries as there are hosts, or one port for all";
                return Err(self.refusal(keyword, problem, remedy));
            }
        }
        (0..count)
            .map(|at| {
                let address = addresses.get(at).map(|address| address.parse::<IpAddr>());
                let address = address.transpose().map_err(|_| {
                    let problem = "is not a numeric address";
                    self.refusal("hostaddr", problem, "use host for a name")
                })?;
                let name = match (names.get(at).copied().unwrap_or_default(), address) {
                    ("", Some(address)) => address.to_string(),
                    ("", None) => default_host().to_owned(),
                    (name, _) => name.to_owned(),
                };
                // What an unescaped password leaves behind ends up here.
                if name.contains(['@', '/', ' ', '=']) && !name.starts_with('/') {
                    let problem = "is neither a host name nor an absolute path";
                    let remedy = "percent-encode the password of a URI; name a socket's folder by \
                                  its absolute path";
                    return Err(self.refusal("host", problem, remedy));
                }
                let port = ports.get(at).or(ports.first()).copied().unwrap_or_default();
                let port = match port {
                    "" => DEFAULT_PORT,
                    port => port.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
                        self.refusal("port", "is not a port", "write a number from 1 to 65535")
                    })?,
                };
                Ok(Host {
                    name,
                    address,
                    port,
                })
            })
            .collect()
    }
}

/// The folder of a local server's socket where there is one, else this machine by TCP.
fn default_host() -> &'static str {
    let has_socket = |folder: &&str| {
        std::fs::read_dir(folder).is_ok_and(|mut entries| {
            entries.any(|entry| {
                entry.is_ok_and(|entry| {
                    let name = entry.file_name();
                    name.as_encoded_bytes().starts_with(b".s.PGSQL.")
                })
            })
        })
    };
    let folders = SOCKET_FOLDERS.into_iter();
    let found = folders.clone().find(has_socket);
    found
        .or_else(|| folders.take(1).find(|folder| Path::new(folder).is_dir()))
        .unwrap_or("localhost")
}
