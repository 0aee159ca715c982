//! What becomes of changes of the tables' shape while they are followed?
//!
//! The oracle knows only one shape of a table, so the rows stand here.

use throwaway::Cluster;
use tokio_postgres::Client;

use crate::support::daemon::{Daemon, ending};
use crate::support::scene::{complaints, config, streaming};
use crate::support::{BOUND, each, server, texts, wait_for_value};

struct Followed {
    daemon: Daemon,
    client: Client,
    config: String,
    _cluster: Cluster,
}

const TABLE: &str = "CREATE TABLE t (id integer PRIMARY KEY, a text, b integer)";
const HISTORY: &str =
    "CREATE TABLE t_cdc (cdc_id serial, change_type text, id integer, a text, b integer,
    change_timestamp timestamptz)";

async fn follow(ddl: &[&str]) -> Followed {
    let (cluster, client) = server().await;
    each(&client, ddl).await;
    // A fault that comes again is logged at this level.
    let level = "level = \"debug\"\n";
    let config = config(&cluster.dsn_socket("postgres"), None, &["public.t"], level);
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    Followed {
        daemon,
        client,
        config,
        _cluster: cluster,
    }
}

impl Followed {
    /// Waits for the history to have as many rows as `wanted`, and compares.
    async fn history(&self, columns: &str, wanted: &[&str]) {
        wait_for_value(
            &self.client,
            &format!("SELECT count(*) >= {} FROM t_cdc", wanted.len()),
            true,
            BOUND,
        )
        .await;
        let found = texts(
            &self.client,
            &format!("SELECT concat_ws('|', change_type, {columns}) FROM t_cdc ORDER BY cdc_id"),
        )
        .await;
        let found: Vec<String> = found.into_iter().flatten().collect();
        assert_eq!(found, wanted);
    }

    async fn stop(&mut self) -> String {
        self.daemon.sigterm();
        let (status, output) = self.daemon.wait(BOUND).await;
        assert_eq!(status.code(), Some(0), "{output}");
        output
    }
}

fn null(column: &str) -> String {
    format!("coalesce({column}::text, '-')")
}

#[tokio::test]
async fn a_column_added_to_the_history_first_loses_no_value() {
    for kind in ["integer", "text"] {
        let mut followed = follow(&[TABLE, HISTORY]).await;
        each(
            &followed.client,
            &[
                "INSERT INTO t VALUES (1, 'canary', 1)",
                &format!("ALTER TABLE t_cdc ADD c {kind}"),
                "ALTER TABLE t ADD c integer DEFAULT 7",
                "INSERT INTO t VALUES (2, 'y', 2, 7), (3, 'z', 3, NULL)",
                "UPDATE t SET c = 8 WHERE id = 1",
            ],
        )
        .await;
        followed
            .history(
                &format!("id, a, b, {}", null("c")),
                &[
                    "INSERT|1|canary|1|-",
                    "INSERT|2|y|2|7",
                    "INSERT|3|z|3|-",
                    "UPDATE|1|canary|1|8",
                ],
            )
            .await;
        let output = followed.stop().await;
        assert_eq!(complaints(&output), Vec::<&str>::new());
    }
}

#[tokio::test]
async fn a_column_that_the_history_lacks_is_told_and_recorded_once_it_is_there() {
    let mut followed = follow(&[TABLE, HISTORY]).await;
    each(
        &followed.client,
        &[
            "ALTER TABLE t ADD \"New one\" integer",
            "INSERT INTO t VALUES (1, 'canary', 1, 11)",
        ],
    )
    .await;
    followed
        .daemon
        .wait_log(BOUND, |line| {
            line.contains("\"WARN\"") && line.contains("New one") && line.contains("not recorded")
        })
        .await;
    followed.history("id, a, b", &["INSERT|1|canary|1"]).await;
    followed.stop().await;
    each(
        &followed.client,
        &[
            "ALTER TABLE t_cdc ADD \"New one\" integer",
            "INSERT INTO t VALUES (2, 'y', 2, 12)",
        ],
    )
    .await;
    followed.daemon = Daemon::spawn(&followed.config);
    followed
        .history(
            &format!("id, {}", null("\"New one\"")),
            &["INSERT|1|-", "INSERT|2|12"],
        )
        .await;
    assert_eq!(complaints(&followed.stop().await), Vec::<&str>::new());
}

#[tokio::test]
async fn a_column_that_came_and_went_while_nobody_listened_is_passed_over() {
    let mut followed = follow(&[TABLE, HISTORY]).await;
    followed.stop().await;
    each(
        &followed.client,
        &[
            "INSERT INTO t VALUES (1, 'canary', 1)",
            "ALTER TABLE t ADD c integer",
            "INSERT INTO t VALUES (2, 'y', 2, 3)",
            "ALTER TABLE t DROP c, DROP a",
            "INSERT INTO t VALUES (3, 4)",
            "ALTER TABLE t ADD a text",
            "INSERT INTO t VALUES (4, 5, 'again')",
        ],
    )
    .await;
    followed.daemon = Daemon::spawn(&followed.config);
    followed
        .history(
            &format!("id, {}, b", null("a")),
            &[
                "INSERT|1|canary|1",
                "INSERT|2|y|2",
                "INSERT|3|-|4",
                "INSERT|4|again|5",
            ],
        )
        .await;
    followed.stop().await;
}

#[tokio::test]
async fn a_dropped_column_is_null_from_then_on() {
    let mut followed = follow(&[TABLE, HISTORY]).await;
    each(
        &followed.client,
        &[
            "INSERT INTO t VALUES (1, 'canary', 1)",
            // In the middle of a transaction: one batch with rows of two shapes.
            "BEGIN; INSERT INTO t VALUES (2, 'y', 2); ALTER TABLE t DROP a; INSERT INTO t VALUES (3, 3);
             UPDATE t SET b = 4 WHERE id = 1; COMMIT",
        ],
    )
    .await;
    followed
        .history(
            &format!("id, {}, b", null("a")),
            &[
                "INSERT|1|canary|1",
                "INSERT|2|y|2",
                "INSERT|3|-|3",
                "UPDATE|1|-|4",
            ],
        )
        .await;
    assert_eq!(complaints(&followed.stop().await), Vec::<&str>::new());
}

#[tokio::test]
async fn a_type_that_the_history_does_not_keep_stops_before_its_first_value() {
    let mut followed = follow(&[TABLE, HISTORY]).await;
    each(
        &followed.client,
        &[
            "INSERT INTO t VALUES (1, 'canary', 1)",
            "ALTER TABLE t ALTER b TYPE bigint, ALTER a TYPE varchar(10)",
            "INSERT INTO t VALUES (2, E'tab\\t', 2)",
            "UPDATE t SET b = 3",
        ],
    )
    .await;
    let (status, output) = followed.daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(65), "{output}");
    let message =
        "public.t_cdc.b of type integer does not keep every value of public.t.b of type bigint";
    assert!(output.contains(message), "{output}");
    followed.history("id, a, b", &["INSERT|1|canary|1"]).await;
    let (_, hint) = ending(&output);
    let (remedy, _) = hint.split_once(';').unwrap();
    each(&followed.client, &[remedy]).await;
    followed.daemon = Daemon::spawn(&followed.config);
    followed
        .history(
            "id, a, b",
            &[
                "INSERT|1|canary|1",
                "INSERT|2|tab\t|2",
                "UPDATE|1|canary|3",
                "UPDATE|2|tab\t|3",
            ],
        )
        .await;
    assert_eq!(complaints(&followed.stop().await), Vec::<&str>::new());
}

#[tokio::test]
async fn a_type_of_old_that_no_catalog_has_any_more_is_read_as_text() {
    let mut followed = follow(&[TABLE, HISTORY]).await;
    followed.stop().await;
    each(
        &followed.client,
        &[
            "INSERT INTO t VALUES (1, 'canary', 1)",
            "ALTER TABLE t ALTER b TYPE bigint",
            "ALTER TABLE t_cdc ALTER b TYPE bigint",
            "INSERT INTO t VALUES (2, 'y', 2)",
        ],
    )
    .await;
    followed.daemon = Daemon::spawn(&followed.config);
    followed
        .history("id, a, b", &["INSERT|1|canary|1", "INSERT|2|y|2"])
        .await;
    let output = followed.stop().await;
    assert_eq!(complaints(&output), Vec::<&str>::new());
    assert!(
        output.contains("asking for the changes again as text"),
        "{output}"
    );
}

#[tokio::test]
async fn an_enum_that_grows_and_a_type_that_is_made_later_are_recorded() {
    let mut followed = follow(&[
        "CREATE TYPE mood AS ENUM ('sad')",
        "CREATE TABLE t (id integer PRIMARY KEY, m mood)",
    ])
    .await;
    each(
        &followed.client,
        &[
            "INSERT INTO t VALUES (1, 'sad')",
            "ALTER TYPE mood ADD VALUE 'glad'",
            "INSERT INTO t VALUES (2, 'glad')",
        ],
    )
    .await;
    followed
        .history("id, m", &["INSERT|1|sad", "INSERT|2|glad"])
        .await;
    assert_eq!(complaints(&followed.stop().await), Vec::<&str>::new());
}

#[tokio::test]
async fn a_renamed_table_is_followed_and_goes_on_in_the_file_under_its_new_name() {
    let mut followed = follow(&[TABLE, HISTORY]).await;
    each(
        &followed.client,
        &[
            "INSERT INTO t VALUES (1, 'canary', 1)",
            "ALTER TABLE t RENAME TO u",
            "INSERT INTO u VALUES (2, 'y', 2)",
        ],
    )
    .await;
    let both = ["INSERT|1|canary|1", "INSERT|2|y|2"];
    followed.history("id, a, b", &both).await;
    let output = followed.stop().await;
    let warned = complaints(&output);
    assert_eq!(warned.len(), 1, "{output}");
    assert!(
        warned[0].contains("public.u") && warned[0].contains("[[table]] source"),
        "{output}"
    );
    // The remedy, as it is written.
    let config = followed
        .config
        .replace("'public.t'", "'public.u'\nhistory = 'public.t_cdc'");
    followed.daemon = Daemon::spawn(&config);
    streaming(&mut followed.daemon).await;
    followed.history("id, a, b", &both).await;
    assert_eq!(complaints(&followed.stop().await), Vec::<&str>::new());
}

#[tokio::test]
async fn maintenance_of_the_table_changes_nothing() {
    let mut followed = follow(&[TABLE]).await;
    let mut wanted = Vec::new();
    for (n, statement) in [
        "VACUUM t",
        "ANALYZE t",
        "VACUUM FULL t",
        "CLUSTER t USING t_pkey",
        "CREATE INDEX ON t (a)",
        "REINDEX TABLE t",
        "ALTER TABLE t ALTER a SET NOT NULL",
        "ALTER TABLE t ALTER b SET DEFAULT 5",
        "COMMENT ON TABLE t IS 'remark'",
    ]
    .iter()
    .enumerate()
    {
        each(
            &followed.client,
            &[
                &format!("INSERT INTO t VALUES ({n}, 'canary', 1)"),
                statement,
                &format!("UPDATE t SET b = 2 WHERE id = {n}"),
            ],
        )
        .await;
        wanted.push(format!("INSERT|{n}|canary|1"));
        wanted.push(format!("UPDATE|{n}|canary|2"));
    }
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    followed.history("id, a, b", &wanted).await;
    assert_eq!(complaints(&followed.stop().await), Vec::<&str>::new());
}

#[tokio::test]
async fn a_fault_that_stays_is_tried_again_ever_more_slowly() {
    let mut followed = follow(&[
        TABLE,
        HISTORY,
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE 'no' USING ERRCODE = 'XX000'; END $$",
        "CREATE TRIGGER no AFTER INSERT ON t_cdc FOR EACH ROW EXECUTE FUNCTION no()",
    ])
    .await;
    each(&followed.client, &["INSERT INTO t VALUES (1, 'canary', 1)"]).await;
    let pause = |line: &str| -> Option<u64> {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        line["retry_in_ms"].as_u64()
    };
    // The first pause is 500 ms at most, whatever chance takes off or adds, and the third, which is the last, 750 at least.
    followed
        .daemon
        .wait_log(BOUND, |line| pause(line).is_some_and(|ms| ms >= 750))
        .await;
    each(&followed.client, &["DROP TRIGGER no ON t_cdc"]).await;
    followed.history("id, a, b", &["INSERT|1|canary|1"]).await;
    followed.stop().await;
}

#[tokio::test]
async fn a_history_that_gets_another_type_while_it_is_written_holds_no_other_value() {
    let mut followed = follow(&[TABLE, HISTORY]).await;
    each(&followed.client, &["INSERT INTO t VALUES (1, 'canary', 1)"]).await;
    followed.history("id, a, b", &["INSERT|1|canary|1"]).await;
    each(
        &followed.client,
        &[
            // As many bytes, and another meaning.
            "ALTER TABLE t_cdc ALTER b TYPE real",
            "INSERT INTO t SELECT n, 'z', n FROM generate_series(2, 40) n",
        ],
    )
    .await;
    let (status, output) = followed.daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(65), "{output}");
    let message =
        "public.t_cdc.b of type real does not keep every value of public.t.b of type integer";
    assert!(output.contains(message), "{output}");
    each(
        &followed.client,
        &["ALTER TABLE t_cdc ALTER b TYPE integer"],
    )
    .await;
    followed.daemon = Daemon::spawn(&followed.config);
    wait_for_value(
        &followed.client,
        "SELECT count(*) FROM t_cdc",
        40_i64,
        BOUND,
    )
    .await;
    let wrong: i64 = crate::support::value(
        &followed.client,
        "SELECT count(*) FROM t_cdc WHERE b IS DISTINCT FROM id",
    )
    .await;
    assert_eq!(wrong, 0, "rows with another value");
    followed.stop().await;
}
