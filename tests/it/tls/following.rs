//! A history whose every byte is encrypted, and what only newer servers do.

use waltrail::server::Side;

use super::authority::{Authority, good};
use super::{HOST, Outcome, Tested, connection, ours, present};
use crate::support::scene::Scene;
use crate::support::{BOUND, each, other_version, value};

#[tokio::test]
async fn the_history_is_exact_with_both_sides_encrypted() {
    let authority = Authority::new("ours");
    let refuse = "hostnossl all all 127.0.0.1/32 reject";
    let mut scene = Scene::two(|builder| builder.hba(refuse), |builder| builder.hba(refuse)).await;
    present(&mut scene.server, &authority.signs(&good()));
    let target = scene.target_server.as_mut().unwrap();
    present(target, &authority.signs(&good()));
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root.crt");
    std::fs::write(&root, &authority.certificate).unwrap();
    let tls = format!(
        "host={HOST} hostaddr=127.0.0.1 sslmode=verify-full sslrootcert={} ",
        root.display()
    );
    scene.config = scene.config.replace("host=127.0.0.1 ", &tls);
    scene.start().await;
    let plain = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
         WHERE NOT ssl AND application_name LIKE 'waltrail%'";
    let encrypted = plain.replace("NOT ssl", "ssl");
    for side in [&scene.source, &scene.target] {
        assert_eq!(value::<i64>(side, plain).await, 0);
        assert!(value::<i64>(side, &encrypted).await >= 1);
    }
    // More than a read takes at once, and rows in their thousands.
    each(
        &scene.source,
        &[
            "INSERT INTO employees (name, salary) SELECT n::text, n FROM generate_series(1, 20000) n",
            "UPDATE employees SET department = repeat('d', 90) WHERE id % 3 = 0",
            "DELETE FROM employees WHERE id % 5 = 0",
        ],
    )
    .await;
    scene.check().await;
    // Both streams are cut and begin again.
    for side in [&scene.source, &scene.target] {
        each(
            side,
            &["SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'waltrail%'"],
        )
        .await;
    }
    each(
        &scene.source,
        &["UPDATE employees SET salary = 0 WHERE id < 1000"],
    )
    .await;
    let allowed = [
        "the session failed and is started again",
        "the slot is in use",
    ];
    scene.finish(&allowed).await;
}

#[tokio::test]
async fn a_certificate_that_is_renewed_while_the_daemon_runs_ends_no_process() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let mut scene = Scene::one(|builder| builder).await;
    present(&mut scene.server, &old.signs(&good()));
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root.crt");
    std::fs::write(&root, &old.certificate).unwrap();
    let tls = format!(
        "host={HOST} hostaddr=127.0.0.1 sslmode=verify-full sslrootcert={} ",
        root.display()
    );
    scene.config = scene.config.replace("host=127.0.0.1 ", &tls);
    scene.start().await;
    present(&mut scene.server, &new.signs(&good()));
    // Files are not a setting: this one makes the server read them again.
    scene.server.set("waltrail.renewed", "1").unwrap();
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'waltrail%'";
    each(
        &scene.source,
        &[cut, "INSERT INTO employees (name) VALUES ('a')"],
    )
    .await;
    let headline = "TLS with the server fails; it is tried again";
    let refused = |line: &str| line.contains(headline) && line.contains("no authority");
    scene.daemon().wait_log(BOUND, refused).await;
    // What the hint says.
    std::fs::write(&root, &new.certificate).unwrap();
    let allowed = [
        headline,
        "the session failed and is started again",
        "the slot is in use",
    ];
    scene.finish(&allowed).await;
}

#[tokio::test]
async fn the_first_byte_may_be_tls_on_17() {
    let Some(binaries) = other_version(17) else {
        return;
    };
    let mut tested = Tested::new(|builder| builder.fresh_initdb().binaries(binaries)).await;
    let authority = Authority::new("ours");
    tested.present(&authority.signs(&good()));
    let root = tested.file("root.crt", &authority.certificate);
    let root = root.display();
    let home = tested.folder.path();
    let mut old = Tested::new(|builder| builder).await;
    old.present(&authority.signs(&good()));
    for (tested, expected) in [(&tested, Outcome::Encrypted), (&old, Outcome::Refused)] {
        let more = format!("sslmode=verify-full sslrootcert={root} sslnegotiation=direct");
        let connection = connection(&tested.dsn("postgres", &more), home);
        for side in [Side::Source, Side::Target] {
            for kind in ["SQL", "replication"] {
                let (outcome, fault) = ours(&connection, side, kind).await;
                assert_eq!(outcome, expected, "{side} {kind} {fault}");
            }
        }
    }
}
