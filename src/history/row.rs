//! Changes as rows of a COPY stream.
//!
//! A value is copied once, from the read buffer into the rows of its table, and is not looked at: in binary
//! its length and bytes stand in a pgoutput tuple just as in a COPY row (manual, section 53.9 and the COPY
//! page, "Binary Format"), and just as in a Bind message. Pure, and nothing is allocated per change.
//!
//! A value that the WAL does not carry is NULL and named in `unavailable_columns`: never a placeholder. In an old tuple
//! that is not whole NULL means "not logged", in a key column too: a key is never NULL.

use super::context::Context;
use super::format::{Binary, Format, Text};
use super::tally::Kind;
use crate::pgoutput::{DecodeError, OldKind, Timestamp, Tuple, Value};
use crate::schema::plan::{OldTuples, Own, Plan, change_type};
use crate::transaction::Open;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The row does not have the columns that its Relation message announced.
    #[error("a row has {got} columns, its relation {expected}")]
    Columns { expected: usize, got: u16 },
    /// A value came as text in a binary stream: its type has no binary form.
    #[error("a value came as text in a binary stream")]
    NeedsText,
    /// A value came in binary although text was asked for.
    #[error("a value came in binary in a text stream")]
    UnexpectedBinary,
}

/// One change, as the decoder gives it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change<'a> {
    Insert(Tuple<'a>),
    /// A changed row, with what the replica identity gives of the old one.
    Update(Option<(OldKind, Tuple<'a>)>, Tuple<'a>),
    /// A removed row, as far as the replica identity gives it.
    Delete(OldKind, Tuple<'a>),
    Truncate,
    /// What a transaction did to the table is left out.
    Gap,
}

impl Change<'_> {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Insert(_) => Kind::Insert,
            Self::Update(..) => Kind::Update,
            Self::Delete(..) => Kind::Delete,
            Self::Truncate => Kind::Truncate,
            Self::Gap => Kind::Gap,
        }
    }
}

/// Lists and texts of the row that is being written, kept between rows so that a row allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Values that the WAL did not carry, since this was last taken.
    pub unavailable_count: u64,
    /// What the transaction has said of itself so far.
    pub context: Context,
    /// The columns of such values in this row: positions in the plan's columns, and after them in its absent ones; the flag
    /// is set for the `old_` column.
    unavailable: Vec<(u16, bool)>,
    changed: Vec<u16>,
    text: String,
    /// The last commit time that was written as text; a transaction has only one.
    time: Option<(Timestamp, String)>,
}

/// Appends the rows of one change to `out`, and numbers the change in `tx`. Returns the number of rows: one, or two for
/// an UPDATE of the key that is recorded as DELETE and INSERT.
///
/// Changes and tuples are passed by reference: a copy of one stalls the processor for longer than reading it takes.
///
/// # Errors
/// A malformed tuple, or one that does not fit the plan; `out` then ends in a partial row and must not be
/// sent.
// Inlined by force down to `finish`: a change takes 32 ns then, else 39.
#[inline(always)]
pub(crate) fn write(
    plan: &Plan,
    tx: &mut Open,
    change: &Change<'_>,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Result<usize, RowError> {
    match plan.binary {
        true => write_as::<Binary>(plan, tx, change, scratch, out),
        false => write_as::<Text>(plan, tx, change, scratch, out),
    }
}

#[inline(always)]
fn write_as<F: Format>(
    plan: &Plan,
    tx: &mut Open,
    change: &Change<'_>,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Result<usize, RowError> {
    // A change has one number, also where it is recorded as two rows.
    tx.recorded += 1;
    let mut row = Row::<F> {
        plan,
        scratch,
        out,
        format: std::marker::PhantomData,
    };
    match change {
        Change::Insert(new) => row.finish_new(tx, change_type::INSERT, new, None)?,
        Change::Update(old, new) => {
            let old = old.as_ref().map(|(kind, old)| (*kind, old));
            if let Some((kind, old)) = old
                && plan.splits_key_changes
                && key_changed(plan, kind, old, new)?
            {
                row.finish_old(tx, kind, old)?;
                row.finish_new(tx, change_type::INSERT, new, Some((kind, old)))?;
                return Ok(2);
            }
            row.finish_new(tx, change_type::UPDATE, new, old)?;
        }
        Change::Delete(kind, old) => row.finish_old(tx, *kind, old)?,
        Change::Truncate => row.finish_empty(tx, change_type::TRUNCATE),
        Change::Gap => row.finish_empty(tx, change_type::GAP),
    }
    Ok(1)
}

/// Whether an old tuple and a new one differ in the key. A key tuple alone does not say so: it is also sent
/// for a key that is stored out of line. A key column whose old value is not known does not say so either.
fn key_changed(
    plan: &Plan,
    kind: OldKind,
    old: &Tuple<'_>,
    new: &Tuple<'_>,
) -> Result<bool, RowError> {
    let whole = is_whole(plan, kind);
    let (mut old, mut new) = (walk(plan, old)?, walk(plan, new)?);
    for column in &plan.columns {
        let (before, after) = (next(&mut old)?, next(&mut new)?);
        let known = is_known(whole, before) && after != Value::Unchanged;
        if column.key && known && before != after {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether NULL in an old tuple is a value.
fn is_whole(plan: &Plan, kind: OldKind) -> bool {
    match plan.old_tuples {
        OldTuples::AsTagged => kind == OldKind::Full,
        OldTuples::Whole => true,
        OldTuples::Partial => false,
    }
}

/// Whether an old tuple has this value. Outside the identity it has none, and no column of an identity is NULL.
fn is_known(whole: bool, value: Value<'_>) -> bool {
    whole || value != Value::Null
}

fn walk<'a>(plan: &Plan, tuple: &Tuple<'a>) -> Result<crate::pgoutput::Values<'a>, RowError> {
    if usize::from(tuple.len()) != plan.columns.len() {
        return Err(RowError::Columns {
            expected: plan.columns.len(),
            got: tuple.len(),
        });
    }
    Ok(tuple.values())
}

#[inline]
fn next<'a>(values: &mut crate::pgoutput::Values<'a>) -> Result<Value<'a>, RowError> {
    // The count was compared with the plan's before the walk.
    Ok(values.next()?.unwrap_or(Value::Null))
}

struct Row<'r, F> {
    plan: &'r Plan,
    scratch: &'r mut Scratch,
    out: &'r mut Vec<u8>,
    format: std::marker::PhantomData<F>,
}

impl<F: Format> Row<'_, F> {
    /// A row with the values after the change.
    #[inline(always)]
    fn finish_new(
        &mut self,
        tx: &Open,
        kind: &'static str,
        new: &Tuple<'_>,
        old: Option<(OldKind, &Tuple<'_>)>,
    ) -> Result<(), RowError> {
        self.begin();
        match old {
            None => self.new_values(new)?,
            Some((kind, old)) => self.new_values_beside_old(new, kind, old)?,
        }
        if self.plan.records_old {
            match kind {
                change_type::UPDATE => self.old_of_update(new, old)?,
                _ => self.no_old(),
            }
        }
        let knows_changes = match old {
            Some((tag, old)) if kind == change_type::UPDATE => self.note_changed(new, tag, old)?,
            _ => false,
        };
        self.finish(tx, kind, knows_changes);
        Ok(())
    }

    /// The values after the change, from the new tuple alone. Not inlined: this loop is most of a change's cost.
    #[inline(never)]
    fn new_values(&mut self, new: &Tuple<'_>) -> Result<(), RowError> {
        let mut values = walk(self.plan, new)?;
        for (n, column) in self.plan.columns.iter().enumerate() {
            let value = next(&mut values)?;
            if !column.recorded {
                continue;
            }
            match value {
                Value::Unchanged => self.unavailable(n, false),
                value => F::value(self.out, value)?,
            }
        }
        Ok(())
    }

    /// The values after the change. What the new tuple leaves out is taken from the old one, where that holds it.
    fn new_values_beside_old(
        &mut self,
        new: &Tuple<'_>,
        kind: OldKind,
        old: &Tuple<'_>,
    ) -> Result<(), RowError> {
        let whole = is_whole(self.plan, kind);
        let (mut values, mut before) = (walk(self.plan, new)?, walk(self.plan, old)?);
        for (n, column) in self.plan.columns.iter().enumerate() {
            let (value, before) = (next(&mut values)?, next(&mut before)?);
            if !column.recorded {
                continue;
            }
            match value {
                Value::Unchanged if is_known(whole, before) => {
                    F::value(self.out, before)?;
                }
                Value::Unchanged => self.unavailable(n, false),
                value => F::value(self.out, value)?,
            }
        }
        Ok(())
    }

    /// The `old_` columns of an UPDATE.
    fn old_of_update(
        &mut self,
        new: &Tuple<'_>,
        old: Option<(OldKind, &Tuple<'_>)>,
    ) -> Result<(), RowError> {
        let Some((kind, old)) = old else {
            return self.old_of_kept(new);
        };
        self.known_of_old(kind, old, true)
    }

    /// The `old_` columns of an UPDATE without an old tuple: what it says that it did not change.
    fn old_of_kept(&mut self, new: &Tuple<'_>) -> Result<(), RowError> {
        let mut values = walk(self.plan, new)?;
        for (n, column) in self.plan.columns.iter().enumerate() {
            let value = next(&mut values)?;
            if !column.recorded_old {
                continue;
            }
            if column.kept && value != Value::Unchanged {
                F::value(self.out, value)?;
            } else {
                self.unavailable(n, true);
            }
        }
        Ok(())
    }

    fn no_old(&mut self) {
        for _ in self
            .plan
            .columns
            .iter()
            .filter(|column| column.recorded_old)
        {
            F::null(self.out);
        }
    }

    /// A row with what is known of a removed one.
    #[inline]
    fn finish_old(&mut self, tx: &Open, kind: OldKind, old: &Tuple<'_>) -> Result<(), RowError> {
        self.begin();
        self.known_of_old(kind, old, false)?;
        if self.plan.records_old {
            self.known_of_old(kind, old, true)?;
        }
        self.finish(tx, change_type::DELETE, false);
        Ok(())
    }

    fn known_of_old(
        &mut self,
        kind: OldKind,
        old: &Tuple<'_>,
        before: bool,
    ) -> Result<(), RowError> {
        let whole = is_whole(self.plan, kind);
        let mut values = walk(self.plan, old)?;
        for (n, column) in self.plan.columns.iter().enumerate() {
            let value = next(&mut values)?;
            let wanted = if before {
                column.recorded_old
            } else {
                column.recorded
            };
            if !wanted {
                continue;
            }
            if is_known(whole, value) {
                F::value(self.out, value)?;
            } else {
                self.unavailable(n, before);
            }
        }
        Ok(())
    }

    fn finish_empty(&mut self, tx: &Open, kind: &'static str) {
        self.begin();
        for _ in self.plan.columns.iter().filter(|column| column.recorded) {
            F::null(self.out);
        }
        self.no_old();
        self.finish(tx, kind, false);
    }

    #[inline(always)]
    fn begin(&mut self) {
        self.scratch.unavailable.clear();
        self.scratch.changed.clear();
        F::begin(self.out, self.plan.width);
    }

    #[cold]
    fn unavailable(&mut self, column: usize, old: bool) {
        self.scratch.unavailable_count += 1;
        // A row has fewer than 2^15 columns.
        self.scratch.unavailable.push((column as u16, old));
        F::null(self.out);
    }

    /// Notes which columns an UPDATE changed. Returns false where that is not known.
    fn note_changed(
        &mut self,
        new: &Tuple<'_>,
        kind: OldKind,
        old: &Tuple<'_>,
    ) -> Result<bool, RowError> {
        let whole = is_whole(self.plan, kind);
        let mut own = self.plan.own.iter();
        let is_wanted = own.any(|(own, _)| *own == Own::ChangedColumns);
        if !is_wanted || (kind == OldKind::Key && !whole) {
            return Ok(false);
        }
        let (mut values, mut before) = (walk(self.plan, new)?, walk(self.plan, old)?);
        for (n, column) in self.plan.columns.iter().enumerate() {
            let (value, before) = (next(&mut values)?, next(&mut before)?);
            if !column.recorded || value == Value::Unchanged {
                continue;
            }
            if !is_known(whole, before) {
                return Ok(false);
            }
            if value != before {
                self.scratch.changed.push(n as u16);
            }
        }
        Ok(true)
    }

    /// Names what the stream left out of every row.
    #[cold]
    #[inline(never)]
    fn name_absent(&mut self, kind: &'static str) {
        let wanted = |old: bool| match kind {
            change_type::TRUNCATE | change_type::GAP => false,
            change_type::INSERT => !old,
            _ => true,
        };
        for (at, &(_, old)) in self.plan.absent.iter().enumerate() {
            if wanted(old) {
                self.scratch.unavailable_count += 1;
                let n = self.plan.columns.len() + at;
                self.scratch.unavailable.push((n as u16, old));
            }
        }
    }

    /// waltrail's own columns, and the end of the row.
    #[inline(always)]
    fn finish(&mut self, tx: &Open, kind: &'static str, knows_changes: bool) {
        if !self.plan.absent.is_empty() {
            self.name_absent(kind);
        }
        for &(own, form) in &self.plan.own {
            match own {
                Own::ChangeType => F::bytes(self.out, kind.as_bytes()),
                Own::ChangeTimestamp => {
                    F::timestamp(self.out, tx.commit_time, &mut self.scratch.time)
                }
                Own::CommitLsn => F::lsn(self.out, tx.commit_lsn, &mut self.scratch.text),
                Own::TxSeq => F::number(self.out, form, tx.recorded),
                Own::Xid => F::number(self.out, form, u64::from(tx.xid)),
                Own::ChangedColumns if !knows_changes => F::null(self.out),
                Own::ChangedColumns => {
                    let changed = self.scratch.changed.iter().map(|&n| (n, false));
                    F::names(self.out, self.plan, changed, &mut self.scratch.text);
                }
                Own::UnavailableColumns if self.scratch.unavailable.is_empty() => F::null(self.out),
                Own::UnavailableColumns => {
                    let missing = self.scratch.unavailable.iter().copied();
                    F::names(self.out, self.plan, missing, &mut self.scratch.text);
                }
                Own::Context => match self.scratch.context.json() {
                    Some(json) => F::json(self.out, form, json),
                    None => F::null(self.out),
                },
            }
        }
        F::end(self.out);
    }
}
