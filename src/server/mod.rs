//! The two servers: how to reach them, and the one way to connect.
//!
//! ```text
//!   dsn, service file, PG* variables, passfile  ->  Connection  ->  sql()      ordinary SQL
//!                                                               ->  channel()  replication, COPY, the writer
//! ```
//!
//! Both connect to the same hosts with the same password, time limit and [`SESSION`] settings. Failures are sorted by
//! SQLSTATE or by the type of their cause, never by their text.
//!
//! **A password leaves through `wire` and the SQL client only**: `Debug` and `Display` of a [`Connection`] show user, host,
//! port and database, and no error holds a setting's value.

pub(crate) mod answers;
mod attributes;
mod command;
mod connect;
mod credentials;
mod dsn;
mod hints;
mod hosts;
mod libpq;
mod secret;
mod service;
mod settings;
mod side;
mod tls_hint;
mod tls_settings;
mod wait;

use std::fmt::{self, Write as _};
use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_postgres::{AsyncMessage, Client, SimpleQueryMessage};

use attributes::Attributes;
pub use credentials::{Credentials, Place};
pub use hints::line as hba_line;
pub use service::Service;
pub use side::Side;
pub use wait::{REMIND, Reminder};
pub(crate) use wait::{blocked_for, limit};

use crate::fault::{Exit, Fault, Result};
use crate::wire::{self, Asked, Channel, Keepalive, ServerError, TlsSettings};

/// Settings of every session. The text form of values depends on the first ones, as it is written and as it is read, so no
/// `ALTER ROLE ... SET` changes what is recorded. No name is found through a search path that another role controls. No
/// timeout ends a session that waits for the other server. Behind a cut network the server would keep a backend, and its locks,
/// for two hours; with something sent that is not acknowledged, for a quarter of one.
const SESSION: [(&str, &str); 24] = [
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("array_nulls", "on"),
    ("xmloption", "content"),
    ("quote_all_identifiers", "off"),
    ("standard_conforming_strings", "on"),
    ("backslash_quote", "safe_encoding"),
    ("transform_null_equals", "off"),
    ("search_path", ""),
    // The catalogs are asked for many tables at once, which looks dear to the planner and is not.
    ("jit", "off"),
    // Each statement sees what was committed before it, as our checks of the catalogs need.
    ("default_transaction_isolation", "read committed"),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("lock_timeout", "0"),
    ("client_min_messages", "error"),
    ("tcp_keepalives_idle", "15"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "30000"),
];
/// One more of them, which servers before 17 would refuse at startup.
const NO_TRANSACTION_TIMEOUT: &str = "SELECT pg_catalog.set_config('transaction_timeout', '0', false) \
    WHERE pg_catalog.current_setting('transaction_timeout', true) IS NOT NULL";

/// Settings of the sessions that another instance waits for, the writer's and the walsender: a client that vanished is noticed
/// within 10 s, whether the server waits for it or has sent something that was not acknowledged. The other sessions, a copy of
/// existing rows among them, are to outlast a longer cut.
pub(crate) const NOTICED: [(&str, &str); 4] = [
    ("tcp_keepalives_idle", "4"),
    ("tcp_keepalives_interval", "2"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "10000"),
];

/// A server that works on a statement for long looks now and then whether its client is still there. Linux and some other
/// systems can; the others refuse it.
pub(crate) const CHECK_CLIENT: &str = "SET client_connection_check_interval = '2s'";

/// A database without an encoding passes bytes as they are, which may be no UTF-8: so must the connection. Where only one
/// side has none, the other one checks them.
const PASS_BYTES: &str = "SELECT pg_catalog.set_config('client_encoding', 'SQL_ASCII', false) \
    WHERE pg_catalog.current_setting('server_encoding') = 'SQL_ASCII'";

/// How to reach one database as one role. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Connection(Arc<Parameters>);

/// What a connection string means, with libpq's other places and defaults.
#[derive(PartialEq, Eq)]
struct Parameters {
    /// In the order in which they are tried; never empty.
    hosts: Vec<Host>,
    user: String,
    dbname: String,
    application_name: String,
    options: String,
    /// For each address; `None` is no limit.
    connect_timeout: Option<Duration>,
    keepalive: Keepalive,
    tls: TlsSettings,
    attributes: Attributes,
    credentials: Credentials,
}

/// One host of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// A name, an address, or the folder of a Unix socket; what a certificate and a password file are searched for.
    pub name: String,
    /// Where to connect to, instead of looking the name up.
    pub address: Option<IpAddr>,
    pub port: u16,
}

impl Host {
    /// Whether it is the folder of a Unix socket.
    pub fn is_socket(&self) -> bool {
        self.name.starts_with('/') && self.address.is_none()
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, port, .. } = self;
        match name.contains(':') {
            true => write!(f, "[{name}]:{port}"),
            false => write!(f, "{name}:{port}"),
        }
    }
}

impl Connection {
    /// The first host: a name, an address, or the folder of a Unix socket.
    pub fn host(&self) -> String {
        let first = self.0.hosts.first();
        first.map(|host| host.name.clone()).unwrap_or_default()
    }

    pub fn hosts(&self) -> &[Host] {
        &self.0.hosts
    }

    /// Whether TLS is tried, or of no use: on a Unix socket.
    pub(crate) fn may_encrypt(&self) -> bool {
        self.0.tls.mode != wire::Mode::Disable || self.hosts().iter().all(Host::is_socket)
    }

    /// The first host's port.
    pub fn port(&self) -> u16 {
        self.0
            .hosts
            .first()
            .map(|host| host.port)
            .unwrap_or_default()
    }

    pub fn user(&self) -> &str {
        &self.0.user
    }

    pub fn dbname(&self) -> &str {
        &self.0.dbname
    }

    pub fn credentials(&self) -> &Credentials {
        &self.0.credentials
    }

    /// What the server shows this program's sessions as.
    pub(crate) fn application_name(&self) -> &str {
        &self.0.application_name
    }
}

impl fmt::Display for Connection {
    /// `user@host:port/dbname`, several hosts with commas; never a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = '@';
        f.write_str(self.user())?;
        for host in self.hosts() {
            write!(f, "{separator}{host}")?;
            separator = ',';
        }
        write!(f, "/{}", self.dbname())
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({self})")
    }
}

fn refused(problem: impl Into<String>, remedy: impl Into<String>) -> Fault {
    Fault::halt(Exit::Config, problem).remedy(remedy)
}

/// [`SESSION`] as libpq's `options`, after those of the user: the last of two equal ones counts.
fn session_options(of_user: Option<&str>) -> String {
    let mut options = of_user.unwrap_or_default().to_owned();
    for (setting, value) in SESSION {
        let _ = write!(options, " -c {setting}={}", value.replace(' ', "\\ "));
    }
    options
}

/// No commit waits for a standby: on the source it would be as late as the stream, and what has to be durable passes a barrier
/// (`session/durability.rs`). Set after the start, so that what the server itself promises can still be seen.
const COMMITS_LOCALLY: &str = "SET synchronous_commit = local";

/// Opens a session for ordinary SQL: everything that is not on the path of a change. A warning ends it; none is sent where
/// [`SESSION`] stays as it is.
pub async fn sql(connection: &Connection, side: Side) -> Result<Client> {
    Ok(sql_asked(connection, side).await?.0)
}

/// As [`sql`], with what says whether the server owes an answer.
pub(crate) async fn sql_asked(connection: &Connection, side: Side) -> Result<(Client, Arc<Asked>)> {
    let (client, asked) = open(connection, side).await?;
    let pid = wait::watch(connection, side, &asked, 0);
    pid.store(set_up(&client, side).await?, Ordering::Relaxed);
    Ok((client, asked))
}

/// Opens a session that only reads: no statement of it lasts longer than `max`, or waits for a lock for so long. `who` follows
/// the name that the server shows; unless it is watched as [`sql`]'s are, no warning is logged of it.
pub(crate) async fn looking(
    connection: &Connection,
    side: Side,
    (who, watched): (&str, bool),
    max: Duration,
) -> Result<Client> {
    let (client, asked) = open(connection, side).await?;
    let pid = set_up(&client, side).await?;
    if watched {
        wait::watch(connection, side, &asked, pid);
    }
    let max = max.as_millis();
    // The names are a program's: letters.
    let settings = format!(
        "SET statement_timeout = {max}; SET lock_timeout = {max}; SET default_transaction_read_only = on; \
         SELECT pg_catalog.set_config('application_name', \
                pg_catalog.current_setting('application_name') || ' {who}', false)"
    );
    let set = client.batch_execute(&settings).await;
    set.map_err(side.failed("could not set up its session"))?;
    Ok(client)
}

/// As [`sql`], not watched and as it is after the login.
async fn open(connection: &Connection, side: Side) -> Result<(Client, Arc<Asked>)> {
    let (client, mut driver, asked) = connect::connect(connection, side, &connect::Sql).await?;
    tokio::spawn(async move {
        loop {
            match poll_fn(|cx| driver.poll_message(cx)).await {
                Some(Ok(AsyncMessage::Notification(_))) => {}
                // Whatever else ends the connection fails the next statement, which knows what it was for.
                Some(Err(error)) => {
                    if let Some(violation) = wire::violation(&error) {
                        tracing::warn!(%side, violation, "a server did not keep to the protocol");
                    }
                    return;
                }
                Some(Ok(_)) | None => return,
            }
        }
    });
    Ok((client, asked))
}

/// Returns the process id of the backend.
async fn set_up(client: &Client, side: Side) -> Result<i32> {
    let settings =
        format!("{NO_TRANSACTION_TIMEOUT}; {COMMITS_LOCALLY}; SELECT pg_catalog.pg_backend_pid()");
    // Sent together.
    let answers = client.simple_query(&settings);
    let (answers, _) = tokio::join!(answers, client.batch_execute(CHECK_CLIENT));
    let answers = answers.map_err(side.failed("could not set up its session"))?;
    let mut rows = answers.iter().rev().filter_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    });
    Ok(rows.next().unwrap_or_default())
}

/// Whether the server is shutting down: it begins no session. False where it cannot be asked.
pub(crate) async fn is_shutting_down(connection: &Connection) -> bool {
    connect::refuses_sessions(connection).await
}

/// Opens a session that speaks the protocol itself. `parameters` are sent at startup and win over [`SESSION`]; one read asks
/// for at most `gulp` bytes. Also returns the process id of the backend.
pub async fn channel(
    connection: &Connection,
    side: Side,
    parameters: &[(&str, &str)],
    gulp: usize,
) -> Result<(Channel, i32)> {
    let kind = connect::Messages { parameters, gulp };
    let (mut channel, pid) = connect::connect(connection, side, &kind).await?;
    wait::watch(connection, side, channel.asked(), pid);
    let settings = format!("{NO_TRANSACTION_TIMEOUT}; {PASS_BYTES}");
    let set = channel.simple_query(&settings).await;
    set.map_err(|error| connect_fault(connection, side, &connection.hosts()[0], error, &[]))?;
    Ok((channel, pid))
}

/// Why no host could be used; `missed` are those before the last one.
fn connect_fault(
    connection: &Connection,
    side: Side,
    host: &Host,
    error: wire::Error,
    missed: &[(&Host, wire::Error)],
) -> Fault {
    let code = error.server().map(|report| report.code.as_str());
    let hint = hints::connect(connection, side, &error);
    let mut what = format!("could not connect to the {side} {connection}");
    for (host, error) in missed {
        let _ = write!(what, ": {host}: {error}");
    }
    if connection.hosts().len() > 1 {
        let _ = write!(what, ": {host}");
    }
    let refused = matches!(code, Some("28P01" | "28000"))
        || matches!(
            error,
            wire::Error::NoPassword | wire::Error::PasswordExchange
        );
    let untrusted = matches!(error, wire::Error::Tls(_) | wire::Error::NotBound);
    let foreign = matches!(error, wire::Error::Protocol(_) | wire::Error::Iterations(_));
    let fault = Fault::new(tls_hint::disposition(&error), what)
        .remedy(hint)
        .caused_by(error);
    match (refused, untrusted, foreign) {
        (true, _, _) => connection.credentials().refused(fault),
        (_, true, _) => connection.credentials().untrusted(fault),
        (_, _, true) => connection.credentials().foreign(fault),
        _ => fault,
    }
}

/// A statement that failed, without anything of its parameters or the server's DETAIL.
fn failed(side: Side, what: &impl fmt::Display, error: tokio_postgres::Error) -> Fault {
    let what = format!("the {side} {what}");
    let Some(report) = error.as_db_error() else {
        return Fault::reconnect(what).caused_by(error);
    };
    let error = ServerError::from_db_error(report);
    let fault = Fault::new(error.disposition(), what);
    let fault = match hints::statement(side, &error.code) {
        Some(hint) => fault.remedy(hint),
        None => fault,
    };
    fault.caused_by(error)
}
