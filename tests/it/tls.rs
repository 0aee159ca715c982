//! Is each connection accepted, refused and encrypted exactly as psql's with the same string?

mod authority;
mod between;
mod clients;
mod following;
mod hosts;
mod matrix;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use throwaway::{Builder, Cluster};
use tokio_postgres::Client;
use waltrail::config::{Config, Connection, Environment, Flags};
use waltrail::server::{Side, channel, sql};

use crate::support::server_with;
use authority::Made;

/// The name that a good certificate is for.
const HOST: &str = "db.waltrail.test";

/// Whether the connection that asks is encrypted.
const ENCRYPTED: &str = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

/// Roles that are let in by what is in their name only.
const ROLES: [(&str, [&str; 2]); 2] = [
    ("only_tls", ["hostssl", "hostnossl"]),
    ("only_plain", ["hostnossl", "hostssl"]),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Refused,
    Plain,
    Encrypted,
}

impl Outcome {
    fn of(answer: Option<&str>) -> Self {
        match answer {
            Some("t") => Self::Encrypted,
            Some("f") => Self::Plain,
            _ => Self::Refused,
        }
    }
}

/// A server that is given certificates, and the files of those who connect.
struct Tested {
    cluster: Cluster,
    client: Client,
    folder: tempfile::TempDir,
    changes: u32,
}

impl Tested {
    async fn new(options: impl FnOnce(Builder) -> Builder) -> Self {
        let (cluster, client) = server_with(|mut builder| {
            builder = options(builder);
            for (role, [lets, refuses]) in ROLES {
                builder = builder
                    .hba(format!("{lets} all {role} 127.0.0.1/32 trust"))
                    .hba(format!("{refuses} all {role} 127.0.0.1/32 reject"));
            }
            builder
        })
        .await;
        for (role, _) in ROLES {
            let create = format!("CREATE ROLE {role} LOGIN REPLICATION");
            client.batch_execute(&create).await.unwrap();
        }
        Self {
            cluster,
            client,
            folder: tempfile::tempdir().unwrap(),
            changes: 0,
        }
    }

    /// A file of one who connects.
    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path
    }

    /// Gives the server a certificate, which the next connections see.
    fn present(&mut self, made: &Made) {
        present(&mut self.cluster, made);
        self.set("ssl", "on");
    }

    fn set(&mut self, name: &str, value: &str) {
        self.cluster.set(name, value).unwrap();
        // A value that was there already is not read as a change: this one is, and the files with it.
        self.changes += 1;
        let changes = self.changes.to_string();
        self.cluster.set("waltrail.changes", &changes).unwrap();
    }

    fn dsn(&self, role: &str, more: &str) -> String {
        let port = self.cluster.port();
        format!("host={HOST} hostaddr=127.0.0.1 port={port} user={role} dbname=postgres {more}")
    }

    /// Each kind of connection of each side, with psql's as the measure.
    async fn as_psql(&self, dsn: &str) -> Outcome {
        let home = self.folder.path();
        let asked = (dsn.to_owned(), home.to_owned());
        // Others of this thread may have to answer it.
        let expected = tokio::task::spawn_blocking(move || by_psql(&asked.0, &asked.1));
        let expected = expected.await.unwrap();
        for side in [Side::Source, Side::Target] {
            for kind in ["SQL", "replication"] {
                let (outcome, fault) = ours(&connection(dsn, home), side, kind).await;
                assert_eq!(
                    outcome, expected.0,
                    "{side} {kind} {dsn}\n{}\n{fault}",
                    expected.1
                );
            }
        }
        expected.0
    }
}

/// A file of the server's own.
fn server_file(cluster: &Cluster, name: &str, text: &str) {
    let data = cluster.data_dir();
    let owner = std::fs::metadata(&data).unwrap();
    let path = data.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
}

/// Puts a certificate where the server looks for it.
fn present(cluster: &mut Cluster, made: &Made) {
    server_file(cluster, "server.crt", &made.chain);
    server_file(cluster, "server.key", &made.key);
    cluster.set("ssl", "on").unwrap();
}

/// Gives a server a certificate for `::1`, and returns the root that signed it.
pub(crate) fn certify(cluster: &mut Cluster) -> String {
    let root = authority::Authority::new("root");
    let mut params = authority::nameless("server");
    let address = rcgen::SanType::IpAddress(std::net::Ipv6Addr::LOCALHOST.into());
    params.subject_alt_names.push(address);
    present(cluster, &root.signs(&params));
    root.certificate
}

fn connection(dsn: &str, home: &Path) -> Connection {
    let flags = Flags {
        source: Some(dsn.to_owned()),
        ..Default::default()
    };
    let environment = Environment::empty().with("HOME", home.to_str().unwrap());
    let config = Config::from_toml("", &flags, &environment);
    config
        .unwrap_or_else(|fault| panic!("{dsn}: {fault}"))
        .source
        .connection
}

/// What became of one connection, and why.
async fn ours(connection: &Connection, side: Side, kind: &str) -> (Outcome, String) {
    if kind == "SQL" {
        return match sql(connection, side).await {
            Ok(client) => {
                let row = client.query_one(ENCRYPTED, &[]).await.unwrap();
                let answer = if row.get(0) { "t" } else { "f" };
                (Outcome::of(Some(answer)), String::new())
            }
            Err(fault) => (Outcome::Refused, told(&fault)),
        };
    }
    let replication = [("replication", "database")];
    match channel(connection, side, &replication, 4096).await {
        Ok((mut channel, _)) => {
            let rows = channel.simple_query(ENCRYPTED).await.unwrap();
            (Outcome::of(rows[0][0].as_deref()), String::new())
        }
        Err(fault) => (Outcome::Refused, told(&fault)),
    }
}

fn told(fault: &waltrail::fault::Fault) -> String {
    format!("{fault}; hint: {}", fault.remedy_text().unwrap_or_default())
}

/// psql's own answer, and its words.
fn by_psql(dsn: &str, home: &Path) -> (Outcome, String) {
    let output = Command::new(psql())
        .args(["-XAtw", "-c", ENCRYPTED, "-d", dsn])
        .env_clear()
        .env("HOME", home)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let answer = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (
        Outcome::of(output.status.success().then_some(&*answer)),
        said,
    )
}

/// Beside the server's programs, or where a package or the path has it.
fn psql() -> PathBuf {
    let mut folders = vec![throwaway::Binaries::find().unwrap().folder().to_owned()];
    let packages = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    folders.extend(packages.flatten().map(|version| version.path().join("bin")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    folders.extend(std::env::split_paths(&path));
    let found = folders.iter().map(|folder| folder.join("psql"));
    found
        .into_iter()
        .find(|psql| psql.is_file())
        .expect("these tests need psql: install postgresql-client")
}
