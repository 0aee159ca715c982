//! Tables, histories and the publication.

use super::{Server, check, gone, the};
use crate::support::daemon::Daemon;
use crate::support::scene::config;
use crate::support::{BOUND, each};

/// Code, severity, what is arranged, and more lines of the table's entry. The table is `t`, and its history `t_cdc`; `h`
/// stands for an ordinary history's columns.
const CASES: &[(&str, &str, &[&str], &str)] = &[
    (
        "no-replica-identity",
        "error",
        &["CREATE TABLE t (id int)"],
        "",
    ),
    (
        "an-unlogged-table",
        "error",
        &["CREATE UNLOGGED TABLE t (id int PRIMARY KEY)"],
        "",
    ),
    (
        "partitions-that-are-not-in-the-wal",
        "error",
        &[
            "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)",
            "CREATE UNLOGGED TABLE t1 PARTITION OF t DEFAULT",
        ],
        "",
    ),
    (
        "partitions-without-replica-identity",
        "error",
        &[
            "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)",
            "CREATE TABLE t1 PARTITION OF t DEFAULT",
            "ALTER TABLE t1 REPLICA IDENTITY NOTHING",
        ],
        "",
    ),
    (
        "a-partition-logs-less",
        "warning",
        &[
            "CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)",
            "CREATE TABLE t1 PARTITION OF t DEFAULT",
            "ALTER TABLE t REPLICA IDENTITY FULL",
        ],
        "",
    ),
    (
        "old-values-are-missing",
        "note",
        &["CREATE TABLE t (id int PRIMARY KEY, v text)"],
        "",
    ),
    (
        "an-unlogged-history",
        "error",
        &[
            "CREATE TABLE t (id int PRIMARY KEY)",
            "CREATE UNLOGGED TABLE t_cdc (change_type text, id int)",
        ],
        "",
    ),
    (
        "a-trigger-on-the-history",
        "error",
        &[
            "CREATE TABLE t (id int PRIMARY KEY)",
            "CREATE TABLE t_cdc (change_type text, id int)",
            "CREATE TRIGGER quiet BEFORE INSERT ON t_cdc FOR EACH ROW EXECUTE FUNCTION nothing()",
        ],
        "",
    ),
    (
        "triggers-on-the-history",
        "note",
        &[
            "CREATE TABLE t (id int PRIMARY KEY)",
            "CREATE TABLE t_cdc (change_type text, id int)",
            "CREATE TRIGGER quiet AFTER INSERT ON t_cdc FOR EACH ROW EXECUTE FUNCTION nothing()",
        ],
        "",
    ),
    (
        "a-history-column-is-not-null",
        "error",
        &[
            "CREATE TABLE t (id int PRIMARY KEY)",
            "CREATE TABLE t_cdc (change_type text, id int NOT NULL, \"Who\" text NOT NULL)",
        ],
        "",
    ),
    (
        "a-history-column-changes-values",
        "error",
        &[
            "CREATE TABLE t (id int PRIMARY KEY, p numeric)",
            "CREATE TABLE t_cdc (change_type text, id int, p numeric(10,2))",
        ],
        "",
    ),
    (
        "columns-not-recorded",
        "warning",
        &[
            "CREATE TABLE t (id int PRIMARY KEY, v text, \"At\" timestamptz)",
            "CREATE TABLE t_cdc (change_type text, id int)",
        ],
        "",
    ),
    (
        "a-schema-change-is-not-followed",
        "error",
        &[
            "CREATE TABLE t (id int PRIMARY KEY, v text)",
            "CREATE TABLE t_cdc (change_type text, id int)",
        ],
        "schema_changes = 'halt'",
    ),
    (
        "unavailable-values-look-like-null",
        "note",
        &[
            "CREATE TABLE t (id int PRIMARY KEY, v text)",
            "CREATE TABLE t_cdc (change_type text, id int, v text)",
        ],
        "",
    ),
    (
        "context-is-not-recorded",
        "warning",
        &[
            "CREATE TABLE t (id int PRIMARY KEY)",
            "CREATE TABLE t_cdc (change_type text, id int)",
        ],
        "context.settings = []",
    ),
    (
        "context-is-not-recorded",
        "warning",
        &[
            "CREATE TABLE t (id int PRIMARY KEY)",
            "CREATE TABLE t_cdc (change_type text, id int, context jsonb NOT NULL DEFAULT '{}')",
        ],
        "context.settings = ['app.user']",
    ),
    (
        "the-publication-holds-a-history-table",
        "error",
        &[
            "CREATE TABLE t (id int PRIMARY KEY)",
            "CREATE TABLE t_cdc (change_type text, id int)",
            "CREATE PUBLICATION waltrail FOR TABLE t, t_cdc",
        ],
        "",
    ),
    (
        "the-publication-hides-changes",
        "error",
        &[
            "CREATE TABLE t (id int PRIMARY KEY)",
            "CREATE PUBLICATION waltrail FOR TABLE t WITH (publish = 'insert')",
        ],
        "",
    ),
    (
        "the-publication-hides-changes",
        "error",
        &[
            "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)",
            "CREATE PUBLICATION waltrail FOR TABLE t",
        ],
        "",
    ),
];

/// Since 15.
const FILTERS: &[&[&str]] = &[
    &[
        "CREATE TABLE t (id int PRIMARY KEY)",
        "CREATE PUBLICATION waltrail FOR TABLE t WHERE (id > 0)",
    ],
    &[
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "CREATE PUBLICATION waltrail FOR TABLE t (id)",
    ],
];

const CLEAN: &[&str] = &[
    "DROP PUBLICATION IF EXISTS waltrail",
    "DROP TABLE IF EXISTS t",
    "DROP TABLE IF EXISTS t_cdc",
];

#[tokio::test]
async fn what_is_wrong_with_a_table_is_healed_by_the_pasted_remedy() {
    let mut server = Server::start(|builder| builder).await;
    let nothing =
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'";
    each(&server.client, &[nothing]).await;
    let base = config(
        &server.cluster.dsn_socket("postgres"),
        None,
        &["public.t"],
        "",
    );
    for (code, severity, arrange, more) in CASES {
        each(&server.client, CLEAN).await;
        server
            .heals(&format!("{more}\n{base}"), arrange, code, severity)
            .await;
    }
    let version: i32 = crate::support::value(
        &server.client,
        "SELECT current_setting('server_version_num')::int",
    )
    .await;
    for arrange in FILTERS.iter().filter(|_| version >= 150_000) {
        each(&server.client, CLEAN).await;
        server
            .heals(&base, arrange, "the-publication-hides-changes", "error")
            .await;
    }
}

/// What is wrong in the configuration is corrected there. Codes, what is arranged, what the entry becomes.
#[tokio::test]
async fn what_is_wrong_in_the_configuration_is_named_and_gone_once_it_is_corrected() {
    let server = Server::start(|builder| builder).await;
    each(
        &server.client,
        &[
            "CREATE TABLE good (id int PRIMARY KEY)",
            "CREATE VIEW seen AS SELECT 1 AS id",
            "CREATE TABLE whole (id int PRIMARY KEY) PARTITION BY RANGE (id)",
            "CREATE TABLE part PARTITION OF whole DEFAULT",
            "CREATE TABLE made (id int, d int GENERATED ALWAYS AS (id * 2) STORED NOT NULL)",
            "CREATE UNIQUE INDEX made_d ON made (d)",
            "ALTER TABLE made REPLICA IDENTITY USING INDEX made_d",
            "CREATE TABLE clash (id int PRIMARY KEY, tx_seq int)",
            "CREATE TABLE clash_cdc (change_type text, id int, tx_seq int)",
            "CREATE TABLE other (id int PRIMARY KEY)",
            "CREATE TABLE other_cdc (x int)",
            "CREATE VIEW viewed AS SELECT 'x' AS change_type, 1 AS id",
            "CREATE TABLE far (change_type text, id int) PARTITION BY LIST (change_type)",
            "CREATE FOREIGN DATA WRAPPER elsewhere; CREATE SERVER far FOREIGN DATA WRAPPER elsewhere",
            "CREATE FOREIGN TABLE far_p PARTITION OF far DEFAULT SERVER far",
        ],
    )
    .await;
    let dsn = server.cluster.dsn_socket("postgres");
    let of = |entry: &str| format!("[source]\ndsn = '{dsn}'\n[[table]]\n{entry}\n");
    let good = "source = 'public.good'";
    for (code, wrong, right) in [
        ("no-such-table", "source = 'public.god'", good),
        ("not-a-table", "source = 'public.seen'", good),
        (
            "a-partition",
            "source = 'public.part'",
            "source = 'public.whole'",
        ),
        (
            "no-such-column",
            "source = 'public.good'\nexclude_columns = ['x']",
            good,
        ),
        (
            "a-generated-column-in-the-replica-identity",
            "source = 'public.made'",
            good,
        ),
        (
            "a-column-name-is-taken",
            "source = 'public.clash'",
            "source = 'public.clash'\nexclude_columns = ['tx_seq']",
        ),
        (
            "nothing-in-common",
            "source = 'public.other'",
            "source = 'public.other'\nhistory = 'public.new'",
        ),
        (
            "the-history-is-not-a-table",
            "source = 'public.good'\nhistory = 'public.viewed'",
            good,
        ),
        (
            "a-history-on-another-server",
            "source = 'public.good'\nhistory = 'public.far'",
            good,
        ),
    ] {
        the(&check(&of(wrong)).await, code, "error");
        gone(&check(&of(right)).await, code);
    }
}

#[tokio::test]
async fn what_a_history_lacks_is_a_note_and_a_table_that_is_left_out_a_warning() {
    let server = Server::start(|builder| builder).await;
    each(
        &server.client,
        &[
            "CREATE SCHEMA s",
            "CREATE TABLE s.t (id int PRIMARY KEY, n int, d int GENERATED ALWAYS AS (n * 2) STORED)",
            "CREATE TABLE s.t_cdc (change_type text, id int, n int, former text)",
            "CREATE TABLE s.u (id int)",
        ],
    )
    .await;
    let of = |source: &str| config(&server.cluster.dsn_socket("postgres"), None, &[source], "");
    let found = check(&of("s.t")).await;
    assert!(
        the(&found, "a-generated-column", "note")
            .what
            .ends_with(": d")
    );
    assert!(
        the(&found, "columns-stay-empty", "note")
            .what
            .contains(": former;")
    );
    let found = check(&of("s.*")).await;
    let left = the(&found, "a-table-is-left-out", "warning");
    assert_eq!(left.place, "s.u");
    assert!(left.what.contains("replica identity"), "{left:?}");
    each(
        &server.client,
        &[
            "ALTER TABLE s.u ADD PRIMARY KEY (id)",
            "ALTER TABLE s.t_cdc DROP former",
        ],
    )
    .await;
    let found = check(&of("s.*")).await;
    gone(&found, "a-table-is-left-out");
    gone(&found, "columns-stay-empty");
}

#[tokio::test]
async fn what_is_missing_is_made_by_set_up_and_an_error_where_run_may_not_make_it() {
    let server = Server::start(|builder| builder).await;
    each(&server.client, &["CREATE TABLE t (id int PRIMARY KEY)"]).await;
    let config = config(
        &server.cluster.dsn_socket("postgres"),
        None,
        &["public.t"],
        "",
    );
    let manual = format!("setup = 'manual'\n{config}");
    let code = "something-is-missing";
    let missing = |found: &[super::Found]| -> Vec<String> {
        let missing = found.iter().filter(|finding| finding.code == code);
        missing
            .map(|finding| format!("{}: {}", finding.severity, finding.what))
            .collect()
    };
    for (config, severity) in [(&config, "note"), (&manual, "error")] {
        let found = check(config).await;
        let missing = missing(&found).join("\n");
        for what in [
            "control schema",
            "history table",
            "publication",
            "replication slot",
        ] {
            assert!(missing.contains(what), "{what} is not in {missing}");
        }
        assert!(
            the(&found, code, severity)
                .remedy
                .contains("waltrail setup")
        );
    }
    let (status, output) = Daemon::spawn_with(&config, &["setup"], &[])
        .wait(BOUND)
        .await;
    assert_eq!(status.code(), Some(0), "{output}");
    gone(&check(&config).await, code);
    gone(&check(&manual).await, code);
    // It has changed nothing: what was set up is still what a start expects.
    let mut daemon = Daemon::spawn(&config);
    crate::support::scene::streaming(&mut daemon).await;
    gone(&check(&config).await, code);
}

#[tokio::test]
async fn a_table_that_does_not_say_who_changes_it_is_named() {
    let server = Server::start(|builder| builder).await;
    each(
        &server.client,
        &[
            "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)",
            "CREATE TABLE t1 PARTITION OF t DEFAULT",
        ],
    )
    .await;
    let plain = config(
        &server.cluster.dsn_socket("postgres"),
        None,
        &["public.t"],
        "",
    );
    let code = "the-source-does-not-say-who";
    gone(&check(&plain).await, code);
    let config = format!("context.settings = ['app.user']\n{plain}");
    let set_up = async |config: &str| {
        let remedy = the(&check(config).await, code, "warning").remedy.clone();
        let arguments: Vec<&str> = remedy.split(' ').skip(1).collect();
        let (status, output) = Daemon::spawn_with(config, &arguments, &[])
            .wait(BOUND)
            .await;
        assert_eq!(status.code(), Some(0), "{output}");
        gone(&check(config).await, code);
    };
    set_up(&config).await;
    for (arrange, named) in [
        (
            "ALTER TABLE t1 DISABLE TRIGGER waltrail_context",
            "public.t1:",
        ),
        (
            "ALTER TABLE t ENABLE REPLICA TRIGGER waltrail_context",
            "public.t:",
        ),
        ("DROP TRIGGER waltrail_context ON t", "public.t:"),
        (
            "DROP FUNCTION waltrail.say_context() CASCADE",
            "public.t, public.t1:",
        ),
        (
            "REVOKE USAGE ON SCHEMA waltrail FROM PUBLIC",
            "waltrail.say_context()",
        ),
    ] {
        each(&server.client, &[arrange]).await;
        let found = check(&config).await;
        let what = &the(&found, code, "warning").what;
        assert!(what.contains(named), "{what}");
        set_up(&config).await;
    }
    set_up(&config.replace("app.user", "app.tenant")).await;
}
