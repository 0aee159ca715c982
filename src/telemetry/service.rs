//! The state of the program as its service manager sees it.
//!
//! Everything here does nothing where no manager asks (`NOTIFY_SOCKET` is not set), and a manager
//! that cannot be sent is no reason to stop: a failed notice is a `debug` line.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;

/// What the line for `systemctl status` says.
static SHOWN: Mutex<Shown> = Mutex::new(Shown {
    doing: String::new(),
    waits: None,
    is_refused: false,
});

struct Shown {
    doing: String,
    /// What is waited for, in the place of what is done.
    waits: Option<String>,
    /// The configuration on disk is refused.
    is_refused: bool,
}

impl Shown {
    fn line(&self) -> String {
        let line = self.waits.as_ref().unwrap_or(&self.doing);
        // A line break would start another assignment of the protocol.
        let line = line.replace(['\n', '\r'], " ");
        match self.is_refused {
            true => line + "; the new configuration is refused, the old one stays",
            false => line,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Service;

impl Service {
    /// The service does its work from now on; also ends [`Service::reloading`].
    pub(crate) fn ready(self) {
        notify(&[NotifyState::Ready]);
    }

    /// The configuration is being read again; [`Service::ready`] must follow.
    pub(crate) fn reloading(self) {
        // Type=notify-reload wants the moment as well; other types ignore it.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(_) => notify(&[NotifyState::Reloading]),
        }
    }

    pub(crate) fn stopping(self) {
        notify(&[NotifyState::Stopping]);
    }

    /// What is done, in one line for `systemctl status`.
    pub(crate) fn status(self, text: &str) {
        show(|shown| text.clone_into(&mut shown.doing));
    }

    /// What is waited for stands in that line meanwhile; `None`: it is over.
    pub(crate) fn waits(self, what: Option<String>) {
        show(|shown| shown.waits = what);
    }

    /// Whether the configuration on disk is refused.
    pub(crate) fn refuses(self, is_refused: bool) {
        show(|shown| shown.is_refused = is_refused);
    }

    /// The service is alive; due once per [`Service::watchdog_interval`].
    pub(crate) fn alive(self) {
        notify(&[NotifyState::Watchdog]);
    }

    /// How often [`Service::alive`] is due: half of what the manager allows; `None` where it does
    /// not watch this process.
    pub(crate) fn watchdog_interval(self) -> Option<Duration> {
        sd_notify::watchdog_enabled().map(|limit| limit / 2)
    }
}

/// Sends the line, if it is another one.
fn show(change: impl FnOnce(&mut Shown)) {
    let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let before = shown.line();
    change(&mut shown);
    let line = shown.line();
    if line != before {
        notify(&[NotifyState::Status(&line)]);
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "could not notify the service manager");
    }
}
