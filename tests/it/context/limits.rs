//! What is not a context.

use super::{SETTINGS, TABLES, with_context};
use crate::support::daemon::Daemon;
use crate::support::scene::{Scene, complaints, config, streaming};
use crate::support::{BOUND, connect, each, server, value, wait_for_value};

const SECRET: &str = "SECRET_5e1f";

#[tokio::test]
async fn a_message_that_is_no_context_is_a_warning_without_its_text_and_never_a_stop() {
    let mut scene = Scene::with(|b| b, TABLES, &["public.t"], SETTINGS).await;
    let say =
        |what: &str| format!("SELECT pg_logical_emit_message(true, 'waltrail.context', {what})");
    let good = say("'{\"a\": 1}'");
    let wrong = [
        format!("'{SECRET}'"),
        format!("'[\"{SECRET}\"]'"),
        format!("'\"{SECRET}\"'"),
        "''".to_owned(),
        "'{\"a\": '".to_owned(),
        format!("'{{\"a\": \"{SECRET}\\u0000\"}}'"),
        format!("'{{\"{SECRET}\": 1e400}}'"),
        "repeat('{\"a\":', 5000)".to_owned(),
        "'{\"a\":' || repeat('[', 5000) || repeat(']', 5000) || '}'".to_owned(),
        format!("'{{\"{SECRET}\": \"' || repeat('x', 70000) || '\"}}'"),
        "decode('7b2261223a22ff227d', 'hex')".to_owned(),
    ];
    for (id, wrong) in (1..).zip(&wrong) {
        let wrong = say(wrong);
        let insert = format!("BEGIN; {good}; {wrong}; INSERT INTO t VALUES ({id}, 'x'); COMMIT");
        each(&scene.source, &[&insert]).await;
    }
    let half = say("json_build_object('b', repeat('x', 40000))::text");
    let whole = say("json_build_object('c', repeat('x', 40000))::text");
    let insert = format!("BEGIN; {good}; {half}; {whole}; INSERT INTO t VALUES (100, 'x'); COMMIT");
    let other = "BEGIN; SELECT pg_logical_emit_message(true, 'other', decode('ff00', 'hex')); INSERT INTO t VALUES (101, 'x'); COMMIT";
    each(&scene.source, &[&insert, other]).await;
    scene.check().await;
    let kept = "SELECT count(*) FILTER (WHERE context = '{\"a\": 1}') FROM t_cdc WHERE id < 100";
    assert_eq!(value::<i64>(&scene.target, kept).await, wrong.len() as i64);
    let keys = "SELECT string_agg(key, ' ' ORDER BY key) FROM t_cdc, jsonb_object_keys(context) key WHERE id = 100";
    assert_eq!(value::<String>(&scene.target, keys).await, "a b");
    assert!(
        value::<bool>(
            &scene.target,
            "SELECT context IS NULL FROM t_cdc WHERE id = 101"
        )
        .await
    );
    let output = scene.stop_complaining().await;
    assert!(!output.contains(SECRET), "{output}");
    // Some in ten seconds are one line.
    let lines = complaints(&output);
    assert!((1..=3).contains(&lines.len()), "{output}");
    for line in lines {
        assert!(
            line.contains("a message waltrail.context is left out"),
            "{line}"
        );
    }
}

/// A history of the user's own, as text and in binary.
#[tokio::test]
async fn both_rows_of_a_key_that_changes_carry_the_context_whatever_the_type_of_its_column() {
    for (kind, form) in [
        ("json", ""),
        ("jsonb", ""),
        ("text", ""),
        ("jsonb", ", p point"),
    ] {
        let ddl = format!(
            "CREATE TABLE t (id int PRIMARY KEY, who text{form});
             CREATE TABLE t_cdc (cdc_id serial, change_type text, change_timestamp timestamptz, id int, who text{}, context {kind})",
            form.replace("point", "text")
        );
        let mut scene = Scene::with(|b| b, &ddl, &["public.t"], "").await;
        each(
            &scene.source,
            &[
                "BEGIN; SELECT pg_logical_emit_message(true, 'waltrail.context', '{\"a\":  \"\\\\ é\\n\"}');
                 INSERT INTO t VALUES (1, 'x'); UPDATE t SET id = 2; COMMIT",
                "DELETE FROM t",
            ],
        )
        .await;
        scene.check().await;
        let said = "SELECT string_agg(change_type || coalesce(context::jsonb ->> 'a', ' -'), ' ' ORDER BY cdc_id) FROM t_cdc";
        assert_eq!(
            value::<String>(&scene.target, said).await,
            "INSERT\\ é\n DELETE\\ é\n INSERT\\ é\n DELETE -",
            "{kind}"
        );
        scene.stop().await;
    }
}

/// JSON is UTF-8, and text of another encoding cannot always be converted: a statement would fail.
#[tokio::test]
async fn in_another_encoding_a_value_outside_ascii_is_left_out_and_the_others_are_said() {
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let (cluster, client) = server().await;
        let create = format!(
            "CREATE DATABASE other TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
        );
        each(&client, &[&create]).await;
        let dsn = cluster.dsn_socket("other");
        let client = connect(&dsn).await;
        each(&client, &["CREATE TABLE t (id int PRIMARY KEY, who text)"]).await;
        let config = config(&dsn, None, &["public.t"], SETTINGS);
        with_context(&config).await;
        let mut daemon = Daemon::spawn(&config);
        streaming(&mut daemon).await;
        each(
            &client,
            &[
                "BEGIN; SET LOCAL app.tenant = 'x'; SET LOCAL app.\"user\" = 'Jos\u{e9}'; INSERT INTO t VALUES (1); COMMIT",
                "BEGIN; SET LOCAL app.tenant = 'x'; SET LOCAL app.\"user\" = 'Jose'; INSERT INTO t VALUES (2);
                 SELECT waltrail.set_context(jsonb_build_object('more', 'Jos\u{e9}')); INSERT INTO t VALUES (3); COMMIT",
            ],
        )
        .await;
        let said = "SELECT coalesce(string_agg(concat_ws(' ', id, context ->> 'App.Tenant', context ->> 'app.user', context ->> 'more'), ', ' ORDER BY cdc_id), '') FROM t_cdc";
        wait_for_value(&client, said, "1 x, 2 x Jose, 3 x Jose".to_owned(), BOUND).await;
        daemon.sigterm();
        let (status, output) = daemon.wait(BOUND).await;
        assert_eq!(status.code(), Some(0), "{output}");
        assert_eq!(complaints(&output), Vec::<&str>::new());
    }
}
