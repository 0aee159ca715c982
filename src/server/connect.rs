//! The search for a host that answers and fits.
//!
//! The hosts of a connection are tried in their order, and of each name every address. As in libpq, a server that refuses
//! the login ends the search: the next host is for one that cannot be reached or is not what `target_session_attrs` asks
//! for. Each connect searches anew, so a switch-over needs no restart.

use std::future::Future;
use std::time::Duration;

use tokio_postgres::Client;

use super::{Connection, Host, Side, connect_fault};
use crate::fault::Result;
use crate::wire::{self, Address, Channel, Error, Login, Traits, Transport};

/// A kind of session, which logs in on a connection that was dialled.
pub(super) trait Kind: Sync {
    type Session: Send;

    fn log_in(
        &self,
        transport: Transport,
        login: &Login<'_>,
    ) -> impl Future<Output = Result<(Self::Session, Traits), Error>> + Send;
}

/// A session of the SQL client.
pub(super) struct Sql;

impl Kind for Sql {
    type Session = (Client, tokio_postgres::Connection<Transport, Transport>);

    async fn log_in(
        &self,
        transport: Transport,
        login: &Login<'_>,
    ) -> Result<(Self::Session, Traits), Error> {
        let (client, driver, traits) = wire::sql(transport, login).await?;
        Ok(((client, driver), traits))
    }
}

/// A session that speaks the protocol itself.
pub(super) struct Messages<'a> {
    pub(super) parameters: &'a [(&'a str, &'a str)],
    pub(super) gulp: usize,
}

impl Kind for Messages<'_> {
    type Session = (Channel, i32);

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

/// Why an attempt did not succeed.
enum Miss {
    /// The next one may.
    Next(Error),
    Stop(Error),
}

/// Connects to the first host that answers, and logs in.
pub(super) async fn connect<K: Kind>(
    connection: &Connection,
    side: Side,
    kind: &K,
) -> Result<K::Session> {
    let mut last = Error::Closed;
    for host in connection.hosts() {
        let password = connection.credentials().password(host).await?;
        let addresses = match addresses(host).await {
            Ok(addresses) => addresses,
            Err(error) => {
                last = error.into();
                continue;
            }
        };
        for address in &addresses {
            match attempt(connection, address, password.as_deref(), kind).await {
                Ok((session, _)) => return Ok(session),
                Err(Miss::Next(error)) => last = error,
                Err(Miss::Stop(error)) => return Err(connect_fault(connection, side, error)),
            }
        }
    }
    Err(connect_fault(connection, side, last))
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

async fn attempt<K: Kind>(
    connection: &Connection,
    address: &Address,
    password: Option<&[u8]>,
    kind: &K,
) -> Result<(K::Session, Traits), Miss> {
    // No limit, as far as a timer goes.
    let limit = connection.0.connect_timeout;
    let limit = limit.unwrap_or(Duration::from_secs(86_400));
    let login = Login {
        user: connection.user(),
        dbname: connection.dbname(),
        application_name: &connection.0.application_name,
        options: &connection.0.options,
        password,
    };
    let opened = async {
        let transport = wire::dial(address, connection.0.keepalive).await?;
        kind.log_in(transport, &login).await
    };
    match tokio::time::timeout(limit, opened).await {
        Ok(Ok(session)) => Ok(session),
        Ok(Err(error @ (Error::Io(_) | Error::Closed))) => Err(Miss::Next(error)),
        Ok(Err(error)) => Err(Miss::Stop(error)),
        Err(_) => Err(Miss::Next(Error::Timeout(limit.as_secs()))),
    }
}
