//! The bearer token and TLS.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::*;
use crate::support::http::{Answer, ask_over};

const TOKEN: &str = "canary-of-the-token-0123";
const NEW_TOKEN: &str = "canary-of-another-token-4567";
const HOST: &str = "waltrail.test";

/// Puts a file in the place of one, as who renews a certificate does.
fn put(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, PermissionsExt::from_mode(0o600)).unwrap();
    fs::rename(new, path).unwrap();
}

/// A certificate for [`HOST`] and its key, as PEM.
fn certificate() -> (String, String) {
    let params = CertificateParams::new([HOST.to_owned()]).unwrap();
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn section(&self, names: &[&str]) -> String {
        let keys = names.iter().map(|name| {
            let path = self.path(name);
            format!("{name} = '{}'\n", path.display())
        });
        LISTEN.to_owned() + &keys.collect::<String>()
    }
}

async fn scene_with(section: &str) -> (Scene, String) {
    let mut scene = Scene::with(|builder| builder, EMPLOYEES, &["public.employees"], section).await;
    let address = address(scene.daemon()).await;
    (scene, address)
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

#[tokio::test]
async fn what_is_shown_needs_the_token_and_a_new_one_needs_no_restart() {
    let files = Files::new();
    let file = files.path("token_file");
    put(&file, &format!("{TOKEN}\n"));
    let (mut scene, address) = scene_with(&files.section(&["token_file"])).await;
    for path in ["/metrics", "/api/status", "/api/live"] {
        let request = format!("GET {path}");
        for headers in [String::new(), bearer("wrong"), bearer(NEW_TOKEN)] {
            let refused = ask_with(&address, &request, &headers).await;
            assert_eq!(refused.status, 401, "{path}");
            let scheme = refused.header("www-authenticate");
            assert_eq!(scheme, Some("Bearer realm=\"waltrail\""));
            assert!(!refused.body.contains("waltrail_"), "{}", refused.body);
        }
        let let_in = ask_with(&address, &request, &bearer(TOKEN)).await;
        assert_ne!(let_in.status, 401, "{path}: {}", let_in.body);
        let in_the_address = ask_with(&address, &format!("GET {path}?token={TOKEN}"), "").await;
        assert_eq!(in_the_address.status, 401, "{path}");
    }
    // Probes, and the page, which asks for the token itself.
    for path in ["/", "/livez", "/readyz"] {
        assert_ne!(ask(&address, &format!("GET {path}")).await.0, 401, "{path}");
    }
    put(&file, "short");
    let kept = |line: &str| line.contains("cannot be used; the old ones stay");
    scene.daemon().wait_log(BOUND, kept).await;
    let status = async |token: &str| {
        let answer = ask_with(&address, "GET /metrics", &bearer(token)).await;
        answer.status
    };
    assert_eq!(status(TOKEN).await, 200);
    put(&file, NEW_TOKEN);
    wait_until("the new token is known", BOUND, async || {
        (status(NEW_TOKEN).await == 200).then_some(())
    })
    .await;
    assert_eq!(status(TOKEN).await, 401);
    let output = scene.stop_complaining().await;
    assert_clean(&output, &["cannot be used; the old ones stay"]);
}

/// A request over TLS by a client that trusts this certificate alone.
async fn ask_tls(address: &str, trusted: &str, request: &str) -> std::io::Result<Answer> {
    let mut roots = RootCertStore::empty();
    let trusted = CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap();
    roots.add(trusted).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let host = ServerName::try_from(HOST).unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(host, stream);
    ask_over(stream.await?, request, "").await
}

#[tokio::test]
async fn everything_goes_over_tls_and_a_new_certificate_needs_no_restart() {
    let files = Files::new();
    let ((first, key), (second, second_key)) = (certificate(), certificate());
    let (certificate, key_file) = (files.path("tls_cert"), files.path("tls_key"));
    put(&certificate, &first);
    put(&key_file, &key);
    let section = files.section(&["tls_cert", "tls_key"]);
    let (mut scene, address) = scene_with(&section).await;
    let answer = ask_tls(&address, &first, "GET /livez").await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "alive\n"));
    let page = ask_tls(&address, &first, "GET /").await.unwrap();
    assert!(page.body.ends_with("</html>\n"));
    assert!(ask_tls(&address, &second, "GET /livez").await.is_err());
    let plain = TcpStream::connect(&address).await.unwrap();
    let plain = ask_over(plain, "GET /livez", "").await;
    assert!(plain.is_err(), "{plain:?}");
    // Between the two, they do not fit.
    put(&key_file, &second_key);
    put(&certificate, &second);
    wait_until("the new certificate is served", BOUND, async || {
        ask_tls(&address, &second, "GET /livez").await.ok()
    })
    .await;
    assert!(ask_tls(&address, &first, "GET /livez").await.is_err());
    let read = |line: &str| line.contains("files of the HTTP listener were read again");
    scene.daemon().wait_log(BOUND, read).await;
    scene.stop().await;
}

#[tokio::test]
async fn files_that_cannot_be_used_end_the_start_with_78() {
    let (server, _) = server().await;
    let files = Files::new();
    let (good, key) = certificate();
    put(&files.path("tls_cert"), &good);
    put(&files.path("tls_key"), &certificate().1);
    put(&files.path("token_file"), TOKEN);
    let dsn = server.dsn_socket("postgres");
    let refused = async |section: &str, says: &str| {
        let config = config(&dsn, None, &["public.employees"], section);
        let (status, output) = Daemon::spawn(&config).wait(BOUND).await;
        assert_eq!(status.code(), Some(78), "{output}");
        assert!(output.contains(says), "{says}: {output}");
    };
    let tls = files.section(&["tls_cert", "tls_key"]);
    refused(&tls, "does not fit http.tls_cert").await;
    put(&files.path("tls_key"), &good);
    refused(&tls, "holds no private key that can be read").await;
    put(&files.path("tls_key"), &key);
    let open = PermissionsExt::from_mode(0o644);
    fs::set_permissions(files.path("tls_key"), open).unwrap();
    refused(&tls, "group or world access").await;
    put(&files.path("tls_key"), &key);
    put(&files.path("tls_cert"), &key);
    refused(&tls, "holds no certificate that can be read").await;
    fs::remove_file(files.path("tls_cert")).unwrap();
    refused(&tls, "cannot be read").await;
    let token = files.section(&["token_file"]);
    fs::remove_file(files.path("token_file")).unwrap();
    refused(&token, "does not exist").await;
    put(&files.path("token_file"), "two\nlines-of-some-length");
    refused(&token, "does not hold one line with a token").await;
}
