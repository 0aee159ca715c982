//! Is a value lost when the schema changes while four clients write, and how long does the stream stand still?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::following::{TABLE, follow};
use crate::support::{BOUND, connect, each, value, wait_for_value};

/// Four clients, and what they did.
async fn under_load(change: &[&str]) {
    let mut followed = follow(&[TABLE], "").await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for client in 0..4_i64 {
        let session = connect(&followed.cluster.dsn_socket("postgres")).await;
        let stop = Arc::clone(&stop);
        clients.push(tokio::spawn(async move {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let id = client * 100_000 + n;
                let insert = format!("INSERT INTO t (id, name) VALUES ({id}, 'CANARY_7f3a')");
                session.batch_execute(&insert).await.unwrap();
                let update = format!("UPDATE t SET name = 'CANARY_7f3ab' WHERE id = {id}");
                session.batch_execute(&update).await.unwrap();
                tokio::time::sleep(Duration::from_millis(4)).await;
            }
            n
        }));
    }
    let enough = async |rows: i64| {
        let count = format!("SELECT count(*) >= {rows} FROM t_cdc");
        wait_for_value(&followed.client, &count, true, BOUND).await;
        value::<i64>(&followed.client, "SELECT count(*) FROM t_cdc").await
    };
    let mut rows = enough(100).await;
    for statement in change {
        each(&followed.client, &[statement]).await;
        rows = enough(rows + 100).await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let changes = followed.check().await;
    let output = followed.stop().await;
    for (from, to) in pauses(&output) {
        println!("{change:?}: {changes} changes, the stream stood still from {from} to {to}");
    }
}

/// When the stream stopped for a change of the schema, and when it went on.
fn pauses(output: &str) -> Vec<(String, String)> {
    let time = |line: &str| -> Option<String> {
        let line: Value = serde_json::from_str(line).ok()?;
        Some(line["timestamp"].as_str()?.to_owned())
    };
    let (mut from, mut found) = (None, Vec::new());
    for line in output.lines() {
        if line.contains("reading the catalogs again") {
            from = from.or(time(line));
        } else if line.contains("\"streaming\"")
            && let Some((from, to)) = from.take().zip(time(line))
        {
            found.push((from, to));
        }
    }
    found
}

#[tokio::test]
async fn a_column_is_added_under_load() {
    under_load(&["ALTER TABLE t ADD c integer DEFAULT 7"]).await;
}

#[tokio::test]
async fn a_column_is_dropped_under_load() {
    under_load(&["ALTER TABLE t DROP a"]).await;
}

#[tokio::test]
async fn a_column_is_renamed_under_load() {
    under_load(&[
        "ALTER TABLE t ALTER a SET DEFAULT 5",
        "ALTER TABLE t RENAME a TO z",
    ])
    .await;
}

#[tokio::test]
async fn a_column_gets_another_type_under_load() {
    under_load(&[
        "ALTER TABLE t ALTER a SET DEFAULT 5",
        "ALTER TABLE t ALTER a TYPE numeric(8,3)",
    ])
    .await;
}
