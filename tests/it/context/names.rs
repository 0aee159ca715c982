//! The name `context` is a common one: a history column has one meaning, whatever the source gets or loses.

use super::{SETTINGS, setup, with_context};
use crate::support::scene::Scene;
use crate::support::{BOUND, each, value, wait_for_value};

const SAY: &str =
    "SELECT pg_logical_emit_message(true, 'waltrail.context', '{\"app.user\": \"7\"}')";

/// One change in a transaction that says who it is; and waits until it is recorded.
async fn write(scene: &Scene, history: &str, statement: &str) {
    let rows = format!("SELECT count(*) FROM {history}");
    let before: i64 = value(&scene.target, &rows).await;
    let statement = format!("BEGIN; {SAY}; {statement}; COMMIT");
    each(&scene.source, &[&statement]).await;
    wait_for_value(&scene.target, &rows, before + 1, BOUND).await;
}

#[tokio::test]
async fn a_column_of_the_source_that_is_called_context_wins_unless_a_prefix_is_set() {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, context text);
        CREATE TABLE j (id int PRIMARY KEY, context jsonb);
        CREATE TABLE j_cdc (cdc_id serial, change_type text, id int, context jsonb)";
    let mut scene = Scene::with(|b| b, ddl, &["public.t", "public.j"], SETTINGS).await;
    with_context(&scene.config).await;
    write(&scene, "t_cdc", "INSERT INTO t VALUES (1, 'its own')").await;
    write(
        &scene,
        "j_cdc",
        "INSERT INTO j VALUES (1, '{\"its\": \"own\"}')",
    )
    .await;
    let target = &scene.target;
    assert_eq!(
        value::<String>(target, "SELECT context FROM t_cdc").await,
        "its own"
    );
    assert_eq!(
        value::<String>(target, "SELECT context ->> 'its' FROM j_cdc").await,
        "own"
    );

    // It is gone, and its history column keeps its meaning.
    each(
        &scene.source,
        &["ALTER TABLE t DROP context; ALTER TABLE j DROP context"],
    )
    .await;
    scene.stop().await;
    scene.start().await;
    write(&scene, "t_cdc", "INSERT INTO t VALUES (2)").await;
    write(&scene, "j_cdc", "INSERT INTO j VALUES (2)").await;
    for history in ["t_cdc", "j_cdc"] {
        let none = format!("SELECT context IS NULL FROM {history} WHERE id = 2");
        assert!(value::<bool>(&scene.target, &none).await);
    }
    scene.stop().await;

    let ddl = "CREATE TABLE t (id int PRIMARY KEY, context text)";
    let mut scene = Scene::existing(|b| b, ddl, &["public.t(id)"], SETTINGS).await;
    let entry = "source = 'public.t'\n";
    let prefixed = format!("{entry}prefix = '_'\n");
    scene.config = scene.config.replace(entry, &prefixed);
    scene.start().await;
    scene.joined().await;
    write(&scene, "t_cdc", "INSERT INTO t VALUES (3, 'its own')").await;
    let both = "SELECT context || ' ' || (_context ->> 'app.user') FROM t_cdc";
    assert_eq!(value::<String>(&scene.target, both).await, "its own 7");
    scene.stop().await;
}

#[tokio::test]
async fn a_column_context_that_comes_to_the_source_later_gets_another_place() {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY)";
    let mut scene = Scene::with(|b| b, ddl, &["public.t"], SETTINGS).await;
    write(&scene, "t_cdc", "INSERT INTO t VALUES (1)").await;
    each(&scene.source, &["ALTER TABLE t ADD context jsonb"]).await;
    write(
        &scene,
        "t_cdc",
        "INSERT INTO t VALUES (2, '{\"its\": \"own\"}')",
    )
    .await;
    scene.stop().await;
    scene.start().await;
    write(
        &scene,
        "t_cdc",
        "INSERT INTO t VALUES (3, '{\"its\": \"own\"}')",
    )
    .await;
    let said = "SELECT string_agg((context ->> 'app.user') || coalesce(context_2 ->> 'its', ''), ' ' ORDER BY cdc_id) FROM t_cdc";
    assert_eq!(value::<String>(&scene.target, said).await, "7 7own 7own");
    let _ = scene.stop_complaining().await;
}

/// Made before there was a context, or by a configuration without one.
#[tokio::test]
async fn a_history_that_waltrail_made_gets_the_column_and_no_other_one() {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY);
        CREATE TABLE u_cdc (cdc_id serial, change_type text, id int)";
    let mut scene = Scene::with(|b| b, ddl, &["public.t", "public.u"], "").await;
    let has = "SELECT string_agg(attrelid::regclass::text, ' ') FROM pg_attribute WHERE attname = 'context' AND attrelid::regclass::text LIKE '_\\_cdc'";
    assert_eq!(value::<Option<String>>(&scene.target, has).await, None);
    let (code, output) = setup(&scene.config, &["--context", "--dry-run"]).await;
    assert_eq!(code, Some(0), "{output}");
    assert!(
        output.contains("ALTER TABLE public.t_cdc ADD COLUMN"),
        "{output}"
    );
    with_context(&scene.config).await;
    assert_eq!(
        value::<Option<String>>(&scene.target, has).await.as_deref(),
        Some("t_cdc")
    );
    // It is asked for from the next start on.
    scene.stop().await;
    scene.start().await;
    write(&scene, "t_cdc", "INSERT INTO t VALUES (1)").await;
    write(&scene, "u_cdc", "INSERT INTO u VALUES (1)").await;
    let said = "SELECT context ->> 'app.user' || ' ' || (context ->> 'session_user') FROM t_cdc";
    assert_eq!(value::<String>(&scene.target, said).await, "7 postgres");
    scene.stop().await;

    // With the key in the configuration, a start is enough.
    each(&scene.target, &["ALTER TABLE t_cdc DROP context"]).await;
    scene.config.push_str(SETTINGS);
    scene.start().await;
    write(&scene, "t_cdc", "INSERT INTO t VALUES (2)").await;
    let said = "SELECT context ->> 'app.user' FROM t_cdc WHERE id = 2";
    assert_eq!(value::<String>(&scene.target, said).await, "7");
    scene.stop().await;
}

/// It has another type, must not be NULL, or the application fills it: then it is not waltrail's.
#[tokio::test]
async fn a_history_column_that_does_not_take_every_context_is_left_to_its_default() {
    for column in [
        "jsonb NOT NULL DEFAULT '{}'",
        "varchar(10) DEFAULT 'x'",
        "int",
    ] {
        let ddl = format!(
            "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE t_cdc (cdc_id serial, change_type text, id int, context {column})"
        );
        let mut scene = Scene::with(|b| b, &ddl, &["public.t"], "").await;
        write(&scene, "t_cdc", "INSERT INTO t VALUES (1)").await;
        let said = "SELECT coalesce(context::text, '-') FROM t_cdc";
        let said: String = value(&scene.target, said).await;
        assert!(["{}", "x", "-"].contains(&said.as_str()), "{said}");
        scene.stop().await;
    }
}
