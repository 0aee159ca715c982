//! `waltrail run`: sessions one after the other, until a signal or a definite fault ends it.
//!
//! A session that fails for a passing reason is started again after a pause that doubles up to half a minute
//! and is jittered, so that many sidecars do not come back at once. A definite fault ends the process with
//! its exit code instead of looping.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::clock;
use crate::config::Config;
use crate::report::{Disposition, Fault, Result};
use crate::session::{Ended, Format, Order, Phase, Session};
use crate::shutdown::{Signal, Signals};
use crate::snapshot::Rounds;
use crate::telemetry::http::Listener;
use crate::telemetry::log::LogGuard;
use crate::telemetry::metrics::Sources;
use crate::telemetry::progress::{Moment, Progress};
use crate::telemetry::service::Service;

const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// At most one summary in this time, and none while nothing flows.
const SUMMARY: Duration = Duration::from_secs(10);

/// The daemon.
pub struct Daemon<'a> {
    /// The settings it starts with.
    pub config: Config,
    /// Reads the settings again (SIGHUP).
    pub reload: &'a dyn Fn() -> Result<Config>,
    /// The log, whose level a reload may change.
    pub log: &'a LogGuard,
    /// Stop with exit code 75 instead of trying again.
    pub no_retry: bool,
}

/// What the operator has asked for.
enum Asked {
    Nothing,
    /// New settings: end the session and start another one.
    Restart,
    Stop,
    /// Nothing: the snapshot cannot go on.
    End(Fault),
}

/// What is looked after while a session runs.
struct Around<'a> {
    signals: &'a mut Signals,
    progress: &'a Progress,
    rounds: &'a Rounds,
    faults: &'a mut mpsc::UnboundedReceiver<Fault>,
}

/// Why the wait for a session ended.
enum Woke {
    Session(Result<Ended>),
    Snapshot(Fault),
    Signal(Signal),
    Summary,
    Watchdog,
    GraceOver,
}

impl Daemon<'_> {
    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// A definite fault, or with `no_retry` any.
    pub async fn run(mut self) -> Result<()> {
        let (rounds, faults) = Rounds::new(self.no_retry);
        let ended = self.follow(&rounds, faults).await;
        tell_redone(&rounds);
        ended
    }

    async fn follow(
        &mut self,
        rounds: &Rounds,
        mut faults: mpsc::UnboundedReceiver<Fault>,
    ) -> Result<()> {
        let mut signals = Signals::install()
            .map_err(|error| Fault::bug("signals cannot be handled").caused_by(error))?;
        let progress = Arc::new(Progress::default());
        let service = Service;
        let mut backoff = pauses();
        let mut format = Format::Binary;
        let mut phase = Phase::CatchUp;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            source = %self.config.source.connection,
            target = %self.config.target,
            slot = self.config.source.slot,
            tables = self.config.tables.len(),
            "started"
        );
        if let Some(address) = self.config.http {
            let sources = Sources {
                progress: Arc::clone(&progress),
                snapshot: rounds.shared(),
            };
            tokio::spawn(Listener::bind(address).await?.serve(sources));
        }
        loop {
            let (orders, orders_rx) = watch::channel(Order::Run);
            let on_streaming = || {
                progress.streaming(true);
                service.ready();
                service.status("streaming");
                tracing::info!("streaming");
            };
            let config = self.config.clone();
            let session = Session {
                config: &config,
                orders: orders_rx,
                format,
                phase,
                progress: Arc::clone(&progress),
                rounds,
                on_streaming: &on_streaming,
            };
            let (began, before) = (Instant::now(), progress.moment().batches);
            let mut around = Around {
                signals: &mut signals,
                progress: &progress,
                rounds,
                faults: &mut faults,
            };
            let (asked, ended) = self.attend(session, &orders, &mut around).await;
            let streamed = progress.is_streaming();
            // Between catching up and streaming the daemon is as ready as before.
            let goes_on = matches!(ended, Some(Ok(Ended::CaughtUp { .. })));
            progress.streaming(streamed && goes_on);
            // A session that did nothing but start does not show that the fault has passed.
            let worked = progress.moment().batches > before || began.elapsed() >= BACKOFF_MAX;
            if streamed && worked {
                backoff = pauses();
            }
            // A backlog without anything of ours cannot move the slot: keepalives do.
            phase = match ended {
                Some(Ok(Ended::CaughtUp { anything: false })) => Phase::Stream,
                _ => Phase::CatchUp,
            };
            match ended {
                _ if let Asked::End(fault) = asked => return Err(fault),
                None => return Ok(()),
                Some(Ok(_)) if matches!(asked, Asked::Stop) => {
                    let Moment {
                        rows,
                        applied,
                        confirmed,
                        ..
                    } = progress.moment();
                    tracing::info!(rows, applied = %applied, confirmed = %confirmed, "stopped");
                    return Ok(());
                }
                Some(Ok(Ended::NeedsText)) => format = Format::Text,
                Some(Ok(Ended::CaughtUp { .. } | Ended::Abandoned)) => {}
                // What the catalogs allow now is theirs to say.
                Some(Ok(Ended::Drained | Ended::NeedsCatalogs)) => format = Format::Binary,
                Some(Err(fault)) => {
                    let transient = fault.disposition() == Disposition::Retry;
                    let remedy = fault.remedy_text().unwrap_or_default().to_owned();
                    if matches!(asked, Asked::Stop) && transient {
                        tracing::warn!(error = %fault, "stopped before everything at hand was written; it comes again at the next start");
                        return Ok(());
                    }
                    if !transient || self.no_retry {
                        return Err(fault);
                    }
                    progress.failed();
                    let pause = backoff.next().unwrap_or(BACKOFF_MAX).min(BACKOFF_MAX);
                    let retry_in_ms = pause.as_millis() as u64;
                    tracing::error!(error = %fault, remedy, retry_in_ms, "the session failed and is started again");
                    service.status("waiting to connect again");
                    if self.pause(pause, &mut signals).await {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Waits for a session and serves signals meanwhile. `None`: leave now.
    async fn attend(
        &mut self,
        session: Session<'_>,
        orders: &watch::Sender<Order>,
        around: &mut Around<'_>,
    ) -> (Asked, Option<Result<Ended>>) {
        let progress = around.progress;
        let running = session.run();
        tokio::pin!(running);
        let service = Service;
        let mut summary = tokio::time::interval_at(Instant::now() + SUMMARY, SUMMARY);
        summary.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watchdog = service.watchdog_interval().map(tokio::time::interval);
        let mut last = progress.moment();
        let mut asked = Asked::Nothing;
        let mut grace_over: Option<Instant> = None;
        loop {
            let woke = tokio::select! {
                ended = &mut running => Woke::Session(ended),
                Some(fault) = around.faults.recv() => Woke::Snapshot(fault),
                signal = around.signals.next() => Woke::Signal(signal),
                _ = summary.tick() => Woke::Summary,
                () = tick(&mut watchdog) => Woke::Watchdog,
                () = at(grace_over) => Woke::GraceOver,
            };
            match woke {
                Woke::Session(ended) => return (asked, Some(ended)),
                Woke::Snapshot(fault) => {
                    asked = Asked::End(fault);
                    grace_over = Some(Instant::now() + self.config.shutdown.grace);
                    orders.send_replace(Order::Drain);
                }
                Woke::Signal(Signal::Stop) if matches!(asked, Asked::End(_)) => {}
                Woke::Signal(Signal::Stop) => {
                    tracing::info!("stopping: finishing what is at hand");
                    tell_redone(around.rounds);
                    service.stopping();
                    asked = Asked::Stop;
                    grace_over = Some(Instant::now() + self.config.shutdown.grace);
                    orders.send_replace(Order::Drain);
                }
                Woke::Signal(Signal::StopNow) => {
                    tracing::warn!(
                        "stopping at once; what was not committed comes again at the next start"
                    );
                    return (Asked::Stop, None);
                }
                Woke::GraceOver if matches!(asked, Asked::End(_)) => return (asked, None),
                Woke::GraceOver => {
                    tracing::warn!(
                        "the grace is over; what was not committed comes again at the next start"
                    );
                    return (Asked::Stop, None);
                }
                Woke::Signal(Signal::Reload) if matches!(asked, Asked::Nothing) => {
                    service.reloading();
                    let before = self.config.clone();
                    if self.reload() {
                        if !goes_on(&before, &self.config) {
                            tell_redone(around.rounds);
                        }
                        asked = Asked::Restart;
                        orders.send_replace(Order::Drain);
                    } else {
                        service.ready();
                    }
                }
                Woke::Signal(Signal::Reload) => {}
                Woke::Signal(Signal::Status) => tell("status", progress, &last, None),
                Woke::Summary => {
                    let now = progress.moment();
                    if now.rows != last.rows {
                        tell("summary", progress, &last, Some(SUMMARY));
                    }
                    last = now;
                }
                Woke::Watchdog => service.alive(),
            }
        }
    }

    /// Reads the settings again; true when the session has to be started again for them.
    fn reload(&mut self) -> bool {
        match (self.reload)() {
            Ok(config) => {
                self.log.set_level(config.log.level);
                let mut same = config.clone();
                same.log = self.config.log;
                if config.http != self.config.http {
                    tracing::warn!("`http.listen` has changed, and is read at the start only");
                    same.http = self.config.http;
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
                false
            }
        }
    }

    /// Waits before the next session; true when told to stop.
    async fn pause(&mut self, pause: Duration, signals: &mut Signals) -> bool {
        let until = Instant::now() + pause;
        let mut watchdog = Service.watchdog_interval().map(tokio::time::interval);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return false,
                () = tick(&mut watchdog) => Service.alive(),
                signal = signals.next() => match signal {
                    Signal::Stop | Signal::StopNow => {
                        Service.stopping();
                        tracing::info!("stopped while waiting to connect again");
                        return true;
                    }
                    Signal::Reload => {
                        self.reload();
                        return false;
                    }
                    Signal::Status => tracing::info!("waiting to connect again"),
                },
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

/// Ends the snapshot where it is, and says what that costs.
fn tell_redone(rounds: &Rounds) {
    let redone = rounds.stop();
    if !redone.is_empty() {
        let tables: Vec<String> = redone.iter().map(ToString::to_string).collect();
        tracing::warn!(
            histories = tables.join(", "),
            "the existing rows of these tables were still being recorded: the next start begins with them again"
        );
    }
}

fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(BACKOFF_MIN)
        .with_max_delay(BACKOFF_MAX)
        .with_jitter()
        .without_max_times()
        .build()
}

async fn tick(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn tell(what: &'static str, progress: &Progress, last: &Moment, over: Option<Duration>) {
    let now = progress.moment();
    let lag_seconds = progress.lag_seconds(clock::now());
    let rows_per_second = over.map(|over| (now.rows - last.rows) as f64 / over.as_secs_f64());
    tracing::info!(
        rows = now.rows,
        transactions = now.transactions,
        batches = now.batches,
        unavailable_values = now.unavailable,
        rows_per_second,
        lag_seconds,
        received = %now.received,
        applied = %now.applied,
        confirmed = %now.confirmed,
        "{what}"
    );
    Service.status(&format!(
        "streaming; {} rows, history ends at {}",
        now.rows, now.applied
    ));
}
