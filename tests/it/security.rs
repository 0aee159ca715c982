//! Can a role that may create objects, and no more, run its code through waltrail? Its objects raise an exception, and leave
//! a mark that no rollback takes away.

mod grants;
mod names;
mod strangers;

use std::path::Path;
use std::time::Duration;

use throwaway::Cluster;
use tokio_postgres::Client;

use crate::support::daemon::{Daemon, run};
use crate::support::scene::streaming;
use crate::support::{BOUND, connect, each, server, texts, value, wait_until};

/// What the server itself has, and the name under which a role of it is a trap: with another type where a name or an OID is
/// wanted, a call by a literal would be taken for it also where the server's own schema is searched first.
const FUNCTIONS: &str = "
    SELECT DISTINCT p.proname::text, coalesce(string_agg('pg_catalog.' || quote_ident(t.typname), ', ' ORDER BY a.nth), '') AS arguments,
           format('pg_catalog.%I', r.typname) AS result
      FROM pg_catalog.pg_proc p
      JOIN pg_catalog.pg_type r ON r.oid = p.prorettype
      LEFT JOIN LATERAL unnest(p.proargtypes::oid[]) WITH ORDINALITY AS a (type, nth) ON true
      LEFT JOIN pg_catalog.pg_type t ON t.oid = a.type
     WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND NOT p.proretset
     GROUP BY p.oid, r.typname, r.typtype
    HAVING (r.typtype <> 'p' OR r.typname IN ('void', 'record')) AND r.typname <> 'cstring'
       AND NOT coalesce(bool_or(t.typtype = 'p'), false)";

/// A schema full of traps, made by a role that has no more than CREATE on it.
const TRAPS: &str = r#"
    CREATE FUNCTION {S}.trap() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
        PERFORM pg_catalog.nextval('mallory.caught'::pg_catalog.regclass);
        RAISE EXCEPTION 'CAUGHT';
    END $$;
    -- So that it is run where no row is found, too.
    CREATE FUNCTION {S}.trap_of_planner() RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN {S}.trap(); END $$;
    DO $do$
    DECLARE f record;
    BEGIN
        -- Operators first: they are made with the server's own functions still in sight.
        FOR f IN
            SELECT o.oprname, l.typname AS l, r.typname AS r, s.typname AS s FROM pg_catalog.pg_operator o
              JOIN pg_catalog.pg_type l ON l.oid = o.oprleft JOIN pg_catalog.pg_type r ON r.oid = o.oprright
              JOIN pg_catalog.pg_type s ON s.oid = o.oprresult
             WHERE o.oprnamespace = 'pg_catalog'::pg_catalog.regnamespace AND o.oprkind = 'b'
               AND l.typtype <> 'p' AND r.typtype <> 'p' AND s.typtype <> 'p'
        LOOP
            EXECUTE pg_catalog.format('CREATE OR REPLACE FUNCTION {S}.%I(pg_catalog.%I, pg_catalog.%I) RETURNS pg_catalog.%I
                LANGUAGE plpgsql AS $f$ BEGIN PERFORM {S}.trap(); END $f$', 'operator_' || f.s, f.l, f.r, f.s);
            EXECUTE pg_catalog.format('CREATE OPERATOR {S}.%s (LEFTARG = pg_catalog.%I, RIGHTARG = pg_catalog.%I, FUNCTION = {S}.%I)',
                f.oprname, f.l, f.r, 'operator_' || f.s);
        END LOOP;
    END $do$;
    DO $do$
    DECLARE f record;
    BEGIN
        FOR f IN {FUNCTIONS} LOOP
            EXECUTE format('CREATE OR REPLACE FUNCTION {S}.%I(%s) RETURNS %s LANGUAGE plpgsql AS $f$ BEGIN
                PERFORM {S}.trap(); END $f$', f.proname, f.arguments, f.result);
            IF f.arguments ~ 'pg_catalog\.(name|oid|regclass|regnamespace|regrole)\M' THEN
                BEGIN
                    EXECUTE format('CREATE FUNCTION {S}.%I(%s) RETURNS %s LANGUAGE plpgsql AS $f$ BEGIN
                        PERFORM {S}.trap(); END $f$', f.proname,
                        regexp_replace(f.arguments, 'pg_catalog\.(name|oid|regclass|regnamespace|regrole)\M', 'pg_catalog.text', 'g'), f.result);
                EXCEPTION WHEN duplicate_function THEN NULL;
                END;
            END IF;
        END LOOP;
    END $do$;
    CREATE FUNCTION {S}.trap(pg_catalog.int8) RETURNS pg_catalog.int8 LANGUAGE plpgsql AS $$ BEGIN PERFORM {S}.trap(); END $$;
    CREATE AGGREGATE {S}.count(*) (SFUNC = {S}.trap, STYPE = pg_catalog.int8, INITCOND = '0');
    CREATE FUNCTION {S}.unnest(pg_catalog.text[]) RETURNS SETOF pg_catalog.text LANGUAGE plpgsql AS $$ BEGIN PERFORM {S}.trap(); END $$;
    DO $do$
    DECLARE r record;
    BEGIN
        FOR r IN SELECT c.relname FROM pg_catalog.pg_class c WHERE c.relnamespace = 'pg_catalog'::pg_catalog.regnamespace
                    AND c.relkind IN ('r', 'v') LOOP
            BEGIN
                EXECUTE pg_catalog.format('CREATE VIEW {S}.%I AS SELECT * FROM pg_catalog.%I WHERE {S}.trap_of_planner()', r.relname, r.relname);
            EXCEPTION WHEN invalid_table_definition THEN NULL; -- columns of type anyarray
            END;
        END LOOP;
        FOR r IN SELECT pg_catalog.unnest('{checkpoint,barrier,watched,followed,gap,home,snapshot,snapshot_part,held,schema_history}'::pg_catalog.text[]) AS relname LOOP
            EXECUTE pg_catalog.format('CREATE VIEW {S}.%I AS SELECT NULL::pg_catalog.text AS slot WHERE {S}.trap_of_planner()', r.relname);
        END LOOP;
        FOR r IN SELECT pg_catalog.unnest('{text,name,oid,regclass,regnamespace,regrole,pg_lsn,jsonb,timestamptz,int8,float8,bool,xid8,bytea}'::pg_catalog.text[]) AS relname LOOP
            EXECUTE pg_catalog.format('CREATE DOMAIN {S}.%I AS pg_catalog.%I CHECK ({S}.trap())', r.relname, r.relname);
        END LOOP;
    END $do$;
"#;

/// A server whose users find the traps of `mallory` before anything of the server's, and a connection that does not.
async fn trapped() -> (Cluster, Client) {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE ROLE mallory LOGIN; GRANT CREATE ON SCHEMA public TO mallory; GRANT CREATE ON DATABASE postgres TO mallory",
            "CREATE TABLE employees (id serial PRIMARY KEY, name varchar(100), mood text)",
        ],
    )
    .await;
    let mallory = cluster
        .dsn_socket("postgres")
        .replace("user=postgres", "user=mallory");
    let mallory = connect(&mallory).await;
    each(
        &mallory,
        &[
            "CREATE SCHEMA mallory; CREATE SEQUENCE mallory.caught; GRANT ALL ON SCHEMA mallory TO PUBLIC;
             GRANT ALL ON SEQUENCE mallory.caught TO PUBLIC",
            // The user's own schema, which is searched first by default.
            "CREATE SCHEMA postgres; GRANT ALL ON SCHEMA postgres TO PUBLIC",
        ],
    )
    .await;
    // A type of mallory's own, with casts.
    each(
        &mallory,
        &["CREATE TYPE public.mood AS ENUM ('CANARY_7f3a glad');
           CREATE FUNCTION public.mood_to_text(public.mood) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
               PERFORM pg_catalog.nextval('mallory.caught'::pg_catalog.regclass); RAISE EXCEPTION 'CAUGHT'; END $$;
           CREATE FUNCTION public.text_to_mood(text) RETURNS public.mood LANGUAGE plpgsql AS $$ BEGIN
               PERFORM pg_catalog.nextval('mallory.caught'::pg_catalog.regclass); RAISE EXCEPTION 'CAUGHT'; END $$;
           CREATE CAST (public.mood AS text) WITH FUNCTION public.mood_to_text(public.mood) AS IMPLICIT;
           CREATE CAST (text AS public.mood) WITH FUNCTION public.text_to_mood(text) AS IMPLICIT"],
    )
    .await;
    each(
        &client,
        &["ALTER TABLE employees ADD COLUMN feels public.mood"],
    )
    .await;
    for schema in ["public", "postgres"] {
        let traps = TRAPS
            .replace("{FUNCTIONS}", FUNCTIONS)
            .replace("{S}", schema);
        each(&mallory, &["SET search_path = pg_catalog", &traps]).await;
    }
    each(
        &client,
        &[
            "SET search_path = ''",
            "ALTER DATABASE postgres SET search_path = public, pg_catalog",
            "ALTER ROLE postgres SET search_path = \"$user\", public, pg_catalog",
        ],
    )
    .await;
    (cluster, client)
}

/// Whether something of mallory's has run since the last time.
async fn caught(client: &Client) -> bool {
    let caught = value(client, "SELECT is_called FROM mallory.caught").await;
    each(
        client,
        &["SELECT pg_catalog.setval('mallory.caught', 1, false)"],
    )
    .await;
    caught
}

fn config(cluster: &Cluster) -> String {
    format!(
        "[source]\ndsn = '{}'\n[[table]]\nsource = 'public.employees'\n[log]\nlevel = \"debug\"\n",
        cluster.dsn_socket("postgres")
    )
}

fn waltrail(folder: &Path, arguments: &[&str]) -> String {
    let (status, out, err) = run(folder, arguments, &[]);
    // No daemon runs, which `status` calls broken.
    let is_told = arguments.first() == Some(&"status") && status.code() == Some(2);
    assert!(
        status.success() || is_told,
        "{arguments:?}: {status}\n{err}"
    );
    out
}

async fn rows(client: &Client, wanted: i64) {
    wait_until("the history has its rows", BOUND, async || {
        let count = "SELECT count(*) FROM public.employees_cdc";
        (value::<i64>(client, count).await == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn nothing_that_another_role_has_made_is_run() {
    let (cluster, client) = trapped().await;
    let dsn = cluster.dsn_socket("postgres");
    let insert =
        "INSERT INTO public.employees (name, feels) VALUES ('CANARY_7f3a Ada', 'CANARY_7f3a glad')";
    each(&client, &[insert]).await;
    // The traps work.
    for statement in [
        "SELECT count(*) FROM public.employees",
        "SELECT now()",
        "SELECT 'a'::text = 'b'",
        "SELECT slot_name FROM pg_replication_slots",
        "SELECT to_regclass('public.employees')",
        "SELECT 'CANARY_7f3a glad'::public.mood::pg_catalog.text",
    ] {
        let unwary = connect(&dsn).await;
        assert!(
            unwary.batch_execute(statement).await.is_err(),
            "{statement}"
        );
        assert!(caught(&client).await, "{statement}");
    }
    let own = connect(&format!("{dsn} options='-c search_path=\"$user\",public'")).await;
    let drop_slot = own
        .batch_execute("SELECT pg_drop_replication_slot('none')")
        .await;
    assert!(drop_slot.is_err() && caught(&client).await);

    let folder = tempfile::tempdir().unwrap();
    let config = config(&cluster);
    std::fs::write(folder.path().join("waltrail.toml"), &config).unwrap();
    // What is printed is run by an administrator, whose search path the traps are in.
    let printed = waltrail(
        folder.path(),
        &["setup", "--dry-run", "--grant-to", "mallory"],
    );
    let administrator = connect(&dsn).await;
    for statements in printed.split("\n\n-- ") {
        each(&administrator, &[&format!("-- {statements}")]).await;
    }
    assert!(!caught(&client).await, "the printed set-up");
    waltrail(folder.path(), &["setup"]);
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    rows(&client, 1).await;
    each(
        &client,
        &[
            insert,
            "UPDATE public.employees SET name = 'CANARY_7f3a Bob'",
        ],
    )
    .await;
    // Many rows go by a COPY, one row by an INSERT.
    rows(&client, 4).await;
    each(
        &client,
        &["ALTER TABLE public.employees ADD COLUMN since timestamptz",
          "INSERT INTO public.employees (name, feels, since) SELECT name, feels, pg_catalog.now() FROM public.employees"],
    )
    .await;
    rows(&client, 6).await;
    waltrail(folder.path(), &["status", "--exact"]);
    daemon.sigterm();
    let (status, output) = daemon.wait(BOUND).await;
    assert!(status.success(), "{output}");
    assert!(!caught(&client).await, "{output}");

    // A gap, first by the printed SQL.
    each(
        &client,
        &["SELECT pg_catalog.pg_drop_replication_slot('waltrail')"],
    )
    .await;
    let printed = waltrail(folder.path(), &["accept-gap", "--dry-run"]);
    let administrator = connect(&dsn).await;
    each(&administrator, &[&printed]).await;
    rows(&client, 7).await;
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    rows(&client, 11).await;
    daemon.sigterm();
    let (status, output) = daemon.wait(BOUND).await;
    assert!(status.success(), "{output}");
    each(
        &client,
        &["SELECT pg_catalog.pg_drop_replication_slot('waltrail')"],
    )
    .await;
    waltrail(folder.path(), &["accept-gap"]);
    waltrail(folder.path(), &["setup"]);
    waltrail(folder.path(), &["teardown", "--yes"]);
    assert!(!caught(&client).await, "{output}");
}

#[tokio::test]
async fn nothing_of_the_control_schema_is_for_everyone_and_its_functions_pin_their_search_path() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE TABLE employees (id int PRIMARY KEY)",
            "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC; ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO PUBLIC",
        ],
    )
    .await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("waltrail.toml"), config(&cluster)).unwrap();
    waltrail(folder.path(), &["setup"]);
    let open = "
        SELECT made.what || ': ' || acl.privilege_type FROM (
            SELECT 'schema' AS what, n.oid AS schema, coalesce(n.nspacl, acldefault('n', n.nspowner)) AS acl FROM pg_namespace n
            UNION ALL SELECT c.relname, c.relnamespace, coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\", c.relowner))
                        FROM pg_class c WHERE c.relkind IN ('r', 'v', 'S', 'p')
            UNION ALL SELECT p.proname, p.pronamespace, coalesce(p.proacl, acldefault('f', p.proowner)) FROM pg_proc p
        ) made, aclexplode(made.acl) acl
         WHERE made.schema = 'waltrail'::regnamespace AND acl.grantee = 0";
    assert_eq!(texts(&client, open).await, []);
    let loose = "SELECT proname::text FROM pg_proc WHERE pronamespace = 'waltrail'::regnamespace
         AND (prosecdef OR NOT coalesce(proconfig @> ARRAY['search_path=\"\"'], false))";
    assert_eq!(texts(&client, loose).await, []);
}

const SOON: Duration = Duration::from_secs(20);
