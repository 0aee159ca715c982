//! Which of several hosts is taken.

use throwaway::{Cluster, StopMode};

use super::authority::{Authority, good};
use super::{HOST, Outcome, Tested, by_psql, connection};
use crate::end_to_end::standby::standby_of;
use crate::support::scene::Scene;
use crate::support::{BOUND, builder, each, wait_for_value};
use waltrail::server::{Side, sql};

/// A port at which no one listens.
fn closed() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::test]
async fn the_next_host_is_tried_where_psql_tries_it() {
    let authority = Authority::new("ours");
    let mut tested = Tested::new(|builder| builder).await;
    tested.present(&authority.signs(&good()));
    let mut other = Tested::new(|builder| builder.hba("host all all 127.0.0.1/32 reject")).await;
    let root = tested.file("root.crt", &authority.certificate);
    let root = root.display();
    let (right, wrong) = (tested.cluster.port(), other.cluster.port());
    let mut reached = Vec::new();
    for (name, made) in [
        ("no TLS", None),
        ("refusing", Some(authority.signs(&good()))),
        (
            "of another authority",
            Some(Authority::new("x").signs(&good())),
        ),
    ] {
        if let Some(made) = made {
            other.present(&made);
        }
        for mode in ["prefer", "verify-full"] {
            let dsn = format!(
                "host={HOST},{HOST} hostaddr=127.0.0.1,127.0.0.1 port={wrong},{right} user=postgres dbname=postgres \
                 sslmode={mode} sslrootcert={root} target_session_attrs=any"
            );
            if tested.as_psql(&dsn).await != Outcome::Refused {
                reached.push((name, mode));
            }
            // The first one is not there.
            let gone = dsn.replace(&format!("port={wrong}"), &format!("port={}", closed()));
            assert_eq!(tested.as_psql(&gone).await, Outcome::Encrypted);
            // The first one is not known.
            let unknown = dsn.replace(
                &format!("host={HOST},{HOST} hostaddr=127.0.0.1,127.0.0.1"),
                "host=nowhere.invalid,127.0.0.1",
            );
            let unknown = unknown.replace("verify-full", "verify-ca");
            assert_eq!(tested.as_psql(&unknown).await, Outcome::Encrypted);
        }
    }
    // A name with several addresses, of which not every one listens.
    let name = format!("host=localhost port={right} user=postgres dbname=postgres");
    assert_eq!(tested.as_psql(&name).await, Outcome::Encrypted);
    // A server that answers and refuses ends the search.
    assert_eq!(reached, []);
}

#[tokio::test]
async fn target_session_attrs_finds_the_server_that_psql_finds() {
    let (mut primary, client) = crate::support::server().await;
    let standby = standby_of(&mut primary);
    primary.set("synchronous_standby_names", "").unwrap();
    drop(client);
    let client = crate::support::connect(&primary.dsn_socket("postgres")).await;
    each(
        &client,
        &["CREATE ROLE reader LOGIN; ALTER ROLE reader SET default_transaction_read_only = on"],
    )
    .await;
    let synced = "SELECT count(*) = 1 FROM pg_roles WHERE rolname = 'reader'";
    let replica = crate::support::connect(&standby.dsn_socket("postgres")).await;
    wait_for_value(&replica, synced, true, BOUND).await;
    let home = tempfile::tempdir().unwrap();
    let port = |cluster: &Cluster| cluster.port();
    for ports in [
        [port(&primary), port(&standby)],
        [port(&standby), port(&primary)],
    ] {
        for role in ["postgres", "reader"] {
            for wanted in [
                "any",
                "read-write",
                "read-only",
                "primary",
                "standby",
                "prefer-standby",
            ] {
                let dsn = format!(
                    "host=127.0.0.1,127.0.0.1 port={},{} user={role} dbname=postgres target_session_attrs={wanted}",
                    ports[0], ports[1]
                );
                let question = "SELECT inet_server_port()::text";
                let expected = port_by_psql(&dsn, question, home.path());
                let found = match sql(&connection(&dsn, home.path()), Side::Source).await {
                    Ok(client) => Some(client.query_one(question, &[]).await.unwrap().get(0)),
                    Err(_) => None,
                };
                assert_eq!(found, expected, "{dsn}");
            }
        }
    }
}

fn port_by_psql(dsn: &str, question: &str, home: &std::path::Path) -> Option<String> {
    let output = std::process::Command::new(super::psql())
        .args(["-XAtw", "-c", question, "-d", dsn])
        .env_clear()
        .env("HOME", home)
        .output()
        .unwrap();
    let answer = String::from_utf8(output.stdout).unwrap();
    output.status.success().then(|| answer.trim().to_owned())
}

#[tokio::test]
async fn after_a_switch_over_the_target_is_found_without_a_restart() {
    let mut scene = Scene::two(|builder| builder, |builder| builder).await;
    let mut standby = standby_of(scene.target_server.as_mut().unwrap());
    scene.reconnect().await;
    let (source, target) = (
        scene.server.port(),
        scene.target_server.as_ref().unwrap().port(),
    );
    // The standby comes first: it is not the one that is needed.
    for (alone, several) in [
        (source, format!("{},{source}", closed())),
        (target, format!("{},{target}", standby.port())),
    ] {
        scene.config = scene.config.replace(
            &format!("host=127.0.0.1 port={alone} "),
            &format!("host=127.0.0.1,127.0.0.1 port={several} "),
        );
    }
    scene.start().await;
    let insert = "INSERT INTO employees (name) SELECT 'a' FROM generate_series(1, 30)";
    each(&scene.source, &[insert]).await;
    scene.check().await;
    let mut old = scene.target_server.take().unwrap();
    old.stop(StopMode::Fast).unwrap();
    each(&scene.source, &[insert]).await;
    let client = crate::support::connect(&standby.dsn_socket("postgres")).await;
    each(&client, &["SELECT pg_promote()"]).await;
    standby.wait_ready(BOUND).unwrap();
    scene.target_server = Some(standby);
    each(&scene.source, &[insert]).await;
    scene
        .finish(&[
            "the session failed and is started again",
            "the target does not make the history durable",
        ])
        .await;
    drop(old);
}

#[tokio::test]
async fn where_no_host_fits_each_is_named() {
    let (primary, standbyless) = (builder().start().unwrap(), closed());
    let home = tempfile::tempdir().unwrap();
    let dsn = format!(
        "host=127.0.0.1,127.0.0.1 port={standbyless},{} user=postgres dbname=postgres target_session_attrs=standby",
        primary.port()
    );
    let fault = sql(&connection(&dsn, home.path()), Side::Source)
        .await
        .err()
        .unwrap();
    let said = fault.to_string();
    for part in [
        format!("127.0.0.1:{standbyless}: Connection refused"),
        format!("127.0.0.1:{}: the server is not a standby", primary.port()),
    ] {
        assert!(said.contains(&part), "{said}");
    }
    assert!(fault.may_pass(), "a standby may come");
    assert_eq!(by_psql(&dsn, home.path()).0, Outcome::Refused);
}
