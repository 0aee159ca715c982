//! What live servers say, as files of the corpora: `cargo nextest run --locked --run-ignored only 'fuzz_corpus::record'`, once
//! `scripts/fetch-postgres` has brought the versions.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use super::corpus;
use crate::support::daemon::Daemon;
use crate::support::scene::{self, streaming};
use crate::support::{
    BOUND, connect, each, other_version, server_with, try_connect, wait_for_value,
};

/// Of one connection.
const BYTES_MAX: usize = 8 * 1024;

/// Row values of a recording, which end up in the repository.
const TABLES: &str = "
    CREATE TABLE employees (id int PRIMARY KEY, name text, salary numeric);
    ALTER TABLE employees ALTER name SET STORAGE EXTERNAL;
    CREATE TABLE whole (id int, at timestamptz, tags text[]);
    ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE ROLE scram LOGIN PASSWORD 'secret'";

const CHANGES: [&str; 8] = [
    "INSERT INTO employees VALUES (1, repeat('x', 3000), 1.5), (2, NULL, 'NaN')",
    "UPDATE employees SET salary = 2 WHERE id = 1",
    "UPDATE employees SET id = 3 WHERE id = 2",
    "INSERT INTO whole VALUES (1, '2020-02-02 UTC', '{a,b}'), (2, NULL, NULL)",
    "UPDATE whole SET id = 3 WHERE id = 2",
    "DELETE FROM whole",
    "DELETE FROM employees WHERE id = 3",
    "TRUNCATE employees, whole",
];

/// What each connection's server said, with what the client had said first.
type Recorded = Arc<Mutex<Vec<(Vec<u8>, Vec<u8>)>>>;

/// Passes connections to the server at `upstream` on.
fn recorder(upstream: u16) -> (u16, Recorded) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let recorded = Recorded::default();
    let all = Arc::clone(&recorded);
    thread::spawn(move || {
        for client in listener.incoming() {
            let all = Arc::clone(&all);
            thread::spawn(move || pass(client.ok()?, upstream, &all));
        }
    });
    (port, recorded)
}

fn pass(mut client: TcpStream, upstream: u16, all: &Recorded) -> Option<()> {
    let mut server = TcpStream::connect(("127.0.0.1", upstream)).ok()?;
    let mut startup = vec![0; 16 * 1024];
    let length = client.read(&mut startup).ok()?;
    startup.truncate(length);
    server.write_all(&startup).ok()?;
    let at = {
        let mut all = all.lock().unwrap();
        all.push((startup, Vec::new()));
        all.len() - 1
    };
    let (mut from, mut to) = (client.try_clone().ok()?, server.try_clone().ok()?);
    thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let mut bytes = [0; 16 * 1024];
    loop {
        let count = server.read(&mut bytes).ok().filter(|count| *count > 0)?;
        all.lock().unwrap()[at].1.extend(&bytes[..count]);
        client.write_all(&bytes[..count]).ok()?;
    }
}

/// Whole messages with their tags, as far as they are there.
fn messages(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some(head) = bytes.first_chunk::<5>() {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize + 1;
        let Some((message, rest)) = bytes.split_at_checked(length) else {
            break;
        };
        found.push(message);
        bytes = rest;
    }
    found
}

fn write(target: &str, name: &str, bytes: &[u8]) {
    std::fs::write(corpus(target).join(name), bytes).unwrap();
}

/// Writes what a connection's server said at the beginning, and the parts of a stream.
fn keep(version: u32, startup: &[u8], said: &[u8]) {
    let has = |text: &[u8]| startup.windows(text.len()).any(|part| part == text);
    let kind = match () {
        () if has(b"replication\0") => "replication",
        () if has(b"synchronous_commit\0off") => "writer",
        () if has(b"scram\0") => "scram",
        () if has(b"nowhere\0") => "refused",
        () if has(b"client_encoding\0UTF8\0user") => "sql",
        () => "worker",
    };
    let mut beginning = Vec::new();
    let (mut payloads, mut frames) = (BTreeMap::new(), BTreeMap::new());
    for message in messages(said) {
        if beginning.len() + message.len() <= BYTES_MAX {
            beginning.extend(message);
        }
        let Some(frame) = message.strip_prefix(b"d").map(|rest| &rest[4..]) else {
            continue;
        };
        // The longest of each kind, which says most.
        let longer = |kept: &mut BTreeMap<u8, Vec<u8>>, kind: u8, bytes: &[u8]| {
            let kept = kept.entry(kind).or_default();
            if bytes.len() > kept.len() && bytes.len() < BYTES_MAX {
                *kept = bytes.to_vec();
            }
        };
        if kind == "replication" && matches!(frame[0], b'w' | b'k') {
            longer(&mut frames, frame[0], frame);
        }
        if kind == "replication" && frame[0] == b'w' {
            longer(&mut payloads, frame[25], &frame[25..]);
        }
    }
    write("answers", &format!("{version}_{kind}"), &beginning);
    for (kind, bytes) in payloads {
        write(
            "pgoutput",
            &format!("{version}_{}", char::from(kind)),
            &bytes,
        );
    }
    for (kind, bytes) in frames {
        write("frame", &format!("{version}_{}", char::from(kind)), &bytes);
    }
}

#[ignore = "writes into the repository"]
#[tokio::test]
async fn what_live_servers_say_is_recorded() {
    for version in [14, 15, 16, 17, 18] {
        let binaries = other_version(version);
        let own = || throwaway::Binaries::find().ok();
        let Some(binaries) = binaries.or_else(|| own().filter(|own| own.major() == version)) else {
            continue;
        };
        let (server, client) = server_with(|builder| {
            let builder = builder.binaries(binaries);
            builder.hba("host all scram 127.0.0.1/32 scram-sha-256")
        })
        .await;
        each(&client, &TABLES.split(';').collect::<Vec<_>>()).await;
        let (port, recorded) = recorder(server.port());
        let dsn =
            format!("host=127.0.0.1 port={port} user=postgres dbname=postgres sslmode=disable");
        let tables = ["public.employees", "public.whole"];
        let mut daemon = Daemon::spawn(&scene::config(&dsn, None, &tables, ""));
        streaming(&mut daemon).await;
        each(&client, &CHANGES).await;
        let truncated = "SELECT count(*) FROM whole_cdc WHERE change_type = 'TRUNCATE'";
        wait_for_value(&client, truncated, 1i64, BOUND).await;
        daemon.sigterm();
        daemon.wait(BOUND).await;
        let other = |user: &str, database: &str| {
            format!("host=127.0.0.1 port={port} user={user} password=secret dbname={database}")
        };
        drop(connect(&other("scram", "postgres")).await);
        assert!(try_connect(&other("postgres", "nowhere")).await.is_err());
        for (startup, said) in recorded.lock().unwrap().iter() {
            keep(version, startup, said);
        }
        println!("{version}: {} connections", recorded.lock().unwrap().len());
    }
    assert!(Path::new(&corpus("answers")).join("15_sql").exists());
}
