//! The startup conversation: parameters, authentication, ready for queries (manual, section 53.2.1).

use std::time::Duration;

use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::{backend, frontend};
use tokio_postgres::Config;
use tokio_postgres::config::Host;

use super::stream::Stream;
use super::{Channel, Error};

/// Connects to the first host of `config` that answers and logs in, with its role, password, options and time limit.
/// `parameters` are startup parameters beside these: `replication`, settings.
///
/// Returns the connection, ready for queries, and the process id of its backend.
///
/// # Errors
/// The last host's failure. A server that answers with a refusal ends the search: the next host is for a server that
/// cannot be reached.
pub(crate) async fn connect(
    config: &Config,
    parameters: &[(&str, &str)],
    gulp: usize,
) -> Result<(Channel, i32), Error> {
    // No limit, as far as a timer goes.
    let limit = config.get_connect_timeout().copied();
    let limit = limit.unwrap_or(Duration::from_secs(86_400));
    let mut last = Error::Closed;
    for (at, (host, port)) in config
        .get_hosts()
        .iter()
        .zip(config.get_ports())
        .enumerate()
    {
        let host = match config.get_hostaddrs().get(at) {
            Some(address) => &Host::Tcp(address.to_string()),
            None => host,
        };
        let opened = async {
            let stream = Stream::connect(host, *port).await?;
            log_in(Channel::new(stream, gulp), config, parameters).await
        };
        match tokio::time::timeout(limit, opened).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error @ (Error::Io(_) | Error::Closed))) => last = error,
            Ok(Err(error)) => return Err(error),
            Err(_) => last = Error::Timeout(limit.as_secs()),
        }
    }
    Err(last)
}

async fn log_in(
    mut channel: Channel,
    config: &Config,
    parameters: &[(&str, &str)],
) -> Result<(Channel, i32), Error> {
    let of_config = [
        ("user", config.get_user()),
        ("database", config.get_dbname()),
        ("application_name", config.get_application_name()),
        ("options", config.get_options()),
        ("client_encoding", Some("UTF8")),
    ];
    let of_config = of_config
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    let parameters = of_config.chain(parameters.iter().copied());
    frontend::startup_message(parameters, channel.outgoing())?;
    channel.flush().await?;
    authenticate(&mut channel, config).await?;
    let mut backend_pid = 0;
    loop {
        match channel.next_parsed().await? {
            backend::Message::BackendKeyData(body) => backend_pid = body.process_id(),
            backend::Message::ParameterStatus(_) | backend::Message::NoticeResponse(_) => {}
            backend::Message::ReadyForQuery(_) => return Ok((channel, backend_pid)),
            _ => return Err(Error::Protocol("an unexpected message during startup")),
        }
    }
}

async fn authenticate(channel: &mut Channel, config: &Config) -> Result<(), Error> {
    let password = || config.get_password().ok_or(Error::NoPassword);
    loop {
        match channel.next_parsed().await? {
            backend::Message::AuthenticationOk => return Ok(()),
            backend::Message::NoticeResponse(_) => {}
            backend::Message::AuthenticationCleartextPassword => {
                frontend::password_message(password()?, channel.outgoing())?;
                channel.flush().await?;
            }
            backend::Message::AuthenticationMd5Password(body) => {
                let user = config.get_user().unwrap_or_default();
                let answer = md5_hash(user.as_bytes(), password()?, body.salt());
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
                scram(channel, password()?).await?;
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
