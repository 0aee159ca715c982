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
/// A watch that has not looked for so long does not run. In milliseconds, as what follows.
const LOOKED_MAX: u64 = 30_000;
/// A server that has had nothing to do for so long will not answer.
const IDLE_MAX: u64 = 60_000;

/// Shared by a connection and what looks at it.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// Since when, in milliseconds; or [`NOTHING`] or [`UNWATCHED`].
    since: AtomicU64,
    /// It was found that the server does not work on it.
    is_blocked: AtomicBool,
    /// When its watch last looked at it, in milliseconds.
    looked: AtomicU64,
    /// Since when the watch has found that the server waits for this process; or [`NOTHING`].
    idle_since: AtomicU64,
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

    /// Its watch runs.
    pub(crate) fn note_look(&self) {
        self.looked.store(now(), Ordering::Relaxed);
    }

    /// It was found whether the server has nothing to do for it.
    pub(crate) fn note_idle(&self, is_idle: bool) {
        let known = self.idle_since.load(Ordering::Relaxed);
        let is_known = known != NOTHING && known >= self.since.load(Ordering::Relaxed);
        match (is_idle, is_known) {
            (true, true) => {}
            (true, false) => self.idle_since.store(now(), Ordering::Relaxed),
            (false, _) => self.idle_since.store(NOTHING, Ordering::Relaxed),
        }
    }

    /// Whether an answer is on its way as far as can be said: it is owed, and the watch that would find out why it does not
    /// come runs, and has not found since the last byte that the server has nothing to do. Where there is no watch, it is.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.is_waited_for_at(now())
    }

    fn is_waited_for_at(&self, now: u64) -> bool {
        let since = match self.since.load(Ordering::Relaxed) {
            NOTHING => return false,
            UNWATCHED => return true,
            since => since,
        };
        let looked = now.saturating_sub(self.looked.load(Ordering::Relaxed));
        let idle_since = self.idle_since.load(Ordering::Relaxed);
        let is_idle = idle_since >= since && now.saturating_sub(idle_since) >= IDLE_MAX;
        looked <= LOOKED_MAX && !is_idle
    }

    /// For how long the server has not worked on it, as far as was found out.
    pub(crate) fn blocked(&self) -> Duration {
        match self.is_blocked.load(Ordering::Relaxed) {
            true => self.unanswered().unwrap_or_default(),
            false => Duration::ZERO,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_waited_for_while_it_is_owed_and_its_watch_runs_and_the_server_is_not_idle() {
        let asked = Asked::default();
        asked.note_look();
        assert!(!asked.is_waited_for(), "nothing was asked");
        asked.on_sent();
        let start = now();
        assert!(asked.is_waited_for());
        assert!(asked.is_waited_for_at(start + LOOKED_MAX - 100));
        assert!(
            !asked.is_waited_for_at(start + LOOKED_MAX + 100),
            "no watch"
        );
        asked.note_idle(true);
        assert!(asked.is_waited_for(), "it may be on its way");
        asked.looked.store(start + IDLE_MAX, Ordering::Relaxed);
        assert!(asked.is_waited_for_at(start + IDLE_MAX - 100));
        assert!(!asked.is_waited_for_at(start + IDLE_MAX + 100), "idle");
        asked.note_idle(false);
        assert!(asked.is_waited_for_at(start + IDLE_MAX + 100), "at work");
        asked.on_received();
        assert!(!asked.is_waited_for());
    }

    #[test]
    fn a_byte_that_moves_takes_back_that_the_server_is_idle() {
        let asked = Asked::default();
        asked.since.store(1, Ordering::Relaxed);
        asked.looked.store(IDLE_MAX + 5, Ordering::Relaxed);
        asked.idle_since.store(2, Ordering::Relaxed);
        assert!(!asked.is_waited_for_at(IDLE_MAX + 5));
        asked.since.store(3, Ordering::Relaxed);
        assert!(asked.is_waited_for_at(IDLE_MAX + 5));
    }

    #[test]
    fn what_is_not_watched_counts_as_waited_for() {
        let asked = Asked::default();
        asked.stop_watching();
        assert!(asked.is_waited_for_at(u64::MAX - 9));
    }
}
