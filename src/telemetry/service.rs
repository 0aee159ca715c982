//! The state of the program as its service manager sees it.
//!
//! Everything here does nothing where no manager asks (`NOTIFY_SOCKET` is not set), and a manager
//! that cannot be sent is no reason to stop: a failed notice is a `debug` line.

use std::time::Duration;

use sd_notify::NotifyState;

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

    /// One line for `systemctl status`.
    pub(crate) fn status(self, text: &str) {
        // A line break would start another assignment of the protocol.
        let line = text.replace(['\n', '\r'], " ");
        notify(&[NotifyState::Status(&line)]);
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

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "could not notify the service manager");
    }
}
