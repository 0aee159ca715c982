//! Does what comes to the HTTP port slow the stream? Latency is measured from the commit on the source to the commit of the
//! history, for every transaction, by the server's own clock, without and with an attack.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::*;
use crate::support::{connect, value};

/// Connections that are open and send nothing.
const SILENT: usize = 200;
/// Connections that send a byte a second.
const SLOW: usize = 50;
/// Bytes of a head that is too long.
const HEAD: usize = 1 << 20;
/// Between two of the clients that are quick.
const PAUSE: Duration = Duration::from_millis(20);
const CLIENTS: u32 = 8;
/// What chance and a busy machine may add to the 99th percentile.
const MORE_MAX: Duration = Duration::from_millis(250);

/// `make attack` sets these: seconds of each run, and transactions a second.
fn setting(name: &str, default: u32) -> u32 {
    let set = std::env::var(name).ok().and_then(|text| text.parse().ok());
    set.unwrap_or(default)
}

#[derive(Debug, Default)]
struct Sent {
    connections: AtomicU64,
    bytes: AtomicU64,
    answers: AtomicU64,
}

/// Transactions of one row each, at a steady rate from several sessions; how many there were.
async fn load(dsn: &str, rate: u32, run: Duration) -> u64 {
    let mut sessions = JoinSet::new();
    for _ in 0..CLIENTS {
        let client = connect(dsn).await;
        sessions.spawn(async move {
            let insert = client.prepare("INSERT INTO employees (name) VALUES ($1)");
            let insert = insert.await.unwrap();
            let mut ticks = tokio::time::interval(Duration::from_secs(1) * CLIENTS / rate);
            let (start, mut done) = (Instant::now(), 0);
            while start.elapsed() < run {
                ticks.tick().await;
                client.execute(&insert, &[&"a name"]).await.unwrap();
                done += 1;
            }
            done
        });
    }
    sessions.join_all().await.into_iter().sum()
}

/// Opens a connection again and again, and does with each what `act` does, until it fails.
async fn again<F: Future<Output = std::io::Result<()>>>(
    address: String,
    sent: Arc<Sent>,
    act: impl Fn(TcpStream, Arc<Sent>) -> F,
) {
    loop {
        if let Ok(stream) = TcpStream::connect(&address).await {
            sent.connections.fetch_add(1, Ordering::Relaxed);
            // That it is cut off is what is expected.
            let _ = act(stream, Arc::clone(&sent)).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn drain(mut stream: TcpStream, sent: &Sent) -> std::io::Result<()> {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    if answer.starts_with(b"HTTP/1.1 ") {
        sent.answers.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

async fn silent(stream: TcpStream, sent: Arc<Sent>) -> std::io::Result<()> {
    drain(stream, &sent).await
}

async fn long_head(mut stream: TcpStream, sent: Arc<Sent>) -> std::io::Result<()> {
    stream.write_all(b"GET /metrics HTTP/1.1\r\n").await?;
    let header = format!("x-{}: {}\r\n", "n".repeat(30), "y".repeat(4_000));
    for _ in 0..HEAD / header.len() {
        stream.write_all(header.as_bytes()).await?;
        sent.bytes.fetch_add(header.len() as u64, Ordering::Relaxed);
    }
    drain(stream, &sent).await
}

async fn rubbish(mut stream: TcpStream, sent: Arc<Sent>) -> std::io::Result<()> {
    let mut bytes = vec![0; 64 * 1024];
    let mut chance = fastrand::Rng::new();
    chance.fill(&mut bytes);
    stream.write_all(&bytes).await?;
    sent.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    drain(stream, &sent).await
}

async fn slow(mut stream: TcpStream, sent: Arc<Sent>) -> std::io::Result<()> {
    for byte in b"GET /metrics HTTP/1.1\r\nHost: waltrail.test\r\nx: y\r\n\r\n" {
        stream.write_all(&[*byte]).await?;
        sent.bytes.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    drain(stream, &sent).await
}

/// A page that is read with no pause between its questions.
async fn reader(mut stream: TcpStream, sent: Arc<Sent>) -> std::io::Result<()> {
    let request = b"GET /api/live HTTP/1.1\r\nHost: waltrail.test\r\n\r\n";
    stream.write_all(request).await?;
    drain(stream, &sent).await
}

/// Ends when what it gives is dropped. A thread of its own, so that the load keeps its rate.
struct Attack {
    _stop: tokio::sync::oneshot::Sender<()>,
    sent: Arc<Sent>,
}

impl Attack {
    fn start(address: &str) -> Self {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let sent = Arc::new(Sent::default());
        let (address, counted) = (address.to_owned(), Arc::clone(&sent));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut clients = JoinSet::new();
                for (number, act) in [(SILENT, 0), (4, 1), (4, 2), (SLOW, 3), (4, 4)] {
                    for _ in 0..number {
                        let (address, sent) = (address.clone(), Arc::clone(&counted));
                        match act {
                            0 => clients.spawn(again(address, sent, silent)),
                            1 => clients.spawn(again(address, sent, long_head)),
                            2 => clients.spawn(again(address, sent, rubbish)),
                            3 => clients.spawn(again(address, sent, slow)),
                            _ => clients.spawn(again(address, sent, reader)),
                        };
                    }
                }
                let _ = stopped.await;
            });
        });
        Self { _stop: stop, sent }
    }
}

/// The median and the 99th percentile of what was committed since `from`.
async fn latency(client: &tokio_postgres::Client, from: i32) -> (Duration, Duration) {
    let taken = format!(
        "SELECT percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY extract(epoch FROM \
             pg_xact_commit_timestamp(xmin) - change_timestamp AT TIME ZONE 'UTC')::float8)
           FROM employees_cdc WHERE cdc_id > {from}"
    );
    let taken: Vec<f64> = value(client, &taken).await;
    let [median, most] = [taken[0], taken[1]].map(Duration::from_secs_f64);
    (median, most)
}

#[tokio::test]
async fn an_attack_on_the_port_does_not_slow_the_stream() {
    let run = Duration::from_secs(setting("ATTACK", 5).into());
    let rate = setting("ATTACK_RATE", 200);
    let (scene, address) = scene().await;
    let dsn = scene.server.dsn_socket("postgres");
    let last = "SELECT coalesce(max(cdc_id), 0) FROM employees_cdc";
    // Once without measuring: sessions and caches are made.
    load(&dsn, rate, Duration::from_secs(1)).await;
    scene.check().await;
    let mut seen = Vec::new();
    for attacked in [false, true] {
        let from: i32 = value(&scene.target, last).await;
        let attack = attacked.then(|| Attack::start(&address));
        let sent = attack.as_ref().map(|attack| Arc::clone(&attack.sent));
        let loaded = load(&dsn, rate, run);
        let asked = async {
            if !attacked {
                return;
            }
            // The newest connection is served, however many others are open.
            let (start, mut longest, mut refused) = (Instant::now(), Duration::ZERO, 0);
            while start.elapsed() < run {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let begun = Instant::now();
                let stream = TcpStream::connect(&address).await.unwrap();
                match crate::support::http::ask_over(stream, "GET /livez", "").await {
                    Ok(answer) => assert_eq!(answer.status, 200),
                    Err(_) => refused += 1,
                }
                longest = longest.max(begun.elapsed());
            }
            println!("  /livez meanwhile: {longest:?} at most, {refused} without an answer");
            assert_eq!(refused, 0);
        };
        let (transactions, ()) = tokio::join!(loaded, asked);
        drop(attack);
        wait_until("the history has everything", BOUND, async || {
            let rows = format!("SELECT count(*) FROM employees_cdc WHERE cdc_id > {from}");
            (value::<i64>(&scene.target, &rows).await == transactions as i64).then_some(())
        })
        .await;
        let (median, most) = latency(&scene.target, from).await;
        let per_second = transactions as f64 / run.as_secs_f64();
        let what = if attacked { "attacked" } else { "without" };
        println!("{what}: {per_second:.0} transactions/s, median {median:?}, p99 {most:?}");
        if let Some(sent) = sent {
            println!("  sent meanwhile: {sent:?}");
            assert!(sent.connections.load(Ordering::Relaxed) > SILENT as u64);
        }
        seen.push(most);
    }
    assert!(seen[1] < seen[0] + MORE_MAX, "{seen:?}");
    scene.check().await;
}
