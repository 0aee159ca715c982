//! Does `waltrail log` say what happened to a row, a table, a transaction?

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::daemon::Daemon;
use crate::support::scene::Scene;
use crate::support::{BOUND, DESIGN, each, value, wait_until};
use crate::undo::{asked, asked_with};

const PEOPLE: &str =
    "CREATE TABLE people (id integer PRIMARY KEY, name text, pay numeric, bio text, ok boolean)";

/// What `log` prints, without times and numbers of transactions.
#[track_caller]
fn log(config: &str, args: &[&str]) -> String {
    let (code, out, err) = asked(config, &[&["log"], args].concat());
    assert_eq!((code, err.as_str()), (0, ""), "{args:?}\n{out}");
    let plain = out.lines().map(|line| match line.split_once("  ") {
        Some((time, rest)) if time.ends_with("+00:00") => {
            rest.split("  xid ").next().unwrap().to_owned()
        }
        _ => line.to_owned(),
    });
    plain.collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn the_life_of_a_row_is_told_through_changes_of_its_key() {
    let mut scene = Scene::new(PEOPLE, &["public.people"]).await;
    each(
        &scene.source,
        &[
            "INSERT INTO people VALUES (1, 'Ada', 10, (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 500) n), true)",
            "INSERT INTO people VALUES (2, '', NULL, NULL, false)",
            "UPDATE people SET pay = 12.50, name = NULL WHERE id = 1",
            "UPDATE people SET id = 7, name = E'it''s\\n' WHERE id = 1",
            "UPDATE people SET bio = NULL WHERE id = 7",
            "INSERT INTO people VALUES (1, 'another', 1, NULL, NULL)",
            "UPDATE people SET name = '' WHERE id = 2",
            "DELETE FROM people WHERE id = 7",
        ],
    )
    .await;
    scene.check().await;
    let config = scene.config.clone();
    let life = log(&config, &["people", "--key", "7"]);
    let bio = life
        .lines()
        .find(|line| line.starts_with("  bio: "))
        .unwrap();
    assert!(
        bio.len() > 1_000 && bio.ends_with("... (16000 bytes in all)'"),
        "{bio}"
    );
    let short = |text: &str| {
        let lines = text.lines();
        let cut = lines.map(|line| line.chars().take(40).collect::<String>());
        cut.collect::<Vec<_>>().join("\n")
    };
    let expected = "INSERT  public.people  id=1
  name: 'Ada'
  pay: 10
  bio: 'c4ca4238a0b923820dcc509a6f75849b
  ok: true
UPDATE  public.people  id=1
  name: 'Ada' -> NULL
  pay: 10 -> 12.50
UPDATE  public.people  id=1 -> 7
  name: NULL -> 'it''s\\n'
UPDATE  public.people  id=7
  bio: 'c4ca4238a0b923820dcc509a6f75849b
DELETE  public.people  id=7
  name: 'it''s\\n'
  pay: 12.50
  bio: NULL
  ok: true";
    assert_eq!(short(&life), expected);
    // Under the former key, and before and after it.
    let former = log(&config, &["people", "--key", "id=1"]);
    assert!(former.contains("'another'"), "{former}");
    assert_eq!(
        former
            .lines()
            .filter(|line| line.contains("  public.people"))
            .count(),
        6,
        "{former}"
    );
    let other = log(&config, &["public.people_cdc", "--key", "2"]);
    assert!(
        other.ends_with("UPDATE  public.people  id=2\n  no column changed"),
        "{other}"
    );
    scene.stop().await;
}

#[tokio::test]
async fn a_transaction_is_told_over_all_tables_in_its_order() {
    let ddl = "CREATE TABLE a (x integer, \"Y\" text, v integer, PRIMARY KEY (x, \"Y\")); CREATE TABLE b (id bigint PRIMARY KEY, a integer)";
    let mut scene = Scene::new(ddl, &["public.a", "public.b"]).await;
    each(&scene.source, &["BEGIN"]).await;
    let xid: String = value(&scene.source, "SELECT pg_current_xact_id()::text").await;
    each(
        &scene.source,
        &[
            "INSERT INTO b VALUES (1, 5)",
            "INSERT INTO a VALUES (1, 'k,1', 0)",
            "UPDATE b SET a = 6",
            "TRUNCATE a",
            "COMMIT",
            "INSERT INTO a VALUES (1, 'other', 0)",
        ],
    )
    .await;
    scene.check().await;
    assert_eq!(
        log(&scene.config, &["--xid", &xid]),
        "INSERT  public.b  id=1
  a: 5
INSERT  public.a  x=1, \"Y\"='k,1'
  v: 0
UPDATE  public.b  id=1
  a: 5 -> 6
TRUNCATE  public.a
  every row is gone"
    );
    let (_, out, _) = asked(&scene.config, &["log", "--xid", &xid, "--json"]);
    let lines: Vec<serde_json::Value> = out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[1]["key"], serde_json::json!({"x": 1, "Y": "k,1"}));
    assert_eq!(
        lines[2]["columns"],
        serde_json::json!({"a": {"from": 5, "to": 6}})
    );
    assert_eq!(lines[2]["xid"].to_string(), xid);
    assert_eq!(
        (&lines[3]["change"], lines[3].get("columns")),
        (&"TRUNCATE".into(), None)
    );
    let of_key = log(&scene.config, &["a", "--key", "\"Y\"=k,1,x=1"]);
    assert_eq!(of_key.lines().count(), 4, "{of_key}");
    scene.stop().await;
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_with_the_way_to_ask() {
    let ddl = format!(
        "{DESIGN} CREATE TABLE a (x integer, y date, PRIMARY KEY (x, y)); CREATE TABLE n (v integer); ALTER TABLE n REPLICA IDENTITY FULL"
    );
    let mut scene = Scene::new(&ddl, &["public.employees", "public.a", "public.n"]).await;
    each(&scene.source, &["INSERT INTO employees (name) VALUES ('x'); INSERT INTO n VALUES (1); UPDATE n SET v = 2"]).await;
    scene.check().await;
    for (args, part) in [
        (&["log"][..], "waltrail log TABLE"),
        (
            &["log", "nothing"],
            "nothing is not a table that is followed",
        ),
        (
            &["log", "employees", "--key", "seven"],
            "not a value of type integer",
        ),
        (&["log", "a", "--key", "7"], "--key x=...,y=..."),
        (
            &["log", "a", "--key", "x=7,y=someday"],
            "not a value of type date",
        ),
        (&["log", "n", "--key", "7"], "has no key"),
        (&["log", "employees", "--xid", "7"], "has no column xid"),
        (&["log", "employees", "--since", "someday"], "is not a time"),
        (
            &["log", "employees", "--follow", "--until", "now"],
            "cannot be used",
        ),
        (&["log", "--xid", "4000000000"], "no history has a row"),
        (&["undo", "--since", "1h", "--xid", "7"], "cannot be used"),
        (&["undo"], "--since"),
        (&["undo", "--since", "1h", "--table", "n"], "has no key"),
    ] {
        let (code, out, err) = asked(&scene.config, args);
        assert!(
            code == 64 && err.contains(part),
            "{args:?}: {code} {err}\n{out}"
        );
    }
    let unkeyed = log(&scene.config, &["n"]);
    assert_eq!(
        unkeyed,
        "INSERT  public.n\n  v: 1\nUPDATE  public.n\n  v: 1 -> 2"
    );
    scene.stop().await;
}

#[tokio::test]
async fn a_history_as_the_design_has_it_is_told_with_what_it_knows() {
    let mut scene = Scene::new(DESIGN, &["public.employees"]).await;
    let statements: Vec<String> = (0..300)
        .map(|n| format!("UPDATE employees SET salary = {n} WHERE id = {}", n % 3 + 1))
        .collect();
    let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
    each(
        &scene.source,
        &["INSERT INTO employees (name, salary) VALUES ('a', 0), ('b', 1), (NULL, NULL)"],
    )
    .await;
    let time: String = value(&scene.source, "SELECT clock_timestamp()::text").await;
    each(&scene.source, &statements).await;
    each(
        &scene.source,
        &[
            "DELETE FROM employees WHERE id = 2",
            "UPDATE employees SET id = 9 WHERE id = 3",
        ],
    )
    .await;
    scene.check().await;
    let since = log(&scene.config, &["employees", "--since", &time]);
    let updates = since
        .lines()
        .filter(|line| line.starts_with("UPDATE"))
        .count();
    let unknown = since
        .lines()
        .filter(|line| line.contains("not known"))
        .count();
    assert_eq!((updates, unknown), (300, 0), "{since}");
    assert!(
        since.contains(
            "DELETE  public.employees  id=2\n  name: 'b'\n  department: NULL\n  salary: 298\n"
        ),
        "{since}"
    );
    let newest = log(&scene.config, &["employees"]);
    assert_eq!(
        newest
            .lines()
            .filter(|line| line.contains("  public.employees"))
            .count(),
        50
    );
    assert!(
        newest.starts_with("UPDATE  public.employees  id=2\n  salary: 250 -> 253\n"),
        "{newest}"
    );
    let three = log(&scene.config, &["employees", "--limit", "3"]);
    assert_eq!(
        three,
        "DELETE  public.employees  id=2
  name: 'b'
  department: NULL
  salary: 298
DELETE  public.employees  id=3
  name: NULL
  department: NULL
  salary: 299
INSERT  public.employees  id=9
  name: NULL
  department: NULL
  salary: 299"
    );
    let until = log(&scene.config, &["employees", "--until", &time]);
    assert_eq!(
        until
            .lines()
            .filter(|line| line.starts_with("INSERT"))
            .count(),
        3,
        "{until}"
    );
    scene.stop().await;
}

#[tokio::test]
async fn a_repair_and_what_a_message_said_are_told() {
    let mut scene = Scene::new(PEOPLE, &["public.people"]).await;
    each(
        &scene.source,
        &[
            "INSERT INTO people VALUES (1, 'Ada', 1, NULL, NULL)",
            "UPDATE people SET pay = 2",
        ],
    )
    .await;
    scene.check().await;
    each(
        &scene.target,
        &[
            "INSERT INTO people_cdc (change_type, change_timestamp, commit_lsn, tx_seq, xid, id, name, pay)
                VALUES ('REPAIR', now(), '0/0', 0, 0, 1, 'Eve', 3)",
            "INSERT INTO people_cdc (change_type, change_timestamp, commit_lsn, tx_seq, xid, id, unavailable_columns)
                VALUES ('DELETE', now(), '0/0', 0, 0, 1, '{name,pay,bio,ok}')",
        ],
    )
    .await;
    let life = log(&scene.config, &["people", "--key", "1", "--limit", "2"]);
    assert_eq!(
        life,
        "REPAIR  public.people  id=1
  name: 'Eve'
  pay: 3
  bio: NULL
  ok: NULL
DELETE  public.people  id=1
  name: 'Eve'
  pay: 3
  bio: NULL
  ok: NULL"
    );
    scene.stop().await;
}

#[tokio::test]
async fn times_are_in_the_zone_of_the_terminal_and_colours_are_for_it_alone() {
    let mut scene = Scene::new(PEOPLE, &["public.people"]).await;
    each(
        &scene.source,
        &["INSERT INTO people VALUES (1, E'\\u001b[31m', 1, NULL, NULL)"],
    )
    .await;
    scene.check().await;
    let of = |zone: &str| {
        let (code, out, err) = asked_with(&scene.config, &["log", "people"], &[("TZ", zone)]);
        assert_eq!(code, 0, "{err}");
        assert!(
            !out.contains('\u{1b}') && out.contains(r"'\u{1b}[31m'"),
            "{out}"
        );
        out.split_once("  ").unwrap().0.to_owned()
    };
    assert!(of("Asia/Kolkata").ends_with("+05:30"));
    assert!(of("Nowhere/Land").ends_with("+00:00"));
    let (_, out, _) = asked_with(
        &scene.config,
        &["log", "people"],
        &[("CLICOLOR_FORCE", "1")],
    );
    assert!(out.contains("\u{1b}[32mINSERT"), "{out}");
    scene.stop().await;
}

#[tokio::test]
async fn a_log_that_is_followed_says_what_comes_and_ends_by_a_signal() {
    let mut scene = Scene::new(PEOPLE, &["public.people"]).await;
    each(
        &scene.source,
        &["INSERT INTO people VALUES (1, 'Ada', 1, NULL, NULL)"],
    )
    .await;
    scene.check().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("waltrail.toml"), &scene.config).unwrap();
    let out = folder.path().join("out");
    let mut child = Daemon::command()
        .args(["log", "people", "--key", "1", "--follow"])
        .current_dir(folder.path())
        .stdout(std::fs::File::create(&out).unwrap())
        .spawn()
        .unwrap();
    let says = async |text: &str| {
        wait_until(text, BOUND, async || {
            let said = std::fs::read_to_string(&out).unwrap();
            said.contains(text).then_some(())
        })
        .await;
    };
    says("name: 'Ada'").await;
    each(
        &scene.source,
        &[
            "INSERT INTO people VALUES (2, 'not asked for', 1, NULL, NULL)",
            "UPDATE people SET pay = 2 WHERE id = 1",
            "UPDATE people SET id = 5 WHERE id = 1",
            "UPDATE people SET name = 'Eve' WHERE id = 5",
            "TRUNCATE people",
        ],
    )
    .await;
    says("pay: 1 -> 2").await;
    says("name: 'Ada' -> 'Eve'").await;
    says("every row is gone").await;
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    let ended = tokio::task::spawn_blocking(move || child.wait().unwrap());
    let status = tokio::time::timeout(Duration::from_secs(15), ended).await;
    let status = status.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
    let said = std::fs::read_to_string(&out).unwrap();
    assert!(!said.contains("not asked for"), "{said}");
    scene.stop().await;
}
