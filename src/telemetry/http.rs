//! The HTTP listener: `/metrics`, `/livez`, `/readyz`. It only reads, and nothing waits for a client: where too many are
//! connected, the one that came first is left.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue, VARY};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use super::health::Health;
use super::metrics::{self, Format, Sources};
use super::progress::Progress;
use crate::fault::{Exit, Fault, Result};

/// Connections served at once.
const CONNECTIONS_MAX: usize = 16;
/// How long one request may take, its sender's slowness included.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// The head of a request, in bytes.
const HEAD_MAX: usize = 16 * 1024;
/// How often it is looked whether the target takes commits.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After a failure to accept, which is a lack of file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

const PLAIN: &str = "text/plain; charset=utf-8";

/// A listener that is bound and does not answer yet.
#[derive(Debug)]
pub(crate) struct Listener(TcpListener);

impl Listener {
    /// Binds `http.listen`.
    ///
    /// # Errors
    /// The address is in use or not one of this machine: exit code 78.
    pub(crate) async fn bind(address: SocketAddr) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Fault::halt(
                Exit::Config,
                format!("`http.listen`: cannot listen at {address}"),
            )
            .remedy("name an address of this machine and a free port, or leave the key out")
            .caused_by(error)
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        tracing::info!(address = %local, "metrics and health are served");
        Ok(Self(listener))
    }

    pub(crate) async fn serve(self, sources: Sources) {
        let state = Arc::new(State {
            progress: Arc::clone(&sources.progress),
            registry: metrics::registry(sources),
            health: Mutex::default(),
        });
        let mut served: VecDeque<AbortHandle> = VecDeque::new();
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            let accepted = tokio::select! {
                _ = looks.tick() => {
                    state.look();
                    continue;
                }
                accepted = self.0.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            };
            served.retain(|task| !task.is_finished());
            if served.len() >= CONNECTIONS_MAX
                && let Some(first) = served.pop_front()
            {
                first.abort();
            }
            let task = tokio::spawn(serve_one(stream, Arc::clone(&state)));
            served.push_back(task.abort_handle());
        }
    }
}

async fn serve_one(stream: TcpStream, state: Arc<State>) {
    let answer = service_fn(|request| {
        let answer = state.answer(&request);
        async { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), answer);
    // A bad, slow or lost client is no concern of the stream's.
    let _ = tokio::time::timeout(REQUEST_MAX, connection).await;
}

struct State {
    progress: Arc<Progress>,
    registry: Registry,
    health: Mutex<Health>,
}

impl State {
    fn look(&self) {
        let look = self.progress.look();
        self.health(|health| health.look(look, Instant::now()));
    }

    fn health<T>(&self, act: impl FnOnce(&mut Health) -> T) -> T {
        act(&mut self.health.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut refusal = response(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "GET only\n");
            refusal
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        match request.uri().path() {
            "/metrics" => self.metrics(request),
            "/livez" => match self.progress.watchdog.stuck() {
                None => response(StatusCode::OK, PLAIN, "alive\n"),
                Some(stuck) => {
                    response(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{stuck}\n"))
                }
            },
            "/readyz" => {
                self.look();
                match self.health(|health| health.obstacle(Instant::now())) {
                    None => response(StatusCode::OK, PLAIN, "ready\n"),
                    Some(obstacle) => {
                        response(StatusCode::SERVICE_UNAVAILABLE, PLAIN, obstacle + "\n")
                    }
                }
            }
            _ => response(
                StatusCode::NOT_FOUND,
                PLAIN,
                "there are /metrics, /livez and /readyz\n",
            ),
        }
    }
}

impl State {
    fn metrics(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let accept = request.headers().get(ACCEPT);
        let format = Format::accepted(accept.and_then(|accept| accept.to_str().ok()));
        let Ok(metrics) = format.encode(&self.registry) else {
            return response(
                StatusCode::INTERNAL_SERVER_ERROR,
                PLAIN,
                "the metrics cannot be written\n",
            );
        };
        let mut answer = response(StatusCode::OK, format.content_type(), metrics);
        answer
            .headers_mut()
            .insert(VARY, HeaderValue::from_static("Accept"));
        answer
    }
}

fn response(
    status: StatusCode,
    kind: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
