//! A random workload, on `employees` or what a test says, from several clients at once, on a thread and a runtime of its own,
//! so that a test that blocks while it stops a server does not stop the load with it.
//!
//! The seed fixes what each client does, not how the clients interleave. Clients go on when statements
//! fail and connect again when the server has gone: what really committed is in the oracle, which lives
//! in the same database.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio_postgres::{Client, Error};

use super::{BOUND, try_connect};

/// How many clients work at once.
const CLIENTS: u64 = 4;

/// What is to be done, and how fast.
#[derive(Clone, Debug)]
pub struct Plan {
    dsn: String,
    seed: u64,
    pause: Duration,
    statement: fn(&mut Rng) -> String,
}

impl Plan {
    /// Clients without pauses.
    pub fn new(dsn: impl Into<String>, seed: u64) -> Self {
        Self {
            dsn: dsn.into(),
            seed,
            pause: Duration::ZERO,
            statement,
        }
    }

    /// What a client says, instead of changes of `employees`.
    #[must_use]
    pub fn statements(mut self, statement: fn(&mut Rng) -> String) -> Self {
        self.statement = statement;
        self
    }

    /// How long each client rests after each transaction.
    #[must_use]
    pub fn pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// Sets the clients to work.
    pub fn start(self) -> Load {
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let tasks: Vec<_> = (0..CLIENTS)
                    .map(|number| {
                        let client = Worker {
                            rng: Rng::with_seed(self.seed.wrapping_mul(1_000_003) + number),
                            plan: self.clone(),
                            state: Arc::clone(&shared),
                        };
                        tokio::spawn(client.work())
                    })
                    .collect();
                for task in tasks {
                    task.await.unwrap();
                }
            });
        });
        Load {
            state,
            thread: Some(thread),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    stop: AtomicBool,
    committed: AtomicU64,
    rolled_back: AtomicU64,
    connections: AtomicU64,
}

/// What the clients did. A commit whose answer was lost counts as rolled back.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub committed: u64,
    pub rolled_back: u64,
    pub connections: u64,
}

/// Clients at work. Stopped when dropped.
#[derive(Debug)]
pub struct Load {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// What has been done so far.
    pub fn so_far(&self) -> Done {
        let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Done {
            committed: count(&self.state.committed),
            rolled_back: count(&self.state.rolled_back),
            connections: count(&self.state.connections),
        }
    }

    /// Waits until so many more transactions have committed.
    pub async fn more(&self, transactions: u64) {
        let goal = self.so_far().committed + transactions;
        let start = Instant::now();
        while self.so_far().committed < goal {
            assert!(
                start.elapsed() < BOUND,
                "the load does not get on: {:?}",
                self.so_far()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Lets every client finish its transaction, and ends.
    pub fn stop(mut self) -> Done {
        self.end();
        self.so_far()
    }

    fn end(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let outcome = thread.join();
            if !std::thread::panicking() {
                outcome.expect("the load should not panic");
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

struct Worker {
    plan: Plan,
    state: Arc<State>,
    rng: Rng,
}

impl Worker {
    async fn work(mut self) {
        while !self.state.stop.load(Ordering::Relaxed) {
            let Ok(client) = try_connect(&self.plan.dsn).await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            self.state.connections.fetch_add(1, Ordering::Relaxed);
            // Somebody else's lock must not keep the load from ending.
            let _ = client.batch_execute("SET lock_timeout = '2s'").await;
            while !client.is_closed() && !self.state.stop.load(Ordering::Relaxed) {
                let counter = match self.transaction(&client).await {
                    Ok(true) => &self.state.committed,
                    Ok(false) => &self.state.rolled_back,
                    Err(_) => {
                        let _ = client.batch_execute("ROLLBACK").await;
                        &self.state.rolled_back
                    }
                };
                counter.fetch_add(1, Ordering::Relaxed);
                if !self.plan.pause.is_zero() {
                    tokio::time::sleep(self.plan.pause).await;
                }
            }
        }
    }

    /// One transaction; whether it committed.
    async fn transaction(&mut self, client: &Client) -> Result<bool, Error> {
        // A statement by itself is the most frequent transaction of all.
        if self.rng.u8(..10) < 3 {
            let sql = (self.plan.statement)(&mut self.rng);
            client.batch_execute(&sql).await?;
            return Ok(true);
        }
        client.batch_execute("BEGIN").await?;
        for _ in 0..self.rng.u8(1..6) {
            match self.rng.u8(..10) {
                0 => {
                    let (lost, kept) = (
                        (self.plan.statement)(&mut self.rng),
                        (self.plan.statement)(&mut self.rng),
                    );
                    client.batch_execute("SAVEPOINT a").await?;
                    client.batch_execute(&lost).await?;
                    client.batch_execute("ROLLBACK TO a").await?;
                    client.batch_execute(&kept).await?;
                }
                1 => {
                    let (first, second) = (
                        (self.plan.statement)(&mut self.rng),
                        (self.plan.statement)(&mut self.rng),
                    );
                    client.batch_execute("SAVEPOINT a").await?;
                    client.batch_execute(&first).await?;
                    client.batch_execute("RELEASE a").await?;
                    client.batch_execute(&second).await?;
                }
                _ => {
                    let sql = (self.plan.statement)(&mut self.rng);
                    client.batch_execute(&sql).await?;
                }
            }
        }
        let commits = self.rng.u8(..10) > 0;
        let end = if commits { "COMMIT" } else { "ROLLBACK" };
        client.batch_execute(end).await?;
        Ok(commits)
    }
}

/// One change of some rows; whichever rows are there.
pub fn statement(rng: &mut Rng) -> String {
    let department = ["CANARY_7f3a", "R&D", "naïve \"quoted\" \\ tab\t", ""][rng.usize(..4)];
    let name: String = (0..rng.usize(..12)).map(|_| rng.alphanumeric()).collect();
    let salary = match rng.u8(..10) {
        0 => "NULL".to_owned(),
        1 => "'NaN'".to_owned(),
        2 => format!("{}.00", rng.i32(-1_000..1_000)),
        _ => format!("{}.{:03}", rng.u32(..100_000), rng.u32(..1_000)),
    };
    // Somewhere among the rows that are there; the sequence tells how far they go.
    let some = format!(
        "(SELECT id FROM employees WHERE id >= \
         (SELECT last_value FROM employees_id_seq) * {:.4} ORDER BY id LIMIT {})",
        rng.f64(),
        rng.u8(1..4)
    );
    match rng.u8(..20) {
        0..=6 => format!(
            "INSERT INTO employees (name, department, salary) \
             VALUES ('{name}', '{department}', {salary})"
        ),
        7..=8 => format!(
            "INSERT INTO employees (name, department, salary) \
             SELECT '{name}' || n, NULL, {salary} FROM generate_series(1, {}) n",
            rng.u8(1..8)
        ),
        9..=13 => format!("UPDATE employees SET salary = {salary} WHERE id IN {some}"),
        14 => format!("UPDATE employees SET name = name WHERE id IN {some}"),
        15 => format!(
            "UPDATE employees SET id = nextval('employees_id_seq'), name = '{name}' \
             WHERE id IN {some}"
        ),
        16 => format!(
            "INSERT INTO employees (id, name) SELECT id, '{name}' FROM employees \
             WHERE id IN {some} ON CONFLICT (id) DO UPDATE SET name = excluded.name"
        ),
        _ => format!("DELETE FROM employees WHERE id IN {some}"),
    }
}
