//! Chains of certificates that webpki does not take as a server's: of version 1, as `openssl x509 -req` made them for long,
//! and self-signed ones that are marked as an authority's. PostgreSQL's manual (section 19.9.5) makes both.
//!
//! What is judged here is stricter than OpenSSL wherever that costs nothing: no authority with name constraints, no
//! extension that is critical and unknown, no SHA-1.

use std::cell::Cell;

use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry as oid;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Version;

use super::error::CertificateFault;
use super::verify::{Trusted, parsed};

/// As many authorities may stand between a server's certificate and a root.
const BETWEEN_MAX: u32 = 6;
/// Signatures that are checked for one certificate, as in webpki: a server can send many authorities of one name.
const SIGNATURES_MAX: u32 = 100;

pub(super) fn verify(
    trusted: &Trusted,
    end_entity: &CertificateDer<'_>,
    between: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), CertificateFault> {
    let certificate = parsed(end_entity)?;
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let now = ASN1Time::from_timestamp(seconds)
        .map_err(|_| CertificateFault::Other("the time is out of range".to_owned()))?;
    let search = Search {
        roots: trusted.roots.iter().flat_map(parsed).collect(),
        between: between.iter().flat_map(parsed).collect(),
        lists: trusted
            .lists
            .iter()
            .filter_map(|list| Some(CertificateRevocationList::from_der(list).ok()?.1))
            .collect(),
        now,
        signatures: Cell::new(0),
    };
    let purposes = certificate.extended_key_usage();
    let purposes = purposes.map_err(|_| CertificateFault::Purpose)?;
    if purposes.is_some_and(|purposes| !purposes.value.server_auth) {
        return Err(CertificateFault::Purpose);
    }
    search.path(&certificate, 0)
}

struct Search<'a> {
    roots: Vec<X509Certificate<'a>>,
    between: Vec<X509Certificate<'a>>,
    lists: Vec<CertificateRevocationList<'a>>,
    now: ASN1Time,
    /// Checked so far.
    signatures: Cell<u32>,
}

impl Search<'_> {
    /// Looks for a way from a certificate, above `below` authorities, to a root.
    fn path(&self, certificate: &X509Certificate<'_>, below: u32) -> Result<(), CertificateFault> {
        self.valid_by_itself(certificate)?;
        // A root is trusted as it is, and is its own issuer.
        if self
            .roots
            .iter()
            .any(|root| root.as_raw() == certificate.as_raw())
        {
            return self.not_revoked(certificate, certificate);
        }
        for root in self.roots.iter().filter(|root| may_issue(root)) {
            if self.issued(root, certificate)? {
                self.valid_by_itself(root)?;
                return self.not_revoked(certificate, root);
            }
        }
        let mut fault = CertificateFault::UnknownIssuer;
        for issuer in &self.between {
            let may_be = below < BETWEEN_MAX && is_authority(issuer, below);
            if !may_be || !self.issued(issuer, certificate)? {
                continue;
            }
            let found = self
                .path(issuer, below + 1)
                .and_then(|()| self.not_revoked(certificate, issuer));
            match found {
                Ok(()) => return Ok(()),
                Err(found) => fault = found,
            }
        }
        Err(fault)
    }

    /// Whether `issuer` has signed `certificate`, with a hash that still counts.
    ///
    /// # Errors
    /// Too many signatures were checked.
    fn issued(
        &self,
        issuer: &X509Certificate<'_>,
        certificate: &X509Certificate<'_>,
    ) -> Result<bool, CertificateFault> {
        let weak = [&oid::OID_PKCS1_SHA1WITHRSA, &oid::OID_SHA1_WITH_RSA];
        if issuer.subject().as_raw() != certificate.issuer().as_raw()
            || weak.contains(&&certificate.signature_algorithm.algorithm)
        {
            return Ok(false);
        }
        self.signatures.set(self.signatures.get() + 1);
        if self.signatures.get() > SIGNATURES_MAX {
            let fault = "too many authorities of one name were sent with it";
            return Err(CertificateFault::Other(fault.to_owned()));
        }
        Ok(certificate
            .verify_signature(Some(issuer.public_key()))
            .is_ok())
    }

    fn valid_by_itself(&self, certificate: &X509Certificate<'_>) -> Result<(), CertificateFault> {
        let validity = certificate.validity();
        if self.now > validity.not_after {
            return Err(CertificateFault::Expired);
        }
        if self.now < validity.not_before {
            return Err(CertificateFault::NotYetValid);
        }
        let unknown = certificate.iter_extensions().any(|extension| {
            let known = matches!(
                extension.parsed_extension(),
                ParsedExtension::KeyUsage(_)
                    | ParsedExtension::BasicConstraints(_)
                    | ParsedExtension::SubjectAlternativeName(_)
                    | ParsedExtension::ExtendedKeyUsage(_)
                    | ParsedExtension::NSCertType(_)
            );
            extension.critical && !known
        });
        match unknown {
            true => Err(CertificateFault::Other(
                "it has a critical extension that is not known".to_owned(),
            )),
            false => Ok(()),
        }
    }

    /// Looks for a certificate in its issuer's list. With any list at all, each issuer must have one.
    fn not_revoked(
        &self,
        certificate: &X509Certificate<'_>,
        issuer: &X509Certificate<'_>,
    ) -> Result<(), CertificateFault> {
        if self.lists.is_empty() {
            return Ok(());
        }
        let list = self.lists.iter().find(|list| {
            list.issuer().as_raw() == certificate.issuer().as_raw()
                && list
                    .extensions()
                    .iter()
                    .all(|extension| !extension.critical)
                && list.verify_signature(issuer.public_key()).is_ok()
        });
        let list = list.ok_or(CertificateFault::RevocationUnknown)?;
        if list.next_update().is_some_and(|next| self.now > next) {
            return Err(CertificateFault::ListExpired);
        }
        let serial = &certificate.tbs_certificate.serial;
        match list
            .iter_revoked_certificates()
            .any(|revoked| revoked.serial() == serial)
        {
            true => Err(CertificateFault::Revoked),
            false => Ok(()),
        }
    }
}

/// Whether a root may sign others, by OpenSSL's rule: it says so, or is of the version that could not.
pub(super) fn may_issue(root: &X509Certificate<'_>) -> bool {
    match (root.basic_constraints(), root.key_usage()) {
        (Ok(Some(constraints)), Ok(usage)) => {
            constraints.value.ca && usage.is_none_or(|usage| usage.value.key_cert_sign())
        }
        (Ok(None), Ok(usage)) => {
            root.version() == X509Version::V1
                || usage.is_some_and(|usage| usage.value.key_cert_sign())
        }
        _ => false,
    }
}

/// Whether a certificate that is not itself trusted may sign others, with `below` authorities below it.
fn is_authority(certificate: &X509Certificate<'_>, below: u32) -> bool {
    let constraints = certificate.basic_constraints().ok().flatten();
    let may_sign = match certificate.key_usage() {
        Ok(usage) => usage.is_none_or(|usage| usage.value.key_cert_sign()),
        Err(_) => false,
    };
    let unconstrained = matches!(certificate.name_constraints(), Ok(None));
    may_sign
        && unconstrained
        && constraints.is_some_and(|constraints| {
            let length = constraints.value.path_len_constraint;
            constraints.value.ca && length.is_none_or(|length| below <= length)
        })
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;

    /// An authority of that name, which is signed by another one of the same name and key.
    fn authority(issuer: &Issuer<'_, &KeyPair>, key: &KeyPair) -> CertificateDer<'static> {
        let made = named(IsCa::Ca(BasicConstraints::Unconstrained)).signed_by(key, issuer);
        made.unwrap().der().clone()
    }

    fn named(is_ca: IsCa) -> CertificateParams {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "any");
        params.is_ca = is_ca;
        params
    }

    #[test]
    fn many_authorities_of_one_name_are_not_tried_in_every_order() {
        let key = KeyPair::generate().unwrap();
        let ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = Issuer::new(named(ca), &key);
        let sent: Vec<_> = (0..30).map(|_| authority(&issuer, &key)).collect();
        let now = UnixTime::now();
        let verified = verify(&Trusted::default(), &sent[0], &sent, now);
        assert!(
            matches!(&verified, Err(CertificateFault::Other(why)) if why.contains("too many")),
            "{verified:?}"
        );
        let other = KeyPair::generate().unwrap();
        let stranger = Issuer::new(named(IsCa::NoCa), &other);
        let alone = authority(&stranger, &other);
        let verified = verify(&Trusted::default(), &alone, &[], now);
        assert_eq!(verified, Err(CertificateFault::UnknownIssuer));
    }
}
