//! Whether a server owes an answer, as a connection's bytes show it.
//!
//! The kernel of a frozen server goes on acknowledging packets, so neither keepalives nor `TCP_USER_TIMEOUT` end a wait for
//! it. So each connection notes when it last sent something that was not answered; `server/wait.rs` looks at it.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
const NOTHING: u64 = 0;
const UNWATCHED: u64 = u64::MAX;

/// Shared by a connection and what looks at it.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// Since when, in milliseconds; or [`NOTHING`] or [`UNWATCHED`].
    since: AtomicU64,
    /// How often bytes have come.
    heard: AtomicU64,
    /// It was found that the server does not work on it.
    is_blocked: AtomicBool,
}

impl Asked {
    fn is_watched(&self) -> bool {
        self.since.load(Ordering::Relaxed) != UNWATCHED
    }

    /// Bytes were sent.
    pub(super) fn on_sent(&self) {
        if self.is_watched() {
            self.since.store(now(), Ordering::Relaxed);
        }
    }

    /// Bytes have come.
    pub(super) fn on_received(&self) {
        if self.is_watched() {
            self.since.store(NOTHING, Ordering::Relaxed);
            self.heard.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// More is expected although nothing was sent.
    pub(super) fn expect_more(&self) {
        if self.since.load(Ordering::Relaxed) == NOTHING {
            self.since.store(now(), Ordering::Relaxed);
        }
    }

    /// From here on, what is sent is not answered each time.
    pub(super) fn stop_watching(&self) {
        self.since.store(UNWATCHED, Ordering::Relaxed);
    }

    pub(crate) fn note_blocked(&self, is_blocked: bool) {
        self.is_blocked.store(is_blocked, Ordering::Relaxed);
    }

    /// For how long the server has not worked on it, as far as was found out.
    pub(crate) fn blocked(&self) -> Duration {
        match self.is_blocked.load(Ordering::Relaxed) {
            true => self.unanswered().unwrap_or_default(),
            false => Duration::ZERO,
        }
    }

    /// A number that grows with each answer.
    pub(crate) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// For how long the server has owed an answer.
    pub(crate) fn unanswered(&self) -> Option<Duration> {
        match self.since.load(Ordering::Relaxed) {
            NOTHING | UNWATCHED => None,
            since => Some(Duration::from_millis(now().saturating_sub(since))),
        }
    }
}

/// Milliseconds, never [`NOTHING`].
fn now() -> u64 {
    u64::try_from(BEGAN.elapsed().as_millis()).unwrap_or(UNWATCHED - 2) + 1
}
