//! What a person can do about a connection that was refused, or a statement. Pure.
//!
//! A server speaks the language of its administrator, so nothing is known from its words: a refusal is known by its SQLSTATE
//! and by the function of the server that raised it. The latter has kept its name from 14 to 18.

use super::{Connection, Side, tls_hint};
use crate::name::Identifier;
use crate::wire::Error;

/// A role does not exist, or may not log in (`InitializeSessionUserId`).
const NO_ROLE: &str = "InitializeSessionUserId";
/// No line of `pg_hba.conf` fits, or one that rejects (`ClientAuthentication`).
const NO_LINE: &str = "ClientAuthentication";
/// The database lets no role in that lacks CONNECT (`CheckMyDatabase`).
const NO_DATABASE: &str = "CheckMyDatabase";

/// What lets a refused connection in.
pub(super) fn connect(connection: &Connection, side: Side, error: &Error) -> String {
    let report = error.server();
    let routine = report.map_or("", |report| report.routine.as_str());
    let (user, database) = (
        Identifier(connection.user()),
        Identifier(connection.dbname()),
    );
    match (report.map(|report| report.code.as_str()), routine) {
        (Some("28P01"), _) => format!(
            "{}; a role that does not exist is refused alike: CREATE ROLE {user} LOGIN PASSWORD '...';",
            connection.credentials().remedy()
        ),
        (Some("28000"), NO_ROLE) => {
            let replicates = match side {
                Side::Source => " REPLICATION",
                Side::Target => "",
            };
            format!(
                "CREATE ROLE {user} LOGIN{replicates}; -- on the {side}; or, where the role exists: ALTER ROLE {user} LOGIN;"
            )
        }
        (Some("28000"), NO_LINE) => {
            format!("{}{}", above(connection, side), only_tls(connection, side))
        }
        (Some("28000"), _) => format!(
            "a line of pg_hba.conf that fits first, with peer, ident or cert, refuses this user; {}",
            above(connection, side)
        ),
        (Some("42501"), NO_DATABASE) => {
            format!("GRANT CONNECT ON DATABASE {database} TO {user}; -- on the {side}")
        }
        (Some("42501"), _) => format!(
            "ALTER ROLE {user} REPLICATION; -- on the {side}; on Amazon RDS and Aurora: GRANT rds_replication TO {user};"
        ),
        (Some("3D000"), _) => format!("correct the database name in {side}.dsn"),
        (Some("53300"), _) => {
            "raise max_wal_senders or max_connections, or free a connection".to_owned()
        }
        (Some("08P01"), _) => format!(
            "connect to the server itself with {side}.dsn: a connection pooler that stands before it cannot replicate"
        ),
        (Some(_), _) => format!("see the {side} server's log"),
        (None, _) if matches!(error, Error::NoPassword | Error::PasswordExchange) => {
            connection.credentials().remedy()
        }
        (None, _) if matches!(error, Error::Iterations(_)) => {
            format!("lower scram_iterations on the {side}, then: ALTER ROLE {user} PASSWORD '...';")
        }
        (None, _) if matches!(error, Error::Protocol(_)) => {
            format!(
                "check that {side}.dsn names PostgreSQL's host and port, and what stands between"
            )
        }
        (None, _) => tls_hint::of(side, connection, error)
            .unwrap_or_else(|| format!("check that the server runs and that {side}.dsn is right")),
    }
}

/// The line that lets this connection in, and where it has to stand.
fn above(connection: &Connection, side: Side) -> String {
    format!(
        "put this line above the others in pg_hba.conf of the {side}: {}; then: SELECT pg_reload_conf();",
        line(connection, None)
    )
}

/// A line of `pg_hba.conf` for this connection, from `address` where it is known.
pub fn line(connection: &Connection, address: Option<&str>) -> String {
    let (database, user) = (word(connection.dbname()), word(connection.user()));
    let host = connection.host();
    let address = match (address, host.as_str()) {
        (Some(address), _) => address,
        (None, "127.0.0.1" | "localhost") => "127.0.0.1/32",
        (None, "::1") => "::1/128",
        (None, _) => "ADDRESS-OF-THIS-MACHINE/32",
    };
    match host.starts_with('/') {
        true => format!("local {database} {user} scram-sha-256"),
        false => format!("host {database} {user} {address} scram-sha-256"),
    }
}

/// Names that mean something else there, or hold more than letters, stand in quotes.
fn word(name: &str) -> String {
    let is_plain = name
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    match is_plain
        && !matches!(
            name,
            "" | "all" | "sameuser" | "samerole" | "samegroup" | "replication"
        ) {
        true => name.to_owned(),
        false => format!("\"{name}\""),
    }
}

/// A server can have lines for TLS only, which it does not say.
fn only_tls(connection: &Connection, side: Side) -> String {
    match connection.may_encrypt() {
        true => String::new(),
        false => format!(
            " Where it has a hostssl line for this, it wants TLS: set sslmode=require in {side}.dsn"
        ),
    }
}

/// What lets a statement run that the server refused.
pub(super) fn statement(side: Side, code: &str) -> Option<String> {
    match code {
        "42501" => Some(format!(
            "`waltrail check` names each privilege that the role lacks on the {side}, with its GRANT"
        )),
        "53100" => Some(format!("free disk space on the {side}")),
        code if code.starts_with("54") => {
            Some("leave columns out of the history with table.exclude_columns".to_owned())
        }
        _ => None,
    }
}
