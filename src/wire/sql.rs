//! The SQL client on a connection that was dialled here.
//!
//! The client has its own startup conversation. It is given the connection as one on which TLS needs no more
//! negotiation, so that both kinds of session come by the same way. It keeps every message whole, and all that a server
//! says of itself, so it is given only what [`Limits`](super::limits::Limits) let through.

use std::convert::Infallible;
use std::error::Error as _;
use std::future::Ready;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::{self, SslMode, SslNegotiation};
use tokio_postgres::error::DbError;
use tokio_postgres::tls::{ChannelBinding as Binding, TlsConnect, TlsStream};
use tokio_postgres::{Client, Config, Connection};

use super::heads::Heads;
use super::limits::{known_types, whole_report};
use super::read_buffer::{HEADER, ReadBuffer};
use super::startup::{Login, Traits};
use super::tls::ChannelBinding;
use super::transport::Transport;
use super::{Error, Message, ServerError};

/// The rows of one answer, which the client keeps: the columns of ten thousand tables.
const ANSWER_MAX: usize = 256 * 1024 * 1024;

/// What the client says of a message that has no place where it stands.
const UNEXPECTED: &str = "an unexpected message";

/// What drives a client.
pub(crate) type Driver = Connection<SqlStream, SqlStream>;

/// Logs in; returns the client, what drives it, and what the server said of itself. One read takes at most `gulp` bytes.
pub(crate) async fn sql(
    transport: Transport,
    gulp: usize,
    login: &Login<'_>,
) -> Result<(Client, Driver, Traits), Error> {
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
        .connect_raw(SqlStream::new(transport, gulp), Negotiated)
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

/// Whether a connection ended because of what the server sent: what was wrong with it.
pub(crate) fn violation(error: &tokio_postgres::Error) -> Option<&'static str> {
    let Some(source) = error.source() else {
        return (!error.is_closed()).then_some(UNEXPECTED);
    };
    let cause = source.downcast_ref::<io::Error>()?.get_ref()?;
    match cause.downcast_ref()? {
        Error::Protocol(violation) => Some(violation),
        _ => None,
    }
}

/// The connection as the client has it: message by message, without what it would keep and not use.
#[derive(Debug)]
pub(crate) struct SqlStream {
    transport: Transport,
    incoming: ReadBuffer,
    /// What of a message was not given yet.
    passed: Range<usize>,
    logged_in: bool,
    /// What is wrong with the message after those that were passed.
    failed: Option<Error>,
    sent: Heads,
    /// Answers that have not come; the login is one.
    owed: u32,
}

impl SqlStream {
    fn new(transport: Transport, gulp: usize) -> Self {
        Self {
            transport,
            incoming: ReadBuffer::new(gulp, ANSWER_MAX),
            passed: 0..0,
            logged_in: false,
            failed: None,
            sent: Heads::of_client(),
            owed: 1,
        }
    }

    fn has_next(&mut self) -> bool {
        self.pass().unwrap_or_else(|error| {
            self.failed = Some(error);
            false
        })
    }

    /// Passes the next message on, if it is here whole; whether it was.
    fn pass(&mut self) -> Result<bool, Error> {
        let Some((tag, range)) = self.incoming.next()? else {
            return Ok(false);
        };
        let body = &self.incoming.bytes[range.clone()];
        self.passed = range.start - HEADER..range.end;
        match tag {
            b'D' | b'd' => return Ok(true),
            // Kept for ever by the client.
            b'S' if self.logged_in => self.passed = 0..0,
            b'T' | b't' if !known_types(tag, body) => {
                return Err(Error::Protocol(
                    "an answer of a type that was not asked for",
                ));
            }
            b'E' | b'N' if !whole_report(body) => {
                return Err(Error::Protocol("a report that cannot be read"));
            }
            b'Z' => {
                self.logged_in = true;
                self.owed = self.owed.saturating_sub(1);
            }
            _ => {}
        }
        // What the client cannot read, it would take for a fault of the password exchange.
        match (Message { tag, body }).parse() {
            Err(error @ Error::Protocol(_)) => Err(error),
            Ok(_) | Err(_) => Ok(true),
        }
    }
}

impl AsyncRead for SqlStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if let Some(error) = this.failed.take() {
                return Poll::Ready(Err(io::Error::other(error)));
            }
            while !this.passed.is_empty() || this.has_next() {
                let count = this.passed.len().min(buf.remaining());
                let end = this.passed.start + count;
                buf.put_slice(&this.incoming.bytes[this.passed.start..end]);
                this.passed.start = end;
                if buf.remaining() == 0 {
                    break;
                }
            }
            if this.owed > 0 {
                this.transport.asked().expect_more();
            }
            if !buf.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            if this.failed.is_some() {
                continue;
            }
            match ready!(this.incoming.poll_fill(cx, &mut this.transport)) {
                Ok(_) => {}
                Err(Error::Closed) => return Poll::Ready(Ok(())),
                Err(Error::Io(error)) => return Poll::Ready(Err(error)),
                Err(error) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
    }
}

impl AsyncWrite for SqlStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let sent = ready!(this.transport.poll_write(cx, &[IoSlice::new(bytes)]))?;
        this.owed += this.sent.count(&bytes[..sent], b"QS");
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.transport.shut_down();
        Poll::Ready(Ok(()))
    }
}

/// TLS that is there already.
struct Negotiated;

impl TlsConnect<SqlStream> for Negotiated {
    type Stream = SqlStream;
    type Error = Infallible;
    type Future = Ready<Result<SqlStream, Infallible>>;

    fn connect(self, stream: SqlStream) -> Self::Future {
        std::future::ready(Ok(stream))
    }
}

impl TlsStream for SqlStream {
    fn channel_binding(&self) -> Binding {
        match self.transport.end_point() {
            Some(hash) => Binding::tls_server_end_point(hash.to_vec()),
            None => Binding::none(),
        }
    }
}

/// What kept the SQL client from connecting, by the type of its cause.
fn sorted(login: &Login<'_>, error: tokio_postgres::Error) -> Error {
    let closed = error.is_closed();
    // The client shows the kind of its error in this form alone.
    let of_authentication = error.to_string().starts_with("authentication error");
    let Some(cause) = error.into_source() else {
        return match closed {
            true => Error::Closed,
            false => Error::Protocol(UNEXPECTED),
        };
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
