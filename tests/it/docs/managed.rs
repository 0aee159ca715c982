//! The documents, followed on a server that is arranged like one of a managed service.

use throwaway::Cluster;
use tokio_postgres::Client;

use super::set_up::{PATIENCE, Place, ROWS, employees, execute, stop, streaming};
use super::{block, code, document};
use crate::support::{connect, each, server_with, value, wait_for_value};
use crate::tls::certify;

/// The lines of its `pg_hba.conf`, which a user does not see: waltrail is let in by TLS alone.
const HBA: [&str; 4] = [
    "local all postgres trust",
    "local all all reject",
    "host all administrator ::1/128 scram-sha-256",
    "hostssl all all ::1/128 scram-sha-256",
];

/// No Unix socket and no IPv4 for its users; WAL is kept for slots up to a small limit; the administrator is no superuser. Returns
/// the administrator's connection, and the service's own.
async fn managed() -> (Cluster, Client, Client) {
    let (cluster, service) = server_with(|builder| {
        let builder = builder
            .setting("listen_addresses", "::1")
            .setting("max_slot_wal_keep_size", "64MB")
            .setting("rds.logical_replication", "on");
        HBA.into_iter().fold(builder, throwaway::Builder::hba)
    })
    .await;
    let administrator =
        "CREATE ROLE administrator LOGIN CREATEROLE CREATEDB REPLICATION PASSWORD 'canary'";
    each(
        &service,
        &[administrator, "CREATE DATABASE app OWNER administrator"],
    )
    .await;
    let dsn = format!(
        "host=::1 port={} user=administrator password=canary dbname=app",
        cluster.port()
    );
    (cluster, connect(&dsn).await, service)
}

#[tokio::test]
async fn the_documents_lead_to_a_history_on_a_server_like_a_managed_one() {
    let (mut cluster, administrator, service) = managed().await;
    let root = certify(&mut cluster);
    let version: i32 = value(
        &service,
        "SELECT current_setting('server_version_num')::int",
    )
    .await;
    each(&administrator, &["CREATE ROLE app_owner; GRANT app_owner TO administrator; GRANT CREATE ON SCHEMA public TO app_owner"]).await;
    employees(&administrator).await;
    // Before 16 only a superuser gives REPLICATION: a service does it in its own way.
    for statement in block("roles")
        .split(";\n")
        .filter(|statement| !statement.trim().is_empty())
    {
        let by_service = version < 160_000 && statement.contains("REPLICATION");
        execute(
            if by_service { &service } else { &administrator },
            statement,
        )
        .await;
    }
    let superusers = "SELECT count(*) FROM pg_roles WHERE rolsuper AND rolname LIKE ANY (ARRAY['waltrail%', 'admin%', 'app%'])";
    assert_eq!(value::<i64>(&service, superusers).await, 0);

    let folder = tempfile::tempdir().unwrap();
    let root_file = folder.path().join("root.crt");
    std::fs::write(&root_file, root).unwrap();
    let place = Place::new(format!(
        "host=::1 port={} sslmode=verify-full sslrootcert={}",
        cluster.port(),
        root_file.display()
    ));
    let config = place.config("");
    administrator
        .batch_execute("INSERT INTO employees (name) VALUES ('canary Ada')")
        .await
        .unwrap();
    let printed = place.set_up();
    assert!(printed.ends_with("-- nothing is missing\n"), "{printed}");
    let daemon = streaming(&config).await;
    administrator
        .batch_execute("INSERT INTO employees (name) VALUES ('canary Bob')")
        .await
        .unwrap();
    wait_for_value(&service_in(&cluster).await, ROWS, 2i64, PATIENCE).await;
    let encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'waltrail'";
    assert!(value::<bool>(&service, encrypted).await);
    stop(daemon).await;
}

async fn service_in(cluster: &Cluster) -> Client {
    connect(&cluster.dsn_socket("app")).await
}

/// A page that a beginner follows asks for a superuser only where PostgreSQL does.
#[test]
fn no_page_of_the_start_needs_more_than_postgresql_asks_for() {
    for name in ["self-hosted", "managed", "docker", "systemd"] {
        let page = document(&format!("docs/start/{name}.md"));
        for statement in page
            .split("```sql\n")
            .skip(1)
            .map(|rest| rest.split("```").next().unwrap())
        {
            assert!(!statement.contains("SUPERUSER"), "{name}: {statement}");
        }
        assert!(
            !code(page).any(|word| word.contains("user=postgres")),
            "{name}"
        );
    }
}
