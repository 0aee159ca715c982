//! The network before a server: a TCP proxy that cuts, holds back, drips and swallows.
//!
//! A black hole is a real one: a filter on the sockets drops what comes in before TCP sees it, so that nothing is
//! acknowledged, and the daemon's own time limits decide.

use std::net::TcpListener as StdListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{SockFilter, SockRef};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

use super::commits::{Commits, Mark};

/// What happens to bytes, on every connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Forward,
    /// Held back, and forwarded in order later.
    Stall,
    /// So many bytes a second, each way.
    Drip(usize),
    /// One direction is closed, the other goes on.
    HalfClosed {
        to_server: bool,
    },
    /// Nothing arrives and nothing is acknowledged. Connections of that time never come back.
    BlackHole,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Fin,
    Rst,
}

/// A cut that waits for its moment. It cuts one connection, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// After so many bytes in one direction.
    Bytes {
        to_server: bool,
        left: usize,
        end: End,
    },
    /// The target does not get the COMMIT.
    BeforeCommit(End),
    /// The target gets the COMMIT, and the connection ends at once.
    AfterCommit(End),
    /// The target gets the COMMIT and commits; its answer does not come back.
    AnswerLost(End),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Everything(End),
    /// What servers still hold of connections in a black hole.
    ServersOfHoles,
}

#[derive(Debug)]
struct Shared {
    upstream: u16,
    state: watch::Sender<State>,
    cut: watch::Sender<(u64, Cut)>,
    trap: Mutex<Option<Trap>>,
    sprung: AtomicUsize,
}

/// A network before one server of this machine, on a thread of its own.
#[derive(Debug)]
pub struct Network {
    port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    stop: Option<oneshot::Sender<()>>,
}

impl Network {
    /// Listens on a free port and forwards to `upstream`.
    pub fn start(upstream: u16) -> Self {
        let listener = StdListener::bind(("127.0.0.1", 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            upstream,
            state: watch::Sender::new(State::Forward),
            cut: watch::Sender::new((0, Cut::Everything(End::Fin))),
            trap: Mutex::new(None),
            sprung: AtomicUsize::new(0),
        });
        let (stop, stopped) = oneshot::channel();
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = accept(listener, of_thread) => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            port,
            shared,
            thread: Some(thread),
            stop: Some(stop),
        }
    }

    /// The port to connect to instead of the server's.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes what happens to bytes, of the connections that are there too.
    pub fn set(&self, state: State) {
        self.shared.state.send_replace(state);
    }

    /// Ends every connection that is there, with what it holds back.
    pub fn cut(&self, end: End) {
        self.send_cut(Cut::Everything(end));
    }

    /// The servers give up what went into a black hole; the clients do not hear of it.
    pub fn servers_give_up(&self) {
        self.send_cut(Cut::ServersOfHoles);
    }

    fn send_cut(&self, cut: Cut) {
        self.shared
            .cut
            .send_modify(|last| *last = (last.0 + 1, cut));
    }

    /// Lays a trap, or takes it away.
    pub fn lay(&self, trap: Option<Trap>) {
        *self.shared.trap.lock().unwrap() = trap;
    }

    /// How many traps have sprung.
    pub fn sprung(&self) -> usize {
        self.shared.sprung.load(Ordering::Relaxed)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(("127.0.0.1", shared.upstream)).await else {
                return;
            };
            let _ = client.set_nodelay(true);
            let _ = server.set_nodelay(true);
            carry(client, server, &shared).await;
        });
    }
}

/// Why a connection is no longer carried.
enum Over {
    Ended(End),
    Swallowed,
}

async fn carry(mut client: TcpStream, mut server: TcpStream, shared: &Shared) {
    let mut cut = shared.cut.subscribe();
    let mut state = shared.state.subscribe();
    let deaf = AtomicBool::new(false);
    let over = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            end = pump(from_client, to_server, true, &deaf, shared) => Over::Ended(end),
            end = pump(from_server, to_client, false, &deaf, shared) => Over::Ended(end),
            end = everything(&mut cut) => Over::Ended(end),
            () = until(&mut state, |state| state == State::BlackHole) => Over::Swallowed,
        }
    };
    match over {
        Over::Ended(end) => {
            close(client, end);
            close(server, end);
        }
        Over::Swallowed => swallow(client, server, cut).await,
    }
}

/// Waits for a cut that is meant for every connection.
async fn everything(cut: &mut watch::Receiver<(u64, Cut)>) -> End {
    loop {
        if cut.changed().await.is_err() {
            return End::Fin;
        }
        if let Cut::Everything(end) = cut.borrow_and_update().1 {
            return end;
        }
    }
}

/// Drops whatever either side sends, without a word, until the connection is cut.
async fn swallow(client: TcpStream, server: TcpStream, mut cut: watch::Receiver<(u64, Cut)>) {
    // BPF_RET with 0: no byte of the packet is kept.
    let nothing = [SockFilter::new(0x06, 0, 0, 0)];
    for socket in [&client, &server] {
        SockRef::from(socket).attach_filter(&nothing).unwrap();
    }
    let mut server = Some(server);
    while cut.changed().await.is_ok() {
        let now = cut.borrow_and_update().1;
        if let Some(server) = server.take() {
            close(server, End::Rst);
        }
        if let Cut::Everything(end) = now {
            return close(client, end);
        }
    }
}

fn close(socket: TcpStream, end: End) {
    if end == End::Rst {
        let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
    }
    drop(socket);
}

/// Carries bytes one way until the end of the connection; an end is held back like bytes.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    to_server: bool,
    deaf: &AtomicBool,
    shared: &Shared,
) -> End {
    let mut state = shared.state.subscribe();
    let mut commits = Commits::default();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let half_closed = State::HalfClosed { to_server };
        let read = tokio::select! {
            read = from.read(&mut buffer) => Some(read.unwrap_or(0)),
            () = until(&mut state, |state| state == half_closed) => None,
        };
        let Some(count) = read else {
            let _ = to.shutdown().await;
            return std::future::pending().await;
        };
        until(&mut state, |state| state != State::Stall).await;
        if count == 0 {
            if matches!(*state.borrow(), State::HalfClosed { .. }) {
                return std::future::pending().await;
            }
            return End::Fin;
        };
        if !to_server && deaf.load(Ordering::Relaxed) {
            continue;
        }
        let bytes = &buffer[..count];
        let marks = if to_server {
            commits.take(bytes)
        } else {
            Vec::new()
        };
        let bite = shared.bite(to_server, count, &marks);
        let passed = bite.as_ref().map_or(count, |bite| bite.pass);
        if write(&mut to, &bytes[..passed], &mut state).await.is_err() {
            return End::Fin;
        }
        if let Some(bite) = bite {
            if bite.answer_lost {
                deaf.store(true, Ordering::Relaxed);
                tokio::time::sleep(ANSWER).await;
            }
            return bite.end;
        }
    }
}

/// Waits for a state. Cancel-safe.
async fn until(state: &mut watch::Receiver<State>, wanted: impl Fn(State) -> bool) {
    let _ = state.wait_for(|&state| wanted(state)).await;
}

/// A server surely commits within this time.
const ANSWER: Duration = Duration::from_millis(300);
/// The drops of a drip come this often.
const DROP: Duration = Duration::from_millis(50);

/// Writes at once, or in drops for as long as the network drips.
async fn write(
    to: &mut WriteHalf<'_>,
    mut bytes: &[u8],
    state: &mut watch::Receiver<State>,
) -> std::io::Result<()> {
    loop {
        let now = *state.borrow_and_update();
        let State::Drip(rate) = now else {
            return to.write_all(bytes).await;
        };
        let (drop, rest) = bytes.split_at(bytes.len().min((rate / 20).max(1)));
        to.write_all(drop).await?;
        bytes = rest;
        if bytes.is_empty() {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(DROP) => {}
            _ = state.changed() => {}
        }
    }
}

/// A trap that has sprung.
struct Bite {
    /// So much of the bytes still passes.
    pass: usize,
    end: End,
    answer_lost: bool,
}

impl Shared {
    /// Whether the trap springs on these bytes.
    fn bite(&self, to_server: bool, count: usize, marks: &[(usize, Mark)]) -> Option<Bite> {
        let mut laid = self.trap.lock().unwrap();
        let at = |wanted: Mark| {
            let mark = marks.iter().find(|(_, mark)| *mark == wanted);
            mark.map(|&(at, _)| at)
        };
        let (pass, end) = match laid.as_mut()? {
            Trap::Bytes { to_server: way, .. } if *way != to_server => return None,
            Trap::Bytes { left, .. } if *left > count => {
                *left -= count;
                return None;
            }
            Trap::Bytes { left, end, .. } => (*left, *end),
            Trap::BeforeCommit(end) => (at(Mark::Begins)?, *end),
            Trap::AfterCommit(end) | Trap::AnswerLost(end) => (at(Mark::Ends)?, *end),
        };
        let answer_lost = matches!(laid.take(), Some(Trap::AnswerLost(_)));
        self.sprung.fetch_add(1, Ordering::Relaxed);
        Some(Bite {
            pass,
            end,
            answer_lost,
        })
    }
}
