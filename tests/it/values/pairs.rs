//! The same between two versions of PostgreSQL. `make test-versions` fetches the servers.

use throwaway::{Binaries, Cluster};

use super::{UTF8, follow_both};
use crate::support::daemon::Daemon;
use crate::support::scene::{config, streaming};
use crate::support::{BOUND, builder, connect, each, other_version, texts, wait_for_value};

/// The programs of two versions; None, said in a line, where one is missing.
fn pair(source: u32, target: u32) -> Option<[Binaries; 2]> {
    Some([other_version(source)?, other_version(target)?])
}

async fn follow_from(source: u32, target: u32) {
    let Some(binaries) = pair(source, target) else {
        return;
    };
    let [source, target] = binaries.map(|found| builder().binaries(found));
    follow_both(source, target, UTF8).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL 14 and 18: make test-versions"]
async fn every_value_arrives_from_14_in_18() {
    follow_from(14, 18).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL 14 and 18: make test-versions"]
async fn every_value_arrives_from_18_in_14() {
    follow_from(18, 14).await;
}

/// A database of this name on each of the two.
async fn databases(servers: [&Cluster; 2], name: &str) -> [String; 2] {
    for server in servers {
        let client = connect(&server.dsn_socket("postgres")).await;
        each(&client, &[&format!("CREATE DATABASE {name}")]).await;
    }
    servers.map(|server| server.dsn_socket(name))
}

/// Type, a value that both know, and one that only the newer server does.
const ONLY_NEWER: [(&str, &str, &str); 3] = [
    ("interval", "'1 day'", "'infinity'"),
    ("interval[]", "'{1 day}'", "'{1 day,-infinity}'"),
    ("jsonpath", "'$.a'", "'$.a.bigint()'"),
];

#[tokio::test]
#[ignore = "needs PostgreSQL 14 and 18: make test-versions"]
async fn a_value_that_an_older_target_does_not_know_is_refused() {
    let Some(binaries) = pair(18, 14) else {
        return;
    };
    let [source, target] = binaries.map(|found| builder().binaries(found).start().unwrap());
    for (n, (kind, known, unknown)) in ONLY_NEWER.into_iter().enumerate() {
        for existing in [false, true] {
            let name = format!("newer{n}{existing}");
            let dsns = databases([&source, &target], &name).await;
            refuses(dsns, [kind, known, unknown], existing).await;
        }
    }
}

async fn refuses([from, to]: [String; 2], [kind, known, unknown]: [&str; 3], existing: bool) {
    // A slot's name is the server's.
    let slot = from.rsplit('=').next().unwrap();
    let (source, target) = (connect(&from).await, connect(&to).await);
    each(
        &source,
        &[&format!("CREATE TABLE t (id int PRIMARY KEY, v {kind})")],
    )
    .await;
    let config = config(&from, Some(&to), &["public.t"], "")
        .replace("mode = \"never\"", "mode = \"initial\"")
        .replacen("[source]\n", &format!("[source]\nslot = '{slot}'\n"), 1);
    let insert = |id: u32, value: &str| format!("INSERT INTO t VALUES ({id}, {value})");
    if existing {
        each(&source, &[&insert(2, unknown)]).await;
    }
    let mut daemon = Daemon::spawn(&config);
    if !existing {
        streaming(&mut daemon).await;
        each(&source, &[&insert(1, known)]).await;
        wait_for_value(&target, "SELECT count(*) FROM t_cdc", 1_i64, BOUND).await;
        each(&source, &[&insert(2, unknown)]).await;
    }
    for start in 0..2 {
        let (status, output) = daemon.wait(BOUND).await;
        assert_eq!(status.code(), Some(65), "{kind}, start {start}: {output}");
        let stored = texts(&target, "SELECT id::text FROM t_cdc ORDER BY id").await;
        let wanted = if existing {
            vec![]
        } else {
            vec![Some("1".to_owned())]
        };
        assert_eq!(stored, wanted, "{kind}: {output}");
        daemon = Daemon::spawn(&config);
    }
}

/// A type that the older server cannot even name.
#[tokio::test]
#[ignore = "needs PostgreSQL 14 and 18: make test-versions"]
async fn a_type_modifier_that_an_older_target_does_not_know_is_kept_as_text() {
    let Some(binaries) = pair(18, 14) else {
        return;
    };
    let [source, target] = binaries.map(|found| builder().binaries(found).start().unwrap());
    let [from, to] = databases([&source, &target], "modifier").await;
    let (source, target) = (connect(&from).await, connect(&to).await);
    each(
        &source,
        &[
            "CREATE TABLE t (id int PRIMARY KEY, v numeric(3,-2), w numeric(2,5)[])",
            "INSERT INTO t VALUES (1, 12345, '{0.00012}')",
        ],
    )
    .await;
    let config = config(&from, Some(&to), &["public.t"], "")
        .replace("mode = \"never\"", "mode = \"initial\"");
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    each(&source, &["INSERT INTO t VALUES (2, 12345, '{0.00012}')"]).await;
    let kept = "SELECT count(*) FROM t_cdc WHERE v::text = '12300' AND w::text = '{0.00012}'";
    wait_for_value(&target, kept, 2_i64, BOUND).await;
    daemon.sigterm();
    let (status, output) = daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(0), "{output}");
}
