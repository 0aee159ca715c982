//! Does each replica identity give what it can, and is everything else NULL and named?

use crate::support::scene::Scene;
use crate::support::{each, texts};

async fn lines(scene: &Scene, history: &str, expression: &str) -> Vec<String> {
    let query = format!("SELECT {expression} FROM {history} ORDER BY cdc_id");
    texts(&scene.target, &query)
        .await
        .into_iter()
        .flatten()
        .collect()
}

const HISTORY: &str = "
    CREATE TABLE staff_cdc (cdc_id bigint GENERATED ALWAYS AS IDENTITY, change_type text, id integer, name text,
        salary numeric, old_id integer, old_name text, old_salary numeric, change_timestamp timestamptz,
        commit_lsn pg_lsn, tx_seq integer, xid xid, changed_columns text[], unavailable_columns text[],
        context jsonb);";

const CHANGES: [&str; 6] = [
    "INSERT INTO staff VALUES (1, 'canary', 1), (2, NULL, NULL)",
    "UPDATE staff SET salary = salary + 1",
    "UPDATE staff SET name = 'b', salary = 7 WHERE id = 2",
    "UPDATE staff SET id = 3 WHERE id = 1",
    "DELETE FROM staff WHERE id = 2",
    "TRUNCATE staff",
];

const SUMMARY: &str =
    "format('%s %s,%s,%s from %s,%s,%s changed %s missing %s', change_type, id, name, salary,
    old_id, old_name, old_salary, changed_columns, unavailable_columns)";

#[tokio::test]
async fn full_identity_gives_every_old_value_and_what_changed() {
    let ddl = format!(
        "CREATE TABLE staff (id integer PRIMARY KEY, name text, salary numeric);
         ALTER TABLE staff REPLICA IDENTITY FULL; {HISTORY}"
    );
    let scene = Scene::new(&ddl, &["public.staff"]).await;
    each(&scene.source, &CHANGES).await;
    scene.check().await;
    assert_eq!(
        lines(&scene, "staff_cdc", SUMMARY).await,
        [
            "INSERT 1,canary,1 from ,, changed  missing ",
            "INSERT 2,, from ,, changed  missing ",
            "UPDATE 1,canary,2 from 1,canary,1 changed {salary} missing ",
            "UPDATE 2,, from 2,, changed {} missing ",
            "UPDATE 2,b,7 from 2,, changed {name,salary} missing ",
            "UPDATE 3,canary,2 from 1,canary,2 changed {id} missing ",
            "DELETE 2,b,7 from 2,b,7 changed  missing ",
            "TRUNCATE ,, from ,, changed  missing ",
        ]
    );
    scene.end().await;
}

#[tokio::test]
async fn default_identity_gives_the_key_and_names_the_rest() {
    let ddl = format!(
        "CREATE TABLE staff (id integer PRIMARY KEY, name text, salary numeric); {HISTORY}"
    );
    let scene = Scene::new(&ddl, &["public.staff"]).await;
    each(&scene.source, &CHANGES).await;
    scene.check().await;
    assert_eq!(
        lines(&scene, "staff_cdc", SUMMARY).await,
        [
            "INSERT 1,canary,1 from ,, changed  missing ",
            "INSERT 2,, from ,, changed  missing ",
            "UPDATE 1,canary,2 from 1,, changed  missing {old_name,old_salary}",
            "UPDATE 2,, from 2,, changed  missing {old_name,old_salary}",
            "UPDATE 2,b,7 from 2,, changed  missing {old_name,old_salary}",
            "UPDATE 3,canary,2 from 1,, changed  missing {old_name,old_salary}",
            "DELETE 2,, from 2,, changed  missing {name,salary,old_name,old_salary}",
            "TRUNCATE ,, from ,, changed  missing ",
        ]
    );
    scene.end().await;
}

#[tokio::test]
async fn full_identity_needs_no_primary_key() {
    let ddl = "CREATE TABLE log (at integer, line text); ALTER TABLE log REPLICA IDENTITY FULL;
        CREATE TABLE bare (at integer, line text); ALTER TABLE bare REPLICA IDENTITY FULL;
        CREATE TABLE bare_cdc (cdc_id serial, change_type text, at integer, line text, change_timestamp timestamptz)";
    let scene = Scene::new(ddl, &["public.log", "public.bare"]).await;
    for table in ["log", "bare"] {
        each(
            &scene.source,
            &[
                &format!("INSERT INTO {table} VALUES (1, 'canary twice'), (1, 'canary twice'), (NULL, NULL)"),
                &format!("DELETE FROM {table} WHERE at IS NULL"),
            ],
        )
        .await;
    }
    scene.check().await;
    // Without a primary key the whole row is the key: where the history has no old_ columns an UPDATE
    // is the end of one row and the beginning of another.
    each(
        &scene.source,
        &[
            "UPDATE log SET line = 'once' WHERE ctid = (SELECT min(ctid) FROM log)",
            "UPDATE bare SET line = 'once' WHERE ctid = (SELECT min(ctid) FROM bare)",
            "UPDATE bare SET line = line",
        ],
    )
    .await;
    crate::support::wait_for_value(
        &scene.target,
        "SELECT count(*) FROM bare_cdc",
        3 + 1 + 2 + 2_i64,
        crate::support::BOUND,
    )
    .await;
    let last = lines(
        &scene,
        "log_cdc",
        "format('%s %s,%s from %s,%s', change_type, at, line, old_at, old_line)",
    )
    .await;
    assert_eq!(last.last().unwrap(), "UPDATE 1,once from 1,canary twice");
    let last = lines(
        &scene,
        "bare_cdc",
        "format('%s %s,%s', change_type, at, line)",
    )
    .await;
    assert_eq!(
        last[4..],
        [
            "DELETE 1,canary twice",
            "INSERT 1,once",
            "UPDATE 1,canary twice",
            "UPDATE 1,once"
        ]
    );
    let mut scene = scene;
    scene.stop().await;
}

#[tokio::test]
async fn identity_by_index_is_the_key_of_the_history() {
    let ddl = "CREATE TABLE staff (id integer PRIMARY KEY, code text NOT NULL, site integer NOT NULL, note text);
        CREATE UNIQUE INDEX staff_code ON staff (code, site);
        ALTER TABLE staff REPLICA IDENTITY USING INDEX staff_code";
    let scene = Scene::new(ddl, &["public.staff"]).await;
    each(
        &scene.source,
        &[
            "INSERT INTO staff VALUES (1, 'x', 1, 'n'), (2, 'y', 1, 'm')",
            "UPDATE staff SET id = 5 WHERE code = 'x'",
            "UPDATE staff SET site = 2 WHERE code = 'x'",
            "DELETE FROM staff WHERE id = 2",
        ],
    )
    .await;
    scene.check().await;
    scene.check_fold("public.staff", &["code", "site"]).await;
    assert_eq!(
        lines(
            &scene,
            "staff_cdc",
            "format('%s %s %s%s from %s%s missing %s', change_type, id, code, site, old_code, old_site,
                 unavailable_columns)"
        )
        .await[2..],
        [
            "UPDATE 5 x1 from x1 missing ",
            "UPDATE 5 x2 from x1 missing ",
            "DELETE  y1 from y1 missing {id,note}",
        ]
    );
    scene.end().await;
}

/// Text that no compression makes small and that its table keeps out of line.
const BIG: &str = "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 400) n)";

#[tokio::test]
async fn an_unchanged_value_out_of_line_is_null_and_named() {
    let ddl = "CREATE TABLE paper (id integer PRIMARY KEY, title text, body text, data bytea);
        ALTER TABLE paper ALTER body SET STORAGE EXTERNAL, ALTER data SET STORAGE EXTERNAL";
    let scene = Scene::new(ddl, &["public.paper"]).await;
    each(
        &scene.source,
        &[
            &format!("INSERT INTO paper VALUES (1, 't', {BIG}, convert_to({BIG}, 'UTF8')), (2, 's', 'small', NULL)"),
            "UPDATE paper SET title = 'other'",
            "UPDATE paper SET body = body || '.' WHERE id = 1",
            "UPDATE paper SET body = NULL WHERE id = 1",
            "UPDATE paper SET id = 3 WHERE id = 1",
        ],
    )
    .await;
    let summary = scene.check().await;
    assert_eq!(
        summary.unavailable, 5,
        "values that the oracle knows and the WAL had not"
    );
    assert_eq!(
        lines(
            &scene,
            "paper_cdc",
            "format('%s %s %s %s missing %s', change_type, id, length(body), length(data), unavailable_columns)"
        )
        .await,
        [
            "INSERT 1 12800 12800 missing ",
            "INSERT 2 5  missing ",
            "UPDATE 1   missing {body,data}",
            "UPDATE 2 5  missing ",
            "UPDATE 1 12801  missing {data}",
            "UPDATE 1   missing {data}",
            "UPDATE 3   missing {data}",
        ]
    );
    scene.check_fold("public.paper", &["id"]).await;
    scene.end().await;
}

#[tokio::test]
async fn full_identity_fills_an_unchanged_value_from_the_old_row() {
    let ddl = "CREATE TABLE paper (id integer PRIMARY KEY, title text, body text);
        ALTER TABLE paper ALTER body SET STORAGE EXTERNAL; ALTER TABLE paper REPLICA IDENTITY FULL;
        CREATE TABLE paper_cdc (cdc_id serial, change_type text, id integer, title text, body text, old_body text,
            change_timestamp timestamptz, changed_columns text[], unavailable_columns text[])";
    let scene = Scene::new(ddl, &["public.paper"]).await;
    each(
        &scene.source,
        &[
            &format!("INSERT INTO paper VALUES (1, 't', {BIG})"),
            "UPDATE paper SET title = 'other'",
            // The same value, written again: sent, and no change.
            "UPDATE paper SET body = substr(body, 1) || ''",
            "UPDATE paper SET id = 2",
            "DELETE FROM paper",
        ],
    )
    .await;
    assert_eq!(scene.check().await.unavailable, 0);
    assert_eq!(
        lines(
            &scene,
            "paper_cdc",
            "format('%s %s %s %s changed %s missing %s', change_type, id, length(body), length(old_body),
                 changed_columns, unavailable_columns)"
        )
        .await,
        [
            "INSERT 1 12800  changed  missing ",
            "UPDATE 1 12800 12800 changed {title} missing ",
            "UPDATE 1 12800 12800 changed {} missing ",
            // No old_id here: the change of the key is two rows.
            "DELETE 1 12800 12800 changed  missing ",
            "INSERT 2 12800  changed  missing ",
            "DELETE 2 12800 12800 changed  missing ",
        ]
    );
    scene.end().await;
}

#[tokio::test]
async fn a_key_that_is_stored_out_of_line_is_never_missing() {
    let columns = "(name text PRIMARY KEY, n integer, filler text)";
    let ddl = format!(
        "CREATE TABLE created {columns}; CREATE TABLE plain {columns};
         ALTER TABLE created ALTER name SET STORAGE EXTERNAL; ALTER TABLE plain ALTER name SET STORAGE EXTERNAL;
         CREATE TABLE plain_cdc (cdc_id serial, change_type text, name text, n integer, filler text,
             change_timestamp timestamptz, unavailable_columns text[])"
    );
    let scene = Scene::new(&ddl, &["public.created", "public.plain"]).await;
    for table in ["created", "plain"] {
        each(
            &scene.source,
            &[
                &format!("INSERT INTO {table} VALUES (substr({BIG}, 1, 2600), 1, 'f')"),
                &format!("UPDATE {table} SET n = 2"),
                &format!("UPDATE {table} SET name = 'short'"),
                &format!("UPDATE {table} SET name = substr({BIG}, 2, 2600)"),
                &format!("DELETE FROM {table}"),
            ],
        )
        .await;
    }
    assert_eq!(scene.check().await.unavailable, 0);
    let toasted: i64 = crate::support::value(
        &scene.source,
        "SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE oid = 'created'::regclass",
    )
    .await;
    assert!(
        toasted > 0,
        "the key was not out of line: nothing was asked"
    );
    assert_eq!(
        lines(
            &scene,
            "created_cdc",
            "format('%s %s from %s', change_type, length(name), length(old_name))"
        )
        .await,
        [
            "INSERT 2600 from ",
            "UPDATE 2600 from 2600",
            "UPDATE 5 from 2600",
            "UPDATE 2600 from 5",
            "DELETE 2600 from 2600",
        ]
    );
    assert_eq!(
        lines(
            &scene,
            "plain_cdc",
            "format('%s %s %s', change_type, length(name), n)"
        )
        .await,
        [
            "INSERT 2600 1",
            "UPDATE 2600 2",
            "DELETE 2600 ",
            "INSERT 5 2",
            "DELETE 5 ",
            "INSERT 2600 2",
            "DELETE 2600 ",
        ]
    );
    scene.check_fold("public.created", &["name"]).await;
    scene.check_fold("public.plain", &["name"]).await;
    scene.end().await;
}
