//! Who is let in, with which privileges, and what a refusal says.

use throwaway::StopMode;

use super::{Server, check, gone, paste, the, with};
use crate::support::daemon::{Daemon, ending};
use crate::support::scene::{config, streaming};
use crate::support::{BOUND, each, wait_for_value};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY)";

#[tokio::test]
async fn every_privilege_that_is_missing_is_named_at_once_and_its_grant_is_enough() {
    for setup in ["auto", "manual"] {
        let server = Server::start(|builder| builder).await;
        let client = &server.client;
        each(
            client,
            &[
                "CREATE ROLE owner; CREATE ROLE \"App\" LOGIN; CREATE SCHEMA s; CREATE SCHEMA h",
                "CREATE TABLE s.t (id int PRIMARY KEY); ALTER TABLE s.t OWNER TO owner",
                "CREATE TABLE s.u (id int PRIMARY KEY); ALTER TABLE s.u OWNER TO owner",
                "CREATE TABLE s.t_cdc (cdc_id serial, change_type text, id int)",
                "INSERT INTO s.t VALUES (1); INSERT INTO s.u VALUES (2)",
            ],
        )
        .await;
        let tables = ["s.t", "s.u=h.u_cdc"];
        let with_rows = "[snapshot]\nmode = 'initial'\n";
        let admin = config(&server.cluster.dsn_socket("postgres"), None, &tables, "");
        let admin = admin.replace("[snapshot]\nmode = \"never\"\n", with_rows);
        let config = format!("setup = '{setup}'\n{admin}").replace("user=postgres", "user=App");
        if setup == "manual" {
            let (status, output) = Daemon::spawn_with(&admin, &["setup"], &[])
                .wait(BOUND)
                .await;
            assert_eq!(status.code(), Some(0), "{output}");
        }
        let found = check(&config).await;
        let lacks: Vec<_> = found
            .iter()
            .filter(|finding| finding.code == "privilege-missing")
            .collect();
        let grants: Vec<&str> = lacks
            .iter()
            .map(|finding| finding.remedy.as_str())
            .collect();
        println!("{grants:#?}");
        let all = [
            "REPLICATION",
            "GRANT SELECT, INSERT ON s.t_cdc",
            "GRANT USAGE ON SEQUENCE s.t_cdc_cdc_id_seq",
        ];
        let own: &[&str] = match setup {
            "auto" => &[
                "GRANT CREATE ON DATABASE postgres",
                "GRANT owner TO",
                "GRANT CREATE ON SCHEMA h",
            ],
            _ => &[
                "GRANT SELECT ON s.t, s.u TO",
                "GRANT USAGE ON SCHEMA waltrail",
                "ON waltrail.checkpoint",
            ],
        };
        for grant in all.iter().chain(own) {
            assert!(
                grants.iter().any(|known| known.contains(grant)),
                "{grant} is not in {grants:#?}"
            );
        }
        // A start names them all, too.
        let (status, output) = Daemon::spawn(&config).wait(BOUND).await;
        assert_eq!(status.code(), Some(77), "{output}");
        let (_, hint) = ending(&output);
        let of_schema = |grant: &&&str| grant.contains("waltrail");
        if setup == "auto" {
            for grant in &grants {
                assert!(hint.contains(grant), "{grant} is not in {hint}");
            }
        } else {
            assert!(
                grants
                    .iter()
                    .filter(of_schema)
                    .all(|grant| hint.contains(grant)),
                "{hint}"
            );
        }
        for grant in &grants {
            paste(client, grant).await;
        }
        let found = check(&config).await;
        let errors: Vec<_> = found
            .iter()
            .filter(|finding| finding.severity == "error")
            .collect();
        assert!(errors.is_empty(), "{errors:#?}");
        let mut daemon = Daemon::spawn(&config);
        streaming(&mut daemon).await;
        each(
            client,
            &["INSERT INTO s.t VALUES (3)", "INSERT INTO s.u VALUES (4)"],
        )
        .await;
        let rows = "SELECT (SELECT count(*) FROM s.t_cdc) + (SELECT count(*) FROM h.u_cdc)";
        wait_for_value(client, rows, 4_i64, BOUND).await;
    }
}

#[tokio::test]
async fn rows_that_a_policy_hides_and_a_history_of_another_role_are_named() {
    let server = Server::start(|builder| builder).await;
    each(
        &server.client,
        &[
            "CREATE ROLE app LOGIN REPLICATION; CREATE ROLE keeper; GRANT CREATE ON DATABASE postgres TO app",
            "CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t ENABLE ROW LEVEL SECURITY",
            "CREATE TABLE t_cdc (change_type text, id int); ALTER TABLE t_cdc OWNER TO keeper",
            "CREATE PUBLICATION waltrail FOR TABLE t; GRANT SELECT ON t TO app; GRANT INSERT ON t_cdc TO app",
        ],
    )
    .await;
    let config = config(
        &server.cluster.dsn_socket("postgres"),
        None,
        &["public.t"],
        "",
    );
    let config = config
        .replace("user=postgres", "user=app")
        .replace("\"never\"", "\"initial\"");
    let config = format!("schema_changes = 'follow'\n{config}");
    let found = check(&config).await;
    let finding = the(&found, "privilege-missing", "error");
    assert!(
        finding.what.contains("row security hides rows of public.t"),
        "{finding:?}"
    );
    paste(&server.client, &finding.remedy).await;
    paste(
        &server.client,
        &the(&found, "the-history-cannot-follow", "warning").remedy,
    )
    .await;
    let found = check(&config).await;
    gone(&found, "privilege-missing");
    gone(&found, "the-history-cannot-follow");
}

/// A membership in a superuser would give everything.
#[tokio::test]
async fn no_remedy_gives_a_role_the_rights_of_a_superuser() {
    let server = Server::start(|builder| builder).await;
    each(
        &server.client,
        &[
            "CREATE ROLE app LOGIN REPLICATION; GRANT CREATE ON DATABASE postgres TO app; CREATE ROLE owner",
            "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE \"T, u\" (id int PRIMARY KEY)",
            "CREATE TABLE own (id int PRIMARY KEY); ALTER TABLE own OWNER TO owner",
            "CREATE SCHEMA h AUTHORIZATION app",
        ],
    )
    .await;
    let entries = ["public.t=h.t", "public.\"T, u\"=h.u", "public.own=h.own"];
    let dsn = server
        .cluster
        .dsn_socket("postgres")
        .replace("user=postgres", "user=app");
    let first = config(&dsn, None, &entries[..2], "");
    let all = config(&dsn, None, &entries, "");
    each(
        &server.client,
        &["CREATE PUBLICATION others FOR TABLE t WITH (publish_via_partition_root = true)"],
    )
    .await;
    let others = first
        .replace(
            "[[table]]\nsource = 'public.t'",
            "slot = 'o'\npublication = 'others'\n[[table]]\nsource = 'public.t'",
        )
        .replace("h.", "o.");
    for (config, at_most) in [(&first, 1), (&all, 2), (&others, 1)] {
        let found = check(config).await;
        let lacks: Vec<_> = found
            .iter()
            .filter(|finding| finding.code == "privilege-missing")
            .collect();
        assert!(!lacks.is_empty() && lacks.len() <= at_most, "{lacks:#?}");
        for finding in &lacks {
            assert!(!finding.remedy.contains("GRANT postgres"), "{finding:?}");
            paste(&server.client, &finding.remedy).await;
        }
        gone(&check(config).await, "privilege-missing");
        streaming(&mut Daemon::spawn(config)).await;
        each(
            &server.client,
            &["ALTER PUBLICATION waltrail OWNER TO postgres"],
        )
        .await;
    }
}

#[tokio::test]
async fn a_role_that_does_not_exist_or_may_not_log_in_is_told_from_a_wrong_password() {
    let server =
        Server::start(|builder| builder.hba("host all secret 127.0.0.1/32 scram-sha-256")).await;
    let code = "login-refused";
    let dsn = server.cluster.dsn_tcp("postgres");
    let as_role = |role: &str| config(&dsn, None, &["public.t"], "").replace("user=postgres", role);
    each(&server.client, &[TABLE, "CREATE ROLE idle REPLICATION"]).await;
    for (role, wanted) in [
        ("absent", "CREATE ROLE absent LOGIN REPLICATION;"),
        ("idle", "ALTER ROLE idle LOGIN;"),
    ] {
        let config = as_role(&format!("user={role}"));
        let found = check(&config).await;
        let finding = the(&found, code, "error");
        assert!(
            finding.remedy.contains(wanted) && !finding.remedy.contains("pg_hba"),
            "{finding:?}"
        );
        each(&server.client, &[wanted]).await;
        gone(&check(&config).await, code);
    }
    each(
        &server.client,
        &["CREATE ROLE secret LOGIN REPLICATION PASSWORD 'right'"],
    )
    .await;
    let found = check(&as_role("user=secret password=wrong-canary")).await;
    let finding = the(&found, code, "error");
    assert!(
        finding.remedy.contains("correct the password"),
        "{finding:?}"
    );
    gone(&check(&as_role("user=secret password=right")).await, code);
    let found = check(&as_role("user=secret")).await;
    assert!(
        the(&found, code, "error")
            .remedy
            .contains("source.password_file")
    );
    // A database that lets only its own in, and one that is not there.
    each(
        &server.client,
        &[
            "CREATE DATABASE closed",
            "REVOKE CONNECT ON DATABASE closed FROM PUBLIC",
        ],
    )
    .await;
    let closed = as_role("user=idle").replace("dbname=postgres", "dbname=closed");
    let found = check(&closed).await;
    let finding = the(&found, code, "error");
    assert!(
        finding
            .remedy
            .contains("GRANT CONNECT ON DATABASE closed TO idle;"),
        "{finding:?}"
    );
    each(
        &server.client,
        &["GRANT CONNECT ON DATABASE closed TO idle;"],
    )
    .await;
    gone(&check(&closed).await, code);
    let found = check(&as_role("user=idle").replace("dbname=postgres", "dbname=nowhere")).await;
    assert!(
        the(&found, "cannot-connect", "error")
            .remedy
            .contains("source.dsn")
    );
}

/// As on Debian, where `local all all peer` stands above a line that was appended.
#[tokio::test]
async fn a_line_that_shadows_another_is_named_by_the_other_side() {
    for (line, tcp) in [
        ("local all app peer", false),
        ("local postgres +team reject", false),
        ("host all app 127.0.0.0/8 reject", true),
        ("host postgres all 127.0.0.1/32 reject", true),
    ] {
        let mut server = Server::start(|builder| {
            builder
                .hba("host all postgres all trust")
                .hba(line)
                .hba("local all app trust")
        })
        .await;
        each(
            &server.client,
            &[
                TABLE,
                "CREATE ROLE team; CREATE ROLE app LOGIN REPLICATION PASSWORD 'x' IN ROLE team",
            ],
        )
        .await;
        let dsn = match tcp {
            true => server.cluster.dsn_tcp("postgres"),
            false => server.cluster.dsn_socket("postgres"),
        };
        let source = format!("{} password=x", dsn.replace("user=postgres", "user=app"));
        let both = config(&source, Some(&dsn), &["public.t"], "");
        let found = check(&both).await;
        let finding = the(&found, "login-refused", "error");
        let words: Vec<&str> = line.split(' ').collect();
        assert!(
            finding.what.contains("of pg_hba.conf decides"),
            "{finding:?}"
        );
        assert!(finding.what.contains(words[words.len() - 1]), "{finding:?}");
        // Not a word of what it cannot see.
        let alone = config(&source, None, &["public.t"], "");
        let found = check(&alone).await;
        assert!(
            the(&found, "login-refused", "error")
                .remedy
                .contains("above the others")
        );

        // What it advises, done: this line, before that one.
        let (_, number) = finding.what.split_once("line ").unwrap();
        let number: usize = number.split(' ').next().unwrap().parse().unwrap();
        let pasted = finding
            .remedy
            .lines()
            .find(|line| !line.starts_with("--"))
            .unwrap();
        let file = server.cluster.data_dir().join("pg_hba.conf");
        let text = std::fs::read_to_string(&file).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.insert(number - 1, pasted);
        std::fs::write(&file, lines.join("\n") + "\n").unwrap();
        server.restart().await;
        gone(&check(&both).await, "login-refused");
    }
}

#[tokio::test]
async fn a_side_that_is_away_does_not_hide_the_other() {
    let mut away = Server::start(|builder| builder).await;
    let here = Server::start(|builder| builder).await;
    each(
        &here.client,
        &[
            "CREATE TABLE t (id int)",
            "CREATE UNLOGGED TABLE t_cdc (change_type text, id int)",
        ],
    )
    .await;
    each(
        &away.client,
        &["CREATE UNLOGGED TABLE t_cdc (change_type text, id int)"],
    )
    .await;
    let (of_here, of_away) = (
        here.cluster.dsn_tcp("postgres"),
        away.cluster.dsn_tcp("postgres"),
    );
    away.cluster.stop(StopMode::Fast).unwrap();
    let found = check(&config(&of_here, Some(&of_away), &["public.t"], "")).await;
    assert_eq!(the(&found, "unreachable", "error").place, "target");
    the(&found, "no-replica-identity", "error");
    let found = check(&config(&of_away, Some(&of_here), &["public.t"], "")).await;
    assert_eq!(the(&found, "unreachable", "error").place, "source");
    the(&found, "an-unlogged-history", "error");
    // One that is both is named once.
    let found = check(&config(&of_away, None, &["public.t"], "")).await;
    assert_eq!(found.len(), 1, "{found:#?}");
    away.cluster.start_again().unwrap();
    gone(
        &check(&config(&of_away, None, &["public.t"], "")).await,
        "unreachable",
    );
}

#[tokio::test]
async fn a_name_of_a_pooler_is_a_warning_and_a_list_for_people_says_the_same() {
    let server = Server::start(|builder| builder).await;
    each(&server.client, &[TABLE]).await;
    let dsn = server.cluster.dsn_tcp("postgres");
    let config = config(&dsn, None, &["public.t"], "");
    let pooled = config.replace("host=127.0.0.1", "host=ep-1-pooler hostaddr=127.0.0.1");
    assert_ne!(config, pooled);
    let found = check(&pooled).await;
    let finding = the(&found, "a-pooler-in-the-path", "warning");
    assert!(
        finding.remedy.contains("take -pooler out of the host"),
        "{finding:?}"
    );
    assert!(with(&check(&config).await, "a-pooler-in-the-path").is_none());

    let (status, output) = Daemon::spawn_with(&pooled, &["check"], &[])
        .wait(BOUND)
        .await;
    assert_eq!(status.code(), Some(0), "{output}");
    for finding in &found {
        assert!(
            output.contains(&finding.what) && output.contains(&finding.code),
            "{finding:?}\n{output}"
        );
        assert!(output.contains(&finding.remedy), "{finding:?}\n{output}");
    }
    assert!(
        output.lines().last().unwrap().starts_with("0 errors, "),
        "{output}"
    );
}
