//! `pg_recvlogical`: reads the stream and throws it away.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use throwaway::Cluster;

use super::Attempt;
use crate::server::{self, PUBLICATION, Transport};
use crate::usage::{Usage, Watch};

const SLOT: &str = "recvlogical";

/// One drain into `/dev/null`.
pub struct Drain {
    command: Command,
    running: Option<(Child, Watch)>,
}

impl Drain {
    /// Makes it ready to read a copy of the slot `base` up to the position `end`.
    ///
    /// # Errors
    /// The server fails.
    pub fn prepare(cluster: &Cluster, base: &str, end: &str, transport: Transport) -> Result<Self> {
        server::copy_slot(&mut server::connect(cluster, "postgres")?, base, SLOT)?;
        let mut command = Command::new(server::program(cluster, "pg_recvlogical"));
        command
            .arg("-h")
            .arg(transport.host(cluster))
            .args(["-p", &cluster.port().to_string()])
            .args(["-U", "postgres", "-d", "postgres", "-S", SLOT, "--start"])
            .args(["-o", "proto_version=1", "-o", "binary=true"])
            .args(["-o", &format!("publication_names={PUBLICATION}")])
            .args(["-f", "/dev/null", "-E", end, "--no-loop"])
            .env("PGSSLMODE", transport.sslmode())
            .stdin(Stdio::null());
        Ok(Self {
            command,
            running: None,
        })
    }
}

impl Attempt for Drain {
    fn start(&mut self) -> Result<()> {
        let process = self
            .command
            .spawn()
            .context("could not run pg_recvlogical")?;
        let watch = Watch::of(process.id())?;
        self.running = Some((process, watch));
        Ok(())
    }

    /// It ends by itself at the end of the WAL.
    fn is_done(&mut self) -> Result<bool> {
        let (_, watch) = self.running.as_mut().context("not started")?;
        Ok(!watch.look()?)
    }

    fn finish(&mut self) -> Result<Option<i64>> {
        let (process, _) = self.running.as_mut().context("not started")?;
        let status = process.wait()?;
        ensure!(status.success(), "pg_recvlogical ended with {status}");
        Ok(None)
    }

    fn usage(&self) -> Usage {
        self.running
            .as_ref()
            .map(|(_, watch)| watch.usage())
            .unwrap_or_default()
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        if let Some((process, _)) = &mut self.running {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
