//! Are commits grouped while changes keep coming, and is the first one after a pause written at once?

use std::time::{Duration, Instant};

use crate::support::scene::Scene;
use crate::support::{BOUND, EMPLOYEES, each, value, wait_for_value};

const TABLES: &[&str] = &["public.employees"];

async fn following(interval: &str) -> Scene {
    let more = format!("[batch]\ninterval = \"{interval}\"\n");
    Scene::with(|builder| builder, EMPLOYEES, TABLES, &more).await
}

async fn insert(scene: &Scene, name: &str) {
    let insert = format!("INSERT INTO employees (department) VALUES ('{name}')");
    each(&scene.source, &[&insert]).await;
}

/// The target transaction that wrote the row, once it is there.
async fn written_by(scene: &Scene, name: &str) -> String {
    let there = format!("SELECT count(*) = 1 FROM employees_cdc WHERE department = '{name}'");
    wait_for_value(&scene.target, &there, true, BOUND).await;
    let xmin = format!("SELECT xmin::text FROM employees_cdc WHERE department = '{name}'");
    value(&scene.target, &xmin).await
}

#[tokio::test]
async fn the_first_change_after_a_pause_is_written_at_once_and_the_next_ones_together() {
    let scene = following("1s").await;
    let interval = Duration::from_secs(1);
    let mut tries = 0;
    loop {
        tokio::time::sleep(interval).await;
        let begun = Instant::now();
        insert(&scene, &format!("first {tries}")).await;
        let first = written_by(&scene, &format!("first {tries}")).await;
        let at_once = begun.elapsed() < interval / 2;
        for next in ["second", "third"] {
            insert(&scene, &format!("{next} {tries}")).await;
        }
        let second = written_by(&scene, &format!("second {tries}")).await;
        let waited = begun.elapsed() >= interval;
        let third = written_by(&scene, &format!("third {tries}")).await;
        if at_once && waited && first != second && second == third {
            break;
        }
        // A machine that stood still for so long shows nothing.
        tries += 1;
        assert!(
            tries < 5,
            "at once {at_once}, waited {waited}, transactions {first}, {second}, {third}"
        );
    }
    scene.end().await;
}

#[tokio::test]
async fn what_came_late_is_written_when_the_interval_is_over() {
    let scene = following("1s").await;
    // Longer to decode than a stream that is not behind takes, and more than one batch takes.
    let many =
        "INSERT INTO employees (department) SELECT repeat('x', 40) FROM generate_series(1, 100000)";
    for _ in 0..2 {
        each(&scene.source, &[many]).await;
        let committed = Instant::now();
        let rows: i64 = value(&scene.source, "SELECT count(*) FROM employees").await;
        let there = format!("SELECT count(*) = {rows} FROM employees_cdc");
        wait_for_value(&scene.target, &there, true, BOUND).await;
        // A status goes out every ten seconds, which must not be what the rest waits for.
        let took = committed.elapsed();
        assert!(took < Duration::from_secs(7), "{took:?}");
    }
    scene.end().await;
}

/// How often the daemon gave up its core, or lost it.
fn switches(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let of = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    status
        .lines()
        .filter(|line| line.contains("ctxt_switches"))
        .filter_map(of)
        .sum()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_daemon_that_waits_for_its_interval_is_not_woken_by_changes() {
    const CHANGES: u64 = 400;
    let mut scene = following("100ms").await;
    insert(&scene, "warm").await;
    written_by(&scene, "warm").await;
    let pid = scene.daemon().pid();
    let (begun, before) = (Instant::now(), switches(pid));
    for n in 0..CHANGES {
        insert(&scene, &format!("n {n}")).await;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let woken = switches(pid) - before;
    scene.check().await;
    let took = begun.elapsed();
    let transactions: i64 = value(
        &scene.target,
        "SELECT count(DISTINCT xmin::text) FROM employees_cdc WHERE department LIKE 'n %'",
    )
    .await;
    println!("{CHANGES} changes in {took:?}: woken {woken} times, {transactions} transactions");
    // The first one waits for none; from one to the next it is an interval at least.
    let intervals = took.as_millis() as u64 / 100 + 1;
    assert!(
        transactions as u64 <= intervals,
        "{transactions} transactions, {intervals} intervals"
    );
    // Each interval it is woken by its timer and by the target's answers.
    assert!(
        woken <= 10 * intervals,
        "woken {woken} times in {intervals} intervals"
    );
    assert!(woken < CHANGES / 2, "woken {woken} times");
    scene.end().await;
}
