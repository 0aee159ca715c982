//! TLS as libpq means it: which files, which certificates, which names (manual, sections 34.1.2 and 34.19).
//!
//! ```text
//!   Settings (sslmode ...) -> files  ->  what is trusted, our own certificate
//!                          -> verify ->  chain by webpki, names by libpq's rules
//!                          -> session -> records over a socket
//! ```
//!
//! The files are read at each connect, as libpq does: a renewed certificate needs no restart. **No error holds a piece of
//! a file.**

mod error;
mod files;
mod legacy;
mod name;
mod session;
mod verify;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, SupportedProtocolVersion};

pub(crate) use error::{CertificateFault, TlsError};
pub(super) use session::Session;

use verify::Verifier;

/// The protocol's name, which sslnegotiation=direct needs (manual, section 53.2.11).
const ALPN: &[u8] = b"postgresql";

/// How far a connection is protected; libpq's `sslmode`, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// libpq's `channel_binding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

/// Where the certificates of trusted authorities are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Roots {
    System,
    /// `None` where nothing is said and there is no home folder.
    File(Option<PathBuf>),
}

impl fmt::Display for Roots {
    /// As a place to put a certificate into.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("the operating system's trusted certificates"),
            Self::File(Some(path)) => path.display().fmt(f),
            Self::File(None) => f.write_str("~/.postgresql/root.crt"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    Tls12,
    Tls13,
}

/// What a connection string says about TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub mode: Mode,
    /// TLS from the first byte, without a request for it.
    pub direct: bool,
    pub roots: Roots,
    /// Files of revoked certificates.
    pub crl: Revoked,
    /// Our own certificate and its key; `None` sends none.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub sni: bool,
    pub min: Version,
    pub max: Version,
    pub channel_binding: ChannelBinding,
}

/// Where revoked certificates are listed; those of `named` must exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Revoked {
    pub named: Option<PathBuf>,
    pub folder: Option<PathBuf>,
    pub default: Option<PathBuf>,
}

impl Settings {
    /// Reads the files and settles how a handshake is made with `host`.
    fn config(&self, host: &str) -> Result<Arc<ClientConfig>, TlsError> {
        let provider = Arc::new(default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let verifier = Verifier {
            algorithms,
            trusted: files::trusted(self)?,
            host: (self.mode == Mode::VerifyFull).then(|| host.to_owned()),
        };
        let own = files::own(self, &provider)?;
        let versions: Vec<&'static SupportedProtocolVersion> =
            [(Version::Tls12, &TLS12), (Version::Tls13, &TLS13)]
                .into_iter()
                .filter(|(version, _)| (self.min..=self.max).contains(version))
                .map(|(_, supported)| supported)
                .collect();
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match own {
            Some(own) => builder.with_client_cert_resolver(own),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = self.sni;
        // PostgreSQL gives no tickets.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}
