//! A source that `pg_upgrade` has brought from 17 to 18, and what only looks like one.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;

use super::*;
use crate::support::compare::{ExpectedTx, compare};
use crate::support::daemon::Daemon;
use crate::support::oracle::{columns_of, read_history};
use crate::support::{EMPLOYEES, other_version, value};

/// The servers with all their programs, where `scripts/fetch-upgrade` has put them.
fn with_pg_upgrade(major: u32) -> Option<Binaries> {
    let folder = format!(
        "{}/target/postgres/upgrade/{major}/bin",
        env!("CARGO_MANIFEST_DIR")
    );
    let found = Binaries::at(&folder).ok();
    if found.is_none() {
        println!("not tried: there is no pg_upgrade in {folder}");
    }
    found
}

/// Runs `pg_upgrade` of the new server's programs; both are stopped.
fn upgrade(old: &mut Cluster, new: &mut Cluster) -> (bool, String) {
    old.stop(StopMode::Fast).unwrap();
    new.stop(StopMode::Fast).unwrap();
    let owner = std::fs::metadata(new.data_dir()).unwrap();
    let run = Command::new(new.binaries().program("pg_upgrade"))
        .arg("--old-bindir")
        .arg(old.binaries().folder())
        .arg("--new-bindir")
        .arg(new.binaries().folder())
        .arg("--old-datadir")
        .arg(old.data_dir())
        .arg("--new-datadir")
        .arg(new.data_dir())
        .arg("--socketdir")
        .arg(new.socket_dir())
        .args(["--username", "postgres"])
        .args(["--old-port", &old.port().to_string()])
        .args(["--new-port", &new.port().to_string()])
        .current_dir(new.folder())
        .env("LC_ALL", "C")
        .uid(owner.uid())
        .gid(owner.gid())
        .output()
        .unwrap();
    let said = [run.stdout, run.stderr].concat();
    (
        run.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// An empty server that another can be upgraded into.
fn empty(binaries: &Binaries) -> Cluster {
    let same = ["-E", "UTF8", "--locale=C", "--no-data-checksums"];
    builder()
        .binaries(binaries.clone())
        .fresh_initdb()
        .initdb_args(same)
        .start()
        .unwrap()
}

/// `waltrail adopt`: its exit code and what it wrote.
async fn adopt(scene: &Scene, more: &[&str]) -> (i32, String) {
    let args = [&["adopt"], more].concat();
    let mut adopt = Daemon::spawn_with(&scene.config, &args, &[]);
    let (status, output) = adopt.wait(BOUND).await;
    (status.code().unwrap_or(-1), output)
}

/// Puts another server in the source's place, at the same address.
async fn put_in_place(scene: &mut Scene, address: &Proxy, server: Cluster) -> Cluster {
    address.lead_to(server.port());
    let former = std::mem::replace(&mut scene.server, server);
    scene.source = scene.session().await;
    former
}

/// What the oracle of the source says of `employees`, in a history that begins where it was last told to forget.
async fn expected(scene: &Scene) -> Vec<ExpectedTx> {
    let (table, history) = ("public.employees", "public.employees_cdc");
    let oracle = scene.oracle;
    oracle
        .expected(&scene.source, table, &scene.target, history)
        .await
}

/// The history is what both clusters' oracles say, one after the other.
async fn check_both(scene: &Scene, former: &[ExpectedTx]) {
    let all = [former, &expected(scene).await].concat();
    let wanted: usize = all.iter().map(|tx| tx.rows.len()).sum();
    let count = "SELECT count(*) FROM employees_cdc";
    wait_for_value(&scene.target, count, wanted as i64, BOUND).await;
    let columns = columns_of(&scene.source, "employees").await;
    let columns: Vec<String> = columns.into_iter().collect();
    let rows = read_history(&scene.target, "employees_cdc", &columns).await;
    match compare(&all, &rows) {
        Ok(summary) => println!("{summary:?}"),
        Err(difference) => panic!("{difference}"),
    }
}

#[tokio::test]
#[ignore = "needs pg_upgrade of 17 and 18: scripts/fetch-upgrade"]
async fn a_source_that_pg_upgrade_brought_from_17_to_18_is_adopted() {
    let (Some(old), Some(new)) = (with_pg_upgrade(17), with_pg_upgrade(18)) else {
        return;
    };
    let mut scene = Scene::two(with(Some(&old)), |builder| builder).await;
    let address = scene.source_behind_proxy();
    let mut upgraded = empty(&new);
    scene.start().await;
    let load = scene.load(1);
    load.more(200).await;
    load.stop();
    scene.check().await;
    let former = expected(&scene).await;
    // A server that stops in good order waits until its walsenders have sent everything and it is confirmed.
    let (done, said) = upgrade(&mut scene.server, &mut upgraded);
    assert!(done, "{said}");
    assert_clean(&scene.stop_complaining().await, GONE);
    upgraded.start_again().unwrap();
    put_in_place(&mut scene, &address, upgraded).await;

    // The application does not wait for the person who has to decide.
    scene.oracle.forget(&scene.source).await;
    let load = scene.load(2);
    load.more(100).await;
    let (code, output) = scene.refused().await;
    assert_eq!(code, 65, "{output}");
    assert!(
        output.contains("after pg_upgrade: waltrail adopt"),
        "{output}"
    );
    let (code, output) = adopt(&scene, &["--dry-run"]).await;
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("INSERT INTO waltrail.adopted"), "{output}");
    assert_eq!(scene.refused().await.0, 65);
    let (code, output) = adopt(&scene, &[]).await;
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("adopted the upgraded source"), "{output}");
    assert!(output.contains("start waltrail run"), "{output}");

    scene.start().await;
    load.more(100).await;
    load.stop();
    check_both(&scene, &former).await;
    scene.stop().await;
    // It is the source from now on.
    scene.start().await;
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('after a restart')"],
    )
    .await;
    check_both(&scene, &former).await;
    scene.stop().await;
    let (code, output) = adopt(&scene, &[]).await;
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("nothing to adopt"), "{output}");
    let kept = "SELECT count(*) = 1 FROM waltrail.adopted WHERE from_major = 17 AND to_major = 18";
    assert!(value::<bool>(&scene.target, kept).await);
}

#[tokio::test]
#[ignore = "needs pg_upgrade of 17 and 18: scripts/fetch-upgrade"]
async fn a_slot_that_was_made_by_hand_after_pg_upgrade_is_not_adopted() {
    let (Some(old), Some(new)) = (with_pg_upgrade(17), with_pg_upgrade(18)) else {
        return;
    };
    let mut scene = Scene::two(with(Some(&old)), |builder| builder).await;
    let mut upgraded = empty(&new);
    scene.start().await;
    scene.stop().await;
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('not in the history')"],
    )
    .await;
    let (done, said) = upgrade(&mut scene.server, &mut upgraded);
    assert!(!done, "{said}");
    assert!(
        said.contains("Checking for valid logical replication slots"),
        "{said}"
    );
    // A person finds a way around that.
    scene.server.start_again().unwrap();
    scene.reconnect().await;
    each(
        &scene.source,
        &["SELECT pg_drop_replication_slot('waltrail')"],
    )
    .await;
    let (done, said) = upgrade(&mut scene.server, &mut upgraded);
    assert!(done, "{said}");
    upgraded.start_again().unwrap();
    let address = scene.source_behind_proxy();
    put_in_place(&mut scene, &address, upgraded).await;
    let make =
        "SELECT pg_create_logical_replication_slot('waltrail', 'pgoutput', failover => true)";
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('not decoded')", make],
    )
    .await;
    let (code, output) = adopt(&scene, &[]).await;
    assert_eq!(code, 65, "{output}");
    let reason =
        "rows of public.employees were written in the new cluster before the slot was made";
    assert!(output.contains(reason), "{output}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL 17 and 18: make test-versions"]
async fn a_cluster_that_pg_upgrade_did_not_make_is_not_adopted() {
    let (Some(old), Some(new)) = (other_version(17), other_version(18)) else {
        return;
    };
    let mut scene = Scene::two(with(Some(&old)), |builder| builder).await;
    let address = scene.source_behind_proxy();
    scene.start().await;
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('a')"],
    )
    .await;
    scene.check().await;
    scene.stop().await;
    // As from a dump: the same names, and other OIDs.
    let other = empty(&new);
    put_in_place(&mut scene, &address, other).await;
    each(
        &scene.source,
        &[
            "CREATE TABLE another_oid ()",
            EMPLOYEES,
            "CREATE PUBLICATION waltrail FOR TABLE employees WITH (publish_via_partition_root = true)",
            "SELECT pg_switch_wal()",
            "INSERT INTO employees (name) VALUES ('b')",
        ],
    )
    .await;
    let (code, output) = adopt(&scene, &[]).await;
    assert_eq!(code, 65, "{output}");
    assert!(output.contains("pg_upgrade did not keep it"), "{output}");

    let make =
        "SELECT pg_create_logical_replication_slot('waltrail', 'pgoutput', failover => true)";
    each(&scene.source, &[make]).await;
    let (code, output) = adopt(&scene, &[]).await;
    assert_eq!(code, 65, "{output}");
    assert!(output.contains("is another table now"), "{output}");

    let anew = [
        "SELECT pg_drop_replication_slot('waltrail')",
        "SELECT pg_create_logical_replication_slot('waltrail', 'pgoutput')",
        "ALTER PUBLICATION waltrail SET (publish = 'insert, update, delete')",
        "ALTER PUBLICATION waltrail SET (publish = 'insert, update, delete, truncate')",
    ];
    each(&scene.source, &anew).await;
    let (code, output) = adopt(&scene, &[]).await;
    assert_eq!(code, 65, "{output}");
    assert!(output.contains("it was made by hand"), "{output}");
    let unchanged = "SELECT count(*) = 0 FROM waltrail.adopted";
    assert!(value::<bool>(&scene.target, unchanged).await);
}

#[tokio::test]
#[ignore = "needs pg_upgrade of 17 and 18: scripts/fetch-upgrade"]
async fn a_database_that_keeps_its_own_history_is_adopted() {
    let (Some(old), Some(new)) = (with_pg_upgrade(17), with_pg_upgrade(18)) else {
        return;
    };
    let mut scene = Scene::one(with(Some(&old))).await;
    let address = scene.source_behind_proxy();
    let mut upgraded = empty(&new);
    scene.start().await;
    let load = scene.load(1);
    load.more(100).await;
    load.stop();
    scene.check().await;
    let former = expected(&scene).await;
    scene.stop().await;
    let page = include_str!("../../../docs/operate/failover.md");
    let block = page
        .split("<!-- executed: own history -->\n```sql\n")
        .nth(1);
    let block = block.unwrap().split("```").next().unwrap();
    let statements: Vec<&str> = block.split_terminator(";\n").collect();
    let [report, left, advance] = statements[..] else {
        panic!("{block}");
    };
    each(&scene.source, &[report]).await;
    assert_eq!(value::<i64>(&scene.source, left).await, 0);
    each(&scene.source, &[advance]).await;
    let (done, said) = upgrade(&mut scene.server, &mut upgraded);
    assert!(done, "{said}");
    upgraded.start_again().unwrap();
    put_in_place(&mut scene, &address, upgraded).await;
    scene.target = scene.target_session().await;
    scene.oracle.forget(&scene.source).await;
    let load = scene.load(2);
    load.more(50).await;
    let (code, output) = adopt(&scene, &[]).await;
    assert_eq!(code, 0, "{output}");
    scene.start().await;
    load.more(50).await;
    load.stop();
    check_both(&scene, &former).await;
    scene.stop().await;
}
