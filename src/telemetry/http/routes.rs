//! The routes, and what each answers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State as Shared};
use axum::http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, VARY,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;

use super::access::Access;
use super::live::{self, Cached, Live};
use super::page;
use super::pulse::Pulse;
use super::series::{Point, Series};
use crate::clock;
use crate::printable::printable_json;
use crate::snapshot;
use crate::telemetry::board::{Board, unix_ms};
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Format;
use crate::telemetry::progress::Progress;

const PLAIN: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";

/// What is answered from.
pub(super) struct State {
    pub(super) progress: Arc<Progress>,
    pub(super) snapshot: Arc<snapshot::Shared>,
    pub(super) registry: Registry,
    pub(super) board: Board,
    pub(super) series: Mutex<Series>,
    pub(super) health: Mutex<Health>,
    pub(super) cached: Mutex<Cached>,
    pub(super) access: Access,
    pub(super) pulse: Arc<Pulse>,
    /// Milliseconds since 1970-01-01 00:00:00 UTC.
    pub(super) started: u64,
}

pub(super) fn router(state: Arc<State>) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .route("/api/status", get(status))
        .route("/api/live", get(live))
        .route_layer(from_fn_with_state(Arc::clone(&state), guard));
    // The page holds nothing by itself, and probes have no token.
    let open = Router::new()
        .route(
            "/",
            get(|| async { answer(StatusCode::OK, HTML, page::HTML) }),
        )
        .route("/livez", get(livez))
        .route("/readyz", get(readyz));
    guarded
        .merge(open)
        .fallback(|| async {
            let known = "there are /, /metrics, /livez, /readyz and /api/status\n";
            answer(StatusCode::NOT_FOUND, PLAIN, known)
        })
        .layer(map_response(protect))
        .with_state(state)
}

fn answer(status: StatusCode, kind: &'static str, body: impl IntoResponse) -> Response {
    (status, [(CONTENT_TYPE, kind)], body).into_response()
}

/// Lets in who may read.
async fn guard(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    if state.access.admits(request.headers()) {
        return next.run(request).await;
    }
    let refusal = "this needs the header `Authorization: Bearer TOKEN`\n";
    let mut refused = answer(StatusCode::UNAUTHORIZED, PLAIN, refusal);
    let scheme = HeaderValue::from_static("Bearer realm=\"waltrail\"");
    refused.headers_mut().insert(WWW_AUTHENTICATE, scheme);
    refused
}

/// What a browser may do with it.
async fn protect(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, page::POLICY.clone());
    for (name, value) in [
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn metrics(Shared(state): Shared<Arc<State>>, headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT);
    let format = Format::accepted(accept.and_then(|accept| accept.to_str().ok()));
    let Ok(metrics) = format.encode(&state.registry) else {
        return failed("the metrics cannot be written\n");
    };
    let mut answer = answer(StatusCode::OK, format.content_type(), metrics);
    answer
        .headers_mut()
        .insert(VARY, HeaderValue::from_static("Accept"));
    answer
}

/// As `waltrail status --json`.
async fn status(Shared(state): Shared<Arc<State>>) -> Response {
    let Some(status) = state.board.observed.latest() else {
        let not_yet = "{\"error\":\"the servers have not been asked yet\"}\n";
        return answer(StatusCode::SERVICE_UNAVAILABLE, JSON, not_yet);
    };
    match serde_json::to_string(&*status) {
        Ok(json) => answer(
            StatusCode::OK,
            JSON,
            printable_json(&json).into_owned() + "\n",
        ),
        Err(_) => failed("the status cannot be written\n"),
    }
}

async fn live(Shared(state): Shared<Arc<State>>) -> Response {
    match state.live() {
        Ok(json) => answer(StatusCode::OK, JSON, json),
        Err(_) => failed("the status cannot be written\n"),
    }
}

async fn livez(Shared(state): Shared<Arc<State>>) -> Response {
    if let Some(stuck) = state.progress.watchdog.stuck() {
        return answer(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{stuck}\n"));
    }
    match state.pulse.late(Instant::now()) {
        None => answer(StatusCode::OK, PLAIN, "alive\n"),
        Some(late) => {
            let text = format!("nothing has moved for {} s\n", late.as_secs());
            answer(StatusCode::SERVICE_UNAVAILABLE, PLAIN, text)
        }
    }
}

async fn readyz(Shared(state): Shared<Arc<State>>) -> Response {
    state.look();
    match locked(&state.health).obstacle(Instant::now()) {
        None => answer(StatusCode::OK, PLAIN, "ready\n"),
        Some(obstacle) => answer(StatusCode::SERVICE_UNAVAILABLE, PLAIN, obstacle + "\n"),
    }
}

fn failed(text: &'static str) -> Response {
    answer(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, text)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Notes whether the target takes commits.
    pub(super) fn look(&self) {
        let look = self.progress.look();
        locked(&self.health).look(look, Instant::now());
    }

    /// Adds a point to the charts.
    pub(super) fn sample(&self) {
        let status = self.board.observed.latest();
        let source = status.as_ref().and_then(|status| status.source.as_ref());
        let lag_seconds = match self.progress.is_streaming() {
            true => Some(self.progress.lag_seconds(clock::now())),
            false => status.as_ref().and_then(|status| status.lag_seconds),
        };
        let point = Point {
            rows: self.progress.moment().rows,
            lag_seconds,
            retained_bytes: source.and_then(|source| source.retained_bytes),
        };
        locked(&self.series).add(point, Instant::now());
    }

    fn live(&self) -> serde_json::Result<String> {
        let status = self.board.observed.latest();
        let json = status
            .as_ref()
            .and_then(|status| locked(&self.cached).json(status));
        let now = self.progress.moment();
        let series = locked(&self.series);
        let live = Live {
            at: unix_ms(),
            started: self.started,
            version: env!("CARGO_PKG_VERSION"),
            streaming: self.progress.is_streaming(),
            rows: now.rows,
            transactions: now.transactions,
            status: json.as_deref(),
            tables: status.as_ref().map_or(0, |status| status.tables.len()),
            copies: live::copies(&self.snapshot.tables()),
            series: &series,
            events: self.board.events.last(),
        };
        serde_json::to_string(&live)
    }
}
