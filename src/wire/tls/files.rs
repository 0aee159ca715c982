//! The files that a connection string names, or libpq's defaults for them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use webpki::{CertRevocationList, OwnedCertRevocationList, anchor_from_trusted_cert};

use super::error::TlsError;
use super::verify::{Trusted, parsed};
use super::{Mode, Roots, Settings, legacy};

fn refused(
    keyword: &'static str,
    path: &Path,
    problem: impl Into<String>,
    remedy: impl Into<String>,
) -> TlsError {
    TlsError::File {
        keyword,
        path: path.to_owned(),
        problem: problem.into(),
        remedy: remedy.into(),
    }
}

/// A file's bytes; `None` where there is no such file, or, as in libpq, none that this process can see.
fn read(keyword: &'static str, path: &Path) -> Result<Option<Vec<u8>>, TlsError> {
    if fs::metadata(path).is_err() {
        return Ok(None);
    }
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) => Err(refused(
            keyword,
            path,
            format!("cannot be read: {error}"),
            format!("let the user that runs waltrail read {}", path.display()),
        )),
    }
}

/// What a server's certificate must lead to; `None`: nothing, because no file says so and the mode needs none.
pub(super) fn trusted(settings: &Settings) -> Result<Option<Trusted>, TlsError> {
    let certificates = match &settings.roots {
        Roots::System => rustls_native_certs::load_native_certs().certs,
        Roots::File(path) => {
            let path = path
                .as_deref()
                .unwrap_or(Path::new("~/.postgresql/root.crt"));
            match read("sslrootcert", path)? {
                Some(bytes) => certificates("sslrootcert", path, &bytes)?,
                None if settings.mode >= Mode::VerifyCa => {
                    return Err(refused(
                        "sslrootcert",
                        path,
                        "does not exist",
                        "name the file of the authority's certificate with sslrootcert, or trust the operating \
                         system's authorities with sslrootcert=system",
                    ));
                }
                None => return Ok(None),
            }
        }
    };
    let mut trusted = Trusted::default();
    for certificate in certificates {
        let parsed = parsed(&certificate);
        let valid_root = parsed.as_ref().is_ok_and(|parsed| {
            parsed.subject().as_raw() == parsed.issuer().as_raw() && parsed.validity().is_valid()
        });
        if !valid_root {
            trusted.others.push(certificate);
        } else if let Ok(anchor) = anchor_from_trusted_cert(&certificate) {
            // One that is no authority is trusted as it is, and signs nothing.
            if parsed.is_ok_and(|root| legacy::may_issue(&root)) {
                trusted.anchors.push(anchor.to_owned());
            }
            trusted.roots.push(certificate);
        }
    }
    if trusted.roots.is_empty() && settings.roots == Roots::System {
        return Err(TlsError::NoSystemRoots);
    }
    revoked(settings, &mut trusted)?;
    Ok(Some(trusted))
}

fn certificates(
    keyword: &'static str,
    path: &Path,
    bytes: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(|| {
        let remedy = "write certificates in PEM form (`-----BEGIN CERTIFICATE-----`) into the file";
        refused(
            keyword,
            path,
            "holds no certificate that can be read",
            remedy,
        )
    })
}

fn revoked(settings: &Settings, trusted: &mut Trusted) -> Result<(), TlsError> {
    let revoked = &settings.crl;
    let mut files: Vec<PathBuf> = Vec::new();
    if let Some(folder) = &revoked.folder {
        let entries = fs::read_dir(folder).map_err(|error| {
            let remedy = "name a folder with lists of revoked certificates in PEM form";
            refused(
                "sslcrldir",
                folder,
                format!("cannot be read: {error}"),
                remedy,
            )
        })?;
        files.extend(entries.flatten().map(|entry| entry.path()));
        files.sort();
    }
    files.extend(revoked.named.clone());
    if files.is_empty() {
        files.extend(revoked.default.clone());
    }
    for path in files {
        let Some(bytes) = read("sslcrl", &path)? else {
            if revoked.named.as_ref() == Some(&path) {
                let remedy = "create the file with the authority's list, or leave sslcrl out";
                return Err(refused("sslcrl", &path, "does not exist", remedy));
            }
            continue;
        };
        for list in CertificateRevocationListDer::pem_slice_iter(&bytes) {
            let list = list.ok().and_then(|list| {
                let read = OwnedCertRevocationList::from_der(&list).ok()?;
                Some((CertRevocationList::from(read), list.to_vec()))
            });
            let (read, list) = list.ok_or_else(|| {
                let remedy = "write the list as PEM, of version 2 (`openssl ca -gencrl`)";
                refused(
                    "sslcrl",
                    &path,
                    "holds no list of revoked certificates that can be read",
                    remedy,
                )
            })?;
            trusted.revoked.push(read);
            trusted.lists.push(list);
        }
    }
    let asked = [("sslcrl", &revoked.named), ("sslcrldir", &revoked.folder)];
    for (keyword, path) in asked {
        // A place that is named is meant to count.
        if let (Some(path), true) = (path, trusted.lists.is_empty()) {
            let remedy = "put the authority's list there, as PEM (`openssl ca -gencrl`)";
            let problem = "holds no list of revoked certificates";
            return Err(refused(keyword, path, problem, remedy));
        }
    }
    Ok(())
}

/// Our own certificate, sent when the server asks for one.
#[derive(Debug)]
pub(super) struct Own(Arc<CertifiedKey>);

impl ResolvesClientCert for Own {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// As in libpq, a certificate's file that does not exist means none, a key's is a mistake.
pub(super) fn own(
    settings: &Settings,
    provider: &CryptoProvider,
) -> Result<Option<Arc<Own>>, TlsError> {
    let Some(path) = &settings.certificate else {
        return Ok(None);
    };
    let Some(bytes) = read("sslcert", path)? else {
        return Ok(None);
    };
    let chain = certificates("sslcert", path, &bytes)?;
    let key_path = settings.key.clone().unwrap_or_default();
    let key = private_key(&key_path)?;
    let key = provider.key_provider.load_private_key(key).map_err(|_| {
        let remedy =
            "use an RSA key of at least 2048 bits, or one of the curves P-256, P-384 or Ed25519";
        refused(
            "sslkey",
            &key_path,
            "holds a key of a kind that is not supported",
            remedy,
        )
    })?;
    let of_certificate = chain.first().map(parsed);
    if let (Some(Ok(certificate)), Some(key)) = (of_certificate, key.public_key())
        && certificate.public_key().raw != key.as_ref()
    {
        let problem = format!("does not belong to the certificate {}", path.display());
        let remedy = "name the key that the certificate was made for";
        return Err(refused("sslkey", &key_path, problem, remedy));
    }
    Ok(Some(Arc::new(Own(Arc::new(CertifiedKey::new(chain, key))))))
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = read("sslkey", path)?.ok_or_else(|| {
        let remedy = "name the private key of sslcert with sslkey";
        refused("sslkey", path, "does not exist", remedy)
    })?;
    check_permissions(path)?;
    let text = String::from_utf8_lossy(&bytes);
    if text.contains("ENCRYPTED") {
        let shown = path.display();
        return Err(refused(
            "sslkey",
            path,
            "is encrypted with a password, which waltrail does not support",
            format!(
                "run `openssl pkey -in {shown} -out {shown}.plain && chmod 600 {shown}.plain` and name that file"
            ),
        ));
    }
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| {
        let remedy = "write the private key in PEM form into the file";
        refused(
            "sslkey",
            path,
            "holds no private key that can be read",
            remedy,
        )
    })
}

/// libpq's rule: 0600 or less; 0640 or less if it belongs to root.
fn check_permissions(path: &Path) -> Result<(), TlsError> {
    let Ok(metadata) = fs::metadata(path) else {
        return Ok(());
    };
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.is_file() && metadata.mode() & forbidden == 0 {
        return Ok(());
    }
    if !metadata.is_file() {
        let remedy = "name the file of the private key";
        return Err(refused("sslkey", path, "is not a regular file", remedy));
    }
    let remedy = format!("run `chmod 600 {}`", path.display());
    Err(refused(
        "sslkey",
        path,
        "may be read by others than its owner",
        remedy,
    ))
}
