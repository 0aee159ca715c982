//! Does `waltrail.checkpoint` stay small and quick to move, also while another session holds an old snapshot?
//!
//! The statement is the writer's own, taken from the server's log. `make bloat` moves the checkpoint ten million times
//! (`CHECKPOINTS`), and as often as an hour brings while a snapshot is held (`HELD_CHECKPOINTS`).

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::support::scene::Scene;
use crate::support::{EMPLOYEES, each, value};

const CHUNKS: i64 = 10;
const PAGES: &str = "SELECT (pg_relation_size('waltrail.checkpoint') / 8192)::bigint";
const SIZE: &str = "SELECT pg_total_relation_size('waltrail.checkpoint')";

fn number(variable: &str, default: i64) -> i64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// A server with a checkpoint, and a procedure that moves it as the writer does, a transaction each time.
async fn prepared() -> Scene {
    let server = |builder: throwaway::Builder| builder.setting("log_statement", "all");
    let mut scene = Scene::with(server, EMPLOYEES, &["public.employees"], "").await;
    each(
        &scene.source,
        &["INSERT INTO employees (name) VALUES ('x')"],
    )
    .await;
    scene.check().await;
    scene.stop().await;
    let log = scene.server.log_text();
    let found = log
        .lines()
        .find_map(|line| line.split_once(": WITH here AS "));
    let (_, statement) = found.expect("the writer should have moved the checkpoint");
    let statement = format!("WITH here AS {statement}")
        .replace(
            ", $3) WHERE NOT EXISTS",
            ", $3) INTO nothing WHERE NOT EXISTS",
        )
        .replace("$1", "seen")
        .replace("$2", "reached")
        .replace("$3", "at_time");
    each(
        &scene.source,
        &[
            "ALTER SYSTEM SET log_statement = 'none'",
            "SELECT pg_reload_conf()",
            &format!(
                "CREATE PROCEDURE move_often(times bigint) LANGUAGE plpgsql AS $$
                 DECLARE
                     seen pg_lsn := (SELECT end_lsn FROM waltrail.checkpoint);
                     reached pg_lsn;
                     at_time timestamptz := now();
                     nothing record;
                 BEGIN
                     FOR n IN 1..times LOOP
                         reached := seen + 1;
                         {statement};
                         COMMIT;
                         seen := reached;
                     END LOOP;
                 END $$"
            ),
            "SET synchronous_commit = off",
        ],
    )
    .await;
    scene
}

/// Moves the checkpoint so often; the time of one move, in each tenth.
async fn move_often(client: &Client, times: i64) -> Vec<Duration> {
    let mut moves = Vec::new();
    for chunk in 1..=CHUNKS {
        let start = Instant::now();
        let some = times / CHUNKS;
        each(client, &[&format!("CALL move_often({some})")]).await;
        moves.push(start.elapsed() / u32::try_from(some).unwrap());
        let pages: i64 = value(client, PAGES).await;
        let bytes: i64 = value(client, SIZE).await;
        println!(
            "{} moves: {:?} each, {pages} pages, {bytes} bytes with indexes",
            chunk * some,
            moves[moves.len() - 1]
        );
    }
    moves
}

#[tokio::test]
async fn a_checkpoint_that_moves_millions_of_times_stays_in_its_page() {
    let scene = prepared().await;
    let before: i64 = value(&scene.source, SIZE).await;
    let moves = move_often(&scene.source, number("CHECKPOINTS", 50_000)).await;
    let after: i64 = value(&scene.source, SIZE).await;
    // A vacuum makes two maps of 32 KiB in all; an autovacuum's own snapshot keeps some versions for a moment.
    assert!(after <= before + 16 * 8192, "{before} bytes, then {after}");
    assert!(
        moves[moves.len() - 1] < 3 * moves[0] + Duration::from_millis(1),
        "{moves:?}"
    );
}

#[tokio::test]
async fn a_checkpoint_moves_as_quickly_while_an_old_snapshot_is_held() {
    let scene = prepared().await;
    let holder = scene.session().await;
    each(&holder, &["BEGIN ISOLATION LEVEL REPEATABLE READ"]).await;
    let _: i64 = value(&holder, "SELECT count(*) FROM waltrail.checkpoint").await;
    // As many as an autovacuum finds; it lets the server know that the table has grown.
    each(
        &scene.source,
        &["CALL move_often(1000)", "VACUUM waltrail.checkpoint"],
    )
    .await;
    let moves = move_often(&scene.source, number("HELD_CHECKPOINTS", 20_000)).await;
    each(&holder, &["COMMIT"]).await;
    // By its key, each move would look at all versions before it.
    let last = moves[moves.len() - 3..].iter().min().copied();
    assert!(
        last < Some(4 * moves[0] + Duration::from_micros(100)),
        "{moves:?}"
    );
}
