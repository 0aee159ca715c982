//! The two servers of a worker, for one schedule after the other.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use throwaway::{Builder, Cluster, StopMode};

use super::kind::{KINDS, Kind};
use crate::support::oracle::Oracle;
use crate::support::small_disk::{SmallFileSystem, small_file_system};
use crate::support::{EMPLOYEES, builder, connect, each};

/// The file systems go first, so that the servers' folders can be removed.
pub struct Rig {
    pub disks: Option<Disks>,
    /// What can be made here.
    pub kinds: Vec<Kind>,
    pub source: Cluster,
    pub target: Cluster,
}

/// Small file systems under the two servers.
pub struct Disks {
    _mounted: Vec<SmallFileSystem>,
    /// Takes the room of the tablespace `small`, of the source's server and of the target's.
    pub histories: [PathBuf; 2],
    /// Takes the room under the source's slots.
    pub slots: PathBuf,
}

/// Asynchronous commits stay unflushed for as long as the server allows, so that a crash takes many.
fn options(builder: Builder) -> Builder {
    builder
        .setting("wal_writer_delay", "10s")
        .setting("wal_writer_flush_after", "1GB")
        .setting("max_wal_size", "256MB")
        .setting("autovacuum_naptime", "5s")
        .setting("wal_sender_timeout", "5s")
        // Transactions of some hundred rows go through files beside the slots.
        .setting("logical_decoding_work_mem", "64kB")
}

impl Rig {
    pub async fn new(may_mount: bool) -> Self {
        let [mut source, target] = [(); 2].map(|()| options(builder()).start().unwrap());
        let disks = may_mount.then(|| mount(&mut source, &target));
        for server in [&source, &target] {
            let admin = connect(&server.dsn_socket("postgres")).await;
            each(&admin, &["CREATE DATABASE chaos"]).await;
            let template = connect(&server.dsn_socket("chaos")).await;
            each(&template, &[EMPLOYEES]).await;
            Oracle::install(&template, &["public.employees"]).await;
            if disks.is_some() {
                let location = server.folder().join("small");
                let space = format!("CREATE TABLESPACE small LOCATION '{}'", location.display());
                each(&admin, &[&space]).await;
            }
        }
        let possible = |kind: &Kind| kind.is_possible(may_mount);
        Self {
            disks,
            kinds: KINDS.into_iter().filter(possible).collect(),
            source,
            target,
        }
    }

    /// Servers that run, whatever the schedule before did to them.
    pub fn repair(&mut self) {
        if let Some(disks) = &self.disks {
            for filler in disks.histories.iter().chain([&disks.slots]) {
                let _ = std::fs::remove_file(filler);
            }
        }
        for server in [&mut self.source, &mut self.target] {
            // It may have ended by itself.
            let answers = std::net::TcpStream::connect(("127.0.0.1", server.port())).is_ok();
            if server.pid().is_none() || !answers {
                let _ = server.stop(StopMode::Immediate);
                server.start_again().unwrap();
            }
        }
    }

    /// Databases of these names, from the template.
    pub async fn make_databases(&self, name: &str) {
        for server in [&self.source, &self.target] {
            let admin = connect(&server.dsn_socket("postgres")).await;
            each(&admin, &[&format!("CREATE DATABASE {name} TEMPLATE chaos")]).await;
        }
    }

    pub async fn drop_databases(&self, name: &str) {
        for server in [&self.source, &self.target] {
            let admin = connect(&server.dsn_socket("postgres")).await;
            let slots = format!(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = '{name}' AND active;
                 SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '{name}' AND NOT active"
            );
            for _ in 0..100 {
                let _ = admin.batch_execute(&slots).await;
                let drop = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
                if admin.batch_execute(&drop).await.is_ok() {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

fn mount(source: &mut Cluster, target: &Cluster) -> Disks {
    let owner = std::fs::metadata(source.folder()).unwrap().uid();
    let small = |folder: &Path, megabytes: usize| {
        let options = format!("size={megabytes}m,mode=700,uid={owner}");
        small_file_system(folder, &options)
    };
    let histories = [&*source, target].map(|server| server.folder().join("small"));
    let mut mounted = Vec::new();
    for folder in &histories {
        std::fs::create_dir(folder).unwrap();
        mounted.push(small(folder, 64));
    }
    let slots = source.data_dir().join("pg_replslot");
    source.stop(StopMode::Fast).unwrap();
    mounted.push(small(&slots, 16));
    source.start_again().unwrap();
    Disks {
        _mounted: mounted,
        histories: histories.map(|folder| folder.join("filler")),
        slots: slots.join("filler"),
    }
}
