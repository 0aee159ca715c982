//! What `--repair` writes.

use super::{counts, scene, verify, verify_one, verify_text};
use crate::support::load::Plan;
use crate::support::{BOUND, DESIGN, EMPLOYEES, each, texts, value, wait_for_value};

const DAMAGE: [&str; 4] = [
    "UPDATE employees_cdc SET salary = -1, name = NULL WHERE id = 9",
    "DELETE FROM employees_cdc WHERE id = 12",
    "INSERT INTO employees_cdc (change_type, id, name) VALUES ('INSERT', 900000, 'x')",
    "DELETE FROM employees_cdc WHERE id = 13",
];

const ROWS: &str =
    "INSERT INTO employees (name, salary) SELECT 'n' || n, n FROM generate_series(1, 3000) n";

#[tokio::test]
async fn a_repaired_history_is_its_table() {
    let (mut scene, ticks) = scene(EMPLOYEES, &["public.employees=public.employees_cdc(id)"]).await;
    each(&scene.source, &[ROWS]).await;
    wait_for_value(
        &scene.target,
        "SELECT count(*) FROM employees_cdc",
        3000_i64,
        BOUND,
    )
    .await;
    each(&scene.target, &DAMAGE).await;
    let (code, _, err) = verify_text(&scene, &["--repair"]);
    assert_eq!(code, 64, "{err}");
    let found = verify_one(&scene, "public.employees", &["--repair", "--yes"], 0);
    assert_eq!(counts(&found), [2, 1, 1]);
    assert_eq!(
        (&found["outcome"], &found["repaired"]),
        (&"repaired".into(), &4.into())
    );
    verify(&scene, &[], 0);
    let rows = "SELECT concat_ws(' ', change_type, id, salary, \
            change_timestamp = last_value(change_timestamp) OVER ()) \
        FROM employees_cdc WHERE cdc_id > 3001 ORDER BY cdc_id";
    let rows: Vec<String> = texts(&scene.target, rows)
        .await
        .into_iter()
        .flatten()
        .collect();
    let mut repaired: Vec<&str> = rows.iter().map(String::as_str).collect();
    repaired[..3].sort_unstable();
    assert_eq!(
        repaired,
        [
            "REPAIR 12 12 t",
            "REPAIR 13 13 t",
            "REPAIR 9 9 t",
            "REPAIR 900000 t",
            "DELETE 900000 t"
        ]
    );
    ticks.stop();
    scene.stop().await;
}

/// What changed since the position is newer than what would be written.
#[tokio::test]
async fn a_history_is_repaired_while_everything_writes() {
    let (mut scene, ticks) = scene(
        "CREATE TABLE made (id int PRIMARY KEY, n bigint, v text);
         INSERT INTO made SELECT n, 0, 'v' || n FROM generate_series(1, 2000) n;",
        &["public.made(id)"],
    )
    .await;
    let load = Plan::new(scene.server.dsn_tcp("postgres"), 5)
        .statements(|rng| format!("UPDATE made SET n = n + 1 WHERE id = {}", rng.u32(1..200)))
        .start();
    load.more(200).await;
    each(
        &scene.target,
        &[
            "DELETE FROM made_cdc WHERE id % 50 = 0",
            "UPDATE made_cdc SET v = 'other' WHERE id % 51 = 0",
            "INSERT INTO made_cdc (change_type, change_timestamp, commit_lsn, tx_seq, xid, id) \
             SELECT 'INSERT', change_timestamp, commit_lsn, tx_seq + 100000 + id, xid, id + 5000 FROM made_cdc \
              WHERE id BETWEEN 300 AND 340 ORDER BY cdc_id",
        ],
    )
    .await;
    let mut tries = 0;
    loop {
        let (code, out, err) =
            verify_text(&scene, &["--table", "public.made", "--repair", "--yes"]);
        tries += 1;
        assert!(tries < 20, "{out}\n{err}");
        match code {
            0 => break,
            1 => assert!(out.contains("have changed since: run it again"), "{out}"),
            _ => panic!("{code}: {out}\n{err}"),
        }
    }
    verify(&scene, &[], 0);
    load.stop();
    ticks.stop();
    // A gapless order is what a reader of the history relies on.
    let disordered = "SELECT count(*) FROM (SELECT commit_lsn < lag(commit_lsn) OVER w \
            OR commit_lsn = lag(commit_lsn) OVER w AND tx_seq < lag(tx_seq) OVER w AS back \
        FROM made_cdc WHERE tx_seq < 100000 WINDOW w AS (ORDER BY cdc_id)) o WHERE back";
    assert_eq!(value::<i64>(&scene.target, disordered).await, 0);
    let numbered = "SELECT count(*) FROM (SELECT 1 FROM made_cdc GROUP BY commit_lsn, tx_seq HAVING count(*) > 1) o";
    assert_eq!(value::<i64>(&scene.target, numbered).await, 0);
    scene.stop().await;
}

#[tokio::test]
async fn a_key_that_is_gone_is_repaired_by_its_deletion() {
    let (mut scene, ticks) = scene(DESIGN, &["public.employees=public.employees_cdc(id)"]).await;
    each(
        &scene.source,
        &["CREATE TABLE pairs (a int, b text, v text, PRIMARY KEY (b, a))"],
    )
    .await;
    ticks.stop();
    scene.stop().await;
    scene.config = scene.config.replacen(
        "[[table]]",
        "[[table]]\nsource = 'public.pairs'\n[[table]]",
        1,
    );
    scene.start().await;
    let ticks = super::ticks(&scene);
    each(
        &scene.source,
        &["INSERT INTO pairs VALUES (1, 'x', 'v'), (2, 'y', 'w')"],
    )
    .await;
    wait_for_value(
        &scene.target,
        "SELECT count(*) FROM pairs_cdc",
        2_i64,
        BOUND,
    )
    .await;
    each(
        &scene.target,
        &["INSERT INTO pairs_cdc (change_type, change_timestamp, commit_lsn, tx_seq, xid, a, b, v) \
           SELECT change_type, change_timestamp, commit_lsn, tx_seq, xid, 3, 'z', 'u' FROM pairs_cdc WHERE a = 2"],
    )
    .await;
    let found = verify_one(&scene, "public.pairs", &["--repair", "--yes"], 0);
    assert_eq!(counts(&found), [0, 1, 0]);
    let rows = "SELECT concat_ws(' ', change_type, a, b, coalesce(v, '-'), old_a, old_b, unavailable_columns) \
        FROM pairs_cdc ORDER BY cdc_id DESC LIMIT 2";
    assert_eq!(
        texts(&scene.target, rows).await,
        [
            Some("DELETE 3 z - 3 z {v}".to_owned()),
            Some("REPAIR 3 z - {v}".to_owned())
        ]
    );
    verify_one(&scene, "public.pairs", &[], 0);
    ticks.stop();
    scene.stop().await;
}
