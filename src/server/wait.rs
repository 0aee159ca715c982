//! Waits for a server: what is logged while they last, and the limit of a command.
//!
//! Each session of ours is watched. When it has waited for an answer for [`PATIENCE`], a second session looks what the first
//! one's backend waits for:
//!
//! ```text
//!   a lock             WARN  which one, and the sessions that hold it
//!   a standby          WARN  the standbys
//!   no answer at all   WARN  a frozen server, or a network that drops packets
//!   anything else      INFO  it works
//! ```
//!
//! Nothing here ends a session of the daemon: a server that is paused goes on where it was. A command ends (see [`limit`]).

use std::fmt;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, LazyLock, OnceLock, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_postgres::{Client, Row};

use super::{Connection, Side, open};
use crate::fault::{Fault, Result};
use crate::wire::Asked;

/// How often a wait that goes on is logged in its first minute.
pub const REMIND: Duration = Duration::from_secs(10);
const OFTEN: Duration = Duration::from_secs(60);
/// And how often after that.
const REMIND_LATER: Duration = Duration::from_secs(300);
/// How often a session is looked at; all of them at the same moments.
const LOOK: Duration = Duration::from_secs(1);
static LOOKS: LazyLock<Instant> = LazyLock::new(Instant::now);
/// A server may take so long to answer before a second session asks why.
const PATIENCE: Duration = Duration::from_secs(3);
/// A server that takes longer to answer the second session answers nothing.
const PROBE_MAX: Duration = Duration::from_secs(7);
/// A command ends when a server has not answered for so long.
const COMMAND_MAX: Duration = Duration::from_secs(15);

/// Says when a wait is worth a log line: at once, then every [`REMIND`], after a minute every [`REMIND_LATER`].
#[derive(Debug, Default)]
pub struct Reminder(Option<(Instant, Instant)>);

impl Reminder {
    /// Whether to log now; then the time counts from now.
    pub fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let (first, last) = self.0.unwrap_or((now, now));
        let pause = match now - first < OFTEN {
            true => REMIND,
            false => REMIND_LATER,
        };
        let due = self.0.is_none() || now - last >= pause;
        if due {
            self.0 = Some((first, now));
        }
        due
    }
}

/// Logs what a session waits for, until it is gone. `pid` is its backend's; 0: not known yet, and to be set in what this
/// returns.
pub(super) fn watch(
    connection: &Connection,
    side: Side,
    asked: &Arc<Asked>,
    pid: i32,
) -> Arc<AtomicI32> {
    asked.note_look();
    let pid = Arc::new(AtomicI32::new(pid));
    let watched = Watched {
        connection: connection.clone(),
        side,
        pid: Arc::clone(&pid),
        asked: Arc::downgrade(asked),
    };
    tokio::spawn(watched.run());
    pid
}

/// A session, as its watch knows it.
struct Watched {
    connection: Connection,
    side: Side,
    pid: Arc<AtomicI32>,
    asked: Weak<Asked>,
}

impl Watched {
    async fn run(self) {
        let mut reminder = Reminder::default();
        let mut looks = tokio::time::interval_at(*LOOKS + LOOK, LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            looks.tick().await;
            let Some(asked) = self.asked.upgrade() else {
                return;
            };
            asked.note_look();
            let unanswered = asked.unanswered();
            drop(asked);
            match unanswered {
                Some(waited) if waited >= PATIENCE => {
                    let is_due = reminder.is_due();
                    if is_due || LIMIT.get().is_some() {
                        self.say(waited, is_due).await;
                    }
                }
                Some(_) => {}
                None => reminder = Reminder::default(),
            }
        }
    }

    /// Finds out why there is no answer, and logs it where that is due.
    async fn say(&self, waited: Duration, is_due: bool) {
        let pid = self.pid.load(Ordering::Relaxed);
        let looked = tokio::time::timeout(PROBE_MAX, self.look(pid)).await;
        // It may have answered meanwhile, or be gone.
        let Some(asked) = self.asked.upgrade() else {
            return;
        };
        let Some(now) = asked.unanswered().filter(|now| *now >= waited) else {
            return;
        };
        let reason = match looked {
            Ok(Ok(reason)) => reason,
            Ok(Err(fault)) => Reason::Silence(Some(fault.to_string())),
            Err(_) => Reason::Silence(None),
        };
        asked.note_idle(reason.is_idle());
        if is_due {
            reason.log(self.side, pid, now);
        }
        let blocked = reason.blocked(self.side, now);
        asked.note_blocked(blocked.is_some());
        if now >= COMMAND_MAX
            && let (Some(limit), Some(what)) = (LIMIT.get(), blocked)
        {
            // The first one ends the command.
            let _ = limit.send(Fault::retry(what).remedy(reason.remedy()));
        }
    }

    async fn look(&self, pid: i32) -> Result<Reason> {
        let failed = self.side.failed("could not show what a session waits for");
        let (client, _) = open(&self.connection, self.side).await?;
        let row = client.query_opt(WAITS_FOR, &[&pid]).await.map_err(failed)?;
        let Some(row) = row else {
            if pid == 0 {
                return Ok(Reason::Silence(None));
            }
            return Ok(Reason::Silence(Some("its session is gone".to_owned())));
        };
        let reason = Reason::of(&row);
        match reason {
            Reason::Lock { .. } => Ok(Reason::Lock {
                what: row.get::<_, Option<String>>(3).unwrap_or_default(),
                holders: holders(&client, pid).await.map_err(failed)?,
            }),
            reason => Ok(reason),
        }
    }
}

/// What a backend of ours waits for. The name of a relation is whole, since no schema is searched.
const WAITS_FOR: &str = "
    SELECT a.state, a.wait_event_type, a.wait_event,
           (SELECT CASE l.locktype WHEN 'relation' THEN coalesce(l.relation::regclass::text, 'a relation of another database')
                        WHEN 'transactionid' THEN 'a row' WHEN 'tuple' THEN l.relation::regclass::text
                        WHEN 'virtualxid' THEN 'a transaction' WHEN 'advisory' THEN 'an advisory key' ELSE l.locktype END
              FROM pg_catalog.pg_locks l WHERE l.pid = a.pid AND NOT l.granted LIMIT 1),
           pg_catalog.current_setting('synchronous_standby_names')
      FROM pg_catalog.pg_stat_activity a WHERE a.pid = $1";

/// The sessions in the way of it. Process 0 stands for a prepared transaction.
const HOLDERS: &str = "
    SELECT b.pid, a.application_name, a.wait_event = 'SyncRep'
      FROM (SELECT DISTINCT unnest(pg_catalog.pg_blocking_pids($1)) AS pid) b
      LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid AND b.pid <> 0 ORDER BY b.pid";

async fn holders(client: &Client, pid: i32) -> Result<Vec<Holder>, tokio_postgres::Error> {
    let rows = client.query(HOLDERS, &[&pid]).await?;
    let holder = |row: &Row| Holder {
        pid: row.get(0),
        name: row.get::<_, Option<String>>(1).unwrap_or_default(),
        waits_for_standby: row.get::<_, Option<bool>>(2) == Some(true),
    };
    Ok(rows.iter().map(holder).collect())
}

#[derive(Debug)]
struct Holder {
    pid: i32,
    /// Its `application_name`.
    name: String,
    waits_for_standby: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pid, self.name.as_str()) {
            (0, _) => f.write_str("a prepared transaction")?,
            (pid, "") => write!(f, "pid {pid}")?,
            (pid, name) => write!(f, "pid {pid} ({name})")?,
        }
        match self.waits_for_standby {
            true => f.write_str(", which waits for a synchronous standby"),
            false => Ok(()),
        }
    }
}

/// How a session is described that does nothing: `idle`, `idle in transaction`.
const IDLE: &str = "its session is idle";

/// Why there is no answer.
#[derive(Debug)]
enum Reason {
    Lock {
        what: String,
        holders: Vec<Holder>,
    },
    Standby {
        names: String,
    },
    /// Nothing is heard; with what a second session heard.
    Silence(Option<String>),
    /// It works, and waits for this at the moment.
    Work(String),
    /// It waits for us.
    Us,
}

impl Reason {
    fn of(row: &Row) -> Self {
        let text = |n| row.get::<_, Option<&str>>(n).unwrap_or_default();
        match (text(0), text(1), text(2)) {
            (_, "Lock", _) => Self::Lock {
                what: String::new(),
                holders: Vec::new(),
            },
            (_, _, "SyncRep") => Self::Standby { names: row.get(4) },
            ("active", "Client", _) => Self::Us,
            ("active", _, event) => Self::Work(event.to_owned()),
            (state, _, _) => Self::Silence(Some(format!("its session is {state}"))),
        }
    }

    /// The server has done what it heard of, and waits for this process.
    fn is_idle(&self) -> bool {
        match self {
            Self::Us => true,
            Self::Silence(heard) => heard
                .as_deref()
                .is_some_and(|heard| heard.starts_with(IDLE)),
            Self::Lock { .. } | Self::Standby { .. } | Self::Work(_) => false,
        }
    }

    fn log(&self, side: Side, pid: i32, waited: Duration) {
        let seconds = waited.as_secs();
        match self {
            Self::Lock { what, holders } => {
                let pids: Vec<String> = holders.iter().map(|h| h.pid.to_string()).collect();
                let pids = pids.join(", ");
                let text = lock(what, holders);
                tracing::warn!(%side, pid, pids, seconds, remedy = self.remedy(), "{text}");
            }
            Self::Standby { names } => {
                let text = match side {
                    Side::Target => NOT_DURABLE,
                    Side::Source => "the source waits for a synchronous standby",
                };
                tracing::warn!(
                    pid,
                    synchronous_standby_names = names,
                    seconds,
                    remedy = self.remedy(),
                    "{text}"
                );
            }
            Self::Silence(heard) => {
                let heard = heard.as_deref();
                tracing::warn!(
                    pid,
                    heard,
                    remedy = self.remedy(),
                    "the {side} has not answered for {seconds} s"
                );
            }
            Self::Work(wait_event) => {
                tracing::info!(%side, pid, wait_event, seconds, "the {side} is still at work");
            }
            Self::Us => tracing::debug!(%side, pid, seconds, "the {side} waits for more"),
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Lock { .. } => {
                "look at these sessions in pg_stat_activity; pg_terminate_backend(pid) ends one"
            }
            Self::Standby { .. } => {
                "look at the standbys that synchronous_standby_names means, and the network"
            }
            Self::Silence(_) => "see whether the server is paused, or the network drops packets",
            Self::Work(_) | Self::Us => "",
        }
    }

    /// Why nothing goes on; none: the server works.
    fn blocked(&self, side: Side, waited: Duration) -> Option<String> {
        let seconds = waited.as_secs();
        match self {
            Self::Lock { what, holders } => Some(format!(
                "the {side} has not answered for {seconds} s: {}",
                lock(what, holders)
            )),
            Self::Standby { names } => Some(format!(
                "the {side} has not answered for {seconds} s: it waits for a synchronous standby ({names})"
            )),
            Self::Silence(_) => Some(format!("the {side} has not answered for {seconds} s")),
            Self::Work(_) | Self::Us => None,
        }
    }
}

const NOT_DURABLE: &str =
    "the target does not make the history durable; nothing is confirmed to the source meanwhile";

fn lock(what: &str, holders: &[Holder]) -> String {
    let what = match what {
        "" => "something",
        what => what,
    };
    let holders: Vec<String> = holders.iter().map(ToString::to_string).collect();
    match holders.is_empty() {
        true => format!("waiting for a lock on {what}"),
        false => format!(
            "waiting for a lock on {what}, held by {}",
            holders.join(", ")
        ),
    }
}

/// Waits until a server has not worked on what it was asked for so long. Cancel-safe.
pub(crate) async fn blocked_for(asked: Arc<Asked>, max: Duration) {
    while asked.blocked() < max {
        tokio::time::sleep(LOOK).await;
    }
}

/// Where a command's limit is said to be over.
static LIMIT: OnceLock<mpsc::UnboundedSender<Fault>> = OnceLock::new();

/// Runs a command of which a person waits for the end: a server that has not answered for [`COMMAND_MAX`] ends it with 75.
pub(crate) async fn limit<T>(command: impl Future<Output = Result<T>>) -> Result<T> {
    let (sender, mut over) = mpsc::unbounded_channel();
    // Only one command runs in a process.
    let _ = LIMIT.set(sender);
    tokio::select! {
        ended = command => ended,
        Some(fault) = over.recv() => Err(fault),
    }
}
