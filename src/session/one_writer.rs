//! One writer (invariant I6): a second instance waits here, and takes over when the first is gone, or silent.

use std::time::Instant;

use super::opening::{ASK_AGAIN, ASK_AGAIN_SOON, ENDING_MAX};
use crate::config::Config;
use crate::fault::{Fault, Result};
use crate::history::lock::{Holder, SILENT_MAX, Silence};
use crate::history::writer::Writer;
use crate::server::Reminder;
use crate::wire;

/// Waits until this is the one writer. One that is silent is ended: see `history/lock.rs`.
pub(super) async fn wait_for_lock(target: &mut Writer, config: &Config) -> Result<()> {
    let failed = |error: wire::Error| {
        Fault::new(
            error.disposition(),
            "the target could not give out the writer's lock",
        )
        .caused_by(error)
    };
    // The session before this one may still be ending.
    let mut ending_until = Instant::now() + ENDING_MAX;
    let mut waiting = Waiting::default();
    while !target.try_lock().await.map_err(failed)? {
        if Instant::now() < ending_until {
            tokio::time::sleep(ASK_AGAIN_SOON).await;
            continue;
        }
        if waiting.look(target, config).await.map_err(failed)? {
            ending_until = Instant::now() + ENDING_MAX;
            continue;
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
    Ok(())
}

const WAITS_FOR_OTHER: &str = "another waltrail writes for this slot; waiting until it is gone";

/// What a wait for the lock knows of its holder.
#[derive(Default)]
struct Waiting {
    pid: Option<i32>,
    silence: Silence,
    reminder: Reminder,
}

impl Waiting {
    /// Looks at the holder, and says now and then that it is waited for; true when it was ended.
    async fn look(&mut self, target: &mut Writer, config: &Config) -> Result<bool, wire::Error> {
        let slot = &config.source.slot;
        let mut holder = match self.pid {
            Some(pid) => target.look_at(pid).await?,
            None => None,
        };
        let is_due = self.reminder.is_due();
        // To look through all locks is dear: it is done when the holder is another one, and now and then.
        if holder.is_none() || is_due {
            self.pid = target.lock_holder().await?;
            holder = match self.pid {
                Some(pid) => target.look_at(pid).await?,
                None => None,
            };
        }
        if is_due {
            // It may wait for weeks, in which the passwords are changed; both servers have been reached.
            config.source.connection.credentials().note_up();
            config.target.credentials().note_up();
            warn(slot, self.pid, holder.as_ref());
            self.reminder.shows(WAITS_FOR_OTHER);
        }
        let Some(holder) = holder else {
            return Ok(false);
        };
        let silent = self.silence.after(&holder, Instant::now());
        if silent < SILENT_MAX || !target.end_silent(&holder).await? {
            return Ok(false);
        }
        self.silence = Silence::default();
        tracing::warn!(
            slot,
            pid = holder.pid,
            seconds = silent.as_secs(),
            "terminated the session of a silent writer"
        );
        Ok(true)
    }
}

fn warn(slot: &str, pid: Option<i32>, holder: Option<&Holder>) {
    let role = holder.map(|holder| holder.role.as_str());
    let is_stranger = holder.is_some_and(|holder| !holder.is_ours);
    // It may be anything: CONNECT is enough to take an advisory lock.
    let remedy = pid.filter(|_| is_stranger).map(|pid| {
        format!("if that is no waltrail, on the target: SELECT pg_terminate_backend({pid})")
    });
    tracing::warn!(slot, pid, role, remedy, "{WAITS_FOR_OTHER}");
}
