//! A real Prometheus for a test: it scrapes one daemon every second and evaluates the rules as often.

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::text;
use crate::support::{BOUND, wait_until};

/// A program of Prometheus, in the PATH or where `scripts/fetch-prometheus` puts it. None, said in a line of output, where there is
/// none.
pub fn program(name: &str) -> Option<PathBuf> {
    let fetched = concat!(env!("CARGO_MANIFEST_DIR"), "/target/prometheus/usr/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from(fetched)]);
    let found = folders
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        println!("not tried: there is no {name}; scripts/fetch-prometheus fetches it");
    }
    found
}

/// The rules with their waits and limits in seconds instead of minutes.
fn shortened() -> String {
    let mut rules = text("prometheus/alerts.yaml");
    for (long, short) in [
        ("for: 1m", "for: 1s"),
        ("for: 2m", "for: 1s"),
        ("for: 5m", "for: 2s"),
        ("for: 10m", "for: 2s"),
        ("[5m]", "[5s]"),
        ("[15m]", "[15s]"),
        ("[30m]", "[30s]"),
        ("offset 15m", "offset 15s"),
        ("waltrail_lag_seconds > 60", "waltrail_lag_seconds > 2"),
        ("waltrail_lag_seconds > 30", "waltrail_lag_seconds > 2"),
        ("_timestamp_seconds > 900", "_timestamp_seconds > 3"),
    ] {
        assert!(rules.contains(long), "no rule has {long}");
        rules = rules.replace(long, short);
    }
    rules
}

/// Status and body of an answer; none where there is none.
async fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    // An answer to 1.0 is in one piece, and ends the connection.
    let head = format!("GET {path} HTTP/1.0\r\nHost: prometheus\r\n\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Prometheus {
    // Before its folder.
    _running: Running,
    _folder: TempDir,
    port: u16,
}

impl Prometheus {
    /// Watches the daemon at `address`. None where there is no Prometheus.
    pub async fn start(address: &str) -> Option<Self> {
        let program = program("prometheus")?;
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: [alerts.yaml]\n\
             scrape_configs:\n\
             \x20 - job_name: waltrail\n\
             \x20   static_configs: [{{targets: ['{address}']}}]\n"
        );
        std::fs::write(folder.path().join("prometheus.yaml"), config).unwrap();
        std::fs::write(folder.path().join("alerts.yaml"), shortened()).unwrap();
        // Another process may take the port before Prometheus does, which then ends.
        for _ in 0..3 {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            let child = Command::new(&program)
                .current_dir(folder.path())
                .arg("--config.file=prometheus.yaml")
                .arg("--storage.tsdb.path=data")
                .arg("--log.level=warn")
                .arg(format!("--web.listen-address=127.0.0.1:{port}"))
                .stdin(Stdio::null())
                .spawn()
                .unwrap();
            let running = RefCell::new(Running(child));
            let is_up = wait_until("Prometheus is ready", BOUND, async || {
                if running.borrow_mut().0.try_wait().unwrap().is_some() {
                    return Some(false);
                }
                let (status, _) = get(port, "/-/ready").await?;
                (status == 200).then_some(true)
            });
            if is_up.await {
                return Some(Self {
                    _running: running.into_inner(),
                    _folder: folder,
                    port,
                });
            }
        }
        panic!("Prometheus does not start");
    }

    /// What a query gives now: its series.
    pub async fn query(&self, query: &str) -> Vec<Value> {
        let coded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let (status, body) = get(self.port, &format!("/api/v1/query?query={coded}"))
            .await
            .expect("Prometheus should answer");
        assert_eq!(status, 200, "{query}: {body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["status"], "success", "{query}: {body}");
        answer["data"]["result"].as_array().unwrap().clone()
    }

    /// The alerts that fire, by their names.
    pub async fn firing(&self) -> Vec<String> {
        let found = self.query("ALERTS{alertstate=\"firing\"}").await;
        let name = |one: &Value| one["metric"]["alertname"].as_str().unwrap().to_owned();
        found.iter().map(name).collect()
    }

    /// Waits until the daemon has been scraped several times, and nothing fires.
    pub async fn is_calm(&self) {
        wait_until("the daemon is scraped", BOUND, async || {
            let scrapes = "count_over_time(up{job=\"waltrail\"}[1m]) > 3 and up == 1";
            (!self.query(scrapes).await.is_empty()).then_some(())
        })
        .await;
        wait_until("nothing fires", BOUND, async || {
            self.firing().await.is_empty().then_some(())
        })
        .await;
    }

    pub async fn fires(&self, alert: &str) {
        wait_until(&format!("{alert} fires"), BOUND, async || {
            self.firing()
                .await
                .iter()
                .any(|one| one == alert)
                .then_some(())
        })
        .await;
    }

    pub async fn has_ended(&self, alert: &str) {
        wait_until(&format!("{alert} ends"), BOUND, async || {
            (!self.firing().await.iter().any(|one| one == alert)).then_some(())
        })
        .await;
    }
}
