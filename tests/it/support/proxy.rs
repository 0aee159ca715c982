//! A network that misbehaves on command: a TCP proxy on a thread of its own, so that a test that blocks
//! while it stops a server does not stop the network with it.

use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to bytes. What was held back is forwarded, in order, when they are let through again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Forward,
    /// Nothing passes, and nothing is closed: half-open for both ends.
    Stall,
    /// Nothing comes back from the server: the client does not learn what it did.
    Deaf,
    /// At most 16 kB pass each [`DRIP`], in each direction.
    Drip,
}

const DRIP: Duration = Duration::from_millis(300);

impl Mode {
    fn lets(self, to_server: bool) -> bool {
        matches!(self, Self::Forward | Self::Drip) || self == Self::Deaf && to_server
    }
}

/// A proxy before one server of this machine.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    upstream: Arc<AtomicU16>,
    mode: watch::Sender<Mode>,
    cut: watch::Sender<u64>,
    thread: Option<JoinHandle<()>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Proxy {
    /// Listens on a free port and forwards to `upstream`.
    pub fn start(upstream: u16) -> Self {
        let listener = StdListener::bind(("127.0.0.1", 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let upstream = Arc::new(AtomicU16::new(upstream));
        let leads_to = Arc::clone(&upstream);
        let (mode, mode_rx) = watch::channel(Mode::Forward);
        let (cut, cut_rx) = watch::channel(0);
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = accept(listener, &leads_to, mode_rx, cut_rx) => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            port,
            upstream,
            mode,
            cut,
            thread: Some(thread),
            stop: Some(stop),
        }
    }

    /// The port to connect to instead of the server's.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Forwards to another server from now on, as an address that moves does; connections that are there end.
    pub fn lead_to(&self, upstream: u16) {
        self.upstream.store(upstream, Ordering::Relaxed);
        self.cut();
    }

    /// Changes what happens to bytes, of the connections that are there too.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Closes every connection that is there, with what it holds back.
    pub fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(
    listener: TcpListener,
    upstream: &AtomicU16,
    mode: watch::Receiver<Mode>,
    cut: watch::Receiver<u64>,
) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        let mode = mode.clone();
        let upstream = upstream.load(Ordering::Relaxed);
        // Only cuts from now on are meant.
        let mut cut = cut.clone();
        cut.mark_unchanged();
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(("127.0.0.1", upstream)).await else {
                return;
            };
            let _ = client.set_nodelay(true);
            let _ = server.set_nodelay(true);
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::select! {
                () = pump(from_client, to_server, true, mode.clone()) => {}
                () = pump(from_server, to_client, false, mode) => {}
                _ = cut.changed() => {}
            }
        });
    }
}

/// Carries bytes one way until the end; an end is held back like bytes.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    to_server: bool,
    mut mode: watch::Receiver<Mode>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await;
        if mode.wait_for(|mode| mode.lets(to_server)).await.is_err() {
            return;
        }
        match read {
            Ok(count) if count > 0 => {
                if to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
                if *mode.borrow() == Mode::Drip {
                    tokio::time::sleep(DRIP).await;
                }
            }
            _ => return,
        }
    }
}
