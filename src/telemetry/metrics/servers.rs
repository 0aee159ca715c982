//! What the observer saw of both servers: the slot, the WAL that it keeps, what is wrong.

use std::fmt;

use super::Sources;
use super::out::Out;
use crate::status::{SlotStatus, Spill, Status};
use crate::telemetry::warnings::CODES;

const WAL_STATUS: [&str; 4] = ["reserved", "extended", "unreserved", "lost"];

pub(super) fn servers(sources: &Sources, out: &mut Out<'_, '_>) -> fmt::Result {
    let seen = sources.observed.latest();
    let seen = seen.as_deref();
    up(seen, out)?;
    slot(seen, out)?;
    spill(seen.and_then(|seen| seen.spill.as_ref()), out)?;
    warnings(seen, out)
}

fn up(seen: Option<&Status>, out: &mut Out<'_, '_>) -> fmt::Result {
    let sides = seen.into_iter().flat_map(|seen| {
        [
            ("source", &seen.source_error),
            ("target", &seen.target_error),
        ]
    });
    out.gauges(
        "up",
        "1 where the server answered the last question",
        "side",
        sides.map(|(side, error)| (side, if error.is_none() { 1.0 } else { 0.0 })),
    )
}

fn slot(seen: Option<&Status>, out: &mut Out<'_, '_>) -> fmt::Result {
    let slot = seen.and_then(|seen| seen.source.as_ref());
    let of = |value: &dyn Fn(&SlotStatus) -> Option<i64>| Some(value(slot?)?.max(0) as f64);
    out.gauge_if_known(
        "slot_retained_bytes",
        "WAL that the source keeps for the slot",
        of(&|slot| slot.retained_bytes),
    )?;
    out.gauge_if_known(
        "slot_limit_bytes",
        "How much the source keeps for a slot: max_slot_wal_keep_size; absent without a limit",
        of(&|slot| bytes(&slot.max_slot_wal_keep_size)),
    )?;
    out.gauge_if_known(
        "slot_safe_bytes",
        "How much more WAL may be written before the slot is lost; absent without a limit",
        of(&|slot| slot.safe_wal_size),
    )?;
    let rate = seen.and_then(|seen| seen.rate);
    out.gauge_if_known(
        "slot_seconds_left",
        "Until the slot is lost at the present rate; absent without a limit or growth",
        rate.and_then(|rate| rate.seconds_left),
    )?;
    let present = slot.and_then(|slot| slot.wal_status.as_deref());
    let states = present.into_iter().flat_map(|present| {
        WAL_STATUS.map(|status| (status, f64::from(u8::from(status == present))))
    });
    out.gauges(
        "slot_wal_status",
        "1 for the present wal_status of the slot",
        "status",
        states,
    )
}

fn spill(spill: Option<&Spill>, out: &mut Out<'_, '_>) -> fmt::Result {
    type Of = fn(&Spill) -> i64;
    let counters: [(&str, &str, Of); 4] = [
        (
            "slot_spilled_transactions",
            "Transactions that the source put on its disk while it decoded them",
            |spill| spill.spill_txns,
        ),
        ("slot_spilled_bytes", "Bytes of them", |spill| {
            spill.spill_bytes
        }),
        (
            "slot_streamed_transactions",
            "Transactions that the source sent before their end",
            |spill| spill.stream_txns,
        ),
        ("slot_streamed_bytes", "Bytes of them", |spill| {
            spill.stream_bytes
        }),
    ];
    for (name, help, of) in counters {
        let value = spill.map(|spill| u64::try_from(of(spill)).unwrap_or(0));
        out.counter_if_known(name, help, value)?;
    }
    Ok(())
}

fn warnings(seen: Option<&Status>, out: &mut Out<'_, '_>) -> fmt::Result {
    let codes = seen.into_iter().flat_map(|seen| {
        let holds = |code| {
            seen.verdict
                .reasons
                .iter()
                .any(|reason| reason.code == code)
        };
        CODES.map(|code| (code, f64::from(u8::from(holds(code)))))
    });
    out.gauges(
        "warning",
        "1 while `waltrail status` gives this reason",
        "code",
        codes,
    )
}

/// A setting as the server shows it, such as `64MB`; none: no limit.
fn bytes(setting: &str) -> Option<i64> {
    let digits = setting.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: i64 = digits.parse().ok().filter(|number| *number >= 0)?;
    let shift = match &setting[digits.len()..] {
        "" | "MB" => 20,
        "B" => 0,
        "kB" => 10,
        "GB" => 30,
        "TB" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_of_the_server_is_a_number_of_bytes() {
        for (setting, wanted) in [
            ("-1", None),
            ("0", Some(0)),
            ("1000MB", Some(1000 << 20)),
            ("64kB", Some(64 << 10)),
            ("10GB", Some(10 << 30)),
            ("2TB", Some(2 << 40)),
            ("10 GB", None),
            ("", None),
        ] {
            assert_eq!(bytes(setting), wanted, "{setting}");
        }
    }
}
