//! Our own certificate, and channel binding with a server that is the right one.

use std::os::unix::fs::PermissionsExt;

use super::authority::{Authority, good, nameless};
use super::{Outcome, Tested, connection, ours, server_file};
use crate::support::daemon::Daemon;
use crate::support::scene::config;
use crate::support::{BOUND, each};

const PASSWORD: &str = "canary-pass";

/// A server with roles that need a certificate, a password, or both.
async fn guarded(authority: &Authority) -> Tested {
    let mut tested = Tested::new(|builder| {
        builder
            .hba("hostssl all certified 127.0.0.1/32 cert")
            .hba("hostssl all twice 127.0.0.1/32 scram-sha-256 clientcert=verify-full")
            .hba("host all secret 127.0.0.1/32 scram-sha-256")
            .hba("hostssl all narrow 127.0.0.1/32 scram-sha-256")
            .hba("hostnossl all narrow 127.0.0.1/32 reject")
            .hba("host all old 127.0.0.1/32 md5")
            .hba("host all plain 127.0.0.1/32 password")
    })
    .await;
    let create = format!(
        "CREATE ROLE certified LOGIN REPLICATION;
         CREATE ROLE twice LOGIN REPLICATION PASSWORD '{PASSWORD}';
         CREATE ROLE secret LOGIN REPLICATION PASSWORD '{PASSWORD}';
         CREATE ROLE narrow LOGIN REPLICATION PASSWORD '{PASSWORD}';
         CREATE ROLE plain LOGIN REPLICATION PASSWORD '{PASSWORD}';
         SET password_encryption = md5; CREATE ROLE old LOGIN REPLICATION PASSWORD '{PASSWORD}'"
    );
    each(&tested.client, &[&create]).await;
    server_file(&tested.cluster, "clients.crt", &authority.certificate);
    tested.cluster.set("ssl_ca_file", "clients.crt").unwrap();
    tested.present(&authority.signs(&good()));
    tested
}

#[tokio::test]
async fn a_certificate_of_our_own_counts_as_psqls_does() {
    let authority = Authority::new("ours");
    let tested = guarded(&authority).await;
    let other = Authority::new("other");
    for (name, made) in [
        ("certified", authority.signs(&nameless("certified"))),
        ("twice", authority.signs(&nameless("twice"))),
        ("foreign", other.signs(&nameless("certified"))),
    ] {
        tested.file(&format!("{name}.crt"), &made.chain);
        tested.file(&format!("{name}.key"), &made.key);
    }
    let open = tested.file("open.key", &authority.signs(&good()).key);
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o644)).unwrap();
    tested.file(
        "encrypted.key",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let folder = tested.folder.path().display();
    let mut accepted = Vec::new();
    for (role, certificate, key) in [
        ("certified", "certified", "certified"),
        ("certified", "none", "certified"),
        ("certified", "twice", "twice"),
        ("certified", "foreign", "foreign"),
        ("certified", "certified", "none"),
        ("certified", "certified", "twice"),
        ("certified", "certified", "open"),
        ("certified", "certified", "encrypted"),
        ("twice", "twice", "twice"),
        ("twice", "none", "twice"),
        ("twice", "certified", "certified"),
    ] {
        for mode in ["prefer", "require"] {
            let files = format!("sslcert={folder}/{certificate}.crt sslkey={folder}/{key}.key");
            let dsn = tested.dsn(role, &format!("sslmode={mode} password={PASSWORD} {files}"));
            if tested.as_psql(&dsn).await == Outcome::Encrypted {
                accepted.push((role, certificate, mode));
            }
        }
    }
    let expected = [
        ("certified", "certified", "prefer"),
        ("certified", "certified", "require"),
        ("twice", "twice", "prefer"),
        ("twice", "twice", "require"),
    ];
    assert_eq!(accepted, expected);
    // libpq's places, and how to do without.
    let dsn = tested.dsn("certified", "sslmode=require");
    assert_eq!(tested.as_psql(&dsn).await, Outcome::Refused);
    let made = authority.signs(&nameless("certified"));
    tested.file(".postgresql/postgresql.crt", &made.chain);
    tested.file(".postgresql/postgresql.key", &made.key);
    assert_eq!(tested.as_psql(&dsn).await, Outcome::Encrypted);
    let (fault, side) = (
        connection(&format!("{dsn} sslcertmode=disable"), tested.folder.path()),
        waltrail::server::Side::Source,
    );
    assert_eq!(ours(&fault, side, "SQL").await.0, Outcome::Refused);
}

#[tokio::test]
async fn channel_binding_is_used_where_psql_uses_it() {
    let authority = Authority::new("ours");
    let mut tested = guarded(&authority).await;
    let mut outcomes = Vec::new();
    for role in ["secret", "old", "plain", "postgres"] {
        for binding in ["disable", "prefer", "require"] {
            for mode in ["disable", "require"] {
                let more = format!("sslmode={mode} channel_binding={binding} password={PASSWORD}");
                let outcome = tested.as_psql(&tested.dsn(role, &more)).await;
                if binding == "require" && outcome != Outcome::Refused {
                    outcomes.push((role, mode));
                }
            }
        }
    }
    // Only what is bound to the connection passes.
    assert_eq!(outcomes, [("secret", "require")]);
    // A certificate that is signed with another hash, here SHA-256 with RSA.
    tested.present(&super::authority::Made {
        chain: include_str!("manual/self.crt").to_owned(),
        key: include_str!("manual/server.key").to_owned(),
    });
    let more = format!("sslmode=require channel_binding=require password={PASSWORD}");
    let outcome = tested.as_psql(&tested.dsn("secret", &more)).await;
    assert_eq!(outcome, Outcome::Encrypted);
}

#[tokio::test]
async fn a_fault_of_tls_is_78_and_names_its_remedy() {
    let authority = Authority::new("ours");
    let mut tested = guarded(&authority).await;
    let root = tested.file("root.crt", &authority.certificate);
    let other = tested.file("other.crt", &Authority::new("other").certificate);
    let (root, other) = (root.display().to_string(), other.display().to_string());
    let wrong_host = tested
        .dsn(
            "postgres",
            &format!("sslmode=verify-full sslrootcert={root}"),
        )
        .replace("host=db.", "host=elsewhere.");
    let mut cases = vec![
        (
            wrong_host,
            "is not for the host elsewhere.waltrail.test, but for db.waltrail.test",
            "verify-ca",
        ),
        (
            tested.dsn(
                "postgres",
                &format!("sslmode=verify-ca sslrootcert={other}"),
            ),
            "signed by no authority that is trusted",
            other.as_str(),
        ),
        (
            tested.dsn("postgres", "sslmode=verify-ca sslrootcert=/nowhere.crt"),
            "/nowhere.crt (sslrootcert) does not exist",
            "sslrootcert=system",
        ),
        (
            tested.dsn(
                "secret",
                &format!("sslmode=disable channel_binding=require password={PASSWORD}"),
            ),
            "did not use channel binding",
            "scram-sha-256",
        ),
    ];
    for (dsn, says, hint) in cases.drain(..) {
        refused(&dsn, says, hint).await;
    }
    tested.set("ssl", "off");
    let dsn = tested.dsn("postgres", "sslmode=require");
    refused(&dsn, "does not support TLS", "ssl = on").await;
}

/// `prefer` tries without TLS, too; what the operator has to know is why the first way failed.
#[tokio::test]
async fn a_wrong_password_is_named_and_not_the_missing_line_of_the_other_way() {
    let tested = guarded(&Authority::new("ours")).await;
    let dsn = tested.dsn("narrow", "password=wrong");
    let mut process = Daemon::spawn(&config(&dsn, None, &["public.t"], ""));
    let (status, output) = process.wait(BOUND).await;
    assert_eq!(status.code(), Some(77), "{output}");
    assert!(
        output.contains("password authentication failed"),
        "{output}"
    );
    assert!(!output.contains("pg_hba.conf"), "{output}");
}

async fn refused(dsn: &str, says: &str, hint: &str) {
    let config = config(dsn, None, &["public.t"], "");
    for command in ["run", "status"] {
        let mut process = Daemon::spawn_with(&config, &[command], &[]);
        let (status, output) = process.wait(BOUND).await;
        assert_eq!(status.code(), Some(78), "{command} {dsn}: {output}");
        assert!(output.contains(says) && output.contains(hint), "{output}");
        assert!(!output.contains(PASSWORD), "{output}");
    }
}
