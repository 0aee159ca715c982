//! Does the script of `waltrail undo` put back what was, and nothing else?

mod kinds;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::support::daemon::Daemon;
use crate::support::scene::Scene;
use crate::support::{BOUND, each, texts, value, wait_for_value};

/// Runs a command that shows values: exit code, standard output, standard error.
pub(crate) fn asked(config: &str, args: &[&str]) -> (i32, String, String) {
    asked_with(config, args, &[])
}

/// The same with variables of the environment.
pub(crate) fn asked_with(
    config: &str,
    args: &[&str],
    variables: &[(&str, &str)],
) -> (i32, String, String) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("waltrail.toml"), config).unwrap();
    let output = Daemon::command()
        .args(args)
        .current_dir(folder.path())
        .env_remove("TZ")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert!(!err.contains("panicked"), "{err}");
    (output.status.code().unwrap_or(-1), out, err)
}

/// The script that a command prints.
#[track_caller]
fn script(scene: &Scene, args: &[&str]) -> String {
    let start = Instant::now();
    let (code, out, err) = asked(&scene.config, args);
    assert_eq!(code, 0, "{args:?}: {err}\n{out}");
    println!(
        "{args:?}: {} bytes in {:?} {err}",
        out.len(),
        start.elapsed()
    );
    out
}

/// Runs a script as psql does: what its queries gave, in lines.
async fn run(client: &Client, script: &str) -> Vec<String> {
    let start = Instant::now();
    let answers = match client.simple_query(script).await {
        Ok(answers) => answers,
        Err(error) => panic!("{error:?}\n{}", &script[..script.len().min(20_000)]),
    };
    let rows = answers.iter().filter_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => {
            let cells = (0..row.len()).map(|at| row.get(at).unwrap_or("NULL"));
            Some(cells.collect::<Vec<_>>().join(" "))
        }
        _ => None,
    });
    let rows = rows.collect();
    println!("run in {:?}", start.elapsed());
    rows
}

/// Does `statements` in one transaction; its number.
async fn transaction(client: &Client, statements: &str) -> String {
    each(client, &["BEGIN"]).await;
    let xid: String = value(
        client,
        "SELECT (pg_current_xact_id()::text::bigint % 4294967296)::text",
    )
    .await;
    each(client, &[statements, "COMMIT"]).await;
    xid
}

/// The rows of a table as text.
async fn rows(client: &Client, table: &str) -> BTreeSet<String> {
    let rows = texts(client, &format!("SELECT t::text FROM {table} t")).await;
    rows.into_iter().map(Option::unwrap).collect()
}

/// The lines of a script that say which rows it leaves out.
fn left_out(script: &str) -> Vec<&str> {
    let lines = script.lines();
    lines
        .filter(|line| line.starts_with("-- left out"))
        .collect()
}

#[tokio::test]
async fn an_update_without_where_is_undone_while_others_write() {
    let ddl = "CREATE TABLE pay (id integer PRIMARY KEY, name text, salary numeric(10,2));
        INSERT INTO pay SELECT n, 'name ' || n, n * 1.5 FROM generate_series(1, 100000) n";
    let mut scene = Scene::existing(|server| server, ddl, &["public.pay(id)"], "").await;
    scene.start().await;
    scene.joined().await;
    let other = scene.session().await;
    let before = rows(&other, "pay").await;
    let xid = transaction(&scene.source, "UPDATE pay SET salary = 0").await;
    // Others go on: the rows that they change, remove and add are theirs.
    each(
        &other,
        &[
            "UPDATE pay SET salary = salary + 7 WHERE id BETWEEN 10 AND 19",
            "DELETE FROM pay WHERE id = 20",
            "INSERT INTO pay VALUES (200000, 'new', 1)",
        ],
    )
    .await;
    recorded(&scene, "id = 200000").await;
    let script = script(&scene, &["undo", "--xid", &xid]);
    assert_eq!(left_out(&script).len(), 11, "{:?}", left_out(&script));
    // Between the printing and the running, too.
    each(&other, &["UPDATE pay SET name = 'mine' WHERE id = 5"]).await;
    let said = run(&scene.source, &script).await;
    assert_eq!(
        said,
        ["public.pay UPDATE 99989 99988 1", "public.pay UPDATE id=5"]
    );
    let after = rows(&other, "pay").await;
    let changed: Vec<&String> = before.symmetric_difference(&after).collect();
    let theirs = [
        "(10,\"name 10\",7.00)",
        "(19,\"name 19\",7.00)",
        "(200000,new,1.00)",
        "(5,mine,0.00)",
    ];
    for row in theirs {
        assert!(after.contains(row), "{row} of {changed:?}");
    }
    assert_eq!(changed.len(), 2 * 11 + 1 + 1, "{changed:?}");
    // With force they are put back as well: what is done since, the script itself among it, is undone in one go.
    recorded(&scene, "id = 5 AND name = 'mine'").await;
    recorded(&scene, "id = 6 AND salary = 9").await;
    let forced = self::script(&scene, &["undo", "--xid", &xid, "--force"]);
    run(&scene.source, &forced).await;
    let after = rows(&other, "pay").await;
    let left: Vec<&String> = after.symmetric_difference(&before).collect();
    assert_eq!(left, ["(200000,new,1.00)"]);
    scene.stop().await;
}

/// Changes, removes and adds rows until `ends`; what it has left of each that it touched.
async fn others(client: Client, ends: Arc<AtomicBool>) -> BTreeMap<u32, Option<String>> {
    let mut rng = fastrand::Rng::with_seed(22);
    let mut touched = BTreeMap::new();
    for turn in 1_u32.. {
        if ends.load(Ordering::Relaxed) {
            break;
        }
        let id = rng.u32(1..=30_000);
        let (statement, left) = match rng.u8(..10) {
            0 => (format!("DELETE FROM pay WHERE id = {id}"), None),
            1 => {
                let id = 200_000 + turn;
                touched.insert(id, Some(format!("({id},new,{turn}.00)")));
                let new = format!("INSERT INTO pay VALUES ({id}, 'new', {turn})");
                client.batch_execute(&new).await.unwrap();
                continue;
            }
            _ => (
                format!("UPDATE pay SET name = 'mine', salary = {turn} WHERE id = {id}"),
                Some(format!("({id},mine,{turn}.00)")),
            ),
        };
        // One that it has removed stays away.
        if client.execute(&statement, &[]).await.unwrap() == 1 {
            touched.insert(id, left);
        }
    }
    touched
}

#[tokio::test]
async fn what_others_write_while_it_is_undone_stays() {
    let ddl = "CREATE TABLE pay (id integer PRIMARY KEY, name text, salary numeric(10,2));
        INSERT INTO pay SELECT n, 'name ' || n, n * 1.5 FROM generate_series(1, 100000) n";
    let mut scene = Scene::existing(|server| server, ddl, &["public.pay(id)"], "").await;
    scene.start().await;
    scene.joined().await;
    let mut expected = rows(&scene.source, "pay").await;
    let xid = transaction(&scene.source, "UPDATE pay SET salary = 0").await;
    let ends = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(others(scene.session().await, Arc::clone(&ends)));
    recorded(&scene, "name = 'mine'").await;
    let config = scene.config.clone();
    // In a thread of its own, so that the others go on.
    let printed = tokio::task::spawn_blocking(move || asked(&config, &["undo", "--xid", &xid]));
    let (code, script, err) = printed.await.unwrap();
    assert_eq!(code, 0, "{err}");
    let said = run(&scene.source, &script).await;
    ends.store(true, Ordering::Relaxed);
    let touched = writer.await.unwrap();
    println!(
        "{} rows are of others, {} of them added",
        touched.len(),
        touched.range(200_000..).count()
    );
    assert!(!left_out(&script).is_empty(), "{said:?}");
    let of_others: BTreeSet<String> = touched.keys().map(u32::to_string).collect();
    let key = |row: &String| row[1..].split(',').next().unwrap_or_default().to_owned();
    expected.retain(|row| !of_others.contains(&key(row)));
    expected.extend(touched.into_values().flatten());
    let after = rows(&scene.source, "pay").await;
    let differs: Vec<&String> = after.symmetric_difference(&expected).take(20).collect();
    assert!(differs.is_empty(), "{differs:?}, {said:?}");
    scene.stop().await;
}

/// Waits for a row of the history of `pay`. The oracle takes long for so many rows.
async fn recorded(scene: &Scene, row: &str) {
    let there = format!("SELECT EXISTS (SELECT FROM pay_cdc WHERE {row})");
    wait_for_value(&scene.target, &there, true, BOUND).await;
}

#[tokio::test]
async fn a_delete_with_cascades_is_undone_parents_first() {
    let ddl = "CREATE TABLE shop (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text UNIQUE);
        CREATE TABLE item (shop_id integer REFERENCES shop ON DELETE CASCADE, n integer, note text, PRIMARY KEY (shop_id, n));
        CREATE TABLE part (id integer PRIMARY KEY, shop_id integer, n integer, of_part integer REFERENCES part ON DELETE CASCADE,
            FOREIGN KEY (shop_id, n) REFERENCES item ON DELETE CASCADE ON UPDATE CASCADE);
        INSERT INTO shop (name) SELECT 'shop ' || n FROM generate_series(1, 20) n;
        INSERT INTO item SELECT s, n, 'note' FROM generate_series(1, 20) s, generate_series(1, 5) n;
        INSERT INTO part SELECT n, 1 + n % 20, 1 + n % 5, nullif(n / 2, 0) FROM generate_series(1, 100) n";
    let tables = [
        "public.part(id)",
        "public.item(shop_id, n)",
        "public.shop(id)",
    ];
    let mut scene = Scene::existing(|server| server, ddl, &tables, "").await;
    scene.start().await;
    scene.joined().await;
    let all = ["shop", "item", "part"];
    let mut before = Vec::new();
    for table in all {
        before.push(rows(&scene.source, table).await);
    }
    let xid = transaction(&scene.source, "DELETE FROM shop WHERE id <= 4").await;
    let gone = rows(&scene.source, "part").await;
    assert!(gone.len() < 20, "{gone:?}");
    scene.check_existing().await;
    let script = script(&scene, &["undo", "--xid", &xid]);
    let said = run(&scene.source, &script).await;
    assert!(said.iter().all(|line| line.ends_with(" 0")), "{said:?}");
    for (table, before) in std::iter::zip(all, &before) {
        assert_eq!(&rows(&scene.source, table).await, before, "{table}");
    }
    // A second time there is nothing left to do, and nothing is done.
    let said = run(&scene.source, &script).await;
    assert!(
        said.iter()
            .any(|line| line.starts_with("public.shop INSERT 4 0 4")),
        "{said:?}"
    );
    scene.check_existing().await;
    scene.stop().await;
}

#[tokio::test]
async fn a_change_of_the_key_is_undone_in_place_and_with_what_follows_it() {
    let ddl = "CREATE TABLE shop (id integer PRIMARY KEY, name text UNIQUE);
        CREATE TABLE item (shop_id integer REFERENCES shop ON UPDATE CASCADE, n integer, note text, PRIMARY KEY (shop_id, n));
        INSERT INTO shop SELECT n, 'shop ' || n FROM generate_series(1, 20) n;
        INSERT INTO item SELECT s, n, 'note' FROM generate_series(1, 20) s, generate_series(1, 5) n";
    let tables = ["public.shop(id)", "public.item(shop_id, n)"];
    let mut scene = Scene::existing(|server| server, ddl, &tables, "").await;
    scene.start().await;
    scene.joined().await;
    let before = [
        rows(&scene.source, "shop").await,
        rows(&scene.source, "item").await,
    ];
    let xid = transaction(
        &scene.source,
        "UPDATE shop SET id = id + 100 WHERE id < 10; UPDATE shop SET id = id + 100, name = name || '!' WHERE id = 101;
         UPDATE item SET note = 'x' WHERE shop_id > 100 AND n = 1; DELETE FROM item WHERE shop_id = 102;
         INSERT INTO shop VALUES (300, 'new'); UPDATE shop SET id = 3 WHERE id = 300",
    )
    .await;
    scene.check_existing().await;
    let script = script(&scene, &["undo", "--xid", &xid]);
    let said = run(&scene.source, &script).await;
    let after = [
        rows(&scene.source, "shop").await,
        rows(&scene.source, "item").await,
    ];
    assert_eq!(after, before, "{said:#?}\n{script}");
    assert!(said.iter().all(|line| line.ends_with(" 0")), "{said:?}");
    scene.check_existing().await;
    scene.stop().await;
}

#[tokio::test]
async fn a_truncate_is_undone_by_all_rows_that_were_there() {
    let ddl = "CREATE TABLE a (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);
        CREATE TABLE b (id integer PRIMARY KEY, a_id bigint REFERENCES a);
        INSERT INTO a (v) SELECT 'v' || n FROM generate_series(1, 3000) n;
        INSERT INTO b SELECT n, n FROM generate_series(1, 3000) n";
    let mut scene =
        Scene::existing(|server| server, ddl, &["public.b(id)", "public.a(id)"], "").await;
    scene.start().await;
    scene.joined().await;
    let before = [
        rows(&scene.source, "a").await,
        rows(&scene.source, "b").await,
    ];
    let xid = transaction(
        &scene.source,
        "UPDATE a SET v = 'changed' WHERE id = 1; TRUNCATE a, b; INSERT INTO a (v) VALUES ('after')",
    )
    .await;
    scene.check_existing().await;
    let script = script(&scene, &["undo", "--xid", &xid]);
    let said = run(&scene.source, &script).await;
    let after = [
        rows(&scene.source, "a").await,
        rows(&scene.source, "b").await,
    ];
    assert!(after == before, "{said:?}");
    scene.check_existing().await;
    scene.stop().await;
}

/// A row that another session is changing while the script runs: the script waits, and leaves it.
#[tokio::test]
async fn a_row_that_is_being_changed_is_waited_for_and_left_out() {
    let mut scene = Scene::new(
        "CREATE TABLE a (id integer PRIMARY KEY, v integer)",
        &["public.a"],
    )
    .await;
    each(
        &scene.source,
        &["INSERT INTO a SELECT n, n FROM generate_series(1, 5) n"],
    )
    .await;
    let xid = transaction(
        &scene.source,
        "UPDATE a SET v = 0; INSERT INTO a VALUES (6, 6), (7, 7)",
    )
    .await;
    scene.check().await;
    let script = script(&scene, &["undo", "--xid", &xid]);
    let other = scene.session().await;
    each(
        &other,
        &["BEGIN; UPDATE a SET v = 100 WHERE id IN (2, 6); DELETE FROM a WHERE id = 3"],
    )
    .await;
    let (client, watch) = (scene.session().await, scene.session().await);
    let running = tokio::spawn(async move { run(&client, &script).await });
    let waits =
        "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND locktype = 'transactionid')";
    wait_for_value(&watch, waits, true, BOUND).await;
    each(&other, &["COMMIT"]).await;
    assert_eq!(
        running.await.unwrap(),
        [
            "public.a DELETE 2 1 1",
            "public.a UPDATE 5 3 2",
            "public.a DELETE id=6",
            "public.a UPDATE id=2",
            "public.a UPDATE id=3"
        ]
    );
    let is: String = value(
        &watch,
        "SELECT string_agg(id || '=' || v, ' ' ORDER BY id) FROM a",
    )
    .await;
    assert_eq!(is, "1=1 2=100 4=4 5=5 6=100");
    scene.check().await;
    scene.stop().await;
}
