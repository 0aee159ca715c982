//! Every row of the design's restart table, end to end: what the daemon finds at its start, and whether it goes
//! on, waits, or refuses with one sentence and a remedy that works.

use std::path::Path;
use std::process::Command;

use throwaway::{Cluster, StopMode};
use tokio_postgres::Client;

use crate::support::daemon::{Daemon, ending};
use crate::support::oracle::Oracle;
use crate::support::scene::{Scene, complaints, config, streaming};
use crate::support::{
    BOUND, EMPLOYEES, connect, each, server, server_with, source, texts, value, wait_for_value,
    wait_until,
};

const TABLES: [&str; 1] = ["public.employees"];
const SLOT: &str =
    "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'waltrail'";
const END: &str = "SELECT end_lsn::text FROM waltrail.checkpoint WHERE slot = 'waltrail'";
const DROP_SLOT: &str = "SELECT pg_drop_replication_slot('waltrail')";
const ACCEPT: &str = "waltrail accept-gap";

async fn insert(client: &Client, name: &str) {
    each(
        client,
        &[&format!("INSERT INTO employees (name) VALUES ('{name}')")],
    )
    .await;
}

async fn names(client: &Client) -> Vec<String> {
    texts(
        client,
        "SELECT replace(name, 'CANARY_7f3a', '') FROM employees_cdc ORDER BY cdc_id",
    )
    .await
    .into_iter()
    .flatten()
    .collect()
}

/// A history with one change, and the daemon stopped.
async fn stopped() -> Scene {
    let mut scene = Scene::new(EMPLOYEES, &TABLES).await;
    insert(&scene.source, "before").await;
    scene.check().await;
    scene.stop().await;
    scene
}

/// The daemon refuses: exit code, one sentence with these words, and a remedy with these statements.
#[track_caller]
fn is_refusal(ended: &(i32, String), words: &[&str], remedies: &[&str]) {
    let (code, output) = ended;
    assert_eq!(*code, 65, "{output}");
    let (error, hint) = ending(output);
    for word in words {
        assert!(error.contains(word), "no {word} in: {output}");
    }
    for remedy in remedies {
        assert!(hint.contains(remedy), "no {remedy} in: {output}");
    }
    assert!(!output.contains("\"streaming\""), "{output}");
}

/// After the remedy the history goes on from now, and says that changes are missing before.
async fn goes_on_with_a_gap(scene: &mut Scene) {
    let mut accept = Daemon::spawn_with(&scene.config, &["accept-gap"], &[]);
    let (status, output) = accept.wait(BOUND).await;
    assert_eq!(status.code(), Some(0), "{output}");
    let gaps = "SELECT count(*) FROM employees_cdc WHERE change_type = 'GAP'";
    assert_eq!(value::<i64>(&scene.target, gaps).await, 1);
    scene.start().await;
    insert(&scene.source, "afterwards").await;
    wait_for_value(
        &scene.target,
        "SELECT count(*) FROM employees_cdc WHERE name LIKE '%afterwards'",
        1_i64,
        BOUND,
    )
    .await;
    scene.stop().await;
}

#[tokio::test]
async fn a_slot_behind_the_checkpoint_repeats_nothing() {
    let mut scene = Scene::new(EMPLOYEES, &TABLES).await;
    for round in 0..3 {
        // Committed there, not yet confirmed here: confirmations go out once a second.
        for n in 0..5 {
            insert(&scene.source, &format!("{round}.{n}")).await;
        }
        scene.check().await;
        scene.daemon().kill9();
        insert(&scene.source, "while it was gone").await;
        let behind: bool = value(
            &scene.source,
            &format!("SELECT ({SLOT})::pg_lsn < ({END})::pg_lsn"),
        )
        .await;
        assert!(behind, "the slot is not behind");
        scene.start().await;
        scene.check().await;
    }
    scene.end().await;
}

#[tokio::test]
async fn a_slot_at_the_checkpoint_goes_on() {
    let mut scene = stopped().await;
    let (slot, end): (String, String) = (
        value(&scene.source, SLOT).await,
        value(&scene.target, END).await,
    );
    assert_eq!(slot, end, "an orderly end confirms everything");
    insert(&scene.source, "while it was gone").await;
    scene.start().await;
    scene.check().await;
    scene.end().await;
}

#[tokio::test]
async fn a_slot_that_somebody_advanced_is_refused() {
    let mut scene = stopped().await;
    insert(&scene.source, "skipped").await;
    let end: String = value(&scene.target, END).await;
    each(
        &scene.source,
        &["SELECT pg_replication_slot_advance('waltrail', pg_current_wal_lsn())"],
    )
    .await;
    let slot: String = value(&scene.source, SLOT).await;
    let refused = scene.refused().await;
    is_refusal(&refused, &["ahead", &end, &slot], &[ACCEPT]);
    assert_eq!(names(&scene.target).await, ["before"]);
    goes_on_with_a_gap(&mut scene).await;
}

#[tokio::test]
async fn a_slot_that_is_gone_is_refused() {
    let mut scene = stopped().await;
    let end: String = value(&scene.target, END).await;
    each(&scene.source, &[DROP_SLOT]).await;
    insert(&scene.source, "lost").await;
    let refused = scene.refused().await;
    is_refusal(&refused, &["does not exist", &end], &[ACCEPT]);
    let made: i64 = value(&scene.source, "SELECT count(*) FROM pg_replication_slots").await;
    assert_eq!(made, 0, "nothing is made in its place");
    goes_on_with_a_gap(&mut scene).await;
}

#[tokio::test]
async fn a_slot_that_was_made_anew_is_refused() {
    let mut scene = stopped().await;
    each(
        &scene.source,
        &[
            DROP_SLOT,
            "SELECT pg_create_logical_replication_slot('waltrail', 'pgoutput')",
        ],
    )
    .await;
    let refused = scene.refused().await;
    is_refusal(&refused, &["ahead", "re-created"], &[ACCEPT]);
    goes_on_with_a_gap(&mut scene).await;
}

#[tokio::test]
async fn a_slot_whose_wal_was_removed_is_refused() {
    let mut scene = stopped().await;
    scene.server.set("max_slot_wal_keep_size", "1MB").unwrap();
    let end: String = value(&scene.target, END).await;
    for _ in 0..4 {
        insert(&scene.source, "lost").await;
        each(&scene.source, &["SELECT pg_switch_wal()"]).await;
    }
    each(&scene.source, &["CHECKPOINT"]).await;
    wait_for_value(
        &scene.source,
        "SELECT wal_status FROM pg_replication_slots",
        Some("lost".to_owned()),
        BOUND,
    )
    .await;
    let refused = scene.refused().await;
    is_refusal(
        &refused,
        &["is lost", &end],
        &[ACCEPT, "max_slot_wal_keep_size"],
    );
    goes_on_with_a_gap(&mut scene).await;
}

#[tokio::test]
async fn a_slot_that_is_lost_while_it_is_followed_is_refused_too() {
    let mut scene = Scene::with(
        |builder| builder.setting("wal_sender_timeout", "2s"),
        EMPLOYEES,
        &TABLES,
        "",
    )
    .await;
    insert(&scene.source, "before").await;
    scene.check().await;
    // It does not get on, because its history is locked, and the source does not wait for it.
    each(
        &scene.target,
        &["BEGIN; LOCK TABLE employees_cdc IN ACCESS EXCLUSIVE MODE"],
    )
    .await;
    insert(&scene.source, "stuck").await;
    scene.server.set("max_slot_wal_keep_size", "1MB").unwrap();
    for _ in 0..4 {
        each(
            &scene.source,
            &["SELECT pg_logical_emit_message(false, 'a', 'b'), pg_switch_wal()"],
        )
        .await;
    }
    each(&scene.source, &["CHECKPOINT"]).await;
    wait_for_value(
        &scene.source,
        "SELECT wal_status FROM pg_replication_slots",
        Some("lost".to_owned()),
        BOUND,
    )
    .await;
    each(&scene.target, &["ROLLBACK"]).await;
    let (status, output) = scene.daemon().wait(BOUND).await;
    assert_eq!(status.code(), Some(65), "{output}");
    assert!(output.contains("is lost"), "{output}");
}

#[tokio::test]
async fn a_history_without_its_checkpoint_is_refused() {
    let mut scene = stopped().await;
    each(&scene.target, &["DELETE FROM waltrail.checkpoint"]).await;
    insert(&scene.source, "recorded once").await;
    let refused = scene.refused().await;
    is_refusal(
        &refused,
        &["no checkpoint"],
        &["waltrail.checkpoint", ACCEPT],
    );
    goes_on_with_a_gap(&mut scene).await;
}

#[tokio::test]
async fn a_slot_held_by_another_process_is_waited_for_and_its_holder_named() {
    use waltrail::source::replication::{Replication, StreamOptions};

    let mut scene = stopped().await;
    let other = source(&scene.server.dsn_socket("postgres"));
    let other = Replication::connect(&other).await.unwrap();
    let pid = other.backend_pid();
    let from = value::<String>(&scene.target, END).await.parse().unwrap();
    let stream = other
        .start("waltrail", from, "waltrail", StreamOptions::default())
        .await
        .unwrap();
    scene.spawn();
    let line = scene
        .daemon()
        .wait_log(BOUND, |line| line.contains("in use by another process"))
        .await;
    assert!(line.contains(&format!("\"pid\":{pid}")), "{line}");
    insert(&scene.source, "waits").await;
    drop(stream);
    streaming(scene.daemon()).await;
    scene.check().await;
    let output = scene.stop_complaining().await;
    assert!(
        complaints(&output)
            .iter()
            .all(|line| line.contains("in use by another process")),
        "{output}"
    );
}

#[tokio::test]
async fn a_second_instance_waits_and_takes_over() {
    let mut scene = Scene::new(EMPLOYEES, &TABLES).await;
    insert(&scene.source, "of the first").await;
    scene.check().await;
    let mut second = Daemon::spawn(&scene.config);
    let line = second
        .wait_log(BOUND, |line| line.contains("another waltrail"))
        .await;
    let holder: i32 = value(
        &scene.target,
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted",
    )
    .await;
    assert!(line.contains(&format!("\"pid\":{holder}")), "{line}");
    insert(&scene.source, "of the first still").await;
    scene.check().await;
    // The schema changes while the second one waits.
    each(
        &scene.source,
        &["ALTER TABLE employees_cdc ADD level integer; ALTER TABLE employees ADD level integer DEFAULT 3"],
    )
    .await;
    scene.daemon().kill9();
    each(
        &scene.source,
        &["INSERT INTO employees (name, level) VALUES ('of the second', 5)"],
    )
    .await;
    streaming(&mut second).await;
    wait_for_value(
        &scene.target,
        "SELECT string_agg(concat_ws(' ', replace(name, 'CANARY_7f3a', ''), level), ', ' ORDER BY cdc_id) FROM employees_cdc",
        Some("of the first, of the first still, of the second 5".to_owned()),
        BOUND,
    )
    .await;
    second.sigterm();
    let (status, output) = second.wait(BOUND).await;
    assert_eq!(status.code(), Some(0), "{output}");
}

/// A source and a target of their own, so that the source alone can be another one.
struct Pair {
    source: Cluster,
    target: Cluster,
    history: Client,
}

impl Pair {
    /// With one change recorded, and the daemon stopped.
    async fn stopped() -> Self {
        let (source, client) = server().await;
        let (target, history) = server_with(|builder| builder.fresh_initdb()).await;
        each(&client, &[EMPLOYEES]).await;
        Oracle::install(&client, &TABLES).await;
        let pair = Self {
            source,
            target,
            history,
        };
        let mut daemon = pair.follow().await;
        insert(&client, "before").await;
        pair.expect(&["before"]).await;
        stop(&mut daemon).await;
        pair
    }

    fn config(&self) -> String {
        config(
            &self.source.dsn_tcp("postgres"),
            Some(&self.target.dsn_tcp("postgres")),
            &TABLES,
            "",
        )
    }

    async fn follow(&self) -> Daemon {
        let mut daemon = Daemon::spawn(&self.config());
        streaming(&mut daemon).await;
        daemon
    }

    async fn client(&self) -> Client {
        connect(&self.source.dsn_socket("postgres")).await
    }

    async fn expect(&self, wanted: &[&str]) {
        wait_until("the history has these rows", BOUND, async || {
            (names(&self.history).await.len() >= wanted.len()).then_some(())
        })
        .await;
        assert_eq!(names(&self.history).await, wanted);
    }

    async fn refused(&self) -> (i32, String) {
        let mut daemon = Daemon::spawn(&self.config());
        let (status, output) = daemon.wait(BOUND).await;
        (status.code().unwrap_or(-1), output)
    }

    /// A copy of the source's data directory as it is now.
    fn save(&mut self) -> tempfile::TempDir {
        self.source.stop(StopMode::Fast).unwrap();
        let folder = tempfile::tempdir().unwrap();
        copy(&self.source.data_dir(), &folder.path().join("data"));
        self.source.start_again().unwrap();
        folder
    }

    /// Puts such a copy in the place of the source's data directory. With `promoted` the server is made to end
    /// its recovery on a timeline of its own.
    async fn restore(&mut self, saved: Option<&tempfile::TempDir>, promoted: bool) {
        self.source.stop(StopMode::Fast).unwrap();
        let data = self.source.data_dir();
        if let Some(saved) = saved {
            std::fs::remove_dir_all(&data).unwrap();
            copy(&saved.path().join("data"), &data);
        }
        if promoted {
            copy(&data.join("PG_VERSION"), &data.join("recovery.signal"));
            self.source.set("restore_command", "false").unwrap();
        }
        self.source.start_again().unwrap();
        let client = self.client().await;
        wait_for_value(&client, "SELECT pg_is_in_recovery()", false, BOUND).await;
    }
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(done.unwrap().success());
}

async fn stop(daemon: &mut Daemon) {
    daemon.sigterm();
    let (status, output) = daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(0), "{output}");
}

#[tokio::test]
async fn another_cluster_is_refused() {
    let mut pair = Pair::stopped().await;
    let (other, client) = server_with(|builder| builder.fresh_initdb()).await;
    each(&client, &[EMPLOYEES]).await;
    let first = std::mem::replace(&mut pair.source, other);
    let refused = pair.refused().await;
    is_refusal(
        &refused,
        &["another cluster", "system identifier"],
        &["source.dsn", ACCEPT],
    );
    let slots: i64 = value(&client, "SELECT count(*) FROM pg_replication_slots").await;
    assert_eq!(slots, 0);
    // The right one again goes on.
    pair.source = first;
    let mut daemon = pair.follow().await;
    insert(&pair.client().await, "after").await;
    pair.expect(&["before", "after"]).await;
    stop(&mut daemon).await;
}

#[tokio::test]
async fn a_source_restored_from_before_the_checkpoint_is_refused() {
    let mut pair = Pair::stopped().await;
    let saved = pair.save();
    let mut daemon = pair.follow().await;
    // More than the restored server writes of itself when it starts.
    each(
        &pair.client().await,
        &[
            "CREATE TABLE bulk AS SELECT n, repeat('x', 100) FROM generate_series(1, 20000) n",
            "INSERT INTO employees (name) VALUES ('after')",
        ],
    )
    .await;
    pair.expect(&["before", "after"]).await;
    stop(&mut daemon).await;
    pair.restore(Some(&saved), false).await;
    let refused = pair.refused().await;
    is_refusal(&refused, &["restored"], &["source.dsn", ACCEPT]);
    assert_eq!(names(&pair.history).await, ["before", "after"]);
}

#[tokio::test]
async fn a_copy_of_the_source_that_has_written_past_the_checkpoint_is_refused() {
    let mut pair = Pair::stopped().await;
    let saved = pair.save();
    let mut daemon = pair.follow().await;
    insert(&pair.client().await, "only in the first").await;
    pair.expect(&["before", "only in the first"]).await;
    stop(&mut daemon).await;
    pair.restore(Some(&saved), false).await;
    let client = pair.client().await;
    for n in 0..200 {
        insert(&client, &format!("only in the copy {n}")).await;
    }
    each(&client, &["SELECT pg_switch_wal()", "CHECKPOINT"]).await;
    // Nothing is confirmed to it, so that it is known again each time.
    for _ in 0..3 {
        let mut daemon = Daemon::spawn(&pair.config());
        let (status, output) = daemon.wait(BOUND).await;
        assert_eq!(status.code(), Some(65), "{output}");
        let sentence = "the source's log has no transaction that ends at";
        assert!(output.contains(sentence), "{output}");
        assert!(
            output.contains("source.dsn") && output.contains(ACCEPT),
            "{output}"
        );
    }
    assert_eq!(names(&pair.history).await, ["before", "only in the first"]);
    // A person decides that this is the source from now on.
    let mut accept = Daemon::spawn_with(&pair.config(), &["accept-gap", "--source-replaced"], &[]);
    let (status, output) = accept.wait(BOUND).await;
    assert_eq!(status.code(), Some(0), "{output}");
    assert!(output.contains("a GAP row says so"), "{output}");
    let mut daemon = pair.follow().await;
    stop(&mut daemon).await;
}

#[tokio::test]
async fn a_source_promoted_after_the_checkpoint_is_followed() {
    let mut pair = Pair::stopped().await;
    insert(&pair.client().await, "on the old timeline").await;
    pair.restore(None, true).await;
    let client = pair.client().await;
    let timeline = "SELECT timeline_id FROM pg_control_checkpoint()";
    each(&client, &["CHECKPOINT"]).await;
    assert_eq!(value::<i32>(&client, timeline).await, 2);
    insert(&client, "on the new timeline").await;
    let mut daemon = pair.follow().await;
    pair.expect(&["before", "on the old timeline", "on the new timeline"])
        .await;
    let noted: i32 = value(&pair.history, "SELECT timeline FROM waltrail.checkpoint").await;
    assert_eq!(noted, 2);
    stop(&mut daemon).await;
    let mut daemon = pair.follow().await;
    stop(&mut daemon).await;
}

#[tokio::test]
async fn a_source_promoted_before_the_checkpoint_is_refused() {
    let mut pair = Pair::stopped().await;
    let saved = pair.save();
    let mut daemon = pair.follow().await;
    insert(&pair.client().await, "only on the old timeline").await;
    pair.expect(&["before", "only on the old timeline"]).await;
    stop(&mut daemon).await;
    pair.restore(Some(&saved), true).await;
    // Its WAL is longer than the old one by now: only the timeline tells.
    let client = pair.client().await;
    for n in 0..20 {
        insert(&client, &format!("only on the new timeline {n}")).await;
    }
    each(&client, &["SELECT pg_switch_wal()", "CHECKPOINT"]).await;
    let refused = pair.refused().await;
    is_refusal(&refused, &["promoted", "timeline 1"], &[ACCEPT]);
    assert_eq!(
        names(&pair.history).await,
        ["before", "only on the old timeline"]
    );
}
