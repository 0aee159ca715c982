//! How changes are put aside whose table is not joined yet: what would have gone to the history, and the statement that takes
//! it, as a row of `waltrail.held`. `held.rs` adds them later.

use bytes::BufMut;

use super::batch::Rows;
use super::gate::Piece;
use super::outgoing::Outgoing;
use crate::wire::{COPY_HEADER, COPY_TRAILER, Error};

/// The statement that takes it.
pub(super) const HOLD: &str = "COPY waltrail.held (slot, history, lsn, copy, guard, opening, rows) FROM STDIN (FORMAT binary)";

/// Appends the COPY that puts these rows aside; `name`: of the prepared [`HOLD`].
pub(super) fn copy<'a>(
    name: &str,
    slot: &str,
    pieces: &[(&'a Rows, Piece)],
    out: &mut Outgoing<'a>,
) -> Result<(), Error> {
    out.execute(name)?;
    out.copy_data(COPY_HEADER);
    let mut head: Vec<u8> = Vec::with_capacity(256);
    for &(rows, (lsn, start, end)) in pieces {
        let plan = rows.plan();
        let history = plan.history.to_string();
        // Statements are far below 2^31 bytes, a batch is below 2^30. There may be a piece a row, so that statements
        // are not copied for each.
        head.clear();
        head.put_u16(7);
        head.put_u32(slot.len() as u32);
        head.put_slice(slot.as_bytes());
        head.put_u32(history.len() as u32);
        head.put_slice(history.as_bytes());
        head.put_u32(8);
        head.put_u64(lsn.as_u64());
        head.put_u32(plan.copy.len() as u32);
        out.copy_data(&head);
        out.copy_data_by_reference(plan.copy.as_bytes());
        head.clear();
        out.copy_data(&(plan.guard.len() as u32).to_be_bytes());
        out.copy_data_by_reference(plan.guard.as_bytes());
        out.copy_data(&(plan.opening.len() as u32).to_be_bytes());
        out.copy_data_by_reference(plan.opening.as_bytes());
        head.put_u32((end - start) as u32);
        out.copy_data(&head);
        out.copy_data_by_reference(&rows.bytes()[start..end]);
    }
    out.copy_data(COPY_TRAILER);
    postgres_protocol::message::frontend::copy_done(&mut out.own);
    Ok(())
}
