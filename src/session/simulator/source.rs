//! The source: its log, its slot, and a walsender that speaks the real bytes.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fastrand::Rng;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::time::Instant;

use super::log::{OURS, Transaction};
use crate::lsn::Lsn;
use crate::wire::{COPY_HEADER, COPY_TRAILER};

/// A position that a daemon has confirmed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Confirmed {
    pub(super) received: Lsn,
    pub(super) flushed: Lsn,
}

pub(super) struct Source {
    pub(super) log: Vec<Transaction>,
    begin: Lsn,
    /// Its crashes, with which all connections end.
    pub(super) generation: u64,
    /// The end of its WAL.
    pub(super) end: Lsn,
    /// Where the slot is, and where it is after a crash.
    pub(super) confirmed: Lsn,
    pub(super) persisted: Lsn,
    /// It is cut when another one begins, which waits until its last bytes are read.
    connection: Option<Connection>,
    /// Transactions without a change of a published table are not sent (15 and later).
    skips_empty: bool,
    xid: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stream,
    Backlog,
}

struct Connection {
    kind: Kind,
    pipe: DuplexStream,
    incoming: Vec<u8>,
    outgoing: VecDeque<u8>,
    /// The transaction that is sent next.
    next: usize,
    /// The WAL that was read.
    processed: Lsn,
    described: [bool; OURS + 1],
    /// A status came last, or none was due before.
    heard: Instant,
    /// It is not read from until then.
    deaf_until: Instant,
    closed: bool,
}

impl Source {
    pub(super) fn new(begin: Lsn, skips_empty: bool) -> Self {
        Self {
            log: Vec::new(),
            begin,
            generation: 0,
            end: begin,
            confirmed: begin,
            persisted: begin,
            connection: None,
            skips_empty,
            xid: 700,
        }
    }

    /// A client commits.
    pub(super) fn commit(&mut self, rng: &mut Rng, time: i64, large: usize) {
        self.xid += 1;
        let transaction = Transaction::any(rng, self.end, time, self.xid, large);
        self.end = transaction.end;
        self.log.push(transaction);
    }

    /// WAL is written that is of no published table.
    pub(super) fn write_other(&mut self, rng: &mut Rng) {
        let bytes = rng.u64(1..3 * 1024 * 1024);
        self.end = Lsn::from_u64(self.end.as_u64() + bytes);
    }

    /// The slot survives a crash as it is now.
    pub(super) fn persist(&mut self) {
        self.persisted = self.confirmed;
    }

    /// The server crashes; its slot may go back.
    pub(super) fn crash(&mut self) {
        self.connection = None;
        self.generation += 1;
        self.confirmed = self.persisted;
    }

    /// It is replaced by an older copy of itself, which lacks the transaction that ends at `lsn`, and goes on differently.
    pub(super) fn restore(&mut self, rng: &mut Rng, lsn: Lsn, time: i64) {
        self.log.retain(|tx| tx.end < lsn);
        self.end = self.log.last().map_or(self.begin, |last| last.end);
        self.confirmed = self.persisted.min(self.end);
        self.persist();
        self.connection = None;
        self.generation += 1;
        for _ in 0..rng.u32(..3) {
            self.commit(rng, time, 3);
        }
    }

    /// A stranger reads from the slot up to here.
    pub(super) fn move_slot(&mut self, lsn: Lsn) {
        self.confirmed = lsn;
        self.persist();
    }

    /// The connection breaks. What the daemon sent before may be lost.
    pub(super) fn cut(&mut self) {
        self.connection = None;
    }

    /// Whether a walsender of the daemon's has the slot.
    pub(super) fn is_streaming(&self) -> bool {
        let connection = self.connection.as_ref();
        connection.is_some_and(|connection| connection.kind == Kind::Stream)
    }

    pub(super) fn deafen(&mut self, pause: Duration) {
        if let Some(connection) = &mut self.connection {
            connection.deaf_until = Instant::now() + pause;
        }
    }

    /// How long the daemon has not been heard, where it should have been.
    pub(super) fn silence(&self) -> Duration {
        let now = Instant::now();
        match &self.connection {
            Some(stream) if stream.kind == Kind::Stream && stream.deaf_until < now => {
                now - stream.heard.max(stream.deaf_until)
            }
            _ => Duration::ZERO,
        }
    }

    fn first_from(&self, lsn: Lsn) -> usize {
        self.log.partition_point(|tx| tx.commit < lsn)
    }

    fn connect(&mut self, kind: Kind, pipe: DuplexStream, begin: Lsn) -> &mut Connection {
        let next = self.first_from(begin);
        self.connection.insert(Connection {
            kind,
            pipe,
            incoming: Vec::new(),
            outgoing: VecDeque::new(),
            next,
            processed: Lsn::ZERO,
            described: [false; OURS + 1],
            heard: Instant::now(),
            deaf_until: Instant::now(),
            closed: false,
        })
    }

    /// START_REPLICATION. The server raises an older position to the slot's and says nothing. Returns where it starts.
    pub(super) fn start(&mut self, asked: Lsn, pipe: DuplexStream) -> Lsn {
        let begin = asked.max(self.confirmed);
        self.connect(Kind::Stream, pipe, begin);
        begin
    }

    /// A COPY of what the slot gives up to `end`.
    pub(super) fn peek(&mut self, rng: &mut Rng, end: Lsn, pipe: DuplexStream) {
        let begin = self.confirmed;
        let first = self.first_from(begin);
        let mut described = [false; OURS + 1];
        let mut rows = Vec::new();
        for transaction in self.log[first..].iter().take_while(|tx| tx.commit < end) {
            if !self.leaves_out(transaction) {
                rows.extend(transaction.messages(rng, &mut described));
            }
        }
        let connection = self.connect(Kind::Backlog, pipe, begin);
        let mut header = COPY_HEADER.to_vec();
        for row in rows {
            header.extend([0, 1]);
            header.extend((row.len() as u32).to_be_bytes());
            header.extend(row);
            connection.message(b'd', &std::mem::take(&mut header));
        }
        header.extend(COPY_TRAILER);
        connection.message(b'd', &header);
        connection.message(b'c', &[]);
        connection.message(b'C', b"COPY 1\0");
        connection.message(b'Z', b"I");
    }

    fn leaves_out(&self, transaction: &Transaction) -> bool {
        self.skips_empty && transaction.changes.is_empty()
    }

    /// The walsender reads on: the next transaction, if there is one, with keepalives around it.
    pub(super) fn read_on(&mut self, rng: &mut Rng, lag: i64) {
        let (end, skips_empty) = (self.end, self.skips_empty);
        let log = &self.log;
        let Some(sender) = &mut self.connection else {
            return;
        };
        if sender.kind == Kind::Backlog || sender.outgoing.len() > 100_000 {
            return;
        }
        let Some(transaction) = log.get(sender.next) else {
            sender.keepalive(rng, end);
            return;
        };
        if rng.u32(..4) == 0 {
            sender.keepalive(rng, transaction.commit);
        }
        let skipped = skips_empty && transaction.changes.is_empty();
        if !skipped {
            for message in transaction.messages(rng, &mut sender.described) {
                sender.change(transaction, &message, lag);
                if rng.u32(..12) == 0 {
                    sender.keepalive(rng, transaction.commit);
                }
            }
        }
        sender.next += 1;
        sender.processed = sender.processed.max(transaction.end);
        if skipped || rng.u32(..4) == 0 {
            sender.keepalive(rng, transaction.end);
        }
    }

    /// Says where it is, perhaps twice as a server does that is shutting down.
    pub(super) fn ping(&mut self, rng: &mut Rng) {
        let end = self.end;
        let Some(sender) = &mut self.connection else {
            return;
        };
        if sender.kind == Kind::Stream {
            let limit = self.log.get(sender.next).map_or(end, |tx| tx.commit);
            sender.keepalive(rng, limit);
            let (processed, twice) = (sender.processed, rng.bool());
            for _ in 0..=u8::from(twice) {
                sender.say(processed, true);
            }
        }
    }

    /// Sends up to `most` bytes.
    pub(super) fn send(&mut self, most: usize) {
        if let Some(connection) = &mut self.connection
            && !connection.send(most)
        {
            connection.closed = true;
        }
    }

    /// Takes what the daemon has sent. Returns what it confirmed.
    pub(super) fn hear(&mut self) -> Result<Vec<Confirmed>, String> {
        let Some(connection) = &mut self.connection else {
            return Ok(Vec::new());
        };
        if connection.deaf_until > Instant::now() {
            return Ok(Vec::new());
        }
        let open = connection.receive();
        let confirmed = connection.messages()?;
        if !open || connection.closed {
            self.connection = None;
        }
        for confirmed in &confirmed {
            self.confirmed = self.confirmed.max(confirmed.flushed);
        }
        Ok(confirmed)
    }
}

impl Connection {
    fn message(&mut self, tag: u8, body: &[u8]) {
        self.outgoing.push_back(tag);
        self.outgoing.extend((body.len() as u32 + 4).to_be_bytes());
        self.outgoing.extend(body);
    }

    fn change(&mut self, of: &Transaction, payload: &[u8], lag: i64) {
        let lsn = of.commit.as_u64().to_be_bytes();
        let sent = (of.time + lag).to_be_bytes();
        self.message(b'd', &[b"w", &lsn[..], &lsn, &sent, payload].concat());
    }

    /// Its WAL was read up to some position at or before `limit`.
    fn keepalive(&mut self, rng: &mut Rng, limit: Lsn) {
        let most = limit.bytes_since(self.processed);
        let ahead = match rng.u32(..3) {
            0 => 0,
            1 => rng.u64(..=most),
            _ => most,
        };
        self.processed = Lsn::from_u64(self.processed.as_u64() + ahead);
        self.say(self.processed, rng.u32(..6) == 0);
    }

    fn say(&mut self, processed: Lsn, reply_wanted: bool) {
        let processed = processed.as_u64().to_be_bytes();
        let body = [b"k", &processed[..], &[0; 8], &[u8::from(reply_wanted)]].concat();
        self.message(b'd', &body);
    }

    /// Whether the other end is still there.
    fn send(&mut self, most: usize) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let mut left = most.min(self.outgoing.len());
        while left > 0 {
            let (bytes, _) = self.outgoing.as_slices();
            let bytes = &bytes[..left.min(bytes.len())];
            match Pin::new(&mut self.pipe).poll_write(&mut cx, bytes) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.outgoing.drain(..count);
                    left -= count;
                }
                Poll::Ready(Ok(_) | Err(_)) => return false,
                Poll::Pending => return true,
            }
        }
        true
    }

    /// Whether the other end is still there.
    fn receive(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let mut room = [0; 512];
        loop {
            let mut room = ReadBuf::new(&mut room);
            let read: Poll<io::Result<()>> = Pin::new(&mut self.pipe).poll_read(&mut cx, &mut room);
            match read {
                Poll::Ready(Ok(())) if room.filled().is_empty() => return false,
                Poll::Ready(Ok(())) => self.incoming.extend(room.filled()),
                Poll::Ready(Err(_)) => return false,
                Poll::Pending => return true,
            }
        }
    }

    fn messages(&mut self) -> Result<Vec<Confirmed>, String> {
        let mut confirmed = Vec::new();
        while let Some((&[tag, a, b, c, d], rest)) = self.incoming.split_first_chunk() {
            let length = u32::from_be_bytes([a, b, c, d]) as usize - 4;
            if rest.len() < length {
                break;
            }
            let body = rest[..length].to_vec();
            self.incoming.drain(..5 + length);
            match (self.kind, tag) {
                (Kind::Stream, b'd') => {
                    confirmed.push(status(&body)?);
                    self.heard = Instant::now();
                }
                (Kind::Stream, b'c') => {}
                (Kind::Backlog, b'Q') => {
                    confirmed.push(moved(&body)?);
                    self.message(b'C', b"SELECT 1\0");
                    self.message(b'Z', b"I");
                }
                (_, b'X') => self.closed = true,
                _ => return Err(format!("the source was sent a message {tag:#04x}")),
            }
        }
        Ok(confirmed)
    }
}

fn status(body: &[u8]) -> Result<Confirmed, String> {
    let lsn = |at: usize| {
        let raw = body.get(at..at + 8).and_then(|raw| raw.try_into().ok());
        raw.map(|raw| Lsn::from_u64(u64::from_be_bytes(raw)))
    };
    match (body.first(), body.len(), lsn(1), lsn(9)) {
        (Some(b'r'), 34, Some(received), Some(flushed)) => Ok(Confirmed { received, flushed }),
        _ => Err("a status that is none".to_owned()),
    }
}

/// The position of `SELECT pg_catalog.pg_replication_slot_advance('slot', 'X/Y')`.
fn moved(body: &[u8]) -> Result<Confirmed, String> {
    let text = String::from_utf8_lossy(body);
    let lsn = text.split('\'').nth(3).and_then(|lsn| lsn.parse().ok());
    let lsn: Lsn = lsn.ok_or_else(|| format!("the source was asked for {text}"))?;
    Ok(Confirmed {
        received: lsn,
        flushed: lsn,
    })
}
