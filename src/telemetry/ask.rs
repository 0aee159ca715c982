//! `waltrail health`: asks a daemon that runs whether it is ready, where there is no other HTTP client: in a container without a shell,
//! in a probe that runs a command.

use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::http::tls;
use crate::config::Http;
use crate::fault::{Exit, Fault, Result};
use crate::printable::{TEXT_MAX, printable};

/// Less than a container's health check waits.
const TIME_MAX: Duration = Duration::from_secs(4);
/// More than one line of an answer.
const ANSWER_BYTES_MAX: usize = 4096;

/// What a daemon answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) is_well: bool,
    /// One line.
    pub(crate) text: String,
}

/// Asks for `path`, `/livez` or `/readyz`, at `url`, else where the configuration says that a daemon listens. That there is no answer
/// is an answer, too.
///
/// # Errors
/// When it is not known where to ask.
pub(crate) async fn ask(url: Option<&str>, http: Option<Http>, path: &str) -> Result<Answer> {
    let (authority, tls) = match (url, http) {
        (Some(url), _) => (authority(url)?, None),
        (None, Some(http)) => (near(http.listen)?.to_string(), http.tls),
        (None, None) => {
            return Err(Fault::halt(
                Exit::Config,
                "`http.listen` is not set, so there is nothing to ask",
            )
            .remedy("set http.listen for the daemon and for this command, or give --url"));
        }
    };
    let tls = tls.map(|tls| pinned(&tls.certificate)).transpose()?;
    let answered = tokio::time::timeout(TIME_MAX, answer(&authority, tls, path)).await;
    let no_answer = |problem: String| Answer {
        is_well: false,
        text: format!("{authority} {problem}"),
    };
    Ok(match answered {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => no_answer(format!("does not answer: {error}")),
        Err(_) => no_answer(format!("has not answered for {} s", TIME_MAX.as_secs())),
    })
}

/// The address that reaches a listener of this machine.
fn near(listen: SocketAddr) -> Result<SocketAddr> {
    if listen.port() == 0 {
        return Err(Fault::halt(
            Exit::Config,
            "`http.listen` has port 0, which is another one at each start",
        )
        .remedy("name a port, or give --url"));
    }
    let host = match listen.ip() {
        IpAddr::V4(all) if all.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(all) if all.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        one => one,
    };
    Ok(SocketAddr::new(host, listen.port()))
}

/// Host and port of a URL, whose path is ours to say.
fn authority(url: &str) -> Result<String> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let port = authority.rsplit_once(':').map(|(_, port)| port);
    let is_plain = !authority.contains(['/', '@', '?', '#']);
    match port.and_then(|port| port.parse::<u16>().ok()) {
        Some(_) if is_plain => Ok(authority.to_owned()),
        _ => Err(
            Fault::halt(Exit::Usage, "--url is no address of a waltrail")
                .remedy("write for example --url http://127.0.0.1:9464"),
        ),
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn answer(
    authority: &str,
    tls: Option<ClientConfig>,
    path: &str,
) -> std::result::Result<Answer, Failure> {
    let stream = TcpStream::connect(authority).await?;
    let Some(tls) = tls else {
        return exchange(stream, authority, path).await;
    };
    // Which name the certificate has does not count: it is known.
    let name = ServerName::IpAddress(stream.peer_addr()?.ip().into());
    let stream = TlsConnector::from(Arc::new(tls))
        .connect(name, stream)
        .await?;
    exchange(stream, authority, path).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    authority: &str,
    path: &str,
) -> std::result::Result<Answer, Failure> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(HOST, authority)
        .body(String::new())?;
    let asked = async {
        let response = sender.send_request(request).await?;
        let is_well = response.status() == StatusCode::OK;
        let text = first_line(response.into_body()).await?;
        Ok(Answer { is_well, text })
    };
    tokio::pin!(asked);
    tokio::select! {
        answer = &mut asked => return answer,
        // It ends when everything has been read; `asked` then has it.
        ended = connection => ended?,
    }
    asked.await
}

/// TLS with a server that has this certificate, and no other.
fn pinned(certificate: &Path) -> Result<ClientConfig> {
    let provider = Arc::new(default_provider());
    let pin = Pin {
        certificate: tls::chain(certificate)?.swap_remove(0),
        algorithms: provider.signature_verification_algorithms,
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Fault::bug("TLS cannot be set up").caused_by(error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pin))
        .with_no_client_auth();
    Ok(config)
}

/// The certificate that is configured for the listener: no authority says more about a process of this machine.
#[derive(Debug)]
struct Pin {
    certificate: CertificateDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        match *end_entity == self.certificate {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(rustls::Error::General(
                "it has another certificate than http.tls_cert".to_owned(),
            )),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

async fn first_line(body: Incoming) -> std::result::Result<String, Failure> {
    let mut bytes = Vec::new();
    let mut body = pin!(body);
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        bytes.extend_from_slice(frame?.data_ref().map_or(&[][..], |data| data));
        if bytes.len() > ANSWER_BYTES_MAX {
            break;
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    Ok(printable(text.lines().next().unwrap_or_default(), TEXT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_of_all_addresses_is_asked_at_this_machine_s_own() {
        for (listen, asked) in [
            ("0.0.0.0:9464", "127.0.0.1:9464"),
            ("[::]:9464", "[::1]:9464"),
            ("10.0.0.7:80", "10.0.0.7:80"),
        ] {
            assert_eq!(near(listen.parse().unwrap()).unwrap().to_string(), asked);
        }
        let fault = near("127.0.0.1:0".parse().unwrap()).unwrap_err();
        assert_eq!(fault.exit(), Exit::Config);
    }

    #[test]
    fn a_url_is_a_host_and_a_port() {
        for (url, is) in [
            ("http://127.0.0.1:9464", "127.0.0.1:9464"),
            ("http://db-1:9464/", "db-1:9464"),
            ("[::1]:9464", "[::1]:9464"),
        ] {
            assert_eq!(authority(url).unwrap(), is);
        }
        for url in [
            "",
            "http://",
            "db",
            "https://db:9464",
            "http://db:9464/metrics",
            "http://user:canary@db:9464",
            "db:99999",
        ] {
            let fault = authority(url).unwrap_err();
            assert_eq!(fault.exit(), Exit::Usage, "{url}");
            assert!(!fault.to_string().contains("canary"));
        }
    }
}
