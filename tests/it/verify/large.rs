//! A large table under load: nothing is found where nothing is wrong, and one altered, one removed and one added row are.
//!
//! `make verify-large` takes ten million rows (`VERIFY_ROWS`); `make test` takes twenty thousand. It prints the time of the source's
//! scan beside that of `count(*)`, and the memory of the program.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{counts, named, verify_text};
use crate::support::daemon::Daemon;
use crate::support::load::Plan;
use crate::support::scene::Scene;
use crate::support::{each, value, wait_until};

const ROWS: i64 = 20_000;
/// Copying ten million rows takes some minutes.
const PATIENCE: Duration = Duration::from_secs(1800);
/// More than this the program does not take, however large the table is.
const MEMORY_KIB_MAX: i64 = 96 * 1024;

fn rows() -> i64 {
    let wanted = std::env::var("VERIFY_ROWS").ok();
    wanted.map_or(ROWS, |rows| rows.parse().expect("VERIFY_ROWS is a number"))
}

/// Runs verify; its exit code, what it printed on standard output, seconds and KiB of memory.
async fn measured(scene: &Scene, arguments: &[&str]) -> (i32, String, f64, i64) {
    let began = Instant::now();
    let mut running = Daemon::spawn_with(&scene.config, &[&["verify"], arguments].concat(), &[]);
    let status = format!("/proc/{}/status", running.pid());
    let mut peak = 0;
    while running.is_running() {
        let text = std::fs::read_to_string(Path::new(&status)).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        peak = peak.max(kib.unwrap_or_default());
        assert!(began.elapsed() < PATIENCE, "{}", running.output());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (status, output) = running.wait(PATIENCE).await;
    (
        status.code().unwrap_or(-1),
        output,
        began.elapsed().as_secs_f64(),
        peak,
    )
}

/// A table of so many rows, all of them recorded.
async fn recorded(rows: i64) -> Scene {
    let ddl = format!(
        "CREATE TABLE large (id bigint PRIMARY KEY, name text, department text, salary numeric, at timestamptz);
         INSERT INTO large SELECT n, 'name ' || n, 'department ' || n % 100, n * 1.25, '2026-01-01'::timestamptz + n * interval '1 s'
           FROM generate_series(1, {rows}) n;"
    );
    let server = |builder: throwaway::Builder| {
        builder
            .setting("shared_buffers", "512MB")
            .setting("max_wal_size", "4GB")
    };
    let mut scene = Scene::existing(server, &ddl, &["public.large(id)"], "").await;
    scene.start().await;
    let done = "SELECT count(*) FROM waltrail.snapshot WHERE state = 'done'";
    wait_until("the existing rows are recorded", PATIENCE, async || {
        (value::<i64>(&scene.target, done).await == 1).then_some(())
    })
    .await;
    each(
        &scene.source,
        &["VACUUM (ANALYZE) large", "VACUUM (ANALYZE) large_cdc"],
    )
    .await;
    scene
}

#[tokio::test]
async fn a_large_table_under_load_is_verified_and_three_wrong_rows_are_named() {
    let rows = rows();
    let mut scene = recorded(rows).await;
    let load = Plan::new(scene.server.dsn_tcp("postgres"), 11)
        .statements(|rng| {
            let id = rng.u32(1000..20_000);
            match rng.u32(..10) {
                0 => format!("DELETE FROM large WHERE id = {id}"),
                1 => format!("INSERT INTO large VALUES ({id}, 'new') ON CONFLICT DO NOTHING"),
                2 => format!("UPDATE large SET id = -{id} WHERE id = {id}"),
                _ => format!(
                    "UPDATE large SET salary = salary + 1 WHERE id BETWEEN {id} AND {id} + 10"
                ),
            }
        })
        .pause(Duration::from_millis(5))
        .start();
    load.more(50).await;
    let (code, output, seconds, peak) = measured(&scene, &[]).await;
    println!(
        "{rows} rows, clean: {seconds:.1} s, {} MiB at most",
        peak / 1024
    );
    assert_eq!(code, 0, "{output}");
    assert!(peak < MEMORY_KIB_MAX, "{peak} KiB");
    each(
        &scene.target,
        &[
            "UPDATE large_cdc SET salary = 0 WHERE id = 17",
            "DELETE FROM large_cdc WHERE id = 18",
            "INSERT INTO large_cdc (change_type, change_timestamp, id, commit_lsn, tx_seq, xid) \
             SELECT 'INSERT', change_timestamp, 1000000000000, commit_lsn, tx_seq, xid FROM large_cdc WHERE id = 19",
        ],
    )
    .await;
    let (code, output, seconds, peak) = measured(&scene, &["--json", "--show-keys"]).await;
    println!(
        "{rows} rows, three wrong: {seconds:.1} s, {} MiB at most",
        peak / 1024
    );
    let json = output.lines().find(|line| line.starts_with("{\"same\""));
    let report: serde_json::Value = serde_json::from_str(json.expect(&output)).unwrap();
    let table = &report["tables"][0];
    assert_eq!((code, counts(table)), (1, [1, 1, 1]), "{output}");
    assert_eq!(
        named(table),
        [
            "different [salary] [17]",
            "extra [] [1000000000000]",
            "missing [] [18]"
        ]
    );
    let (code, out, err) = verify_text(&scene, &["--repair", "--yes"]);
    assert_eq!(code, 0, "{out}\n{err}");
    let (code, out, err) = verify_text(&scene, &[]);
    assert_eq!(code, 0, "{out}\n{err}");
    load.stop();
    ratio(&scene).await;
    scene.stop().await;
}

/// Prints how long the source's scan takes beside `count(*)`.
async fn ratio(scene: &Scene) {
    let hash = |columns: &str| format!("hashtextextended((ROW({columns})::text) COLLATE \"C\", 0)");
    let scan = format!(
        "SELECT count(*)::bigint FROM (SELECT (x.k & 4095)::int4, count(*), sum(hashint8extended(x.k, x.v))::text \
           FROM (SELECT {} AS k, {} AS v FROM ONLY large s) x GROUP BY 1) b",
        hash("s.id"),
        hash("s.name, s.department, s.salary, s.at")
    );
    let mut times = Vec::new();
    for query in ["SELECT count(*) FROM large", scan.as_str()] {
        let mut best = f64::MAX;
        for _ in 0..3 {
            let began = Instant::now();
            let _: i64 = value(&scene.source, query).await;
            best = best.min(began.elapsed().as_secs_f64());
        }
        times.push(best);
    }
    println!(
        "count(*): {:.2} s; the scan of verify: {:.2} s; {:.1} times as long",
        times[0],
        times[1],
        times[1] / times[0]
    );
}
