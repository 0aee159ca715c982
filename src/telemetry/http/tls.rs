//! TLS of the listener: its certificate and key, read again when they change.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::files::Made;
use crate::config::HttpTls;
use crate::fault::{Exit, Fault, Result};
use crate::server::secret;

const CERTIFICATE: &str = "http.tls_cert";
const KEY: &str = "http.tls_key";
/// The only protocol that is spoken here.
const ALPN: &[u8] = b"http/1.1";

#[derive(Debug)]
pub(super) struct Tls(Made<ServerConfig>);

impl Tls {
    pub(super) fn new(files: HttpTls) -> Result<Self> {
        let files = vec![files.certificate, files.key];
        Ok(Self(Made::new(files, |files| match files {
            [certificate, key] => read(certificate, key),
            _ => Err(Fault::bug("TLS has a certificate and a key")),
        })?))
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        self.0.current()
    }

    pub(super) fn look(&self) {
        self.0.look();
    }
}

fn read(certificate: &Path, key: &Path) -> Result<ServerConfig> {
    let chain = chain(certificate)?;
    let text = secret::private_key(key, KEY)?;
    let private_key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| {
        refused(
            KEY,
            key,
            "holds no private key that can be read",
            "write the key in PEM form and without a password into the file",
        )
    })?;
    let provider = Arc::new(default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Fault::bug("TLS cannot be set up").caused_by(error))?
        .with_no_client_auth()
        .with_single_cert(chain, private_key)
        .map_err(|error| {
            refused(
                KEY,
                key,
                &format!("does not fit {CERTIFICATE}"),
                "name a certificate and the key that it was made for: RSA of at least 2048 bits, P-256, P-384 or Ed25519",
            )
            .caused_by(error)
        })?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

pub(in crate::telemetry) fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = std::fs::read(path).map_err(|error| {
        refused(
            CERTIFICATE,
            path,
            "cannot be read",
            "correct the path, and let the user that runs waltrail read the file",
        )
        .caused_by(error)
    })?;
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(|| {
        refused(
            CERTIFICATE,
            path,
            "holds no certificate that can be read",
            "write the certificate, and those between it and its authority, in PEM form into the file",
        )
    })
}

fn refused(key: &str, path: &Path, problem: &str, remedy: &str) -> Fault {
    Fault::halt(
        Exit::Config,
        format!("`{key}`: {} {problem}", path.display()),
    )
    .remedy(remedy)
}
