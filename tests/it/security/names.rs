//! Names that would be SQL of their own, were they not quoted.

use super::waltrail;
use crate::support::daemon::Daemon;
use crate::support::scene::streaming;
use crate::support::{BOUND, connect, each, server, texts, value, wait_for_value};

/// What a careless statement, format string or pattern would stumble over.
const ODD: &str = "o'; \"d\" %s%I {} $1 $$ \\n\\' --/*\n;é";

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[tokio::test]
async fn a_name_is_a_name_whatever_stands_in_it() {
    let (cluster, client) = server().await;
    let (odd, role) = (quoted(ODD), quoted(&format!("r{ODD}")));
    each(
        &client,
        &[
            &format!("CREATE SCHEMA {odd}; CREATE TYPE {odd}.{role} AS ENUM ('CANARY_7f3a')"),
            &format!("CREATE TABLE {odd}.{odd} ({odd} int PRIMARY KEY, \"e{ODD_QUOTED}\" {odd}.{role}, \"n{ODD_QUOTED}\" serial)"),
            &format!("INSERT INTO {odd}.{odd} VALUES (1, 'CANARY_7f3a')"),
            &format!("CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'canary'"),
        ],
    )
    .await;
    let source = format!("{odd}.{odd}");
    let history = format!("{odd}.{}", quoted(&format!("{ODD}_cdc")));
    // Such a string of TOML escapes as Rust does.
    let config = format!(
        "[source]\ndsn = '{}'\npublication = {ODD:?}\n[[table]]\nsource = {source:?}\n[log]\nlevel = \"debug\"\n",
        cluster.dsn_socket("postgres")
    );
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("waltrail.toml"), &config).unwrap();
    let grantee = format!("r{ODD}");
    let look = ["setup", "--dry-run", "--grant-to", &grantee];
    let administrator = connect(&cluster.dsn_socket("postgres")).await;
    for statements in waltrail(folder.path(), &look).split("\n\n-- ") {
        each(&administrator, &[&format!("-- {statements}")]).await;
    }
    assert_eq!(waltrail(folder.path(), &look), "-- nothing is missing\n");
    assert_eq!(
        texts(&client, "SELECT pubname::text FROM pg_publication").await,
        [Some(ODD.to_owned())]
    );

    // By the role that has no more than what was granted.
    let escaped = grantee.replace('\\', "\\\\").replace('\'', "\\'");
    let of_role = config
        .replace("dsn = '", "dsn = '''")
        .replacen("'\npublication", "'''\npublication", 1)
        .replace("user=postgres", &format!("user='{escaped}'"));
    let mut daemon = Daemon::spawn(&format!("setup = \"manual\"\n{of_role}"));
    streaming(&mut daemon).await;
    let rows = format!("SELECT count(*) FROM {history}");
    wait_for_value(&client, &rows, 1i64, BOUND).await;
    each(
        &client,
        &[
            &format!("INSERT INTO {source} VALUES (2)"),
            &format!("UPDATE {source} SET {odd} = 3 WHERE {odd} = 2; DELETE FROM {source} WHERE {odd} = 3"),
        ],
    )
    .await;
    wait_for_value(&client, &rows, 4i64, BOUND).await;
    daemon.sigterm();
    let (status, output) = daemon.wait(BOUND).await;
    assert!(status.success(), "{output}");
    let known =
        format!("SELECT count(*) FROM {history} WHERE \"old_{ODD_QUOTED}\" = 2 AND {odd} = 3");
    assert_eq!(value::<i64>(&client, &known).await, 1);

    each(&client, &["SELECT pg_drop_replication_slot('waltrail')"]).await;
    let printed = waltrail(folder.path(), &["accept-gap", "--dry-run"]);
    each(&administrator, &[&printed]).await;
    wait_for_value(&client, &rows, 5i64, BOUND).await;
    waltrail(folder.path(), &["status", "--exact"]);
    waltrail(folder.path(), &["teardown", "--yes"]);
    assert_eq!(
        texts(&client, "SELECT pubname::text FROM pg_publication").await,
        []
    );
}

/// [`ODD`] between quotes.
const ODD_QUOTED: &str = "o'; \"\"d\"\" %s%I {} $1 $$ \\n\\' --/*\n;é";
