//! Changes as rows of a COPY stream.
//!
//! A value is copied once, from the read buffer into the rows of its table, and is not looked at: in binary
//! its length and bytes stand in a pgoutput tuple just as in a COPY row (manual, section 53.9 and the COPY
//! page, "Binary Format"), and just as in a Bind message. Pure, and nothing is allocated per change.
//!
//! A value that the WAL does not carry is NULL and named in `unavailable_columns`: never a placeholder.

use std::fmt::Write as _;

use crate::pgoutput::{DecodeError, OldKind, Timestamp, Tuple, Value};
use crate::schema::plan::{Own, OwnForm, Plan, change_type};
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
}

/// Lists and texts of the row that is being written, kept between rows so that a row allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Values that the WAL did not carry, in all rows.
    pub unavailable_count: u64,
    /// The columns of such values in this row: positions in the plan's columns; the flag is set for the `old_` column.
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
                && key_changed(plan, old, new)?
            {
                row.finish_old(tx, kind, old)?;
                row.finish_new(tx, change_type::INSERT, new, Some((kind, old)))?;
                return Ok(2);
            }
            row.finish_new(tx, change_type::UPDATE, new, old)?;
        }
        Change::Delete(kind, old) => row.finish_old(tx, *kind, old)?,
        Change::Truncate => row.finish_truncate(tx),
    }
    Ok(1)
}

/// Whether an old tuple and a new one differ in the key. A key tuple alone does not say so: it is also sent
/// for a key that is stored out of line.
fn key_changed(plan: &Plan, old: &Tuple<'_>, new: &Tuple<'_>) -> Result<bool, RowError> {
    let (mut old, mut new) = (walk(plan, old)?, walk(plan, new)?);
    for column in &plan.columns {
        let (before, after) = (next(&mut old)?, next(&mut new)?);
        if column.key && after != Value::Unchanged && before != after {
            return Ok(true);
        }
    }
    Ok(false)
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
        let knows_changes = kind == change_type::UPDATE && matches!(old, Some((OldKind::Full, _)));
        if knows_changes
            && self
                .plan
                .own
                .iter()
                .any(|(own, _)| *own == Own::ChangedColumns)
        {
            self.note_changed(new, old)?;
        }
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
        let (mut values, mut before) = (walk(self.plan, new)?, walk(self.plan, old)?);
        for (n, column) in self.plan.columns.iter().enumerate() {
            let (value, before) = (next(&mut values)?, next(&mut before)?);
            if !column.recorded {
                continue;
            }
            match value {
                Value::Unchanged if kind == OldKind::Full || column.key => {
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
        let full = matches!(old, Some((OldKind::Full, _)));
        // Without an old tuple the key did not change: it is what the new one says.
        let mut values = walk(self.plan, old.map_or(new, |(_, old)| old))?;
        for (n, column) in self.plan.columns.iter().enumerate() {
            let value = next(&mut values)?;
            if !column.recorded_old {
                continue;
            }
            if (full || column.key) && value != Value::Unchanged {
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
            // In a key tuple NULL outside the key means "not logged".
            if kind == OldKind::Full || column.key {
                F::value(self.out, value)?;
            } else {
                self.unavailable(n, before);
            }
        }
        Ok(())
    }

    fn finish_truncate(&mut self, tx: &Open) {
        self.begin();
        for _ in self.plan.columns.iter().filter(|column| column.recorded) {
            F::null(self.out);
        }
        self.no_old();
        self.finish(tx, change_type::TRUNCATE, false);
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

    fn note_changed(
        &mut self,
        new: &Tuple<'_>,
        old: Option<(OldKind, &Tuple<'_>)>,
    ) -> Result<(), RowError> {
        let Some((_, old)) = old else { return Ok(()) };
        let (mut values, mut before) = (walk(self.plan, new)?, walk(self.plan, old)?);
        for (n, column) in self.plan.columns.iter().enumerate() {
            let (value, before) = (next(&mut values)?, next(&mut before)?);
            if column.recorded && value != Value::Unchanged && value != before {
                self.scratch.changed.push(n as u16);
            }
        }
        Ok(())
    }

    /// waltrail's own columns, and the end of the row.
    #[inline(always)]
    fn finish(&mut self, tx: &Open, kind: &'static str, knows_changes: bool) {
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
            }
        }
        F::end(self.out);
    }
}

/// How rows are written: in binary or as text.
trait Format {
    fn begin(out: &mut Vec<u8>, width: u16);
    fn end(out: &mut Vec<u8>);
    fn null(out: &mut Vec<u8>);
    fn value(out: &mut Vec<u8>, value: Value<'_>) -> Result<(), RowError>;
    fn bytes(out: &mut Vec<u8>, bytes: &[u8]);
    fn number(out: &mut Vec<u8>, form: OwnForm, number: u64);
    fn timestamp(out: &mut Vec<u8>, time: Timestamp, last: &mut Option<(Timestamp, String)>);
    fn lsn(out: &mut Vec<u8>, lsn: crate::lsn::Lsn, text: &mut String);
    fn names(
        out: &mut Vec<u8>,
        plan: &Plan,
        columns: impl ExactSizeIterator<Item = (u16, bool)>,
        text: &mut String,
    );
}

/// COPY's binary format; one row is also the parameter block of a Bind message.
struct Binary;

const NULL: [u8; 4] = (-1i32).to_be_bytes();
const TEXT_OID: u32 = 25;

impl Format for Binary {
    #[inline]
    fn begin(out: &mut Vec<u8>, width: u16) {
        out.extend_from_slice(&width.to_be_bytes());
    }

    #[inline]
    fn end(_: &mut Vec<u8>) {}

    #[inline]
    fn null(out: &mut Vec<u8>) {
        out.extend_from_slice(&NULL);
    }

    #[inline]
    fn value(out: &mut Vec<u8>, value: Value<'_>) -> Result<(), RowError> {
        match value {
            Value::Binary(field) => out.extend_from_slice(field.with_length()),
            Value::Null | Value::Unchanged => Self::null(out),
            Value::Text(_) => return Err(RowError::NeedsText),
        }
        Ok(())
    }

    #[inline]
    fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
        // Only names and words of ours, far below 2^31 bytes.
        out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        out.extend_from_slice(bytes);
    }

    #[inline]
    fn number(out: &mut Vec<u8>, form: OwnForm, number: u64) {
        match form {
            // An xid, which has 32 bits; or a tx_seq in an integer column, which the plan's owner chose.
            OwnForm::Int4 => Self::bytes(out, &(number as u32).to_be_bytes()),
            _ => Self::bytes(out, &number.to_be_bytes()),
        }
    }

    #[inline]
    fn timestamp(out: &mut Vec<u8>, time: Timestamp, _: &mut Option<(Timestamp, String)>) {
        Self::bytes(out, &time.0.to_be_bytes());
    }

    fn lsn(out: &mut Vec<u8>, lsn: crate::lsn::Lsn, _: &mut String) {
        Self::bytes(out, &lsn.as_u64().to_be_bytes());
    }

    fn names(
        out: &mut Vec<u8>,
        plan: &Plan,
        columns: impl ExactSizeIterator<Item = (u16, bool)>,
        _: &mut String,
    ) {
        // ndim, flags, element type; length, lower bound (array_recv).
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        if columns.len() == 0 {
            for word in [0, 0, TEXT_OID] {
                out.extend_from_slice(&word.to_be_bytes());
            }
        } else {
            // Fewer than 2^15 columns.
            for word in [1, 0, TEXT_OID, columns.len() as u32, 1] {
                out.extend_from_slice(&word.to_be_bytes());
            }
        }
        for (n, old) in columns {
            let name = &plan.homes[usize::from(n)][usize::from(old)];
            Self::bytes(out, name.as_bytes());
        }
        let length = (out.len() - start - 4) as u32;
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    }
}

struct Text;

impl Text {
    fn escaped(out: &mut Vec<u8>, bytes: &[u8]) {
        let mut plain = 0;
        for (at, &byte) in bytes.iter().enumerate() {
            let escape = match byte {
                b'\\' => b'\\',
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                _ => continue,
            };
            out.extend_from_slice(&bytes[plain..at]);
            out.extend_from_slice(&[b'\\', escape]);
            plain = at + 1;
        }
        out.extend_from_slice(&bytes[plain..]);
        out.push(b'\t');
    }
}

impl Format for Text {
    fn begin(_: &mut Vec<u8>, _: u16) {}

    fn end(out: &mut Vec<u8>) {
        // Every value ends with a delimiter; the last one becomes the end of the row.
        if let Some(last) = out.last_mut() {
            *last = b'\n';
        }
    }

    fn null(out: &mut Vec<u8>) {
        out.extend_from_slice(b"\\N\t");
    }

    fn value(out: &mut Vec<u8>, value: Value<'_>) -> Result<(), RowError> {
        match value {
            Value::Text(field) => Self::escaped(out, field.bytes()),
            Value::Null | Value::Unchanged => Self::null(out),
            Value::Binary(_) => return Err(RowError::UnexpectedBinary),
        }
        Ok(())
    }

    fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
        Self::escaped(out, bytes);
    }

    fn number(out: &mut Vec<u8>, _: OwnForm, number: u64) {
        out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        out.push(b'\t');
    }

    fn timestamp(out: &mut Vec<u8>, time: Timestamp, last: &mut Option<(Timestamp, String)>) {
        if last.as_ref().is_none_or(|(known, _)| *known != time) {
            let mut text = String::new();
            crate::clock::write_utc(&mut text, time.0);
            *last = Some((time, text));
        }
        if let Some((_, text)) = last {
            Self::escaped(out, text.as_bytes());
        }
    }

    fn lsn(out: &mut Vec<u8>, lsn: crate::lsn::Lsn, text: &mut String) {
        text.clear();
        let _ = write!(text, "{lsn}");
        Self::escaped(out, text.as_bytes());
    }

    fn names(
        out: &mut Vec<u8>,
        plan: &Plan,
        columns: impl ExactSizeIterator<Item = (u16, bool)>,
        text: &mut String,
    ) {
        text.clear();
        text.push('{');
        for (at, (n, old)) in columns.enumerate() {
            if at > 0 {
                text.push(',');
            }
            text.push('"');
            for c in plan.homes[usize::from(n)][usize::from(old)].chars() {
                if matches!(c, '"' | '\\') {
                    text.push('\\');
                }
                text.push(c);
            }
            text.push('"');
        }
        text.push('}');
        Self::escaped(out, text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_values_are_escaped_for_copy() {
        let mut out = Vec::new();
        Text::escaped(&mut out, b"a\tb\\c\nd\re\\.");
        assert_eq!(out, b"a\\tb\\\\c\\nd\\re\\\\.\t");
    }
}
