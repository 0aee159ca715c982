//! Do both connections log in by every method, and does the stream stay in step when its reader is interrupted?

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Poll;

use throwaway::Cluster;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio_postgres::Client;
use waltrail::pgoutput::Message;
use waltrail::source::frame::Frame;
use waltrail::source::replication::{Replication, StreamOptions};

use crate::support::daemon::{Daemon, ending};
use crate::support::scene::{complaints, config, streaming};
use crate::support::{BOUND, EMPLOYEES, each, server, server_with, source, value, wait_for_value};

const METHODS: [&str; 4] = ["trust", "password", "md5", "scram-sha-256"];
// With what a connection string has to quote.
const PASSWORD: &str = r"canary pass' \word ü";

/// A role for each method, which it must use over TCP and over the socket.
async fn guarded() -> (Cluster, Client) {
    let (cluster, client) = server_with(|mut builder| {
        for method in METHODS {
            builder = builder
                .hba(format!("local all \"role-{method}\" {method}"))
                .hba(format!("host all \"role-{method}\" 127.0.0.1/32 {method}"));
        }
        builder
    })
    .await;
    for method in METHODS {
        let hash = if method == "md5" {
            "md5"
        } else {
            "scram-sha-256"
        };
        each(
            &client,
            &[&format!(
                "SET password_encryption = '{hash}'; CREATE ROLE \"role-{method}\" LOGIN SUPERUSER
                     PASSWORD '{}'",
                PASSWORD.replace('\'', "''")
            )],
        )
        .await;
    }
    each(&client, &[EMPLOYEES]).await;
    (cluster, client)
}

fn dsn_of(dsn: &str, role: &str, password: Option<&str>) -> String {
    let mut dsn = dsn.replace("user=postgres", &format!("user=role-{role}"));
    if let Some(password) = password {
        let quoted = password.replace('\\', r"\\").replace('\'', r"\'");
        dsn.push_str(&format!(" password='{quoted}'"));
    }
    dsn
}

/// As [`config`], for a connection string that holds quotes.
fn config_with(dsn: &str) -> String {
    config("(dsn)", None, &["public.employees"], "").replace("'(dsn)'", &format!("'''{dsn}'''"))
}

#[tokio::test]
async fn every_method_over_tcp_and_over_the_socket() {
    let (cluster, client) = guarded().await;
    let mut rows = 0_i64;
    for dsn in [cluster.dsn_tcp("postgres"), cluster.dsn_socket("postgres")] {
        for method in METHODS {
            let config = config_with(&dsn_of(&dsn, method, Some(PASSWORD)));
            let mut daemon = Daemon::spawn(&config);
            streaming(&mut daemon).await;
            each(&client, &["INSERT INTO employees (name) VALUES ('x')"]).await;
            rows += 1;
            wait_for_value(&client, "SELECT count(*) FROM employees_cdc", rows, BOUND).await;
            let who: String = value(
                &client,
                "SELECT string_agg(DISTINCT usename, ',') FROM pg_stat_activity
                 WHERE application_name LIKE 'waltrail%'",
            )
            .await;
            assert_eq!(who, format!("role-{method}"));
            daemon.sigterm();
            let (status, output) = daemon.wait(BOUND).await;
            assert_eq!(status.code(), Some(0), "{output}");
            assert_eq!(complaints(&output), Vec::<&str>::new());
        }
    }
}

#[tokio::test]
async fn a_password_from_file_or_environment_is_used() {
    let (cluster, client) = guarded().await;
    let dsn = dsn_of(&cluster.dsn_tcp("postgres"), "scram-sha-256", None);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let private: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&file, private.clone()).unwrap();
    let with_file = config_with(&dsn).replace(
        "[[table]]",
        &format!("password_file = '{}'\n[[table]]", file.display()),
    );
    let plain = config_with(&dsn);
    let passfile = folder.path().join("pgpass");
    let escaped = PASSWORD.replace('\\', r"\\");
    std::fs::write(&passfile, format!("127.0.0.1:*:*:*:{escaped}\n")).unwrap();
    std::fs::set_permissions(&passfile, private).unwrap();
    let passfile = passfile.to_str().unwrap();
    let ways: [(&str, Vec<(&str, &str)>); 3] = [
        (&with_file, vec![]),
        (&plain, vec![("PGPASSWORD", PASSWORD)]),
        (&plain, vec![("PGPASSFILE", passfile)]),
    ];
    for (config, variables) in ways {
        let mut daemon = Daemon::spawn_with(config, &["run"], &variables);
        streaming(&mut daemon).await;
        daemon.sigterm();
        let (status, output) = daemon.wait(BOUND).await;
        assert_eq!(status.code(), Some(0), "{output}");
    }
    drop(client);
}

#[tokio::test]
async fn a_wrong_password_or_none_is_77_and_never_shown() {
    let (cluster, _client) = guarded().await;
    for method in &METHODS[1..] {
        for password in [Some("wrong-canary"), None] {
            let config = config_with(&dsn_of(&cluster.dsn_tcp("postgres"), method, password));
            for command in [vec!["run"], vec!["status"], vec!["setup"]] {
                let mut process = Daemon::spawn_with(&config, &command, &[]);
                let (status, output) = process.wait(BOUND).await;
                assert_eq!(
                    status.code(),
                    Some(77),
                    "{method} {password:?} {command:?}: {output}"
                );
                assert_ne!(ending(&output).1, "", "{output}");
            }
        }
    }
}

#[tokio::test]
async fn a_role_without_replication_is_77() {
    let (cluster, client) = server().await;
    each(&client, &[EMPLOYEES, "CREATE ROLE reader LOGIN"]).await;
    let dsn = cluster
        .dsn_tcp("postgres")
        .replace("user=postgres", "user=reader");
    let mut daemon = Daemon::spawn(&config(&dsn, None, &["public.employees"], ""));
    let (status, output) = daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(77), "{output}");
    assert!(output.contains("ALTER ROLE reader REPLICATION"), "{output}");
}

/// Passes a connection on to a server, and what it answers in small pieces, one for each permit, so that frames
/// are cut everywhere and the reader has to wait for the rest.
async fn relay_in_pieces(server: u16, permits: Arc<Semaphore>) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let server = tokio::net::TcpStream::connect(("127.0.0.1", server))
            .await
            .unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
        let mut random = fastrand::Rng::with_seed(1);
        let mut bytes = vec![0; 20_000];
        loop {
            permits.acquire().await.unwrap().forget();
            let most = random.usize(1..bytes.len());
            match from_server.read(&mut bytes[..most]).await {
                Ok(length @ 1..) => to_client.write_all(&bytes[..length]).await.unwrap(),
                _ => return,
            }
        }
    });
    port
}

/// Asks for one more piece whenever `future` has to wait; then goes on with it if `patient` says so, else
/// drops it and answers nothing.
async fn fed<T>(
    permits: &Semaphore,
    mut patient: impl FnMut() -> bool,
    future: impl Future<Output = T>,
) -> Option<T> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        // The last permit was not used yet: nothing has happened since.
        Poll::Pending if permits.available_permits() > 0 => Poll::Pending,
        Poll::Pending => {
            permits.add_permits(1);
            if patient() {
                Poll::Pending
            } else {
                Poll::Ready(None)
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_reader_that_is_interrupted_loses_no_frame() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE TABLE t (id integer PRIMARY KEY, body text)",
            "CREATE PUBLICATION p FOR TABLE t",
            "SELECT pg_create_logical_replication_slot('s', 'pgoutput')",
            // From a few bytes to more than one read takes, so that frames end everywhere.
            "INSERT INTO t SELECT n, repeat('x', (n * 7919) % 40000) FROM generate_series(1, 200) n",
            "INSERT INTO t VALUES (9999, repeat('y', 1000000))",
        ],
    )
    .await;
    let permits = Arc::new(Semaphore::new(0));
    let port = relay_in_pieces(cluster.port(), permits.clone()).await;
    let dsn = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
    let started = async {
        let replication = Replication::connect(&source(&dsn)).await.unwrap();
        let options = StreamOptions {
            binary: true,
            ..StreamOptions::default()
        };
        replication
            .start("s", waltrail::lsn::Lsn::ZERO, "p", options)
            .await
    };
    let mut stream = fed(&permits, || true, started).await.unwrap().unwrap();
    let mut random = fastrand::Rng::with_seed(2);
    let (mut seen, mut commits, mut interrupted) = (BTreeMap::new(), 0, 0_u32);
    while commits < 2 {
        let Some(frame) = fed(&permits, || random.bool(), stream.next_frame()).await else {
            interrupted += 1;
            continue;
        };
        let Frame::XLogData { payload, .. } = frame.unwrap() else {
            continue;
        };
        match Message::parse(payload).unwrap() {
            Message::Insert(insert) => {
                let mut values = insert.new.values();
                let mut next = || match values.next().unwrap() {
                    Some(waltrail::pgoutput::Value::Binary(field)) => field.bytes().to_vec(),
                    other => panic!("{other:?}"),
                };
                let id = i32::from_be_bytes(next().try_into().unwrap());
                assert!(seen.insert(id, next().len()).is_none(), "{id} came twice");
            }
            Message::Commit(_) => commits += 1,
            _ => {}
        }
    }
    assert!(interrupted > 100, "interrupted only {interrupted} times");
    let mut wanted: BTreeMap<i32, usize> = (1..=200)
        .map(|n| (n, (n as usize * 7919) % 40000))
        .collect();
    wanted.insert(9999, 1_000_000);
    let wrong: Vec<_> = wanted
        .iter()
        .filter(|&(id, length)| seen.get(id) != Some(length))
        .map(|(id, length)| (id, length, seen.get(id)))
        .collect();
    assert_eq!(wrong, [], "id, length, and length seen");
    assert_eq!(seen.len(), wanted.len());
    fed(&permits, || true, stream.finish())
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn both_kinds_of_session_have_the_same_settings_whatever_the_role_has() {
    use waltrail::server::{Side, channel, sql};

    let (cluster, client) = server().await;
    each(
        &client,
        &["ALTER ROLE postgres SET search_path = evil; ALTER ROLE postgres SET DateStyle = 'SQL, DMY';
           ALTER ROLE postgres SET statement_timeout = '1min'; ALTER ROLE postgres SET synchronous_commit = remote_apply"],
    )
    .await;
    let ask = "SELECT string_agg(setting, '|' ORDER BY name COLLATE \"C\") FROM pg_catalog.pg_settings
         WHERE name IN ('DateStyle', 'search_path', 'statement_timeout', 'synchronous_commit', 'work_mem')";
    let dsn = cluster.dsn_tcp("postgres");
    let connection = source(&format!(
        "{dsn} options='-c work_mem=1MB -c DateStyle=German'"
    ))
    .connection;
    let session = sql(&connection, Side::Source).await.unwrap();
    let settings: String = value(&session, ask).await;
    assert_eq!(settings, "ISO, MDY||0|local|1024");
    let own = [("synchronous_commit", "off")];
    let (mut channel, _) = channel(&connection, Side::Target, &own, 1024)
        .await
        .unwrap();
    let rows = channel.simple_query(ask).await.unwrap();
    assert_eq!(rows, [[Some("ISO, MDY||0|off|1024".to_owned())]]);
}
