//! The lock of the one writer (invariant I6), and what an instance that waits for it sees of its holder.
//!
//! The lock is held by a session of the target, so it is free as soon as the server knows that its client is gone. A process
//! that is killed closes its connection. A machine that vanishes does not: its session ends after [`NOTICED`]. A process that
//! is stopped keeps its session for ever. So the holder shows every [`BEAT`] that it runs, by a round trip that says nothing and
//! writes nothing, but moves `pg_stat_activity.state_change`. An instance that waits looks there, and ends the session of a
//! holder that has been silent for [`SILENT_MAX`]. This is safe whatever the holder does next: its transaction is rolled back.
//! What its other connections may still commit of existing rows is fenced by itself (`snapshot/`).
//!
//! **A holder that is busy is not silent**: only the server can say that it waits for its client, and a COPY that goes on shows
//! its bytes. So two instances that run never end each other.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_postgres::Client;

use super::outgoing::Outgoing;
use super::writer::Writer;
use crate::fault::{Fault, Result};
use crate::server::{CHECK_CLIENT, NOTICED};
use crate::wire::Error;

/// Names the locks of this program among a database's advisory locks: "waltrail" cut to 31 bits.
const LOCK_CLASS: i32 = 0x7761_6c74;

/// How often the holder shows that it runs.
pub(crate) const BEAT: Duration = Duration::from_secs(3);
/// A holder that has shown nothing for so long is ended.
pub(crate) const SILENT_MAX: Duration = Duration::from_secs(10);
/// So much counts between two looks: a server that did not answer meanwhile did not hear the holder either.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// What a holder moves while it runs, while the server waits for it; else NULL.
const SIGN: &str = "CASE WHEN a.wait_event_type = 'Client' AND a.state <> 'disabled' \
    THEN concat_ws(' ', a.backend_start, a.state_change, c.bytes_processed) END";
const HOLDERS: &str =
    "pg_catalog.pg_stat_activity a LEFT JOIN pg_catalog.pg_stat_progress_copy c USING (pid)";

/// The session that has the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) pid: i32,
    pub(crate) role: String,
    /// It logged in as the role that asks, which may end it.
    pub(crate) is_ours: bool,
    /// It changes while the holder runs; `None`: the server does not wait for it, or this role may not see it.
    sign: Option<String>,
}

/// How long a holder has been silent, by this machine's clock. Time is an argument.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    seen: Option<Holder>,
    looked: Option<Instant>,
    lasted: Duration,
}

impl Silence {
    /// Takes what was seen at `now`; returns how long that has not changed.
    pub(crate) fn after(&mut self, holder: &Holder, now: Instant) -> Duration {
        let since = self.looked.replace(now);
        let since = since.map_or(Duration::ZERO, |last| now - last);
        let is_same = holder.is_ours && holder.sign.is_some() && self.seen.as_ref() == Some(holder);
        self.lasted = match is_same {
            true => self.lasted + since.min(LOOK_MAX),
            false => Duration::ZERO,
        };
        self.seen = Some(holder.clone());
        self.lasted
    }
}

impl Writer {
    /// Takes the lock that makes this the one writer for its slot; false when another session has it. It is held until
    /// the connection's backend is gone, so that a predecessor's last COMMIT is over before the checkpoint is read.
    pub(crate) async fn try_lock(&mut self) -> Result<bool, Error> {
        let command = format!(
            "SELECT pg_catalog.pg_try_advisory_lock({LOCK_CLASS}, pg_catalog.hashtext('{}'))",
            self.slot()
        );
        let rows = self.channel().simple_query(&command).await?;
        let locked = rows.first().and_then(|row| row.first()?.as_deref()) == Some("t");
        if locked {
            self.be_noticed().await?;
        }
        Ok(locked)
    }

    /// Has the server notice soon when this client is gone.
    async fn be_noticed(&mut self) -> Result<(), Error> {
        let settings = NOTICED.map(|(name, value)| format!("SET {name} = {value}"));
        self.channel().simple_query(&settings.join("; ")).await?;
        // Also while it waits for a lock on a history. Not every system can look.
        match self.channel().simple_query(CHECK_CLIENT).await {
            Ok(_) | Err(Error::Server(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The process that has the lock, if any.
    pub(crate) async fn lock_holder(&mut self) -> Result<Option<i32>, Error> {
        let command = format!("SELECT pid FROM {}", self.held());
        let rows = self.channel().simple_query(&command).await?;
        // A prepared transaction that has it has no process.
        let pid = rows.first().and_then(|row| row.first()?.as_deref());
        let unreadable = Error::Protocol("a process id in pg_locks that cannot be read");
        pid.map(str::parse).transpose().map_err(|_| unreadable)
    }

    fn held(&self) -> String {
        held(self.slot())
    }

    /// What can be seen of a session; `None` when it is gone.
    pub(crate) async fn look_at(&mut self, pid: i32) -> Result<Option<Holder>, Error> {
        let command = format!(
            "SELECT a.usename, a.usename = current_user, {SIGN} FROM {HOLDERS} WHERE a.pid = {pid}"
        );
        let rows = self.channel().simple_query(&command).await?;
        Ok(rows.into_iter().next().map(|row| {
            let mut row = row.into_iter();
            let mut next = || row.next().flatten();
            Holder {
                pid,
                role: next().unwrap_or_default(),
                is_ours: next().as_deref() == Some("t"),
                sign: next(),
            }
        }))
    }

    /// Ends the holder's session, if it still has the lock and has not moved since it was looked at.
    pub(crate) async fn end_silent(&mut self, holder: &Holder) -> Result<bool, Error> {
        let Some(sign) = &holder.sign else {
            return Ok(false);
        };
        let command = format!(
            "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM {HOLDERS} WHERE a.pid = {} AND {SIGN} = '{}' \
             AND a.pid IN (SELECT pid FROM {})",
            holder.pid,
            sign.replace('\'', "''"),
            self.held()
        );
        let rows = self.channel().simple_query(&command).await?;
        Ok(rows.first().and_then(|row| row.first()?.as_deref()) == Some("t"))
    }

    /// Shows that this process runs, between two writes.
    pub(crate) async fn beat(&mut self) -> Result<(), Error> {
        self.send(&mut Outgoing::default()).await?.done(None)
    }

    /// Does `work`, in which nothing is written, as the holder of the lock.
    pub(crate) async fn beat_while<T>(
        &mut self,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let (done, mut is_done) = oneshot::channel::<Infallible>();
        let working = async {
            let worked = work.await;
            drop(done);
            worked
        };
        let beating = async {
            loop {
                tokio::select! {
                    _ = &mut is_done => return Ok(()),
                    () = sleep(BEAT) => self.beat().await.map_err(lost)?,
                }
            }
        };
        tokio::try_join!(working, beating).map(|(worked, ())| worked)
    }

    /// Holds the lock until what is returned is dropped.
    pub(crate) fn hold(mut self) -> JoinSet<Error> {
        let mut holding = JoinSet::new();
        holding.spawn(async move {
            loop {
                sleep(BEAT).await;
                if let Err(error) = self.beat().await {
                    return error;
                }
            }
        });
        holding
    }
}

/// The locks of a slot's writer that are held, for FROM: at most one.
pub(crate) fn held(slot: &str) -> String {
    format!(
        "pg_catalog.pg_locks WHERE locktype = 'advisory' AND granted \
         AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
         AND classid = {LOCK_CLASS} AND objid = (pg_catalog.hashtext('{slot}')::bigint & 4294967295)"
    )
}

/// Whether some process writes for a slot.
pub(crate) async fn is_held(client: &Client, slot: &str) -> Result<bool, tokio_postgres::Error> {
    let query = format!("SELECT EXISTS (SELECT FROM {})", held(slot));
    Ok(client.query_one(&query, &[]).await?.get(0))
}

/// The writer's session is gone, and the lock with it.
pub(crate) fn lost(error: Error) -> Fault {
    Fault::new(error.disposition(), "the target ended the writer's session").caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(sign: Option<&str>) -> Holder {
        Holder {
            pid: 1,
            role: "waltrail".to_owned(),
            is_ours: true,
            sign: sign.map(str::to_owned),
        }
    }

    fn half_seconds(n: u32) -> Duration {
        n * Duration::from_millis(500)
    }

    #[test]
    fn a_holder_that_shows_nothing_is_silent_since_it_was_first_seen_so() {
        let (mut silence, start) = (Silence::default(), Instant::now());
        for n in 0..20 {
            let lasted = silence.after(&holder(Some("a")), start + half_seconds(n));
            assert_eq!(lasted, half_seconds(n));
        }
        let moved = silence.after(&holder(Some("b")), start + half_seconds(20));
        assert_eq!(moved, Duration::ZERO);
        let again = silence.after(&holder(Some("b")), start + half_seconds(21));
        assert_eq!(again, half_seconds(1));
    }

    #[test]
    fn a_holder_that_the_server_does_not_wait_for_is_not_silent() {
        let (mut silence, start) = (Silence::default(), Instant::now());
        silence.after(&holder(Some("a")), start);
        for n in 1..100 {
            let lasted = silence.after(&holder(None), start + half_seconds(n));
            assert_eq!(lasted, Duration::ZERO);
        }
    }

    #[test]
    fn a_session_of_another_role_is_never_silent() {
        let (mut silence, start) = (Silence::default(), Instant::now());
        let stranger = Holder {
            is_ours: false,
            ..holder(Some("a"))
        };
        for n in 0..100 {
            let lasted = silence.after(&stranger, start + half_seconds(n));
            assert_eq!(lasted, Duration::ZERO);
        }
    }

    /// A server that stood still, or this process: the holder may have run all the time.
    #[test]
    fn a_look_that_took_long_counts_as_one() {
        let (mut silence, start) = (Silence::default(), Instant::now());
        silence.after(&holder(Some("a")), start);
        let hour = Duration::from_secs(3600);
        assert_eq!(silence.after(&holder(Some("a")), start + hour), LOOK_MAX);
        assert!(SILENT_MAX >= 3 * BEAT && SILENT_MAX > 2 * LOOK_MAX);
    }
}
