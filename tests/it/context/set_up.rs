//! `setup --context` and what it leaves.

use std::time::Duration;

use super::{FOLLOWED, SETTINGS, TABLES, setup, with_context};
use crate::support::daemon::{Daemon, ending};
use crate::support::scene::{Scene, config};
use crate::support::{BOUND, connect, each, server, texts, value, wait_until};

const TRIGGERS: &str =
    "SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = 'waltrail_context' ORDER BY 1";
const ALL: [&str; 6] = ["child", "p", "p1", "p2", "p2a", "t"];

async fn triggers(client: &tokio_postgres::Client) -> Vec<String> {
    texts(client, TRIGGERS)
        .await
        .into_iter()
        .flatten()
        .collect()
}

/// What is open to every role, and the functions that do not pin their search path.
const OPEN: &str = "
    SELECT made.what || ': ' || acl.privilege_type FROM (
        SELECT 'schema' AS what, n.oid AS schema, coalesce(n.nspacl, acldefault('n', n.nspowner)) AS acl FROM pg_namespace n
        UNION ALL SELECT c.relname, c.relnamespace, coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\", c.relowner))
                    FROM pg_class c WHERE c.relkind IN ('r', 'v', 'S', 'p')
        UNION ALL SELECT p.proname, p.pronamespace, coalesce(p.proacl, acldefault('f', p.proowner)) FROM pg_proc p
    ) made, aclexplode(made.acl) acl
     WHERE made.schema = 'waltrail'::regnamespace AND acl.grantee = 0
    UNION ALL
    SELECT proname || ': loose' FROM pg_proc WHERE pronamespace = 'waltrail'::regnamespace
       AND NOT coalesce(proconfig @> ARRAY['search_path=\"\"'], false) ORDER BY 1";

#[tokio::test]
async fn what_is_made_is_printed_first_made_once_and_taken_down_again() {
    let (cluster, client) = server().await;
    each(&client, &[TABLES]).await;
    let dsn = cluster.dsn_socket("postgres");
    let config = config(&dsn, None, &FOLLOWED, SETTINGS);
    let (code, printed) = setup(&config, &["--context", "--dry-run"]).await;
    assert_eq!(code, Some(0), "{printed}");
    assert_eq!(triggers(&client).await, [""; 0]);
    with_context(&config).await;
    assert_eq!(triggers(&client).await, ALL);
    let open = ["schema: USAGE", "set_context: EXECUTE"].map(|open| Some(open.to_owned()));
    assert_eq!(texts(&client, OPEN).await, open);
    let (_, printed) = setup(&config, &["--context", "--dry-run"]).await;
    assert_eq!(printed, "-- nothing is missing\n");

    // Other settings, a trigger that was disabled, a partition that is new.
    each(
        &client,
        &[
            "ALTER TABLE t DISABLE TRIGGER waltrail_context",
            "CREATE TABLE p3 PARTITION OF p DEFAULT",
        ],
    )
    .await;
    let other = config.replace("'role'", "'request.jwt.claims'");
    let (_, printed) = setup(&other, &["--context", "--dry-run"]).await;
    for part in ["ENABLE TRIGGER", "ON public.p3", "request.jwt.claims"] {
        assert!(printed.contains(part), "{printed}");
    }
    with_context(&other).await;
    let (_, printed) = setup(&other, &["--context", "--dry-run"]).await;
    assert_eq!(printed, "-- nothing is missing\n");

    let (status, output) = Daemon::spawn_with(&other, &["teardown", "--yes"], &[])
        .wait(BOUND)
        .await;
    assert_eq!(status.code(), Some(0), "{output}");
    assert!(
        output.contains("dropped trigger waltrail_context on public.p2a"),
        "{output}"
    );
    assert_eq!(triggers(&client).await, [""; 0]);
    assert_eq!(texts(&client, OPEN).await, []);
    let kept = "SELECT to_regclass('waltrail.checkpoint') IS NOT NULL AND to_regprocedure('waltrail.say_context()') IS NULL";
    assert!(value::<bool>(&client, kept).await);
    each(&client, &["INSERT INTO t VALUES (1)"]).await;
}

/// The SQL that is printed does the same; with the history elsewhere, the source keeps nothing of it.
#[tokio::test]
async fn the_printed_sql_makes_all_of_it_on_a_source_without_a_history() {
    let (cluster, client) = server().await;
    each(&client, &["CREATE DATABASE history", TABLES]).await;
    let target = cluster.dsn_socket("history");
    let config = config(
        &cluster.dsn_socket("postgres"),
        Some(&target),
        &FOLLOWED,
        SETTINGS,
    );
    let target = connect(&target).await;
    let (code, printed) = setup(&config, &["--context", "--dry-run"]).await;
    assert_eq!(code, Some(0), "{printed}");
    let mut blocks: Vec<String> = Vec::new();
    for line in printed.lines() {
        if line.starts_with("-- source") || line.starts_with("-- target") {
            blocks.push(String::new());
        }
        blocks.last_mut().unwrap().push_str(&format!("{line}\n"));
    }
    for sql in blocks {
        let client = match sql.starts_with("-- target") {
            true => &target,
            false => &client,
        };
        each(client, &[&sql]).await;
    }
    assert_eq!(triggers(&client).await, ALL);
    let (_, printed) = setup(&config, &["--context", "--dry-run"]).await;
    assert_eq!(printed, "-- nothing is missing\n");
    let (status, output) = Daemon::spawn_with(&config, &["teardown", "--yes"], &[])
        .wait(BOUND)
        .await;
    assert_eq!(status.code(), Some(0), "{output}");
    assert!(value::<bool>(&client, "SELECT to_regnamespace('waltrail') IS NULL").await);
}

#[tokio::test]
async fn a_table_that_stays_locked_is_named_and_another_run_goes_on() {
    let scene = Scene::with(|b| b, TABLES, &FOLLOWED, SETTINGS).await;
    let blocker = scene.session().await;
    each(&blocker, &["BEGIN; INSERT INTO p1 VALUES (1)"]).await;
    let writer = scene.session().await;
    let (ended, wrote) = tokio::join!(setup(&scene.config, &["--context"]), async {
        wait_until("the set-up waits for p1", BOUND, async || {
            let waits =
                "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'p1'::regclass AND NOT granted";
            value::<bool>(&scene.source, waits).await.then_some(())
        })
        .await;
        // What comes later waits no longer than the set-up does.
        let began = std::time::Instant::now();
        each(&writer, &["INSERT INTO p1 VALUES (2)"]).await;
        began.elapsed()
    });
    let (code, output) = ended;
    assert_eq!(code, Some(75), "{output}");
    assert!(
        output.contains("public.p1 on the source is locked"),
        "{output}"
    );
    assert!(output.contains("goes on"), "{output}");
    assert!(wrote < Duration::from_secs(10), "{wrote:?}");
    assert!(!triggers(&scene.source).await.contains(&"p1".to_owned()));
    each(&blocker, &["COMMIT"]).await;
    with_context(&scene.config).await;
    assert_eq!(triggers(&scene.source).await, ALL);

    // The same on the way back.
    each(&blocker, &["BEGIN; INSERT INTO t VALUES (1)"]).await;
    let mut scene = scene;
    scene.stop().await;
    let teardown = async || {
        Daemon::spawn_with(&scene.config, &["teardown", "--yes"], &[])
            .wait(BOUND)
            .await
    };
    let (status, output) = teardown().await;
    assert_eq!(status.code(), Some(75), "{output}");
    assert!(
        output.contains("public.t on the source is locked"),
        "{output}"
    );
    each(&blocker, &["COMMIT"]).await;
    let (status, output) = teardown().await;
    assert_eq!(status.code(), Some(0), "{output}");
    assert_eq!(triggers(&scene.source).await, [""; 0]);
}

/// What another role has put in the way is refused, with what to type.
#[tokio::test]
async fn what_is_not_waltrails_is_refused() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            TABLES,
            "CREATE DATABASE history",
"CREATE ROLE mallory LOGIN; GRANT CREATE ON DATABASE postgres TO mallory",
            "CREATE ROLE \"Setup\" LOGIN REPLICATION; GRANT CREATE ON DATABASE postgres, history TO \"Setup\"",
            "CREATE ROLE app; GRANT app TO \"Setup\"; ALTER TABLE t OWNER TO app; GRANT CREATE ON SCHEMA public TO \"Setup\"",
        ],
    )
    .await;
    let dsn = cluster.dsn_socket("postgres");
    let (target, tables) = (cluster.dsn_socket("history"), ["public.t"]);
    let config = config(&dsn, Some(&target), &tables, SETTINGS);
    let mallory = connect(&dsn.replace("user=postgres", "user=mallory")).await;
    each(&mallory, &["CREATE SCHEMA waltrail"]).await;
    let (code, output) = setup(&config, &["--context"]).await;
    assert_eq!(code, Some(78), "{output}");
    assert!(
        output.contains("schema waltrail on the source belongs to role mallory"),
        "{output}"
    );
    each(&client, &["DROP SCHEMA waltrail"]).await;

    let of_extension = config.replace(
        "'role'",
        "'plpgsql.extra_warnings', 'auto_explain.log_timing'",
    );
    each(
        &client,
        &["ALTER DATABASE postgres SET session_preload_libraries = auto_explain"],
    )
    .await;
    let (code, output) = setup(&of_extension, &["--context"]).await;
    assert_eq!(code, Some(78), "{output}");
    assert!(output.contains("a setting of an extension"), "{output}");

    each(
        &client,
        &[
            "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
            "CREATE TRIGGER waltrail_context BEFORE INSERT ON t EXECUTE FUNCTION nothing()",
        ],
    )
    .await;
    let (code, output) = setup(&config, &["--context"]).await;
    assert_eq!(code, Some(78), "{output}");
    let (_, said) = ending(&output);
    let (_, remedy) = said.split_once("look at it, then: ").unwrap();
    each(&client, &[remedy.lines().next().unwrap()]).await;
    with_context(&config).await;
    assert_eq!(triggers(&client).await, ["t"]);
}

#[tokio::test]
async fn a_role_that_may_not_make_the_trigger_is_told_what_to_grant() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)", "CREATE DATABASE history",
            "CREATE ROLE \"Setup\" LOGIN REPLICATION; GRANT CREATE ON DATABASE postgres, history TO \"Setup\"",
            "GRANT SELECT ON t TO \"Setup\"; CREATE PUBLICATION waltrail FOR TABLE t WITH (publish_via_partition_root = true)",
            "ALTER DATABASE history OWNER TO \"Setup\"",
        ],
    )
    .await;
    let (dsn, target) = (
        cluster.dsn_socket("postgres"),
        cluster.dsn_socket("history"),
    );
    each(
        &connect(&target).await,
        &["GRANT CREATE ON SCHEMA public TO \"Setup\""],
    )
    .await;
    let config = config(&dsn, Some(&target), &["public.t"], SETTINGS);
    let config = config.replace("user=postgres", "user=Setup");
    let (code, output) = setup(&config, &["--context"]).await;
    assert_eq!(code, Some(77), "{output}");
    let (_, said) = ending(&output);
    let (_, remedy) = said.split_once("let the owner run: ").unwrap();
    assert_eq!(remedy, "GRANT TRIGGER ON TABLE public.t TO \"Setup\"");
    each(&client, &[remedy.lines().next().unwrap()]).await;
    with_context(&config).await;
    assert_eq!(triggers(&client).await, ["t"]);
    each(
        &client,
        &[
            "INSERT INTO t VALUES (1)",
            "ALTER PUBLICATION waltrail OWNER TO \"Setup\"",
        ],
    )
    .await;
    // It owns the function, and with it goes the trigger.
    let (status, output) = Daemon::spawn_with(&config, &["teardown", "--yes"], &[])
        .wait(BOUND)
        .await;
    assert_eq!(status.code(), Some(0), "{output}");
    assert_eq!(triggers(&client).await, [""; 0]);
    assert!(value::<bool>(&client, "SELECT to_regnamespace('waltrail') IS NULL").await);
}

#[tokio::test]
async fn whatever_is_said_to_set_context_fails_no_statement() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[TABLES, "CREATE ROLE app LOGIN; GRANT ALL ON t TO app"],
    )
    .await;
    let dsn = cluster.dsn_socket("postgres");
    with_context(&config(&dsn, None, &FOLLOWED, SETTINGS)).await;
    let app = connect(&dsn.replace("user=postgres", "user=app")).await;
    for context in [
        "NULL",
        "'null'",
        "'[1]'",
        "'1'",
        "'{}'",
        "jsonb_build_object('a', repeat('x', 70000))",
        "'{\"a\": {\"b\": [1, 2]}}'",
    ] {
        let set = format!("BEGIN READ ONLY; SELECT waltrail.set_context({context}); COMMIT");
        each(&app, &[&set]).await;
    }
    // Nothing that a session sets makes its statements fail.
    for odd in ["\u{1}\t\n'\"\\", &"é".repeat(5000)] {
        let odd = odd.replace('\\', "\\\\").replace('\'', "\\'");
        let set = format!(
            "BEGIN; SET LOCAL app.\"user\" = E'{odd}'; SET LOCAL waltrail.said = E'{odd}'; INSERT INTO t VALUES (1); ROLLBACK"
        );
        each(&app, &[&set]).await;
    }
    each(
        &app,
        &[
            "SET search_path = pg_temp; CREATE TEMPORARY TABLE text (a int); CREATE DOMAIN pg_temp.pg_lsn AS int CHECK (value > 1)",
            "CREATE FUNCTION pg_temp.concat(VARIADIC pg_catalog.text[]) RETURNS pg_catalog.text LANGUAGE sql AS 'SELECT (1 / 0)::pg_catalog.text'",
            "INSERT INTO public.t VALUES (1)",
        ],
    )
    .await;
}

/// Who set up grants the daemon's role nothing for it: the function of the trigger is run by others.
#[tokio::test]
async fn a_role_that_only_runs_needs_no_more_than_before() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE ROLE follower LOGIN REPLICATION",
            "CREATE TABLE t (id int PRIMARY KEY, who text)",
        ],
    )
    .await;
    let config = config(
        &cluster.dsn_socket("postgres"),
        None,
        &["public.t"],
        SETTINGS,
    );
    let (code, output) = setup(&config, &["--grant-to", "follower"]).await;
    assert_eq!(code, Some(0), "{output}");
    with_context(&config).await;
    let manual = format!("setup = 'manual'\n{config}").replace("user=postgres", "user=follower");
    let mut daemon = Daemon::spawn(&manual);
    crate::support::scene::streaming(&mut daemon).await;
    each(
        &client,
        &["BEGIN; SET LOCAL role = follower; RESET role; INSERT INTO t VALUES (1, 'x'); COMMIT"],
    )
    .await;
    let said = "SELECT coalesce(max(context ->> 'session_user'), '') FROM t_cdc";
    crate::support::wait_for_value(&client, said, "postgres".to_owned(), BOUND).await;
    daemon.sigterm();
    let (status, output) = daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(0), "{output}");
}
