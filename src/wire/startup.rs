//! The startup conversation: parameters, authentication, ready for queries (manual, section 53.2.1).

use std::time::Duration;

use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::{backend, frontend};

use super::stream::Stream;
use super::{Channel, Endpoint, Error};

/// Settings of every session of ours. The text form of values depends on the first ones, so that no `ALTER ROLE ... SET`
/// or `ALTER DATABASE ... SET` changes what is recorded; no name is found through a search path that another role
/// controls; and no timeout ends a session that waits for the other server.
const SETTINGS: [(&str, &str); 11] = [
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("search_path", ""),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("lock_timeout", "0"),
];
/// One more of them, known since 17: an unknown one would be refused at startup.
pub const NO_TRANSACTION_TIMEOUT: &str = "SELECT pg_catalog.set_config('transaction_timeout', '0', false) \
    WHERE pg_catalog.current_setting('transaction_timeout', true) IS NOT NULL";

/// Who connects to what, and with which settings.
pub struct Login<'a> {
    /// The addresses to try, in order.
    pub endpoints: &'a [Endpoint],
    /// The role.
    pub user: &'a str,
    /// The database.
    pub database: &'a str,
    /// The password, where one is configured.
    pub password: Option<&'a [u8]>,
    /// Startup parameters beside those that every session has: `replication`, `application_name`, settings.
    pub parameters: &'a [(&'a str, &'a str)],
    /// How long one address may take until it is ready for queries.
    pub timeout: Duration,
    /// Bytes that one read asks for at the most.
    pub gulp: usize,
}

/// Connects to the first address that answers and logs in.
///
/// Returns the connection, ready for queries, and the process id of its backend.
///
/// # Errors
/// The last address's failure. A server that answers with a refusal ends the search: the next address
/// is for a server that cannot be reached.
pub async fn connect(login: &Login<'_>) -> Result<(Channel, i32), Error> {
    let mut last = Error::Closed;
    for endpoint in login.endpoints {
        match tokio::time::timeout(login.timeout, open(endpoint, login)).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error @ (Error::Io(_) | Error::Closed))) => last = error,
            Ok(Err(error)) => return Err(error),
            Err(_) => last = Error::Timeout(login.timeout.as_secs()),
        }
    }
    Err(last)
}

async fn open(endpoint: &Endpoint, login: &Login<'_>) -> Result<(Channel, i32), Error> {
    let mut channel = Channel::new(Stream::connect(endpoint).await?, login.gulp);
    let parameters = [
        ("user", login.user),
        ("database", login.database),
        ("client_encoding", "UTF8"),
    ];
    let parameters = parameters
        .into_iter()
        .chain(SETTINGS)
        .chain(login.parameters.iter().copied());
    frontend::startup_message(parameters, channel.outgoing())?;
    channel.flush().await?;
    authenticate(&mut channel, login).await?;
    let mut backend_pid = 0;
    loop {
        match channel.next_parsed().await? {
            backend::Message::BackendKeyData(body) => backend_pid = body.process_id(),
            backend::Message::ParameterStatus(_) | backend::Message::NoticeResponse(_) => {}
            backend::Message::ReadyForQuery(_) => break,
            _ => return Err(Error::Protocol("an unexpected message during startup")),
        }
    }
    channel.simple_query(NO_TRANSACTION_TIMEOUT).await?;
    Ok((channel, backend_pid))
}

async fn authenticate(channel: &mut Channel, login: &Login<'_>) -> Result<(), Error> {
    loop {
        match channel.next_parsed().await? {
            backend::Message::AuthenticationOk => return Ok(()),
            backend::Message::NoticeResponse(_) => {}
            backend::Message::AuthenticationCleartextPassword => {
                let password = login.password.ok_or(Error::NoPassword)?;
                frontend::password_message(password, channel.outgoing())?;
                channel.flush().await?;
            }
            backend::Message::AuthenticationMd5Password(body) => {
                let password = login.password.ok_or(Error::NoPassword)?;
                let answer = md5_hash(login.user.as_bytes(), password, body.salt());
                frontend::password_message(answer.as_bytes(), channel.outgoing())?;
                channel.flush().await?;
            }
            backend::Message::AuthenticationSasl(body) => {
                let known = body
                    .mechanisms()
                    .any(|mechanism| Ok(mechanism == SCRAM_SHA_256))?;
                if !known {
                    return Err(Error::Authentication("SASL (other than SCRAM-SHA-256)"));
                }
                scram(channel, login.password.ok_or(Error::NoPassword)?).await?;
            }
            backend::Message::AuthenticationGss | backend::Message::AuthenticationKerberosV5 => {
                return Err(Error::Authentication("GSSAPI"));
            }
            backend::Message::AuthenticationSspi => return Err(Error::Authentication("SSPI")),
            _ => {
                return Err(Error::Protocol(
                    "an unexpected message during authentication",
                ));
            }
        }
    }
}

/// SCRAM-SHA-256 (manual, section 53.3). Channel binding needs TLS, which this connection does not have.
async fn scram(channel: &mut Channel, password: &[u8]) -> Result<(), Error> {
    let mut scram = ScramSha256::new(password, ChannelBinding::unsupported());
    frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), channel.outgoing())?;
    channel.flush().await?;
    let backend::Message::AuthenticationSaslContinue(body) = channel.next_parsed().await? else {
        return Err(Error::Protocol(
            "an unexpected message during the password exchange",
        ));
    };
    scram
        .update(body.data())
        .map_err(|_| Error::PasswordExchange)?;
    frontend::sasl_response(scram.message(), channel.outgoing())?;
    channel.flush().await?;
    let backend::Message::AuthenticationSaslFinal(body) = channel.next_parsed().await? else {
        return Err(Error::Protocol(
            "an unexpected message during the password exchange",
        ));
    };
    scram
        .finish(body.data())
        .map_err(|_| Error::PasswordExchange)
}
