//! One who stands between us and the server is noticed where psql notices.

use std::sync::{Arc, Mutex};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::authority::{Authority, Made, good};
use super::{HOST, Outcome, Tested};
use crate::support::each;

/// What the one between does beside reading all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Encrypts to the server, too.
    Encrypted,
    /// Encrypts, and takes channel binding out of what the server offers.
    Stripping,
    /// Does not encrypt to the server.
    Plain,
}

const PLUS: &[u8] = b"SCRAM-SHA-256-PLUS\0";
/// The request for TLS (manual, section 53.7, SSLRequest).
const REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

#[tokio::test]
async fn one_who_reads_between_is_noticed_by_channel_binding() {
    let mut tested =
        Tested::new(|builder| builder.hba("host all secret 127.0.0.1/32 scram-sha-256")).await;
    let create = "CREATE ROLE secret LOGIN REPLICATION PASSWORD 'x'";
    each(&tested.client, &[create]).await;
    tested.present(&Authority::new("ours").signs(&good()));
    let mut passed = Vec::new();
    for way in [Way::Encrypted, Way::Stripping, Way::Plain] {
        let port = between(tested.cluster.port(), way).await;
        for binding in ["disable", "prefer", "require"] {
            let more = format!("sslmode=require channel_binding={binding} password=x");
            let dsn = tested.dsn("secret", &more);
            let dsn = dsn.replace(
                &format!("port={}", tested.cluster.port()),
                &format!("port={port}"),
            );
            if tested.as_psql(&dsn).await != Outcome::Refused {
                passed.push((way, binding));
            }
        }
    }
    // As encrypted as each of them says, and read by another.
    let expected = [
        (Way::Encrypted, "disable"),
        (Way::Stripping, "disable"),
        (Way::Plain, "disable"),
        (Way::Plain, "prefer"),
    ];
    assert_eq!(passed, expected);
}

/// Listens with a certificate of its own.
async fn between(server: u16, way: Way) -> u16 {
    let Made { chain, key } = Authority::new("between").signs(&good());
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.unwrap(), key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut request = [0; 8];
                client.read_exact(&mut request).await.unwrap();
                assert_eq!(request, REQUEST);
                client.write_all(b"S").await.unwrap();
                let Ok(client) = acceptor.accept(client).await else {
                    return;
                };
                let mut server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                if way == Way::Plain {
                    return pass_on(client, server, way).await;
                }
                server.write_all(&REQUEST).await.unwrap();
                let mut answer = [0];
                server.read_exact(&mut answer).await.unwrap();
                let name = ServerName::try_from(HOST).unwrap();
                let server = trusting().connect(name, server).await.unwrap();
                pass_on(client, server, way).await;
            });
        }
    });
    port
}

async fn pass_on<C, S>(client: C, server: S, way: Way)
where
    C: AsyncRead + AsyncWrite + Send + 'static,
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = tokio::io::split(server);
    tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
        let _ = to_server.shutdown().await;
    });
    let mut bytes = vec![0; 20_000];
    while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
        let mut bytes = bytes[..count].to_vec();
        if way == Way::Stripping && bytes.windows(PLUS.len()).any(|window| window == PLUS) {
            bytes = b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0".to_vec();
        }
        if to_client.write_all(&bytes).await.is_err() {
            return;
        }
    }
    let _ = to_client.shutdown().await;
}

fn trusting() -> TlsConnector {
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting))
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

#[derive(Debug)]
struct Trusting;

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A server that gives one answer to the request for TLS, and then everything that it was sent.
async fn answering(answer: &'static [u8], sent: Arc<Mutex<Vec<u8>>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let sent = sent.clone();
            tokio::spawn(async move {
                let mut request = [0; 8];
                if client.read_exact(&mut request).await.is_ok() {
                    let _ = client.write_all(answer).await;
                }
                let mut rest = Vec::new();
                let _ = client.read_to_end(&mut rest).await;
                sent.lock().unwrap().extend(rest);
            });
        }
    });
    port
}

#[tokio::test]
async fn words_of_who_did_not_prove_anything_are_not_taken() {
    let tested = Tested::new(|builder| builder).await;
    for answer in [
        // The start of a session, put in before the encryption.
        b"SR\0\0\0\x08\0\0\0\0Z\0\0\0\x05I".as_slice(),
        b"E\0\0\0\x0dMcanary\0\0",
        b"?",
    ] {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let port = answering(answer, sent.clone()).await;
        for mode in ["prefer", "require"] {
            let dsn = tested.dsn("postgres", &format!("sslmode={mode} connect_timeout=2"));
            let dsn = dsn.replace(
                &format!("port={}", tested.cluster.port()),
                &format!("port={port}"),
            );
            assert_eq!(tested.as_psql(&dsn).await, Outcome::Refused, "{answer:?}");
        }
        // Not even the role's name was sent.
        let sent = sent.lock().unwrap();
        assert!(!sent.windows(8).any(|word| word == b"postgres"));
    }
}
