//! Asks, several times a second and on sessions of its own, how far the slot was confirmed and how far the target is.
//!
//! The slot is read first. What it says was durable in the target by then, or the checkpoint that is read afterwards is
//! behind it: also when the target has crashed in between and come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio_postgres::{Client, Error};
use waltrail::lsn::Lsn;

use crate::support::try_connect;

const PAUSE: Duration = Duration::from_millis(100);
/// A server that is about to stop may not answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Where a slot and its checkpoint are.
#[derive(Clone, Debug)]
pub struct Place {
    pub source: String,
    pub target: String,
    pub slot: String,
}

#[derive(Debug, Default)]
pub struct Sampled {
    /// Pairs that could be compared.
    pub samples: usize,
    /// Pairs in which the slot was past the checkpoint.
    pub ahead: Vec<String>,
}

/// Samples until it is stopped.
#[derive(Debug)]
pub struct Sampler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Sampled>>,
}

impl Sampler {
    pub fn start(place: Place) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(sample(&place, &stopped))
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    pub fn stop(mut self) -> Sampled {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().unwrap();
        thread.join().expect("the sampler should not panic")
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn sample(place: &Place, stop: &AtomicBool) -> Sampled {
    let mut sampled = Sampled::default();
    let (mut source, mut target) = (None, None);
    let mut begun = false;
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(PAUSE).await;
        let Some(confirmed) =
            asked(&mut source, &place.source, &confirmed_query(&place.slot)).await
        else {
            continue;
        };
        let Some(known) = asked(&mut target, &place.target, &known_query(&place.slot)).await else {
            continue;
        };
        // Until the position of a new slot is noted, the slot is unread.
        if known.is_none() && !begun {
            continue;
        }
        begun = true;
        let Some(confirmed) = confirmed else { continue };
        sampled.samples += 1;
        if known.is_none_or(|known| confirmed > known) {
            let pair = format!("the slot was at {confirmed}, the target at {known:?}");
            sampled.ahead.push(pair);
        }
    }
    sampled
}

/// How far the slot was confirmed; NULL while it is being made.
pub fn confirmed_query(slot: &str) -> String {
    format!(
        "SELECT max(confirmed_flush_lsn::text) FROM pg_replication_slots WHERE slot_name = '{slot}'"
    )
}

/// How far the target knows that the source was read.
pub fn known_query(slot: &str) -> String {
    format!(
        "SELECT max(greatest(end_lsn, reported_lsn)::text) FROM waltrail.checkpoint WHERE slot = '{slot}'"
    )
}

/// The position that a query gives; `None`: the server did not answer, or has no such table yet.
async fn asked(client: &mut Option<Client>, dsn: &str, query: &str) -> Option<Option<Lsn>> {
    if client.as_ref().is_none_or(Client::is_closed) {
        *client = try_connect(dsn).await.ok();
    }
    let asked = tokio::time::timeout(ANSWER_MAX, position(client.as_ref()?, query)).await;
    match asked {
        Ok(answer) => answer.ok(),
        Err(_) => {
            *client = None;
            None
        }
    }
}

/// The position that a query gives.
pub async fn position(client: &Client, query: &str) -> Result<Option<Lsn>, Error> {
    let row = client.query_one(query, &[]).await?;
    let text: Option<&str> = row.get(0);
    Ok(text.map(|text| text.parse().unwrap()))
}
