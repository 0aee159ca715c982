//! A standby as the source (16 and later): the publication is made on the primary, the slot on the standby.

use super::*;
use crate::support::daemon::Daemon;
use crate::support::{other_version, server, value};

impl Pair {
    /// A pair whose address leads to the standby.
    async fn from_standby(binaries: &Binaries) -> Self {
        let pair = Self::new(Some(binaries), &[]).await;
        pair.address.lead_to(pair.standby.port());
        pair
    }

    /// Starts a daemon, which makes its slot; the primary logs the record that this waits for.
    async fn follow_standby(&mut self) {
        let primary = self.scene.session().await;
        let record = tokio::spawn(async move {
            loop {
                each(&primary, &["SELECT pg_log_standby_snapshot()"]).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        self.scene.start().await;
        record.abort();
    }

    async fn publish(&self) {
        let publish = "CREATE PUBLICATION waltrail FOR TABLE employees WITH (publish_via_partition_root = true)";
        each(&self.scene.source, &[publish]).await;
        self.standby_is_level().await;
    }
}

/// The statement that a refusal says is to be run on the primary.
fn statement(output: &str) -> String {
    let hint = output.split("hint: on the primary: ").nth(1);
    hint.unwrap_or_else(|| panic!("{output}")).to_owned()
}

async fn follow_a_standby_of(major: u32) {
    let Some(binaries) = other_version(major) else {
        return;
    };
    let mut pair = Pair::from_standby(&binaries).await;
    let (code, output) = pair.scene.refused().await;
    assert_eq!(code, 78, "{output}");
    assert!(
        output.contains("publication waltrail does not exist"),
        "{output}"
    );
    each(&pair.scene.source, &[&statement(&output)]).await;
    pair.standby_is_level().await;
    pair.follow_standby().await;
    let load = pair.scene.load(1);
    load.more(100).await;
    let mut status = Daemon::spawn_with(&pair.scene.config, &["status"], &[]);
    let (done, output) = status.wait(BOUND).await;
    assert_eq!(done.code(), Some(0), "{output}");
    assert!(output.contains("in use by pid"), "{output}");
    pair.standby.restart(StopMode::Fast).unwrap();
    load.more(100).await;
    load.stop();
    pair.scene.check().await;

    // It takes the primary's place while it is read.
    pair.standby_is_level().await;
    pair.scene.server.kill9();
    let promoted = pair.promote().await;
    pair.first_row(promoted).await;
    let line = |line: &str| line.contains("the source was promoted");
    pair.scene.daemon().wait_log(BOUND, line).await;
    let load = pair.scene.load(2);
    load.more(100).await;
    load.stop();
    pair.scene.check().await;
    assert_clean(&pair.scene.stop_complaining().await, GONE);
    pair.scene.start().await;
    pair.finish().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL 16: make test-versions"]
async fn a_standby_of_16_is_followed_and_its_promotion() {
    follow_a_standby_of(16).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL 18: make test-versions"]
async fn a_standby_of_18_is_followed_and_its_promotion() {
    follow_a_standby_of(18).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL 17: make test-versions"]
async fn what_a_new_slot_on_a_standby_waits_for_is_said() {
    let Some(binaries) = other_version(17) else {
        return;
    };
    let mut pair = Pair::from_standby(&binaries).await;
    pair.publish().await;
    let line = |line: &str| line.contains("pg_log_standby_snapshot()");
    pair.scene.spawn().wait_log(BOUND, line).await;
    each(&pair.scene.source, &["SELECT pg_log_standby_snapshot()"]).await;
    let line = |line: &str| line.contains("streaming");
    pair.scene.daemon().wait_log(BOUND, line).await;
}

async fn refuses_a_conflict_on(major: u32, reason: &str) {
    let Some(binaries) = other_version(major) else {
        return;
    };
    let mut pair = Pair::from_standby(&binaries).await;
    pair.publish().await;
    pair.follow_standby().await;
    pair.scene.stop_complaining().await;
    pair.standby.set("hot_standby_feedback", "off").unwrap();
    let standby = pair.on_standby().await;
    let lost = "SELECT coalesce(bool_or(to_jsonb(s) ->> 'invalidation_reason' IS NOT NULL \
        OR (to_jsonb(s) ->> 'conflicting')::bool), false) FROM pg_replication_slots s";
    wait_until("the slot is lost", BOUND, async || {
        each(
            &pair.scene.source,
            &["CREATE TABLE t ()", "DROP TABLE t", "VACUUM pg_class"],
        )
        .await;
        value::<bool>(&standby, lost).await.then_some(())
    })
    .await;
    let (code, output) = pair.scene.refused().await;
    assert_eq!(code, 65, "{output}");
    assert!(output.contains(&format!("is lost ({reason})")), "{output}");
    assert!(output.contains("hot_standby_feedback = on"), "{output}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL 16: make test-versions"]
async fn a_slot_that_conflicts_on_a_standby_of_16_is_refused() {
    refuses_a_conflict_on(16, "conflicting").await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL 17: make test-versions"]
async fn a_slot_that_conflicts_on_a_standby_of_17_is_refused() {
    refuses_a_conflict_on(17, "rows_removed").await;
}

/// Also where the standby's version does not decode.
#[tokio::test]
async fn a_standby_has_a_status() {
    let pair = Pair::new(None, &[]).await;
    pair.address.lead_to(pair.standby.port());
    let mut status = Daemon::spawn_with(&pair.scene.config, &["status", "--json"], &[]);
    let (done, output) = status.wait(BOUND).await;
    assert_eq!(done.code(), Some(2), "{output}");
    let told: serde_json::Value = serde_json::from_str(&output).unwrap();
    assert_eq!(told["servers"]["source_role"], "standby", "{told}");
    assert_eq!(told["source_error"], serde_json::Value::Null, "{told}");
    let reasons = told["verdict"]["reasons"].as_array().unwrap();
    let codes: Vec<_> = reasons
        .iter()
        .map(|reason| reason["code"].as_str())
        .collect();
    assert_eq!(codes, [Some("slot-missing"), Some("not-running")], "{told}");
}

#[tokio::test]
async fn a_standby_takes_no_history() {
    let mut pair = Pair::new(None, &[]).await;
    let standby = pair.standby.dsn_tcp("postgres");
    // In the source's own place, too.
    let (source, _) = server().await;
    for source in [&source.dsn_tcp("postgres"), &standby] {
        let config = crate::support::scene::config(source, Some(&standby), &["public.t"], "");
        let mut daemon = Daemon::spawn(&config);
        let (done, output) = daemon.wait(BOUND).await;
        assert_eq!(done.code(), Some(78), "{output}");
        assert!(output.contains("the target is a standby"), "{output}");
    }
    // Nor does it decode, before 16.
    pair.address.lead_to(pair.standby.port());
    if pair.standby.binaries().major() < 16 {
        pair.publish().await;
        let (code, output) = pair.scene.refused().await;
        assert_eq!(code, 78, "{output}");
        assert!(
            output.contains("only 16 and later can be followed there"),
            "{output}"
        );
    }
}
