//! `waltrail run`: sessions one after the other, until a signal or a definite fault ends it.
//!
//! A session that fails for a passing reason is started again after a pause (`fault/retries.rs`). A definite fault ends the
//! process with its exit code instead of looping.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::clock;
use crate::config::Config;
use crate::fault::{Fault, Passed, Result, Retries, Side};
use crate::lsn::Lsn;
use crate::pipeline::Altered;
use crate::server::{answers, waits};
use crate::session::{Ended, Format, Order, Phase, Session};
use crate::shutdown::{Signal, Signals};
use crate::snapshot::TableSyncs;
use crate::telemetry::board::Board;
use crate::telemetry::http::Listener;
use crate::telemetry::log::LogGuard;
use crate::telemetry::metrics::Sources;
use crate::telemetry::observer::{self, Observed};
use crate::telemetry::progress::{Moment, Progress};
use crate::telemetry::service::Service;
use crate::telemetry::warnings;
use crate::telemetry::watchdog;

/// At most one summary in this time, and none while nothing flows.
const SUMMARY: Duration = Duration::from_secs(10);

/// How many shapes of altered tables are remembered.
const ALTERED_MAX: usize = 1_000;

pub(crate) struct Daemon<'a> {
    pub config: Config,
    /// Reads the settings again (SIGHUP).
    pub reload: &'a dyn Fn() -> Result<Config>,
    /// The log, whose level a reload may change.
    pub log: &'a LogGuard,
    /// Stop with exit code 75 instead of trying again.
    pub no_retry: bool,
    /// The commit position of a transaction that is to be left out.
    pub skip_transaction: Option<Lsn>,
}

/// What was asked for while a session ran.
enum Requested {
    Nothing,
    /// New settings: end the session and start another one.
    Restart,
    Stop,
    Fail(Fault),
}

/// What ended the wait for a session.
enum Event {
    Session(Result<Ended>),
    Snapshot(Fault),
    Signal(Signal),
    Summary,
    /// What is waited for has changed.
    Waits,
    GraceOver,
}

enum Next {
    Session,
    SessionAfter(Duration),
    End,
}

struct Run<'a> {
    daemon: Daemon<'a>,
    signals: Signals,
    progress: Arc<Progress>,
    syncs: TableSyncs,
    snapshot_faults: mpsc::UnboundedReceiver<Fault>,
    /// The start of a session, which is noticed inside it, ends some.
    retries: Mutex<Retries>,
    /// A session has been up: see `Credentials::note_up`.
    up: AtomicBool,
    format: Format,
    phase: Phase,
    /// Transactions that end up to here are written one by one, since one of them is refused.
    one_by_one: Lsn,
    /// Shapes of tables that the histories are prepared for at every start of a session.
    altered: Vec<Altered>,
    /// For the observer: the configuration of the present session.
    configs: watch::Sender<Arc<Config>>,
    observed: Observed,
}

impl<'a> Daemon<'a> {
    pub(crate) async fn run(self) -> Result<()> {
        let (syncs, snapshot_faults) = TableSyncs::new(self.no_retry);
        let signals = Signals::install()
            .map_err(|error| Fault::bug("signals cannot be handled").caused_by(error))?;
        let (pictures, observed) = Observed::channel();
        let configs = watch::Sender::new(Arc::new(self.config.clone()));
        let mut run = Run {
            daemon: self,
            signals,
            progress: Arc::new(Progress::default()),
            syncs,
            snapshot_faults,
            retries: Mutex::default(),
            up: AtomicBool::new(false),
            format: Format::Binary,
            phase: Phase::CatchUp,
            one_by_one: Lsn::ZERO,
            altered: Vec::new(),
            configs,
            observed,
        };
        let (configs, progress) = (run.configs.subscribe(), Arc::clone(&run.progress));
        let observer = tokio::spawn(observer::run(configs, pictures, progress));
        let ended = run.follow().await;
        observer.abort();
        stop_copies(&run.syncs);
        if let Err(fault) = &ended {
            crate::session::remember(&run.daemon.config, fault).await;
        }
        ended
    }
}

impl Run<'_> {
    async fn follow(&mut self) -> Result<()> {
        let config = &self.daemon.config;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            source = %config.source.connection,
            target = %config.target,
            slot = config.source.slot,
            tables = config.tables.len(),
            "started"
        );
        let progress = Arc::clone(&self.progress);
        tokio::spawn(warnings::follow(self.observed.clone(), progress));
        Service.status("starting");
        if let Some(http) = &config.http {
            let sources = Sources::new(
                Arc::clone(&self.progress),
                self.syncs.shared(),
                self.daemon.log.lines_dropped(),
            )
            .observed(self.observed.clone());
            let board = Board {
                observed: self.observed.clone(),
                events: self.daemon.log.events(),
            };
            Listener::bind(http).await?.serve(sources, board)?;
        }
        loop {
            self.tell_observer(&self.daemon.config);
            let (requested, ended) = self.session().await;
            match self.after(requested, ended)? {
                Next::Session => {}
                Next::SessionAfter(pause) => {
                    if self.pause(pause).await {
                        return Ok(());
                    }
                }
                Next::End => return Ok(()),
            }
        }
    }

    /// Decides what follows a session that ended like this; `None`: it was left.
    fn after(&mut self, requested: Requested, ended: Option<Result<Ended>>) -> Result<Next> {
        let worked = self.progress.is_streaming();
        // Between catching up and streaming, the daemon is as ready as before.
        let ready = worked
            && matches!(ended, Some(Ok(Ended::CaughtUp { .. })))
            && matches!(requested, Requested::Nothing);
        self.progress.streaming(ready);
        // A backlog without anything of ours cannot move the slot: keepalives do.
        self.phase = match ended {
            Some(Ok(Ended::CaughtUp { anything: false })) => Phase::Stream,
            _ => Phase::CatchUp,
        };
        let stop = match requested {
            Requested::Fail(fault) => return Err(fault),
            Requested::Stop => true,
            Requested::Nothing | Requested::Restart => false,
        };
        match ended {
            None => Ok(Next::End),
            Some(Ok(_)) if stop => {
                let now = self.progress.moment();
                tracing::info!(rows = now.rows, applied = %now.applied, confirmed = %now.confirmed, "stopped");
                Ok(Next::End)
            }
            Some(Ok(ended)) => {
                self.format = match (&ended, self.format) {
                    (Ended::NeedsText, _) => Format::Text,
                    // The catalogs decide anew.
                    (Ended::Drained | Ended::Altered(_) | Ended::Refused, _) => Format::Binary,
                    (Ended::CaughtUp { .. } | Ended::Abandoned, format) => format,
                };
                if let Ended::Altered(altered) = ended {
                    self.remember(*altered);
                }
                Ok(Next::Session)
            }
            Some(Err(fault)) if stop && fault.may_pass() => {
                tracing::warn!(error = %fault, "stopped before everything received was written; it comes again at the next start");
                Ok(Next::End)
            }
            Some(Err(fault)) if !stop && self.takes_apart(&fault) => Ok(Next::Session),
            Some(Err(fault)) => self.retry(fault, worked).map(Next::SessionAfter),
        }
    }

    /// Whether one of several transactions was refused, and the next session is to find out which.
    fn takes_apart(&mut self, fault: &Fault) -> bool {
        let Some(end_lsn) = fault.among().filter(|end_lsn| *end_lsn > self.one_by_one) else {
            return false;
        };
        self.one_by_one = end_lsn;
        tracing::info!(error = %fault, up_to = %end_lsn, "writing transactions one by one to find the one that is refused");
        true
    }

    /// A shape that is forgotten is found again when it comes.
    fn remember(&mut self, altered: Altered) {
        if self.altered.len() >= ALTERED_MAX {
            self.altered.remove(0);
        }
        self.altered.push(altered);
    }

    /// How long to wait before the next session, if the fault may pass by itself. `worked`: the session had come to work.
    fn retry(&mut self, fault: Fault, worked: bool) -> Result<Duration> {
        if self.daemon.no_retry {
            return Err(fault);
        }
        let applied = self.progress.moment().applied;
        let now = Instant::now().into_std();
        let (retry, fault) = locked(&self.retries).after(fault, applied, worked, now)?;
        self.progress.failed(fault.side().map(Side::name));
        retry.log(&fault, "the session failed and is started again");
        Service.status(&format!("waiting to connect again: {fault}"));
        Ok(retry.pause)
    }

    /// Runs a session and serves signals meanwhile. `None`: leave now.
    async fn session(&mut self) -> (Requested, Option<Result<Ended>>) {
        let (orders, orders_rx) = watch::channel(Order::Run);
        let progress = Arc::clone(&self.progress);
        let config = self.daemon.config.clone();
        if self.up.load(Ordering::Relaxed) {
            // Also those of a configuration that was read since.
            note_up(&config);
        }
        let on_streaming = || {
            note_up(&config);
            note_streaming(&self.up, &progress, &self.retries);
        };
        let altered = self.altered.clone();
        let session = Session {
            config: &config,
            orders: orders_rx,
            format: self.format,
            phase: self.phase,
            one_by_one: self.one_by_one,
            skip: self.daemon.skip_transaction,
            altered: &altered,
            progress: Arc::clone(&self.progress),
            syncs: &self.syncs,
            on_streaming: &on_streaming,
        };
        let mut running = std::pin::pin!(answers::checked(session.run()));
        let (mut summary, mut looks) = (summaries(), looks());
        let mut waits = waits();
        let mut last = progress.moment();
        let mut requested = Requested::Nothing;
        let mut grace_over: Option<Instant> = None;
        loop {
            let event = tokio::select! {
                ended = &mut running => Event::Session(ended),
                Some(fault) = self.snapshot_faults.recv() => Event::Snapshot(fault),
                signal = self.signals.next() => Event::Signal(signal),
                _ = summary.tick() => Event::Summary,
                _ = looks.tick() => { look(&progress); continue }
                Ok(()) = waits.changed() => Event::Waits,
                () = at(grace_over) => Event::GraceOver,
            };
            let flow = match event {
                Event::Session(ended) => return (requested, Some(ended)),
                Event::Summary => {
                    last = log_summary(&progress, last);
                    note_going_on(&progress, &self.retries);
                    ControlFlow::Continue(requested)
                }
                Event::Signal(Signal::Status) => {
                    log_progress("status", &progress, &last, None);
                    ControlFlow::Continue(requested)
                }
                event => self.daemon.serve(event, requested, &self.syncs),
            };
            requested = match flow {
                ControlFlow::Continue(requested) => requested,
                ControlFlow::Break(requested) => return (requested, None),
            };
            if matches!(requested, Requested::Restart) {
                orders.send_replace(Order::Drain);
            }
            if matches!(requested, Requested::Stop | Requested::Fail(_)) && grace_over.is_none() {
                grace_over = Some(Instant::now() + self.daemon.config.shutdown.grace);
                orders.send_replace(Order::Drain);
            }
        }
    }

    fn tell_observer(&self, config: &Config) {
        self.configs.send_if_modified(|known| {
            let is_new = **known != *config;
            if is_new {
                *known = Arc::new(config.clone());
            }
            is_new
        });
    }

    /// Waits before the next session; true when a signal ended the wait.
    async fn pause(&mut self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let (mut looks, mut waits) = (looks(), waits());
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return false,
                _ = looks.tick() => look(&self.progress),
                Ok(()) = waits.changed() => show_waits(),
                signal = self.signals.next() => match signal {
                    Signal::Stop | Signal::StopNow => {
                        Service.stopping();
                        tracing::info!("stopped while waiting to connect again");
                        return true;
                    }
                    Signal::Reload => {
                        self.daemon.reload();
                        return false;
                    }
                    Signal::Status => tracing::info!("waiting to connect again"),
                },
            }
        }
    }
}

impl Daemon<'_> {
    /// What is requested after an event. `Break`: leave the session now.
    fn serve(
        &mut self,
        event: Event,
        requested: Requested,
        syncs: &TableSyncs,
    ) -> ControlFlow<Requested, Requested> {
        match (event, requested) {
            (Event::Snapshot(fault), _) => ControlFlow::Continue(Requested::Fail(fault)),
            (Event::Signal(Signal::Stop), Requested::Fail(fault)) => {
                ControlFlow::Continue(Requested::Fail(fault))
            }
            (Event::Signal(Signal::Stop), _) => {
                tracing::info!("stopping: finishing what was received");
                stop_copies(syncs);
                Service.stopping();
                ControlFlow::Continue(Requested::Stop)
            }
            (Event::Signal(Signal::StopNow), _) => {
                tracing::warn!(
                    "stopping at once; what was not committed comes again at the next start"
                );
                ControlFlow::Break(Requested::Stop)
            }
            (Event::GraceOver, Requested::Fail(fault)) => {
                ControlFlow::Break(Requested::Fail(fault))
            }
            (Event::GraceOver, _) => {
                tracing::warn!(
                    "the grace is over; what was not committed comes again at the next start"
                );
                ControlFlow::Break(Requested::Stop)
            }
            (Event::Signal(Signal::Reload), Requested::Nothing) => {
                let restart = self.reload_while_running(syncs);
                ControlFlow::Continue(match restart {
                    true => Requested::Restart,
                    false => Requested::Nothing,
                })
            }
            (Event::Waits, requested) => {
                show_waits();
                ControlFlow::Continue(requested)
            }
            // They are served where the session is waited for, or change nothing.
            (
                Event::Session(_) | Event::Summary | Event::Signal(Signal::Status | Signal::Reload),
                requested,
            ) => ControlFlow::Continue(requested),
        }
    }

    /// Reads the settings again while a session runs; true when it has to be started again for them.
    fn reload_while_running(&mut self, syncs: &TableSyncs) -> bool {
        Service.reloading();
        let before = self.config.clone();
        let restart = self.reload();
        if !restart {
            Service.ready();
        } else if !goes_on(&before, &self.config) {
            stop_copies(syncs);
        }
        restart
    }

    /// Reads the settings again; true when the session has to be started again for them.
    fn reload(&mut self) -> bool {
        match (self.reload)() {
            Ok(config) => {
                Service.refuses(false);
                self.log.set(&config.log);
                let mut same = config.clone();
                same.log.clone_from(&self.config.log);
                if config.http != self.config.http {
                    tracing::warn!("`[http]` has changed, and is read at the start only");
                    same.http.clone_from(&self.config.http);
                }
                let restart = same != self.config;
                self.config = config;
                tracing::info!(
                    restart,
                    tables = self.config.tables.len(),
                    "configuration read again"
                );
                restart
            }
            Err(fault) => {
                let remedy = fault.remedy_text().unwrap_or_default();
                tracing::error!(error = %fault, remedy, "the new configuration is refused; the old one stays");
                Service.refuses(true);
                false
            }
        }
    }
}

/// Whether copies that are on their way are still what the settings ask for: tables may have been added.
fn goes_on(before: &Config, now: &Config) -> bool {
    before.source == now.source
        && before.target == now.target
        && before.snapshot == now.snapshot
        && before.tables.iter().all(|table| now.tables.contains(table))
}

/// A session has been up with these settings, or with those that they replace: see `Credentials::note_up`.
fn note_up(config: &Config) {
    for connection in [&config.source.connection, &config.target] {
        connection.credentials().note_up();
    }
}

fn note_streaming(up: &AtomicBool, progress: &Progress, retries: &Mutex<Retries>) {
    up.store(true, Ordering::Relaxed);
    progress.streaming(true);
    Service.ready();
    Service.status("streaming");
    log_passed(locked(retries).connected(clock::monotonic()));
    tracing::info!("streaming");
}

/// Ends the snapshot where it is, and logs what begins again.
fn stop_copies(syncs: &TableSyncs) {
    let redone = syncs.stop();
    if !redone.is_empty() {
        let tables: Vec<String> = redone.iter().map(ToString::to_string).collect();
        tracing::warn!(
            histories = tables.join(", "),
            "the existing rows of these tables were still being recorded: the next start begins with them again"
        );
    }
}

fn summaries() -> tokio::time::Interval {
    let mut summaries = tokio::time::interval_at(Instant::now() + SUMMARY, SUMMARY);
    summaries.set_missed_tick_behavior(MissedTickBehavior::Delay);
    summaries
}

/// When the tasks are looked at, and the service manager hears that they move.
fn looks() -> tokio::time::Interval {
    let due = Service.watchdog_interval().unwrap_or(watchdog::LOOK);
    let mut looks = tokio::time::interval(due.min(watchdog::LOOK));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks
}

/// Tells the service manager that the tasks move, or the log that one does not.
fn look(progress: &Progress) {
    let known = progress.watchdog.stuck();
    let stuck = progress.watchdog.look(clock::monotonic());
    match (stuck, known) {
        (None, None) => {}
        (None, Some(known)) => tracing::info!(task = known.task, "the task moves again"),
        (Some(stuck), None) => tracing::error!(
            task = stuck.task,
            seconds = stuck.still.as_secs(),
            remedy = "restart it, and report this with the log around this line",
            "{stuck}: the service manager's watchdog is not fed"
        ),
        (Some(_), Some(_)) => {}
    }
    if stuck.is_none() {
        Service.alive();
    }
}

/// What had failed before may be done.
fn note_going_on(progress: &Progress, retries: &Mutex<Retries>) {
    if progress.is_streaming() {
        let applied = progress.moment().applied;
        log_passed(locked(retries).going_on(applied, clock::monotonic()));
    }
}

fn locked(retries: &Mutex<Retries>) -> std::sync::MutexGuard<'_, Retries> {
    retries.lock().unwrap_or_else(PoisonError::into_inner)
}

fn log_passed(passed: Option<Passed>) {
    if let Some(passed) = passed {
        passed.log();
    }
}

/// Tells the service manager what is waited for, or that nothing is any more.
fn show_waits() {
    let waits = waits();
    let waits = waits.borrow();
    let first = waits.values().next();
    Service.waits(first.map(|(since, what)| format!("{what}, since {}", clock::utc(*since))));
}
async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn log_summary(progress: &Progress, last: Moment) -> Moment {
    let now = progress.moment();
    if now.rows != last.rows {
        log_progress("summary", progress, &last, Some(SUMMARY));
    }
    now
}

fn log_progress(what: &'static str, progress: &Progress, last: &Moment, over: Option<Duration>) {
    let (now, positions) = (progress.moment(), progress.positions());
    let lag_seconds = progress.lag_seconds(clock::now());
    let rows_per_second = over.map(|over| (now.rows - last.rows) as f64 / over.as_secs_f64());
    tracing::info!(
        rows = now.rows,
        transactions = now.transactions,
        batches = now.batches,
        unavailable_values = now.unavailable,
        rows_per_second,
        lag_seconds,
        received = %positions.received,
        applied = %positions.applied,
        confirmed = %positions.confirmed,
        "{what}"
    );
    Service.status(&format!(
        "streaming; {} rows, history ends at {}",
        now.rows, now.applied
    ));
}
