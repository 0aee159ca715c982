//! Everything that speaks to the walsender. Knows no rows and no target.

pub(crate) mod backlog;
pub(crate) mod commits;
pub(crate) mod failover;
pub mod feedback;
pub mod frame;
pub(crate) mod pace;
pub mod replication;
pub(crate) mod slot;
pub mod stream;

use crate::fault::{Fault, Side};
use crate::wire;

pub fn failed(what: &str, error: wire::Error) -> Fault {
    let fault = Fault::new(error.disposition(), format!("the source {what}")).of(Side::Source);
    match error.server().map(|report| report.code.as_str()) {
        Some("53400") => fault.remedy(
            "raise max_replication_slots on the source and restart it, or drop an unused slot (SELECT slot_name, active \
             FROM pg_replication_slots)",
        ),
        Some("42704") => fault.remedy("check whether the slot or the publication was dropped"),
        Some("42501") => fault.remedy("ALTER ROLE ... REPLICATION on the source"),
        Some("58P01") => fault.remedy(
            "the WAL that the slot needs is gone: see the slot's wal_status in pg_replication_slots",
        ),
        _ => fault,
    }
    .caused_by(error)
}
