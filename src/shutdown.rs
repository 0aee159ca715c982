//! Signals, as what they ask for.
//!
//! They are installed before anything else happens, so that no signal finds the system's default,
//! which would kill the process. What follows from a signal is decided elsewhere: this file only
//! names it.

use std::future::pending;
use std::io;

use tokio::signal::unix::{self, SignalKind};
use tokio::sync::mpsc;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The first SIGTERM or SIGINT: finish what can be finished, then end.
    Stop,
    /// Any further one: end now.
    StopNow,
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGUSR1: log one status line.
    Status,
}

/// The signals of this process, in the order they come.
///
/// A task of its own waits for them, so that whoever waits here beside a stream does not look at every kind of signal
/// each time that something arrives.
#[derive(Debug)]
pub struct Signals(mpsc::UnboundedReceiver<Signal>);

impl Signals {
    /// Takes the signals over, for the rest of the process's life. Needs a running Tokio runtime.
    ///
    /// # Errors
    /// When the system does not let a handler be installed.
    pub fn install() -> io::Result<Self> {
        let mut handlers = Handlers {
            terminate: unix::signal(SignalKind::terminate())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
            hangup: unix::signal(SignalKind::hangup())?,
            user: unix::signal(SignalKind::user_defined1())?,
            stopping: false,
        };
        let (sender, signals) = mpsc::unbounded_channel();
        tokio::spawn(async move { while sender.send(handlers.next().await).is_ok() {} });
        Ok(Self(signals))
    }

    /// Waits for the next signal. Cancel-safe: a signal that came is not lost when this future is
    /// dropped. Two equal signals that come at once may be one, as everywhere in Unix.
    pub async fn next(&mut self) -> Signal {
        match self.0.recv().await {
            Some(signal) => signal,
            // The task ends with the runtime only.
            None => pending().await,
        }
    }
}

struct Handlers {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    hangup: unix::Signal,
    user: unix::Signal,
    stopping: bool,
}

impl Handlers {
    async fn next(&mut self) -> Signal {
        tokio::select! {
            // Ending comes first, whatever else is due.
            biased;
            _ = self.terminate.recv() => self.stop(),
            _ = self.interrupt.recv() => self.stop(),
            _ = self.hangup.recv() => Signal::Reload,
            _ = self.user.recv() => Signal::Status,
        }
    }

    fn stop(&mut self) -> Signal {
        if std::mem::replace(&mut self.stopping, true) {
            Signal::StopNow
        } else {
            Signal::Stop
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
