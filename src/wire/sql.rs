//! The SQL client on a connection that was dialled here.
//!
//! The client has its own startup conversation. It is given the connection as one on which TLS needs no more
//! negotiation, so that both kinds of session come by the same way.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;

use tokio_postgres::config::{self, SslMode, SslNegotiation};
use tokio_postgres::error::DbError;
use tokio_postgres::tls::{ChannelBinding as Binding, TlsConnect, TlsStream};
use tokio_postgres::{Client, Config, Connection};

use super::startup::{Login, Traits};
use super::tls::ChannelBinding;
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
        .ssl_negotiation(SslNegotiation::Direct)
        .ssl_mode(match transport.is_encrypted() {
            true => SslMode::Require,
            false => SslMode::Disable,
        })
        .channel_binding(match login.channel_binding {
            ChannelBinding::Disable => config::ChannelBinding::Disable,
            ChannelBinding::Prefer => config::ChannelBinding::Prefer,
            ChannelBinding::Require => config::ChannelBinding::Require,
        });
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
    fn channel_binding(&self) -> Binding {
        match self.end_point() {
            Some(hash) => Binding::tls_server_end_point(hash.to_vec()),
            None => Binding::none(),
        }
    }
}

/// What kept the SQL client from connecting, by the type of its cause.
fn sorted(login: &Login<'_>, error: tokio_postgres::Error) -> Error {
    // The client shows the kind of its error in this form alone.
    let of_authentication = error.to_string().starts_with("authentication error");
    let Some(cause) = error.into_source() else {
        return Error::Closed;
    };
    cause
        .downcast::<DbError>()
        .map(|report| ServerError::from_db_error(&report).into())
        .or_else(|cause| {
            cause
                .downcast::<io::Error>()
                .map(|error| of_io(*error, of_authentication))
        })
        // What is left is the client's own refusal to authenticate.
        .unwrap_or_else(|cause| match (login.password, login.channel_binding) {
            (None, _) if cause.to_string() == "password missing" => Error::NoPassword,
            (_, ChannelBinding::Require) => Error::NotBound,
            _ => Error::Authentication("neither a password nor SCRAM-SHA-256"),
        })
}

/// Of the socket, of TLS, or of SCRAM. A connection that ends inside a message has no number of the system either.
fn of_io(error: io::Error, of_authentication: bool) -> Error {
    match Error::from(error) {
        Error::Io(_) if of_authentication => Error::PasswordExchange,
        Error::Io(error)
            if error.kind() == io::ErrorKind::Other && error.raw_os_error().is_none() =>
        {
            Error::Closed
        }
        error => error,
    }
}
