//! Certificates as tests need them.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};

use super::HOST;

/// A certificate with those between it and a root, and its key, as PEM.
#[derive(Clone)]
pub(super) struct Made {
    pub(super) chain: String,
    pub(super) key: String,
}

/// One that signs others.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) certificate: String,
    /// Of those between it and a root.
    between: String,
}

/// A certificate for servers that is for nothing yet.
pub(super) fn nameless(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
}

/// One for these names of DNS; the first is the common name, too.
pub(super) fn named(names: &[&str]) -> CertificateParams {
    let mut params = nameless(names[0]);
    for name in names {
        let name = SanType::DnsName((*name).try_into().unwrap());
        params.subject_alt_names.push(name);
    }
    params
}

/// One that would be accepted.
pub(super) fn good() -> CertificateParams {
    named(&[HOST])
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let (key, params) = (KeyPair::generate().unwrap(), authority(name));
        let certificate = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
            between: String::new(),
        }
    }

    /// One whose time is over.
    pub(super) fn expired(name: &str) -> Self {
        let (key, mut params) = (KeyPair::generate().unwrap(), authority(name));
        params.not_after = date_time_ymd(2020, 1, 1);
        let certificate = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
            between: String::new(),
        }
    }

    /// One that this one has signed.
    pub(super) fn below(&self, name: &str) -> Self {
        self.below_as(authority(name))
    }

    /// One that this one has signed, and that may have no other below it.
    pub(super) fn lowest(&self, name: &str) -> Self {
        let mut params = authority(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        self.below_as(params)
    }

    /// One that signs, whether it may or not.
    pub(super) fn below_as(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            between: certificate.clone() + &self.between,
            certificate,
        }
    }

    /// One that is not said to be an authority, and signed itself.
    pub(super) fn plain(params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
            between: String::new(),
        }
    }

    pub(super) fn signs(&self, params: &CertificateParams) -> Made {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Made {
            chain: certificate + &self.between,
            key: key.serialize_pem(),
        }
    }

    /// The list of what this one has revoked.
    pub(super) fn revokes(&self, serials: &[u64], until: i32) -> String {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// One that signed itself.
pub(super) fn self_signed(params: &CertificateParams) -> Made {
    let key = KeyPair::generate().unwrap();
    Made {
        chain: params.self_signed(&key).unwrap().pem(),
        key: key.serialize_pem(),
    }
}
