//! The search for a host that answers and fits.
//!
//! The hosts of a connection are tried in their order, and of each name every address. As in libpq, a server that refuses
//! the login ends the search: the next host is for one that cannot be reached or is not what `target_session_attrs` asks
//! for. Each connect searches anew, so a switch-over needs no restart.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Client;

use super::attributes::Wanted;
use super::{Connection, Host, Side, connect_fault};
use crate::fault;
use crate::wire::{
    self, Address, Asked, Channel, Driver, Encryption, Error, Login, Mode, TlsError, Traits,
    Transport,
};

/// What the SQL client's sessions take off the socket at once: answers to questions, not rows by the million.
const SQL_GULP: usize = 32 * 1024;

/// A kind of session, which logs in on a connection that was dialled.
pub(super) trait Kind: Sync {
    type Session: Send;

    /// Bytes that one read asks for at the most.
    fn gulp(&self) -> usize;

    fn log_in(
        &self,
        transport: Transport,
        login: &Login<'_>,
    ) -> impl Future<Output = Result<(Self::Session, Traits), Error>> + Send;
}

/// A session of the SQL client.
pub(super) struct Sql;

impl Kind for Sql {
    type Session = (Client, Driver, Arc<Asked>);

    fn gulp(&self) -> usize {
        SQL_GULP
    }

    async fn log_in(
        &self,
        transport: Transport,
        login: &Login<'_>,
    ) -> Result<(Self::Session, Traits), Error> {
        let asked = Arc::clone(transport.asked());
        let (client, driver, traits) = wire::sql(transport, SQL_GULP, login).await?;
        Ok(((client, driver, asked), traits))
    }
}

/// A session that speaks the protocol itself.
pub(super) struct Messages<'a> {
    pub(super) parameters: &'a [(&'a str, &'a str)],
    pub(super) gulp: usize,
}

impl Kind for Messages<'_> {
    type Session = (Channel, i32);

    fn gulp(&self) -> usize {
        self.gulp
    }

    async fn log_in(
        &self,
        transport: Transport,
        login: &Login<'_>,
    ) -> Result<(Self::Session, Traits), Error> {
        let logged_in = wire::log_in(transport, self.gulp, login, self.parameters).await?;
        let (channel, pid, traits) = logged_in;
        Ok(((channel, pid), traits))
    }
}

/// No session: the server is only asked whether it would begin one.
struct Greeting;

impl Kind for Greeting {
    type Session = ();

    fn gulp(&self) -> usize {
        SQL_GULP
    }

    async fn log_in(&self, transport: Transport, login: &Login<'_>) -> Result<((), Traits), Error> {
        wire::greet(transport, login).await?;
        Ok(((), Traits::default()))
    }
}

/// Whether the server is shutting down and begins no session, which those that are open do not notice: in smart mode it
/// waits for them. Needs no password, and is not answered for a connection with several hosts.
pub(super) async fn refuses_sessions(connection: &Connection) -> bool {
    let [host] = connection.hosts() else {
        return false;
    };
    let attempt = Attempt {
        connection,
        host,
        password: None,
        wanted: Wanted::Any,
        kind: &Greeting,
    };
    match attempt.on_host().await {
        Ok(()) => false,
        Err(Miss::Next(error) | Miss::Stop(error)) => is_code(&error, "57P03"),
    }
}

/// Why an attempt did not succeed.
enum Miss {
    /// The next host or address may.
    Next(Error),
    Stop(Error),
}

/// Connects to the first host that answers and fits, and logs in.
pub(super) async fn connect<K: Kind>(
    connection: &Connection,
    side: Side,
    kind: &K,
) -> fault::Result<K::Session> {
    let mut missed = Vec::new();
    for wanted in connection.0.attributes.passes() {
        for host in connection.hosts() {
            let password = connection.credentials().password(host).await?;
            let attempt = Attempt {
                connection,
                host,
                password: password.as_deref(),
                wanted: *wanted,
                kind,
            };
            match attempt.on_host().await {
                Ok(session) => return Ok(session),
                Err(Miss::Next(error)) => missed.push((host, error)),
                Err(Miss::Stop(error)) => {
                    return Err(connect_fault(connection, side, host, error, &missed));
                }
            }
        }
    }
    let (host, error) = missed
        .pop()
        .unwrap_or((&connection.hosts()[0], Error::Closed));
    Err(connect_fault(connection, side, host, error, &missed))
}

async fn addresses(host: &Host) -> std::io::Result<Vec<Address>> {
    if let Some(address) = host.address {
        return Ok(vec![Address::Tcp((address, host.port).into())]);
    }
    if host.is_socket() {
        let socket = format!(".s.PGSQL.{}", host.port);
        return Ok(vec![Address::Unix(
            std::path::Path::new(&host.name).join(socket),
        )]);
    }
    let found = tokio::net::lookup_host((host.name.as_str(), host.port)).await?;
    Ok(found.map(Address::Tcp).collect())
}

struct Attempt<'a, K> {
    connection: &'a Connection,
    host: &'a Host,
    password: Option<&'a [u8]>,
    wanted: Wanted,
    kind: &'a K,
}

impl<K: Kind> Attempt<'_, K> {
    async fn on_host(&self) -> Result<K::Session, Miss> {
        let limit = self.limit();
        let addresses = tokio::time::timeout(limit, addresses(self.host)).await;
        let addresses = addresses
            .map_err(|_| Miss::Next(Error::Timeout(limit.as_secs())))?
            .map_err(|error| Miss::Next(error.into()))?;
        let mut last = Error::Closed;
        for address in &addresses {
            match self.on_address(address).await {
                Err(Miss::Next(error)) => last = error,
                done => return done,
            }
        }
        Err(Miss::Next(last))
    }

    fn limit(&self) -> Duration {
        // No limit, as far as a timer goes.
        let limit = self.connection.0.connect_timeout;
        limit.unwrap_or(Duration::from_secs(86_400))
    }

    /// In the ways that `sslmode` allows, the preferred one first: the other one is for a server that refuses this one
    /// before the login is through.
    async fn on_address(&self, address: &Address) -> Result<K::Session, Miss> {
        let mode = self.connection.0.tls.mode;
        let (first, second) = match mode {
            _ if matches!(address, Address::Unix(_)) => (false, None),
            Mode::Disable => (false, None),
            Mode::Allow => (false, Some(true)),
            Mode::Prefer => (true, Some(false)),
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => (true, None),
        };
        let (refusal, made) = match self.once(address, first).await {
            Ok(session) => return Ok(session),
            Err(Failure {
                miss: Miss::Stop(error),
                made,
            }) => (error, made),
            Err(Failure { miss, .. }) => return Err(miss),
        };
        match second {
            Some(second) if other_way_may_pass(&refusal, made, first) => {
                let failure = match self.once(address, second).await {
                    Ok(session) => {
                        let host = self.host.to_string();
                        tracing::debug!(%refusal, host, encrypted = second, "connected in the other way");
                        return Ok(session);
                    }
                    Err(failure) => failure,
                };
                // "No line of pg_hba.conf" says less than what the way that has one says.
                Err(match failure.miss {
                    Miss::Stop(error) if is_code(&error, "28000") => Miss::Stop(refusal),
                    miss => miss,
                })
            }
            _ => Err(Miss::Stop(refusal)),
        }
    }

    async fn once(&self, address: &Address, encrypt: bool) -> Result<K::Session, Failure> {
        let parameters = &self.connection.0;
        let limit = self.limit();
        let mut made = None;
        let opened = async {
            let encryption = encrypt.then_some(Encryption {
                settings: &parameters.tls,
                host: &self.host.name,
            });
            let keepalive = parameters.keepalive;
            let transport = wire::dial(address, keepalive, encryption, self.kind.gulp()).await?;
            made = Some(transport.is_encrypted());
            let login = Login {
                user: &parameters.user,
                dbname: &parameters.dbname,
                application_name: &parameters.application_name,
                options: &parameters.options,
                password: self.password,
                channel_binding: parameters.tls.channel_binding,
            };
            let (session, traits) = self.kind.log_in(transport, &login).await?;
            self.wanted.check(traits).map_err(Error::Unfit)?;
            Ok(session)
        };
        let result = tokio::time::timeout(limit, opened).await;
        let miss = match result.unwrap_or(Err(Error::Timeout(limit.as_secs()))) {
            Ok(session) => return Ok(session),
            Err(error @ (Error::Io(_) | Error::Closed | Error::Timeout(_) | Error::Unfit(_))) => {
                Miss::Next(error)
            }
            // It starts, stops, or is a standby that takes no sessions.
            Err(error) if is_code(&error, "57P03") => Miss::Next(error),
            Err(error) => Miss::Stop(error),
        };
        Err(Failure { miss, made })
    }
}

struct Failure {
    miss: Miss,
    /// Whether the connection was encrypted; `None`: it was not made.
    made: Option<bool>,
}

fn is_code(error: &Error, code: &str) -> bool {
    error.server().is_some_and(|report| report.code == code)
}

/// Whether a refusal is of the handshake, or of a login that was encrypted or not as first wanted.
fn other_way_may_pass(error: &Error, made: Option<bool>, first: bool) -> bool {
    match error {
        Error::Tls(TlsError::ErrorBefore | TlsError::EarlyData) => false,
        Error::Tls(_) => made.is_none(),
        Error::Server(_) => made == Some(first),
        _ => false,
    }
}
