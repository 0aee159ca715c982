//! Pictures for the tests of this room.

use super::*;

fn lsn(position: u64) -> Lsn {
    Lsn::from_u64(position)
}

/// A daemon that streams one table.
pub(super) fn good() -> Status {
    Status {
        verdict: Verdict {
            level: Level::Good,
            state: "streaming",
            reasons: Vec::new(),
        },
        at: "2026-11-29T06:12:40Z".to_owned(),
        version: "0.1.0",
        slot: "waltrail".to_owned(),
        source: Some(SlotStatus {
            active: true,
            active_pid: Some(101),
            confirmed_flush_lsn: Some(lsn(0x1a00_0000)),
            restart_lsn: Some(lsn(0x1900_0000)),
            wal_status: Some("reserved".to_owned()),
            invalidation_reason: None,
            current_wal_lsn: lsn(0x1a00_0100),
            retained_bytes: Some(0x100_0100),
            catalog_xmin_age: Some(12),
            temp_bytes: None,
            safe_wal_size: Some(900 << 20),
            max_slot_wal_keep_size: "1GB".to_owned(),
            failover: None,
            synced: false,
        }),
        source_error: None,
        target_error: None,
        publication: Some(PublicationStatus {
            name: "waltrail".to_owned(),
            exists: true,
            tables: 1,
        }),
        checkpoint: Some(CheckpointStatus {
            end_lsn: Some(lsn(0x1a00_0000)),
            reported_lsn: Some(lsn(0x1a00_0000)),
            commit_timestamp: Some("2026-11-29 06:12:38.5+00".to_owned()),
            commit_age_seconds: Some(2.0),
            updated_at: "2026-11-29 06:12:38.6+00".to_owned(),
        }),
        source_snapshot: None,
        lag_bytes: Some(0),
        lag_seconds: Some(0.0),
        rate: Some(Rate {
            wal_bytes_per_second: 1_258_291.0,
            rows_per_second: Some(812.0),
            seconds_left: None,
        }),
        servers: Servers {
            source_version: Some("15.14".to_owned()),
            source_role: Some("primary"),
            target_version: Some("15.14".to_owned()),
        },
        daemon: Some(Daemon {
            pid: 102,
            host: Some("10.0.0.7".to_owned()),
            since: Some("2026-11-28T20:00:00Z".to_owned()),
            silent_seconds: Some(1.0),
        }),
        waits: None,
        clock_offset_seconds: Some(0.001),
        oldest_transaction: None,
        spill: None,
        exact: false,
        tables: vec![table("public.employees")],
    }
}

pub(super) fn table(name: &str) -> TableStatus {
    TableStatus {
        source: name.to_owned(),
        history: format!("{name}_cdc"),
        rows: Some(1_234_567),
        rows_error: None,
        snapshot: Some(snapshot("done")),
        gap: None,
    }
}

pub(super) fn snapshot(state: &str) -> SnapshotStatus {
    SnapshotStatus {
        state: state.to_owned(),
        consistent_point: Some(lsn(0x10_0000)),
        rows: 450,
        bytes: 45_000,
        rows_estimated: Some(1_000),
        rows_per_second: Some(50.0),
        seconds_left: Some(11.0),
        held_bytes: 2_048,
        still_seconds: None,
    }
}

pub(super) fn gap(accepted: bool) -> GapStatus {
    GapStatus {
        from_lsn: lsn(0x20),
        to_lsn: lsn(0x40),
        reason: "the slot was lost".to_owned(),
        found_at: "2026-11-29 05:00:00+00".to_owned(),
        accepted_at: accepted.then(|| "2026-11-29 05:10:00+00".to_owned()),
    }
}

/// One with a value for everything there is.
pub(super) fn full() -> Status {
    let mut status = good();
    status.verdict.reasons = vec![Reason {
        code: "lagging",
        level: Level::Warning,
        text: "text".to_owned(),
        remedy: "remedy".to_owned(),
    }];
    status.source_error = Some("away".to_owned());
    status.target_error = Some("away".to_owned());
    status.source_snapshot = Some(SnapshotHeld {
        sessions: 1,
        seconds: 2.0,
        xmin_age: 3,
    });
    status.waits = Some(Waits {
        seconds: 12.0,
        lock: Some("public.employees_cdc".to_owned()),
        held_by: vec![Holder {
            pid: 7,
            application: Some("report".to_owned()),
            statement: Some("LOCK TABLE employees_cdc".to_owned()),
        }],
    });
    status.oldest_transaction = Some(OldTransaction {
        pid: Some(8),
        application: Some("psql".to_owned()),
        seconds: Some(700.0),
        xmin_age: 55,
    });
    status.spill = Some(Spill {
        spill_txns: 1,
        spill_bytes: 2,
        stream_txns: 3,
        stream_bytes: 4,
        total_txns: 5,
        total_bytes: 6,
    });
    if let Some(slot) = &mut status.source {
        slot.invalidation_reason = Some("rows_removed".to_owned());
        slot.temp_bytes = Some(1);
        slot.failover = Some(true);
    }
    if let Some(rate) = &mut status.rate {
        rate.seconds_left = Some(100_000.0);
    }
    let table = &mut status.tables[0];
    table.rows_error = Some("locked".to_owned());
    table.gap = Some(gap(true));
    table.snapshot = Some(SnapshotStatus {
        still_seconds: Some(1.0),
        ..snapshot("copying")
    });
    status
}
