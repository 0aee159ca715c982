//! Settings and limits of the servers, and the slot.

use throwaway::StopMode;

use super::{Server, check, gone, paste, the, with};
use crate::support::daemon::Daemon;
use crate::support::scene::config;
use crate::support::{BOUND, connect, each, other_version, value};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY)";

fn config_of(server: &Server) -> String {
    config(
        &server.cluster.dsn_socket("postgres"),
        None,
        &["public.t"],
        "",
    )
}

#[tokio::test]
async fn what_is_wrong_with_the_settings_is_healed_by_the_pasted_remedy() {
    let mut server =
        Server::start(|builder| builder.setting("max_prepared_transactions", "5")).await;
    each(&server.client, &[TABLE]).await;
    let config = config_of(&server);
    server
        .heals_as_it_is(&config, "no-limit-for-the-slot", "warning")
        .await;
    server
        .heals_as_it_is(&config, "the-target-does-not-flush", "warning")
        .await;
    for (code, severity, setting) in [
        (
            "a-small-limit-for-the-slot",
            "warning",
            "max_slot_wal_keep_size = '64MB'",
        ),
        (
            "commits-wait-for-the-history",
            "warning",
            "synchronous_standby_names = '*'",
        ),
        (
            "the-target-is-read-only",
            "error",
            "default_transaction_read_only = on",
        ),
    ] {
        let set = format!("ALTER SYSTEM SET {setting}");
        server
            .heals(&config, &[&set, "SELECT pg_reload_conf()"], code, severity)
            .await;
    }
    for set in [
        "ALTER ROLE postgres SET default_transaction_read_only = on",
        "ALTER DATABASE postgres SET default_transaction_read_only = on",
    ] {
        server
            .heals(&config, &[set], "the-target-is-read-only", "error")
            .await;
    }
    let durable = format!("{config}[target]\ndurable = 'server'\n");
    let waits = [
        "ALTER SYSTEM SET synchronous_standby_names = 'far'",
        "SELECT pg_reload_conf()",
    ];
    server
        .heals(&durable, &waits, "a-standby-is-missing", "warning")
        .await;

    let prepare = "BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'it''s'";
    let code = "a-transaction-delays-the-slot";
    server.heals(&config, &[prepare], code, "warning").await;
    let writer = connect(&server.cluster.dsn_socket("postgres")).await;
    each(&writer, &["BEGIN", "INSERT INTO t VALUES (2)"]).await;
    let pid: i32 = value(&writer, "SELECT pg_backend_pid()").await;
    let found = check(&config).await;
    let finding = the(&found, code, "warning");
    assert!(
        finding
            .what
            .contains(&format!("pid {pid}, idle in transaction, for ")),
        "{finding:?}"
    );
    paste(&server.client, &finding.remedy).await;
    let ended = format!("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = {pid}");
    crate::support::wait_for_value(&server.client, &ended, true, BOUND).await;
    gone(&check(&config).await, code);
}

#[tokio::test]
async fn what_needs_a_restart_says_so() {
    let mut server = Server::start(|builder| {
        builder
            .setting("wal_level", "replica")
            .setting("max_wal_senders", "1")
            .setting("max_replication_slots", "2")
    })
    .await;
    each(&server.client, &[TABLE]).await;
    let config = config_of(&server);
    server.heals_as_it_is(&config, "wal-level", "error").await;
    let one = "SELECT pg_create_physical_replication_slot('one')";
    server
        .heals(&config, &[one], "few-slots-or-senders", "warning")
        .await;
    each(
        &server.client,
        &["ALTER SYSTEM SET max_replication_slots = 1"],
    )
    .await;
    server.restart().await;
    server
        .heals_as_it_is(&config, "slots-used-up", "error")
        .await;
    // No sender is left: the way that it is tried is used up.
    each(&server.client, &["ALTER SYSTEM SET max_wal_senders = 0"]).await;
    server.restart().await;
    server
        .heals_as_it_is(&config, "slots-used-up", "error")
        .await;
}

/// A server that is arranged like one of a service: an administrator without superuser's rights, and its own settings.
#[tokio::test]
async fn a_managed_service_is_told_what_it_has() {
    for (mark, wal_level, replicate) in [
        (
            "rds.logical_replication",
            "rds.logical_replication = 1 in the parameter group",
            "GRANT rds_replication TO app;",
        ),
        (
            "cloudsql.logical_decoding",
            "--database-flags=cloudsql.logical_decoding=on",
            "ALTER USER app REPLICATION;",
        ),
        (
            "azure.extensions",
            "--name wal_level --value logical",
            "ALTER USER app REPLICATION;",
        ),
        (
            "neon.timeline_id",
            "enable logical replication",
            "ALTER ROLE app REPLICATION;",
        ),
    ] {
        let server =
            Server::start(|builder| builder.setting("wal_level", "replica").setting(mark, "off"))
                .await;
        each(&server.client, &[TABLE, "CREATE ROLE app LOGIN"]).await;
        let config = config_of(&server).replace("user=postgres", "user=app");
        let found = check(&config).await;
        let finding = the(&found, "wal-level", "error");
        assert!(finding.remedy.contains(wal_level), "{finding:?}");
        assert!(
            found
                .iter()
                .any(|finding| finding.remedy.starts_with(replicate)),
            "{found:#?}"
        );
        let system = found
            .iter()
            .find(|finding| finding.remedy.contains("ALTER SYSTEM"));
        assert!(system.is_none(), "{system:?}");
    }
}

#[tokio::test]
async fn an_idle_slot_that_is_dropped_is_a_warning_from_18_on() {
    let Some(binaries) = other_version(18) else {
        return;
    };
    let mut server = Server::start(|builder| {
        builder
            .binaries(binaries)
            .setting("idle_replication_slot_timeout", "60")
    })
    .await;
    each(&server.client, &[TABLE]).await;
    let config = config_of(&server);
    server
        .heals_as_it_is(&config, "an-idle-slot-is-dropped", "warning")
        .await;
}

#[tokio::test]
async fn a_slot_that_a_fail_over_loses_is_told_where_there_is_a_standby() {
    let server = Server::start(|builder| builder).await;
    each(&server.client, &[TABLE]).await;
    let config = config_of(&server);
    let code = "a-fail-over-loses-the-slot";
    gone(&check(&config).await, code);
    let make = "SELECT pg_create_physical_replication_slot('standby_1')";
    each(&server.client, &[make]).await;
    the(&check(&config).await, code, "note");
    each(
        &server.client,
        &["SELECT pg_drop_replication_slot('standby_1')"],
    )
    .await;
    gone(&check(&config).await, code);
}

#[tokio::test]
async fn a_standby_that_is_away_holds_the_history_up_from_17_on() {
    let Some(binaries) = other_version(18) else {
        return;
    };
    let mut server = Server::start(|builder| {
        builder
            .binaries(binaries)
            .setting("synchronized_standby_slots", "standby_1")
    })
    .await;
    let make = "SELECT pg_create_physical_replication_slot('standby_1')";
    each(&server.client, &[TABLE, make]).await;
    let config = config_of(&server);
    server
        .heals_as_it_is(&config, "a-standby-holds-the-history-up", "warning")
        .await;
}

#[tokio::test]
async fn a_standby_is_no_target_and_says_what_it_is_as_a_source() {
    let mut server = Server::start(|builder| builder).await;
    each(&server.client, &[TABLE]).await;
    let config = config_of(&server);
    server.cluster.stop(StopMode::Fast).unwrap();
    let data = server.cluster.data_dir();
    // A file of the right owner, whose content does not matter.
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([data.join("PG_VERSION"), data.join("standby.signal")])
        .status();
    assert!(copied.unwrap().success());
    server.cluster.start_again().unwrap();
    let found = check(&config).await;
    let version = server.cluster.binaries().major();
    let severity = if version < 16 { "error" } else { "note" };
    the(&found, "the-source-is-a-standby", severity);
    let finding = the(&found, "the-target-is-read-only", "error");
    assert!(finding.remedy.contains("name the primary"), "{finding:?}");
    // Promoted, it is both.
    let client = connect(&server.cluster.dsn_socket("postgres")).await;
    each(&client, &["SELECT pg_promote()"]).await;
    let found = check(&config).await;
    gone(&found, "the-source-is-a-standby");
    gone(&found, "the-target-is-read-only");
}

#[tokio::test]
async fn a_source_in_another_encoding_gets_a_target_that_takes_it() {
    let server = Server::start(|builder| builder).await;
    for (encoding, target) in [("SQL_ASCII", "postgres"), ("UTF8", "latin")] {
        let made = "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0";
        let of = format!("CREATE DATABASE app ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0");
        each(&server.client, &[&of]).await;
        if target == "latin" {
            each(&server.client, &[made]).await;
        }
        let app = connect(&server.cluster.dsn_socket("app")).await;
        each(&app, &[TABLE]).await;
        drop(app);
        let dsn = server.cluster.dsn_socket("app");
        let of = |target: &str| {
            config(
                &dsn,
                Some(&server.cluster.dsn_socket(target)),
                &["public.t"],
                "",
            )
        };
        let found = check(&of(target)).await;
        paste(
            &server.client,
            &the(&found, "encodings-differ", "warning").remedy,
        )
        .await;
        gone(&check(&of("history")).await, "encodings-differ");
        each(
            &server.client,
            &["DROP DATABASE history", "DROP DATABASE app WITH (FORCE)"],
        )
        .await;
    }
}

#[tokio::test]
async fn the_slot_and_the_record_are_looked_at() {
    let mut server =
        Server::start(|builder| builder.setting("max_slot_wal_keep_size", "80MB")).await;
    each(&server.client, &[TABLE]).await;
    let config = config_of(&server);
    let other = "SELECT pg_create_logical_replication_slot('waltrail', 'test_decoding')";
    each(&server.client, &[other]).await;
    the(&check(&config).await, "the-slot-is-not-ours", "error");
    each(
        &server.client,
        &["SELECT pg_drop_replication_slot('waltrail')"],
    )
    .await;
    gone(&check(&config).await, "the-slot-is-not-ours");

    let waltrail = async |command: &str| {
        let (status, output) = Daemon::spawn_with(&config, &[command], &[])
            .wait(BOUND)
            .await;
        assert_eq!(status.code(), Some(0), "{output}");
    };
    waltrail("setup").await;
    for _ in 0..5 {
        each(
            &server.client,
            &[
                "SELECT pg_logical_emit_message(false, 'x', 'x')",
                "SELECT pg_switch_wal()",
            ],
        )
        .await;
    }
    server
        .heals_as_it_is(&config, "a-slot-near-its-limit", "warning")
        .await;

    // A slot that is gone: what a start says, and what it says then of the gap that it keeps.
    each(
        &server.client,
        &["SELECT pg_drop_replication_slot('waltrail')"],
    )
    .await;
    let found = check(&config).await;
    let finding = the(&found, "the-slot-does-not-exist", "error");
    assert!(
        finding.remedy.contains("waltrail accept-gap"),
        "{finding:?}"
    );
    waltrail("accept-gap").await;
    gone(&check(&config).await, "the-slot-does-not-exist");

    // A publication that was altered is a gap, which a start keeps, and a person accepts.
    let mut daemon = Daemon::spawn(&config);
    crate::support::scene::streaming(&mut daemon).await;
    daemon.sigterm();
    daemon.wait(BOUND).await;
    each(
        &server.client,
        &[
            "ALTER PUBLICATION waltrail DROP TABLE t",
            "ALTER PUBLICATION waltrail ADD TABLE ONLY t",
        ],
    )
    .await;
    the(&check(&config).await, "the-source-was-changed", "error");
    let (status, output) = Daemon::spawn(&config).wait(BOUND).await;
    assert_eq!(status.code(), Some(65), "{output}");
    let found = check(&config).await;
    let finding = the(&found, "a-gap-is-not-accepted", "error");
    assert_eq!(finding.remedy, "waltrail accept-gap");
    waltrail("accept-gap").await;
    let found = check(&config).await;
    gone(&found, "a-gap-is-not-accepted");
    gone(&found, "the-source-was-changed");

    let newer = "INSERT INTO waltrail.schema_history (version, name) VALUES (1000, 'later')";
    each(&server.client, &[newer]).await;
    the(
        &check(&config).await,
        "the-control-schema-is-newer",
        "error",
    );
    each(
        &server.client,
        &["DELETE FROM waltrail.schema_history WHERE version = 1000"],
    )
    .await;
    assert!(with(&check(&config).await, "the-control-schema-is-newer").is_none());
    // It cannot be read at all.
    each(
        &server.client,
        &["ALTER TABLE waltrail.schema_history RENAME COLUMN version TO v"],
    )
    .await;
    the(&check(&config).await, "could-not-be-checked", "error");
    each(
        &server.client,
        &["ALTER TABLE waltrail.schema_history RENAME COLUMN v TO version"],
    )
    .await;
    gone(&check(&config).await, "could-not-be-checked");
}

/// A stream that has recorded a change, and was stopped.
async fn recorded(server: &Server, config: &str, id: i32) {
    let mut daemon = Daemon::spawn(config);
    crate::support::scene::streaming(&mut daemon).await;
    let insert = format!("INSERT INTO t VALUES ({id})");
    each(&server.client, &[&insert]).await;
    let arrived = format!("SELECT count(*) FROM t_cdc WHERE id = {id} AND change_type = 'INSERT'");
    crate::support::wait_for_value(&server.client, &arrived, 1_i64, BOUND).await;
    daemon.sigterm();
    let (status, output) = daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(0), "{output}");
}

#[tokio::test]
async fn a_slot_and_a_history_that_do_not_fit_are_healed_by_what_the_remedy_says() {
    let server = Server::start(|builder| builder).await;
    each(&server.client, &[TABLE]).await;
    let config = config_of(&server);
    let accept = |more: &'static [&'static str]| {
        let config = config.clone();
        async move {
            let command = [&["accept-gap"], more].concat();
            let (status, output) = Daemon::spawn_with(&config, &command, &[]).wait(BOUND).await;
            assert_eq!(status.code(), Some(0), "{output}");
        }
    };
    let cases: [(&str, &[&str], &'static [&'static str]); 6] = [
        (
            "the-source-is-on-an-unrelated-timeline",
            &["UPDATE waltrail.checkpoint SET timeline = 9"],
            &[],
        ),
        (
            "the-slot-is-lost",
            &[
                "ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'",
                "SELECT pg_reload_conf()",
                "SELECT pg_logical_emit_message(false, '', repeat('x', 1000000)), pg_switch_wal()",
                "SELECT pg_logical_emit_message(false, '', repeat('x', 1000000)), pg_switch_wal()",
                "SELECT pg_logical_emit_message(false, '', repeat('x', 1000000)), pg_switch_wal()",
                "CHECKPOINT",
                "ALTER SYSTEM RESET max_slot_wal_keep_size",
                "SELECT pg_reload_conf()",
            ],
            &[],
        ),
        (
            "the-slot-is-ahead-of-the-history",
            &[
                "CREATE TABLE more AS SELECT generate_series(1, 100000)",
                "SELECT pg_replication_slot_advance('waltrail', pg_current_wal_lsn())",
            ],
            &[],
        ),
        (
            "the-checkpoint-is-missing",
            &["DELETE FROM waltrail.checkpoint"],
            &[],
        ),
        (
            "the-source-is-another-cluster",
            &["UPDATE waltrail.checkpoint SET system_identifier = 1"],
            &["--source-replaced"],
        ),
        (
            "the-source-was-restored-from-an-older-state",
            &["UPDATE waltrail.checkpoint SET end_lsn = 'F0/0', reported_lsn = 'F0/0'"],
            &[],
        ),
    ];
    for (id, (code, arrange, more)) in (1..).zip(cases) {
        recorded(&server, &config, id).await;
        each(&server.client, arrange).await;
        let found = check(&config).await;
        let finding = the(&found, code, "error");
        let command = [&["accept-gap"], more].concat().join(" ");
        assert!(
            finding.remedy.contains(&format!("waltrail {command}")),
            "{finding:?}"
        );
        accept(more).await;
        gone(&check(&config).await, code);
    }
    recorded(&server, &config, 9).await;
    // What the configuration says is put back there.
    each(&server.client, &["CREATE DATABASE empty"]).await;
    let empty = server.cluster.dsn_socket("empty");
    let target = format!("{config}[target]\ndsn = '{empty}'\n");
    let slot = config.replacen("[source]\n", "[source]\nslot = 'second'\n", 1);
    let publication = config.replacen("[source]\n", "[source]\npublication = 'second'\n", 1);
    for (code, changed) in [
        ("the-slot-was-read-for-another-target", target),
        ("the-history-belongs-to-another-slot", slot),
        ("the-publication-is-another-one", publication),
    ] {
        the(&check(&changed).await, code, "error");
        gone(&check(&config).await, code);
    }
}
