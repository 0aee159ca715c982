//! Ordinary SQL, for everything that is not on the path of a change: catalogs, set-up, status.

use tokio_postgres::{Client, NoTls};

use crate::config::Connection;
use crate::report::{Disposition, Exit, Fault, Result};
use crate::wire::{self, ServerError};

/// Session settings: no limit of a role's defaults ends a statement that has to wait, and no name is found
/// through a search path that somebody else controls.
const SESSION: &str = "SET statement_timeout = 0; SET lock_timeout = 0; \
    SET idle_in_transaction_session_timeout = 0; SET idle_session_timeout = 0; SET search_path = ''; SET synchronous_commit = on; \
    SET client_min_messages = error; SET TimeZone = 'UTC'";

/// Connects; `side` names the server in messages ("source" or "target").
///
/// # Errors
/// The server cannot be reached (transient), or refuses.
pub async fn connect(connection: &Connection, side: &'static str) -> Result<Client> {
    let unreachable = |error: tokio_postgres::Error| connect_fault(side, connection, error);
    let (client, driver) = connection
        .tokio_postgres()
        .connect(NoTls)
        .await
        .map_err(unreachable)?;
    tokio::spawn(async move {
        // Whatever ended the connection fails the next statement, which knows what it was for.
        let _ = driver.await;
    });
    for settings in [SESSION, wire::NO_TRANSACTION_TIMEOUT] {
        client
            .batch_execute(settings)
            .await
            .map_err(|error| fault(side, "could not set up its session", error))?;
    }
    Ok(client)
}

fn connect_fault(
    side: &'static str,
    connection: &Connection,
    error: tokio_postgres::Error,
) -> Fault {
    let what = format!("could not connect to the {side} {connection}");
    match error.as_db_error() {
        Some(report) => refused(side, &what, ServerError::from_db_error(report)),
        None if error.is_closed() => Fault::retry(what).caused_by(error),
        None => {
            // tokio-postgres sorts what it was given wrongly (a missing password) only by text.
            let text = error.to_string();
            let disposition =
                match text.contains("configuration") || text.contains("password missing") {
                    true => Disposition::Halt(Exit::NoPermission),
                    false => Disposition::Retry,
                };
            let remedy = match disposition {
                Disposition::Halt(_) => format!(
                    "set the password in {side}.password_file, {side}.dsn, PGPASSWORD or ~/.pgpass"
                ),
                Disposition::Retry => {
                    format!("check that the server runs and that {side}.dsn is right")
                }
            };
            Fault::new(disposition, what)
                .remedy(remedy)
                .caused_by(error)
        }
    }
}

/// A connection attempt that the server refused.
#[must_use]
pub fn refused(side: &'static str, what: &str, error: ServerError) -> Fault {
    let remedy = match error.code.as_str() {
        "28P01" => format!(
            "correct the password of {side}.dsn, {side}.password_file, PGPASSWORD or ~/.pgpass"
        ),
        "28000" => {
            "add a line for this role, database and address to the server's pg_hba.conf".to_owned()
        }
        "42501" => "give the role what it needs: ALTER ROLE ... REPLICATION (source)".to_owned(),
        "3D000" => format!("correct the database name in {side}.dsn"),
        "53300" => "raise max_wal_senders or max_connections, or free a connection".to_owned(),
        _ => format!("see the {side} server's log"),
    };
    Fault::new(error.disposition(), what.to_owned())
        .remedy(remedy)
        .caused_by(error)
}

/// A statement that failed, without anything of its parameters or the server's DETAIL.
#[must_use]
pub fn fault(side: &'static str, what: &str, error: tokio_postgres::Error) -> Fault {
    match error.as_db_error() {
        Some(report) => {
            let error = ServerError::from_db_error(report);
            let fault = Fault::new(error.disposition(), format!("the {side} {what}"));
            let fault = match error.code.as_str() {
                "42501" => fault.remedy(format!("grant the {side} role the privilege, or let somebody who has it run `waltrail setup`")),
                "53100" => fault.remedy(format!("free disk space on the {side}")),
                _ => fault,
            };
            fault.caused_by(error)
        }
        None => Fault::retry(format!("the {side} {what}")).caused_by(error),
    }
}
