//! Why a connection is not encrypted, or not to be trusted.

use std::path::PathBuf;

use rustls::CertificateError;

#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    #[error("the server does not support TLS")]
    NotOffered,
    /// Its words are not from a server that proved who it is.
    #[error("the server reported an error when asked for TLS")]
    ErrorBefore,
    /// Bytes that another could have put in (CVE-2021-23214).
    #[error("the server sent unencrypted data after it agreed to TLS")]
    EarlyData,
    #[error("the server's certificate {0}")]
    Certificate(CertificateFault),
    /// `keyword` is libpq's.
    #[error("{} ({keyword}) {problem}", path.display())]
    File {
        keyword: &'static str,
        path: PathBuf,
        problem: String,
        remedy: String,
    },
    #[error("the operating system has no certificates of trusted authorities")]
    NoSystemRoots,
    /// The server's answer to what we are or ask for.
    #[error("the server refused TLS with the alert {0}")]
    Alert(String),
    #[error("the server closed the connection during the TLS handshake")]
    Cut,
    #[error("the server did not agree to speak PostgreSQL at once")]
    NotDirect,
    #[error("TLS failed: {0}")]
    Other(rustls::Error),
}

/// What is wrong with a server's certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateFault {
    #[error("has expired")]
    Expired,
    #[error("is not valid yet")]
    NotYetValid,
    #[error("is signed by no authority that is trusted")]
    UnknownIssuer,
    #[error("has been revoked")]
    Revoked,
    #[error("is in no list that says whether it was revoked")]
    RevocationUnknown,
    #[error("cannot be checked: the list of revoked certificates has expired")]
    ListExpired,
    #[error("is not for the host {host}, but for {names}")]
    Name { host: String, names: String },
    #[error("is not one for servers")]
    Purpose,
    #[error("is not acceptable: {0}")]
    Other(String),
}

impl std::error::Error for Refusal {}

/// How a fault of ours passes through rustls.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) CertificateFault);

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl From<CertificateFault> for rustls::Error {
    fn from(fault: CertificateFault) -> Self {
        let other = rustls::OtherError(std::sync::Arc::new(Refusal(fault)));
        Self::InvalidCertificate(CertificateError::Other(other))
    }
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
                match other.0.downcast_ref::<Refusal>() {
                    Some(refusal) => Self::Certificate(refusal.0.clone()),
                    None => Self::Certificate(CertificateFault::Other(other.to_string())),
                }
            }
            rustls::Error::InvalidCertificate(error) => {
                Self::Certificate(CertificateFault::Other(error.to_string()))
            }
            rustls::Error::AlertReceived(alert) => Self::Alert(format!("{alert:?}")),
            error => Self::Other(error),
        }
    }
}

impl From<webpki::Error> for CertificateFault {
    fn from(error: webpki::Error) -> Self {
        use webpki::Error as E;
        match error {
            E::CertExpired { .. } => Self::Expired,
            E::CertNotValidYet { .. } => Self::NotYetValid,
            E::UnknownIssuer => Self::UnknownIssuer,
            E::CertRevoked => Self::Revoked,
            E::UnknownRevocationStatus => Self::RevocationUnknown,
            E::CrlExpired { .. } => Self::ListExpired,
            E::RequiredEkuNotFoundContext(_) => Self::Purpose,
            error => Self::Other(format!("{error:?}")),
        }
    }
}
