//! What is sent to the target in one go: our own bytes, and rows by reference.

use bytes::{BufMut, BytesMut};
use postgres_protocol::message::frontend;

use crate::wire::{COPY_HEADER, COPY_TRAILER, Error};

/// COPY data is cut into messages of this size: the server works on one when it has all of it.
const COPY_MESSAGE: usize = 16 * 1024;
/// What is sent: our own bytes, and rows by reference.
#[derive(Default)]
pub(super) struct Outgoing<'a> {
    /// Our own bytes, in order.
    pub(super) own: BytesMut,
    /// Up to where `own` goes before each slice of rows.
    rows: Vec<(usize, &'a [u8])>,
    commands: usize,
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

    /// A whole COPY of rows that stand as the applier makes them.
    pub(super) fn copy(
        &mut self,
        statement: &str,
        binary: bool,
        rows: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(), Error> {
        self.command(statement)?;
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

    /// A command of the simple query protocol.
    pub(super) fn command(&mut self, sql: &str) -> Result<(), Error> {
        self.commands += 1;
        frontend::query(sql, &mut self.own).map_err(Error::from)
    }

    /// Commands so far, each of which is answered by a ReadyForQuery.
    pub(super) fn commands(&self) -> usize {
        self.commands
    }

    fn copy_data_head(&mut self, length: usize) {
        self.own.put_u8(b'd');
        // At most COPY_MESSAGE.
        self.own.put_u32(length as u32 + 4);
    }

    /// All of it, to be sent in order.
    pub(super) fn parts(&'a self) -> Vec<&'a [u8]> {
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
