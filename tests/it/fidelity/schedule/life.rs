//! The daemon's life in a schedule, and what people do to its publication.

use std::time::{Duration, Instant};

use super::super::tables::describe;
use super::{Life, Schedule};
use crate::support::daemon::Daemon;
use crate::support::scene::streaming;
use crate::support::{BOUND, value};

/// The source is looked at every ten seconds.
const NOTICED: Duration = Duration::from_secs(25);

impl Schedule<'_> {
    pub(super) async fn start(&mut self, wait: bool) -> Result<(), String> {
        self.note("daemon", "start");
        let mut daemon = Daemon::spawn(&self.config);
        if wait && !self.config.contains("initial") {
            streaming(&mut daemon).await;
        }
        self.daemon = Some(daemon);
        Ok(())
    }

    pub(super) async fn stop(&mut self) -> Result<(), String> {
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(());
        };
        self.note("daemon", "stop");
        daemon.sigterm();
        let (status, output) = daemon.wait(BOUND).await;
        self.saw(&output);
        match status.code() {
            Some(0) => Ok(()),
            // It had hardly begun.
            None if output.is_empty() => Ok(()),
            code => Err(format!("the daemon ended with {code:?}\n{output}")),
        }
    }

    pub(super) fn saw(&mut self, output: &str) {
        self.counts.backlogs += usize::from(output.contains("\"catching up\""));
    }

    pub(super) async fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            self.note("daemon", "kill -9");
            daemon.kill9();
            let output = daemon.output();
            self.saw(&output);
            self.counts.kills += 1;
        }
    }

    /// What the daemon's life asks for now.
    pub(super) async fn disturb(&mut self) -> Result<(), String> {
        if self.daemon.is_none() {
            if self.life == Life::Behind {
                self.fall_behind().await;
            }
            return self.start(false).await;
        }
        match self.life {
            Life::Live => {
                let pause = Duration::from_millis(self.rng.u64(..30));
                tokio::time::sleep(pause).await;
                match self.rng.bool() {
                    true => self.recorded().await,
                    false => Ok(()),
                }
            }
            Life::Away | Life::Behind => self.stop().await,
            Life::Killed => {
                self.kill().await;
                match self.rng.bool() {
                    true => self.start(false).await,
                    false => Ok(()),
                }
            }
        }
    }

    /// Hides changes for a while. The daemon must notice it, and a person accepts the gap.
    pub(super) async fn alter_publication(&mut self) -> Result<(), String> {
        self.may_alter = false;
        // Before that the history has not begun.
        self.recorded().await?;
        self.altered = Some(self.now().await);
        let chosen = self.rng.usize(..self.tables.len());
        let (name, _) = describe(&self.source, self.tables[chosen].oid)
            .await
            .unwrap();
        let ways = [
            (format!("DROP TABLE {name}"), format!("ADD TABLE {name}")),
            (
                "SET (publish = 'insert')".to_owned(),
                "SET (publish = 'insert, update, delete, truncate')".to_owned(),
            ),
        ];
        let (alter, repair) = &ways[self.rng.usize(..ways.len())];
        self.alter(alter).await;
        for _ in 0..self.rng.usize(2..8) {
            self.step().await;
        }
        self.finish_transactions().await;
        self.alter(repair).await;
        if self.rng.u8(..3) > 0 {
            self.kill().await;
        }
        self.refused().await
    }

    /// By the source's clock, in microseconds since 1970.
    async fn now(&self) -> i64 {
        let now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
        value(&self.source, now).await
    }

    pub(super) async fn alter(&mut self, how: &str) {
        let sql = format!("ALTER PUBLICATION waltrail {how}");
        self.note("source", &sql);
        // A daemon that starts may have put it right itself; what was hidden is hidden.
        let _ = self.source.batch_execute(&sql).await;
    }

    /// The daemon stops with 65; the gap is accepted, and it starts again.
    pub(super) async fn refused(&mut self) -> Result<(), String> {
        if self.daemon.is_none() {
            self.start(false).await?;
        }
        let mut daemon = self.daemon.take().expect("it was started");
        let start = Instant::now();
        while daemon.is_running() {
            if start.elapsed() > NOTICED {
                return Err(format!(
                    ": Missing: the altered publication is not noticed\n{}",
                    daemon.output()
                ));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let (status, output) = daemon.wait(BOUND).await;
        if status.code() != Some(65) {
            return Err(format!("not refused, but {status:?}: {output}"));
        }
        self.note("waltrail", "accept-gap");
        let mut command = Daemon::spawn_with(&self.config, &["accept-gap"], &[]);
        let (status, output) = command.wait(BOUND).await;
        match status.code() {
            Some(0) => {
                self.repaired = Some(self.now().await);
                self.start(false).await
            }
            code => Err(format!("accept-gap ended with {code:?}: {output}")),
        }
    }

    /// Two more segments of WAL, nearly empty.
    pub(super) async fn fall_behind(&mut self) {
        for _ in 0..2 {
            self.source
                .batch_execute(
                    "SELECT pg_logical_emit_message(false, '', ''); SELECT pg_switch_wal()",
                )
                .await
                .unwrap();
        }
    }
}
