//! The throw-away servers that are measured, and sessions on them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use postgres::{Client, NoTls};
use throwaway::Cluster;

/// The publication of every source. It is the daemon's default name.
pub const PUBLICATION: &str = "waltrail";
/// The name of a session of the application whose life is measured.
pub const APPLICATION: &str = "app";
/// The name of a session whose CPU time is the benchmark's own.
pub const BENCHMARK: &str = "bench";
/// How long a slot may stay active after its reader has gone.
const RELEASE_MAX: Duration = Duration::from_secs(10);

/// How a contender reaches the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP over the loopback interface.
    Tcp,
    /// The same, encrypted.
    Tls,
    /// Unix socket.
    Unix,
}

impl Transport {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Tls, Self::Unix];

    /// As a command line has it.
    #[must_use]
    pub fn keyword(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Unix => "unix",
        }
    }

    /// libpq's `sslmode`.
    #[must_use]
    pub fn sslmode(self) -> &'static str {
        match self {
            Self::Tls => "require",
            Self::Tcp | Self::Unix => "disable",
        }
    }

    /// As it stands in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
            Self::Unix => "Unix socket",
        }
    }

    /// How to reach a database this way, by libpq's keywords.
    #[must_use]
    pub fn dsn(self, cluster: &Cluster, database: &str) -> String {
        let dsn = match self {
            Self::Tcp | Self::Tls => cluster.dsn_tcp(database),
            Self::Unix => cluster.dsn_socket(database),
        };
        format!("{dsn} sslmode={}", self.sslmode())
    }

    /// The host and the port, for programs that want them apart.
    #[must_use]
    pub fn host(self, cluster: &Cluster) -> PathBuf {
        match self {
            Self::Tcp | Self::Tls => PathBuf::from("127.0.0.1"),
            Self::Unix => cluster.socket_dir().to_owned(),
        }
    }
}

/// A client program of the server's own version: beside the server, and where that is a link, beside what it leads to.
#[must_use]
pub fn program(cluster: &Cluster, name: &str) -> PathBuf {
    let beside = cluster.binaries().program(name);
    let server = cluster.binaries().program("postgres");
    match server.canonicalize() {
        Ok(server) if !beside.is_file() => server.with_file_name(name),
        _ => beside,
    }
}

/// A server with enough memory not to be what is measured. No fsync, which is the default of these clusters: a disk's
/// bad moments would be blamed on whoever is measured then.
///
/// # Errors
/// It cannot be made here.
pub fn start(subscribes: bool) -> Result<Cluster> {
    start_with(subscribes, &[])
}

/// The same with further settings.
///
/// # Errors
/// It cannot be made here.
pub fn start_with(subscribes: bool, settings: &[(&str, &str)]) -> Result<Cluster> {
    let mut builder = Cluster::builder()
        .setting("shared_buffers", "256MB")
        .setting("max_wal_size", "8GB")
        .setting("autovacuum", "off");
    if subscribes {
        // By default a subscription's worker starts up to five seconds late.
        builder = builder.setting("wal_retrieve_retry_interval", "50ms");
    }
    for (name, value) in settings {
        builder = builder.setting(*name, *value);
    }
    let mut cluster = builder.start().context("could not start a PostgreSQL")?;
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    server_file(&cluster, "server.crt", &key.cert.pem())?;
    server_file(&cluster, "server.key", &key.signing_key.serialize_pem())?;
    cluster.set("ssl", "on")?;
    Ok(cluster)
}

/// A file of the server's own, which no one else may read.
fn server_file(cluster: &Cluster, name: &str, text: &str) -> Result<()> {
    let data = cluster.data_dir();
    let owner = fs::metadata(&data)?;
    let path = data.join(name);
    fs::write(&path, text)?;
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
    chown(&path, Some(owner.uid()), Some(owner.gid()))?;
    Ok(())
}

/// "PostgreSQL" and the version, without the packager's words.
#[must_use]
pub fn version(cluster: &Cluster) -> String {
    let said = cluster.binaries().version();
    let number = said.trim_start_matches("postgres (PostgreSQL) ");
    let number = number.split_whitespace().next().unwrap_or_default();
    format!("PostgreSQL {number}")
}

/// A session for the benchmark's own needs.
///
/// # Errors
/// The server refuses.
pub fn connect(cluster: &Cluster, database: &str) -> Result<Client> {
    connect_by(Transport::Unix, cluster, database)
}

/// A session over a given transport.
///
/// # Errors
/// The server refuses.
pub fn connect_by(transport: Transport, cluster: &Cluster, database: &str) -> Result<Client> {
    Client::connect(&transport.dsn(cluster, database), NoTls)
        .with_context(|| format!("could not connect to database {database}"))
}

/// A session that `pg_stat_activity` shows by a name.
///
/// # Errors
/// The server refuses.
pub fn connect_as(
    name: &str,
    transport: Transport,
    cluster: &Cluster,
    database: &str,
) -> Result<Client> {
    let dsn = transport.dsn(cluster, database);
    Client::connect(&format!("{dsn} application_name={name}"), NoTls)
        .with_context(|| format!("could not connect to database {database}"))
}

/// Drops a slot once its reader has let go of it.
///
/// # Errors
/// Somebody holds on to it.
pub fn drop_slot(client: &mut Client, name: &str) -> Result<()> {
    let drop =
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1";
    let deadline = Instant::now() + RELEASE_MAX;
    while let Err(error) = client.execute(drop, &[&name]) {
        if Instant::now() > deadline {
            bail!("slot {name} cannot be dropped: {error}");
        }
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Makes `name` a copy of the slot `base`, which stays: the copy reads the very same WAL.
///
/// # Errors
/// The server refuses.
pub fn copy_slot(client: &mut Client, base: &str, name: &str) -> Result<()> {
    drop_slot(client, name)?;
    client.execute(
        "SELECT pg_copy_logical_replication_slot($1, $2)",
        &[&base, &name],
    )?;
    Ok(())
}

/// Makes a slot that starts here and now.
///
/// # Errors
/// The server refuses.
pub fn create_slot(client: &mut Client, name: &str) -> Result<()> {
    drop_slot(client, name)?;
    client.execute(
        "SELECT pg_create_logical_replication_slot($1, 'pgoutput')",
        &[&name],
    )?;
    Ok(())
}
