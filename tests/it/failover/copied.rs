//! A slot that was made or put on the standby by hand, before its promotion (16 and older).

use super::*;
use crate::support::other_version;

/// A standby of any version reads the slots that lie in its data directory when it starts: that is how tools for high
/// availability keep a copy.
#[tokio::test]
async fn a_slot_that_was_copied_to_the_standby_goes_on_after_its_promotion() {
    let mut pair = Pair::new(None, &[]).await;
    pair.scene.start().await;
    let load = pair.load(1);
    load.more(50).await;
    // What is in the file is what the server has, at the latest, after a checkpoint.
    each(&pair.scene.source, &["CHECKPOINT"]).await;
    pair.standby.stop(StopMode::Fast).unwrap();
    let slot = Path::new("pg_replslot/waltrail");
    copy(
        &pair.scene.server.data_dir().join(slot),
        &pair.standby.data_dir().join("pg_replslot"),
    );
    pair.standby.start_again().unwrap();
    load.more(50).await;
    let done = load.stop();
    pair.scene.check().await;
    pair.standby_is_level().await;
    println!("{done:?}");
    let load = pair.load(2);
    pair.scene.daemon().kill9();
    pair.scene.server.kill9();
    pair.address.lead_to(pair.standby.port());
    let daemon = pair.scene.spawn();
    if pair.standby.binaries().major() < 16 {
        let waits = |line: &str| line.contains("which does not decode there");
        daemon.wait_log(BOUND, waits).await;
    }
    let promoted = pair.promote().await;
    pair.first_row(promoted).await;
    load.more(50).await;
    load.stop();
    pair.finish().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL 16: make test-versions"]
async fn a_slot_that_was_made_on_a_standby_of_16_before_its_promotion_goes_on() {
    let Some(binaries) = other_version(16) else {
        return;
    };
    let mut pair = Pair::new(Some(&binaries), &[]).await;
    pair.scene.start().await;
    let standby = pair.on_standby().await;
    let primary = pair.scene.session().await;
    let make = tokio::spawn(async move {
        let make = "SELECT pg_create_logical_replication_slot('waltrail', 'pgoutput')";
        each(&standby, &[make]).await;
    });
    // It waits for a record of the running transactions.
    wait_until("the standby has the slot", BOUND, async || {
        each(&primary, &["SELECT pg_log_standby_snapshot()"]).await;
        make.is_finished().then_some(())
    })
    .await;
    let load = pair.load(1);
    load.more(50).await;
    load.stop();
    pair.scene.check().await;
    pair.standby_is_level().await;
    let load = pair.load(2);
    let took = {
        pair.scene.server.kill9();
        let promoted = pair.promote().await;
        pair.address.lead_to(pair.scene.server.port());
        pair.first_row(promoted).await
    };
    println!("{took:?}");
    load.more(50).await;
    load.stop();
    pair.finish().await;
}

#[tokio::test]
async fn a_slot_that_was_made_after_the_promotion_is_refused() {
    let mut pair = Pair::new(None, &[]).await;
    pair.scene.start().await;
    each(
        &pair.scene.source,
        &["INSERT INTO employees (name) VALUES ('before')"],
    )
    .await;
    pair.scene.check().await;
    pair.standby_is_level().await;
    assert_clean(&pair.scene.stop_complaining().await, &[]);
    pair.scene.server.kill9();
    pair.promote().await;
    pair.address.lead_to(pair.scene.server.port());
    let make = "SELECT pg_create_logical_replication_slot('waltrail', 'pgoutput')";
    each(
        &pair.scene.source,
        &["INSERT INTO employees (name) VALUES ('not decoded')", make],
    )
    .await;
    let (code, output) = pair.scene.refused().await;
    assert_eq!(code, 65, "{output}");
    assert!(
        output.contains("the last position that was confirmed from here"),
        "{output}"
    );
}
