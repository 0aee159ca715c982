//! Rows that are short, in binary and whole: nearly all of them.
//!
//! A `Vec` knows its length in memory, and each of the twenty small pieces of a row would wait for the one before
//! it. Here the room for the whole row is taken at once, and pieces go to where a register says. Short pieces
//! are copied by lengths that the compiler knows: the first half and, over its end, the last half.

use super::RowError;
use crate::pgoutput::{Tuple, Value};
use crate::schema::plan::{Own, OwnForm, Plan};
use crate::transaction::Open;

/// Longer rows gain nothing: for them it is the copy that takes the time, and room is filled with zeros first.
const WIRE_MAX: usize = 1024;
/// Of one of waltrail's own columns: length and the longest value, `change_type`.
const OWN_MAX: usize = 4 + 12;
const NULL: [u8; 4] = (-1i32).to_be_bytes();

/// Appends the row of a change that has all of its new values and no old ones; `false` when it is not of that
/// kind, and then nothing was appended.
///
/// # Errors
/// As [`super::write`].
#[inline]
pub(super) fn write(
    plan: &Plan,
    tx: &Open,
    kind: &'static str,
    new: Tuple<'_>,
    out: &mut Vec<u8>,
) -> Result<bool, RowError> {
    if new.wire_len() > WIRE_MAX {
        return Ok(false);
    }
    let start = out.len();
    // On the wire a NULL takes one byte, in the row four.
    let room = 2 + new.wire_len() + NULL.len() * plan.columns.len() + OWN_MAX * plan.own.len();
    out.resize(start + room, 0);
    let mut row = Room(&mut out[start..]);
    row.put(plan.width.to_be_bytes());
    let mut values = super::walk(plan, &new)?;
    for column in &plan.columns {
        if let Some(field) = values.next_binary() {
            if column.recorded {
                row.put_field(field.with_length());
            }
            continue;
        }
        let value = super::next(&mut values)?;
        if !column.recorded {
            continue;
        }
        match value {
            Value::Binary(field) => row.put_field(field.with_length()),
            Value::Null => row.put(NULL),
            Value::Text(_) => return Err(RowError::NeedsText),
            Value::Unchanged => {
                out.truncate(start);
                return Ok(false);
            }
        }
    }
    for &(own, form) in &plan.own {
        match own {
            Own::ChangeType => {
                // Far below 2^31 bytes.
                row.put((kind.len() as u32).to_be_bytes());
                row.put_field(kind.as_bytes());
            }
            Own::ChangeTimestamp => row.put_long(tx.commit_time.0.cast_unsigned()),
            Own::CommitLsn => row.put_long(tx.commit_lsn.as_u64()),
            Own::TxSeq => row.put_number(form, tx.recorded),
            Own::Xid => row.put_number(form, u64::from(tx.xid)),
            Own::ChangedColumns | Own::UnavailableColumns => row.put(NULL),
        }
    }
    let unused = row.0.len();
    out.truncate(start + room - unused);
    Ok(true)
}

/// What is left of the room for a row.
struct Room<'a>(&'a mut [u8]);

impl<'a> Room<'a> {
    /// The room for the next `length` bytes.
    #[inline(always)]
    fn take(&mut self, length: usize) -> &'a mut [u8] {
        // `write` made enough room: a row that does not fit is a bug, and this the check for it.
        let (taken, rest) = std::mem::take(&mut self.0).split_at_mut(length);
        self.0 = rest;
        taken
    }

    #[inline(always)]
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.take(N).copy_from_slice(&bytes);
    }

    #[inline(always)]
    fn put_long(&mut self, value: u64) {
        self.put(8u32.to_be_bytes());
        self.put(value.to_be_bytes());
    }

    #[inline(always)]
    fn put_number(&mut self, form: OwnForm, number: u64) {
        match form {
            // See `Binary::number`.
            OwnForm::Int4 => {
                self.put(4u32.to_be_bytes());
                self.put((number as u32).to_be_bytes());
            }
            _ => self.put_long(number),
        }
    }

    #[inline(always)]
    fn put_field(&mut self, bytes: &[u8]) {
        let length = bytes.len();
        let room = self.take(length);
        if !(4..=32).contains(&length) {
            room.copy_from_slice(bytes);
        } else if length > 16 {
            copy_ends::<16>(room, bytes);
        } else if length > 8 {
            copy_ends::<8>(room, bytes);
        } else {
            copy_ends::<4>(room, bytes);
        }
    }
}

/// Copies between `N` and `2 * N` bytes into as much room.
#[inline(always)]
fn copy_ends<const N: usize>(room: &mut [u8], bytes: &[u8]) {
    let last = bytes.len() - N;
    room[..N].copy_from_slice(&bytes[..N]);
    room[last..][..N].copy_from_slice(&bytes[last..][..N]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_every_length_are_copied_whole() {
        let bytes: Vec<u8> = (1..=100).collect();
        for length in 0..=bytes.len() {
            let mut room = vec![0; length];
            let mut row = Room(&mut room);
            row.put_field(&bytes[..length]);
            assert!(row.0.is_empty());
            assert_eq!(room, bytes[..length]);
        }
    }
}
