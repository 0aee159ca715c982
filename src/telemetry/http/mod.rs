//! The HTTP listener: the page, what it shows, metrics and health. It only reads.
//!
//! ```text
//!   the stream's thread             | a thread of its own
//!   counters, board, log's events --+-> series (every 2 s) --+
//!   pulse: "I move" (every second) -+                        +-> routes <- token <- TLS <- limits <- a client
//! ```
//!
//! **No client holds up the stream**: whatever is encrypted, written or waited for here is on the other thread, and nothing
//! here takes a lock for longer than a copy of some numbers. Where too many clients are connected, the one that came first
//! is left.

mod access;
mod files;
mod live;
mod page;
mod pulse;
mod routes;
mod series;
pub(super) mod tls;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::MissedTickBehavior;
use tokio_rustls::TlsAcceptor;

use super::board::{Board, unix_ms};
use super::health::Health;
use super::metrics::{self, Sources};
use crate::config::Http;
use crate::fault::{Exit, Fault, Result};
use access::Access;
use live::Cached;
use pulse::Pulse;
use routes::State;
use series::Series;
use tls::Tls;

/// Connections served at once.
const CONNECTIONS_MAX: usize = 256;
/// Between two that are left for others, so that each has a quarter of a second at least.
const LEFT_EVERY: Duration = Duration::from_millis(1);
/// How long one connection may take, its client's slowness included; it is one request.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// The head of a request, in bytes.
const HEAD_MAX: usize = 16 * 1024;
/// How often it is looked whether the target takes commits.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked whether the files of token and certificate have changed.
const FILES_EVERY: Duration = Duration::from_secs(5);
/// After a failure to accept, which is a lack of file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// A listener that is bound and does not answer yet.
#[derive(Debug)]
pub(crate) struct Listener {
    listener: std::net::TcpListener,
    access: Access,
    tls: Option<Tls>,
}

impl Listener {
    /// Reads the files of token and certificate, and binds `http.listen`.
    ///
    /// # Errors
    /// A file cannot be used, the address is in use or not one of this machine: exit code 78.
    pub(crate) async fn bind(http: &Http) -> Result<Self> {
        let address = http.listen;
        let access = Access::new(http.token_file.clone())?;
        let tls = http.tls.clone().map(Tls::new).transpose()?;
        let failed = |error: std::io::Error| {
            Fault::halt(
                Exit::Config,
                format!("`http.listen`: cannot listen at {address}"),
            )
            .remedy("name an address of this machine and a free port, or leave the key out")
            .caused_by(error)
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let listener = listener.into_std().map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        tracing::info!(address = %local, "metrics and health are served");
        if is_open(local, http) {
            tracing::warn!(
                address = %local,
                remedy = "set http.token_file and http.tls_cert, or listen on 127.0.0.1",
                "metrics and status are open to the network: neither a token nor TLS protects them"
            );
        }
        Ok(Self {
            listener,
            access,
            tls,
        })
    }

    /// Serves on a thread of its own until the process ends.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn serve(self, sources: Sources, board: Board) -> Result<()> {
        let failed = |error| Fault::bug("HTTP cannot be served").caused_by(error);
        let pulse = Arc::new(Pulse::new(Instant::now()));
        tokio::spawn(pulse::beat(Arc::clone(&pulse)));
        let state = Arc::new(State {
            progress: Arc::clone(&sources.progress),
            snapshot: Arc::clone(&sources.snapshot),
            registry: metrics::registry(sources),
            board,
            series: Mutex::new(Series::default()),
            health: Mutex::new(Health::default()),
            cached: Mutex::new(Cached::default()),
            access: self.access,
            pulse,
            started: unix_ms(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let (listener, tls) = (self.listener, self.tls.map(Arc::new));
        let serve = move || {
            runtime.block_on(async {
                // It has been a listener of the other runtime.
                match TcpListener::from_std(listener) {
                    Ok(listener) => serve(listener, tls, state).await,
                    Err(error) => tracing::error!(%error, "HTTP cannot be served"),
                }
            });
        };
        let thread = std::thread::Builder::new().name("http".to_owned());
        thread.spawn(serve).map(drop).map_err(failed)
    }
}

/// Whether anyone in the network can read what is served.
fn is_open(address: SocketAddr, http: &Http) -> bool {
    !address.ip().is_loopback() && http.token_file.is_none() && http.tls.is_none()
}

async fn serve(listener: TcpListener, tls: Option<Arc<Tls>>, state: Arc<State>) {
    let (every, looked) = (Arc::clone(&state), tls.clone());
    tokio::spawn(async move {
        let mut files = Instant::now();
        repeat(LOOK_EVERY, || {
            every.look();
            if files.elapsed() >= FILES_EVERY {
                files = Instant::now();
                every.access.look();
                looked.iter().for_each(|tls| tls.look());
            }
        })
        .await;
    });
    let sampled = Arc::clone(&state);
    tokio::spawn(async move { repeat(series::STEP, || sampled.sample()).await });
    let router = routes::router(state);
    let mut served: VecDeque<tokio::task::AbortHandle> = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_AGAIN).await;
            continue;
        };
        served.retain(|task| !task.is_finished());
        if served.len() >= CONNECTIONS_MAX
            && let Some(first) = served.pop_front()
        {
            first.abort();
            tokio::time::sleep(LEFT_EVERY).await;
        }
        let answered = answer(stream, tls.clone(), router.clone());
        // A bad, slow or lost client is no concern of anyone else's.
        let task = tokio::spawn(async { drop(tokio::time::timeout(REQUEST_MAX, answered).await) });
        served.push_back(task.abort_handle());
    }
}

async fn repeat(every: Duration, mut act: impl FnMut()) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        act();
    }
}

async fn answer(stream: TcpStream, tls: Option<Arc<Tls>>, router: Router) {
    let Some(tls) = tls else {
        return one_request(stream, router).await;
    };
    if let Ok(stream) = TlsAcceptor::from(tls.config()).accept(stream).await {
        one_request(stream, router).await;
    }
}

async fn one_request(stream: impl AsyncRead + AsyncWrite + Unpin + Send, router: Router) {
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    drop(connection.await);
}
