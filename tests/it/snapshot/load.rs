//! Clients that change the very rows that are being copied.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::support::{BOUND, try_connect};
use fastrand::Rng;

/// Stopped when dropped.
pub struct Churn {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Churn {
    /// Three clients with a thread of their own.
    pub fn start(dsn: &str, seed: u64) -> Self {
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (dsn, stopped, counter) = (dsn.to_owned(), Arc::clone(&stop), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let clients = (0..3).map(|n| {
                    let (dsn, stopped, counter) =
                        (dsn.clone(), Arc::clone(&stopped), Arc::clone(&counter));
                    tokio::spawn(client(dsn, Rng::with_seed(seed * 31 + n), stopped, counter))
                });
                for client in clients.collect::<Vec<_>>() {
                    client.await.unwrap();
                }
            });
        });
        Self {
            stop,
            done,
            thread: Some(thread),
        }
    }

    /// Waits for so many more transactions.
    pub async fn more(&self, transactions: u64) {
        let goal = self.done.load(Ordering::Relaxed) + transactions;
        let start = Instant::now();
        while self.done.load(Ordering::Relaxed) < goal {
            assert!(start.elapsed() < BOUND, "the load does not get on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Lets every client finish.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.end();
    }
}

async fn client(dsn: String, mut rng: Rng, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) {
    while !stop.load(Ordering::Relaxed) {
        let Ok(client) = try_connect(&dsn).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        while !client.is_closed() && !stop.load(Ordering::Relaxed) {
            let statements: Vec<String> = (0..rng.u8(1..5)).map(|_| statement(&mut rng)).collect();
            let end = if rng.u8(..10) == 0 {
                "ROLLBACK"
            } else {
                "COMMIT"
            };
            // Two clients may want the same rows in another order.
            let sql = format!("BEGIN; {}; {end}", statements.join("; "));
            if client.batch_execute(&sql).await.is_ok() {
                done.fetch_add(1, Ordering::Relaxed);
            } else {
                let _ = client.batch_execute("ROLLBACK").await;
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }
}

fn statement(rng: &mut Rng) -> String {
    let table = ["bare", "parted", "wide", "employees"][rng.usize(..4)];
    let id = rng.u32(1..20_000);
    if table == "employees" {
        return match rng.u8(..4) {
            0 => format!("INSERT INTO employees (name, salary) VALUES ('new', {id})"),
            1 => format!("DELETE FROM employees WHERE id = {id}"),
            2 => format!("UPDATE employees SET id = nextval('employees_id_seq') WHERE id = {id}"),
            _ => format!(
                "UPDATE employees SET salary = {}.5 WHERE id = {id}",
                rng.u16(..)
            ),
        };
    }
    match rng.u8(..4) {
        // Given out by the database, so that no two clients make the same.
        0 => format!("INSERT INTO {table} VALUES (nextval('fresh')::int, 'canary', 'p')"),
        1 => format!("DELETE FROM {table} WHERE id = {id}"),
        _ => format!(
            "UPDATE {table} SET v = 'canary{}' WHERE id = {id}",
            rng.u16(..)
        ),
    }
}
