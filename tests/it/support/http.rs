//! A client for the daemon's HTTP listener.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::daemon::{Daemon, assert_silent};

/// Where a daemon listens that chose its port.
pub async fn address(daemon: &mut Daemon) -> String {
    let line = daemon
        .wait_log(super::BOUND, |line| {
            line.contains("metrics and health are served")
        })
        .await;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    line["address"].as_str().unwrap().to_owned()
}

/// The status and the body that `request` (method and path) is answered with.
pub async fn ask(address: &str, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("{request} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    assert_silent(body);
    (status, body.to_owned())
}

/// The value of a metric, named with its labels.
pub async fn metric(address: &str, name: &str) -> Option<f64> {
    let (status, body) = ask(address, "GET /metrics").await;
    assert_eq!(status, 200, "{body}");
    let value = body
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    Some(value.parse().unwrap())
}
