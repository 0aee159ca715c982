//! The copy itself: workers, each with a session at the source that sees the snapshot and one at the target.
//!
//! ```text
//!   source: COPY (SELECT ...) TO STDOUT --bytes--> COPY history FROM STDIN :target
//! ```
//!
//! A table is recorded in one target transaction, or, when it is large, in one for each worker: each takes part after
//! part of the table, and when all parts are through, they commit one after the other. Between the first and the last
//! of these commits, milliseconds, part of the rows can be seen; should the program be killed just there, `snapshot_part` says
//! what has to be removed before the next attempt. Everything else that is not finished rolls back by itself.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::point::Point;
use super::progress::Counter;
use super::tables::Work;
use crate::config::Config;
use crate::fault::{Disposition, Exit, Fault, Result};
use crate::history::writer::{Writer, WriterError};
use crate::schema::TableName;
use crate::schema::plan::literal;
use crate::server::{self, Side, answers};
use crate::wire::{self, Channel, Flow, PipeError};

/// The source need not keep a snapshot and table locks any longer for a target that has been locked or has not answered for
/// so long.
const BLOCKED_MAX: Duration = Duration::from_secs(60);

/// A table of the attempt, ready to be copied.
pub(crate) struct Job {
    pub work: Work,
    pub attempt: i32,
    pub counter: Arc<Counter>,
}

struct Worker {
    source: Channel,
    target: Writer,
}

/// Copies all tables; `copied` gets each that is recorded.
///
/// # Errors
/// The first fault; what is not recorded by then is not recorded at all, or noted as a part.
pub(crate) async fn run(
    config: &Arc<Config>,
    point: &mut Point,
    jobs: Vec<Job>,
    copied: mpsc::UnboundedSender<TableName>,
) -> Result<()> {
    let wanted = config.snapshot.workers;
    let parts: usize = jobs.iter().map(|job| job.work.parts.len()).sum();
    let mut workers = Vec::new();
    for source in readers(config, point, &jobs, wanted.min(parts)).await? {
        workers.push(Worker::new(config, source).await?);
    }
    let is_large = |job: &Job| workers.len() > 1 && job.work.removable && job.work.parts.len() > 1;
    let (large, small): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(is_large);
    let queue = Arc::new(Mutex::new(VecDeque::from(small)));
    let mut tasks = JoinSet::new();
    for mut worker in workers {
        let (holder, queue) = (Arc::clone(&point.holder), Arc::clone(&queue));
        let copied = copied.clone();
        tasks.spawn(async move {
            while let Some(job) = next(&queue) {
                let parts = Mutex::new(VecDeque::from(job.work.parts.clone()));
                worker.copy(&job, &parts).await?;
                holder.check().await?;
                worker.commit(&job, true).await?;
                let _ = copied.send(job.work.history);
            }
            Ok(worker)
        });
    }
    let mut workers = all(&mut tasks).await?;
    for job in large {
        let job = Arc::new(job);
        let parts = Arc::new(Mutex::new(VecDeque::from(job.work.parts.clone())));
        let mut tasks = JoinSet::new();
        for mut worker in workers.drain(..) {
            let (job, parts) = (Arc::clone(&job), Arc::clone(&parts));
            tasks.spawn(async move {
                worker.copy(&job, &parts).await?;
                Ok(worker)
            });
        }
        workers = all(&mut tasks).await?;
        point.holder.check().await?;
        let last = workers.len().saturating_sub(1);
        for (n, worker) in workers.iter_mut().enumerate() {
            worker.commit(&job, n == last).await?;
        }
        let _ = copied.send(job.work.history.clone());
    }
    Ok(())
}

/// The workers' sessions at the source. Each has locks of its own, taken without waiting: a session that waits for the
/// holder's locks to be gone would be waited for here, for ever and without the server seeing it. A worker that cannot
/// have them does not take part.
async fn readers(
    config: &Config,
    point: &mut Point,
    jobs: &[Job],
    wanted: usize,
) -> Result<Vec<Channel>> {
    let names: Vec<String> = jobs.iter().map(|job| job.work.lock.clone()).collect();
    let mut readers = Vec::from_iter(point.reader.take());
    while readers.len() < wanted {
        match point.holder.reader(config, &names).await? {
            Some(reader) => readers.push(reader),
            None => break,
        }
    }
    match readers.is_empty() {
        false => Ok(readers),
        true => Err(Fault::retry(
            "another session waits to lock a table that is to be copied; a new snapshot is taken after that",
        )),
    }
}

fn next<T>(queue: &Mutex<VecDeque<T>>) -> Option<T> {
    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    queue.pop_front()
}

/// Waits for all; the first fault ends the others.
async fn all<T: 'static>(tasks: &mut JoinSet<Result<T>>) -> Result<Vec<T>> {
    let mut done = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        let ended = ended.map_err(|error| answers::of_task("a worker of the snapshot", error))?;
        done.push(ended?);
    }
    Ok(done)
}

impl Worker {
    async fn new(config: &Config, source: Channel) -> Result<Self> {
        let target = Writer::connect(&config.target, &config.source.slot).await?;
        Ok(Self { source, target })
    }

    /// Copies parts until none is left, in a target transaction that stays open.
    async fn copy(&mut self, job: &Job, parts: &Mutex<VecDeque<String>>) -> Result<()> {
        self.say(&job.work, "BEGIN").await?;
        while let Some(copy_out) = next(parts) {
            let (mut rows, counter) = (0, &job.counter);
            let flowed = |flow: Flow| {
                rows += flow.messages;
                counter.add(flow.messages, flow.bytes);
            };
            let (source, target) = (&mut self.source, self.target.channel());
            let blocked = server::blocked_for(Arc::clone(target.asked()), BLOCKED_MAX);
            let copied = tokio::select! {
                copied = wire::pipe(source, &copy_out, target, &job.work.copy_in, flowed) => copied,
                () = blocked => return Err(blocked_fault(&job.work)),
            };
            let copied = copied.map_err(|error| pipe_fault(error, &job.work))?;
            // The message that ends binary data is no row.
            counter.correct(rows.saturating_sub(copied));
        }
        Ok(())
    }

    /// Commits what was copied; with `last` all of the table is.
    async fn commit(&mut self, job: &Job, last: bool) -> Result<()> {
        self.say(&job.work, &job.work.guard).await?;
        let (rows, bytes) = job.counter.now();
        let copied = format!(
            "SELECT waltrail.copied('{}', {}, {}, {last}, {rows}, {bytes})",
            self.target.slot(),
            literal(&job.work.history.to_string()),
            job.attempt
        );
        self.say(&job.work, &copied).await?;
        self.say(&job.work, "COMMIT").await
    }

    async fn say(&mut self, work: &Work, statement: &str) -> Result<()> {
        let target = self.target.channel();
        let blocked = server::blocked_for(Arc::clone(target.asked()), BLOCKED_MAX);
        let said = tokio::select! {
            said = target.simple_query(statement) => said,
            () = blocked => return Err(blocked_fault(work)),
        };
        said.map(|_| ())
            .map_err(|error| Fault::from(WriterError::from(error)))
    }
}

fn blocked_fault(work: &Work) -> Fault {
    let seconds = BLOCKED_MAX.as_secs();
    Fault::retry(format!(
        "the target has taken no rows of {} for {seconds} s, for which the source keeps a snapshot and table locks",
        work.source
    ))
    .remedy("see the warnings before; the rows are copied from the start once the target takes them")
}

fn pipe_fault(error: PipeError, work: &Work) -> Fault {
    match error {
        PipeError::Target(wire::Error::Server(mut report)) => {
            report
                .subject
                .get_or_insert_with(|| format!("table {}", work.history));
            WriterError::from(wire::Error::Server(report)).into()
        }
        PipeError::Target(error) => WriterError::from(error).into(),
        PipeError::NotAll { sent, taken } => Fault::halt(
            Exit::HistoryWouldBeWrong,
            format!("{} kept {taken} of {sent} rows of {}", work.history, work.source),
        )
        .remedy(
            "see whether a trigger on the history leaves rows out or puts them elsewhere; or set snapshot.mode = \"never\"",
        )
        .see("a-copied-table-lost-rows"),
        PipeError::Source(error) => {
            let what = format!("the source did not give the rows of {}", work.source);
            match (error.disposition(), error.server()) {
                (Disposition::Halt(Exit::NoPermission), Some(_)) => {
                    Fault::halt(Exit::NoPermission, what).remedy(format!(
                        "GRANT SELECT ON {} to the role of source.dsn",
                        work.source
                    ))
                }
                // The table has changed since it was described.
                (_, Some(report)) if report.code.starts_with("42") => {
                    Fault::new(Disposition::RetryFew, what)
                }
                (disposition, _) => Fault::new(disposition, what),
            }
            .of(Side::Source)
            .caused_by(error)
        }
    }
}
