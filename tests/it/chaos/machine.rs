//! A machine that goes down takes the WAL that was not flushed; a server that goes down alone leaves what it has written.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use throwaway::{Cluster, StopMode};
use tokio_postgres::Client;

use super::sampler::position;
use crate::support::value;

/// The size of a segment, as initdb makes it.
const SEGMENT: u64 = 16 * 1024 * 1024;

/// Stops a server whose clients are quiet, and takes away what it had not flushed. Says how much that was.
pub async fn crash(server: &mut Cluster, client: &Client) -> Result<String, String> {
    let timeline: i32 = value(client, "SELECT timeline_id FROM pg_control_checkpoint()").await;
    let inserted = "SELECT pg_current_wal_insert_lsn()::text";
    let inserted = position(client, inserted).await;
    let flushed = "SELECT pg_current_wal_flush_lsn()::text";
    let flushed = position(client, flushed).await;
    server
        .stop(StopMode::Immediate)
        .map_err(|error| error.to_string())?;
    let (Ok(Some(inserted)), Ok(Some(flushed))) = (inserted, flushed) else {
        return Err("the target did not say how far its WAL is".to_owned());
    };
    let lsn = flushed.as_u64();
    let segment = lsn / SEGMENT;
    let per_name = 0x1_0000_0000 / SEGMENT;
    let name = format!(
        "pg_wal/{timeline:08X}{:08X}{:08X}",
        segment / per_name,
        segment % per_name
    );
    let file = File::options()
        .write(true)
        .open(server.data_dir().join(name))
        .map_err(|error| error.to_string())?;
    let at = lsn % SEGMENT;
    let nothing = vec![0; (SEGMENT - at) as usize];
    file.write_all_at(&nothing, at)
        .map_err(|error| error.to_string())?;
    Ok(format!(
        "{} bytes of WAL were lost",
        inserted.as_u64() - lsn
    ))
}
