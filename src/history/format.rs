//! How a row is written: in COPY's binary format, which is also the parameter block of a Bind message, or in its text
//! format. Pure.

use std::fmt::Write as _;

use super::row::RowError;
use crate::pgoutput::{Timestamp, Value};
use crate::schema::plan::{OwnForm, Plan};

/// How rows are written: in binary or as text.
pub(super) trait Format {
    fn begin(out: &mut Vec<u8>, width: u16);
    fn end(out: &mut Vec<u8>);
    fn null(out: &mut Vec<u8>);
    fn value(out: &mut Vec<u8>, value: Value<'_>) -> Result<(), RowError>;
    fn bytes(out: &mut Vec<u8>, bytes: &[u8]);
    fn json(out: &mut Vec<u8>, form: OwnForm, json: &[u8]);
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
pub(super) struct Binary;

const NULL: [u8; 4] = (-1i32).to_be_bytes();
const TEXT_OID: u32 = 25;
/// What `jsonb_recv` reads first.
const JSONB_VERSION: u8 = 1;

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

    fn json(out: &mut Vec<u8>, form: OwnForm, json: &[u8]) {
        if form != OwnForm::Jsonb {
            return Self::bytes(out, json);
        }
        // At most 64 KiB.
        out.extend_from_slice(&(json.len() as u32 + 1).to_be_bytes());
        out.push(JSONB_VERSION);
        out.extend_from_slice(json);
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
            Self::bytes(out, name(plan, n, old).as_bytes());
        }
        let length = (out.len() - start - 4) as u32;
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    }
}

pub(super) struct Text;

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

    fn json(out: &mut Vec<u8>, _: OwnForm, json: &[u8]) {
        Self::escaped(out, json);
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
            for c in name(plan, n, old).chars() {
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

/// The history column of a column by its number in a row's [`Scratch`](super::row::Scratch).
fn name(plan: &Plan, n: u16, old: bool) -> &str {
    let n = usize::from(n);
    match plan.homes.get(n) {
        Some(homes) => &homes[usize::from(old)],
        None => &plan.absent[n - plan.homes.len()].0,
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
