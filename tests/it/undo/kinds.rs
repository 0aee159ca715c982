//! Tables and types of every kind.

use super::{asked, left_out, rows, run, script, transaction};
use crate::support::scene::Scene;
use crate::support::{BOUND, DESIGN, each, value, wait_for_value};

const KINDS: &str = r#"
    CREATE SCHEMA "My Shop"; CREATE TYPE "My Shop"."Mood" AS ENUM ('glad', 'so ''so''', 'back\slash');
    CREATE TYPE "My Shop".pair AS (a integer, b text);
    CREATE DOMAIN "My Shop".named AS varchar(20) NOT NULL CHECK (value <> 'bad');
    CREATE TABLE "My Shop"."Or.der" (
        "Id" bigint GENERATED ALWAYS AS IDENTITY, "sub ""key""" text, note text, big text, amount numeric(12,2), free numeric,
        twice bigint GENERATED ALWAYS AS ("Id" * 2) STORED, mood "My Shop"."Mood", pair "My Shop".pair,
        j json, jb jsonb, tags text[], moods "My Shop"."Mood"[], at timestamptz, day date, span interval, place point,
        raw bytea, cut char(5), one "char", flag boolean, f float8, label "My Shop".named DEFAULT 'x', of regclass, x xml,
        PRIMARY KEY ("sub ""key""", "Id"))"#;

const ROWS: &str = r#"
    INSERT INTO "My Shop"."Or.der" ("sub ""key""", note, big, amount, free, mood, pair, j, jb, tags, moods, at, day, span, place,
        raw, cut, one, flag, f, label, of, x)
    VALUES ('it''s \ "x"', E'line\nbreak \\ '' \u001b end', (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 500) n),
        1.50, 'NaN', 'so ''so''', ROW(1, 'a,"b'), '{"a": [1,  2], "b": "\\n"}', '{"b": "\\"}', ARRAY['a', NULL, '', 'NULL', 'x,"y'],
        '{glad,"back\\slash"}', 'infinity', '-infinity', '1 mon -2 days 03:04:05.000006', '(1.5,-2)', '\x005c27ff', 'ab', 'c', true,
        'NaN', 'l''abel', 'pg_class', '<a>b</a>'),
    ('', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
        DEFAULT, NULL, NULL),
    ('third', '', repeat('y', 10), 0, 'Infinity', 'glad', NULL, 'null', '"x"', '{}', '{}', '2026-11-29 01:02:03.123456+05:30',
        '0044-03-15 BC', '-1 day', '(0,0)', '', '', '', false, '-0', '', NULL, '')"#;

const TABLE: &str = "\"My Shop\".\"Or.der\"";

#[tokio::test]
async fn values_of_every_type_are_put_back_as_they_were() {
    let tables = ["\"My Shop\".\"Or.der\""];
    let scene = &mut Scene::new(KINDS, &tables).await;
    each(&scene.source, &[ROWS]).await;
    let before = rows(&scene.source, TABLE).await;
    let statements = [
        format!("DELETE FROM {TABLE}"),
        // The large value is not in the WAL of this one.
        format!(
            "UPDATE {TABLE} SET note = NULL, mood = 'glad', amount = coalesce(amount, 0) + 1, j = '{{}}', tags = NULL, place = '(9,9)',
                pair = NULL, free = 1, at = NULL, span = NULL, label = 'other', cut = 'z', of = 'pg_type'"
        ),
        format!("UPDATE {TABLE} SET \"sub \"\"key\"\"\" = \"sub \"\"key\"\"\" || '!'"),
        format!("UPDATE {TABLE} SET big = NULL; DELETE FROM {TABLE} WHERE note = ''"),
        format!("TRUNCATE {TABLE}"),
    ];
    for statement in &statements {
        let xid = transaction(&scene.source, statement).await;
        let recorded =
            format!("SELECT count(*) > 0 FROM \"My Shop\".\"Or.der_cdc\" WHERE xid = {xid}");
        wait_for_value(&scene.target, &recorded, true, BOUND).await;
        let script = script(scene, &["undo", "--xid", &xid]);
        let said = run(&scene.source, &script).await;
        assert_eq!(
            rows(&scene.source, TABLE).await,
            before,
            "{said:?}\n{script}"
        );
        assert!(said.iter().all(|line| line.ends_with(" 0")), "{said:?}");
    }
    scene.stop().await;
}

#[tokio::test]
async fn the_two_tables_of_the_design_are_undone_since_a_time() {
    let mut scene = Scene::new(DESIGN, &["public.employees"]).await;
    each(
        &scene.source,
        &["INSERT INTO employees (name, department, salary) SELECT 'n' || n, 'd', n FROM generate_series(1, 100) n"],
    )
    .await;
    let before = rows(&scene.source, "employees").await;
    let time: String = value(&scene.source, "SELECT clock_timestamp()::text").await;
    each(
        &scene.source,
        &[
            "UPDATE employees SET salary = NULL",
            "DELETE FROM employees WHERE id > 50",
            "UPDATE employees SET id = 1000 WHERE id = 1",
            "INSERT INTO employees (name) VALUES ('new')",
        ],
    )
    .await;
    scene.check().await;
    let (code, _, err) = asked(&scene.config, &["undo", "--xid", "7"]);
    assert_eq!(code, 64, "{err}");
    let script = script(&scene, &["undo", "--since", &time]);
    let said = run(&scene.source, &script).await;
    assert_eq!(
        rows(&scene.source, "employees").await,
        before,
        "{said:?}\n{script}"
    );
    scene.check().await;
    scene.stop().await;
}

#[tokio::test]
async fn a_condition_and_tables_choose_what_is_undone() {
    let ddl = "CREATE TABLE a (id integer PRIMARY KEY, v integer); CREATE TABLE b (id integer PRIMARY KEY, v integer)";
    let mut scene = Scene::new(ddl, &["public.a", "public.b"]).await;
    each(
        &scene.source,
        &["INSERT INTO a SELECT n, n FROM generate_series(1, 10) n; INSERT INTO b SELECT * FROM a"],
    )
    .await;
    let xid = transaction(
        &scene.source,
        "UPDATE a SET v = 0; UPDATE b SET v = 0; INSERT INTO a VALUES (11, 4); INSERT INTO a VALUES (12, 5)",
    )
    .await;
    scene.check().await;
    let args = [
        "undo",
        "--xid",
        &xid,
        "--table",
        "a",
        "--where",
        "a.v < 5 -- before",
    ];
    let said = run(&scene.source, &script(&scene, &args)).await;
    assert_eq!(said, ["public.a DELETE 1 1 0", "public.a UPDATE 4 4 0"]);
    let after: String = value(
        &scene.source,
        "SELECT string_agg(v::text, ',' ORDER BY id) FROM a",
    )
    .await;
    assert_eq!(after, "1,2,3,4,0,0,0,0,0,0,5");
    let refused = ["undo", "--xid", &xid, "--where", "nothing = 1"];
    let (code, out, err) = asked(&scene.config, &refused);
    assert!(code == 64 && err.contains("--where"), "{code} {err}\n{out}");
    assert!(!out.contains("\nCOMMIT"), "{out}");
    // The script was recorded, and can be undone itself.
    scene.check().await;
    let time: String = value(
        &scene.source,
        "SELECT min(change_timestamp)::text FROM a_cdc WHERE change_type = 'UPDATE'",
    )
    .await;
    let script = script(
        &scene,
        &["undo", "--since", &time, "--table", "public.a_cdc"],
    );
    assert_eq!(left_out(&script), Vec::<&str>::new());
    run(&scene.source, &script).await;
    let after: String = value(
        &scene.source,
        "SELECT string_agg(v::text, ',' ORDER BY id) FROM a",
    )
    .await;
    assert_eq!(after, "0,0,0,0,0,0,0,0,0,0,4,5");
    scene.stop().await;
}

#[tokio::test]
async fn what_is_not_known_is_said_and_left_as_it_is() {
    let ddl = "CREATE TABLE a (id integer PRIMARY KEY, v text, secret text, must text NOT NULL);
        CREATE TABLE b (id integer PRIMARY KEY, v text, w text);
        INSERT INTO a SELECT n, 'v', 's' || n, 'm' FROM generate_series(1, 3) n; INSERT INTO b SELECT n, 'v', 'w' FROM generate_series(1, 3) n";
    let mut scene = Scene::new(ddl, &["public.a", "public.b"]).await;
    scene.config = scene.config.replace(
        "source = 'public.a'\n",
        "source = 'public.a'\nexclude_columns = ['secret']\n",
    );
    // `snapshot.mode = "never"`: of the existing rows the history knows what changes say.
    let xid = transaction(
        &scene.source,
        "UPDATE b SET v = 'x' WHERE id = 1; DELETE FROM b WHERE id = 2; DELETE FROM a WHERE id = 3; INSERT INTO b VALUES (4, 'new')",
    )
    .await;
    scene.check().await;
    let script = script(&scene, &["undo", "--xid", &xid]);
    for line in [
        "-- not known, and left as it is: public.b id='1': v, w",
        "-- not known, and left as it is: public.b id='2': v, w",
        "-- not known, and left as it is: public.a id='3': v, must",
        "-- left out, a value that it must have is not known: public.a id='3'",
    ] {
        assert!(
            script.lines().any(|known| known == line),
            "{line}\n{script}"
        );
    }
    let said = run(&scene.source, &script).await;
    assert_eq!(said, ["public.b DELETE 1 1 0", "public.b INSERT 1 1 0"]);
    let is: String = value(
        &scene.source,
        "SELECT string_agg(b::text, ' ' ORDER BY id) FROM b",
    )
    .await;
    assert_eq!(is, "(1,x,w) (2,,) (3,v,w)");
    // What is known by now is put back, whatever stands in the column that is not recorded.
    each(
        &scene.source,
        &["INSERT INTO a VALUES (7, 'v', 'word', 'm')"],
    )
    .await;
    let xid = transaction(
        &scene.source,
        "UPDATE a SET v = 'gone' WHERE id = 7; UPDATE b SET w = NULL WHERE id = 1",
    )
    .await;
    scene.check().await;
    let script = self::script(&scene, &["undo", "--xid", &xid]);
    assert!(
        script.contains("-- Not recorded, and left as they are: secret"),
        "{script}"
    );
    let said = run(&scene.source, &script).await;
    assert_eq!(
        said,
        ["public.a UPDATE 1 1 0", "public.b UPDATE 1 1 0"],
        "{script}"
    );
    let is: String = value(&scene.source, "SELECT a::text FROM a WHERE id = 7").await;
    assert_eq!(is, "(7,v,word,m)");
    scene.check().await;
    scene.stop().await;
}

#[tokio::test]
async fn a_row_that_others_refer_to_is_not_removed() {
    let ddl = "CREATE TABLE a (id integer PRIMARY KEY, of integer REFERENCES a ON DELETE CASCADE);
        CREATE TABLE unknown (a integer REFERENCES a ON DELETE CASCADE)";
    let mut scene = Scene::new(ddl, &["public.a"]).await;
    let xid = transaction(
        &scene.source,
        "INSERT INTO a VALUES (1, NULL), (2, 1), (3, NULL), (4, 3), (5, 4)",
    )
    .await;
    // The history knows nothing of it.
    each(&scene.source, &["INSERT INTO unknown VALUES (4)"]).await;
    scene.check().await;
    let said = run(&scene.source, &script(&scene, &["undo", "--xid", &xid])).await;
    assert_eq!(said[0], "public.a DELETE 5 3 2", "{said:?}");
    let is: String = value(&scene.source, "SELECT string_agg(id::text, ' ' ORDER BY id) || ' ' || (SELECT count(*) FROM unknown) FROM a").await;
    assert_eq!(is, "3 4 1");
    scene.check().await;
    scene.stop().await;
}

#[tokio::test]
async fn changes_with_a_gap_among_them_are_not_undone() {
    let mut scene = Scene::new(
        "CREATE TABLE a (id integer PRIMARY KEY, v text)",
        &["public.a"],
    )
    .await;
    each(&scene.source, &["INSERT INTO a VALUES (1, 'x')"]).await;
    scene.check().await;
    let time: String = value(&scene.source, "SELECT clock_timestamp()::text").await;
    each(
        &scene.target,
        &["INSERT INTO a_cdc (change_type, change_timestamp, commit_lsn, tx_seq, xid) VALUES ('GAP', clock_timestamp(), '0/0', 0, 0)"],
    )
    .await;
    let (code, out, err) = asked(&scene.config, &["undo", "--since", &time]);
    assert!(
        code == 64 && err.contains("GAP") && out.is_empty(),
        "{code} {err}{out}"
    );
    let (code, out, _) = asked(&scene.config, &["log", "a"]);
    assert!(
        code == 0 && out.contains("changes are missing before this row"),
        "{out}"
    );
    let (code, out, _) = asked(&scene.config, &["undo", "--since", "0s"]);
    assert!(
        code == 0 && out.contains("Nothing is to be put back"),
        "{out}"
    );
    scene.stop().await;
}

#[tokio::test]
async fn existing_rows_and_repairs_are_not_taken_for_changes() {
    let ddl = "CREATE TABLE a (id integer PRIMARY KEY, v text); INSERT INTO a VALUES (1, 'x')";
    let mut scene = Scene::existing(|server| server, ddl, &["public.a(id)"], "").await;
    scene.start().await;
    scene.joined().await;
    each(&scene.source, &["UPDATE a SET v = 'y'"]).await;
    scene.check_existing().await;
    let (code, out, err) = asked(&scene.config, &["undo", "--since", "1h"]);
    let part = "the existing rows of public.a were recorded at";
    assert!(
        code == 64 && err.contains(part) && out.is_empty(),
        "{code} {err}{out}"
    );
    each(
        &scene.target,
        &["INSERT INTO a_cdc (change_type, change_timestamp, commit_lsn, tx_seq, xid, id, v) VALUES ('REPAIR', clock_timestamp(), '0/0', 0, 0, 2, 'z')"],
    )
    .await;
    let time = "SELECT (min(change_timestamp) + interval '1 microsecond')::text FROM a_cdc";
    let time: String = value(&scene.target, time).await;
    let (code, out, err) = asked(&scene.config, &["undo", "--since", &time]);
    assert!(
        code == 64 && err.contains("was repaired") && out.is_empty(),
        "{code} {err}{out}"
    );
    scene.stop().await;
}

#[tokio::test]
async fn a_row_whose_parent_is_gone_is_left_out() {
    let ddl = "CREATE TABLE a (id integer PRIMARY KEY); CREATE TABLE b (id integer PRIMARY KEY, a integer REFERENCES a)";
    let mut scene = Scene::new(ddl, &["public.b", "public.a"]).await;
    each(&scene.source, &["INSERT INTO a VALUES (1), (2); INSERT INTO b VALUES (1, 1), (2, 2), (3, 1), (4, 2), (5, NULL)"]).await;
    let xid = transaction(
        &scene.source,
        "DELETE FROM b WHERE id IN (1, 2, 5); UPDATE b SET a = NULL",
    )
    .await;
    each(&scene.source, &["DELETE FROM a WHERE id = 1"]).await;
    scene.check().await;
    // As pg_current_xact_id() gives it after four thousand million transactions.
    let epoch = (xid.parse::<u64>().unwrap() + (1 << 32)).to_string();
    let said = run(&scene.source, &script(&scene, &["undo", "--xid", &epoch])).await;
    assert_eq!(
        said,
        [
            "public.b INSERT 3 2 1",
            "public.b UPDATE 2 1 1",
            "public.b INSERT id=1",
            "public.b UPDATE id=3"
        ]
    );
    let is: String = value(
        &scene.source,
        "SELECT string_agg(b::text, ' ' ORDER BY id) FROM b",
    )
    .await;
    assert_eq!(is, "(2,2) (3,) (4,2) (5,)");
    scene.check().await;
    scene.stop().await;
}
