//! The HTTP listener.

use super::*;
use crate::support::http::{address, ask};
use tokio::net::TcpStream;

/// Far more than are served at once.
const CLIENTS: usize = 100;

#[tokio::test]
async fn clients_that_are_slow_or_send_without_an_end_take_no_memory_and_no_place() {
    let server = employees().await;
    let listen = "[http]\nlisten = \"127.0.0.1:0\"\n";
    let config = config(
        &server.dsn_socket("postgres"),
        None,
        &["public.employees"],
        listen,
    );
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    let address = address(&mut daemon).await;
    let header = format!("x: {}\r\n", "y".repeat(4_000));
    for first in [
        "",
        "GET /metrics",
        "GET /metrics HTTP/1.1\r\n",
        "\x16\x03\x01",
    ] {
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let mut client = TcpStream::connect(&address).await.unwrap();
            client.write_all(first.as_bytes()).await.unwrap();
            clients.push(client);
        }
        let start = Instant::now();
        let (status, _) = ask(&address, "GET /readyz").await;
        println!(
            "{first:?}: {CLIENTS} clients, then /readyz after {:?}",
            start.elapsed()
        );
        assert_eq!(status, 200);
    }
    // A head without an end, and a body.
    for head in [
        "GET / HTTP/1.1\r\n",
        "POST /metrics HTTP/1.1\r\ncontent-length: 9999999999\r\n\r\n",
    ] {
        let mut client = TcpStream::connect(&address).await.unwrap();
        client.write_all(head.as_bytes()).await.unwrap();
        let start = Instant::now();
        while client.write_all(header.as_bytes()).await.is_ok() {
            assert!(start.elapsed() < BOUND, "{head}");
        }
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
    }
    let peak = peak_kib(daemon.pid()).unwrap();
    assert!(peak < USUAL_KIB + MORE_MAX_KIB, "{peak} KiB");
    daemon.sigterm();
    let (status, output) = daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(0), "{output}");
}
