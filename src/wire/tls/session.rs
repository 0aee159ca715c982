//! TLS records over one socket.
//!
//! A read takes as much as there is off the socket, in one piece, and decrypts every record that is here whole straight
//! into the caller's buffer. A write encrypts up to [`PLAIN_MAX`] bytes and gives them to the socket in one piece; its bytes
//! count as taken once all of them are there.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::task::{Context, Poll, ready};

use rustls::client::UnbufferedClientConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls_pki_types::{CertificateDer, ServerName};
use x509_parser::oid_registry as oid;

use super::super::Error;
use super::super::stream::Stream;
use super::error::TlsError;
use super::verify::parsed;
use super::{ALPN, Settings};

/// The largest record with its header (RFC 8446 section 5.2, with what TLS 1.2 may add).
const RECORD_MAX: usize = 16 * 1024 + 2048 + 5;
/// Bytes that one write encrypts at the most.
const PLAIN_MAX: usize = 64 * 1024;
/// Slices below this are gathered, so that small messages share a record.
const GATHER_BELOW: usize = 16 * 1024;

/// An encrypted connection.
pub(crate) struct Session {
    pub(in super::super) stream: Stream,
    tls: UnbufferedClientConnection,
    /// As received; what is not decrypted lies at `unread`.
    incoming: Vec<u8>,
    unread: Range<usize>,
    /// Decrypted, and the caller had no room for it.
    left: Vec<u8>,
    left_from: usize,
    /// Encrypted; what the socket has not taken lies at `unsent`.
    outgoing: Vec<u8>,
    unsent: Range<usize>,
    /// Bytes of the caller that `outgoing` stands for.
    taken: usize,
    gathered: Vec<u8>,
    failed: Option<TlsError>,
    ended: bool,
    end_point: Option<Vec<u8>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

/// What TLS can do now.
enum Turn {
    /// It needs bytes of the server.
    Reads,
    /// Its own bytes are to be sent.
    Sends,
    /// It takes bytes of the caller, and needs bytes of the server.
    Writes,
    Ended,
}

impl Session {
    /// Makes the handshake. One read takes at most `gulp` bytes off the socket.
    pub(in super::super) async fn begin(
        stream: Stream,
        settings: &Settings,
        host: &str,
        gulp: usize,
    ) -> Result<Self, Error> {
        let config = settings.config(host)?;
        // The name is checked by the verifier; here it is what the server reads (SNI), which is never an address.
        let name = ServerName::try_from(host.to_owned())
            .unwrap_or(std::net::IpAddr::from([127, 0, 0, 1]).into());
        let tls = UnbufferedClientConnection::new(config, name).map_err(TlsError::from)?;
        let mut session = Self {
            stream,
            tls,
            incoming: vec![0; gulp.max(RECORD_MAX)],
            unread: 0..0,
            left: Vec::new(),
            left_from: 0,
            outgoing: vec![0; PLAIN_MAX + RECORD_MAX],
            unsent: 0..0,
            taken: 0,
            gathered: Vec::new(),
            failed: None,
            ended: false,
            end_point: None,
        };
        session.shake_hands().await?;
        if settings.direct && session.tls.alpn_protocol() != Some(ALPN) {
            return Err(TlsError::NotDirect.into());
        }
        let certificate = session
            .tls
            .peer_certificates()
            .and_then(|chain| chain.first());
        session.end_point = certificate.and_then(end_point_of);
        Ok(session)
    }

    async fn shake_hands(&mut self) -> Result<(), TlsError> {
        loop {
            let turn = match self.turn(&mut []) {
                (Ok(turn), _) => turn,
                (Err(error), _) => {
                    // The server's log says why, if the alert gets there.
                    self.encode_alert();
                    let _ = poll_fn(|cx| self.poll_send(cx)).await;
                    return Err(error);
                }
            };
            let done = matches!(turn, Turn::Writes);
            match turn {
                Turn::Sends | Turn::Writes => {
                    let sent = poll_fn(|cx| self.poll_send(cx)).await;
                    sent.map_err(|_| TlsError::Cut)?;
                }
                Turn::Ended => return Err(TlsError::Cut),
                Turn::Reads => match poll_fn(|cx| self.poll_receive(cx)).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return Err(TlsError::Cut),
                },
            }
            if done {
                return Ok(());
            }
        }
    }

    /// Encodes what TLS has to say of its failure. It is asked once: it would read what it refused once more.
    fn encode_alert(&mut self) {
        let here = &mut self.incoming[self.unread.clone()];
        if let Ok(ConnectionState::EncodeTlsData(mut data)) =
            self.tls.process_tls_records(here).state
        {
            encode(&mut self.outgoing, &mut self.unsent, |space| {
                data.encode(space)
            });
        }
    }

    /// The hash of the server's certificate for channel binding (RFC 5929 section 4), where it has one.
    pub(in super::super) fn end_point(&self) -> Option<&[u8]> {
        self.end_point.as_deref()
    }

    /// Decrypts into `room`, and into `left` what does not fit, until TLS can do no more by itself. How many bytes it has
    /// put into `room` counts also when it fails.
    fn turn(&mut self, room: &mut [u8]) -> (Result<Turn, TlsError>, usize) {
        let mut filled = 0;
        loop {
            let here = &mut self.incoming[self.unread.clone()];
            let UnbufferedStatus { discard, state } = self.tls.process_tls_records(here);
            let turn = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        let payload = record.payload;
                        let fits = payload.len().min(room.len() - filled);
                        room[filled..filled + fits].copy_from_slice(&payload[..fits]);
                        filled += fits;
                        self.left.extend_from_slice(&payload[fits..]);
                    }
                    // What is left is given first.
                    (!self.left.is_empty()).then_some(Ok(Turn::Writes))
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut self.outgoing, &mut self.unsent, |space| {
                        data.encode(space)
                    });
                    None
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    Some(Ok(Turn::Sends))
                }
                Ok(ConnectionState::WriteTraffic(_)) => Some(Ok(Turn::Writes)),
                Ok(ConnectionState::BlockedHandshake) => Some(Ok(Turn::Reads)),
                Ok(_) => Some(Ok(Turn::Ended)),
                Err(error) => Some(Err(error.into())),
            };
            self.unread.start += discard;
            if let Some(turn) = turn {
                return (turn, filled);
            }
        }
    }

    /// Reads once; 0 is the end.
    pub(in super::super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        room: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.left_from < self.left.len() {
                let left = &self.left[self.left_from..];
                let count = left.len().min(room.len());
                room[..count].copy_from_slice(&left[..count]);
                self.left_from += count;
                if self.left_from == self.left.len() {
                    self.left.clear();
                    self.left_from = 0;
                }
                return Poll::Ready(Ok(count));
            }
            let count = self.decrypt(room)?;
            if count > 0 || self.ended {
                return Poll::Ready(Ok(count));
            }
            if !self.left.is_empty() {
                continue;
            }
            // An answer of TLS itself; if there is no room, a later turn sends it.
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                return Poll::Ready(Err(error));
            }
            if ready!(self.poll_receive(cx))? == 0 {
                return Poll::Ready(Ok(0));
            }
        }
    }

    /// Decrypts what is here. A failure comes after the bytes before it.
    fn decrypt(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if let Some(error) = self.failed.clone() {
            return Err(io::Error::other(error));
        }
        let mut count = 0;
        loop {
            let (turn, filled) = self.turn(&mut room[count..]);
            count += filled;
            match turn {
                Ok(Turn::Sends) => continue,
                Ok(Turn::Ended) => self.ended = true,
                Ok(Turn::Reads | Turn::Writes) => {}
                Err(error) => {
                    self.failed = Some(error.clone());
                    if count == 0 {
                        return Err(io::Error::other(error));
                    }
                }
            }
            return Ok(count);
        }
    }

    /// Takes bytes off the socket, as many as there is room for; 0 is the end.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.unread.is_empty() {
            self.unread = 0..0;
        } else if self.incoming.len() - self.unread.end < RECORD_MAX {
            self.incoming.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        if self.unread.end == self.incoming.len() {
            // A message of the handshake in several records, which rustls bounds.
            self.incoming.resize(self.unread.end + RECORD_MAX, 0);
        }
        let count = ready!(
            self.stream
                .poll_read(cx, &mut self.incoming[self.unread.end..])
        )?;
        self.unread.end += count;
        Poll::Ready(Ok(count))
    }

    /// Writes once, as much as there is room for. Until that is reported, the next call must begin with the same bytes.
    pub(in super::super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.taken == 0 {
            ready!(self.poll_send(cx))?;
            self.encrypt(bufs).map_err(io::Error::other)?;
        }
        ready!(self.poll_send(cx))?;
        Poll::Ready(Ok(std::mem::take(&mut self.taken)))
    }

    fn encrypt(&mut self, bufs: &[IoSlice<'_>]) -> Result<(), TlsError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let first = bufs.iter().find(|buf| !buf.is_empty());
        let Some(first) = first else { return Ok(()) };
        self.gathered.clear();
        let large = first.len() >= GATHER_BELOW || bufs.len() == 1;
        if !large {
            for buf in bufs {
                let count = buf.len().min(PLAIN_MAX - self.gathered.len());
                self.gathered.extend_from_slice(&buf[..count]);
            }
        }
        loop {
            let here = &mut self.incoming[self.unread.clone()];
            let UnbufferedStatus { discard, state } = self.tls.process_tls_records(here);
            let mut done = false;
            match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    let plain = match large {
                        true => &first[..first.len().min(PLAIN_MAX)],
                        false => &self.gathered,
                    };
                    let at = self.unsent.end;
                    let count = traffic.encrypt(plain, &mut self.outgoing[at..]);
                    self.unsent.end += count.map_err(|error| match error {
                        EncryptError::InsufficientSize(_) => general("no room to encrypt"),
                        EncryptError::EncryptExhausted => general("the key is used up"),
                    })?;
                    self.taken = plain.len();
                    done = true;
                }
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        self.left.extend_from_slice(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut self.outgoing, &mut self.unsent, |space| {
                        data.encode(space)
                    });
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.ended = true,
                Ok(_) => return Err(general("the connection was closed")),
                Err(error) => {
                    let error = TlsError::from(error);
                    self.failed = Some(error.clone());
                    return Err(error);
                }
            }
            self.unread.start += discard;
            if done {
                return Ok(());
            }
        }
    }

    /// Gives the socket what is encrypted, all of it.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let bytes = IoSlice::new(&self.outgoing[self.unsent.clone()]);
            let sent = ready!(self.stream.poll_write(cx, &[bytes]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.start += sent;
        }
        self.unsent = 0..0;
        Poll::Ready(Ok(()))
    }
}

fn general(problem: &str) -> TlsError {
    TlsError::Other(rustls::Error::General(problem.to_owned()))
}

/// Puts bytes of TLS itself after what is to be sent, growing the room for them.
fn encode(
    outgoing: &mut Vec<u8>,
    unsent: &mut Range<usize>,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) {
    loop {
        match encode(&mut outgoing[unsent.end..]) {
            Ok(count) => {
                unsent.end += count;
                return;
            }
            Err(EncodeError::InsufficientSize(size)) => {
                outgoing.resize(unsent.end + size.required_size, 0);
            }
            Err(EncodeError::AlreadyEncoded) => return,
        }
    }
}

/// By the hash of the certificate's signature, or SHA-256 in place of one that is broken.
fn end_point_of(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    use ring::digest::{SHA256, SHA384, SHA512, digest};
    let parsed = parsed(certificate).ok()?;
    let signature = &parsed.signature_algorithm.algorithm;
    let is = |known: &[&oid::asn1_rs::Oid<'static>]| known.contains(&signature);
    let hash = if is(&[
        &oid::OID_PKCS1_SHA256WITHRSA,
        &oid::OID_SIG_ECDSA_WITH_SHA256,
        &oid::OID_PKCS1_SHA1WITHRSA,
        &oid::OID_SHA1_WITH_RSA,
        &oid::OID_PKCS1_MD5WITHRSAENC,
    ]) {
        &SHA256
    } else if is(&[
        &oid::OID_PKCS1_SHA384WITHRSA,
        &oid::OID_SIG_ECDSA_WITH_SHA384,
    ]) {
        &SHA384
    } else if is(&[
        &oid::OID_PKCS1_SHA512WITHRSA,
        &oid::OID_SIG_ECDSA_WITH_SHA512,
    ]) {
        &SHA512
    } else {
        return None;
    };
    Some(digest(hash, certificate).as_ref().to_vec())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::crypto::ring::default_provider;
    use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio_rustls::TlsAcceptor;

    use super::super::{ChannelBinding, Mode, Revoked, Roots, Version};
    use super::*;

    /// An encrypted connection and the server's end of it.
    async fn pair(max: Version) -> (Session, tokio_rustls::server::TlsStream<UnixStream>) {
        let made = rcgen::generate_simple_self_signed(vec!["db".to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], PrivateKeyDer::from(key))
            .unwrap();
        let settings = Settings {
            mode: Mode::Require,
            direct: false,
            roots: Roots::File(Some("/nowhere".into())),
            crl: Revoked::default(),
            certificate: None,
            key: None,
            sni: true,
            min: Version::Tls12,
            max,
            channel_binding: ChannelBinding::Prefer,
        };
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ours = Stream::local(ours).unwrap();
        let accepted = TlsAcceptor::from(Arc::new(config)).accept(theirs);
        let (session, server) = tokio::join!(Session::begin(ours, &settings, "db", 64), accepted);
        (session.unwrap(), server.unwrap())
    }

    fn numbered(count: u32) -> Vec<u8> {
        (0..count).map(|n| (n % 251) as u8).collect()
    }

    #[tokio::test]
    async fn bytes_arrive_however_they_are_cut_and_read() {
        for max in [Version::Tls12, Version::Tls13] {
            let (mut session, mut server) = pair(max).await;
            let bytes = numbered(1_000_000);
            let writing = async {
                let mut random = fastrand::Rng::with_seed(1);
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (piece, after) = rest.split_at(random.usize(1..40_000).min(rest.len()));
                    server.write_all(piece).await.unwrap();
                    rest = after;
                }
                server.shutdown().await.unwrap();
            };
            let reading = async {
                let mut random = fastrand::Rng::with_seed(2);
                let (mut got, mut room) = (Vec::new(), vec![0; 30_000]);
                loop {
                    let room = &mut room[..random.usize(1..30_000)];
                    match poll_fn(|cx| session.poll_read(cx, room)).await.unwrap() {
                        0 => return got,
                        count => got.extend_from_slice(&room[..count]),
                    }
                }
            };
            let ((), got) = tokio::join!(writing, reading);
            assert!(got == bytes);
        }
    }

    #[tokio::test]
    async fn more_than_fits_goes_through_from_slices_of_any_size() {
        let (mut session, mut server) = pair(Version::Tls13).await;
        let bytes = numbered(3_000_000);
        let reading = async {
            let mut got = vec![0; bytes.len()];
            server.read_exact(&mut got).await.unwrap();
            got
        };
        let writing = async {
            let mut random = fastrand::Rng::with_seed(3);
            let mut sent = 0;
            while sent < bytes.len() {
                let rest = &bytes[sent..];
                let cut = random.usize(0..70_000).min(rest.len());
                let slices = [&rest[..cut], &[], &rest[cut..]].map(IoSlice::new);
                sent += poll_fn(|cx| session.poll_write(cx, &slices)).await.unwrap();
            }
        };
        let (got, ()) = tokio::join!(reading, writing);
        assert!(got == bytes);
    }

    #[tokio::test]
    async fn what_was_changed_on_the_way_is_a_failure_that_stays() {
        let (mut session, mut server) = pair(Version::Tls13).await;
        server.write_all(b"right").await.unwrap();
        server.flush().await.unwrap();
        let (raw, _) = server.get_mut();
        // A record that looks like one, and was not encrypted by the server.
        let mut forged = vec![23, 3, 3, 0, 30];
        forged.extend([7; 30]);
        raw.write_all(&forged).await.unwrap();
        let mut room = [0; 100];
        let count = poll_fn(|cx| session.poll_read(cx, &mut room))
            .await
            .unwrap();
        assert_eq!(&room[..count], b"right");
        for _ in 0..2 {
            let read = poll_fn(|cx| session.poll_read(cx, &mut room)).await;
            assert!(read.is_err());
        }
    }
}
