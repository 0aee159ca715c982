//! What to do when a connection is not encrypted, or not to be trusted.

use super::{Connection, Side};
use crate::fault::{Disposition, Exit};
use crate::wire::{CertificateFault, Error, TlsError};

/// What must happen next when a connection was not made: what is wrong with a certificate or a file stays so.
pub(super) fn disposition(error: &Error) -> Disposition {
    match error {
        // The server could not make a process for the connection, or stops.
        Error::Tls(TlsError::ErrorBefore | TlsError::Cut) => Disposition::Retry,
        Error::Tls(_) => Disposition::Halt(Exit::Config),
        // It is another kind of server, or not to be trusted; no history depends on it yet.
        Error::Protocol(_) => Disposition::Halt(Exit::Config),
        // A pooler says so of what it does not know.
        Error::Server(report) if report.code == "08P01" => Disposition::Retry,
        error => error.disposition(),
    }
}

/// The remedy of a fault of TLS; `None` for other faults.
pub(super) fn of(side: Side, connection: &Connection, error: &Error) -> Option<String> {
    let roots = connection.0.tls.roots.to_string();
    Some(match error {
        Error::Tls(error) => match error {
            TlsError::NotOffered => format!(
                "set `ssl = on` with a certificate on the {side} server, or write sslmode=prefer in {side}.dsn to do without"
            ),
            TlsError::ErrorBefore => format!("see the {side} server's log"),
            TlsError::EarlyData => {
                "find out who is between this machine and the server; do not weaken sslmode"
                    .to_owned()
            }
            TlsError::File { remedy, .. } => remedy.clone(),
            TlsError::NoSystemRoots => {
                "install the package ca-certificates, or name the authority's file with sslrootcert"
                    .to_owned()
            }
            TlsError::Certificate(fault) => of_certificate(side, fault, &roots),
            TlsError::Alert(_) => format!(
                "see the {side} server's log; where it asks for a client certificate, name one that its ssl_ca_file \
                 trusts with sslcert and sslkey in {side}.dsn"
            ),
            TlsError::Cut if !connection.0.tls.direct => {
                format!(
                    "see the {side} server's log; check that {side}.dsn names PostgreSQL's port"
                )
            }
            TlsError::Cut | TlsError::NotDirect => {
                format!("leave sslnegotiation=direct out of {side}.dsn; it needs PostgreSQL 17")
            }
            TlsError::Other(_) => format!(
                "see the {side} server's log; compare ssl_min_protocol_version and ssl_ciphers of server and {side}.dsn"
            ),
        },
        Error::NotBound => format!(
            "use TLS and a password that is stored as scram-sha-256 on the {side}, or leave channel_binding=require out \
             of {side}.dsn"
        ),
        Error::Unfit(_) => {
            format!("name the right server in {side}.dsn, or change target_session_attrs there")
        }
        _ => return None,
    })
}

fn of_certificate(side: Side, fault: &CertificateFault, roots: &str) -> String {
    match fault {
        CertificateFault::Expired | CertificateFault::NotYetValid => {
            format!("renew the {side} server's certificate, or set the clock of this machine right")
        }
        CertificateFault::UnknownIssuer => format!(
            "put the certificate of the authority that signed the server's into {roots}, or name its file with \
             sslrootcert in {side}.dsn"
        ),
        CertificateFault::Revoked => {
            format!(
                "give the {side} server a new certificate; this one is in the list of revoked ones (sslcrl)"
            )
        }
        CertificateFault::RevocationUnknown | CertificateFault::ListExpired => {
            "get a new list from each authority and put it into the file of sslcrl".to_owned()
        }
        CertificateFault::Name { .. } => format!(
            "connect by a name that is in the certificate (with hostaddr=... where it does not resolve), or write \
             sslmode=verify-ca in {side}.dsn to check the authority alone"
        ),
        CertificateFault::Purpose | CertificateFault::Other(_) => {
            format!("give the {side} server another certificate")
        }
    }
}
