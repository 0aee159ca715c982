//! The one way to a server: socket, request for TLS, handshake.

use std::future::poll_fn;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::BytesMut;
use postgres_protocol::message::frontend;

use super::Error;
use super::stream::{Keepalive, Stream};
use super::tls::{self, TlsError};
use super::transport::Transport;

/// Where one attempt to connect goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// What is asked for on a new connection beside the socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Encryption<'a> {
    pub settings: &'a tls::Settings,
    /// The name that the certificate must have, and that the server reads.
    pub host: &'a str,
}

/// Connects a socket, and encrypts it where asked to. Where the server has no TLS and the mode does not demand it, the
/// connection stays as it is. One read takes at most `gulp` bytes. A dropped attempt is given up.
pub(crate) async fn dial(
    address: &Address,
    keepalive: Keepalive,
    encryption: Option<Encryption<'_>>,
    gulp: usize,
) -> Result<Transport, Error> {
    let mut stream = match address {
        Address::Unix(path) => Stream::connect_unix(path).await?,
        Address::Tcp(address) => Stream::connect_tcp(*address, keepalive).await?,
    };
    let Some(Encryption { settings, host }) = encryption else {
        return Ok(Transport::Plain(stream));
    };
    if !settings.direct && !request(&mut stream).await? {
        return match settings.mode >= tls::Mode::Require {
            true => Err(TlsError::NotOffered.into()),
            false => Ok(Transport::Plain(stream)),
        };
    }
    let session = tls::Session::begin(stream, settings, host, gulp).await?;
    Ok(Transport::Tls(Box::new(session)))
}

/// Asks for TLS (manual, section 53.2.11); whether the server has it.
async fn request(stream: &mut Stream) -> Result<bool, Error> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    while !request.is_empty() {
        let sent = poll_fn(|cx| stream.poll_write(cx, &[IoSlice::new(&request)])).await?;
        let _ = request.split_to(sent);
    }
    // Room for more than the one byte: what comes with it is not part of TLS, and could be of another.
    let mut answer = [0; 2];
    match poll_fn(|cx| stream.poll_read(cx, &mut answer)).await? {
        0 => Err(Error::Closed),
        1 => match answer[0] {
            b'S' => Ok(true),
            b'N' => Ok(false),
            _ => Err(TlsError::ErrorBefore.into()),
        },
        _ if answer[0] == b'E' => Err(TlsError::ErrorBefore.into()),
        _ => Err(TlsError::EarlyData.into()),
    }
}
