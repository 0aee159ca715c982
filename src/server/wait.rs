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
//! What several sessions wait for is logged once; when it is over, a line says how long it took. [`waits`] is for what shows
//! the present state. Nothing here ends a session of the daemon: a server that is paused goes on where it was. A command ends
//! (see [`limit`]).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_postgres::{Client, Row};

use super::statement::kind_of;
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

/// Says when a wait is worth a log line: at once, then every [`REMIND`], after a minute every [`REMIND_LATER`]. When it is
/// dropped, the wait is over.
#[derive(Debug, Default)]
pub struct Reminder {
    first_and_last: Option<(Instant, Instant)>,
    shown: Option<Shown>,
}

impl Reminder {
    /// Whether to log now; then the time counts from now.
    pub fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let (first, last) = self.first_and_last.unwrap_or((now, now));
        let pause = match now - first < OFTEN {
            true => REMIND,
            false => REMIND_LATER,
        };
        let due = self.first_and_last.is_none() || now - last >= pause;
        if due {
            self.first_and_last = Some((first, now));
        }
        due
    }

    /// What is waited for, in the words of its log line.
    pub(crate) fn shows(&mut self, what: &str) {
        self.shown
            .get_or_insert_with(|| Shown::new(SystemTime::now()))
            .set(what);
    }
}

/// What is waited for in this process: by the order in which it began, since when, and in what words.
type Waits = BTreeMap<u64, (SystemTime, String)>;

static WAITS: LazyLock<watch::Sender<Waits>> = LazyLock::new(|| watch::channel(Waits::new()).0);
static NEXT_WAIT: AtomicU64 = AtomicU64::new(0);

/// What is waited for since when, the oldest first; it changes.
pub(crate) fn waits() -> watch::Receiver<Waits> {
    WAITS.subscribe()
}

/// One wait that others can see, until it is dropped.
#[derive(Debug)]
struct Shown {
    number: u64,
    since: SystemTime,
}

impl Shown {
    fn new(since: SystemTime) -> Self {
        let number = NEXT_WAIT.fetch_add(1, Ordering::Relaxed);
        Self { number, since }
    }

    /// Returns whether nothing else waits for the same.
    fn set(&self, what: &str) -> bool {
        let mut is_alone = true;
        WAITS.send_if_modified(|waits| {
            let mut others = waits.iter().filter(|(number, _)| **number != self.number);
            is_alone = others.all(|(_, (_, other))| other != what);
            let wait = (self.since, what.to_owned());
            waits.insert(self.number, wait.clone()) != Some(wait)
        });
        is_alone
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        WAITS.send_if_modified(|waits| waits.remove(&self.number).is_some());
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

/// One wait for an answer.
struct Wait {
    reminder: Reminder,
    /// What the connection had heard before; more ends the wait.
    heard: u64,
    began: Option<Instant>,
    /// The log says that nothing goes on.
    is_warned: bool,
}

impl Wait {
    fn new(heard: u64) -> Self {
        Self {
            reminder: Reminder::default(),
            heard,
            began: None,
            is_warned: false,
        }
    }
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
        let mut wait = Wait::new(0);
        let mut looks = tokio::time::interval_at(*LOOKS + LOOK, LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            looks.tick().await;
            let Some(asked) = self.asked.upgrade() else {
                return;
            };
            asked.note_look();
            let (unanswered, heard) = (asked.unanswered(), asked.heard());
            drop(asked);
            if unanswered.is_none() || heard != wait.heard {
                self.over(wait);
                wait = Wait::new(heard);
            }
            if let Some(waited) = unanswered.filter(|waited| *waited >= PATIENCE) {
                wait.began.get_or_insert_with(|| Instant::now() - waited);
                let is_due = wait.reminder.is_due();
                if is_due || LIMIT.get().is_some() {
                    self.say(&mut wait, waited, is_due).await;
                }
            }
        }
    }

    fn over(&self, wait: Wait) {
        if let (Some(began), true) = (wait.began, wait.is_warned) {
            let pid = self.pid.load(Ordering::Relaxed);
            let seconds = began.elapsed().as_secs();
            tracing::info!(side = %self.side, pid, seconds, "the {} answers again", self.side);
        }
    }

    /// Finds out why there is no answer, and logs it where that is due.
    async fn say(&self, wait: &mut Wait, waited: Duration, is_due: bool) {
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
        let blocked = reason.blocked(self.side, now);
        let is_alone = match &blocked {
            Some(_) => {
                let began = || Shown::new(SystemTime::now() - now);
                let shown = wait.reminder.shown.get_or_insert_with(began);
                shown.set(&reason.short(self.side))
            }
            None => {
                wait.reminder.shown = None;
                true
            }
        };
        if is_due && (is_alone || wait.is_warned) {
            reason.log(self.side, pid, now);
            wait.is_warned |= blocked.is_some();
        }
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
            Reason::Lock { statement, .. } => Ok(Reason::Lock {
                what: row.get::<_, Option<String>>(3).unwrap_or_default(),
                holders: holders(&client, pid).await.map_err(failed)?,
                statement,
            }),
            reason => Ok(reason),
        }
    }
}

/// What a backend of ours waits for. The name of a relation is whole, since no schema is searched. The text of a statement is
/// taken as bytes: in another database it may have another encoding.
const WAITS_FOR: &str = "
    SELECT a.state, a.wait_event_type, a.wait_event,
           (SELECT CASE l.locktype WHEN 'relation' THEN coalesce(l.relation::regclass::text, 'a relation of another database')
                        WHEN 'transactionid' THEN 'a row' WHEN 'tuple' THEN l.relation::regclass::text
                        WHEN 'virtualxid' THEN 'a transaction' WHEN 'advisory' THEN 'an advisory key' ELSE l.locktype END
              FROM pg_catalog.pg_locks l WHERE l.pid = a.pid AND NOT l.granted LIMIT 1),
           pg_catalog.current_setting('synchronous_standby_names'),
           pg_catalog.substr(pg_catalog.textsend(a.query), 1, 200)
      FROM pg_catalog.pg_stat_activity a WHERE a.pid = $1";

/// The sessions in the way of it. Process 0 stands for a prepared transaction.
const HOLDERS: &str = "
    SELECT b.pid, a.application_name, a.wait_event = 'SyncRep', a.state,
           pg_catalog.substr(pg_catalog.textsend(a.query), 1, 200)
      FROM (SELECT DISTINCT unnest(pg_catalog.pg_blocking_pids($1)) AS pid) b
      LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid AND b.pid <> 0 ORDER BY b.pid";

async fn holders(client: &Client, pid: i32) -> Result<Vec<Holder>, tokio_postgres::Error> {
    let rows = client.query(HOLDERS, &[&pid]).await?;
    let holder = |row: &Row| Holder {
        pid: row.get(0),
        name: row.get::<_, Option<String>>(1).unwrap_or_default(),
        waits_for_standby: row.get::<_, Option<bool>>(2) == Some(true),
        state: row.get::<_, Option<String>>(3).unwrap_or_default(),
        statement: row.get::<_, Option<&[u8]>>(4).and_then(kind_of),
    };
    Ok(rows.iter().map(holder).collect())
}

#[derive(Debug)]
struct Holder {
    pid: i32,
    /// Its `application_name`.
    name: String,
    waits_for_standby: bool,
    /// Empty where its role shows it to others only.
    state: String,
    /// The kind of the statement that it runs, or ran last; never its text, which can hold values.
    statement: Option<&'static str>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pid, self.name.as_str()) {
            (0, _) => f.write_str("a prepared transaction")?,
            (pid, "") => write!(f, "pid {pid}")?,
            (pid, name) => write!(f, "pid {pid} ({name})")?,
        }
        match (self.waits_for_standby, self.state.as_str(), self.statement) {
            (true, ..) => f.write_str(", which waits for a synchronous standby"),
            (_, "active", Some(statement)) => write!(f, ", which runs {statement}"),
            (_, "", _) => Ok(()),
            (_, state, Some(statement)) => write!(f, ", {state} after {statement}"),
            (_, state, None) => write!(f, ", {state}"),
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
        /// The kind of ours that waits.
        statement: Option<&'static str>,
    },
    Standby {
        names: String,
    },
    /// Nothing is heard; with what a second session heard.
    Silence(Option<String>),
    /// It works on a statement of this kind, and waits for this at the moment.
    Work(String, Option<&'static str>),
    /// It waits for us.
    Us,
}

impl Reason {
    fn of(row: &Row) -> Self {
        let text = |n| row.get::<_, Option<&str>>(n).unwrap_or_default();
        let statement = row.get::<_, Option<&[u8]>>(5).and_then(kind_of);
        match (text(0), text(1), text(2)) {
            (_, "Lock", _) => Self::Lock {
                what: String::new(),
                holders: Vec::new(),
                statement,
            },
            (_, _, "SyncRep") => Self::Standby { names: row.get(4) },
            ("active", "Client", _) => Self::Us,
            ("active", _, event) => Self::Work(event.to_owned(), statement),
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
            Self::Lock { .. } | Self::Standby { .. } | Self::Work(..) => false,
        }
    }

    fn log(&self, side: Side, pid: i32, waited: Duration) {
        let seconds = waited.as_secs();
        match self {
            Self::Lock {
                what,
                holders,
                statement,
            } => {
                let pids: Vec<String> = holders.iter().map(|h| h.pid.to_string()).collect();
                let (pids, statement) = (pids.join(", "), *statement);
                let (text, remedy) = (lock(what, holders), self.remedy());
                tracing::warn!(%side, pid, statement, pids, seconds, remedy, "{text}");
            }
            Self::Standby { names } => {
                let text = match side {
                    Side::Target => NOT_DURABLE,
                    Side::Source => "the source waits for a synchronous standby",
                };
                tracing::warn!(
                    %side,
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
                    %side,
                    pid,
                    heard,
                    seconds,
                    remedy = self.remedy(),
                    "the {side} has not answered for {seconds} s"
                );
            }
            Self::Work(wait_event, statement) => {
                let statement = *statement;
                tracing::info!(%side, pid, statement, wait_event, seconds, "the {side} is still at work");
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
            Self::Work(..) | Self::Us => "",
        }
    }

    /// In one line, for as long as it lasts.
    fn short(&self, side: Side) -> String {
        match self {
            Self::Lock { what, holders, .. } => lock(what, holders),
            Self::Standby { names } => {
                format!("the {side} waits for a synchronous standby ({names})")
            }
            Self::Silence(_) => format!("the {side} does not answer"),
            Self::Work(..) | Self::Us => String::new(),
        }
    }

    /// Why nothing goes on; none: the server works.
    fn blocked(&self, side: Side, waited: Duration) -> Option<String> {
        let seconds = waited.as_secs();
        match self {
            Self::Lock { what, holders, .. } => Some(format!(
                "the {side} has not answered for {seconds} s: {}",
                lock(what, holders)
            )),
            Self::Standby { names } => Some(format!(
                "the {side} has not answered for {seconds} s: it waits for a synchronous standby ({names})"
            )),
            Self::Silence(_) => Some(format!("the {side} has not answered for {seconds} s")),
            Self::Work(..) | Self::Us => None,
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
            holders.join(" and by ")
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
