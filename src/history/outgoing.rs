//! What is sent to the target in one go: statements of the extended query protocol, and rows by reference.
//!
//! Up to the Sync at its end the server runs all of it as one transaction, unless one is open (manual, section 53.2.3,
//! "Pipelining"). After a failure it skips everything up to the Sync, COPY data as well (section 53.2.6).

use bytes::{BufMut, BytesMut};
use postgres_protocol::message::frontend;

use crate::wire::{COPY_HEADER, COPY_TRAILER, Error};

/// COPY data is cut into messages of this size: the server works on one when it has all of it.
const COPY_MESSAGE: usize = 16 * 1024;

#[derive(Default)]
pub(super) struct Outgoing<'a> {
    /// Our own bytes, in order.
    pub(super) own: BytesMut,
    /// Up to where `own` goes before each slice of rows.
    rows: Vec<(usize, &'a [u8])>,
    statements: usize,
}

impl<'a> Outgoing<'a> {
    pub(super) fn copy_data(&mut self, bytes: &[u8]) {
        self.copy_data_head(bytes.len());
        self.own.put_slice(bytes);
    }

    /// CopyData messages of bytes that are not copied here.
    pub(super) fn copy_data_by_reference(&mut self, bytes: &'a [u8]) {
        for chunk in bytes.chunks(COPY_MESSAGE) {
            self.copy_data_head(chunk.len());
            self.rows.push((self.own.len(), chunk));
        }
    }

    /// A whole COPY of rows that stand as the applier makes them; `name`: of its statement.
    pub(super) fn copy(
        &mut self,
        name: &str,
        binary: bool,
        rows: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(), Error> {
        self.execute(name)?;
        if binary {
            self.copy_data(COPY_HEADER);
        }
        for rows in rows {
            self.copy_data_by_reference(rows);
        }
        if binary {
            self.copy_data(COPY_TRAILER);
        }
        frontend::copy_done(&mut self.own);
        Ok(())
    }

    /// A prepared statement without parameters.
    pub(super) fn execute(&mut self, name: &str) -> Result<(), Error> {
        self.execute_with(name, |out| out.put_u16(0))
    }

    /// A prepared statement; `parameters` writes their number and, in binary, each with its length (manual, section 53.7,
    /// "Bind").
    pub(super) fn execute_with(
        &mut self,
        name: &str,
        parameters: impl FnOnce(&mut BytesMut),
    ) -> Result<(), Error> {
        self.statements += 1;
        let out = &mut self.own;
        out.put_u8(b'B');
        let start = out.len();
        out.put_u32(0);
        // The unnamed portal.
        out.put_u8(0);
        out.put_slice(name.as_bytes());
        out.put_u8(0);
        // Everything is in binary: the parameters, and what is answered.
        out.put_slice(&[0, 1, 0, 1]);
        parameters(out);
        out.put_slice(&[0, 1, 0, 1]);
        // A row is below 2^30 bytes.
        let length = (out.len() - start) as u32;
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
        frontend::execute("", 0, out).map_err(Error::from)
    }

    /// A statement that is not kept prepared.
    pub(super) fn execute_once(&mut self, sql: &str) -> Result<(), Error> {
        frontend::parse("", sql, [], &mut self.own)?;
        self.execute("")
    }

    /// Statements so far, each of which is answered by a CommandComplete.
    pub(super) fn statements(&self) -> usize {
        self.statements
    }

    fn copy_data_head(&mut self, length: usize) {
        self.own.put_u8(b'd');
        // At most COPY_MESSAGE.
        self.own.put_u32(length as u32 + 4);
    }

    /// All of it, to be sent in order, with the Sync at its end.
    pub(super) fn parts(&mut self) -> Vec<&[u8]> {
        frontend::sync(&mut self.own);
        let mut parts = Vec::with_capacity(self.rows.len() * 2 + 1);
        let mut start = 0;
        for &(end, rows) in &self.rows {
            parts.push(&self.own[start..end]);
            parts.push(rows);
            start = end;
        }
        parts.push(&self.own[start..]);
        parts
    }
}
