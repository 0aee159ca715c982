//! The startup conversation: parameters, authentication, ready for queries (manual, section 53.2.1).

use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding as Binding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::{backend, frontend};

use super::tls::ChannelBinding;
use super::transport::Transport;
use super::{Channel, Error};

/// What a session says of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Login<'a> {
    pub user: &'a str,
    pub dbname: &'a str,
    pub application_name: &'a str,
    pub options: &'a str,
    pub password: Option<&'a [u8]>,
    pub channel_binding: ChannelBinding,
}

/// What a server says of itself at the start (manual, section 53.2.7); `None`: not a word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traits {
    pub in_hot_standby: Option<bool>,
    pub read_only: Option<bool>,
}

impl Traits {
    pub(super) const NAMES: [&'static str; 2] = ["in_hot_standby", "default_transaction_read_only"];

    pub(super) fn note(&mut self, name: &str, value: &str) {
        let value = Some(value == "on");
        match name {
            "in_hot_standby" => self.in_hot_standby = value,
            "default_transaction_read_only" => self.read_only = value,
            _ => {}
        }
    }
}

/// Says who is there, and leaves at the server's first answer.
///
/// # Errors
/// The server refused, before it asked for anything.
pub(crate) async fn greet(transport: Transport, login: &Login<'_>) -> Result<(), Error> {
    let mut channel = Channel::new(transport, 1024);
    say_who(&mut channel, login, &[]).await?;
    if let backend::Message::AuthenticationOk = channel.next_parsed().await? {
        // It goes on to begin a session, and should not count it as abandoned.
        frontend::terminate(channel.outgoing());
        channel.flush().await?;
    }
    Ok(())
}

/// Logs in. `parameters` are startup parameters beside those of `login`: `replication`, settings. One read asks for at
/// most `gulp` bytes.
///
/// Returns the connection, ready for queries, the process id of its backend, and what the server said of itself.
pub(crate) async fn log_in(
    transport: Transport,
    gulp: usize,
    login: &Login<'_>,
    parameters: &[(&str, &str)],
) -> Result<(Channel, i32, Traits), Error> {
    let mut channel = Channel::new(transport, gulp);
    say_who(&mut channel, login, parameters).await?;
    authenticate(&mut channel, login).await?;
    let mut backend_pid = 0;
    let mut traits = Traits::default();
    loop {
        match channel.next_parsed().await? {
            backend::Message::BackendKeyData(body) => backend_pid = body.process_id(),
            backend::Message::ParameterStatus(body) => traits.note(body.name()?, body.value()?),
            backend::Message::NoticeResponse(_) => {}
            backend::Message::ReadyForQuery(_) => return Ok((channel, backend_pid, traits)),
            _ => return Err(Error::Protocol("an unexpected message during startup")),
        }
    }
}

async fn say_who(
    channel: &mut Channel,
    login: &Login<'_>,
    parameters: &[(&str, &str)],
) -> Result<(), Error> {
    let of_login = [
        ("user", login.user),
        ("database", login.dbname),
        ("application_name", login.application_name),
        ("options", login.options),
        ("client_encoding", "UTF8"),
    ];
    let parameters = of_login.into_iter().chain(parameters.iter().copied());
    frontend::startup_message(parameters, channel.outgoing())?;
    channel.flush().await
}

async fn authenticate(channel: &mut Channel, login: &Login<'_>) -> Result<(), Error> {
    let password = || login.password.ok_or(Error::NoPassword);
    let mut bound = login.channel_binding != ChannelBinding::Require;
    let mut answered = false;
    loop {
        let request = channel.next_parsed().await?;
        let is_scram = matches!(request, backend::Message::AuthenticationSasl(_));
        if !bound && !is_scram && !matches!(request, backend::Message::NoticeResponse(_)) {
            return Err(Error::NotBound);
        }
        match request {
            backend::Message::AuthenticationOk => return Ok(()),
            backend::Message::NoticeResponse(_) => continue,
            // What else would be an answer was given.
            _ if answered => return Err(Error::Protocol("a second request for the password")),
            backend::Message::AuthenticationCleartextPassword => {
                frontend::password_message(password()?, channel.outgoing())?;
                channel.flush().await?;
            }
            backend::Message::AuthenticationMd5Password(body) => {
                let answer = md5_hash(login.user.as_bytes(), password()?, body.salt());
                frontend::password_message(answer.as_bytes(), channel.outgoing())?;
                channel.flush().await?;
            }
            backend::Message::AuthenticationSasl(body) => {
                let (mechanism, binding) = mechanism(channel, login, &body)?;
                scram(channel, mechanism, binding, password()?).await?;
                bound = true;
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
        answered = true;
    }
}

/// Chooses from what the server offers; with channel binding where both have it. A server that has it and reads that we
/// have it too, but use it not, knows that its offer was changed on the way.
fn mechanism(
    channel: &Channel,
    login: &Login<'_>,
    offered: &backend::AuthenticationSaslBody,
) -> Result<(&'static str, Binding), Error> {
    let offers = |wanted| offered.mechanisms().any(|offer| Ok(offer == wanted));
    let (plus, plain) = (offers(SCRAM_SHA_256_PLUS)?, offers(SCRAM_SHA_256)?);
    let end_point = match login.channel_binding {
        ChannelBinding::Disable => None,
        ChannelBinding::Prefer | ChannelBinding::Require => channel.end_point(),
    };
    match end_point {
        Some(hash) if plus => {
            let binding = Binding::tls_server_end_point(hash.to_vec());
            Ok((SCRAM_SHA_256_PLUS, binding))
        }
        _ if login.channel_binding == ChannelBinding::Require => Err(Error::NotBound),
        Some(_) if plain => Ok((SCRAM_SHA_256, Binding::unrequested())),
        None if plain => Ok((SCRAM_SHA_256, Binding::unsupported())),
        _ => Err(Error::Authentication("SASL (other than SCRAM-SHA-256)")),
    }
}

/// SCRAM-SHA-256 (manual, section 53.3).
async fn scram(
    channel: &mut Channel,
    mechanism: &str,
    binding: Binding,
    password: &[u8],
) -> Result<(), Error> {
    let mut scram = ScramSha256::new(password, binding);
    frontend::sasl_initial_response(mechanism, scram.message(), channel.outgoing())?;
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
