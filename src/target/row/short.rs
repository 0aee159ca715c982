//! Rows that are short, in binary and of one tuple: nearly all of them.
//!
//! What such a row consists of beside the tuple's values is the same for each change of a kind, but for a number
//! or two. It is put together once per shape ([`Short`]), so that a row is a few copies into room that was made
//! for all of it at once. Short pieces are copied by lengths that the compiler knows: as a window that what follows
//! overwrites or, at the end of a message, the first half and, over its end, the last half.
//!
//! Nothing is refused here: what is not such a row is left to [`super::write`], with the buffer as it was.

use super::{Binary, Format, NULL, Written};
use crate::lsn::Lsn;
use crate::pgoutput::{Field, Head, Plain, PlainKind, PlainValues, WINDOW};
use crate::schema::plan::{Own, OwnForm, Plan, change_type};
use crate::target::buffer::Buffer;
use crate::transaction::Open;

/// No short row takes more bytes: a column of one byte on the wire, which is NULL, takes four, and as many where old
/// values are recorded; the rest is for waltrail's own columns.
pub const ROW_MAX: usize = 8 * WIRE_MAX + 256;
/// What follows the values is copied in pieces of so many bytes: often one.
const PIECE: usize = 32;
/// Longer rows gain nothing: for them it is the copy that takes the time, and room is filled with zeros first.
const WIRE_MAX: usize = 1024;

/// How short rows of one plan are written; by default none is.
#[derive(Debug, Default)]
pub struct Short {
    width: [u8; 2],
    /// All but the last one.
    columns: Box<[Column]>,
    last: Column,
    /// Of each kind of change that can be such a row.
    kinds: Box<[Kind]>,
    /// Where in `kinds` that of the last change is: the next one is likely to be of the same.
    turn: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Column {
    recorded: bool,
    key: bool,
}

/// How short rows of one kind of change are written.
#[derive(Debug)]
struct Kind {
    /// What such changes begin with.
    head: Head,
    /// The tuple holds but the key.
    of_key: bool,
    /// Values that the WAL does not carry.
    unavailable: u32,
    tail: Tail,
}

/// What follows the values of the tuple.
#[derive(Debug)]
struct Tail {
    /// By its commit position, the transaction that it is filled in for; none commits at zero.
    of: Lsn,
    /// In pieces, of which the last is not full.
    pieces: Box<[[u8; PIECE]]>,
    length: usize,
    /// What a row takes at most beside the tuple's bytes: on the wire a NULL takes one byte, in the row four.
    room: usize,
    /// Where there is what differs from transaction to transaction.
    varying: Box<[(usize, Own, OwnForm)]>,
    /// Where there is the number of the change.
    tx_seq: Option<(usize, OwnForm)>,
}

impl Short {
    /// How short rows of this plan are written, for changes of this relation.
    #[must_use]
    pub fn new(plan: &Plan, relation: u32) -> Self {
        let mut columns: Vec<Column> = plan
            .columns
            .iter()
            .map(|column| Column {
                recorded: column.recorded,
                key: column.key,
            })
            .collect();
        // A row has fewer than 2^15 columns.
        let width = columns.len() as u16;
        let Some(last) = columns.pop() else {
            return Self::default();
        };
        let missing = plan
            .columns
            .iter()
            .filter(|column| column.recorded && !column.key)
            .count();
        let names_missing = missing > 0
            && plan
                .own
                .iter()
                .any(|(own, _)| *own == Own::UnavailableColumns);
        let kind = |kind, change_type| {
            let of_key = kind == PlainKind::DeleteKey;
            Kind {
                head: Head::new(kind, relation, width),
                of_key,
                unavailable: if of_key { missing as u32 } else { 0 },
                tail: Tail::new(plan, change_type),
            }
        };
        let mut kinds = Vec::new();
        if plan.binary {
            kinds.push(kind(PlainKind::Insert, change_type::INSERT));
            // Where old values are recorded, only a new row has none.
            if !plan.records_old {
                kinds.push(kind(PlainKind::Update, change_type::UPDATE));
                if !names_missing {
                    kinds.push(kind(PlainKind::DeleteKey, change_type::DELETE));
                }
                kinds.push(kind(PlainKind::DeleteFull, change_type::DELETE));
            }
        }
        Self {
            width: plan.width.to_be_bytes(),
            columns: columns.into(),
            last,
            kinds: kinds.into(),
            turn: 0,
        }
    }

    /// Whether changes that begin like this can be written.
    #[inline]
    #[must_use]
    pub fn takes(&self, head: Head) -> bool {
        self.kinds.iter().any(|kind| kind.head == head)
    }

    /// Appends the rows of `next` and the `messages` behind it, and numbers them in `tx`, up to the first message that
    /// is not known to be a well-formed change of this plan that becomes a short row. That one is then `next`, and
    /// has changed nothing.
    #[inline(always)]
    pub fn write<'m>(
        &mut self,
        tx: &mut Open,
        next: &mut Option<&'m [u8]>,
        messages: &mut impl Iterator<Item = &'m [u8]>,
        out: &mut Buffer,
    ) -> Written {
        let before = tx.recorded;
        let mut unavailable = 0;
        while let Some(message) = *next {
            if self.write_one(tx, message, out, &mut unavailable).is_none() {
                break;
            }
            *next = messages.next();
        }
        Written {
            // Far fewer than 2^32 messages.
            rows: (tx.recorded - before) as u32,
            unavailable,
        }
    }

    /// Appends one row and counts the values that the WAL does not carry.
    #[inline(always)]
    fn write_one(
        &mut self,
        tx: &mut Open,
        message: &[u8],
        out: &mut Buffer,
        unavailable: &mut u32,
    ) -> Option<()> {
        let Plain { head, values } = Plain::parse(message)?;
        let kind = match self.kinds.get_mut(self.turn) {
            Some(kind) if kind.head == head => kind,
            _ => {
                self.turn_to(head)?;
                self.kinds.get_mut(self.turn)?
            }
        };
        if values.left() > WIRE_MAX {
            return None;
        }
        let tail = &mut kind.tail;
        if tail.of != tx.commit_lsn {
            tail.fill(tx)?;
        }
        let mut row = Room(out.room(values.left() + tail.room));
        row.put(self.width)?;
        if kind.of_key {
            row = put_key(&self.columns, self.last, values, row)?;
            // Nothing fails from here on: there is room for the rest. Counting behind it costs a twentieth of the whole.
            *unavailable += kind.unavailable;
        } else {
            row = put_values(&self.columns, self.last, values, row)?;
        }
        let recorded = tx.recorded + 1;
        let place = row.put_pieces(&tail.pieces, tail.length)?;
        if let Some((at, form)) = tail.tx_seq {
            put_number(place.get_mut(at..)?, form, recorded)?;
        }
        let left = row.0.len();
        out.all_but(left);
        tx.recorded = recorded;
        Some(())
    }

    #[cold]
    #[inline(never)]
    fn turn_to(&mut self, head: Head) -> Option<()> {
        self.turn = self.kinds.iter().position(|kind| kind.head == head)?;
        Some(())
    }
}

/// The values of a whole tuple.
#[inline(always)]
fn put_values<'a>(
    columns: &[Column],
    last: Column,
    mut values: PlainValues<'_>,
    mut row: Room<'a>,
) -> Option<Room<'a>> {
    for &column in columns {
        if let Some((window, length)) = values.window() {
            if column.recorded {
                row.put_window(window, length)?;
            }
        } else {
            (values, row) = put_value(column, values, row)?;
        }
    }
    // Behind it there is no room for a window.
    if let Some(field) = values.last_binary() {
        if last.recorded {
            row.put_field(field)?;
        }
        return Some(row);
    }
    (values, row) = put_value(last, values, row)?;
    (values.left() == 0).then_some(row)
}

/// A value of any length, or NULL. Cold, so that its code does not stand in the way of the others.
#[cold]
#[inline(never)]
fn put_value<'v, 'a>(
    column: Column,
    mut values: PlainValues<'v>,
    mut row: Room<'a>,
) -> Option<(PlainValues<'v>, Room<'a>)> {
    if let Some(field) = values.binary() {
        if column.recorded {
            row.put_field(field)?;
        }
        return Some((values, row));
    }
    put_null(column, values, row)
}

#[inline(always)]
fn put_null<'v, 'a>(
    column: Column,
    mut values: PlainValues<'v>,
    mut row: Room<'a>,
) -> Option<(PlainValues<'v>, Room<'a>)> {
    if !values.null() {
        return None;
    }
    if column.recorded {
        row.put(NULL)?;
    }
    Some((values, row))
}

/// The values of a tuple that holds the key, and NULL for all other columns.
#[inline(never)]
fn put_key<'a>(
    columns: &[Column],
    last: Column,
    mut values: PlainValues<'_>,
    mut row: Room<'a>,
) -> Option<Room<'a>> {
    for column in columns.iter().copied().chain([last]) {
        (values, row) = match column.key {
            true => put_value(column, values, row)?,
            false => put_null(column, values, row)?,
        };
    }
    (values.left() == 0).then_some(row)
}

impl Tail {
    fn new(plan: &Plan, kind: &str) -> Self {
        let mut bytes = Vec::new();
        let mut varying = Vec::new();
        let mut tx_seq = None;
        for _ in plan.columns.iter().filter(|column| column.recorded_old) {
            Binary::null(&mut bytes);
        }
        for &(own, form) in &plan.own {
            let at = bytes.len() + NULL.len();
            match own {
                Own::ChangeType => Binary::bytes(&mut bytes, kind.as_bytes()),
                Own::ChangedColumns | Own::UnavailableColumns => Binary::null(&mut bytes),
                Own::TxSeq => {
                    tx_seq = Some((at, form));
                    Binary::number(&mut bytes, form, 0);
                }
                Own::ChangeTimestamp | Own::CommitLsn | Own::Xid => {
                    varying.push((at, own, form));
                    Binary::number(&mut bytes, form, 0);
                }
            }
        }
        let length = bytes.len();
        bytes.resize(length.next_multiple_of(PIECE), 0);
        Self {
            of: Lsn::ZERO,
            room: size_of_val(&plan.width) + NULL.len() * plan.columns.len() + bytes.len() + WINDOW,
            pieces: bytes.as_chunks().0.into(),
            length,
            varying: varying.into(),
            tx_seq,
        }
    }

    /// Fills in what is the same for all changes of a transaction.
    #[inline(never)]
    fn fill(&mut self, tx: &Open) -> Option<()> {
        for &(at, own, form) in &self.varying {
            let number = match own {
                Own::ChangeTimestamp => tx.commit_time.0.cast_unsigned(),
                Own::CommitLsn => tx.commit_lsn.as_u64(),
                _ => u64::from(tx.xid),
            };
            put_number(self.pieces.as_flattened_mut().get_mut(at..)?, form, number)?;
        }
        self.of = tx.commit_lsn;
        Some(())
    }
}

/// What is left of the room for a row.
struct Room<'a>(&'a mut [u8]);

impl<'a> Room<'a> {
    /// The room for the next `length` bytes.
    #[inline(always)]
    fn take(&mut self, length: usize) -> Option<&'a mut [u8]> {
        let (taken, rest) = std::mem::take(&mut self.0).split_at_mut_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    #[inline(always)]
    fn put<const N: usize>(&mut self, bytes: [u8; N]) -> Option<()> {
        put(self.take(N)?, bytes)
    }

    #[inline(always)]
    fn put_field(&mut self, field: Field<'_>) -> Option<()> {
        let bytes = field.with_length();
        copy(self.take(bytes.len())?, bytes)
    }

    /// Puts the first `length` bytes of all pieces, and tells where; what else is in them is overwritten by the next row.
    #[inline(always)]
    fn put_pieces(&mut self, pieces: &[[u8; PIECE]], length: usize) -> Option<&'a mut [u8]> {
        match pieces {
            [piece] => *self.0.first_chunk_mut()? = *piece,
            pieces => put_many(self.0, pieces)?,
        }
        self.take(length)
    }

    /// Puts the first `length` bytes; what else is in the window is overwritten by what is put next.
    #[inline(always)]
    fn put_window(&mut self, window: &[u8; WINDOW], length: usize) -> Option<()> {
        *self.0.first_chunk_mut()? = *window;
        self.take(length).map(drop)
    }
}

#[inline(never)]
fn put_many(place: &mut [u8], pieces: &[[u8; PIECE]]) -> Option<()> {
    place
        .get_mut(..size_of_val(pieces))?
        .copy_from_slice(pieces.as_flattened());
    Some(())
}

#[inline(always)]
fn put<const N: usize>(place: &mut [u8], bytes: [u8; N]) -> Option<()> {
    *place.first_chunk_mut()? = bytes;
    Some(())
}

#[inline(always)]
fn put_number(place: &mut [u8], form: OwnForm, number: u64) -> Option<()> {
    match form {
        // See `Binary::number`.
        OwnForm::Int4 => put(place, (number as u32).to_be_bytes()),
        _ => put(place, number.to_be_bytes()),
    }
}

/// Copies fields, each of which has at least its length, into as much room. There is no call in it, which would cost
/// the walk over the values its registers.
#[inline(always)]
fn copy(room: &mut [u8], fields: &[u8]) -> Option<()> {
    match fields.len() {
        0 => {}
        1..4 => return None,
        4..=8 => copy_ends::<4>(room, fields),
        9..=16 => copy_ends::<8>(room, fields),
        17..=32 => copy_ends::<16>(room, fields),
        33.. => {
            let pieces = fields.as_chunks::<16>().0;
            for (room, piece) in room.as_chunks_mut().0.iter_mut().zip(pieces) {
                *room = *piece;
            }
            copy_ends::<16>(room, fields);
        }
    }
    Some(())
}

/// Copies the first and the last `N` bytes into as much room.
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
        for length in (0..=bytes.len()).filter(|length| !(1..4).contains(length)) {
            let mut room = vec![0; length];
            let mut row = Room(&mut room);
            copy(row.take(length).unwrap(), &bytes[..length]).unwrap();
            assert!(row.0.is_empty());
            assert_eq!(room, bytes[..length]);
        }
    }
}
