//! The SQL client on a connection that was dialled here.
//!
//! The client has its own startup conversation. It is given the connection as one on which TLS needs no more
//! negotiation, so that both kinds of session come by the same way.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;

use tokio_postgres::config::SslMode;
use tokio_postgres::error::DbError;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_postgres::{Client, Config, Connection};

use super::startup::{Login, Traits};
use super::transport::Transport;
use super::{Error, ServerError};

/// Logs in; returns the client, what drives it, and what the server said of itself.
pub(crate) async fn sql(
    transport: Transport,
    login: &Login<'_>,
) -> Result<(Client, Connection<Transport, Transport>, Traits), Error> {
    let mut config = Config::new();
    config
        .user(login.user)
        .dbname(login.dbname)
        .application_name(login.application_name)
        .options(login.options)
        .ssl_mode(SslMode::Disable);
    if let Some(password) = login.password {
        config.password(password);
    }
    let (client, driver) = config
        .connect_raw(transport, Negotiated)
        .await
        .map_err(|error| sorted(login, error))?;
    let mut traits = Traits::default();
    for name in Traits::NAMES {
        if let Some(value) = driver.parameter(name) {
            traits.note(name, value);
        }
    }
    Ok((client, driver, traits))
}

/// TLS that is there already.
struct Negotiated;

impl TlsConnect<Transport> for Negotiated {
    type Stream = Transport;
    type Error = Infallible;
    type Future = Ready<Result<Transport, Infallible>>;

    fn connect(self, stream: Transport) -> Self::Future {
        ready(Ok(stream))
    }
}

impl TlsStream for Transport {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

/// What kept the SQL client from connecting, by the type of its cause.
fn sorted(login: &Login<'_>, error: tokio_postgres::Error) -> Error {
    let Some(cause) = error.into_source() else {
        return Error::Closed;
    };
    cause
        .downcast::<DbError>()
        .map(|report| ServerError::from_db_error(&report).into())
        .or_else(|cause| cause.downcast::<io::Error>().map(|error| (*error).into()))
        // What is left is the client's own refusal to authenticate.
        .unwrap_or_else(|_| match login.password {
            None => Error::NoPassword,
            Some(_) => Error::Authentication("neither a password nor SCRAM-SHA-256"),
        })
}
