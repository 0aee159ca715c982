//! Signals, as what they ask for.
//!
//! They are installed before anything else happens, so that no signal finds the system's default,
//! which would kill the process. What follows from a signal is decided elsewhere: this file only
//! names it.

use std::future::{pending, poll_fn};
use std::io;
use std::pin::Pin;

use futures_core::Stream;
use nix::libc::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// The first SIGTERM or SIGINT: finish what can be finished, then end.
    Stop,
    /// Any further one: end now.
    StopNow,
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGUSR1: log one status line.
    Status,
}

/// The signals of this process.
pub(crate) struct Signals {
    stream: signal_hook_tokio::Signals,
    stopping: bool,
}

impl Signals {
    /// Takes the signals over, for the rest of the process's life. Needs a running Tokio runtime.
    pub(crate) fn install() -> io::Result<Self> {
        Ok(Self {
            stream: signal_hook_tokio::Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?,
            stopping: false,
        })
    }

    /// Waits for the next signal. Cancel-safe: a signal that came is not lost when this future is
    /// dropped. Two equal signals that come at once may be one, as everywhere in Unix.
    pub(crate) async fn next(&mut self) -> Signal {
        loop {
            match poll_fn(|cx| Pin::new(&mut self.stream).poll_next(cx)).await {
                Some(SIGTERM | SIGINT) if self.stopping => return Signal::StopNow,
                Some(SIGTERM | SIGINT) => {
                    self.stopping = true;
                    return Signal::Stop;
                }
                Some(SIGHUP) => return Signal::Reload,
                Some(SIGUSR1) => return Signal::Status,
                // No other was asked for.
                Some(_) => {}
                // The stream ends with the process.
                None => pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal as Unix, raise};

    // One test: signals belong to the whole process.
    #[tokio::test]
    async fn each_signal_says_what_it_asks_for() {
        let mut signals = Signals::install().unwrap();
        for (unix, meant) in [
            (Unix::SIGHUP, Signal::Reload),
            (Unix::SIGUSR1, Signal::Status),
            (Unix::SIGINT, Signal::Stop),
            (Unix::SIGUSR1, Signal::Status),
            (Unix::SIGTERM, Signal::StopNow),
            (Unix::SIGTERM, Signal::StopNow),
        ] {
            raise(unix).unwrap();
            assert_eq!(signals.next().await, meant, "{unix}");
        }
    }
}
