//! Does `waltrail init` show the right tables, and does the file that it writes lead to history?
//!
//! Without a terminal by `--tables`, and on one by typing.

mod asked;
mod many;
mod named;

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use throwaway::Cluster;
use tokio_postgres::Client;
use waltrail::config::{Config, Environment, Flags};

use crate::support::BOUND;
use crate::support::daemon::{Daemon, run};
use crate::support::scene::streaming;
use crate::support::terminal::Typist;

/// A screen as most people have it.
const SMALL: (u16, u16) = (24, 80);

/// An empty folder in which `init` is run.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self) -> PathBuf {
        self.path().join("waltrail.toml")
    }

    /// `waltrail init` without a terminal: exit code, standard output, standard error.
    #[track_caller]
    fn init(&self, dsn: &str, args: &[&str]) -> (i32, String, String) {
        let args = [&["init", "--source", dsn], args].concat();
        let (status, out, err) = run(self.path(), &args, &[]);
        (status.code().unwrap_or(-1), out, err)
    }

    /// The same, which must succeed: standard output.
    #[track_caller]
    fn written(&self, dsn: &str, args: &[&str]) -> String {
        let (code, out, err) = self.init(dsn, args);
        assert_eq!((code, err.as_str()), (0, ""), "{out}");
        out
    }

    /// `waltrail init` on a terminal.
    fn ask(&self, args: &[&str]) -> Typist {
        Typist::spawn(self.path(), &[&["init"], args].concat(), SMALL)
    }

    /// The text of the file.
    fn text(&self) -> String {
        std::fs::read_to_string(self.file()).unwrap()
    }

    /// The file as the program reads it.
    fn config(&self) -> Config {
        let environment = Environment::empty().with_os_user("os");
        Config::from_toml(&self.text(), &Flags::default(), &environment)
            .unwrap_or_else(|fault| panic!("{fault}\n{}", self.text()))
    }

    /// The tables of the file, with their histories, as SQL names them.
    fn tables(&self) -> Vec<(String, String)> {
        let tables = self.config().tables;
        let names = tables.iter();
        names
            .map(|table| (table.source.to_string(), table.history.to_string()))
            .collect()
    }

    /// Nothing was written, and nothing is left.
    #[track_caller]
    fn is_empty(&self) {
        let files: Vec<_> = self.path().read_dir().unwrap().collect();
        assert!(files.is_empty(), "{files:?}");
    }

    /// `waltrail check`, `setup` and `run` with the file as it is, until the daemon streams.
    async fn streams(&self) -> Daemon {
        let text = self.text();
        for command in ["check", "setup"] {
            let (status, output) = Daemon::spawn_with(&text, &[command], &[]).wait(BOUND).await;
            assert_eq!(status.code(), Some(0), "{command}: {output}");
        }
        let mut daemon = Daemon::spawn(&format!("{text}\n[log]\nformat = \"json\"\n"));
        streaming(&mut daemon).await;
        daemon
    }
}

async fn ends(mut daemon: Daemon) {
    daemon.sigterm();
    let (status, output) = daemon.wait(BOUND).await;
    assert_eq!(status.code(), Some(0), "{output}");
}

/// What there is in a database, but for PostgreSQL's own: relations, publications, slots.
async fn objects(client: &Client) -> String {
    crate::support::value(
        client,
        "SELECT concat_ws(' ',
             (SELECT string_agg(c.oid::regclass::text, ',' ORDER BY c.oid) FROM pg_class c
                JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'),
             (SELECT count(*) FROM pg_publication), (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_namespace))",
    )
    .await
}

fn dsn(cluster: &Cluster) -> String {
    cluster.dsn_socket("postgres")
}

/// Names that SQL has to quote, or that are as long as they can be.
const WEIRD: &str = r#"
    CREATE SCHEMA "My Schema";
    CREATE TABLE "My Schema"."a.b" (id int PRIMARY KEY);
    CREATE TABLE "My Schema"."with space, and comma" (id int PRIMARY KEY);
    CREATE TABLE "My Schema"."say ""hi"" it's" (id int PRIMARY KEY);
    CREATE TABLE "My Schema"."back\slash" (id int PRIMARY KEY);
    CREATE TABLE "My Schema"."new
line" (id int PRIMARY KEY);
    CREATE TABLE public."Upper" (id int PRIMARY KEY);
    CREATE TABLE public."straße 日本" (id int PRIMARY KEY);
    CREATE TABLE public."user" (id int PRIMARY KEY);
    CREATE TABLE public."a=b*c" (id int PRIMARY KEY);
    CREATE TABLE public.xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx (id int PRIMARY KEY);"#;

/// How many these are.
const WEIRD_TABLES: i64 = 10;
