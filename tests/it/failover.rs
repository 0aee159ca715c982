//! Does the history stay exact when the source's place is taken by its standby?
//!
//! The history is on a server of its own. A proxy stands for the address that moves to the new primary. `FAILOVERS` is how
//! often each fail-over is done.

mod copied;
mod standby_source;
mod synced;
mod upgraded;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use throwaway::{Binaries, Builder, Cluster, StopMode};
use tokio_postgres::Client;

use crate::support::load::{Load, Plan};
use crate::support::proxy::Proxy;
use crate::support::scene::{SERVER_GONE, Scene, assert_clean};
use crate::support::{BOUND, builder, connect, each, wait_for_value, wait_until};

/// What the source may be missed with, and what a standby is waited for with.
const GONE: &[&str] = &[
    "which does not decode there",
    SERVER_GONE[0],
    SERVER_GONE[1],
    SERVER_GONE[2],
    SERVER_GONE[3],
    "waiting until this standby is promoted",
    "which was already read; waiting until it has",
];

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(done.unwrap().success());
}

/// With the programs of a version, or those that are found.
fn with(binaries: Option<&Binaries>) -> impl Fn(Builder) -> Builder {
    move |builder| match binaries {
        Some(found) => builder.binaries(found.clone()),
        None => builder,
    }
}

/// A source with a standby, `employees` on it, and an address that leads to the source.
struct Pair {
    scene: Scene,
    standby: Cluster,
    address: Proxy,
}

impl Pair {
    /// The standby has the slot `standby_1` on the primary, and these settings.
    async fn new(binaries: Option<&Binaries>, settings: &[(&str, &str)]) -> Self {
        let scene = Scene::two(with(binaries), |builder| builder).await;
        Self::of(scene, binaries, settings).await
    }

    /// As [`Pair::new`], of a scene without a daemon.
    async fn of(mut scene: Scene, binaries: Option<&Binaries>, settings: &[(&str, &str)]) -> Self {
        each(
            &scene.source,
            &["SELECT pg_create_physical_replication_slot('standby_1', true)"],
        )
        .await;
        let mut standby = with(binaries)(builder()).start().unwrap();
        standby.stop(StopMode::Fast).unwrap();
        scene.server.stop(StopMode::Fast).unwrap();
        let data = standby.data_dir();
        std::fs::remove_dir_all(&data).unwrap();
        copy(&scene.server.data_dir(), &data);
        // A slot is not copied with the data. The owner of the folder is kept.
        std::fs::remove_dir_all(data.join("pg_replslot/standby_1")).unwrap();
        // A file of the right owner, whose content does not matter.
        copy(&data.join("PG_VERSION"), &data.join("standby.signal"));
        let sockets = standby.socket_dir().display().to_string();
        let primary = scene.server.dsn_tcp("postgres") + " application_name=standby_1";
        let own = [
            ("unix_socket_directories", sockets.as_str()),
            ("primary_conninfo", primary.as_str()),
            ("primary_slot_name", "standby_1"),
            ("hot_standby_feedback", "on"),
        ];
        for (name, value) in own.iter().chain(settings) {
            standby.set(name, value).unwrap();
        }
        scene.server.start_again().unwrap();
        standby.start_again().unwrap();
        scene.reconnect().await;
        let streams = "SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'";
        wait_for_value(&scene.source, streams, true, BOUND).await;
        let address = scene.source_behind_proxy();
        Self {
            scene,
            standby,
            address,
        }
    }

    async fn on_standby(&self) -> Client {
        connect(&self.standby.dsn_socket("postgres")).await
    }

    /// Clients that follow the address.
    fn load(&self, seed: u64) -> Load {
        let address = format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres",
            self.address.port()
        );
        Plan::new(address, seed)
            .pause(Duration::from_millis(8))
            .start()
    }

    /// Waits until the standby has everything that the source has now.
    async fn standby_is_level(&self) {
        let end = "SELECT pg_current_wal_insert_lsn()::text";
        let end: String = crate::support::value(&self.scene.source, end).await;
        let reached = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
        wait_for_value(&self.on_standby().await, &reached, true, BOUND).await;
    }

    /// Promotes the standby, which takes the place of the source in the scene. Returns when that was.
    async fn promote(&mut self) -> Instant {
        let promoted = Instant::now();
        let client = self.on_standby().await;
        each(&client, &["SELECT pg_promote()"]).await;
        std::mem::swap(&mut self.scene.server, &mut self.standby);
        self.scene.source = client;
        promoted
    }

    /// Waits until a change that was made after the promotion is in the history.
    async fn first_row(&self, promoted: Instant) -> Duration {
        let insert = "INSERT INTO employees (name) VALUES ('first after the promotion')";
        each(&self.scene.source, &[insert]).await;
        let arrived =
            "SELECT count(*) > 0 FROM employees_cdc WHERE name LIKE '%first after the promotion'";
        wait_for_value(&self.scene.target, arrived, true, BOUND).await;
        promoted.elapsed()
    }

    /// Moves the address while clients work, and checks the history; how long it took to the first row.
    async fn fail_over(&mut self, load: Load, waits: bool) -> Duration {
        self.scene.server.kill9();
        if waits {
            self.address.lead_to(self.standby.port());
            let line = |line: &str| line.contains("waiting until this standby is promoted");
            self.scene.daemon().wait_log(BOUND, line).await;
        }
        let promoted = self.promote().await;
        self.address.lead_to(self.scene.server.port());
        let took = self.first_row(promoted).await;
        load.more(100).await;
        println!("first row {took:?} after the promotion; {:?}", load.stop());
        took
    }

    /// As [`Pair::fail_over`], where the history is in the source database.
    async fn fail_over_with_target(mut self, load: Load) {
        self.scene.server.kill9();
        let promoted = self.promote().await;
        self.address.lead_to(self.scene.server.port());
        self.scene.target = self.scene.target_session().await;
        let took = self.first_row(promoted).await;
        load.more(100).await;
        println!("first row {took:?} after the promotion; {:?}", load.stop());
        self.finish().await;
    }

    /// The history is exact, and the daemon ends in good order.
    async fn finish(mut self) -> Self {
        self.scene.finish(GONE).await;
        self
    }
}
