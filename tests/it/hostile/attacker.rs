//! A server that does not keep to the protocol, or what stands before one: it passes bytes on until its moment comes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Bytes written at once.
const CHUNK: usize = 256 * 1024;
/// The code of a request for TLS instead of a version (manual, section 53.7).
const SSL_REQUEST: u32 = 80_877_103;

/// A kind of session of the daemon's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// The SQL client.
    Sql,
    /// The writer of the history.
    Writer,
    Replication,
}

#[derive(Clone, Copy, Debug)]
pub enum Moment {
    /// From the first byte.
    Connected,
    /// Instead of the answer to a request for TLS.
    Tls,
    /// Instead of the answer to the first message.
    Login,
    /// After the first message of this kind.
    After(u8),
    /// Instead of the first message of this kind; a row of the SQL client's is one of a prepared statement.
    Instead(u8),
    /// Never: messages are changed on the way.
    Between(fn(Vec<u8>) -> Vec<u8>),
}

/// What is sent without an end, once all else is sent.
#[derive(Clone, Debug)]
pub enum Then {
    /// Nothing more, and the connection stays.
    Wait,
    Again(Vec<u8>),
    /// The message that was taken away by [`Moment::Instead`].
    Same,
    /// A row with as many columns as the message that was taken away, each with this length and value, and the end.
    Values(&'static [u8]),
    /// Messages that differ by a number.
    Numbered(fn(u32) -> Vec<u8>),
}

#[derive(Clone, Debug)]
pub struct Attack {
    pub socket: Socket,
    pub moment: Moment,
    pub first: Vec<u8>,
    pub then: Then,
}

/// Listens on a port of its own for as long as it lives.
pub struct Attacker {
    port: u16,
    ended: Arc<AtomicBool>,
}

impl Attacker {
    /// Stands before the server at `upstream`, if there is one.
    pub fn start(upstream: Option<u16>, attack: Attack) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let ended = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&ended);
        thread::spawn(move || {
            for client in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let attack = attack.clone();
                thread::spawn(move || serve(client.ok()?, upstream, &attack));
            }
        });
        Self { port, ended }
    }

    pub fn dsn(&self, more: &str) -> String {
        let port = self.port;
        format!("host=127.0.0.1 port={port} user=postgres dbname=postgres {more}")
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// One connection. `None`: one end is gone.
fn serve(mut client: TcpStream, upstream: Option<u16>, attack: &Attack) -> Option<()> {
    if matches!(attack.moment, Moment::Connected) {
        return assault(&mut client, attack, &[]);
    }
    let mut startup = packet(&mut client)?;
    if startup[4..8] == SSL_REQUEST.to_be_bytes() {
        if matches!(attack.moment, Moment::Tls) {
            return assault(&mut client, attack, &[]);
        }
        client.write_all(b"N").ok()?;
        startup = packet(&mut client)?;
    }
    let is_target = socket_of(&startup) == Some(attack.socket);
    if is_target && matches!(attack.moment, Moment::Login) {
        return assault(&mut client, attack, &[]);
    }
    let mut server = TcpStream::connect(("127.0.0.1", upstream?)).ok()?;
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    server.write_all(&startup).ok()?;
    let (mut from, mut to) = (client.try_clone().ok()?, server.try_clone().ok()?);
    thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    let passed = pass(&mut server, &mut client, attack, is_target);
    let _ = client.shutdown(Shutdown::Both);
    passed
}

/// Passes the server's messages on, and attacks at the moment.
fn pass(
    server: &mut TcpStream,
    client: &mut TcpStream,
    attack: &Attack,
    is_target: bool,
) -> Option<()> {
    if !is_target {
        return std::io::copy(server, client).ok().map(drop);
    }
    let mut is_bound = attack.socket != Socket::Sql;
    loop {
        let mut message = vec![0; 5];
        server.read_exact(&mut message).ok()?;
        let length = u32::from_be_bytes(*message.last_chunk::<4>()?) as usize;
        message.resize(length + 1, 0);
        server.read_exact(&mut message[5..]).ok()?;
        let tag = message[0];
        is_bound |= tag == b'2';
        match attack.moment {
            Moment::Instead(b'D') if !is_bound => {}
            Moment::Instead(kind) if kind == tag => return assault(client, attack, &message),
            Moment::Between(change) => message = change(message),
            _ => {}
        }
        client.write_all(&message).ok()?;
        if matches!(attack.moment, Moment::After(kind) if kind == tag) {
            return assault(client, attack, &[]);
        }
    }
}

fn assault(client: &mut TcpStream, attack: &Attack, taken: &[u8]) -> Option<()> {
    // What the client says meanwhile is read, so that it is not held up by it.
    let mut from = client.try_clone().ok()?;
    let reading = thread::spawn(move || std::io::copy(&mut from, &mut std::io::sink()));
    client.write_all(&attack.first).ok()?;
    match &attack.then {
        Then::Wait => {}
        Then::Again(bytes) => flood(client, |chunk| chunk.extend_from_slice(bytes))?,
        Then::Same => flood(client, |chunk| chunk.extend_from_slice(taken))?,
        Then::Values(value) => {
            let count = u16::from_be_bytes([taken[5], taken[6]]);
            let length = 4 + 2 + usize::from(count) * value.len();
            let mut row = [
                b"D",
                &(length as u32).to_be_bytes()[..],
                &count.to_be_bytes(),
            ]
            .concat();
            row.extend(value.repeat(usize::from(count)));
            row.extend(b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I");
            client.write_all(&row).ok()?;
        }
        Then::Numbered(message) => {
            let mut numbers = 0..u32::MAX;
            flood(client, |chunk| {
                chunk.extend(numbers.next().map(message).unwrap_or_default());
            })?;
        }
    }
    let _ = reading.join();
    Some(())
}

/// Sends without an end; `None`: the client is gone.
fn flood(client: &mut TcpStream, mut more: impl FnMut(&mut Vec<u8>)) -> Option<()> {
    loop {
        let mut chunk = Vec::with_capacity(2 * CHUNK);
        while chunk.len() < CHUNK {
            more(&mut chunk);
        }
        client.write_all(&chunk).ok()?;
    }
}

/// A message without a tag: its length counts itself.
fn packet(client: &mut TcpStream) -> Option<Vec<u8>> {
    let mut packet = vec![0; 4];
    client.read_exact(&mut packet).ok()?;
    let length = u32::from_be_bytes(*packet.first_chunk::<4>()?) as usize;
    packet.resize(length.max(8), 0);
    client.read_exact(&mut packet[4..]).ok()?;
    Some(packet)
}

/// By the parameters that each kind begins with.
fn socket_of(startup: &[u8]) -> Option<Socket> {
    let parameters: Vec<&[u8]> = startup[8..].split(|byte| *byte == 0).collect();
    let has = |name: &[u8], value: &[u8]| parameters.windows(2).any(|pair| pair == [name, value]);
    match parameters.first() {
        _ if has(b"replication", b"database") => Some(Socket::Replication),
        _ if has(b"synchronous_commit", b"off") => Some(Socket::Writer),
        Some(&b"client_encoding") => Some(Socket::Sql),
        _ => None,
    }
}
