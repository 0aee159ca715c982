//! The daemon's own look at both servers, every few seconds, for metrics, page and warnings: the same picture as `waltrail status`.
//!
//! A task beside the sessions, with two connections of its own (one, where source and target are one database). It never ends
//! or slows the daemon: it only reads, no statement of it lasts longer than 3 s, and a server that is away is asked again later.
//!
//! **It takes no connection from anybody.** It begins once the daemon's sessions are up. Where fewer than [`CONNECTIONS_MIN`] are
//! left to its role, its database or the server, it leaves, and comes for a moment once a minute. It also leaves when the
//! daemon's session does: in smart mode, a server that shuts down waits until all have left.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;

use super::progress::Progress;
use crate::clock;
use crate::config::Config;
use crate::server::answers;
use crate::status::{Ends, Inside, Looks, Note, Reading, Readings, Seen, Status};

/// How often it looks while the daemon streams.
pub(crate) const EVERY: Duration = Duration::from_secs(5);
/// And while it does not, or a server does not answer.
const LATER: Duration = Duration::from_secs(15);
/// And where connections are scarce.
const SELDOM: Duration = Duration::from_secs(60);
/// How soon it notices that the daemon streams, or does not any more.
const NOTICE: Duration = Duration::from_millis(500);
/// A daemon that does not come to stream is looked at after this time.
const BEGIN_MAX: Duration = Duration::from_secs(10);
/// So many connections stay free for others.
const CONNECTIONS_MIN: i32 = 3;

/// The newest picture; none before the first look.
#[derive(Clone, Debug)]
pub(crate) struct Observed(watch::Receiver<Option<Arc<Status>>>);

impl Observed {
    /// Where the observer puts its pictures, and where they are read.
    pub(crate) fn channel() -> (watch::Sender<Option<Arc<Status>>>, Self) {
        let (sender, receiver) = watch::channel(None);
        (sender, Self(receiver))
    }

    /// The newest one.
    pub(crate) fn latest(&self) -> Option<Arc<Status>> {
        self.0.borrow().clone()
    }

    /// Waits for the next one; none: the observer has ended, and with it the daemon. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Arc<Status>> {
        self.0.changed().await.ok()?;
        self.0.borrow_and_update().clone()
    }
}

/// Looks until it is dropped. `configs` has the configuration of the present session.
pub(crate) async fn run(
    mut configs: watch::Receiver<Arc<Config>>,
    sender: watch::Sender<Option<Arc<Status>>>,
    progress: Arc<Progress>,
) -> Infallible {
    let mut observer = Observer::new(&progress);
    let begun = Instant::now();
    while !progress.is_streaming() && begun.elapsed() < BEGIN_MAX {
        sleep(NOTICE).await;
    }
    loop {
        let config = Arc::clone(&configs.borrow_and_update());
        let (status, pause) = observer.look(&config).await;
        if let Some(status) = status {
            sender.send_replace(Some(Arc::new(status)));
        }
        let looked = Instant::now();
        let was_streaming = progress.is_streaming();
        while looked.elapsed() < pause && progress.is_streaming() == was_streaming {
            sleep(NOTICE.min(pause)).await;
            if configs.has_changed().unwrap_or_default() {
                observer.looks.leave();
                break;
            }
        }
        if !progress.is_streaming() {
            observer.looks.leave();
        }
    }
}

struct Observer<'a> {
    progress: &'a Progress,
    looks: Looks,
    ends: Ends,
    readings: Readings,
    /// What is recorded of the existing rows of each history, and since when it has not moved.
    moved: HashMap<String, ((i64, i64, i64), Instant)>,
}

impl<'a> Observer<'a> {
    fn new(progress: &'a Progress) -> Self {
        Self {
            progress,
            looks: Looks::new("observer"),
            ends: Ends::default(),
            readings: Readings::default(),
            moved: HashMap::new(),
        }
    }

    /// One look, and the pause until the next one.
    async fn look(&mut self, config: &Config) -> (Option<Status>, Duration) {
        // Before the source is asked for its end: so much is recorded by then.
        let now = self.progress.moment();
        let recorded = self.progress.positions().applied;
        let is_waiting = self.progress.is_waiting();
        let looked = answers::checked(async { Ok(self.looks.look(config).await) }).await;
        let Ok(seen) = looked else {
            self.looks.leave();
            return (None, LATER);
        };
        let mut inside = Inside {
            recorded,
            is_idle: !is_waiting && self.progress.is_streaming(),
            complete: None,
            rate: None,
            still: Vec::new(),
        };
        if let Ok(source) = &seen.source {
            inside.complete = self.ends.saw(source.end, source.now, inside.recorded);
            let slot = source.slot();
            inside.rate = self.readings.take(Reading {
                at: source.now,
                end: source.end,
                retained: slot.and_then(|slot| slot.retained_bytes),
                safe: slot.and_then(|slot| slot.safe_wal_size),
                rows: now.rows,
            });
        }
        let mut status = seen.status(config, Some(&inside));
        inside.still = self.still(&status);
        if !inside.still.is_empty() {
            status = seen.status(config, Some(&inside));
        }
        self.leave_note(config, &seen, &inside).await;
        (Some(status), self.pause(&seen))
    }

    /// For how long the existing rows of each table that is being recorded have not moved.
    fn still(&mut self, status: &Status) -> Vec<(String, f64)> {
        let now = clock::monotonic();
        let before = std::mem::take(&mut self.moved);
        let mut still = Vec::new();
        for table in &status.tables {
            let Some(snapshot) = &table.snapshot else {
                continue;
            };
            // Once it is copied, what was held meanwhile is added, and goes.
            let amounts = match snapshot.state.as_str() {
                "copying" => (snapshot.rows, snapshot.bytes, 0),
                "copied" => (snapshot.rows, snapshot.bytes, snapshot.held_bytes),
                _ => continue,
            };
            let known = before.get(&table.history);
            let known = known.filter(|(known, _)| *known == amounts);
            let since = known.map_or(now, |(_, since)| *since);
            still.push((table.history.clone(), (now - since).as_secs_f64()));
            self.moved.insert(table.history.clone(), (amounts, since));
        }
        still
    }

    /// For `waltrail status`, which is another process.
    async fn leave_note(&mut self, config: &Config, seen: &Seen, inside: &Inside) {
        let Ok(source) = &seen.source else { return };
        let still = inside.still.iter();
        let note = Note {
            at: source.now,
            complete: inside.complete,
            wal: inside.rate.map(|rate| rate.wal_bytes_per_second),
            rows: inside.rate.and_then(|rate| rate.rows_per_second),
            left: inside.rate.and_then(|rate| rate.seconds_left),
            still: still.max_by(|a, b| a.1.total_cmp(&b.1)).cloned(),
        };
        let statement = note.statement(&config.source.slot);
        self.looks.leave_note(config, &statement).await;
    }

    fn pause(&mut self, seen: &Seen) -> Duration {
        let left = [
            seen.source.as_ref().map(|source| source.connections_left),
            seen.target.as_ref().map(|target| target.connections_left),
        ];
        let is_scarce =
            |left: &Result<i32, _>| left.as_ref().is_ok_and(|left| *left < CONNECTIONS_MIN);
        if left.iter().any(is_scarce) {
            self.looks.leave();
            return SELDOM;
        }
        match self.progress.is_streaming() && left.iter().all(Result::is_ok) {
            true => EVERY,
            false => LATER,
        }
    }
}
