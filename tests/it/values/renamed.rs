//! Is a recorded value still the same when what it names is renamed, or its type altered?

use super::stop;
use crate::support::daemon::Daemon;
use crate::support::scene::{config, streaming};
use crate::support::{BOUND, each, server, value, wait_for_value};

/// A regclass is a number, written as the name that it has at the moment.
#[tokio::test]
async fn the_name_of_an_object_is_kept_when_another_object_has_it_now() {
    let (server, client) = server().await;
    each(
        &client,
        &[
            "CREATE ROLE first",
            "CREATE TABLE first ()",
            "CREATE TABLE t (id int PRIMARY KEY, v regclass, l regclass[], a aclitem)",
        ],
    )
    .await;
    let config = config(&server.dsn_socket("postgres"), None, &["public.t"], "");
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    stop(daemon, &[]).await;
    each(
        &client,
        &[
            "INSERT INTO t VALUES (1, 'first', '{first}', 'first=r/postgres')",
            "ALTER TABLE first RENAME TO second",
            "ALTER ROLE first RENAME TO second",
            "CREATE TABLE first ()",
            "INSERT INTO t VALUES (2, 'first', '{first}', 'second=r/postgres')",
            "DROP TABLE first, second",
        ],
    )
    .await;
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    let kept = "SELECT string_agg(concat_ws(' ', v, l, a), ', ' ORDER BY id) FROM t_cdc";
    let wanted = "public.first {public.first} first=r/postgres, public.first {public.first} second=r/postgres";
    wait_for_value(&client, kept, Some(wanted.to_owned()), BOUND).await;
    stop(daemon, &[]).await;
}

/// An enum's value is a number, written as the label that it has at the moment; a composite's fields are those of its type.
const ALTERED: [&str; 8] = [
    "ALTER TYPE e RENAME VALUE 'a' TO 'x'",
    "ALTER TYPE e RENAME VALUE 'b' TO 'a'",
    "ALTER TYPE e RENAME VALUE 'x' TO 'b'",
    "ALTER TYPE c DROP ATTRIBUTE gone",
    "ALTER TYPE c ADD ATTRIBUTE later integer",
    "ALTER TYPE e ADD VALUE 'new' BEFORE 'b'",
    "INSERT INTO t VALUES (3, 'new', '{new}', '[new,b]', 'new', '(new,8)', '{\"(new,8)\"}')",
    "INSERT INTO t VALUES (4, 'a', '{a,b}', '[b,a]', 'a', '(a,7)', '{\"(a,7)\"}')",
];
const ENUMS: &str = "
    CREATE TYPE e AS ENUM ('a', 'b');
    CREATE DOMAIN d AS e;
    CREATE TYPE r AS RANGE (subtype = e);
    CREATE TYPE c AS (gone integer, l e);
    CREATE TABLE t (id int PRIMARY KEY, v e, l e[], r r, d d, c c, k c[])";
const KEPT: &str =
    "SELECT string_agg(concat_ws(' ', id, v, l, r, d, c, k), '; ' ORDER BY cdc_id) FROM t_cdc";
const BEFORE: [&str; 2] = [
    "INSERT INTO t VALUES (1, 'a', '{a,b}', '[a,b]', 'a', '(7,a)', '{\"(7,a)\"}')",
    "INSERT INTO t VALUES (2, 'b', '{b}', '[b,b]', 'b', '(7,b)', '{\"(7,b)\"}')",
];

#[tokio::test]
async fn labels_and_fields_stay_as_they_were_recorded_when_their_type_is_altered() {
    for is_read_before in [true, false] {
        let (server, client) = server().await;
        each(&client, &[ENUMS]).await;
        let config = config(&server.dsn_socket("postgres"), None, &["public.t"], "");
        let mut daemon = Daemon::spawn(&config);
        streaming(&mut daemon).await;
        if is_read_before {
            each(&client, &BEFORE).await;
            wait_for_value(&client, "SELECT count(*) FROM t_cdc", 2_i64, BOUND).await;
        }
        stop(daemon, &[]).await;
        if !is_read_before {
            each(&client, &BEFORE).await;
        }
        each(&client, &ALTERED).await;
        let mut daemon = Daemon::spawn(&config);
        streaming(&mut daemon).await;
        wait_for_value(&client, "SELECT count(*) FROM t_cdc", 4_i64, BOUND).await;
        let kept: String = value(&client, KEPT).await;
        let wanted = "1 a {a,b} [a,b] a (7,a) {\"(7,a)\"}; 2 b {b} [b,b] b (7,b) {\"(7,b)\"}; \
                      3 new {new} [new,b] new (new,8) {\"(new,8)\"}; 4 a {a,b} [b,a] a (a,7) {\"(a,7)\"}";
        assert_eq!(kept, wanted, "read before: {is_read_before}");
        stop(daemon, &[]).await;
    }
}

#[tokio::test]
async fn a_history_with_columns_of_such_types_takes_them_until_it_has_text() {
    let (server, client) = server().await;
    let head = "cdc_id serial, change_type text, id integer";
    each(
        &client,
        &[
            ENUMS,
            &format!("CREATE TABLE t_cdc ({head}, v e, l e[], r r, d d, c c, k c[])"),
            // In binary.
            "CREATE TABLE u (id int PRIMARY KEY, v e)",
            &format!("CREATE TABLE u_cdc ({head}, v e)"),
        ],
    )
    .await;
    let tables = ["public.t", "public.u"];
    let config = config(&server.dsn_socket("postgres"), None, &tables, "");
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    each(&client, &BEFORE).await;
    wait_for_value(&client, "SELECT count(*) FROM t_cdc", 2_i64, BOUND).await;
    let kept: String = value(&client, KEPT).await;
    let wanted = "1 a {a,b} [a,b] a (7,a) {\"(7,a)\"}; 2 b {b} [b,b] b (7,b) {\"(7,b)\"}";
    assert_eq!(kept, wanted);
    let last = "SELECT string_agg(v::text, '' ORDER BY id) FROM u_cdc";
    for (n, alter) in ["", "ALTER TABLE u_cdc ALTER v TYPE text", ""]
        .iter()
        .enumerate()
    {
        let id = n * 10;
        each(
            &client,
            &[
                alter,
                &format!("INSERT INTO u VALUES ({id}, 'a')"),
                &format!("INSERT INTO u VALUES ({id} + 1, 'b'), ({id} + 2, 'a'), ({id} + 3, NULL)"),
            ],
        )
        .await;
        wait_for_value(&client, last, Some("aba".repeat(n + 1)), BOUND).await;
    }
    stop(daemon, &["was altered while it was written"]).await;
}
