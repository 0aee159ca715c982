//! A client for the daemon's HTTP listener.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
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

/// What a request was answered with.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in small letters.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// The status and the body that `request` (method and path) is answered with.
pub async fn ask(address: &str, request: &str) -> (u16, String) {
    let answer = ask_with(address, request, "").await;
    (answer.status, answer.body)
}

/// The same with more headers, each with its end of line.
pub async fn ask_with(address: &str, request: &str, headers: &str) -> Answer {
    let stream = TcpStream::connect(address).await.unwrap();
    ask_over(stream, request, headers).await.unwrap()
}

/// The same over a connection that is there, whose end is an error where it comes before an answer.
pub async fn ask_over(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
    headers: &str,
) -> io::Result<Answer> {
    let head = format!("{request} HTTP/1.1\r\nHost: waltrail.test\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    assert_silent(body);
    let header = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_ascii_lowercase(), value.to_owned())
    };
    Ok(Answer {
        status: status.parse().unwrap(),
        headers: lines.map(header).collect(),
        body: body.to_owned(),
    })
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
