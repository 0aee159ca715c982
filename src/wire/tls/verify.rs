//! The server's certificate: the chain is webpki's to judge, the name is libpq's rule.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{
    CertificateDer, ServerName, SubjectPublicKeyInfoDer, TrustAnchor, UnixTime,
};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RawPublicKeyEntity,
    RevocationOptionsBuilder,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::error::CertificateFault;
use super::{legacy, name};

/// What a chain may end at. As with OpenSSL, only a certificate that is its own issuer; others of the same file help to
/// find the way.
#[derive(Debug, Default)]
pub(super) struct Trusted {
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) anchors: Vec<TrustAnchor<'static>>,
    pub(super) others: Vec<CertificateDer<'static>>,
    pub(super) revoked: Vec<CertRevocationList<'static>>,
    /// The same lists as they were read.
    pub(super) lists: Vec<Vec<u8>>,
}

#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    /// `None` trusts every certificate.
    pub(super) trusted: Option<Trusted>,
    /// The host that the certificate must be for.
    pub(super) host: Option<String>,
}

impl Verifier {
    fn chain(
        &self,
        trusted: &Trusted,
        end_entity: &CertificateDer<'_>,
        sent: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), CertificateFault> {
        let between: Vec<CertificateDer<'_>> =
            sent.iter().chain(&trusted.others).cloned().collect();
        let lists: Vec<&CertRevocationList<'_>> = trusted.revoked.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&lists).ok();
        let revocation = revocation.map(|builder| {
            builder
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        let verified = EndEntityCert::try_from(end_entity).and_then(|certificate| {
            let verified = certificate.verify_for_usage(
                self.algorithms.all,
                &trusted.anchors,
                &between,
                now,
                KeyUsage::server_auth(),
                revocation,
                None,
            );
            verified.map(drop)
        });
        let is_root = trusted.roots.iter().any(|root| root == end_entity);
        match verified {
            // What PostgreSQL's manual shows how to make.
            Err(webpki::Error::CaUsedAsEndEntity | webpki::Error::UnsupportedCertVersion) => {
                legacy::verify(trusted, end_entity, &between, now)
            }
            Err(_) if is_root => legacy::verify(trusted, end_entity, &between, now),
            verified => Ok(verified?),
        }
    }
}

pub(super) fn parsed<'a>(
    certificate: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, CertificateFault> {
    match X509Certificate::from_der(certificate) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(CertificateFault::Other("it cannot be read".to_owned())),
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(trusted) = &self.trusted {
            self.chain(trusted, end_entity, intermediates, now)?;
        }
        if let Some(host) = &self.host {
            let certificate = parsed(end_entity)?;
            name::check(&certificate, host).map_err(|names| CertificateFault::Name {
                host: host.clone(),
                names,
            })?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if EndEntityCert::try_from(certificate).is_ok() {
            return verify_tls12_signature(message, certificate, signed, &self.algorithms);
        }
        let key = key_of(certificate)?;
        let key = RawPublicKeyEntity::try_from(&key).map_err(CertificateFault::from)?;
        let candidates = self
            .algorithms
            .mapping
            .iter()
            .find(|(scheme, _)| *scheme == signed.scheme);
        let valid = candidates.is_some_and(|(_, algorithms)| {
            algorithms.iter().any(|algorithm| {
                key.verify_signature(*algorithm, message, signed.signature())
                    .is_ok()
            })
        });
        match valid {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(CertificateError::BadSignature.into()),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if EndEntityCert::try_from(certificate).is_ok() {
            return verify_tls13_signature(message, certificate, signed, &self.algorithms);
        }
        let key = key_of(certificate)?;
        verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The key of a certificate that webpki does not read: one of version 1.
fn key_of(
    certificate: &CertificateDer<'_>,
) -> Result<SubjectPublicKeyInfoDer<'static>, CertificateFault> {
    let certificate = parsed(certificate)?;
    Ok(certificate.public_key().raw.to_vec().into())
}
