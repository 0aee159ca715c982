//! The one way to a server: socket, request for TLS, handshake.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::Error;
use super::stream::{Keepalive, Stream};
use super::transport::Transport;

/// Where one attempt to connect goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// Connects a socket, and encrypts it where asked to. A dropped attempt is given up.
pub(crate) async fn dial(address: &Address, keepalive: Keepalive) -> Result<Transport, Error> {
    let stream = match address {
        Address::Unix(path) => Stream::connect_unix(path).await?,
        Address::Tcp(address) => Stream::connect_tcp(*address, keepalive).await?,
    };
    Ok(Transport::Plain(stream))
}
