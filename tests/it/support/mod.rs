//! What the integration tests share: servers, the daemon as a process, the oracle, the comparison of
//! the history with it, and a random workload. Nothing here knows how waltrail works inside; the
//! comparison in particular never sees logical decoding.

pub mod compare;
pub mod daemon;
pub mod http;
pub mod load;
pub mod moments;
pub mod namespace;
pub mod oracle;
pub mod proxy;
pub mod scene;
pub mod small_disk;
pub mod terminal;

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

use throwaway::{Binaries, Builder, Cluster};
use tokio_postgres::types::FromSql;
use tokio_postgres::{Client, NoTls};

/// How long anything may take on a machine that is busy with other tests.
pub const BOUND: Duration = Duration::from_secs(90);

macro_rules! design {
    () => {
        "
    CREATE TABLE employees (
        id SERIAL PRIMARY KEY, name VARCHAR(100), department VARCHAR(100), salary NUMERIC);
    CREATE TABLE employees_cdc (
        cdc_id SERIAL PRIMARY KEY,
        change_type VARCHAR(10),
        id INTEGER, name VARCHAR(100), department VARCHAR(100), salary NUMERIC,
        change_timestamp TIMESTAMP DEFAULT CURRENT_TIMESTAMP);"
    };
}

/// The two definitions of the design, exactly as they stand.
pub const DESIGN: &str = design!();

/// The same, and every name gets [`daemon::CANARY`].
pub const EMPLOYEES: &str = concat!(
    design!(),
    "
    CREATE FUNCTION marked() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.name <> '' THEN
            NEW.name := left('CANARY_7f3a' || replace(NEW.name, 'CANARY_7f3a', ''), 100);
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER marked BEFORE INSERT OR UPDATE ON employees
        FOR EACH ROW EXECUTE FUNCTION marked();"
);

/// The settings of a test server: quick to make, and it remembers when each transaction committed.
/// Add to it with the methods of [`Builder`]; `fresh_initdb()` gives it a system identifier of its own.
pub fn builder() -> Builder {
    Cluster::builder()
        .from_template()
        .setting("track_commit_timestamp", "on")
}

/// The programs of this version, where `make test-versions` has put them, or where `WALTRAIL_PG_BIN_<version>` says they are.
/// None, said in a line of output, where they are missing.
pub fn other_version(major: u32) -> Option<Binaries> {
    let fetched = format!(
        "{}/target/postgres/{major}/native/bin",
        env!("CARGO_MANIFEST_DIR")
    );
    let folder = std::env::var(format!("WALTRAIL_PG_BIN_{major}")).unwrap_or(fetched);
    let found = Binaries::at(&folder).ok();
    let found = found.filter(|binaries| binaries.major() == major);
    if found.is_none() {
        println!("not tried: there is no PostgreSQL {major} in {folder}");
    }
    found
}

/// A running test server, and a connection to its database `postgres`.
pub async fn server() -> (Cluster, Client) {
    server_with(|builder| builder).await
}

/// As [`server`], with more options.
pub async fn server_with(options: impl FnOnce(Builder) -> Builder) -> (Cluster, Client) {
    let cluster = options(builder())
        .start()
        .expect("the test server should start");
    let client = connect(&cluster.dsn_socket("postgres")).await;
    (cluster, client)
}

/// A connection whose other half runs by itself until the client is dropped.
pub async fn connect(dsn: &str) -> Client {
    try_connect(dsn)
        .await
        .unwrap_or_else(|error| panic!("could not connect to {dsn}: {error:?}"))
}

/// As [`connect`], for servers that may be down.
pub async fn try_connect(dsn: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await?;
    tokio::spawn(async move {
        // The client sees the same failure in its next call.
        let _ = connection.await;
    });
    Ok(client)
}

/// Runs the statements one by one, each in a transaction of its own unless it begins one.
pub async fn each(client: &Client, statements: &[&str]) {
    for statement in statements {
        if let Err(error) = client.batch_execute(statement).await {
            panic!("{statement}: {error:?}");
        }
    }
}

/// The first column of the one row that a query gives.
pub async fn value<T>(client: &Client, query: &str) -> T
where
    T: for<'a> FromSql<'a>,
{
    match client.query_one(query, &[]).await {
        Ok(row) => row.get(0),
        Err(error) => panic!("{query}: {error:?}"),
    }
}

/// All rows of a query that gives one text column.
pub async fn texts(client: &Client, query: &str) -> Vec<Option<String>> {
    match client.query(query, &[]).await {
        Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
        Err(error) => panic!("{query}: {error:?}"),
    }
}

/// Polls until `condition` gives something, and returns it.
///
/// # Panics
/// Naming `what`, when `timeout` is over.
pub async fn wait_until<T, F, Fut>(what: &str, timeout: Duration, mut condition: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(
            start.elapsed() < timeout,
            "waited {timeout:?} in vain until {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// As [`wait_until`], for a query whose first column is compared with the value that it should have.
pub async fn wait_for_value<T>(client: &Client, query: &str, wanted: T, timeout: Duration)
where
    T: PartialEq + Debug + for<'a> FromSql<'a>,
{
    let start = Instant::now();
    loop {
        let seen: T = value(client, query).await;
        if seen == wanted {
            return;
        }
        assert!(
            start.elapsed() < timeout,
            "waited {timeout:?} in vain until {query} gives {wanted:?}; it gives {seen:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The source of a daemon that has only this connection string.
pub fn source(dsn: &str) -> waltrail::config::Source {
    let flags = waltrail::config::Flags {
        source: Some(dsn.to_owned()),
        ..Default::default()
    };
    waltrail::config::Config::from_toml("", &flags, &waltrail::config::Environment::empty())
        .unwrap()
        .source
}
