//! Who made a change: does each row say it, with an application that knows nothing of it?

mod limits;
mod names;
mod set_up;

use crate::support::daemon::Daemon;
use crate::support::scene::{Scene, complaints};
use crate::support::{BOUND, each, texts, value};

/// `who` is what the application says of itself when it writes the row.
const TABLES: &str = "
    CREATE TABLE t (id int PRIMARY KEY, who text);
    CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES t ON DELETE CASCADE, who text);
    CREATE TABLE p (id int PRIMARY KEY, who text) PARTITION BY RANGE (id);
    CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);
    CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200) PARTITION BY RANGE (id);
    CREATE TABLE p2a PARTITION OF p2 DEFAULT;
    CREATE TABLE other (t text);
    CREATE FUNCTION as_robot(int) RETURNS void LANGUAGE sql SET app.\"user\" = 'robot'
        AS 'INSERT INTO t VALUES ($1, ''robot'')';
    CREATE FUNCTION copy_in() RETURNS void LANGUAGE plpgsql SECURITY DEFINER
        AS $$ BEGIN COPY t FROM PROGRAM 'echo 50,copy; echo 51,copy' (FORMAT csv); END $$;";

const FOLLOWED: [&str; 3] = ["public.t", "public.child", "public.p"];
const SETTINGS: &str = "[context]\nsettings = ['app.user', 'App.Tenant', 'role']\n";

/// A role that may write the tables and no more, and to which nothing of the server's own is granted beside that.
const APPLICATION: &[&str] = &[
    "CREATE ROLE app LOGIN; CREATE ROLE clerk; GRANT clerk TO app",
    "GRANT ALL ON t, child, p, p1, p2, p2a TO app, clerk; GRANT ALL ON ALL TABLES IN SCHEMA oracle TO app",
    "DO $$ DECLARE f regprocedure; BEGIN FOR f IN SELECT oid FROM pg_proc WHERE proname IN
        ('pg_logical_emit_message', 'to_json', 'concat', 'inet_client_addr', 'octet_length', 'jsonb_typeof')
     LOOP EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f); END LOOP; END $$",
];

/// Transactions as frameworks write them. `user` is a reserved word.
const WORK: &[&str] = &[
    "BEGIN; SET LOCAL app.\"user\" = '42'; INSERT INTO t VALUES (1, '42'), (2, '42'); COMMIT",
    // The next user of a pooled connection says nothing.
    "INSERT INTO t VALUES (3, NULL)",
    "BEGIN; INSERT INTO t VALUES (4, NULL); SET LOCAL app.\"user\" = 'é \"quoted\" \\ and \t more';
     UPDATE t SET who = 'é \"quoted\" \\ and \t more' WHERE id = 4; COMMIT",
    "BEGIN; SET LOCAL app.\"user\" = 'a'; INSERT INTO t VALUES (5, 'a'); SET LOCAL app.\"user\" = 'b'; SET LOCAL app.tenant = 'x';
     INSERT INTO t VALUES (6, 'b'); SET LOCAL app.\"user\" = ''; INSERT INTO t VALUES (7, NULL);
     SET LOCAL app.\"user\" = 'a'; INSERT INTO t VALUES (8, 'a'); COMMIT",
    "BEGIN; SET LOCAL app.\"user\" = 's1'; INSERT INTO t VALUES (10, 's1');
       SAVEPOINT a; SET LOCAL app.\"user\" = 's2'; INSERT INTO t VALUES (11, 's2'); ROLLBACK TO a; INSERT INTO t VALUES (12, 's1');
       SAVEPOINT b; SET LOCAL app.\"user\" = 's3'; INSERT INTO t VALUES (13, 's3'); RELEASE b; INSERT INTO t VALUES (14, 's3');
       ROLLBACK TO a; INSERT INTO t VALUES (15, 's1'); COMMIT",
    "BEGIN; SET LOCAL app.\"user\" = 'f'; SAVEPOINT a; INSERT INTO t VALUES (16, 'f'); ROLLBACK TO a; INSERT INTO t VALUES (17, 'f');
     COMMIT",
    "BEGIN; SET LOCAL app.\"user\" = 'h'; INSERT INTO t VALUES (20, 'h'); SELECT as_robot(21); INSERT INTO t VALUES (22, 'h'); COMMIT",
    "DO $$ BEGIN PERFORM set_config('app.user', 'd1', true); INSERT INTO t VALUES (23, 'd1');
       PERFORM set_config('app.user', 'd2', true); INSERT INTO t VALUES (24, 'd2');
       BEGIN PERFORM set_config('app.user', 'e', true); INSERT INTO t VALUES (25, 'e'); RAISE 'undone';
       EXCEPTION WHEN others THEN INSERT INTO t VALUES (26, 'd2'); END; END $$",
    // Of a session, and of a role that it has taken.
    "SET app.\"user\" = 'session'; SET ROLE clerk",
    "INSERT INTO child VALUES (1, 1, 'session'), (2, 2, 'session')",
    "RESET app.\"user\"; RESET ROLE",
    "BEGIN; SET LOCAL app.\"user\" = 'p'; INSERT INTO p2a VALUES (150, 'p'); INSERT INTO p1 VALUES (1, 'p'); COMMIT",
    "BEGIN; SET LOCAL app.\"user\" = 'q'; INSERT INTO p VALUES (2, 'q'), (151, 'q'); UPDATE p2 SET who = 'q'; COMMIT",
    // More than the trigger says, and another word than its.
    "BEGIN; SET LOCAL app.\"user\" = 'k'; SELECT waltrail.set_context('{\"ticket\": 7}'); INSERT INTO t VALUES (30, 'k');
     SELECT waltrail.set_context('{\"app.user\": \"other\"}'); INSERT INTO t VALUES (31, 'other'); COMMIT",
    "BEGIN; SELECT waltrail.set_context('{\"ticket\": 8}'); ROLLBACK",
    "BEGIN; SET LOCAL app.\"user\" = 'copy'; SELECT copy_in(); COMMIT",
    "BEGIN; SET LOCAL app.\"user\" = 'empty'; UPDATE t SET who = 'no row' WHERE id = 999; COMMIT",
    "BEGIN; SET LOCAL app.\"user\" = 'two'; PREPARE TRANSACTION 'p'",
    "COMMIT PREPARED 'p'",
    "BEGIN; SET LOCAL app.\"user\" = 'prepared'; INSERT INTO t VALUES (40, 'prepared'); PREPARE TRANSACTION 'p'",
    "INSERT INTO t VALUES (41, NULL)",
    "COMMIT PREPARED 'p'",
    "BEGIN; SET LOCAL app.\"user\" = 'cascade'; DELETE FROM t WHERE id = 1; COMMIT",
    "BEGIN; SET LOCAL app.\"user\" = 'truncate'; TRUNCATE t, child; TRUNCATE p; COMMIT",
];

async fn setup(config: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut setup = Daemon::spawn_with(config, &[&["setup"], arguments].concat(), &[]);
    let (status, output) = setup.wait(BOUND).await;
    (status.code(), output)
}

async fn with_context(config: &str) {
    let (code, output) = setup(config, &["--context"]).await;
    assert_eq!(code, Some(0), "{output}");
}

/// A daemon that streams, and the triggers.
async fn scene() -> Scene {
    let server = |builder: throwaway::Builder| builder.setting("max_prepared_transactions", "4");
    let scene = Scene::with(server, TABLES, &FOLLOWED, SETTINGS).await;
    each(&scene.source, APPLICATION).await;
    with_context(&scene.config).await;
    scene
}

/// Rows whose context is not what they say themselves.
const WRONG: &str = "
    SELECT format('%s %s: %s, and %s', change_type, id, who, context) FROM (
        SELECT change_type, id, who, context FROM t_cdc UNION ALL SELECT change_type, id, who, context FROM p_cdc
        UNION ALL SELECT change_type, id, who, context FROM child_cdc) h
     WHERE change_type IN ('INSERT', 'UPDATE') AND who IS DISTINCT FROM context ->> 'app.user'
        OR context ->> 'session_user' IS DISTINCT FROM 'app' OR context ->> 'application_name' IS DISTINCT FROM 'the app'";

/// The transactions of [`WORK`], by an application that knows nothing of waltrail.
async fn work(scene: &Scene) {
    let app = scene.server.dsn_tcp("postgres");
    let app = app.replace("user=postgres", "user=app application_name='the app'");
    let app = crate::support::connect(&app).await;
    each(&app, WORK).await;
}

/// What the histories hold of [`work`].
async fn check(scene: &Scene) {
    scene.check().await;
    let target = &scene.target;
    assert_eq!(texts(target, WRONG).await, []);
    let said = |query: &'static str| value::<Option<String>>(target, query);
    let tenant = "SELECT string_agg(id::text || (context ->> 'App.Tenant'), ' ' ORDER BY cdc_id) FROM t_cdc WHERE context ->> 'App.Tenant' IS NOT NULL";
    assert_eq!(said(tenant).await.as_deref(), Some("6x 7x 8x"));
    let role = "SELECT string_agg(DISTINCT context ->> 'role', ' ') FROM child_cdc WHERE change_type = 'INSERT'";
    assert_eq!(said(role).await.as_deref(), Some("clerk"));
    let address = "SELECT string_agg(DISTINCT context ->> 'client_addr', ' ') FROM t_cdc";
    assert_eq!(said(address).await.as_deref(), Some("127.0.0.1"));
    let ticket = "SELECT string_agg(id || ' ' || (context ->> 'ticket'), ', ' ORDER BY cdc_id) FROM t_cdc WHERE context ? 'ticket'";
    assert_eq!(said(ticket).await.as_deref(), Some("30 7, 31 7"));
    let cascade = "SELECT string_agg(context ->> 'app.user', ' ') FROM child_cdc WHERE change_type = 'DELETE'";
    assert_eq!(said(cascade).await.as_deref(), Some("cascade"));
    let truncate = "SELECT string_agg(context ->> 'app.user', ' ') FROM (SELECT * FROM (SELECT context, change_type FROM t_cdc UNION ALL
        SELECT context, change_type FROM child_cdc UNION ALL SELECT context, change_type FROM p_cdc) h WHERE change_type = 'TRUNCATE') h";
    assert_eq!(
        said(truncate).await.as_deref(),
        Some("truncate truncate truncate")
    );
}

#[tokio::test]
async fn an_unchanged_application_is_named_on_its_rows_in_the_stream_and_in_a_backlog() {
    let mut scene = scene().await;
    work(&scene).await;
    check(&scene).await;
    scene.stop().await;

    each(
        &scene.target,
        &["DELETE FROM t_cdc; DELETE FROM p_cdc; DELETE FROM child_cdc"],
    )
    .await;
    scene.oracle.forget(&scene.source).await;
    work(&scene).await;
    each(
        &scene.source,
        &["INSERT INTO other SELECT repeat(md5(n::text), 60) FROM generate_series(1, 10000) n"],
    )
    .await;
    scene.start().await;
    check(&scene).await;
    let output = scene.stop_complaining().await;
    assert!(output.contains("\"catching up\""), "{output}");
    assert_eq!(complaints(&output), Vec::<&str>::new());
}

/// What existed before, what another role of replication wrote, and a transaction without a context.
#[tokio::test]
async fn a_change_of_which_nothing_was_said_has_no_context() {
    let mut scene = Scene::existing(|b| b, TABLES, &["public.t(id)"], SETTINGS).await;
    each(&scene.source, &["INSERT INTO t VALUES (1, NULL)"]).await;
    scene.start().await;
    scene.joined().await;
    each(&scene.source, &["INSERT INTO t VALUES (2, NULL)"]).await;
    with_context(&scene.config).await;
    each(
        &scene.source,
        &[
            "BEGIN; SET LOCAL app.\"user\" = 'x'; SET LOCAL session_replication_role = replica; INSERT INTO t VALUES (3, NULL); COMMIT",
            "SELECT pg_logical_emit_message(false, 'waltrail.context', '{\"app.user\": \"outside\"}')",
            "BEGIN; SET LOCAL session_replication_role = replica;
             SELECT pg_logical_emit_message(true, 'other', '{\"app.user\": \"other\"}');
             SELECT pg_logical_emit_message(false, 'waltrail.context', '{\"app.user\": \"not of it\"}');
             INSERT INTO t VALUES (4, NULL); COMMIT",
            "SELECT pg_logical_emit_message(true, 'waltrail.context', '{\"app.user\": \"of no change\"}')",
            "BEGIN; SET LOCAL session_replication_role = replica; INSERT INTO t VALUES (5, NULL);
             SELECT pg_logical_emit_message(true, 'waltrail.context', '{\"app.user\": \"late\"}');
             INSERT INTO t VALUES (6, 'late'); COMMIT",
        ],
    )
    .await;
    scene.check_existing().await;
    let said = "SELECT string_agg(id || ' ' || coalesce(context::text, '-'), ', ' ORDER BY cdc_id) FROM t_cdc";
    assert_eq!(
        value::<String>(&scene.target, said).await,
        r#"1 -, 2 -, 3 -, 4 -, 5 -, 6 {"app.user": "late"}"#
    );
    let output = scene.stop_complaining().await;
    assert_eq!(complaints(&output), Vec::<&str>::new());
}
