//! A slot that the standby keeps a copy of (17 and later).

use fastrand::Rng;

use super::*;
use crate::support::{other_version, value};

const COPIED: &str = "SELECT count(*) = 1 FROM pg_replication_slots \
    WHERE slot_name = 'waltrail' AND synced AND NOT temporary";

fn rounds() -> u64 {
    std::env::var("FAILOVERS").map_or(1, |text| text.parse().expect("a number"))
}

impl Pair {
    /// A pair whose standby keeps a copy of the slot, which a daemon reads; no change is sent before the standby has it.
    async fn synchronized(binaries: &Binaries) -> Self {
        let scene = Scene::two(with(Some(binaries)), |builder| builder).await;
        Self::synchronized_of(scene, binaries).await
    }

    async fn synchronized_of(scene: Scene, binaries: &Binaries) -> Self {
        let settings = [("sync_replication_slots", "on")];
        let mut pair = Self::of(scene, Some(binaries), &settings).await;
        let listed = ("synchronized_standby_slots", "standby_1");
        pair.scene.server.set(listed.0, listed.1).unwrap();
        pair.scene.start().await;
        let failover = "SELECT failover FROM pg_replication_slots WHERE slot_name = 'waltrail'";
        assert!(value::<bool>(&pair.scene.source, failover).await);
        pair
    }

    async fn slot_is_copied(&self) {
        let standby = self.on_standby().await;
        wait_until("the standby has the slot", BOUND, async || {
            // The copy begins where the primary's slot has got to.
            each(&self.scene.source, &["SELECT pg_log_standby_snapshot()"]).await;
            value::<bool>(&standby, COPIED).await.then_some(())
        })
        .await;
    }
}

async fn fail_over_on(major: u32) {
    let Some(binaries) = other_version(major) else {
        return;
    };
    for round in 0..rounds() {
        let mut rng = Rng::with_seed(1_000 * u64::from(major) + round);
        let mut pair = Pair::synchronized(&binaries).await;
        let load = pair.load(rng.u64(..));
        pair.slot_is_copied().await;
        load.more(rng.u64(50..400)).await;
        // By turns, the address moves before the promotion and after it.
        pair.fail_over(load, round % 2 == 0).await;
        pair.finish().await;
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL 17: make test-versions"]
async fn a_promoted_standby_of_17_is_followed_from_its_copy_of_the_slot() {
    fail_over_on(17).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL 18: make test-versions"]
async fn a_promoted_standby_of_18_is_followed_from_its_copy_of_the_slot() {
    fail_over_on(18).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL 18: make test-versions"]
async fn after_a_switch_over_the_new_primary_is_found_among_two_hosts() {
    let Some(binaries) = other_version(18) else {
        return;
    };
    let mut pair = Pair::synchronized(&binaries).await;
    pair.scene.stop().await;
    let one = format!("host=127.0.0.1 port={}", pair.address.port());
    let (primary, standby) = (pair.scene.server.port(), pair.standby.port());
    let both = format!("host=127.0.0.1,127.0.0.1 port={standby},{primary}");
    assert!(pair.scene.config.contains(&one));
    pair.scene.config = pair.scene.config.replace(&one, &both);
    pair.scene.start().await;
    let load = pair.load(20);
    pair.slot_is_copied().await;
    load.more(200).await;
    pair.scene.server.stop(StopMode::Fast).unwrap();
    let promoted = pair.promote().await;
    pair.address.lead_to(pair.scene.server.port());
    let took = pair.first_row(promoted).await;
    load.more(100).await;
    println!("first row {took:?} after the promotion; {:?}", load.stop());
    pair.finish().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL 18: make test-versions"]
async fn a_former_primary_that_comes_back_is_refused() {
    let Some(binaries) = other_version(18) else {
        return;
    };
    let mut pair = Pair::synchronized(&binaries).await;
    let load = pair.load(1);
    pair.slot_is_copied().await;
    load.more(50).await;
    pair.fail_over(load, false).await;
    let mut pair = pair.finish().await;
    // It still has its slot, and its WAL goes on beside the new primary's.
    pair.standby.start_again().unwrap();
    pair.address.lead_to(pair.standby.port());
    let (code, output) = pair.scene.refused().await;
    assert_eq!(code, 65, "{output}");
    assert!(
        output.contains("which does not descend from timeline 2"),
        "{output}"
    );
}

#[tokio::test]
#[ignore = "needs PostgreSQL 17: make test-versions"]
async fn a_slot_is_altered_as_the_configuration_says() {
    let Some(binaries) = other_version(17) else {
        return;
    };
    let mut scene = Scene::two(with(Some(&binaries)), |builder| builder).await;
    let failover = "SELECT failover FROM pg_replication_slots WHERE slot_name = 'waltrail'";
    let config = scene.config.clone();
    scene.config = config.replacen("[source]\n", "[source]\nfailover = false\n", 1);
    scene.start().await;
    assert!(!value::<bool>(&scene.source, failover).await);
    scene.stop().await;
    scene.config = config.clone();
    scene.start().await;
    assert!(value::<bool>(&scene.source, failover).await);
    scene.stop().await;
    scene.config = config.replacen("[source]\n", "[source]\nfailover = false\n", 1);
    scene.start().await;
    assert!(!value::<bool>(&scene.source, failover).await);
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('a')"],
    )
    .await;
    scene.end().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL 18: make test-versions"]
async fn a_target_that_never_saw_the_slot_does_not_adopt_its_copy() {
    let Some(binaries) = other_version(18) else {
        return;
    };
    let mut pair = Pair::synchronized(&binaries).await;
    // Without it the slot stays where it began, and a standby cannot decode from there.
    let load = pair.load(1);
    pair.slot_is_copied().await;
    load.more(50).await;
    pair.fail_over(load, false).await;
    let mut pair = pair.finish().await;
    // What was read before the promotion is not counted any more.
    let control = "DROP SCHEMA waltrail CASCADE; TRUNCATE employees_cdc";
    each(&pair.scene.target, &[control]).await;
    let (code, output) = pair.scene.refused().await;
    assert_eq!(code, 65, "{output}");
    assert!(
        output.contains("what was read is in another target"),
        "{output}"
    );
}

#[tokio::test]
#[ignore = "needs PostgreSQL 18: make test-versions"]
async fn a_standby_whose_catalogs_are_older_is_not_taken_for_a_source_that_was_changed() {
    let Some(binaries) = other_version(18) else {
        return;
    };
    let mut pair = Pair::synchronized(&binaries).await;
    let load = pair.load(1);
    pair.slot_is_copied().await;
    load.stop();
    pair.scene.check().await;
    pair.scene.stop_complaining().await;
    let standby = pair.on_standby().await;
    each(&standby, &["SELECT pg_wal_replay_pause()"]).await;
    // It receives this table, and does not know it.
    each(
        &pair.scene.source,
        &["CREATE TABLE late (id int PRIMARY KEY)"],
    )
    .await;
    pair.scene.config += "[[table]]\nsource = 'public.late'\n";
    pair.scene.start().await;
    each(&pair.scene.source, &["INSERT INTO late VALUES (1)"]).await;
    let rows = "SELECT count(*) FROM late_cdc";
    wait_for_value(&pair.scene.target, rows, 1_i64, BOUND).await;

    pair.scene.server.kill9();
    pair.address.lead_to(pair.standby.port());
    let line = |line: &str| line.contains("which was already read; waiting until it has");
    pair.scene.daemon().wait_log(BOUND, line).await;
    pair.promote().await;
    each(&pair.scene.source, &["INSERT INTO late VALUES (2)"]).await;
    wait_for_value(&pair.scene.target, rows, 2_i64, BOUND).await;
    assert_clean(&pair.scene.stop_complaining().await, GONE);
}

#[tokio::test]
#[ignore = "needs PostgreSQL 18: make test-versions"]
async fn a_history_in_the_source_database_fails_over_with_it() {
    let Some(binaries) = other_version(18) else {
        return;
    };
    for round in 0..rounds() {
        let mut rng = Rng::with_seed(round);
        let mut scene = Scene::one(with(Some(&binaries))).await;
        scene.config += "[target]\ndurable = 'server'\n";
        let mut pair = Pair::synchronized_of(scene, &binaries).await;
        // Nothing is confirmed before the standby has the history of it.
        let names = ("synchronous_standby_names", "standby_1");
        pair.scene.server.set(names.0, names.1).unwrap();
        let load = pair.load(rng.u64(..));
        pair.slot_is_copied().await;
        load.more(rng.u64(50..400)).await;
        pair.fail_over_with_target(load).await;
    }
}
