//! Rows that are short, in binary and of one tuple, all of which is recorded: nearly all of them.
//!
//! What such a row consists of beside the tuple's values is the same for each change of a kind, but for a number
//! or two. It is put together once per shape ([`Short`]), so that a row is a few copies into room that was made
//! for all of it at once. Short pieces are copied by lengths that the compiler knows: as a window that what follows
//! overwrites or, at the end of a message, the first half and, over its end, the last half. A row without its tail
//! takes at most 255 bytes, so that a place in it is a byte and the room an array in which any byte is a place.
//!
//! Nothing is refused here: what is not such a row is left to [`super::write`], with the buffer as it was.

use super::{Binary, Format, NULL, Written};
use crate::lsn::Lsn;
use crate::pgoutput::{Head, Plain, PlainKind, PlainValues, WINDOW};
use crate::schema::plan::{Own, OwnForm, Plan, change_type};
use crate::target::buffer::Buffer;
use crate::transaction::Open;

/// What precedes the values: how many there are.
type Width = [u8; 2];
/// A row takes so many bytes at most without what follows its tuple.
const TUPLE_MAX: usize = u8::MAX as usize;
/// And that takes as many at most.
const TAIL_MAX: usize = 128;
/// What follows the tuple is copied at once, if it is not longer than this; often it is not.
const TAIL_OFTEN: usize = 32;
/// No short row takes more bytes.
pub const ROW_MAX: usize = TUPLE_MAX + TAIL_MAX;

/// How short rows of one plan are written; by default none is.
#[derive(Debug, Default)]
pub struct Short {
    width: Width,
    /// Of each column of the tuple, whether it belongs to the key.
    keys: Box<[bool]>,
    /// Of each kind of change that can be such a row.
    kinds: Box<[Kind]>,
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
    bytes: [u8; TAIL_MAX],
    length: usize,
    /// Where there is what differs from transaction to transaction.
    varying: Box<[(usize, Own, OwnForm)]>,
    /// Where there is the number of the change.
    tx_seq: Option<(usize, OwnForm)>,
}

impl Short {
    /// How short rows of this plan are written, for changes of this relation.
    #[must_use]
    pub fn new(plan: &Plan, relation: u32) -> Self {
        let all_recorded = plan.columns.iter().all(|column| column.recorded);
        if !plan.binary || !all_recorded || plan.columns.is_empty() {
            return Self::default();
        }
        let keys: Box<[bool]> = plan.columns.iter().map(|column| column.key).collect();
        let missing = keys.iter().filter(|&key| !key).count();
        let names_missing = missing > 0
            && plan
                .own
                .iter()
                .any(|(own, _)| *own == Own::UnavailableColumns);
        let mut taken = vec![(PlainKind::Insert, change_type::INSERT)];
        // Where old values are recorded, only a new row has none.
        if !plan.records_old {
            taken.push((PlainKind::Update, change_type::UPDATE));
            if !names_missing {
                taken.push((PlainKind::DeleteKey, change_type::DELETE));
            }
            taken.push((PlainKind::DeleteFull, change_type::DELETE));
        }
        let kinds = taken.into_iter().filter_map(|(kind, change_type)| {
            let of_key = kind == PlainKind::DeleteKey;
            Some(Kind {
                head: Head::new(kind, relation, keys.len() as u16),
                of_key,
                // A row has fewer than 2^15 columns.
                unavailable: if of_key { missing as u32 } else { 0 },
                tail: Tail::new(plan, change_type)?,
            })
        });
        Self {
            width: plan.width.to_be_bytes(),
            kinds: kinds.collect(),
            keys,
        }
    }

    /// Whether changes that begin like this can be written.
    #[inline]
    #[must_use]
    pub fn takes(&self, head: Head) -> bool {
        self.kinds.iter().any(|kind| kind.head == head)
    }

    /// Appends the rows of `next` and the `messages` behind it that begin with `head`, and numbers them in `tx`, up to
    /// the first message that is not known to be a well-formed change of this plan that becomes a short row. That one
    /// is then `next`, and has changed nothing.
    #[inline]
    pub fn write<'m>(
        &mut self,
        head: Head,
        tx: &mut Open,
        next: &mut Option<&'m [u8]>,
        messages: &mut impl Iterator<Item = &'m [u8]>,
        out: &mut Buffer,
    ) -> Written {
        let Some(kind) = self.kinds.iter_mut().find(|kind| kind.head == head) else {
            return Written::default();
        };
        if kind.tail.of != tx.commit_lsn {
            kind.tail.fill(tx);
        }
        let run = Run {
            head,
            width: self.width,
            keys: &self.keys,
            tail: &kind.tail,
        };
        let before = tx.recorded;
        // The walk over the values is the price of a row: a step of it costs less where it is known how many there are.
        match self.keys.len() {
            _ if kind.of_key => run.write::<OF_KEY>(tx, next, messages, out),
            1 => run.write::<1>(tx, next, messages, out),
            2 => run.write::<2>(tx, next, messages, out),
            3 => run.write::<3>(tx, next, messages, out),
            4 => run.write::<4>(tx, next, messages, out),
            5 => run.write::<5>(tx, next, messages, out),
            6 => run.write::<6>(tx, next, messages, out),
            7 => run.write::<7>(tx, next, messages, out),
            8 => run.write::<8>(tx, next, messages, out),
            _ => run.write::<ANY>(tx, next, messages, out),
        }
        // Far fewer than 2^32 messages.
        let rows = (tx.recorded - before) as u32;
        Written {
            rows,
            unavailable: rows * kind.unavailable,
        }
    }
}

/// Stands for a number of columns that is not known beforehand,
const ANY: usize = 0;
/// and for that of a tuple that holds but the key.
const OF_KEY: usize = usize::MAX;

/// Changes of one kind, one after the other.
struct Run<'t> {
    head: Head,
    width: Width,
    keys: &'t [bool],
    tail: &'t Tail,
}

impl Run<'_> {
    /// See [`Short::write`]. Not inlined, so that the walk over the values has the registers.
    #[inline(never)]
    fn write<'m, const COLUMNS: usize>(
        &self,
        tx: &mut Open,
        next: &mut Option<&'m [u8]>,
        messages: &mut impl Iterator<Item = &'m [u8]>,
        out: &mut Buffer,
    ) {
        let mut recorded = tx.recorded;
        let mut message = *next;
        let mut room = out.room(0);
        while let Some(plain) = message.and_then(Plain::parse) {
            if plain.head != self.head {
                break;
            }
            if room.len() < ROW_MAX {
                let left = room.len();
                out.all_but(left);
                room = out.room(ROW_MAX);
            }
            let Some(row) = room.first_chunk_mut() else {
                break;
            };
            let Some(length) = self.put_row::<COLUMNS>(&plain, recorded + 1, row) else {
                break;
            };
            room = &mut std::mem::take(&mut room)[length..];
            recorded += 1;
            message = messages.next();
        }
        let left = room.len();
        out.all_but(left);
        *next = message;
        tx.recorded = recorded;
    }

    /// Puts the row of the change that is to have this number; returns how long it is.
    #[inline(always)]
    fn put_row<const COLUMNS: usize>(
        &self,
        plain: &Plain<'_>,
        number: u64,
        room: &mut [u8; ROW_MAX],
    ) -> Option<usize> {
        *room.first_chunk_mut()? = self.width;
        let end = match COLUMNS {
            OF_KEY => put_key(self.keys, plain, room),
            ANY => put_values(self.keys.len(), plain, room),
            columns => put_values(columns, plain, room),
        }?;
        self.tail.put(end, number, room)?;
        Some(usize::from(end) + self.tail.length)
    }
}

/// Puts the values behind the width; returns where they end.
#[inline(always)]
fn put_values(columns: usize, plain: &Plain<'_>, room: &mut [u8; ROW_MAX]) -> Option<u8> {
    // At most 255 bytes. Here they become no more: several values lose as many tags as the width has bytes, and a single one
    // is short.
    let mut values = plain.values()?;
    let mut at = size_of::<Width>() as u8;
    for put in 1..columns {
        let Some((window, length)) = values.window() else {
            return put_rest(columns + 1 - put, values, at, room);
        };
        // What else is in the window is overwritten by what is put next.
        room[usize::from(at)..][..WINDOW].copy_from_slice(window);
        at = at.wrapping_add(length);
    }
    // Behind the last one there is no room for a window.
    let Some(field) = values.last_binary() else {
        return put_rest(1, values, at, room);
    };
    let (place, bytes) = (&mut room[usize::from(at)..], field.with_length());
    match bytes.len() {
        4..=8 => copy_ends::<4>(place, bytes),
        9..=16 => copy_ends::<8>(place, bytes),
        17..=32 => copy_ends::<16>(place, bytes),
        _ => return put_rest(1, values, at, room),
    }
    // It is the sum of all lengths, each of which is waited for, but also known from the whole: none has its tag.
    Some((size_of::<Width>() + plain.size() - columns) as u8)
}

/// Puts so many values of any length, or NULL, to the end of the tuple. Cold, so that its code does not stand in the way of
/// the others, and that they have what they count in registers.
#[cold]
#[inline(never)]
fn put_rest(
    columns: usize,
    mut values: PlainValues<'_>,
    mut at: u8,
    room: &mut [u8; ROW_MAX],
) -> Option<u8> {
    for _ in 0..columns {
        at = match values.binary() {
            Some(field) => put(field.with_length(), at, room)?,
            None => put_null(&mut values, at, room)?,
        };
    }
    values.is_at_the_end().then_some(at)
}

/// Puts the values of a tuple that holds the key, and NULL for all other columns; returns where they end.
#[inline(never)]
fn put_key(keys: &[bool], plain: &Plain<'_>, room: &mut [u8; ROW_MAX]) -> Option<u8> {
    let mut values = plain.values()?;
    let mut at = size_of::<Width>() as u8;
    for key in keys {
        at = match values.binary() {
            Some(field) if *key => put(field.with_length(), at, room)?,
            Some(_) => return None,
            None => put_null(&mut values, at, room)?,
        };
    }
    values.is_at_the_end().then_some(at)
}

#[inline(always)]
fn put_null(values: &mut PlainValues<'_>, at: u8, room: &mut [u8; ROW_MAX]) -> Option<u8> {
    values.null().then(|| put(&NULL, at, room))?
}

/// Returns where the bytes end.
#[inline(always)]
fn put(bytes: &[u8], at: u8, room: &mut [u8; ROW_MAX]) -> Option<u8> {
    let end = at.checked_add(u8::try_from(bytes.len()).ok()?)?;
    room[usize::from(at)..usize::from(end)].copy_from_slice(bytes);
    Some(end)
}

impl Tail {
    /// None if it is longer than in short rows.
    fn new(plan: &Plan, kind: &str) -> Option<Self> {
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
        bytes.resize(length.max(TAIL_MAX), 0);
        Some(Self {
            of: Lsn::ZERO,
            bytes: bytes.try_into().ok()?,
            length,
            varying: varying.into(),
            tx_seq,
        })
    }

    /// Puts it, with this number; what is put beyond it is overwritten by the next row.
    #[inline(always)]
    fn put(&self, at: u8, number: u64, room: &mut [u8; ROW_MAX]) -> Option<()> {
        let place = &mut room[usize::from(at)..];
        match self.length {
            ..=TAIL_OFTEN => place[..TAIL_OFTEN].copy_from_slice(&self.bytes[..TAIL_OFTEN]),
            _ => place[..TAIL_MAX].copy_from_slice(&self.bytes),
        }
        match self.tx_seq {
            Some((at, form)) => put_number(place.get_mut(at..)?, form, number),
            None => Some(()),
        }
    }

    /// Fills in what is the same for all changes of a transaction.
    #[inline(never)]
    fn fill(&mut self, tx: &Open) {
        for &(at, own, form) in &self.varying {
            let number = match own {
                Own::ChangeTimestamp => tx.commit_time.0.cast_unsigned(),
                Own::CommitLsn => tx.commit_lsn.as_u64(),
                _ => u64::from(tx.xid),
            };
            // It was put there by `Tail::new`.
            let _ = put_number(&mut self.bytes[at..], form, number);
        }
        self.of = tx.commit_lsn;
    }
}

#[inline(always)]
fn put_number(place: &mut [u8], form: OwnForm, number: u64) -> Option<()> {
    match form {
        // See `Binary::number`.
        OwnForm::Int4 => *place.first_chunk_mut()? = (number as u32).to_be_bytes(),
        _ => *place.first_chunk_mut()? = number.to_be_bytes(),
    }
    Some(())
}

/// Copies the first and the last `N` bytes.
#[inline(always)]
fn copy_ends<const N: usize>(place: &mut [u8], bytes: &[u8]) {
    let last = bytes.len() - N;
    place[..N].copy_from_slice(&bytes[..N]);
    place[last..][..N].copy_from_slice(&bytes[last..][..N]);
}
