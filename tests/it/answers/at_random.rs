//! `as_of(P)` beside the table under the snapshot that a slot exported at P, at random positions under load: changes of keys,
//! TRUNCATE, DDL, values out of line that do not change, savepoints.
//!
//! `AS_OF` positions (of all seeds together); `AS_OF_SEED` runs one seed alone. The seed fixes what the clients do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use tokio_postgres::Client;
use waltrail::source::replication::{Replication, SlotKind};

use crate::support::scene::Scene;
use crate::support::{BOUND, connect, each, source, texts, value, wait_until};

const TABLES: &str = "
    CREATE TABLE docs (id int PRIMARY KEY, n numeric(10,2), note text, body text);
    ALTER TABLE docs ALTER COLUMN body SET STORAGE EXTERNAL;
    CREATE TABLE pairs (a text, b int, v jsonb, w text, PRIMARY KEY (a, b));
    ALTER TABLE pairs ALTER COLUMN w SET STORAGE EXTERNAL;
    CREATE TABLE bag (x int, y text);
    ALTER TABLE bag REPLICA IDENTITY FULL;
    CREATE SCHEMA sampled";
const NAMES: [&str; 3] = ["docs", "pairs", "bag"];
/// Positions for each seed.
const EACH: u64 = 25;

/// One statement of a client.
fn statement(rng: &mut Rng) -> String {
    let (id, other) = (rng.u32(1..40), rng.u32(1..40));
    let (a, b) = (["x", "Y", "ä"][rng.usize(..3)], rng.u32(1..8));
    match rng.u8(..40) {
        0..8 => format!(
            "INSERT INTO docs (id, n, body) VALUES ({id}, {other}.5, repeat('b{id}', 3000)) ON CONFLICT DO NOTHING"
        ),
        8..14 => format!("UPDATE docs SET n = {other}.25 WHERE id = {id}"),
        14..16 => format!(
            "UPDATE docs SET body = repeat('c{other}', 3000) WHERE id BETWEEN {id} AND {id} + 3"
        ),
        16..20 => format!(
            "UPDATE docs SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM docs WHERE id = {other})"
        ),
        20..22 => format!("UPDATE docs SET n = n + 1 WHERE id % 5 = {id} % 5"),
        22..25 => format!("DELETE FROM docs WHERE id = {id}"),
        25..30 => format!(
            "INSERT INTO pairs (a, b, v, w) VALUES ('{a}', {b}, '{{\"k\": {other}}}', repeat('w{other}', 2000)) ON CONFLICT (a, b) DO UPDATE SET v = excluded.v"
        ),
        30..32 => format!("UPDATE pairs SET b = b + 20 WHERE a = '{a}' AND b = {b}"),
        32..33 => format!("UPDATE pairs SET a = a || 'z' WHERE b = {b} AND length(a) < 4"),
        33..34 => format!("DELETE FROM pairs WHERE a = '{a}' AND b > {b}"),
        34..37 => {
            format!("INSERT INTO bag SELECT {b}, nullif('{a}', 'x') FROM generate_series(1, 2)")
        }
        37..38 => format!("UPDATE bag SET y = '{id}' WHERE x = {b}"),
        38..39 => format!("DELETE FROM bag WHERE x = {b}"),
        _ => match rng.u8(..6) {
            0 => "TRUNCATE docs".to_owned(),
            1 => "TRUNCATE pairs, bag".to_owned(),
            _ => "UPDATE docs SET n = -n".to_owned(),
        },
    }
}

/// A change of the tables' shape; `n` makes names that were not there.
fn ddl(rng: &mut Rng, n: usize) -> String {
    // What the stream does not tell apart: a column that is dropped and made again under its name and type.
    let again = match rng.bool() {
        true => format!("pairs DROP COLUMN v, ADD COLUMN v jsonb DEFAULT '[{n}]'"),
        false => {
            format!("docs DROP COLUMN IF EXISTS note, ADD COLUMN note text DEFAULT 'again {n}'")
        }
    };
    match rng.u8(..14) {
        7 => format!("ALTER TABLE {again}; UPDATE pairs SET w = 'filled' WHERE b % 2 = 0"),
        8 => format!("ALTER TABLE {again}"),
        // In a subtransaction, which has an id of its own.
        9 => format!(
            "DO $do$ BEGIN ALTER TABLE {again}; EXCEPTION WHEN division_by_zero THEN END $do$"
        ),
        // An id from long before others were given.
        10 => format!(
            "INSERT INTO bag VALUES (7, 'long'); SELECT pg_sleep(0.08); ALTER TABLE {again}"
        ),
        // Tables are described again, and nothing has changed.
        11 => "ANALYZE docs, pairs".to_owned(),
        12 | 13 => "CREATE INDEX ON pairs (b); CREATE INDEX ON docs (n)".to_owned(),
        0 => format!(
            "ALTER TABLE docs ADD COLUMN extra{n} int DEFAULT {}",
            rng.u8(..9)
        ),
        1 => format!("ALTER TABLE docs ADD COLUMN extra{n} text"),
        2 => "ALTER TABLE docs ALTER COLUMN n TYPE numeric(14,4)".to_owned(),
        3 => format!(
            "ALTER TABLE docs RENAME COLUMN note TO note{n}; ALTER TABLE docs ADD COLUMN note text DEFAULT 'new {n}'"
        ),
        4 => format!("ALTER TABLE pairs ADD COLUMN extra{n} timestamptz DEFAULT '2020-01-01'"),
        5 => format!(
            "ALTER TABLE docs DROP COLUMN IF EXISTS note; ALTER TABLE docs ADD COLUMN remark{n} text DEFAULT '{n}'"
        ),
        _ => format!(
            "ALTER TABLE docs RENAME COLUMN n TO m{n}; ALTER TABLE docs RENAME COLUMN m{n} TO n"
        ),
    }
}

/// Transactions, with savepoints that are rolled back, until `ends`.
async fn client(dsn: String, mut rng: Rng, ends: Arc<AtomicBool>) {
    let client = connect(&dsn).await;
    while !ends.load(Ordering::Relaxed) {
        let mut script = "BEGIN;".to_owned();
        for _ in 0..rng.u8(1..6) {
            script.push_str(&statement(&mut rng));
            script.push(';');
            if rng.u8(..4) == 0 {
                script.push_str(&format!(
                    "SAVEPOINT s; {}; ROLLBACK TO s;",
                    statement(&mut rng)
                ));
            }
        }
        script.push_str(if rng.u8(..6) == 0 {
            "ROLLBACK"
        } else {
            "COMMIT"
        });
        // Two clients can be in each other's way.
        if client.batch_execute(&script).await.is_err() {
            client.batch_execute("ROLLBACK").await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(rng.u64(..8))).await;
    }
}

/// The tables under the snapshot of a slot, kept in the schema `sampled`. Returns the slot's position; none where a table was
/// truncated or rewritten between the snapshot and its lock, which no snapshot sees through.
async fn sample(scene: &Scene, n: u64) -> Option<String> {
    let dsn = scene.server.dsn_socket("postgres");
    let mut walsender = Replication::connect(&source(&dsn)).await.unwrap();
    let name = format!("sample_{n}");
    let made = walsender
        .create_slot(&name, SlotKind::Temporary)
        .await
        .unwrap();
    let reader = connect(&dsn).await;
    let snapshot = made.snapshot.unwrap();
    each(&reader, &["BEGIN ISOLATION LEVEL REPEATABLE READ"]).await;
    each(
        &reader,
        &[&format!("SET TRANSACTION SNAPSHOT '{snapshot}'")],
    )
    .await;
    // It can be in the way of a change of two tables.
    let locked = reader.batch_execute("LOCK TABLE docs, pairs, bag IN ACCESS SHARE MODE");
    locked.await.ok()?;
    let same = "SELECT bool_and(relfilenode = pg_relation_filenode(oid)) FROM pg_class \
        WHERE oid IN ('docs'::regclass, 'pairs'::regclass, 'bag'::regclass)";
    if !value::<bool>(&reader, same).await {
        return None;
    }
    for table in NAMES {
        each(
            &reader,
            &[&format!(
                "CREATE TABLE sampled.{table}_{n} AS TABLE public.{table}"
            )],
        )
        .await;
        let attributes = format!(
            "CREATE TABLE sampled.{table}_{n}_names AS SELECT attnum, attname::text FROM pg_attribute \
              WHERE attrelid = 'public.{table}'::regclass AND attnum > 0 AND NOT attisdropped"
        );
        each(&reader, &[&attributes]).await;
    }
    each(&reader, &["COMMIT"]).await;
    Some(made.position.to_string())
}

/// Rows of one and not of the other, as text. A column that was added with a DEFAULT to a table that was rewritten a moment
/// later has values that are in no log, which waltrail says.
async fn differences(client: &Client, table: &str, n: u64, position: &str) -> Vec<String> {
    let columns = texts(
        client,
        &format!(
            "SELECT format('%I::text, %I::%s::text', a.attname, s.attname, format_type(a.atttypid, a.atttypmod)) \
               FROM pg_attribute a JOIN sampled.{table}_{n}_names s USING (attnum) \
              WHERE a.attrelid = 'public.{table}'::regclass AND NOT a.attisdropped AND attnum <> ALL (ARRAY( \
                  SELECT (c ->> 'attnum')::int2 FROM waltrail.layout, jsonb_array_elements(columns) c \
                   WHERE history = 'public.{table}_cdc' AND NOT (c ->> 'known')::boolean)) ORDER BY attnum"
        ),
    )
    .await;
    let pairs: Vec<(String, String)> = columns
        .iter()
        .flatten()
        .filter_map(|pair| pair.split_once(", "))
        .map(|(now, then)| (now.to_owned(), then.to_owned()))
        .collect();
    let list =
        |of: fn(&(String, String)) -> String| pairs.iter().map(of).collect::<Vec<_>>().join(", ");
    let (now, then) = (list(|pair| pair.0.clone()), list(|pair| pair.1.clone()));
    let answer = format!("SELECT {now} FROM public.{table}_as_of('{position}'::pg_lsn)");
    let table_then = format!("SELECT {then} FROM sampled.{table}_{n}");
    let short = "(SELECT string_agg(c.key || '=' || left(c.value, 12), ' ') FROM jsonb_each_text(to_jsonb(d)) c)";
    let query = format!(
        "SELECT 'answered ' || {short} FROM ({answer} EXCEPT ALL {table_then}) d UNION ALL \
         SELECT 'was ' || {short} FROM ({table_then} EXCEPT ALL {answer}) d"
    );
    match client.query(&query, &[]).await {
        Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
        Err(error) => vec![format!("{:?}", error.as_db_error())],
    }
}

/// One seed: load, DDL, samples; then each sample beside the answer.
async fn one(seed: u64) -> Vec<String> {
    let mut rng = Rng::with_seed(seed);
    let tables = ["public.docs(id)", "public.pairs(a, b)", "public.bag(x)"];
    let options = |builder: throwaway::Builder| builder.setting("max_replication_slots", "20");
    let mut scene = Scene::existing(options, TABLES, &tables, "").await;
    each(
        &scene.source,
        &["INSERT INTO docs SELECT i, i, 'first', repeat('a', 9000) FROM generate_series(1, 20) i"],
    )
    .await;
    scene.start().await;
    scene.joined().await;
    let ends = Arc::new(AtomicBool::new(false));
    let dsn = scene.server.dsn_socket("postgres");
    let clients: Vec<_> = (0..3)
        .map(|_| tokio::spawn(client(dsn.clone(), rng.fork(), Arc::clone(&ends))))
        .collect();
    let mut positions = Vec::new();
    while (positions.len() as u64) < EACH {
        let n = positions.len() as u64;
        tokio::time::sleep(Duration::from_millis(rng.u64(..60))).await;
        if rng.u8(..3) == 0 {
            let change = ddl(&mut rng, usize::try_from(n).unwrap());
            let _ = scene
                .source
                .batch_execute(&format!("SET lock_timeout = '300ms'; {change}"))
                .await;
        }
        positions.extend(sample(&scene, n).await);
    }
    ends.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    // The last change is of each table, so that all of its shape is known.
    each(&scene.source, &["INSERT INTO docs (id) VALUES (999); INSERT INTO pairs (a, b) VALUES ('end', 0); INSERT INTO bag VALUES (999)"]).await;
    let last = "SELECT (SELECT count(*) FROM docs_cdc WHERE id = 999) + (SELECT count(*) FROM bag_cdc WHERE x = 999)";
    let target = scene.target_session().await;
    wait_until("the history is complete", BOUND, async || {
        let there: i64 = value(&target, last).await;
        (there == 2).then_some(())
    })
    .await;
    // What the last rows look like is looked up a moment later, and functions that are older do not answer.
    wait_until("the columns are looked up", BOUND, async || {
        let unseen: i64 = value(&target, "SELECT count(*) FROM waltrail.described").await;
        let all = "SELECT (SELECT count(*) FROM docs_as_of(now())), (SELECT count(*) FROM pairs_as_of(now())), (SELECT count(*) FROM bag_as_of(now()))";
        (unseen == 0 && target.query(all, &[]).await.is_ok()).then_some(())
    })
    .await;
    let mut wrong = Vec::new();
    for (n, position) in positions.iter().enumerate() {
        for table in NAMES {
            for line in differences(&target, table, n as u64, position).await {
                wrong.push(format!(
                    "AS_OF_SEED={seed}, sample {n} at {position}, {table}: {line}"
                ));
            }
        }
    }
    if !wrong.is_empty() {
        for query in [
            "SELECT history || c::text FROM waltrail.layout l, jsonb_array_elements(columns) c",
            "SELECT i::text FROM waltrail.inherited i",
            "SELECT i::text FROM waltrail.column_range i ORDER BY history, attnum, after_number",
        ] {
            wrong.push(format!(
                "{query}: {:#?}",
                texts(&target, query)
                    .await
                    .into_iter()
                    .flatten()
                    .collect::<Vec<_>>()
            ));
        }
    }
    println!("seed {seed}: {} positions", positions.len());
    scene.stop_complaining().await;
    wrong
}

/// As many positions as `AS_OF` says; without, some.
#[tokio::test]
async fn the_answer_is_the_table_under_the_snapshot_of_that_position() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().unwrap())
    };
    let seeds: Vec<u64> = match (number("AS_OF_SEED"), number("AS_OF")) {
        (Some(seed), _) => vec![seed],
        (None, positions) => (1..=positions.unwrap_or(EACH).div_ceil(EACH)).collect(),
    };
    let (mut wrong, mut positions) = (Vec::new(), 0);
    for seed in seeds {
        wrong.extend(one(seed).await);
        positions += EACH;
    }
    println!(
        "as_of: {positions} positions, {} rows that differ",
        wrong.len()
    );
    assert!(
        wrong.is_empty(),
        "{}",
        wrong
            .iter()
            .take(400)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    );
}
