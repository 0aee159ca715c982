//! The PostgreSQL wire protocol, version 3, as far as both ends of the program need it.
//!
//! ```text
//!   source::replication      target::session
//!            \                 /
//!             Channel    (messages in and out, both directions at once)     SQL client
//!                |                                                              |
//!             ReadBuffer (limits of what a server may say) ----------------------
//!                |
//!             Transport  (plain, or TLS)
//!                |
//!             Stream     (TCP, Unix socket)
//! ```
//!
//! The message formats come from `postgres-protocol`; what lives here is the socket, the read buffer
//! that rows are decoded in, the startup conversation, and errors reduced to what may be logged.
//! Nothing here knows what a row or a history table is.
//!
//! **Cancel safety**: bytes that have arrived are kept in [`Channel`], a message is parsed before more
//! is read, and each wait is one readiness poll: dropping a future of this module loses nothing, except
//! where its documentation says otherwise.

mod asked;
mod channel;
mod dial;
mod error;
mod heads;
mod limits;
mod pipe;
mod read_buffer;
mod sql;
mod startup;
mod stream;
mod tls;
mod transport;
mod walk;

/// COPY BINARY's signature, flags and extension length (manual, COPY, "Binary Format").
pub(crate) const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
pub(crate) const COPY_TRAILER: &[u8] = &(-1i16).to_be_bytes();

pub(crate) use asked::Asked;
pub(crate) use channel::{Answer, Channel, Message};
pub(crate) use dial::{Address, Encryption, dial};
pub(crate) use error::{Error, ServerError};
pub(crate) use pipe::{Flow, PipeError, pipe};
pub(crate) use sql::{Driver, sql, violation};
pub(crate) use startup::{Login, Traits, greet, log_in};
pub(crate) use stream::{Keepalive, Peer};
pub(crate) use tls::{
    CertificateFault, ChannelBinding, Mode, Revoked, Roots, Settings as TlsSettings, TlsError,
    Version,
};
pub(crate) use transport::Transport;
pub use walk::{Understood, walk};
